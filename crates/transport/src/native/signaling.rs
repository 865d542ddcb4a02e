//! The socket to the signaling server: joins a room, keeps the place warm, passes sealed envelopes on.
//!
//! A server on the LAN has a certificate of its own, which no authority signed. It is taken: the server is trusted with
//! nothing anyway, since what passes through it is sealed with the room's secret, and the connections that are made with
//! its help prove that secret. Who sits in between can only do what the server could: refuse to carry.

use baton_protocol::{
    PROTOCOL_VERSION, PeerId,
    room::RoomId,
    signal::{ClientMessage, ErrorCode, IceServer, Role, ServerMessage},
};
use futures::{SinkExt, StreamExt};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, sync::mpsc, time::MissedTickBehavior};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};

const PING: Duration = Duration::from_secs(10);
/// Pings without any message from the server after which the socket counts as dead.
const SILENT_PINGS: u32 = 3;
/// The largest message is a relayed envelope of 64 KiB.
const MAX_MESSAGE_LEN: usize = 128 * 1024;
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(16);
/// For the socket to be opened; on a LAN it takes milliseconds.
const OPEN: Duration = Duration::from_secs(15);
/// For a last word to be written.
const LEAVE: Duration = Duration::from_secs(1);
/// Events that the owner has not taken yet; beyond them the socket is not read.
const MOST_EVENTS: usize = 64;

/// What the socket tells its owner.
#[derive(Debug)]
pub enum SignalEvent {
    /// The server's certificate is not signed by an authority that is known, for this reason.
    Unverified(String),
    /// In the room.
    Joined {
        /// This client's number.
        me: PeerId,
        /// The host's.
        host: PeerId,
        /// Everybody else.
        peers: Vec<PeerId>,
        /// For the connections.
        ice_servers: Vec<IceServer>,
    },
    /// Somebody came.
    PeerJoined(PeerId),
    /// The host is back, under this number.
    HostReturned(PeerId),
    /// Somebody left.
    PeerLeft(PeerId),
    /// A sealed envelope.
    Relay {
        /// From whom, as the server says.
        from: PeerId,
        /// The envelope.
        sealed: String,
    },
    /// The server refused something, and the socket goes on.
    Trouble(SignalError),
    /// The socket is lost; it is tried again after so long.
    Lost {
        /// Until the next attempt.
        retry_in: Duration,
        /// What happened.
        why: String,
    },
    /// The socket is lost for good.
    Ended(SignalError),
}

/// Why there is no room to be in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// The server said no.
    #[error("{}", refusal(*code, message))]
    Refused {
        /// Why, for the program.
        code: ErrorCode,
        /// The server's own words.
        message: String,
    },
    /// The socket could not be opened.
    #[error(
        "the server at {url} cannot be reached: check that it is running and that this machine is on the same network ({why})"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// What happened.
        why: String,
    },
    /// The server sent something that is not of this protocol.
    #[error(
        "the server at {url} sent something that is not Baton's protocol ({what}): check the link, and that this program and the server are of one version"
    )]
    NotUnderstood {
        /// Where.
        url: String,
        /// What.
        what: String,
    },
}

fn refusal(code: ErrorCode, message: &str) -> String {
    let words = match code {
        ErrorCode::NoSuchRoom => {
            "there is no such room: the link may be old or cut short, or the host has closed its page; ask for a new link"
        }
        ErrorCode::RoomFull => {
            "the room is full: ask the host to remove a device, or try again when one has left"
        }
        ErrorCode::RoomTaken => "another device hosts this room already",
        ErrorCode::ServerFull => "the server holds as many rooms as it can: try again in a few minutes",
        ErrorCode::Version => {
            "this program and the server are of different versions: bring both to the same one"
        }
        ErrorCode::BadMessage => "the server did not understand this program: bring both to the same version",
        ErrorCode::TooLarge => "a message was larger than the server allows",
        ErrorCode::TooFast => "the server was asked too much too quickly: wait a little, then try again",
        ErrorCode::NoSuchPeer => "that device has left the room",
        ErrorCode::HostLeft => "the host has left, and the room is closed",
        ErrorCode::ShuttingDown => "the server is shutting down",
    };
    match code {
        ErrorCode::Version | ErrorCode::BadMessage | ErrorCode::TooLarge if !message.is_empty() => {
            let message: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
            format!("{words} ({message})")
        }
        _ => words.to_owned(),
    }
}

/// The socket to the signaling server, in a task of its own. Dropping it leaves the room.
pub struct SignalClient {
    orders: mpsc::UnboundedSender<Order>,
    events: mpsc::Receiver<SignalEvent>,
}

impl fmt::Debug for SignalClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignalClient(…)")
    }
}

enum Order {
    Relay(PeerId, String),
    MostAttempts(u32),
}

