//! What an option takes, told by its own definition: possible values, or the words in which its parser refuses what is
//! no value. Help and `rlhf init` show it, so that no second list of ranges can fall behind.

use clap::{Arg, Command};

/// No option takes this text, but those that take any.
const NO_VALUE: &str = "?";

/// What the option `arg` of `command` takes, such as `number above 0`; none for a text that is free.
pub(super) fn takes(command: &Command, arg: &Arg) -> Option<String> {
    let values: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if !values.is_empty() {
        return Some(values.join(", "));
    }
    let line = ["rlhf".to_owned(), format!("--{}={NO_VALUE}", arg.get_long()?)];
    let refusal = command.clone().try_get_matches_from(line).err()?;
    let why = std::error::Error::source(&refusal)?.to_string();
    Some(why.strip_suffix(" is needed")?.trim_start_matches("a ").to_owned())
}

/// The command with what its options take behind their help, where clap does not write it there.
pub(super) fn with_ranges(command: Command) -> Command {
    let plain = command.clone();
    let ranged = command.mut_args(|arg| {
        let help = arg.get_help().map(ToString::to_string);
        match (help, takes(&plain, &arg)) {
            (Some(help), Some(takes)) if arg.get_possible_values().is_empty() => arg.help(format!("{help} [{takes}]")),
            _ => arg,
        }
    });
    ranged.mut_subcommands(with_ranges)
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;
    use crate::config::PpoConfig;

    #[test]
    fn a_parser_says_what_it_takes() {
        let command = PpoConfig::augment_args(Command::new("ppo"));
        let takes = |name: &str| {
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(name)).unwrap();
            takes(&command, arg).unwrap_or_default()
        };
        let cases = [
            ("learning-rate", "number above 0"),
            ("gamma", "number from 0 to 1"),
            ("response-length", "whole number of at least 1"),
            ("top-k", "whole number of at least 0"),
            ("seed", "whole number of at least 0"),
            ("save-steps", "number of steps or `auto`"),
            ("kl-estimator", "k1, k2, k3"),
            ("strict", "true, false"),
            ("dataset", ""),
            ("device", ""),
        ];
        for (name, range) in cases {
            assert_eq!(takes(name), range, "--{name}");
        }
    }
}
