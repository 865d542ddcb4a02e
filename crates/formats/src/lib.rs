//! Files in and out: a Hugging Face model by byte range, a tokenizer, training text, a PEFT adapter.
//!
//! Everything that is read here was made by someone else, so every length is checked before it is allocated and every
//! refusal says what was found and what to do about it.

pub mod archive;
pub mod chat;
pub mod config;
pub mod dataset;
pub mod files;
pub mod gguf_adapter;
pub mod layout;
pub mod manifest;
pub mod merge;
pub mod metrics;
pub mod peft;
pub mod projection;
pub mod tokenizer;
pub mod weights;

pub use archive::{ArchiveError, zip};
pub use chat::{ChatError, ChatMessage, ChatTemplate, Date, Segment};
pub use config::{
    Activation, Architecture, BlockForm, Classifier, ClassifierForm, ConfigError, EndsForm, Head,
    ModelConfig, NormKind, NormPlace, Rope, RopeScaling,
};
pub use dataset::{
    Dataset, DatasetError, Encoded, Encoder, Encoding, Example, Inspection, Label, Mapping, Sample,
    SampleBody, Target, Validation,
};
#[cfg(target_arch = "wasm32")]
pub use files::BlobFiles;
#[cfg(not(target_arch = "wasm32"))]
pub use files::DirFiles;
pub use files::{
    ChunkCache, ChunkSource, Files, FilesError, MemoryCache, MemoryFiles, UrlFiles, VerifiedFiles, read_all,
};
pub use layout::{BlockPart, EndPart, HeadPart, Norm, TensorSpec, block_tensors, end_tensors, head_tensors};
pub use manifest::{Manifest, ManifestError, ManifestFile};
pub use peft::{Adapter, AdapterConfig, LoraPair, PeftError, Targets};
pub use projection::Projection;
pub use tokenizer::{Tokenizer, TokenizerError};
pub use weights::{
    Gguf, GgufValue, NumberFormat, SafetensorsWriter, TensorEntry, TensorIndex, WeightsError, write_gguf,
    write_safetensors,
};
