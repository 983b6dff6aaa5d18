//! `rlhf eval`, held against the commands that compute the same by other ways, against transformers' numbers, and
//! against numbers computed by hand.

use serde_json::{Value, json};

use crate::cli::answers::{expected, floats, ints, sequences, text_of, tokens_of, vocabulary};
use crate::support::{Room, pairs, prompts};

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("{name} is {} in {row}", row[name]))
}

fn keys(row: &Value) -> String {
    row.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// What a command prints as JSON.
fn printed(room: &Room, line: &str) -> Value {
    let outcome = room.run(&format!("{line} --json")).ok();
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{line}: {e}: {}", outcome.stdout))
}

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance
}

/// A room with two language models, a reward model and prompts.
fn contest() -> Room {
    let room = Room::new();
    for (name, fixture) in [("model", "gpt2_tied"), ("base", "gpt2_untied"), ("judge", "gpt2_reward")] {
        room.model(name, fixture);
    }
    room.rows("prompts.jsonl", &prompts(20));
    room
}

const CONTEST: &str = "eval win-rate --model-name-or-path model --baseline base --prompts prompts.jsonl \
    --max-new-tokens 12 --reward-model-path judge --output out.jsonl";

/// The answers are those of `rlhf generate`, the scores those of `rlhf score`, and the numbers those of the rows.
#[test]
fn a_reward_model_compares() {
    let room = contest();
    let found = printed(&room, CONTEST);
    let rows = room.lines("out.jsonl");
    assert!(rows.iter().all(|row| keys(row) == "index prompt baseline model score_baseline score_model"));
    for (model, name) in [("model", "model"), ("base", "baseline")] {
        let line = format!("generate --model-name-or-path {model} --prompts prompts.jsonl --temperature 0");
        room.run(&format!("{line} --max-new-tokens 12 --output a.jsonl")).ok();
        for (ours, theirs) in rows.iter().zip(room.lines("a.jsonl")) {
            assert_eq!((&ours[name], &ours["prompt"]), (&theirs["completion"], &theirs["prompt"]));
        }
        let texts = rows.iter().map(|row| json!({ "prompt": row["prompt"], "completion": row[name] }));
        let said: Vec<usize> = (0..rows.len()).filter(|i| rows[*i][name] != "").collect();
        room.rows("texts.jsonl", &texts.filter(|row| row["completion"] != "").collect::<Vec<_>>());
        room.run("score --model-name-or-path judge --dataset texts.jsonl --output s.jsonl").ok();
        for (i, scored) in said.iter().zip(room.lines("s.jsonl")) {
            assert_eq!(number(&rows[*i], &format!("score_{name}")) as f32, number(&scored, "score") as f32);
        }
        assert!(said.len() > 15);
    }
    let side = |sign: f64| {
        let won = |row: &&Value| sign * (number(row, "score_model") - number(row, "score_baseline")) > 0.0;
        rows.iter().filter(won).count()
    };
    let (wins, losses) = (side(1.0), side(-1.0));
    assert_eq!([number(&found, "wins"), number(&found, "losses")], [wins as f64, losses as f64]);
    assert!(wins > 0 && losses > 0, "{wins} {losses}");
    assert!(close(number(&found, "win_rate"), 0.5 + 0.5 * (wins as f64 - losses as f64) / 20.0, 1e-12));
    let mean = rows.iter().map(|row| number(row, "score_model")).sum::<f64>() / 20.0;
    assert!(close(number(&found, "mean_score_model"), mean, 1e-9));
    let length = rows.iter().map(|row| row["model"].as_str().unwrap().chars().count()).sum::<usize>() as f64 / 20.0;
    assert!(close(number(&found, "mean_length_model"), length, 1e-9));
    // The other way around everything turns around, and a model against itself is a tie.
    let line =
        CONTEST.replace("--model-name-or-path model --baseline base", "--model-name-or-path base --baseline model");
    let turned = printed(&room, &line);
    assert_eq!((&turned["wins"], &turned["losses"]), (&found["losses"], &found["wins"]));
    let same = printed(&room, &CONTEST.replace("--baseline base", "--baseline model"));
    assert_eq!((&same["ties"], &same["win_rate"], &same["significant"]), (&json!(20), &json!(0.5), &json!(false)));
}

