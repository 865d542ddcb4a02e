//! Steps: what the host's engine does next, when a step closes, and when it is committed.

use super::state::{Closing, End, HostNorm, Kind, OpenStep, Run, Timing};
use super::{Coordinator, Done, Drive, Job, Output, StepReport};
use crate::ids::{MicroBatch, PeerId, Step};
use crate::message::{BlockBytes, Message, Side};
use crate::schedule::Work;
use crate::stage::Failure;
use std::collections::BTreeSet;
use std::time::Duration;

impl Coordinator {
    pub(super) fn applied(&mut self, from: Option<PeerId>, step: Step, states: Vec<BlockBytes>) {
        let Some(run) = &mut self.run else { return };
        let Some(closing) = run.closing.as_mut().filter(|closing| closing.report.step == step) else {
            return;
        };
        if closing.waiting.remove(&from) {
            closing.states.extend(states);
            self.commit_if_complete();
        }
    }

    fn commit_if_complete(&mut self) {
        let Some(run) = &mut self.run else { return };
        let Some(closing) = run.closing.take_if(|closing| closing.waiting.is_empty()) else { return };
        Self::keep_for_audit(run, closing.report.step);
        run.states.extend(closing.states.into_iter().map(|state| (state.block, state)));
        run.committed = closing.report.step.next();
        run.neighbours_lost = 0;
        if let Some(begun) = closing.begun {
            run.longest_step = run.longest_step.max(self.now.saturating_sub(begun));
        }
        run.stir(self.now);
        let finished = run.committed.0 >= run.start.settings.steps;
        self.outputs.push_back(Output::Committed(closing.report));
        if run.judging {
            self.outputs.push_back(Output::Evaluate { done: run.committed });
        }
        self.watch_the_pace();
        self.resolve_doubt();
        if finished {
            self.end(End::Finished);
        }
        self.outputs.push_back(Output::Changed);
    }

    /// Does what can be done now: closes a step that is complete, and gives the idle engine its next job.
    pub(super) fn advance(&mut self) {
        self.mend_for_texts();
        self.close_step();
        self.move_if_ripe();
        self.time_links();
        if self.running.is_some() {
            return;
        }
        if let Some(measure) = self.own_measure() {
            self.running = Some((self.generation, Kind::Measure(measure.id), self.now));
            self.outputs.push_back(Output::Job(Job::Measure(Box::new(measure))));
            return;
        }
        let Some(run) = self.run.as_mut().filter(|run| run.survey.is_none()) else { return };
        let generation = run.plan.generation;
        if !run.host_loaded {
            // A run that waits for devices loads nothing meanwhile: the host may be too small for all of it.
            let waits = run.deserted.is_some() && run.end.is_none();
            if waits || (run.end.is_some() && run.infer_front.is_empty()) {
                return;
            }
            let blocks = run.plan.shape.host.clone();
            let own = blocks.clone().chain(run.plan.head.then_some(run.start.blocks));
            let states = own.filter_map(|block| run.states.get(&block).cloned()).collect();
            let (micro_batches, recompute) = (run.plan.micro_batches(), run.plan.recompute.0);
            // Alone it goes all the way with one before it takes the next.
            let alone = run.plan.stages().is_empty();
            let in_flight = if alone { 1 } else { run.open.front.limit().min(micro_batches) };
            let job = Job::Load { blocks, states, micro_batches, in_flight, recompute };
            self.running = Some((generation, Kind::Load, self.now));
            self.outputs.push_back(Output::Job(job));
            return;
        }
        if !self.run.as_ref().is_some_and(|run| self.is_loaded(run)) {
            return;
        }
        let Some(run) = &mut self.run else { return };
        if let Some((kind, job)) = Self::next_job(run, self.now) {
            if kind == Kind::Front(MicroBatch(0)) {
                self.open_audit();
            }
            self.running = Some((generation, kind, self.now));
            self.outputs.push_back(Output::Job(job));
        }
        self.close_step();
    }

