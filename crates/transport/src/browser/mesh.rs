//! Peer connections by peer and lane: offers, answers, candidates, their failures and their end.

use super::words;
use crate::negotiation::{Candidate, MAX_EARLY, Negotiation, PULSE_CHANNEL, lane_name};
use baton_protocol::{
    PeerId,
    link::Lane,
    pulse::{self, Monitor, PULSE, Presence, Pulse},
    room::{RoomSecret, Sealer},
    signal::IceServer,
};
use gloo::{
    events::EventListener,
    timers::callback::{Interval, Timeout},
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    rc::{Rc, Weak},
    time::Duration,
};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{
    MessageEvent, RtcConfiguration, RtcDataChannel, RtcDataChannelEvent, RtcDataChannelInit,
    RtcDataChannelState, RtcDataChannelType, RtcIceCandidateInit, RtcIceServer, RtcOfferOptions,
    RtcPeerConnection, RtcPeerConnectionIceEvent, RtcPeerConnectionState, RtcSdpType,
    RtcSessionDescriptionInit,
};

/// Until the first answer: a page that was hidden after it joined answers when it is looked at again.
const ANSWER_MS: u32 = 60_000;
/// From the answer (or from a failure) to the connection; on one network it takes well under a second.
const CONNECT_MS: u32 = 15_000;
/// A connection that does not stand so long after the answer is tried anew: the names that browsers give each other for
/// their addresses are looked up by multicast once, which Wi-Fi loses at times. TURN takes 0.3 s.
const RETRY_MS: u32 = 4_000;
const MOST_RETRIES: u8 = 2;
/// A room has far fewer members.
const MAX_CONNECTIONS: usize = 256;

/// Who this end is.
#[derive(Debug)]
pub struct MeshConfig {
    /// This client's number in the room.
    pub me: PeerId,
    /// The host's; only the host opens control lanes.
    pub host: PeerId,
    /// The room's secret, for the envelopes.
    pub secret: RoomSecret,
    /// STUN and TURN servers.
    pub ice_servers: Vec<IceServer>,
}

/// What happens to the connections.
#[derive(Debug)]
pub enum MeshEvent {
    /// A data channel exists. It can go to a worker only now, inside this very call.
    Channel {
        /// Who will be at the other end.
        peer: PeerId,
        /// What it is for.
        lane: Lane,
        /// The channel, not open yet.
        channel: RtcDataChannel,
    },
    /// A peer stands otherwise than before, as its pulses say or their absence does.
    Presence {
        /// Who.
        peer: PeerId,
        /// How.
        presence: Presence,
    },
    /// All connections to a peer are closed, for good.
    Gone {
        /// To whom.
        peer: PeerId,
        /// Why.
        reason: Gone,
    },
}

/// Why a peer cannot be reached; the words follow a device's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// The offer was not answered.
    #[error("did not answer: check that its page is open and visible")]
    NoAnswer,
    /// No pair of candidates connected.
    #[error("could not be connected to directly: check that both devices are on the same Wi-Fi")]
    NoRoute,
    /// The connection stood, and failed.
    #[error("lost its connection: check that its page is open and that it is on the Wi-Fi")]
    Lost,
    /// It left the room.
    #[error("left the room")]
    Left,
    /// The browser refused a step of the connection.
    #[error("could not be connected to: {0}")]
    Browser(String),
    /// More connections than a page should hold.
    #[error("was not connected: this page holds {MAX_CONNECTIONS} connections already")]
    TooMany,
}

/// The connections of one page. Dropping it closes them.
#[derive(Clone)]
pub struct Mesh(Rc<Inner>);

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("me", &self.0.me).finish_non_exhaustive()
    }
}

struct Inner {
    me: PeerId,
    host: PeerId,
    sealer: Sealer,
    ice_servers: Vec<IceServer>,
    send: Box<dyn Fn(PeerId, String)>,
    on_event: Box<dyn Fn(MeshEvent)>,
    connections: RefCell<BTreeMap<(PeerId, Lane), Rc<Connection>>>,
    attempts: Cell<u32>,
    refused: Cell<u32>,
    monitor: RefCell<Monitor>,
    /// What this device says of itself.
    own: Cell<Pulse>,
    beat: RefCell<Option<Interval>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Offerer,
    Answerer,
}

