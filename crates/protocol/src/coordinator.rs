//! The machine of the host: admits devices, plans, runs the ends of the pipeline, and commits steps.
//!
//! The host owns the text, so it embeds tokens (the front) and takes the loss (the head); with no other device it runs
//! every block itself. A step is committed when every stage has sent its adapters and moments after the update; a lost
//! device costs no step, because a new plan starts from what was committed last and the open step runs again.

use crate::codec::Boundary;
use crate::ids::{Generation, MicroBatch, PeerId, StageIndex, Step};
use crate::link::Lane;
use crate::message::{Assign, BlockBytes, Device, Message, RoomState};
use crate::run::{ModelSource, Settings};
use crate::schedule::{Schedule, Work};
use crate::stage::{HEARTBEAT, MAX_INFERS, SILENCE};
use baton_plan::even_split;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

/// How often one plan may lose the connection between two neighbours before the one behind it is left out.
const NEIGHBOUR_RETRIES: u8 = 3;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A link is open in both directions.
    Linked {
        /// To whom.
        peer: PeerId,
        /// Which.
        lane: Lane,
    },
    /// A peer is gone for good.
    Lost {
        /// Who.
        peer: PeerId,
        /// In words.
        reason: String,
    },
    /// A message arrived.
    Message {
        /// Whose link it came on.
        from: PeerId,
        /// What it says.
        message: Message,
    },
    /// The person starts a run.
    Start(Box<Start>),
    /// The person pauses after the open step.
    Pause,
    /// The person goes on, or lets a loaded run begin.
    Resume,
    /// The person ends the run.
    Stop,
    /// The person sends a device away.
    Remove {
        /// Which.
        peer: PeerId,
    },
    /// The model has been judged as [`Output::Evaluate`] asked, and training may go on.
    Evaluated,
    /// The engine has a text to go on with.
    Infer {
        /// The engine's number for it.
        request: u32,
    },
    /// The host's own blocks are being fetched.
    Progress {
        /// Bytes fetched.
        loaded: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The job is done.
    Done(Done),
    /// The job failed.
    JobFailed {
        /// In words.
        reason: String,
    },
}

/// A run to start.
#[derive(Clone, Debug)]
pub struct Start {
    /// What the person set.
    pub settings: Settings,
    /// Transformer blocks of the model.
    pub blocks: u16,
    /// Where stages fetch them.
    pub source: ModelSource,
    /// The model's `config.json`.
    pub config: String,
    /// Sizes and hashes of its files; see [`Assign::manifest`].
    pub manifest: Vec<u8>,
    /// Adapters to start from; empty for fresh ones.
    pub states: Vec<BlockBytes>,
    /// Whether the host trains a head of its own. Its state travels as that of the block after the last.
    pub head: bool,
}

/// What the shell is to do.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Send a message.
    Send {
        /// To whom.
        to: PeerId,
        /// What; [`Message::lane`] says on which lane.
        message: Message,
    },
    /// Close every link to a peer, after what was sent on them: the last message tells its owner why.
    Disconnect {
        /// To whom.
        peer: PeerId,
    },
    /// Run a job; the next one comes only after this one's [`Event::Done`] or [`Event::JobFailed`].
    Job(Job),
    /// A step is complete on every device.
    Committed(StepReport),
    /// The model is to be judged as it is after so many complete steps, by texts of the engine's own
    /// ([`Event::Infer`]); no step begins before [`Event::Evaluated`].
    Evaluate {
        /// Complete steps.
        done: Step,
    },
    /// Every device has its blocks; no step is made before [`Event::Resume`]. Said again if the plan changes before that.
    Loaded,
    /// A text can take up the next token, or has failed.
    Inferred {
        /// Which.
        request: u32,
        /// Whether it is at its end.
        done: bool,
    },
    /// [`Coordinator::phase`] or [`Coordinator::devices`] has changed.
    Changed,
}

/// Work for the host's engine.
#[derive(Debug, PartialEq)]
pub enum Job {
    /// Load the ends and, if the host trains, its blocks; drop what was there.
    Load {
        /// The host's own blocks.
        blocks: Range<u16>,
        /// Their adapters and moments, and the head's state; empty for fresh ones.
        states: Vec<BlockBytes>,
    },
    /// Embed the tokens of a micro-batch (and run the host's own blocks).
    Front {
        /// The open step.
        step: Step,
        /// The slice.
        micro_batch: MicroBatch,
    },
    /// The loss of a micro-batch and its gradient.
    Head {
        /// The open step.
        step: Step,
        /// The slice.
        micro_batch: MicroBatch,
        /// `[batch, time, hidden]`.
        tensor: Boundary,
    },
    /// The backward pass of the host's own blocks.
    BackFront {
        /// The slice.
        micro_batch: MicroBatch,
        /// `[batch, time, hidden]`.
        tensor: Boundary,
    },
    /// The sum of squares of the gradients of the host's own blocks and head.
    GradNorm,
    /// The optimizer update of the host's own blocks and head.
    Apply {
        /// Learning rate.
        lr: f64,
        /// Gradients are multiplied by this first.
        scale: f64,
    },
    /// Embed a text as it is so far (and run the host's own blocks).
    InferFront {
        /// Which text.
        request: u32,
    },
    /// Choose the next token.
    InferHead {
        /// Which text.
        request: u32,
        /// `[batch, time, hidden]`.
        tensor: Boundary,
    },
}

