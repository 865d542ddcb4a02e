//! What the coordinator remembers: its peers, the plan in force, the step that is open and the one that closes.

use super::audit::{Audit, Audits};
use super::room::COMPILES;
use super::{Job, Start, StepReport};
use crate::codec::Boundary;
use crate::ids::{Generation, MicroBatch, PeerId, Step};
use crate::message::{BlockBytes, Counts, Device};
use crate::probe::Probe;
use crate::pulse::Presence;
use crate::schedule::Schedule;
use crate::stage::MAX_INFERS;
use baton_plan::{Curve, HostProfile, Tracker, Wire};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

/// More greetings of one device within this time are not answered.
const GREETING: Duration = Duration::from_secs(1);
/// How long a device that dropped out of a plan is only a spare, the first time; twice as long each time after.
const REST: Duration = Duration::from_secs(5);
/// The longest of these rests.
const LONGEST_REST: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) control: bool,
    pub(super) bulk: bool,
    pub(super) device: Option<Device>,
    pub(super) greeted: Option<Duration>,
    pub(super) presence: Presence,
    /// Its numbers are in doubt, and the step is made without it to find out.
    pub(super) suspended: bool,
    pub(super) heard: Duration,
    /// When it last got on with its loading.
    pub(super) stirred: Duration,
    pub(super) progress: (u64, u64),
    pub(super) ready: Option<Generation>,
    pub(super) warm: Option<Warm>,
    /// It could not load what it was to have ready.
    pub(super) cannot_warm: bool,
    /// It came, or came back, and was not given a stage since.
    pub(super) fresh: bool,
    /// How often it dropped out of a plan and came back.
    pub(super) strikes: u32,
    /// It is given no stage before, unless nobody else is there.
    pub(super) rests_until: Duration,
    /// How often it called what a neighbour sent unreadable.
    pub(super) accusations: u8,
    /// Its link to the host.
    pub(super) probe: Probe,
    /// How fast it is, and what it can hold.
    pub(super) compute: Compute,
    /// The last step of which it was found to compute right.
    pub(super) checked: Option<Step>,
}

/// What is known of how fast a device is.
#[derive(Debug, Default)]
pub(super) enum Compute {
    /// Nothing.
    #[default]
    Unknown,
    /// It measures itself.
    Asked {
        /// The number of the question.
        id: u32,
        /// From when on.
        since: Duration,
    },
    /// What it measured, or what its first step took, followed through the run.
    Known {
        /// The number of the question.
        id: u32,
        /// With its times in the run.
        tracker: Tracker,
    },
}

impl Compute {
    pub(super) fn is_asked(&self, question: u32) -> bool {
        matches!(self, Self::Asked { id, .. } if *id == question)
    }

    pub(super) fn answers(&self, question: u32) -> bool {
        matches!(self, Self::Known { id, .. } if *id == question)
    }

    pub(super) fn tracker(&self) -> Option<&Tracker> {
        match self {
            Self::Known { tracker, .. } => Some(tracker),
            Self::Unknown | Self::Asked { .. } => None,
        }
    }
}

/// How fast the host is, by its own measurement and the run's times since.
#[derive(Debug)]
pub(super) struct Own {
    /// Of the embedding.
    pub(super) front: Curve,
    /// Of the LM head with the loss.
    pub(super) head: Curve,
    /// Of its blocks.
    pub(super) tracker: Tracker,
}

impl Own {
    pub(super) fn new(HostProfile { device, front, head }: HostProfile) -> Self {
        Self { front, head, tracker: Tracker::new(device) }
    }

    pub(super) fn profile(&self) -> HostProfile {
        let (front, head) = (self.front.clone(), self.head.clone());
        HostProfile { device: self.tracker.profile(), front, head }
    }
}

/// Before the first plan, devices measure themselves.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) since: Duration,
    /// Whether the host has to, and has not yet.
    pub(super) host: bool,
}

/// Blocks that a device was told to have ready.
#[derive(Debug, Clone)]
pub(super) struct Warm {
    pub(super) blocks: Range<u16>,
    pub(super) done: bool,
}

