//! Plans: the best one for who is there, the nearest one when somebody leaves, and the way from one to the next.
//!
//! A device that leaves is replaced at once, by a spare or by its neighbours, and all other devices keep their blocks:
//! the room goes on within a second. What that costs in balance is made up for later, between two steps, when every
//! device has ready what is new to it, and only if it is worth it.

use super::state::{Intent, OpenStep, Plan, Run, Shape, Timing, Warm};
use super::{Coordinator, Drive, Output, RoomState};
use crate::ids::{Generation, PeerId, StageIndex};
use crate::message::{Assign, Message};
use crate::run::Settings;
use baton_plan::even_split;
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

/// Where no times are known, a plan is left for another one only if its longest stage is as much shorter as this, ...
const WORTH: f64 = 0.9;
/// ... and at least so many steps are left to be made with it.
pub(super) const STEPS_LEFT: u32 = 2;
/// Another order of the same devices must be faster by this much.
pub(super) const REORDER: f64 = 0.8;
/// A device that would do its part is left without one only if all that is left of the run is shorter by so many seconds
/// without it: with a small model the way to another device takes longer than its work.
pub(super) const LEAVE_OUT: f64 = 60.0;
/// In a larger room the order of the devices is the one in which they came, and only their shares are chosen: the search
/// would take seconds.
const MOST_PLANNED: usize = 24;
/// Of two plans after a loss the one that keeps more is left for one with which the next steps are done in this share of the
/// time, ...
const SOONER: f64 = 0.9;
/// ... so many of them: a better-balanced plan follows.
const NEXT_STEPS: u32 = 2;
/// How often at most when somebody does.
const RECONSIDER: Duration = Duration::from_millis(500);
/// How often a better plan is looked for while nobody comes or goes.
const CONSIDER: Duration = Duration::from_secs(5);

impl Coordinator {
    /// The best plan for the devices that are there, whatever the one in force; or why there is none, in words.
    pub(super) fn design(&mut self) -> Result<Shape, String> {
        let Some(run) = &self.run else { return Ok(Shape::alone(0, 1)) };
        let (usable, mut all) = (self.usable(), self.usable());
        all.retain(|id| self.may_work(*id));
        if all.is_empty() && !usable.is_empty() {
            return Err("The devices that are here measure themselves before they are given work.".into());
        }
        // Who has a stage keeps its place in the ring.
        all.sort_by_key(|id| run.plan.position(*id).unwrap_or(usize::MAX));
        let rested = |id: &PeerId| self.peers.get(id).is_some_and(|peer| peer.rests_until <= self.now);
        let mut chosen: Vec<PeerId> = all.iter().copied().filter(rested).collect();
        if chosen.is_empty() {
            chosen.clone_from(&all);
        }
        if let Some(shape) = self.lightest(&chosen).or_else(|| self.lightest(&all)) {
            return Ok(shape);
        }
        if let Some(shape) = self.found_before(&chosen) {
            return Ok(shape);
        }
        let mut in_order = self.in_order(&chosen);
        let mut best = None;
        if chosen.len() <= MOST_PLANNED || !self.fits(&in_order) {
            best = self.planned(&chosen);
            if matches!(best, Some(Err(_))) && chosen.len() < all.len() {
                chosen = all;
                best = self.planned(&chosen);
                in_order = self.in_order(&chosen);
            }
        }
        let shape = match best {
            Some(Ok(best)) if self.is_much_faster(&best, &in_order) => best,
            Some(Err(words)) => return Err(words),
            _ => in_order,
        };
        self.keep_found(chosen, &shape);
        Ok(shape)
    }