/// What a job gave.
#[derive(Debug, PartialEq)]
pub enum Done {
    /// [`Job::Load`].
    Load,
    /// [`Job::Front`]: hidden states.
    Front(Boundary),
    /// [`Job::Head`].
    Head {
        /// Its part of the step's mean loss.
        loss: f64,
        /// Target tokens in it.
        tokens: u32,
        /// The gradient of the hidden states.
        grad: Boundary,
    },
    /// [`Job::BackFront`].
    BackFront,
    /// [`Job::GradNorm`].
    GradNorm(f64),
    /// [`Job::Apply`]: adapters and moments as they are now.
    Apply(Vec<BlockBytes>),
    /// [`Job::InferFront`]: hidden states.
    InferFront(Boundary),
    /// [`Job::InferHead`]: whether the text is at its end.
    InferHead {
        /// At its end, or as long as was asked for.
        done: bool,
    },
}

/// A committed step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Counted from 0.
    pub step: Step,
    /// Mean negative log-likelihood over the step's target tokens.
    pub loss: f64,
    /// The learning rate that was used.
    pub lr: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Target tokens in the step.
    pub tokens: u32,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq)]
pub enum RunPhase {
    /// Not started.
    Lobby,
    /// Devices fetch their blocks.
    Loading,
    /// Loaded and not yet let go.
    Loaded,
    /// Steps are made.
    Running,
    /// Stands still after a complete step; why, if the person did not ask for it.
    Paused(Option<String>),
    /// All steps are done.
    Finished,
    /// The person stopped it.
    Stopped,
    /// It could not go on; why, in words.
    Failed(String),
}

/// A device as the host sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceView {
    /// Its number.
    pub peer: PeerId,
    /// As it introduced itself, if it has.
    pub device: Option<Device>,
    /// Its blocks in the plan in force.
    pub blocks: Option<Range<u16>>,
    /// Bytes fetched of bytes, while it loads.
    pub loading: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Peer {
    control: bool,
    bulk: bool,
    device: Option<Device>,
    heard: Duration,
    progress: (u64, u64),
    ready: Option<Generation>,
}

impl Peer {
    fn is_usable(&self) -> bool {
        self.control && self.bulk && self.device.is_some()
    }
}

/// Who runs what.
#[derive(Debug, Clone)]
struct Plan {
    generation: Generation,
    /// The host's own blocks; all of them or none.
    host: Range<u16>,
    /// Whether the host trains a head.
    head: bool,
    stages: Vec<(PeerId, Range<u16>)>,
}

impl Plan {
    fn host_trains(&self) -> bool {
        !self.host.is_empty()
    }

    /// Whether the host has anything to update.
    fn host_updates(&self) -> bool {
        self.host_trains() || self.head
    }

    fn position(&self, peer: PeerId) -> Option<usize> {
        self.stages.iter().position(|(owner, _)| *owner == peer)
    }
}

/// Whether the next step may begin.
#[derive(Debug, Clone, PartialEq)]
enum Drive {
    Go,
    /// Loaded for the first time; the shell lets it go.
    Held,
    Paused,
}

#[derive(Debug)]
struct Run {
    start: Start,
    plan: Plan,
    drive: Drive,
    /// Every device left; why, in words. It waits for a person or another device.
    deserted: Option<String>,
    /// The plan of a run that is over has lost a device or a connection; it is mended when a text needs it.
    broken: bool,
    host_loaded: bool,
    neighbours_lost: u8,
    /// Steps that are committed; the state that belongs to them.
    committed: Step,
    states: BTreeMap<u16, BlockBytes>,
    open: OpenStep,
    /// Updated here and not yet confirmed by every stage.
    closing: Option<Closing>,
    /// The model is being judged, or will be when the step that closes is committed: no step begins.
    judging: bool,
    /// The judgement before the first step was asked for.
    asked_before: bool,
    infer_front: VecDeque<u32>,
    infer_head: VecDeque<(u32, Boundary)>,
    /// Texts on their way through the stages.
    inferring: BTreeSet<u32>,
    end: Option<End>,
}

impl Run {
    fn next_text(&mut self) -> Option<(Kind, Job)> {
        if let Some((request, tensor)) = self.infer_head.pop_front() {
            return Some((Kind::InferHead(request), Job::InferHead { request, tensor }));
        }
        // One for each device on the way keeps all of them busy; a stage drops what is more than it can hold.
        if self.inferring.len() >= MAX_INFERS.min(self.plan.stages.len() + 2) {
            return None;
        }
        let request = self.infer_front.pop_front()?;
        Some((Kind::InferFront(request), Job::InferFront { request }))
    }

