//! What each kernel moves and executes, as golden numbers: `kernels/counters.tsv` holds, for every entry at a fixed
//! medium shape, the counters of the emulator beside the kernel's limit. The numbers are exact, so a change of one is a
//! change of the kernel or of its launch. `RLHF_BLESS=1 cargo test counters` writes the table anew.

mod shapes;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use super::Engine;
use crate::device::emulated::Emulated;
use crate::device::kernel::SOURCES;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ptx::{Counters, Options};

/// Bytes moved over the bytes that each tensor has, matrix instructions over those of the FLOPs, and wavefronts over
/// those without bank conflicts (of matrix and attention kernels), at most.
const BYTES_BAR: f64 = 1.3;
const MMA_BAR: f64 = 1.3;
const WAVEFRONTS_BAR: f64 = 1.25;

/// Launches whose limit is below this are a few sectors, and are not held to the bar.
const BYTES_MIN: u64 = 8192;

/// Entries that move more than [`BYTES_BAR`] allows: up to how much more, and why. Counted are the sectors that the
/// multiprocessors ask for; what L1 and L2 then serve is not told apart from memory.
const MORE_BYTES: &[(&str, f64, &str)] = &[
    (
        "gemm_nt_bf16 gemm_nt_f32 gemm_nn_bf16 gemm_nn_f32 gemm_tn_bf16 gemm_tn_f32 gemm_nt_wide_bf16",
        2.4,
        "each tile of D reads its rows of A and columns of B; tiles that are near in time find them in L2",
    ),
    ("gemm_nt_skinny_bf16", 1.5, "each of the many narrow tiles of D reads the few rows of A, which stay in L2"),
    (
        "attention_forward_64_bf16 attention_forward_128_bf16 attention_forward_cached_64_bf16 \
            attention_forward_cached_128_bf16",
        2.3,
        "each tile of queries reads the keys and values before it, and each head of a group does; both from L2",
    ),
    (
        "attention_backward_queries_64_bf16 attention_backward_queries_128_bf16 attention_backward_keys_64_bf16 \
            attention_backward_keys_128_bf16",
        2.0,
        "as forward: tiles of queries meet tiles of keys, from L2",
    ),
    (
        "attention_forward_f32 attention_forward_cached_f32 attention_backward_queries_f32 attention_backward_keys_f32",
        90.0,
        "f32 is for debugging and has no tiles: each query reads its keys and values itself",
    ),
    ("attention_forward_decode_f32", 3.1, "as above: each head of a group reads keys and values itself"),
    ("layer_norm_forward_bf16 layer_norm_forward_f32", 2.1, "weight and bias are read with each row, from L1"),
    ("rms_norm_forward_bf16 rms_norm_forward_f32", 1.55, "the weight is read with each row, from L1"),
    ("scalar_head_forward_bf16 scalar_head_forward_f32", 2.1, "the weight is read with each row, from L1"),
    ("sample_bf16", 7.1, "passes after the first find the row in L2: one for the sums, two a threshold, one to draw"),
    ("sample_f32", 11.1, "as in bf16, but four passes a threshold"),
    ("pairwise_loss_f32", 1.9, "a pair's two scores are two requests for the same sectors, the second from L1"),
];

/// What a launch cannot do without, from the formula in the head of its `.cu` file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Limit {
    /// Of global memory: each element read or written once.
    bytes: u64,
    /// `mma` of 16 x 8 x 16 for the FLOPs.
    mma: u64,
}

impl Limit {
    fn bytes(bytes: usize) -> Self {
        Self { bytes: bytes as u64, mma: 0 }
    }

    fn mma(self, mma: usize) -> Self {
        Self { mma: mma as u64, ..self }
    }
}

type Run = Box<dyn Fn(&Engine) -> Result<()> + Send + Sync>;

