//! The machine of a stage: greets the host, takes an assignment, and runs its blocks' jobs in 1F1B order.
//!
//! The shell feeds [`Event`]s, runs the [`Job`]s one at a time on its engine, and passes messages on. Everything that
//! belongs to an older plan is dropped by its generation.

use crate::codec::Boundary;
use crate::ids::{Generation, MicroBatch, PeerId, Step};
use crate::link::Lane;
use crate::message::{
    Assign, BlockBytes, Counts, Device, Fault, MAX_PROBE, Measure, Message, RoomState, Side, Times,
};
use crate::probe::Probe;
use crate::pulse::Presence;
use crate::schedule::{Schedule, Work};
use baton_plan::DeviceProfile;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

/// How often a side says that it is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a side may be silent: a CPU stage does not speak while it computes.
pub const SILENCE: Duration = Duration::from_secs(30);
/// Unfinished texts that a stage holds at most.
pub(crate) const MAX_INFERS: usize = 16;

/// Hidden states that a host may want to see at a time: those on both sides of a stage.
const MOST_WISHES: usize = 4;

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
    /// A link is gone for good.
    Lost {
        /// To whom.
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
    /// The blocks are being fetched.
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
    /// What [`Output::Fetch`] asked for is there, as far as it can be.
    Fetched {
        /// The blocks of that assignment.
        blocks: Range<u16>,
    },
    /// The host stands otherwise than before.
    Presence(Presence),
    /// The room has a host again, under this number: it may be the same one after a reload. What was loaded is kept, and
    /// the host is greeted when its links open.
    HostReturned {
        /// Its number.
        host: PeerId,
    },
    /// The owner of this device leaves.
    Leave,
}

/// What was wrong with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The engine itself.
    Engine,
    /// The numbers that it computed are infinite or not a number.
    Diverged,
    /// What it was to work on is not what it should be.
    Input,
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
    /// Make a bulk link to a neighbour; this side makes the offer.
    Connect {
        /// To whom.
        peer: PeerId,
    },
    /// Run a job; the next one comes only after this one's [`Event::Done`] or [`Event::JobFailed`].
    Job(Job),
    /// Fetch the files of these blocks while jobs go on, so that they need not be waited for later; answered by
    /// [`Event::Fetched`].
    Fetch(Box<Assign>),
    /// What [`Stage::view`] shows has changed.
    Changed,
}

/// Work for the engine.
#[derive(Debug, PartialEq)]
pub enum Job {
    /// Load the blocks, and their adapters and moments; drop what was there.
    Load(Box<Assign>),
    /// The forward pass of a micro-batch, to be kept for backward.
    Forward {
        /// The slice.
        micro_batch: MicroBatch,
        /// `[batch, time, hidden]`.
        tensor: Boundary,
    },
    /// The backward pass of a micro-batch; its gradients are added up.
    Backward {
        /// The slice.
        micro_batch: MicroBatch,
        /// `[batch, time, hidden]`.
        tensor: Boundary,
        /// Whether the gradient of the input is wanted.
        want_input_grad: bool,
    },
    /// The sum of squares of the gradients.
    GradNorm,
    /// The optimizer update.
    Apply {
        /// Learning rate.
        lr: f64,
        /// Gradients are multiplied by this first.
        scale: f64,
    },
    /// A forward pass outside training.
    Infer {
        /// Which text.
        request: u32,
        /// `[batch, time, hidden]`.
        tensor: Boundary,
    },
    /// Measure this device; what is loaded stays.
    Measure(Box<Measure>),
}

/// What a job gave.
#[derive(Debug, PartialEq)]
pub enum Done {
    /// [`Job::Load`].
    Load,
    /// [`Job::Forward`]: hidden states.
    Forward(Boundary),
    /// [`Job::Backward`]: the gradient of the input if it was wanted.
    Backward(Option<Boundary>),
    /// [`Job::GradNorm`].
    GradNorm(f64),
    /// [`Job::Apply`]: adapters and moments as they are now.
    Apply(Vec<BlockBytes>),
    /// [`Job::Infer`]: hidden states.
    Infer(Boundary),
    /// [`Job::Measure`].
    Measure(Box<DeviceProfile>),
}

