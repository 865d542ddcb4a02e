//! Spot checks: now and then the host computes a micro-batch of a stage again and compares.
//!
//! What the stage was given comes from who sent it, what it made of that from who received it, and the stage must say the
//! same of both: where two tell differently of what passed between them, one of them lies, and nobody is judged by it.
//! Only the forward pass is computed again, block by block, so that the host never holds more than one.

use super::state::Run;
use super::{Coordinator, Job, Output};
use crate::codec::Boundary;
use crate::ids::{MicroBatch, PeerId, Step};
use crate::message::{BlockBytes, Message, Side};
use std::time::Duration;

/// The first step that is checked; the steps before it are those in which everything is slow.
const FIRST: Step = Step(2);
/// At least so many steps lie between two checks...
const EVERY: u32 = 25;
/// ... and so many times the time that the last one took the host.
const SPARE: u32 = 20;
/// The norm of the difference over that of the numbers. Backends differ by a thousandth, boundaries are rounded to f16;
/// a device that computes something else is off by about one.
const TOLERANCE: f64 = 0.05;

/// A micro-batch of a stage that is computed again.
#[derive(Debug)]
pub(super) struct Audit {
    step: Step,
    micro_batch: MicroBatch,
    position: usize,
    input: Option<Boundary>,
    output: Option<Boundary>,
    /// What the stage itself has yet to confirm.
    unconfirmed: Vec<Side>,
    /// What it said of both, until the others have spoken.
    said: Vec<(Side, Boundary)>,
    /// The stage's adapters as they were at the beginning of the step, once that is complete.
    states: Option<Vec<BlockBytes>>,
    /// The host computes, from then on.
    since: Option<Duration>,
}

impl Audit {
    /// Whether all have spoken.
    fn is_complete(&self) -> bool {
        self.input.is_some() && self.output.is_some() && self.unconfirmed.is_empty()
    }

    pub(super) fn is_of(&self, step: Step, micro_batch: MicroBatch) -> bool {
        (self.step, self.micro_batch) == (step, micro_batch)
    }
}

/// When the next one may be.
#[derive(Debug)]
pub(super) struct Audits {
    next: Step,
    not_before: Duration,
    /// The last step of which a check came out right.
    good: Option<Step>,
}

impl Audits {
    pub(super) fn after(committed: Step) -> Self {
        Self { next: Step(committed.0.saturating_add(FIRST.0)), not_before: Duration::ZERO, good: None }
    }
}

