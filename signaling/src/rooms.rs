//! Who is in which room: a machine without sockets and clocks, to which events and the time go and whose outputs are
//! polled.
//!
//! ```text
//!   Opened ──▶ Waiting ──Join──▶ Member ──Leave, Closed, silence, misuse──▶ Closing ──Closed──▶ forgotten
//! ```
//!
//! A room lives as long as its host. A host whose socket drops without `leave` has a time of grace to come back to
//! its peers; a host that leaves takes the room with it.

use crate::{
    config::{Limits, Timeouts},
    refusal::Refusal,
};
use baton_protocol::{
    PROTOCOL_VERSION, PeerId,
    room::RoomId,
    signal::{ClientMessage, ErrorCode, IceServer, MAX_CLAIM_LEN, Role, ServerMessage},
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

/// How long a room without anybody waits for its host.
const EMPTY: Duration = Duration::from_secs(30);

/// The number of the first member of a room.
const FIRST: PeerId = PeerId(1);

/// A socket, numbered by the shell and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// What happens to a server.
#[derive(Clone, Debug)]
pub enum Event {
    /// A socket was opened.
    Opened {
        /// Its number, a new one.
        client: ClientId,
        /// Where it comes from.
        address: IpAddr,
    },
    /// A message came.
    Message {
        /// From whom.
        client: ClientId,
        /// The message.
        message: ClientMessage,
    },
    /// A frame came that is no message.
    Unreadable {
        /// From whom.
        client: ClientId,
        /// What is wrong with it.
        refusal: Refusal,
    },
    /// A frame came that says nothing but that the client is alive (a WebSocket ping or pong).
    Beat {
        /// From whom.
        client: ClientId,
    },
    /// A client does not read what it is sent: its queue is full.
    Stuck {
        /// Which.
        client: ClientId,
    },
    /// A socket is closed, by whichever side.
    Closed {
        /// Which.
        client: ClientId,
    },
    /// Time has passed.
    Tick,
    /// The server is about to exit.
    Shutdown,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Queue a message.
    Send {
        /// To whom.
        client: ClientId,
        /// The message.
        message: ServerMessage,
    },
    /// Close a socket, after what is queued for it; [`Event::Closed`] is to follow.
    Close {
        /// Which.
        client: ClientId,
        /// Why.
        why: Closing,
    },
}

/// Why the server closes a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closing {
    /// The client said `leave`.
    Left,
    /// It was told an error after which there is nothing to say.
    Refused(ErrorCode),
    /// It was silent for too long.
    Silent,
    /// It does not read; what is queued is thrown away.
    Stuck,
}

/// What there is now, and what there was since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Open sockets.
    pub sockets: usize,
    /// Rooms.
    pub rooms: usize,
    /// Members of all rooms.
    pub members: usize,
    /// Counted since the start.
    pub totals: Totals,
}

/// Counts that only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sockets opened.
    pub sockets: u64,
    /// Rooms made.
    pub rooms: u64,
    /// Joins granted.
    pub joins: u64,
    /// Envelopes passed on.
    pub relayed: u64,
    /// Their characters.
    pub relayed_bytes: u64,
    /// Members dropped because they were silent.
    pub silent: u64,
    /// Clients dropped because they did not read.
    pub stuck: u64,
    /// Errors told, by code.
    pub refusals: HashMap<ErrorCode, u64>,
}

/// All rooms of a server.
#[derive(Debug)]
pub struct Rooms {
    limits: Limits,
    timeouts: Timeouts,
    ice_servers: Vec<IceServer>,
    clients: HashMap<ClientId, Client>,
    networks: HashMap<IpAddr, usize>,
    rooms: HashMap<RoomId, Room>,
    totals: Totals,
    outputs: VecDeque<Output>,
    shutting_down: bool,
}

#[derive(Debug)]
struct Client {
    network: IpAddr,
    /// When the last frame came.
    heard: Duration,
    bucket: Bucket,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// Has yet to say `join`.
    Waiting,
    Member {
        room: RoomId,
        id: PeerId,
    },
    /// Was told why, and is not listened to any more.
    Closing,
}

#[derive(Debug)]
struct Room {
    host: Host,
    claim: Option<Claim>,
    members: BTreeMap<PeerId, ClientId>,
    next: u32,
}

