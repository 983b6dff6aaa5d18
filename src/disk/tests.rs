//! Tests of the disk as it is.

use std::cell::RefCell;
use std::rc::Rc;

use super::calls::Call;
use super::calls::observer::{Observer, Verdict, observe};
use super::*;
use crate::error::Code;

fn names(dir: &Path) -> Vec<String> {
    entries(dir).unwrap()
}

#[test]
fn an_output_directory_is_created_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a/b");
    create_output_dir(&dir, Existing::Refuse).unwrap();
    fs::write(dir.join(LOCK_NAME), "").unwrap();
    create_output_dir(&dir, Existing::Refuse).unwrap();
    fs::write(dir.join("x"), "1").unwrap();
    let error = create_output_dir(&dir, Existing::Refuse).unwrap_err();
    assert_eq!((error.id(), error.code()), ("output-exists", Code::Usage));
    create_output_dir(&dir, Existing::Reuse).unwrap();
    let error = create_output_dir(&dir.join("x"), Existing::Reuse).unwrap_err();
    assert_eq!((error.id(), error.code()), ("output-not-directory", Code::Usage));
    assert!(create_output_dir(&dir.join("x/y"), Existing::Reuse).is_err());
}

#[test]
fn a_file_is_written_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.bin");
    write_file(&path, b"first").unwrap();
    write_file(&path, b"second").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    let failing = write_file_with(&path, |writer| {
        writer.write(&vec![7; 3 << 20])?;
        Err(Error::failure("test", "stop"))
    });
    assert_eq!(failing.unwrap_err().id(), "test");
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_eq!(names(dir.path()), ["a.bin"]);
    assert_eq!(write_file(&dir.path().join("no/a"), b"").unwrap_err().id(), "file-missing");
    fs::create_dir(dir.path().join("d")).unwrap();
    assert!(write_file(&dir.path().join("d"), b"").is_err());
    assert_eq!(names(dir.path()), ["a.bin", "d"]);
}

#[cfg(unix)]
#[test]
fn a_file_is_readable_by_all_and_replaces_a_link() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (outside, path) = (dir.path().join("outside"), dir.path().join("a"));
    fs::write(&outside, "kept").unwrap();
    std::os::unix::fs::symlink(&outside, &path).unwrap();
    assert_eq!(Appender::create(&path).unwrap_err().id(), "output-symlink");
    write_file(&path, b"new").unwrap();
    assert_eq!(fs::read(&outside).unwrap(), b"kept");
    let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "with the usual umask of 022");
}

