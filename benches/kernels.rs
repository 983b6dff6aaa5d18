//! Single kernels against what no form of them can do without. On a GPU: device time by events, GB/s or TFLOP/s, and
//! the share of a ceiling that was measured in the same run (a copy of 1 GiB, the largest matrix product). Without one:
//! the CPU reference's times, and what the emulator counts for the same sizes. `RLHF_DEVICE` names the device, as
//! `--device` does.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rlhf::bench::{self, Size, Workload};
use rlhf::{Device, Result};

/// Seconds of a sample of the table, at least; and samples, of which the median counts.
const SAMPLE_SECONDS: f64 = 0.02;
const SAMPLES: usize = 7;

fn main_group(criterion: &mut Criterion) {
    if let Err(error) = bench::device().and_then(|device| run(criterion, &device)) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(criterion: &mut Criterion, device: &Device) -> Result<()> {
    println!("kernels on {}", bench::describe(device));
    match device.name() {
        "emulated" => {
            println!("skipped: times, because an emulated GPU's say nothing about one");
            counters()
        }
        "cpu" => {
            println!("skipped: times and rates of the kernels, because the device is not a GPU");
            measure(criterion, device, Size::Small)?;
            counters()
        }
        _ => {
            println!("skipped: the emulator's counters, because RLHF_DEVICE=emulated prints them anywhere");
            table(device)?;
            measure(criterion, device, Size::Large)
        }
    }
}

/// Criterion's estimates of one pass of each workload.
fn measure(criterion: &mut Criterion, device: &Device, size: Size) -> Result<()> {
    let (width, floats) = bench::floats(device);
    for workload in bench::workloads(size) {
        let mut pass = workload.prepare(device, size)?;
        let mut group = criterion.benchmark_group(workload.name);
        group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
        group.throughput(match workload.cost.flop {
            0.0 => Throughput::Bytes(workload.cost.moved(width) as u64),
            flop => Throughput::Elements(flop as u64),
        });
        let mut failed = None;
        group.bench_function(BenchmarkId::new(&floats, &workload.shape), |bencher| {
            bencher.iter_custom(|passes| {
                let seconds = bench::in_pool(device, || bench::seconds(device, passes, &mut pass));
                seconds.map_or_else(
                    |error| {
                        failed = Some(error);
                        Duration::from_secs(1)
                    },
                    Duration::from_secs_f64,
                )
            });
        });
        group.finish();
        failed.map_or(Ok(()), Err)?;
    }
    Ok(())
}

/// Median seconds of one pass.
fn median(device: &Device, workload: &Workload) -> Result<f64> {
    let mut pass = workload.prepare(device, Size::Large)?;
    bench::seconds(device, 3, &mut pass)?;
    let once = bench::seconds(device, 3, &mut pass)? / 3.0;
    let passes = (SAMPLE_SECONDS / once.max(1e-7)).ceil().clamp(1.0, 10_000.0) as u64;
    let sample = |_| Ok(bench::seconds(device, passes, &mut pass)? / passes as f64);
    let mut samples = (0..SAMPLES).map(sample).collect::<Result<Vec<f64>>>()?;
    samples.sort_by(f64::total_cmp);
    Ok(samples[SAMPLES / 2])
}

/// Times, rates and shares on a GPU, as a table of Markdown.
fn table(device: &Device) -> Result<()> {
    let (width, floats) = bench::floats(device);
    let workloads = bench::workloads(Size::Large);
    let copy = bench::copy_rate(device)?;
    let mut products = 0f64;
    for workload in workloads.iter().filter(|w| w.name.starts_with("gemm")) {
        products = products.max(workload.cost.flop / median(device, workload)?);
    }
    println!("ceilings: copy {:.0} GB/s, matrix products {:.1} TFLOP/s ({floats})", copy / 1e9, products / 1e12);
    println!("\n| kernel | sizes | us | rate | share of the ceiling |\n|---|---|---|---|---|");
    for workload in &workloads {
        let seconds = median(device, workload)?;
        let (rate, share) = match workload.cost.flop {
            0.0 => {
                let rate = workload.cost.moved(width) / seconds;
                (format!("{:.0} GB/s", rate / 1e9), rate / copy)
            }
            flop => (format!("{:.1} TFLOP/s", flop / seconds / 1e12), flop / seconds / products),
        };
        let (name, shape, micros) = (workload.name, &workload.shape, seconds * 1e6);
        println!("| {name} | {shape} | {micros:.1} | {rate} | {:.1} % |", 100.0 * share);
    }
    println!("\nsample and token_logprobs forward bring their results to the host in every pass.\n");
    Ok(())
}

/// What the emulator counts in one pass of each workload, beside the bytes at the limit.
fn counters() -> Result<()> {
    const BF16: usize = 2;
    println!("\nthe emulator's counters, bf16; conflicts: shared-memory passes beyond the conflict-free ones");
    println!(
        "| kernel | sizes | at the limit | entry | launches | bytes moved | lane instructions | mma | conflicts |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for workload in bench::workloads(Size::Small) {
        let limit = match workload.cost.flop {
            0.0 => format!("{:.0} bytes", workload.cost.moved(BF16)),
            flop => format!("{flop:.0} FLOP"),
        };
        for (entry, did) in bench::counters(&workload)? {
            println!(
                "| {} | {} | {limit} | {entry} | {} | {} | {} | {} | {} |",
                workload.name, workload.shape, did.launches, did.moved, did.instructions, did.mma, did.conflicts
            );
        }
    }
    Ok(())
}

criterion_group!(benches, main_group);
criterion_main!(benches);
