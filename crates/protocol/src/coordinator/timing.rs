//! When links are timed in the middle of a run: those between two stages that were not timed lately, and all of a plan when its
//! steps take much longer than the times of the devices and their links say.
//!
//! Only while nobody works: an engine at work answers late, and its link would look slow. So new links are timed when a plan is
//! loaded, before the shell hears of it; after a loss, which is not to cost more time, when the first step is done.

use super::room::FAR_OFF;
use super::state::{Round, Run, Shape, TimedWire, Timing};
use super::{Coordinator, Output};
use crate::ids::{Generation, PeerId};
use crate::message::Message;
use baton_plan::{LinkProfile, Wire};
use std::collections::VecDeque;
use std::time::Duration;

/// No round of links that are timed takes longer...
const LONGEST: Duration = Duration::from_secs(12);
/// ... and a link that was not timed by then counts as this.
const NO_ANSWER: LinkProfile = LinkProfile { up: 1e3, down: 1e3, round_trip: 12.0 };
/// What was found of a link is believed for so long: a neighbour that was only busy is not avoided for ever.
const EXPIRES: Duration = Duration::from_secs(600);
/// A step is late that takes so many times what the planner expects, ...
const LATE: f64 = 1.5;
/// ... and so many seconds more.
const SLACK: f64 = 0.1;
/// So many in a row are no accident.
const IN_A_ROW: u8 = 3;
/// All links are timed again so long after they were at the soonest; each time twice as long.
const SOONEST: Duration = Duration::from_secs(60);
/// So many plans in a row are put in force without a step between them.
const MOST_PLANS: u8 = 2;
/// No answer takes longer, in seconds.
const FAR: f64 = 60.0;