    /// The devices in this order, each with so many blocks that the slowest stage is as fast as can be. Who would only hold
    /// the others up has one block all the same, unless the run is much shorter without: its owner came to take part.
    ///
    /// The host has a share of them if it may and that makes steps shorter by a tenth.
    fn in_order(&self, devices: &[PeerId]) -> Shape {
        let Some(run) = &self.run else { return Shape::alone(0, 1) };
        let (blocks, now) = (run.start.blocks, &run.plan.shape);
        let (micro_batches, ahead) = (now.micro_batches, now.ahead);
        let shape = |host: Range<u16>, split: Vec<Range<u16>>| {
            let stages = devices.iter().copied().zip(split).filter(|(_, blocks)| !blocks.is_empty());
            Shape { host, stages: stages.collect(), micro_batches, ahead }
        };
        if devices.is_empty() {
            return Shape::alone(blocks, micro_batches);
        }
        let Some(paces) = self.paces(devices) else {
            return shape(0..0, even_split(blocks, devices.len()));
        };
        let pace = |pace: f64, least| Share { pace, least, before: 0.0 };
        let split = |host: Option<Share>, least| {
            let shares = paces.iter().map(|[forward, backward]| pace(forward + backward, least));
            let mut ranges = split_by_pace(blocks, &host.into_iter().chain(shares).collect::<Vec<_>>());
            let host = if host.is_some() { ranges.remove(0) } else { 0..0 };
            shape(host, ranges)
        };
        let own = self.own_pace(run, devices).filter(|_| self.host_may_help(run));
        let host = own.map(|(pace, ends)| Share { pace, least: 0, before: ends });
        let best_of = |least| {
            let without = split(None, least);
            let with = host.map(|host| split(Some(host), least));
            match with {
                Some(with) if with != without && self.is_faster(&with, &without, WORTH) => with,
                _ => without,
            }
        };
        let (of_all, of_some) = (best_of(1), best_of(0));
        let best = if of_some != of_all && self.is_much_faster(&of_some, &of_all) { of_some } else { of_all };
        self.tuned(best)
    }

    /// Whether a plan that fits takes less than this share of the time of another one, or the other one does not fit.
    pub(super) fn is_faster(&self, new: &Shape, old: &Shape, share: f64) -> bool {
        let (Some(new), Some(old)) = (self.prediction(new), self.prediction(old)) else { return false };
        new.fits() && (!old.fits() || new.step < share * old.step)
    }

    /// Whether a plan is worth another order of the devices, which moves most of the blocks, or leaving some of them out,
    /// whose owners came to take part.
    fn is_much_faster(&self, new: &Shape, old: &Shape) -> bool {
        let (Some(faster), Some(slower)) = (self.prediction(new), self.prediction(old)) else { return false };
        let left = self.run.as_ref().map_or(0, Run::steps_left);
        let saved = (slower.step - faster.step) * f64::from(left);
        let leaves_out = new.stages.len() < old.stages.len();
        // Nobody comes to look on.
        if new.stages.is_empty() && !old.stages.is_empty() && slower.fits() {
            return false;
        }
        !slower.fits() || (faster.step < REORDER * slower.step && (!leaves_out || saved >= LEAVE_OUT))
    }

    /// The plan nearest to the one in force without the devices that are not there any more.
    fn mended(&mut self) -> Result<Shape, String> {
        let Some(run) = &self.run else { return self.design() };
        let usable = self.usable();
        let old = &run.plan.shape;
        if !old.stages.iter().any(|(id, _)| usable.contains(id)) {
            return self.design();
        }
        let filled = |ready_only: bool| {
            let mut spares: Vec<PeerId> = usable
                .iter()
                .copied()
                .filter(|id| old.position(*id).is_none() && self.may_work(*id))
                .collect();
            let mut stages: Vec<(Option<PeerId>, Range<u16>)> = old
                .stages
                .iter()
                .map(|(id, blocks)| (usable.contains(id).then_some(*id), blocks.clone()))
                .collect();
            for (owner, blocks) in stages.iter_mut().filter(|(owner, _)| owner.is_none()) {
                let is_ready = |id: &PeerId| self.peers.get(id).is_some_and(|peer| peer.has_ready(blocks));
                let fitness = |id: &PeerId| {
                    let rested = self.peers.get(id).is_some_and(|peer| peer.rests_until <= self.now);
                    // The first of equals.
                    (is_ready(id), rested, std::cmp::Reverse(*id))
                };
                let best = (0..spares.len()).max_by_key(|&index| fitness(&spares[index]));
                // One that still gets other blocks ready would have to finish that first: it comes in later.
                let is_free = |id: &PeerId| self.peers.get(id).is_some_and(|peer| !peer.is_warming());
                let best = best
                    .filter(|&index| is_free(&spares[index]) && (!ready_only || is_ready(&spares[index])));
                *owner = best.map(|index| spares.swap_remove(index));
            }
            stages
        };
        let mut nearest: Vec<Shape> = Vec::new();
        for stages in [filled(false), filled(true)] {
            for closing in [Closing::Halves, Closing::Before, Closing::After] {
                let shape = Shape { stages: close_gaps(stages.clone(), closing), ..old.clone() };
                if !nearest.contains(&shape) {
                    nearest.push(shape);
                }
            }
        }
        // With fewer micro-batches in flight one may fit.
        let shallow = nearest.iter().map(|shape| Shape { ahead: 0, ..shape.clone() });
        let fitting = |shapes: Vec<Shape>| self.soonest(shapes.into_iter().filter(|shape| self.fits(shape)));
        match fitting(nearest.clone()).or_else(|| fitting(shallow.collect())) {
            Some(shape) => Ok(shape),
            None => self.design(),
        }
    }

