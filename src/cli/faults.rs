//! Every stage on a disk that fails (`disk::simulated`): the process is killed before and after each call, writes are
//! torn, the power fails, calls fail. What a returned call has promised is there afterwards, nothing that is not whole
//! passes for a checkpoint, and the run that goes on ends with the bytes of the run that never stopped.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::dispatch;
use super::resume::claim;
use crate::disk::simulated::{Disk, EIO, ENOSPC, Failure, Fault, Op, Plan, Record, Tree, inject, observe, room};
use crate::error::{Code, Result};
use crate::train::checkpoint::{self, Found};
use crate::train::metrics::{Journal, Voice};

/// The output directory, from what is recorded.
const OUT: &str = "out";
const CHECKPOINTS: &str = "out/checkpoints";
const RESULT: &str = "out/manifest.json";
/// The files of a finished run that depend on the clock or say how it was started.
const OWN: [&str; 5] = ["timings.jsonl", "events.out.tfevents.rlhf", "report.html", "run.json", "manifest.json"];

/// A stage: its arguments beside those that all have, and how much of it is tried.
struct Stage {
    name: &'static str,
    args: &'static [&'static str],
    rows: fn(usize) -> Value,
}

const SFT: Stage = Stage {
    name: "sft",
    args: &["--model-name-or-path", "llama_tied", "--max-steps", "4", "--per-device-train-batch-size", "2"],
    rows: |i| json!({ "prompt": format!("a{i}"), "completion": format!("b {i}") }),
};
const REWARD: Stage = Stage {
    name: "reward",
    args: &["--model-name-or-path", "llama_tied", "--max-steps", "4", "--per-device-train-batch-size", "2"],
    rows: |i| json!({ "prompt": format!("a{i}"), "chosen": format!("b {i}"), "rejected": format!("{i}") }),
};
const PPO: Stage = Stage {
    name: "ppo",
    args: &[
        "--sft-model-path",
        "llama_tied",
        "--reward-model-path",
        "llama_reward",
        "--total-episodes",
        "16",
        "--per-device-train-batch-size",
        "4",
        "--gradient-accumulation-steps",
        "1",
        "--num-mini-batches",
        "1",
        "--num-ppo-epochs",
        "1",
        "--response-length",
        "4",
    ],
    rows: |i| json!({ "prompt": format!("a{i}") }),
};

/// Whether everything is tried, which takes minutes.
fn is_slow() -> bool {
    std::env::var_os("RLHF_SLOW").is_some_and(|value| value == "1")
}

/// A stage with its inputs, the disk that it writes to, and what it leaves there when nothing fails.
struct Bench {
    stage: &'static Stage,
    room: tempfile::TempDir,
    record: Record,
    /// The manifest of each step's checkpoint, without what depends on the clock.
    saved: BTreeMap<usize, Value>,
    last: BTreeMap<PathBuf, Vec<u8>>,
}

impl Bench {
    fn new(stage: &'static Stage) -> Self {
        let room = room();
        let rows: String = (0..8).map(|i| format!("{}\n", (stage.rows)(i))).collect();
        std::fs::write(room.path().join("rows.jsonl"), rows).unwrap();
        let mut bench = Self { stage, room, record: Record::default(), saved: BTreeMap::new(), last: BTreeMap::new() };
        Tree::default().write(&bench.disk());
        let (result, record) = observe(&bench.disk(), None, || bench.run(false));
        result.unwrap();
        let mut disk = Disk::new(&Tree::default());
        for op in &record.ops {
            disk.apply(op);
            if let Some(step) = published(op) {
                let manifest = disk.cached().file(format!("{CHECKPOINTS}/step-{step}/manifest.json")).map(essence);
                bench.saved.insert(step, manifest.unwrap());
            }
        }
        (bench.last, bench.record) = (files(&disk.cached()), record);
        assert_eq!(bench.saved.len(), 4, "{} saves at every step", stage.name);
        bench
    }

    /// The directory whose calls are observed.
    fn disk(&self) -> PathBuf {
        self.room.path().join("disk")
    }

