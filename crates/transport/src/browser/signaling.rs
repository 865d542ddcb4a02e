//! The socket to the signaling server: joins a room, keeps the place warm, passes sealed envelopes on.

use super::words;
use baton_protocol::{
    PROTOCOL_VERSION, PeerId,
    room::RoomId,
    signal::{ClientMessage, ErrorCode, IceServer, Role, ServerMessage},
};
use gloo::{
    events::EventListener,
    timers::callback::{Interval, Timeout},
};
use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::{Rc, Weak},
};
use wasm_bindgen::JsCast;
use web_sys::{MessageEvent, WebSocket};

const PING_MS: u32 = 10_000;
/// Pings without any message from the server after which the socket counts as dead.
const SILENT_PINGS: u32 = 3;
/// The largest message is a relayed envelope of 64 KiB.
const MAX_MESSAGE_LEN: u32 = 128 * 1024;
const FIRST_RETRY_MS: u32 = 500;
const LAST_RETRY_MS: u32 = 16_000;

/// What the socket tells the page.
#[derive(Debug)]
pub enum SignalEvent {
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
    /// The socket is lost; it is tried again after so many seconds.
    Lost {
        /// Until the next attempt.
        retry_in: f64,
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
        "The server at {url} cannot be reached. Is it running, and is this device on the same network? ({why})"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// What the browser says.
        why: String,
    },
    /// The server sent something that is not of this protocol.
    #[error(
        "The server sent something that this page does not understand ({what}). Reload the page; its version may be old."
    )]
    NotUnderstood {
        /// What.
        what: String,
    },
}

fn refusal(code: ErrorCode, message: &str) -> String {
    let words = match code {
        ErrorCode::NoSuchRoom => {
            "There is no such room. The link may be old or cut short, or the host has closed the page: ask for a new link."
        }
        ErrorCode::RoomFull => {
            "The room is full. Ask the host to remove a device, or try again when one has left."
        }
        ErrorCode::RoomTaken => {
            "Another tab hosts this room already. Use that tab, or reload this page for a new room."
        }
        ErrorCode::ServerFull => "The server holds as many rooms as it can. Try again in a few minutes.",
        ErrorCode::Version => {
            "This page and the server are of different versions. Reload the page; if that does not help, reload the host's page too."
        }
        ErrorCode::BadMessage => {
            "The server did not understand this page. Reload it; its version may be old."
        }
        ErrorCode::TooLarge => "A message was larger than the server allows.",
        ErrorCode::TooFast => "The server was asked too much too quickly. Wait a little, then try again.",
        ErrorCode::NoSuchPeer => "That device has left the room.",
        ErrorCode::HostLeft => {
            "The host has left, and the room is closed. Thank you for lending this device."
        }
        ErrorCode::ShuttingDown => "The server is shutting down.",
    };
    match code {
        ErrorCode::Version | ErrorCode::BadMessage | ErrorCode::TooLarge if !message.is_empty() => {
            let message: String = message.chars().take(200).collect();
            format!("{words} ({message})")
        }
        _ => words.to_owned(),
    }
}

/// The socket to the signaling server. Dropping it leaves the room.
#[derive(Clone)]
pub struct SignalClient(Rc<Inner>);

impl fmt::Debug for SignalClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignalClient").field("url", &self.0.url).finish_non_exhaustive()
    }
}

struct Inner {
    url: String,
    room: RoomId,
    role: Role,
    claim: Option<String>,
    on_event: Box<dyn Fn(SignalEvent)>,
    socket: RefCell<Option<Socket>>,
    retry: RefCell<Option<Timeout>>,
    attempts: Cell<u32>,
    most_attempts: Cell<u32>,
    joined_before: Cell<bool>,
    over: Cell<bool>,
}

type Handler = Box<dyn Fn(&Rc<Inner>, &web_sys::Event)>;

struct Socket {
    socket: WebSocket,
    _listeners: [EventListener; 4],
    _ping: Interval,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.socket.close().ok();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.get_mut() {
            socket.send(&ClientMessage::Leave);
        }
    }
}

impl Socket {
    fn send(&self, message: &ClientMessage) {
        if self.socket.ready_state() == WebSocket::OPEN {
            let json = serde_json::to_string(message).expect("strings and numbers are always JSON");
            self.socket.send_with_str(&json).ok();
        }
    }
}

impl SignalClient {
    /// Opens the socket and joins `room`, a host with its claim to it; a socket that is lost is tried again up to `most_attempts` times in a row.
    pub fn connect(
        url: String,
        room: RoomId,
        role: Role,
        claim: Option<String>,
        most_attempts: u32,
        on_event: impl Fn(SignalEvent) + 'static,
    ) -> Self {
        let inner = Rc::new(Inner {
            url,
            room,
            role,
            claim,
            on_event: Box::new(on_event),
            socket: RefCell::default(),
            retry: RefCell::default(),
            attempts: Cell::new(0),
            most_attempts: Cell::new(most_attempts),
            joined_before: Cell::new(false),
            over: Cell::new(false),
        });
        inner.open();
        Self(inner)
    }

    /// Passes a sealed envelope to another member.
    pub fn relay(&self, to: PeerId, sealed: String) {
        self.send(&ClientMessage::Relay { to, sealed });
    }

    /// Changes how often in a row a lost socket is tried again: a peer whose connections stand needs no socket, and
    /// would only come back as a stranger.
    pub fn set_most_attempts(&self, most_attempts: u32) {
        self.0.most_attempts.set(most_attempts);
    }

    /// Leaves the room; no event follows.
    pub fn leave(&self) {
        self.send(&ClientMessage::Leave);
        self.0.finish();
    }