#[test]
fn a_copy_has_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7) as u8).collect();
    fs::write(dir.path().join("a"), &bytes).unwrap();
    copy_file(&dir.path().join("a"), &dir.path().join("b")).unwrap();
    assert_eq!(fs::read(dir.path().join("b")).unwrap(), bytes);
    assert_eq!(copy_file(&dir.path().join("none"), &dir.path().join("c")).unwrap_err().id(), "file-missing");
    assert_eq!(names(dir.path()), ["a", "b"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() {
    let full = || calls::File::open(Path::new("/dev/full")).unwrap();
    let error = FileWriter::new(full(), Path::new("x")).write(&vec![0; 1 << 21]).unwrap_err();
    assert_eq!((error.id(), error.code()), ("disk-full", Code::Resources));
    let mut appender = Appender { file: full(), bytes: 0, digest: Sha256::new() };
    assert_eq!(appender.append_line("a").unwrap_err().id(), "disk-full");
}

#[test]
fn lines_are_appended_and_cut_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let mut appender = Appender::create(&path).unwrap();
    assert_eq!(appender.append_line("a\nb").unwrap_err().id(), "line-break");
    appender.append_line("{}").unwrap();
    let mark = appender.mark();
    let sha256 = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356";
    assert_eq!(mark, Mark { bytes: 3, sha256: sha256.into() });
    appender.append_line("[1]").unwrap();
    appender.sync().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n[1]\n");
    let mut resumed = Appender::resume(&path, &mark).unwrap();
    resumed.append_line("[1]").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n[1]\n");
    assert_eq!(resumed.mark(), appender.mark(), "a resumed file hashes on");
    Appender::create(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
    Appender::resume(&path, &Mark { bytes: 0, ..mark }).unwrap().append_line("[2]").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "[2]\n");
}

#[test]
fn lines_that_were_lost_or_changed_are_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let mut appender = Appender::create(&path).unwrap();
    appender.append_line("[1]").unwrap();
    let mark = appender.mark();
    for (text, id) in [("[1]", "output-shorter"), ("[2]\n", "output-changed"), ("[2]\n[3]\n", "output-changed")] {
        fs::write(&path, text).unwrap();
        let error = Appender::resume(&path, &mark).unwrap_err();
        assert_eq!((error.id(), error.code()), (id, Code::Input));
        assert!(error.place().unwrap().ends_with("metrics.jsonl"));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(Appender::resume(&path, &mark).unwrap_err().id(), "file-missing");
}

#[test]
fn directories_appear_whole_and_leftovers_go() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("step-1");
    let temporary = temporary_dir(&path).unwrap();
    write_file(&temporary.join("w"), b"1").unwrap();
    write_file(&temporary.join("w"), b"2").unwrap();
    publish_dir(&temporary, &path).unwrap();
    assert_eq!(names(root.path()), ["step-1"]);
    assert_eq!(fs::read(path.join("w")).unwrap(), b"2");
    let left = temporary_dir(&path).unwrap();
    fs::create_dir_all(left.join("a/b")).unwrap();
    fs::write(left.join("a/b/half"), "").unwrap();
    fs::write(temporary_name(&path), "").unwrap();
    assert_eq!(publish_dir(&left, &path).unwrap_err().id(), "output-exists");
    assert_eq!(remove_leftovers(root.path()).unwrap(), 2);
    assert_eq!(names(root.path()), ["step-1"]);
    remove_dir(&path).unwrap();
    assert!(names(root.path()).is_empty());
    remove_dir(&path).unwrap();
    remove_file(&path).unwrap();
    remove_file(&path.join("none")).unwrap();
}

#[test]
fn leftovers_go_at_every_depth_but_not_those_of_another_run() {
    let root = tempfile::tempdir().unwrap();
    let (ours, theirs) = (root.path().join("value_model"), root.path().join("other"));
    for dir in [&ours, &theirs] {
        fs::create_dir(dir).unwrap();
        fs::write(temporary_name(&dir.join("config.json")), "").unwrap();
    }
    let held = lock(&theirs).unwrap();
    assert_eq!(remove_leftovers(root.path()).unwrap(), 1);
    assert!(names(&ours).is_empty());
    assert_eq!(names(&theirs).len(), 2, "the lock and what is being written");
    drop(held);
    assert_eq!(remove_leftovers(root.path()).unwrap(), 1);
}

