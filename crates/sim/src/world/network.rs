//! The connections of a room: framed by the protocol's own links, ordered and reliable, late as their model says.

use super::{Event, HOST, World};
use crate::engine::Model;
use crate::violation::Violation;
use baton_protocol::PeerId;
use baton_protocol::link::{Lane, Link};
use baton_protocol::message::Message;
use rand::Rng;
use std::time::Duration;

/// Messages of the past that may come again.
const HISTORY: usize = 300;

/// One channel between two members.
#[derive(Debug)]
pub(super) struct Conn {
    members: [PeerId; 2],
    pub(super) lane: Lane,
    ends: [End; 2],
    /// Frames on the way arrive.
    alive: bool,
    /// Nothing new is put on it.
    closed: bool,
}

impl Conn {
    pub(super) fn is_of(&self, member: PeerId) -> bool {
        self.members.contains(&member)
    }

    pub(super) fn delay_towards(&mut self, member: PeerId, delay: Duration) {
        let side = usize::from(self.members[1] == member);
        self.ends[side].delay = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
    }
}

#[derive(Debug)]
struct End {
    link: Link,
    attached: bool,
    /// When the last frame towards this end arrives.
    last: Duration,
    /// Of a frame towards this end, in µs.
    delay: u64,
}

impl<M: Model> World<M> {
    pub(super) fn open(&mut self, a: PeerId, b: PeerId, lane: Lane) -> usize {
        let conn = self.conns.len();
        let max = self.scenario.max_delay;
        let mut end = || {
            let delay = self.rng.random_range(0..=max);
            End { link: Link::new(), attached: false, last: Duration::ZERO, delay }
        };
        let ends = [end(), end()];
        self.conns.push(Conn { members: [a, b], lane, ends, alive: true, closed: false });
        self.newest.insert((a.min(b), a.max(b), lane), conn);
        for side in 0..2 {
            let wait = Duration::from_micros(self.rng.random_range(0..=max * 4));
            self.schedule(self.now + wait, Event::Attach { conn, side });
        }
        conn
    }

    /// What a side's own end of a connection is called: (itself, the other).
    pub(super) fn seen_from(&self, conn: usize, side: usize) -> [PeerId; 2] {
        let members = self.conns[conn].members;
        [members[side], members[1 - side]]
    }

    /// A shell uses the newest connection to a member, and forgets the ones before it.
    pub(super) fn newest(&self, a: PeerId, b: PeerId, lane: Lane) -> Option<usize> {
        self.newest.get(&(a.min(b), a.max(b), lane)).copied()
    }

    pub(super) fn is_open(&self, conn: usize, side: usize) -> bool {
        self.conns[conn].alive && self.conns[conn].ends[side].link.is_open()
    }

    pub(super) fn attach(&mut self, conn: usize, side: usize) {
        self.conns[conn].ends[side].attached = true;
        self.pump(conn);
    }

    /// Nothing arrives any more, and nobody is told.
    pub(super) fn silence(&mut self, conn: usize) {
        self.conns[conn].alive = false;
    }

    pub(super) fn broken(&mut self, conn: usize, side: usize) {
        let [me, other] = self.seen_from(conn, side);
        if self.newest(me, other, self.conns[conn].lane) == Some(conn) {
            self.lost(me, other, "the connection broke");
        }
    }

    pub(super) fn break_conn(&mut self, conn: usize, seconds: u64) {
        if std::mem::replace(&mut self.conns[conn].alive, false) {
            for side in 0..2 {
                self.schedule_within(seconds, Event::Broken { conn, side });
            }
        }
    }

    /// A shell closes when what was sent before is through, on both lanes.
    pub(super) fn close(&mut self, me: PeerId, other: PeerId) {
        let lanes = [Lane::Control, Lane::Bulk];
        let mut closing: Vec<usize> = lanes.iter().filter_map(|lane| self.newest(me, other, *lane)).collect();
        closing.retain(|conn| !std::mem::replace(&mut self.conns[*conn].closed, true));
        let side = |conn: &Conn| usize::from(conn.members[1] == other);
        let through = closing.iter().map(|&conn| self.conns[conn].ends[side(&self.conns[conn])].last).max();
        for conn in closing {
            let event = Event::Broken { conn, side: side(&self.conns[conn]) };
            self.schedule(through.unwrap_or_default(), event);
        }
    }

    pub(super) fn send(&mut self, from: PeerId, to: PeerId, message: &Message) {
        let lane = if from == HOST || to == HOST { message.lane() } else { Lane::Bulk };
        let Some(conn) = self.newest(from, to, lane) else { return };
        let side = usize::from(self.conns[conn].members[1] == from);
        self.conns[conn].ends[side].link.send(message);
        self.pump(conn);
    }

    /// Puts what the links give on the wire.
    fn pump(&mut self, conn: usize) {
        if self.conns[conn].closed {
            return;
        }
        for side in 0..2 {
            let Conn { ends, alive, .. } = &mut self.conns[conn];
            if !ends[side].attached {
                continue;
            }
            let mut frames = Vec::new();
            while let Some(bytes) = ends[side].link.poll_frame() {
                if *alive {
                    let far = &mut ends[1 - side];
                    let jitter = self.rng.random_range(0..=far.delay / 2);
                    far.last = far.last.max(self.now + Duration::from_micros(far.delay + jitter));
                    frames.push((far.last, bytes));
                }
            }
            for (at, bytes) in frames {
                self.schedule(at, Event::Frame { conn, side: 1 - side, bytes });
            }
        }
    }

    pub(super) fn frame(&mut self, conn: usize, side: usize, bytes: &[u8]) {
        let [me, other] = self.seen_from(conn, side);
        let here = me == HOST || self.nodes.contains_key(&me);
        let Conn { ends, alive, lane, .. } = &mut self.conns[conn];
        if !*alive || !ends[side].attached || !here {
            return;
        }
        let lane = *lane;
        let link = &mut ends[side].link;
        let was_open = link.is_open();
        let message = match link.receive(bytes) {
            Ok(message) => message,
            Err(error) => return self.violate(Violation::Frame { who: me, error }),
        };
        let opens = !was_open && link.is_open();
        self.pump(conn);
        if self.newest(me, other, lane) != Some(conn) {
            return;
        }
        if opens {
            self.linked(conn, side);
        }
        if let Some(message) = message {
            if is_of_a_plan(&message) {
                self.history.push_back((other, me, message.clone()));
                if self.history.len() > HISTORY {
                    self.history.pop_front();
                }
            }
            self.deliver(other, me, message);
        }
    }
}

/// What may come late from an older plan, or twice; the rest is said once in an ordered stream.
fn is_of_a_plan(message: &Message) -> bool {
    matches!(
        message,
        Message::Forward { .. }
            | Message::Backward { .. }
            | Message::StepDone { .. }
            | Message::Apply { .. }
            | Message::Applied { .. }
            | Message::Ready { .. }
            | Message::Assign(_)
    )
}