impl Peer {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            control: false,
            bulk: false,
            device: None,
            greeted: None,
            presence: Presence::Present,
            suspended: false,
            heard: now,
            stirred: now,
            progress: (0, 0),
            ready: None,
            warm: None,
            cannot_warm: false,
            fresh: true,
            strikes: 0,
            rests_until: now,
            accusations: 0,
            probe: Probe::default(),
            compute: Compute::default(),
            checked: None,
        }
    }

    /// Whether it measures itself: nothing else is done there meanwhile.
    pub(super) fn is_measuring(&self) -> bool {
        matches!(self.compute, Compute::Asked { .. })
    }

    /// Whether it can be spoken to and has said who it is.
    pub(super) fn is_connected(&self) -> bool {
        self.control && self.bulk && self.device.is_some()
    }

    /// Whether it gets something ready that it has not reported yet.
    pub(super) fn is_warming(&self) -> bool {
        self.warm.as_ref().is_some_and(|warm| !warm.done)
    }

    /// Whether it greeted a moment ago; one that lost the host and found it again greets anew.
    pub(super) fn has_greeted(&mut self, now: Duration) -> bool {
        let again = self.greeted.is_some_and(|greeted| now < greeted + GREETING);
        self.greeted.get_or_insert(now);
        if !again {
            self.greeted = Some(now);
        }
        again
    }

    /// Whether it can be given work.
    pub(super) fn is_usable(&self) -> bool {
        self.is_connected() && self.presence.is_present() && !self.suspended
    }

    /// It dropped out of a plan: the more often, the longer it is left in peace.
    pub(super) fn strike(&mut self, now: Duration) {
        let rest = REST.saturating_mul(1 << self.strikes.min(10)).min(LONGEST_REST);
        self.strikes = self.strikes.saturating_add(1);
        self.rests_until = now + rest;
    }

    /// Whether all of these blocks are ready.
    pub(super) fn has_ready(&self, blocks: &Range<u16>) -> bool {
        self.warm.as_ref().is_some_and(|warm| {
            warm.done && warm.blocks.start <= blocks.start && blocks.end <= warm.blocks.end
        })
    }
}

/// Who runs which blocks, the host's own first, and into how many micro-batches a step is cut.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    /// The host's own blocks.
    pub(super) host: Range<u16>,
    pub(super) stages: Vec<(PeerId, Range<u16>)>,
    pub(super) micro_batches: u16,
    /// How many more are in flight than 1F1B's own.
    pub(super) ahead: u16,
}

impl Shape {
    /// The host runs all blocks itself.
    pub(super) fn alone(blocks: u16, micro_batches: u16) -> Self {
        Self { host: 0..blocks, stages: Vec::new(), micro_batches, ahead: 0 }
    }

    pub(super) fn position(&self, peer: PeerId) -> Option<usize> {
        self.stages.iter().position(|(owner, _)| *owner == peer)
    }

    pub(super) fn blocks_of(&self, peer: PeerId) -> Option<&Range<u16>> {
        self.stages.iter().find(|(owner, _)| *owner == peer).map(|(_, blocks)| blocks)
    }
}

/// Who runs what.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) generation: Generation,
    pub(super) shape: Shape,
    /// Whether activations are computed again in backward: by the host, and by each stage.
    pub(super) recompute: (bool, Vec<bool>),
    /// Whether the host trains a head.
    pub(super) head: bool,
}

impl Plan {
    pub(super) fn host_trains(&self) -> bool {
        !self.shape.host.is_empty()
    }

    /// Whether the host has anything to update.
    pub(super) fn host_updates(&self) -> bool {
        self.host_trains() || self.head
    }

    pub(super) fn stages(&self) -> &[(PeerId, Range<u16>)] {
        &self.shape.stages
    }

    pub(super) fn position(&self, peer: PeerId) -> Option<usize> {
        self.shape.position(peer)
    }

    /// Into how many micro-batches a step is cut.
    pub(super) fn micro_batches(&self) -> u16 {
        self.shape.micro_batches
    }

    /// Whether the stage at a position computes activations again.
    pub(super) fn recomputes(&self, position: usize) -> bool {
        self.recompute.1.get(position).copied().unwrap_or(false)
    }
}

/// What was found best for a room.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) devices: Vec<PeerId>,
    /// How fast they were then.
    pub(super) paces: Vec<[f64; 2]>,
    pub(super) shape: Shape,
}

/// A better plan, put in force between two steps when everybody has ready what is new to it.
#[derive(Debug, Clone)]
pub(super) struct Intent {
    pub(super) shape: Shape,
    pub(super) waiting: BTreeSet<PeerId>,
    pub(super) since: Duration,
}

impl Intent {
    pub(super) fn is_ripe(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// A step is made again without a device whose numbers were none, to find out whether it is the device.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) step: Step,
    pub(super) suspect: PeerId,
}

/// Nothing has moved for long, and the stages were asked how far they are.
#[derive(Debug)]
pub(super) struct Inquiry {
    pub(super) since: Duration,
    pub(super) answers: BTreeMap<PeerId, (Step, Counts)>,
}

/// Whether the next step may begin.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Drive {
    Go,
    /// Loaded for the first time; the shell lets it go.
    Held,
    Paused,
}

