//! `rlhf doctor`: what this machine can compute on, and what is missing and how to get it, as a report to paste. It
//! looks and writes nothing; a fault that it finds is a line of the report and no failure.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::device::cuda::Cuda;
use crate::device::cuda::library::{self, Found};
use crate::device::cuda::probe;
use crate::device::driver::Driver;
use crate::device::kernel::{SOURCES, Source};
use crate::error::{Error, Result};

/// Options of `rlhf doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Variables that change what is found or how it runs.
const VARIABLES: [&str; 5] =
    ["CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_DISABLE_PTX_JIT", "RLHF_CUBLASLT", "RAYON_NUM_THREADS"];

/// How to get cuBLASLt.
const CUBLASLT_CURE: &str = "install the CUDA toolkit, or `pip install nvidia-cublas-cu12` in the active Python \
    environment, or name the file libcublasLt.so in RLHF_CUBLASLT; without it this program's own kernels multiply";

/// The report.
#[derive(Debug, Default, Serialize)]
struct Report {
    rlhf: &'static str,
    system: String,
    processor: String,
    threads: usize,
    memory: Memory,
    driver: Option<CudaDriver>,
    /// Why there is no driver.
    driver_error: Option<String>,
    gpus: Vec<Card>,
    cublaslt: Blas,
    kernels: Vec<Text>,
    emulator: Emulator,
    environment: Vec<(&'static str, String)>,
    /// What `--device` takes here.
    devices: Vec<String>,
}

/// Bytes.
#[derive(Debug, Default, Serialize)]
struct Memory {
    total: Option<u64>,
    free: Option<u64>,
}

#[derive(Debug, Serialize)]
struct CudaDriver {
    /// The version of CUDA that it speaks.
    cuda: String,
    release: Option<String>,
}

#[derive(Debug, Serialize)]
struct Card {
    device: String,
    name: String,
    compute_capability: String,
    memory: Memory,
    /// Kernel texts that its driver took.
    kernels_usable: usize,
    /// What is wrong with it, or with a text on it.
    errors: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
struct Blas {
    version: Option<String>,
    path: Option<String>,
    /// Why there is none.
    missing: Option<String>,
    tried: Vec<String>,
    fix: Option<String>,
}

#[derive(Debug, Serialize)]
struct Text {
    name: &'static str,
    sha256: &'static str,
    ptx: Option<&'static str>,
    target: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct Emulator {
    texts_read: usize,
    errors: Vec<String>,
}

/// Prints the report.
pub(super) fn run(args: &DoctorArgs) -> Result<()> {
    let report = examine();
    let text = if args.json {
        let json = serde_json::to_string_pretty(&report);
        json.map_err(|e| Error::failure("report", format!("the report cannot be written as JSON: {e}")))? + "\n"
    } else {
        report.to_string()
    };
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Error::io("printing the report", Path::new("standard output"), &e))
}

fn examine() -> Report {
    let started = probe::start();
    let version = started.as_ref().ok().copied();
    let (gpus, emulator) = (version.map_or_else(Vec::new, |_| cards()), emulator());
    let emulated = emulator.errors.is_empty().then(|| "emulated".to_owned());
    let usable = gpus.iter().filter(|card| card.errors.is_empty()).map(|card| card.device.clone());
    let devices = ["cpu".to_owned()].into_iter().chain(emulated).chain(usable).collect();
    Report {
        rlhf: env!("CARGO_PKG_VERSION"),
        system: system(),
        processor: processor(),
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory: memory(&read("/proc/meminfo")),
        driver: version.map(|v| CudaDriver { cuda: probe::version_text(v), release: probe::release() }),
        driver_error: started.err().map(|error| error.to_string()),
        cublaslt: blas(library::find(version)),
        kernels: SOURCES.iter().map(|source| text(source)).collect(),
        emulator,
        environment: VARIABLES.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))).collect(),
        devices,
        gpus,
    }
}

fn cards() -> Vec<Card> {
    (0..probe::count().unwrap_or(0)).map(card).collect()
}

/// A GPU, taken as a run would take it, with every kernel text handed to its driver.
fn card(ordinal: usize) -> Card {
    let properties = probe::properties(ordinal);
    let mut card = Card {
        device: format!("cuda:{ordinal}"),
        name: String::new(),
        compute_capability: String::new(),
        memory: Memory::default(),
        kernels_usable: 0,
        errors: Vec::new(),
    };
    let opened = properties.and_then(|properties| {
        let [major, minor] = properties.capability;
        card.name = properties.name;
        card.compute_capability = format!("{major}.{minor}");
        card.memory.total = Some(properties.total as u64);
        Ok((Cuda::open(ordinal)?, properties.capability))
    });
    let loaded = opened.and_then(|(cuda, capability)| {
        cuda.synchronize()?;
        card.memory.free = Some(cuda.memory()?[0] as u64);
        for source in SOURCES {
            match usable(&cuda, source, capability) {
                Ok(()) => card.kernels_usable += 1,
                Err(error) => card.errors.push(error.to_string()),
            }
        }
        Ok(())
    });
    card.errors.extend(loaded.err().map(|error| error.to_string()));
    card
}

