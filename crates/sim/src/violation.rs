//! What must never happen in a room, as errors that carry what was seen.

use crate::act::JobName;
use baton_protocol::link::LinkError;
use baton_protocol::{PeerId, Step};
use std::time::Duration;

/// A promise of the protocol that a run broke. In the text of every one stands what was seen; the seed is the caller's.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Violation {
    /// Nothing came to an end within any sensible time.
    #[error("the run is stuck: {phase} after {after:?}, with {committed} of {steps} steps done")]
    Stuck {
        /// The phase of the run.
        phase: String,
        /// Virtual time.
        after: Duration,
        /// Steps done.
        committed: usize,
        /// Steps in all.
        steps: u32,
        /// All machines, for who has to find out why.
        machines: String,
    },
    /// A step was lost, or applied twice.
    #[error("step {found} was committed where step {expected} was due")]
    Order {
        /// The next one.
        expected: Step,
        /// The one that came.
        found: Step,
    },
    /// The coordinator's count of steps is not the number that it told of.
    #[error("the host says that {found} steps are done after it committed {expected}")]
    Count {
        /// Steps told of.
        expected: Step,
        /// Its count.
        found: Step,
    },
    /// A number is not what one process gets.
    #[error("the {what} of step {step} is {found}, and one process gets {expected}")]
    Number {
        /// Which number.
        what: &'static str,
        /// Of which step.
        step: Step,
        /// What the room got.
        found: f64,
        /// What one process gets.
        expected: f64,
    },
    /// Adapters or moments are not what one process gets.
    #[error("the adapters after step {step} are not those of one process")]
    States {
        /// After which step.
        step: Step,
    },
    /// A step was reported that the run does not have.
    #[error("step {step} was committed, and the run has {steps}")]
    NoSuchStep {
        /// Which.
        step: Step,
        /// Steps in all.
        steps: usize,
    },
    /// A machine ordered a job while another one ran.
    #[error("device {who} was given a job ({job:?}) while it worked on another")]
    TwoJobs {
        /// Whose.
        who: PeerId,
        /// The second.
        job: JobName,
    },
    /// A machine ordered what makes no sense.
    #[error("device {who} was given {reason}")]
    Job {
        /// Whose.
        who: PeerId,
        /// In words.
        reason: String,
    },
    /// A step began while the model was judged.
    #[error("a step began while the model was judged")]
    JudgedWhileTraining,
    /// The model was judged after other steps than it was to be.
    #[error("the model was judged after {found:?} steps, and was to be after {expected:?}")]
    Judged {
        /// As the settings say.
        expected: Vec<u32>,
        /// As it was.
        found: Vec<u32>,
    },
    /// An honest device sent what the other one refuses.
    #[error("device {who} refused a frame of an honest one: {error}")]
    Frame {
        /// The receiver.
        who: PeerId,
        /// Why.
        error: LinkError,
    },
    /// The run did not come to its good end.
    #[error("the run is {phase} with {committed} steps done, and was to be finished with {steps}")]
    Unfinished {
        /// The phase of the run.
        phase: String,
        /// Steps done.
        committed: usize,
        /// Steps in all.
        steps: u32,
    },
    /// A text is not the one that one process writes.
    #[error("the room wrote {found:?}, and one process writes {expected:?}")]
    Text {
        /// By one process.
        expected: Vec<u32>,
        /// By the room.
        found: Vec<u32>,
    },
    /// A machine has nothing to wait for: the world's own mistake, or the host's timer is gone.
    #[error("nothing will ever happen again")]
    Dead,
}