    /// The head first, it feeds everybody's backward passes; then the host's own backward passes; then new work. Texts
    /// come where the host would wait, and between steps by a token each: a host that trains alone never waits.
    fn next_job(run: &mut Run, now: Duration) -> Option<(Kind, Job)> {
        let step = run.open.step;
        if run.end.is_none() {
            if let Some(closing) = run.closing.as_mut().filter(|closing| closing.host_applies) {
                closing.host_applies = false;
                let (lr, scale) = (closing.report.lr, closing.scale);
                return Some((Kind::Apply, Job::Apply { lr, scale }));
            }
            if matches!(run.timing, Timing::Asked { .. }) {
                return None;
            }
            if !run.open.has_begun()
                && let Some(job) = run.next_text()
            {
                return Some(job);
            }
            if let Some(tensor) = run.open.head.remove(&run.open.next_head) {
                let micro_batch = run.open.next_head;
                run.open.next_head = MicroBatch(micro_batch.0 + 1);
                return Some((Kind::Head(micro_batch), Job::Head { step, micro_batch, tensor }));
            }
            let trains = run.plan.host_trains();
            let go = run.drive == Drive::Go && run.deserted.is_none() && !run.judging;
            // A better plan begins with a step of its own.
            let go = go && !run.is_about_to_move() && matches!(run.timing, Timing::Known);
            let may_begin = go || run.open.has_begun();
            let in_range = step.0 < run.start.settings.steps;
            loop {
                let grads = &run.open.grads;
                match run.open.front.take(|_| may_begin && in_range, |m| grads.contains_key(&m)) {
                    Some(Work::Forward(micro_batch)) => {
                        run.open.begun.get_or_insert(now);
                        return Some((Kind::Front(micro_batch), Job::Front { step, micro_batch }));
                    }
                    Some(Work::Backward(micro_batch)) => {
                        if let Some(tensor) = run.open.grads.remove(&micro_batch).flatten().filter(|_| trains)
                        {
                            return Some((Kind::BackFront, Job::BackFront { micro_batch, tensor }));
                        }
                    }
                    None => break,
                }
            }
            if run.plan.host_updates()
                && run.open.front.is_flushed()
                && run.open.host_norm == HostNorm::Wanted
            {
                run.open.host_norm = HostNorm::Asked;
                return Some((Kind::GradNorm, Job::GradNorm));
            }
        }
        let text = run.next_text();
        text.or_else(|| Self::check_job(run, now).map(|job| (Kind::Check, job)))
    }