    fn send(&self, message: &ClientMessage) {
        if let Some(socket) = &*self.0.socket.borrow() {
            socket.send(message);
        }
    }
}

impl Inner {
    fn emit(&self, event: SignalEvent) {
        if !self.over.get() {
            (self.on_event)(event);
        }
    }

    fn finish(&self) {
        self.over.set(true);
        drop(self.retry.take());
        drop(self.socket.take());
    }

    fn end(&self, error: SignalError) {
        self.emit(SignalEvent::Ended(error));
        self.finish();
    }

    fn open(self: &Rc<Self>) {
        drop(self.socket.take());
        let socket = match WebSocket::new(&self.url) {
            Ok(socket) => socket,
            Err(error) => {
                return self.end(SignalError::Unreachable { url: self.url.clone(), why: words(&error) });
            }
        };
        let heard = Rc::new(Cell::new(0_u32));
        let on = |kind: &'static str, handle: Handler| {
            let weak: Weak<Self> = Rc::downgrade(self);
            EventListener::new(&socket, kind, move |event| {
                if let Some(inner) = weak.upgrade() {
                    handle(&inner, event);
                }
            })
        };
        let listeners = [
            on(
                "open",
                Box::new(|inner, _| {
                    let (room, role, claim) = (inner.room.clone(), inner.role, inner.claim.clone());
                    if let Some(socket) = &*inner.socket.borrow() {
                        socket.send(&ClientMessage::Join { version: PROTOCOL_VERSION, room, role, claim });
                    }
                }),
            ),
            on("message", {
                let heard = Rc::clone(&heard);
                Box::new(move |inner, event| {
                    heard.set(0);
                    if let Some(event) = event.dyn_ref::<MessageEvent>() {
                        inner.receive(event);
                    }
                })
            }),
            on("close", Box::new(|inner, _| inner.lost("the connection was closed"))),
            on("error", Box::new(|inner, _| inner.lost("the connection failed"))),
        ];
        let weak = Rc::downgrade(self);
        let ping = Interval::new(PING_MS, move || {
            let Some(inner) = weak.upgrade() else { return };
            heard.set(heard.get() + 1);
            if heard.get() > SILENT_PINGS {
                return inner.lost("the server is silent");
            }
            if let Some(socket) = &*inner.socket.borrow() {
                socket.send(&ClientMessage::Ping);
            }
        });
        self.socket.replace(Some(Socket { socket, _listeners: listeners, _ping: ping }));
    }

    fn lost(self: &Rc<Self>, why: &str) {
        if self.over.get() || self.retry.borrow().is_some() {
            return;
        }
        drop(self.socket.take());
        let attempt = self.attempts.get();
        if attempt >= self.most_attempts.get() {
            return self.end(SignalError::Unreachable { url: self.url.clone(), why: why.to_owned() });
        }
        self.attempts.set(attempt + 1);
        let wait = FIRST_RETRY_MS.saturating_mul(1 << attempt.min(10)).min(LAST_RETRY_MS);
        let weak = Rc::downgrade(self);
        let retry = Timeout::new(wait, move || {
            if let Some(inner) = weak.upgrade() {
                // Forgotten rather than dropped: this is the callback that it owns.
                if let Some(retry) = inner.retry.take() {
                    retry.forget();
                }
                inner.open();
            }
        });
        self.retry.replace(Some(retry));
        self.emit(SignalEvent::Lost { retry_in: f64::from(wait) / 1000.0 });
    }

    fn receive(self: &Rc<Self>, event: &MessageEvent) {
        let not_understood = |what: String| SignalError::NotUnderstood { what };
        let data = event.data();
        let message = match data.dyn_ref::<js_sys::JsString>() {
            None => Err("a binary message".to_owned()),
            Some(text) if text.length() > MAX_MESSAGE_LEN => {
                Err(format!("a message of {} characters", text.length()))
            }
            Some(text) => serde_json::from_str(&String::from(text)).map_err(|error| error.to_string()),
        };
        match message {
            Err(what) => self.emit(SignalEvent::Trouble(not_understood(what))),
            Ok(ServerMessage::Joined { you: me, host, peers, ice_servers }) => {
                self.attempts.set(0);
                self.joined_before.set(true);
                self.emit(SignalEvent::Joined { me, host, peers, ice_servers });
            }
            Ok(ServerMessage::PeerJoined { peer }) => self.emit(SignalEvent::PeerJoined(peer)),
            Ok(ServerMessage::HostReturned { host }) => self.emit(SignalEvent::HostReturned(host)),
            Ok(ServerMessage::PeerLeft { peer }) => self.emit(SignalEvent::PeerLeft(peer)),
            Ok(ServerMessage::Relay { from, sealed }) => self.emit(SignalEvent::Relay { from, sealed }),
            Ok(ServerMessage::Pong) => {}
            Ok(ServerMessage::Error { code, message }) => {
                let error = SignalError::Refused { code, message };
                match code {
                    ErrorCode::NoSuchPeer | ErrorCode::TooFast | ErrorCode::TooLarge => {
                        self.emit(SignalEvent::Trouble(error));
                    }
                    ErrorCode::ShuttingDown => self.lost("the server is shutting down"),
                    // The place of the lost socket may not have been cleared yet.
                    ErrorCode::RoomTaken if self.joined_before.get() => {
                        self.lost("the server still holds the old connection");
                    }
                    ErrorCode::NoSuchRoom
                    | ErrorCode::RoomFull
                    | ErrorCode::RoomTaken
                    | ErrorCode::ServerFull
                    | ErrorCode::Version
                    | ErrorCode::BadMessage
                    | ErrorCode::HostLeft => self.end(error),
                }
            }
        }
    }
}