struct Connection {
    peer: PeerId,
    lane: Lane,
    attempt: u32,
    side: Side,
    pc: RtcPeerConnection,
    /// Our candidates wait here until our description is on its way; none: it is.
    outgoing: RefCell<Option<Vec<Candidate>>>,
    /// Theirs wait here until their description is set; none: it is.
    incoming: RefCell<Option<Vec<Candidate>>>,
    stood: Cell<bool>,
    renewed: Cell<bool>,
    retries: Cell<u8>,
    deadline: RefCell<Option<Timeout>>,
    listeners: RefCell<Vec<EventListener>>,
    pulses: RefCell<Option<Pulses>>,
}

/// The channel for pulses, which stays on this thread.
struct Pulses {
    channel: RtcDataChannel,
    _listeners: [EventListener; 2],
}

impl Connection {
    /// Whether it stands or has stood. The channel may open before the event that says so has been handled.
    fn stands(&self) -> bool {
        self.stood.get() || self.pc.connection_state() == RtcPeerConnectionState::Connected
    }

    /// Why its peer is gone if it does not stand in time.
    fn unreached(&self) -> Gone {
        if self.stood.get() { Gone::Lost } else { Gone::NoRoute }
    }

    /// Nothing is heard of it any more.
    fn close(&self) {
        drop(self.listeners.take());
        drop(self.deadline.take());
        drop(self.pulses.take());
        self.pc.close();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.pc.close();
    }
}

impl Mesh {
    /// A mesh without connections. `send` passes a sealed envelope to a member of the room.
    pub fn new(
        config: MeshConfig,
        send: impl Fn(PeerId, String) + 'static,
        on_event: impl Fn(MeshEvent) + 'static,
    ) -> Self {
        let inner = Rc::new(Inner {
            me: config.me,
            host: config.host,
            sealer: config.secret.sealer(),
            ice_servers: config.ice_servers,
            send: Box::new(send),
            on_event: Box::new(on_event),
            connections: RefCell::default(),
            attempts: Cell::new(0),
            refused: Cell::new(0),
            monitor: RefCell::new(Monitor::new(now())),
            own: Cell::default(),
            beat: RefCell::default(),
        });
        let weak = Rc::downgrade(&inner);
        let every = u32::try_from(PULSE.as_millis()).unwrap_or(u32::MAX);
        let beat = Interval::new(every, move || {
            if let Some(inner) = weak.upgrade() {
                inner.monitor.borrow_mut().handle_timeout(now());
                inner.monitored();
            }
        });
        inner.beat.replace(Some(beat));
        Self(inner)
    }

    /// What this device says of itself in its pulses; the others hear of a change at once.
    pub fn set_pulse(&self, pulse: Pulse) {
        if self.0.own.replace(pulse) != pulse {
            self.0.monitor.borrow_mut().tell();
            self.0.monitored();
        }
    }

    /// What a peer said last of itself.
    pub fn pulse(&self, peer: PeerId) -> Option<Pulse> {
        self.0.monitor.borrow().last(peer)
    }

    /// Offers a connection. One that there is already is replaced, unless it is still being made by our offer: who asks
    /// twice would only wait longer.
    pub fn connect(&self, peer: PeerId, lane: Lane) {
        let inner = &self.0;
        if inner.is_offering(peer, lane) {
            return;
        }
        let attempt = inner.attempts.get();
        inner.attempts.set(attempt.wrapping_add(1));
        let connection = match inner.open(peer, lane, attempt, Side::Offerer) {
            Ok(connection) => connection,
            Err(reason) => return inner.gone(peer, reason),
        };
        let init = RtcDataChannelInit::new();
        init.set_ordered(true);
        let channel = connection.pc.create_data_channel_with_data_channel_dict(lane_name(lane), &init);
        (inner.on_event)(MeshEvent::Channel { peer, lane, channel });
        if lane == Lane::Control {
            let init = RtcDataChannelInit::new();
            // A pulse that is late says less than the next one.
            init.set_ordered(false);
            init.set_max_retransmits(0);
            let channel = connection.pc.create_data_channel_with_data_channel_dict(PULSE_CHANNEL, &init);
            inner.listen_to_pulses(&connection, channel);
        }
        inner.offer(&connection, false);
    }

    /// Opens an envelope from another member, and does what it says. One that does not open, or says what its sender
    /// may not say, is counted and changes nothing.
    pub fn receive(&self, from: PeerId, sealed: &str) {
        let inner = &self.0;
        let opened = inner.sealer.open(from, inner.me, sealed).ok();
        let message = opened.and_then(|plain| Negotiation::from_bytes(&plain).ok());
        if !message.is_some_and(|message| inner.handle(from, message)) {
            inner.refused.set(inner.refused.get().saturating_add(1));
        }
    }

