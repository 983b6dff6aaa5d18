//! `rlhf data check` and `rlhf data preview`: every lint fires on a seeded fault and is silent on its good twin, good
//! data is clean, the exit codes, and what a preview looks like, to the byte.

use serde_json::{Value, json};

use crate::support::{Room, completions, conversations, pairs, prompts};

/// ChatML, as the fixtures have it.
const CHATML: &str = include_str!("fixtures/chat_templates/chatml.jinja");

/// A room with models: `plain` has no chat template, `chat` has ChatML, and the others each have one fault.
fn room() -> Room {
    let room = Room::new();
    room.model("plain", "gpt2_tied");
    for name in ["chat", "endless", "padded", "unasked", "deaf", "dated"] {
        room.model(name, "qwen2_tied");
        room.write(&format!("{name}/generation_config.json"), "{\"eos_token_id\": 2}");
        room.write(&format!("{name}/chat_template.jinja"), CHATML);
    }
    let endless = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '\n' }}{% endfor %}";
    room.write("endless/chat_template.jinja", endless);
    room.write("padded/chat_template.jinja", endless);
    room.edit("padded/tokenizer_config.json", |config| drop(config.insert("pad_token".into(), "<|im_end|>".into())));
    let (unasked, _) = CHATML.split_once("{% if add_generation_prompt %}").unwrap();
    room.write("unasked/chat_template.jinja", unasked);
    let deaf = CHATML.replace("{{ '<|im_start|>'", "{% if message.role != 'system' %}{{ '<|im_start|>'");
    room.write("deaf/chat_template.jinja", deaf.replace("{% endfor %}", "{% endif %}{% endfor %}"));
    room.write("dated/chat_template.jinja", format!("{{{{ strftime_now('%Y') }}}}{CHATML}"));
    // A tokenizer that drops what it does not know.
    room.model("lossy", "gpt2_tied");
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "e": 1 }, "merges": [] });
    let tokenizer = json!({ "version": "1.0", "added_tokens": [], "model": model });
    room.write("lossy/tokenizer.json", tokenizer.to_string());
    room.write("lossy/tokenizer_config.json", "{}");
    room.write("lossy/generation_config.json", "{\"eos_token_id\": 1}");
    room
}

/// What a check says of a file, as JSON.
fn check(room: &Room, model: &str, rows: &[Value], more: &str) -> Value {
    room.rows("rows.jsonl", rows);
    let outcome = room.run(&format!("data check rows.jsonl --model-name-or-path {model} --json {more}"));
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {}", outcome.stderr));
    let (errors, warnings) = (report["errors"].as_u64().unwrap(), report["warnings"].as_u64().unwrap());
    let fails = errors > 0 || more.contains("--strict") && warnings > 0;
    assert_eq!(outcome.code, Some(if fails { 3 } else { 0 }), "{}", outcome.stderr);
    report
}

/// The names of what was found in both files.
fn found(report: &Value) -> Vec<String> {
    let files = ["dataset", "eval_dataset"].map(|role| report[role]["findings"].as_array().cloned());
    files.into_iter().flatten().flatten().map(|finding| finding["id"].as_str().unwrap().to_owned()).collect()
}

fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

fn talk(turns: &[(&str, &str)]) -> Vec<Value> {
    turns.iter().map(|(role, content)| turn(role, content)).collect()
}

fn text(prompt: &str, completion: &str) -> Value {
    json!({ "prompt": prompt, "completion": completion })
}

fn pair(chosen: &str, rejected: &str) -> Value {
    json!({ "prompt": "Q:", "chosen": chosen, "rejected": rejected })
}

/// The good model with good rows, the bad model with bad ones (beside them), and the options of both.
struct Twin {
    id: &'static str,
    models: [&'static str; 2],
    good: Value,
    bad: Value,
    options: [&'static str; 2],
}

fn rows_with(id: &'static str, model: &'static str, good: Value, bad: Value) -> Twin {
    Twin { id, models: [model; 2], good, bad, options: [""; 2] }
}

/// The same row, for two models.
fn models(id: &'static str, models: [&'static str; 2], row: &Value) -> Twin {
    Twin { id, models, good: row.clone(), bad: row.clone(), options: [""; 2] }
}

/// The same row, under two options.
fn options(id: &'static str, row: &Value, options: [&'static str; 2]) -> Twin {
    Twin { id, models: ["plain"; 2], good: row.clone(), bad: row.clone(), options }
}