    /// Texts that wait for their next token.
    fn into_texts(self) -> VecDeque<u32> {
        let on_the_way = self.infer_head.into_iter().map(|(request, _)| request);
        self.infer_front.into_iter().chain(on_the_way).chain(self.inferring).collect()
    }
}

#[derive(Debug, Clone, PartialEq)]
enum End {
    Finished,
    Stopped,
    Failed(String),
}

#[derive(Debug)]
struct OpenStep {
    step: Step,
    front: Schedule,
    head: BTreeMap<MicroBatch, Boundary>,
    grads: BTreeMap<MicroBatch, Option<Boundary>>,
    next_head: MicroBatch,
    loss: f64,
    tokens: u32,
    /// Sums of squares, by stage; the host's own under `None`.
    norms: BTreeMap<Option<PeerId>, f64>,
    host_norm: HostNorm,
}

#[derive(Debug, PartialEq)]
enum HostNorm {
    Wanted,
    Asked,
}

impl OpenStep {
    fn new(step: Step, plan: &Plan, settings: &Settings) -> Self {
        let positions = u16::try_from(plan.stages.len()).unwrap_or(u16::MAX).saturating_add(2);
        Self {
            step,
            front: Schedule::new(0, positions, settings.micro_batches),
            head: BTreeMap::new(),
            grads: BTreeMap::new(),
            next_head: MicroBatch(0),
            loss: 0.0,
            tokens: 0,
            norms: BTreeMap::new(),
            host_norm: HostNorm::Wanted,
        }
    }

    fn has_begun(&self) -> bool {
        self.front.next_backward().is_some() || self.next_head.0 > 0
    }
}

#[derive(Debug)]
struct Closing {
    report: StepReport,
    scale: f64,
    host_applies: bool,
    waiting: BTreeSet<Option<PeerId>>,
    states: Vec<BlockBytes>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Load,
    Front(MicroBatch),
    Head(MicroBatch),
    BackFront,
    GradNorm,
    Apply,
    InferFront(u32),
    InferHead(u32),
}