    /// Of plans that are near to the one in force the one under which the room has made the next few steps first: who has to
    /// fetch what is missing may do so over a slow line. The first, unless another one is sooner by a tenth.
    fn soonest(&self, mut shapes: impl Iterator<Item = Shape>) -> Option<Shape> {
        let mut best = shapes.next()?;
        let Some(mut least) = self.soon(&best) else { return Some(best) };
        for shape in shapes {
            if let Some(seconds) = self.soon(&shape).filter(|seconds| *seconds < SOONER * least) {
                (best, least) = (shape, seconds);
            }
        }
        Some(best)
    }

    /// Seconds until the next few steps are made under a plan, with all that has to be fetched first; none where too little is
    /// known to tell.
    fn soon(&self, shape: &Shape) -> Option<f64> {
        let steps = self.run.as_ref().map_or(0, Run::steps_left).min(NEXT_STEPS);
        Some(self.way_to(shape)? + f64::from(steps) * self.prediction(shape)?.step)
    }

    /// The plan in force has lost a device or a connection.
    pub(super) fn mend(&mut self) {
        match &mut self.run {
            Some(run) if run.end.is_some() => run.broken = true,
            Some(run) if run.survey.is_some() => {}
            Some(_) => match self.mended() {
                Ok(shape) => {
                    self.put(shape);
                    if let Some(run) = &mut self.run {
                        run.pace.mended = true;
                    }
                }
                Err(words) => self.wait_for_devices(words),
            },
            None => {}
        }
    }

    /// Who is there is not enough: the run stands still until a device comes, or a person goes on with the host alone.
    pub(super) fn wait_for_devices(&mut self, words: String) {
        let Some(run) = &mut self.run else { return };
        let alone = Shape::alone(run.start.blocks, run.plan.micro_batches());
        run.deserted.get_or_insert(words);
        self.put(alone);
        self.broadcast(RoomState::Paused);
    }

    pub(super) fn mend_for_texts(&mut self) {
        let Some(run) = &self.run else { return };
        let wanted = !(run.infer_front.is_empty() && run.inferring.is_empty());
        if run.broken && wanted {
            match self.mended() {
                Ok(shape) => self.put(shape),
                // Who is still measured may be able to.
                Err(_) if self.usable().into_iter().any(|id| !self.may_work(id)) => {}
                Err(_) => self.give_texts_up(),
            }
        }
    }

    /// Nobody is there who could go on with the texts.
    pub(super) fn give_texts_up(&mut self) {
        let Some(run) = &mut self.run else { return };
        let waiting =
            std::mem::take(&mut run.infer_front).into_iter().chain(std::mem::take(&mut run.inferring));
        for request in waiting {
            self.outputs.push_back(Output::Inferred { request, done: true });
        }
    }

    /// Somebody came or left: a better plan is looked for now.
    pub(super) fn reconsider(&mut self) {
        if let Some(run) = &mut self.run {
            // At once, but not for every word of a device that comes and goes.
            run.consider_at = run.consider_at.min(run.considered + RECONSIDER);
        }
        self.consider();
    }

    /// Looks for a better plan than the one in force, and has everybody get ready for it; keeps spares ready.
    pub(super) fn consider(&mut self) {
        let is_timed = |run: &Run| !matches!(run.timing, Timing::Asked { .. });
        let is_open =
            |run: &&Run| run.is_live() && run.deserted.is_none() && run.survey.is_none() && is_timed(run);
        let Some(run) = self.run.as_ref().filter(is_open) else { return };
        if run.intent.is_none() && self.now >= run.consider_at {
            // Once for each plan: in a room of 64 phones it takes two milliseconds.
            let expected = run.pace.expected.or_else(|| Some(self.prediction(&run.plan.shape)?.step));
            let wanted = self.design().ok();
            let worth =
                wanted.filter(|wanted| self.run.as_ref().is_some_and(|run| self.is_worth(run, wanted)));
            if let Some(run) = &mut self.run {
                run.consider_at = self.now + CONSIDER;
                run.considered = self.now;
                run.pace.expected = expected;
                if worth.is_some() {
                    run.moved = (run.committed, run.moved.1.saturating_add(1));
                }
            }
            if let Some(wanted) = worth {
                self.intend(wanted);
            }
        }
        for id in self.usable() {
            self.keep_ready(id);
        }
    }

