//! Peer connections by peer and lane: offers, answers, candidates, their failures and their end. The rules are those of
//! the browser's mesh, whose tabs are at the other end.
//!
//! A mesh does nothing by itself: its owner awaits [`news`](Mesh::news), has it [taken in](Mesh::take), calls what else
//! is to be done, and [polls](Mesh::poll) what comes of it.

use super::channel::{NewChannel, SEND_BUFFER, attach};
use super::pulse::{Heard, Pulses};
use super::random;
use crate::negotiation::{Candidate, MAX_EARLY, Negotiation, PULSE_CHANNEL, lane_name};
use async_trait::async_trait;
use baton_protocol::{
    PeerId,
    link::Lane,
    pulse::{self, Monitor, Presence, Pulse},
    room::{RoomSecret, Sealer},
    signal::IceServer,
};
use rtc::peer_connection::configuration::setting_engine::SctpMaxMessageSize;
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use webrtc::{
    data_channel::{DataChannel, RTCDataChannelInit},
    peer_connection::{
        PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCConfigurationBuilder,
        RTCIceCandidateInit, RTCIceServer, RTCPeerConnectionIceEvent, RTCPeerConnectionState, RTCSdpType,
        RTCSessionDescription, SettingEngineBuilder,
    },
};

/// Until the first answer: a page that was hidden after it joined answers when it is looked at again.
const ANSWER: Duration = Duration::from_secs(60);
/// From the answer (or from a failure) to the connection; on one network it takes well under a second.
const CONNECT: Duration = Duration::from_secs(15);
/// A room has far fewer members.
const MAX_CONNECTIONS: usize = 256;
/// What browsers allow, and announce themselves.
const MAX_MESSAGE: u32 = 256 * 1024;
/// How long [`Mesh::leave`] waits for what is queued.
const LEAVE: Duration = Duration::from_secs(3);

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
    /// Whether others may be on this very machine, which may have no network at all.
    pub loopback: bool,
}

/// What happens to the connections.
#[derive(Debug)]
pub enum MeshEvent {
    /// A sealed envelope for a member of the room.
    Envelope {
        /// To whom.
        to: PeerId,
        /// The envelope.
        sealed: String,
    },
    /// A data channel exists.
    Channel {
        /// Who will be at the other end.
        peer: PeerId,
        /// What it is for.
        lane: Lane,
        /// The channel, not open yet.
        channel: NewChannel,
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
    #[error(
        "could not be connected to directly: check that both devices are on the same network, and that no firewall stops UDP"
    )]
    NoRoute,
    /// The connection stood, and failed.
    #[error("lost its connection: check that its page is open and that it is on the network")]
    Lost,
    /// It left the room.
    #[error("left the room")]
    Left,
    /// A step of the connection was refused.
    #[error("could not be connected to: {0}")]
    Refused(String),
    /// More connections than a process should hold.
    #[error("was not connected: this process holds {MAX_CONNECTIONS} connections already")]
    TooMany,
}

/// Something that a connection said, or a time that is up.
#[derive(Debug)]
pub struct News(Said);

#[derive(Debug)]
enum Said {
    Candidate(u64, String),
    State(u64, RTCPeerConnectionState),
    Channel(u64, Opened),
    Pulse(Heard),
    /// The time of a connection is up.
    Late(u64),
    /// A pulse is due.
    Due,
}

/// A channel that the other side made, which has no words of its own.
struct Opened(Arc<dyn DataChannel>);

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened(…)")
    }
}

/// The connections of one member of a room. [`leave`](Self::leave) closes them; a mesh that is dropped leaves them to
/// time out.
pub struct Mesh {
    me: PeerId,
    host: PeerId,
    sealer: Sealer,
    ice_servers: Vec<IceServer>,
    loopback: bool,
    connections: BTreeMap<(PeerId, Lane), Connection>,
    attempts: u32,
    /// Connections are told apart by a number of their own.
    numbers: u64,
    refused: u32,
    events: VecDeque<MeshEvent>,
    say: mpsc::UnboundedSender<Said>,
    said: mpsc::UnboundedReceiver<Said>,
    monitor: Monitor,
    begun: Instant,
    /// Held by every channel that has something to send.
    busy: mpsc::Sender<()>,
    idle: mpsc::Receiver<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Offerer,
    Answerer,
}