/// Operations at one shape, and the limits of the entries that they launch, together if an entry is launched more than
/// once. Entries without a limit here have one in another workload.
struct Workload {
    shape: String,
    dtype: DType,
    run: Run,
    limits: Vec<(String, Limit)>,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    entry: String,
    shape: String,
    bytes: u64,
    limit: Limit,
    requests: u64,
    sectors: u64,
    wavefronts: [u64; 2],
    mma: u64,
    instructions: u64,
}

const HEADER: &str =
    "entry\tshape\tbytes\tlimit\tratio\tsectors/request\twavefronts\tideal\tratio\tmma\tlimit\tinstructions";

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

impl Row {
    fn new(entry: &str, shape: &str, limit: Limit, counted: &[&Counters]) -> Self {
        let sum = |of: fn(&Counters) -> u64| counted.iter().map(|c| of(c)).sum::<u64>();
        Self {
            entry: entry.to_owned(),
            shape: shape.to_owned(),
            bytes: sum(|c| c.global_load.moved() + c.global_store.moved()),
            limit,
            requests: sum(|c| c.global_load.requests + c.global_store.requests),
            sectors: sum(|c| c.global_load.sectors + c.global_store.sectors),
            wavefronts: [sum(|c| c.shared_wavefronts), sum(|c| c.shared_wavefronts_ideal)],
            mma: sum(|c| c.mma),
            instructions: sum(|c| c.warp_instructions),
        }
    }

    fn line(&self) -> String {
        let [wavefronts, ideal] = self.wavefronts;
        [
            self.entry.clone(),
            self.shape.clone(),
            self.bytes.to_string(),
            self.limit.bytes.to_string(),
            format!("{:.3}", ratio(self.bytes, self.limit.bytes)),
            format!("{:.3}", ratio(self.sectors, self.requests)),
            wavefronts.to_string(),
            ideal.to_string(),
            format!("{:.3}", ratio(wavefronts, ideal)),
            self.mma.to_string(),
            self.limit.mma.to_string(),
            self.instructions.to_string(),
        ]
        .join("\t")
    }

    /// The bars that it misses.
    fn misses(&self) -> Vec<String> {
        let mut misses = Vec::new();
        let mut hold = |what: &str, is: f64, bar: f64| {
            if is > bar {
                misses
                    .push(format!("{} {}: {what} are {is:.3} of the limit, not {bar} at most", self.entry, self.shape));
            }
        };
        let excuse = MORE_BYTES.iter().find(|row| row.0.split_whitespace().any(|entry| entry == self.entry));
        let allowed = excuse.map_or(BYTES_BAR, |row| row.1);
        if self.limit.bytes >= BYTES_MIN {
            hold("bytes", ratio(self.bytes, self.limit.bytes), allowed);
        }
        hold("matrix instructions", ratio(self.mma, self.limit.mma), MMA_BAR);
        if self.entry.starts_with("gemm") || self.entry.starts_with("attention") {
            hold("wavefronts", ratio(self.wavefronts[0], self.wavefronts[1]), WAVEFRONTS_BAR);
        }
        misses
    }
}

fn measure(work: &Workload) -> Vec<Row> {
    let emulated = Arc::new(Emulated::new(Options::default()));
    let device = Device::Gpu(Gpu::new(emulated.clone(), DType::BF16));
    if let Err(error) = (work.run)(&Engine::device(&device, work.dtype)) {
        panic!("{}: {error}", work.shape);
    }
    let launched = emulated.take_launched();
    let row = |(entry, limit): &(String, Limit)| {
        let counted: Vec<&Counters> = launched.iter().filter(|l| l.entry == entry).map(|l| &l.counters).collect();
        assert!(!counted.is_empty(), "{entry} is not launched by {}", work.shape);
        Row::new(entry, &work.shape, *limit, &counted)
    };
    work.limits.iter().map(row).collect()
}

fn place() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernels/counters.tsv")
}

