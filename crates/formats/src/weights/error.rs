//! Why weights could not be read or written.

use crate::files::FilesError;

/// Why weights could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// The bytes could not be had.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A model without weights that can be read.
    #[error(
        "there are no weights here: neither model.safetensors, nor model.safetensors.index.json with its parts, \
         nor one .gguf file; a model that has only pytorch_model.bin has to be converted to safetensors first"
    )]
    NoWeights,
    /// Not even room for the header's length.
    #[error("{name} has only {size} bytes: it is not a safetensors file, or its download was cut short")]
    TooShort {
        /// The file's name.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// The length of the header cannot be true.
    #[error(
        "{name} says that its header has {header} bytes, and at most {limit} are possible: \
         it is not a safetensors file, or it is damaged"
    )]
    HeaderLength {
        /// The file's name.
        name: String,
        /// The length that the file claims.
        header: u64,
        /// The largest length possible.
        limit: u64,
    },
    /// The header is not what the format says.
    #[error("the header of {name} is wrong: {reason}; the file is damaged, download it again")]
    Header {
        /// The file's name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The file ends before its tensors do.
    #[error(
        "{name} is cut short: it has {found} bytes and its header promises {expected}; download it again"
    )]
    Truncated {
        /// The file's name.
        name: String,
        /// The size that the header promises.
        expected: u64,
        /// The size that the file has.
        found: u64,
    },
    /// The file goes on after its tensors end.
    #[error(
        "{name} has {found} bytes where its header promises {expected}; it is damaged, download it again"
    )]
    TooLong {
        /// The file's name.
        name: String,
        /// The size that the header promises.
        expected: u64,
        /// The size that the file has.
        found: u64,
    },
    /// More of something than any real model has.
    #[error(
        "{name} claims {found} {what}, and no real model has more than {limit}; it is damaged or made up"
    )]
    TooMany {
        /// The file's name.
        name: String,
        /// What there is too much of.
        what: &'static str,
        /// How many the file claims.
        found: u64,
        /// The most that are taken.
        limit: u64,
    },
    /// The list of a model's parts names something that is no part.
    #[error(
        "{index} says that a part of the model is called \"{shard}\", and that is not the name of a \
         .safetensors file beside it"
    )]
    ShardName {
        /// The list.
        index: String,
        /// The name in it.
        shard: String,
    },
    /// A part of the model is not there.
    #[error("{index} lists {shard}, and it is not here; put all parts of the model into one folder")]
    MissingShard {
        /// The list.
        index: String,
        /// The part.
        shard: String,
    },
    /// A tensor is not in the part that should have it.
    #[error("{index} says that {tensor} is in {shard}, and it is not; the files do not belong together")]
    NotInShard {
        /// The list.
        index: String,
        /// The tensor's name.
        tensor: String,
        /// The part.
        shard: String,
    },
    /// A tensor that is in two places.
    #[error(
        "the tensor {tensor} is in {first} and again in {second}; which one counts cannot be known: \
         download the model again"
    )]
    Twice {
        /// The tensor's name.
        tensor: String,
        /// Where it should be.
        first: String,
        /// Where it also is.
        second: String,
    },
    /// What is called a GGUF file and is none.
    #[error("{name} is not a GGUF file, whatever its name says, or its download was cut short")]
    NotGguf {
        /// The file's name.
        name: String,
    },
    /// A GGUF file without a vocabulary.
    #[error(
        "{name} has no tokenizer in it (no tokenizer.ggml.model): put the model's tokenizer.json beside it, or take a \
         GGUF file that has one"
    )]
    NoGgufTokenizer {
        /// The file's name.
        name: String,
    },
    /// A GGUF file does not say something that is needed.
    #[error(
        "{name} does not say {key}, or not in the form that it should have; it is damaged, or not a model"
    )]
    Metadata {
        /// The file's name.
        name: String,
        /// What is missing: a key of the metadata, or a tensor.
        key: String,
    },
    /// A GGUF file names something that is not known here.
    #[error("the {what} of {name} is {found}; known are {known}")]
    Unknown {
        /// The file's name.
        name: String,
        /// What is named.
        what: &'static str,
        /// The name.
        found: String,
        /// The names that are known.
        known: &'static str,
    },
    /// A tensor that the model needs is not there.
    #[error("{file} has no tensor {tensor}; its config.json is that of another model")]
    Missing {
        /// The file's name.
        file: String,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor has other dimensions than the config says.
    #[error(
        "the tensor {tensor} has shape {found:?} and the model needs {expected:?}; the files do not belong together"
    )]
    WrongShape {
        /// The tensor's name.
        tensor: String,
        /// What the model needs.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// A tensor of numbers that are not read, or not written, here.
    #[error(
        "the tensor {tensor} is {format}, and only {known} are known here; choose another version of the model",
        known = super::number::KNOWN
    )]
    UnsupportedFormat {
        /// The tensor's name.
        tensor: String,
        /// How its numbers are written.
        format: &'static str,
    },
    /// The tensor does not fit.
    #[error("there is no memory for the {bytes} bytes of {tensor}; close other tabs, or take fewer blocks")]
    OutOfMemory {
        /// The tensor's name.
        tensor: String,
        /// How many bytes it would have taken.
        bytes: u64,
    },
    /// A tensor to write whose values do not fill its shape.
    #[error("the tensor {tensor} of shape {shape:?} was given {values} values")]
    WrongLength {
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// How many values there are.
        values: usize,
    },
    /// A tensor to write that comes out of turn.
    #[error("the tensor {found} was to be written where {expected} comes next")]
    OutOfTurn {
        /// The tensor whose turn it is, or that all are written.
        expected: String,
        /// The tensor that came.
        found: String,
    },
    /// What was to be written could not be.
    #[error("the weights cannot be written: {reason}")]
    Write {
        /// What the system said.
        reason: String,
    },
}
