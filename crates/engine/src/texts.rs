//! Texts that the model writes, a token at a time, while the run goes on or after it.

use crate::error::EngineError;
use crate::source::Model;
use crate::stage::MOST_TEXT;
use baton_formats::{ChatMessage, DatasetError};
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
    /// How many of them were given.
    given: usize,
    /// Whether those are left out of what a person reads.
    answer: bool,
    left: u32,
    temperature: f64,
    rng: ChaCha8Rng,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRequest {
    /// What it goes on from.
    pub prompt: Prompt,
    /// How many tokens at the most.
    pub tokens: u32,
    /// 0 is greedy.
    pub temperature: f64,
    /// Makes a draw repeatable.
    pub seed: u64,
}

/// What a text goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// The beginning of a text; empty starts from the begin token.
    Text(String),
    /// The beginning of a conversation as a chat template writes it, with the special tokens in its text.
    Templated(String),
    /// A conversation that the assistant is to go on with. A model without a chat template goes on with its last message.
    Chat(Vec<ChatMessage>),
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Prompt {
    /// The tokens of it: those of a text are as the tokenizer's own post-processor gives them, without an end token that it
    /// may add; a template has written all special tokens itself.
    fn encode(&self, model: &Model) -> Result<Vec<u32>, EngineError> {
        let text = |text: &str| {
            let mut ids = if text.is_empty() { Vec::new() } else { model.tokenizer.encode(text)? };
            while ids.last().is_some_and(|last| model.config.eos_token_ids.contains(last)) {
                ids.pop();
            }
            Ok(ids)
        };
        match (self, &model.template) {
            (Self::Text(beginning), _) => text(beginning),
            (Self::Templated(beginning), _) => Ok(model.tokenizer.encode_plain(beginning)?),
            (Self::Chat(messages), Some(template)) => {
                let rendered = template.render(messages, true).map_err(DatasetError::from)?;
                Ok(model.tokenizer.encode_plain(&rendered)?)
            }
            (Self::Chat(messages), None) => {
                text(messages.last().map_or("", |message| message.content.as_str()))
            }
        }
    }
}

impl Text {
    /// Encodes the beginning.
    ///
    /// # Errors
    ///
    /// When it is empty and the model has no begin token, longer than the model can read, or a conversation that the model's
    /// chat template refuses.
    pub fn begin(model: &Model, request: &TextRequest) -> Result<Self, EngineError> {
        if model.config.is_encoder() {
            return Err(EngineError::NoWriter);
        }
        let mut ids = request.prompt.encode(model)?;
        if ids.is_empty() {
            ids.push(model.config.bos_token_id.ok_or(EngineError::NoBeginToken)?);
        }
        let most = longest(model);
        if ids.len() >= most {
            return Err(EngineError::PromptTooLong { found: ids.len(), most });
        }
        let rng = ChaCha8Rng::seed_from_u64(request.seed);
        let (given, answer) = (ids.len(), matches!(request.prompt, Prompt::Chat(_)));
        Ok(Self { ids, given, answer, left: request.tokens, temperature: request.temperature, rng })
    }

    /// All tokens so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Whether it is as long as was asked for, or at its end.
    pub fn is_done(&self, model: &Model) -> bool {
        let ended = self.ids.len() > self.given
            && self.ids.last().is_some_and(|id| model.config.eos_token_ids.contains(id));
        self.left == 0 || ended || self.ids.len() >= longest(model)
    }

    /// Chooses the next token by the logits `[vocab]` that follow the last one.
    pub fn push(&mut self, logits: &[f32]) {
        self.left = self.left.saturating_sub(1);
        self.ids.push(sample(logits, self.temperature, &mut self.rng));
    }

    /// The text as a person reads it: with its beginning, but of a conversation only the answer.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot decode it.
    pub fn decode(&self, model: &Model) -> Result<String, EngineError> {
        let from = if self.answer { self.given } else { 0 };
        Ok(model.tokenizer.decode(self.ids.get(from..).unwrap_or_default(), true)?)
    }

    /// What was given, as a person reads it.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot decode it.
    pub fn decode_prompt(&self, model: &Model) -> Result<String, EngineError> {
        Ok(model.tokenizer.decode(self.ids.get(..self.given).unwrap_or_default(), true)?)
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
