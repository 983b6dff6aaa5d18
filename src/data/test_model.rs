//! A tiny model folder for the tests of this room: a byte-level tokenizer with a few merges, ChatML's tokens, and a
//! post-processor that writes a BOS.

use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::sequence::Sequence;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::tokenizer::Tokenizer;

pub(super) const BOS: i32 = 0;
pub(super) const EOS: i32 = 1;
pub(super) const IM_START: i32 = 2;
pub(super) const IM_END: i32 = 3;

/// ChatML, without generation tags.
pub(super) const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content \
                                 + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}\
                                 {{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Writes tokenizer.json: 4 special tokens, 256 bytes, and the merges `th`, `the` and ` a`.
pub(super) fn write_tokenizer(dir: &Path) {
    let special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];
    let mut alphabet: Vec<String> = ByteLevel::alphabet().iter().map(char::to_string).collect();
    alphabet.sort();
    let merged = ["th", "the", "\u{120}a"].map(str::to_string);
    let tokens = special.map(str::to_string).into_iter().chain(alphabet).chain(merged);
    let vocabulary: Vocab = tokens.enumerate().map(|(id, token)| (token, id as u32)).collect();
    let merges = [("t", "h"), ("th", "e"), ("\u{120}", "a")].map(|(a, b)| (a.to_string(), b.to_string())).to_vec();
    let model = BPE::builder().vocab_and_merges(vocabulary, merges).build().unwrap();
    let mut inner = Inner::new(model);
    inner.add_special_tokens(special.map(|token| AddedToken::from(token, true))).unwrap();
    inner.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    inner.with_decoder(Some(ByteLevel::default()));
    let mut bos = TemplateProcessing::builder();
    let bos = bos.try_single("<s> $A").unwrap().special_tokens(vec![("<s>", 0_u32)]).build().unwrap();
    let steps = vec![ByteLevel::default().trim_offsets(true).into(), bos.into()];
    inner.with_post_processor(Some(Sequence::new(steps)));
    inner.save(dir.join("tokenizer.json"), false).unwrap();
}

/// The tokenizer of a folder with this tokenizer_config.json.
pub(super) fn load(config: &str) -> (tempfile::TempDir, Tokenizer) {
    let dir = tempfile::tempdir().unwrap();
    write_tokenizer(dir.path());
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    (dir, tokenizer)
}