fn usable(cuda: &Cuda, source: &'static Source, capability: [i32; 2]) -> Result<()> {
    if source.runs_on(capability) {
        return cuda.load(source);
    }
    let target = source.target().unwrap_or("nothing that it names");
    let [major, minor] = capability;
    Err(Error::failure("kernel-target", format!("the kernels of `{}` do not run on this GPU", source.name))
        .because(format!("they are for {target}, its compute capability is {major}.{minor}")))
}

fn text(source: &Source) -> Text {
    Text { name: source.name, sha256: source.source_hash(), ptx: source.ptx_version(), target: source.target() }
}

fn emulator() -> Emulator {
    let read: Vec<_> = SOURCES.iter().map(|source| source.module()).collect();
    let errors: Vec<String> = read.iter().filter_map(|module| Some(module.as_ref().err()?.to_string())).collect();
    Emulator { texts_read: read.len() - errors.len(), errors }
}

fn blas(found: &Found) -> Blas {
    let none = |missing: &str, tried: &[String], fix: &str| Blas {
        missing: Some(missing.to_owned()),
        tried: tried.to_vec(),
        fix: Some(fix.to_owned()),
        ..Blas::default()
    };
    match found {
        Found::Library(library) => {
            Blas { version: Some(library.version()), path: Some(library.path.clone()), ..Blas::default() }
        }
        Found::Off => none("switched off by RLHF_CUBLASLT=off", &[], "unset RLHF_CUBLASLT"),
        Found::Missing(tried) => none("not found", tried, CUBLASLT_CURE),
        Found::Refused(error) => none(&error.to_string(), &[], "name another file, or unset RLHF_CUBLASLT"),
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The value of `key` in lines such as `key: value` or `key="value"`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(key)?.trim_start().strip_prefix([':', '=']);
    text.lines().find_map(value).map(|value| value.trim().trim_matches('"'))
}

fn system() -> String {
    let release = read("/etc/os-release");
    let name = value(&release, "PRETTY_NAME").unwrap_or(std::env::consts::OS);
    format!("{name}, kernel {}, {}", read("/proc/sys/kernel/osrelease").trim(), std::env::consts::ARCH)
}

fn processor() -> String {
    value(&read("/proc/cpuinfo"), "model name").unwrap_or("unknown").to_owned()
}

fn memory(meminfo: &str) -> Memory {
    let bytes = |key| Some(value(meminfo, key)?.strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10);
    Memory { total: bytes("MemTotal"), free: bytes("MemAvailable") }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: Option<u64>| {
            bytes.map_or_else(|| "unknown".to_owned(), |bytes| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64))
        };
        write!(f, "{}, {} free", gib(self.total), gib(self.free))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row =
            |label: &str, text: &str| writeln!(f, "{label:<10} {}", text.trim_end().replace('\n', "\n           "));
        row("rlhf", self.rlhf)?;
        row("system", &self.system)?;
        row("processor", &format!("{}, {} threads", self.processor, self.threads))?;
        row("memory", &self.memory.to_string())?;
        row("driver", &self.driver_text())?;
        for gpu in &self.gpus {
            row(&gpu.device, &self.card_text(gpu))?;
        }
        row("cuBLASLt", &self.cublaslt.to_string())?;
        row("kernels", &self.kernels_text())?;
        let read = format!("present, reads {} of {} texts\n", self.emulator.texts_read, self.kernels.len());
        row("emulator", &(read + &self.emulator.errors.join("\n")))?;
        for (name, value) in &self.environment {
            row("variable", &format!("{name}={value}"))?;
        }
        row("devices", &format!("{} work here", self.devices.join(", ")))
    }
}

impl Report {
    fn driver_text(&self) -> String {
        match (&self.driver, &self.driver_error) {
            (Some(driver), _) => {
                let release = driver.release.as_deref().unwrap_or("of unknown release");
                let gpus = if self.gpus.is_empty() { "; it shows no GPU to this process" } else { "" };
                format!("NVIDIA {release}, CUDA {}{gpus}", driver.cuda)
            }
            (None, Some(error)) => error.clone(),
            (None, None) => "unknown".to_owned(),
        }
    }

