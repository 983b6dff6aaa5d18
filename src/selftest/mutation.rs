//! How much of a wrong kernel the table of cases would see: kernels are changed in one instruction at a time, and each
//! mutant must be told by the emulator, by a case's rule, or by bits that depend on the order of blocks and warps.
//! Mutants that no input can tell from the kernel are listed in `equivalent.tsv`, each with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use super::mutants::{EntryText, Mutant, entries};
use super::{Case, Engine, Output, cases};
use crate::device::emulated::Emulated;
use crate::device::kernel::{SOURCES, Source};
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ptx::{Module, Options};

/// Kernel, entry, instruction without its registers' numbers and with `#n` if it is the n-th of its opcode and line,
/// CUDA source, change, reason. In the first five columns,
/// `*` stands for any text; in the source any part of the line will do.
const EQUIVALENT: &str = include_str!("equivalent.tsv");

/// What is known about a case before any mutant runs.
struct Known {
    case: Case,
    golden: Vec<Output>,
    plain: Vec<Output>,
    ours: Vec<Output>,
    /// The entries that it launches.
    launches: BTreeSet<&'static str>,
    seconds: f64,
}

/// What became of a mutant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// The emulator reported it.
    Reported,
    /// An output was wrong.
    Wrong,
    /// The bits change with the order of blocks and warps.
    Disordered,
    /// It reads a register that nobody wrote, or does not load: not a mutant by the rules.
    Void(String),
    Survived,
}

fn options(shuffle: Option<u64>) -> Options {
    Options { count: false, branches_max: 1 << 16, shuffle, ..Options::default() }
}

fn device(driver: Emulated) -> Device {
    Device::Gpu(Gpu::new(Arc::new(driver), DType::BF16))
}

fn known(case: Case) -> Result<Known> {
    let driver = Arc::new(Emulated::new(Options::default()));
    let gpu = Device::Gpu(Gpu::new(Arc::clone(&driver) as Arc<_>, DType::BF16));
    let start = Instant::now();
    let ours = case.outputs(&Engine::device(&gpu, case.dtype))?;
    let seconds = start.elapsed().as_secs_f64();
    let (golden, plain) = (case.outputs(&Engine::golden(case.dtype))?, case.outputs(&Engine::plain(case.dtype))?);
    let launches = driver.take_launched().into_iter().map(|l| l.entry).collect();
    Ok(Known { case, golden, plain, ours, launches, seconds })
}

impl Known {
    fn fate(&self, source: &'static Source, module: &Arc<Module>) -> Fate {
        let run = |shuffle| {
            let driver = Emulated::with_text(options(shuffle), source, Arc::clone(module));
            self.case.outputs(&Engine::device(&device(driver), self.case.dtype))
        };
        let ours = match run(None) {
            Ok(ours) => ours,
            Err(error) if error.to_string().contains("UninitialisedRegister") => return Fate::Void(error.to_string()),
            Err(_) => return Fate::Reported,
        };
        let same = |a: &[Output], b: &[Output]| {
            let bits = |o: &Output| o.values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            a.iter().map(bits).eq(b.iter().map(bits))
        };
        // What is the kernel's own result to the bit needs no judge.
        if !same(&ours, &self.ours) && !self.case.judge_all(&ours, &self.golden, &self.plain).passed() {
            return Fate::Wrong;
        }
        match run(Some(7)) {
            Ok(other) if same(&other, &ours) => Fate::Survived,
            Ok(_) => Fate::Disordered,
            Err(_) => Fate::Reported,
        }
    }
}

fn fate(cases: &[Known], source: &'static Source, entry: &EntryText<'_>, mutant: &Mutant) -> Fate {
    let module = match Module::parse(&entry.with(mutant)) {
        Ok(module) => Arc::new(module),
        Err(error) => return Fate::Void(error.to_string()),
    };
    let fates = cases.iter().filter(|known| known.launches.contains(entry.name)).map(|k| k.fate(source, &module));
    let mut fates = fates.skip_while(|fate| *fate == Fate::Survived);
    fates.next().unwrap_or(Fate::Survived)
}

