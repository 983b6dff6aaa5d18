//! The written files hold every key once, with what it means, takes and is by default.

use super::*;

/// What is missing in `text` of the keys of a stage.
fn missing<T: Stage>(text: &str) -> Vec<String> {
    let paragraphs: Vec<&str> = text.split("\n\n").collect();
    let mut found = Vec::new();
    for key in keys::<T>() {
        let is_key = |line: &str| line.trim_start_matches('#').starts_with(&format!("{} =", key.name));
        let of_key: Vec<&&str> = paragraphs.iter().filter(|p| p.lines().last().is_some_and(is_key)).collect();
        let [paragraph] = of_key[..] else {
            found.push(format!("{} stands {} times", key.name, of_key.len()));
            continue;
        };
        let words = paragraph.replace("\n#", "").replace("  ", " ");
        let is_told = paragraph.contains("# takes: ") && (words.contains("; default: ") || words.contains("; needed"));
        if !is_told || key.help.is_empty() || key.takes.is_empty() || !words.contains(&key.help) {
            found.push(format!("{} is not explained: {paragraph}", key.name));
        }
    }
    found
}

#[test]
fn every_key_is_written_once_and_explained() {
    let none: [String; 0] = [];
    assert_eq!(missing::<SftConfig>(&What::Sft.text()), none);
    assert_eq!(missing::<RewardConfig>(&What::Reward.text()), none);
    assert_eq!(missing::<PpoConfig>(&What::Ppo.text()), none);
    // Controls: a key that is gone, one that stands twice, one without its range.
    let text = What::Sft.text();
    for changed in [
        text.replace("#seed = 42\n", ""),
        text.replace("#seed = 42\n", "#seed = 42\n\n#seed = 42\n"),
        text.replace("takes: whole number of at least 0; default: 42", ""),
    ] {
        assert_eq!(missing::<SftConfig>(&changed).len(), 1);
    }
}

#[test]
fn the_file_of_a_run_shares_what_means_the_same() {
    let text = What::Run.text();
    let [top, sft, reward, ppo] = {
        let mut parts = text.splitn(4, "\n[");
        [(); 4].map(|()| parts.next().unwrap())
    };
    let has =
        |part: &str, key: &str| part.lines().any(|line| line.trim_start_matches('#').starts_with(&format!("{key} =")));
    for key in ["seed", "model_name_or_path", "output_dir", "warmup_steps", "max_length", "eval_steps"] {
        let found = [top, sft, reward, ppo].map(|part| has(part, key));
        assert_eq!(found, [true, false, false, false], "{key}");
    }
    for key in ["dataset", "learning_rate", "adam_epsilon", "logging_steps"] {
        assert_eq!([top, sft, reward, ppo].map(|part| has(part, key)), [false, true, true, true], "{key}");
    }
    for (part, stage) in [(sft, What::Sft), (reward, What::Reward), (ppo, What::Ppo)] {
        for key in stage.text().lines().filter_map(|line| line.trim_start_matches('#').split_once(" =")) {
            let is_key = !key.0.contains(' ') && !key.0.is_empty();
            assert!(!is_key || has(top, key.0) || has(part, key.0), "{} of {}", key.0, stage.name());
        }
    }
    assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
}
