//! Clients that send what they should not, or do not do what they should: each is told why, and costs nobody else.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use baton_protocol::{
    PROTOCOL_VERSION,
    signal::{ClientMessage, ErrorCode, Role, ServerMessage},
};
use baton_signaling::{Config, Limits, Timeouts};
use common::{PATIENCE, Server, patient, room};
use futures::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

async fn server(limits: Limits, timeouts: Timeouts) -> Server {
    Server::start(Config { limits, timeouts, ..Config::default() }).await
}

#[tokio::test]
async fn another_version_is_told_to_reload() {
    let server = server(Limits::default(), patient()).await;
    let mut client = server.client().await;
    client
        .say(&ClientMessage::Join {
            version: PROTOCOL_VERSION + 1,
            room: room(0),
            role: Role::Host,
            claim: None,
        })
        .await;
    let words = client.refused(ErrorCode::Version).await;
    let (theirs, ours) = (PROTOCOL_VERSION + 1, PROTOCOL_VERSION);
    assert_eq!(words, format!("this page speaks version {theirs}, the server {ours}: reload the page"));
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    let server = server(Limits::default(), patient()).await;
    let (mut host, _) = server.member(0, Role::Host).await;
    for frame in [
        Message::text(""),
        Message::text("hello"),
        Message::text(r#"{"type":"ping""#),
        Message::text(format!(
            r#"{{"type":"join","version":{PROTOCOL_VERSION},"room":"../../etc","role":"host"}}"#
        )),
        Message::text(r#"{"type":"relay","to":1,"sealed":"before a join"}"#),
        Message::binary(vec![0; 100]),
    ] {
        let mut client = server.client().await;
        client.send(frame.clone()).await;
        client.refused(ErrorCode::BadMessage).await;
    }
    let (mut peer, _) = server.member(0, Role::Peer).await;
    peer.join(0, Role::Peer).await;
    assert!(peer.refused(ErrorCode::BadMessage).await.contains("in a room already"));
    assert!(matches!(host.hear().await, ServerMessage::PeerJoined { .. }));
    assert!(matches!(host.hear().await, ServerMessage::PeerLeft { .. }));
    assert_eq!(server.metric(r#"baton_refusals_total{code="bad_message"}"#).await, 7);
    server.stop().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_whatever_its_size() {
    let limit = 1000;
    let server = server(Limits { message_bytes: limit, ..Limits::default() }, patient()).await;
    let (mut host, _) = server.member(0, Role::Host).await;
    let frame_of = |len: usize| {
        let around = r#"{"type":"relay","to":9,"sealed":""}"#.len();
        Message::text(format!(r#"{{"type":"relay","to":9,"sealed":"{}"}}"#, "A".repeat(len - around)))
    };
    host.send(frame_of(limit)).await;
    assert_eq!(host.error().await.0, ErrorCode::NoSuchPeer);
    // Just over the limit, and so far over that the frame is not even read.
    for len in [limit + 1, 100 * limit] {
        let mut client = server.client().await;
        client.send(frame_of(len)).await;
        let (code, words) = client.error().await;
        assert_eq!((code, words.contains("1000 bytes")), (ErrorCode::TooLarge, true), "{words}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_frame_that_announces_a_terabyte_is_not_waited_for() {
    let server = server(Limits::default(), patient()).await;
    let client = server.client().await;
    let mut raw = client.0.into_inner();
    // FIN and text, masked, with a 64-bit length (RFC 6455, 5.2).
    let mut header = vec![0x81, 0xff];
    header.extend((1_u64 << 40).to_be_bytes());
    header.extend([0; 4]);
    raw.write_all(&header).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, raw.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("too_large"));
    server.stop().await;
}

#[tokio::test]
async fn messages_over_the_rate_are_refused() {
    let limits = Limits { messages_per_second: 1, message_burst: 20, ..Limits::default() };
    let server = server(limits, patient()).await;
    let (mut client, _) = server.member(0, Role::Host).await;
    for _ in 0..100 {
        // It may be closed by now.
        let _ = client.0.feed(Message::text(r#"{"type":"ping"}"#)).await;
    }
    let _ = client.0.flush().await;
    let mut pongs = 0;
    let words = loop {
        match client.hear().await {
            ServerMessage::Pong => pongs += 1,
            ServerMessage::Error { code: ErrorCode::TooFast, message } => break message,
            other => panic!("{other:?}"),
        }
    };
    // The burst less the join, and what a slow machine let trickle in.
    assert!((19..99).contains(&pongs), "{pongs}");
    assert!(words.contains("faster than 1 a second"), "{words}");
    server.stop().await;
}

#[tokio::test]
async fn who_does_not_join_is_let_go() {
    let timeouts = Timeouts { join: Duration::from_millis(200), ..patient() };
    let server = server(Limits::default(), timeouts).await;
    let mut client = server.client().await;
    assert!(client.refused(ErrorCode::BadMessage).await.contains("within 0.2 seconds"));
    server.stop().await;
}

#[tokio::test]
async fn a_silent_client_is_dropped_and_one_that_pings_is_not() {
    let timeouts = Timeouts { silence: Duration::from_secs(1), ..patient() };
    let server = server(Limits::default(), timeouts).await;
    let (mut host, _) = server.member(0, Role::Host).await;
    let (mut silent, joined) = server.member(0, Role::Peer).await;
    assert!(matches!(host.hear().await, ServerMessage::PeerJoined { .. }));
    let mut interval = tokio::time::interval(Duration::from_millis(100));
    let left = loop {
        tokio::select! {
            _ = interval.tick() => host.say(&ClientMessage::Ping).await,
            heard = host.hear() => match heard {
                ServerMessage::Pong => {}
                other => break other,
            },
        }
    };
    assert_eq!(left, ServerMessage::PeerLeft { peer: joined.you });
    assert_eq!(u16::from(silent.closed().await.code), 1008);
    assert_eq!(server.metric(r#"baton_dropped_total{reason="silent"}"#).await, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped_and_its_sender_goes_on() {
    let limits = Limits { queue_bytes: 256 * 1024, message_burst: 100_000, ..Limits::default() };
    let server = server(limits, patient()).await;
    let (mut host, _) = server.member(0, Role::Host).await;
    let (stuck, joined) = server.member(0, Role::Peer).await;
    assert!(matches!(host.hear().await, ServerMessage::PeerJoined { .. }));
    let envelope = "A".repeat(60_000);
    // What the kernel holds for a loopback connection is some megabytes.
    let mut left = None;
    for _ in 0..2000 {
        host.relay(joined.you, &envelope).await;
        if let Ok(Some(frame)) = timeout(Duration::from_micros(100), host.0.next()).await {
            left = Some(frame.unwrap());
            break;
        }
    }
    let left = left.unwrap_or_else(|| panic!("120 MB were buffered for a client that does not read"));
    assert!(left.to_text().unwrap().contains("peer_left"), "{left}");
    assert_eq!(server.metric(r#"baton_dropped_total{reason="stuck"}"#).await, 1);
    assert_eq!(server.metric("baton_members").await, 1);
    drop(stuck);
    server.stop().await;
}

#[tokio::test]
async fn one_address_has_a_bounded_number_of_sockets() {
    let server = server(Limits { sockets_per_network: 2, ..Limits::default() }, patient()).await;
    let (_host, _) = server.member(0, Role::Host).await;
    let (peer, _) = server.member(0, Role::Peer).await;
    let mut third = server.client().await;
    third.refused(ErrorCode::ServerFull).await;
    drop((peer, third));
    while server.metric("baton_sockets").await > 1 {
        tokio::task::yield_now().await;
    }
    server.member(0, Role::Peer).await;
    server.stop().await;
}

#[tokio::test]
async fn a_connection_that_does_not_finish_its_request_is_closed() {
    let timeouts = Timeouts { head: Duration::from_millis(200), ..patient() };
    let server = server(Limits::default(), timeouts).await;
    // The second might become HTTP/2, for all that is known.
    for beginning in ["", "PRI * HTTP", "GET / HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(beginning.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_nonsense_harms_nobody() {
    let server = server(Limits::default(), patient()).await;
    let _idle = TcpStream::connect(server.address).await.unwrap();
    let mut nonsense = TcpStream::connect(server.address).await.unwrap();
    nonsense.write_all(&[0xff; 10_000]).await.unwrap();
    let plain = server.get("/ws", &[]).await;
    assert_eq!(plain.status, 400);
    server.member(0, Role::Host).await;
    server.stop().await;
}
