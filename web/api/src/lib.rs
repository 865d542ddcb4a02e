//! What the page and its engine worker say to each other; plain data, carried by serde-wasm-bindgen.
//!
//! Each message is posted as one JavaScript object. What serde cannot carry rides beside it, transferred and not
//! copied: `{ message, channel? , files? , bytes? }`, where `message` is the serialised enum, `channel` an
//! `RTCDataChannel` ([`ToWorker::Channel`]), `files` an array of `File` ([`ModelChoice::Folder`]) and `bytes` an
//! `ArrayBuffer` (the text of [`ToWorker::SetText`], the archive of [`FromWorker::Adapter`]).

pub use baton_formats::chat::ChatMessage;
pub use baton_formats::dataset::{
    Column, ColumnView, Form, Format, Inspection, LabelKind, Lengths, Mapping, Role,
};
pub use baton_formats::metrics::{Classification, Correlation};

use baton_protocol::pulse::Presence;
use baton_protocol::run::Backbone;
use baton_protocol::{PeerId, Step, link::Lane, run::Settings};
use serde::{Deserialize, Serialize};

/// A visit to the page, from its loading to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// Its number: the milliseconds since 1970 when it began.
    pub number: u64,
    /// Earlier visits that were left: the page was closed, or out of sight when it ended. The browser ended the others.
    pub left: Vec<u64>,
}

/// The page to the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// Become the host of a room; first message to a host's worker.
    Host {
        /// What the person calls this device.
        name: String,
        /// Which visit to the page this is.
        visit: Visit,
    },
    /// Become a stage; first message to a joiner's worker.
    Join {
        /// What the person calls this device.
        name: String,
        /// The host's number in the room.
        host: PeerId,
        /// This device's own number.
        me: PeerId,
        /// Which visit to the page this is.
        visit: Visit,
    },
    /// An open data channel to a peer, with the channel transferred in `channel`; its handlers are attached in the
    /// task that receives it.
    Channel {
        /// Who is at the other end.
        peer: PeerId,
        /// What it is for.
        lane: Lane,
    },
    /// A peer left the room or its connection failed for good.
    PeerGone {
        /// Who.
        peer: PeerId,
    },
    /// The room has a host again: a stage greets it when the channels to it open.
    HostReturned {
        /// Its number now.
        host: PeerId,
    },
    /// A peer stands otherwise than before, as its pulses say or their absence does.
    Presence {
        /// Who.
        peer: PeerId,
        /// How.
        presence: Presence,
    },
    /// Reads a model's `config.json`, tokenizer and header; answered by [`FromWorker::Model`] or an error.
    SetModel {
        /// Which.
        model: ModelChoice,
    },
    /// Reads a text, given in `bytes`; answered by [`FromWorker::Inspected`] or an error and then, as soon as there is a
    /// model to count its tokens, by [`FromWorker::Text`] or an error.
    SetText {
        /// A file name; its ending tells the format.
        name: String,
    },
    /// Reads the same text with other columns; answered as [`ToWorker::SetText`] is, but for the inspection.
    MapText {
        /// Which column is what.
        mapping: Mapping,
    },
    /// Says how long samples may be, and how many are kept aside, before a run does; answered by [`FromWorker::Text`] if
    /// there is a text and a model.
    Preview {
        /// As in [`ToWorker::Start`].
        settings: Settings,
    },
    /// Starts the run with the chosen model and text over the devices that are there.
    Start {
        /// What the person set.
        settings: Settings,
    },
    /// Goes on with the run that is kept; answered as [`ToWorker::Start`] is, after the model and the text.
    GoOn,
    /// Forgets it; answered by [`FromWorker::Kept`].
    Forget,
    /// Pauses after the open step.
    Pause,
    /// Goes on.
    Resume,
    /// Ends the run; the adapter of the last complete step remains.
    Stop,
    /// Writes with the model as it is now; answered by [`FromWorker::Generated`], a token at a time.
    Generate {
        /// Chosen by the page, given back with the answer.
        request: u32,
        /// What it goes on from.
        prompt: Prompt,
        /// How many tokens at the most.
        tokens: u32,
        /// 0 is greedy.
        temperature: f64,
    },
    /// Asks for the adapter as it is now; answered by [`FromWorker::Adapter`].
    GetAdapter,
    /// Asks the host to take a device out of the room.
    Remove {
        /// Which.
        peer: PeerId,
    },
    /// Asks how much of models is kept on this device; answered by [`FromWorker::Cache`].
    CacheUsage,
    /// Deletes what is kept of models on this device; answered by [`FromWorker::Cache`], after an error if something stays.
    ClearCache,
}

/// What a model goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Prompt {
    /// The beginning of a text; empty starts from the begin token.
    Text {
        /// The beginning.
        text: String,
    },
    /// A conversation, which the assistant is to go on with: for a model with a chat template.
    Chat {
        /// What was said.
        messages: Vec<ChatMessage>,
    },
}

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ModelChoice {
    /// The one that ships with the page, by its absolute URL.
    Default {
        /// The folder's URL.
        url: String,
    },
    /// A Hugging Face repository or any URL of a folder in its layout.
    Url {
        /// As the person typed it.
        url: String,
    },
    /// Local files, given in `files`; peers read their blocks from the host.
    Folder,
}