    /// The stage's command, in this process.
    fn run(&self, resume: bool) -> Result<()> {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        let path = |name: &str| self.room.path().join(name).into_os_string();
        let mut args = vec!["rlhf".into(), self.stage.name.into(), "--quiet".into()];
        args.extend(self.stage.args.iter().map(|arg| match *arg {
            name if name.starts_with("llama") => models.join(name).into_os_string(),
            other => other.into(),
        }));
        args.extend(["--dataset".into(), path("rows.jsonl"), "--output-dir".into(), path("disk/out")]);
        args.extend(["--save-steps", "1", "--save-total-limit", "2", "--logging-steps", "1"].map(Into::into));
        args.extend(resume.then(|| "--resume".into()));
        dispatch(args)
    }

    /// Goes on to the end in what a fault left on the disk.
    fn go_on(&self, fault: &str) {
        self.run(true).unwrap_or_else(|error| panic!("{}: resumed after {fault}: {error}", self.stage.name));
        let left = files(&Tree::read(&self.disk()));
        let paths: BTreeSet<&PathBuf> = left.keys().chain(self.last.keys()).collect();
        let other: Vec<_> = paths.into_iter().filter(|path| left.get(*path) != self.last.get(*path)).collect();
        assert!(other.is_empty(), "{}: resumed after {fault}: {other:?} differ", self.stage.name);
    }

    /// What is wrong with what a fault left, after it was put onto the disk.
    fn complaint(&self, tree: &Tree, promise: Promise) -> Option<String> {
        tree.write(&self.disk());
        let (out, mut newest) = (self.disk().join(OUT), None);
        for (step, path) in checkpoint::list(&self.disk().join(CHECKPOINTS)).unwrap() {
            match Found::read(&path) {
                Ok(found) => newest = Some(found),
                Err(error) => return Some(format!("step {step} is not whole: {error}")),
            }
            let manifest = tree.file(format!("{CHECKPOINTS}/step-{step}/manifest.json")).map(essence);
            if manifest.as_ref() != self.saved.get(&step) {
                return Some(format!("step {step} is of another state"));
            }
        }
        let step = newest.as_ref().map_or(0, |found| found.manifest.step);
        if step < promise.step {
            return Some(format!("step {} is lost, {step} is the newest", promise.step));
        }
        match checkpoint::finished(&out) {
            Err(error) => return Some(format!("the result is not whole: {error}")),
            Ok(None) if promise.finished => return Some("the result is lost".to_owned()),
            _ => {}
        }
        let result = |name: &str| (tree.file(Path::new(OUT).join(name)), self.last.get(&Path::new(OUT).join(name)));
        let same = |name| matches!(result(name), (Some(bytes), Some(last)) if bytes == *last);
        if result("config.json").0.is_some() && !(same("config.json") && same("model.safetensors")) {
            return Some("config.json stands beside weights that are not the result's".to_owned());
        }
        if let Err(error) = claim(&out, true) {
            return Some(format!("the directory cannot be taken: {error}"));
        }
        let marks = newest.as_ref().and_then(|found| found.saved()?.journal.as_ref());
        if let Some(Err(error)) = marks.map(|marks| Journal::resume(&out, Voice::Quiet, marks)) {
            return Some(format!("the journal of step {step} is lost: {error}"));
        }
        let left = Tree::read(&self.disk());
        let leftover = left.paths().find(|path| path.to_string_lossy().ends_with(".rlhf-tmp"));
        leftover.map(|path| format!("{} remains", path.display()))
    }

    /// Every crash point of the record `ops`, from call `from` on; each `every`th state that is new goes on to the end.
    fn crash(&self, ops: &[Op], plan: Plan, every: usize, counts: &mut Counts) {
        let promises = promises(ops);
        let mut seen = HashSet::new();
        counts.faults += inject(&Tree::default(), ops, plan, |fault: Fault, tree| {
            let promise = promises[fault.returned()];
            if !seen.insert((tree.digest(), promise)) {
                return;
            }
            let what = format!("{fault}, {}", ops[fault.call].name());
            let complaint = self.complaint(tree, promise);
            assert!(complaint.is_none(), "{}: {what}: {}", self.stage.name, complaint.unwrap_or_default());
            counts.states += 1;
            if counts.states.is_multiple_of(every) {
                tree.write(&self.disk());
                self.go_on(&what);
                counts.resumed += 1;
            }
        });
    }

