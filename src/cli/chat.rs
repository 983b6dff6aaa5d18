//! `rlhf chat`: a conversation with a model in the terminal, or through pipes. A line is a message, or a command that
//! begins with `/`; the answer appears as it is drawn. The whole conversation is read anew for each answer.
//! Lines are read as the terminal gives them: it has its own editing, and a wrapper such as rlwrap adds a history.

mod input;
mod talk;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

use super::eval::check_head;
use crate::device::Device;
use crate::error::{Code, Error, Result, visible};
use crate::model::config::Head;
use crate::model::generate::Sampling;
use crate::train::interrupt::{Signal, Watch};
use crate::train::metrics::tell;
use crate::train::pretrained::Pretrained;
use input::{Command, Line, Lines};
use talk::{Answer, Talk};

/// Options of `rlhf chat`.
#[derive(Debug, clap::Args)]
pub(super) struct ChatArgs {
    /// Directory of the language model
    #[arg(help_heading = "Input and output", long, value_name = "DIR")]
    model_name_or_path: PathBuf,
    /// What the conversation begins with, as its system message
    #[arg(help_heading = "Input and output", long, value_name = "TEXT")]
    system: Option<String>,
    /// Divides the logits; 0 takes the most likely token
    #[arg(help_heading = "Answers", long, default_value_t = 0.7, value_parser = crate::config::temperature_or_greedy)]
    temperature: f64,
    /// Sample among the k most likely tokens; 0 means all
    #[arg(help_heading = "Answers", long, default_value_t = 0, value_parser = crate::config::count)]
    top_k: usize,
    /// Sample among the most likely tokens that hold this much probability
    #[arg(help_heading = "Answers", long, default_value_t = 1.0, value_parser = crate::config::share)]
    top_p: f64,
    /// Tokens of an answer at most
    #[arg(help_heading = "Answers", long, default_value_t = 512, value_parser = crate::config::at_least_one())]
    max_new_tokens: usize,
    /// Random numbers of the answers; each answer of a chat draws its own
    #[arg(help_heading = "Answers", long, default_value_t = 42, value_parser = crate::config::seed)]
    seed: u64,
    /// Where to compute: auto, cpu, cuda, cuda:N (the N-th GPU, from 0), emulated
    #[arg(help_heading = "Input and output", long, default_value = "auto")]
    device: String,
}

/// What `/help` says.
const HELP: &str = "\
  a line is a message; one that ends with \\ goes on in the next, and // begins one that begins with /
  /system TEXT     sets the system message, and takes it away without TEXT
  /temperature X   0 takes the most likely token
  /reset           forgets what was said
  /help            this list
  /exit            ends, as Ctrl-D does; Ctrl-C ends an answer, and at the prompt the program";

/// Talks until the input ends.
pub(super) fn run(args: &ChatArgs) -> Result<()> {
    check_head(&args.model_name_or_path, Head::Language)?;
    let loaded = Pretrained::load(&Device::parse(&args.device)?, &args.model_name_or_path)?;
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    let mut talk = Talk::new(&loaded, sampling, args.max_new_tokens, args.seed)?;
    talk.set_system(args.system.clone())?;
    let mut screen = Screen { is_terminal: std::io::stdin().is_terminal() && std::io::stdout().is_terminal() };
    if loaded.template.is_none() {
        tell("note: the model has no chat template: each line is a text that it goes on with, by itself");
    }
    if screen.is_terminal {
        tell(&format!(
            "{} on {}; /help lists commands",
            args.model_name_or_path.display(),
            loaded.model.device().name()
        ));
    }
    let mut lines = Lines::new(std::io::stdin().lock());
    loop {
        let line = lines.next(&mut |is_first| screen.prompt(is_first))?;
        let Some(line) = line else { return screen.end() };
        let said = match line {
            Line::Message(text) => screen.answer(&mut talk, text),
            Line::Command(Command::Exit) => return Ok(()),
            Line::Command(command) => obey(&mut talk, command),
        };
        match said {
            Ok(()) => {}
            // A person can say it differently; a script cannot.
            Err(error) if screen.is_terminal && matches!(error.code(), Code::Input | Code::Usage) => {
                tell(&format!("error: {error}"));
            }
            Err(error) if error.id() == READER_GONE => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Follows a command.
fn obey(talk: &mut Talk<'_>, command: Command) -> Result<()> {
    match command {
        Command::Help => tell(HELP),
        Command::Reset => {
            talk.reset();
            tell("the conversation is forgotten");
        }
        Command::System(text) => {
            let what = if text.is_some() { "the system message is set" } else { "there is no system message" };
            talk.set_system(text)?;
            tell(what);
        }
        Command::Temperature(x) => {
            talk.sampling.temperature = x;
            tell(&format!("temperature {x}"));
        }
        Command::Exit => {}
    }
    Ok(())
}

/// The name of the error of a reader that has gone away (`| head`), which ends the chat and is none.
const READER_GONE: &str = "reader-gone";

/// Standard output.
struct Screen {
    /// Whether somebody types, and reads what is written.
    is_terminal: bool,
}

impl Screen {
    fn write(&mut self, text: &str) -> Result<()> {
        let mut out = std::io::stdout();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error| {
            Error::new(Code::Resources, READER_GONE, "the output is closed").because(error.to_string())
        })
    }

    /// Asks for a line: the first one of a message, or a further one.
    fn prompt(&mut self, is_first: bool) -> Result<()> {
        if self.is_terminal { self.write(if is_first { "> " } else { ". " }) } else { Ok(()) }
    }

    /// After the end of the input, which leaves the terminal behind the prompt.
    fn end(&mut self) -> Result<()> {
        if self.is_terminal { self.write("\n") } else { Ok(()) }
    }

    /// Answers a message.
    fn answer(&mut self, talk: &mut Talk<'_>, text: String) -> Result<()> {
        let (began, watch) = (Instant::now(), Watch::begin());
        let answer = talk.answer(text, &mut |piece| {
            self.write(&shown(piece))?;
            Ok(watch.noted().is_none())
        });
        let signal = watch.take();
        drop(watch);
        let Answer { tokens, stopped, dropped } = answer?;
        self.write("\n")?;
        if dropped > 0 {
            tell(&format!("note: the conversation outgrows the context: its {dropped} oldest messages are forgotten"));
        }
        match signal {
            Some(Signal::Terminate) => {
                return Err(Error::new(Code::Terminated, "interrupted", "stopped by SIGTERM"));
            }
            Some(Signal::Interrupt) => tell("note: the answer was stopped"),
            None if !stopped => tell(&format!("note: the answer was cut after {tokens} tokens")),
            None => {}
        }
        if self.is_terminal {
            let rate = tokens as f64 / began.elapsed().as_secs_f64().max(1e-9);
            tell(&format!("  {tokens} tokens, {rate:.1} tokens/s"));
        }
        Ok(())
    }
}

/// What a model wrote, for a terminal: what it would obey as codes, but for tabs and the ends of lines.
fn shown(text: &str) -> String {
    text.split('\t').map(visible).collect::<Vec<_>>().join("\t")
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_that_a_model_writes_moves_the_terminal() {
        assert_eq!(super::shown("a\tb\nc\u{1b}[2Jé\r\u{202e}"), "a\tb\nc\\u{1b}[2Jé\\r\\u{202e}");
    }
}
