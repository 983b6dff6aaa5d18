//! The tokenizer room: what transformers would encode, and files that do not fit together.

use super::super::test_model::{BOS, EOS, IM_END, load, write_tokenizer};
use super::*;

const CONFIG: &str = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null}"#;

fn load_error(file: &str, text: &str) -> Error {
    let dir = tempfile::tempdir().unwrap();
    write_tokenizer(dir.path());
    std::fs::write(dir.path().join(file), text).unwrap();
    Tokenizer::load(dir.path()).unwrap_err()
}

#[test]
fn texts_become_ids_and_come_back() {
    let (_dir, tokenizer) = load(CONFIG);
    let text = "the a é世";
    let plain = tokenizer.encode(text, false).unwrap();
    let full = tokenizer.encode(text, true).unwrap();
    assert_eq!(full.ids, [&[BOS][..], &plain.ids].concat());
    assert_eq!((full.is_added[0], full.is_added[1], full.offsets[0], full.offsets[1]), (true, false, (0, 0), (0, 3)));
    // The space belongs to the token that holds it, although this tokenizer.json asks to trim it off.
    assert_eq!(plain.offsets[1], (3, 5));
    assert_eq!(tokenizer.decode(&full.ids, true).unwrap(), text);
    assert_eq!(tokenizer.decode(&full.ids, false).unwrap(), format!("<s>{text}"));
    assert_eq!(plain.lost_characters(text), 0);
    assert_eq!(tokenizer.encode("", true).unwrap().ids, [BOS]);
    assert!(tokenizer.encode("", true).unwrap().is_empty());
}

#[test]
fn a_bos_in_the_text_is_not_doubled() {
    let (_dir, tokenizer) = load(CONFIG);
    let encoding = tokenizer.encode("<s>the", true).unwrap();
    assert_eq!(encoding, tokenizer.encode("<s>the", false).unwrap());
    assert_eq!((encoding.ids[0], encoding.offsets[0], encoding.is_added[0]), (BOS, (0, 3), false));
    assert_eq!(tokenizer.encode("<s><s>", false).unwrap().ids, [BOS, BOS]);
}

#[test]
fn the_configuration_decides_about_bos_and_eos() {
    let both = r#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false, "add_eos_token": true}"#;
    let (_dir, tokenizer) = load(both);
    let mut encoding = tokenizer.encode("the", true).unwrap();
    assert_eq!((encoding.ids[1], encoding.offsets[1], encoding.is_added[1]), (EOS, (3, 3), true));
    encoding.open_end();
    assert_eq!(encoding, tokenizer.encode("the", false).unwrap());
}