/// A reason as it came from the network, cut to what a person reads.
fn short(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The machine.
#[derive(Debug)]
pub struct Coordinator {
    device: Device,
    peers: BTreeMap<PeerId, Peer>,
    run: Option<Run>,
    generation: Generation,
    running: Option<(Generation, Kind)>,
    outputs: VecDeque<Output>,
    heartbeat: Duration,
    host_progress: (u64, u64),
}

impl Coordinator {
    /// A host without a run, at time `now` of any clock.
    pub fn new(device: Device, now: Duration) -> Self {
        Self {
            device,
            peers: BTreeMap::new(),
            run: None,
            generation: Generation(0),
            running: None,
            outputs: VecDeque::new(),
            heartbeat: now,
            host_progress: (0, 0),
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, event: Event, now: Duration) {
        match event {
            Event::Linked { peer, lane } => self.linked(peer, lane, now),
            Event::Lost { peer, reason } => self.lost(peer, &reason),
            Event::Message { from, message } => self.message(from, message, now),
            Event::Start(start) => self.start(*start),
            Event::Pause => self.pause(),
            Event::Resume => self.resume(),
            Event::Stop => self.end(End::Stopped),
            Event::Remove { peer } => {
                self.dismiss(peer, "The host removed this device from the room.", "it was removed");
            }
            Event::Evaluated => {
                if let Some(run) = &mut self.run {
                    run.judging = false;
                }
                self.loaded_if_complete();
            }
            Event::Infer { request } => match self.run.as_mut() {
                Some(run) => run.infer_front.push_back(request),
                None => self.outputs.push_back(Output::Inferred { request, done: true }),
            },
            Event::Progress { loaded, total } => {
                self.host_progress = (loaded, total);
                self.outputs.push_back(Output::Changed);
            }
            Event::Done(done) => self.done(done),
            Event::JobFailed { reason } => self.job_failed(reason),
        }
        self.advance();
    }

    /// To be called at [`poll_timeout`](Self::poll_timeout) or later.
    pub fn handle_timeout(&mut self, now: Duration) {
        if now < self.heartbeat {
            return;
        }
        // What came while this side slept (a frozen tab, a long job) may still wait to be read: its own lateness is not
        // held against the others.
        let late = now.saturating_sub(self.heartbeat);
        self.peers.values_mut().for_each(|peer| peer.heard = (peer.heard + late).min(now));
        self.heartbeat = now + HEARTBEAT;
        let silent: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| now >= peer.heard + SILENCE).map(|(id, _)| *id).collect();
        for peer in silent {
            self.outputs.push_back(Output::Disconnect { peer });
            self.lost(peer, &format!("it was silent for {} seconds", SILENCE.as_secs()));
        }
        let linked: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| peer.control).map(|(id, _)| *id).collect();
        for peer in linked {
            self.send(peer, Message::Heartbeat);
        }
        self.advance();
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Duration {
        self.heartbeat
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Where the run stands.
    pub fn phase(&self) -> RunPhase {
        let Some(run) = &self.run else { return RunPhase::Lobby };
        match (&run.end, &run.drive) {
            (Some(End::Finished), _) => RunPhase::Finished,
            (Some(End::Stopped), _) => RunPhase::Stopped,
            (Some(End::Failed(reason)), _) => RunPhase::Failed(reason.clone()),
            (None, _) if run.deserted.is_some() => RunPhase::Paused(run.deserted.clone()),
            (None, Drive::Paused) if !self.is_stepping(run) => RunPhase::Paused(None),
            (None, _) if !self.is_loaded(run) => RunPhase::Loading,
            (None, Drive::Held) => RunPhase::Loaded,
            (None, _) => RunPhase::Running,
        }
    }

    /// Every other device in the room.
    pub fn devices(&self) -> Vec<DeviceView> {
        let plan = self.run.as_ref().map(|run| &run.plan);
        let view = |(&id, peer): (&PeerId, &Peer)| {
            let stage = plan.and_then(|plan| plan.stages.iter().find(|(owner, _)| *owner == id));
            let loads = stage.is_some() && peer.ready != Some(self.generation);
            DeviceView {
                peer: id,
                // A device that cannot be given work yet is still connecting.
                device: peer.device.clone().filter(|_| peer.is_usable()),
                blocks: stage.map(|(_, blocks)| blocks.clone()),
                loading: loads.then_some(peer.progress),
            }
        };
        self.peers.iter().map(view).collect()
    }

    /// The host's own blocks, and bytes fetched of bytes while it loads.
    pub fn own_part(&self) -> (Option<Range<u16>>, Option<(u64, u64)>) {
        let Some(run) = &self.run else { return (None, None) };
        (
            run.plan.host_trains().then(|| run.plan.host.clone()),
            (!run.host_loaded).then_some(self.host_progress),
        )
    }

    /// Steps that are complete on every device.
    pub fn committed(&self) -> Step {
        self.run.as_ref().map_or(Step(0), |run| run.committed)
    }

    /// Adapters and moments as of [`committed`](Self::committed); empty before the first step.
    pub fn states(&self) -> impl Iterator<Item = &BlockBytes> {
        self.run.iter().flat_map(|run| run.states.values())
    }

    /// Whether boundaries cross to another device.
    pub fn has_stages(&self) -> bool {
        self.run.as_ref().is_some_and(|run| !run.plan.stages.is_empty())
    }

    fn is_loaded(&self, run: &Run) -> bool {
        let ready = |(peer, _): &(PeerId, Range<u16>)| {
            self.peers.get(peer).is_some_and(|peer| peer.ready == Some(run.plan.generation))
        };
        run.host_loaded && run.plan.stages.iter().all(ready)
    }

    fn is_stepping(&self, run: &Run) -> bool {
        self.is_loaded(run) && (run.open.has_begun() || run.closing.is_some())
    }

    fn send(&mut self, to: PeerId, message: Message) {
        self.outputs.push_back(Output::Send { to, message });
    }

    fn broadcast(&mut self, state: RoomState) {
        let all: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| peer.control).map(|(id, _)| *id).collect();
        for peer in all {
            self.send(peer, Message::Room(state));
        }
        self.outputs.push_back(Output::Changed);
    }

    fn linked(&mut self, id: PeerId, lane: Lane, now: Duration) {
        let peer = self.peers.entry(id).or_insert(Peer {
            control: false,
            bulk: false,
            device: None,
            heard: now,
            progress: (0, 0),
            ready: None,
        });
        peer.heard = now;
        match lane {
            Lane::Control => peer.control = true,
            Lane::Bulk => peer.bulk = true,
        }
        self.outputs.push_back(Output::Changed);
        self.employ_newcomer();
    }

    /// A run that waits for lack of devices goes on with whoever comes.
    fn employ_newcomer(&mut self) {
        let Some(run) = self.run.as_mut().filter(|run| run.end.is_none() && run.deserted.is_some()) else {
            return;
        };
        if self.peers.values().any(Peer::is_usable) {
            run.deserted = None;
            self.replan();
        }
    }

    fn lost(&mut self, id: PeerId, reason: &str) {
        let Some(peer) = self.peers.remove(&id) else { return };
        self.outputs.push_back(Output::Changed);
        let Some(run) = self.run.as_mut().filter(|run| run.plan.position(id).is_some()) else { return };
        if run.end.is_none() && !self.peers.values().any(Peer::is_usable) {
            let name = peer.device.map_or_else(|| format!("device {id}"), |device| device.name);
            run.deserted = Some(format!(
                "{name} left ({reason}) and no other device is here. Let one join, or resume to go on with this device alone."
            ));
        }
        self.mend();
    }

    /// What a person calls a device.
    fn name(&self, id: PeerId) -> String {
        let device = self.peers.get(&id).and_then(|peer| peer.device.as_ref());
        device.map_or_else(|| format!("device {id}"), |device| device.name.clone())
    }

    /// Sends a device away.
    fn dismiss(&mut self, peer: PeerId, farewell: &str, reason: &str) {
        self.send(peer, Message::Goodbye { reason: farewell.into() });
        self.outputs.push_back(Output::Disconnect { peer });
        self.lost(peer, reason);
    }

    /// The plan in force has lost a device or a connection.
    fn mend(&mut self) {
        match &mut self.run {
            Some(run) if run.end.is_some() => run.broken = true,
            Some(_) => self.replan(),
            None => {}
        }
    }

    fn mend_for_texts(&mut self) {
        let wanted = |run: &Run| !(run.infer_front.is_empty() && run.inferring.is_empty());
        if self.run.as_ref().is_some_and(|run| run.broken && wanted(run)) {
            self.replan();
        }
    }

    fn message(&mut self, from: PeerId, message: Message, now: Duration) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.heard = now;
        match message {
            Message::Hello(device) => {
                peer.device = Some(device.checked());
                let state = match self.phase() {
                    RunPhase::Finished => RoomState::Finished,
                    RunPhase::Stopped | RunPhase::Failed(_) => RoomState::Stopped,
                    RunPhase::Running => RoomState::Running,
                    _ => RoomState::Paused,
                };
                let device = self.device.clone();
                self.send(from, Message::Welcome(device));
                self.send(from, Message::Room(state));
                self.outputs.push_back(Output::Changed);
                self.employ_newcomer();
            }
            Message::Goodbye { reason } => {
                self.outputs.push_back(Output::Disconnect { peer: from });
                self.lost(from, &short(&reason));
            }
            Message::Progress { generation, loaded, total } if generation == self.generation => {
                peer.progress = (loaded, total);
                self.outputs.push_back(Output::Changed);
            }
            Message::Ready { generation }
                if generation == self.generation && peer.ready != Some(generation) =>
            {
                peer.ready = Some(generation);
                self.outputs.push_back(Output::Changed);
                self.loaded_if_complete();
            }
            Message::Failed { generation, reason, diverged: true } if generation == self.generation => {
                let (name, reason) = (self.name(from), short(&reason));
                self.end(End::Failed(format!(
                    "The training diverged on {name}: {reason}. A lower learning rate may help; the adapter of the last \
                     complete step is kept."
                )));
            }
            Message::Failed { generation, reason, diverged: false } if generation == self.generation => {
                let reason = short(&reason);
                self.dismiss(from, &format!("This device could not go on: {reason}"), &reason);
            }
            Message::NeighbourLost { generation, peer } if generation == self.generation => {
                self.neighbour_lost(from, peer);
            }
            message => self.stage_message(from, message),
        }
    }

    /// Two neighbours lost each other, and both still reach the host: plan again, and leave the one out that keeps
    /// being unreachable.
    fn neighbour_lost(&mut self, from: PeerId, peer: PeerId) {
        let Some(run) = &mut self.run else { return };
        let positions = (run.plan.position(from), run.plan.position(peer));
        if !matches!(positions, (Some(a), Some(b)) if a.abs_diff(b) == 1) {
            return;
        }
        run.neighbours_lost += 1;
        if run.neighbours_lost > NEIGHBOUR_RETRIES {
            run.neighbours_lost = 0;
            self.dismiss(
                peer,
                "The other devices cannot reach this one directly.",
                "its neighbours cannot reach it",
            );
        } else {
            self.mend();
        }
    }

    fn stage_message(&mut self, from: PeerId, message: Message) {
        let current = self.generation;
        let Some(run) = &mut self.run else { return };
        let Some(position) = run.plan.position(from) else { return };
        let (first, last) = (position == 0, position + 1 == run.plan.stages.len());
        let open = &mut run.open;
        match message {
            Message::Forward { generation, step, micro_batch, tensor } => {
                let expected = open.front.expects_backward(micro_batch) && micro_batch >= open.next_head;
                if last && generation == current && step == open.step && expected {
                    open.head.insert(micro_batch, tensor);
                }
            }
            Message::Backward { generation, step, micro_batch, tensor } => {
                let expected = open.front.expects_backward(micro_batch) && micro_batch < open.next_head;
                if first && generation == current && step == open.step && expected {
                    open.grads.insert(micro_batch, tensor);
                }
            }
            Message::StepDone { generation, step, grad_sum_of_squares }
                if generation == current && step == open.step =>
            {
                if !(grad_sum_of_squares.is_finite() && grad_sum_of_squares >= 0.0) {
                    let name = self.name(from);
                    return self.end(End::Failed(format!(
                        "The training diverged on {name}: its gradient's sum of squares is {grad_sum_of_squares}. A lower \
                         learning rate may help; the adapter of the last complete step is kept."
                    )));
                }
                open.norms.insert(Some(from), grad_sum_of_squares);
            }
            Message::Applied { generation, step, states } if generation == current => {
                let owned = run.plan.stages[position].1.clone();
                if owned.eq(states.iter().map(|state| state.block)) {
                    self.applied(Some(from), step, states);
                } else {
                    self.dismiss(
                        from,
                        "This device sent adapters of blocks that are not its own.",
                        "it sent adapters of blocks that are not its own",
                    );
                }
            }
            Message::Infer { generation, request, tensor }
                if last && generation == current && run.inferring.remove(&request) =>
            {
                run.infer_head.push_back((request, tensor));
            }
            _ => {}
        }
    }

    fn start(&mut self, start: Start) {
        if self.run.as_ref().is_some_and(|run| run.end.is_none()) {
            return;
        }
        let texts = self.run.take().map_or_else(VecDeque::new, Run::into_texts);
        let nonsense = match start.settings.validate() {
            Err(error) => Some(error.to_string()),
            Ok(()) => (start.blocks == 0).then(|| "The model has no transformer blocks to train.".into()),
        };
        let states = start.states.iter().map(|state| (state.block, state.clone())).collect();
        let (head, start_judged) = (start.head, start.settings.evaluates_after(0));
        let plan = Plan { generation: self.generation, host: 0..start.blocks, head, stages: Vec::new() };
        self.run = Some(Run {
            drive: Drive::Held,
            deserted: None,
            broken: false,
            host_loaded: false,
            neighbours_lost: 0,
            committed: Step(0),
            states,
            open: OpenStep::new(Step(0), &plan, &start.settings),
            plan,
            start,
            closing: None,
            judging: start_judged,
            asked_before: false,
            infer_front: texts,
            infer_head: VecDeque::new(),
            inferring: BTreeSet::new(),
            end: None,
        });
        match nonsense {
            Some(reason) => self.end(End::Failed(reason)),
            None => self.replan(),
        }
    }

    /// Puts a new plan in force: over the devices that are there, from what was committed last.
    fn replan(&mut self) {
        let Some(run) = &mut self.run else { return };
        self.generation = Generation(self.generation.0 + 1);
        let usable: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| peer.is_usable()).map(|(id, _)| *id).collect();
        let split = even_split(run.start.blocks, usable.len());
        let host = if split.is_empty() { 0..run.start.blocks } else { 0..0 };
        let stages: Vec<_> = usable.into_iter().zip(split).collect();
        run.plan = Plan { generation: self.generation, host, head: run.start.head, stages };
        run.open = OpenStep::new(run.committed, &run.plan, &run.start.settings);
        // A judgement that was due after a step that is undone comes again with it; one that was asked for goes on.
        run.judging &= run.closing.take().is_none();
        (run.host_loaded, run.broken) = (false, false);
        run.infer_front.extend(std::mem::take(&mut run.infer_head).into_iter().map(|(request, _)| request));
        run.infer_front.extend(std::mem::take(&mut run.inferring));
        self.host_progress = (0, 0);
        let count = run.plan.stages.len();
        let id_at = |index: usize| run.plan.stages.get(index).map(|(id, _)| *id);
        let mut assigns = Vec::with_capacity(count);
        for (index, (id, blocks)) in run.plan.stages.iter().enumerate() {
            let states = blocks.clone().filter_map(|block| run.states.get(&block).cloned()).collect();
            let prev = index.checked_sub(1).and_then(id_at);
            let next = id_at(index + 1);
            assigns.push((*id, prev, next, index, blocks.clone(), states));
        }
        let stages = u16::try_from(count).unwrap_or(u16::MAX);
        let host_trains = run.plan.host_trains();
        let (settings, source) = (run.start.settings.clone(), run.start.source.clone());
        let (config, manifest, step) = (run.start.config.clone(), run.start.manifest.clone(), run.committed);
        for (id, prev, next, index, blocks, states) in assigns {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.progress = (0, 0);
            }
            let assign = Assign {
                generation: self.generation,
                stage: StageIndex(u16::try_from(index).unwrap_or(u16::MAX)),
                stages,
                blocks,
                // The host is known to a stage by the number under which it joined; PeerId::HOST stands for it here.
                prev: prev.unwrap_or(PeerId::HOST),
                next: next.unwrap_or(PeerId::HOST),
                prev_trains: prev.is_some() || host_trains,
                step,
                settings: settings.clone(),
                source: source.clone(),
                config: config.clone(),
                manifest: manifest.clone(),
                states,
            };
            self.send(id, Message::Assign(Box::new(assign)));
        }
        self.outputs.push_back(Output::Changed);
    }

    fn loaded_if_complete(&mut self) {
        let Some(run) = self.run.as_ref().filter(|run| run.end.is_none() && self.is_loaded(run)) else {
            return;
        };
        let ask = run.judging && run.committed.0 == 0 && run.closing.is_none() && !run.asked_before;
        match run.drive {
            _ if run.deserted.is_some() => self.broadcast(RoomState::Paused),
            Drive::Held if !run.judging => self.outputs.push_back(Output::Loaded),
            Drive::Held => {}
            Drive::Go => self.broadcast(RoomState::Running),
            Drive::Paused => self.broadcast(RoomState::Paused),
        }
        if let Some(run) = self.run.as_mut().filter(|_| ask) {
            run.asked_before = true;
            self.outputs.push_back(Output::Evaluate { done: Step(0) });
        }
        self.outputs.push_back(Output::Changed);
    }

    fn pause(&mut self) {
        if let Some(run) = self.run.as_mut().filter(|run| run.end.is_none()) {
            run.drive = Drive::Paused;
            self.broadcast(RoomState::Paused);
        }
    }

    fn resume(&mut self) {
        let Some(run) = self.run.as_mut().filter(|run| run.end.is_none()) else { return };
        (run.drive, run.deserted) = (Drive::Go, None);
        self.broadcast(RoomState::Running);
    }

    fn end(&mut self, end: End) {
        let Some(run) = self.run.as_mut().filter(|run| run.end.is_none()) else { return };
        let state = if end == End::Finished { RoomState::Finished } else { RoomState::Stopped };
        run.end = Some(end);
        self.broadcast(state);
    }

    fn applied(&mut self, from: Option<PeerId>, step: Step, states: Vec<BlockBytes>) {
        let Some(run) = &mut self.run else { return };
        let Some(closing) = run.closing.as_mut().filter(|closing| closing.report.step == step) else {
            return;
        };
        if closing.waiting.remove(&from) {
            closing.states.extend(states);
            self.commit_if_complete();
        }
    }

    fn commit_if_complete(&mut self) {
        let Some(run) = &mut self.run else { return };
        let Some(closing) = run.closing.take_if(|closing| closing.waiting.is_empty()) else { return };
        run.states.extend(closing.states.into_iter().map(|state| (state.block, state)));
        run.committed = closing.report.step.next();
        run.neighbours_lost = 0;
        let finished = run.committed.0 >= run.start.settings.steps;
        self.outputs.push_back(Output::Committed(closing.report));
        if run.judging {
            self.outputs.push_back(Output::Evaluate { done: run.committed });
        }
        if finished {
            self.end(End::Finished);
        }
        self.outputs.push_back(Output::Changed);
    }

    /// Does what can be done now: closes a step that is complete, and gives the idle engine its next job.
    fn advance(&mut self) {
        self.mend_for_texts();
        self.close_step();
        if self.running.is_some() {
            return;
        }
        let Some(run) = &mut self.run else { return };
        let generation = run.plan.generation;
        if !run.host_loaded {
            if run.end.is_some() && run.infer_front.is_empty() {
                return;
            }
            let own = run.plan.host.clone().chain(run.plan.head.then_some(run.start.blocks));
            let states = own.filter_map(|block| run.states.get(&block).cloned()).collect();
            let job = Job::Load { blocks: run.plan.host.clone(), states };
            self.running = Some((generation, Kind::Load));
            self.outputs.push_back(Output::Job(job));
            return;
        }
        if !self.run.as_ref().is_some_and(|run| self.is_loaded(run)) {
            return;
        }
        let Some(run) = &mut self.run else { return };
        if let Some((kind, job)) = Self::next_job(run) {
            self.running = Some((generation, kind));
            self.outputs.push_back(Output::Job(job));
        }
        self.close_step();
    }

    /// The head first, it feeds everybody's backward passes; then the host's own backward passes; then new work. Texts
    /// come where the host would wait, and between steps by a token each: a host that trains alone never waits.
    fn next_job(run: &mut Run) -> Option<(Kind, Job)> {
        let step = run.open.step;
        if run.end.is_none() {
            if let Some(closing) = run.closing.as_mut().filter(|closing| closing.host_applies) {
                closing.host_applies = false;
                let (lr, scale) = (closing.report.lr, closing.scale);
                return Some((Kind::Apply, Job::Apply { lr, scale }));
            }
            if !run.open.has_begun()
                && let Some(job) = run.next_text()
            {
                return Some(job);
            }
            if let Some(tensor) = run.open.head.remove(&run.open.next_head) {
                let micro_batch = run.open.next_head;
                run.open.next_head = MicroBatch(micro_batch.0 + 1);
                return Some((Kind::Head(micro_batch), Job::Head { step, micro_batch, tensor }));
            }
            let trains = run.plan.host_trains();
            let go = run.drive == Drive::Go && run.deserted.is_none() && !run.judging;
            let may_begin = go || run.open.has_begun();
            let in_range = step.0 < run.start.settings.steps;
            loop {
                let grads = &run.open.grads;
                match run.open.front.take(|_| may_begin && in_range, |m| grads.contains_key(&m)) {
                    Some(Work::Forward(micro_batch)) => {
                        return Some((Kind::Front(micro_batch), Job::Front { step, micro_batch }));
                    }
                    Some(Work::Backward(micro_batch)) => {
                        if let Some(tensor) = run.open.grads.remove(&micro_batch).flatten().filter(|_| trains)
                        {
                            return Some((Kind::BackFront, Job::BackFront { micro_batch, tensor }));
                        }
                    }
                    None => break,
                }
            }
            if run.plan.host_updates()
                && run.open.front.is_flushed()
                && run.open.host_norm == HostNorm::Wanted
            {
                run.open.host_norm = HostNorm::Asked;
                return Some((Kind::GradNorm, Job::GradNorm));
            }
        }
        run.next_text()
    }

    /// When every gradient of the open step is added up and the step before it is committed, orders the update.
    fn close_step(&mut self) {
        let generation = self.generation;
        let Some(run) = self.run.as_mut().filter(|run| run.end.is_none() && run.closing.is_none()) else {
            return;
        };
        let participants: BTreeSet<Option<PeerId>> = run
            .plan
            .stages
            .iter()
            .map(|(id, _)| Some(*id))
            .chain(run.plan.host_updates().then_some(None))
            .collect();
        if !run.open.front.is_flushed() || !participants.iter().all(|who| run.open.norms.contains_key(who)) {
            return;
        }
        let step = run.open.step;
        // Added in pipeline order, so that the sum is the same in every run.
        let in_order = run.plan.stages.iter().map(|(id, _)| Some(*id)).chain([None]);
        let sum: f64 = in_order.filter_map(|who| run.open.norms.get(&who)).sum();
        let (loss, grad_norm) = (run.open.loss, sum.sqrt());
        if !(loss.is_finite() && grad_norm.is_finite()) {
            let reason = format!(
                "Step {} has a loss of {loss} and a gradient norm of {grad_norm}: the training diverged. \
                 A lower learning rate may help; the adapter of the step before is kept.",
                step.0 + 1
            );
            self.end(End::Failed(reason));
            return;
        }
        let settings = &run.start.settings;
        // As torch.nn.utils.clip_grad_norm_.
        let clip = settings.grad_clip;
        let scale = if clip > 0.0 { (clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        let lr = settings.lr_at(step.0);
        let report = StepReport { step, loss, lr, grad_norm, tokens: run.open.tokens };
        let host_applies = run.plan.host_updates();
        run.judging |= settings.evaluates_after(step.next().0);
        run.closing =
            Some(Closing { report, scale, host_applies, waiting: participants, states: Vec::new() });
        run.open = OpenStep::new(step.next(), &run.plan, settings);
        let stages: Vec<PeerId> = run.plan.stages.iter().map(|(id, _)| *id).collect();
        for id in stages {
            self.send(id, Message::Apply { generation, step, lr, scale });
        }
    }

    fn job_failed(&mut self, reason: String) {
        let Some((generation, kind)) = self.running.take() else { return };
        match kind {
            Kind::InferFront(request) | Kind::InferHead(request) => {
                self.outputs.push_back(Output::Inferred { request, done: true });
            }
            _ if generation != self.generation => {}
            _ => {
                self.end(End::Failed(reason));
                // Without the ends no text can go on.
                if let Some(run) = self.run.as_mut().filter(|_| kind == Kind::Load) {
                    for request in std::mem::take(&mut run.infer_front) {
                        self.outputs.push_back(Output::Inferred { request, done: true });
                    }
                }
            }
        }
    }

    fn done(&mut self, done: Done) {
        let Some((generation, kind)) = self.running.take() else { return };
        let current = self.generation;
        let Some(run) = self.run.as_mut() else { return };
        if generation != current {
            // The plan changed under it. The token of a text is chosen all the same, or started again; everything else
            // is dropped.
            match (kind, done) {
                (Kind::InferHead(request), Done::InferHead { done }) => {
                    self.outputs.push_back(Output::Inferred { request, done });
                }
                (Kind::InferFront(request), _) => run.infer_front.push_back(request),
                _ => {}
            }
            return;
        }
        let step = run.open.step;
        let first = run.plan.stages.first().map(|(id, _)| *id);
        let last = run.plan.stages.last().map(|(id, _)| *id);
        match (kind, done) {
            (Kind::Load, Done::Load) => {
                run.host_loaded = true;
                self.loaded_if_complete();
            }
            (Kind::Front(micro_batch), Done::Front(tensor)) => match first {
                Some(to) => self.send(to, Message::Forward { generation, step, micro_batch, tensor }),
                None => {
                    run.open.head.insert(micro_batch, tensor);
                }
            },
            (Kind::Head(micro_batch), Done::Head { loss, tokens, grad }) => {
                run.open.loss += loss;
                run.open.tokens += tokens;
                match last {
                    Some(to) => {
                        self.send(
                            to,
                            Message::Backward { generation, step, micro_batch, tensor: Some(grad) },
                        );
                    }
                    None => {
                        run.open.grads.insert(micro_batch, Some(grad));
                    }
                }
            }
            (Kind::GradNorm, Done::GradNorm(sum)) => {
                run.open.norms.insert(None, sum);
            }
            (Kind::Apply, Done::Apply(states)) => {
                if let Some(step) = run.closing.as_ref().map(|closing| closing.report.step) {
                    self.applied(None, step, states);
                }
            }
            (Kind::InferFront(request), Done::InferFront(tensor)) => match first {
                Some(to) => {
                    run.inferring.insert(request);
                    self.send(to, Message::Infer { generation, request, tensor });
                }
                None => run.infer_head.push_back((request, tensor)),
            },
            (Kind::InferHead(request), Done::InferHead { done }) => {
                self.outputs.push_back(Output::Inferred { request, done });
            }
            _ => {}
        }
    }
}
