//! Texts that the model writes, a token at a time, while the run goes on or after it.

use crate::error::EngineError;
use crate::source::Model;
use crate::stage::MOST_TEXT;
use baton_model::sample;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Texts by the number under which they were asked for.
#[derive(Default)]
pub struct Texts {
    texts: BTreeMap<u32, Text>,
}

/// A text in the making.
pub struct Text {
    ids: Vec<u32>,
    left: u32,
    temperature: f64,
    rng: ChaCha8Rng,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRequest {
    /// The beginning; empty starts from the begin token.
    pub prompt: String,
    /// How many tokens at the most.
    pub tokens: u32,
    /// 0 is greedy.
    pub temperature: f64,
    /// Makes a draw repeatable.
    pub seed: u64,
}

impl Text {
    /// Encodes the beginning as the tokenizer's own post-processor does, without an end token that it may add.
    ///
    /// # Errors
    ///
    /// When it is empty and the model has no begin token, or longer than the model can read.
    pub fn begin(model: &Model, request: &TextRequest) -> Result<Self, EngineError> {
        if model.config.is_encoder() {
            return Err(EngineError::NoWriter);
        }
        let mut ids =
            if request.prompt.is_empty() { Vec::new() } else { model.tokenizer.encode(&request.prompt)? };
        while ids.last().is_some_and(|last| model.config.eos_token_ids.contains(last)) {
            ids.pop();
        }
        if ids.is_empty() {
            ids.push(model.config.bos_token_id.ok_or(EngineError::NoBeginToken)?);
        }
        let most = longest(model);
        if ids.len() >= most {
            return Err(EngineError::PromptTooLong { found: ids.len(), most });
        }
        let rng = ChaCha8Rng::seed_from_u64(request.seed);
        Ok(Self { ids, left: request.tokens, temperature: request.temperature, rng })
    }

    /// All tokens so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Whether it is as long as was asked for, or at its end.
    pub fn is_done(&self, model: &Model) -> bool {
        let ended =
            self.ids.len() > 1 && self.ids.last().is_some_and(|id| model.config.eos_token_ids.contains(id));
        self.left == 0 || ended || self.ids.len() >= longest(model)
    }

    /// Chooses the next token by the logits `[vocab]` that follow the last one.
    pub fn push(&mut self, logits: &[f32]) {
        self.left = self.left.saturating_sub(1);
        self.ids.push(sample(logits, self.temperature, &mut self.rng));
    }

    /// The text as a person reads it.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot decode it.
    pub fn decode(&self, model: &Model) -> Result<String, EngineError> {
        Ok(model.tokenizer.decode(&self.ids, true)?)
    }
}

/// Tokens that a text may have.
fn longest(model: &Model) -> usize {
    model.config.max_position_embeddings.min(MOST_TEXT)
}

impl Texts {
    /// Begins a text; the coordinator is asked to go on with it.
    pub fn insert(&mut self, request: u32, text: Text) {
        self.texts.insert(request, text);
    }

    /// A text in the making.
    pub fn get(&self, request: u32) -> Option<&Text> {
        self.texts.get(&request)
    }

    /// A text in the making, to go on with.
    pub fn get_mut(&mut self, request: u32) -> Option<&mut Text> {
        self.texts.get_mut(&request)
    }

    /// Takes a text out.
    pub fn remove(&mut self, request: u32) -> Option<Text> {
        self.texts.remove(&request)
    }
}
