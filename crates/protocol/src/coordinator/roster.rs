//! Who is in the room: who comes, goes, falls silent, is sent away, and who is to blame.

use super::state::{Doubt, End, Peer};
use super::{Coordinator, Output, short};
use crate::ids::PeerId;
use crate::link::Lane;
use crate::message::{Fault, Message};
use crate::pulse::Presence;

/// How often one plan may lose the connection between two neighbours before the one behind it is left out.
const NEIGHBOUR_RETRIES: u8 = 3;
/// How often a device may call what others send unreadable before it is the one that is not believed.
const ACCUSATIONS: u8 = 2;

impl Coordinator {
    pub(super) fn linked_peers(&self) -> Vec<PeerId> {
        self.peers.iter().filter(|(_, peer)| peer.control).map(|(id, _)| *id).collect()
    }

    /// Who can be given work, in the order in which they joined.
    pub(super) fn usable(&self) -> Vec<PeerId> {
        self.peers.iter().filter(|(_, peer)| peer.is_usable()).map(|(id, _)| *id).collect()
    }

    pub(super) fn linked(&mut self, id: PeerId, lane: Lane) {
        let now = self.now;
        let peer = self.peers.entry(id).or_insert_with(|| Peer::new(now));
        peer.heard = now;
        match lane {
            Lane::Control => peer.control = true,
            Lane::Bulk => peer.bulk = true,
        }
        self.outputs.push_back(Output::Changed);
        self.probe();
        self.came();
    }

    /// Somebody may have become usable. A run that waits for lack of devices goes on with whoever it is.
    pub(super) fn came(&mut self) {
        self.measure_newcomers();
        let waits = self.run.as_ref().is_some_and(|run| run.is_live() && run.deserted.is_some());
        if waits && self.usable().into_iter().any(|id| self.may_work(id)) {
            if let Some(run) = &mut self.run {
                run.deserted = None;
            }
            self.mend();
        }
        self.reconsider();
    }

    pub(super) fn presence(&mut self, id: PeerId, presence: Presence) {
        let now = self.now;
        // Its pulse may be heard before its lanes are open.
        let peer = self.peers.entry(id).or_insert_with(|| Peer::new(now));
        let was_usable = peer.is_usable();
        if std::mem::replace(&mut peer.presence, presence) == presence {
            return;
        }
        self.outputs.push_back(Output::Changed);
        let reason = match presence {
            Presence::Present => {
                peer.fresh = true;
                // It may have come back another way.
                if !peer.is_measuring() {
                    peer.probe.again();
                }
                self.forget_links(id);
                self.probe();
                return self.came();
            }
            Presence::Hidden => "its page is hidden or its screen locked",
            Presence::Drained => "its battery is nearly empty",
            Presence::Silent => "it is not heard any more",
        };
        if was_usable {
            self.dropped_out(id, reason);
        }
    }

    /// A device is out of the room for good.
    pub(super) fn lost(&mut self, id: PeerId, reason: &str) {
        let Some(peer) = self.peers.remove(&id) else { return };
        self.forget_links(id);
        self.outputs.push_back(Output::Changed);
        if let Some(device) = &peer.device {
            self.outputs.push_back(Output::Left { device: device.name.clone(), reason: reason.into() });
        }
        let name = peer.device.map_or_else(|| format!("device {id}"), |device| device.name);
        self.gone_from_the_plan(id, &name, reason);
    }

    /// A device stays in the room and can be given no work for now.
    fn dropped_out(&mut self, id: PeerId, reason: &str) {
        let (name, now) = (self.name(id), self.now);
        let employed = self.run.as_ref().is_some_and(|run| run.is_live() && run.plan.position(id).is_some());
        if let Some(peer) = self.peers.get_mut(&id) {
            // Whatever it has loaded may be gone when it wakes up.
            peer.warm = None;
            if employed {
                peer.strike(now);
                self.outputs.push_back(Output::Left { device: name.clone(), reason: reason.into() });
            }
        }
        self.gone_from_the_plan(id, &name, reason);
    }

    fn gone_from_the_plan(&mut self, id: PeerId, name: &str, reason: &str) {
        let nobody_left = !self.usable().into_iter().any(|id| self.may_work(id));
        self.survey_if_complete();
        let Some(run) = &mut self.run else { return };
        if run.intent.as_ref().is_some_and(|intent| intent.shape.position(id).is_some()) {
            run.intent = None;
        }
        if run.plan.position(id).is_none() {
            return;
        }
        if run.is_live() && nobody_left {
            let or_alone = || "Let one join, or resume to go on with this device alone.".into();
            let words = self.too_small_alone().unwrap_or_else(or_alone);
            if let Some(run) = &mut self.run {
                run.deserted = Some(format!("{name} left ({reason}) and no other device is ready. {words}"));
            }
        }
        self.mend();
        self.reconsider();
    }

    /// Whether all is known of a device that must be known before it is given work.
    pub(super) fn may_work(&self, id: PeerId) -> bool {
        self.run.as_ref().is_some_and(|run| run.start.profile.is_none()) || self.is_surveyed(id)
    }

    /// What a person calls a device.
    pub(super) fn name(&self, id: PeerId) -> String {
        let device = self.peers.get(&id).and_then(|peer| peer.device.as_ref());
        device.map_or_else(|| format!("device {id}"), |device| device.name.clone())
    }

