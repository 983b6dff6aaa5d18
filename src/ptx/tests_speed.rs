//! How fast: run by hand (`RLHF_SLOW=1 cargo test --release ptx::tests_speed -- --nocapture`), for it needs a quiet
//! machine.

use std::time::Instant;

use super::tests_kernels::attention_launch;
use super::{Options, Result};

/// CPU seconds of this process so far, of all threads.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}

#[test]
fn attention_speed() -> Result<()> {
    if std::env::var_os("RLHF_SLOW").is_none() {
        println!("skipped: a measurement; set RLHF_SLOW=1");
        return Ok(());
    }
    let all = Options::default();
    let bare = Options { races: false, initialised: false, count: false, ..all.clone() };
    let rows = [
        ("bare", bare),
        ("counters", Options { races: false, initialised: false, ..all.clone() }),
        ("checks", Options { count: false, ..all.clone() }),
        ("all", all.clone()),
        ("all, 2 threads", Options { threads: 2, ..all }),
    ];
    for (name, options) in rows {
        let (mut best, mut best_cpu, mut lanes) = (f64::MAX, f64::MAX, 0);
        for _ in 0..7 {
            let (from, from_cpu) = (Instant::now(), cpu());
            for _ in 0..4 {
                lanes = attention_launch(512, 4, 4, false, options.clone())?.2.lane_instructions;
            }
            best = best.min(from.elapsed().as_secs_f64() / 4.0);
            best_cpu = best_cpu.min((cpu() - from_cpu) / 4.0);
        }
        let rate = lanes as f64 / best_cpu / 1e6;
        println!(
            "{name:15} {lanes} lane-instructions, {:.1} ms wall, {:.1} ms CPU, {rate:.0} M/s of CPU",
            best * 1e3,
            best_cpu * 1e3
        );
    }
    Ok(())
}

#[test]
fn softmax_speed() -> Result<()> {
    if std::env::var_os("RLHF_SLOW").is_none() {
        println!("skipped: a measurement; set RLHF_SLOW=1");
        return Ok(());
    }
    for (name, threads) in [("softmax, all", 1), ("softmax, all, 2 threads", 2)] {
        let (mut best_cpu, mut lanes) = (f64::MAX, 0);
        for _ in 0..5 {
            let from = cpu();
            for _ in 0..4 {
                lanes = super::tests_kernels::softmax_launch(Options { threads, ..Options::default() })?;
            }
            best_cpu = best_cpu.min((cpu() - from) / 4.0);
        }
        let rate = lanes as f64 / best_cpu / 1e6;
        println!("{name:25} {lanes} lane-instructions, {:.1} ms CPU, {rate:.0} M/s of CPU", best_cpu * 1e3);
    }
    Ok(())
}
