//! Rows -> examples: what is learnt, what is lost, and what is refused.

use super::super::test_model::{BOS, CHATML, EOS, IM_END, IM_START, load};
use super::*;
use serde_json::{Value, json};

const CONFIG: &str = r#"{"bos_token": "<s>", "eos_token": "</s>"}"#;
const CHAT_CONFIG: &str = r#"{"bos_token": "<s>", "eos_token": "<|im_end|>"}"#;

fn rows(values: &[Value]) -> Vec<Result<Row>> {
    let row = |(index, value): (usize, &Value)| {
        Ok(Row { place: format!("a.jsonl:{}", index + 1), fields: value.as_object().unwrap().clone() })
    };
    values.iter().enumerate().map(row).collect()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::compile(source, Map::new(), "test").unwrap()
}

fn options(loss_on: LossOn) -> SftOptions {
    SftOptions { max_length: 100, loss_on, append_eos: true, strict: false }
}

fn sft(values: &[Value], template: Option<&ChatTemplate>, options: &SftOptions) -> Result<Encoded<SftExample>> {
    let (_dir, tokenizer) = load(if template.is_some() { CHAT_CONFIG } else { CONFIG });
    let encoded = encode_sft(rows(values), &tokenizer, template, options)?;
    encoded.ledger.check()?;
    Ok(encoded)
}

/// What an example learns, as text, with what it masks in brackets.
fn learnt(example: &SftExample) -> String {
    let (_dir, tokenizer) = load(CONFIG);
    let mut text = String::new();
    let mut start = 0;
    while start < example.ids.len() {
        let same = example.is_target[start..].iter().take_while(|is| **is == example.is_target[start]).count();
        let part = tokenizer.decode(&example.ids[start..start + same], false).unwrap();
        text += &if example.is_target[start] { part } else { format!("[{part}]") };
        start += same;
    }
    text
}

#[test]
fn completions_texts_and_their_ends() {
    let values = [
        json!({"prompt": "Q the", "completion": " a x"}),
        json!({"prompt": "Q ", "completion": "a x", "id": 1}),
        json!({"prompt": "", "completion": "the</s>"}),
        json!({"text": "the x"}),
        json!({"text": "<s>the"}),
    ];
    let encoded = sft(&values, None, &options(LossOn::Completion)).unwrap();
    let texts: Vec<_> = encoded.examples.iter().map(learnt).collect();
    assert_eq!(texts, ["[<s>Q the] a x</s>", "[<s>Q a] x</s>", "[<s>]the</s>", "[<s>]the x</s>", "[<s>]the</s>"]);
    let ledger = encoded.ledger;
    assert_eq!((ledger.tokens_straddling, ledger.eos_appended, ledger.extra_columns["id"]), (1, 4, 1));
    assert_eq!((ledger.rows_in, ledger.rows_kept, ledger.conversations), (5, 5, 0));
    let all = sft(&values, None, &options(LossOn::All)).unwrap();
    assert_eq!(learnt(&all.examples[0]), "[<s>]Q the a x</s>");
    assert_eq!((all.ledger.tokens_straddling, all.ledger.tokens_masked), (0, 5));
    let error = sft(&values, None, &options(LossOn::Assistant)).unwrap_err();
    assert_eq!((error.id(), error.place()), ("loss-needs-conversation", Some("a.jsonl:1")));
}