/// Lines that only one of two tables has.
fn differences(committed: &str, rows: &[Row]) -> Vec<String> {
    let now: BTreeSet<String> = std::iter::once(HEADER.to_owned()).chain(rows.iter().map(Row::line)).collect();
    let then: BTreeSet<String> = committed.lines().map(str::to_owned).collect();
    let gone = then.difference(&now).map(|line| format!("- {line}"));
    gone.chain(now.difference(&then).map(|line| format!("+ {line}"))).collect()
}

#[test]
fn counters_are_those_of_the_table() {
    let mut rows: Vec<Row> = shapes::workloads().par_iter().flat_map_iter(measure).collect();
    rows.sort_by(|a, b| (&a.entry, &a.shape).cmp(&(&b.entry, &b.shape)));
    rows.dedup();
    let rows = rows;
    let covered: BTreeSet<&str> = rows.iter().map(|row| row.entry.as_str()).collect();
    let modules = SOURCES.iter().map(|source| source.module().unwrap());
    let all: BTreeSet<&str> = modules.flat_map(|m| m.kernels()).map(|kernel| kernel.name()).collect();
    let missing: Vec<&str> = all.difference(&covered).copied().collect();
    assert!(missing.is_empty(), "entries without a row: {missing:?}");

    if std::env::var("RLHF_BLESS").is_ok_and(|value| value == "1") {
        let text: String =
            std::iter::once(HEADER.to_owned()).chain(rows.iter().map(Row::line)).map(|l| l + "\n").collect();
        std::fs::write(place(), text).unwrap();
        println!("wrote {}", place().display());
    }
    let differences = differences(&std::fs::read_to_string(place()).unwrap_or_default(), &rows);
    let what = "RLHF_BLESS=1 writes the table anew; lines of the table (-) and of this run (+)";
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));

    let misses: Vec<String> = rows.iter().flat_map(Row::misses).collect();
    assert!(misses.is_empty(), "{}", misses.join("\n"));
    for (entries, _, reason) in MORE_BYTES {
        for entry in entries.split_whitespace() {
            let ratios = rows.iter().filter(|row| row.entry == entry).map(|row| ratio(row.bytes, row.limit.bytes));
            let needed = ratios.fold(0.0, f64::max) > BYTES_BAR;
            assert!(needed && !reason.is_empty(), "{entry} no longer needs its exception");
        }
    }
}

/// The control: a doctored counter is a difference, and a worse one a missed bar.
#[test]
fn a_doctored_counter_is_noticed() {
    let work = shapes::workloads().into_iter().find(|w| w.limits.iter().any(|l| l.0 == "gemm_nt_bf16")).unwrap();
    let rows = measure(&work);
    let row = rows.iter().find(|row| row.entry == "gemm_nt_bf16").unwrap().clone();
    assert!(row.bytes > 0 && row.sectors > 0 && row.wavefronts[0] > 0 && row.mma > 0 && row.instructions > 0);
    let table = format!("{HEADER}\n{}\n", row.line());
    assert_eq!(differences(&table, std::slice::from_ref(&row)), Vec::<String>::new());
    assert_eq!(row.misses(), Vec::<String>::new());
    let doctored: [fn(&mut Row); 7] = [
        |row| row.bytes += 32,
        |row| row.limit.bytes += 1,
        |row| row.sectors *= 2,
        |row| row.wavefronts[0] += 1,
        |row| row.wavefronts[1] -= 1,
        |row| row.mma += 1,
        |row| row.instructions -= 1,
    ];
    for doctor in doctored {
        let mut row = row.clone();
        doctor(&mut row);
        assert_eq!(differences(&table, std::slice::from_ref(&row)).len(), 2);
    }
    assert_eq!(differences(&table, &[]).len(), 1);
    let worse: [fn(&mut Row); 3] = [|row| row.bytes *= 8, |row| row.wavefronts[0] *= 2, |row| row.mma *= 2];
    for doctor in worse {
        let mut row = row.clone();
        doctor(&mut row);
        assert_eq!(row.misses().len(), 1);
    }
}
