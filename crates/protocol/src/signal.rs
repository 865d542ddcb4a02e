//! What a client and the signaling server say to each other: JSON text frames over one WebSocket at `/ws`.

use crate::{ids::PeerId, room::RoomId};
use serde::{Deserialize, Serialize};

/// The longest claim to a room, in characters.
pub const MAX_CLAIM_LEN: usize = 64;

/// From a client to the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// The first message on a socket.
    Join {
        /// [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION) of the client.
        version: u16,
        /// The room, by the hash of its secret.
        room: RoomId,
        /// Whether the room is to be made or joined.
        role: Role,
        /// A host's own secret, at most [`MAX_CLAIM_LEN`] characters: who shows it again is the same host, after a reload
        /// or a restart, and has the room back. The server keeps its hash.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        claim: Option<String>,
    },
    /// Passes a sealed envelope to another member of the room.
    Relay {
        /// The receiver.
        to: PeerId,
        /// The envelope ([`Sealer::seal`](crate::room::Sealer::seal)).
        sealed: String,
    },
    /// Asks for a [`ServerMessage::Pong`]; a silent client is dropped.
    Ping,
    /// Leaves the room.
    Leave,
}

/// What a client is in its room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Makes the room; one a room.
    Host,
    /// Lends a device.
    Peer,
}

/// From the server to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// The client is in.
    Joined {
        /// Its number in this room.
        you: PeerId,
        /// The host's number.
        host: PeerId,
        /// Everybody else in the room.
        peers: Vec<PeerId>,
        /// For `RTCPeerConnection`.
        ice_servers: Vec<IceServer>,
    },
    /// Somebody came.
    PeerJoined {
        /// Who.
        peer: PeerId,
    },
    /// The host is back, under another number.
    HostReturned {
        /// Its number now.
        host: PeerId,
    },
    /// Somebody left, or was silent for too long.
    PeerLeft {
        /// Who.
        peer: PeerId,
    },
    /// An envelope from another member.
    Relay {
        /// The sender, as the server knows it.
        from: PeerId,
        /// The envelope.
        sealed: String,
    },
    /// The answer to [`ClientMessage::Ping`].
    Pong,
    /// Why the server closes this socket, or did not do what was asked.
    Error {
        /// What a program tells apart.
        code: ErrorCode,
        /// What a person reads.
        message: String,
    },
}

/// A STUN or TURN server, as `RTCIceServer` wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IceServer {
    /// `stun:…` or `turn:…`.
    pub urls: Vec<String>,
    /// For TURN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// For TURN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
}

/// What the signaling server refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// No host holds a room of this name.
    NoSuchRoom,
    /// The room has as many members as the server allows.
    RoomFull,
    /// The room has a host already.
    RoomTaken,
    /// The server has as many rooms as it allows.
    ServerFull,
    /// The client speaks another version of the protocol.
    Version,
    /// A message that is not of this protocol, or out of order.
    BadMessage,
    /// The message is longer than the server allows.
    TooLarge,
    /// Messages came faster than the server allows.
    TooFast,
    /// The receiver of an envelope is not in the room.
    NoSuchPeer,
    /// The host left, and with it the room.
    HostLeft,
    /// The server is shutting down.
    ShuttingDown,
}
