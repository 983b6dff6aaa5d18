//! `rlhf report`: the page is one file that needs nothing else, says what the files say, and lets nothing of them out
//! of its place. What a browser makes of it is in `report/browser.rs`.

mod browser;
mod synthetic;
mod webdriver;

use serde_json::{Value, json};

use crate::support::Room;
use synthetic::{PROMPTS, STEPS, kl};

const DATA: [&str; 2] = ["<script type=\"application/json\" id=\"data\">", "</script>"];

fn page(room: &Room, name: &str) -> String {
    String::from_utf8(room.read(name)).unwrap()
}

/// The page without its data, and the data.
fn parts(page: &str) -> (String, Value) {
    let (before, rest) = page.split_once(DATA[0]).unwrap();
    let (data, after) = rest.split_once(DATA[1]).unwrap();
    (format!("{before}{after}"), serde_json::from_str(data).unwrap())
}

fn room() -> Room {
    let room = Room::new();
    synthetic::write(&room, "first", "1e-5", 0.0);
    room
}

/// What in a page without its data would leave it.
fn ways_out(page: &str) -> Vec<String> {
    // The name of a language, which nothing fetches.
    let page = page.replace("http://www.w3.org/2000/svg", "");
    let mut found = Vec::new();
    for way in [
        "http:",
        "https:",
        "//cdn",
        "@import",
        "url(",
        "fetch(",
        "XMLHttpRequest",
        "WebSocket",
        "import(",
        "src=",
        "innerHTML",
        "eval(",
    ] {
        found.extend(page.match_indices(way).map(|(at, _)| page[at..].chars().take(60).collect::<String>()));
    }
    for (at, _) in page.match_indices("href=\"") {
        if !page[at + 6..].starts_with('#') && !page[at + 6..].starts_with("data:,\"") {
            found.push(page[at..].chars().take(60).collect());
        }
    }
    found
}

