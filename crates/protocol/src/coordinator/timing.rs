//! When links are timed in the middle of a run: those between two stages when a plan has them side by side for the first time, and
//! all of a plan when its steps take much longer than the times of the devices and their links say.
//!
//! Both while no step is under way: an engine at work answers late, and its link would look slow.

use super::state::{Round, Run, Shape, Timing};
use super::{Coordinator, Output};
use crate::ids::{Generation, PeerId};
use crate::message::Message;
use baton_plan::{LinkProfile, Wire};
use std::collections::VecDeque;
use std::time::Duration;

/// No round of links that are timed takes longer.
const LONGEST: Duration = Duration::from_secs(12);
/// A step is late that takes so many times what the planner expects, ...
const LATE: f64 = 1.5;
/// ... and so many seconds more.
const SLACK: f64 = 0.1;
/// So many in a row are no accident.
const IN_A_ROW: u8 = 3;
/// A plan that takes less than this share of the time is not waited for until the next step is over.
const FAR_BETTER: f64 = 0.6;
/// So many plans in a row are put in force without a step between them.
const MOST_PLANS: u8 = 3;
/// Not sooner than this after a run began, or after all links were timed; each time twice as long.
const SOONEST: Duration = Duration::from_secs(30);
/// No answer takes longer, in seconds.
const FAR: f64 = 60.0;

