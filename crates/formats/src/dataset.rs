//! Training text: plain lines or jsonl, to samples, to token ids with a mask of what the loss is taken on.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::chat::Segment;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// A text is held whole, a few times over: as bytes, as samples, as tokens.
const SIZE_LIMIT: usize = 256 << 20;

/// Samples as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// At least one.
    pub samples: Vec<Sample>,
    /// Records left out because they held nothing to train on: blank lines, empty texts, conversations without an
    /// assistant.
    pub skipped: usize,
}

/// One sample: its segments make one text, of which some is trained on and some only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// In the order of the text.
    pub segments: Vec<Segment>,
}

/// How samples become token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// The most tokens that an example may have.
    pub seq_len: usize,
    /// A token to add to the end of every sample.
    pub append_eos: Option<u32>,
    /// Whether samples are joined, in order, and cut into examples of `seq_len` tokens. Attention then reaches across
    /// samples, and the first token of a sample is learned from the end of the one before.
    pub packing: bool,
}

/// A sample as token ids: the loss is taken on token `i` where `train[i]`.
///
/// `train[0]` is false: nothing comes before the first token that could foretell it. Some later entry is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The tokens, at least two.
    pub ids: Vec<u32>,
    /// As long as `ids`.
    pub train: Vec<bool>,
}

/// A data set as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// At least one, in the order of the file.
    pub examples: Vec<Example>,
    /// How many tokens were cut off because they did not fit `seq_len`.
    pub truncated_tokens: usize,
    /// How many samples (packed: chunks) were left out because, cut or not, they had no token to learn.
    pub dropped: usize,
}

/// Why text cannot be trained on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// A line of a jsonl file is not a record.
    #[error("line {line} of {name} is not a JSON record: {reason}")]
    Json {
        /// The file's name.
        name: String,
        /// The line, from 1.
        line: usize,
        /// What the JSON reader said.
        reason: String,
    },
    /// A record is none, or more than one, of the three forms.
    #[error(
        "line {line} of {name} has the fields {fields:?}; each line must have \
         either \"text\", or \"prompt\" and \"completion\", or \"messages\""
    )]
    Record {
        /// The file's name.
        name: String,
        /// The line, from 1.
        line: usize,
        /// The fields that it has.
        fields: Vec<String>,
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
    /// A sample could not be made into tokens.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Reads a text file.
///
/// A name that ends in `.jsonl` (or `.ndjson`, `.json`) means a JSON record a line, each of one of three forms:
/// - `{"text"}`: all of it is trained on;
/// - `{"prompt", "completion"}`: the completion is trained on, joined to the prompt as it is written;
/// - `{"messages": [{"role", "content"}]}`: as `role: content` and a newline for each, and what the assistant says is
///   trained on, together with that newline: it is how the model learns to stop.
///
/// Other names mean plain text, a sample a line: the whole line but for its `\n` or `\r\n`.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Dataset, DatasetError> {
    if bytes.len() > SIZE_LIMIT {
        return Err(DatasetError::TooLarge { name: name.to_owned(), size: bytes.len(), limit: SIZE_LIMIT });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.iter().take(error.valid_up_to());
        DatasetError::NotUtf8 {
            name: name.to_owned(),
            line: 1 + before.filter(|byte| **byte == b'\n').count(),
        }
    })?;
    // Windows editors begin a UTF-8 file with this mark; it is not text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lower = name.to_ascii_lowercase();
    let jsonl = [".jsonl", ".ndjson", ".json"].iter().any(|ending| lower.ends_with(ending));
    let mut dataset = Dataset { samples: Vec::new(), skipped: 0 };
    for (index, line) in text.lines().enumerate() {
        let sample = match (line.trim().is_empty(), jsonl) {
            (true, _) => None,
            (false, false) => Some(Sample { segments: vec![Segment::trained(line)] }),
            (false, true) => record(name, index + 1, line)?,
        };
        match sample {
            Some(sample) => dataset.samples.push(sample),
            None => dataset.skipped += 1,
        }
    }
    if dataset.samples.is_empty() {
        return Err(DatasetError::Empty { name: name.to_owned() });
    }
    Ok(dataset)
}

/// Makes examples of samples.
///
/// A sample's text is encoded in one go, as the tokenizer's own post-processor does, so that tokens are those of the
/// joined text wherever segments meet; a token is trained on if it stands for any of a trained segment's text. Special
/// tokens that the post-processor adds go with what is before them, those at the start with the first segment.
pub fn encode(
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    encoding: &Encoding,
) -> Result<Encoded, DatasetError> {
    let seq_len = encoding.seq_len;
    if seq_len < 2 {
        return Err(DatasetError::SeqLen { seq_len });
    }
    let mut encoded = Encoded { examples: Vec::new(), truncated_tokens: 0, dropped: 0 };
    let mut stream = Tokens::default();
    for sample in &dataset.samples {
        let mut tokens = sample.tokens(tokenizer)?;
        if let Some(eos) = encoding.append_eos {
            tokens.push(eos, sample.segments.last().is_some_and(|segment| segment.train));
        }
        if encoding.packing {
            stream.append(tokens);
            while stream.ids.len() >= seq_len {
                let rest = stream.split_off(seq_len);
                encoded.add(std::mem::replace(&mut stream, rest));
            }
        } else {
            encoded.truncated_tokens += tokens.split_off(seq_len).ids.len();
            encoded.add(tokens);
        }
    }
    match stream.ids.len() {
        0 => {}
        // It has nothing before it in its chunk.
        1 => encoded.truncated_tokens += 1,
        _ => encoded.add(stream),
    }
    if encoded.examples.is_empty() {
        return Err(DatasetError::NoTargets { samples: dataset.samples.len(), seq_len });
    }
    Ok(encoded)
}