/// The worker to the page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromWorker {
    /// The engine is there; first message of every worker.
    Ready {
        /// What it computes on.
        backend: String,
    },
    /// Asks the page for a connection to a neighbour; this side makes the offer.
    Connect {
        /// To whom.
        peer: PeerId,
    },
    /// A run that can be gone on with lies on this device, or none any more.
    Kept {
        /// What to show.
        run: Option<KeptInfo>,
    },
    /// A device is out of the room, or out of the plan until it is heard again.
    Left {
        /// What its owner calls it.
        device: String,
        /// Why, in words that follow the name.
        reason: String,
    },
    /// Asks the page to close what it has to a peer.
    Disconnect {
        /// To whom.
        peer: PeerId,
    },
    /// The chosen model can be trained.
    Model {
        /// What to show.
        model: ModelInfo,
    },
    /// What the chosen text was found to be; it is read so unless [`ToWorker::MapText`] says otherwise.
    Inspected {
        /// Its form and its columns.
        inspection: Inspection,
    },
    /// The chosen text can be used.
    Text {
        /// What to show.
        text: TextInfo,
    },
    /// Who is in the room; sent whenever it changes.
    Devices {
        /// The host first.
        devices: Vec<DeviceInfo>,
    },
    /// All of the model's files are read once before a run, so that each device can tell its pieces by their hashes.
    Checking {
        /// Bytes read.
        loaded: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The run entered another phase.
    Phase {
        /// Which.
        phase: RunPhase,
    },
    /// A step is complete on every device.
    Step {
        /// What to draw.
        report: StepReport,
    },
    /// What the model is worth on the samples that are kept out of training.
    Judged {
        /// What to draw.
        judgement: Judgement,
    },
    /// What the model writes before and after, from the same beginning.
    Sample {
        /// False: before training.
        after: bool,
        /// The beginning that was given.
        prompt: String,
        /// The whole text, with the beginning.
        text: String,
    },
    /// More of an answer to [`ToWorker::Generate`].
    Generated {
        /// The page's number for it.
        request: u32,
        /// The whole text so far with the beginning, or the assistant's answer so far.
        text: String,
        /// Whether this is all.
        done: bool,
    },
    /// The adapter as a zip archive in `bytes`.
    Adapter {
        /// A file name to offer.
        name: String,
        /// The step it is from.
        step: Step,
    },
    /// A joiner's own part in the run.
    Stage {
        /// What to show.
        view: StageInfo,
    },
    /// What is kept of models on this device.
    Cache {
        /// How much.
        cache: CacheInfo,
    },
    /// Something went wrong; nothing that the person entered is lost.
    Error {
        /// What it concerns, so that the page shows it in the right place.
        about: ErrorAbout,
        /// What happened and what to do.
        message: String,
    },
}

/// What an error concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorAbout {
    /// The engine could not start.
    Engine,
    /// The chosen model.
    Model,
    /// The chosen text.
    Text,
    /// The settings of the run.
    Settings,
    /// The run as it goes.
    Run,
    /// The connection to another device.
    Peer,
    /// A generated text.
    Generate,
    /// What is kept of models on this device.
    Cache,
}

/// A model that can be trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// A name to show.
    pub name: String,
    /// Trainable and frozen parameters.
    pub parameters: u64,
    /// Transformer blocks, which is the most devices that can share the work.
    pub blocks: u32,
    /// Width of the hidden states.
    pub hidden: u32,
    /// Tokens in the vocabulary.
    pub vocabulary: u32,
    /// The longest sequence that it was made for.
    pub context: u32,
    /// Its family, as a person calls it.
    pub family: String,
    /// Whether it writes texts; otherwise it labels them.
    pub writes: bool,
    /// Whether it says how it writes conversations.
    pub chat: bool,
    /// What adapters can be put on.
    pub targets: Vec<TargetInfo>,
    /// What its frozen weights take, for every way to keep them.
    pub frozen: Vec<FrozenInfo>,
}

/// A place for adapters in every block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetInfo {
    /// The name in [`Settings::targets`].
    pub name: String,
    /// The linear maps that this name means; more than one where no name means one of them alone.
    pub modules: Vec<String>,
}

/// What frozen weights take when they are kept in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenInfo {
    /// How they are kept.
    pub backbone: Backbone,
    /// Bytes of embedding and head, which are the host's.
    pub ends: u64,
    /// Devices that share the blocks, and the most bytes that one of them has; fewer devices first.
    pub shares: Vec<(u32, u64)>,
}

impl FrozenInfo {
    /// Bytes of all blocks.
    pub fn blocks(&self) -> u64 {
        self.shares.iter().find(|(devices, _)| *devices == 1).map_or(0, |(_, bytes)| *bytes)
    }
}