    /// The first complaint if the disk only pretends to make the sync `at`; a save later the next one mends it.
    fn complaint_about_a_lie(&self, at: usize) -> Option<String> {
        let mut ops: Vec<Op> = self.record.ops.iter().take(at + 50).cloned().collect();
        let promises = promises(&ops);
        ops[at] = Op::Ignored;
        let (mut seen, mut first) = (HashSet::new(), None);
        inject(&Tree::default(), &ops, Plan { tears: 0, losses: 12, from: at }, |fault: Fault, tree| {
            let promise = promises[fault.returned()];
            if first.is_none() && seen.insert((tree.digest(), promise)) {
                first = self.complaint(tree, promise);
            }
        });
        first
    }

    /// A process is killed at call `at`, a second one goes on: every crash point of that one.
    fn crash_again(&self, at: usize, plan: Plan, every: usize, counts: &mut Counts) {
        Tree::default().write(&self.disk());
        let (_, first) = observe(&self.disk(), Some((at, Failure::Killed)), || self.run(false));
        let (result, second) = observe(&self.disk(), None, || self.run(true));
        result.unwrap_or_else(|error| panic!("{}: killed at {at}: {error}", self.stage.name));
        let plan = Plan { from: first.ops.len(), ..plan };
        self.crash(&[first.ops, second.ops].concat(), plan, every, counts);
    }

    /// Call `at` fails; the run ends with an error that says where, and goes on later.
    fn fail(&self, at: usize, failure: Failure, counts: &mut Counts) {
        Tree::default().write(&self.disk());
        let (result, record) = observe(&self.disk(), Some((at, failure)), || self.run(false));
        let what = format!("{}: {failure:?} of call {at}, {}", self.stage.name, self.record.asked[at].name());
        assert!(record.failed, "{what}: it did not happen");
        match result {
            Ok(()) => assert!(at + 1 == self.record.asked.len(), "{what}: nobody noticed"),
            Err(error) => {
                let inside = error.place().is_some_and(|place| place.contains(&self.disk().display().to_string()));
                assert!(error.code() == Code::Resources && inside, "{what}: {error}");
            }
        }
        self.go_on(&what);
        counts.failures += 1;
    }
}

#[derive(Debug, Default)]
struct Counts {
    faults: usize,
    states: usize,
    resumed: usize,
    failures: usize,
}

/// What calls that returned have promised: the newest checkpoint, and whether the run is finished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Promise {
    step: usize,
    finished: bool,
}

/// The step whose checkpoint gets its name.
fn published(op: &Op) -> Option<usize> {
    let Op::Rename { to, .. } = op else { return None };
    let name = to.file_name()?.to_str()?;
    (to.parent() == Some(Path::new(CHECKPOINTS))).then(|| name.strip_prefix("step-")?.parse().ok()).flatten()
}

/// The promise after so many calls, for each number of calls: a name holds once its directory is synced.
fn promises(ops: &[Op]) -> Vec<Promise> {
    let (mut promise, mut named) = (Promise::default(), Promise::default());
    let mut promises = vec![promise];
    for op in ops {
        match op {
            Op::Rename { to, .. } if to == Path::new(RESULT) => named.finished = true,
            Op::Rename { .. } => named.step = published(op).unwrap_or(named.step),
            Op::SyncDir(path) if path == Path::new(CHECKPOINTS) => promise.step = named.step,
            Op::SyncDir(path) if path == Path::new(OUT) => promise.finished = named.finished,
            _ => {}
        }
        promises.push(promise);
    }
    promises
}