#[test]
fn the_page_is_one_file_and_keeps_its_data_in_place() {
    let room = room();
    let outcome = room.run("report first").ok();
    assert_eq!(outcome.stdout, "first/report.html\n");
    let page = page(&room, "first/report.html");
    let (shell, data) = parts(&page);
    assert_eq!(ways_out(&shell), [""; 0]);
    for seed in ["<img src=\"a\">", "<a href=\"b\">", "<style>@import 'c'</style>", "fetch('d')"] {
        assert_eq!(ways_out(&format!("{shell}{seed}")).len(), 1, "{seed}");
    }
    assert!(shell.contains("default-src 'none'") && !shell.contains("unsafe"), "no policy");
    assert_eq!(page.matches("<script").count(), 2);
    assert!(!page.contains("window.hacked = 1</script>"));
    let track = &data["runs"][0]["samples"][0];
    let prompts: Vec<&str> =
        track["prompts"].as_array().unwrap().iter().map(|p| p["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts, PROMPTS);
}

#[test]
fn the_data_says_what_the_files_say() {
    let room = room();
    room.run("report first").ok();
    let (_, data) = parts(&page(&room, "first/report.html"));
    let run = &data["runs"][0];
    assert_eq!(run["name"], "first");
    let names: Vec<&Value> = run["stages"].as_array().unwrap().iter().map(|stage| &stage["name"]).collect();
    assert_eq!(names, ["sft", "reward", "ppo"]);
    let ppo = &run["stages"][2];
    assert_eq!((&ppo["last_step"], &ppo["seconds"]), (&json!(STEPS), &json!(STEPS as f64)));
    let series = ppo["metrics"]["series"].as_array().unwrap();
    let values = &series.iter().find(|entry| entry["key"] == "objective/kl").unwrap()["values"];
    assert_eq!(*values, json!((1..=STEPS).map(kl).collect::<Vec<_>>()));
    let odd = &series.iter().find(|entry| entry["key"] == "val/explained_variance").unwrap()["odd"];
    assert_eq!(*odd, json!([[20, "NaN"]]));
    // The NaN is an alarm; nothing else is wrong.
    let alarms: Vec<&Value> = run["alarms"].as_array().unwrap().iter().map(|alarm| &alarm["id"]).collect();
    assert_eq!(alarms, ["not-finite"]);
    let comparison = &run["comparison"];
    assert_eq!([&comparison["wins"], &comparison["ties"], &comparison["losses"]], [3, 0, 2]);
    assert_eq!(run["quality"]["accuracy"], 0.93);
}

#[test]
fn the_same_files_give_the_same_bytes_wherever_they_are_named_from() {
    let room = room();
    room.run("report first").ok();
    let before = room.read("first/report.html");
    room.run("report first/../first/ --output elsewhere.html").ok();
    assert_eq!(room.read("elsewhere.html"), before);
    room.run("report first").ok();
    assert_eq!(room.read("first/report.html"), before);
}

#[test]
fn long_runs_are_thinned_and_no_spike_is_lost() {
    let room = Room::new();
    std::fs::create_dir(room.path("long")).unwrap();
    let loss = |i: usize| if i == 12_345 { 99.0 } else { 1.0 / (1.0 + i as f64) };
    let row = |i: usize| json!({ "stage": "sft", "step": i, "loss": loss(i) });
    room.rows("long/metrics.jsonl", &(1..=20_000).map(row).collect::<Vec<_>>());
    let sample =
        |i: usize| json!({ "stage": "sft", "step": i / 100, "prompt": i % 100, "completion": "x".repeat(3000) });
    room.rows("long/samples.jsonl", &(0..3000).map(sample).collect::<Vec<_>>());
    room.run("report long").ok();
    let page = page(&room, "long/report.html");
    let (_, data) = parts(&page);
    let metrics = &data["runs"][0]["stages"][0]["metrics"];
    let (axis, series) = (metrics["axes"][0].as_array().unwrap(), &metrics["series"][0]);
    let values = series["values"].as_array().unwrap();
    assert!(values.len() == axis.len() && (512..1030).contains(&values.len()), "{}", values.len());
    assert!(series["width"].as_u64().unwrap() > 1);
    let spike = values.iter().position(|x| x.as_f64() == Some(99.0)).unwrap();
    assert_eq!((&axis[spike], axis.last().unwrap()), (&json!(12_345), &json!(20_000)));
    let track = &data["runs"][0]["samples"][0];
    let sizes = ["prompts_total", "steps_total"].map(|key| track[key].as_u64().unwrap());
    assert_eq!(sizes, [100, 30]);
    assert!(page.len() < 3 << 20, "{} bytes", page.len());
}

#[test]
fn what_cannot_be_read_is_an_error_with_its_place() {
    let room = room();
    std::fs::create_dir(room.path("empty")).unwrap();
    std::fs::create_dir_all(room.path("bad/ppo")).unwrap();
    room.write("bad/ppo/metrics.jsonl", "{\"stage\":\"ppo\",\"step\":1}\n{\"step\":}\n");
    std::fs::create_dir(room.path("twice")).unwrap();
    room.write("twice/run.json", "{\"a\":1,\"a\":2}");
    let many = ["first"; 7].join(" ");
    let cases: [(&str, i32, &[&str]); 7] = [
        ("report none", 3, &["file-missing", "none"]),
        ("report empty", 3, &["report-nothing", "where: empty"]),
        ("report bad", 3, &["report-line", "bad/ppo/metrics.jsonl:2"]),
        ("report twice", 3, &["report-json", "twice/run.json"]),
        ("report first --output empty", 2, &["output-not-file"]),
        ("report", 2, &["<DIR>"]),
        (&format!("report {many} --output many.html"), 2, &["report-runs"]),
    ];
    for (line, code, signs) in cases {
        let outcome = room.run(line);
        assert_eq!(outcome.code, Some(code), "{line}: {}", outcome.stderr);
        assert!(signs.iter().all(|sign| outcome.stderr.contains(sign)), "{line}: {}", outcome.stderr);
    }
    assert!(!room.path("many.html").exists() && !room.path("bad/report.html").exists());
}

#[test]
fn a_line_that_a_killed_run_left_unfinished_is_told() {
    let room = Room::new();
    std::fs::create_dir(room.path("killed")).unwrap();
    room.write("killed/metrics.jsonl", "{\"stage\":\"sft\",\"step\":1,\"loss\":2.5}\n{\"stage\":\"sft\",\"st");
    room.run("report killed").ok();
    let (_, data) = parts(&page(&room, "killed/report.html"));
    let run = &data["runs"][0];
    assert_eq!((&run["stages"][0]["metrics"]["rows"], run["notes"].as_array().unwrap().len()), (&json!(1), 1));
}

#[test]
fn runs_of_one_name_keep_their_paths() {
    let room = room();
    synthetic::write(&room, "other/first", "3e-5", 0.0);
    let outcome = room.run("report first other/first").ok();
    assert_eq!(outcome.stdout, "report.html\n");
    let (_, data) = parts(&page(&room, "report.html"));
    let names: Vec<&Value> = data["runs"].as_array().unwrap().iter().map(|run| &run["name"]).collect();
    assert_eq!(names, ["first", "other/first"]);
}