fn faults_of_texts() -> Vec<Twin> {
    let chat = json!({ "messages": talk(&[("user", "hi"), ("assistant", "ho")]) });
    let silent = json!({ "messages": talk(&[("user", "hi")]) });
    let told = json!({ "messages": talk(&[("system", "be good"), ("user", "hi"), ("assistant", "ho")]) });
    Vec::from([
        rows_with("empty-row", "plain", text("a", " b"), text("a", "")),
        rows_with("all-masked", "chat", chat.clone(), silent),
        models("missing-eos", ["chat", "endless"], &chat),
        models("pad-is-eos", ["endless", "padded"], &chat),
        rows_with(
            "double-bos",
            "plain",
            json!({ "text": "<|endoftext|>a b" }),
            json!({ "text": "<|endoftext|><|endoftext|>a" }),
        ),
        models("role-not-rendered", ["chat", "deaf"], &told),
        options("cut-by-max-length", &text("a b", " c d e f"), ["--max-length 32", "--max-length 8"]),
        rows_with("straddling-boundary", "plain", text("yo", " u"), text("yo", "u")),
        rows_with("unknown-token", "plain", text("a", " b"), text("a", " \u{8a9e}")),
        rows_with("lost-character", "lossy", text("a", "ea"), text("a", "xa")),
        models("dated-template", ["chat", "dated"], &chat),
        rows_with("unused-column", "plain", text("a", " b"), json!({ "text": "a", "id": 7 })),
        rows_with("dataset-columns", "plain", text("a", " b"), json!({ "question": "a" })),
        rows_with(
            "dataset-column-type",
            "plain",
            text("a", " b"),
            text("a", " b").as_object().map(|_| json!({ "text": 7 })).unwrap(),
        ),
        models("template-missing", ["chat", "plain"], &chat),
    ])
}

fn faults_of_pairs_and_prompts() -> Vec<Twin> {
    let ask = json!({ "prompt": talk(&[("user", "hi")]) });
    let written = |end: &str| json!({ "prompt": format!("<|im_start|>user\nhi<|im_end|>\n{end}") });
    let [chosen, rejected] = ["yes", "no"].map(|answer| talk(&[("user", "hi"), ("assistant", answer)]));
    let talks = json!({ "chosen": chosen, "rejected": rejected });
    let short = "--stage ppo --response-length 8";
    Vec::from([
        rows_with("empty-chosen", "plain", pair(" a", " b"), pair("", " b")),
        rows_with("empty-rejected", "plain", pair(" a", " b"), pair(" a", " ")),
        rows_with("identical-pair", "plain", pair(" a", " b"), pair(" a", " a")),
        options("dropped-by-max-length", &pair(" a b c d e f", " b"), ["--max-length 32", "--max-length 8"]),
        models("missing-eos", ["chat", "endless"], &talks),
        rows_with("ends-behind-eos", "chat", pair(" a", " b"), talks),
        rows_with("repeated-prompt", "plain", json!({ "prompt": "b" }), json!({ "prompt": "seed" })),
        models("missing-generation-prompt", ["chat", "unasked"], &ask),
        rows_with(
            "missing-generation-prompt",
            "chat",
            written("<|im_start|>assistant\n"),
            written("<|im_start|>assistant"),
        ),
        rows_with("missing-generation-prompt", "chat", ask.clone(), written("")),
        rows_with("plain-prompt", "chat", ask, json!({ "prompt": "hi" })),
        options("prompt-too-long", &json!({ "prompt": "a b c d e f g h" }), [short, "--response-length 53"]),
        rows_with(
            "prompt-ends-with-assistant",
            "chat",
            json!({ "prompt": talk(&[("user", "hi")]) }),
            json!({ "prompt": chosen }),
        ),
    ])
}

#[test]
fn each_lint_fires_on_its_fault_and_is_silent_on_the_good_twin() {
    let room = room();
    for twin in faults_of_texts().into_iter().chain(faults_of_pairs_and_prompts()) {
        let Twin { id, models, good, bad, options } = twin;
        // A row of the kind that is good for every model and stage, so that something is left.
        let stage = if good.get("chosen").is_some() || bad.get("chosen").is_some() && bad.get("rejected").is_some() {
            "reward"
        } else if good.get("completion").is_none() && good.get("prompt").is_some() {
            "ppo"
        } else {
            "sft"
        };
        let with = |options: &str| {
            if options.contains("--stage") { options.to_owned() } else { format!("--stage {stage} {options}") }
        };
        let seed = if id == "repeated-prompt" { Vec::from([json!({ "prompt": "seed" })]) } else { Vec::new() };
        for (is_bad, row) in [(false, &good), (true, &bad)] {
            let index = usize::from(is_bad);
            let rows = [seed.as_slice(), std::slice::from_ref(row)].concat();
            let report = check(&room, models[index], &rows, &with(options[index]));
            let ids = found(&report);
            assert_eq!(ids.iter().any(|found| found == id), is_bad, "{id}: {ids:?}\n{report:#}");
            let findings = report["dataset"]["findings"].as_array().unwrap();
            let finding = findings.iter().find(|finding| finding["id"] == id);
            if let Some(finding) = finding {
                assert!(finding["count"].as_u64().unwrap() <= 1 && !finding["fix"].as_str().unwrap().is_empty());
            }
        }
    }
}

