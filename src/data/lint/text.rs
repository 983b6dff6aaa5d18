//! Findings for a terminal: wrapped lines in which nothing from outside can move the cursor.

use std::fmt::Write;

use super::{Finding, Severity};
use crate::error::visible;

/// Columns of a line.
const WIDTH: usize = 100;

/// The findings, worst first.
pub(crate) fn describe(findings: &[Finding], rows: u64) -> String {
    let mut text = String::new();
    for finding in findings {
        let of = if finding.count == 0 { String::new() } else { format!("{} of {rows} rows: ", finding.count) };
        let head = format!("{} [{}] {of}{}", finding.severity.name(), finding.id, finding.what);
        wrap(&mut text, &head, 0);
        if !finding.rows.is_empty() {
            let more = if finding.count as usize > finding.rows.len() { ", ..." } else { "" };
            wrap(&mut text, &format!("where: {}{more}", finding.rows.join(", ")), 2);
        }
        wrap(&mut text, &format!("why: {}", finding.why), 2);
        wrap(&mut text, &format!("fix: {}", finding.fix), 2);
    }
    text
}

/// One line on all that was found.
pub(crate) fn verdict(counts: [u64; 3]) -> String {
    let [errors, warnings, notes] = counts;
    let number = |n: u64, what: &str| match n {
        0 => None,
        1 => Some(format!("1 {what}")),
        _ => Some(format!("{n} {what}s")),
    };
    let severities = [Severity::Error, Severity::Warning, Severity::Note].map(Severity::name);
    let found: Vec<String> =
        [errors, warnings, notes].into_iter().zip(severities).filter_map(|(n, s)| number(n, s)).collect();
    let found = if found.is_empty() { String::new() } else { format!(" ({})", found.join(", ")) };
    let what = match (errors, warnings) {
        (0, 0) => "clean",
        (0, _) => "it would train, and probably not what is meant",
        _ => "training would stop",
    };
    format!("verdict: {what}{found}")
}

/// Writes words in lines, those behind the first two columns further in.
fn wrap(text: &mut String, words: &str, indent: usize) {
    let (mut column, mut by) = (0, indent);
    for word in visible(words).split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            text.push('\n');
            (column, by) = (0, indent + 2);
        }
        let gap = if column == 0 { by } else { 1 };
        let _ = write!(text, "{:gap$}{word}", "");
        column += gap + length;
    }
    text.push('\n');
}
