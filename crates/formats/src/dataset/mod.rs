//! Training text: files of many forms, to samples, to token ids with what the loss is taken on.
//!
//! [`inspect`] says what a file holds and suggests a [`Mapping`] of its columns, which a person may change ([`choose`] does
//! it by their names); [`parse_with`] reads the file so, and [`parse`] does both. [`encode`] (or an [`Encoder`], a few samples at a time) makes token ids of
//! the samples, and [`Dataset::split`] puts some aside to validate on.

mod columns;
mod encode;
mod mapping;
mod read;
mod records;
mod split;

pub use columns::{ColumnChoice, choose};
pub use encode::{Encoded, Encoder, Encoding, Example, Lengths, Progress, Target, encode};
pub use mapping::{Column, ColumnView, Form, Format, Inspection, LabelKind, Mapping, Role, inspect};
pub use read::{parse, parse_with};
pub use records::Place;
pub use split::Validation;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::chat::{ChatError, ChatMessage, ChatTemplate, Segment};
use crate::tokenizer::TokenizerError;

/// Samples as text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// At least one.
    pub samples: Vec<Sample>,
    /// The names of the classes that [`Label::Class`] counts; none where labels are values, or there are none.
    pub labels: Vec<String>,
    /// Records left out because they held nothing to train on: blank lines, empty texts, conversations without an
    /// assistant.
    pub skipped: usize,
}

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its text.
    pub body: SampleBody,
    /// What a classification or regression head is to say of it.
    pub label: Option<Label>,
}

/// The text of a sample. A conversation becomes one text only when it is known how the model writes conversations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SampleBody {
    /// Pieces that make one text, of which some are trained on and some only read.
    Segments(Vec<Segment>),
    /// A conversation.
    Chat(Vec<ChatMessage>),
    /// A task in Alpaca's form: a conversation of two messages where the model has a chat template, Alpaca's own prompt
    /// otherwise.
    Task {
        /// What to do.
        instruction: String,
        /// With what; may be empty.
        input: String,
        /// How it is done.
        output: String,
    },
    /// Two texts that an encoder reads beside each other.
    Pair(String, String),
}

/// What a head is to say of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Label {
    /// A class, by its place in [`Dataset::labels`].
    Class(u32),
    /// A value.
    Value(f32),
}

