//! `rlhf completions`: what a shell needs to complete commands, options and their values.

use clap_complete::{Shell, generate};

use super::selftest::print;

/// Options of `rlhf completions`.
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell that the script is for
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub(super) fn run(args: &CompletionsArgs) {
    let mut script = Vec::new();
    generate(args.shell, &mut super::command(), "rlhf", &mut script);
    print(String::from_utf8_lossy(&script).trim_end());
}
