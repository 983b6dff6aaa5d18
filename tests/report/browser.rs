//! The page in a real browser: that it draws itself at both widths without an error, and that pointer, finger, keys,
//! search and theme do what they should. The checker is shown first that it finds what is seeded.

use std::path::Path;

use serde_json::{Value, json};

use super::synthetic::{self, PROMPTS, STEPS, kl};
use super::webdriver::Browser;
use crate::support::Room;

const DESKTOP: (usize, &str) = (1280, "light");
const PHONE: (usize, &str) = (390, "dark");

/// What is wrong with a page, in windows of these widths and themes.
fn problems(browser: &Browser, path: &Path, windows: &[(usize, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    for &(width, theme) in windows {
        browser.open(path, width, theme);
        let state = browser.script(
            "const root = document.documentElement; return { ready: root.dataset.ready, theme: root.dataset.theme, \
             wide: root.scrollWidth - innerWidth, hacked: window.hacked ?? null, scripts: document.scripts.length, \
             images: document.images.length, objects: document.body.innerText.includes('[object ') || \
             document.body.innerText.includes('undefined') || document.body.innerText.includes('NaN %') }",
        );
        let mut check = |is_good: bool, what: &str| {
            if !is_good {
                found.push(format!("{what} at {width}: {state}"));
            }
        };
        check(state["ready"] == "true", "the script did not end");
        check(state["theme"] == theme, "the theme is not the system's");
        check(state["wide"] == 0, "the page is wider than its window");
        check(state["hacked"].is_null() && state["scripts"] == 2 && state["images"] == 0, "a text became a part");
        check(state["objects"] == false, "a part became a text");
        found.extend(browser.log().into_iter().map(|line| format!("log at {width}: {line}")));
    }
    found
}

/// A chart's step and the text of its value.
fn reading(browser: &Browser, chart: &str) -> (usize, String) {
    let at = browser.text(&format!("{chart} .at"));
    let step = at.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("no step: {at}"));
    (step, browser.text(&format!("{chart} .value")))
}

fn hovering_shows_the_values_of_a_step(browser: &Browser) {
    let chart = "[data-chart='KL to the SFT model']";
    let plot = format!("{chart} .plot");
    assert_eq!(reading(browser, chart).0, STEPS, "without a pointer the last step is shown");
    for (kind, across) in [("mouse", 0.3), ("mouse", 0.8), ("touch", 0.5)] {
        browser.point(kind, &plot, [across, 0.5]);
        let (step, value) = reading(browser, chart);
        let expected = across * STEPS as f64;
        assert!((step as f64 - expected).abs() < 0.1 * STEPS as f64, "{kind} at {across} shows step {step}");
        let shown: f64 = value.split(' ').next().unwrap().parse().unwrap();
        assert!((shown - kl(step)).abs() < 5e-4 * kl(step).max(1.0), "step {step} shows {value}, not {}", kl(step));
        browser.release();
    }
    let before = reading(browser, chart).0;
    browser.script(&format!("document.querySelector(\"{plot}\").focus()"));
    browser.type_into(&plot, "\u{e011}\u{e014}\u{e014}");
    assert_eq!(reading(browser, chart).0, 3, "Home and two arrows to the right, from step {before}");
    let told = browser.script(&format!("return document.querySelector(\"{plot}\").getAttribute('aria-valuetext')"));
    assert!(told.as_str().unwrap().starts_with("step 3: KL 0.188"), "{told}");
}

fn samples_are_searched_sorted_and_shown_as_text(browser: &Browser) {
    let cards = || {
        let cards =
            browser.script("return [...document.querySelectorAll('#pairs .prompt')].map((node) => node.innerText)");
        cards.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(cards().len(), PROMPTS.len());
    assert_eq!(cards()[1], PROMPTS[1]);
    for code in ["U+202E", "U+0007", "U+0000", "U+2028", "U+200B"] {
        assert!(cards()[2].contains(code), "{code} is not visible in {:?}", cards()[2]);
    }
    browser.type_into("#search", "WINDOW.hacked");
    assert_eq!(cards(), [PROMPTS[1]]);
    assert_eq!(browser.text("#count"), "1 of 5 prompts");
    browser
        .script("const box = document.querySelector('#search'); box.value = ''; box.dispatchEvent(new Event('input'))");
    browser.click("#order option[value='loss']");
    assert_eq!(cards()[0], PROMPTS[0], "the largest loss comes first");
    browser.click("#filter option[value='won']");
    assert_eq!(cards().len(), 3);
}

fn the_theme_is_changed_by_its_button(browser: &Browser) {
    let ground =
        || browser.script("return getComputedStyle(document.body).backgroundColor").as_str().unwrap().to_owned();
    let light = ground();
    browser.click("#theme");
    let dark = ground();
    assert_ne!(light, dark);
    browser.click("#theme");
    assert_eq!(ground(), light);
}

fn runs_stand_side_by_side(browser: &Browser) {
    let texts = |selector: &str| -> Vec<String> {
        let found =
            browser.script(&format!("return [...document.querySelectorAll({selector:?})].map((n) => n.innerText)"));
        found.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let legend = texts("[data-chart='KL to the SFT model'] .item");
    assert!(legend.len() == 2 && legend[0].starts_with("first") && legend[1].starts_with("second"), "{legend:?}");
    let differs = texts("#settings tr.differs");
    assert!(differs.len() == 3 && differs.iter().all(|row| row.contains("learning-rate")), "{differs:?}");
    let sides = texts("#pairs article:first-child .who b");
    assert_eq!(sides, ["first", "second"]);
    assert!(texts("#numbers th[scope=col]").len() == 2);
}

/// Every part of the page's life, in one browser, since starting one takes most of the time.
#[test]
fn the_page_lives_in_a_browser() {
    let Some(browser) = Browser::start("the report in a browser") else { return };
    let room = Room::new();
    synthetic::write(&room, "first", "1e-5", 0.0);
    synthetic::write(&room, "second", "3e-5", 0.25);
    room.run("report first").ok();
    room.run("report first second --output both.html").ok();
    seeded_faults_are_found(&browser, &room);
    assert_eq!(problems(&browser, &room.path("first/report.html"), &[DESKTOP, PHONE]), [""; 0]);
    assert_eq!(problems(&browser, &room.path("both.html"), &[DESKTOP, PHONE]), [""; 0]);
    browser.open(&room.path("first/report.html"), 1280, "light");
    hovering_shows_the_values_of_a_step(&browser);
    samples_are_searched_sorted_and_shown_as_text(&browser);
    the_theme_is_changed_by_its_button(&browser);
    browser.open(&room.path("both.html"), 1280, "light");
    runs_stand_side_by_side(&browser);
    assert_eq!(browser.log(), [""; 0]);
    let empty = browser.script("return document.querySelectorAll('.chart svg path').length");
    assert!(empty.as_u64().is_some_and(|paths| paths > 20), "{empty}");
    sparse_runs_are_pages_too(&browser, &room);
}

fn seeded_faults_are_found(browser: &Browser, room: &Room) {
    std::fs::create_dir(room.path("small")).unwrap();
    room.rows("small/metrics.jsonl", &[json!({ "stage": "sft", "step": 1, "loss": 2.5 })]);
    room.run("report small").ok();
    assert_eq!(problems(browser, &room.path("small/report.html"), &[PHONE]), [""; 0]);
    let page = String::from_utf8(room.read("small/report.html")).unwrap();
    let seeds = [
        ("the script did not end", "\"runs\":[", "\"ran\":["),
        ("wider than its window", "<footer", "<svg width=\"2000\" height=\"9\"></svg><footer"),
        ("log at", "<footer", "<script>window.hacked = 1</script><footer"),
        ("a text became a part", "<footer", "<img src=\"missing.png\" alt=\"\"><footer"),
        ("log at", "<footer", "<link rel=\"stylesheet\" href=\"missing.css\"><footer"),
        ("a part became a text", "<noscript>", "<p>[object Object]</p><noscript>"),
    ];
    for (sign, from, to) in seeds {
        assert!(page.contains(from), "{from}");
        room.write("broken.html", page.replacen(from, to, 1));
        let found = problems(browser, &room.path("broken.html"), &[PHONE]);
        assert!(found.iter().any(|problem| problem.contains(sign)), "{to}: {sign} is not in {found:?}");
    }
}

/// Runs of which only one file is there, or that have just begun.
fn sparse_runs_are_pages_too(browser: &Browser, room: &Room) {
    let files: [(&str, Value); 4] = [
        ("metrics.jsonl", json!({ "stage": "ppo", "step": 1, "objective/kl": "inf" })),
        ("quality.json", json!({ "accuracy": 0.9, "reliability": "none", "by_margin": [null, { "pairs": 3 }] })),
        ("comparison.jsonl", json!({ "prompt": ["a"], "model": null })),
        (
            "run.json",
            json!({ "settings": { "a": null, "b": { "value": [1] } }, "memory": 3, "reproduce": { "command": 7 } }),
        ),
    ];
    for (name, content) in files {
        std::fs::create_dir_all(room.path("sparse")).unwrap();
        room.write(&format!("sparse/{name}"), content.to_string() + "\n");
        room.run("report sparse --output sparse.html").ok();
        let found = problems(browser, &room.path("sparse.html"), &[DESKTOP]);
        assert_eq!(found, [""; 0], "with {name} alone");
        std::fs::remove_file(room.path(&format!("sparse/{name}"))).unwrap();
    }
}