/// What needs several rows, or two files.
#[test]
fn repetitions_leaks_and_lengths() {
    let room = room();
    let rows = completions(6);
    assert_eq!(found(&check(&room, "plain", &rows, "")), Vec::<String>::new());
    let twice = check(&room, "plain", &[&rows[..], &rows[2..3]].concat(), "");
    assert_eq!(found(&twice), ["duplicate-row"]);
    assert_eq!(twice["dataset"]["findings"][0]["rows"], json!(["rows.jsonl:7 (as row 3)"]));
    let held_out = |held: &[Value]| {
        room.rows("held.jsonl", held);
        found(&check(&room, "plain", &rows, "--eval-dataset held.jsonl"))
    };
    assert_eq!(held_out(&[text("new", " one")]), Vec::<String>::new());
    assert_eq!(held_out(&rows[..1]), ["eval-row-in-training"]);
    assert_eq!(held_out(&[text("Say 0: ", "more")]), ["eval-prompt-in-training"]);
    // An instruction that all rows share is no leak.
    let same: Vec<Value> = (0..30).map(|i| text("Go on:", &format!(" {i}"))).collect();
    room.rows("held.jsonl", &[text("Go on:", " x")]);
    assert_eq!(found(&check(&room, "plain", &same, "--eval-dataset held.jsonl")), Vec::<String>::new());
    let biased = |share: usize| {
        let row = |i: usize| {
            let [long, short] = [format!(" long {i}"), format!(" {i}")];
            if i % 10 < share { pair(&long, &short) } else { pair(&short, &long) }
        };
        check(&room, "plain", &(0..60).map(row).collect::<Vec<_>>(), "")
    };
    assert_eq!(found(&biased(5)), Vec::<String>::new());
    let report = biased(9);
    assert_eq!(found(&report), ["length-bias"]);
    let what = report["dataset"]["findings"][0]["what"].as_str().unwrap().to_owned();
    assert!(what.contains("longer in 90.0 % of 60 pairs, shorter in 10.0 %, by +4.0 tokens"), "{what}");
    assert_eq!(found(&check(&room, "plain", &[text("a", ""), text("b", "")], "")), ["nothing-left", "empty-row"]);
    room.write(
        "held.jsonl",
        "{\"prompt\": \"a\", \"completion\": \" b\"}\n{\n7\n{\"prompt\": \"c\", \"completion\": \" d\"}\n",
    );
    let report = check(&room, "plain", &rows, "--eval-dataset held.jsonl");
    assert_eq!(found(&report), ["dataset-invalid-json", "dataset-not-an-object"]);
    assert_eq!((&report["eval_dataset"]["rows"], &report["eval_dataset"]["ledger"]["rows_in"]), (&json!(4), &json!(2)));
}

#[test]
fn good_data_is_clean_on_every_fixture() {
    let room = Room::new();
    for fixture in ["gpt2_tied", "gpt2_bf16", "llama_untied_gqa", "qwen2_tied", "qwen3_tied", "gpt2_reward"] {
        room.model(fixture, fixture);
        for (rows, more) in [(completions(12), ""), (pairs(12), "")] {
            let report = check(&room, fixture, &rows, more);
            assert_eq!((found(&report), &report["verdict"]), (Vec::new(), &json!("verdict: clean")), "{fixture}");
        }
    }
    assert_eq!(found(&check(&room, "gpt2_tied", &prompts(12), "")), Vec::<String>::new());
    let asks: Vec<Value> = (0..4).map(|i| json!({ "prompt": talk(&[("user", &format!("Say {i}"))]) })).collect();
    for fixture in ["llama_untied_gqa", "qwen2_tied", "qwen3_tied"] {
        assert_eq!(found(&check(&room, fixture, &asks, "")), Vec::<String>::new(), "{fixture}");
    }
    room.write("qwen2_tied/chat_template.jinja", CHATML);
    assert_eq!(found(&check(&room, "qwen2_tied", &conversations(6), "")), Vec::<String>::new());
    // These say where an answer begins by the end of the user's turn.
    room.write("qwen2_tied/chat_template.jinja", include_str!("fixtures/chat_templates/inst.jinja"));
    room.edit("qwen2_tied/tokenizer_config.json", |config| {
        drop(config.insert("bos_token".into(), "<|endoftext|>".into()))
    });
    assert_eq!(found(&check(&room, "qwen2_tied", &asks, "")), Vec::<String>::new());
}

