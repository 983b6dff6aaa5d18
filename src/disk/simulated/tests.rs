//! That the model bites: a small run that saves as training does survives every fault, and with any one of its syncs
//! left out it does not.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::disk::{
    Appender, Existing, Mark, create_output_dir, hexadecimal, lock, publish_dir, remove_dir, remove_file,
    remove_leftovers, temporary_dir, write_file,
};
use crate::error::{Code, Result};

const STEPS: usize = 4;
const CHECKPOINTS: &str = "out/checkpoints";

fn sha256(bytes: &[u8]) -> String {
    hexadecimal(Sha256::new_with_prefix(bytes))
}

/// The steps whose checkpoints have their names, in order.
fn saved(names: impl IntoIterator<Item = String>) -> Vec<usize> {
    let mut steps: Vec<usize> = names.into_iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

/// Goes on from the newest checkpoint to [`STEPS`], saves at every step, keeps two; then puts a result, twice, in place
/// of the one before.
fn run(root: &Path) -> Result<()> {
    let (out, checkpoints) = (root.join("out"), root.join(CHECKPOINTS));
    create_output_dir(&out, Existing::Reuse)?;
    let _lock = lock(&out)?;
    create_output_dir(&checkpoints, Existing::Reuse)?;
    remove_leftovers(&out)?;
    remove_leftovers(&checkpoints)?;
    let steps = saved(Tree::read(&checkpoints).names(""));
    let newest = steps.last().copied().unwrap_or_default();
    keep_two(&checkpoints)?;
    let mut metrics = if newest == 0 {
        Appender::create(&out.join("metrics.jsonl"))?
    } else {
        let text = fs::read(checkpoints.join(format!("step-{newest}/manifest.json"))).unwrap();
        let manifest: Value = serde_json::from_slice(&text).unwrap();
        let mark: Mark = serde_json::from_value(manifest["metrics"].clone()).unwrap();
        Appender::resume(&out.join("metrics.jsonl"), &mark)?
    };
    for step in newest + 1..=STEPS {
        metrics.append_line(&format!("step {step}"))?;
        metrics.sync()?;
        save(&checkpoints, step, &metrics.mark())?;
        keep_two(&checkpoints)?;
    }
    for version in ["first", "second"] {
        remove_file(&out.join("config.json"))?;
        write_file(&out.join("weights"), format!("weights of the {version}").as_bytes())?;
        write_file(&out.join("config.json"), version.as_bytes())?;
    }
    Ok(())
}

fn keep_two(checkpoints: &Path) -> Result<()> {
    let steps = saved(Tree::read(checkpoints).names(""));
    let old = steps.iter().rev().skip(2);
    old.rev().try_for_each(|step| remove_dir(&checkpoints.join(format!("step-{step}"))))
}

fn save(checkpoints: &Path, step: usize, metrics: &Mark) -> Result<()> {
    let path = checkpoints.join(format!("step-{step}"));
    let temporary = temporary_dir(&path)?;
    let weights = format!("weights of step {step}").repeat(2);
    write_file(&temporary.join("weights"), weights.as_bytes())?;
    let manifest = json!({ "sha256": sha256(weights.as_bytes()), "metrics": metrics });
    write_file(&temporary.join("manifest.json"), manifest.to_string().as_bytes())?;
    publish_dir(&temporary, &path)
}

/// Whether a checkpoint is whole, and its journal too.
fn is_whole(tree: &Tree, step: usize) -> bool {
    let file = |name| tree.file(format!("{CHECKPOINTS}/step-{step}/{name}"));
    let manifest = file("manifest.json").and_then(|text| serde_json::from_slice::<Value>(text).ok());
    let (Some(weights), Some(manifest)) = (file("weights"), manifest) else { return false };
    let mark: Mark = serde_json::from_value(manifest["metrics"].clone()).unwrap();
    let lines = tree.file("out/metrics.jsonl").and_then(|bytes| bytes.get(..mark.bytes as usize));
    manifest["sha256"] == sha256(weights) && lines.is_some_and(|lines| sha256(lines) == mark.sha256)
}

/// What calls that returned have promised.
#[derive(Debug, Clone, Default)]
struct Promise {
    /// The newest checkpoint.
    step: usize,
    /// Whether there is a result; while one replaces another, there may be none.
    result: bool,
}

/// The promise after so many calls, for each number of calls.
fn promises(ops: &[Op]) -> Vec<Promise> {
    let (mut promise, mut named) = (Promise::default(), Promise::default());
    let mut promises = vec![promise.clone()];
    for op in ops {
        match op {
            Op::Rename { to, .. } if to.parent() == Some(Path::new(CHECKPOINTS)) => {
                let name = to.file_name().unwrap().to_string_lossy().into_owned();
                named.step = saved([name]).first().copied().unwrap_or(named.step);
            }
            Op::Rename { to, .. } if to.ends_with("config.json") => named.result = true,
            Op::RemoveFile(path) if path.ends_with("config.json") => (named.result, promise.result) = (false, false),
            Op::SyncDir(path) if path == Path::new(CHECKPOINTS) => promise.step = named.step,
            Op::SyncDir(path) if path == Path::new("out") => promise.result = named.result,
            _ => {}
        }
        promises.push(promise.clone());
    }
    promises
}

/// What is wrong with a tree that a fault left.
fn complaint(tree: &Tree, promise: &Promise) -> Option<String> {
    let steps = saved(tree.names(CHECKPOINTS));
    if let Some(step) = steps.iter().find(|step| !is_whole(tree, **step)) {
        return Some(format!("step-{step} is not whole"));
    }
    let newest = steps.last().copied().unwrap_or_default();
    if newest < promise.step {
        return Some(format!("step-{} is lost, step-{newest} is the newest", promise.step));
    }
    match (tree.file("out/config.json"), tree.file("out/weights")) {
        (Some(version), Some(weights)) if !weights.ends_with(version) => Some("two results are mixed".to_owned()),
        (Some(_), None) => Some("a result has no weights".to_owned()),
        (None, _) if promise.result => Some("the result is lost".to_owned()),
        _ => None,
    }
}

/// The record of a run from an empty disk.
fn recorded() -> Record {
    let root = room();
    let (result, record) = observe(root.path(), None, || run(root.path()));
    result.unwrap();
    record
}

/// The first complaint about the run with other syncs than were promised.
fn first_complaint(ops: &[Op], promises: &[Promise], plan: Plan) -> Option<String> {
    let mut first = None;
    inject(&Tree::default(), ops, plan, |fault, tree| {
        let complaint = || complaint(tree, &promises[fault.returned()]).map(|what| format!("{fault}: {what}"));
        first = first.take().or_else(complaint);
    });
    first
}

#[test]
fn the_protocol_survives_every_fault() {
    let ops = recorded().ops;
    let promises = promises(&ops);
    assert_eq!((promises.last().unwrap().step, promises.last().unwrap().result), (STEPS, true));
    let mut faults = 0;
    let mut resumed = BTreeSet::new();
    let expected = last(&ops);
    let root = room();
    faults += inject(&Tree::default(), &ops, Plan { tears: 4, losses: 40, from: 0 }, |fault, tree| {
        let complaint = complaint(tree, &promises[fault.returned()]);
        assert_eq!(complaint, None, "{fault}, {}", ops[fault.call].name());
        if resumed.len() < 300 && fault.call % 3 == 0 && resumed.insert(tree.digest()) {
            tree.write(root.path());
            resume(root.path(), &expected, &fault.to_string());
        }
    });
    println!("{faults} faults of a small run, {} of them resumed to the end", resumed.len());
    assert!(faults > 4_000 && resumed.len() > 100, "{faults}, {}", resumed.len());
}

/// All files with their text.
fn files(tree: &Tree) -> Vec<(PathBuf, String)> {
    tree.files().map(|(path, bytes)| (path.to_path_buf(), String::from_utf8_lossy(bytes).into_owned())).collect()
}

/// What a run leaves: the lock is gone, and nothing temporary remains.
fn last(ops: &[Op]) -> Tree {
    let mut disk = Disk::new(&Tree::default());
    ops.iter().for_each(|op| disk.apply(op));
    let tree = disk.cached();
    assert_eq!(tree.files().count(), 7, "two checkpoints, the journal, the result: {:?}", files(&tree));
    tree
}

/// Goes on in a directory that a fault left, to the end that `expected` shows.
fn resume(root: &Path, expected: &Tree, fault: &str) {
    run(root).unwrap();
    let tree = Tree::read(root);
    if tree.digest() != expected.digest() {
        panic!("after {fault}:\n{:?}\n{:?}", files(&tree), files(expected));
    }
}

#[test]
fn every_sync_matters() {
    let ops = recorded().ops;
    let promises = promises(&ops);
    let syncs: Vec<usize> = (0..ops.len()).filter(|at| ops[*at].is_sync()).collect();
    let mut idle = Vec::new();
    for at in &syncs {
        let mut lying = ops.clone();
        lying[*at] = Op::Ignored;
        if first_complaint(&lying, &promises, Plan { tears: 0, losses: 40, from: 0 }).is_none() {
            idle.push(*at);
        }
    }
    let idle: Vec<String> = idle.iter().map(|at| ops[*at].name()).collect();
    // The lock's text informs; the name of `checkpoints` is synced again with the journal's; before the removal of a
    // directory what took its place is durable in a process that put it there; the first result replaces none.
    let expected = [
        "sync \"out/.rlhf.lock\"",
        "sync names in \"out\"",
        "sync names in \"out/checkpoints\"",
        "sync names in \"out/checkpoints\"",
        "sync names in \"out\"",
    ];
    assert_eq!(idle, expected, "of {} syncs", syncs.len());
    let kinds: Vec<fn(&Op) -> bool> =
        vec![|op| matches!(op, Op::SyncFile(_)), |op| matches!(op, Op::SyncDir(_)), Op::is_sync];
    for kind in kinds {
        let lying: Vec<Op> = ops.iter().map(|op| if kind(op) { Op::Ignored } else { op.clone() }).collect();
        assert!(first_complaint(&lying, &promises, Plan { tears: 0, losses: 40, from: 0 }).is_some());
    }
}

/// What a disk may lie about to a second process that goes on where a first one was killed.
type Lie = fn(&[Op]) -> bool;

/// Kills a process at every call, lets a second one go on, and cuts the power while that runs. `lie` is shown the calls
/// that are left to do and picks the syncs of the second process that have no effect. Returns the number of faults and
/// the first complaint.
fn two_processes(lie: Lie) -> (usize, Option<String>) {
    let calls = recorded().asked.len();
    let (mut faults, mut first_complaint) = (0, None);
    for at in 0..calls {
        let root = room();
        let (result, first) = observe(root.path(), Some((at, Failure::Killed)), || run(root.path()));
        assert!(result.is_err() || at + 1 == calls, "only the removal of the lock may fail unseen");
        let (result, second) = observe(root.path(), None, || run(root.path()));
        result.unwrap();
        let mut ops = [&first.ops[..], &second.ops].concat();
        let promises = promises(&ops);
        for at in first.ops.len()..ops.len() {
            if ops[at].is_sync() && lie(&ops[at..]) {
                ops[at] = Op::Ignored;
            }
        }
        let plan = Plan { tears: 0, losses: 3, from: first.ops.len() };
        faults += inject(&Tree::default(), &ops, plan, |fault, tree| {
            let complaint = || complaint(tree, &promises[fault.returned()]);
            let describe = |what| format!("killed at {at}, then {fault}, {}: {what}", ops[fault.call].name());
            first_complaint = first_complaint.take().or_else(|| complaint().map(describe));
        });
        if first_complaint.is_some() {
            break;
        }
    }
    (faults, first_complaint)
}

#[test]
fn a_second_process_owes_the_syncs_of_the_first() {
    let (faults, complaint) = two_processes(|_| false);
    println!("{faults} faults of two processes on one disk");
    assert_eq!(complaint, None);
    let lies: [(&str, Lie); 3] = [
        ("the name of the output directory", |ops| ops[0] == Op::SyncDir(PathBuf::new())),
        ("the names of leftovers", removes_next),
        (
            "the name of what takes the place",
            |ops| matches!(ops.get(1), Some(Op::Rename { from, .. }) if is_step(from)),
        ),
    ];
    for (what, lie) in lies {
        assert!(two_processes(lie).1.is_some(), "{what} need not be synced");
    }
}

/// Whether the next call removes a file of a leftover.
fn removes_next(ops: &[Op]) -> bool {
    matches!(ops.get(1), Some(Op::RemoveFile(path)) if path.iter().count() > 2)
}

fn is_step(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"))
}

#[test]
fn every_call_may_fail_and_the_run_goes_on_later() {
    let Record { ops, asked, .. } = recorded();
    let expected = last(&ops);
    let mut failures = 0;
    for (at, op) in asked.iter().enumerate() {
        let mut kinds = vec![Failure::Refused(EIO), Failure::Reported(EIO), Failure::Refused(ENOSPC)];
        if let Op::Write { bytes, .. } = op {
            kinds.extend([Failure::Filled(bytes.len() / 2), Failure::Refused(EINTR)]);
        }
        for failure in kinds {
            let root = room();
            let (result, record) = observe(root.path(), Some((at, failure)), || run(root.path()));
            assert!(record.failed);
            let unseen = failure == Failure::Refused(EINTR) || op.name().contains("rlhf.lock") && at + 1 == asked.len();
            match result {
                Ok(()) => assert!(unseen, "{failure:?} of call {at}, {}", op.name()),
                Err(error) => {
                    let place = error.place().unwrap_or_default();
                    assert_eq!(error.code(), Code::Resources, "{failure:?} of call {at}, {}: {error}", op.name());
                    assert!(place.starts_with(&root.path().display().to_string()), "{error}");
                }
            }
            resume(root.path(), &expected, &format!("{failure:?} of call {at}, {}", op.name()));
            failures += 1;
        }
    }
    println!("{failures} failed calls");
}

#[test]
fn a_tree_is_what_it_was_read_from() {
    let root = room();
    fs::create_dir_all(root.path().join("a/b")).unwrap();
    fs::write(root.path().join("a/c"), "1").unwrap();
    let tree = Tree::read(root.path());
    let copy = room();
    tree.write(copy.path());
    assert_eq!(Tree::read(copy.path()).digest(), tree.digest());
    assert_eq!((tree.file("a/c"), tree.names("a")), (Some(&b"1"[..]), vec!["b".to_owned(), "c".to_owned()]));
    assert_eq!(Disk::new(&tree).after_power_loss(Loss::Everything, 0).digest(), tree.digest());
    fs::write(root.path().join("a/c"), "2").unwrap();
    assert_ne!(Tree::read(root.path()).digest(), tree.digest());
}

/// The states that a power failure may leave after these calls.
fn states(ops: &[Op]) -> BTreeSet<Vec<(PathBuf, Vec<u8>)>> {
    let mut disk = Disk::new(&Tree::default());
    ops.iter().for_each(|op| disk.apply(op));
    let some = (0..400).map(Loss::Some);
    let losses = [Loss::Nothing, Loss::Everything].into_iter().chain(some);
    let bytes = |(path, bytes): (&Path, &[u8])| (path.to_path_buf(), bytes.to_vec());
    losses.map(|loss| disk.after_power_loss(loss, 0).files().map(bytes).collect()).collect()
}

#[test]
fn what_is_not_synced_may_be_lost_in_any_combination() {
    let path = |name: &str| PathBuf::from(name);
    let write = |offset, text: &str| Op::Write { path: path("a"), offset, bytes: text.as_bytes().into() };
    let (create, sync, names) = (Op::CreateFile(path("a")), Op::SyncFile(path("a")), Op::SyncDir(path("")));
    let a = |text: &str| vec![(path("a"), text.as_bytes().to_vec())];
    let found = states(&[create.clone(), names.clone(), write(0, "xy")]);
    for text in ["", "x", "xy", "\0\0", "x\u{0}"] {
        let possible = text != "x\u{0}";
        assert_eq!(found.contains(&a(text)), possible, "{text:?}");
    }
    assert!(found.iter().any(|files| files[0].1.len() == 2 && files[0].1[0] == b'x' && files[0].1[1] > 127));
    assert!(found.iter().all(|files| files.len() == 1), "its name is durable");
    let found = states(&[create.clone(), write(0, "xy"), sync.clone()]);
    assert_eq!(found, BTreeSet::from([vec![], a("xy")]), "its bytes are, its name is not");
    let synced = [create, names.clone(), write(0, "xy"), sync];
    assert_eq!(states(&synced), BTreeSet::from([a("xy")]));
    let appended = states(&[&synced[..], &[write(2, "z"), write(3, "w")]].concat());
    for text in ["xy", "xyz", "xyzw", "xy\0w"] {
        assert!(appended.contains(&a(text)), "{text:?}");
    }
    assert!(appended.iter().all(|files| files[0].1.starts_with(b"xy")));
    let cut = states(&[&synced[..], &[Op::SetLength { path: path("a"), bytes: 1 }]].concat());
    assert_eq!(cut, BTreeSet::from([a("x"), a("xy")]));
    let renamed = [&synced[..], &[Op::Rename { from: path("a"), to: path("b") }]].concat();
    let b = vec![(path("b"), b"xy".to_vec())];
    assert_eq!(states(&renamed), BTreeSet::from([a("xy"), b.clone()]), "one name or the other");
    assert_eq!(states(&[&renamed[..], &[names]].concat()), BTreeSet::from([b]));
}