/// What a manifest says of the state: all but times.
fn essence(manifest: &[u8]) -> Value {
    let manifest: Value = serde_json::from_slice(manifest).unwrap();
    let state = &manifest["state"];
    json!([
        [manifest["kind"], manifest["stage"], manifest["step"], manifest["total_steps"], manifest["files"]],
        [state["numbers"], state["optimizer_steps"], state["journal"]["metrics"]],
    ])
}

/// What a run leaves, but for what depends on the clock.
fn files(tree: &Tree) -> BTreeMap<PathBuf, Vec<u8>> {
    let kept = tree.files().map(|(path, bytes)| match path.file_name().unwrap().to_str() {
        Some("manifest.json") => (path.to_path_buf(), essence(bytes).to_string().into_bytes()),
        Some(name) if OWN.contains(&name) => (path.to_path_buf(), Vec::new()),
        _ => (path.to_path_buf(), bytes.to_vec()),
    });
    kept.collect()
}

/// Runs `body` on one thread of its own: entering the pool from outside costs more than these tiny steps.
fn on_one_thread(body: impl FnOnce() + Send) {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(body);
}

/// Faults of a stage: its crash points, those of a second process, and failing calls.
fn try_stage(stage: &'static Stage) {
    on_one_thread(|| {
        let (began, slow) = (Instant::now(), is_slow());
        let bench = Bench::new(stage);
        let calls = bench.record.asked.len();
        let mut counts = Counts::default();
        let losses = if slow { 100 } else { 10 };
        bench.crash(&bench.record.ops, Plan { tears: 4, losses, from: 0 }, if slow { 1 } else { 5 }, &mut counts);
        let crashed = began.elapsed();
        for at in (0..calls).step_by(if slow { 1 } else { 29 }) {
            bench.crash_again(at, Plan { tears: 0, losses: 1, from: 0 }, 40, &mut counts);
        }
        let again = began.elapsed();
        for at in (0..calls).step_by(if slow { 1 } else { 2 }) {
            bench.fail(at, Failure::Refused(EIO), &mut counts);
            bench.fail(at, Failure::Refused(ENOSPC), &mut counts);
            bench.fail(at, Failure::Reported(EIO), &mut counts);
            if let Op::Write { bytes, .. } = &bench.record.asked[at] {
                bench.fail(at, Failure::Filled(bytes.len() / 2), &mut counts);
            }
        }
        let times = [crashed, again - crashed, began.elapsed() - again].map(|t| t.as_secs_f32());
        println!("{}: {calls} calls, {counts:?}, {times:?} s", stage.name);
        // Of three stages: more than 10,000 faults, of which 500 are resumed to the end.
        assert!(counts.faults >= 3_400 && counts.resumed >= 170, "{counts:?}");
    });
}

#[test]
fn sft_survives_every_fault_of_the_disk() {
    try_stage(&SFT);
}

#[test]
fn reward_survives_every_fault_of_the_disk() {
    try_stage(&REWARD);
}

#[test]
fn ppo_survives_every_fault_of_the_disk() {
    try_stage(&PPO);
}

/// The positive control: of the syncs between the second checkpoint and the third, a disk that only pretends to make
/// one is found out, but for the one whose work was done before.
#[test]
fn a_disk_that_lies_about_a_sync_is_found_out() {
    on_one_thread(|| {
        let bench = Bench::new(&SFT);
        let ops = &bench.record.ops;
        let named = |step| ops.iter().position(|op| published(op) == Some(step)).unwrap();
        let syncs: Vec<usize> = (named(2)..=named(3) + 1).filter(|at| ops[*at].is_sync()).collect();
        let unnoticed = syncs.iter().filter(|at| bench.complaint_about_a_lie(**at).is_none());
        let unnoticed: Vec<String> = unnoticed.map(|at| ops[*at].name()).collect();
        println!("{} syncs, of which these did not matter: {unnoticed:?}", syncs.len());
        // The name of `checkpoints` was durable before the first save.
        assert_eq!(unnoticed, ["sync names in \"out\""]);
        assert!(syncs.len() >= 12);
    });
}
