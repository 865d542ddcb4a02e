//! What can go wrong in a model, each with the value that was wrong.

use baton_formats::{Projection, WeightsError};
use baton_kernels::KernelError;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The model's weights could not be read, or are not those that its `config.json` describes.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The files have no such tensor.
    #[error("the model's files have no tensor {0}; its config.json is that of another model")]
    MissingTensor(String),
    /// A tensor whose numbers cannot be kept.
    #[error("{tensor}: {error}")]
    Tensor {
        /// Its name in the file.
        tensor: String,
        /// Why not.
        #[source]
        error: KernelError,
    },
    /// More positions than the model has learned.
    #[error(
        "a text of {length} tokens is too long for this model, which has learned {limit} positions; cut it"
    )]
    TooLong {
        /// The length in tokens.
        length: usize,
        /// How many the model can take.
        limit: usize,
    },
    /// A token type that the model does not have.
    #[error("token type {id} is none of the model's {types}: is this its own tokenizer?")]
    TokenType {
        /// The type.
        id: u32,
        /// How many there are.
        types: usize,
    },
    /// An encoder was asked for the next token.
    #[error("a {0} model labels texts and writes none: train it on labelled samples")]
    NoLanguageHead(&'static str),
    /// A language model was asked for a label.
    #[error("a {0} model has no head for labels; choose a BERT, MiniLM or RoBERTa")]
    NoClassifier(&'static str),
    /// A label that the head cannot learn.
    #[error("the label {label} does not fit a head for {head}")]
    Label {
        /// The label.
        label: String,
        /// What the head gives.
        head: String,
    },
    /// A model that is not trained as a whole here.
    #[error("a {0} model is not trained from scratch here: only a Llama of the plainest kind")]
    NotPretrained(&'static str),
    /// Blocks were asked for that the model does not have.
    #[error("blocks {start}..{end} were asked for, but the model has {blocks}")]
    NoSuchBlocks {
        /// First block asked for.
        start: usize,
        /// One past the last block asked for.
        end: usize,
        /// How many blocks the model has.
        blocks: usize,
    },
    /// A shape that does not fit.
    #[error("{what} has the shape {found:?} where {expected:?} fits")]
    Shape {
        /// What was looked at.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
    /// A token id that the vocabulary does not have.
    #[error("token {id} is outside the vocabulary of {vocab} tokens: is this the model's own tokenizer?")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        vocab: usize,
    },
    /// An adapter without a pair for a projection that it should adapt.
    #[error("the adapter has no pair for {projection:?} of block {block}")]
    MissingPair {
        /// The block.
        block: usize,
        /// The projection.
        projection: Projection,
    },
    /// A LoRA rank that cannot be.
    #[error("a LoRA rank of {0} adapts nothing: take 1 or more")]
    Rank(usize),
    /// Backward for a micro-batch whose forward was never run, or whose backward already was.
    #[error("micro-batch {0} has no saved forward pass")]
    UnknownKey(u64),
    /// The state of another number of blocks, or of other blocks, than this stage runs.
    #[error("the state is of blocks {found:?}, this stage runs {expected:?}")]
    StateOfOtherBlocks {
        /// The blocks of the state.
        found: Vec<usize>,
        /// The blocks of the stage.
        expected: Vec<usize>,
    },
    /// Bytes of a state that are too few or too many.
    #[error("a state takes {expected} bytes, but {found} came")]
    StateLength {
        /// How many bytes came.
        found: usize,
        /// How many the adapter's rank and targets ask for.
        expected: usize,
    },
    /// Bytes of a block's state that hold NaN or infinity.
    #[error("the state of block {0} holds numbers that are not finite")]
    StateNotFinite(usize),
    /// Bytes of a head's state that hold NaN or infinity.
    #[error("the state of the classification head holds numbers that are not finite")]
    HeadNotFinite,
    /// The device could not give a tensor's values back.
    #[error("the device did not give its results back: {0}")]
    Readback(String),
}

impl ModelError {
    pub(crate) fn of_tensor(tensor: &str, error: KernelError) -> Self {
        Self::Tensor { tensor: tensor.to_owned(), error }
    }
}