#[test]
fn conversations_compare_and_repeat() {
    let room = Room::new();
    for (name, fixture) in [("model", "llama_untied_gqa"), ("base", "qwen3_tied"), ("judge", "qwen3_reward")] {
        room.model(name, fixture);
    }
    // A judge of conversations needs a template as the models do.
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    for model in ["base", "judge"] {
        room.write(&format!("{model}/chat_template.jinja"), template);
    }
    let turn = |content: String| json!({ "prompt": [{ "role": "user", "content": content }] });
    room.rows("prompts.jsonl", &(0..6).map(|i| turn(format!("Say {i}"))).collect::<Vec<_>>());
    let line = format!("{CONTEST} --temperature 0.9");
    let (found, rows) = (printed(&room, &line), room.read("out.jsonl"));
    assert_eq!((printed(&room, &line), room.read("out.jsonl") == rows), (found, true));
    assert_eq!(room.lines("out.jsonl")[3]["prompt"], "Say 3");
    printed(&room, &format!("{line} --seed 5"));
    assert_ne!(room.read("out.jsonl"), rows);
}

/// 12 wins, 4 ties and 2 losses; the interval is computed by hand in objective/win_rate.rs.
#[test]
fn a_judge_of_ones_own_compares() {
    let room = contest();
    room.rows("prompts.jsonl", &prompts(18));
    let line = "eval win-rate --model-name-or-path model --baseline base --prompts prompts.jsonl --max-new-tokens 6";
    assert_eq!(room.run(line).code, Some(2), "answers that go nowhere");
    let outcome = room.run(&format!("{line} --output answers.jsonl")).ok();
    assert!(outcome.stdout.contains("rlhf eval win-rate --answers answers.jsonl --scores"), "{}", outcome.stdout);
    assert!(room.lines("answers.jsonl").iter().all(|row| keys(row) == "index prompt baseline model"));
    let side = |i: usize| {
        if i < 12 {
            [2.0, 1.5]
        } else if i < 16 {
            [0.0, 0.0]
        } else {
            [-1.0, 3.0]
        }
    };
    let score = |i: usize| json!({ "index": i, "score_model": side(i)[0], "score_baseline": side(i)[1], "why": "so" });
    room.rows("scores.jsonl", &(0..18).rev().map(score).collect::<Vec<_>>());
    let name = |i: usize| {
        if i < 12 {
            "model"
        } else if i < 16 {
            "tie"
        } else {
            "baseline"
        }
    };
    room.rows("names.jsonl", &(0..18).map(|i| json!({ "index": i, "preferred": name(i) })).collect::<Vec<_>>());
    let judged = |scores: &str| printed(&room, &format!("eval win-rate --answers answers.jsonl --scores {scores}"));
    let (scored, named) = (judged("scores.jsonl"), judged("names.jsonl"));
    for found in [&scored, &named] {
        assert_eq!(["wins", "ties", "losses"].map(|key| number(found, key)), [12.0, 4.0, 2.0]);
        let [low, high] = [0, 1].map(|i| found["interval"][i].as_f64().unwrap());
        assert!(close(low, 0.58749, 1e-5) && close(high, 0.91251, 1e-5), "{found}");
        assert_eq!(found["significant"], true);
    }
    assert!(close(number(&scored, "mean_score_model"), 22.0 / 18.0, 1e-12) && named.get("mean_score_model").is_none());
    let outcome = room.run("eval win-rate --answers answers.jsonl --scores names.jsonl").ok();
    assert!(outcome.stdout.contains("77.8 %  (95 % interval 58.7 to 91.3 %)"), "{}", outcome.stdout);
}

/// Of two comparisons only those whose lengths are near count a second time.
#[test]
fn similar_lengths_are_compared_apart() {
    let room = Room::new();
    let row = |model: &str, baseline: &str| json!({ "prompt": "", "model": model, "baseline": baseline });
    room.rows("answers.jsonl", &[row("abcd", "abcde"), row("a", "abcd"), row("", ""), row("abc", "abcd")]);
    let verdict = |i: usize, who: &str| json!({ "index": i, "preferred": who });
    let verdicts = [verdict(0, "model"), verdict(1, "baseline"), verdict(2, "tie"), verdict(3, "baseline")];
    room.rows("scores.jsonl", &verdicts);
    let found = printed(&room, "eval win-rate --answers answers.jsonl --scores scores.jsonl");
    let similar = &found["similar_length"];
    assert_eq!(["comparisons", "wins", "ties", "losses"].map(|key| number(similar, key)), [2.0, 1.0, 1.0, 0.0]);
    assert_eq!(["wins", "ties", "losses"].map(|key| number(&found, key)), [1.0, 1.0, 2.0]);
}