impl SignalClient {
    /// Opens the socket to `url` (`ws://…/ws` or `wss://…/ws`) and joins `room`, a host with its claim to it; a socket that
    /// is lost is tried again up to `most_attempts` times in a row. Runs on the tokio runtime that it is called on.
    pub fn connect(url: String, room: RoomId, role: Role, claim: Option<String>, most_attempts: u32) -> Self {
        let (order, orders) = mpsc::unbounded_channel();
        let (event, events) = mpsc::channel(MOST_EVENTS);
        let socket =
            Socket { url, room, role, claim, most_attempts, attempts: 0, joined: false, orders, event };
        tokio::spawn(socket.run());
        Self { orders: order, events }
    }

    /// The next event; none after [`SignalEvent::Ended`]. Nothing is lost if it is given up.
    pub async fn next(&mut self) -> Option<SignalEvent> {
        self.events.recv().await
    }

    /// Passes a sealed envelope to another member.
    pub fn relay(&self, to: PeerId, sealed: String) {
        self.order(Order::Relay(to, sealed));
    }

    /// Changes how often in a row a lost socket is tried again: a peer whose connections stand needs no socket, and
    /// would only come back as a stranger.
    pub fn set_most_attempts(&self, most_attempts: u32) {
        self.order(Order::MostAttempts(most_attempts));
    }

    /// Leaves the room, and waits until that is said or the socket is closed.
    pub async fn leave(self) {
        let Self { orders, mut events } = self;
        drop(orders);
        let over = async { while events.recv().await.is_some() {} };
        // A server that takes nothing finds out by itself.
        let _ = tokio::time::timeout(LEAVE, over).await;
    }

    fn order(&self, order: Order) {
        // A socket that has ended carries nothing.
        let _ = self.orders.send(order);
    }
}

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

struct Socket {
    url: String,
    room: RoomId,
    role: Role,
    claim: Option<String>,
    most_attempts: u32,
    attempts: u32,
    joined: bool,
    orders: mpsc::UnboundedReceiver<Order>,
    event: mpsc::Sender<SignalEvent>,
}

/// How a socket ends.
enum End {
    /// The owner is gone.
    Left,
    /// It may be tried again.
    Lost(String),
    /// It makes no sense to try again.
    Refused(SignalError),
}

impl Socket {
    async fn run(mut self) {
        loop {
            let end = match self.open().await {
                Ok(stream) => self.converse(stream).await,
                Err(end) => end,
            };
            let why = match end {
                End::Left => return,
                End::Refused(error) => return self.emit(SignalEvent::Ended(error)).await,
                End::Lost(why) => why,
            };
            if self.attempts >= self.most_attempts {
                let error = SignalError::Unreachable { url: self.url.clone(), why };
                return self.emit(SignalEvent::Ended(error)).await;
            }
            let retry_in = FIRST_RETRY.saturating_mul(1 << self.attempts.min(10)).min(LAST_RETRY);
            self.attempts += 1;
            self.emit(SignalEvent::Lost { retry_in, why }).await;
            let mut waited = std::pin::pin!(tokio::time::sleep(retry_in));
            loop {
                tokio::select! {
                    () = &mut waited => break,
                    order = self.orders.recv() => match order {
                        None => return,
                        Some(Order::MostAttempts(most)) => self.most_attempts = most,
                        // There is nobody to carry it; the deadline of the connection will tell.
                        Some(Order::Relay(..)) => {}
                    }
                }
            }
        }
    }

    /// An owner that is gone wants no event.
    async fn emit(&self, event: SignalEvent) {
        let _ = self.event.send(event).await;
    }