impl Coordinator {
    /// Stages that are followed by another one, and that one.
    fn neighbours(run: &Run) -> impl Iterator<Item = (PeerId, PeerId)> + '_ {
        let stages = run.plan.stages();
        stages.iter().zip(stages.iter().skip(1)).map(|((from, _), (to, _))| (*from, *to))
    }

    /// A plan is loaded: links that are used for the first time are timed before its first step.
    pub(super) fn time_new_links(&mut self) {
        let known = |run: &&Run| run.start.profile.is_some() && run.is_between_steps();
        let Some(run) = self.run.as_ref().filter(known) else { return };
        let rounds = self.rounds(run, |pair| !self.wires.contains_key(pair));
        self.time(rounds);
    }

    /// Every second stage, then the others: two links of one device would be in each other's way.
    fn rounds(&self, run: &Run, is_wanted: impl Fn(&(PeerId, PeerId)) -> bool) -> VecDeque<Round> {
        let round = |first| {
            let stages = Self::neighbours(run).skip(first).step_by(2).filter(&is_wanted);
            Round::Stages(stages.map(|(from, _)| from).collect())
        };
        let is_empty = |round: &Round| matches!(round, Round::Stages(stages) if stages.is_empty());
        [round(0), round(1)].into_iter().filter(|round| !is_empty(round)).collect()
    }

    /// A step is committed: are they late?
    pub(super) fn watch_the_pace(&mut self) {
        let now = self.now;
        let Some(run) = &mut self.run else { return };
        let took = now.saturating_sub(run.pace.committed).as_secs_f64();
        (run.pace.committed, run.pace.plans) = (now, 0);
        let expected = run.pace.expected.filter(|_| run.pace.steady);
        run.pace.steady = true;
        let is_late = expected.is_some_and(|expected| took > LATE * expected + SLACK);
        run.pace.late = if is_late { run.pace.late.saturating_add(1) } else { 0 };
        if run.pace.late >= IN_A_ROW && now >= run.pace.not_before && matches!(run.timing, Timing::Known) {
            run.pace.late = 0;
            run.pace.patience = run.pace.patience.max(SOONEST) * 2;
            run.pace.not_before = now + run.pace.patience;
            run.timing = Timing::Due;
        }
    }

    /// Times all links of the plan if that is due and no step is under way; ends it when all have answered, or for lack of
    /// patience.
    pub(super) fn time_links(&mut self) {
        let Some(run) = self.run.as_ref().filter(|run| run.is_live() && run.survey.is_none()) else { return };
        match &run.timing {
            Timing::Known => {}
            Timing::Due if run.is_between_steps() && self.is_loaded(run) => {
                let mut rounds = self.rounds(run, |_| true);
                rounds.push_back(Round::Host);
                self.time(rounds);
            }
            Timing::Due => {}
            Timing::Asked { since, rounds } => {
                let known =
                    |(id, _): &(PeerId, _)| self.peers.get(id).is_none_or(|peer| peer.probe.is_known());
                let is_over = match rounds.front() {
                    Some(Round::Stages(waiting)) => waiting.is_empty(),
                    Some(Round::Host) => run.plan.stages().iter().all(known),
                    None => true,
                };
                if is_over || self.now >= *since + LONGEST {
                    self.next_round();
                }
            }
        }
    }

    fn next_round(&mut self) {
        let Some(run) = &mut self.run else { return };
        let Timing::Asked { rounds, .. } = &mut run.timing else { return };
        rounds.pop_front();
        let left = std::mem::take(rounds);
        if left.is_empty() { self.timed_links() } else { self.time(left) }
    }

    /// Begins the first of these rounds.
    fn time(&mut self, rounds: VecDeque<Round>) {
        let (generation, since) = (self.generation, self.now);
        let Some(run) = &mut self.run else { return };
        match rounds.front() {
            None => return,
            Some(Round::Stages(stages)) => {
                for id in stages {
                    let message = Message::TimeLink { generation };
                    self.outputs.push_back(Output::Send { to: *id, message });
                }
            }
            Some(Round::Host) => {
                for (id, _) in run.plan.stages() {
                    if let Some(peer) = self.peers.get_mut(id) {
                        peer.probe.again();
                    }
                }
            }
        }
        run.stir(since);
        run.timing = Timing::Asked { since, rounds };
        self.probe();
    }

    /// What is known now may make another plan the best.
    fn timed_links(&mut self) {
        let now = self.now;
        let Some(run) = &mut self.run else { return };
        (run.timing, run.answer, run.pace.steady) = (Timing::Known, None, false);
        run.stir(now);
        // No step is under way: what is far better is put in force before the next one begins, and not beside it.
        // A plan over links that nobody knows looks good: after some of them the room goes on with what it has.
        let far_better = (run.pace.plans < MOST_PLANS).then(|| self.design().ok()).flatten();
        match far_better.filter(|wanted| self.beats_the_plan(wanted, FAR_BETTER)) {
            Some(wanted) => {
                if let Some(run) = &mut self.run {
                    run.pace.plans += 1;
                }
                self.put(wanted);
            }
            None => self.reconsider(),
        }
    }

    /// Whether a plan takes less than this share of the time of the one in force.
    fn beats_the_plan(&self, wanted: &Shape, share: f64) -> bool {
        let now = self.run.as_ref().and_then(|run| self.prediction(&run.plan.shape));
        let (Some(now), Some(wanted)) = (now, self.prediction(wanted)) else { return false };
        wanted.fits() && wanted.step < share * now.step
    }

    /// A stage has timed its link to the next one.
    pub(super) fn link_timed(&mut self, from: PeerId, generation: Generation, link: LinkProfile) {
        let Some(run) = self.run.as_mut().filter(|_| generation == self.generation) else { return };
        let Timing::Asked { rounds, .. } = &mut run.timing else { return };
        let Some(Round::Stages(waiting)) = rounds.front_mut() else { return };
        if !waiting.remove(&from) {
            return;
        }
        let next = Self::neighbours(run).find(|(sender, _)| *sender == from).map(|(_, next)| next);
        let can_be = |rate: f64| rate.is_finite() && rate > 0.0;
        let near = (0.0..=FAR).contains(&link.round_trip);
        if let Some(next) = next.filter(|_| near && can_be(link.up) && can_be(link.down)) {
            let wire = |bandwidth| Wire { bandwidth, round_trip: link.round_trip };
            self.wires.insert((from, next), wire(link.down));
            self.wires.insert((next, from), wire(link.up));
        }
    }

    /// A device is gone, or came back, maybe another way.
    pub(super) fn forget_links(&mut self, id: PeerId) {
        self.wires.retain(|(from, to), _| *from != id && *to != id);
    }
}
