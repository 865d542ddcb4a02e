//! Random events against the machine of rooms, checked against what the clients were told: nobody hears of a room that
//! it is not in, everybody's view of its room is the room, and nothing outgrows its limit.
#![allow(clippy::unwrap_used, clippy::panic)]

use baton_protocol::{
    PROTOCOL_VERSION, PeerId,
    room::{RoomId, RoomSecret},
    signal::{ClientMessage, Role, ServerMessage},
};
use baton_signaling::{
    Limits, Timeouts,
    refusal::Refusal,
    rooms::{ClientId, Event, Output, Rooms, Totals},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

const LIMITS: Limits = Limits {
    rooms: 3,
    members: 4,
    sockets: 20,
    sockets_per_network: 8,
    message_bytes: 1000,
    messages_per_second: 2,
    message_burst: 12,
    queue_bytes: 1000,
};

#[test]
fn the_rooms_are_what_their_members_were_told() {
    let mut tried = [0; 4];
    let mut refused = HashSet::new();
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step();
        }
        let totals = world.finish();
        for (sum, count) in tried.iter_mut().zip([totals.joins, totals.relayed, totals.silent, totals.stuck])
        {
            *sum += count;
        }
        refused.extend(totals.refusals.into_keys());
    }
    assert!(tried.into_iter().all(|count| count > 30), "{tried:?}");
    // All but those that only the sockets or the end of the server bring about.
    assert_eq!(refused.len(), 9, "{refused:?}");
}

/// A client as it sees itself.
#[derive(Debug, Default)]
struct View {
    asked: Option<RoomId>,
    /// Its number, and who else is in the room.
    room: Option<(PeerId, BTreeSet<PeerId>)>,
    closed: bool,
}

