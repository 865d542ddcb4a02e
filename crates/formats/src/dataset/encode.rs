//! Samples to token ids, with what the loss is taken on, and what was cut off on the way.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Dataset, DatasetError, Label, Sample, SampleBody};
use crate::chat::{ChatTemplate, Segment};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// What is learned of the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// To write their trained text.
    #[default]
    Text,
    /// To give their label; samples without one are left out.
    Label,
}

/// How samples become token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// The most tokens that an example may have.
    pub seq_len: usize,
    /// A token to add to the end of every sample, but for conversations that a chat template writes: it ends their turns
    /// itself.
    pub append_eos: Option<u32>,
    /// Whether samples are joined, in order, and cut into examples of `seq_len` tokens. Attention then reaches across
    /// samples, and the first token of a sample is learned from the end of the one before. Nothing is cut off but a last
    /// single token. Labels cannot be packed: this is passed over where they are the target.
    pub packing: bool,
    /// What is learned.
    pub target: Target,
}

/// A sample as token ids: the loss is taken on token `i` where `train[i]`.
///
/// `train[0]` is false: nothing comes before the first token that could foretell it. Some later entry is true, unless a
/// label is to be learned: then none is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// The tokens, at least two (one where a label is to be learned).
    pub ids: Vec<u32>,
    /// As long as `ids`.
    pub train: Vec<bool>,
    /// Which of two texts each token is of, as long as `ids`; empty where all are 0.
    pub type_ids: Vec<u32>,
    /// What a head is to say.
    pub label: Option<Label>,
}

/// A data set as token ids.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// At least one, in the order of the file.
    pub examples: Vec<Example>,
    /// How many tokens were cut off because they did not fit `seq_len`.
    pub truncated_tokens: usize,
    /// How many samples lost tokens.
    pub truncated_samples: usize,
    /// How many samples (packed: chunks) were left out because, cut or not, they had nothing to learn.
    pub dropped: usize,
    /// How many conversations were left out because the model's chat template cannot write them.
    pub refused: usize,
    /// Why the first of them was, in words.
    pub refusal: Option<String>,
    /// How long the samples are before they are cut or packed.
    pub lengths: Lengths,
}

/// How many tokens samples have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lengths {
    /// How many samples there are.
    pub samples: usize,
    /// How many tokens they have together.
    pub tokens: u64,
    /// Half of the samples have no more.
    pub median: usize,
    /// Nine in ten have no more.
    pub p90: usize,
    /// 99 in 100 have no more.
    pub p99: usize,
    /// None has more.
    pub longest: usize,
    /// How many samples have at most so many tokens, and more than the entry before: `(8, _), (16, _), …`, up to the longest.
    pub histogram: Vec<(usize, usize)>,
}

/// How far an [`Encoder`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Samples encoded.
    pub done: usize,
    /// All samples.
    pub total: usize,
    /// Their tokens so far.
    pub tokens: u64,
}

impl Progress {
    /// Whether all samples are encoded.
    pub fn finished(&self) -> bool {
        self.done >= self.total
    }
}

/// Encodes a data set a few samples at a time, so that whoever does it stays answerable.
#[derive(Debug)]
pub struct Encoder<'a> {
    dataset: &'a Dataset,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    encoding: Encoding,
    next: usize,
    stream: Tokens,
    lens: Vec<usize>,
    encoded: Encoded,
    refusal: Option<DatasetError>,
}

/// Makes examples of samples, all in one go; see [`Encoder`].
///
/// # Errors
///
/// As [`Encoder::step`] and [`Encoder::finish`].
pub fn encode(
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    encoding: &Encoding,
) -> Result<Encoded, DatasetError> {
    let mut encoder = Encoder::new(dataset, tokenizer, template, encoding)?;
    encoder.step(usize::MAX)?;
    encoder.finish()
}