#[test]
fn exit_codes_and_the_report_in_words() {
    let room = room();
    room.rows("good.jsonl", &completions(4));
    room.rows("warned.jsonl", &[completions(4), completions(1)].concat());
    room.rows("bad.jsonl", &[completions(4), Vec::from([json!({ "text": 7 })])].concat());
    for (file, more, code, end) in [
        ("good", "", 0, "verdict: clean"),
        ("good", "--strict", 0, "verdict: clean"),
        ("warned", "", 0, "verdict: it would train, and probably not what is meant (1 warning)"),
        ("warned", "--strict", 3, "verdict: it would train, and probably not what is meant (1 warning)"),
        ("bad", "", 3, "verdict: training would stop (1 error)"),
        ("bad", "--strict", 3, "verdict: training would stop (1 error)"),
    ] {
        let outcome = room.run(&format!("data check {file}.jsonl --model-name-or-path plain {more}"));
        assert_eq!(outcome.code, Some(code), "{file} {more}: {}", outcome.stderr);
        assert_eq!(outcome.stdout.lines().last(), Some(end), "{file} {more}");
        assert_eq!(outcome.stderr.contains("[data-check]"), code == 3, "{}", outcome.stderr);
        let guess = "for `rlhf sft`, as the columns `prompt` and `completion` suggest; model plain, 64 positions";
        assert!(outcome.stdout.contains(guess) && outcome.stdout.contains("  <- as set\n"), "{}", outcome.stdout);
    }
    for (line, id) in [
        ("check good.jsonl --model-name-or-path plain --response-length 4", "option-unused"),
        ("check good.jsonl --model-name-or-path plain --stage ppo --max-length 8", "option-unused"),
        ("check good.jsonl --model-name-or-path plain --stage ppo --response-length 64", "response-length"),
        ("check good.jsonl --model-name-or-path plain --max-length 65", "context-exceeded"),
        ("preview good.jsonl --model-name-or-path plain --rows 2,9", "row-missing"),
    ] {
        let outcome = room.run(&format!("data {line}"));
        assert!(outcome.code == Some(2) && outcome.stderr.contains(id), "{line}: {}", outcome.stderr);
    }
    let outcome = room.run("data preview good.jsonl --model-name-or-path plain --rows 0");
    assert!(outcome.code == Some(2) && outcome.stderr.contains("2,7,10-12"), "{}", outcome.stderr);
}

/// The ledger of a check is the one of training, and its sums are the input's.
#[test]
fn the_ledger_is_that_of_training() {
    let room = room();
    let rows = [completions(6), Vec::from([text("a", ""), text(&"long ".repeat(20), " b")])].concat();
    let report = check(&room, "plain", &rows, "--max-length 20");
    let ledger = &report["dataset"]["ledger"];
    let line = "sft --model-name-or-path plain --dataset rows.jsonl --max-length 20 --max-steps 1 --output-dir out";
    room.run(line).ok();
    assert_eq!(&room.json("out/run.json")["dataset"], ledger);
    let number = |name: &str| ledger[name].as_u64().unwrap();
    let sum = |name: &str| ledger[name].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum::<u64>();
    assert_eq!(number("rows_in"), number("rows_kept") + sum("rows_dropped"));
    assert_eq!(number("tokens_in"), number("tokens_kept") + number("tokens_cut") + sum("tokens_dropped_by"));
    assert_eq!(number("tokens_kept"), number("tokens_target") + sum("tokens_masked_by"));
    assert_eq!(number("targets_in"), number("tokens_target") + number("targets_cut") + number("targets_dropped"));
    assert!(number("targets_cut") > 0 && number("targets_dropped") > 0 && sum("tokens_dropped_by") > 100, "{ledger}");
}