#[test]
fn scores_that_do_not_fit_are_named() {
    let room = Room::new();
    let answer = json!({ "prompt": "p", "model": "m", "baseline": "b" });
    room.rows("answers.jsonl", &vec![answer; 3]);
    let good = [0, 1, 2].map(|i| format!("{{\"index\": {i}, \"score_model\": 1, \"score_baseline\": 0}}"));
    let with = |third: &str| format!("{}\n{}\n{third}\n", good[0], good[1]);
    let of = |third: &str| with(&format!("{{\"index\": 2, {third}}}"));
    let cases = [
        (with(&good[2]), 0, "", ""),
        (with(""), 3, "scores-missing", "scores.jsonl\n"),
        (with(&good[1]), 3, "scores-duplicate", "scores.jsonl:3\n"),
        (with("{\"index\": 3, \"preferred\": \"tie\"}"), 3, "scores-index", "scores.jsonl:3\n"),
        (with("{\"index\": -1, \"preferred\": \"tie\"}"), 3, "scores-index", "scores.jsonl:3\n"),
        (with("{\"index\": 1.5, \"preferred\": \"tie\"}"), 3, "scores-index", "scores.jsonl:3\n"),
        (with("{\"index\": \"2\", \"preferred\": \"tie\"}"), 3, "scores-index", "scores.jsonl:3\n"),
        (with("{\"preferred\": \"tie\"}"), 3, "scores-index", "scores.jsonl:3\n"),
        (of("\"preferred\": \"tie\""), 3, "scores-mixed", "scores.jsonl:3\n"),
        (of("\"preferred\": \"both\""), 3, "scores-row", "scores.jsonl:3\n"),
        (of("\"preferred\": null"), 3, "scores-row", "scores.jsonl:3\n"),
        (of("\"prefered\": \"tie\""), 3, "scores-row", "scores.jsonl:3\n"),
        (of("\"score_model\": 1"), 3, "scores-row", "scores.jsonl:3\n"),
        (of("\"score_model\": 1, \"score_baseline\": \"NaN\""), 3, "scores-row", "scores.jsonl:3\n"),
        (of("\"score_model\": null, \"score_baseline\": 1"), 3, "scores-row", "scores.jsonl:3\n"),
        (of("\"score_model\": NaN, \"score_baseline\": 1"), 3, "dataset-invalid-json", "scores.jsonl:3\n"),
        (of("\"score_model\": 1e999, \"score_baseline\": 1"), 3, "dataset-invalid-json", "scores.jsonl:3\n"),
        (of("\"preferred\": \"tie\", \"score_model\": 1, \"score_baseline\": 1"), 3, "scores-row", "scores.jsonl:3\n"),
        (with("[2, 1, 0]"), 3, "dataset-not-an-object", "scores.jsonl:3\n"),
        (String::new(), 3, "dataset-empty", "scores.jsonl\n"),
    ];
    for (text, code, id, place) in cases {
        room.write("scores.jsonl", &text);
        let outcome = room.run("eval win-rate --answers answers.jsonl --scores scores.jsonl");
        assert_eq!(outcome.code, Some(code), "{text}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(id) && outcome.stderr.contains(place), "{text}: {}", outcome.stderr);
        assert!(code == 0 || outcome.stdout.is_empty() && outcome.stderr.contains("fix: "), "{text}");
    }
    room.write("scores.jsonl", with(&good[2]));
    for (rows, id) in [
        (json!({ "model": "m" }), "answers-row"),
        (json!({ "model": "m", "baseline": 3 }), "answers-row"),
        (json!({ "index": 1, "model": "m", "baseline": "b" }), "answers-row"),
    ] {
        room.rows("answers.jsonl", std::slice::from_ref(&rows));
        let outcome = room.run("eval win-rate --answers answers.jsonl --scores scores.jsonl");
        assert_eq!(outcome.code, Some(3), "{rows}");
        assert!(outcome.stderr.contains(id) && outcome.stderr.contains("answers.jsonl:1"), "{}", outcome.stderr);
    }
}

#[test]
fn models_in_the_wrong_role_are_refused_before_the_work() {
    let room = contest();
    room.rows("pairs.jsonl", &pairs(4));
    for (line, id) in [
        (CONTEST.replace("--baseline base", "--baseline judge"), "not-a-language-model"),
        (CONTEST.replace("--reward-model-path judge", "--reward-model-path base"), "not-a-reward-model"),
        ("eval reward --model-name-or-path model --dataset pairs.jsonl".into(), "not-a-reward-model"),
        ("eval perplexity --model-name-or-path judge --dataset prompts.jsonl".into(), "not-a-language-model"),
        ("eval perplexity --model-name-or-path none --dataset prompts.jsonl".into(), "model-missing"),
    ] {
        let outcome = room.run(&line);
        assert_eq!(outcome.code, Some(3), "{line}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(id), "{line}: {}", outcome.stderr);
    }
}

/// The scores of `rlhf score`, counted again.
#[test]
fn a_reward_model_is_described() {
    let room = Room::new();
    room.model("judge", "gpt2_reward");
    let mut rows = pairs(30);
    let too_long = json!({ "prompt": "", "chosen": "x".repeat(80), "rejected": "y" });
    room.rows("pairs.jsonl", &[&rows[..], &[too_long]].concat());
    let line = "eval reward --model-name-or-path judge --dataset pairs.jsonl --output quality.json";
    let mut found = printed(&room, line);
    assert_eq!(found.as_object_mut().unwrap().remove("rows_dropped"), Some(json!(1)));
    assert_eq!(room.json("quality.json"), found);
    let names = "pairs accuracy accuracy_interval margin min_reward mean_reward max_reward calibration_error \
                 reward_length_correlation reliability by_margin by_length";
    assert_eq!(keys(&found), names.split_whitespace().collect::<Vec<_>>().join(" "));
    let side = |name: &str| -> Vec<f64> {
        let texts = rows.iter().map(|row| json!({ "prompt": row["prompt"], "completion": row[name] }));
        room.rows("texts.jsonl", &texts.collect::<Vec<_>>());
        room.run("score --model-name-or-path judge --dataset texts.jsonl --output s.jsonl").ok();
        room.lines("s.jsonl").iter().map(|row| number(row, "score")).collect()
    };
    let gaps: Vec<f64> = side("chosen").iter().zip(side("rejected")).map(|(a, b)| a - b).collect();
    let right = gaps.iter().filter(|gap| **gap > 0.0).count();
    assert_eq!((number(&found, "pairs"), number(&found, "accuracy")), (30.0, right as f64 / 30.0));
    assert!(close(number(&found, "margin"), gaps.iter().sum::<f64>() / 30.0, 1e-6));
    let count = |bins: &Value| bins.as_array().unwrap().iter().map(|bin| number(bin, "pairs")).sum::<f64>();
    assert!(["reliability", "by_margin", "by_length"].iter().all(|name| count(&found[*name]) == 30.0));
    let text = room.run(line).ok().stdout;
    assert!(text.contains("left out") && text.contains("1 of 31 rows: 1 too long") && text.contains('█'), "{text}");
    // Turned around, what was right is wrong.
    for row in &mut rows {
        let chosen = row["chosen"].take();
        row["chosen"] = std::mem::replace(&mut row["rejected"], chosen);
    }
    room.rows("pairs.jsonl", &rows);
    let turned = printed(&room, line);
    let ties = gaps.iter().filter(|gap| **gap == 0.0).count();
    assert_eq!(number(&turned, "accuracy"), (30 - right - ties) as f64 / 30.0);
}

/// A text that one window holds: the mean of transformers' log-probabilities.
#[test]
fn perplexity_is_that_of_transformers() {
    let mut compared = 0;
    for fixture in ["gpt2_tied", "llama_untied_gqa", "qwen2_tied", "qwen3_untied", "llama_bf16"] {
        let (room, expected) = (Room::new(), expected(fixture));
        room.model("model", fixture);
        let sequences = sequences(fixture, &expected);
        let tokens = tokens_of(&room, &sequences.iter().map(|s| &s.3[..]).collect::<Vec<_>>());
        let logprobs = expected.floats("logprobs_t1");
        for ((number_of, start, ids, text), tokens) in sequences.iter().zip(tokens) {
            if tokens != ids[1..] {
                continue;
            }
            room.write("text.txt", text);
            let found = printed(&room, "eval perplexity --model-name-or-path model --dataset text.txt");
            let wanted = &logprobs[start - number_of..][..ids.len() - 1];
            let nats = -wanted.iter().map(|x| f64::from(*x)).sum::<f64>();
            let mean = nats / wanted.len() as f64;
            assert!(close(number(&found, "nats_per_token"), mean, 5e-5), "{fixture}: {found}");
            assert!(close(number(&found, "perplexity") / mean.exp(), 1.0, 5e-5), "{fixture}: {found}");
            assert_eq!((number(&found, "tokens"), number(&found, "windows")), (wanted.len() as f64, 1.0));
            let bytes = text.len() - vocabulary()[&ids[0]].len();
            assert!(close(number(&found, "bits_per_byte"), nats / bytes as f64 / std::f64::consts::LN_2, 2e-4));
            compared += 1;
        }
    }
    assert!(compared >= 8, "only {compared} sequences can be written as text");
}

/// A text longer than a window: each window's tokens, scored one window at a time by `rlhf score`.
#[test]
fn windows_overlap_and_count_each_token_once() {
    let room = Room::new();
    room.model("model", "qwen3_untied");
    let text = "Windows overlap, 3 of 8, so that no token is without what stood before it.";
    room.write("text.txt", text);
    let vocabulary = vocabulary();
    let tail = tokens_of(&room, &[text]).remove(0);
    let head: Vec<i32> = vocabulary.iter().filter(|(_, token)| *token == "W").map(|(id, _)| *id).collect();
    let ids = [head, tail].concat();
    let piece = |range: std::ops::Range<usize>| text_of(&vocabulary, &ids[range]).unwrap();
    let (mut rows, mut wanted_tokens, mut begin, mut done) = (Vec::new(), Vec::new(), 0, 1);
    while done < ids.len() {
        let end = (begin + 8).min(ids.len());
        rows.push(json!({ "prompt": piece(begin..done), "completion": piece(done..end) }));
        wanted_tokens.push(ids[done..end].to_vec());
        (begin, done) = (begin + 3, end);
    }
    room.rows("windows.jsonl", &rows);
    room.run("score --model-name-or-path model --dataset windows.jsonl --output s.jsonl").ok();
    let scored = room.lines("s.jsonl");
    assert_eq!(scored.iter().map(|row| ints(&row["tokens"])).collect::<Vec<_>>(), wanted_tokens);
    let nats = -scored.iter().flat_map(|row| floats(&row["logprobs"])).sum::<f64>();
    let line = "eval perplexity --model-name-or-path model --dataset text.txt --max-length 8";
    let found = printed(&room, &format!("{line} --stride 3"));
    assert_eq!(["tokens", "windows"].map(|key| number(&found, key)), [ids.len() as f64 - 1.0, rows.len() as f64]);
    assert!(close(number(&found, "nats_per_token"), nats / (ids.len() - 1) as f64, 1e-6), "{found} {nats}");
    // The control: another stride is another number, and one that leaves tokens without context is refused.
    let apart = number(&printed(&room, &format!("{line} --stride 7")), "nats_per_token");
    assert!(!close(apart, number(&found, "nats_per_token"), 1e-4), "{apart}");
    for (more, id) in [("--stride 8", "[stride]"), ("--max-length 1", "[max-length]"), ("--max-length 9999", "[max-")] {
        let outcome = room.run(&format!("{line} {more}"));
        assert!(outcome.code == Some(2) && outcome.stderr.contains(id), "{more}: {}", outcome.stderr);
    }
    for (bytes, id) in [(&b"W"[..], "text-too-short"), (b"", "text-too-short"), (b"caf\xe9", "text-utf8")] {
        room.write("text.txt", bytes);
        let outcome = room.run(line);
        assert!(outcome.code == Some(3) && outcome.stderr.contains(id), "{}", outcome.stderr);
    }
}

/// Rows count as in fine-tuning: their targets, with the end of sequence, which `rlhf score` sees where it is written.
#[test]
fn rows_count_by_their_targets() {
    let room = Room::new();
    room.model("model", "gpt2_tied");
    let rows = [("Say: ", "one two"), ("And: ", "three."), ("", "x")];
    let row =
        |(prompt, answer): (&str, &str), end: &str| json!({ "prompt": prompt, "completion": answer.to_owned() + end });
    let empty = json!({ "prompt": "p", "completion": "" });
    let data: Vec<Value> = rows.iter().map(|r| row(*r, "")).chain([empty]).collect();
    room.rows("data.jsonl", &data);
    room.rows("closed.jsonl", &rows.iter().map(|r| row(*r, "<|endoftext|>")).collect::<Vec<_>>());
    room.run("score --model-name-or-path model --dataset closed.jsonl --output s.jsonl").ok();
    let scored: Vec<f64> = room.lines("s.jsonl").iter().flat_map(|row| floats(&row["logprobs"])).collect();
    let line = "eval perplexity --model-name-or-path model --dataset data.jsonl";
    let found = printed(&room, line);
    let nats = -scored.iter().sum::<f64>();
    assert_eq!(number(&found, "tokens"), scored.len() as f64);
    assert!(close(number(&found, "nats_per_token"), nats / scored.len() as f64, 1e-6), "{found}");
    // The first character of a row without a prompt is predicted from nothing, so it is no target.
    assert_eq!(number(&found, "bytes"), 13.0);
    let text = room.run(line).ok().stdout;
    assert!(text.contains("1 of 4 rows: 1 empty"), "{text}");
}