struct Connection {
    number: u64,
    attempt: u32,
    side: Side,
    pc: Arc<dyn PeerConnection>,
    /// Our candidates wait here until our description is on its way; none: it is.
    outgoing: Option<Vec<Candidate>>,
    /// Theirs wait here until their description is set; none: it is.
    incoming: Option<Vec<Candidate>>,
    stood: bool,
    renewed: bool,
    /// When its peer is given up, and why.
    deadline: Option<(Instant, Gone)>,
    pulses: Option<Pulses>,
}

impl Connection {
    fn expect_within(&mut self, wait: Duration, otherwise: Gone) {
        self.deadline = Some((Instant::now() + wait, otherwise));
    }
}

/// What `webrtc` calls; it must not be kept waiting.
struct Handler {
    number: u64,
    say: mpsc::UnboundedSender<Said>,
}

impl Handler {
    fn say(&self, said: Said) {
        // A mesh that is gone wants no news.
        let _ = self.say.send(said);
    }
}

#[async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_candidate(&self, event: RTCPeerConnectionIceEvent) {
        // One that cannot be written down cannot be used either.
        if let Ok(candidate) = event.candidate.to_json() {
            self.say(Said::Candidate(self.number, candidate.candidate));
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        self.say(Said::State(self.number, state));
    }

    async fn on_data_channel(&self, channel: Arc<dyn DataChannel>) {
        self.say(Said::Channel(self.number, Opened(channel)));
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Mesh {
    /// A mesh without connections; its connections run on the tokio runtime that it is used on.
    pub fn new(config: MeshConfig) -> Self {
        let (say, said) = mpsc::unbounded_channel();
        let (busy, idle) = mpsc::channel(1);
        Self {
            me: config.me,
            host: config.host,
            sealer: config.secret.sealer(),
            ice_servers: config.ice_servers,
            loopback: config.loopback,
            connections: BTreeMap::new(),
            attempts: 0,
            numbers: 0,
            refused: 0,
            events: VecDeque::new(),
            say,
            said,
            monitor: Monitor::new(Duration::ZERO),
            begun: Instant::now(),
            busy,
            idle,
        }
    }

    /// The room's host.
    pub fn host(&self) -> PeerId {
        self.host
    }

    /// How many envelopes were refused: forged, malformed, or not for their sender to say.
    pub fn refused(&self) -> u32 {
        self.refused
    }

    /// Whether every connection to a peer stood when last heard of, and there is one.
    pub fn stands(&self, peer: PeerId) -> bool {
        let mut all = self.connections.iter().filter(|((other, _), _)| *other == peer).peekable();
        all.peek().is_some() && all.all(|(_, connection)| connection.stood && connection.deadline.is_none())
    }

    /// The next thing that came of all the others.
    pub fn poll(&mut self) -> Option<MeshEvent> {
        self.events.pop_front()
    }

    /// Waits for news, which are for [`take`](Self::take). Nothing is lost if it is given up.
    pub async fn news(&mut self) -> News {
        let next = self.connections.values().filter_map(|connection| {
            let (at, _) = connection.deadline.as_ref()?;
            Some((*at, connection.number))
        });
        let (at, number) = next.min().unzip();
        let late = async {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let due = self.begun + self.monitor.poll_timeout();
        News(tokio::select! {
            said = self.said.recv() => said.expect("the mesh holds a sender itself"),
            () = late => Said::Late(number.unwrap_or_default()),
            () = tokio::time::sleep_until(due) => Said::Due,
        })
    }

    /// Takes news in.
    pub async fn take(&mut self, news: News) {
        match news.0 {
            Said::Candidate(number, candidate) => {
                let Some(key) = self.key(number) else { return };
                // A connection has one media section, the first.
                let candidate = Candidate { candidate, mid: None, line: Some(0) };
                let Some(connection) = self.connections.get_mut(&key) else { return };
                match &mut connection.outgoing {
                    Some(waiting) => waiting.push(candidate),
                    None => self.tell(key, candidate),
                }
            }
            Said::State(number, state) => {
                if let Some(key) = self.key(number) {
                    self.changed(key, state).await;
                }
            }
            Said::Channel(number, Opened(channel)) => {
                let Some((peer, lane)) = self.key(number) else { return };
                // One channel a connection, and one for pulses, and only from the side that offered.
                let answerer = self
                    .connections
                    .get(&(peer, lane))
                    .is_some_and(|connection| connection.side == Side::Answerer);
                let label = channel.label().await.unwrap_or_default();
                if answerer && lane == Lane::Control && label == PULSE_CHANNEL {
                    self.listen_to_pulses((peer, lane), number, channel);
                } else if answerer && label == lane_name(lane) {
                    let channel = attach(channel, self.busy.clone());
                    self.events.push_back(MeshEvent::Channel { peer, lane, channel });
                } else {
                    // One that is closed already is closed.
                    let _ = channel.close().await;
                }
            }
            Said::Pulse(heard) => {
                let now = self.begun.elapsed();
                if let Some((peer, _)) = self.key(heard.number()) {
                    match heard.take() {
                        None => self.monitor.watch(peer, now),
                        Some(bytes) => self.monitor.receive(peer, &bytes, now),
                    }
                }
                self.monitored();
            }
            Said::Due => {
                self.monitor.handle_timeout(self.begun.elapsed());
                self.monitored();
            }
            Said::Late(number) => {
                let Some(key) = self.key(number) else { return };
                let deadline = self.connections.get(&key).and_then(|connection| connection.deadline.clone());
                if let Some((_, reason)) = deadline.filter(|(at, _)| *at <= Instant::now()) {
                    self.gone(key.0, reason).await;
                }
            }
        }
    }

    /// Offers a connection. One that there is already is replaced, unless it is still being made by our offer: who asks
    /// twice would only wait longer.
    pub async fn connect(&mut self, peer: PeerId, lane: Lane) {
        let key = (peer, lane);
        let offering = |connection: &Connection| connection.side == Side::Offerer && !connection.stood;
        if self.connections.get(&key).is_some_and(offering) {
            return;
        }
        let attempt = self.attempts;
        self.attempts = attempt.wrapping_add(1);
        let opened = async {
            let pc = self.open(key, attempt, Side::Offerer).await?;
            let init = RTCDataChannelInit { ordered: true, ..RTCDataChannelInit::default() };
            let channel = pc.create_data_channel(lane_name(lane), Some(init)).await.map_err(refused)?;
            if lane == Lane::Bulk {
                return Ok((channel, None));
            }
            // A pulse that is late says less than the next one.
            let init = RTCDataChannelInit {
                ordered: false,
                max_retransmits: Some(0),
                ..RTCDataChannelInit::default()
            };
            let pulses = pc.create_data_channel(PULSE_CHANNEL, Some(init)).await.map_err(refused)?;
            Ok((channel, Some(pulses)))
        };
        match opened.await {
            Ok((channel, pulses)) => {
                let channel = attach(channel, self.busy.clone());
                self.events.push_back(MeshEvent::Channel { peer, lane, channel });
                if let (Some(pulses), Some(connection)) = (pulses, self.connections.get(&key)) {
                    self.listen_to_pulses(key, connection.number, pulses);
                }
                self.offer(key, false).await;
            }
            Err(reason) => self.gone(peer, reason).await,
        }
    }

    /// Opens an envelope from another member, and does what it says. One that does not open, or says what its sender
    /// may not say, is counted and changes nothing.
    pub async fn receive(&mut self, from: PeerId, sealed: &str) {
        let opened = self.sealer.open(from, self.me, sealed).ok();
        let message = opened.and_then(|plain| Negotiation::from_bytes(&plain).ok());
        let accepted = match message {
            Some(message) => self.handle(from, message).await,
            None => false,
        };
        if !accepted {
            self.refused = self.refused.saturating_add(1);
        }
    }

    /// Closes all connections to a peer; no event follows.
    pub async fn close(&mut self, peer: PeerId) {
        self.remove(peer).await;
    }

    /// The server says that a peer is gone; its pulses are listened for, and not for long.
    pub fn doubt(&mut self, peer: PeerId) {
        self.monitor.doubt(peer, self.begun.elapsed());
    }

    /// The peer left the room.
    pub async fn left(&mut self, peer: PeerId) {
        self.gone(peer, Gone::Left).await;
    }

    /// Closes everything, after what the closed channels still had to send has arrived: a last word, for which it waits
    /// a few seconds. Every channel must have been closed or dropped by its owner.
    pub async fn leave(self) {
        let Self { connections, busy, mut idle, .. } = self;
        drop(busy);
        // Never sent on: it ends when the last channel does.
        let _ = tokio::time::timeout(LEAVE, idle.recv()).await;
        for connection in connections.into_values() {
            // One that is closed already is closed.
            let _ = connection.pc.close().await;
        }
    }

    fn key(&self, number: u64) -> Option<(PeerId, Lane)> {
        self.connections.iter().find(|(_, connection)| connection.number == number).map(|(key, _)| *key)
    }

    fn find(&mut self, key: (PeerId, Lane), attempt: u32, side: Side) -> Option<&mut Connection> {
        self.connections
            .get_mut(&key)
            .filter(|connection| connection.attempt == attempt && connection.side == side)
    }

    fn listen_to_pulses(&mut self, key: (PeerId, Lane), number: u64, channel: Arc<dyn DataChannel>) {
        let say = self.say.clone();
        let pulses = Pulses::attach(channel, number, move |heard| {
            // A mesh that is gone wants no news.
            let _ = say.send(Said::Pulse(heard));
        });
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.pulses = Some(pulses);
        }
    }

    /// Does what the monitor wants done. A process is never hidden, and none here runs on a battery that it knows of.
    fn monitored(&mut self) {
        while let Some(output) = self.monitor.poll() {
            match output {
                pulse::Output::Pulse => {
                    let own = Pulse::default().to_bytes();
                    let pulses =
                        self.connections.values().filter_map(|connection| connection.pulses.as_ref());
                    pulses.for_each(|pulses| pulses.send(own));
                }
                pulse::Output::Presence { peer, presence } => {
                    self.events.push_back(MeshEvent::Presence { peer, presence });
                }
            }
        }
    }

    async fn remove(&mut self, peer: PeerId) -> bool {
        self.monitor.forget(peer);
        let mut found = false;
        for lane in [Lane::Control, Lane::Bulk] {
            if let Some(connection) = self.connections.remove(&(peer, lane)) {
                found = true;
                close(connection.pc);
            }
        }
        found
    }

    async fn gone(&mut self, peer: PeerId, reason: Gone) {
        let refused = matches!(reason, Gone::TooMany | Gone::Refused(_));
        if self.remove(peer).await || refused {
            self.events.push_back(MeshEvent::Gone { peer, reason });
        }
    }

    fn say(&mut self, to: PeerId, message: &Negotiation) {
        // Without a fresh nonce nothing may be sealed; the deadline will say that the peer is not reached.
        let Some(nonce) = random() else { return };
        let sealed = self.sealer.seal(self.me, to, nonce, &message.to_bytes());
        self.events.push_back(MeshEvent::Envelope { to, sealed });
    }

    async fn open(
        &mut self,
        key: (PeerId, Lane),
        attempt: u32,
        side: Side,
    ) -> Result<Arc<dyn PeerConnection>, Gone> {
        if let Some(old) = self.connections.remove(&key) {
            close(old.pc);
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            return Err(Gone::TooMany);
        }
        self.numbers += 1;
        let number = self.numbers;
        let pc = self.build(number).await?;
        let mut connection = Connection {
            number,
            attempt,
            side,
            pc: Arc::clone(&pc),
            outgoing: Some(Vec::new()),
            incoming: Some(Vec::new()),
            stood: false,
            renewed: false,
            deadline: None,
            pulses: None,
        };
        connection.expect_within(CONNECT, Gone::NoRoute);
        self.connections.insert(key, connection);
        Ok(pc)
    }

    async fn build(&self, number: u64) -> Result<Arc<dyn PeerConnection>, Gone> {
        use rtc::ice::mdns::MulticastDnsMode::{Disabled, QueryOnly};
        let mut addresses = vec!["0.0.0.0:0".to_owned(), "[::]:0".to_owned()];
        if self.loopback {
            addresses.push("127.0.0.1:0".to_owned());
        }
        let mut failed = String::new();
        // Pages hide their addresses behind names that only multicast resolves. Where that cannot be had, they reach us.
        for mdns in [QueryOnly, Disabled] {
            let settings = SettingEngineBuilder::new()
                .with_sctp_max_message_size(SctpMaxMessageSize::Bounded(MAX_MESSAGE))
                // After a change of networks the old addresses are of no use.
                .with_discard_local_candidates_during_ice_restart(true)
                .with_multicast_dns_mode(mdns)
                .build();
            let configuration =
                RTCConfigurationBuilder::new().with_ice_servers(usable(&self.ice_servers)).build();
            let built = PeerConnectionBuilder::new()
                .with_configuration(configuration)
                .with_setting_engine(settings)
                .with_handler(Arc::new(Handler { number, say: self.say.clone() }))
                .with_udp_addrs(addresses.clone())
                .with_data_channel_send_buffer_limit(SEND_BUFFER)
                .build()
                .await;
            match built {
                Ok(pc) => return Ok(Arc::new(pc)),
                Err(error) => failed = error.to_string(),
            }
        }
        Err(Gone::Refused(failed))
    }

    async fn offer(&mut self, key: (PeerId, Lane), renew: bool) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if renew {
            connection.expect_within(CONNECT, Gone::Lost);
        } else {
            connection.expect_within(ANSWER, Gone::NoAnswer);
        }
        connection.outgoing.get_or_insert_default();
        let options = rtc::peer_connection::configuration::RTCOfferOptions { ice_restart: renew };
        let offer = connection.pc.create_offer(Some(options)).await;
        self.describe(key, offer.map_err(refused)).await;
    }

    /// Sets our own description, sends it, then the candidates that waited for it.
    async fn describe(&mut self, key: (PeerId, Lane), description: Result<RTCSessionDescription, Gone>) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let set = async {
            connection.pc.set_local_description(description?).await.map_err(refused)?;
            let local = connection.pc.local_description().await;
            local.ok_or_else(|| Gone::Refused("there is no local description".to_owned()))
        };
        let sdp = match set.await {
            Ok(local) => local.sdp,
            Err(reason) => return self.gone(key.0, reason).await,
        };
        let ((peer, lane), attempt) = (key, connection.attempt);
        let message = match connection.side {
            Side::Offerer => Negotiation::Offer { lane, attempt, sdp },
            Side::Answerer => Negotiation::Answer { lane, attempt, sdp },
        };
        let waiting = connection.outgoing.take();
        self.say(peer, &message);
        for candidate in waiting.into_iter().flatten() {
            self.tell(key, candidate);
        }
    }

    fn tell(&mut self, key: (PeerId, Lane), candidate: Candidate) {
        let Some(connection) = self.connections.get(&key) else { return };
        let (lane, attempt) = (key.1, connection.attempt);
        let from_offerer = connection.side == Side::Offerer;
        self.say(key.0, &Negotiation::Candidate { lane, attempt, from_offerer, candidate });
    }

    async fn changed(&mut self, key: (PeerId, Lane), state: RTCPeerConnectionState) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        match state {
            RTCPeerConnectionState::Connected => {
                connection.deadline = None;
                connection.renewed = false;
                connection.stood = true;
            }
            RTCPeerConnectionState::Failed => {
                let reason = if connection.stood { Gone::Lost } else { Gone::NoRoute };
                if std::mem::replace(&mut connection.renewed, true) {
                    self.gone(key.0, reason).await;
                } else if connection.side == Side::Offerer {
                    self.offer(key, true).await;
                } else {
                    connection.expect_within(CONNECT, reason);
                }
            }
            RTCPeerConnectionState::Closed => self.gone(key.0, Gone::Lost).await,
            _ => {}
        }
    }

    /// Whether the message was one that its sender may send now.
    async fn handle(&mut self, from: PeerId, message: Negotiation) -> bool {
        let (lane, attempt) = (message.lane(), message.attempt());
        let key = (from, lane);
        match message {
            Negotiation::Offer { sdp, .. } => {
                // The host makes the offers to its peers; neighbours have no control lane between them.
                if from == self.me || self.me == self.host || (lane == Lane::Control && from != self.host) {
                    return false;
                }
                if self.find(key, attempt, Side::Answerer).is_none()
                    && let Err(reason) = self.open(key, attempt, Side::Answerer).await
                {
                    self.gone(from, reason).await;
                    return true;
                }
                if let Some(connection) = self.connections.get_mut(&key) {
                    connection.outgoing.get_or_insert_default();
                    if let Some(pc) = self.hear(key, RTCSdpType::Offer, sdp).await {
                        let answer = pc.create_answer(None).await;
                        self.describe(key, answer.map_err(refused)).await;
                    }
                }
                true
            }
            Negotiation::Answer { sdp, .. } => {
                let Some(connection) = self.find(key, attempt, Side::Offerer) else { return false };
                let reason = if connection.stood { Gone::Lost } else { Gone::NoRoute };
                connection.expect_within(CONNECT, reason);
                self.hear(key, RTCSdpType::Answer, sdp).await;
                true
            }
            Negotiation::Candidate { candidate, from_offerer, .. } => {
                let side = if from_offerer { Side::Answerer } else { Side::Offerer };
                let Some(connection) = self.find(key, attempt, side) else { return false };
                if let Some(waiting) = &mut connection.incoming {
                    let room = waiting.len() < MAX_EARLY;
                    if room {
                        waiting.push(candidate);
                    }
                    return room;
                }
                let pc = Arc::clone(&connection.pc);
                add(&*pc, candidate).await;
                true
            }
        }
    }

    /// Sets their description, then adds the candidates that came before it.
    async fn hear(
        &mut self,
        key: (PeerId, Lane),
        kind: RTCSdpType,
        sdp: String,
    ) -> Option<Arc<dyn PeerConnection>> {
        let connection = self.connections.get_mut(&key)?;
        let pc = Arc::clone(&connection.pc);
        let description = match kind {
            RTCSdpType::Offer => RTCSessionDescription::offer(sdp),
            _ => RTCSessionDescription::answer(sdp),
        };
        let set = async {
            let description = description.map_err(refused)?;
            pc.set_remote_description(description).await.map_err(refused)
        };
        if let Err(reason) = set.await {
            self.gone(key.0, reason).await;
            return None;
        }
        for candidate in connection.incoming.take().into_iter().flatten() {
            add(&*pc, candidate).await;
        }
        Some(pc)
    }
}