impl Coordinator {
    /// Stages that are followed by another one, and that one.
    fn neighbours(run: &Run) -> impl Iterator<Item = (PeerId, PeerId)> + '_ {
        let stages = run.plan.stages();
        stages.iter().zip(stages.iter().skip(1)).map(|((from, _), (to, _))| (*from, *to))
    }

    /// Whether the link between two stages was timed lately.
    pub(super) fn is_timed(&self, pair: &(PeerId, PeerId)) -> bool {
        self.wires.get(pair).is_some_and(|timed| self.now < timed.at + EXPIRES)
    }

    /// A plan is loaded: times links that were not before its first step, unless that cannot wait. Whether it does.
    pub(super) fn time_new_links(&mut self) -> bool {
        let can_wait = |run: &&Run| {
            run.start.profile.is_some() && run.is_between_steps() && run.is_live() && !run.pace.mended
        };
        let Some(run) = self.run.as_ref().filter(can_wait) else { return false };
        let rounds = self.rounds(run, |pair| !self.is_timed(pair));
        self.time(rounds)
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

    /// A step is committed: are links to be timed before the next one?
    pub(super) fn watch_the_pace(&mut self) {
        let now = self.now;
        let Some(run) = &mut self.run else { return };
        let took = now.saturating_sub(run.pace.committed).as_secs_f64();
        (run.pace.committed, run.pace.plans) = (now, 0);
        let expected = run.pace.expected.filter(|_| run.pace.steady);
        run.pace.steady = true;
        let is_late = expected.is_some_and(|expected| took > LATE * expected + SLACK);
        run.pace.late = if is_late { run.pace.late.saturating_add(1) } else { 0 };
        if !matches!(run.timing, Timing::Known) {
            return;
        }
        let (late, may) = (run.pace.late >= IN_A_ROW, now >= run.pace.not_before);
        if late && may && !run.pace.mended {
            // The devices may have become slower, which is no matter of the links.
            let shape = run.plan.shape.clone();
            let expected = self.prediction(&shape).map(|prediction| prediction.step);
            let Some(run) = &mut self.run else { return };
            (run.pace.expected, run.pace.late) = (expected, 0);
            if expected.is_some_and(|expected| took > LATE * expected + SLACK) {
                run.pace.patience = (run.pace.patience * 2).max(SOONEST);
                run.pace.not_before = now + run.pace.patience;
                run.timing = Timing::Due { all: true };
            }
            return;
        }
        if std::mem::take(&mut run.pace.mended) && run.start.profile.is_some() {
            run.timing = Timing::Due { all: false };
        }
    }

    /// Times links if that is due and nobody works; ends a round when all have answered, or for lack of patience.
    pub(super) fn time_links(&mut self) {
        let Some(run) = self.run.as_ref().filter(|run| run.is_live() && run.survey.is_none()) else { return };
        let texts = run.infer_front.len() + run.infer_head.len() + run.inferring.len();
        match &run.timing {
            Timing::Known => {}
            Timing::Due { all } => {
                let nobody_works =
                    run.is_between_steps() && self.running.is_none() && !run.judging && texts == 0;
                if nobody_works && self.is_loaded(run) {
                    let mut rounds = self.rounds(run, |pair| *all || !self.is_timed(pair));
                    if *all {
                        rounds.push_back(Round::Host);
                    }
                    if !self.time(rounds)
                        && let Some(run) = &mut self.run
                    {
                        run.timing = Timing::Known;
                    }
                }
            }
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
        let over = rounds.pop_front();
        let left = std::mem::take(rounds);
        match over {
            Some(Round::Stages(waiting)) => {
                for id in waiting {
                    self.note(id, NO_ANSWER);
                }
            }
            // In a large room not all have their turn; a probe beside the work would say that they are slow.
            Some(Round::Host) => self.peers.values_mut().for_each(|peer| peer.probe.leave()),
            None => {}
        }
        if !self.time(left) {
            self.timed_links();
        }
    }

    /// Begins the first of these rounds, if there is one.
    fn time(&mut self, rounds: VecDeque<Round>) -> bool {
        let (generation, since) = (self.generation, self.now);
        let Some(run) = &mut self.run else { return false };
        match rounds.front() {
            None => return false,
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
        true
    }

    /// What is known now may make another plan the best.
    fn timed_links(&mut self) {
        let now = self.now;
        let Some(run) = &mut self.run else { return };
        // An intent was made with what was known before.
        (run.timing, run.answer, run.intent, run.pace.steady) = (Timing::Known, None, None, false);
        run.stir(now);
        // Nobody works: what is far better is put in force before the next step, and not beside it. A plan over links that
        // nobody knows looks good: after some of them the room goes on with what it has.
        let may_try = run.pace.plans < MOST_PLANS;
        let wanted = if may_try { self.design().ok() } else { None };
        match wanted.filter(|wanted| self.is_far_better(wanted)) {
            Some(wanted) => {
                if let Some(run) = &mut self.run {
                    run.pace.plans += 1;
                    run.moved = (run.committed, run.moved.1.saturating_add(1));
                }
                self.put(wanted);
            }
            None => {
                self.loaded_if_complete();
                self.reconsider();
            }
        }
    }

    /// Whether a plan takes much less than the time of the one in force, and the way to it pays.
    fn is_far_better(&self, wanted: &Shape) -> bool {
        let Some(run) = &self.run else { return false };
        self.is_faster(wanted, &run.plan.shape, FAR_OFF) && self.pays(run, wanted) == Some(true)
    }

    /// A stage has timed its link to the next one.
    pub(super) fn link_timed(&mut self, from: PeerId, generation: Generation, link: LinkProfile) {
        let Some(run) = self.run.as_mut().filter(|_| generation == self.generation) else { return };
        // What nobody waits for may have been found while somebody worked, or be made up.
        if let Timing::Asked { rounds, .. } = &mut run.timing
            && let Some(Round::Stages(waiting)) = rounds.front_mut()
            && waiting.remove(&from)
        {
            self.note(from, link);
        }
    }

    /// Takes down the link of a stage to the next one, there and back.
    fn note(&mut self, from: PeerId, link: LinkProfile) {
        let at = self.now;
        let Some(run) = &self.run else { return };
        let next = Self::neighbours(run).find(|(sender, _)| *sender == from).map(|(_, next)| next);
        let can_be = |rate: f64| rate.is_finite() && rate > 0.0;
        let near = (0.0..=FAR).contains(&link.round_trip);
        // What cannot be is no answer, and is not asked for again.
        let LinkProfile { up, down, round_trip } =
            if near && can_be(link.up) && can_be(link.down) { link } else { NO_ANSWER };
        if let Some(next) = next {
            let timed = |bandwidth| TimedWire { wire: Wire { bandwidth, round_trip }, at };
            self.wires.insert((from, next), timed(down));
            self.wires.insert((next, from), timed(up));
        }
    }

    /// A device is gone, or came back, maybe another way.
    pub(super) fn forget_links(&mut self, id: PeerId) {
        self.wires.retain(|(from, to), _| *from != id && *to != id);
    }
}
