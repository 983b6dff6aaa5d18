//! Every command's help: one line of purpose, three examples that parse, options in groups with a text each, and no
//! line that a terminal of 100 columns would break.

use clap::{Arg, Command, CommandFactory};

use super::Cli;

const COLUMNS: usize = 100;
const EXAMPLES: usize = 3;
/// With more options than these, every one stands under a heading.
const UNGROUPED: usize = 6;

/// The words of a line as a shell takes them apart: quotes, and nothing behind `>`.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for c in line.split(" > ").next().unwrap_or_default().chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// What is wrong with the help of `command`, whose examples `parses` should take.
fn faults(command: &Command, parses: &dyn Fn(Vec<String>) -> Result<(), String>) -> Vec<String> {
    let mut found = Vec::new();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    if about.is_empty() || about.contains('\n') || about.len() > COLUMNS {
        found.push(format!("its purpose is not one line: {about:?}"));
    }
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let examples: Vec<&str> = after.lines().filter(|line| line.starts_with("  rlhf ")).collect();
    if examples.len() < EXAMPLES {
        found.push(format!("{} examples", examples.len()));
    }
    found.extend(examples.iter().filter_map(|line| parses(words(line)).err()));
    let is_own = |arg: &&Arg| !["help", "version"].contains(&arg.get_id().as_str());
    let args: Vec<&Arg> = command.get_arguments().filter(is_own).collect();
    let ungrouped = args.iter().filter(|arg| arg.get_help_heading().is_none() && !arg.is_positional());
    if args.len() > UNGROUPED {
        found.extend(ungrouped.map(|arg| format!("{} stands under no heading", arg.get_id())));
    }
    let is_silent = |arg: &&&Arg| arg.get_help().is_none_or(|help| help.to_string().trim().is_empty());
    found.extend(args.iter().filter(is_silent).map(|arg| format!("{} says nothing", arg.get_id())));
    let help = command.clone().term_width(COLUMNS).render_long_help().to_string();
    let wide = help.lines().filter(|line| line.chars().count() > COLUMNS);
    found.extend(wide.map(|line| format!("a line of {} columns: {line}", line.chars().count())));
    found
}

/// All commands below `command`, and itself.
fn all(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
    let path = format!("{path} {}", command.get_name()).trim_start().to_owned();
    found.push((path.clone(), command.clone()));
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        all(below, &path, found);
    }
}

fn parses(words: Vec<String>) -> Result<(), String> {
    let line = words.join(" ");
    Cli::command().try_get_matches_from(words).map(|_| ()).map_err(|error| format!("`{line}`: {error}"))
}

#[test]
fn every_command_has_help_that_helps() {
    let (mut command, mut commands) = (super::command(), Vec::new());
    command.build();
    all(&command, "", &mut commands);
    assert!(commands.len() > 20, "{}", commands.len());
    let found: Vec<String> = commands
        .iter()
        .flat_map(|(path, command)| faults(command, &parses).into_iter().map(move |fault| format!("`{path}`: {fault}")))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// What options take stands in the help of all commands, those with two names too.
#[test]
fn help_says_what_options_take() {
    let (mut command, mut commands) = (super::command(), Vec::new());
    command.build();
    all(&command, "", &mut commands);
    for path in ["rlhf sft", "rlhf config show sft", "rlhf estimate sft"] {
        let (_, command) = commands.iter().find(|(name, _)| name == path).unwrap();
        let help = command.clone().render_help().to_string();
        assert!(help.contains("[number above 0] [default: 0.00002]"), "{path}: {help}");
    }
}

/// The control: each fault is found.
#[test]
fn faults_are_found() {
    let option = |name: &'static str| Arg::new(name).long(name).help("Something").help_heading("Group");
    let good = || {
        let examples = "Examples:\n  rlhf demo\n  rlhf demo --seed 2\n  rlhf selftest --filter 'a b' > c.txt";
        let options = ["a", "b", "c", "d", "e", "f", "g"].map(option);
        Command::new("good").about("One line").after_help(examples).args(options)
    };
    let of = |command: Command| faults(&command, &parses).join("\n");
    assert_eq!(of(good()), "");
    let cases = [
        (good().about("Two\nlines"), "purpose"),
        (good().about(None::<&str>), "purpose"),
        (good().after_help("Examples:\n  rlhf demo"), "1 examples"),
        (good().after_help("  rlhf demo\n  rlhf demo\n  rlhf demo --sed 2"), "--sed"),
        (good().arg(Arg::new("h").long("h").help("Alone")), "h stands under no heading"),
        (good().arg(Arg::new("h").long("h").help_heading("Group")), "h says nothing"),
        (good().after_help(format!("  rlhf demo\n  rlhf demo\n  rlhf demo\n{}", "x".repeat(101))), "101 columns"),
    ];
    for (command, fault) in cases {
        assert!(of(command.clone()).contains(fault), "{fault}: {}", of(command));
    }
    assert_eq!(words("  rlhf x --filter 'a b' > c"), ["rlhf", "x", "--filter", "a b"]);
}
