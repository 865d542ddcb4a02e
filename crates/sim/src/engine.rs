//! What computes behind the machines: the same jobs, by a toy, by a cost model or by the real engine.

use crate::violation::Violation;
use baton_plan::{BlockProfile, EndsProfile, Growth, ModelProfile};
use baton_protocol::coordinator::{self, Start, StepReport};
use baton_protocol::message::BlockBytes;
use baton_protocol::run::Settings;
use baton_protocol::stage::{self, Failure};
use std::fmt::Debug;

/// A model whose blocks are all alike and weigh nothing, as the planner is told of it.
pub(crate) fn even_profile(blocks: u16) -> ModelProfile {
    let block = BlockProfile {
        work: 1.0,
        frozen: [0; 4],
        adapters: 0,
        state: 0,
        kept: Growth::default(),
        input: Growth::default(),
        open: Growth::default(),
        open_recompute: Growth::default(),
    };
    ModelProfile {
        blocks: vec![block; blocks.into()],
        ends: EndsProfile::default(),
        tokens: 1,
        hidden: 1,
        buffers: Growth::default(),
        loading: 0,
    }
}

/// Why a job gave nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum JobError {
    /// The engine could not; the machine is told so, and the run has to survive it.
    #[error("{reason}")]
    Failed {
        /// In words.
        reason: String,
        /// What was wrong.
        failure: Failure,
    },
    /// No machine may ever ask for this job at this time: the run is wrong.
    #[error("a job that makes no sense: {0}")]
    Nonsense(String),
}

/// The engine of a stage.
pub trait StageEngine: Debug {
    /// Runs a job.
    ///
    /// # Errors
    ///
    /// When it cannot, or when the job makes no sense.
    fn run(&mut self, job: stage::Job) -> Result<stage::Done, JobError>;

    /// Activations of how many micro-batches were held at most.
    fn most_kept(&self) -> usize {
        0
    }
}

/// The engine of a host.
pub trait HostEngine: Debug {
    /// Runs a job.
    ///
    /// # Errors
    ///
    /// When it cannot, or when the job makes no sense.
    fn run(&mut self, job: coordinator::Job) -> Result<coordinator::Done, JobError>;

    /// Takes on a text of `want` tokens that starts with its own number.
    fn ask(&mut self, request: u32, want: usize);

    /// A text as it is so far.
    fn text(&self, request: u32) -> Option<&Text>;
}

/// A text that the model writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// So far.
    pub tokens: Vec<u32>,
    /// How many there will be.
    pub want: usize,
}

impl Text {
    /// Whether it is at its end.
    pub fn is_written(&self) -> bool {
        self.tokens.len() >= self.want
    }
}

/// What is trained: makes the engines, and knows what a run must give.
pub trait Model {
    /// Of a stage.
    type Stage: StageEngine;
    /// Of the host.
    type Host: HostEngine;

    /// An engine for a device that joins.
    fn stage(&self) -> Self::Stage;

    /// An engine for the host.
    fn host(&self, settings: &Settings) -> Self::Host;

    /// The run as the person starts it.
    fn start(&self, settings: &Settings) -> Start;

    /// Compares a committed step, and the adapters after it, with what one process would have got.
    ///
    /// # Errors
    ///
    /// When it differs.
    fn check(&self, report: &StepReport, states: &[&BlockBytes]) -> Result<(), Violation>;
}
