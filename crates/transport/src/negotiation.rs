//! What the two ends of a connection say to each other before there is one, sealed in envelopes.

use baton_protocol::link::Lane;
use serde::{Deserialize, Serialize};

/// An SDP of one data channel is about 600 bytes, with all its candidates 6 KB.
const MAX_SDP_LEN: usize = 32 * 1024;
/// A candidate line is about 150 bytes.
const MAX_CANDIDATE_LEN: usize = 2 * 1024;

/// Candidates kept until the description they belong to is set; a browser finds 4 to 20.
pub(crate) const MAX_EARLY: usize = 64;

/// The channel for pulses, on the connection that carries the control lane.
pub(crate) const PULSE_CHANNEL: &str = "pulse";

/// What the data channel of a lane is labelled with; a connection has one lane.
pub(crate) fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Control => "control",
        Lane::Bulk => "bulk",
    }
}

/// A step of the making of one connection. `attempt` is the offerer's number for the connection: an offer with the
/// number of a connection that stands renews its ICE, one with another number replaces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Negotiation {
    /// The first word, from the side that made the channel.
    Offer {
        /// What the connection is for.
        lane: Lane,
        /// The offerer's number for it.
        attempt: u32,
        /// Session description.
        sdp: String,
    },
    /// The answer to it.
    Answer {
        /// What the connection is for.
        lane: Lane,
        /// The offerer's number for it.
        attempt: u32,
        /// Session description.
        sdp: String,
    },
    /// An address at which a side may be reached.
    Candidate {
        /// What the connection is for.
        lane: Lane,
        /// The offerer's number for it.
        attempt: u32,
        /// Which side made the offer, as both sides count attempts of their own.
        from_offerer: bool,
        /// The address.
        candidate: Candidate,
    },
}

/// An `RTCIceCandidateInit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The candidate attribute.
    pub candidate: String,
    /// The media section's name.
    pub mid: Option<String>,
    /// The media section's number.
    pub line: Option<u16>,
}

/// Why the contents of an envelope were refused.
#[derive(Debug, thiserror::Error)]
pub enum NegotiationError {
    /// Not JSON of this shape.
    #[error("it is not a message of this protocol: {0}")]
    Json(#[from] serde_json::Error),
    /// Longer than any that a browser makes.
    #[error("its {what} has {len} bytes, more than any browser makes")]
    TooLong {
        /// What.
        what: &'static str,
        /// Its length.
        len: usize,
    },
}

impl Negotiation {
    /// As the plain text of an envelope.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers are always JSON")
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, and checks every length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NegotiationError> {
        let message: Self = serde_json::from_slice(bytes)?;
        let (what, len, most) = match &message {
            Self::Offer { sdp, .. } | Self::Answer { sdp, .. } => ("description", sdp.len(), MAX_SDP_LEN),
            Self::Candidate { candidate: Candidate { candidate, mid, .. }, .. } => {
                ("candidate", candidate.len() + mid.as_ref().map_or(0, String::len), MAX_CANDIDATE_LEN)
            }
        };
        if len > most { Err(NegotiationError::TooLong { what, len }) } else { Ok(message) }
    }

    /// What the connection is for.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Offer { lane, .. } | Self::Answer { lane, .. } | Self::Candidate { lane, .. } => *lane,
        }
    }

    /// The offerer's number for the connection.
    pub fn attempt(&self) -> u32 {
        match self {
            Self::Offer { attempt, .. } | Self::Answer { attempt, .. } | Self::Candidate { attempt, .. } => {
                *attempt
            }
        }
    }
}