#[test]
fn long_rows_are_cut_and_empty_ones_dropped() {
    let values = [
        json!({"prompt": "12", "completion": "345678"}),
        json!({"prompt": "12345678", "completion": "9"}),
        json!({"text": ""}),
        json!({"messages": []}),
        json!({"prompt": "1", "completion": ""}),
    ];
    let short = SftOptions { max_length: 5, ..options(LossOn::Completion) };
    let encoded = sft(&values, None, &short).unwrap();
    assert_eq!(learnt(&encoded.examples[0]), "[<s>12]34");
    let ledger = &encoded.ledger;
    assert_eq!((ledger.rows_cut, ledger.tokens_cut, ledger.tokens_dropped), (1, 5, 13));
    assert_eq!(ledger.tokens_dropped_by, [(Reason::Empty, 2), (Reason::NoTarget, 11)].into());
    assert_eq!((ledger.targets_in, ledger.targets_cut, ledger.targets_dropped), (9, 5, 2));
    assert_eq!(ledger.rows_dropped, [(Reason::Empty, 3), (Reason::NoTarget, 1)].into());
    let strict = SftOptions { strict: true, ..short };
    for (value, id) in values.iter().zip(["strict-row-cut", "strict-row-dropped", "strict-row-dropped"]) {
        let error = sft(std::slice::from_ref(value), None, &strict).unwrap_err();
        assert_eq!((error.id(), error.place()), (id, Some("a.jsonl:1")));
    }
    let error = sft(&values[1..], None, &short).unwrap_err();
    assert_eq!(error.id(), "dataset-nothing-left");
    assert!(error.to_string().contains("dropped: empty"), "{error}");
    assert_eq!(sft(&values, None, &SftOptions { max_length: 1, ..short }).unwrap_err().id(), "max-length");
}

