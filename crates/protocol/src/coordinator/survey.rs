//! What the room can do, measured: links when a device greets, devices on the model's own blocks before anything is
//! fetched, and both kept up to date by the run itself.

use super::room::whole;
use super::state::{Compute, End, Kind, Own, Run, Shape, Survey};
use super::{Coordinator, Output};
use crate::ids::PeerId;
use crate::message::{Measure, Message, Times};
use baton_plan::{Curve, DeviceIndex, DeviceProfile, HostProfile, JobKind, Node, Tracker};
use std::time::Duration;

/// Links that are timed at a time.
const AT_ONCE: usize = 4;
/// How long a run waits for devices that measure themselves, if another one has.
const PATIENCE: Duration = Duration::from_secs(20);
/// A device that has not measured itself by then is sent away.
pub(super) const LONGEST: Duration = Duration::from_secs(90);
/// A device that needs longer than this for a pass of a block, in seconds, is of no use to anybody.
const SLOWEST: f64 = 3600.0;
/// No pass of a block is as short as this, in seconds: what a device says below it is taken for it.
const SHORTEST: f64 = 1e-6;

impl Coordinator {
    /// Times the links that were not yet, some at a time: they share the host's own.
    pub(super) fn probe(&mut self) {
        let now = self.now;
        self.peers.values_mut().for_each(|peer| peer.probe.gives_up(now));
        let asked = self.peers.values().filter(|peer| peer.probe.is_asked()).count();
        let wanted =
            |(id, peer): (&PeerId, &super::Peer)| (peer.is_usable() && peer.probe.is_wanted()).then_some(*id);
        let next: Vec<PeerId> =
            self.peers.iter().filter_map(wanted).take(AT_ONCE.saturating_sub(asked)).collect();
        for id in next {
            self.questions = self.questions.wrapping_add(1);
            let question = self.questions;
            if let Some(message) = self.peers.get_mut(&id).map(|peer| peer.probe.ask(question, now)) {
                self.send(id, message);
            }
        }
    }

