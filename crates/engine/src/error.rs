//! What can go wrong in an engine, in words that a page can show.

use baton_formats::{
    ChatError, ConfigError, DatasetError, FilesError, ManifestError, PeftError, TokenizerError, WeightsError,
};
use baton_model::ModelError;
use baton_plan::BadProfile;
use baton_protocol::codec::CodecError;
use baton_protocol::ids::Step;
use baton_protocol::run::SettingsError;
use baton_protocol::stage::Failure;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file of the model could not be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// What the model's files are said to be does not hold together.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// What the model's files are said to be cannot be read.
    #[error("the host's {length} bytes on the model's files cannot be read: reload the page on both devices")]
    ManifestBytes {
        /// How many bytes came.
        length: usize,
    },
    /// The model's `config.json` is not one that can be trained.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model's weights are not in order.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The model's tokenizer is not in order.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The text is not in order.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The model's chat template is not in order.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A model that labels texts, and a text without labels.
    #[error(
        "this model labels texts and does not write any, and this text has no labels: choose a data set with a label \
         column, or a model that writes"
    )]
    NoLabels,
    /// An encoder whose files end before the pooler.
    #[error(
        "this BERT was saved without its pooler (there is no {tensor}), as one for filling in words is: to label texts, \
         take one that was saved as BertModel or BertForSequenceClassification"
    )]
    NoPooler {
        /// The pooler's name.
        tensor: String,
    },
    /// Labels to judge by that the head does not give.
    #[error("the samples to judge by have other labels than those to train on; give both the same")]
    OtherLabels,
    /// A text was asked of a model that writes none.
    #[error("this model labels texts and writes none: there is nothing to chat with")]
    NoWriter,
    /// A label was asked of a model that writes.
    #[error("this model writes text and labels none: use baton generate")]
    NoClassifier,
    /// A head that nobody has trained.
    #[error(
        "this model has no trained head, and so no classes yet: train an adapter (baton train), and give it too"
    )]
    NoTrainedHead,
    /// An adapter is not in order.
    #[error(transparent)]
    Peft(#[from] PeftError),
    /// The model could not compute.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A boundary for another device cannot be made.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A boundary that came from another device cannot be used.
    #[error("what came from another device cannot be used: {0}")]
    Boundary(CodecError),
    /// A boundary of another width than the model's.
    #[error("hidden states of shape {found:?} came, and this model's are {hidden} wide")]
    Width {
        /// `[batch, time, hidden]`.
        found: [u32; 3],
        /// The model's.
        hidden: usize,
    },
    /// A boundary that is larger than the run can have.
    #[error(
        "hidden states of shape {found:?} came, and no more than {most:?} samples and tokens are expected"
    )]
    Length {
        /// `[batch, time, hidden]`.
        found: [u32; 3],
        /// Samples and tokens.
        most: [usize; 2],
    },
    /// A beginning that leaves no room for a word.
    #[error("the beginning has {found} tokens, and this model reads {most} in all: shorten it")]
    PromptTooLong {
        /// Tokens of the beginning.
        found: usize,
        /// Tokens that can be read.
        most: usize,
    },
    /// Settings that make no sense.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The clock gave times that are none.
    #[error(transparent)]
    Times(#[from] BadProfile),
    /// Not even a block of the model goes here.
    #[error(
        "{what} of this model needs {} MB here with these settings, and {} MB can be spared: close other apps and pages, or \
         take 4-bit weights, shorter samples, smaller micro-batches or a smaller model",
        needed.div_ceil(1_000_000),
        memory / 1_000_000
    )]
    TooLittleMemory {
        /// What was to be measured.
        what: &'static str,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that there are.
        memory: u64,
    },
    /// A job came before the blocks were loaded.
    #[error("the blocks are not loaded")]
    NotLoaded,
    /// The step's text is not there.
    #[error("step {0} has no batch: the text was not chosen")]
    NoText(Step),
    /// The tokenizer gives a token that the model has no embedding for.
    #[error("the tokenizer has {tokens} tokens and the model only {embeddings}: they do not belong together")]
    VocabularyMismatch {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the model's embedding.
        embeddings: usize,
    },
    /// An empty prompt where no begin token is known.
    #[error("this model has no begin token, so a text needs a beginning")]
    NoBeginToken,
    /// An adapter of other settings than the run's.
    #[error("the adapter to start from has {found}, and the run has {wanted}: give the run the same")]
    OtherAdapter {
        /// The settings that differ, as the adapter has them.
        found: String,
        /// The same as the run has them.
        wanted: String,
    },
    /// A state whose bytes name another block than its message.
    #[error("the state of block {expected} says that it is of block {found}")]
    OtherBlock {
        /// What the bytes say.
        found: usize,
        /// What the message says.
        expected: u16,
    },
    /// The archive could not be made.
    #[error(transparent)]
    Archive(#[from] baton_formats::ArchiveError),
    /// There is no complete step yet.
    #[error("there is no adapter before the first step is complete")]
    NoStep,
}

impl EngineError {
    /// Whether the numbers that were computed are infinite or not a number.
    pub fn is_divergence(&self) -> bool {
        matches!(
            self,
            Self::Codec(CodecError::NotFinite { .. })
                | Self::Model(ModelError::StateNotFinite(_) | ModelError::HeadNotFinite)
        )
    }

    /// What was wrong with the job, for the machine that ordered it.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Boundary(_) | Self::Width { .. } | Self::Length { .. } => Failure::Input,
            _ if self.is_divergence() => Failure::Diverged,
            _ => Failure::Engine,
        }
    }

    /// What a person is told of an error that ended a run.
    pub fn in_words(&self) -> String {
        if self.is_divergence() {
            format!(
                "The training diverged: {self}. A lower learning rate may help; the adapter of the last complete step is \
                 kept."
            )
        } else {
            self.to_string()
        }
    }
}
