//! What came of a simulated run: steps against their bound, what each device did, and how losses were survived; as a table.

use crate::act::Act;
use crate::cost::Costs;
use crate::engine::Model;
use crate::net::Network;
use crate::trace::Trace;
use crate::violation::Violation;
use crate::world::{HOST, Pace, PlanMade, World};
use crate::{JobName, cost};
use baton_protocol::PeerId;
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
    /// Texts of the run's last plan: who runs what.
    pub plan: Option<PlanMade>,
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
        let mut steps = Vec::new();
        let mut before = world.resumed;
        for (_, at) in &world.committed {
            let took = at.saturating_sub(before);
            let in_force = plan_between(&world.plans, before, *at);
            let bound = in_force.and_then(|plan| Some(step_bound(world, plan, &costs?)));
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
            plan: world.plans.last().cloned(),
        }
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
            match self.bubble() {
                Some(bubble) => writeln!(text, "; stages without work {}", percent(bubble)),
                None => writeln!(text),
            }
            .ok();
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

/// The least time of a step under a plan: the first micro-batch passes everything once each way, the others follow at
/// the pace of the slowest part, be it a device or a wire; then the update. With equal stages, ideal links and ends that
/// cost nothing that is (M + N − 1) forward and backward passes.
pub fn step_bound<M: Model>(world: &World<M>, plan: &PlanMade, costs: &Costs) -> Duration {
    let seconds = |who: PeerId, jobs: &[JobName], blocks: usize| {
        let spec = world.spec(who);
        let blocks = u16::try_from(blocks).unwrap_or(u16::MAX);
        spec.map_or(0.0, |spec| {
            let time = |job: &JobName| {
                spec.overhead.as_secs_f64() + costs.work(*job, blocks, who == HOST) / spec.flops
            };
            jobs.iter().map(time).sum::<f64>()
        })
    };
    let ends = [JobName::Forward, JobName::Head];
    let passes = [JobName::Forward, JobName::Backward];
    let mut parts = vec![seconds(HOST, &ends, 0)];
    let mut closing: f64 = 0.0;
    for (who, blocks) in &plan.stages {
        parts.push(seconds(*who, &passes, blocks.len()));
        closing = closing.max(seconds(*who, &[JobName::Norm, JobName::Apply], blocks.len()));
    }
    let mut distance = 0.0;
    if matches!(world.room.network, Network::Modelled(_)) {
        let ring = [HOST].into_iter().chain(plan.stages.iter().map(|(who, _)| *who)).chain([HOST]);
        let ring: Vec<PeerId> = ring.collect();
        for pair in ring.windows(2) {
            let [from, to] = [pair[0], pair[1]];
            for wire in [world.wire(from, to), world.wire(to, from)] {
                // The first stage's gradient is not wanted by the host.
                let wanted = to != HOST || from == *ring.iter().rev().nth(1).unwrap_or(&HOST);
                let bytes = if wanted { costs.samples * costs.boundary } else { 0.0 };
                parts.push(bytes / wire.bandwidth);
                distance += wire.latency.as_secs_f64();
            }
        }
    }
    let slowest = parts.iter().copied().fold(0.0, f64::max);
    let others = f64::from(world.room.settings.micro_batches) - 1.0;
    cost::seconds(parts.iter().sum::<f64>() + others * slowest + distance + closing)
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
        if let Some(plan) = world.plans.iter().find(|plan| plan.at >= *at && employed != Some(plan)) {
            let after = world.plans.iter().filter(|other| other.at >= plan.at);
            let recovered = after.filter_map(|plan| plan.went_on).min().map(|on| on - *at);
            found.push(Recovery { what, at: *at, detected: plan.at - *at, recovered });
        }
    }
    found
}
