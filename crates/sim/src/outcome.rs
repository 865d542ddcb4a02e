//! What came of a simulated run: steps against their bound, what each device did, and how losses were survived; as a table.

use crate::act::Act;
use crate::cost::{self, Costs, DeviceSpec};
use crate::engine::Model;
use crate::net::Network;
use crate::trace::Trace;
use crate::violation::Violation;
use crate::world::{HOST, Pace, PlanMade, World};
use baton_plan::{
    self as plan, BlockProfile, BoundaryPrecision, Curve, DeviceIndex, DeviceProfile, EndsProfile, Growth,
    HostProfile, LinkProfile, ModelProfile, Node, Options, Partition, PeerProfile, PlanError, Prediction,
    StagePlan,
};
use baton_protocol::{Generation, PeerId};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// What it broke, if it broke anything.
    pub violation: Option<Violation>,
    /// From the start of the first step to the end of the last one.
    pub time: Range<Duration>,
    /// Steps that were asked for.
    pub wanted: u32,
    /// Every step.
    pub steps: Vec<StepTime>,
    /// What everybody did.
    pub trace: Trace,
    /// How losses were survived.
    pub recoveries: Vec<Recovery>,
    /// Why the run waited for a person or another device, in words.
    pub pauses: Vec<String>,
    /// The run's last plan.
    pub plan: Option<PlanMade>,
    /// What the planner says of it.
    pub prediction: Option<Prediction>,
    /// How long each call of the host's machine took by the real clock since the run was let go, if it was measured.
    pub host_calls: Option<Vec<Duration>>,
}

/// A committed step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// When it was committed.
    pub at: Duration,
    /// How long after the one before.
    pub took: Duration,
    /// The least that the plan allows, if one plan was in force throughout.
    pub bound: Option<Duration>,
}

/// A fault that changed the plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovery {
    /// In words.
    pub what: String,
    /// When it happened.
    pub at: Duration,
    /// How long until a new plan was made.
    pub detected: Duration,
    /// How long until steps were made again, if they were.
    pub recovered: Option<Duration>,
}

