//! What the crate is built from may be used and comes from where it should: every package of `Cargo.lock` is held
//! against the lists of `.deny.toml`, without the tool that reads it (`cargo deny`, which also knows advisories).

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// The names under a key of `.deny.toml`, such as `licenses.allow`.
fn listed(table: &str, key: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deny.toml");
    let rules: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    rules[table][key].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Every package that a build or a test takes on this machine, from cargo itself: its licence and its name.
fn packages() -> BTreeSet<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--edges",
            "normal,build,dev",
            "--prefix",
            "none",
            "--format",
            "{l}|{p}",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows = text.lines().filter_map(|line| line.trim_end_matches(" (*)").split_once('|'));
    rows.map(|(licence, name)| (licence.to_owned(), name.to_owned())).collect()
}

/// Whether a licence expression (SPDX: names, `WITH`, `AND`, `OR`, parentheses; `/` is an old `OR`) can be met with
/// these licences. `AND` binds more than `OR`.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let text = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ").replace(" WITH ", "+with+");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut at = 0;
    let met = any_of(&words, &mut at, allowed);
    met && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = all_of(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all_of(words, at, allowed);
    }
    met
}

fn all_of(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = true;
    loop {
        let word = words.get(*at).copied().unwrap_or_default();
        *at += 1;
        if word == "(" {
            met &= any_of(words, at, allowed);
            *at += 1;
        } else {
            met &= allowed.iter().any(|name| name.replace(" WITH ", "+with+") == word);
        }
        if words.get(*at) != Some(&"AND") {
            return met;
        }
        *at += 1;
    }
}

/// Whether a package's source is one of these registries.
fn is_known(source: &str, registries: &[String]) -> bool {
    source.strip_prefix("registry+").is_some_and(|url| registries.iter().any(|known| known == url))
}

#[test]
fn every_licence_is_allowed() {
    let allowed = listed("licenses", "allow");
    let others: Vec<_> = packages().into_iter().filter(|(_, name)| !name.starts_with("rlhf ")).collect();
    assert!(others.len() > 100, "{} packages", others.len());
    for (licence, name) in &others {
        assert!(is_met(licence, &allowed), "{name} is under {licence:?}");
    }
    println!("{} packages are under {}", others.len(), allowed.join(", "));
}

#[test]
fn every_package_comes_from_the_registry() {
    let registries = listed("sources", "allow-registry");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let lock: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    for package in lock["package"].as_array().unwrap().iter().filter(|p| p["name"].as_str() != Some("rlhf")) {
        let source = package.get("source").and_then(toml::Value::as_str).unwrap_or("a path");
        assert!(is_known(source, &registries), "{package} is from {source}");
        assert!(package.get("checksum").is_some(), "{package} has no checksum");
    }
}

/// The control: what must be refused.
#[test]
fn other_licences_and_sources_are_refused() {
    let allowed = ["MIT", "Zlib", "Apache-2.0", "GPL-2.0 WITH Classpath-exception-2.0"].map(str::to_owned);
    for good in
        ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "(GPL-3.0 OR MIT) AND Zlib", "GPL-2.0 WITH Classpath-exception-2.0"]
    {
        assert!(is_met(good, &allowed), "{good}");
    }
    for bad in [
        "",
        "none",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "GPL-3.0 OR MIT AND GPL-3.0",
        "(MIT OR Zlib) AND GPL-3.0",
        "MIT GPL-3.0",
    ] {
        assert!(!is_met(bad, &allowed), "{bad}");
    }
    let registries = ["https://github.com/rust-lang/crates.io-index".to_owned()];
    assert!(is_known("registry+https://github.com/rust-lang/crates.io-index", &registries));
    for bad in ["git+https://github.com/rust-lang/crates.io-index", "registry+https://example.org/index", "a path"] {
        assert!(!is_known(bad, &registries), "{bad}");
    }
}