    /// Sends a device away.
    pub(super) fn dismiss(&mut self, peer: PeerId, farewell: &str, reason: &str) {
        self.send(peer, Message::Goodbye { reason: farewell.into() });
        self.outputs.push_back(Output::Disconnect { peer });
        self.lost(peer, reason);
    }

    /// Two neighbours lost each other, and both still reach the host: plan again, and leave the one out that keeps
    /// being unreachable.
    pub(super) fn neighbour_lost(&mut self, from: PeerId, peer: PeerId) {
        let Some(run) = &mut self.run else { return };
        let positions = (run.plan.position(from), run.plan.position(peer));
        if !matches!(positions, (Some(a), Some(b)) if a.abs_diff(b) == 1) {
            return;
        }
        run.neighbours_lost += 1;
        if run.neighbours_lost > NEIGHBOUR_RETRIES {
            run.neighbours_lost = 0;
            self.dismiss(
                peer,
                "The other devices cannot reach this one directly.",
                "its neighbours cannot reach it",
            );
        } else {
            // The new connection may go another way.
            self.wires.remove(&(from, peer));
            self.wires.remove(&(peer, from));
            self.mend();
        }
    }

    /// A device says that it cannot go on.
    pub(super) fn failed(&mut self, from: PeerId, reason: &str, fault: Fault) {
        match fault {
            Fault::Diverged => self.diverged(from, reason),
            Fault::Input(accused) if self.believes(from, accused) => {
                let accuser = self.name(from);
                let farewell = format!("What this device sent could not be used by {accuser}: {reason}");
                let why = format!("what it sent to {accuser} could not be used: {reason}");
                self.dismiss(accused, &farewell, &why);
            }
            Fault::Device | Fault::Input(_) if self.was_only_warming(from) => {
                // It could not take what it was to have ready: that is no reason to send it away.
                let now = self.now;
                if let Some(peer) = self.peers.get_mut(&from) {
                    (peer.warm, peer.cannot_warm) = (None, true);
                    peer.strike(now);
                }
                if let Some(run) = &mut self.run {
                    run.intent.take_if(|intent| intent.shape.position(from).is_some());
                }
                self.outputs.push_back(Output::Changed);
            }
            Fault::Device | Fault::Input(_) => {
                self.dismiss(from, &format!("This device could not go on: {reason}"), reason);
            }
        }
    }

    fn was_only_warming(&self, id: PeerId) -> bool {
        let has_stage = self.run.as_ref().is_some_and(|run| run.plan.position(id).is_some());
        !has_stage && self.peers.get(&id).is_some_and(|peer| peer.warm.is_some())
    }

    /// Whether a device that calls what another one sent unusable is believed: the other one must be its neighbour, and
    /// not the host; and a device that says so again and again is itself the one that cannot read.
    fn believes(&mut self, accuser: PeerId, accused: PeerId) -> bool {
        let plan = self.run.as_ref().map(|run| &run.plan);
        let positions = plan.map(|plan| (plan.position(accuser), plan.position(accused)));
        let adjacent = matches!(positions, Some((Some(a), Some(b))) if a.abs_diff(b) == 1);
        let Some(peer) = self.peers.get_mut(&accuser) else { return false };
        peer.accusations = peer.accusations.saturating_add(1);
        adjacent && peer.accusations <= ACCUSATIONS
    }

    /// A device's numbers are infinite or not a number. Another device would get the same if the training diverged: the
    /// step is made once more without it, and whoever is right shows then.
    pub(super) fn diverged(&mut self, from: PeerId, reason: &str) {
        let name = self.name(from);
        let words = format!(
            "The training diverged on {name}: {}. A lower learning rate may help; the adapter of the last complete step is \
             kept.",
            short(reason)
        );
        let others = self.usable().into_iter().any(|peer| peer != from);
        let Some(run) = self.run.as_mut().filter(|run| run.is_live()) else { return };
        if run.plan.position(from).is_none() {
            // It has no part in the step, and nothing to say of it.
            return;
        }
        if !others || run.doubt.is_some() {
            return self.end(End::Failed(words));
        }
        run.doubt = Some(Doubt { step: run.open.step, suspect: from });
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.suspended = true;
        }
        self.mend();
        if self.run.as_ref().is_some_and(|run| run.deserted.is_some()) {
            // Nobody else has the memory for its part: it cannot be found out.
            self.drop_doubt();
            self.end(End::Failed(words));
        }
    }

    /// Nobody will find out any more whether a device was to blame: it is not.
    pub(super) fn drop_doubt(&mut self) {
        let doubt = self.run.as_mut().and_then(|run| run.doubt.take());
        if let Some(peer) = doubt.and_then(|doubt| self.peers.get_mut(&doubt.suspect)) {
            peer.suspended = false;
        }
    }

    /// The step that was made again is complete without the device in doubt: the training has not diverged.
    pub(super) fn resolve_doubt(&mut self) {
        let Some(run) = &mut self.run else { return };
        if let Some(doubt) = run.doubt.take_if(|doubt| doubt.step.0 < run.committed.0) {
            self.dismiss(
                doubt.suspect,
                "The numbers of this device were infinite or none, and those of another device in its place were not.",
                "its numbers were infinite or none, and those of another device in its place were not",
            );
        }
    }
}