/// SHA-256 of what the host showed when it made the room.
#[derive(Debug, PartialEq, Eq)]
struct Claim([u8; 32]);

#[derive(Debug)]
enum Host {
    Here(PeerId),
    /// Lost its socket; the room waits for it until then.
    Away {
        until: Duration,
    },
}

/// How a client leaves its room.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parting {
    /// It said so.
    Meant,
    /// Its socket dropped, or was dropped.
    Lost,
}

impl Rooms {
    /// A server without rooms.
    pub fn new(limits: Limits, timeouts: Timeouts, ice_servers: Vec<IceServer>) -> Self {
        Self {
            limits,
            timeouts,
            ice_servers,
            clients: HashMap::new(),
            networks: HashMap::new(),
            rooms: HashMap::new(),
            totals: Totals::default(),
            outputs: VecDeque::new(),
            shutting_down: false,
        }
    }

    /// Takes an event at `now`, the time since any fixed moment. Events of unknown clients are ignored.
    pub fn handle(&mut self, event: Event, now: Duration) {
        match event {
            Event::Opened { client, address } => self.open(client, address, now),
            Event::Message { client, message } => {
                if self.hear(client, now) {
                    self.obey(client, message, now);
                }
            }
            Event::Unreadable { client, refusal } => {
                if self.hear(client, now) {
                    self.refuse(client, &refusal, now);
                }
            }
            Event::Beat { client } => {
                self.hear(client, now);
            }
            Event::Stuck { client } => {
                if self.is_open(client) {
                    self.totals.stuck += 1;
                    self.close(client, Closing::Stuck, now);
                }
            }
            Event::Closed { client } => self.forget(client, now),
            Event::Tick => self.tick(now),
            Event::Shutdown => {
                self.shutting_down = true;
                for client in self.sorted(|_| true) {
                    self.refuse(client, &Refusal::ShuttingDown, now);
                }
            }
        }
    }

    /// The next thing to do, until there is none.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What there is now.
    pub fn census(&self) -> Census {
        Census {
            sockets: self.clients.len(),
            rooms: self.rooms.len(),
            members: self.rooms.values().map(|room| room.members.len()).sum(),
            totals: self.totals.clone(),
        }
    }

    fn open(&mut self, client: ClientId, address: IpAddr, now: Duration) {
        let network = network(address);
        let from_network = self.networks.entry(network).or_default();
        *from_network += 1;
        let refusal = if self.shutting_down {
            Some(Refusal::ShuttingDown)
        } else if *from_network > self.limits.sockets_per_network {
            Some(Refusal::NetworkFull { limit: self.limits.sockets_per_network })
        } else if self.clients.len() >= self.limits.sockets {
            Some(Refusal::SocketsFull { limit: self.limits.sockets })
        } else {
            None
        };
        let bucket = Bucket::full(&self.limits, now);
        self.clients.insert(client, Client { network, heard: now, bucket, state: State::Waiting });
        self.totals.sockets += 1;
        if let Some(refusal) = refusal {
            self.refuse(client, &refusal, now);
        }
    }

    /// Notes that a frame came; false if the client is not to be listened to.
    fn hear(&mut self, id: ClientId, now: Duration) -> bool {
        let Some(client) = self.clients.get_mut(&id) else { return false };
        match client.state {
            State::Closing => return false,
            // Its time runs from the opening: frames that are no `join` do not prolong it.
            State::Waiting => {}
            State::Member { .. } => client.heard = now,
        }
        let in_time = client.bucket.take(&self.limits, now);
        if !in_time {
            let per_second = self.limits.messages_per_second;
            self.refuse(id, &Refusal::TooFast { per_second }, now);
        }
        in_time
    }

    fn obey(&mut self, client: ClientId, message: ClientMessage, now: Duration) {
        let state = self.clients.get(&client).map_or(State::Closing, |client| client.state.clone());
        let done = match (state, message) {
            (State::Closing, _) => Ok(()),
            (State::Waiting, ClientMessage::Join { version, .. }) if version != PROTOCOL_VERSION => {
                Err(Refusal::Version { theirs: version.into() })
            }
            (State::Waiting, ClientMessage::Join { room, role, claim, .. }) => {
                self.join(client, room, role, claim.as_deref(), now)
            }
            (State::Member { id, .. }, ClientMessage::Join { .. }) => Err(Refusal::JoinedAlready { you: id }),
            (State::Member { room, id }, ClientMessage::Relay { to, sealed }) => {
                self.relay(&room, id, to, sealed)
            }
            (State::Member { .. }, ClientMessage::Ping) => {
                self.send(client, ServerMessage::Pong);
                Ok(())
            }
            (State::Member { .. }, ClientMessage::Leave) => {
                self.part(client, Parting::Meant, now);
                self.close(client, Closing::Left, now);
                Ok(())
            }
            (State::Waiting, _) => Err(Refusal::NotJoined),
        };
        if let Err(refusal) = done {
            self.refuse(client, &refusal, now);
        }
    }

