//! A run's files are text from outside: whatever stands in them, there is a page that keeps it in its place, or an
//! error with a place.

use serde_json::Value;

use super::page;
use super::run::Run;

const FILES: [(&str, &str); 6] = [
    (
        "metrics.jsonl",
        "{\"stage\":\"ppo\",\"step\":1,\"objective/kl\":0.5,\"objective/scores\":1e3,\"objective/judge_scores\":0.1}\n\
         {\"stage\":\"ppo\",\"step\":2,\"objective/kl\":\"NaN\",\"val/ratio\":-1.5}\n{\"stage\":\"sft\",\"loss\":2}\n",
    ),
    ("timings.jsonl", "{\"stage\":\"ppo\",\"step\":1,\"seconds\":3.5,\"memory_peak\":1000}\n"),
    (
        "samples.jsonl",
        "{\"stage\":\"ppo\",\"step\":0,\"prompt\":\"a\",\"completion\":\"</script>\",\"score\":1}\n\
         {\"stage\":\"ppo\",\"step\":9,\"prompt\":\"a\",\"completion\":\"b\",\"score\":2}\n",
    ),
    (
        "comparison.jsonl",
        "{\"prompt\":\"p\",\"baseline\":\"a\",\"model\":\"b\",\"score_baseline\":0,\"score_model\":1}\n",
    ),
    ("run.json", "{\"command\":\"ppo\",\"settings\":{\"seed\":{\"value\":\"1\",\"origin\":\"default\"}}}"),
    ("quality.json", "{\"accuracy\":0.9,\"reliability\":[{\"pairs\":3,\"confidence\":0.7,\"accuracy\":0.6}]}"),
];

#[test]
fn any_bytes_give_a_page_or_an_error_with_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = 1_u64;
    // Knuth's generator, of which the high bits are good.
    let mut dice = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let (mut pages, mut errors) = (0, 0);
    for round in 0..400 {
        for (i, (name, text)) in FILES.iter().enumerate() {
            let mut bytes = text.as_bytes().to_vec();
            // One file a round is changed in up to three places; the first round leaves all as they are.
            let changes = if round > 0 && round % FILES.len() == i { 1 + dice() % 3 } else { 0 };
            for _ in 0..changes {
                let at = dice() % bytes.len();
                match dice() % 4 {
                    0 => drop(bytes.remove(at)),
                    1 => bytes[at] = dice() as u8,
                    2 => bytes.insert(at, b"{}[]\",:0-e<\n\xff"[dice() % 13]),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        match Run::read(dir.path(), "run".to_owned()).and_then(|run| page::render(&[run])) {
            Ok(page) => {
                pages += 1;
                assert_eq!(page.matches("<script").count(), 2, "round {round}");
                let data = page.split_once("id=\"data\">").unwrap().1.split_once('<').unwrap().0;
                serde_json::from_str::<Value>(data).unwrap();
            }
            Err(error) => {
                errors += 1;
                assert!(error.code() as i32 == 3 && error.place().is_some(), "round {round}: {error}");
            }
        }
    }
    assert!(pages > 100 && errors > 50, "{pages} pages, {errors} errors");
}
