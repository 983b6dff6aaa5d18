//! The embedded task's own tokenizer: byte-level BPE of 512 entries, trained on the demonstrations, in Hugging Face's
//! files, with a chat template of two markers.

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use crate::error::{Error, Result};

/// Entries of the vocabulary.
pub const VOCABULARY: usize = 512;
/// Ends an answer.
pub const END: &str = "<|endoftext|>";
/// Fills batches elsewhere; never seen in training.
pub const PAD: &str = "<|pad|>";
/// Begins a request.
pub const USER: &str = "<|user|>";
/// Begins an answer.
pub const ASSISTANT: &str = "<|assistant|>";

/// Ids of [`END`], [`PAD`], [`USER`] and [`ASSISTANT`]: special tokens come first.
pub const IDS: [i32; 4] = [0, 1, 2, 3];

/// Requests and answers as the chat template of [`config_json`] writes them.
pub const CHAT_TEMPLATE: &str = concat!(
    "{% for message in messages %}",
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}",
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|endoftext|>' }}",
    "{% else %}{{ raise_exception('only user and assistant take part') }}{% endif %}",
    "{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
);

/// Trains the tokenizer on `texts`.
///
/// # Errors
/// What the tokenizer library answers.
pub fn train(texts: &[String]) -> Result<Tokenizer> {
    let failed = |e: tokenizers::Error| Error::failure("tokenizer-training", e.to_string());
    let special = [END, PAD, USER, ASSISTANT].map(|text| AddedToken::from(text, true));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special.to_vec())
        .build();
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(Some(byte_level))
        .build()
        .map_err(failed)?;
    tokenizer.train(&mut trainer, texts.iter()).map_err(failed)?;
    // Through JSON, because the builder's type names its parts and every user of a tokenizer takes the general one.
    serde_json::to_string(&tokenizer).map_err(|e| e.into()).and_then(|json| json.parse::<Tokenizer>()).map_err(failed)
}

/// The text of `tokenizer_config.json`.
pub fn config_json() -> String {
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 128,
        "bos_token": null,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    });
    format!("{config:#}\n")
}
