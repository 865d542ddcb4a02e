//! What peers say to each other; encoded with postcard, tensor bytes as one run.

use crate::codec::Boundary;
use crate::ids::{Generation, MicroBatch, PeerId, StageIndex, Step};
use crate::run::{ModelSource, Settings};
use baton_plan::{DeviceProfile, LinkProfile};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::time::Duration;

/// A message between two peers of a room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// First on the control lane, from a peer to the host.
    Hello(Device),
    /// The host's answer.
    Welcome(Device),
    /// Keeps the sender alive in the receiver's eyes.
    Heartbeat,
    /// The host gives a stage: a new plan is in force, and what an older one left is dropped.
    Assign(Box<Assign>),
    /// The host has a device get blocks ready that it may be given later: one without a stage loads them and stands by, a
    /// stage fetches their files while it goes on. Stage, neighbours and states of the assignment mean nothing yet.
    Warm(Box<Assign>),
    /// What [`Message::Warm`] asked for is done, as far as it can be.
    Warmed {
        /// Which blocks.
        blocks: Range<u16>,
    },
    /// The host has a device measure itself for a run, before any of the model is fetched.
    Measure(Box<Measure>),
    /// The answer.
    Measured {
        /// The number of the question.
        id: u32,
        /// What it found, or why it could not, in words.
        profile: Result<Box<DeviceProfile>, String>,
    },
    /// The host, or the stage before, times a link: so many bytes there, so many back.
    Probe {
        /// Chosen by who asks.
        id: u32,
        /// Bytes of padding wanted in the answer, at most [`MAX_PROBE`].
        want: u32,
        /// They mean nothing.
        #[serde(with = "serde_bytes")]
        padding: Vec<u8>,
    },
    /// The answer, at once.
    Probed {
        /// The number of the question.
        id: u32,
        /// They mean nothing.
        #[serde(with = "serde_bytes")]
        padding: Vec<u8>,
    },
    /// The host has a stage time the link to the next one, while no step is under way.
    TimeLink {
        /// Of the plan.
        generation: Generation,
    },
    /// What the stage found: `down` is the way to the next one, `up` the way back.
    Timed {
        /// Of the plan.
        generation: Generation,
        /// In bytes a second, and seconds.
        link: LinkProfile,
    },
    /// A stage fetches its blocks.
    Progress {
        /// Of the plan.
        generation: Generation,
        /// Bytes fetched.
        loaded: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The blocks are loaded and the neighbours connected.
    Ready {
        /// Of the plan.
        generation: Generation,
    },
    /// Hidden states to the next stage, or from the last one to the host.
    Forward {
        /// Of the plan.
        generation: Generation,
        /// The open step.
        step: Step,
        /// The slice.
        micro_batch: MicroBatch,
        /// `[batch, time, hidden]`.
        tensor: Boundary,
    },
    /// Their gradient to the stage before; from the first stage to the host without a tensor if the host has no block
    /// to train before it.
    Backward {
        /// Of the plan.
        generation: Generation,
        /// The open step.
        step: Step,
        /// The slice.
        micro_batch: MicroBatch,
        /// `[batch, time, hidden]`.
        tensor: Option<Boundary>,
    },
    /// A stage has added up the gradients of all micro-batches.
    StepDone {
        /// Of the plan.
        generation: Generation,
        /// The open step.
        step: Step,
        /// The sum of squares of its gradients.
        grad_sum_of_squares: f64,
        /// How long its passes took.
        times: Times,
    },
    /// The host orders the optimizer update.
    Apply {
        /// Of the plan.
        generation: Generation,
        /// The step that it completes.
        step: Step,
        /// Learning rate.
        lr: f64,
        /// Gradients are multiplied by this first (clipping by the global norm).
        scale: f64,
    },
    /// A stage has updated; its adapters and moments as they are now.
    Applied {
        /// Of the plan.
        generation: Generation,
        /// The step that it completed.
        step: Step,
        /// One for each of its blocks.
        states: Vec<BlockBytes>,
    },
    /// Hidden states outside training: the model writes.
    Infer {
        /// Of the plan.
        generation: Generation,
        /// Which text.
        request: u32,
        /// `[batch, time, hidden]`.
        tensor: Boundary,
    },
    /// The host checks a stage, and asks one beside it for what passed between the two.
    Witness {
        /// Of the plan.
        generation: Generation,
        /// The step that begins.
        step: Step,
        /// The slice.
        micro_batch: MicroBatch,
        /// Which of its hidden states.
        side: Side,
    },
    /// The answer, when it has passed.
    Evidence {
        /// Of the plan.
        generation: Generation,
        /// The step.
        step: Step,
        /// The slice.
        micro_batch: MicroBatch,
        /// Which.
        side: Side,
        /// `[batch, time, hidden]`.
        tensor: Boundary,
    },
    /// The run stands, goes on, or is over.
    Room(RoomState),
    /// A stage cannot go on.
    Failed {
        /// Of the plan.
        generation: Generation,
        /// In words.
        reason: String,
        /// Whose fault it is, as far as the stage can tell.
        fault: Fault,
    },
    /// A stage has no connection to a neighbour any more.
    NeighbourLost {
        /// Of the plan.
        generation: Generation,
        /// The neighbour.
        peer: PeerId,
    },
    /// The host asks how far a stage is: nothing has moved for long.
    Ask {
        /// Of the plan.
        generation: Generation,
    },
    /// The answer.
    Status {
        /// Of the plan.
        generation: Generation,
        /// The step that is open at this stage.
        step: Step,
        /// How far it is.
        counts: Counts,
    },
    /// A peer asks the host or a neighbour for a chunk of the model's files.
    ChunkRead {
        /// Chosen by the asker.
        id: u32,
        /// The chunk's sha256.
        hash: [u8; 32],
    },
    /// The answer.
    File {
        /// The asker's number.
        id: u32,
        /// What was asked for.
        answer: FileAnswer,
    },
    /// The sender leaves, or sends the receiver away.
    Goodbye {
        /// In words.
        reason: String,
    },
}

