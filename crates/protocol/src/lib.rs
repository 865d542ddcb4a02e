//! The protocol of a room as state machines that do no I/O: messages, framing, schedule, coordinator and stage.
//!
//! Nothing here knows burn, a browser or a clock. A shell (the page's worker, the native binary, a test) feeds
//! events with the time they happened, and polls outputs. The layers, from the wire up:
//!
//! * [`room`]: the secret of a room, the identifier that the server sees, envelopes the server cannot read;
//! * [`signal`]: what a client and the signaling server say to each other;
//! * [`codec`]: hidden states and their gradients as bytes, in f32 or scaled f16;
//! * [`message`]: what peers say to each other, versioned;
//! * [`link`]: messages cut into frames, with credits, over one ordered reliable channel;
//! * [`schedule`]: one forward, one backward (1F1B);
//! * [`pulse`]: who is there, while the engines compute;
//! * [`coordinator`] and [`stage`]: the two machines of a run.

pub mod codec;
pub mod coordinator;
pub mod ids;
pub mod link;
pub mod message;
mod probe;
pub mod pulse;
pub mod room;
pub mod run;
pub mod schedule;
pub mod signal;
pub mod stage;

pub use ids::{Generation, MicroBatch, PeerId, StageIndex, Step};

/// The version of everything in this crate that crosses the network; peers of different versions refuse each other.
pub const PROTOCOL_VERSION: u16 = 7;
