//! What the tests of the binary share: a room (a directory that goes when the test ends), the tiny models and data sets
//! that are put into it, the runs that happen in it, and the weights files that are read, edited and written there.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

/// Most runs of these tests take less than a second, and the embedded job's half a minute where other tests keep all
/// cores busy; one that takes this long hangs.
const LIMIT: Duration = Duration::from_secs(180);

/// What a run answered.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) line: String,
    /// The exit code; none after a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The same, if all went well.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "`rlhf {}` failed:\n{}", self.line, self.stderr);
        self
    }
}

/// A directory in which commands run: paths on their lines are relative to it.
pub(crate) struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A room in memory where the system has such a place: there a sync costs nothing.
    pub(crate) fn in_memory() -> Self {
        tempfile::tempdir_in("/dev/shm").map_or_else(|_| Self::new(), |dir| Self { dir })
    }

    /// The binary that is tested: the one that was built for the tests, or the one in `RLHF_BINARY`.
    pub(crate) fn binary(&self) -> PathBuf {
        std::env::var_os("RLHF_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_rlhf").into(), PathBuf::from)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Writes a JSON Lines file.
    pub(crate) fn rows(&self, name: &str, rows: &[Value]) {
        self.write(name, rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    }

    /// Reads a JSON Lines file.
    pub(crate) fn lines(&self, name: &str) -> Vec<Value> {
        let text = String::from_utf8(self.read(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    /// Changes a JSON object that stands in a file.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Map<String, Value>)) {
        let Value::Object(mut map) = self.json(name) else { panic!("{name} is not an object") };
        change(&mut map);
        self.write(name, Value::Object(map).to_string());
    }

    /// Changes the tensors of a weights file.
    pub(crate) fn edit_weights(&self, name: &str, change: impl FnOnce(&mut BTreeMap<String, Stored>)) {
        let mut weights = Weights::read(&self.path(name));
        change(&mut weights.tensors);
        self.write(name, weights.to_bytes());
    }

    /// Copies a fixture's model to `name`.
    pub(crate) fn model(&self, name: &str, fixture: &str) {
        let to = self.path(name);
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(fixtures().join(fixture)).unwrap() {
            let from = entry.unwrap().path();
            let file = from.file_name().unwrap();
            if !file.to_string_lossy().starts_with("expected") {
                std::fs::copy(&from, to.join(file)).unwrap();
            }
        }
    }

    /// Runs the binary on one thread; the words of `line` are its arguments.
    pub(crate) fn run(&self, line: &str) -> Outcome {
        self.run_on(1, line)
    }

    /// Runs the binary on so many threads.
    pub(crate) fn run_on(&self, threads: usize, line: &str) -> Outcome {
        let mut child = self.command(line).env("RAYON_NUM_THREADS", threads.to_string()).spawn().unwrap();
        let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if started.elapsed() > LIMIT {
                child.kill().unwrap();
                panic!("`rlhf {line}` hangs");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let [stdout, stderr] = [stdout, stderr].map(|text| text.join().unwrap());
        Outcome { line: line.to_owned(), code: status.code(), stdout, stderr }
    }

    /// The command itself, for tests that hold its pipes.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(self.binary());
        command.args(line.split_whitespace()).current_dir(self.dir.path());
        command.env("RAYON_NUM_THREADS", "1").env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Every file under `name` with its bytes, by its path from there; nothing if there is no such directory.
    pub(crate) fn files(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        walk(&self.path(name), "", &mut files);
        files
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).unwrap();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn walk(dir: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_string_lossy());
        if path.is_dir() {
            walk(&path, &format!("{name}/"), files);
        } else if path.is_file() {
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

/// Whether the long forms of tests are asked for; says what is left out otherwise.
pub(crate) fn is_slow(what: &str) -> bool {
    let slow = std::env::var_os("RLHF_SLOW").is_some_and(|value| value == "1");
    if !slow {
        println!("skipped without RLHF_SLOW=1: {what}");
    }
    slow
}

/// Where the tiny models are.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models")
}

/// A tensor in a weights file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// A safetensors file, taken apart by hand: the crate's own reader is what is tested.
pub(crate) struct Weights {
    pub(crate) tensors: BTreeMap<String, Stored>,
}

impl Weights {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
        let tensor = |(name, entry): (String, Value)| {
            let place = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            let shape = entry["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
            let dtype = entry["dtype"].as_str().unwrap().to_owned();
            (name, Stored { dtype, shape, bytes: data[place(0)..place(1)].to_vec() })
        };
        Self { tensors: header.into_iter().filter(|(name, _)| name != "__metadata__").map(tensor).collect() }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (name, tensor) in &self.tensors {
            let begin = data.len();
            data.extend(&tensor.bytes);
            let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()] });
            header.insert(name.clone(), entry);
        }
        let header = Value::Object(header).to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
    }

    fn words(&self, name: &str) -> impl Iterator<Item = [u8; 4]> {
        let tensor = self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
        tensor.bytes.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]])
    }

    /// The values of an F32 tensor.
    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).map(f32::from_le_bytes).collect()
    }

    /// The values of an I32 tensor.
    pub(crate) fn ints(&self, name: &str) -> Vec<i32> {
        self.words(name).map(i32::from_le_bytes).collect()
    }
}

/// Prompts with completions of different lengths, for fine-tuning and for scoring.
pub(crate) fn completions(n: usize) -> Vec<Value> {
    let row = |i: usize| json!({ "prompt": format!("Say {i}: "), "completion": "word ".repeat(1 + i % 4) });
    (0..n).map(row).collect()
}

/// Preference pairs.
pub(crate) fn pairs(n: usize) -> Vec<Value> {
    let row = |i: usize| {
        let (chosen, rejected) = ("good ".repeat(1 + i % 4), "bad ".repeat(1 + i % 3));
        json!({ "prompt": format!("Say {i}: "), "chosen": chosen, "rejected": rejected })
    };
    (0..n).map(row).collect()
}

/// Prompts for rollouts.
pub(crate) fn prompts(n: usize) -> Vec<Value> {
    (0..n).map(|i| json!({ "prompt": format!("Say {i}: ") })).collect()
}

/// Conversations of two turns each way.
pub(crate) fn conversations(n: usize) -> Vec<Value> {
    let turn = |role: &str, content: String| json!({ "role": role, "content": content });
    let row = |i: usize| {
        json!({ "messages": [
            turn("user", format!("Say {i}")), turn("assistant", "one ".repeat(1 + i % 3)),
            turn("user", "And?".into()), turn("assistant", format!("{i} two")),
        ] })
    };
    (0..n).map(row).collect()
}
