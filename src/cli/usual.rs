//! What an option means that nobody gave and that has no default value on the command line: the stage's own constant,
//! another option's value, or something that only words can say.

use crate::config::{PpoConfig, ROWS_PER_PASS, RewardConfig, SftConfig};
use crate::train::{ppo, reward, sft};

/// What stands for an option that was left out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Usual {
    /// A value that the option itself would take.
    Value(String),
    /// The value of this other option.
    As(&'static str),
    /// No value of the option.
    Words(&'static str),
}
use Usual::{As, Value, Words};

/// A stage of training, by its options.
pub(crate) trait Stage: clap::Args {
    /// Its command.
    const NAME: &'static str;
    /// Options that it cannot do without, each with a place to put there.
    const REQUIRED: &'static [(&'static str, &'static str)];

    /// Options that have no default value for clap, and what they are by default.
    fn usual() -> Vec<(&'static str, Usual)>;
}

/// What `option` of the stage is by default, where clap knows no default.
pub(super) fn usual<T: Stage>(option: &str) -> Usual {
    T::usual().into_iter().find(|(name, _)| *name == option).map_or(Words(NOTHING), |(_, usual)| usual)
}

/// What stands for a path that was not given.
pub(super) const NOTHING: &str = "none";

fn shared(logging_steps: usize, adam_epsilon: f64) -> Vec<(&'static str, Usual)> {
    vec![
        ("logging-steps", Value(logging_steps.to_string())),
        ("per-device-train-batch-size", Value(ROWS_PER_PASS.to_string())),
        ("adam-epsilon", Value(adam_epsilon.to_string())),
    ]
}

fn rows(epochs: f64) -> Vec<(&'static str, Usual)> {
    vec![
        ("eval-steps", Words("only at the end")),
        ("num-train-epochs", Value(epochs.to_string())),
        ("max-steps", Words("as many as the epochs have")),
        ("max-length", Words("1024, or the model's positions where they are fewer")),
    ]
}

impl Stage for SftConfig {
    const NAME: &'static str = "sft";
    const REQUIRED: &'static [(&'static str, &'static str)] =
        &[("model-name-or-path", "path/to/model"), ("dataset", "demonstrations.jsonl"), ("output-dir", "out/sft")];

    fn usual() -> Vec<(&'static str, Usual)> {
        let own = vec![("completion-only-loss", Words("true where rows have a prompt and a completion"))];
        [shared(sft::LOGGING_STEPS, sft::ADAM_EPSILON), rows(sft::EPOCHS), own].concat()
    }
}

impl Stage for RewardConfig {
    const NAME: &'static str = "reward";
    const REQUIRED: &'static [(&'static str, &'static str)] =
        &[("model-name-or-path", "out/sft"), ("dataset", "preferences.jsonl"), ("output-dir", "out/reward")];

    fn usual() -> Vec<(&'static str, Usual)> {
        [shared(reward::LOGGING_STEPS, reward::ADAM_EPSILON), rows(reward::EPOCHS)].concat()
    }
}

impl Stage for PpoConfig {
    const NAME: &'static str = "ppo";
    const REQUIRED: &'static [(&'static str, &'static str)] = &[
        ("sft-model-path", "out/sft"),
        ("reward-model-path", "out/reward"),
        ("dataset", "prompts.jsonl"),
        ("output-dir", "out/ppo"),
    ];

    fn usual() -> Vec<(&'static str, Usual)> {
        let own = vec![
            ("total-episodes", Words("one pass over the prompts")),
            ("missing-eos-penalty", Words("off")),
            ("score-clip", Words("off")),
            ("kl-target", Words("off")),
            ("value-learning-rate", As("learning-rate")),
            ("cliprange-high", As("cliprange")),
            ("dual-clip", Words("off")),
            ("target-kl", Words("off")),
        ];
        [shared(ppo::LOGGING_STEPS, ppo::ADAM_EPSILON), own].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Options that clap has no default for and this table has no row for: paths alone, which have none.
    fn silent<T: Stage>() -> Vec<String> {
        let command = T::augment_args(clap::Command::new(T::NAME));
        let known = T::usual();
        let silent = |arg: &&clap::Arg| {
            arg.get_default_values().is_empty() && known.iter().all(|(name, _)| Some(*name) != arg.get_long())
        };
        let is_path = |arg: &clap::Arg| {
            arg.get_value_names()
                .is_some_and(|names| names.iter().all(|n| ["DIR", "FILE", "PATH"].contains(&n.as_str())))
        };
        let silent = command.get_arguments().filter(silent).filter(|arg| !is_path(arg));
        silent.map(|arg| arg.get_id().to_string()).collect()
    }

    #[test]
    fn every_option_has_a_default_or_says_what_stands_for_it() {
        let silent = [silent::<SftConfig>(), silent::<RewardConfig>(), silent::<PpoConfig>()];
        assert_eq!(silent, [const { Vec::<String>::new() }; 3], "give these a row in `usual`");
    }

    #[test]
    fn every_row_is_of_an_option_without_a_default() {
        fn check<T: Stage>() {
            let command = T::augment_args(clap::Command::new(T::NAME));
            let arg = |name: &str| command.get_arguments().find(|arg| arg.get_long() == Some(name)).unwrap();
            for (name, usual) in T::usual() {
                assert!(arg(name).get_default_values().is_empty(), "--{name} of {}", T::NAME);
                if let As(other) = usual {
                    assert!(!arg(other).get_default_values().is_empty(), "--{other} of {}", T::NAME);
                }
            }
            assert!(T::REQUIRED.iter().all(|(name, _)| arg(name).get_default_values().is_empty()));
        }
        check::<SftConfig>();
        check::<RewardConfig>();
        check::<PpoConfig>();
    }
}