    fn join(
        &mut self,
        client: ClientId,
        name: RoomId,
        role: Role,
        claim: Option<&str>,
        now: Duration,
    ) -> Result<(), Refusal> {
        let Limits { rooms, members, .. } = self.limits;
        if let Some(length) = claim.map(str::len).filter(|length| *length > MAX_CLAIM_LEN) {
            return Err(Refusal::ClaimTooLong { length });
        }
        let claim = claim.map(|claim| Claim(Sha256::digest(claim).into()));
        let host = match (self.rooms.get(&name), role) {
            (Some(Room { host: Host::Here(_), .. }), Role::Host) => return Err(Refusal::RoomTaken),
            // A room whose host has a claim is nobody else's.
            (Some(Room { claim: Some(own), .. }), Role::Host) if claim.as_ref() != Some(own) => {
                return Err(Refusal::RoomTaken);
            }
            (Some(Room { host: Host::Away { .. }, .. }), Role::Peer) => return Err(Refusal::HostAway),
            (None, Role::Peer) => return Err(Refusal::NoSuchRoom),
            (None, Role::Host) if self.rooms.len() >= rooms => {
                return Err(Refusal::RoomsFull { limit: rooms });
            }
            (Some(room), Role::Peer) if room.members.len() >= members => {
                return Err(Refusal::RoomFull { limit: members });
            }
            (Some(Room { host: Host::Here(host), .. }), Role::Peer) => Some(*host),
            // Nobody took its place meanwhile: a room whose host is away lets nobody in.
            (Some(Room { host: Host::Away { .. }, .. }) | None, Role::Host) => None,
        };
        let room = self.rooms.entry(name.clone()).or_insert_with(|| {
            self.totals.rooms += 1;
            Room::new(claim)
        });
        let you = PeerId(room.next);
        // Nobody joins a room four billion times within the life of its host.
        room.next = room.next.saturating_add(1);
        let host = host.unwrap_or(you);
        room.host = Host::Here(host);
        let others: Vec<_> = room.members.iter().map(|(id, client)| (*id, *client)).collect();
        room.members.insert(you, client);
        self.totals.joins += 1;
        if let Some(client) = self.clients.get_mut(&client) {
            client.heard = now;
            client.state = State::Member { room: name, id: you };
        }
        let peers = others.iter().map(|(id, _)| *id).collect();
        let ice_servers = self.ice_servers.clone();
        self.send(client, ServerMessage::Joined { you, host, peers, ice_servers });
        for (_, other) in others {
            self.send(
                other,
                match role {
                    Role::Host => ServerMessage::HostReturned { host: you },
                    Role::Peer => ServerMessage::PeerJoined { peer: you },
                },
            );
        }
        Ok(())
    }

    fn relay(&mut self, room: &RoomId, from: PeerId, to: PeerId, sealed: String) -> Result<(), Refusal> {
        let receiver = self.rooms.get(room).and_then(|room| room.members.get(&to)).copied();
        let receiver = receiver.filter(|_| to != from).ok_or(Refusal::NoSuchPeer { peer: to })?;
        self.totals.relayed += 1;
        self.totals.relayed_bytes += sealed.len() as u64;
        self.send(receiver, ServerMessage::Relay { from, sealed });
        Ok(())
    }

