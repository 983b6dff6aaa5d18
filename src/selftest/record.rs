//! What a run of the table leaves behind: one JSON object with the device, the hash of every kernel's text, and every
//! case. Records of runs on hardware lie in `benches/record/` and are compiled in, so that the binary can say where its
//! very texts have run.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::verify::Verified;
use crate::device::kernel::{SOURCES, Source};
use crate::device::{Device, Gpu};
use crate::error::{Error, Result};

macro_rules! records {
    ($($name:literal),* $(,)?) => {
        /// The records that are compiled in: file name and text.
        static RECORDS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../benches/record/", $name)))),*];
    };
}
// `rlhf selftest --json` on a card wrote them; the newest last. None yet.
records! {}

/// The number of this layout.
const FORMAT: u32 = 1;

/// One run of the table, or of a part of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) format: u32,
    /// Of this crate.
    pub(crate) version: String,
    /// Universal time, `2026-11-23T22:07:45Z`.
    pub(crate) date: String,
    /// The name that `--device` takes.
    pub(crate) device: String,
    /// The card and its driver, in words.
    pub(crate) device_description: String,
    /// Whether every case that ran passed, and all that were asked for ran.
    pub(crate) passed: bool,
    /// Cases that were asked for.
    pub(crate) asked: usize,
    /// Of the whole run, on the clock of the wall.
    pub(crate) seconds: f64,
    pub(crate) kernels: Vec<Text>,
    pub(crate) cases: Vec<Row>,
}

/// A kernel's text, by its hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Text {
    pub(crate) name: String,
    /// Of the CUDA sources and the compiler's options, from the text's first line.
    pub(crate) source_hash: String,
    /// SHA-256 of the PTX text.
    pub(crate) text_sha256: String,
}

/// A case; `tensor`, `error` and `bound` are those of the output closest to its bound, or furthest beyond it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) kernel: String,
    pub(crate) dtype: String,
    pub(crate) shape: String,
    pub(crate) passed: bool,
    pub(crate) tensor: Option<String>,
    /// None if it is no number.
    pub(crate) error: Option<f64>,
    pub(crate) bound: Option<f64>,
    /// That the device took, uploads and downloads included.
    pub(crate) seconds: f64,
    /// What the device or the operation refused with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<String>,
}

impl Text {
    pub(crate) fn of(source: &Source) -> Self {
        let digest = Sha256::digest(source.text.as_bytes());
        let text_sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { name: source.name.to_owned(), source_hash: source.source_hash().to_owned(), text_sha256 }
    }
}

impl Row {
    fn of(verified: &Verified<'_>) -> Self {
        let (case, report) = (verified.case, verified.report.as_ref().ok());
        let worst = report.and_then(super::Report::worst);
        Self {
            kernel: case.kernel.to_owned(),
            dtype: case.dtype.to_string(),
            shape: case.shape.clone(),
            passed: verified.passed(),
            tensor: worst.map(|w| w.name.to_owned()),
            error: worst.map(|w| w.error).filter(|x| x.is_finite()),
            bound: worst.map(|w| w.bound).filter(|x| x.is_finite()),
            seconds: report.map_or(0.0, |r| r.seconds),
            refusal: verified.report.as_ref().err().map(ToString::to_string),
        }
    }
}

impl Record {
    /// The record of a run on `gpu` that `asked` for so many cases, ended at `date` and took `seconds`.
    pub(crate) fn new(gpu: &Gpu, asked: usize, verified: &[Verified<'_>], date: String, seconds: f64) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            date,
            device: Device::Gpu(gpu.clone()).name().to_owned(),
            device_description: gpu.driver().description(),
            passed: verified.len() == asked && verified.iter().all(Verified::passed),
            asked,
            seconds,
            kernels: SOURCES.iter().map(|source| Text::of(source)).collect(),
            cases: verified.iter().map(Row::of).collect(),
        }
    }

