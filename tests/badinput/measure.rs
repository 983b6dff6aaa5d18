//! A run under a limit on its memory, with its computing time taken. The limit is on addresses (`ulimit -v`), which
//! counts what is asked for and not only what is touched; it is what a good run of the same command takes, 64 MiB, and
//! four times the bytes of the room's files. Time is the process's own, so that a busy machine is no excuse.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::{generate, ppo, reward, room, score, sft};
use crate::support::{Room, conversations};

/// Above a good run of the same command, and for each byte of input.
const SLACK_KIB: u64 = 64 << 10;
const PER_BYTE: u64 = 4;

/// The clock of /proc/PID/stat on every Linux machine.
const TICKS_PER_SECOND: u64 = 100;

/// What a run answered, and what it took.
pub(super) struct Answer {
    pub(super) code: Option<i32>,
    pub(super) stderr: String,
    cpu: Duration,
    is_late: bool,
    /// The limit on its addresses.
    limit_kib: u64,
}

impl Answer {
    /// The message: all that follows the first "error:" (before it stand the settings), with the room's path removed.
    pub(super) fn message(&self, room: &Room) -> String {
        let home = room.path("").canonicalize().unwrap();
        let text = self.stderr.replace(home.to_str().unwrap().trim_end_matches('/'), "ROOM");
        let start = text.find("error: ").unwrap_or(0);
        text[start..].lines().fold(String::new(), |mut lines, line| {
            writeln!(lines, "{}", line.trim_end()).unwrap();
            lines
        })
    }

    /// What it took too much of. A process that is refused memory is ended by a signal.
    pub(super) fn excess(&self, cpu_max: Duration) -> Vec<String> {
        let mut excess = Vec::new();
        if self.cpu > cpu_max {
            excess.push(format!("it computed for {:?}", self.cpu));
        }
        if self.is_late {
            excess.push("it hangs".to_owned());
        }
        if self.stderr.contains("memory allocation of") {
            excess.push(format!("it needs more memory than {} KiB", self.limit_kib));
        }
        excess
    }
}

/// The most addresses that a run may take, by command; none where there is no such measure.
pub(super) struct Limits(BTreeMap<String, u64>);

impl Limits {
    /// What good runs take.
    pub(super) fn measured() -> Self {
        let mut good = BTreeMap::new();
        if cfg!(target_os = "linux") {
            for command in [sft(""), reward(""), generate(""), score("")] {
                good.insert(word(&command), peak_kib(&room(), &command));
            }
            let room = room();
            let line = ppo(&room, "");
            good.insert(word(&line), peak_kib(&room, &line));
            room.write("model/chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
            room.rows("data.jsonl", &conversations(4));
            good.insert("template".to_owned(), peak_kib(&room, &sft("--output-dir out-template")));
        } else {
            println!("skipped: the limit on memory, which needs Linux");
        }
        Self(good)
    }

    fn for_line(&self, room: &Room, line: &str) -> Option<u64> {
        let templates = ["model", "reward"].map(|dir| room.path(dir));
        // Not what is a pipe, or a terabyte of zeros.
        let small = |path: &Path| path.metadata().is_ok_and(|entry| entry.is_file() && entry.len() < 1 << 20);
        let has_template = |dir: &std::path::PathBuf| {
            let config = Some(dir.join("tokenizer_config.json")).filter(|path| small(path));
            let config = config.map(|path| std::fs::read(path).unwrap()).unwrap_or_default();
            dir.join("chat_template.jinja").exists() || String::from_utf8_lossy(&config).contains("chat_template")
        };
        let mut good = *self.0.get(&word(line)).or_else(|| self.0.get("ppo"))?;
        // The engine's thread has a large stack, of which little is touched.
        let thread = self.0.get("template")?.saturating_sub(*self.0.get("sft")?);
        good += templates.iter().filter(|dir| has_template(dir)).count() as u64 * thread;
        Some(good + SLACK_KIB + PER_BYTE * input_bytes(&room.path("")) / 1024)
    }
}

/// The command of a line.
fn word(line: &str) -> String {
    line.split(' ').next().unwrap_or_default().to_owned()
}

/// Bytes on disk: the holes of a sparse file are no input that anybody sent.
fn input_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let bytes = |path: std::path::PathBuf| match path.symlink_metadata().unwrap() {
        entry if entry.is_dir() => input_bytes(&path),
        entry if entry.is_file() => entry.len().min(entry.blocks() * 512),
        _ => 0,
    };
    entries.map(bytes).sum()
}

