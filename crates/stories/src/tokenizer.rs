//! The default model's tokenizer: byte-level BPE, so that any text has tokens and comes back as it was.

use std::collections::HashSet;

use anyhow::{Result, anyhow};
use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use crate::plots::{GENERAL, PIRATES};
use crate::{Purpose, Storyteller, Voice};

/// What batches are padded with.
pub const PAD: (&str, u32) = ("<pad>", 0);
/// Begins every text.
pub const BEGIN: (&str, u32) = ("<s>", 1);
/// Ends a story.
pub const END: (&str, u32) = ("</s>", 2);
/// All 256 bytes, the special tokens, and what the trainer merges.
pub const VOCABULARY: usize = 1280;

/// Plain stories that it is trained on, and half as many of the pirate's.
const STORIES: usize = 4000;

/// `tokenizer.json`, the same bytes for the same seed.
///
/// # Errors
///
/// When the tokenizer library refuses its own settings.
pub fn train(seed: u64) -> Result<String> {
    let lines = corpus(seed);
    let special: Vec<_> = [PAD, BEGIN, END].map(|(token, _)| AddedToken::from(token, true)).into();
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<_>>())
        .build()
        .into();
    let mut tokenizer = Tokenizer::new(BPE::default());
    // No space is put in front, so that a text comes back without one.
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.train(&mut trainer, lines.into_iter()).map_err(library)?;
    let begin = |text: &str| format!("{}:0 {text}", BEGIN.0);
    let template = TemplateProcessing::builder()
        .try_single(begin("$A:0"))
        .and_then(|builder| builder.try_pair(begin("$A:0 $B:0")))
        .map_err(|reason| anyhow!("the template cannot be read: {reason}"))?
        .special_tokens(vec![BEGIN])
        .build()?;
    tokenizer.with_post_processor(Some(template));
    tokenizer.to_string(true).map_err(library)
}

/// `tokenizer_config.json`, for transformers' AutoTokenizer.
pub fn config() -> serde_json::Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN.0,
        "eos_token": END.0,
        "pad_token": PAD.0,
        "clean_up_tokenization_spaces": false,
        "model_max_length": crate::model::CONTEXT,
    })
}

fn corpus(seed: u64) -> Vec<String> {
    let mut teller = Storyteller::new(seed, Purpose::Tokenizer);
    let mut lines = Vec::new();
    for number in 0..STORIES {
        lines.push(teller.tell(Voice::Plain).text);
        if number % 2 == 0 {
            lines.push(teller.tell(Voice::Pirate).text);
        }
        if number % 100 == 0 {
            lines.extend(GENERAL.iter().map(ToString::to_string));
            let cast = crate::Cast::draw(&mut teller.rng);
            lines.extend(PIRATES.iter().map(|template| cast.fill(template)));
        }
    }
    lines
}

/// The library's error is a box that is no `std::error::Error` of a known type.
#[expect(clippy::needless_pass_by_value, reason = "map_err gives it away")]
fn library(error: tokenizers::Error) -> anyhow::Error {
    anyhow!("the tokenizer library says: {error}")
}