    /// When every gradient of the open step is added up and the step before it is committed, orders the update.
    fn close_step(&mut self) {
        let generation = self.generation;
        let Some(run) = self.run.as_mut().filter(|run| run.end.is_none() && run.closing.is_none()) else {
            return;
        };
        // Asked after every message, of a room of any size: what is cheap first.
        if !run.open.front.is_flushed() {
            return;
        }
        let stages = run.plan.stages().iter().map(|(id, _)| Some(*id));
        let participants = stages.chain(run.plan.host_updates().then_some(None));
        if !participants.clone().all(|who| run.open.norms.contains_key(&who)) {
            return;
        }
        let participants: BTreeSet<Option<PeerId>> = participants.collect();
        let step = run.open.step;
        // Added in pipeline order, so that the sum is the same in every run.
        let in_order = run.plan.stages().iter().map(|(id, _)| Some(*id)).chain([None]);
        let sum: f64 = in_order.filter_map(|who| run.open.norms.get(&who)).sum();
        let (loss, grad_norm) = (run.open.loss, sum.sqrt());
        if !(loss.is_finite() && grad_norm.is_finite()) {
            let reason = format!(
                "Step {} has a loss of {loss} and a gradient norm of {grad_norm}: the training diverged. \
                 A lower learning rate may help; the adapter of the step before is kept.",
                step.0 + 1
            );
            self.end(End::Failed(reason));
            return;
        }
        let settings = &run.start.settings;
        // As torch.nn.utils.clip_grad_norm_.
        let clip = settings.grad_clip;
        let scale = if clip > 0.0 { (clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        let lr = settings.lr_at(step.0);
        let report = StepReport { step, loss, lr, grad_norm, tokens: run.open.tokens };
        let host_applies = run.plan.host_updates();
        run.judging |= settings.evaluates_after(step.next().0);
        let begun = run.open.begun;
        let (waiting, states) = (participants, Vec::new());
        run.closing = Some(Closing { report, scale, host_applies, waiting, states, begun });
        run.open = OpenStep::new(step.next(), &run.plan);
        run.stir(self.now);
        let stages: Vec<PeerId> = run.plan.stages().iter().map(|(id, _)| *id).collect();
        for id in stages {
            self.send(id, Message::Apply { generation, step, lr, scale });
        }
    }

    pub(super) fn job_failed(&mut self, reason: String, failure: Failure) {
        let Some((generation, kind, _)) = self.running.take() else { return };
        match kind {
            Kind::InferFront(request) | Kind::InferHead(request) => {
                self.outputs.push_back(Output::Inferred { request, done: true });
            }
            Kind::Measure(id) if self.question.as_ref().is_none_or(|question| question.id != id) => {}
            _ if generation != self.generation => {}
            // It cannot be found out; that is no reason to stop.
            Kind::Check => self.checked(None),
            _ => match self.sender_of(kind).filter(|_| failure == Failure::Input) {
                Some(sender) => {
                    let farewell = format!("What this device sent to the host could not be used: {reason}");
                    let why = format!("what it sent could not be used: {reason}");
                    self.dismiss(sender, &farewell, &why);
                }
                None => self.host_failed(kind, reason),
            },
        }
    }

    /// Who sent what a job of the host works on.
    fn sender_of(&self, kind: Kind) -> Option<PeerId> {
        let stages = self.run.as_ref()?.plan.stages();
        match kind {
            Kind::Head(_) => stages.last().map(|(id, _)| *id),
            Kind::BackFront => stages.first().map(|(id, _)| *id),
            _ => None,
        }
    }

    fn host_failed(&mut self, kind: Kind, reason: String) {
        self.end(End::Failed(reason));
        // Without the ends no text can go on.
        if let Some(run) = self.run.as_mut().filter(|_| kind == Kind::Load) {
            for request in std::mem::take(&mut run.infer_front) {
                self.outputs.push_back(Output::Inferred { request, done: true });
            }
        }
    }

    pub(super) fn done(&mut self, done: Done) {
        let Some((generation, kind, since)) = self.running.take() else { return };
        let (current, now) = (self.generation, self.now);
        let done = match (kind, done) {
            (Kind::Measure(id), Done::Measure(profile)) => return self.measured_itself(id, *profile),
            (_, done) => done,
        };
        let Some(run) = self.run.as_mut() else { return };
        run.stir(now);
        if generation != current {
            // The plan changed under it. The token of a text is chosen all the same, or started again; everything else
            // is dropped.
            match (kind, done) {
                (Kind::InferHead(request), Done::InferHead { done }) => {
                    self.outputs.push_back(Output::Inferred { request, done });
                }
                (Kind::InferFront(request), _) => run.infer_front.push_back(request),
                _ => {}
            }
            return;
        }
        self.timed_itself(kind, now.saturating_sub(since));
        let Some(run) = self.run.as_mut() else { return };
        let step = run.open.step;
        let first = run.plan.stages().first().map(|(id, _)| *id);
        let last = run.plan.stages().last().map(|(id, _)| *id);
        match (kind, done) {
            (Kind::Load, Done::Load) => {
                run.host_loaded = true;
                self.loaded_if_complete();
            }
            (Kind::Check, Done::Check(again)) => self.checked(Some(&again)),
            (Kind::Front(micro_batch), Done::Front(tensor)) => match first {
                Some(to) => {
                    self.evidence(None, step, micro_batch, Side::Sent, &tensor);
                    self.send(to, Message::Forward { generation, step, micro_batch, tensor });
                }
                None => {
                    run.open.head.insert(micro_batch, tensor);
                }
            },
            (Kind::Head(micro_batch), Done::Head { loss, tokens, grad }) => {
                run.open.loss += loss;
                run.open.tokens += tokens;
                match last {
                    Some(to) => {
                        self.send(
                            to,
                            Message::Backward { generation, step, micro_batch, tensor: Some(grad) },
                        );
                    }
                    None => {
                        run.open.grads.insert(micro_batch, Some(grad));
                    }
                }
            }
            (Kind::GradNorm, Done::GradNorm(sum)) => {
                run.open.norms.insert(None, sum);
            }
            (Kind::Apply, Done::Apply(states)) => {
                if let Some(step) = run.closing.as_ref().map(|closing| closing.report.step) {
                    self.applied(None, step, states);
                }
            }
            (Kind::InferFront(request), Done::InferFront(tensor)) => match first {
                Some(to) => {
                    run.inferring.insert(request);
                    self.send(to, Message::Infer { generation, request, tensor });
                }
                None => run.infer_head.push_back((request, tensor)),
            },
            (Kind::InferHead(request), Done::InferHead { done }) => {
                self.outputs.push_back(Output::Inferred { request, done });
            }
            _ => {}
        }
    }
}
