//! What came of a simulated run: steps against their bound, what each device did, and how losses were survived; as a table.

use crate::act::{Act, Moment};
use crate::cost::{self, Costs, DeviceSpec};
use crate::engine::Model;
use crate::net::Network;
use crate::trace::{Life, Trace};
use crate::violation::Violation;
use crate::world::{HOST, Pace, PlanMade, World};
use baton_plan::{
    self as plan, BoundaryPrecision, Curve, DeviceIndex, DeviceProfile, EndsProfile, HostProfile,
    LinkProfile, ModelProfile, Node, Options, Partition, PeerProfile, PlanError, Prediction, StagePlan,
};
use baton_protocol::PeerId;
use baton_protocol::codec::Precision;
use baton_protocol::coordinator::{DeviceView, RunPhase};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::ops::Range;
use std::time::Duration;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// How it ended.
    pub end: End,
    /// From when the person let it go to the end of the last step.
    pub time: Range<Duration>,
    /// Steps that were asked for.
    pub wanted: u32,
    /// Every step.
    pub steps: Vec<StepTime>,
    /// What everybody did.
    pub trace: Trace,
    /// What happened from outside, and how it was survived.
    pub incidents: Vec<Incident>,
    /// Faults that never came, in words.
    pub missed: Vec<String>,
    /// When and why the run waited for a person or another device, in words.
    pub pauses: Vec<(Duration, String)>,
    /// Why devices were lost, or had nothing to do in the end, in words.
    pub reasons: Vec<String>,
    /// The run's last plan.
    pub plan: Option<PlanMade>,
    /// What the planner says of it.
    pub prediction: Option<Prediction>,
    /// How long each call of the host's machine took by the real clock since the run was let go, if it was measured.
    pub host_calls: Option<Vec<Duration>>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// Every step was made, and each once.
    Done,
    /// There was no plan for this room: nothing was fetched, nothing was made. Why, in words.
    Refused(String),
    /// It could not go on, and said why.
    Failed(String),
    /// Nobody was there any more who could go on, and nobody came. Why, in words.
    Deserted(String),
    /// The person ended it.
    Stopped,
    /// It was still at work when the time was over that it was given.
    OutOfTime(Duration),
    /// It broke a promise.
    Broken(Violation),
}

impl End {
    fn of<M: Model>(world: &World<M>, came_to_rest: Result<(), Violation>) -> Self {
        let phase = world.coordinator.phase();
        match (came_to_rest, phase) {
            (Err(Violation::Stuck { .. }), _) if world.is_at_work() => Self::OutOfTime(world.patience),
            (Err(violation), _) => Self::Broken(violation),
            (Ok(()), RunPhase::Failed(reason)) if world.plans.is_empty() => Self::Refused(reason),
            (Ok(()), RunPhase::Failed(reason)) => Self::Failed(reason),
            (Ok(()), RunPhase::Stopped) => match &world.gave_up {
                Some(reason) => Self::Deserted(reason.clone()),
                None => Self::Stopped,
            },
            (Ok(()), _) => world.verify().map_or_else(Self::Broken, |()| Self::Done),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => write!(f, "every step was made once"),
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::Failed(reason) => write!(f, "the run failed: {reason}"),
            Self::Deserted(reason) => write!(f, "the run waited for another device, and none came: {reason}"),
            Self::Stopped => write!(f, "the person ended the run"),
            Self::OutOfTime(time) => {
                let seconds = time.as_secs();
                write!(
                    f,
                    "the run was still at work after {seconds} s: give it more `patience`, or less to do"
                )
            }
            Self::Broken(violation) => write!(f, "BROKEN: {violation}"),
        }
    }
}

/// A committed step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// When it was committed.
    pub at: Duration,
    /// How long after the one before.
    pub took: Duration,
    /// The least that the plan allows, if one plan was in force throughout and nobody let the run wait.
    pub bound: Option<Duration>,
}