/// What is known of the links of the plan in force.
#[derive(Debug)]
pub(super) enum Timing {
    /// All that is wanted.
    Known,
    /// They are to be timed when the step is over: all of them, or only those between stages that were not.
    Due { all: bool },
    /// They are being timed, round by round, so that no two share a device; the first of these is under way.
    Asked { since: Duration, rounds: VecDeque<Round> },
}

/// A link between two stages, and when it was timed.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimedWire {
    pub(super) wire: Wire,
    pub(super) at: Duration,
}

/// Links that are timed at the same time.
#[derive(Debug)]
pub(super) enum Round {
    /// Of these stages to the next ones.
    Stages(BTreeSet<PeerId>),
    /// Of the host to the stages.
    Host,
}

/// How long steps take, beside what the planner expects.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds of a step under the plan in force, when it was last looked at.
    pub(super) expected: Option<f64>,
    /// When a step was last committed.
    pub(super) committed: Duration,
    /// Nothing but steps happened since.
    pub(super) steady: bool,
    /// The plan was made for a loss, and no step was made with it: it is not kept waiting.
    pub(super) mended: bool,
    /// Plans that were put in force since for what was found of their links.
    pub(super) plans: u8,
    /// How many in a row took much longer than expected.
    pub(super) late: u8,
    /// When links are timed again for that at the earliest.
    pub(super) not_before: Duration,
    /// How long that was after the last time.
    pub(super) patience: Duration,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) start: Start,
    pub(super) plan: Plan,
    pub(super) intent: Option<Intent>,
    pub(super) drive: Drive,
    /// Every device left; why, in words. It waits for a person or another device.
    pub(super) deserted: Option<String>,
    /// The plan of a run that is over has lost a device or a connection; it is mended when a text needs it.
    pub(super) broken: bool,
    pub(super) host_loaded: bool,
    /// Devices measure themselves; nothing is planned yet.
    pub(super) survey: Option<Survey>,
    pub(super) neighbours_lost: u8,
    pub(super) doubt: Option<Doubt>,
    /// When it began.
    pub(super) since: Duration,
    /// When anything of the work was last heard.
    pub(super) stirred: Duration,
    pub(super) inquiry: Option<Inquiry>,
    /// The longest step so far.
    pub(super) longest_step: Duration,
    /// When a better plan is looked for next.
    pub(super) consider_at: Duration,
    /// When one was looked for last.
    pub(super) considered: Duration,
    /// After how many steps a better plan was last decided on, and how often that was.
    pub(super) moved: (Step, u32),
    /// What was found best last.
    pub(super) answer: Option<Answer>,
    /// Steps that are committed; the state that belongs to them.
    pub(super) committed: Step,
    pub(super) states: BTreeMap<u16, BlockBytes>,
    pub(super) open: OpenStep,
    /// Whether links are timed, or will be when the step is over: no step begins.
    pub(super) timing: Timing,
    pub(super) pace: Pace,
    /// Updated here and not yet confirmed by every stage.
    pub(super) closing: Option<Closing>,
    /// A micro-batch that is computed again.
    pub(super) audit: Option<Audit>,
    pub(super) audits: Audits,
    /// The model is being judged, or will be when the step that closes is committed: no step begins.
    pub(super) judging: bool,
    /// The judgement that was due before the first step was asked for.
    pub(super) asked_before: bool,
    pub(super) infer_front: VecDeque<u32>,
    pub(super) infer_head: VecDeque<(u32, Boundary)>,
    /// Texts on their way through the stages.
    pub(super) inferring: BTreeSet<u32>,
    pub(super) end: Option<End>,
}

impl Run {
    pub(super) fn new(start: Start, generation: Generation, texts: VecDeque<u32>, now: Duration) -> Self {
        let audits = Audits::after(start.committed);
        let states = start.states.iter().map(|state| (state.block, state.clone())).collect();
        let shape = Shape::alone(start.blocks, start.settings.micro_batches);
        let recompute = (start.settings.recompute, Vec::new());
        let plan = Plan { generation, shape, recompute, head: start.head };
        Self {
            drive: Drive::Held,
            intent: None,
            deserted: None,
            broken: false,
            host_loaded: false,
            survey: None,
            neighbours_lost: 0,
            doubt: None,
            since: now,
            stirred: now,
            inquiry: None,
            longest_step: Duration::ZERO,
            consider_at: now,
            considered: Duration::ZERO,
            moved: (start.committed, 0),
            answer: None,
            committed: start.committed,
            states,
            open: OpenStep::new(start.committed, &plan),
            judging: !start.judged && start.settings.evaluates_after(start.committed.0),
            timing: Timing::Known,
            pace: Pace { not_before: now + COMPILES, ..Pace::default() },
            plan,
            start,
            closing: None,
            audit: None,
            audits,
            asked_before: false,
            infer_front: texts,
            infer_head: VecDeque::new(),
            inferring: BTreeSet::new(),
            end: None,
        }
    }

