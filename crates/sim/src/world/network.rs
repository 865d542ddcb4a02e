//! The connections of a room: framed by the protocol's own links, ordered and reliable, late as their model says.

use super::{CONSENT, Event, HOST, Pace, World};
use crate::engine::Model;
use crate::net::Network;
use crate::trace::Doing;
use crate::violation::Violation;
use baton_protocol::PeerId;
use baton_protocol::link::{Lane, Link};
use baton_protocol::message::Message;
use rand::Rng;
use std::collections::VecDeque;
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
        self.ends[side].delay = delay;
    }
}

#[derive(Debug)]
struct End {
    link: Link,
    attached: bool,
    /// When the last frame towards this end arrives.
    last: Duration,
    /// Of a frame towards this end, where it is drawn.
    delay: Duration,
    /// Of the messages that wait at this end: encoded bytes not yet in frames, and how long each counts as.
    weights: VecDeque<Weight>,
}

#[derive(Debug)]
struct Weight {
    left: usize,
    each: f64,
    since: Duration,
}

fn drawn(rng: &mut impl Rng, most: Duration) -> Duration {
    Duration::from_micros(rng.random_range(0..=u64::try_from(most.as_micros()).unwrap_or(u64::MAX)))
}

impl<M: Model> World<M> {
    pub(super) fn open(&mut self, a: PeerId, b: PeerId, lane: Lane) -> usize {
        let conn = self.conns.len();
        let most = match &self.room.network {
            Network::Drawn(most) => *most,
            // ICE and DTLS want a few round trips.
            Network::Modelled(_) => 4 * self.fabric.wire(a, b).latency,
        };
        let mut end = || {
            let delay = drawn(&mut self.rng, most);
            End { link: Link::new(), attached: false, last: Duration::ZERO, delay, weights: VecDeque::new() }
        };
        let ends = [end(), end()];
        self.conns.push(Conn { members: [a, b], lane, ends, alive: true, closed: false });
        self.newest.insert((a.min(b), a.max(b), lane), conn);
        for side in 0..2 {
            let wait = drawn(&mut self.rng, most * 4) + self.fabric.hindrance(a, b, self.now);
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

    /// How long a small message takes over a channel that does not repeat what is lost, if it arrives.
    pub(super) fn delay(&mut self, conn: usize, from: PeerId, to: PeerId) -> Option<Duration> {
        let conn = &self.conns[conn];
        let mut reaches = conn.alive && !conn.closed && self.fabric.heals(from, to, self.now).is_none();
        let side = usize::from(conn.members[1] == to);
        let delay = match self.room.network {
            Network::Drawn(_) => conn.ends[side].delay,
            Network::Modelled(_) => {
                let wire = self.fabric.wire(from, to);
                reaches &= wire.loss == 0.0 || !self.rng.random_bool(wire.loss.clamp(0.0, 1.0));
                wire.latency
            }
        };
        reaches.then(|| delay + self.fabric.hindrance(from, to, self.now))
    }

    pub(super) fn is_open(&self, conn: usize, side: usize) -> bool {
        self.conns[conn].alive && self.conns[conn].ends[side].link.is_open()
    }

    /// Frames on the way arrive, and new ones are put on it.
    pub(super) fn is_alive(&self, conn: usize) -> bool {
        self.conns[conn].alive && !self.conns[conn].closed
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
        let through = through.unwrap_or_default().max(self.now) + self.fabric.hindrance(me, other, self.now);
        for conn in closing {
            let event = Event::Broken { conn, side: side(&self.conns[conn]) };
            self.schedule(through, event);
        }
    }

    pub(super) fn send(&mut self, from: PeerId, to: PeerId, message: &Message) {
        let lane = if from == HOST || to == HOST { message.lane() } else { Lane::Bulk };
        let Some(conn) = self.newest(from, to, lane) else { return };
        if from == HOST || to == HOST {
            // Before its frames are on the way: even where they take no time, what happens now happens first.
            self.said(if from == HOST { to } else { from }, message);
        }
        let side = usize::from(self.conns[conn].members[1] == from);
        let end = &mut self.conns[conn].ends[side];
        let before = end.link.queued();
        end.link.send(message);
        let left = end.link.queued() - before;
        let each = match &self.room.pace {
            Pace::Modelled(costs) => costs.message(message, left as f64) / left.max(1) as f64,
            Pace::Random | Pace::Equal(_) => 1.0,
        };
        end.weights.push_back(Weight { left, each, since: self.now });
        self.pump(conn);
    }

    /// Nothing passes for a while; a connection that hears nothing for too long is given up by both ends.
    pub(super) fn part(&mut self, of: PeerId, from: Option<PeerId>, time: Duration) {
        self.fabric.part(of, from, self.now + time, self.now);
        if time < CONSENT {
            return;
        }
        for conn in 0..self.conns.len() {
            let Conn { alive, closed, .. } = self.conns[conn];
            let parted = self.conns[conn].is_of(of) && from.is_none_or(|from| self.conns[conn].is_of(from));
            if parted && alive && !closed {
                self.schedule(self.now + CONSENT, Event::Sever(conn));
            }
        }
    }

    pub(super) fn sever(&mut self, conn: usize) {
        self.break_conn(conn, 0);
    }

    /// Puts what the links give on the wire.
    fn pump(&mut self, conn: usize) {
        if self.conns[conn].closed {
            return;
        }
        for side in 0..2 {
            let [from, to] = self.seen_from(conn, side);
            let Conn { ends: [first, second], alive, lane, .. } = &mut self.conns[conn];
            let (near, far) = if side == 0 { (first, second) } else { (second, first) };
            if !near.attached {
                continue;
            }
            let mut queued = near.link.queued();
            while let Some(bytes) = near.link.poll_frame() {
                let body = queued - near.link.queued();
                queued -= body;
                let (weighs, since) = weigh(&mut near.weights, bytes.len(), body);
                if !*alive {
                    continue;
                }
                let at = match &self.room.network {
                    Network::Drawn(_) => {
                        let late = self.fabric.hindrance(from, to, self.now);
                        self.now + far.delay + drawn(&mut self.rng, far.delay / 2) + late
                    }
                    Network::Modelled(_) => {
                        self.fabric.arrival(&mut self.rng, [from, to], *lane, weighs, self.now)
                    }
                };
                far.last = far.last.max(at);
                let at = far.last;
                if *lane == Lane::Bulk
                    && let Some(trace) = &mut self.trace
                {
                    trace.add(to, Doing::Receives(from), since.unwrap_or(self.now)..at);
                }
                self.sequence += 1;
                let event = Event::Frame { conn, side: 1 - side, bytes };
                self.queue.insert((at.max(self.now), self.sequence), event);
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

/// How long a frame with so many bytes of a message counts as, and since when the message waits.
fn weigh(weights: &mut VecDeque<Weight>, frame: usize, body: usize) -> (f64, Option<Duration>) {
    let bare = (frame - body) as f64;
    let Some(front) = weights.front_mut().filter(|_| body > 0) else { return (bare, None) };
    let weighs = (bare + body as f64 * front.each, Some(front.since));
    front.left = front.left.saturating_sub(body);
    if front.left == 0 {
        weights.pop_front();
    }
    weighs
}
