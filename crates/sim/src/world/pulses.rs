//! The idle threads of a room: pulses between the host and each device while their engines compute, and what they tell
//! the machines.

use super::{Event, HOST, World};
use crate::engine::Model;
use baton_protocol::PeerId;
use baton_protocol::link::Lane;
use baton_protocol::pulse::{Monitor, Output, Pulse};
use baton_protocol::{coordinator, stage};

impl<M: Model> World<M> {
    /// Starts a device's idle thread.
    pub(super) fn watch(&mut self, who: PeerId) {
        self.monitors.insert(who, Monitor::new(self.now));
        self.schedule(self.now, Event::Beat(who));
    }

    pub(super) fn beat(&mut self, who: PeerId) {
        let Some(monitor) = self.monitors.get_mut(&who) else { return };
        monitor.handle_timeout(self.now);
        let due = monitor.poll_timeout();
        self.schedule(due, Event::Beat(who));
        self.monitor_outputs(who);
    }

    pub(super) fn pulse(&mut self, from: PeerId, to: PeerId, pulse: Pulse) {
        let Some(monitor) = self.monitors.get_mut(&to) else { return };
        monitor.receive(from, &pulse.to_bytes(), self.now);
        self.monitor_outputs(to);
    }

    /// A device's page is hidden, or looked at again.
    pub(super) fn show(&mut self, who: PeerId, hidden: bool) {
        if hidden {
            self.hidden.insert(who);
        } else {
            self.hidden.remove(&who);
        }
        if let Some(monitor) = self.monitors.get_mut(&who) {
            monitor.tell();
        }
        self.monitor_outputs(who);
    }

    fn monitor_outputs(&mut self, who: PeerId) {
        while let Some(output) = self.monitors.get_mut(&who).and_then(Monitor::poll) {
            match output {
                Output::Pulse if who == HOST => {
                    let others: Vec<PeerId> =
                        self.monitors.keys().copied().filter(|id| *id != HOST).collect();
                    others.into_iter().for_each(|to| self.send_pulse(HOST, to));
                }
                Output::Pulse => self.send_pulse(who, HOST),
                Output::Presence { peer, presence } if who == HOST => {
                    self.host(coordinator::Event::Presence { peer, presence });
                }
                Output::Presence { peer: HOST, presence } => {
                    self.stage(who, stage::Event::Presence(presence));
                }
                Output::Presence { .. } => {}
            }
        }
    }

    fn send_pulse(&mut self, from: PeerId, to: PeerId) {
        // Over a channel of its own on the connection that the control lane uses; a pulse that is late is not made up for.
        let conn = self.newest(from, to, Lane::Control);
        let Some(delay) = conn.and_then(|conn| self.delay(conn, from, to)) else { return };
        let pulse = Pulse { hidden: self.hidden.contains(&from), ..Pulse::default() };
        self.schedule(self.now + delay, Event::Pulse { from, to, pulse });
    }
}
