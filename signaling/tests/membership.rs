//! Over real sockets: who joins, who hears of it, whose envelopes arrive, and what a host's going means.
#![allow(clippy::unwrap_used)]

mod common;

use baton_protocol::{
    PeerId,
    signal::{ClientMessage, ErrorCode, IceServer, Role, ServerMessage},
};
use baton_signaling::{Config, Limits, Timeouts};
use common::{Server, patient};
use std::time::Duration;

fn config() -> Config {
    Config { timeouts: patient(), ..Config::default() }
}

#[tokio::test]
async fn members_join_relay_and_leave() {
    let server = Server::start(config()).await;
    let (mut host, joined) = server.member(0, Role::Host).await;
    assert_eq!((joined.you, joined.peers), (joined.host, vec![]));
    let host_id = joined.you;

    let (mut peer, joined) = server.member(0, Role::Peer).await;
    assert_eq!((joined.host, joined.peers), (host_id, vec![host_id]));
    assert_eq!(host.hear().await, ServerMessage::PeerJoined { peer: joined.you });

    peer.relay(host_id, "offer").await;
    assert_eq!(host.hear().await, ServerMessage::Relay { from: joined.you, sealed: "offer".into() });
    host.relay(joined.you, "answer").await;
    assert_eq!(peer.hear().await, ServerMessage::Relay { from: host_id, sealed: "answer".into() });
    peer.say(&ClientMessage::Ping).await;
    assert_eq!(peer.hear().await, ServerMessage::Pong);

    peer.say(&ClientMessage::Leave).await;
    assert_eq!(u16::from(peer.closed().await.code), 1000);
    assert_eq!(host.hear().await, ServerMessage::PeerLeft { peer: joined.you });
    host.relay(joined.you, "too late").await;
    assert_eq!(host.error().await.0, ErrorCode::NoSuchPeer);

    host.say(&ClientMessage::Leave).await;
    host.closed().await;
    server.stop().await;
}

#[tokio::test]
async fn rooms_do_not_hear_each_other() {
    let server = Server::start(config()).await;
    let (mut one, _) = server.member(1, Role::Host).await;
    let (mut two, _) = server.member(2, Role::Host).await;
    let (mut peer, _) = server.member(2, Role::Peer).await;
    assert!(matches!(two.hear().await, ServerMessage::PeerJoined { .. }));
    // Number 2 exists in room 2 only.
    one.relay(PeerId(2), "x").await;
    assert_eq!(one.error().await.0, ErrorCode::NoSuchPeer);
    for client in [&mut one, &mut two, &mut peer] {
        client.say(&ClientMessage::Ping).await;
        assert_eq!(client.hear().await, ServerMessage::Pong);
    }
    server.stop().await;
}

#[tokio::test]
async fn everybody_is_told_the_ice_servers() {
    let turn = IceServer {
        urls: vec!["turn:t.example:3478".into()],
        username: Some("ann".into()),
        credential: Some("word".into()),
    };
    let server = Server::start(Config { ice_servers: vec![turn.clone()], ..config() }).await;
    let mut host = server.client().await;
    host.join(0, Role::Host).await;
    let ServerMessage::Joined { ice_servers, .. } = host.hear().await else { unreachable!() };
    assert_eq!(ice_servers, [turn]);
    server.stop().await;
}

#[tokio::test]
async fn a_join_that_cannot_be_is_refused_in_words() {
    let limits = Limits { rooms: 1, members: 2, ..Limits::default() };
    let server = Server::start(Config { limits, ..config() }).await;
    let refused = async |room, role, code| {
        let mut client = server.client().await;
        client.join(room, role).await;
        client.refused(code).await
    };
    assert!(refused(0, Role::Peer, ErrorCode::NoSuchRoom).await.contains("no such room"));
    let (_host, _) = server.member(0, Role::Host).await;
    assert!(refused(0, Role::Host, ErrorCode::RoomTaken).await.contains("has a host already"));
    assert!(refused(1, Role::Host, ErrorCode::ServerFull).await.contains("try again later"));
    let (_peer, _) = server.member(0, Role::Peer).await;
    assert!(refused(0, Role::Peer, ErrorCode::RoomFull).await.contains("2 devices"));
    assert_eq!(server.metric(r#"baton_refusals_total{code="room_full"}"#).await, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_host_that_drops_finds_its_peers_again() {
    let server = Server::start(config()).await;
    let (host, before) = server.member(0, Role::Host).await;
    let (mut peer, joined) = server.member(0, Role::Peer).await;
    drop(host);
    assert_eq!(peer.hear().await, ServerMessage::PeerLeft { peer: before.you });

    let mut early = server.client().await;
    early.join(0, Role::Peer).await;
    assert!(early.refused(ErrorCode::NoSuchRoom).await.contains("try again in a few seconds"));

    let (mut host, after) = server.member(0, Role::Host).await;
    assert_ne!(after.you, before.you);
    assert_eq!((after.host, after.peers), (after.you, vec![joined.you]));
    assert_eq!(peer.hear().await, ServerMessage::HostReturned { host: after.you });
    peer.relay(after.you, "again").await;
    assert_eq!(host.hear().await, ServerMessage::Relay { from: joined.you, sealed: "again".into() });
    server.stop().await;
}

#[tokio::test]
async fn a_host_that_stays_away_or_leaves_ends_the_room() {
    let timeouts = Timeouts { grace: Duration::from_millis(200), ..patient() };
    let server = Server::start(Config { timeouts, ..config() }).await;
    let (host, _) = server.member(0, Role::Host).await;
    let (mut peer, _) = server.member(0, Role::Peer).await;
    drop(host);
    assert!(matches!(peer.hear().await, ServerMessage::PeerLeft { .. }));
    peer.refused(ErrorCode::HostLeft).await;

    let (mut host, _) = server.member(0, Role::Host).await;
    let (mut peer, _) = server.member(0, Role::Peer).await;
    host.hear().await;
    host.say(&ClientMessage::Leave).await;
    peer.refused(ErrorCode::HostLeft).await;
    host.closed().await;
    assert_eq!(server.metric("baton_rooms").await, 0);
    server.stop().await;
}