fn refused(error: impl fmt::Display) -> Gone {
    Gone::Refused(error.to_string())
}

/// The servers that `webrtc` takes: it wants a credential for TURN, and knows no other schemes than these.
fn usable(servers: &[IceServer]) -> Vec<RTCIceServer> {
    let server = |server: &IceServer| {
        let has_credential = server.username.is_some() && server.credential.is_some();
        let known = |url: &&String| url.starts_with("stun:") || (url.starts_with("turn:") && has_credential);
        let urls: Vec<_> = server.urls.iter().filter(known).cloned().collect();
        let (username, credential) = (server.username.clone(), server.credential.clone());
        (!urls.is_empty()).then(|| RTCIceServer {
            urls,
            username: username.unwrap_or_default(),
            credential: credential.unwrap_or_default(),
        })
    };
    servers.iter().filter_map(server).collect()
}

/// One address that cannot be used says nothing about the others.
async fn add(pc: &dyn PeerConnection, candidate: Candidate) {
    let init = RTCIceCandidateInit {
        candidate: candidate.candidate,
        sdp_mid: candidate.mid,
        sdp_mline_index: candidate.line,
        ..RTCIceCandidateInit::default()
    };
    let _ = pc.add_ice_candidate(init).await;
}

/// In a task of its own: it may take a moment, and it is for nobody to wait for.
fn close(pc: Arc<dyn PeerConnection>) {
    tokio::spawn(async move {
        // One that is closed already is closed.
        let _ = pc.close().await;
    });
}