    /// Closes all connections to a peer; no event follows.
    pub fn close(&self, peer: PeerId) {
        self.0.remove(peer);
    }

    /// The peer left the room.
    pub fn left(&self, peer: PeerId) {
        self.0.gone(peer, Gone::Left);
    }

    /// The server says that a peer is gone; its pulses are listened for, and not for long.
    pub fn doubt(&self, peer: PeerId) {
        self.0.monitor.borrow_mut().doubt(peer, now());
    }

    /// Whether a connection to a peer stands or is being made.
    pub fn has(&self, peer: PeerId) -> bool {
        self.0.connections.borrow().keys().any(|(other, _)| *other == peer)
    }

    /// Whether there is no connection to anybody, nor one in the making.
    pub fn is_empty(&self) -> bool {
        self.0.connections.borrow().is_empty()
    }

    /// The room's host.
    pub fn host(&self) -> PeerId {
        self.0.host
    }

    /// Whether every connection to a peer stands now.
    pub fn stands(&self, peer: PeerId) -> bool {
        let connections = self.0.connections.borrow();
        let mut all = connections.values().filter(|connection| connection.peer == peer).peekable();
        all.peek().is_some()
            && all.all(|connection| connection.pc.connection_state() == RtcPeerConnectionState::Connected)
    }

    /// How many envelopes were refused: forged, malformed, or not for their sender to say.
    pub fn refused(&self) -> u32 {
        self.0.refused.get()
    }
}

/// Time since the page was opened.
fn now() -> Duration {
    let performance = web_sys::window().and_then(|window| window.performance());
    Duration::from_secs_f64(performance.map_or(0.0, |performance| performance.now().max(0.0) / 1000.0))
}

impl Inner {
    fn find(&self, peer: PeerId, lane: Lane, attempt: u32, side: Side) -> Option<Rc<Connection>> {
        let connections = self.connections.borrow();
        let connection = connections.get(&(peer, lane))?;
        (connection.attempt == attempt && connection.side == side).then(|| Rc::clone(connection))
    }

    fn is_offering(&self, peer: PeerId, lane: Lane) -> bool {
        let connections = self.connections.borrow();
        connections
            .get(&(peer, lane))
            .is_some_and(|connection| connection.side == Side::Offerer && !connection.stands())
    }

    /// Takes the connections out first: closing them may call back.
    fn remove(&self, peer: PeerId) -> bool {
        let mut connections = self.connections.borrow_mut();
        let removed = [connections.remove(&(peer, Lane::Control)), connections.remove(&(peer, Lane::Bulk))];
        drop(connections);
        self.monitor.borrow_mut().forget(peer);
        removed.iter().flatten().for_each(|connection| connection.close());
        removed.iter().any(Option::is_some)
    }

    fn gone(&self, peer: PeerId, reason: Gone) {
        let refused = matches!(reason, Gone::TooMany | Gone::Browser(_));
        if self.remove(peer) || refused {
            (self.on_event)(MeshEvent::Gone { peer, reason });
        }
    }

    fn say(&self, to: PeerId, message: &Negotiation) {
        let mut nonce = [0; 24];
        let random = web_sys::window()
            .and_then(|window| window.crypto().ok())
            .and_then(|crypto| crypto.get_random_values_with_u8_array(&mut nonce).ok());
        if random.is_none() {
            // Without a fresh nonce nothing may be sealed; the deadline will say that the peer is not reached.
            return;
        }
        (self.send)(to, self.sealer.seal(self.me, to, nonce, &message.to_bytes()));
    }

