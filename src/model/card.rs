//! The model card, `README.md` of a saved model: what it is, what it was made from, how to load it, and what to mind.
//! Text from outside (paths, data set names) is escaped, so that it cannot become markup or metadata.

use std::fmt::Write as _;

use super::config::{Head, ModelConfig};

/// The stage that made a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Supervised fine-tuning.
    Sft,
    /// Reward-model training.
    Reward,
    /// PPO: the policy, or the value model beside it.
    Ppo,
}

impl Stage {
    /// The tag, and the stage in words.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Sft => ("sft", "supervised fine-tuning"),
            Self::Reward => ("reward-model", "reward-model training on preferences"),
            Self::Ppo => ("ppo", "reinforcement learning from human feedback with PPO"),
        }
    }
}

/// The facts of a model card.
#[derive(Debug, Clone)]
pub struct Card<'a> {
    /// The name of the model: usually the output directory's.
    pub name: &'a str,
    /// What made it.
    pub stage: Stage,
    /// The head that it has.
    pub head: Head,
    /// The model that it was trained from.
    pub source: &'a str,
    /// The data sets, by name or path.
    pub data: &'a [String],
    /// Settings, in the order to show.
    pub settings: &'a [(String, String)],
    /// Measured results, in the order to show.
    pub results: &'a [(String, String)],
    /// The day, if it is to be shown; it is outside the promise of equal bytes.
    pub date: Option<&'a str>,
}

impl Card<'_> {
    /// The text. `config` is that of the saved model; its head need not be.
    pub fn render(&self, config: &ModelConfig) -> String {
        let (tag, stage) = self.stage.words();
        let score = self.head == Head::Score;
        let task = if score { "text-classification" } else { "text-generation" };
        let mut text =
            format!("---\nlibrary_name: transformers\npipeline_tag: {task}\ntags:\n- rlhf\n- {tag}\n---\n\n");
        let class = config.architecture.class(self.head);
        let size = ModelConfig { head: self.head, ..config.clone() }.parameters();
        let version = env!("CARGO_PKG_VERSION");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# {}\n", escaped(self.name));
        let _ = writeln!(text, "Made by {stage} with rlhf {version}: `{class}`, {size} parameters.\n");
        let _ = writeln!(text, "- trained from: {}", escaped(self.source));
        for data in self.data {
            let _ = writeln!(text, "- data: {}", escaped(data));
        }
        if let Some(date) = self.date {
            let _ = writeln!(text, "- date: {}", escaped(date));
        }
        text.push_str(&usage(score));
        text.push_str(&table("Results", self.results));
        text.push_str(&table("Settings", self.settings));
        if score {
            text.push_str(&self.score_notes(config));
        }
        text
    }

    /// What a user of the scores must know.
    fn score_notes(&self, config: &ModelConfig) -> String {
        let mut text = String::from("\n## Reading the score\n\nThe score is one number for the whole text, ");
        text.push_str("taken at its last token (the end-of-text token, if the text has one). ");
        text.push_str("Only differences between scores of answers to the same prompt have a meaning.\n");
        let pad = config.pad_token_id.or(config.eos_token_ids.first().copied());
        if pad.is_some_and(|pad| config.eos_token_ids.contains(&pad)) {
            text.push_str(
                "\nIn this model the padding token is also an end-of-text token. transformers finds the last token by \
                 looking for padding, so there a text that ends with this token is scored one token earlier than \
                 it was in training.\n",
            );
        }
        text
    }
}

/// How to load the model.
fn usage(score: bool) -> String {
    let (class, last) = if score {
        ("AutoModelForSequenceClassification", "score = model(**tokenizer(text, return_tensors=\"pt\")).logits[0, 0]")
    } else {
        (
            "AutoModelForCausalLM",
            "print(tokenizer.decode(model.generate(**tokenizer(text, return_tensors=\"pt\"), max_new_tokens=64)[0]))",
        )
    };
    format!(
        "\n## Usage\n\n```python\nfrom transformers import AutoTokenizer, {class}\n\n\
         tokenizer = AutoTokenizer.from_pretrained(\"PATH\")\nmodel = {class}.from_pretrained(\"PATH\")\n{last}\n```\n"
    )
}

/// A table of two columns; nothing without rows.
fn table(title: &str, rows: &[(String, String)]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!("\n## {title}\n\n| name | value |\n|---|---|\n");
    for (name, value) in rows {
        let _ = writeln!(text, "| {} | {} |", escaped(name), escaped(value));
    }
    text
}

/// One line of text in which nothing is markup.
fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars().take(400) {
        match c {
            '<' => line.push_str("&lt;"),
            '>' => line.push_str("&gt;"),
            '&' => line.push_str("&amp;"),
            '\\' | '`' | '*' | '[' | ']' | '|' | '#' | '!' => line.extend(['\\', c]),
            c if c.is_control() => line.push(' '),
            c => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(eos: i32) -> ModelConfig {
        let text = format!(
            r#"{{"architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16,
                "vocab_size": 10, "pad_token_id": 3, "eos_token_id": {eos}}}"#
        );
        ModelConfig::parse(&text, "x").unwrap()
    }

    fn card<'a>(head: Head, settings: &'a [(String, String)]) -> Card<'a> {
        let stage = if head == Head::Score { Stage::Reward } else { Stage::Ppo };
        Card { name: "out", stage, head, source: "base", data: &[], settings, results: &[], date: Some("2026-01-01") }
    }

    #[test]
    fn a_card_says_what_the_model_is() {
        let settings = [("seed".to_owned(), "1".to_owned())];
        let text = card(Head::Language, &settings).render(&config(2));
        for part in
            ["pipeline_tag: text-generation", "- ppo", "# out", "`GPT2LMHeadModel`", "| seed | 1 |", "2026-01-01"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(text.starts_with("---\nlibrary_name: transformers\n") && !text.contains("## Results"));
    }

    #[test]
    fn a_reward_model_whose_padding_ends_texts_says_so() {
        let warned = |eos| card(Head::Score, &[]).render(&config(eos)).contains("one token earlier");
        assert!(warned(3) && !warned(2));
        assert!(card(Head::Score, &[]).render(&config(2)).contains("AutoModelForSequenceClassification"));
    }

    #[test]
    fn text_from_outside_stays_text() {
        let evil = "a\n---\n<script> | [x](y) \u{1b}[31m";
        assert_eq!(escaped(evil), "a --- &lt;script&gt; \\| \\[x\\](y)  \\[31m");
        let text = Card { source: evil, ..card(Head::Language, &[]) }.render(&config(2));
        assert_eq!(text.matches("\n---\n").count(), 1, "only the metadata's end");
    }
}