    async fn open(&mut self) -> Result<Stream, End> {
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_LEN))
            .max_frame_size(Some(MAX_MESSAGE_LEN));
        let doubts = Arc::<Mutex<Option<String>>>::default();
        let connector = if self.url.starts_with("wss:") {
            let refused = |error: rustls::Error| End::Lost(format!("encryption cannot be set up: {error}"));
            Some(Connector::Rustls(Arc::new(tls(Arc::clone(&doubts)).map_err(refused)?)))
        } else {
            Some(Connector::Plain)
        };
        let open = connect_async_tls_with_config(self.url.as_str(), Some(limits), true, connector);
        let opened = tokio::select! {
            opened = tokio::time::timeout(OPEN, open) => opened,
            () = self.event.closed() => return Err(End::Left),
        };
        let (stream, _) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(tungstenite::Error::Http(response))) => {
                let what = format!("the answer {} at /ws", response.status());
                return Err(End::Refused(SignalError::NotUnderstood { url: self.url.clone(), what }));
            }
            Ok(Err(error)) => return Err(End::Lost(words(&error))),
            Err(_) => return Err(End::Lost(format!("no answer in {} seconds", OPEN.as_secs()))),
        };
        let doubt = doubts.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(doubt) = doubt {
            self.emit(SignalEvent::Unverified(doubt)).await;
        }
        Ok(stream)
    }

    async fn converse(&mut self, mut stream: Stream) -> End {
        let (room, role, claim) = (self.room.clone(), self.role, self.claim.clone());
        let join = ClientMessage::Join { version: PROTOCOL_VERSION, room, role, claim };
        if let Err(error) = say(&mut stream, &join).await {
            return End::Lost(words(&error));
        }
        let mut ping = tokio::time::interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = 0;
        loop {
            let said = tokio::select! {
                frame = stream.next() => match frame {
                    None => return End::Lost("the server closed the connection".to_owned()),
                    Some(Err(error)) => return End::Lost(words(&error)),
                    Some(Ok(frame)) => {
                        silent = 0;
                        if let Some(end) = self.heard(frame).await {
                            return end;
                        }
                        continue;
                    }
                },
                order = self.orders.recv() => match order {
                    None => {
                        let last = async {
                            say(&mut stream, &ClientMessage::Leave).await?;
                            stream.close(None).await
                        };
                        // A server that takes nothing finds out by itself.
                        let _ = tokio::time::timeout(LEAVE, last).await;
                        return End::Left;
                    }
                    Some(Order::MostAttempts(most)) => {
                        self.most_attempts = most;
                        continue;
                    }
                    Some(Order::Relay(to, sealed)) => say(&mut stream, &ClientMessage::Relay { to, sealed }).await,
                },
                _ = ping.tick() => {
                    silent += 1;
                    if silent > SILENT_PINGS {
                        return End::Lost("the server is silent".to_owned());
                    }
                    say(&mut stream, &ClientMessage::Ping).await
                }
            };
            if let Err(error) = said {
                return End::Lost(words(&error));
            }
        }
    }

    /// What a frame means; some end the socket.
    async fn heard(&mut self, frame: Message) -> Option<End> {
        let message = match frame {
            Message::Text(text) => serde_json::from_str(&text).map_err(|error| error.to_string()),
            Message::Close(_) => return Some(End::Lost("the server closed the connection".to_owned())),
            Message::Binary(_) => Err("a binary message".to_owned()),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return None,
        };
        let event = match message {
            Err(what) => {
                let error = SignalError::NotUnderstood { url: self.url.clone(), what };
                // A server that is not one of ours has nothing to say that could be waited for.
                if !self.joined {
                    return Some(End::Refused(error));
                }
                SignalEvent::Trouble(error)
            }
            Ok(ServerMessage::Joined { you: me, host, peers, ice_servers }) => {
                self.attempts = 0;
                self.joined = true;
                SignalEvent::Joined { me, host, peers, ice_servers }
            }
            Ok(ServerMessage::PeerJoined { peer }) => SignalEvent::PeerJoined(peer),
            Ok(ServerMessage::HostReturned { host }) => SignalEvent::HostReturned(host),
            Ok(ServerMessage::PeerLeft { peer }) => SignalEvent::PeerLeft(peer),
            Ok(ServerMessage::Relay { from, sealed }) => SignalEvent::Relay { from, sealed },
            Ok(ServerMessage::Pong) => return None,
            Ok(ServerMessage::Error { code, message }) => {
                let error = SignalError::Refused { code, message };
                match code {
                    ErrorCode::NoSuchPeer | ErrorCode::TooFast | ErrorCode::TooLarge => {
                        SignalEvent::Trouble(error)
                    }
                    ErrorCode::ShuttingDown => return Some(End::Lost(error.to_string())),
                    // The place of the lost socket may not have been cleared yet.
                    ErrorCode::RoomTaken if self.joined => return Some(End::Lost(error.to_string())),
                    ErrorCode::NoSuchRoom
                    | ErrorCode::RoomFull
                    | ErrorCode::RoomTaken
                    | ErrorCode::ServerFull
                    | ErrorCode::Version
                    | ErrorCode::BadMessage
                    | ErrorCode::HostLeft => return Some(End::Refused(error)),
                }
            }
        };
        self.emit(event).await;
        None
    }
}

/// What an error of the socket says, without the name of its kind.
fn words(error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

async fn say(stream: &mut Stream, message: &ClientMessage) -> Result<(), tungstenite::Error> {
    let json = serde_json::to_string(message).expect("strings and numbers are always JSON");
    stream.send(Message::text(json)).await
}

/// TLS that takes any certificate, and notes in `doubts` what is wrong with one.
fn tls(doubts: Arc<Mutex<Option<String>>>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer { authorities, doubts }))
        .with_no_client_auth();
    Ok(config)
}

#[derive(Debug)]
struct AnyServer {
    authorities: Arc<WebPkiServerVerifier>,
    doubts: Arc<Mutex<Option<String>>>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if let Err(error) = verified {
            *self.doubts.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}
