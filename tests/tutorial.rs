//! The tutorial as a newcomer follows it: every command of `src/tutorial.md`, in its order, as it stands there.

use crate::support::Room;

/// The lines of the tutorial's shell blocks.
fn commands(text: &str) -> Vec<&str> {
    let mut is_shell = false;
    let mut found = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(language) => is_shell = language == "sh",
            None if is_shell => found.push(line),
            None => {}
        }
    }
    found
}

#[test]
fn every_command_of_the_tutorial_works() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("src/tutorial.md")).unwrap();
    let commands = commands(&text);
    assert!(commands.len() > 10, "{commands:?}");
    let room = Room::in_memory();
    std::fs::create_dir_all(room.path("tests/tutorial")).unwrap();
    for entry in std::fs::read_dir(root.join("tests/tutorial")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, room.path("tests/tutorial").join(from.file_name().unwrap())).unwrap();
    }
    for command in commands {
        let words = command.strip_prefix("rlhf ").unwrap_or_else(|| panic!("not a command of ours: {command}"));
        room.run_on(2, words).ok();
    }
    for file in ["out/sft/report.html", "out/reward/quality.json", "out/ppo/samples.jsonl", "all.html"] {
        assert!(room.path(file).is_file(), "{file}");
    }
    assert!(room.path("together/report.html").is_file());
    let [before, after] = ["\"step\":0,", "\"step\":8,"].map(|step| {
        let text = String::from_utf8(room.read("out/ppo/samples.jsonl")).unwrap();
        text.lines().filter(|line| line.contains(step)).count()
    });
    assert!(before > 0 && before == after, "the same prompts before and after PPO");
}