/// The most bytes of padding that a probe of a link asks for.
pub const MAX_PROBE: u32 = 256 << 10;

/// What a device is to measure itself on: blocks of these shapes, filled with numbers of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// The number of the question.
    pub id: u32,
    /// The model's `config.json`.
    pub config: String,
    /// Those of the run: samples of a micro-batch, tokens, adapters, how weights are kept.
    pub settings: Settings,
    /// Bytes that no plan asks of a device. Whether there are more is not worth finding out.
    pub most: u64,
}

impl Measure {
    /// Whether the answer to another question answers this one: what a pass depends on is the same. With another learning
    /// rate nothing is measured again.
    pub fn is_like(&self, other: &Self) -> bool {
        let (a, b) = (&self.settings, &other.settings);
        self.config == other.config
            && self.most == other.most
            && (a.batch_size, a.micro_batches, a.seq_len) == (b.batch_size, b.micro_batches, b.seq_len)
            && (a.lora_rank, &a.targets, a.backbone) == (b.lora_rank, &b.targets, b.backbone)
    }
}

/// Hidden states that a stage sees of its neighbours' work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// Those that it sent to the next one.
    Sent,
    /// Those that it received from the one before.
    Received,
}

/// Why a stage cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// Its own engine failed.
    Device,
    /// Its numbers are infinite or not a number, of input that was neither: the training diverged, or the device
    /// miscounts.
    Diverged,
    /// What a neighbour sent cannot be what it should be.
    Input(PeerId),
}

/// How long the passes of one step took on a stage, one for each micro-batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Forward passes.
    #[serde(deserialize_with = "baton_plan::at_most::<_, _, MOST_PASSES>")]
    pub forward: Vec<Duration>,
    /// Backward passes.
    #[serde(deserialize_with = "baton_plan::at_most::<_, _, MOST_PASSES>")]
    pub backward: Vec<Duration>,
}

/// As many micro-batches as a step can have.
const MOST_PASSES: usize = u16::MAX as usize;

/// How far a stage is within its open step, in micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Hidden states that have arrived.
    pub forwards_in: u16,
    /// Forward passes that were begun or are done.
    pub forwards_out: u16,
    /// Gradients that have arrived.
    pub backwards_in: u16,
    /// Backward passes that were begun or are done.
    pub backwards_out: u16,
}

