//! Every form of instruction that occurs in the shipped texts is one that a row of the emulator's tests executes with
//! an exact expectation. A form is an opcode with its modifiers and types; of operands it tells special registers and
//! the packing of several registers into one.

use std::collections::{BTreeMap, BTreeSet};

use crate::device::kernel::SOURCES;

/// The tests whose rows have exact expectations.
const ROWS: [&str; 2] = [include_str!("../ptx/tests_rows.rs"), include_str!("../ptx/tests_warps.rs")];

/// What ends the kernel cannot store a result: it has its row among the seeded faults.
const FAULTS: &str = include_str!("../ptx/tests_faults.rs");

/// The form of one statement; none for labels, directives and empty text.
fn form(statement: &str) -> Option<String> {
    let mut text = statement.trim();
    // `L:`, a `{placeholder}` of the test's text, and a guard stand before the opcode.
    while let Some((word, rest)) = text.split_once([':', '}', ' ', '\t']) {
        let mark = text.as_bytes()[word.len()];
        let before = match mark {
            b':' => word.chars().all(|c| c.is_alphanumeric() || "_$".contains(c)) && !rest.starts_with(':'),
            b'}' => word.starts_with('{') && !word.contains(','),
            _ => word.starts_with('@'),
        };
        if !before {
            break;
        }
        text = rest.trim_start();
    }
    let (opcode, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    if !opcode.starts_with(|c: char| c.is_ascii_lowercase()) {
        return None;
    }
    let hint = |part: &str| part.contains("::") || ["nc", "ca", "cg", "cs", "cv", "lu", "wb", "wt"].contains(&part);
    let moves_data = opcode.starts_with("ld.") || opcode.starts_with("st.");
    let kept: Vec<&str> = opcode.split('.').filter(|part| !(moves_data && hint(part))).collect();
    let mut form = kept.join(".");
    if kept[0] == "mov" {
        let special = ["%tid.", "%ntid.", "%ctaid.", "%nctaid.", "%lane", "%warp"];
        form.extend(operands.split([',', ' ']).filter(|o| special.iter().any(|s| o.starts_with(s))));
        let parts = operands.matches(',').count();
        if operands.starts_with('{') {
            form += &format!(" into {parts}");
        } else if operands.contains('{') {
            form += &format!(" from {parts}");
        }
    }
    Some(form)
}

/// The statements in the strings of a test's source.
fn statements(source: &str) -> Vec<String> {
    let code: String = source.lines().filter(|l| !l.trim_start().starts_with("//")).map(|l| format!("{l}\n")).collect();
    let code = code.replace("\\\"", "'");
    let strings = code.split('"').skip(1).step_by(2);
    let text = strings.map(|s| s.replace("{{", "{").replace("}}", "}").replace("\\n", "\n")).collect::<Vec<_>>();
    text.iter().flat_map(|s| s.split([';', '\n', '\\'])).map(str::to_owned).collect()
}

/// Whether `row`, in which a `{placeholder}` stands for one part, is of this form.
fn same(row: &str, form: &str) -> bool {
    let (a, b): (Vec<&str>, Vec<&str>) = (row.split('.').collect(), form.split('.').collect());
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a == b || a.starts_with('{') && a.ends_with('}'))
}

/// The forms of a PTX text, each with a statement.
fn used(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
    let lines = lines.filter(|line| line.ends_with(';') && !line.starts_with('.'));
    lines.filter_map(|line| Some((form(line.trim_end_matches(';'))?, line.to_owned()))).collect()
}

fn missing(text: &str, rows: &BTreeSet<String>) -> Vec<String> {
    let lacks = |f: &String| !rows.contains(f) && !rows.iter().any(|row| row.contains('{') && same(row, f));
    used(text).into_iter().filter(|(f, _)| lacks(f)).map(|(f, line)| format!("{f} (as in `{line}`)")).collect()
}

fn rows() -> BTreeSet<String> {
    let mut rows: BTreeSet<String> = ROWS.iter().flat_map(|s| statements(s)).filter_map(|s| form(&s)).collect();
    rows.extend(statements(FAULTS).iter().filter_map(|s| form(s)).filter(|f| f == "trap"));
    rows
}

#[test]
fn every_form_in_the_kernels_has_a_row() {
    let rows = rows();
    let missing: BTreeSet<String> = SOURCES.iter().flat_map(|source| missing(source.text, &rows)).collect();
    assert!(missing.is_empty(), "{} forms lack a row:\n{}", missing.len(), Vec::from_iter(missing).join("\n"));
    let forms: BTreeSet<String> = SOURCES.iter().flat_map(|source| used(source.text).into_keys()).collect();
    assert!(forms.len() > 100, "{} forms are too few: the reader of forms is wrong", forms.len());
}

/// A form that nobody executes is told, and so is each form whose row is taken away.
#[test]
fn a_form_without_a_row_is_told() {
    let mut rows = rows();
    let text =
        "\tadd.rn.f32 \t%f1, %f2, %f3;\n$L__BB0_1:\n@%p1 add.rz.f64 %fd1, %fd2, %fd3;\nmov.u32 %r1, %nctaid.q;\n";
    assert_eq!(missing(text, &rows).len(), 2, "{:?}", missing(text, &rows));
    for form in ["add.rn.f32", "mov.u32%ctaid.y", "setp.ge.s64", "trap", "mov.b64 into 2"] {
        assert!(rows.remove(form), "{form} is among {rows:?}");
        assert!(SOURCES.iter().any(|source| !missing(source.text, &rows).is_empty()), "{form}");
    }
    assert_eq!(
        form("@!%p1 ld.global.nc.L1::no_allocate.v4.u32 {%r1,_,_,_}, [%rd1]").as_deref(),
        Some("ld.global.v4.u32")
    );
    assert_eq!(form("$L__BB0_1:"), None);
    assert!(same("mma.sync.{ty}.f32", "mma.sync.bf16.f32") && !same("atom.{space}.{code}", "atom.shared.add.u32"));
}