/// Why text cannot be trained on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DatasetError {
    /// There is no text.
    #[error(
        "{name} has nothing to train on: it is empty, or none of its samples has a text (or, in a chat, an assistant's message) to learn"
    )]
    Empty {
        /// The file's name.
        name: String,
    },
    /// More text than is held in memory.
    #[error("{name} has {size} bytes, more than the {limit} that a text may have; take a part of it")]
    TooLarge {
        /// The file's name.
        name: String,
        /// Its size in bytes.
        size: usize,
        /// The largest size allowed.
        limit: usize,
    },
    /// Not text.
    #[error("{name} is not UTF-8 text (line {line}); save it as UTF-8")]
    NotUtf8 {
        /// The file's name.
        name: String,
        /// The line of the first wrong byte, from 1.
        line: usize,
    },
    /// A record is no JSON.
    #[error("{place} of {name} is not a JSON record: {reason}")]
    Json {
        /// The file's name.
        name: String,
        /// Where.
        place: Place,
        /// What the JSON reader said.
        reason: String,
    },
    /// A row of a table cannot be read.
    #[error("{place} of {name} cannot be read as a row: {reason}")]
    Row {
        /// The file's name.
        name: String,
        /// Where.
        place: Place,
        /// What is wrong with it.
        reason: String,
    },
    /// A row of a table has more or fewer cells than the first.
    #[error(
        "{place} of {name} has {found} columns where the first row has {expected}; is a quote or a separator missing?"
    )]
    Ragged {
        /// The file's name.
        name: String,
        /// Where.
        place: Place,
        /// How many cells it has.
        found: usize,
        /// How many the first row has.
        expected: usize,
    },
    /// More columns than a table can have.
    #[error("{name} has more than {limit} columns; is it a table of texts?")]
    Columns {
        /// The file's name.
        name: String,
        /// The most allowed.
        limit: usize,
    },
    /// A record has none of the known forms.
    #[error(
        "{place} of {name} has the fields {fields:?}; a record must have either \"text\" (and a \"label\"), or \"prompt\" and \
         \"completion\", or \"instruction\" and \"output\", or \"messages\" (or \"conversations\"), or its columns must be \
         named by hand"
    )]
    Record {
        /// The file's name.
        name: String,
        /// Where.
        place: Place,
        /// The fields that it has.
        fields: Vec<String>,
    },
    /// A field is not what its column should hold.
    #[error("{place} of {name}: {column:?} should be {expected}, and is {found}")]
    Field {
        /// The file's name.
        name: String,
        /// Where.
        place: Place,
        /// The column.
        column: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The columns do not make samples.
    #[error("the columns cannot be read so: {reason}")]
    Mapping {
        /// What is missing, or too much.
        reason: String,
    },
    /// More classes than a head can have.
    #[error(
        "{name} has more than {limit} different labels; are they classes? Choose another column, or read them as values"
    )]
    Classes {
        /// The file's name.
        name: String,
        /// The most allowed.
        limit: usize,
    },
    /// Sequences too short to learn from.
    #[error("a sequence length of {seq_len} leaves nothing to predict; it must be at least 2")]
    SeqLen {
        /// The length.
        seq_len: usize,
    },
    /// No sample has a token to learn.
    #[error(
        "none of the {samples} samples has a token to learn within {seq_len} tokens; raise the sequence length"
    )]
    NoTargets {
        /// How many samples there are.
        samples: usize,
        /// The length that they were cut to.
        seq_len: usize,
    },
    /// A head has nothing to learn.
    #[error("none of the {samples} samples has a label; choose the column that holds the labels")]
    NoLabels {
        /// How many samples there are.
        samples: usize,
    },
    /// A token that the model does not have.
    #[error(
        "the tokenizer gives token {id}, and the model knows only {vocab_size}; they do not belong together"
    )]
    TokenOutside {
        /// The token.
        id: u32,
        /// The size of the model's vocabulary.
        vocab_size: usize,
    },
    /// No part can be put aside.
    #[error(
        "{samples} samples, of which {distinct} differ, cannot be split in two parts; validation needs at least 2 that differ"
    )]
    Split {
        /// How many samples there are.
        samples: usize,
        /// How many of them differ.
        distinct: usize,
    },
    /// A share that is none.
    #[error("a validation share of {share} is not from 0 to below 1")]
    Share {
        /// The share.
        share: f64,
    },
    /// No conversation could be written as the model's chat template asks.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A sample could not be made into tokens.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl Sample {
    /// A sample of one text, all of it to learn.
    pub fn text(text: impl Into<String>) -> Self {
        Self { body: SampleBody::Segments(vec![Segment::trained(text)]), label: None }
    }

    /// The pieces of its text as a model with this chat template reads them; without one, a conversation is `role: content`
    /// and a newline for each message, and what the assistant says is learned together with that newline: it is how the
    /// model learns to stop.
    ///
    /// # Errors
    ///
    /// When the template refuses the conversation.
    pub fn segments(&self, template: Option<&ChatTemplate>) -> Result<Cow<'_, [Segment]>, ChatError> {
        let segments = match (&self.body, template) {
            (SampleBody::Segments(segments), _) => return Ok(Cow::Borrowed(segments)),
            (SampleBody::Chat(messages), Some(template)) => template.segments(messages)?,
            (SampleBody::Chat(messages), None) => messages.iter().flat_map(turn).collect(),
            (SampleBody::Task { instruction, input, output }, Some(template)) => {
                let asked = match input.trim() {
                    "" => instruction.clone(),
                    _ => format!("{instruction}\n\n{input}"),
                };
                template
                    .segments(&[ChatMessage::new("user", asked), ChatMessage::new("assistant", output)])?
            }
            (SampleBody::Task { instruction, input, output }, None) => {
                vec![Segment::read(alpaca(instruction, input)), Segment::trained(output)]
            }
            (SampleBody::Pair(first, second), _) => {
                vec![Segment::trained(first), Segment::trained(format!("\n{second}"))]
            }
        };
        Ok(Cow::Owned(segments))
    }

    /// Whether its text is a conversation that a chat template writes with its own special tokens.
    fn templated(&self) -> bool {
        matches!(self.body, SampleBody::Chat(_) | SampleBody::Task { .. })
    }

    /// Whether there is anything to learn in it.
    fn useful(&self) -> bool {
        let text = |text: &str| !text.trim().is_empty();
        match &self.body {
            SampleBody::Segments(segments) => segments.iter().any(|part| part.train && text(&part.text)),
            SampleBody::Chat(messages) => {
                messages.iter().any(|message| message.by_assistant() && text(&message.content))
            }
            SampleBody::Task { output, .. } => text(output),
            SampleBody::Pair(first, second) => text(first) || text(second),
        }
    }
}

/// One message as text.
fn turn(message: &ChatMessage) -> [Segment; 2] {
    let ChatMessage { role, content } = message;
    let train = message.by_assistant() && !content.trim().is_empty();
    [Segment::read(format!("{role}: ")), Segment { text: format!("{content}\n"), train }]
}

/// The prompt of Stanford Alpaca (tatsu-lab/stanford_alpaca, `text` of its data set), up to where the answer begins.
fn alpaca(instruction: &str, input: &str) -> String {
    match input.trim() {
        "" => format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Response:\n"
        ),
        _ => format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
             response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
    }
}