    /// Whether a plan is worth moving to.
    fn is_worth(&self, run: &Run, wanted: &Shape) -> bool {
        let now = &run.plan.shape;
        if wanted.stages.is_empty() || wanted == now {
            return false;
        }
        if let Some(pays) = self.pays(run, wanted) {
            return pays;
        }
        // A host that trains alone is relieved by whoever comes.
        run.steps_left() > STEPS_LEFT && (now.stages.is_empty() || longest(wanted) < WORTH * longest(now))
    }

    /// Decides on a plan to come.
    fn intend(&mut self, shape: Shape) {
        let Some(run) = &mut self.run else { return };
        let is_new = |(id, blocks): &&(PeerId, Range<u16>)| {
            let has = |own: &Range<u16>| own.start <= blocks.start && blocks.end <= own.end;
            !run.plan.shape.blocks_of(*id).is_some_and(has)
                && !self.peers.get(id).is_some_and(|peer| peer.has_ready(blocks))
        };
        let waiting: BTreeSet<PeerId> = shape.stages.iter().filter(is_new).map(|(id, _)| *id).collect();
        run.intent = Some(Intent { shape, waiting, since: self.now });
    }

    /// Tells a device which blocks to have ready, if it does not know yet.
    fn keep_ready(&mut self, id: PeerId) {
        if self.peers.get(&id).is_none_or(|peer| peer.cannot_warm) || !self.may_work(id) {
            return;
        }
        let Some(run) = &self.run else { return };
        let intended = run.intent.as_ref().filter(|intent| intent.waiting.contains(&id));
        let blocks = match intended.and_then(|intent| intent.shape.blocks_of(id)) {
            Some(blocks) => blocks.clone(),
            None if run.plan.position(id).is_some() || run.plan.stages().is_empty() => return,
            None => match run.intent.as_ref().and_then(|intent| intent.shape.blocks_of(id)) {
                Some(blocks) => blocks.clone(),
                None => match self.riskiest_stage(id) {
                    Some(blocks) => blocks,
                    None => return,
                },
            },
        };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.warm.as_ref().is_some_and(|warm| warm.blocks == blocks) {
            return;
        }
        peer.warm = Some(Warm { blocks: blocks.clone(), done: false });
        (peer.progress, peer.stirred) = ((0, 0), self.now);
        if let Some(assign) = self.assign(blocks) {
            self.send(id, Message::Warm(Box::new(assign)));
        }
    }

    /// The blocks that a spare stands by for: of those that fit it, the ones of the device that dropped out most often,
    /// and among equals of the one with the most blocks, which take the longest to load.
    fn riskiest_stage(&self, spare: PeerId) -> Option<Range<u16>> {
        let run = self.run.as_ref()?;
        let stages = run.plan.stages();
        let strikes = |id: &PeerId| self.peers.get(id).map_or(0, |peer| peer.strikes);
        let takes_over = |position: usize| {
            let mut shape = run.plan.shape.clone();
            shape.stages[position].0 = spare;
            self.fits(&shape)
        };
        let risk = |position: &usize| {
            let (id, blocks) = &stages[*position];
            (strikes(id), blocks.len(), std::cmp::Reverse(*id))
        };
        let mut positions: Vec<usize> = (0..stages.len()).collect();
        positions.sort_by_key(|position| std::cmp::Reverse(risk(position)));
        positions
            .into_iter()
            .find(|position| takes_over(*position))
            .map(|position| stages[position].1.clone())
    }