#[cfg(unix)]
#[test]
fn a_removed_directory_keeps_what_its_links_lead_to() {
    let root = tempfile::tempdir().unwrap();
    let (outside, path) = (root.path().join("outside"), root.path().join("step-1"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "").unwrap();
    fs::create_dir(&path).unwrap();
    std::os::unix::fs::symlink(&outside, path.join("link")).unwrap();
    remove_dir(&path).unwrap();
    assert_eq!(names(root.path()), ["outside"]);
    assert_eq!(names(&outside), ["kept"]);
}

/// Writes down each call by its kind and the last part of its path, and gives one of them a verdict.
#[derive(Default)]
struct Script {
    calls: Rc<RefCell<Vec<String>>>,
    special: Option<(usize, Verdict)>,
}

impl Observer for Script {
    fn judge(&mut self, call: &Call<'_>) -> Verdict {
        let (kind, path) = match call {
            Call::CreateDir(path) => ("mkdir", path),
            Call::CreateFile(path) => ("create", path),
            Call::Write { path, .. } => ("write", path),
            Call::SetLength { path, .. } => ("cut", path),
            Call::SyncFile(path) => ("sync", path),
            Call::SyncDir(path) => ("sync names", path),
            Call::Rename { to, .. } => ("rename", to),
            Call::RemoveFile(path) => ("remove", path),
            Call::RemoveDir(path) => ("rmdir", path),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = if is_temporary(&name) { "~" } else { &name };
        self.calls.borrow_mut().push(format!("{kind} {name}"));
        let at = self.calls.borrow().len();
        self.special.take_if(|(k, _)| *k == at).map_or(Verdict::Proceed, |(_, verdict)| verdict)
    }

    fn done(&mut self, _: &Call<'_>) {}
}

/// The calls that `body` makes.
fn calls_of(body: impl FnOnce()) -> String {
    let script = Script::default();
    let calls = Rc::clone(&script.calls);
    observe(script, body);
    calls.take().join(", ")
}

#[test]
fn the_protocols_are_these() {
    let root = tempfile::tempdir().unwrap();
    let (out, step) = (root.path().join("out"), root.path().join("out/step-1"));
    let file = out.join("a");
    let made = calls_of(|| create_output_dir(&out, Existing::Refuse).unwrap());
    assert_eq!(made, format!("mkdir out, sync names {}", root.path().file_name().unwrap().to_string_lossy()));
    let written = calls_of(|| write_file(&file, b"1").unwrap());
    assert_eq!(written, "create ~, write ~, sync ~, rename a, sync names out");
    assert_eq!(calls_of(|| remove_file(&file).unwrap()), "remove a, sync names out");
    let published = calls_of(|| {
        let temporary = temporary_dir(&step).unwrap();
        write_file(&temporary.join("a"), b"1").unwrap();
        remove_file(&temporary.join("b")).unwrap();
        publish_dir(&temporary, &step).unwrap();
    });
    let expected = "mkdir ~, create a, write a, sync a, remove b, sync names ~, rename step-1, sync names out";
    assert_eq!(published, expected);
    let removed = calls_of(|| remove_dir(&step).unwrap());
    assert_eq!(removed, "sync names out, rename ~, sync names out, remove a, rmdir ~");
    let started = calls_of(|| drop(Appender::create(&file).unwrap()));
    assert_eq!(started, "create a, cut a, sync names out");
}

#[test]
fn a_write_that_fails_leaves_the_old_file_or_the_new_one() {
    for k in 1..=5 {
        for after in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a");
            fs::write(&path, "old").unwrap();
            let error = || io::Error::from(ErrorKind::StorageFull);
            let verdict = if after { Verdict::ProceedAndFail(error()) } else { Verdict::Refuse(error()) };
            let script = Script { special: Some((k, verdict)), ..Script::default() };
            let error = observe(script, || write_file(&path, b"new")).unwrap_err();
            assert_eq!((error.id(), error.code()), ("disk-full", Code::Resources), "call {k}");
            let renamed = k == 5 || (k, after) == (4, true);
            assert_eq!(fs::read(&path).unwrap(), if renamed { b"new" } else { b"old" }, "call {k}, {after}");
            remove_leftovers(dir.path()).unwrap();
            assert_eq!(names(dir.path()), ["a"]);
            write_file(&path, b"next").unwrap();
        }
    }
}

#[test]
fn a_short_or_interrupted_write_goes_on() {
    for verdict in [Verdict::Shorten(1), Verdict::Refuse(ErrorKind::Interrupted.into())] {
        let dir = tempfile::tempdir().unwrap();
        let script = Script { special: Some((2, verdict)), ..Script::default() };
        let calls = Rc::clone(&script.calls);
        observe(script, || write_file(&dir.path().join("a"), b"new")).unwrap();
        assert!(calls.take().join(", ").starts_with("create ~, write ~, write ~, sync ~"));
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"new");
    }
}

#[test]
fn temporary_names_are_known_and_few_others() {
    let name = temporary_name(Path::new("a/step-1"));
    assert!(in_temporary_dir(&name.join("x/y")) && !in_temporary_dir(&name));
    assert!(is_temporary(&name.file_name().unwrap().to_string_lossy()));
    for other in [".rlhf-tmp", ".a.rlhf-tmp", ".a.0123456789abcdeg.rlhf-tmp", "a.0123456789abcdef.rlhf-tmp"] {
        assert!(!is_temporary(other), "{other}");
    }
}
