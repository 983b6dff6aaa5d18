//! The embedded job's kind of data is clean, and no thread changes what is found.

use super::*;
use crate::data::demo::{Task, demonstration, preference, tokenizer};
use crate::data::encode::{LossOn, PairOptions, PromptOptions, SftOptions};
use crate::random::{Philox, Stage as Draw};

fn rows(values: Vec<Value>) -> Vec<Result<Row>> {
    let row = |(index, value): (usize, Value)| {
        let Value::Object(fields) = value else { panic!("{value}") };
        Ok(Row { place: format!("a.jsonl:{}", index + 1), fields })
    };
    values.into_iter().enumerate().map(row).collect()
}

#[test]
fn the_embedded_jobs_kind_of_data_is_clean() {
    let task = Task::new();
    let mut random = Philox::new(42, Draw::Demo, 0, 0);
    let (mut texts, mut demonstrations, mut pairs, mut prompts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let said = |role: &str, content: &str| json!({ "role": role, "content": content });
    for request in task.train().iter().take(600) {
        let (answer, _) = demonstration(request, &mut random);
        let pair = preference(request, &mut random, 0.1);
        let prompt = json!([said("user", &request.prompt)]);
        demonstrations.push(json!({ "prompt": prompt, "completion": [said("assistant", &answer)] }));
        if pair.chosen != pair.rejected {
            let [chosen, rejected] = [&pair.chosen, &pair.rejected].map(|text| [said("assistant", text)]);
            pairs.push(json!({ "prompt": prompt, "chosen": chosen, "rejected": rejected }));
        }
        prompts.push(json!({ "prompt": prompt }));
        texts.extend([request.prompt.clone(), answer]);
    }
    let dir = tempfile::tempdir().unwrap();
    tokenizer::train(&texts).unwrap().save(dir.path().join("tokenizer.json"), false).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), tokenizer::config_json()).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let template = ChatTemplate::load(dir.path(), &tokenizer).unwrap();
    let sft = SftOptions { max_length: 128, loss_on: LossOn::Completion, append_eos: true, strict: false };
    for (job, values) in [
        (Job::Sft(sft), demonstrations),
        (Job::Reward(PairOptions { max_length: 128, strict: false }), pairs),
        (Job::Ppo(PromptOptions { context: 128, response_length: 40, strict: false }), prompts),
    ] {
        let all = rows(values);
        let mut at_once = Checker::new(job, &tokenizer, template.as_ref(), None);
        let mut one_by_one = Checker::new(job, &tokenizer, template.as_ref(), None);
        at_once.rows(all.clone()).unwrap();
        all.into_iter().for_each(|row| one_by_one.rows(vec![row]).unwrap());
        let [at_once, one_by_one] = [at_once, one_by_one].map(|checker| checker.close().unwrap());
        assert_eq!(at_once.counts(), [0, 0, 0], "{}", at_once.describe());
        assert_eq!(at_once.to_json(), one_by_one.to_json());
    }
}
