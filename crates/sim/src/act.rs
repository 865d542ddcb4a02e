//! What happens to a room from outside, and when.

use baton_protocol::message::Message;
use baton_protocol::{PeerId, coordinator, stage};
use std::time::Duration;

/// What happens to the room from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// The person starts a run.
    Start,
    /// The person pauses it, and resumes some time later.
    Pause,
    /// The person lets it go on.
    Resume,
    /// The person ends it.
    Stop,
    /// The next device joins.
    Join,
    /// A device dies; its links break, or fall silent.
    Kill {
        /// Which.
        peer: PeerId,
        /// Whether nobody is told by the network.
        silent: bool,
    },
    /// A device's owner leaves.
    Leave(PeerId),
    /// The person sends a device away.
    Remove(PeerId),
    /// The connection between two devices breaks, and both live.
    Cut(PeerId, PeerId),
    /// The next job that ends at this device fails.
    FailJob(PeerId),
    /// Every pass that ends at this device from now on fails so.
    FailPasses(PeerId, stage::Failure),
    /// A device computes something else than it should from now on, of numbers that look like any.
    Lie(PeerId),
    /// The engine of a device never ends the next pass that it begins, and the device says that it is there.
    Stall(PeerId),
    /// A text is to be written.
    Infer {
        /// Its number.
        request: u32,
        /// How many tokens, the first included.
        want: usize,
    },
    /// A device is frozen for so many seconds.
    Freeze(PeerId, u64),
    /// Nothing passes between a device and all others for so many seconds; what was sent arrives then, if its
    /// connections live so long.
    Isolate(PeerId, u64),
    /// The same between two.
    Part(PeerId, PeerId, u64),
    /// Everything from and to a device is later by so many milliseconds from now on.
    Lag(PeerId, u32),
    /// A device needs so many times as long for everything from now on.
    SlowDown(PeerId, u32),
    /// Everybody is, as when the lid of the one machine is shut.
    FreezeAll(Duration),
    /// A device's page is hidden: it says so, and is not frozen yet.
    Hide(PeerId),
    /// It is looked at again.
    Show(PeerId),
    /// The host's page is loaded anew: its machine is gone, and another one is made of what was kept of the run. The
    /// devices come again over the same link.
    ReloadHost,
    /// The host's page is there again.
    Restore,
    /// A device that waited for the host's page connects to it again.
    Return(PeerId),
    /// A link says again that it is open.
    LinkedAgain,
    /// A message of the past arrives again.
    Replay,
    /// The model has been judged.
    Evaluated,
    /// The run waits for a person: let somebody join, or go on alone.
    React,
}

impl Act {
    /// Its name and whom it strikes, if it is a fault.
    pub fn fault(&self) -> Option<(&'static str, Option<PeerId>)> {
        Some(match *self {
            Self::Kill { peer, silent: false } => ("kill", Some(peer)),
            Self::Kill { peer, silent: true } => ("vanish", Some(peer)),
            Self::Leave(peer) => ("leave", Some(peer)),
            Self::Remove(peer) => ("remove", Some(peer)),
            Self::Cut(peer, _) => ("cut", Some(peer)),
            Self::FailJob(peer) => ("failed job", Some(peer)),
            Self::Freeze(peer, _) => ("freeze", Some(peer)),
            Self::Isolate(peer, _) => ("isolate", Some(peer)),
            Self::Part(peer, ..) => ("part", Some(peer)),
            Self::FailPasses(peer, _) => ("bad numbers", Some(peer)),
            Self::Stall(peer) => ("stall", Some(peer)),
            Self::Lie(peer) => ("lie", Some(peer)),
            Self::Hide(peer) => ("hide", Some(peer)),
            Self::Lag(peer, _) => ("slow link", Some(peer)),
            Self::SlowDown(peer, _) => ("slow device", Some(peer)),
            Self::FreezeAll(_) => ("freeze all", None),
            Self::LinkedAgain => ("linked again", None),
            Self::Replay => ("replay", None),
            Self::Pause => ("pause", None),
            Self::Stop => ("stop", None),
            Self::ReloadHost => ("host reload", None),
            Self::Join
            | Self::Restore
            | Self::Return(_)
            | Self::Show(_)
            | Self::Start
            | Self::Resume
            | Self::Infer { .. }
            | Self::Evaluated
            | Self::React => return None,
        })
    }