    /// A probe came back.
    pub(super) fn probed(&mut self, from: PeerId, id: u32) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let was_asked = peer.probe.is_asked();
        if let Some(message) = peer.probe.hear(id, now) {
            self.send(from, message);
        } else if was_asked && !peer.probe.is_asked() {
            self.outputs.push_back(Output::Changed);
            self.measure_newcomers();
            self.probe();
        }
    }

    /// Begins a run by having everybody measure themselves for it, if the planner is to know of it.
    pub(super) fn survey(&mut self) {
        let Some(run) = &self.run else { return };
        let Some(most) = whole(run) else {
            let designed = self.design();
            return self.begin(designed);
        };
        let (config, settings) = (run.start.config.clone(), run.start.settings.clone());
        let question = Measure { id: self.questions.wrapping_add(1), config, settings, most };
        if !self.question.as_ref().is_some_and(|old| old.is_like(&question)) {
            self.questions = question.id;
            (self.question, self.own) = (Some(question), None);
        }
        let host = self.own.is_none();
        if let Some(run) = &mut self.run {
            run.survey = Some(Survey { since: self.now, host });
        }
        self.measure_newcomers();
        self.survey_if_complete();
    }

    /// Has every device measure itself that has not for this run.
    pub(super) fn measure_newcomers(&mut self) {
        // After the run too: its model writes texts in the same room.
        let planned = self.run.as_ref().is_some_and(|run| run.start.profile.is_some());
        let Some(question) = self.question.as_ref().filter(|_| planned) else { return };
        let (id, since) = (question.id, self.now);
        // While it measures itself its link could not be timed.
        let is_new = |peer: &super::Peer| {
            peer.is_usable()
                && peer.probe.is_known()
                && !peer.compute.answers(id)
                && !peer.compute.is_asked(id)
        };
        let newcomers: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| is_new(peer)).map(|(id, _)| *id).collect();
        for newcomer in newcomers {
            let Some(question) = self.question.clone() else { return };
            if let Some(peer) = self.peers.get_mut(&newcomer) {
                peer.compute = Compute::Asked { id, since };
            }
            self.send(newcomer, Message::Measure(Box::new(question)));
            self.outputs.push_back(Output::Changed);
        }
    }

    /// A device has measured itself, or could not.
    pub(super) fn measured(&mut self, from: PeerId, id: u32, profile: Result<Box<DeviceProfile>, String>) {
        let samples = self.run.as_ref().map_or(1, |run| run.samples());
        let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.compute.is_asked(id)) else { return };
        let most = self.question.as_ref().map_or(0, |question| question.most);
        match profile.map(|profile| plausible(*profile, samples, most)) {
            Ok(Some(profile)) => {
                peer.compute = Compute::Known { id, tracker: Tracker::new(profile) };
                self.outputs.push_back(Output::Changed);
                self.survey_if_complete();
                self.came();
            }
            Ok(None) => self.dismiss(
                from,
                "This device measured times that cannot be.",
                "the times that it measured cannot be",
            ),
            Err(reason) => {
                let reason = super::short(&reason);
                self.dismiss(from, &format!("This device cannot take part: {reason}"), &reason);
            }
        }
    }

    /// The host has measured itself.
    pub(super) fn measured_itself(&mut self, id: u32, profile: HostProfile) {
        if self.question.as_ref().is_none_or(|question| question.id != id) {
            return;
        }
        let samples = self.run.as_ref().map_or(1, Run::samples);
        let HostProfile { device, front, head } = profile;
        self.own =
            plausible(device, samples, u64::MAX).map(|device| Own::new(HostProfile { device, front, head }));
        if let Some(survey) = self.run.as_mut().and_then(|run| run.survey.as_mut()) {
            survey.host = false;
        }
        self.survey_if_complete();
    }

    /// Whether the run in force knows how fast this device is.
    pub(super) fn is_surveyed(&self, id: PeerId) -> bool {
        let question = self.question.as_ref().map(|question| question.id);
        self.peers.get(&id).is_some_and(|peer| question.is_some_and(|id| peer.compute.answers(id)))
    }

    /// Plans and begins when everybody has measured themselves, or when who has not is not waited for any more.
    pub(super) fn survey_if_complete(&mut self) {
        let Some(run) = self.run.as_ref().filter(|run| run.is_live()) else { return };
        let Some(survey) = &run.survey else { return };
        let (host, since) = (survey.host, survey.since);
        let asked = self.question.as_ref().map(|question| question.id);
        let asked = |peer: &super::Peer| asked.is_some_and(|id| peer.compute.is_asked(id));
        let (usable, soon) = (self.usable(), self.now < since + PATIENCE);
        let known = usable.iter().filter(|id| self.is_surveyed(**id)).count();
        let measures = known < usable.len() || self.peers.values().any(asked);
        let away = self.peers.values().any(|peer| peer.device.is_some() && !peer.is_usable());
        if host || (measures && (known == 0 || soon)) || (known == 0 && away && soon) {
            return;
        }
        match self.design() {
            // Who still measures itself may be what it lacks.
            Err(_) if measures => {}
            Err(words) if away || run_goes_on(self.run.as_ref()) => {
                self.over_with_the_survey();
                self.wait_for_devices(words);
            }
            designed => {
                self.over_with_the_survey();
                self.begin(designed);
            }
        }
    }

    fn over_with_the_survey(&mut self) {
        if let Some(run) = &mut self.run {
            run.survey = None;
        }
    }

    /// The first plan of a run, or why there is none.
    fn begin(&mut self, designed: Result<Shape, String>) {
        match designed {
            Ok(shape) => {
                self.put(shape);
                if self.run.as_ref().is_some_and(|run| run.committed.0 >= run.start.settings.steps) {
                    self.end(End::Finished);
                }
            }
            Err(reason) => self.end(End::Failed(reason)),
        }
    }

    /// Sends away who does not measure itself.
    pub(super) fn dismiss_the_unmeasured(&mut self) {
        let now = self.now;
        let is_late =
            |compute: &Compute| matches!(compute, Compute::Asked { since, .. } if now >= *since + LONGEST);
        let late: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| is_late(&peer.compute)).map(|(id, _)| *id).collect();
        for id in late {
            let words = format!("it did not measure itself within {} seconds", LONGEST.as_secs());
            self.dismiss(id, "This device did not measure itself in time.", &words);
        }
        self.probe();
        self.measure_newcomers();
        self.survey_if_complete();
    }

    /// What the passes of a step took a stage.
    pub(super) fn timed(&mut self, from: PeerId, times: &Times) {
        let Some(run) = &self.run else { return };
        let Some(blocks) = run.plan.shape.blocks_of(from) else { return };
        let blocks = blocks.len() as f64;
        let recompute = run.plan.position(from).is_some_and(|position| run.plan.recomputes(position));
        let (samples, most) = (run.samples(), usize::from(run.plan.micro_batches()));
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if peer.compute.tracker().is_none() {
            let question = self.question.as_ref().map_or(0, |question| question.id);
            let Some(profile) = from_a_step(times, samples, blocks, recompute) else { return };
            peer.compute = Compute::Known { id: question, tracker: Tracker::new(profile) };
        }
        let Compute::Known { tracker, .. } = &mut peer.compute else { return };
        for time in times.forward.iter().take(most) {
            tracker.observe(JobKind::Forward, blocks, samples, time.as_secs_f64());
        }
        for time in times.backward.iter().take(most) {
            tracker.observe(JobKind::Backward { recompute }, blocks, samples, time.as_secs_f64());
        }
    }

    /// What a pass of the host's own blocks took, the ends among it.
    pub(super) fn timed_itself(&mut self, kind: Kind, took: Duration) {
        let (Some(run), Some(own)) = (&self.run, &mut self.own) else { return };
        let (blocks, samples) = (run.plan.shape.host.len() as f64, run.samples());
        if blocks == 0.0 {
            return;
        }
        match kind {
            Kind::Front(_) => {
                let seconds = (took.as_secs_f64() - own.front.at(samples)).max(0.0);
                own.tracker.observe(JobKind::Forward, blocks, samples, seconds);
            }
            Kind::BackFront => {
                let recompute = run.plan.recompute.0;
                let seconds = took.as_secs_f64();
                own.tracker.observe(JobKind::Backward { recompute }, blocks, samples, seconds);
            }
            _ => {}
        }
    }

    /// What a person calls an end of a wire: `devices` are those of the room that was planned for.
    pub(super) fn name_of(&self, node: Node, devices: &[PeerId]) -> String {
        match node {
            Node::Host => "this device".into(),
            Node::Device(DeviceIndex(index)) => {
                devices.get(usize::from(index)).map_or_else(|| node.to_string(), |id| self.name(*id))
            }
        }
    }

    /// What the host has to measure itself on before anything else.
    pub(super) fn own_measure(&self) -> Option<Measure> {
        let run = self.run.as_ref().filter(|run| run.is_live())?;
        let wanted = run.survey.as_ref().is_some_and(|survey| survey.host);
        self.question.as_ref().filter(|_| wanted).cloned()
    }
}

