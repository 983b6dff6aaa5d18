//! `rlhf chat` through pipes: what it says is what `rlhf generate` says to the same conversation.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Outcome, Room};

/// Runs a chat that is told `input`.
pub(crate) fn talk(room: &Room, line: &str, input: &str) -> Outcome {
    let mut child = room.command(line).stdin(Stdio::piped()).spawn().unwrap();
    // The program may end before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    Outcome { line: line.to_owned(), code: output.status.code(), stdout, stderr }
}

/// A room with a model that has a template.
fn room() -> Room {
    let room = Room::new();
    room.model("model", "llama_untied_gqa");
    room
}

const CHAT: &str = "chat --model-name-or-path model --max-new-tokens 20";

fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// The answers of `rlhf generate` to these conversations, one a row.
fn generated(room: &Room, prompts: &[Value], more: &str) -> Vec<String> {
    room.rows("prompts.jsonl", &prompts.iter().map(|prompt| json!({ "prompt": prompt })).collect::<Vec<_>>());
    let line = "generate --model-name-or-path model --prompts prompts.jsonl --max-new-tokens 20 --output out.jsonl";
    room.run(&format!("{line} {more}")).ok();
    room.lines("out.jsonl").iter().map(|row| row["completion"].as_str().unwrap().to_owned()).collect()
}

/// The n-th answer draws the numbers of the n-th row.
#[test]
fn a_conversation_is_answered_as_generate_would() {
    let room = room();
    let outcome = talk(&room, &format!("{CHAT} --system Short."), "Say one\nAnd\\\ntwo\n").ok();
    let system = turn("system", "Short.");
    let first = json!([system, turn("user", "Say one")]);
    let one = generated(&room, std::slice::from_ref(&first), "--temperature 0.7").remove(0);
    let second = json!([system, turn("user", "Say one"), turn("assistant", &one), turn("user", "And\ntwo")]);
    let both = generated(&room, &[first, second], "--temperature 0.7");
    assert_eq!(outcome.stdout, format!("{}\n{}\n", both[0], both[1]));
    // Nothing but the answers is written where nobody types.
    assert!(!outcome.stdout.contains('>') || both.concat().contains('>'));
    assert!(!outcome.stderr.contains("tokens/s"), "{}", outcome.stderr);
}

#[test]
fn commands_are_followed() {
    let room = room();
    let input =
        "/temperature 0\nSay one\n/reset\n/system Be brief.\nSay one\n/system\n/reset\n//x\n/help\n/exit\nSay two\n";
    let outcome = talk(&room, CHAT, input).ok();
    let conversations = [
        json!([turn("user", "Say one")]),
        json!([turn("system", "Be brief."), turn("user", "Say one")]),
        json!([turn("user", "/x")]),
    ];
    let wanted = generated(&room, &conversations, "--temperature 0");
    assert_eq!(outcome.stdout, wanted.iter().map(|text| format!("{text}\n")).collect::<String>());
    assert!(outcome.stderr.contains("/temperature X") && outcome.stderr.contains("forgotten"), "{}", outcome.stderr);
    assert_ne!(wanted[0], wanted[1]);
    for (input, code, id) in [
        ("/rest\nSay one\n", 2, "chat-command"),
        ("/temperature\n", 2, "chat-command"),
        (&format!("{}\nSay one\n", "long ".repeat(200)), 3, "prompt-too-long"),
    ] {
        let outcome = talk(&room, CHAT, input);
        assert_eq!((outcome.code, &*outcome.stdout), (Some(code), ""), "{input}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(id), "{input}: {}", outcome.stderr);
    }
}

#[test]
fn a_model_without_a_template_goes_on_with_each_line() {
    let room = Room::new();
    room.model("model", "gpt2_tied");
    let outcome = talk(&room, &format!("{CHAT} --temperature 0"), "Say one\nSay two\n").ok();
    let wanted = generated(&room, &[json!("Say one"), json!("Say two")], "--temperature 0");
    assert_eq!(outcome.stdout, format!("{}\n{}\n", wanted[0], wanted[1]));
    assert_eq!(outcome.stderr.matches("no chat template").count(), 1, "{}", outcome.stderr);
    let outcome = talk(&room, &format!("{CHAT} --system Short."), "Say one\n");
    assert!(outcome.code == Some(2) && outcome.stderr.contains("template-missing"), "{}", outcome.stderr);
}

/// The template of the fixture takes some 40 tokens a turn, and the model has 512 positions.
#[test]
fn a_conversation_that_outgrows_the_context_forgets_its_beginning() {
    let room = room();
    let line = format!("{CHAT} --temperature 0");
    let messages: Vec<String> = (0..5).map(|i| format!("{i}{}", " word".repeat(22))).collect();
    let outcome = talk(&room, &line, &messages.iter().map(|text| format!("{text}\n")).collect::<String>()).ok();
    let (mut turns, mut wanted, mut forgotten) = (Vec::new(), String::new(), 0);
    for message in &messages {
        turns.push(turn("user", message));
        let answer = loop {
            room.rows("prompts.jsonl", &[json!({ "prompt": turns })]);
            let line =
                "generate --model-name-or-path model --prompts prompts.jsonl --max-new-tokens 20 --output a.jsonl";
            let outcome = room.run(&format!("{line} --temperature 0"));
            if outcome.code == Some(0) {
                break room.lines("a.jsonl")[0]["completion"].as_str().unwrap().to_owned();
            }
            assert!(outcome.stderr.contains("prompt-too-long"), "{}", outcome.stderr);
            turns.drain(..2);
            forgotten += 1;
        };
        wanted += &format!("{answer}\n");
        turns.push(turn("assistant", &answer));
    }
    assert_eq!(outcome.stdout, wanted);
    assert!(forgotten > 0 && outcome.stderr.contains("its 2 oldest messages are forgotten"), "{}", outcome.stderr);
}

/// A reader that has gone away ends the chat, and nothing is wrong then.
#[test]
fn a_closed_output_ends_the_chat() {
    let room = room();
    let mut child = room.command(CHAT).stdin(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let _ = child.stdin.take().unwrap().write_all(b"Say one\nSay two\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// SIGINT ends the answer, and the next message is answered; where nothing is being said it ends the program.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_answer_or_the_program() {
    let room = room();
    // A context without an end, and an end of sequence that is hardly ever drawn.
    room.edit("model/config.json", |config| {
        config.insert("max_position_embeddings".into(), json!(1_000_000));
        config.insert("eos_token_id".into(), json!(3));
    });
    room.write("model/generation_config.json", "{\"eos_token_id\": 3}");
    room.edit("model/tokenizer_config.json", |config| {
        config.insert("eos_token".into(), json!("<unk>"));
    });
    let line = "chat --model-name-or-path model --temperature 0 --max-new-tokens 400000";
    let interrupt = |pid: u32| {
        assert!(Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap().success());
    };
    let mut child = room.command(line).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"Say one\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    interrupt(child.id());
    child.stdin.take().unwrap().write_all(b"/help\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("the answer was stopped") && stderr.contains("/temperature X"), "{stderr}");
    let mut child = room.command(line).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"/help\n").unwrap();
    child.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    interrupt(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