    pub(super) fn next_text(&mut self) -> Option<(Kind, Job)> {
        if let Some((request, tensor)) = self.infer_head.pop_front() {
            return Some((Kind::InferHead(request), Job::InferHead { request, tensor }));
        }
        // One for each device on the way keeps all of them busy; a stage drops what is more than it can hold.
        if self.inferring.len() >= MAX_INFERS.min(self.plan.stages().len() + 2) {
            return None;
        }
        let request = self.infer_front.pop_front()?;
        Some((Kind::InferFront(request), Job::InferFront { request }))
    }

    /// Texts that wait for their next token.
    pub(super) fn into_texts(self) -> VecDeque<u32> {
        let on_the_way = self.infer_head.into_iter().map(|(request, _)| request);
        self.infer_front.into_iter().chain(on_the_way).chain(self.inferring).collect()
    }

    /// Samples of a micro-batch.
    pub(super) fn samples(&self) -> u32 {
        let count = u32::from(self.plan.micro_batches()).max(1);
        self.start.settings.batch_size.div_ceil(count).max(1)
    }

    /// Steps that are not complete yet.
    pub(super) fn steps_left(&self) -> u32 {
        self.start.settings.steps.saturating_sub(self.committed.0)
    }

    /// Whether it makes steps, or will again.
    pub(super) fn is_live(&self) -> bool {
        self.end.is_none()
    }

    /// Whether no step is under way, so that a plan can be changed for nothing.
    pub(super) fn is_between_steps(&self) -> bool {
        self.closing.is_none() && !self.open.has_begun()
    }

    /// Whether a better plan waits for nothing but the end of the step.
    pub(super) fn is_about_to_move(&self) -> bool {
        self.intent.as_ref().is_some_and(Intent::is_ripe)
    }

    pub(super) fn stir(&mut self, now: Duration) {
        self.stirred = now;
        self.inquiry = None;
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    Finished,
    Stopped,
    Failed(String),
}

#[derive(Debug)]
pub(super) struct OpenStep {
    pub(super) step: Step,
    pub(super) front: Schedule,
    pub(super) head: BTreeMap<MicroBatch, Boundary>,
    pub(super) grads: BTreeMap<MicroBatch, Option<Boundary>>,
    pub(super) next_head: MicroBatch,
    pub(super) loss: f64,
    pub(super) tokens: u32,
    /// Sums of squares, by stage; the host's own under `None`.
    pub(super) norms: BTreeMap<Option<PeerId>, f64>,
    pub(super) host_norm: HostNorm,
    pub(super) begun: Option<Duration>,
}

#[derive(Debug, PartialEq)]
pub(super) enum HostNorm {
    Wanted,
    Asked,
}

impl OpenStep {
    pub(super) fn new(step: Step, plan: &Plan) -> Self {
        let positions = u16::try_from(plan.stages().len()).unwrap_or(u16::MAX).saturating_add(2);
        Self {
            step,
            front: Schedule::new(0, positions.saturating_add(plan.shape.ahead), plan.micro_batches()),
            head: BTreeMap::new(),
            grads: BTreeMap::new(),
            next_head: MicroBatch(0),
            loss: 0.0,
            tokens: 0,
            norms: BTreeMap::new(),
            host_norm: HostNorm::Wanted,
            begun: None,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.front.next_backward().is_some() || self.next_head.0 > 0
    }
}

#[derive(Debug)]
pub(super) struct Closing {
    pub(super) report: StepReport,
    pub(super) scale: f64,
    pub(super) host_applies: bool,
    pub(super) waiting: BTreeSet<Option<PeerId>>,
    pub(super) states: Vec<BlockBytes>,
    pub(super) begun: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Load,
    Front(MicroBatch),
    Head(MicroBatch),
    BackFront,
    GradNorm,
    Apply,
    InferFront(u32),
    InferHead(u32),
    /// The number of the question.
    Measure(u32),
    Check,
}