    /// Whether a frozen host does not come to it.
    pub(crate) fn is_of_the_host(&self) -> bool {
        use Act::{Evaluated, Infer, Pause, React, Remove, Restore, Resume, Start, Stop};
        matches!(self, Start | Restore | Pause | Resume | Stop | Remove(_) | Infer { .. } | Evaluated | React)
    }
}

/// When something happens.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// At a time.
    At(Duration),
    /// While a device begins a job, or has just done it.
    Job {
        /// Whose.
        who: PeerId,
        /// Which.
        job: JobName,
        /// Its n-th of this name, from 1.
        nth: u32,
        /// When it is done instead of when it begins.
        done: bool,
    },
    /// While a message between the host and a device sets out: nothing of it has arrived.
    Said {
        /// The device.
        who: PeerId,
        /// Which message.
        word: Word,
        /// The n-th of its kind, from 1.
        nth: u32,
    },
}

/// Messages between the host and a device with which one part of a run ends and the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The device greets.
    Hello,
    /// The host greets back.
    Welcome,
    /// The device is to measure itself.
    Measure,
    /// It has.
    Measured,
    /// A plan is put in force.
    Assign,
    /// The device has loaded its part of it.
    Ready,
    /// The device sends adapters and moments after an update.
    Applied,
}

impl Word {
    pub(crate) fn of(message: &Message) -> Option<Self> {
        Some(match message {
            Message::Hello(_) => Self::Hello,
            Message::Welcome(_) => Self::Welcome,
            Message::Measure(_) => Self::Measure,
            Message::Measured { .. } => Self::Measured,
            Message::Assign(_) => Self::Assign,
            Message::Ready { .. } => Self::Ready,
            Message::Applied { .. } => Self::Applied,
            _ => return None,
        })
    }
}

/// The kinds of work of a host and of a stage under one set of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobName {
    /// Blocks, adapters and moments are fetched.
    Load,
    /// A forward pass; at the host, the front's.
    Forward,
    /// The loss and its gradient, at the host.
    Head,
    /// A backward pass.
    Backward,
    /// The norm of the gradient.
    Norm,
    /// The optimizer's update.
    Apply,
    /// A pass outside training.
    Infer,
    /// The device measures itself.
    Measure,
    /// The host computes a stage's micro-batch again.
    Check,
}

impl JobName {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Load, Self::Forward, Self::Head, Self::Backward, Self::Norm, Self::Apply, Self::Infer];

    /// Whether it is one of the two passes that a step is made of.
    pub fn is_pass(self) -> bool {
        matches!(self, Self::Forward | Self::Backward)
    }

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Forward => "forward",
            Self::Head => "head",
            Self::Backward => "backward",
            Self::Norm => "norm",
            Self::Apply => "update",
            Self::Infer => "text",
            Self::Measure => "measure",
            Self::Check => "check",
        }
    }
}

impl From<&coordinator::Job> for JobName {
    fn from(job: &coordinator::Job) -> Self {
        use coordinator::Job;
        match job {
            Job::Load { .. } => Self::Load,
            Job::Front { .. } => Self::Forward,
            Job::Head { .. } => Self::Head,
            Job::BackFront { .. } => Self::Backward,
            Job::GradNorm => Self::Norm,
            Job::Apply { .. } => Self::Apply,
            Job::InferFront { .. } | Job::InferHead { .. } => Self::Infer,
            Job::Measure(_) => Self::Measure,
            Job::Check { .. } => Self::Check,
        }
    }
}

impl From<&stage::Job> for JobName {
    fn from(job: &stage::Job) -> Self {
        use stage::Job;
        match job {
            Job::Load { .. } => Self::Load,
            Job::Forward { .. } => Self::Forward,
            Job::Backward { .. } => Self::Backward,
            Job::GradNorm => Self::Norm,
            Job::Apply { .. } => Self::Apply,
            Job::Infer { .. } => Self::Infer,
            Job::Measure(_) => Self::Measure,
        }
    }
}