    fn tick(&mut self, now: Duration) {
        let Timeouts { join, silence, .. } = self.timeouts;
        let is_late = |client: &Client, limit| now.saturating_sub(client.heard) >= limit;
        for client in self.sorted(|c| matches!(c.state, State::Waiting) && is_late(c, join)) {
            self.refuse(client, &Refusal::NoJoin { within: join }, now);
        }
        for client in self.sorted(|c| matches!(c.state, State::Member { .. }) && is_late(c, silence)) {
            self.totals.silent += 1;
            self.close(client, Closing::Silent, now);
        }
        let abandoned: Vec<_> = self
            .rooms
            .iter()
            .filter(|(_, room)| matches!(room.host, Host::Away { until } if until <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in abandoned {
            self.end_room(&name, now);
        }
    }

    /// Tells a client why not, and closes it if that is the end.
    fn refuse(&mut self, client: ClientId, refusal: &Refusal, now: Duration) {
        if !self.is_open(client) {
            return;
        }
        *self.totals.refusals.entry(refusal.code()).or_default() += 1;
        self.send(client, refusal.message());
        if refusal.is_final() {
            self.close(client, Closing::Refused(refusal.code()), now);
        }
    }

    /// Takes a client out of its room and has its socket closed.
    fn close(&mut self, id: ClientId, why: Closing, now: Duration) {
        self.part(id, Parting::Lost, now);
        if let Some(client) = self.clients.get_mut(&id) {
            client.state = State::Closing;
            self.outputs.push_back(Output::Close { client: id, why });
        }
    }

    fn forget(&mut self, id: ClientId, now: Duration) {
        self.part(id, Parting::Lost, now);
        let Some(client) = self.clients.remove(&id) else { return };
        if let Some(count) = self.networks.get_mut(&client.network) {
            *count -= 1;
            if *count == 0 {
                self.networks.remove(&client.network);
            }
        }
    }

    /// Takes a client out of its room, if it is in one, and tells the others.
    fn part(&mut self, client: ClientId, parting: Parting, now: Duration) {
        let Some(Client { state: state @ State::Member { .. }, .. }) = self.clients.get_mut(&client) else {
            return;
        };
        let State::Member { room: name, id } = std::mem::replace(state, State::Closing) else { return };
        let Some(room) = self.rooms.get_mut(&name) else { return };
        room.members.remove(&id);
        if matches!(room.host, Host::Here(host) if host == id) {
            // A server that goes away takes its rooms with it; nobody waits for their hosts.
            if parting == Parting::Meant || self.shutting_down {
                return self.end_room(&name, now);
            }
            // Nobody waits in an empty room, and its host makes it anew under the same name.
            let grace =
                if room.members.is_empty() { EMPTY.min(self.timeouts.grace) } else { self.timeouts.grace };
            room.host = Host::Away { until: now + grace };
        }
        for member in room.members.values().copied().collect::<Vec<_>>() {
            self.send(member, ServerMessage::PeerLeft { peer: id });
        }
    }

    fn end_room(&mut self, name: &RoomId, now: Duration) {
        let Some(room) = self.rooms.remove(name) else { return };
        let refusal = if self.shutting_down { Refusal::ShuttingDown } else { Refusal::HostLeft };
        for member in room.members.into_values() {
            self.refuse(member, &refusal, now);
        }
    }

    fn send(&mut self, client: ClientId, message: ServerMessage) {
        self.outputs.push_back(Output::Send { client, message });
    }

    fn is_open(&self, client: ClientId) -> bool {
        self.clients.get(&client).is_some_and(|client| !matches!(client.state, State::Closing))
    }

    /// The clients of a kind in the order of their arrival, so that one input gives one output.
    fn sorted(&self, kind: impl Fn(&Client) -> bool) -> Vec<ClientId> {
        let mut ids: Vec<_> = self.clients.iter().filter(|(_, c)| kind(c)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }
}

impl Room {
    /// A room for whoever is numbered first.
    fn new(claim: Option<Claim>) -> Self {
        Self { host: Host::Here(FIRST), claim, members: BTreeMap::new(), next: FIRST.0 }
    }
}

/// What counts as one network: an IPv4 address, or the /64 that an IPv6 subscriber gets.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        v4 => v4,
    }
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Duration,
}

impl Bucket {
    fn full(limits: &Limits, now: Duration) -> Self {
        Self { tokens: limits.message_burst.into(), filled: now }
    }