/// One thread, one heap: what is taken does not depend on the machine.
fn command(room: &Room, line: &str, limit_kib: Option<u64>) -> Command {
    let limit = limit_kib.map_or("unlimited".to_owned(), |kib| kib.to_string());
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v \"$1\"; shift; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_rlhf"), &limit]);
    command.args(line.split_whitespace()).current_dir(room.path(""));
    command.env("RAYON_NUM_THREADS", "1").env("MALLOC_ARENA_MAX", "1").env_remove("RUST_BACKTRACE");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Runs the binary on that line.
pub(super) fn run(room: &Room, line: &str, limits: &Limits, patience: Duration) -> Answer {
    run_within(room, line, limits.for_line(room, line), patience)
}

fn run_within(room: &Room, line: &str, limit_kib: Option<u64>, patience: Duration) -> Answer {
    let mut written = tempfile::tempfile().unwrap();
    let child = command(room, line, limit_kib).stderr(written.try_clone().unwrap()).spawn().unwrap();
    let (status, cpu, is_late) = watch(child, patience, |_| ());
    written.rewind().unwrap();
    let mut bytes = Vec::new();
    written.read_to_end(&mut bytes).unwrap();
    let stderr = String::from_utf8_lossy(&bytes).into_owned();
    Answer { code: status.code(), stderr, cpu, is_late, limit_kib: limit_kib.unwrap_or(u64::MAX) }
}

/// The peak of the addresses that a good run takes.
fn peak_kib(room: &Room, line: &str) -> u64 {
    let mut peak = 0;
    let child = command(room, line, None).stderr(Stdio::null()).spawn().unwrap();
    let (status, _, _) = watch(child, Duration::from_secs(60), |pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap_or("0");
        peak = peak.max(line.trim().trim_end_matches(" kB").parse().unwrap());
    });
    assert!(status.success() && peak > 0, "`rlhf {line}`: {status}, {peak} KiB");
    peak
}

/// Waits for the end, looking often; the time that a process took can be read after its end until it is waited for.
fn watch(mut child: Child, patience: Duration, mut look: impl FnMut(u32)) -> (ExitStatus, Duration, bool) {
    let started = Instant::now();
    loop {
        look(child.id());
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let has_ended = match fields.first() {
            Some(state) => *state == "Z",
            None => child.try_wait().unwrap().is_some(),
        };
        let is_late = started.elapsed() > patience;
        if has_ended || is_late {
            if is_late {
                child.kill().unwrap();
            }
            let ticks = |at: usize| fields.get(at).map_or(0, |field| field.parse::<u64>().unwrap());
            let cpu = Duration::from_millis((ticks(11) + ticks(12)) * 1000 / TICKS_PER_SECOND);
            return (child.wait().unwrap(), cpu, is_late);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A measure that lets everything pass would let a bomb pass: the same good run ends, or does not, with its limit, and
/// a run that computes is seen to.
#[cfg(target_os = "linux")]
#[test]
fn the_measures_bite() {
    let patience = Duration::from_secs(60);
    let room = room();
    room.model("llama", "llama_tied");
    room.edit("llama/config.json", |config| {
        config.insert("vocab_size".into(), (1 << 18).into());
        config.insert("hidden_size".into(), 96.into());
        config.insert("head_dim".into(), 24.into());
    });
    // 96 MiB of weights, where a good run may take 64 MiB more than it takes.
    let line = "fresh --config llama/config.json --tokenizer llama --output-dir out";
    let limit = Limits::measured().for_line(&room, &sft("")).unwrap();
    let answer = run_within(&room, line, Some(limit), patience);
    assert_eq!((answer.code, answer.excess(patience).len()), (None, 1), "{}", answer.stderr);
    std::fs::remove_dir_all(room.path("out")).unwrap();
    let answer = run_within(&room, line, None, patience);
    assert_eq!((answer.code, answer.excess(patience)), (Some(0), vec![]), "{}", answer.stderr);
    assert_eq!(answer.excess(Duration::from_millis(20)).len(), 1);
    assert_eq!(run_within(&room, line, None, Duration::ZERO).excess(patience), ["it hangs"]);
}
