//! What can go wrong in a model, each with the value that was wrong.

use baton_formats::{Projection, WeightsError};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The model's weights could not be read, or are not those that its `config.json` describes.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The files gave no such tensor.
    #[error("the model's files gave no tensor {0}")]
    MissingTensor(String),
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
    /// Bytes of a block's state that are too few or too many.
    #[error("a block's state takes {expected} bytes, but {found} came")]
    StateLength {
        /// How many bytes came.
        found: usize,
        /// How many the adapter's rank and targets ask for.
        expected: usize,
    },
    /// Bytes of a block's state that hold NaN or infinity.
    #[error("the state of block {0} holds numbers that are not finite")]
    StateNotFinite(usize),
    /// The device could not give a tensor's values back.
    #[error("the device did not give its results back: {0}")]
    Readback(String),
}
