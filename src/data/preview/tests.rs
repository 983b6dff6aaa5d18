//! Which rows are shown, and that every character is.

use super::*;

#[test]
fn rows_are_a_number_or_a_list() {
    let of = |text: &str| {
        let selection = Selection::parse(text).unwrap();
        let rows: Vec<u64> = (1..=selection.last()).filter(|row| selection.contains(*row)).collect();
        (rows, selection.named())
    };
    assert_eq!((of("3"), of("2,4-5")), ((vec![1, 2, 3], None), (vec![2, 4, 5], Some(4))));
    assert_eq!(of("7-7"), (vec![7], Some(7)));
    for wrong in ["", "0", "x", "3-2", ",", "1-", "-1", "2,0"] {
        assert!(Selection::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn every_character_is_seen_and_none_is_obeyed() {
    let shown = [
        ("a b", "a b"),
        ("it's \"so\"", "it's \"so\""),
        ("\n\t\\", "\\n\\t\\\\"),
        ("\\\"", "\\\\\""),
        ("\u{1b}[0m\u{7f}\u{9b}", "\\u{1b}[0m\\u{7f}\\u{9b}"),
        ("\u{202e}\u{feff}\u{200b}", "\\u{202e}\\u{feff}\\u{200b}"),
        ("⟨│⟩", "\\u{27e8}\\u{2502}\\u{27e9}"),
        ("é 語 👍", "é 語 👍"),
    ];
    for (text, expected) in shown {
        assert_eq!(visible(text), expected);
    }
}

#[test]
fn lines_and_columns_have_a_width() {
    let piece = |text: &str| Piece { state: State::Chosen, is_special: false, text: text.to_owned(), breaks: false };
    let long = [piece(&"語".repeat(120)), piece("end")];
    for (text, width) in [(Paint::Plain.lines(&long), 100), (Paint::Plain.columns(&long, &long), 101)] {
        let widths = text.lines().map(unicode_width::UnicodeWidthStr::width);
        assert!(widths.max().unwrap() <= width && text.contains("end│"), "{text}");
    }
    let beside = Paint::Plain.columns(&[piece("a")], &[piece("b"), piece("c")]);
    assert_eq!(beside, format!("  > a│{}  > b│c│\n", " ".repeat(44)));
}