/// Something that happened from outside.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    /// In words.
    pub what: String,
    /// When it happened.
    pub at: Duration,
    /// The plan that it led to, if it led to one.
    pub answer: Option<Answer>,
}

/// A plan that was made because of something that happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// How long after it the plan was made.
    pub planned: Duration,
    /// How long until steps were made again, if they were.
    pub recovered: Option<Duration>,
}

impl Outcome {
    /// Of a world that has [settled](World::settle), or stopped at a violation.
    pub fn new<M: Model>(world: &World<M>, seed: u64, came_to_rest: Result<(), Violation>) -> Self {
        let costs = match world.room.pace {
            Pace::Modelled(costs) => Some(costs),
            Pace::Random | Pace::Equal(_) => None,
        };
        // By the plan's place: a host that was loaded anew numbers its plans from the start again.
        let mut predictions: BTreeMap<usize, Option<Prediction>> = BTreeMap::new();
        let mut predicted = |index: usize| {
            let made = || predict(world, world.plans.get(index)?, &costs?).ok();
            predictions.entry(index).or_insert_with(made).clone()
        };
        let waits = |(_, act): &&(Duration, Act)| {
            matches!(act, Act::Pause | Act::Resume | Act::ReloadHost | Act::Restore | Act::FreezeAll(_))
        };
        let waits: Vec<Duration> = world.happened.iter().filter(waits).map(|(at, _)| *at).collect();
        let mut steps = Vec::new();
        let let_go = world.let_go.unwrap_or(world.now);
        let (mut before, mut plan_before) = (let_go, None);
        for (_, at) in &world.committed {
            let took = at.saturating_sub(before);
            let undisturbed = !waits.iter().any(|wait| before < *wait && wait < at);
            let plan = plan_between(&world.plans, before, *at);
            // A step overlaps with the end of the one before: where that was held up by another plan, it seems too short.
            let follows = plan == plan_before || plan.is_some_and(|plan| world.plans[plan].at == before);
            let is_first = steps.is_empty();
            let in_force = plan.filter(|_| undisturbed && (is_first || follows)).and_then(&mut predicted);
            let bound = in_force.map(|prediction| cost::seconds(prediction.bound));
            steps.push(StepTime { at: *at, took, bound });
            (before, plan_before) = (*at, plan);
        }
        Self {
            seed,
            end: End::of(world, came_to_rest),
            time: let_go..before,
            wanted: world.room.settings.steps,
            steps,
            trace: world.trace.clone().unwrap_or_default(),
            incidents: incidents(world),
            missed: missed(world),
            pauses: world.pauses.clone(),
            reasons: reasons(world),
            prediction: world.plans.len().checked_sub(1).and_then(predicted),
            plan: world.plans.last().cloned(),
            host_calls: world.host_calls.clone(),
        }
    }

    /// What the host's machine took of the real processor since the run was let go, if it was measured.
    pub fn host_time(&self) -> Option<Duration> {
        self.host_calls.as_ref().map(|calls| calls.iter().sum())
    }

    /// The mean time of a step, of those that no change of plan disturbed.
    pub fn step_time(&self) -> Option<Duration> {
        let undisturbed: Vec<Duration> =
            self.steps.iter().filter(|step| step.bound.is_some()).map(|step| step.took).collect();
        let total: Duration = undisturbed.iter().sum();
        total.checked_div(u32::try_from(undisturbed.len()).ok()?)
    }