    fn open(
        self: &Rc<Self>,
        peer: PeerId,
        lane: Lane,
        attempt: u32,
        side: Side,
    ) -> Result<Rc<Connection>, Gone> {
        let old = self.connections.borrow_mut().remove(&(peer, lane));
        if let Some(old) = old {
            old.close();
        }
        if self.connections.borrow().len() >= MAX_CONNECTIONS {
            return Err(Gone::TooMany);
        }
        let pc = RtcPeerConnection::new_with_configuration(&self.configuration())
            .map_err(|error| Gone::Browser(words(&error)))?;
        let connection = Rc::new(Connection {
            peer,
            lane,
            attempt,
            side,
            pc,
            outgoing: RefCell::new(Some(Vec::new())),
            incoming: RefCell::new(Some(Vec::new())),
            stood: Cell::new(false),
            renewed: Cell::new(false),
            retries: Cell::new(0),
            deadline: RefCell::default(),
            listeners: RefCell::default(),
            pulses: RefCell::default(),
        });
        let listeners = vec![
            self.listen(&connection, "icecandidate", |inner, connection, event| {
                if let Some(event) = event.dyn_ref::<RtcPeerConnectionIceEvent>() {
                    inner.found(connection, event);
                }
            }),
            self.listen(&connection, "connectionstatechange", |inner, connection, _| {
                inner.changed(connection);
            }),
            self.listen(&connection, "datachannel", |inner, connection, event| {
                // One channel a connection, and one for pulses, and only from the side that offered.
                let Some(event) = event.dyn_ref::<RtcDataChannelEvent>() else { return };
                let (peer, lane, channel) = (connection.peer, connection.lane, event.channel());
                let pulses = lane == Lane::Control && channel.label() == PULSE_CHANNEL;
                if connection.side == Side::Answerer && pulses {
                    inner.listen_to_pulses(connection, channel);
                } else if connection.side == Side::Answerer && channel.label() == lane_name(lane) {
                    (inner.on_event)(MeshEvent::Channel { peer, lane, channel });
                } else {
                    channel.close();
                }
            }),
        ];
        connection.listeners.replace(listeners);
        self.connections.borrow_mut().insert((peer, lane), Rc::clone(&connection));
        self.expect_within(&connection, CONNECT_MS, Gone::NoRoute);
        Ok(connection)
    }

    fn configuration(&self) -> RtcConfiguration {
        let servers: js_sys::Array<RtcIceServer> = js_sys::Array::new_typed();
        for server in &self.ice_servers {
            let init = RtcIceServer::new();
            let urls: js_sys::Array = server.urls.iter().map(|url| JsValue::from_str(url)).collect();
            init.set_urls(&urls);
            if let Some(username) = &server.username {
                init.set_username(username);
            }
            if let Some(credential) = &server.credential {
                init.set_credential(credential);
            }
            servers.push(&init);
        }
        let configuration = RtcConfiguration::new();
        configuration.set_ice_servers(&servers);
        configuration
    }

