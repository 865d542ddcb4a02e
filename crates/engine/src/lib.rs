//! Executes the protocol's jobs on burn, and ties a machine, its engine and its channels into one running node.
//!
//! * [`source`]: a model opened from wherever its files are, and the text encoded for it;
//! * [`cache`]: where pieces of models are kept;
//! * [`batches`]: which samples are in which micro-batch of which step;
//! * [`host`] and [`stage`]: the engines behind the coordinator's and the stage's jobs;
//! * [`kept`]: a run on its host's disk, to go on with later;
//! * [`profile`]: the model as the planner sees it;
//! * [`measure`]: what this device computes in how many seconds;
//! * [`memory`]: how much of its memory a device can spare, as it has shown;
//! * [`evaluate`]: judging the model on samples kept out of training;
//! * [`texts`]: texts that the model writes, a token at a time;
//! * [`alone`] and [`generate`]: training and writing in one process, without channels;
//! * [`adapter`]: committed states as an adapter in PEFT's format, and back;
//! * [`node`]: the loop that a shell runs: machine, engine and channels; the same in a browser, a process and a test.

pub mod adapter;
pub mod alone;
pub mod batches;
pub mod cache;
pub mod classify;
pub mod error;
pub mod evaluate;
pub mod generate;
pub mod host;
pub mod kept;
pub mod measure;
pub mod memory;
pub mod node;
pub mod profile;
pub mod source;
pub mod stage;
pub mod texts;

pub use error::EngineError;