/// A text that can be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextInfo {
    /// The file's name.
    pub name: String,
    /// Samples to train on.
    pub samples: u64,
    /// Samples that are kept out of training, to judge the model by.
    pub validation: u64,
    /// Records that hold nothing to learn.
    pub skipped: u64,
    /// Tokens of the samples to train on, cut to the sequence length.
    pub tokens: u64,
    /// The sequence length: that of the settings, unless the model reads no more than this.
    pub seq_len: u64,
    /// What it was counted by: those of the last [`ToWorker::Preview`].
    pub settings: Box<Settings>,
    /// Tokens that are cut off.
    pub truncated: u64,
    /// Samples that lose some.
    pub truncated_samples: u64,
    /// How long the samples are before they are cut.
    pub lengths: Lengths,
    /// The classes that samples are labelled with and how many samples have each, where the model labels samples; none
    /// where the labels are values.
    pub labels: Vec<(String, u64)>,
    /// Why some conversations are left out, if any are.
    pub refusal: Option<String>,
    /// The first sample's beginning.
    pub beginning: String,
}

/// A row in the list of devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its number in the room; none for the host itself.
    pub peer: Option<PeerId>,
    /// What its owner calls it.
    pub name: String,
    /// "WebGPU" or "CPU".
    pub backend: String,
    /// First and last block of its stage (last exclusive), if it has one.
    pub blocks: Option<(u16, u16)>,
    /// What it does now.
    pub state: DeviceState,
    /// What was measured of it.
    #[serde(default)]
    pub facts: DeviceFacts,
}

/// What was measured of a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// Seconds of the forward and the backward pass of a block together, as the run has it.
    pub pace: Option<f64>,
    /// Bytes that it can spare for its stage, found out no further than the model could need.
    pub memory: Option<u64>,
    /// Bytes a second to and from it, the slower of both, and seconds there and back.
    pub link: Option<(f64, f64)>,
    /// Steps that were complete when the host last found one of its micro-batches to be computed right.
    pub checked: Option<u32>,
}

/// What a device does now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DeviceState {
    /// Connected and greeted, without a stage.
    Waiting,
    /// Its connection is being made.
    Connecting,
    /// Fetching its blocks: bytes of bytes.
    Loading {
        /// Fetched.
        loaded: u64,
        /// In all.
        total: u64,
    },
    /// Finds out how fast it is.
    Measuring,
    /// Takes part in the steps.
    Training,
    /// Has its blocks, and the run stands still.
    Idle,
    /// Has blocks ready, and takes over from a device that leaves or joins in between two steps.
    Standby,
    /// Its page is hidden or its screen locked; the others go on without it.
    Hidden,
    /// Its battery is nearly empty; the others go on without it until it is charged.
    Drained,
    /// Not heard; the others go on without it.
    Silent,
}

/// A run that can be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptInfo {
    /// What its model is called.
    pub model: String,
    /// Its text's file name.
    pub text: String,
    /// Complete steps.
    pub done: u32,
    /// Steps in all.
    pub steps: u32,
    /// Whether its model was a person's own files, which have to be chosen again first.
    pub needs_files: bool,
}

/// The phases of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RunPhase {
    /// Not started.
    Lobby,
    /// The devices fetch their blocks.
    Loading,
    /// The model writes its sample before training.
    Sampling,
    /// Steps are made.
    Running,
    /// Stands still until resumed; `reason` says why if the person did not ask for it.
    Paused {
        /// In words.
        reason: Option<String>,
    },
    /// All steps are done.
    Finished,
    /// The person stopped it.
    Stopped,
    /// It could not go on; the adapter of the last complete step remains.
    Failed {
        /// In words.
        reason: String,
    },
}

/// A complete step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Counted from 0.
    pub step: Step,
    /// How many there will be.
    pub steps: u32,
    /// Mean negative log-likelihood over the step's target tokens.
    pub loss: f64,
    /// The learning rate that was used.
    pub lr: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Target tokens in the step.
    pub tokens: u32,
    /// Seconds since the step before it was complete (or since the run went on).
    pub seconds: f64,
}

/// What the model is worth on the samples that are kept out of training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// After so many steps.
    pub done: u32,
    /// Mean loss on them.
    pub loss: f64,
    /// How many there are.
    pub samples: u64,
    /// Where their labels are classes.
    pub classification: Option<Classification>,
    /// Where their labels are values.
    pub correlation: Option<Correlation>,
}

/// What is kept of models on this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheInfo {
    /// Whether this browser lets the page keep anything.
    pub there: bool,
    /// Bytes that are kept.
    pub used: u64,
    /// Bytes that are kept at the most; then the oldest go.
    pub limit: u64,
}

/// A joiner's own part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageInfo {
    /// First and last block (last exclusive).
    pub blocks: Option<(u16, u16)>,
    /// Its place in the pipeline (0 is the first after the host) among how many.
    pub place: Option<(u16, u16)>,
    /// Blocks of the whole model, to say how much of it this device holds.
    #[serde(default)]
    pub model_blocks: Option<u16>,
    /// What it does now.
    pub state: DeviceState,
    /// Steps in which it took part.
    pub steps_done: u32,
    /// Set when it is over: why, in words.
    pub ended: Option<String>,
}