impl Outcome {
    /// Of a world that has come to its end, or stopped at a violation.
    pub fn new<M: Model>(world: &World<M>, seed: u64, violation: Option<Violation>) -> Self {
        let costs = match world.room.pace {
            Pace::Modelled(costs) => Some(costs),
            Pace::Random | Pace::Equal(_) => None,
        };
        let mut predictions: BTreeMap<Generation, Option<Prediction>> = BTreeMap::new();
        let mut predicted = |plan: &PlanMade| {
            let made = || predict(world, plan, &costs?).ok();
            predictions.entry(plan.generation).or_insert_with(made).clone()
        };
        let mut steps = Vec::new();
        let mut before = world.resumed;
        for (_, at) in &world.committed {
            let took = at.saturating_sub(before);
            let in_force = plan_between(&world.plans, before, *at).and_then(&mut predicted);
            let bound = in_force.map(|prediction| cost::seconds(prediction.bound));
            steps.push(StepTime { at: *at, took, bound });
            before = *at;
        }
        Self {
            seed,
            violation,
            time: world.resumed..before,
            wanted: world.room.settings.steps,
            steps,
            trace: world.trace.clone().unwrap_or_default(),
            recoveries: recoveries(world),
            pauses: world.pauses.clone(),
            prediction: world.plans.last().and_then(predicted),
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
        let _ = writeln!(text, "{}", seconds(self.time.end.saturating_sub(self.time.start)));
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
                (true, true) => format!("ends, {start}–{}", end - 1),
                (false, true) => format!("{start}–{}", end - 1),
                (false, false) => "–".into(),
            };
            let left = match life.gone {
                Some(at) => format!("gone after {}", seconds(at)),
                None => String::new(),
            };
            let memory = format!("{:.1} MB", life.peak_memory / 1e6);
            rows.push([life.name.clone(), blocks, share(busy), share(receiving), share(idle), memory, left]);
        }
        aligned(&mut text, &rows);
        for reason in &self.pauses {
            let _ = writeln!(text, "the run waited: {reason}");
        }
        for recovery in &self.recoveries {
            let Recovery { what, at, detected, recovered } = recovery;
            let _ = write!(text, "{} {what}: planned anew after {}", seconds(*at), seconds(*detected));
            let _ = match recovered {
                Some(recovered) => writeln!(text, ", steps again after {}", seconds(*recovered)),
                None => writeln!(text, ", no step after it"),
            };
        }
        if let Some(violation) = &self.violation {
            let _ = writeln!(text, "BROKEN: {violation}");
        }
        text
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
fn plan_between(plans: &[PlanMade], from: Duration, to: Duration) -> Option<&PlanMade> {
    let plan = plans.iter().rfind(|plan| plan.at <= to)?;
    (plan.at <= from).then_some(plan)
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
    let own = plan.stages.first().map_or(0, |(_, blocks)| blocks.start);
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
    let last = plan.stages.last().map_or(0, |(_, blocks)| blocks.end);
    let growth = |bytes: f64| Growth { linear: bytes as u64, quadratic: 0 };
    let block = BlockProfile {
        work: 1.0,
        frozen: [costs.weights as u64; 4],
        adapters: costs.adapters as u64,
        state: costs.state as u64,
        kept: growth(costs.kept[0]),
        input: growth(costs.kept[1]),
        open: growth(costs.open[0]),
        open_recompute: growth(costs.open[1]),
    };
    let model = ModelProfile {
        blocks: vec![block; last.into()],
        ends: EndsProfile::default(),
        // What crosses counts as one token of f16: the planner multiplies again.
        tokens: 1,
        hidden: (costs.boundary / 2.0) as u64,
        buffers: Growth::default(),
        loading: 0,
    };
    let partition = Partition {
        micro_batches: plan.micro_batches,
        ahead: plan.ahead,
        storage: plan::Storage::F32,
        boundary: BoundaryPrecision::F16,
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

/// Faults that were followed by a new plan, and by steps under it.
fn recoveries<M: Model>(world: &World<M>) -> Vec<Recovery> {
    let name = |who: PeerId| match &world.trace {
        Some(trace) => {
            trace.lives.get(&who).map_or_else(|| format!("device {who}"), |life| life.name.clone())
        }
        None => format!("device {who}"),
    };
    let fault = |act: &Act| match *act {
        Act::Kill { peer, silent: true } => Some((peer, format!("{} fell silent", name(peer)))),
        Act::Kill { peer, silent: false } => Some((peer, format!("{} was killed", name(peer)))),
        Act::Leave(peer) => Some((peer, format!("{} left", name(peer)))),
        Act::Remove(peer) => Some((peer, format!("{} was sent away", name(peer)))),
        Act::Freeze(peer, time) => Some((peer, format!("{} slept for {time} s", name(peer)))),
        Act::Isolate(peer, time) => Some((peer, format!("{} was out of reach for {time} s", name(peer)))),
        Act::FailJob(peer) => Some((peer, format!("{}'s engine failed", name(peer)))),
        Act::Hide(peer) => Some((peer, format!("{} was hidden", name(peer)))),
        Act::Lie(peer) => Some((peer, format!("{} computed something else", name(peer)))),
        Act::Stall(peer) => Some((peer, format!("{} did nothing any more", name(peer)))),
        _ => None,
    };
    let mut found = Vec::new();
    for (at, act) in &world.happened {
        let Some((who, what)) = fault(act) else { continue };
        let employed = world.plans.iter().rfind(|plan| plan.at <= *at);
        if !employed.is_some_and(|plan| plan.stages.iter().any(|(stage, _)| *stage == who)) {
            continue;
        }
        // A plan in which the device has its stage still was made for another reason.
        let does_without = |plan: &&PlanMade| plan.stages.iter().all(|(stage, _)| *stage != who);
        let next = world.plans.iter().find(|plan| plan.at >= *at && employed != Some(plan));
        if let Some(plan) = next.filter(does_without) {
            let after = world.plans.iter().filter(|other| other.at >= plan.at);
            let recovered = after.filter_map(|plan| plan.went_on).min().map(|on| on - *at);
            found.push(Recovery { what, at: *at, detected: plan.at - *at, recovered });
        }
    }
    found
}
