//! What is typed: lines that are messages, over several of them where one ends with `\`, and lines that are commands.

use std::io::{BufRead, Read};
use std::path::Path;

use crate::error::{Error, Result, nearest};

/// Bytes of a message at most.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The commands.
const COMMANDS: [&str; 5] = ["/exit", "/help", "/reset", "/system", "/temperature"];

/// A command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Exit,
    Help,
    Reset,
    System(Option<String>),
    Temperature(f64),
}

/// What was typed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Line {
    Message(String),
    Command(Command),
}

/// The lines of an input.
pub(super) struct Lines<R> {
    reader: R,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader }
    }

    /// What is typed next; none where the input ends. Blank lines say nothing. Before each line `prompt` is called,
    /// with whether it is the first of a message.
    ///
    /// # Errors
    /// `chat-utf8`, `chat-too-long`, `chat-command`; input errors; those of `prompt`.
    pub(super) fn next(&mut self, prompt: &mut dyn FnMut(bool) -> Result<()>) -> Result<Option<Line>> {
        let mut text = String::new();
        let mut is_first = true;
        loop {
            prompt(is_first)?;
            let Some(line) = self.line(MESSAGE_BYTES_MAX - text.len())? else {
                // What a `\` left open is a message too.
                return Ok(Some(text).filter(|text| !text.trim().is_empty()).map(Line::Message));
            };
            if is_first && line.starts_with('/') && !line.starts_with("//") {
                return command(&line).map(|command| Some(Line::Command(command)));
            }
            let line = if is_first { line.strip_prefix('/').unwrap_or(&line) } else { &line };
            let open = line.strip_suffix('\\');
            text.push_str(open.unwrap_or(line));
            if open.is_some() {
                text.push('\n');
                is_first = false;
            } else if text.trim().is_empty() {
                (text, is_first) = (String::new(), true);
            } else {
                return Ok(Some(Line::Message(text)));
            }
        }
    }

    /// The next line, without its end.
    fn line(&mut self, bytes_max: usize) -> Result<Option<String>> {
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(bytes_max as u64 + 1).read_until(b'\n', &mut bytes);
        if read.map_err(|error| Error::io("reading the input", Path::new("standard input"), &error))? == 0 {
            return Ok(None);
        }
        if bytes.len() > bytes_max {
            return Err(Error::input("chat-too-long", "the message is longer than 1 MiB").fix("say it shorter"));
        }
        let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let wrong = |_| Error::input("chat-utf8", "the line is not UTF-8").fix("set the terminal to UTF-8");
        String::from_utf8(line.to_vec()).map(Some).map_err(wrong)
    }
}

/// The command on a line.
fn command(line: &str) -> Result<Command> {
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let wrong = |what: String, fix: String| Err(Error::usage("chat-command", what).fix(fix));
    match name {
        "/system" => Ok(Command::System((!rest.is_empty()).then(|| rest.to_owned()))),
        "/temperature" => match crate::config::temperature_or_greedy(rest) {
            Ok(x) => Ok(Command::Temperature(x)),
            Err(why) => wrong(format!("`{rest}` is no temperature: {why}"), "write /temperature 0.7".into()),
        },
        name if COMMANDS.contains(&name) && !rest.is_empty() => {
            wrong(format!("{name} takes nothing, and `{rest}` follows it"), format!("write {name} alone"))
        }
        "/exit" => Ok(Command::Exit),
        "/help" => Ok(Command::Help),
        "/reset" => Ok(Command::Reset),
        name => {
            let near = nearest(name, COMMANDS).map(|near| format!("did you mean {near}? "));
            let fix = format!("{}/help lists all; // begins a message with /", near.unwrap_or_default());
            wrong(format!("`{name}` is no command"), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All lines up to the end or an error's name, and the prompts that were shown.
    fn read(input: &[u8]) -> (Vec<Line>, &'static str, String) {
        let (mut lines, mut found, mut prompts) = (Lines::new(input), Vec::new(), String::new());
        loop {
            let next = lines.next(&mut |is_first| {
                prompts.push(if is_first { '>' } else { '.' });
                Ok(())
            });
            match next {
                Ok(Some(line)) => found.push(line),
                Ok(None) => return (found, "", prompts),
                Err(error) => return (found, error.id(), prompts),
            }
        }
    }

    #[test]
    fn messages_and_commands() {
        let message = |text: &str| Line::Message(text.to_owned());
        let (found, error, prompts) = read("hé\r\n\n  \na\\\n/b\\\n\nc\\".as_bytes());
        assert_eq!(found, [message("hé"), message("a\n/b\n"), message("c\n")]);
        assert_eq!((error, &*prompts), ("", ">>>>..>.>"));
        let (found, _, _) = read(b"//etc\n/reset\n/system  Be brief. \n/system\n/temperature 0\n/help\n/exit");
        let commands = [
            Command::Reset,
            Command::System(Some("Be brief.".into())),
            Command::System(None),
            Command::Temperature(0.0),
            Command::Help,
            Command::Exit,
        ];
        assert_eq!(found[0], message("/etc"));
        assert_eq!(found[1..], commands.map(Line::Command));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (input, id) in [
            (&b"/rest\n"[..], "chat-command"),
            (b"/reset now\n", "chat-command"),
            (b"/temperature hot\n", "chat-command"),
            (b"/temperature -1\n", "chat-command"),
            (b"caf\xe9\n", "chat-utf8"),
        ] {
            assert_eq!(read(input).1, id, "{input:?}");
        }
        let error = command("/rest").unwrap_err().to_string();
        assert!(error.contains("did you mean /reset?"), "{error}");
        assert_eq!(read(&vec![b'a'; MESSAGE_BYTES_MAX + 1]).1, "chat-too-long");
        assert_eq!(read(&[vec![b'a'; MESSAGE_BYTES_MAX], vec![b'\n']].concat()).1, "chat-too-long");
        assert_eq!(read(&vec![b'a'; MESSAGE_BYTES_MAX]).0.len(), 1);
    }
}