/// Whether a run was begun before, by a page that is gone.
fn run_goes_on(run: Option<&Run>) -> bool {
    run.is_some_and(|run| run.start.committed.0 > 0)
}

/// A profile of what a step took, for a device that did not measure itself.
fn from_a_step(times: &Times, samples: u32, blocks: f64, recompute: bool) -> Option<DeviceProfile> {
    let median = |times: &[Duration]| {
        let mut seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        seconds.sort_by(f64::total_cmp);
        Some(seconds.get(seconds.len() / 2)? / blocks)
    };
    let (forward, backward) = (median(&times.forward)?, median(&times.backward)?);
    let again = if recompute { forward } else { 0.0 };
    let profile = DeviceProfile {
        memory: u64::MAX,
        forward: Curve::new([(samples, forward)]).ok()?,
        backward: Curve::new([(samples, (backward - again).max(0.0))]).ok()?,
        update: 0.0,
        slowness: 1.0,
    };
    plausible(profile, samples, u64::MAX)
}

/// What came from the network, if it can be: no time of a pass is none, or the device would be given everything and its
/// own times in the run could not be compared with it.
fn plausible(profile: DeviceProfile, samples: u32, most: u64) -> Option<DeviceProfile> {
    let times = [profile.update, profile.forward.at(samples), profile.backward.at(samples)];
    if !times.iter().all(|time| (0.0..=SLOWEST).contains(time)) {
        return None;
    }
    let mended = |curve: Curve| {
        let time = curve.at(samples);
        if time >= SHORTEST { Some(curve) } else { Curve::new([(samples, SHORTEST)]).ok() }
    };
    Some(DeviceProfile {
        forward: mended(profile.forward)?,
        backward: mended(profile.backward)?,
        slowness: 1.0,
        memory: profile.memory.min(most),
        ..profile
    })
}