    fn card_text(&self, card: &Card) -> String {
        let mut text = format!("{}, compute capability {}, {}\n", card.name, card.compute_capability, card.memory);
        // Writing to a string does not fail.
        let _ = writeln!(text, "takes {} of {} kernel texts", card.kernels_usable, self.kernels.len());
        text + &card.errors.join("\n")
    }

    fn kernels_text(&self) -> String {
        let mut forms: Vec<String> = self.kernels.iter().map(Text::form).collect();
        forms.sort();
        let runs = forms.chunk_by(|a, b| a == b).map(|run| format!("{} {}", run.len(), run[0]));
        let runs: Vec<String> = runs.collect();
        format!("{} texts ({}), for compute capability 8.0 and newer", self.kernels.len(), runs.join(", "))
    }
}

impl Text {
    /// What it needs, in words.
    fn form(&self) -> String {
        match (self.ptx, self.target) {
            (Some(ptx), Some(target)) => format!("in PTX {ptx} for {target}"),
            _ => "unreadable".to_owned(),
        }
    }
}

impl fmt::Display for Blas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.version, &self.path, &self.missing) {
            (Some(version), Some(path), _) => write!(f, "{version}, {path}"),
            (_, _, missing) => {
                writeln!(f, "{}", missing.as_deref().unwrap_or("unknown"))?;
                write!(f, "  fix: {}", self.fix.as_deref().unwrap_or("unknown"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with two GPUs, one of which is too old.
    fn machine() -> Report {
        let text = |name| Text { name, sha256: "ab", ptx: Some("7.1"), target: Some("sm_80") };
        let card = |ordinal: usize, capability: &str, errors: &[&str]| Card {
            device: format!("cuda:{ordinal}"),
            name: "NVIDIA X".into(),
            compute_capability: capability.into(),
            memory: Memory { total: Some(80 << 30), free: None },
            kernels_usable: if errors.is_empty() { 2 } else { 0 },
            errors: errors.iter().map(|e| (*e).to_owned()).collect(),
        };
        Report {
            rlhf: "1.2.3",
            system: "Linux".into(),
            driver: Some(CudaDriver { cuda: "12.4".into(), release: Some("550.54".into()) }),
            gpus: vec![card(0, "9.0", &[]), card(1, "7.5", &["it is old [cuda-capability]\n  fix: buy"])],
            cublaslt: Blas { version: Some("12.4.5".into()), path: Some("/a/b".into()), ..Blas::default() },
            kernels: vec![text("a"), text("b")],
            emulator: Emulator { texts_read: 2, errors: Vec::new() },
            environment: vec![("CUDA_VISIBLE_DEVICES", "0,1".into())],
            devices: vec!["cpu".into(), "emulated".into(), "cuda:0".into()],
            ..Report::default()
        }
    }

    #[test]
    fn a_machine_with_gpus_in_words() {
        let text = machine().to_string();
        for line in [
            "rlhf       1.2.3",
            "memory     unknown, unknown free",
            "driver     NVIDIA 550.54, CUDA 12.4",
            "cuda:0     NVIDIA X, compute capability 9.0, 80.0 GiB, unknown free",
            "           takes 2 of 2 kernel texts",
            "           it is old [cuda-capability]",
            "             fix: buy",
            "cuBLASLt   12.4.5, /a/b",
            "kernels    2 texts (2 in PTX 7.1 for sm_80), for compute capability 8.0 and newer",
            "emulator   present, reads 2 of 2 texts",
            "variable   CUDA_VISIBLE_DEVICES=0,1",
            "devices    cpu, emulated, cuda:0 work here",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn what_is_missing_comes_with_its_cure() {
        let missing = blas(&Found::Missing(vec!["libcublasLt.so: no such file".into()]));
        assert!(missing.to_string().contains("not found\n  fix: install the CUDA toolkit"), "{missing}");
        assert_eq!(missing.tried.len(), 1);
        assert!(blas(&Found::Off).to_string().contains("switched off"));
        let empty = Report { driver: machine().driver, ..Report::default() };
        assert!(empty.to_string().contains("it shows no GPU to this process"), "{empty}");
    }

    #[test]
    fn the_systems_files_are_read() {
        assert_eq!(value("NAME=\"A\"\nPRETTY_NAME=\"A 1\"\n", "PRETTY_NAME"), Some("A 1"));
        assert_eq!(value("model name\t: AMD X: 7\n", "model name"), Some("AMD X: 7"));
        let memory = memory("MemTotal:       16384 kB\nMemAvailable:  8192 kB\n");
        assert_eq!((memory.total, memory.free), (Some(16 << 20), Some(8 << 20)));
    }
}