struct World {
    seed: u64,
    rng: ChaCha8Rng,
    rooms: Rooms,
    now: Duration,
    views: BTreeMap<ClientId, View>,
    opened: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            rooms: Rooms::new(
                LIMITS,
                Timeouts { grace: Duration::from_secs(30), ..Timeouts::default() },
                Vec::new(),
            ),
            now: Duration::ZERO,
            views: BTreeMap::new(),
            opened: 0,
        }
    }

    fn step(&mut self) {
        let is_pause = self.rng.random_bool(0.01);
        self.now += Duration::from_millis(self.rng.random_range(if is_pause { 0..40_000 } else { 0..400 }));
        let event = self.event();
        self.handle(&event);
    }

    fn event(&mut self) -> Event {
        // Sockets that the server closes are soon closed.
        if let Some((client, _)) = self.views.iter().find(|(_, view)| view.closed)
            && self.rng.random_bool(0.3)
        {
            return Event::Closed { client: *client };
        }
        // Now and then somebody speaks whom nobody listens to any more.
        let any = self.rng.random_bool(0.1);
        let known = self.views.iter().filter(|(_, view)| any || !view.closed).map(|(client, _)| *client);
        let known: Vec<_> = known.collect();
        let kind = self.rng.random_range(0..100);
        if known.is_empty() || kind < 12 {
            self.opened += 1;
            let client = ClientId(self.opened);
            self.views.insert(client, View::default());
            let host = self.rng.random_range(1..4);
            return Event::Opened { client, address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)) };
        }
        let client = known[self.rng.random_range(0..known.len())];
        let has_asked = self.views[&client].asked.is_some();
        match kind {
            // Mostly once: a second join ends it.
            12..40 if !has_asked || kind == 12 => {
                let room = RoomSecret::from_bytes([self.rng.random_range(0..4); 16]).room_id();
                let role = if self.rng.random_bool(0.4) { Role::Host } else { Role::Peer };
                let version = if self.rng.random_bool(0.02) { 0 } else { PROTOCOL_VERSION };
                let view = self.views.get_mut(&client).unwrap();
                // A second join is refused, and means nothing.
                view.asked.get_or_insert_with(|| room.clone());
                Event::Message { client, message: ClientMessage::Join { version, room, role, claim: None } }
            }
            13..65 => {
                let others = self.views[&client].room.iter().flat_map(|(_, others)| others).copied();
                let others: Vec<_> = others.collect();
                let to = match others.len() {
                    0 => PeerId(self.rng.random_range(0..8)),
                    count => others[self.rng.random_range(0..count)],
                };
                let sealed = client.0.to_string();
                Event::Message { client, message: ClientMessage::Relay { to, sealed } }
            }
            65..75 => Event::Message { client, message: ClientMessage::Ping },
            75..78 => Event::Message { client, message: ClientMessage::Leave },
            78..80 => Event::Unreadable { client, refusal: Refusal::Binary { len: 1 } },
            80..84 => Event::Beat { client },
            84..86 => Event::Stuck { client },
            86..88 => Event::Closed { client },
            _ => Event::Tick,
        }
    }

    fn handle(&mut self, event: &Event) {
        let gone = match event {
            Event::Closed { client } => self.views.remove(client).map(|_| *client),
            _ => None,
        };
        self.rooms.handle(event.clone(), self.now);
        while let Some(output) = self.rooms.poll() {
            self.observe(&output, event);
            if let (Some(gone), Output::Send { client, .. } | Output::Close { client, .. }) = (gone, &output)
            {
                assert_ne!(gone, *client, "seed {}: {output:?} after {event:?}", self.seed);
            }
        }
        self.check(event);
    }

    fn observe(&mut self, output: &Output, event: &Event) {
        let at = format!("seed {}: {output:?} after {event:?}", self.seed);
        let (Output::Send { client, .. } | Output::Close { client, .. }) = output;
        let view = self.views.get_mut(client).unwrap_or_else(|| panic!("{at}: no such client"));
        assert!(!view.closed, "{at}: the client is closed");
        match output {
            Output::Close { .. } => (view.closed, view.room) = (true, None),
            Output::Send { message, .. } => match message {
                ServerMessage::Joined { you, host, peers, .. } => {
                    assert!(view.room.is_none(), "{at}: joined twice");
                    let others: BTreeSet<_> = peers.iter().copied().collect();
                    assert!(host == you || others.contains(host), "{at}: the host is not in the room");
                    assert!(others.iter().all(|other| other < you), "{at}: a number is used again");
                    view.room = Some((*you, others));
                }
                ServerMessage::PeerJoined { peer } | ServerMessage::HostReturned { host: peer } => {
                    assert!(view.room.as_mut().unwrap().1.insert(*peer), "{at}: came twice");
                }
                ServerMessage::PeerLeft { peer } => {
                    assert!(view.room.as_mut().unwrap().1.remove(peer), "{at}: was not there");
                }
                ServerMessage::Relay { from, sealed } => {
                    let room = view.asked.clone();
                    let sender = &self.views[&ClientId(sealed.parse().unwrap())];
                    assert_eq!(sender.room.as_ref().map(|room| room.0), Some(*from), "{at}: forged sender");
                    assert_eq!(sender.asked, room, "{at}: from another room");
                }
                ServerMessage::Pong | ServerMessage::Error { .. } => {}
            },
        }
    }

    /// What each member was told is what all of them are.
    fn check(&self, event: &Event) {
        let at = format!("seed {} after {event:?}", self.seed);
        let mut rooms: BTreeMap<&RoomId, BTreeSet<PeerId>> = BTreeMap::new();
        let members = || {
            self.views.values().filter_map(|view| {
                let (you, others) = view.room.as_ref()?;
                Some((view.asked.as_ref()?, *you, others))
            })
        };
        for (room, you, _) in members() {
            assert!(rooms.entry(room).or_default().insert(you), "{at}: two have number {you}");
        }
        for (room, you, others) in members() {
            let mut all = others.clone();
            all.insert(you);
            assert_eq!(all, rooms[room], "{at}: what {you} sees");
        }
        let census = self.rooms.census();
        assert_eq!(census.sockets, self.views.len(), "{at}");
        assert_eq!(census.members, rooms.values().map(BTreeSet::len).sum::<usize>(), "{at}");
        assert!(rooms.len() <= census.rooms && census.rooms <= LIMITS.rooms, "{at}: {census:?}");
        assert!(rooms.values().all(|room| room.len() <= LIMITS.members), "{at}: a room is too full");
    }

    /// When everybody is gone, nothing is left.
    fn finish(mut self) -> Totals {
        for client in self.views.keys().copied().collect::<Vec<_>>() {
            self.handle(&Event::Closed { client });
        }
        self.now += Timeouts { grace: Duration::from_secs(30), ..Timeouts::default() }.grace;
        self.handle(&Event::Tick);
        let census = self.rooms.census();
        assert_eq!((census.sockets, census.rooms, census.members), (0, 0, 0), "seed {}", self.seed);
        census.totals
    }
}