    fn listen_to_pulses(self: &Rc<Self>, connection: &Rc<Connection>, channel: RtcDataChannel) {
        channel.set_binary_type(RtcDataChannelType::Arraybuffer);
        let on = |kind: &'static str, handle: fn(&Rc<Self>, PeerId, &web_sys::Event)| {
            let (inner, peer) = (Rc::downgrade(self), connection.peer);
            EventListener::new(&channel, kind, move |event| {
                if let Some(inner) = inner.upgrade() {
                    handle(&inner, peer, event);
                }
            })
        };
        let listeners = [
            on("open", |inner, peer, _| inner.watch(peer)),
            on("message", |inner, peer, event| {
                let data = event.dyn_ref::<MessageEvent>().map(MessageEvent::data);
                let bytes = data.and_then(|data| data.dyn_into::<js_sys::ArrayBuffer>().ok());
                if let Some(bytes) = bytes {
                    let bytes = js_sys::Uint8Array::new(&bytes).to_vec();
                    inner.monitor.borrow_mut().receive(peer, &bytes, now());
                    inner.monitored();
                }
            }),
        ];
        let is_open = channel.ready_state() == RtcDataChannelState::Open;
        connection.pulses.replace(Some(Pulses { channel, _listeners: listeners }));
        // Its event may have been before there was anybody to hear it.
        if is_open {
            self.watch(connection.peer);
        }
    }

    fn watch(&self, peer: PeerId) {
        self.monitor.borrow_mut().watch(peer, now());
        self.monitored();
    }

    /// Does what the monitor wants done.
    fn monitored(&self) {
        loop {
            let output = self.monitor.borrow_mut().poll();
            match output {
                Some(pulse::Output::Pulse) => {
                    let bytes = self.own.get().to_bytes();
                    for connection in self.connections.borrow().values() {
                        let pulses = connection.pulses.borrow();
                        let channel = pulses.as_ref().map(|pulses| &pulses.channel);
                        if let Some(channel) =
                            channel.filter(|channel| channel.ready_state() == RtcDataChannelState::Open)
                        {
                            // One that cannot be sent is missed as any other that gets lost.
                            channel.send_with_u8_array(&bytes).ok();
                        }
                    }
                }
                Some(pulse::Output::Presence { peer, presence }) => {
                    (self.on_event)(MeshEvent::Presence { peer, presence });
                }
                None => break,
            }
        }
    }

    /// Weak on both sides: a connection owns its listeners.
    fn listen(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        kind: &'static str,
        handle: impl Fn(&Rc<Self>, &Rc<Connection>, &web_sys::Event) + 'static,
    ) -> EventListener {
        let (inner, weak): (Weak<Self>, Weak<Connection>) = (Rc::downgrade(self), Rc::downgrade(connection));
        EventListener::new(&connection.pc, kind, move |event| {
            if let (Some(inner), Some(connection)) = (inner.upgrade(), weak.upgrade()) {
                handle(&inner, &connection, event);
            }
        })
    }

    fn expect_within(self: &Rc<Self>, connection: &Rc<Connection>, wait: u32, otherwise: Gone) {
        let (inner, peer) = (Rc::downgrade(self), connection.peer);
        let timeout = Timeout::new(wait, move || {
            if let Some(inner) = inner.upgrade() {
                inner.gone(peer, otherwise);
            }
        });
        drop(connection.deadline.replace(Some(timeout)));
    }

    /// Waits for a connection whose offer was answered. One that never stood is tried again before it is given up.
    fn expect_connection(self: &Rc<Self>, connection: &Rc<Connection>) {
        // While it was tried again it came to stand, and no event follows.
        if connection.pc.connection_state() == RtcPeerConnectionState::Connected {
            return;
        }
        let retries = connection.retries.get();
        if connection.stood.get() || retries == MOST_RETRIES {
            return self.expect_within(connection, CONNECT_MS, connection.unreached());
        }
        connection.retries.set(retries + 1);
        let (inner, weak) = (Rc::downgrade(self), Rc::downgrade(connection));
        let timeout = Timeout::new(RETRY_MS, move || {
            if let (Some(inner), Some(connection)) = (inner.upgrade(), weak.upgrade()) {
                inner.offer(&connection, true);
            }
        });
        drop(connection.deadline.replace(Some(timeout)));
    }

    /// Fails the peer if the connection is still the one in force when a step of it fails.
    fn failed(&self, connection: &Connection, error: &JsValue) {
        if self.find(connection.peer, connection.lane, connection.attempt, connection.side).is_some() {
            self.gone(connection.peer, Gone::Browser(words(error)));
        }
    }

    fn offer(self: &Rc<Self>, connection: &Rc<Connection>, renew: bool) {
        if renew {
            self.expect_within(connection, CONNECT_MS, connection.unreached());
        } else {
            self.expect_within(connection, ANSWER_MS, Gone::NoAnswer);
        }
        connection.outgoing.borrow_mut().get_or_insert_default();
        let (inner, connection) = (Rc::clone(self), Rc::clone(connection));
        spawn_local(async move {
            let options = RtcOfferOptions::new();
            options.set_ice_restart(renew);
            let offer = JsFuture::from(connection.pc.create_offer_with_rtc_offer_options(&options)).await;
            inner.describe(&connection, offer).await;
        });
    }

    /// Sets our own description, sends it, then the candidates that waited for it.
    async fn describe(&self, connection: &Connection, description: Result<JsValue, JsValue>) {
        let set = async {
            let description: RtcSessionDescriptionInit = description?.unchecked_into();
            JsFuture::from(connection.pc.set_local_description(&description)).await?;
            let local = connection.pc.local_description();
            local.map(|local| local.sdp()).ok_or_else(|| JsValue::from_str("there is no local description"))
        };
        let sdp = match set.await {
            Ok(sdp) => sdp,
            Err(error) => return self.failed(connection, &error),
        };
        let (lane, attempt) = (connection.lane, connection.attempt);
        let message = match connection.side {
            Side::Offerer => Negotiation::Offer { lane, attempt, sdp },
            Side::Answerer => Negotiation::Answer { lane, attempt, sdp },
        };
        self.say(connection.peer, &message);
        for candidate in connection.outgoing.take().into_iter().flatten() {
            self.tell(connection, candidate);
        }
    }

    fn found(&self, connection: &Connection, event: &RtcPeerConnectionIceEvent) {
        // None, and an empty one, mean that there are no more.
        let Some(found) = event.candidate().filter(|found| !found.candidate().is_empty()) else { return };
        let candidate =
            Candidate { candidate: found.candidate(), mid: found.sdp_mid(), line: found.sdp_m_line_index() };
        match &mut *connection.outgoing.borrow_mut() {
            Some(waiting) => waiting.push(candidate),
            None => self.tell(connection, candidate),
        }
    }

    fn tell(&self, connection: &Connection, candidate: Candidate) {
        let (lane, attempt) = (connection.lane, connection.attempt);
        let from_offerer = connection.side == Side::Offerer;
        self.say(connection.peer, &Negotiation::Candidate { lane, attempt, from_offerer, candidate });
    }

    fn changed(self: &Rc<Self>, connection: &Rc<Connection>) {
        let peer = connection.peer;
        match connection.pc.connection_state() {
            RtcPeerConnectionState::Connected => {
                drop(connection.deadline.take());
                connection.renewed.set(false);
                connection.stood.set(true);
            }
            RtcPeerConnectionState::Failed => {
                let reason = connection.unreached();
                if connection.renewed.replace(true) {
                    self.gone(peer, reason);
                } else if connection.side == Side::Offerer {
                    self.offer(connection, true);
                } else {
                    self.expect_within(connection, CONNECT_MS, reason);
                }
            }
            RtcPeerConnectionState::Closed => self.gone(peer, Gone::Lost),
            _ => {}
        }
    }

    /// Whether the message was one that its sender may send now.
    fn handle(self: &Rc<Self>, from: PeerId, message: Negotiation) -> bool {
        let (lane, attempt) = (message.lane(), message.attempt());
        match message {
            Negotiation::Offer { sdp, .. } => {
                // The host makes the offers to its peers; neighbours have no control lane between them.
                if from == self.me || self.me == self.host || (lane == Lane::Control && from != self.host) {
                    return false;
                }
                let connection = match self.find(from, lane, attempt, Side::Answerer) {
                    // The offerer tries again.
                    Some(connection) if !connection.stands() => {
                        self.expect_within(&connection, CONNECT_MS, Gone::NoRoute);
                        connection
                    }
                    Some(connection) => connection,
                    None => match self.open(from, lane, attempt, Side::Answerer) {
                        Ok(connection) => connection,
                        Err(reason) => {
                            self.gone(from, reason);
                            return true;
                        }
                    },
                };
                connection.outgoing.borrow_mut().get_or_insert_default();
                let inner = Rc::clone(self);
                spawn_local(async move {
                    if inner.hear(&connection, RtcSdpType::Offer, &sdp).await {
                        let answer = JsFuture::from(connection.pc.create_answer()).await;
                        inner.describe(&connection, answer).await;
                    }
                });
                true
            }
            Negotiation::Answer { sdp, .. } => {
                let Some(connection) = self.find(from, lane, attempt, Side::Offerer) else { return false };
                self.expect_connection(&connection);
                let inner = Rc::clone(self);
                spawn_local(async move {
                    inner.hear(&connection, RtcSdpType::Answer, &sdp).await;
                });
                true
            }
            Negotiation::Candidate { candidate, from_offerer, .. } => {
                let side = if from_offerer { Side::Answerer } else { Side::Offerer };
                let Some(connection) = self.find(from, lane, attempt, side) else { return false };
                if let Some(waiting) = &mut *connection.incoming.borrow_mut() {
                    let room = waiting.len() < MAX_EARLY;
                    if room {
                        waiting.push(candidate);
                    }
                    return room;
                }
                spawn_local(async move { add(&connection.pc, candidate).await });
                true
            }
        }
    }

    /// Sets their description, then adds the candidates that came before it.
    async fn hear(&self, connection: &Connection, kind: RtcSdpType, sdp: &str) -> bool {
        let description = RtcSessionDescriptionInit::new(kind);
        description.set_sdp(sdp);
        let set = JsFuture::from(connection.pc.set_remote_description(&description)).await;
        if let Err(error) = set {
            self.failed(connection, &error);
            return false;
        }
        for candidate in connection.incoming.take().into_iter().flatten() {
            add(&connection.pc, candidate).await;
        }
        true
    }
}

/// One address that the browser cannot use says nothing about the others.
async fn add(pc: &RtcPeerConnection, candidate: Candidate) {
    let init = RtcIceCandidateInit::new(&candidate.candidate);
    init.set_sdp_mid(candidate.mid.as_deref());
    init.set_sdp_m_line_index(candidate.line);
    JsFuture::from(pc.add_ice_candidate_with_opt_rtc_ice_candidate_init(Some(&init))).await.ok();
}
