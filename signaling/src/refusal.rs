//! Everything the server refuses, in the words that a person reads and the code that a program tells apart.

use baton_protocol::{
    PROTOCOL_VERSION, PeerId,
    signal::{ErrorCode, MAX_CLAIM_LEN, ServerMessage},
};
use std::time::Duration;

/// Why a client did not get what it asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody holds the room.
    #[error("there is no such room: the link is mistyped, or its host has closed the page")]
    NoSuchRoom,
    /// The room's host lost its connection a moment ago.
    #[error("the host of this room lost its connection a moment ago: try again in a few seconds")]
    HostAway,
    /// The room has all the members it may have.
    #[error("the room is full: it has {limit} devices, as many as this server allows")]
    RoomFull {
        /// Members a room may have.
        limit: usize,
    },
    /// A live host holds the room.
    #[error("this room has a host already: it is open in another tab or on another device")]
    RoomTaken,
    /// A claim to a room that is longer than any client makes.
    #[error("a claim of {length} characters was refused: at most {MAX_CLAIM_LEN} are allowed")]
    ClaimTooLong {
        /// Its length.
        length: usize,
    },
    /// The server has all the rooms it may have.
    #[error("the server is full: it has {limit} rooms, as many as it allows; try again later")]
    RoomsFull {
        /// Rooms the server may have.
        limit: usize,
    },
    /// The server has all the sockets it may have.
    #[error("the server is full: it has {limit} connections, as many as it allows; try again later")]
    SocketsFull {
        /// Sockets the server may have.
        limit: usize,
    },
    /// The client's network has all the sockets it may have.
    #[error("{limit} connections come from this network, as many as the server allows; close some tabs")]
    NetworkFull {
        /// Sockets a network may have.
        limit: usize,
    },
    /// The client speaks another version of the protocol.
    #[error("this page speaks version {theirs}, the server {PROTOCOL_VERSION}: reload the page")]
    Version {
        /// The client's version.
        theirs: u64,
    },
    /// A text frame that is no message of the protocol.
    #[error("this is not a message of the protocol: {reason}")]
    Malformed {
        /// What the parser says.
        reason: String,
    },
    /// A binary frame.
    #[error("a binary frame of {len} bytes was refused: messages are JSON in text frames")]
    Binary {
        /// Its length.
        len: usize,
    },
    /// Something else came before `join`.
    #[error("the first message must be `join`")]
    NotJoined,
    /// A second `join` on one socket.
    #[error("this connection is in a room already, as peer {you}")]
    JoinedAlready {
        /// Who the client is.
        you: PeerId,
    },
    /// The client opened a socket and never asked for a room.
    #[error("no `join` came within {} seconds", .within.as_secs_f32())]
    NoJoin {
        /// How long the server waited.
        within: Duration,
    },
    /// A message over the limit.
    #[error("a message was refused: it is over {limit} bytes")]
    TooLarge {
        /// Bytes a message may have.
        limit: usize,
    },
    /// Messages over the rate.
    #[error("messages came faster than {per_second} a second for too long")]
    TooFast {
        /// Messages a second that a client may send without end.
        per_second: u32,
    },
    /// The receiver of an envelope is not in the room.
    #[error("peer {peer} is not in this room (any more)")]
    NoSuchPeer {
        /// The receiver.
        peer: PeerId,
    },
    /// The host ended the room, or did not come back.
    #[error("the host left, and the room is closed")]
    HostLeft,
    /// The server is about to exit.
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// The code that travels with the words.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoSuchRoom | Self::HostAway => ErrorCode::NoSuchRoom,
            Self::RoomFull { .. } => ErrorCode::RoomFull,
            Self::RoomTaken => ErrorCode::RoomTaken,
            Self::RoomsFull { .. } | Self::SocketsFull { .. } | Self::NetworkFull { .. } => {
                ErrorCode::ServerFull
            }
            Self::Version { .. } => ErrorCode::Version,
            Self::Malformed { .. }
            | Self::Binary { .. }
            | Self::NotJoined
            | Self::ClaimTooLong { .. }
            | Self::JoinedAlready { .. }
            | Self::NoJoin { .. } => ErrorCode::BadMessage,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::TooFast { .. } => ErrorCode::TooFast,
            Self::NoSuchPeer { .. } => ErrorCode::NoSuchPeer,
            Self::HostLeft => ErrorCode::HostLeft,
            Self::ShuttingDown => ErrorCode::ShuttingDown,
        }
    }

    /// Whether the socket is closed with it. Only a missing receiver is nobody's fault: it left as the envelope came.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::NoSuchPeer { .. })
    }

    /// As the client gets it.
    pub fn message(&self) -> ServerMessage {
        ServerMessage::Error { code: self.code(), message: self.to_string() }
    }
}
