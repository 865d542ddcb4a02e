//! The machine of the host: admits devices, plans, runs the ends of the pipeline, and commits steps.
//!
//! The host owns the text, so it embeds tokens (the front) and takes the loss (the head); with no other device it runs
//! every block itself. A step is committed when every stage has sent its adapters and moments after the update; a lost
//! device costs no step, because a new plan starts from what was committed last and the open step runs again. A device that
//! comes gets its blocks ready while the others train, and the plan changes between two steps.

mod audit;
mod replan;
mod room;
mod roster;
mod state;
mod step;
mod survey;
mod timing;
mod watch;

use crate::codec::Boundary;
use crate::ids::{Generation, MicroBatch, PeerId, Step};
use crate::link::Lane;
use crate::message::{BlockBytes, Device, Measure, Message, RoomState, Side};
use crate::pulse::Presence;
use crate::run::{ModelSource, Settings};
use crate::stage::{Failure, HEARTBEAT};
use baton_plan::{HostProfile, LinkProfile, ModelProfile};
use state::{Compute, Drive, End, Kind, Own, Peer, Run, TimedWire};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

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
        /// What was wrong.
        failure: Failure,
    },
    /// A device stands otherwise than before.
    Presence {
        /// Which.
        peer: PeerId,
        /// How.
        presence: Presence,
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
    /// Steps that are done already, in a run that goes on from what was kept of it; otherwise none.
    pub committed: Step,
    /// Whether the model was judged as it was after them.
    pub judged: bool,
    /// Adapters to start from; empty for fresh ones.
    pub states: Vec<BlockBytes>,
    /// Bytes and relative work of the model's blocks, for the planner; without it every block is as any other.
    pub profile: Option<ModelProfile>,
    /// Draws what is checked of the devices' work. They must not know it: one that could tell when it is looked at would
    /// behave just then.
    pub secret: u64,
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
    /// A device that had greeted is out of the room, or out of the plan until it is heard again.
    Left {
        /// What its owner calls it.
        device: String,
        /// Why, in words that follow the name.
        reason: String,
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
        /// Into how many micro-batches a step is cut from now on.
        micro_batches: u16,
        /// How many of them its blocks hold at most.
        in_flight: u16,
        /// Whether its blocks compute activations again in backward.
        recompute: bool,
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
    /// Measure the host's own device for a run, as its peers do.
    Measure(Box<Measure>),
    /// Compute again what a stage made of a micro-batch, block by block; what is loaded stays.
    Check {
        /// The stage's.
        blocks: Range<u16>,
        /// `[batch, time, hidden]`, as it was given to the stage.
        input: Boundary,
        /// Adapters and moments at the beginning of the step; empty for fresh ones.
        states: Vec<BlockBytes>,
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
    /// [`Job::Measure`].
    Measure(Box<HostProfile>),
    /// [`Job::Check`]: hidden states, `[batch, time, hidden]`.
    Check(Boundary),
}

/// A committed step.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
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
    /// Whether it is heard, and awake.
    pub presence: Presence,
    /// Blocks that it has ready without running them.
    pub standby: Option<Range<u16>>,
    /// Whether it measures itself for the run.
    pub measuring: bool,
    /// Seconds that the forward and the backward pass of a block take it together, as the run has it.
    pub pace: Option<f64>,
    /// Bytes that it can spare for a stage, found out no further than the model could need.
    pub memory: Option<u64>,
    /// Its link to the host.
    pub link: Option<LinkProfile>,
    /// The last step of which the host computed one of its micro-batches again and got the same.
    pub checked: Option<Step>,
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
    /// The job that the host's engine runs, and since when.
    running: Option<(Generation, Kind, Duration)>,
    outputs: VecDeque<Output>,
    heartbeat: Duration,
    host_progress: (u64, u64),
    /// The last number of a question about speed.
    questions: u32,
    /// What devices measure themselves on, for the run in force or the last one.
    question: Option<Measure>,
    /// Links between stages that were timed: from whom, to whom.
    wires: BTreeMap<(PeerId, PeerId), TimedWire>,
    /// How fast the host is, if it measured itself.
    own: Option<Own>,
    /// When it was last told anything.
    now: Duration,
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
            questions: 0,
            question: None,
            own: None,
            wires: BTreeMap::new(),
            now,
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, event: Event, now: Duration) {
        self.now = now;
        match event {
            Event::Linked { peer, lane } => self.linked(peer, lane),
            Event::Lost { peer, reason } => self.lost(peer, &reason),
            Event::Message { from, message } => self.message(from, message),
            Event::Presence { peer, presence } => self.presence(peer, presence),
            Event::Start(start) => self.start(*start),
            Event::Pause => self.pause(),
            Event::Resume => self.resume(),
            Event::Stop => self.end(End::Stopped),
            Event::Remove { peer } => {
                self.dismiss(peer, "The host removed this device from the room.", "it was removed");
            }
            Event::Evaluated => {
                if let Some(run) = &mut self.run {
                    (run.judging, run.pace.steady) = (false, false);
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
            Event::JobFailed { reason, failure } => self.job_failed(reason, failure),
        }
        self.advance();
    }

    /// To be called at [`poll_timeout`](Self::poll_timeout) or later.
    pub fn handle_timeout(&mut self, now: Duration) {
        if now < self.heartbeat {
            return;
        }
        self.now = now;
        // What came while this side slept (a frozen tab, a long job) may still wait to be read: its own lateness is not
        // held against the others.
        let late = now.saturating_sub(self.heartbeat);
        self.heartbeat = now + HEARTBEAT;
        self.forgive(late);
        self.dismiss_the_silent();
        self.dismiss_the_idle();
        self.dismiss_the_unmeasured();
        for peer in self.linked_peers() {
            self.send(peer, Message::Heartbeat);
        }
        self.consider();
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
            let blocks = plan.and_then(|plan| plan.shape.blocks_of(id));
            let warms = peer.warm.as_ref().is_some_and(|warm| !warm.done) && blocks.is_none();
            let loads = blocks.is_some() && peer.ready != Some(self.generation);
            let profile = peer.compute.tracker().map(baton_plan::Tracker::profile);
            let samples = self.run.as_ref().map_or(1, Run::samples);
            DeviceView {
                peer: id,
                // A device that cannot be given work yet is still connecting.
                device: peer.device.clone().filter(|_| peer.is_usable()),
                blocks: blocks.cloned(),
                loading: (loads || warms).then_some(peer.progress),
                presence: peer.presence,
                standby: peer
                    .warm
                    .as_ref()
                    .filter(|warm| warm.done && blocks.is_none())
                    .map(|w| w.blocks.clone()),
                measuring: peer.is_measuring(),
                pace: profile.as_ref().map(|p| p.forward.at(samples) + p.backward.at(samples)),
                memory: profile.map(|profile| profile.memory).filter(|memory| *memory < u64::MAX),
                link: peer.probe.link(),
                checked: peer.checked,
            }
        };
        self.peers.iter().map(view).collect()
    }

    /// The host's own blocks, and bytes fetched of bytes while it loads.
    pub fn own_part(&self) -> (Option<Range<u16>>, Option<(u64, u64)>) {
        let Some(run) = &self.run else { return (None, None) };
        (
            run.plan.host_trains().then(|| run.plan.shape.host.clone()),
            // Without devices nothing is loaded: the person may want to wait for them.
            (!run.host_loaded && run.deserted.is_none()).then_some(self.host_progress),
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
        self.run.as_ref().is_some_and(|run| !run.plan.stages().is_empty())
    }

    fn is_loaded(&self, run: &Run) -> bool {
        let ready = |(peer, _): &(PeerId, Range<u16>)| {
            self.peers.get(peer).is_some_and(|peer| peer.ready == Some(run.plan.generation))
        };
        run.host_loaded && run.plan.stages().iter().all(ready)
    }

    fn is_stepping(&self, run: &Run) -> bool {
        self.is_loaded(run) && (run.open.has_begun() || run.closing.is_some())
    }

    fn send(&mut self, to: PeerId, message: Message) {
        self.outputs.push_back(Output::Send { to, message });
    }

    fn broadcast(&mut self, state: RoomState) {
        for peer in self.linked_peers() {
            self.send(peer, Message::Room(state));
        }
        self.outputs.push_back(Output::Changed);
    }

    fn message(&mut self, from: PeerId, message: Message) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.heard = now;
        match message {
            // Once: what it says of itself does not change, and each greeting is work.
            Message::Hello(_) if peer.device.is_some() && peer.has_greeted(now) => {}
            Message::Hello(device) => {
                peer.device = Some(device.checked());
                // What it was asked before it lost the host is forgotten there.
                if peer.is_measuring() {
                    peer.compute = Compute::Unknown;
                }
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
                self.probe();
                self.came();
            }
            Message::Measured { id, profile } => self.measured(from, id, profile),
            Message::Probed { id, .. } => self.probed(from, id),
            Message::Timed { generation, link } => self.link_timed(from, generation, link),
            Message::Goodbye { reason } => {
                self.outputs.push_back(Output::Disconnect { peer: from });
                self.lost(from, &short(&reason));
            }
            Message::Progress { generation, loaded, total }
                if generation == self.generation || peer.is_warming() =>
            {
                (peer.progress, peer.stirred) = ((loaded, total), now);
                self.outputs.push_back(Output::Changed);
            }
            Message::Progress { .. } if peer.is_measuring() => peer.stirred = now,
            Message::Ready { generation }
                if generation == self.generation && peer.ready != Some(generation) =>
            {
                (peer.ready, peer.stirred) = (Some(generation), now);
                self.outputs.push_back(Output::Changed);
                self.loaded_if_complete();
            }
            Message::Warmed { blocks } => self.warmed(from, &blocks),
            Message::Failed { generation, reason, fault }
                if generation == self.generation || (peer.is_warming() && generation < self.generation) =>
            {
                self.failed(from, &short(&reason), fault);
            }
            Message::Status { generation, step, counts } if generation == self.generation => {
                self.answered(from, step, counts);
            }
            Message::NeighbourLost { generation, peer } if generation == self.generation => {
                self.neighbour_lost(from, peer);
            }
            message => self.stage_message(from, message),
        }
    }

    fn stage_message(&mut self, from: PeerId, message: Message) {
        let (current, now) = (self.generation, self.now);
        let Some(run) = &mut self.run else { return };
        let Some(position) = run.plan.position(from) else { return };
        let (first, last) = (position == 0, position + 1 == run.plan.stages().len());
        let open = &mut run.open;
        match message {
            Message::Evidence { generation, step, micro_batch, side, tensor } if generation == current => {
                self.evidence(Some(from), step, micro_batch, side, &tensor);
            }
            Message::Forward { generation, step, micro_batch, tensor } => {
                let expected = open.front.expects_backward(micro_batch) && micro_batch >= open.next_head;
                if last && generation == current && step == open.step && expected {
                    // Again and again the same is no progress.
                    let wanted = run.audit.as_ref().is_some_and(|audit| audit.is_of(step, micro_batch));
                    let seen = wanted.then(|| tensor.clone());
                    if open.head.insert(micro_batch, tensor).is_none() {
                        run.stir(now);
                        if let Some(tensor) = seen {
                            self.evidence(None, step, micro_batch, Side::Received, &tensor);
                        }
                    }
                }
            }
            Message::Backward { generation, step, micro_batch, tensor } => {
                let expected = open.front.expects_backward(micro_batch) && micro_batch < open.next_head;
                if first
                    && generation == current
                    && step == open.step
                    && expected
                    && open.grads.insert(micro_batch, tensor).is_none()
                {
                    run.stir(now);
                }
            }
            Message::StepDone { generation, step, grad_sum_of_squares, times }
                if generation == current && step == open.step =>
            {
                if grad_sum_of_squares.is_finite() && grad_sum_of_squares >= 0.0 {
                    if open.norms.insert(Some(from), grad_sum_of_squares).is_none() {
                        run.stir(now);
                        self.timed(from, &times);
                    }
                } else {
                    let words = format!("its gradient's sum of squares is {grad_sum_of_squares}");
                    self.diverged(from, &words);
                }
            }
            Message::Applied { generation, step, states } if generation == current => {
                let owned = run.plan.stages()[position].1.clone();
                if owned.eq(states.iter().map(|state| state.block)) {
                    run.stir(now);
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
                run.stir(now);
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
            Ok(()) if start.blocks == 0 => Some("The model has no transformer blocks to train.".into()),
            Ok(()) if start.committed.0 > start.settings.steps => {
                let (done, steps) = (start.committed, start.settings.steps);
                Some(format!("The run has {steps} steps, and {done} of them are said to be done."))
            }
            Ok(()) => None,
        };
        // What was ready for a run before is not for this one.
        for peer in self.peers.values_mut() {
            (peer.warm, peer.cannot_warm, peer.suspended) = (None, false, false);
        }
        // What is left of the run before is not of this one.
        self.generation = Generation(self.generation.0 + 1);
        self.wires.clear();
        self.run = Some(Run::new(start, self.generation, texts, self.now));
        match nonsense {
            Some(reason) => self.end(End::Failed(reason)),
            None => self.survey(),
        }
    }

    fn pause(&mut self) {
        if let Some(run) = self.run.as_mut().filter(|run| run.end.is_none()) {
            run.drive = Drive::Paused;
            self.broadcast(RoomState::Paused);
        }
    }

    fn resume(&mut self) {
        let is_deserted = self.run.as_ref().is_some_and(|run| run.end.is_none() && run.deserted.is_some());
        let too_small = if is_deserted { self.too_small_alone() } else { None };
        let Some(run) = self.run.as_mut().filter(|run| run.end.is_none()) else { return };
        if too_small.is_some() {
            // It goes on as soon as another device joins.
            (run.drive, run.deserted) = (Drive::Go, too_small);
            self.outputs.push_back(Output::Changed);
            return;
        }
        (run.drive, run.deserted) = (Drive::Go, None);
        run.stir(self.now);
        self.broadcast(RoomState::Running);
    }

    fn end(&mut self, end: End) {
        let Some(run) = self.run.as_mut().filter(|run| run.end.is_none()) else { return };
        let state = if end == End::Finished { RoomState::Finished } else { RoomState::Stopped };
        (run.end, run.survey) = (Some(end), None);
        self.drop_doubt();
        self.broadcast(state);
    }
}
