//! Who does nothing: silent devices, and those that are heard and do not get on with their work.

use super::state::{Compute, Inquiry, Run, Timing};
use super::{Coordinator, Output};
use crate::ids::{PeerId, Step};
use crate::message::{Counts, Message};
use crate::schedule::Schedule;
use crate::stage::SILENCE;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a device that loads may show no progress.
const LOAD_PATIENCE: Duration = Duration::from_secs(120);
/// How long nothing may move before the first step is complete.
const FIRST_PATIENCE: Duration = Duration::from_secs(300);
/// How long nothing may move beyond three times the longest step.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a stage has to answer how far it is; one that computes answers late.
const ANSWER: Duration = Duration::from_secs(30);

impl Coordinator {
    /// This side slept for so long.
    pub(super) fn forgive(&mut self, late: Duration) {
        let now = self.now;
        for peer in self.peers.values_mut() {
            peer.heard = (peer.heard + late).min(now);
            peer.stirred = (peer.stirred + late).min(now);
            peer.probe.forgive(late, now);
            if let Compute::Asked { since, .. } = &mut peer.compute {
                *since = (*since + late).min(now);
            }
        }
        if let Some(run) = &mut self.run {
            run.stirred = (run.stirred + late).min(now);
            run.pace.committed = (run.pace.committed + late).min(now);
            if let Timing::Asked { since, .. } = &mut run.timing {
                *since = (*since + late).min(now);
            }
            if let Some(survey) = &mut run.survey {
                survey.since = (survey.since + late).min(now);
            }
            if let Some(inquiry) = &mut run.inquiry {
                inquiry.since = (inquiry.since + late).min(now);
            }
        }
    }

    pub(super) fn dismiss_the_silent(&mut self) {
        let is_silent = |heard: Duration| self.now >= heard + SILENCE;
        let silent: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| is_silent(peer.heard)).map(|(id, _)| *id).collect();
        for peer in silent {
            self.outputs.push_back(Output::Disconnect { peer });
            self.lost(peer, &format!("it was silent for {} seconds", SILENCE.as_secs()));
        }
    }

    /// Sends away who holds the others up: a device that loads nothing, or a stage that does not do its part.
    pub(super) fn dismiss_the_idle(&mut self) {
        self.drop_stuck_intent();
        let Some(run) = &self.run else { return };
        if self.running.is_some() || run.broken || run.survey.is_some() {
            return;
        }
        if !self.is_loaded(run) {
            let generation = self.generation;
            let stuck = run.plan.stages().iter().map(|(id, _)| *id).find(|id| {
                let peer = self.peers.get(id);
                peer.is_some_and(|peer| {
                    peer.ready != Some(generation) && self.now >= peer.stirred + LOAD_PATIENCE
                })
            });
            if let (Some(peer), true) = (stuck, run.is_live()) {
                let words = format!("it loaded nothing for {} seconds", LOAD_PATIENCE.as_secs());
                self.dismiss(peer, "This device did not get on with loading its blocks.", &words);
            }
            return;
        }
        let works = self.is_stepping(run) && run.is_live() || !run.inferring.is_empty();
        if !works || run.plan.stages().is_empty() {
            return;
        }
        let patience = match run.longest_step {
            Duration::ZERO => FIRST_PATIENCE,
            longest => longest * 3 + PATIENCE,
        };
        match &run.inquiry {
            None if self.now >= run.stirred + patience => {
                let (generation, now) = (self.generation, self.now);
                let stages: Vec<PeerId> = run.plan.stages().iter().map(|(id, _)| *id).collect();
                if let Some(run) = &mut self.run {
                    run.inquiry = Some(Inquiry { since: now, answers: BTreeMap::new() });
                }
                for peer in stages {
                    self.send(peer, Message::Ask { generation });
                }
            }
            Some(inquiry) if self.now >= inquiry.since + ANSWER => self.blame(),
            _ => {}
        }
    }

    /// Gives a better plan up that waits for a device which does not get ready: the others are planned with again.
    fn drop_stuck_intent(&mut self) {
        let Some(run) = &mut self.run else { return };
        let (now, peers) = (self.now, &self.peers);
        let is_stuck = |id: &PeerId| peers.get(id).is_none_or(|peer| now >= peer.stirred + LOAD_PATIENCE);
        let stuck = run.intent.as_ref().filter(|intent| now >= intent.since + LOAD_PATIENCE);
        let Some(stuck) =
            stuck.map(|intent| intent.waiting.iter().copied().filter(is_stuck).collect::<Vec<_>>())
        else {
            return;
        };
        if !stuck.is_empty() {
            run.intent = None;
            for id in stuck {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.warm = None;
                    peer.strike(now);
                }
            }
        }
    }

    /// A stage says how far it is.
    pub(super) fn answered(&mut self, from: PeerId, step: Step, counts: Counts) {
        let Some(run) = self.run.as_mut().filter(|run| run.plan.position(from).is_some()) else { return };
        if let Some(inquiry) = &mut run.inquiry {
            inquiry.answers.insert(from, (step, counts));
        }
    }

    /// Finds who does not do its part from what the stages said, in the order of the pipeline: the first one that has
    /// what it needs and does nothing with it, or says nothing; or two between which something was lost.
    fn blame(&mut self) {
        let Some(run) = &mut self.run else { return };
        let Some(Inquiry { answers, .. }) = run.inquiry.take() else { return };
        run.stirred = self.now;
        let stages = run.plan.stages();
        let positions = u16::try_from(stages.len()).unwrap_or(u16::MAX).saturating_add(2);
        let micro_batches = run.plan.micro_batches();
        let closing = run.closing.as_ref().map(|closing| (closing.report.step, &closing.waiting));
        let mut idle = None;
        let mut cut = None;
        let (mut sent, mut before) = (run.open.front.taken().0, None);
        for (position, (id, _)) in (1..).zip(stages) {
            let Some((step, counts)) = answers.get(id) else {
                idle = Some(*id);
                break;
            };
            // It has the order to update, or the host's word for it was lost on the way.
            if closing.is_some_and(|(closing, waiting)| closing == *step && waiting.contains(&Some(*id))) {
                idle = Some(*id);
                break;
            }
            if *step != run.open.step {
                // A step that is open nowhere, or one that it has completed and says it has not.
                idle = Some(*id);
                break;
            }
            let room = Schedule::new(position, positions.saturating_add(run.plan.shape.ahead), micro_batches)
                .limit();
            let has_room = counts.forwards_out.saturating_sub(counts.backwards_out) < room;
            let finished = counts.backwards_out >= micro_batches && !run.open.norms.contains_key(&Some(*id));
            if (counts.forwards_in > counts.forwards_out && has_room)
                || counts.backwards_in > counts.backwards_out
                || finished
            {
                idle = Some(*id);
                break;
            }
            if counts.forwards_in < sent {
                // Between the host and the first stage nothing gets lost without a word.
                match before {
                    Some(before) => cut = Some((before, *id)),
                    None => idle = Some(*id),
                }
                break;
            }
            (sent, before) = (counts.forwards_out, Some(*id));
        }
        if idle.is_none() && cut.is_none() {
            (idle, cut) = lost_on_the_way(run, &answers);
        }
        match (idle, cut) {
            (Some(peer), _) => self.dismiss(
                peer,
                "This device did not get on with its work, and the others waited for it.",
                "it did not get on with its work",
            ),
            (None, Some((a, b))) => self.neighbour_lost(a, b),
            // What went missing went missing between others; a new plan starts the step afresh.
            (None, None) => self.mend(),
        }
    }
}