/// What a preview shows, without its head and its legend.
fn shown(room: &Room, model: &str, rows: &[Value], more: &str) -> String {
    room.rows("rows.jsonl", rows);
    let outcome = room.run(&format!("data preview rows.jsonl --model-name-or-path {model} {more}")).ok();
    let text = outcome.stdout.split_once("\n\n").unwrap().1.to_owned();
    text.split_once("legend:\n").unwrap().0.trim_end().to_owned()
}

#[test]
fn previews_look_like_this() {
    let room = room();
    let chat = json!({ "messages": talk(&[("user", "the one"), ("assistant", "a\nb")]) });
    let example = "\
row 1  rows.jsonl:1: 35 tokens: 5 learnt, 30 masked
  . ⟨<|im_start|>⟩│u│s│er│\\n│
  . the│ │o│n│e│⟨EOS <|im_end|>⟩│\\n│
  . ⟨<|im_start|>⟩│a│s│s│i│s│t│a│n│t│\\n│
  + a│\\n│
  + b│⟨EOS <|im_end|>⟩│\\n│";
    let example = example.replace("35 tokens: 5 learnt, 30", "28 tokens: 5 learnt, 23");
    assert_eq!(shown(&room, "chat", &[chat], ""), example);
    let cut = "\
row 1  rows.jsonl:1: 8 tokens: 2 learnt, 2 masked, 1 masked because they straddle the boundary, 3 cut (3 of them to be \
learnt)
  . b│y│
  ~ ou│
  + t│ a│
  - h│t│⟨EOS <|endoftext|>⟩│";
    assert_eq!(shown(&room, "plain", &[text("byo", "ut aht")], "--max-length 5"), cut);
    let compared = "\
row 1  rows.jsonl:1: chosen 9 tokens, rejected 7: they differ from token 4 on
  = Q│:│ │
  > g│o│o│d│ │⟨EOS <|endoftext|>⟩│                  < b│a│d│⟨EOS <|endoftext|>⟩│";
    assert_eq!(shown(&room, "plain", &[pair(" good ", " bad")], ""), compared);
    let asked = "\
row 2  rows.jsonl:2: 18 tokens, the last 11 of them the generation prompt
  . ⟨<|im_start|>⟩│u│s│er│\\n│
  . x│⟨EOS <|im_end|>⟩│\\n│
  > ⟨<|im_start|>⟩│a│s│s│i│s│t│a│n│t│\\n│";
    let asked = asked.replace("18 tokens", "19 tokens");
    let row = json!({ "prompt": talk(&[("user", "x")]) });
    assert_eq!(shown(&room, "chat", &[row.clone(), row], "--rows 2-2"), asked);
}

/// Nothing from the file is obeyed by a terminal or hidden by it, nor taken for one of our own signs.
#[test]
fn hostile_text_is_shown_as_codes() {
    let room = room();
    let text = shown(&room, "plain", &[text("a\u{1b}[2J\u{202e}b\0\r\t", " \\\u{200b}│⟨EOS⟩")], "");
    for code in
        ["\\u{1b}", "\\u{202e}", "\\0", "\\r", "\\t", "\\\\", "\\u{200b}", "\\u{2502}", "\\u{27e8}", "\\u{27e9}"]
    {
        assert!(text.contains(code), "{code} is not in\n{text}");
    }
    assert!(!text.contains(|c: char| c.is_control() && c != '\n' || matches!(c, '\u{202e}' | '\u{200b}')), "{text:?}");
    let (name, row) = ("x\u{1b}[31m", json!({ "text": "a", "x\u{1b}[31m": 1 }));
    room.rows("rows.jsonl", &[row, json!({ "text": "b" })]);
    let outcome = room.run("data check rows.jsonl --model-name-or-path plain").ok();
    assert!(outcome.stdout.contains("x\\u{1b}[31m") && !outcome.stdout.contains(name), "{}", outcome.stdout);
}

#[test]
fn colour_is_asked_for_or_for_a_terminal() {
    let room = room();
    room.rows("rows.jsonl", &completions(1));
    let run = |more: &str| room.run(&format!("data preview rows.jsonl --model-name-or-path plain {more}")).ok().stdout;
    let (plain, coloured) = (run(""), run("--color always"));
    assert!(!plain.contains('\u{1b}') && plain == run("--color never"));
    assert!(coloured.contains("\u{1b}[32mw\u{1b}[0m"), "{coloured:?}");
    let mut stripped = String::new();
    for (index, part) in coloured.split('\u{1b}').enumerate() {
        stripped += if index == 0 { part } else { part.split_once('m').unwrap().1 };
    }
    assert_eq!(stripped, plain);
}