    /// A device has ready what it was told to.
    pub(super) fn warmed(&mut self, from: PeerId, blocks: &Range<u16>) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Some(warm) = peer.warm.as_mut().filter(|warm| warm.blocks == *blocks) else { return };
        warm.done = true;
        self.outputs.push_back(Output::Changed);
        if let Some(intent) = self.run.as_mut().and_then(|run| run.intent.as_mut())
            && intent.shape.blocks_of(from) == Some(blocks)
        {
            intent.waiting.remove(&from);
        }
    }

    /// Puts the better plan in force that everybody is ready for, if no step is under way.
    pub(super) fn move_if_ripe(&mut self) {
        let Some(run) = &self.run else { return };
        if run.is_live() && run.is_about_to_move() && run.is_between_steps() && self.is_loaded(run) {
            let intent = self.run.as_mut().and_then(|run| run.intent.take());
            if let Some(intent) = intent {
                self.put(intent.shape);
            }
        }
    }

    /// An assignment of blocks to nobody in particular.
    fn assign(&self, blocks: Range<u16>) -> Option<Assign> {
        let run = self.run.as_ref()?;
        Some(Assign {
            generation: self.generation,
            stage: StageIndex(0),
            stages: 1,
            blocks,
            // The host is known to a stage by the number under which it joined; PeerId::HOST stands for it here.
            prev: PeerId::HOST,
            next: PeerId::HOST,
            prev_trains: false,
            step: run.committed,
            settings: Settings {
                micro_batches: run.plan.micro_batches(),
                ahead: run.plan.shape.ahead,
                ..run.start.settings.clone()
            },
            source: run.start.source.clone(),
            config: run.start.config.clone(),
            manifest: run.start.manifest.clone(),
            states: Vec::new(),
        })
    }

    /// Puts a plan in force, from what was committed last.
    pub(super) fn put(&mut self, shape: Shape) {
        self.generation = Generation(self.generation.0 + 1);
        let (generation, now) = (self.generation, self.now);
        let recompute = self.recomputing(&shape);
        let Some(run) = &mut self.run else { return };
        run.plan = Plan { generation, shape, recompute, head: run.start.head };
        run.intent = None;
        run.open = OpenStep::new(run.committed, &run.plan);
        (run.timing, run.pace.expected, run.pace.steady) = (Timing::Known, None, false);
        // A judgement that was due after a step that is undone comes again with it; one that was asked for goes on.
        run.judging &= run.closing.take().is_none();
        (run.host_loaded, run.broken, run.audit) = (false, false, None);
        run.infer_front.extend(std::mem::take(&mut run.infer_head).into_iter().map(|(request, _)| request));
        run.infer_front.extend(std::mem::take(&mut run.inferring));
        run.stir(now);
        self.host_progress = (0, 0);
        let stages = run.plan.stages().to_vec();
        let (host_trains, recomputes) = (run.plan.host_trains(), run.plan.recompute.1.clone());
        let id_at = |index: usize| stages.get(index).map(|(id, _)| *id);
        for (index, (id, blocks)) in stages.iter().enumerate() {
            let Some(mut assign) = self.assign(blocks.clone()) else { return };
            let prev = index.checked_sub(1).and_then(id_at);
            assign.stage = StageIndex(u16::try_from(index).unwrap_or(u16::MAX));
            assign.stages = u16::try_from(stages.len()).unwrap_or(u16::MAX);
            assign.prev = prev.unwrap_or(PeerId::HOST);
            assign.next = id_at(index + 1).unwrap_or(PeerId::HOST);
            assign.prev_trains = prev.is_some() || host_trains;
            assign.settings.recompute = recomputes.get(index).copied().unwrap_or(false);
            let states = self.run.iter().flat_map(|run| run.states.range(blocks.clone()));
            assign.states = states.map(|(_, state)| state.clone()).collect();
            if let Some(peer) = self.peers.get_mut(id) {
                (peer.progress, peer.stirred, peer.warm) = ((0, 0), now, None);
                peer.fresh = false;
            }
            self.send(*id, Message::Assign(Box::new(assign)));
        }
        self.outputs.push_back(Output::Changed);
    }

    pub(super) fn loaded_if_complete(&mut self) {
        let Some(run) = self.run.as_ref().filter(|run| run.is_live() && self.is_loaded(run)) else {
            return;
        };
        let now = self.now;
        if matches!(run.timing, Timing::Asked { .. }) || self.time_new_links() {
            // It is heard of when they are timed: nobody works meanwhile.
            return;
        }
        let Some(run) = &self.run else { return };
        let before = run.committed == run.start.committed;
        let ask = run.judging && before && run.closing.is_none() && !run.asked_before;
        match run.drive {
            _ if run.deserted.is_some() => self.broadcast(RoomState::Paused),
            Drive::Held if !run.judging => self.outputs.push_back(Output::Loaded),
            Drive::Held => {}
            Drive::Go => self.broadcast(RoomState::Running),
            Drive::Paused => self.broadcast(RoomState::Paused),
        }
        if let Some(run) = &mut self.run {
            run.stir(now);
            if ask {
                run.asked_before = true;
                self.outputs.push_back(Output::Evaluate { done: run.committed });
            }
        }
        self.outputs.push_back(Output::Changed);
    }
}