    /// Reads a record; `name` is its file's.
    fn parse(name: &str, text: &str) -> Result<Self> {
        let wrong = |why: String| Error::failure("record", "a record cannot be read").at(name.to_owned()).because(why);
        let record: Self = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        if record.format == FORMAT { Ok(record) } else { Err(wrong(format!("its format is {}", record.format))) }
    }
}

/// The records that are compiled in.
pub(crate) fn records() -> Result<Vec<Record>> {
    RECORDS.iter().map(|(name, text)| Record::parse(name, text)).collect()
}

/// When and where a text ran on hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Run {
    /// The card and its driver, in words.
    pub(crate) device: String,
    pub(crate) date: String,
    /// Cases of this kernel that passed.
    pub(crate) passed: usize,
    /// Cases of this kernel that ran.
    pub(crate) cases: usize,
}

/// The last run of this very text on hardware; an emulated run is none.
pub(crate) fn last_run(records: &[Record], text: &Text) -> Option<Run> {
    let on_hardware = |r: &&Record| r.device.starts_with("cuda");
    let same = |r: &&Record| r.kernels.iter().any(|k| k.name == text.name && k.text_sha256 == text.text_sha256);
    let run = |r: &Record| {
        let cases: Vec<&Row> = r.cases.iter().filter(|row| row.kernel == text.name).collect();
        let passed = cases.iter().filter(|row| row.passed).count();
        Run { device: r.device_description.clone(), date: r.date.clone(), passed, cases: cases.len() }
    };
    let runs = records.iter().filter(on_hardware).filter(same).map(run);
    runs.filter(|run| run.cases > 0).max_by(|a, b| a.date.cmp(&b.date))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(device: &str, date: &str, text_sha256: &str) -> Record {
        let row = |kernel: &str, passed| {
            serde_json::json!({ "kernel": kernel, "dtype": "f32", "shape": "n 1", "passed": passed, "tensor": "out",
                "error": 0.0, "bound": 1e-5, "seconds": 0.1 })
        };
        let record = serde_json::json!({
            "format": 1, "version": "0.1.0", "date": date, "device": device, "device_description": "a card",
            "passed": false, "asked": 3, "seconds": 1.0,
            "kernels": [{ "name": "gae", "source_hash": "", "text_sha256": text_sha256 }],
            "cases": [row("gae", true), row("gae", false), row("gelu", true)],
        });
        Record::parse("here", &record.to_string()).unwrap()
    }

    #[test]
    fn a_record_speaks_for_its_own_texts_on_hardware() {
        let text = Text { name: "gae".into(), source_hash: "s".into(), text_sha256: "a".into() };
        let run = |date: &str| Run { device: "a card".into(), date: date.into(), passed: 1, cases: 2 };
        assert_eq!(last_run(&[], &text), None);
        assert_eq!(last_run(&[record("cuda:0", "2027-01-02T00:00:00Z", "b")], &text), None);
        assert_eq!(last_run(&[record("emulated", "2027-01-02T00:00:00Z", "a")], &text), None);
        let records = ["2027-01-02", "2027-02-01", "2026-12-31"].map(|date| record("cuda:1", date, "a"));
        assert_eq!(last_run(&records, &text), Some(run("2027-02-01")));
        let other = Text { name: "gelu".into(), ..text };
        assert_eq!(last_run(&records, &other), None);
    }

    #[test]
    fn records_are_read_and_none_is_left_out() {
        records().unwrap();
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/record");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let is_record = name.ends_with(".json") && std::fs::read_to_string(&path).unwrap().contains("text_sha256");
            assert!(!is_record || RECORDS.iter().any(|(known, _)| *known == name), "{name} is not compiled in");
        }
    }

    #[test]
    fn other_formats_are_refused() {
        let text = serde_json::to_string(&record("cuda:0", "2027", "a")).unwrap();
        assert!(Record::parse("x.json", &text).is_ok());
        let error = Record::parse("x.json", &text.replace("\"format\":1", "\"format\":2")).unwrap_err();
        assert_eq!((error.id(), error.place()), ("record", Some("x.json")));
    }
}