    /// Time that steps would take at their bound over the time that they took, of those that no change of plan
    /// disturbed.
    pub fn efficiency(&self) -> Option<f64> {
        let of = |step: &StepTime| Some((step.bound?.as_secs_f64(), step.took.as_secs_f64()));
        let (bound, took) =
            self.steps.iter().filter_map(of).fold((0.0, 0.0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
        (took > 0.0).then(|| bound / took)
    }

    /// The share of the stages' time in which they did not work, while steps were made.
    pub fn bubble(&self) -> Option<f64> {
        let plan = self.plan.as_ref()?;
        let lives = plan.stages.iter().filter_map(|(who, _)| self.trace.lives.get(who));
        let (mut busy, mut present) = (0.0, 0.0);
        for life in lives {
            busy += life.busy(&self.time).as_secs_f64();
            present += life.present(&self.time).as_secs_f64();
        }
        (present > 0.0).then(|| 1.0 - busy / present)
    }

    /// As text, a line for each device.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let done = self.steps.len();
        let _ = write!(text, "seed {}: {done} of {} steps in ", self.seed, self.wanted);
        let _ = write!(text, "{}", seconds(self.time.end.saturating_sub(self.time.start)));
        let _ = match done {
            0 => writeln!(text),
            _ => writeln!(text, ", from {} on", seconds(self.time.start)),
        };
        if let (Some(step), Some(efficiency)) = (self.step_time(), self.efficiency()) {
            let bound = step.mul_f64(efficiency.min(1e3));
            let _ = write!(text, "a step: {}, bound of the plan {}", seconds(step), seconds(bound));
            let _ = write!(text, " ({})", percent(efficiency));
            if let Some(prediction) = &self.prediction {
                let _ = write!(text, "; predicted of the last plan {:.2} s", prediction.step);
            }
            match self.bubble() {
                Some(bubble) => writeln!(text, "; stages without work {}", percent(bubble)),
                None => writeln!(text),
            }
            .ok();
        }
        if let Some(time) = self.host_time() {
            let calls = self.host_calls.as_ref().map_or(0, Vec::len) / done.max(1);
            let each = time.as_secs_f64() * 1e3 / done.max(1) as f64;
            let _ = writeln!(
                text,
                "the host's machine took {each:.3} ms of a processor a step, in {calls} calls"
            );
        }
        if let End::Refused(_) = self.end {
            let _ = writeln!(text, "{}", self.end);
            return text;
        }
        let header = ["device", "blocks", "busy", "receiving", "idle", "peak memory", ""];
        let mut rows = vec![header.map(String::from)];
        for (who, life) in &self.trace.lives {
            let present = life.present(&self.time).as_secs_f64();
            let share = |time: Duration| {
                if present > 0.0 { percent(time.as_secs_f64() / present) } else { "–".into() }
            };
            let (busy, receiving) = (life.busy(&self.time), life.receiving(&self.time));
            let idle = Duration::from_secs_f64(present).saturating_sub(busy + receiving);
            let Range { start, end } = life.blocks;
            let blocks = match (*who == HOST, start < end) {
                (true, false) => "ends".into(),
                (true, true) => format!("ends, {}", numbered(&life.blocks)),
                (false, true) => numbered(&life.blocks),
                (false, false) => "–".into(),
            };
            let left = match life.gone {
                Some(at) => format!("gone at {}", seconds(at)),
                None => String::new(),
            };
            let memory = format!("{:.1} MB", life.peak_memory / 1e6);
            rows.push([life.name.clone(), blocks, share(busy), share(receiving), share(idle), memory, left]);
        }
        aligned(&mut text, &rows);
        let mut events: Vec<(Duration, String)> =
            self.pauses.iter().map(|(at, why)| (*at, format!("the run waited: {why}"))).collect();
        events.extend(self.incidents.iter().map(|incident| (incident.at, incident.to_string())));
        events.sort_by_key(|(at, _)| *at);
        for (at, what) in events {
            let late =
                if at > self.time.end && self.end == End::Done { " (after the last step)" } else { "" };
            let _ = writeln!(text, "{} {what}{late}", seconds(at));
        }
        for line in self.reasons.iter().chain(&self.missed) {
            let _ = writeln!(text, "{line}");
        }
        if self.end != End::Done {
            let _ = writeln!(text, "{}", self.end);
        }
        text
    }
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, answer, .. } = self;
        let Some(Answer { planned, recovered }) = answer else { return write!(f, "{what}") };
        write!(f, "{what}: planned anew after {:.2} s", planned.as_secs_f64())?;
        match recovered {
            Some(recovered) => write!(f, ", steps again after {:.2} s", recovered.as_secs_f64()),
            None => write!(f, ", no step after it"),
        }
    }
}

