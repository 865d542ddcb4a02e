//! The server from its start to its end: what the program prints, HTTPS, health, and a shutdown that everybody hears.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use baton_protocol::signal::{ErrorCode, Role};
use baton_signaling::{Config, tls::Identity};
use common::{Client, PATIENCE, Server, patient, request};
use std::{net::SocketAddr, process::Stdio, sync::Arc};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};
use tokio_tungstenite::client_async;

#[tokio::test]
async fn health_and_metrics_tell_what_there_is() {
    let server = Server::start(Config { timeouts: patient(), ..Config::default() }).await;
    let health = server.get("/healthz", &[]).await;
    assert_eq!((health.status, &*health.text()), (200, "ok\n"));
    let (mut host, _) = server.member(0, Role::Host).await;
    let (_peer, joined) = server.member(0, Role::Peer).await;
    let _waiting = server.client().await;
    host.hear().await;
    host.relay(joined.you, "12345").await;
    host.relay(host_of(&joined), "to oneself").await;
    host.error().await;
    for (name, value) in [
        ("baton_sockets", 3),
        ("baton_rooms", 1),
        ("baton_members", 2),
        ("baton_relayed_messages_total", 1),
        ("baton_relayed_bytes_total", 5),
        (r#"baton_refusals_total{code="no_such_peer"}"#, 1),
        (r#"baton_refusals_total{code="version"}"#, 0),
    ] {
        assert_eq!(server.metric(name).await, value, "{name}");
    }
    let metrics = server.get("/metrics", &[]).await;
    assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"));
    server.stop().await;
}

fn host_of(joined: &common::Joined) -> baton_protocol::PeerId {
    joined.host
}

#[tokio::test]
async fn a_shutdown_is_told_to_everybody() {
    let server = Server::start(Config { timeouts: patient(), ..Config::default() }).await;
    let address = server.address;
    let (mut host, _) = server.member(0, Role::Host).await;
    let (mut peer, _) = server.member(0, Role::Peer).await;
    let mut waiting = server.client().await;
    host.hear().await;
    let stopping = tokio::spawn(server.stop());
    for client in [&mut host, &mut peer, &mut waiting] {
        let (code, words) = client.error().await;
        assert_eq!((code, &*words), (ErrorCode::ShuttingDown, "the server is shutting down"));
        assert_eq!(u16::from(client.closed().await.code), 1001);
    }
    stopping.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_client_that_hangs_does_not_hold_up_a_shutdown() {
    let server = Server::start(Config { timeouts: patient(), ..Config::default() }).await;
    let (_hangs, _) = server.member(0, Role::Host).await;
    let _idle = TcpStream::connect(server.address).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn https_and_wss_work_with_a_certificate_of_our_own() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let identity = Identity::load_or_make(dir.path(), &names, std::time::SystemTime::now().into()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&identity.cert).unwrap()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(client));
    let server = Server::start(Config { tls: Some(identity), ..Config::default() }).await;
    let connect = async || {
        let stream = TcpStream::connect(server.address).await.unwrap();
        connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await.unwrap()
    };
    assert_eq!(request(connect().await, "GET", "/healthz", &[]).await.text(), "ok\n");
    let (socket, _) = client_async("wss://127.0.0.1/ws", connect().await).await.unwrap();
    drop(socket);
    server.stop().await;
}

/// The program itself, in a folder of its own.
fn program(listen: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton-signaling"));
    command.args(["--listen", listen]).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Reads the line that names the address.
async fn address(child: &mut Child) -> SocketAddr {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let Some(address) = line.strip_prefix("listening on http://") else { panic!("{line}") };
    address.parse().unwrap()
}

#[tokio::test]
async fn the_program_says_where_it_listens_and_ends_on_a_signal() {
    let mut child = program("127.0.0.1:0").spawn().unwrap();
    let address = address(&mut child).await;
    let mut client = Client::connect(address).await;
    client.join(0, Role::Host).await;
    client.joined().await;
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    client.refused(ErrorCode::ShuttingDown).await;
    assert!(timeout(PATIENCE, child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn a_taken_port_is_one_clear_line() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let mut child = program(&address.to_string()).spawn().unwrap();
    let status = timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).await.unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(words.lines().count(), 1, "{words}");
    assert!(words.contains(&format!("port {} is taken", address.port())), "{words}");
}