/// What a person sees of a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum View {
    /// Waits for the host's welcome.
    Greeting,
    /// Greeted, without a stage.
    Waiting,
    /// Finds out how fast it is, before it is given a stage.
    Measuring,
    /// Fetches its blocks (bytes of bytes), or waits for its neighbours.
    Loading(u64, u64),
    /// Has blocks ready, and no stage: it takes over from a device that leaves, or joins in between two steps.
    Standby,
    /// Takes part.
    Training,
    /// Has its blocks, and the run stands in this state.
    Idle(RoomState),
    /// The host is not heard; what is loaded is kept for it.
    HostSilent,
    /// Over; why, in words.
    Ended(String),
}

/// Probes of the stage before that are answered under one plan: a few times all that timing a link takes.
const MOST_PROBES: u8 = 100;

/// The machine.
#[derive(Debug)]
pub struct Stage {
    host: PeerId,
    device: Device,
    phase: Phase,
    links: BTreeSet<PeerId>,
    outputs: VecDeque<Output>,
    running: Option<Running>,
    heard: Duration,
    heartbeat: Duration,
    room: RoomState,
    host_presence: Presence,
    steps_done: u32,
    /// How long it waits for a host that is gone.
    patience: Duration,
    /// Since when it waits.
    orphaned: Option<Duration>,
    /// Blocks whose files are being fetched beside the work.
    fetching: Option<Range<u16>>,
    /// What it is to measure itself on next.
    measure: Option<Box<Measure>>,
    /// The link to the next stage of a plan that is being timed, and how many were before.
    wire: Option<(Generation, PeerId, Probe)>,
    questions: u32,
    /// What it measured itself on last, and what it found.
    measured: Option<(Box<Measure>, Option<Box<DeviceProfile>>)>,
}

#[derive(Debug)]
enum Phase {
    Greeting,
    Waiting,
    Loading(Box<Loading>),
    /// Has the blocks of an assignment that was only to get them ready.
    Standby(Box<Assign>),
    Working(Box<Working>),
    Ended(String),
}

#[derive(Debug)]
struct Loading {
    assign: Assign,
    /// Whether it is only to get the blocks ready.
    spare: bool,
    queued: bool,
    loaded: bool,
    progress: (u64, u64),
}

/// The job that the engine works on.
#[derive(Debug)]
struct Running {
    generation: Generation,
    kind: Kind,
    since: Duration,
    /// What it gives is for a host that is gone.
    is_void: bool,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Load,
    Forward(MicroBatch),
    Backward(MicroBatch),
    GradNorm,
    Apply,
    Infer(u32),
    /// The number of the question.
    Measure(u32),
}

#[derive(Debug)]
struct Working {
    assign: Assign,
    step: Step,
    schedule: Schedule,
    forwards: BTreeMap<(Step, MicroBatch), Boundary>,
    backwards: BTreeMap<MicroBatch, Boundary>,
    infers: VecDeque<(u32, Boundary)>,
    flush: Flush,
    times: Times,
    /// Questions of the stage before that time the link to it.
    probes: u8,
    /// Hidden states that the host wants to see when they pass, the newest wishes last.
    witness: VecDeque<(Step, MicroBatch, Side)>,
}

/// The end of a step.
#[derive(Debug, PartialEq)]
enum Flush {
    Accumulating,
    Announced,
    Ordered { lr: f64, scale: f64 },
}

impl Working {
    fn new(assign: Assign) -> Self {
        let step = assign.step;
        Self {
            schedule: Self::schedule(&assign),
            assign,
            step,
            forwards: BTreeMap::new(),
            backwards: BTreeMap::new(),
            infers: VecDeque::new(),
            flush: Flush::Accumulating,
            times: Times::default(),
            probes: 0,
            witness: VecDeque::new(),
        }
    }

    /// How far the open step is.
    fn counts(&self) -> Counts {
        let count = |waiting: usize| u16::try_from(waiting).unwrap_or(u16::MAX);
        let forwards = self.forwards.keys().filter(|(step, _)| *step == self.step).count();
        let (forwards_out, backwards_out) = self.schedule.taken();
        Counts {
            forwards_in: forwards_out.saturating_add(count(forwards)),
            forwards_out,
            backwards_in: backwards_out.saturating_add(count(self.backwards.len())),
            backwards_out,
        }
    }

    /// The host's front is position 0 and its head the last one.
    fn schedule(assign: &Assign) -> Schedule {
        Schedule::new(
            assign.stage.0.saturating_add(1),
            assign.stages.saturating_add(2).saturating_add(assign.settings.ahead),
            assign.settings.micro_batches,
        )
    }