#[test]
fn conversations_learn_the_assistant() {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let talk = [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")];
    let messages = [json!({"messages": talk})];
    let dialogue = [json!({"prompt": talk[..3], "completion": talk[3..]})];
    let chatml = template(CHATML);
    let tagged = CHATML.replace(
        "+ m.content + '<|im_end|>\\n' }}",
        "}}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}",
    );
    let tagged = tagged.replace("{% generation %}", "{% if m.role == 'assistant' %}{% generation %}");
    let tagged =
        tagged.replace("{% endgeneration %}", "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}");
    let tagged = template(&tagged);
    let text = |template, values: &[Value], loss_on| {
        learnt(&sft(values, Some(template), &options(loss_on)).unwrap().examples[0])
            .replace('\n', "/")
            .replace("<|im_", "<")
    };
    let by_prefix =
        "[<start|>user/a<end|>/<start|>assistant/]b<end|>/[<start|>user/c<end|>/<start|>assistant/]d<end|>/";
    assert_eq!(text(&chatml, &messages, LossOn::Completion), by_prefix);
    assert_eq!(text(&chatml, &dialogue, LossOn::Assistant), by_prefix);
    let by_tags =
        "[<start|>user/a<end|>/<start|>assistant/]b<end|>[/<start|>user/c<end|>/<start|>assistant/]d<end|>[/]";
    assert_eq!(text(&tagged, &messages, LossOn::Completion), by_tags);
    let last = "[<start|>user/a<end|>/<start|>assistant/b<end|>/<start|>user/c<end|>/<start|>assistant/]d<end|>/";
    assert_eq!(text(&chatml, &dialogue, LossOn::Completion), last);
    let all = "[<start|>]user/a<end|>/<start|>assistant/b<end|>/<start|>user/c<end|>/<start|>assistant/d<end|>/";
    assert_eq!(text(&chatml, &messages, LossOn::All), all);
    let first = [json!({"messages": talk[1..2]})];
    assert_eq!(text(&chatml, &first, LossOn::Completion), "[<start|>assistant/]b<end|>/");
}

#[test]
fn templates_that_do_not_show_their_turns() {
    let turns = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let messages = [json!({"messages": turns})];
    let dialogue = [json!({"prompt": [turns[0]], "completion": [turns[1]]})];
    let counting = template("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}");
    for values in [&messages, &dialogue] {
        let error = sft(values, Some(&counting), &options(LossOn::Completion)).unwrap_err();
        assert_eq!((error.id(), error.place()), ("template-not-prefix", Some("a.jsonl:1")));
    }
    let all = sft(&messages, Some(&counting), &options(LossOn::All)).unwrap();
    assert!(all.ledger.template_never_writes_eos());
    assert_eq!(sft(&messages, None, &options(LossOn::All)).unwrap_err().id(), "template-missing");
    let tagged = "{{ messages | length }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}\
                  {{ m.content }}{% endgeneration %}<|im_end|>{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let encoded = sft(&dialogue, Some(&template(tagged)), &options(LossOn::Completion)).unwrap();
    assert_eq!(learnt(&encoded.examples[0]), "[2a]b[<|im_end|>]");
    // The template writes an EOS, but outside what is learnt: the model would never end its answer.
    assert!(encoded.ledger.template_never_writes_eos());
    let refusing = template("{{ raise_exception('no ' + messages[0].role) }}");
    let error = sft(&messages, Some(&refusing), &options(LossOn::All)).unwrap_err();
    assert_eq!((error.id(), error.place()), ("template-raised", Some("a.jsonl:1")));
    assert!(error.to_string().contains("no user"), "{error}");
    let silent = [json!({"messages": [turns[0]]})];
    assert_eq!(sft(&silent, Some(&counting), &options(LossOn::Completion)).unwrap_err().id(), "dataset-nothing-left");
}

#[test]
fn pairs() {
    let (_dir, tokenizer) = load(CONFIG);
    let encode = |values: &[Value], max_length, strict| {
        encode_pairs(rows(values), &tokenizer, None, &PairOptions { max_length, strict })
    };
    let values = [
        json!({"prompt": "1", "chosen": "2", "rejected": "3</s>", "margin": 0.5}),
        json!({"chosen": "12", "rejected": "12"}),
        json!({"chosen": "1", "rejected": "2345"}),
        json!({"chosen": "", "rejected": "2"}),
        json!({"prompt": "1", "chosen": "", "rejected": "2"}),
    ];
    let encoded = encode(&values, 4, false).unwrap();
    let text = |ids: &[i32]| tokenizer.decode(ids, false).unwrap();
    let texts: Vec<_> =
        encoded.examples.iter().map(|pair| (text(&pair.chosen), text(&pair.rejected), pair.margin)).collect();
    let pair = |chosen: &str, rejected: &str, margin| (chosen.to_string(), rejected.to_string(), margin);
    assert_eq!(
        texts,
        [pair("<s>12</s>", "<s>13</s>", 0.5), pair("<s>12</s>", "<s>12</s>", 0.0), pair("<s>1</s>", "<s>12</s>", 0.0)]
    );
    let ledger = encoded.ledger;
    assert_eq!(ledger.rows_dropped, [(Reason::Empty, 1), (Reason::TooLong, 1)].into());
    assert_eq!((ledger.identical_pairs, ledger.tokens_kept, ledger.tokens_in), (1, 23, 35));
    assert_eq!(encode(&values[2..3], 4, true).unwrap_err().id(), "strict-row-dropped");
    let ask = json!({"role": "user", "content": "a"});
    let answer = |text: &str| json!({"role": "assistant", "content": text});
    let talk = [json!({"chosen": [ask, answer("b")], "rejected": [ask, answer("c")]})];
    let chatml = template(CHATML);
    let options = PairOptions { max_length: 100, strict: true };
    let encoded = encode_pairs(rows(&talk), &tokenizer, Some(&chatml), &options).unwrap();
    assert!(text(&encoded.examples[0].rejected).ends_with("assistant\nc<|im_end|>\n"));
    // This tokenizer's EOS is not what the template writes.
    assert!(encoded.ledger.template_never_writes_eos());
}

#[test]
fn prompts() {
    let (_dir, tokenizer) =
        load(r#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "add_eos_token": true}"#);
    let chatml = template(CHATML);
    let encode = |values: &[Value], context| {
        let options = PromptOptions { context, response_length: 4, strict: false };
        encode_prompts(rows(values), &tokenizer, Some(&chatml), &options)
    };
    let ask = json!({"role": "user", "content": "a"});
    let values = [json!({"prompt": "12"}), json!({"prompt": [ask]}), json!({"prompt": ""}), json!({"prompt": []})];
    let encoded = encode(&values, 100).unwrap();
    let [plain, chat] = encoded.examples.as_slice() else { panic!("{encoded:?}") };
    assert_eq!((plain.ids.len(), plain.ids[0], plain.text.as_str()), (3, BOS, "12"));
    assert_eq!((chat.ids[0], chat.text.as_str()), (IM_START, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"));
    assert!(!chat.ids.contains(&EOS) && chat.ids.contains(&IM_END));
    assert_eq!((encoded.ledger.rows_dropped_total(), encoded.ledger.eos_appended), (2, 0));
    let error = encode(&values, 6).unwrap_err();
    assert_eq!((error.id(), error.place()), ("prompt-too-long", Some("a.jsonl:1")));
    assert!(error.to_string().contains("a.jsonl:1 has 3, a.jsonl:2 has"), "{error}");
    assert_eq!(encode(&values, 4).unwrap_err().id(), "response-length");
    let answered = [json!({"prompt": [ask, {"role": "assistant", "content": "b"}]})];
    assert_eq!(encode(&answered, 100).unwrap_err().id(), "prompt-ends-with-assistant");
}

#[test]
fn a_model_without_eos_is_refused() {
    let (_dir, tokenizer) = load("{}");
    let error = encode_sft(rows(&[json!({"text": "a"})]), &tokenizer, None, &options(LossOn::All)).unwrap_err();
    assert_eq!((error.id(), error.place()), ("eos-missing", Some("a.jsonl:1")));
}

#[test]
fn text_that_the_tokenizer_drops_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file =
        r#"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "e": 1}, "merges": []}}"#;
    std::fs::write(dir.path().join("tokenizer.json"), file).unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 1}"#).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let values = rows(&[json!({"text": "aéa x"}), json!({"text": "xyz"})]);
    let encoded = encode_sft(values.clone(), &tokenizer, None, &options(LossOn::All)).unwrap();
    assert_eq!(encoded.examples[0].ids, [0, 0, 1]);
    assert_eq!((encoded.ledger.characters_lost, encoded.ledger.rows_dropped[&Reason::Empty]), (5, 1));
    let strict = SftOptions { strict: true, ..options(LossOn::All) };
    let error = encode_sft(values, &tokenizer, None, &strict).unwrap_err();
    assert_eq!((error.id(), error.place()), ("strict-text-lost", Some("a.jsonl:1")));
}

#[test]
fn boundaries_agree_with_the_fixtures() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let tokenizer = Tokenizer::load(&root.join("models/gpt2_tied")).unwrap();
    let file: Value = serde_json::from_str(&std::fs::read_to_string(root.join("texts.json")).unwrap()).unwrap();
    for case in file["texts"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(json!(encoding.ids), case["ids"]);
        let characters = |bytes: usize| text[..bytes].chars().count();
        let offsets: Vec<_> = encoding.offsets.iter().map(|(from, to)| [characters(*from), characters(*to)]).collect();
        assert_eq!(json!(offsets), case["offsets"]);
        assert_eq!(json!(tokenizer.decode(&encoding.ids, false).unwrap()), case["decoded"]);
        assert_eq!(json!(tokenizer.decode(&encoding.ids, true).unwrap()), case["decoded_without_special"]);
    }
    for case in file["boundaries"].as_array().unwrap() {
        let [prompt, completion] = ["prompt", "completion"].map(|name| case[name].as_str().unwrap());
        let prepared = Prepared::plain(format!("{prompt}{completion}"), prompt.len());
        let encoding = tokenizer.encode(&prepared.text, false).unwrap();
        let mask: Vec<_> = encoding.offsets.iter().map(|(start, _)| i32::from(prepared.is_learnt(*start))).collect();
        assert_eq!((json!(encoding.ids), json!(mask)), (case["ids"].clone(), case["completion_mask"].clone()));
        assert_eq!(prepared.count_straddling(&encoding.offsets) > 0, case["straddles"].as_bool().unwrap());
    }
}
