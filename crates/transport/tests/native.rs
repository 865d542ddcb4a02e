//! Two ends in one process, wired by an in-memory relay: what the signaling server would carry.
#![cfg(all(feature = "native", not(target_arch = "wasm32")))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "in a test a panic is the verdict")]

use baton_protocol::codec::{Boundary, Precision};
use baton_protocol::link::{Lane, WINDOW};
use baton_protocol::message::Message;
use baton_protocol::pulse::Presence;
use baton_protocol::room::RoomSecret;
use baton_protocol::{Generation, MicroBatch, PeerId, Step};
use baton_transport::native::{
    Gone, Incoming, Mesh, MeshConfig, MeshEvent, NativeChannel, NewChannel, Signal,
};
use baton_transport::{Arrival, Channel, PortId, Ports};
use std::time::Duration;

const HOST: PeerId = PeerId(1);
const PEER: PeerId = PeerId(2);

struct Room {
    host: Mesh,
    peer: Mesh,
}

fn mesh(me: PeerId, secret: [u8; 16]) -> Mesh {
    let secret = RoomSecret::from_bytes(secret);
    Mesh::new(MeshConfig { me, host: HOST, secret, ice_servers: Vec::new(), loopback: true })
}

impl Room {
    fn new() -> Self {
        Self { host: mesh(HOST, *b"sixteen bytes ok"), peer: mesh(PEER, *b"sixteen bytes ok") }
    }

    /// Carries envelopes until each side has something else to tell.
    async fn carry(&mut self) -> (MeshEvent, MeshEvent) {
        let (mut at_host, mut at_peer) = (None, None);
        let carried = async {
            loop {
                while let Some(event) = self.host.poll() {
                    match event {
                        MeshEvent::Envelope { to, sealed } if to == PEER => {
                            self.peer.receive(HOST, &sealed).await;
                        }
                        event => drop(at_host.get_or_insert(event)),
                    }
                }
                while let Some(event) = self.peer.poll() {
                    match event {
                        MeshEvent::Envelope { to, sealed } if to == HOST => {
                            self.host.receive(PEER, &sealed).await;
                        }
                        event => drop(at_peer.get_or_insert(event)),
                    }
                }
                if at_host.is_some() && at_peer.is_some() {
                    return;
                }
                tokio::select! {
                    news = self.host.news() => self.host.take(news).await,
                    news = self.peer.news() => self.peer.take(news).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), carried).await.unwrap();
        (at_host.unwrap(), at_peer.unwrap())
    }

    /// A channel, seen from the host and from the peer.
    async fn channel(&mut self, lane: Lane) -> (NewChannel, NewChannel) {
        self.host.connect(PEER, lane).await;
        match self.carry().await {
            (
                MeshEvent::Channel { peer: PEER, lane: ours, channel: host },
                MeshEvent::Channel { peer: HOST, lane: theirs, channel: peer },
            ) if ours == lane && theirs == lane => (host, peer),
            other => panic!("{other:?}"),
        }
    }
}

/// One end with its link.
struct End {
    ports: Ports<NativeChannel>,
    id: PortId,
    incoming: Incoming,
}

impl End {
    fn new(other: PeerId, lane: Lane, new: NewChannel) -> Self {
        let NewChannel { channel, incoming } = new;
        let mut ports = Ports::default();
        let id = ports.insert(other, lane, |_| channel).unwrap();
        Self { ports, id, incoming }
    }