    /// The stage before may be a step ahead: its order to update travels on a lane of its own.
    fn expects_forward(&self, step: Step, micro_batch: MicroBatch) -> bool {
        if step == self.step.next() {
            return Self::schedule(&self.assign).expects_forward(micro_batch);
        }
        step == self.step && self.schedule.expects_forward(micro_batch)
    }

    /// Whether the host wants to see these, and has not yet.
    fn witnesses(&mut self, step: Step, micro_batch: MicroBatch, side: Side) -> bool {
        let wanted = self.witness.iter().position(|wanted| *wanted == (step, micro_batch, side));
        wanted.and_then(|at| self.witness.remove(at)).is_some()
    }

    fn next_job(&mut self) -> Option<(Kind, Job)> {
        let (step, forwards, backwards) = (self.step, &self.forwards, &self.backwards);
        match self.schedule.take(|m| forwards.contains_key(&(step, m)), |m| backwards.contains_key(&m)) {
            Some(Work::Forward(micro_batch)) => {
                let tensor = self.forwards.remove(&(step, micro_batch))?;
                return Some((Kind::Forward(micro_batch), Job::Forward { micro_batch, tensor }));
            }
            Some(Work::Backward(micro_batch)) => {
                let tensor = self.backwards.remove(&micro_batch)?;
                let want_input_grad = self.assign.stage.0 > 0 || self.assign.prev_trains;
                return Some((
                    Kind::Backward(micro_batch),
                    Job::Backward { micro_batch, tensor, want_input_grad },
                ));
            }
            None => {}
        }
        if let Flush::Ordered { lr, scale } = self.flush {
            return Some((Kind::Apply, Job::Apply { lr, scale }));
        }
        if self.schedule.is_flushed() && self.flush == Flush::Accumulating {
            self.flush = Flush::Announced;
            return Some((Kind::GradNorm, Job::GradNorm));
        }
        let (request, tensor) = self.infers.pop_front()?;
        Some((Kind::Infer(request), Job::Infer { request, tensor }))
    }
}

impl Stage {
    /// A stage for the room of `host`, at time `now` of any clock.
    pub fn new(host: PeerId, device: Device, now: Duration) -> Self {
        Self {
            host,
            device,
            phase: Phase::Greeting,
            links: BTreeSet::new(),
            outputs: VecDeque::new(),
            running: None,
            heard: now,
            heartbeat: now,
            room: RoomState::Paused,
            host_presence: Presence::Present,
            steps_done: 0,
            patience: Duration::ZERO,
            orphaned: None,
            fetching: None,
            measure: None,
            wire: None,
            questions: 0,
            measured: None,
        }
    }

