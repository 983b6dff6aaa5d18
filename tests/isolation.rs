//! What a run may touch: every command is traced, system call by system call. None opens a socket, none starts a
//! process, and none writes outside the directory that it is told to write to. The same checker is shown first that it
//! finds each of these.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Room, completions, pairs, prompts};

/// The classes of calls that are recorded, and one that could do the work of all others unseen.
const TRACED: &str = "trace=%network,%process,%file,io_uring_setup";

/// Calls that take a path and change nothing. `open*` is judged by its flags; all others are writes.
const READERS: &str = "access faccessat faccessat2 stat lstat fstatat newfstatat statx readlink readlinkat getcwd \
    chdir statfs getxattr lgetxattr execve";

/// Calls that speak to the network, or to another process as if it were one.
const SPEAKERS: &str = "socket socketpair connect bind listen accept accept4 sendto sendmsg sendmmsg recvfrom recvmsg \
    recvmmsg shutdown getsockname getpeername setsockopt getsockopt";

/// Calls of the process class that start none.
const NO_STARTS: &str = "exit exit_group wait4 waitid kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo \
    pidfd_send_signal execve";

/// Files that anyone may open for writing.
const SINKS: [&str; 1] = ["/dev/null"];

/// Runs a program in `dir` under the tracer, and returns the trace. The run must end with this exit code.
fn trace(dir: &Path, code: i32, program: &str, arguments: &[&str]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut tracer = Command::new("strace");
    tracer.args(["-f", "-qq", "-y", "--seccomp-bpf", "-s", "0", "-e", "signal=none", "-e", TRACED, "-o"]);
    tracer.arg(file.path()).arg(program).args(arguments).current_dir(dir);
    tracer.stdin(Stdio::null()).env("RAYON_NUM_THREADS", "2");
    let output = tracer.output().unwrap_or_else(|why| {
        panic!(
            "strace does not start ({why}); this test needs it: `apt-get install -y strace`, or your system's package"
        )
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{program} {arguments:?}:\n{said}");
    String::from_utf8_lossy(&std::fs::read(file.path()).unwrap()).into_owned()
}

/// What in a trace of a run in `dir` is not allowed: sockets, processes, writes outside `outputs`.
fn violations(trace: &str, dir: &Path, outputs: &[&str]) -> Vec<String> {
    let outputs: Vec<PathBuf> = outputs.iter().map(|name| dir.join(name)).collect();
    let mut programs = 0;
    let mut found = Vec::new();
    for line in trace.lines() {
        // `123 openat(AT_FDCWD</here>, "name", O_RDONLY) = 3`. The second half of an interrupted call, `<... openat
        // resumed>`, has its results; the arguments stand in the first.
        let call = line.split_once(' ').unwrap_or_default().1.trim_start();
        if call.starts_with("<...") {
            continue;
        }
        let Some((name, arguments)) = call.split_once('(') else { continue };
        let is_one_of = |list: &str| list.split_whitespace().any(|word| word == name);
        programs += usize::from(name == "execve");
        let is_start = matches!(name, "fork" | "vfork" | "execveat" | "pidfd_open")
            || matches!(name, "clone" | "clone3") && !arguments.contains("CLONE_THREAD")
            || name == "execve" && programs > 1;
        let what = if is_start {
            "a process"
        } else if matches!(name, "clone" | "clone3") || is_one_of(NO_STARTS) {
            continue;
        } else if is_one_of(SPEAKERS) {
            "a socket"
        } else if is_one_of(READERS) || name.starts_with("open") && !opens_for_writing(arguments) {
            continue;
        } else {
            let paths = paths(arguments, dir);
            let is_inside = |path: &PathBuf| {
                outputs.iter().any(|output| path.starts_with(output))
                    || SINKS.iter().any(|sink| path == Path::new(sink))
            };
            if !paths.is_empty() && paths.iter().all(is_inside) {
                continue;
            }
            "a write outside, or a call that nobody knows"
        };
        found.push(format!("{what}: {line}"));
    }
    found
}

fn opens_for_writing(arguments: &str) -> bool {
    ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"].iter().any(|flag| arguments.contains(flag))
}

/// The paths among a call's arguments, made absolute: each quoted text, relative to the directory `AT_FDCWD</here>` or
/// `5</there>` before it; without any, that file itself.
fn paths(arguments: &str, dir: &Path) -> Vec<PathBuf> {
    let shown = |text: &str| text.rsplit_once('<')?.1.split_once('>').map(|(path, _)| PathBuf::from(path));
    let mut paths = Vec::new();
    let mut rest = arguments.split_once(" = ").map_or(arguments, |(before, _)| before);
    while let Some((before, (text, behind))) = rest.split_once('"').and_then(|(a, b)| Some((a, b.split_once('"')?))) {
        paths.push(plain(&shown(before).unwrap_or_else(|| dir.to_owned()).join(text)));
        rest = behind;
    }
    if paths.is_empty() { shown(rest).into_iter().collect() } else { paths }
}

/// The path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(plain.pop()),
            std::path::Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// A room with a language model, a reward model and data of every kind.
fn room() -> Room {
    let room = Room::new();
    room.model("model", "gpt2_tied");
    room.model("scorer", "gpt2_reward");
    room.rows("data.jsonl", &completions(8));
    room.rows("pairs.jsonl", &pairs(8));
    room.rows("prompts.jsonl", &prompts(8));
    let stages = "[sft]\ndataset = \"data.jsonl\"\n[reward]\ndataset = \"pairs.jsonl\"\n[ppo]\n\
        dataset = \"prompts.jsonl\"\nresponse_length = 4\ntotal_episodes = 8\n";
    let shared =
        "output_dir = \"run\"\nmodel_name_or_path = \"model\"\nmax_length = 64\nmax_steps = 2\nsave_steps = 1\n";
    room.write("run.toml", format!("{shared}{stages}"));
    std::fs::create_dir(room.path("answers")).unwrap();
    room
}

/// Each command: its line, its exit code, and where it may write.
const COMMANDS: [(&str, i32, &[&str]); 28] = [
    ("demo --quick --output-dir demo", 0, &["demo"]),
    ("sft --model-name-or-path model --dataset data.jsonl --max-steps 2 --save-steps 1 --output-dir sft", 0, &["sft"]),
    (
        "sft --model-name-or-path model --dataset data.jsonl --max-steps 2 --save-steps 1 --output-dir sft \
         --resume sft/checkpoints/step-1",
        0,
        &["sft"],
    ),
    ("verify sft", 0, &[]),
    ("reward --model-name-or-path model --dataset pairs.jsonl --max-steps 2 --output-dir reward", 0, &["reward"]),
    (
        "ppo --sft-model-path model --reward-model-path scorer --dataset prompts.jsonl --response-length 4 \
         --total-episodes 16 --save-steps 1 --output-dir ppo",
        0,
        &["ppo"],
    ),
    ("run --config run.toml", 0, &["run"]),
    ("sft --model-name-or-path model --dataset data.jsonl --dry-run --output-dir none", 0, &[]),
    ("sft --model-name-or-path model --dataset none.jsonl --output-dir bad", 3, &["bad"]),
    (
        "generate --model-name-or-path model --prompts prompts.jsonl --max-new-tokens 4 --output answers/a.jsonl",
        0,
        &["answers"],
    ),
    ("score --model-name-or-path model --dataset data.jsonl --output answers/b.jsonl", 0, &["answers"]),
    ("report sft", 0, &["sft"]),
    ("report sft ppo run --output answers/report.html", 0, &["answers"]),
    ("data check data.jsonl --model-name-or-path model --eval-dataset data.jsonl", 0, &[]),
    ("data preview pairs.jsonl --model-name-or-path model", 0, &[]),
    (
        "eval win-rate --model-name-or-path model --baseline sft --prompts prompts.jsonl --max-new-tokens 4 \
         --reward-model-path scorer --output answers/c.jsonl",
        0,
        &["answers"],
    ),
    ("eval win-rate --answers answers/c.jsonl --scores answers/c.jsonl", 0, &[]),
    ("eval reward --model-name-or-path scorer --dataset pairs.jsonl --output answers/quality.json", 0, &["answers"]),
    ("eval perplexity --model-name-or-path model --dataset data.jsonl", 0, &[]),
    ("eval perplexity --model-name-or-path model --dataset run.toml", 3, &[]),
    ("chat --model-name-or-path model", 0, &[]),
    ("doctor", 0, &[]),
    ("selftest --device emulated --filter gelu", 0, &[]),
    ("kernels", 0, &[]),
    ("init run --output answers/run.toml", 0, &["answers"]),
    ("config show run --config run.toml", 0, &[]),
    ("estimate sft --model-name-or-path model --dataset data.jsonl", 0, &[]),
    ("completions bash", 0, &[]),
];

#[test]
fn commands_touch_nothing_but_their_output() {
    let room = room();
    let dir = room.path("").canonicalize().unwrap();
    let mut calls = 0;
    for (line, code, outputs) in COMMANDS {
        let start = std::time::Instant::now();
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let trace = trace(&dir, code, env!("CARGO_BIN_EXE_rlhf"), &arguments);
        calls += trace.lines().count();
        assert!(trace.contains("execve("), "nothing was traced");
        let found = violations(&trace, &dir, outputs);
        assert!(found.is_empty(), "rlhf {line}: {} violations\n{}", found.len(), found.join("\n"));
        println!("rlhf {line}: {} calls, {:?}", trace.lines().count(), start.elapsed());
    }
    println!("{} commands, {calls} calls: no socket, no process, no write outside", COMMANDS.len());
}

/// The control: what the tracer and the checker must find.
#[test]
fn the_tracer_sees_sockets_processes_and_writes_outside() {
    let room = Room::new();
    let dir = room.path("").canonicalize().unwrap();
    std::fs::create_dir(dir.join("out")).unwrap();
    let cases = [
        (": <>/dev/tcp/127.0.0.1/9 || :", "a socket: "),
        ("/bin/true; :", "a process: "),
        ("(:)", "a process: "),
        ("exec /bin/true", "a process: "),
        ("echo a > beside", "a write outside"),
        ("echo a > out/../beside", "a write outside"),
        ("cd out; echo a > ../beside", "a write outside"),
        ("exec mkdir beside-2", "mkdir"),
        ("exec mv beside out/", "rename"),
        ("exec rm -r beside-2", "unlinkat"),
        ("exec ln -s out link", "symlink"),
        ("exec chmod 700 out/..", "chmod"),
        ("exec truncate -s 0 ./new", "a write outside"),
    ];
    for (script, sign) in cases {
        let trace = trace(&dir, 0, "bash", &["-c", script]);
        let found = violations(&trace, &dir, &["out"]).join("\n");
        assert!(found.contains(sign), "{script}: {sign} is not in\n{found}\nof\n{trace}");
    }
    for (program, arguments) in
        [("touch", ["out/a", "./out/b"]), ("cp", ["out/a", "out/../out/c"]), ("cat", ["out/a", "out/c"])]
    {
        let found = violations(&trace(&dir, 0, program, &arguments), &dir, &["out"]);
        assert!(found.is_empty(), "{program} {arguments:?}: {found:?}");
    }
}