/// Columns as wide as their widest entry; the first and the last stand left, the others right.
fn aligned<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (column, entry) in row.iter().enumerate() {
            let space = " ".repeat(widths[column] - entry.chars().count());
            if column == 0 || column + 1 == N {
                line += entry;
                line += &space;
            } else {
                line += &space;
                line += entry;
            }
            line += "  ";
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

/// The plan that was in force for all of a time.
fn plan_between(plans: &[PlanMade], from: Duration, to: Duration) -> Option<usize> {
    let index = plans.iter().rposition(|plan| plan.at <= to)?;
    (plans[index].at <= from).then_some(index)
}

/// What the planner says of a plan, told what this world's devices and links are.
///
/// # Errors
///
/// When the planner cannot take it: a device of no speed, or a plan that does not hold together.
pub fn predict<M: Model>(world: &World<M>, plan: &PlanMade, costs: &Costs) -> Result<Prediction, PlanError> {
    let settings = &world.room.settings;
    let per_sample = |flop: f64, spec: &DeviceSpec| flop / spec.flops;
    let device = |who: PeerId, blocks: usize| -> Result<DeviceProfile, PlanError> {
        let spec = world.spec(who).cloned().unwrap_or_default();
        // A job has its overhead once, however many blocks it passes.
        let overhead = spec.overhead.as_secs_f64() / blocks.max(1) as f64;
        Ok(DeviceProfile {
            memory: spec.memory.map_or(u64::MAX, |memory| memory as u64),
            forward: Curve::affine(overhead, per_sample(costs.forward, &spec))?,
            backward: Curve::affine(overhead, per_sample(costs.backward, &spec))?,
            update: 2.0 * (overhead + per_sample(costs.update, &spec)),
            slowness: 1.0,
        })
    };
    let own = plan.host.clone().unwrap_or_default().end;
    let host = world.spec(HOST).cloned().unwrap_or_default();
    let overhead = host.overhead.as_secs_f64();
    let host = HostProfile {
        device: device(HOST, own.into())?,
        front: Curve::affine(overhead, per_sample(costs.front, &host))?,
        head: Curve::affine(overhead, per_sample(costs.head, &host))?,
    };
    let mut room = plan::Room { host, devices: Vec::new(), wires: BTreeMap::new() };
    let mut stages = Vec::new();
    let nodes: Vec<(Node, PeerId)> = std::iter::once((Node::Host, HOST))
        .chain(plan.stages.iter().zip(0..).map(|((who, _), index)| (Node::Device(DeviceIndex(index)), *who)))
        .collect();
    for ((who, blocks), index) in plan.stages.iter().zip(0..) {
        let device = device(*who, blocks.len())?;
        room.devices.push(PeerProfile { device, link: LinkProfile::IDEAL });
        let devices = vec![DeviceIndex(index)];
        let recompute = plan.recompute.1.get(usize::from(index)).copied().unwrap_or(false);
        stages.push(StagePlan { devices, blocks: blocks.clone(), recompute });
    }
    if matches!(world.room.network, Network::Modelled(_)) {
        for (from, a) in &nodes {
            for (to, b) in nodes.iter().filter(|(to, _)| to != from) {
                let wire = world.wire(*a, *b);
                let (bandwidth, round_trip) = (wire.bandwidth, 2.0 * wire.latency.as_secs_f64());
                room.wires.insert((*from, *to), plan::Wire { bandwidth, round_trip });
            }
        }
    }
    let last = plan.stages.last().map_or(own, |(_, blocks)| blocks.end);
    // Whether it fits is no question any more.
    let model = ModelProfile { ends: EndsProfile::default(), ..costs.profile(last, settings) };
    let boundary = match settings.boundary {
        Precision::F32 => BoundaryPrecision::F32,
        Precision::F16 => BoundaryPrecision::F16,
    };
    let partition = Partition {
        micro_batches: plan.micro_batches,
        ahead: plan.ahead,
        storage: plan::Storage::F32,
        boundary,
        host: 0..own,
        host_recompute: plan.recompute.0,
        stages,
    };
    let options = Options {
        batch_size: settings.batch_size,
        micro_batches: vec![plan.micro_batches],
        commit_overlaps: true,
        ..Options::default()
    };
    plan::predict(&room, &model, &options, &partition)
}

/// What happened from outside, with the plans that answered it.
fn incidents<M: Model>(world: &World<M>) -> Vec<Incident> {
    let lives = world.trace.as_ref().map(|trace| &trace.lives);
    let mut found = Vec::new();
    for (at, act) in &world.happened {
        let Some((_, who)) = act.fault() else { continue };
        let mut what = words(world, act, *at);
        let was_there = |who: PeerId| {
            let life = lives.and_then(|lives| lives.get(&who));
            life.is_some_and(|life| life.joined <= *at && life.gone.is_none_or(|gone| gone >= *at))
        };
        if who.is_some_and(|who| !was_there(who)) {
            what += " (it was not in the room)";
        }
        let answer = answer(world, act, *at);
        found.push(Incident { what, at: *at, answer });
    }
    found
}

/// The plan that was made because of a fault, if one was.
fn answer<M: Model>(world: &World<M>, act: &Act, at: Duration) -> Option<Answer> {
    let employed = world.plans.iter().rfind(|plan| plan.at < at)?;
    let mut later = world.plans.iter().filter(|plan| plan.at >= at && *plan != employed);
    let has = |plan: &PlanMade, who: PeerId| plan.stages.iter().any(|(stage, _)| *stage == who);
    let next = match *act {
        // Who is gone for ever is in no plan that was made because of it.
        Act::Kill { peer, .. } | Act::Leave(peer) | Act::Remove(peer) => {
            later.find(|plan| !has(plan, peer))?
        }
        _ => later.next()?,
    };
    let is_answered = match *act {
        Act::ReloadHost => true,
        Act::Kill { peer, .. }
        | Act::Leave(peer)
        | Act::Remove(peer)
        | Act::Freeze(peer, _)
        | Act::Isolate(peer, _)
        | Act::FailJob(peer)
        | Act::Hide(peer)
        | Act::Lie(peer)
        | Act::Stall(peer) => has(employed, peer) && !has(next, peer),
        // A plan in which the device has its stage still was made for another reason.
        _ => false,
    };
    let after = world.plans.iter().filter(|plan| plan.at >= next.at);
    let recovered = after.filter_map(|plan| plan.went_on).min().map(|on| on - at);
    is_answered.then(|| Answer { planned: next.at - at, recovered })
}

/// A fault in words.
fn words<M: Model>(world: &World<M>, act: &Act, at: Duration) -> String {
    let name = |who: PeerId| name(world, who);
    match *act {
        Act::Kill { peer, silent: true } => format!("{} fell silent", name(peer)),
        Act::Kill { peer, silent: false } => format!("{} was killed", name(peer)),
        Act::Leave(peer) => format!("{} left", name(peer)),
        Act::Remove(peer) => format!("{} was sent away", name(peer)),
        Act::Freeze(peer, time) => format!("{} slept for {time} s", name(peer)),
        Act::Isolate(peer, time) => format!("{} was out of reach for {time} s", name(peer)),
        Act::Part(a, b, time) => format!("{} and {} did not reach each other for {time} s", name(a), name(b)),
        Act::Cut(a, b) => format!("the connection between {} and {} broke", name(a), name(b)),
        Act::FailJob(peer) => format!("{}'s engine failed", name(peer)),
        Act::FailPasses(peer, _) => format!("{} computed no numbers any more", name(peer)),
        Act::Hide(peer) => format!("{} was hidden", name(peer)),
        Act::Lie(peer) => format!("{} computed something else", name(peer)),
        Act::Stall(peer) => format!("{} did nothing any more", name(peer)),
        Act::Lag(peer, millis) => format!("all that {} sent and got was later by {millis} ms", name(peer)),
        Act::SlowDown(peer, factor) => format!("{} needed {factor} times as long for its work", name(peer)),
        Act::ReloadHost => format!("the page of {} was loaded anew", name(HOST)),
        Act::FreezeAll(time) => format!("everybody slept for {} s", time.as_secs()),
        Act::Pause => {
            let later = |(when, act): &&(Duration, Act)| *when >= at && *act == Act::Resume;
            match world.happened.iter().find(later) {
                Some((on, _)) => format!("the run was paused for {:.2} s", (*on - at).as_secs_f64()),
                None => "the run was paused".into(),
            }
        }
        Act::Stop => "the run was ended".into(),
        Act::Replay => "a message of the past came again".into(),
        Act::LinkedAgain => "a connection said again that it was open".into(),
        _ => format!("{act:?}"),
    }
}

fn name<M: Model>(world: &World<M>, who: PeerId) -> String {
    world.spec(who).map_or_else(|| format!("device {who}"), |spec| spec.name.clone())
}

/// Faults that were planned for a job that did not come.
fn missed<M: Model>(world: &World<M>) -> Vec<String> {
    let each = |(moment, act): &(Moment, Act)| {
        let (Moment::Job { who, job, .. }, (fault, _)) = (moment, act.fault()?) else { return None };
        let life = world.trace.as_ref().and_then(|trace| trace.lives.get(who));
        let did = life.map_or(0, |life| life.jobs(*job));
        let (name, job) = (name(world, *who), job.name());
        Some(format!("\"{fault}\" waited for a `{job}` of {name} that did not come: it did {did}"))
    };
    world.missed().iter().filter_map(each).collect()
}

/// Why devices were lost to the host, or had no blocks in the end.
fn reasons<M: Model>(world: &World<M>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (device, reason) in &world.left {
        let line = format!("{device} was lost: {reason}");
        if !found.contains(&line) {
            found.push(line);
        }
    }
    let (Pace::Modelled(costs), Some(trace)) = (world.room.pace, &world.trace) else { return found };
    let views = world.coordinator.devices();
    let least = costs.memory(1, 1, false).min(costs.memory(1, 1, true)) / 1e6;
    let employed = |life: &Life| life.gone.is_some() || !life.blocks.is_empty();
    let idle = trace.lives.iter().filter(|(who, life)| **who != HOST && !employed(life));
    for (who, life) in idle.filter(|_| !world.plans.is_empty()) {
        let view = views.iter().find(|view| view.peer == *who);
        let memory = world.spec(*who).and_then(|spec| spec.memory).map(|memory| memory / 1e6);
        let why = match (view, memory) {
            (_, Some(memory)) if memory < least => {
                format!("it has {memory:.1} MB, and a single block takes {least:.1} MB")
            }
            (Some(DeviceView { device: Some(_), pace: None, .. }), _) => {
                "it was still measuring itself".into()
            }
            (Some(DeviceView { device: Some(_), loading: Some((done, total)), .. }), _) => {
                format!("it was still fetching blocks ({done} of {total})")
            }
            (Some(DeviceView { device: Some(_), standby: Some(blocks), .. }), _) => {
                format!("it stood by for the blocks {}", numbered(blocks))
            }
            (Some(DeviceView { device: Some(_), .. }), _) => "the room was no faster with it".into(),
            (None | Some(DeviceView { device: None, .. }), _) => "it was not connected to the host".into(),
        };
        found.push(format!("{} had no blocks in the end: {why}", life.name));
    }
    found
}

/// Blocks as a person counts them, from 1 as the page does.
pub(crate) fn numbered(blocks: &Range<u16>) -> String {
    let Range { start, end } = blocks;
    if *end == start.saturating_add(1) {
        end.to_string()
    } else {
        format!("{}–{end}", start.saturating_add(1))
    }
}