/// Blocks of the longest stage.
fn longest(shape: &Shape) -> f64 {
    let most = shape.stages.iter().map(|(_, blocks)| blocks.len()).max().unwrap_or(0);
    most.max(shape.host.len()) as f64
}

/// What a device has of a step's work.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// Seconds a block.
    pace: f64,
    /// Blocks that it has at least.
    least: u16,
    /// Seconds of what else it does.
    before: f64,
}

/// Cuts blocks in stages, so that the slowest is as fast as can be, and each device has the least that it is to have; if there
/// are not enough, the fastest devices. Each block goes to the device that would be done with it first.
fn split_by_pace(blocks: u16, shares: &[Share]) -> Vec<Range<u16>> {
    let mut lens = vec![0; shares.len()];
    let mut fastest: Vec<usize> = (0..shares.len()).collect();
    fastest.sort_by(|a, b| shares[*a].pace.total_cmp(&shares[*b].pace));
    let mut left = blocks;
    for device in fastest {
        lens[device] = shares[device].least.min(left);
        left -= lens[device];
    }
    for _ in 0..left {
        let done = |at: &usize| shares[*at].before + (f64::from(lens[*at]) + 1.0) * shares[*at].pace;
        if let Some(first) = (0..shares.len()).min_by(|a, b| done(a).total_cmp(&done(b))) {
            lens[first] += 1;
        }
    }
    let mut start = 0;
    let range = |len: u16| {
        start += len;
        start - len..start
    };
    lens.into_iter().map(range).collect()
}

/// Who has the blocks of stages without an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    /// The stages beside them, so that these end up as even as they can.
    Halves,
    /// The one before.
    Before,
    /// The one after.
    After,
}

/// Gives the blocks of stages without an owner to the stages beside them.
fn close_gaps(stages: Vec<(Option<PeerId>, Range<u16>)>, closing: Closing) -> Vec<(PeerId, Range<u16>)> {
    let mut closed: Vec<(PeerId, Range<u16>)> = Vec::with_capacity(stages.len());
    let mut gap: Option<Range<u16>> = None;
    for (owner, blocks) in stages {
        let Some(owner) = owner else {
            gap = Some(gap.map_or(blocks.clone(), |gap| gap.start..blocks.end));
            continue;
        };
        let mut own = blocks;
        if let Some(gap) = gap.take() {
            match closed.last_mut() {
                Some((_, before)) => {
                    let middle = match closing {
                        Closing::Halves => {
                            let wanted = before.start + (own.end - before.start) / 2;
                            wanted.clamp(gap.start, gap.end)
                        }
                        Closing::Before => gap.end,
                        Closing::After => gap.start,
                    };
                    (before.end, own.start) = (middle, middle);
                }
                None => own.start = gap.start,
            }
        }
        closed.push((owner, own));
    }
    if let (Some(gap), Some((_, last))) = (gap, closed.last_mut()) {
        last.end = gap.end;
    }
    closed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_closed_by_who_is_beside_them_as_evenly_as_can_be() {
        let (a, b, c) = (PeerId(1), PeerId(2), PeerId(3));
        let close = |stages: &[(Option<PeerId>, Range<u16>)]| close_gaps(stages.to_vec(), Closing::Halves);
        assert_eq!(close(&[(Some(a), 0..4), (None, 4..8), (Some(c), 8..12)]), [(a, 0..6), (c, 6..12)]);
        assert_eq!(close(&[(Some(a), 0..6), (None, 6..8), (Some(c), 8..9)]), [(a, 0..6), (c, 6..9)]);
        assert_eq!(close(&[(None, 0..2), (None, 2..4), (Some(c), 4..5)]), [(c, 0..5)]);
        assert_eq!(close(&[(Some(a), 0..1), (None, 1..2), (None, 2..7)]), [(a, 0..7)]);
        let stages = [(Some(a), 0..2), (None, 2..3), (Some(b), 3..5), (None, 5..9), (Some(c), 9..11)];
        assert_eq!(close(&stages), [(a, 0..2), (b, 2..6), (c, 6..11)]);
        assert_eq!(close_gaps(stages.to_vec(), Closing::Before), [(a, 0..3), (b, 3..9), (c, 9..11)]);
        assert_eq!(close_gaps(stages.to_vec(), Closing::After), [(a, 0..2), (b, 2..5), (c, 5..11)]);
    }
}