    fn take(&mut self, limits: &Limits, now: Duration) -> bool {
        let gained = now.saturating_sub(self.filled).as_secs_f64() * f64::from(limits.messages_per_second);
        self.tokens = (self.tokens + gained).min(limits.message_burst.into());
        self.filled = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_protocol::room::RoomSecret;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const SECOND: Duration = Duration::from_secs(1);
    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn name(n: u8) -> RoomId {
        RoomSecret::from_bytes([n; 16]).room_id()
    }

    /// The machine with a clock to turn, and clients by number.
    struct World {
        rooms: Rooms,
        now: Duration,
    }

    impl World {
        fn new(limits: Limits) -> Self {
            let ice = IceServer { urls: vec!["stun:s".into()], username: None, credential: None };
            Self { rooms: Rooms::new(limits, Timeouts::default(), vec![ice]), now: Duration::ZERO }
        }

        fn handle(&mut self, event: Event) -> Vec<Output> {
            self.rooms.handle(event, self.now);
            std::iter::from_fn(|| self.rooms.poll()).collect()
        }

        fn open(&mut self, client: u64) -> Vec<Output> {
            self.handle(Event::Opened { client: ClientId(client), address: HERE })
        }

        fn say(&mut self, client: u64, message: ClientMessage) -> Vec<Output> {
            self.handle(Event::Message { client: ClientId(client), message })
        }

        fn join(&mut self, client: u64, room: u8, role: Role) -> Vec<Output> {
            self.open(client);
            self.say(
                client,
                ClientMessage::Join { version: PROTOCOL_VERSION, room: name(room), role, claim: None },
            )
        }

        fn claim(&mut self, client: u64, claim: &str) -> Vec<Output> {
            self.open(client);
            let claim = Some(claim.to_owned());
            let join =
                ClientMessage::Join { version: PROTOCOL_VERSION, room: name(0), role: Role::Host, claim };
            self.say(client, join)
        }

        fn lose(&mut self, client: u64) -> Vec<Output> {
            self.handle(Event::Closed { client: ClientId(client) })
        }

        fn wait(&mut self, time: Duration) -> Vec<Output> {
            self.now += time;
            self.handle(Event::Tick)
        }

        /// A room with host 1 and peers up to `members`, client numbers and peer numbers being the same.
        fn with_room(members: u64) -> Self {
            let mut world = Self::new(Limits::default());
            world.join(1, 0, Role::Host);
            for peer in 2..=members {
                world.join(peer, 0, Role::Peer);
            }
            world
        }
    }

    fn send(client: u64, message: ServerMessage) -> Output {
        Output::Send { client: ClientId(client), message }
    }

    fn joined(you: u32, host: u32, peers: &[u32]) -> ServerMessage {
        let ice = IceServer { urls: vec!["stun:s".into()], username: None, credential: None };
        ServerMessage::Joined {
            you: PeerId(you),
            host: PeerId(host),
            peers: peers.iter().copied().map(PeerId).collect(),
            ice_servers: vec![ice],
        }
    }

    fn came(peer: u32) -> ServerMessage {
        ServerMessage::PeerJoined { peer: PeerId(peer) }
    }

    fn returned(host: u32) -> ServerMessage {
        ServerMessage::HostReturned { host: PeerId(host) }
    }

    fn went(peer: u32) -> ServerMessage {
        ServerMessage::PeerLeft { peer: PeerId(peer) }
    }

    /// What a client that is refused for good gets.
    fn refused(client: u64, refusal: &Refusal) -> [Output; 2] {
        let why = Closing::Refused(refusal.code());
        [send(client, refusal.message()), Output::Close { client: ClientId(client), why }]
    }

    #[test]
    fn members_hear_of_each_other() {
        let mut world = World::new(Limits::default());
        assert_eq!(world.join(1, 0, Role::Host), [send(1, joined(1, 1, &[]))]);
        assert_eq!(world.join(2, 0, Role::Peer), [send(2, joined(2, 1, &[1])), send(1, came(2))]);
        assert_eq!(
            world.join(3, 0, Role::Peer),
            [send(3, joined(3, 1, &[1, 2])), send(1, came(3)), send(2, came(3))]
        );
        let left = Output::Close { client: ClientId(2), why: Closing::Left };
        assert_eq!(world.say(2, ClientMessage::Leave), [send(1, went(2)), send(3, went(2)), left]);
        assert_eq!(world.lose(2), []);
        // A number is never used again.
        assert_eq!(world.join(4, 0, Role::Peer)[0], send(4, joined(4, 1, &[1, 3])));
    }

    #[test]
    fn an_envelope_reaches_its_receiver_and_nobody_else() {
        let mut world = World::with_room(3);
        world.join(4, 1, Role::Host);
        let relay = |to| ClientMessage::Relay { to: PeerId(to), sealed: "x".into() };
        let envelope = ServerMessage::Relay { from: PeerId(2), sealed: "x".into() };
        assert_eq!(world.say(2, relay(3)), [send(3, envelope)]);
        // Peer 4 would be in another room; 2 is the sender itself. Neither costs the sender its socket.
        for absent in [4, 2, 0, u32::MAX] {
            assert_eq!(
                world.say(2, relay(absent)),
                [send(2, Refusal::NoSuchPeer { peer: PeerId(absent) }.message())]
            );
        }
        assert_eq!(world.say(2, ClientMessage::Ping), [send(2, ServerMessage::Pong)]);
    }

    #[test]
    fn a_host_that_leaves_takes_the_room_with_it() {
        let mut world = World::with_room(2);
        let outputs = world.say(1, ClientMessage::Leave);
        assert_eq!(outputs[..2], refused(2, &Refusal::HostLeft));
        assert_eq!(outputs[2], Output::Close { client: ClientId(1), why: Closing::Left });
        assert_eq!(world.rooms.census().rooms, 0);
        assert_eq!(world.join(3, 0, Role::Peer), refused(3, &Refusal::NoSuchRoom));
    }

    #[test]
    fn a_host_that_drops_may_come_back_within_the_grace() {
        let mut world = World::with_room(2);
        assert_eq!(world.lose(1), [send(2, went(1))]);
        assert_eq!(world.wait(29 * SECOND), []);
        assert_eq!(world.join(5, 0, Role::Peer), refused(5, &Refusal::HostAway));
        assert_eq!(world.join(3, 0, Role::Host), [send(3, joined(3, 3, &[2])), send(2, returned(3))]);
        world.say(2, ClientMessage::Ping);
        assert_eq!(world.wait(2 * SECOND), []);
        assert_eq!(world.join(4, 0, Role::Host), refused(4, &Refusal::RoomTaken));
    }

    #[test]
    fn a_room_is_kept_for_the_host_with_its_claim() {
        let mut world = World::new(Limits::default());
        world.claim(1, "mine");
        world.join(2, 0, Role::Peer);
        assert_eq!(world.claim(3, "yours"), refused(3, &Refusal::RoomTaken));
        assert_eq!(world.join(4, 0, Role::Host), refused(4, &Refusal::RoomTaken));
        // A duplicate of its tab has the claim too, and takes nothing away from it.
        assert_eq!(world.claim(5, "mine"), refused(5, &Refusal::RoomTaken));
        world.lose(1);
        assert_eq!(world.join(6, 0, Role::Host), refused(6, &Refusal::RoomTaken));
        assert_eq!(world.claim(7, "yours"), refused(7, &Refusal::RoomTaken));
        assert_eq!(world.claim(8, "mine")[0], send(8, joined(3, 3, &[2])));
        let length = MAX_CLAIM_LEN + 1;
        assert_eq!(world.claim(9, &"x".repeat(length)), refused(9, &Refusal::ClaimTooLong { length }));
    }

    #[test]
    fn a_room_ends_when_the_grace_is_over() {
        let mut world = World::with_room(2);
        world.lose(1);
        for _ in 0..30 {
            assert_eq!(world.wait(19 * SECOND), []);
            world.say(2, ClientMessage::Ping);
        }
        world.now += 29 * SECOND;
        world.say(2, ClientMessage::Ping);
        assert_eq!(world.wait(SECOND), refused(2, &Refusal::HostLeft));
        assert_eq!(world.rooms.census().rooms, 0);
    }

    #[test]
    fn a_full_room_keeps_the_place_of_a_host_that_is_away() {
        let mut world = World::new(Limits { members: 2, ..Limits::default() });
        world.join(1, 0, Role::Host);
        world.join(2, 0, Role::Peer);
        assert_eq!(world.join(3, 0, Role::Peer), refused(3, &Refusal::RoomFull { limit: 2 }));
        world.lose(1);
        world.join(4, 0, Role::Peer);
        assert_eq!(world.join(5, 0, Role::Host)[0], send(5, joined(3, 3, &[2])));
    }

    #[test]
    fn rooms_and_sockets_are_bounded() {
        let limits = Limits { rooms: 1, sockets: 4, sockets_per_network: 3, ..Limits::default() };
        let mut world = World::new(limits);
        world.join(1, 0, Role::Host);
        assert_eq!(world.join(2, 1, Role::Host), refused(2, &Refusal::RoomsFull { limit: 1 }));
        world.open(3);
        assert_eq!(world.open(4), refused(4, &Refusal::NetworkFull { limit: 3 }));
        let elsewhere = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
        let other = |client| Event::Opened { client: ClientId(client), address: elsewhere };
        assert_eq!(world.handle(other(5)), refused(5, &Refusal::SocketsFull { limit: 4 }));
        // Sockets count until they are closed, not until they were refused.
        for closed in [2, 4, 5] {
            world.lose(closed);
        }
        assert_eq!(world.open(6), []);
        assert_eq!(world.handle(other(7)), []);
    }

    #[test]
    fn an_ipv6_subscriber_is_one_network() {
        let a: Ipv6Addr = "2001:db8:1:2::1".parse().unwrap();
        let b: Ipv6Addr = "2001:db8:1:2:ffff::9".parse().unwrap();
        let c: Ipv6Addr = "2001:db8:1:3::1".parse().unwrap();
        assert_eq!(network(a.into()), network(b.into()));
        assert_ne!(network(a.into()), network(c.into()));
        assert_eq!(network(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()), HERE);
    }

    #[test]
    fn who_does_not_join_in_time_is_let_go() {
        let mut world = World::new(Limits::default());
        world.open(1);
        assert_eq!(world.wait(9 * SECOND), []);
        // Pings do not prolong the wait.
        world.handle(Event::Beat { client: ClientId(1) });
        assert_eq!(world.wait(SECOND), refused(1, &Refusal::NoJoin { within: 10 * SECOND }));
    }

    #[test]
    fn any_frame_keeps_a_member_and_silence_drops_it() {
        let mut world = World::with_room(2);
        world.now += 20 * SECOND;
        world.handle(Event::Beat { client: ClientId(1) });
        assert_eq!(
            world.wait(10 * SECOND),
            [send(1, went(2)), Output::Close { client: ClientId(2), why: Closing::Silent }]
        );
        assert_eq!(world.rooms.census().totals.silent, 1);
        assert_eq!(world.say(2, ClientMessage::Ping), [], "a closing client is not listened to");
    }

    #[test]
    fn messages_over_the_rate_close_the_socket() {
        let limits = Limits { message_burst: 3, messages_per_second: 1, ..Limits::default() };
        let mut world = World::new(limits);
        world.join(1, 0, Role::Host);
        let ping = |world: &mut World| world.say(1, ClientMessage::Ping);
        for _ in 0..2 {
            assert_eq!(ping(&mut world), [send(1, ServerMessage::Pong)]);
        }
        for _ in 0..10 {
            world.now += SECOND;
            assert_eq!(ping(&mut world), [send(1, ServerMessage::Pong)]);
        }
        assert_eq!(ping(&mut world), refused(1, &Refusal::TooFast { per_second: 1 }));
    }

    #[test]
    fn messages_out_of_order_close_the_socket() {
        let mut world = World::new(Limits::default());
        world.open(1);
        assert_eq!(world.say(1, ClientMessage::Ping), refused(1, &Refusal::NotJoined));
        world.join(2, 0, Role::Host);
        let again =
            ClientMessage::Join { version: PROTOCOL_VERSION, room: name(1), role: Role::Host, claim: None };
        assert_eq!(world.say(2, again), refused(2, &Refusal::JoinedAlready { you: PeerId(1) }));
        world.open(3);
        let older = ClientMessage::Join { version: 0, room: name(0), role: Role::Host, claim: None };
        assert_eq!(world.say(3, older), refused(3, &Refusal::Version { theirs: 0 }));
    }

    #[test]
    fn a_shutdown_tells_everybody_and_lets_nobody_in() {
        let mut world = World::with_room(2);
        world.open(3);
        let outputs = world.handle(Event::Shutdown);
        for client in 1..=3 {
            let [told, closed] = refused(client, &Refusal::ShuttingDown);
            assert_eq!(outputs.iter().filter(|output| **output == told).count(), 1, "{client}");
            assert_eq!(outputs.iter().filter(|output| **output == closed).count(), 1, "{client}");
        }
        assert_eq!(world.open(4), refused(4, &Refusal::ShuttingDown));
    }
}