#[test]
fn special_tokens_and_vocabulary() {
    let (dir, tokenizer) = load(CONFIG);
    assert_eq!(
        (tokenizer.bos_token_id(), tokenizer.eos_token_id(), tokenizer.unk_token_id()),
        (Some(BOS), Some(EOS), None)
    );
    assert_eq!(tokenizer.eos_token_ids(), [EOS]);
    assert_eq!(tokenizer.special_tokens().keys().collect::<Vec<_>>(), ["bos_token", "eos_token"]);
    assert_eq!((tokenizer.token_to_id("the"), tokenizer.id_to_token(1).as_deref()), (Some(261), Some("</s>")));
    assert_eq!((tokenizer.id_to_token(-1), tokenizer.id_to_token(999)), (None, None));
    assert_eq!(tokenizer.vocab_size(), 263);
    tokenizer.check_vocabulary(263).unwrap();
    let error = tokenizer.check_vocabulary(262).unwrap_err();
    assert_eq!(error.id(), "vocabulary-too-small");
    assert!(error.to_string().contains("\"Ġa\" with id 262"), "{error}");
    assert_eq!(tokenizer.decode(&[-1], false).unwrap_err().id(), "token-out-of-vocabulary");
    std::fs::write(dir.path().join("special_tokens_map.json"), r#"{"bos_token": "</s>", "unk_token": "th"}"#).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.bos_token_id(), tokenizer.unk_token_id()), (Some(BOS), Some(260)));
}

#[test]
fn several_eos_end_a_response() {
    let (dir, _) = load(CONFIG);
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("config.json", r#"{"eos_token_id": 1}"#);
    let ids = || Tokenizer::load(dir.path()).unwrap().eos_token_ids().to_vec();
    assert_eq!(ids(), [EOS]);
    write("generation_config.json", r#"{"eos_token_id": [3, 2]}"#);
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.eos_token_ids(), tokenizer.eos_token_id()), ([IM_END, 2, EOS].as_slice(), Some(EOS)));
    assert!(tokenizer.notes()[0].contains("\"</s>\" (1) is not among"), "{:?}", tokenizer.notes());
    write("tokenizer_config.json", "{}");
    assert_eq!(Tokenizer::load(dir.path()).unwrap().eos_token_id(), Some(IM_END));
    write("generation_config.json", r#"{"eos_token_id": null}"#);
    assert_eq!(ids(), [EOS]);
    write("config.json", r#"{"eos_token_id": [1, "x"]}"#);
    assert_eq!(Tokenizer::load(dir.path()).unwrap_err().id(), "config-invalid");
}

#[test]
fn tokens_that_only_the_configuration_knows_are_added() {
    let added = r#"{"added_tokens_decoder": {"263": {"content": "<tool>", "special": true}, "0": {"content": "<s>"}}}"#;
    let (_dir, tokenizer) = load(added);
    assert_eq!(tokenizer.encode("<tool>", false).unwrap().ids, [263]);
    assert_eq!(tokenizer.vocab_size(), 264);
    let wrong = added.replace("263", "300");
    assert_eq!(load_error("tokenizer_config.json", &wrong).id(), "tokenizer-inconsistent");
    assert_eq!(
        load_error("tokenizer_config.json", r#"{"added_tokens_decoder": {"1": 5}}"#).id(),
        "tokenizer-inconsistent"
    );
}

#[test]
fn what_is_missing_or_broken_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap_err().id(), "tokenizer-missing");
    for text in ["", "{}", "[", r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}"#] {
        assert_eq!(load_error("tokenizer.json", text).id(), "tokenizer-invalid", "{text}");
    }
    let dropout = r#"{"model": {"type": "BPE", "dropout": 0.1, "vocab": {"a": 0}, "merges": []}}"#;
    assert_eq!(load_error("tokenizer.json", dropout).id(), "tokenizer-dropout");
    assert_eq!(load_error("tokenizer_config.json", r#"{"eos_token": "<end>"}"#).id(), "special-token-unknown");
    assert_eq!(load_error("tokenizer_config.json", "5").id(), "config-invalid");
}

#[test]
fn settings_of_the_file_do_not_cut_or_pad() {
    let (dir, _) = load(CONFIG);
    let path = dir.path().join("tokenizer.json");
    let mut file: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    file["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "</s>"});
    std::fs::write(&path, file.to_string()).unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().encode("abcdefgh", true).unwrap().ids.len(), 9);
}

#[test]
fn text_that_the_tokenizer_drops_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let words = r#"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;
    std::fs::write(dir.path().join("tokenizer.json"), words).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let encoding = tokenizer.encode("xa éa z", false).unwrap();
    assert_eq!((encoding.ids.as_slice(), encoding.lost_characters("xa éa z")), ([0, 0].as_slice(), 3));
}

#[test]
fn steps_that_blow_a_text_up_are_refused() {
    let step = serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"});
    let growth_of = |n: usize| growth(&serde_json::json!({"type": "Sequence", "normalizers": vec![&step; n]}));
    assert_eq!([0, 1, 2, 3].map(growth_of), [1.0, 8.0, 64.0, 512.0]);
    let file = |n: usize| {
        let model = serde_json::json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
        let steps = serde_json::json!({"type": "Sequence", "normalizers": vec![&step; n]});
        serde_json::json!({"added_tokens": [], "normalizer": steps, "model": model}).to_string()
    };
    assert!(parse(file(2).as_bytes()).is_ok());
    let error = parse(file(12).as_bytes()).unwrap_err();
    assert_eq!(error.id(), "tokenizer-invalid");
    assert!(error.to_string().contains("its normalizer may make a text 68719476736 times longer"), "{error}");
}
