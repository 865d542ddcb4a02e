//! A server on a free port, and clients that speak to it as a browser would.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

use baton_protocol::{
    PROTOCOL_VERSION, PeerId,
    room::{RoomId, RoomSecret},
    signal::{ClientMessage, ErrorCode, Role, ServerMessage},
};
use baton_signaling::{Config, Timeouts, serve, tls::TlsError};
use futures::{SinkExt, StreamExt};
use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, protocol::CloseFrame},
};

/// Far beyond what anything here takes, for machines that are busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Server {
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), TlsError>>,
}

impl Server {
    pub async fn start(config: Config) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, config).await
    }

    pub async fn start_at(ip: Ipv4Addr, config: Config) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = (Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()).into();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, config, async {
            let _ = stopped.await;
        }));
        Self { address, stop, task }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// A client that has joined, and what it was told.
    pub async fn member(&self, room: u8, role: Role) -> (Client, Joined) {
        let mut client = self.client().await;
        client.join(room, role).await;
        let joined = client.joined().await;
        (client, joined)
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let stream = TcpStream::connect(self.address).await.unwrap();
        request(stream, "GET", path, headers).await
    }

    /// One sample of `/metrics`.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics", &[]).await.text();
        let prefix = format!("{name} ");
        let sample = text.lines().find_map(|line| line.strip_prefix(&prefix));
        sample.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    /// Asks the server to stop, and waits until it has.
    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

/// Time-outs that no test runs into, but for those that it sets.
pub fn patient() -> Timeouts {
    Timeouts { head: PATIENCE, join: PATIENCE, silence: PATIENCE, grace: PATIENCE }
}

pub fn room(n: u8) -> RoomId {
    RoomSecret::from_bytes([n; 16]).room_id()
}

/// What a client is told when it has joined.
#[derive(Debug)]
pub struct Joined {
    pub you: PeerId,
    pub host: PeerId,
    pub peers: Vec<PeerId>,
}

pub struct Client(pub WebSocketStream<TcpStream>);

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (socket, _) = client_async(format!("ws://{address}/ws"), stream).await.unwrap();
        Self(socket)
    }

    pub async fn say(&mut self, message: &ClientMessage) {
        self.send(Message::text(serde_json::to_string(message).unwrap())).await;
    }

    pub async fn send(&mut self, frame: Message) {
        self.0.send(frame).await.unwrap();
    }

    pub async fn join(&mut self, n: u8, role: Role) {
        self.say(&ClientMessage::Join { version: PROTOCOL_VERSION, room: room(n), role, claim: None }).await;
    }

    pub async fn relay(&mut self, to: PeerId, sealed: &str) {
        self.say(&ClientMessage::Relay { to, sealed: sealed.to_owned() }).await;
    }

    pub async fn hear(&mut self) -> ServerMessage {
        match timeout(PATIENCE, self.0.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub async fn joined(&mut self) -> Joined {
        match self.hear().await {
            ServerMessage::Joined { you, host, peers, .. } => Joined { you, host, peers },
            other => panic!("{other:?}"),
        }
    }

    pub async fn error(&mut self) -> (ErrorCode, String) {
        match self.hear().await {
            ServerMessage::Error { code, message } => (code, message),
            other => panic!("{other:?}"),
        }
    }

    /// The server's close frame, after which the connection ends.
    pub async fn closed(&mut self) -> CloseFrame {
        let frame = match timeout(PATIENCE, self.0.next()).await.unwrap() {
            Some(Ok(Message::Close(Some(frame)))) => frame,
            other => panic!("{other:?}"),
        };
        assert!(timeout(PATIENCE, self.0.next()).await.unwrap().is_none());
        frame
    }

    /// An error of this code, and then the end; the words of the error.
    pub async fn refused(&mut self, code: ErrorCode) -> String {
        let (found, words) = self.error().await;
        assert_eq!(found, code, "{words}");
        self.closed().await;
        words
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// One HTTP/1.1 request on a connection of its own.
pub async fn request(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Response {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..split].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let response = Response { status, headers, body: bytes[split + 4..].to_vec() };
    assert_eq!(response.header("transfer-encoding"), "", "chunked bodies are not read here");
    response
}