impl Encoded {
    /// Refuses tokens that a model of `vocab_size` tokens does not have.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<(), DatasetError> {
        let outside = |id: &&u32| u64::from(**id) >= vocab_size as u64;
        match self.examples.iter().flat_map(|example| &example.ids).find(outside) {
            Some(id) => Err(DatasetError::TokenOutside { id: *id, vocab_size }),
            None => Ok(()),
        }
    }

    /// The tokens that the loss is taken on.
    pub fn targets(&self) -> usize {
        self.examples.iter().flat_map(|example| &example.train).filter(|train| **train).count()
    }

    fn add(&mut self, tokens: Tokens) {
        let Tokens { ids, mut train } = tokens;
        if let Some(first) = train.first_mut() {
            *first = false;
        }
        if train.contains(&true) {
            self.examples.push(Example { ids, train });
        } else {
            self.dropped += 1;
        }
    }
}

impl Sample {
    fn tokens(&self, tokenizer: &Tokenizer) -> Result<Tokens, TokenizerError> {
        if let [segment] = self.segments.as_slice() {
            // The common case needs no spans.
            let ids = tokenizer.encode(&segment.text)?;
            let train = vec![segment.train; ids.len()];
            return Ok(Tokens { ids, train });
        }
        let mut text = String::new();
        let mut trained: Vec<Range<usize>> = Vec::new();
        for segment in &self.segments {
            let start = text.len();
            text.push_str(&segment.text);
            if segment.train {
                trained.push(start..text.len());
            }
        }
        let mut tokens = Tokens::default();
        let mut last = self.segments.first().is_some_and(|segment| segment.train);
        for token in tokenizer.encode_spans(&text)? {
            // A token that stands for no text of its own goes with the one before.
            if let Some(span) = token.span.filter(|span| !span.is_empty()) {
                last = trained.iter().any(|part| part.start < span.end && span.start < part.end);
            }
            tokens.push(token.id, last);
        }
        Ok(tokens)
    }
}

/// Token ids, each with whether it is trained on; the first may be, as long as something may come before it.
#[derive(Default)]
struct Tokens {
    ids: Vec<u32>,
    train: Vec<bool>,
}

impl Tokens {
    fn push(&mut self, id: u32, train: bool) {
        self.ids.push(id);
        self.train.push(train);
    }

    fn append(&mut self, mut other: Self) {
        self.ids.append(&mut other.ids);
        self.train.append(&mut other.train);
    }

    /// Keeps the first `length` tokens and gives the rest.
    fn split_off(&mut self, length: usize) -> Self {
        let length = length.min(self.ids.len());
        Self { ids: self.ids.split_off(length), train: self.train.split_off(length) }
    }
}

/// A line of a jsonl file.
#[derive(Deserialize)]
struct Record {
    text: Option<String>,
    prompt: Option<String>,
    completion: Option<String>,
    messages: Option<Vec<Message>>,
    #[serde(flatten)]
    other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

/// The sample in a line, or `None` where it has nothing to train on.
fn record(name: &str, line: usize, json: &str) -> Result<Option<Sample>, DatasetError> {
    let record: Record = serde_json::from_str(json).map_err(|error| DatasetError::Json {
        name: name.to_owned(),
        line,
        reason: error.to_string(),
    })?;
    let segments = match record {
        Record { text: Some(text), prompt: None, completion: None, messages: None, .. } => {
            vec![Segment::trained(text)]
        }
        Record { text: None, prompt: Some(prompt), completion: Some(completion), messages: None, .. } => {
            vec![Segment::read(prompt), Segment::trained(completion)]
        }
        Record { text: None, prompt: None, completion: None, messages: Some(messages), .. } => {
            messages.into_iter().flat_map(turn).collect()
        }
        record => return Err(DatasetError::Record { name: name.to_owned(), line, fields: record.fields() }),
    };
    let useful = segments.iter().any(|segment| segment.train && !segment.text.trim().is_empty());
    Ok(useful.then_some(Sample { segments }))
}

impl Record {
    fn fields(&self) -> Vec<String> {
        let known = [
            ("text", self.text.is_some()),
            ("prompt", self.prompt.is_some()),
            ("completion", self.completion.is_some()),
            ("messages", self.messages.is_some()),
        ];
        let known = known.into_iter().filter(|(_, there)| *there).map(|(field, _)| field.to_owned());
        known.chain(self.other.keys().take(20).cloned()).collect()
    }
}

/// One message as text.
fn turn(message: Message) -> [Segment; 2] {
    let Message { role, content } = message;
    let head = Segment::read(format!("{role}: "));
    let body = format!("{content}\n");
    let train = role == "assistant" && !content.trim().is_empty();
    [head, Segment { text: body, train }]
}