/// A number that looks drawn, the same for the same seed and step (splitmix64).
fn drawn(seed: u64, step: Step) -> u64 {
    let mut hash = seed ^ (u64::from(step.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        hash = (hash ^ (hash >> 30)).wrapping_mul(factor);
    }
    hash ^ (hash >> 31)
}

impl Coordinator {
    /// Chooses what to check in a step that begins, if it is time, and asks those who see it.
    pub(super) fn open_audit(&mut self) {
        let (generation, now) = (self.generation, self.now);
        let Some(run) = &mut self.run else { return };
        let stages = run.plan.stages().len() as u64;
        let step = run.open.step;
        if run.audit.is_some() || stages == 0 || step < run.audits.next || now < run.audits.not_before {
            return;
        }
        let number = drawn(run.start.secret, step);
        let micro_batches = u64::from(run.plan.micro_batches().max(1));
        let (position, micro_batch) = ((number % stages) as usize, (number / stages % micro_batches) as u16);
        let micro_batch = MicroBatch(micro_batch);
        run.audits.next = Step(step.0.saturating_add(EVERY));
        let owner = |position: Option<usize>| Some(run.plan.stages().get(position?)?.0);
        let (before, behind) = (owner(position.checked_sub(1)), owner(Some(position + 1)));
        let own = owner(Some(position));
        // What passes between the stage and the host, the host sees itself.
        let asked = [
            before.map(|before| [(Some(before), Side::Sent), (own, Side::Received)]),
            behind.map(|behind| [(Some(behind), Side::Received), (own, Side::Sent)]),
        ];
        let asked: Vec<(Option<PeerId>, Side)> = asked.into_iter().flatten().flatten().collect();
        let unconfirmed = asked.iter().filter(|(who, _)| *who == own).map(|(_, side)| *side).collect();
        run.audit = Some(Audit {
            step,
            micro_batch,
            position,
            input: None,
            output: None,
            unconfirmed,
            said: Vec::new(),
            states: None,
            since: None,
        });
        for (witness, side) in asked {
            if let Some(witness) = witness {
                self.send(witness, Message::Witness { generation, step, micro_batch, side });
            }
        }
    }

    /// What was given to the stage that is checked, or what it made of that: `from` a stage, or the host itself.
    pub(super) fn evidence(
        &mut self,
        from: Option<PeerId>,
        step: Step,
        micro_batch: MicroBatch,
        side: Side,
        tensor: &Boundary,
    ) {
        let Some(run) = &mut self.run else { return };
        let Some(audit) = run.audit.as_mut().filter(|audit| audit.is_of(step, micro_batch)) else {
            return;
        };
        let at =
            |position: Option<usize>| position.and_then(|at| run.plan.stages().get(at)).map(|(id, _)| *id);
        if from.is_some() && at(Some(audit.position)) == from {
            if let Some(place) = audit.unconfirmed.iter().position(|wanted| *wanted == side) {
                audit.unconfirmed.swap_remove(place);
                audit.said.push((side, tensor.clone()));
            }
            return;
        }
        let (witness, place) = match side {
            Side::Sent => (at(audit.position.checked_sub(1)), &mut audit.input),
            Side::Received => (at(Some(audit.position + 1)), &mut audit.output),
        };
        if witness == from {
            place.get_or_insert_with(|| tensor.clone());
        }
    }

    /// What the host's engine computes again when nothing else waits.
    pub(super) fn check_job(run: &mut Run, now: Duration) -> Option<Job> {
        let audit = run.audit.as_mut().filter(|audit| audit.since.is_none() && audit.is_complete())?;
        let disputed = audit.said.drain(..).any(|(side, said)| match side {
            Side::Received => audit.input.as_ref() != Some(&said),
            Side::Sent => audit.output.as_ref() != Some(&said),
        });
        if disputed {
            run.audit = None;
            return None;
        }
        let blocks = run.plan.stages().get(audit.position)?.1.clone();
        let states = match audit.states.take() {
            Some(states) => states,
            None if run.committed == audit.step => {
                run.states.range(blocks.clone()).map(|(_, state)| state.clone()).collect()
            }
            None => return None,
        };
        let input = audit.input.take()?;
        audit.since = Some(now);
        Some(Job::Check { blocks, input, states })
    }

    /// A step is about to be committed: what its check starts from is kept.
    pub(super) fn keep_for_audit(run: &mut Run, step: Step) {
        let Some(audit) = run.audit.as_mut().filter(|audit| audit.step == step && audit.since.is_none())
        else {
            return;
        };
        match run.plan.shape.stages.get(audit.position) {
            // Witnesses that have not spoken until now missed it.
            Some((_, blocks)) if audit.is_complete() => {
                let states = run.states.range(blocks.clone()).map(|(_, state)| state.clone());
                audit.states = Some(states.collect());
            }
            _ => run.audit = None,
        }
    }

    /// The host has computed it again, or could not.
    pub(super) fn checked(&mut self, again: Option<&Boundary>) {
        let now = self.now;
        let Some(run) = &mut self.run else { return };
        let Some(Audit { step, position, output: Some(output), since: Some(since), .. }) = run.audit.take()
        else {
            return;
        };
        run.audits.not_before = now + now.saturating_sub(since) * SPARE;
        let Some(difference) = again.and_then(|again| difference(again, &output)) else { return };
        let Some((id, _)) = run.plan.stages().get(position).cloned() else { return };
        if difference <= TOLERANCE {
            run.audits.good = Some(step);
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.checked = Some(step);
            }
            self.outputs.push_back(Output::Changed);
            return;
        }
        let since = run.audits.good.map_or_else(String::new, |good| format!(" since step {}", good.0 + 1));
        let percent = (difference * 100.0).min(999.0);
        self.dismiss(
            id,
            "A micro-batch of this device was computed again on the host, and came out different.",
            &format!(
                "the host computed one of its micro-batches again, and it was off by {percent:.0} %; what was trained with it{since} \
                 may be worth less"
            ),
        );
    }
}

/// The norm of the difference over that of `right`; infinite where they are not even of the same shape, none where one
/// cannot be read.
fn difference(right: &Boundary, found: &Boundary) -> Option<f64> {
    if right.shape() != found.shape() {
        return Some(f64::INFINITY);
    }
    let (right, found) = (right.decode().ok()?, found.decode().ok()?);
    let square = |x: f32| f64::from(x) * f64::from(x);
    let norm: f64 = right.iter().map(|x| square(*x)).sum();
    let off: f64 = right.iter().zip(&found).map(|(a, b)| square(a - b)).sum();
    Some(if off == 0.0 { 0.0 } else { (off / norm).sqrt() })
}