    /// Has it keep what it has loaded for so long when the host is gone: for a shell that can find the host again. Without
    /// it, a stage without a host has ended.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, event: Event, now: Duration) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        match event {
            Event::Linked { peer, lane: Lane::Control } if peer == self.host => {
                self.heard = now;
                self.send_host(Message::Hello(self.device.clone()));
            }
            Event::Linked { lane: Lane::Control, .. } => {}
            Event::Linked { peer, lane: Lane::Bulk } => {
                self.links.insert(peer);
                self.ready_if_complete();
            }
            Event::Lost { peer, reason } if peer == self.host => {
                self.links.clear();
                self.host_gone(format!("The connection to the host was lost ({reason})."), now);
            }
            Event::HostReturned { host } => self.host_returned(host, now),
            Event::Lost { peer, .. } => self.lost_neighbour(peer),
            Event::Message { from, message } => self.message(from, message, now),
            Event::Progress { loaded, total } => self.progress(loaded, total),
            Event::Done(done) => self.done(done, now),
            Event::JobFailed { reason, failure } => self.job_failed(reason, failure),
            Event::Fetched { blocks } => {
                if let Some(blocks) = self.fetching.take_if(|wanted| *wanted == blocks) {
                    self.send_host(Message::Warmed { blocks });
                }
            }
            Event::Presence(presence) => {
                self.host_presence = presence;
                self.outputs.push_back(Output::Changed);
            }
            Event::Leave => {
                self.send_host(Message::Goodbye { reason: "its owner left".into() });
                self.end("You left the room.".into());
            }
        }
        self.start_job(now);
    }

    /// To be called at [`poll_timeout`](Self::poll_timeout) or later.
    pub fn handle_timeout(&mut self, now: Duration) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        let late = now.saturating_sub(self.heartbeat);
        if let Some((_, _, probe)) = &mut self.wire {
            probe.forgive(late, now);
            probe.gives_up(now);
            self.tell_of_the_link();
        }
        // As in the coordinator: what came while this side slept may still wait to be read.
        self.heard = (self.heard + late).min(now);
        if let Some(since) = self.orphaned {
            self.heartbeat = now + HEARTBEAT;
            if now >= since + self.patience {
                self.end(format!("The host did not come back within {} seconds.", self.patience.as_secs()));
            }
        } else if now >= self.heard + SILENCE {
            // Its links may stand all the same, and it is greeted when it speaks again.
            self.host_gone(format!("The host has been silent for {} seconds.", SILENCE.as_secs()), now);
        } else if now >= self.heartbeat {
            self.heartbeat = now + HEARTBEAT;
            self.send_host(Message::Heartbeat);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let silence = if self.orphaned.is_some() { self.heartbeat } else { self.heard + SILENCE };
        (!matches!(self.phase, Phase::Ended(_))).then(|| self.heartbeat.min(silence))
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What a person sees.
    pub fn view(&self) -> View {
        match &self.phase {
            Phase::Ended(reason) => View::Ended(reason.clone()),
            _ if self.orphaned.is_some() || self.host_presence == Presence::Silent => View::HostSilent,
            Phase::Greeting => View::Greeting,
            Phase::Waiting if self.is_measuring() => View::Measuring,
            Phase::Waiting => View::Waiting,
            Phase::Loading(loading) => View::Loading(loading.progress.0, loading.progress.1),
            Phase::Standby(_) => View::Standby,
            Phase::Working(_) if self.room == RoomState::Running => View::Training,
            Phase::Working(_) => View::Idle(self.room),
        }
    }

    fn is_measuring(&self) -> bool {
        let runs = self.running.as_ref().is_some_and(|job| matches!(job.kind, Kind::Measure(_)));
        runs || self.measure.is_some()
    }

    /// The stage that it has.
    pub fn assign(&self) -> Option<&Assign> {
        self.current().filter(|_| !self.is_standing_by())
    }

    /// The assignment that it was given last, be it only to get blocks ready.
    fn current(&self) -> Option<&Assign> {
        match &self.phase {
            Phase::Loading(loading) => Some(&loading.assign),
            Phase::Standby(assign) => Some(assign),
            Phase::Working(working) => Some(&working.assign),
            Phase::Greeting | Phase::Waiting | Phase::Ended(_) => None,
        }
    }

    /// Steps in which this device took part.
    pub fn steps_done(&self) -> u32 {
        self.steps_done
    }

    fn send_host(&mut self, message: Message) {
        self.send(self.host, message);
    }

    fn send(&mut self, to: PeerId, message: Message) {
        self.outputs.push_back(Output::Send { to, message });
    }

    fn host_gone(&mut self, reason: String, now: Duration) {
        if self.patience.is_zero() {
            return self.end(reason);
        }
        // The blocks stay where they are; the plan is of a host that is gone, and with it every link.
        self.orphaned.get_or_insert(now);
        self.phase = Phase::Greeting;
        (self.fetching, self.measure, self.wire) = (None, None, None);
        self.room = RoomState::Paused;
        if let Some(running) = &mut self.running {
            running.is_void = true;
        }
        self.outputs.push_back(Output::Changed);
    }

    fn host_returned(&mut self, host: PeerId, now: Duration) {
        if self.patience.is_zero() {
            return;
        }
        self.host_gone(String::new(), now);
        self.links.clear();
        (self.host, self.orphaned, self.heard) = (host, None, now);
        self.host_presence = Presence::Present;
    }

    fn end(&mut self, reason: String) {
        self.phase = Phase::Ended(reason);
        self.outputs.push_back(Output::Changed);
    }

    fn message(&mut self, from: PeerId, message: Message, now: Duration) {
        if from == self.host {
            self.heard = now;
            if self.orphaned.take().is_some() {
                self.send_host(Message::Hello(self.device.clone()));
                self.outputs.push_back(Output::Changed);
            }
        }
        match message {
            Message::Forward { generation, step, micro_batch, tensor } => {
                if let Some(working) = self.working(generation).filter(|w| w.assign.prev == from)
                    && working.expects_forward(step, micro_batch)
                {
                    let seen = working.witnesses(step, micro_batch, Side::Received).then(|| tensor.clone());
                    working.forwards.insert((step, micro_batch), tensor);
                    if let Some(tensor) = seen {
                        let side = Side::Received;
                        self.send_host(Message::Evidence { generation, step, micro_batch, side, tensor });
                    }
                }
            }
            Message::Backward { generation, step, micro_batch, tensor: Some(tensor) } => {
                if let Some(working) = self.working(generation).filter(|w| w.assign.next == from)
                    && step == working.step
                    && working.schedule.expects_backward(micro_batch)
                {
                    working.backwards.insert(micro_batch, tensor);
                }
            }
            Message::Infer { generation, request, tensor } => {
                if let Some(working) = self.working(generation).filter(|w| w.assign.prev == from)
                    && working.infers.len() < MAX_INFERS
                {
                    working.infers.push_back((request, tensor));
                }
            }
            Message::Probe { id, want, .. } if self.answers_probe(from) => {
                let padding = vec![0; want.min(MAX_PROBE) as usize];
                self.send(from, Message::Probed { id, padding });
            }
            Message::Probed { id, .. } => self.probed(from, id, now),
            Message::TimeLink { generation } if from == self.host => self.time_link(generation, now),
            message if from == self.host => self.host_message(message),
            _ => {}
        }
    }

    fn host_message(&mut self, message: Message) {
        match message {
            Message::Welcome(_) if matches!(self.phase, Phase::Greeting) => {
                self.phase = Phase::Waiting;
                self.outputs.push_back(Output::Changed);
            }
            Message::Measure(measure) => self.measure(measure),
            Message::Assign(assign) => self.assigned(*assign),
            Message::Warm(assign) => self.warmed(assign),
            Message::Ask { generation } => {
                if let Some(working) = self.working(generation) {
                    let (step, counts) = (working.step, working.counts());
                    self.send_host(Message::Status { generation, step, counts });
                }
            }
            Message::Witness { generation, step, micro_batch, side } => {
                let Some(working) = self.working(generation) else { return };
                // It may have come before the question.
                match working.forwards.get(&(step, micro_batch)).filter(|_| side == Side::Received).cloned() {
                    Some(tensor) => {
                        self.send_host(Message::Evidence { generation, step, micro_batch, side, tensor });
                    }
                    None => {
                        working.witness.push_back((step, micro_batch, side));
                        if working.witness.len() > MOST_WISHES {
                            working.witness.pop_front();
                        }
                    }
                }
            }
            Message::Apply { generation, step, lr, scale } => {
                let announced = |w: &&mut Working| w.step == step && w.flush == Flush::Announced;
                if let Some(working) = self.working(generation).filter(announced) {
                    working.flush = Flush::Ordered { lr, scale };
                }
            }
            Message::Room(state) => {
                self.room = state;
                self.outputs.push_back(Output::Changed);
            }
            Message::Goodbye { reason } => self.end(reason),
            _ => {}
        }
    }

    /// The host may ask for padding, and the stage before, so often: who takes no answers would have them pile up here.
    fn answers_probe(&mut self, from: PeerId) -> bool {
        if from == self.host {
            return true;
        }
        let Phase::Working(working) = &mut self.phase else { return false };
        if working.assign.prev != from {
            return false;
        }
        working.probes = working.probes.saturating_add(1);
        working.probes <= MOST_PROBES
    }

    /// The host wants to know how fast the link to the next stage is.
    fn time_link(&mut self, generation: Generation, now: Duration) {
        let Some(next) = self.working(generation).map(|working| working.assign.next) else { return };
        if next == self.host {
            return;
        }
        self.questions = self.questions.wrapping_add(1);
        let mut probe = Probe::default();
        let message = probe.ask(self.questions, now);
        self.wire = Some((generation, next, probe));
        self.send(next, message);
    }

    /// The next stage has answered.
    fn probed(&mut self, from: PeerId, id: u32, now: Duration) {
        let Some((_, _, probe)) = self.wire.as_mut().filter(|(_, next, _)| *next == from) else { return };
        if let Some(message) = probe.hear(id, now) {
            self.send(from, message);
        }
        self.tell_of_the_link();
    }

    fn tell_of_the_link(&mut self) {
        if let Some((generation, _, probe)) = self.wire.take_if(|(_, _, probe)| probe.is_known())
            && let Some(link) = probe.link()
        {
            self.send_host(Message::Timed { generation, link });
        }
    }

    /// The host asks how fast this device is. A host that was away asks again what was answered before.
    fn measure(&mut self, measure: Box<Measure>) {
        match &self.measured {
            Some((asked, Some(profile))) if asked.is_like(&measure) => {
                let profile = Ok(profile.clone());
                self.send_host(Message::Measured { id: measure.id, profile });
            }
            _ => {
                self.measure = Some(measure);
                self.outputs.push_back(Output::Changed);
            }
        }
    }

    fn working(&mut self, generation: Generation) -> Option<&mut Working> {
        match &mut self.phase {
            Phase::Working(working) if working.assign.generation == generation => Some(working),
            _ => None,
        }
    }

    fn assigned(&mut self, mut assign: Assign) {
        for neighbour in [&mut assign.prev, &mut assign.next] {
            if *neighbour == PeerId::HOST {
                *neighbour = self.host;
            }
        }
        // What was only to get blocks ready is of the plan before the one that gives a stage, or of the same.
        let standing_by = self.is_standing_by();
        let is_older = |current: &Assign| {
            current.generation > assign.generation
                || (current.generation == assign.generation && !standing_by)
        };
        if self.current().is_some_and(is_older) {
            return;
        }
        let generation = assign.generation;
        if let Err(reason) = assign.check() {
            self.send_host(Message::Failed { generation, reason, fault: Fault::Device });
            return;
        }
        if assign.next != self.host && !self.links.contains(&assign.next) {
            self.outputs.push_back(Output::Connect { peer: assign.next });
        }
        self.load(assign, false);
    }

    fn load(&mut self, assign: Assign, spare: bool) {
        self.fetching = None;
        let loading = Loading { assign, spare, queued: false, loaded: false, progress: (0, 0) };
        self.phase = Phase::Loading(Box::new(loading));
        self.outputs.push_back(Output::Changed);
    }

    fn is_standing_by(&self) -> bool {
        match &self.phase {
            Phase::Loading(loading) => loading.spare,
            Phase::Standby(_) => true,
            _ => false,
        }
    }

    /// Gets blocks ready for a plan to come.
    fn warmed(&mut self, assign: Box<Assign>) {
        if self.current().is_some_and(|current| current.generation > assign.generation) {
            return;
        }
        let generation = assign.generation;
        if let Err(reason) = assign.check() {
            self.send_host(Message::Failed { generation, reason, fault: Fault::Device });
        } else if self.current().is_some_and(|own| own.generation == generation) && !self.is_standing_by() {
            // A stage of the plan in force goes on meanwhile.
            self.fetching = Some(assign.blocks.clone());
            self.outputs.push_back(Output::Fetch(assign));
        } else {
            self.load(*assign, true);
        }
    }

    fn progress(&mut self, loaded: u64, total: u64) {
        let Phase::Loading(loading) = &mut self.phase else { return };
        // A step of 1 % is enough for a bar.
        let worth_telling =
            loaded == total || loaded.saturating_sub(loading.progress.0).saturating_mul(100) >= total;
        let generation = loading.assign.generation;
        // A load that this assignment waits for is a sign of life too.
        let loads = self.running.as_ref().is_some_and(|job| matches!(job.kind, Kind::Load));
        if worth_telling && loads {
            loading.progress = (loaded, total);
            self.send_host(Message::Progress { generation, loaded, total });
            self.outputs.push_back(Output::Changed);
        }
    }

    fn ready_if_complete(&mut self) {
        let Phase::Loading(loading) = &self.phase else { return };
        let assign = &loading.assign;
        if !loading.loaded {
            return;
        }
        if loading.spare {
            let blocks = assign.blocks.clone();
            self.phase = Phase::Standby(Box::new(assign.clone()));
            self.send_host(Message::Warmed { blocks });
            self.outputs.push_back(Output::Changed);
            return;
        }
        if !(self.links.contains(&assign.prev) && self.links.contains(&assign.next)) {
            return;
        }
        let generation = assign.generation;
        self.phase = Phase::Working(Box::new(Working::new(assign.clone())));
        self.send_host(Message::Ready { generation });
        self.outputs.push_back(Output::Changed);
    }

    fn lost_neighbour(&mut self, peer: PeerId) {
        self.links.remove(&peer);
        self.wire.take_if(|(_, next, _)| *next == peer);
        if self.is_standing_by() {
            return;
        }
        let neighbour = |assign: &Assign| assign.prev == peer || assign.next == peer;
        if let Some(generation) =
            self.current().filter(|assign| neighbour(assign)).map(|assign| assign.generation)
        {
            self.send_host(Message::NeighbourLost { generation, peer });
        }
    }

    fn start_job(&mut self, now: Duration) {
        if self.running.is_some() {
            return;
        }
        let (generation, next) = match &mut self.phase {
            Phase::Greeting | Phase::Ended(_) => return,
            _ if let Some(measure) = self.measure.take() => {
                self.measured = Some((measure.clone(), None));
                (Generation(0), Some((Kind::Measure(measure.id), Job::Measure(measure))))
            }
            Phase::Loading(loading) if !loading.queued => {
                loading.queued = true;
                let assign = Box::new(loading.assign.clone());
                (assign.generation, Some((Kind::Load, Job::Load(assign))))
            }
            Phase::Working(working) => (working.assign.generation, working.next_job()),
            _ => return,
        };
        if let Some((kind, job)) = next {
            self.running = Some(Running { generation, kind, since: now, is_void: false });
            self.outputs.push_back(Output::Job(job));
        }
    }

    fn job_failed(&mut self, reason: String, failure: Failure) {
        let Some(Running { generation, kind, is_void: false, .. }) = self.running.take() else { return };
        if let Kind::Measure(id) = kind {
            self.outputs.push_back(Output::Changed);
            return self.send_host(Message::Measured { id, profile: Err(reason) });
        }
        let Some(assign) = self.current().filter(|assign| assign.generation == generation) else { return };
        let fault = match (failure, kind) {
            (Failure::Input, Kind::Forward(_) | Kind::Infer(_)) => Fault::Input(assign.prev),
            (Failure::Input, Kind::Backward(_)) => Fault::Input(assign.next),
            (Failure::Diverged, _) => Fault::Diverged,
            (Failure::Engine | Failure::Input, _) => Fault::Device,
        };
        self.phase = Phase::Waiting;
        self.send_host(Message::Failed { generation, reason, fault });
        self.outputs.push_back(Output::Changed);
    }

    fn done(&mut self, done: Done, now: Duration) {
        let Some(Running { generation, kind, since, is_void: false }) = self.running.take() else { return };
        let (host, took) = (self.host, now.saturating_sub(since));
        if let (Kind::Measure(id), Done::Measure(profile)) = (kind, &done) {
            self.outputs.push_back(Output::Changed);
            if let Some((_, known)) = &mut self.measured {
                *known = Some(profile.clone());
            }
            return self.send_host(Message::Measured { id, profile: Ok(profile.clone()) });
        }
        match &mut self.phase {
            // A load of an assignment before this one leaves this one queued.
            Phase::Loading(loading) if loading.assign.generation == generation && loading.queued => {
                loading.loaded = true;
                self.ready_if_complete();
            }
            Phase::Working(working) if working.assign.generation == generation => {
                let (step, prev, next) = (working.step, working.assign.prev, working.assign.next);
                match (kind, done) {
                    (Kind::Forward(micro_batch), Done::Forward(tensor)) => {
                        working.times.forward.push(took);
                        if working.witnesses(step, micro_batch, Side::Sent) {
                            let (side, tensor) = (Side::Sent, tensor.clone());
                            self.send(
                                host,
                                Message::Evidence { generation, step, micro_batch, side, tensor },
                            );
                        }
                        self.send(next, Message::Forward { generation, step, micro_batch, tensor });
                    }
                    (Kind::Backward(micro_batch), Done::Backward(tensor)) => {
                        working.times.backward.push(took);
                        self.send(prev, Message::Backward { generation, step, micro_batch, tensor });
                    }
                    (Kind::GradNorm, Done::GradNorm(grad_sum_of_squares)) => {
                        let times = std::mem::take(&mut working.times);
                        self.send(host, Message::StepDone { generation, step, grad_sum_of_squares, times });
                    }
                    (Kind::Apply, Done::Apply(states)) => {
                        working.step = step.next();
                        working.schedule = Working::schedule(&working.assign);
                        working.flush = Flush::Accumulating;
                        self.steps_done += 1;
                        self.send(host, Message::Applied { generation, step, states });
                        self.outputs.push_back(Output::Changed);
                    }
                    (Kind::Infer(request), Done::Infer(tensor)) => {
                        self.send(next, Message::Infer { generation, request, tensor });
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
}