/// A device as it introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What its owner calls it.
    pub name: String,
    /// What it computes on, such as "CPU" or "WebGPU".
    pub backend: String,
}

impl Device {
    /// With names cut to what a list can show; they come from the network.
    pub fn checked(self) -> Self {
        let cut = |text: String| text.chars().filter(|c| !c.is_control()).take(40).collect();
        Self { name: cut(self.name), backend: cut(self.backend) }
    }
}

/// A stage of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assign {
    /// Of the plan.
    pub generation: Generation,
    /// Its place in the pipeline.
    pub stage: StageIndex,
    /// How many stages there are.
    pub stages: u16,
    /// Its blocks.
    pub blocks: Range<u16>,
    /// Who sends it hidden states; [`PeerId::HOST`] for the host.
    pub prev: PeerId,
    /// Whom it sends them to; [`PeerId::HOST`] for the host.
    pub next: PeerId,
    /// Whether the stage before trains too, and so wants the gradient.
    pub prev_trains: bool,
    /// The step that is open.
    pub step: Step,
    /// What the person set, with the plan's own cut and recomputation.
    pub settings: Settings,
    /// Where the blocks come from.
    pub source: ModelSource,
    /// The model's `config.json`.
    pub config: String,
    /// Sizes and hashes of the model's files, in the formats' own encoding: what is read is checked against them.
    /// Empty where the files are trusted as they are.
    #[serde(with = "serde_bytes")]
    pub manifest: Vec<u8>,
    /// Adapters and moments to start from; empty for fresh ones from the seed.
    pub states: Vec<BlockBytes>,
}

impl Assign {
    /// Checks what a stage must be able to rely on; the error is in words.
    pub fn check(&self) -> Result<(), String> {
        if self.blocks.is_empty() || self.stage.0 >= self.stages {
            let Range { start, end } = self.blocks;
            return Err(format!(
                "stage {} of {} with blocks {start}..{end} makes no sense",
                self.stage, self.stages
            ));
        }
        self.settings.validate().map_err(|error| error.to_string())?;
        if self.step.0 > self.settings.steps {
            return Err(format!(
                "step {} of a run of {} steps makes no sense",
                self.step, self.settings.steps
            ));
        }
        Ok(())
    }
}

/// A block's adapters and optimizer moments, in the engine's own encoding.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockBytes {
    /// Which block.
    pub block: u16,
    /// Opaque here.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for BlockBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockBytes({}: {} bytes)", self.block, self.bytes.len())
    }
}

/// What the host tells everybody of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoomState {
    /// Steps are made.
    Running,
    /// The person paused it.
    Paused,
    /// All steps are done.
    Finished,
    /// The person stopped it.
    Stopped,
}

/// The answer to a question for a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileAnswer {
    /// The bytes asked for.
    Bytes(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The asked has no such chunk.
    Absent,
    /// Why not.
    Error(String),
}

impl Message {
    /// The lane on which it travels between the host and a peer.
    pub fn lane(&self) -> crate::link::Lane {
        use crate::link::Lane;
        match self {
            Self::Forward { .. }
            | Self::Backward { .. }
            | Self::Applied { .. }
            | Self::Infer { .. }
            | Self::Evidence { .. }
            | Self::ChunkRead { .. }
            | Self::File { .. }
            | Self::Probe { .. }
            | Self::Probed { .. } => Lane::Bulk,
            _ => Lane::Control,
        }
    }

    /// Encodes it. A message may be tens of megabytes: what it needs is allocated at once, and no more.
    pub fn to_bytes(&self) -> Vec<u8> {
        let why = "every message is plain data with known lengths";
        let size = postcard::experimental::serialized_size(self).expect(why);
        postcard::to_extend(self, Vec::with_capacity(size)).expect(why)
    }

    /// Decodes what [`to_bytes`](Self::to_bytes) made; lengths are checked against the bytes that are there before
    /// anything is allocated, and left-over bytes are an error.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, postcard::Error> {
        match postcard::take_from_bytes(bytes)? {
            (message, []) => Ok(message),
            _ => Err(postcard::Error::DeserializeBadEncoding),
        }
    }
}