impl<'a> Encoder<'a> {
    /// Starts at the first sample.
    ///
    /// A sample's text is encoded in one go, as the tokenizer's own post-processor does, so that tokens are those of the
    /// joined text wherever segments meet; a token is trained on if it stands for any of a trained segment's text. Special
    /// tokens that the post-processor adds go with what is before them, those at the start with the first segment. A
    /// conversation written by a chat template has its special tokens in its text, and gets no others.
    ///
    /// # Errors
    ///
    /// When the sequences are too short to learn from.
    pub fn new(
        dataset: &'a Dataset,
        tokenizer: &'a Tokenizer,
        template: Option<&'a ChatTemplate>,
        encoding: &Encoding,
    ) -> Result<Self, DatasetError> {
        if encoding.seq_len < 2 {
            return Err(DatasetError::SeqLen { seq_len: encoding.seq_len });
        }
        Ok(Self {
            dataset,
            tokenizer,
            template,
            encoding: encoding.clone(),
            next: 0,
            stream: Tokens::default(),
            lens: Vec::new(),
            encoded: Encoded::default(),
            refusal: None,
        })
    }

    /// Encodes up to so many more samples. A sample is encoded whole, however long it is.
    ///
    /// # Errors
    ///
    /// When the tokenizer has no token for some of the text.
    pub fn step(&mut self, samples: usize) -> Result<Progress, DatasetError> {
        let end = self.next.saturating_add(samples).min(self.dataset.samples.len());
        let dataset = self.dataset;
        for sample in dataset.samples.get(self.next..end).unwrap_or_default() {
            match self.encoding.target {
                Target::Text => self.add_text(sample)?,
                Target::Label => self.add_labelled(sample)?,
            }
            self.next += 1;
        }
        Ok(Progress { done: self.next, total: dataset.samples.len(), tokens: self.encoded.lengths.tokens })
    }

    /// The examples of the samples so far.
    ///
    /// # Errors
    ///
    /// When there are none, with why the first conversation was refused, if the model's chat template refused some.
    pub fn finish(mut self) -> Result<Encoded, DatasetError> {
        match self.stream.ids.len() {
            0 => {}
            // It has nothing before it in its chunk.
            1 => self.encoded.truncated_tokens += 1,
            _ => self.encoded.add(self.stream),
        }
        if self.encoded.examples.is_empty() {
            let samples = self.dataset.samples.len();
            return Err(match (self.refusal, self.encoding.target) {
                (Some(refusal), _) => refusal,
                (None, Target::Text) => DatasetError::NoTargets { samples, seq_len: self.encoding.seq_len },
                (None, Target::Label) => DatasetError::NoLabels { samples },
            });
        }
        self.encoded.refusal = self.refusal.map(|refusal| refusal.to_string());
        self.encoded.lengths = Lengths::of(self.lens);
        Ok(self.encoded)
    }

    fn add_text(&mut self, sample: &Sample) -> Result<(), DatasetError> {
        let segments = match sample.segments(self.template) {
            Ok(segments) => segments,
            Err(error) => {
                self.encoded.refused += 1;
                self.refusal.get_or_insert(error.into());
                return Ok(());
            }
        };
        let templated = self.template.is_some() && sample.templated();
        let mut tokens = tokens(&segments, self.tokenizer, !templated)?;
        if let Some(eos) = self.encoding.append_eos.filter(|_| !templated) {
            tokens.push(eos, segments.last().is_some_and(|segment| segment.train));
        }
        self.count(tokens.ids.len());
        let seq_len = self.encoding.seq_len;
        if self.encoding.packing {
            self.stream.append(tokens);
            while self.stream.ids.len() >= seq_len {
                let rest = self.stream.split_off(seq_len);
                self.encoded.add(std::mem::replace(&mut self.stream, rest));
            }
        } else {
            let cut = tokens.split_off(seq_len).ids.len();
            self.encoded.cut(cut);
            self.encoded.add(tokens);
        }
        Ok(())
    }

    fn add_labelled(&mut self, sample: &Sample) -> Result<(), DatasetError> {
        let Some(label) = sample.label else {
            self.encoded.dropped += 1;
            return Ok(());
        };
        let framed = match &sample.body {
            SampleBody::Pair(first, second) => {
                self.tokenizer.encode_framed(first, Some(second), self.encoding.seq_len)?
            }
            _ => {
                let segments = match sample.segments(self.template) {
                    Ok(segments) => segments,
                    Err(error) => {
                        self.encoded.refused += 1;
                        self.refusal.get_or_insert(error.into());
                        return Ok(());
                    }
                };
                let text: String = segments.iter().map(|segment| segment.text.as_str()).collect();
                self.tokenizer.encode_framed(&text, None, self.encoding.seq_len)?
            }
        };
        self.count(framed.ids.len() + framed.cut);
        self.encoded.cut(framed.cut);
        if framed.ids.is_empty() {
            self.encoded.dropped += 1;
            return Ok(());
        }
        let type_ids =
            if framed.type_ids.iter().all(|type_id| *type_id == 0) { Vec::new() } else { framed.type_ids };
        let train = vec![false; framed.ids.len()];
        self.encoded.examples.push(Example { ids: framed.ids, train, type_ids, label: Some(label) });
        Ok(())
    }