/// An instruction without what a recompilation changes: the numbers of its registers.
fn shape(instruction: &str) -> String {
    let mut out = String::new();
    for c in instruction.chars() {
        let class = out.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '%').next().unwrap_or_default();
        let number = c.is_ascii_digit() && ["%f", "%r", "%rd", "%rs", "%p", "%fd"].contains(&class);
        if !number {
            out.push(c);
        }
    }
    out
}

/// Whether `text` is what `pattern` says, in which `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(head) else { return false };
    text.char_indices().map(|(i, _)| i).chain([text.len()]).any(|i| fits(rest, &text[i..]))
}

/// The place of a mutant as the list of equivalents names it.
fn place(source: &Source, entry: &str, mutant: &Mutant) -> [String; 5] {
    let (file, line) = mutant.loc;
    let directive = format!("\t.file\t{file} \"");
    let name = source.text.lines().find_map(|l| l.strip_prefix(&directive)?.split('"').next()).unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    let path = format!("{}/kernels/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim().to_owned();
    let instruction = format!("{} #{}", shape(&mutant.instruction), mutant.nth);
    [source.name.to_owned(), entry.to_owned(), instruction, line, mutant.change.clone()]
}

fn listed(place: &[String; 5]) -> Option<usize> {
    EQUIVALENT.lines().skip(1).position(|row| {
        let columns: Vec<&str> = row.split('\t').collect();
        columns.len() == 6
            && columns.iter().zip(place).enumerate().all(|(i, (pattern, text))| {
                if i == 3 { fits(&format!("*{pattern}*"), text) } else { fits(pattern, text) }
            })
    })
}

/// Counts of fates by entry, and the survivors that are not listed.
struct Tally {
    fates: BTreeMap<Fate, usize>,
    equivalent: usize,
    survivors: BTreeMap<[String; 5], usize>,
    used: BTreeSet<usize>,
}

impl Tally {
    fn share(&self) -> f64 {
        let count = |fate: Fate| self.fates.get(&fate).copied().unwrap_or(0);
        let killed = count(Fate::Reported) + count(Fate::Wrong) + count(Fate::Disordered);
        killed as f64 / (killed + count(Fate::Survived) - self.equivalent).max(1) as f64
    }
}

/// Runs `most` mutants of a kernel, evenly drawn from all of them, against its cases.
fn tally(kernel: &'static str, chosen: fn(&Case) -> bool, most: usize) -> Result<Tally> {
    let Some(source) = SOURCES.iter().copied().find(|source| source.name == kernel) else {
        return Err(crate::error::Error::shape(kernel));
    };
    let chosen: Vec<Case> = cases().into_iter().filter(|case| case.kernel == kernel && chosen(case)).collect();
    let mut known = chosen.into_par_iter().map(known).collect::<Result<Vec<_>>>()?;
    known.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let entries = entries(source.text);
    let launched = |entry: &EntryText<'_>| known.iter().any(|k| k.launches.contains(entry.name));
    let idle: Vec<&str> = entries.iter().filter(|e| !launched(e)).map(|e| e.name).collect();
    assert!(idle.is_empty(), "no case launches {idle:?}");
    let mutants: Vec<(&EntryText<'_>, Mutant)> =
        entries.iter().flat_map(|entry| entry.mutants().into_iter().map(move |mutant| (entry, mutant))).collect();
    let step = mutants.len().div_ceil(most).max(1);
    let picked: Vec<_> = mutants.iter().skip(step / 2).step_by(step).collect();
    let start = Instant::now();
    let fates: Vec<Fate> = picked.par_iter().map(|(entry, mutant)| fate(&known, source, entry, mutant)).collect();
    let mut tally = Tally { fates: BTreeMap::new(), equivalent: 0, survivors: BTreeMap::new(), used: BTreeSet::new() };
    for ((entry, mutant), fate) in picked.iter().zip(fates) {
        if fate == Fate::Survived {
            let place = place(source, entry.name, mutant);
            match listed(&place) {
                Some(row) => {
                    tally.equivalent += 1;
                    tally.used.insert(row);
                }
                None => *tally.survivors.entry(place).or_default() += 1,
            }
        }
        let fate = if let Fate::Void(_) = fate { Fate::Void(String::new()) } else { fate };
        *tally.fates.entry(fate).or_default() += 1;
    }
    println!(
        "{kernel}: {} of {} mutants, {} cases, {:?}, {} equivalent, killed {:.1} %, {:.1} s",
        picked.len(),
        mutants.len(),
        known.len(),
        tally.fates,
        tally.equivalent,
        100.0 * tally.share(),
        start.elapsed().as_secs_f64()
    );
    for (place, count) in &tally.survivors {
        println!("survived\t{count}\t{}", place.join("\t"));
    }
    Ok(tally)
}

/// The share that is killed must be `least`.
fn held(kernel: &'static str, chosen: fn(&Case) -> bool, [most, most_slow]: [usize; 2], least: f64) -> Result<()> {
    let slow = std::env::var_os("RLHF_SLOW").is_some();
    let asked = std::env::var("RLHF_MUTANTS").ok().and_then(|n| n.parse().ok());
    let tally = tally(kernel, chosen, asked.unwrap_or(if slow { most_slow } else { most }))?;
    assert!(tally.share() >= least, "{kernel}: {:.3} of the mutants are killed, not {least}", tally.share());
    if slow {
        let rows = EQUIVALENT.lines().skip(1).enumerate().filter(|(_, row)| row.starts_with(&format!("{kernel}\t")));
        let idle: Vec<&str> = rows.filter(|(i, _)| !tally.used.contains(i)).map(|(_, row)| row).collect();
        assert!(idle.is_empty(), "these rows excuse no survivor:\n{}", idle.join("\n"));
    }
    Ok(())
}

/// Mutants of each kernel in a plain run of the tests.
const MOST: usize = 300;

#[test]
fn mutants_of_gae_are_killed() -> Result<()> {
    held("gae", |_| true, [MOST, usize::MAX], 0.9)
}

#[test]
fn mutants_of_pairwise_loss_are_killed() -> Result<()> {
    held("pairwise_loss", |_| true, [MOST, usize::MAX], 0.9)
}

#[test]
fn mutants_of_ppo_loss_are_killed() -> Result<()> {
    held("ppo_loss", |case| !case.shape.contains("N 4097 "), [MOST, usize::MAX], 0.9)
}

#[test]
fn mutants_of_token_logprobs_are_killed() -> Result<()> {
    held("token_logprobs", |_| true, [MOST, usize::MAX], 0.9)
}

#[test]
fn mutants_of_attention_are_killed() -> Result<()> {
    // Both paddings of the heads, groups of one, two and sixteen, three tiles, scores that move the running maximum.
    let small = |case: &Case| {
        let has = |words: &[&str]| words.iter().any(|word| case.shape.contains(word));
        has(&["heads 1:1 ", "heads 4:2 ", "heads 2:2 ", "heads 16:1 ", "HD 24 "])
            && has(&["[97]", "[31, 2]", "large", "cached", "peaks", "rising", "decoded"])
    };
    held("attention", small, [MOST, 4000], 0.9)
}

#[test]
fn patterns_fit() {
    assert!(fits("a*c", "abbc") && fits("*", "") && !fits("a*d", "abbc") && fits("*b*", "abc") && !fits("a", "ab"));
    assert_eq!(shape("shfl.sync.up.b32 %r163|%p99, %rd3, 0f3F800000;"), "shfl.sync.up.b32 %r|%p, %rd, 0f3F800000;");
}