    /// Waits for one signal; gives the messages that it brought, or nothing when the channel is closed.
    async fn hear(&mut self) -> Option<Vec<Message>> {
        let signal = tokio::time::timeout(Duration::from_secs(30), self.incoming.next()).await.unwrap()?;
        let arrivals = match signal {
            Signal::Frame(bytes) => self.ports.receive(self.id, &bytes).unwrap(),
            Signal::Writable => {
                self.ports.pump(self.id).unwrap();
                Vec::new()
            }
            Signal::Closed => return None,
        };
        let message = |arrival| match arrival {
            Arrival::Message { message, .. } => Some(message),
            Arrival::Linked { .. } => None,
        };
        Some(arrivals.into_iter().filter_map(message).collect())
    }
}

fn forward(number: u16) -> Message {
    let values = vec![f32::from(number); 150_000];
    let tensor = Boundary::encode(&values, [1, 1, 150_000], Precision::F32).unwrap();
    Message::Forward { generation: Generation(1), step: Step(2), micro_batch: MicroBatch(number), tensor }
}

#[tokio::test]
async fn more_than_the_window_passes_both_ways_in_order() {
    let mut room = Room::new();
    let (host, peer) = room.channel(Lane::Bulk).await;
    let (mut host, mut peer) = (End::new(PEER, Lane::Bulk, host), End::new(HOST, Lane::Bulk, peer));
    // 12 MB each way, through a window of 4 MiB and a queue of 1 MiB.
    let messages: Vec<Message> = (0..20).map(forward).collect();
    for message in &messages {
        host.ports.send(PEER, message).unwrap();
        peer.ports.send(HOST, message).unwrap();
    }
    let (mut at_host, mut at_peer) = (Vec::new(), Vec::new());
    while at_host.len() < 20 || at_peer.len() < 20 {
        tokio::select! {
            heard = host.hear() => at_host.extend(heard.unwrap()),
            heard = peer.hear() => at_peer.extend(heard.unwrap()),
        }
    }
    assert!(at_host == messages && at_peer == messages);
    assert_eq!((room.host.refused(), room.peer.refused()), (0, 0));
}

#[tokio::test]
async fn the_last_word_arrives_before_the_end() {
    let mut room = Room::new();
    let (host, peer) = room.channel(Lane::Control).await;
    let (mut host, mut peer) = (End::new(PEER, Lane::Control, host), End::new(HOST, Lane::Control, peer));
    let goodbye = Message::Goodbye { reason: "its owner left".into() };
    peer.ports.send(HOST, &goodbye).unwrap();
    let (sent, heard) = (
        async move {
            // The link opens first: what was said before waits for it.
            while peer.ports.queued(HOST) > 0 {
                peer.hear().await.unwrap();
            }
            drop(peer);
            room.peer.leave().await;
            room.host
        },
        async {
            let mut heard = Vec::new();
            while let Some(messages) = host.hear().await {
                heard.extend(messages);
            }
            heard
        },
    );
    let (_mesh, heard) = tokio::join!(sent, heard);
    assert_eq!(heard, [goodbye]);
}

#[tokio::test]
async fn who_ignores_its_credits_is_cut_off_before_it_fills_the_memory() {
    let mut room = Room::new();
    let (mut host, mut peer) = room.channel(Lane::Bulk).await;
    // Opened, and then nobody looks at what comes.
    assert_eq!(peer.incoming.next().await, Some(Signal::Writable));
    assert_eq!(host.incoming.next().await, Some(Signal::Writable));
    let frame = vec![1; 64 * 1024];
    for _ in 0..(3 * WINDOW / frame.len()) {
        host.channel.send(&frame).unwrap();
    }
    let closed = async { while host.incoming.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(30), closed).await.unwrap();
    let mut held = 0;
    while let Some(Signal::Frame(bytes)) = peer.incoming.next().await {
        held += bytes.len();
    }
    assert!(held > WINDOW && held < 2 * WINDOW, "{held}");
}

#[tokio::test]
async fn whose_pulses_stop_is_silent_and_present_again_when_they_go_on() {
    let mut room = Room::new();
    let _channels = room.channel(Lane::Control).await;
    // Until the channel for pulses is open, which tells nothing, both are driven.
    for _ in 0..8 {
        tokio::select! {
            news = room.host.news() => room.host.take(news).await,
            news = room.peer.news() => room.peer.take(news).await,
        }
    }
    let heard = async |room: &mut Room, both: bool| loop {
        while let Some(event) = room.host.poll() {
            if let MeshEvent::Presence { peer: PEER, presence } = event {
                return presence;
            }
        }
        tokio::select! {
            news = room.host.news() => room.host.take(news).await,
            news = room.peer.news(), if both => room.peer.take(news).await,
        }
    };
    for (both, wanted) in [(false, Presence::Silent), (true, Presence::Present)] {
        let presence = tokio::time::timeout(Duration::from_secs(30), heard(&mut room, both)).await;
        assert_eq!(presence, Ok(wanted));
    }
}

#[tokio::test]
async fn who_does_not_know_the_secret_connects_to_nobody() {
    let mut room = Room { host: mesh(HOST, *b"sixteen bytes ok"), peer: mesh(PEER, *b"another secret!!") };
    room.host.connect(PEER, Lane::Bulk).await;
    while let Some(event) = room.host.poll() {
        if let MeshEvent::Envelope { sealed, .. } = event {
            room.peer.receive(HOST, &sealed).await;
        }
    }
    assert!(room.peer.poll().is_none());
    assert!(room.peer.refused() > 0);
    // A peer makes no offers to the host, and a stranger's are not heard.
    room.host.left(PEER).await;
    assert!(matches!(room.host.poll(), Some(MeshEvent::Gone { peer: PEER, reason: Gone::Left })));
}