/// Who lost what the stages say they sent, if all of them did their part: hidden states on the way to the host, or
/// gradients on the way back. Between the host and a stage nothing gets lost without a word: that stage never sent it, or
/// dropped it. Between two stages it may be either: the two of them.
fn lost_on_the_way(
    run: &Run,
    answers: &BTreeMap<PeerId, (Step, Counts)>,
) -> (Option<PeerId>, Option<(PeerId, PeerId)>) {
    let counts = |id: &PeerId| answers.get(id).map(|(_, counts)| *counts).unwrap_or_default();
    let stages = run.plan.stages();
    let (Some((first, _)), Some((last, _))) = (stages.first(), stages.last()) else { return (None, None) };
    let count = |waiting: usize| u16::try_from(waiting).unwrap_or(u16::MAX);
    let arrived = run.open.next_head.0.saturating_add(count(run.open.head.len()));
    // A pass that is being computed counts as begun: one more than has arrived is nothing.
    if counts(last).forwards_out > arrived.saturating_add(1) {
        return (Some(*last), None);
    }
    let (mut sent, mut behind) = (run.open.next_head.0, None);
    for (id, _) in stages.iter().rev() {
        let being_computed = u16::from(behind.is_some());
        if counts(id).backwards_in.saturating_add(being_computed) < sent {
            return match behind {
                Some(behind) => (None, Some((*id, behind))),
                None => (Some(*id), None),
            };
        }
        (sent, behind) = (counts(id).backwards_out, Some(*id));
    }
    let returned = run.open.front.taken().1.saturating_add(count(run.open.grads.len()));
    ((counts(first).backwards_out > returned.saturating_add(1)).then_some(*first), None)
}