    fn count(&mut self, tokens: usize) {
        self.lens.push(tokens);
        self.encoded.lengths.tokens += tokens as u64;
    }
}

impl Encoded {
    /// Refuses tokens that a model of `vocab_size` tokens does not have.
    ///
    /// # Errors
    ///
    /// The first such token.
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

    /// The share of padding, from 0 to below 1, if batches of so many examples are made in the order of the file and each is
    /// padded to its longest.
    pub fn padding(&self, batch: usize) -> f64 {
        let len = |example: &Example| example.ids.len() as u64;
        let tokens: u64 = self.examples.iter().map(len).sum();
        let padded: u64 = self
            .examples
            .chunks(batch.max(1))
            .map(|batch| batch.iter().map(len).max().unwrap_or_default() * batch.len() as u64)
            .sum();
        if padded == 0 { 0.0 } else { 1.0 - tokens as f64 / padded as f64 }
    }

    fn cut(&mut self, tokens: usize) {
        self.truncated_tokens += tokens;
        self.truncated_samples += usize::from(tokens > 0);
    }

    fn add(&mut self, tokens: Tokens) {
        let Tokens { ids, mut train } = tokens;
        if let Some(first) = train.first_mut() {
            *first = false;
        }
        if train.contains(&true) {
            self.examples.push(Example { ids, train, ..Example::default() });
        } else {
            self.dropped += 1;
        }
    }
}

impl Lengths {
    fn of(mut lens: Vec<usize>) -> Self {
        lens.sort_unstable();
        let samples = lens.len();
        // The nearest rank: the smallest length that so many samples do not exceed.
        let at = |percent: usize| {
            let rank = (samples * percent).div_ceil(100).max(1);
            lens.get(rank - 1).copied().unwrap_or_default()
        };
        let longest = lens.last().copied().unwrap_or_default();
        let mut histogram = Vec::new();
        let (mut counted, mut up_to) = (0, 8);
        while counted < samples {
            let within = lens.partition_point(|len| *len <= up_to);
            histogram.push((up_to, within - counted));
            counted = within;
            up_to = up_to.saturating_mul(2);
        }
        let tokens = lens.iter().map(|len| *len as u64).sum();
        Self { samples, tokens, median: at(50), p90: at(90), p99: at(99), longest, histogram }
    }
}

fn tokens(segments: &[Segment], tokenizer: &Tokenizer, special: bool) -> Result<Tokens, TokenizerError> {
    if let [segment] = segments {
        // The common case needs no spans.
        let ids =
            if special { tokenizer.encode(&segment.text)? } else { tokenizer.encode_plain(&segment.text)? };
        let train = vec![segment.train; ids.len()];
        return Ok(Tokens { ids, train });
    }
    let mut text = String::new();
    let mut trained: Vec<Range<usize>> = Vec::new();
    for segment in segments {
        let start = text.len();
        text.push_str(&segment.text);
        if segment.train {
            trained.push(start..text.len());
        }
    }
    let mut tokens = Tokens::default();
    let mut last = segments.first().is_some_and(|segment| segment.train);
    let mut parts = trained.iter().peekable();
    let spans = if special { tokenizer.encode_spans(&text)? } else { tokenizer.encode_spans_plain(&text)? };
    for token in spans {
        // A token that stands for no text of its own goes with the one before.
        if let Some(span) = token.span.filter(|span| !span.is_empty()) {
            // Spans and parts are in order.
            while parts.next_if(|part| part.end <= span.start).is_some() {}
            last = parts.peek().is_some_and(|part| part.start < span.end && span.start < part.end);
        }
        tokens.push(token.id, last);
    }
    Ok(tokens)
}

/// Token ids, each with whether it is trained on; the first may be, as long as something may come before it.
#[derive(Debug, Default)]
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
