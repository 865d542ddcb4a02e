//! A thousand phones at once: every envelope arrives, once and in order, and nobody is dropped.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use baton_protocol::{
    PeerId,
    signal::{Role, ServerMessage},
};
use baton_signaling::{Config, Limits};
use common::{Client, Server, patient};
use std::{collections::HashMap, time::Instant};

const ROOMS: u8 = 40;
const MEMBERS: u8 = 25;
const ENVELOPES: usize = 2;

/// About what an SDP with its candidates has, sealed.
const ENVELOPE: usize = 4096;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_hear_all_that_is_sent_to_them() {
    let limits = Limits { sockets_per_network: 1000, ..Limits::default() };
    let server = Server::start(Config { limits, timeouts: patient(), ..Config::default() }).await;
    let started = Instant::now();
    let rooms = futures::future::join_all((0..ROOMS).map(|room| fill(&server, room))).await;
    assert_eq!(server.metric("baton_members").await, 1000);
    let joined = started.elapsed();
    let tasks = rooms.into_iter().flatten().map(|(client, you)| tokio::spawn(talk(client, you)));
    let clients = futures::future::join_all(tasks).await;
    let talked = started.elapsed() - joined;
    let relayed = 1000 * (u64::from(MEMBERS) - 1) * ENVELOPES as u64;
    assert_eq!(server.metric("baton_relayed_messages_total").await, relayed);
    assert_eq!(server.metric("baton_sockets").await, 1000);
    println!("1000 clients joined in {joined:.2?}; {relayed} envelopes of {ENVELOPE} bytes in {talked:.2?}");
    drop(clients);
    server.stop().await;
}

/// The members of one room, with their numbers.
async fn fill(server: &Server, room: u8) -> Vec<(Client, PeerId)> {
    let mut members = Vec::new();
    for n in 0..MEMBERS {
        let role = if n == 0 { Role::Host } else { Role::Peer };
        let (client, joined) = server.member(room, role).await;
        assert_eq!(joined.peers.len(), usize::from(n));
        members.push((client, joined.you));
    }
    members
}

/// Sends to everybody in the room, and hears from everybody.
async fn talk(mut client: Client, you: PeerId) -> Client {
    let others: Vec<_> = (1..=u32::from(MEMBERS)).map(PeerId).filter(|id| *id != you).collect();
    let mut heard: HashMap<PeerId, usize> = HashMap::new();
    for number in 0..ENVELOPES {
        for to in &others {
            client.relay(*to, &format!("{number:0>ENVELOPE$}")).await;
        }
    }
    while heard.values().sum::<usize>() < others.len() * ENVELOPES {
        match client.hear().await {
            ServerMessage::PeerJoined { .. } => {}
            ServerMessage::Relay { from, sealed } => {
                let next = heard.entry(from).or_default();
                assert_eq!(sealed, format!("{next:0>ENVELOPE$}"));
                *next += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    client
}
