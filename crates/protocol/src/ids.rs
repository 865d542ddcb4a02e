//! Identifiers as types, so that a step is never taken for a micro-batch.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A client of a room, numbered by the signaling server and never used again in that room.
    PeerId(u32)
}
id! {
    /// A position in the pipeline: 0 is the first stage after the host's front.
    StageIndex(u16)
}
id! {
    /// One optimizer update, counted from 0.
    Step(u32)
}
id! {
    /// One of the M slices of a step's batch, counted from 0.
    MicroBatch(u16)
}
id! {
    /// The number of the plan in force; what carries an older one is stale and dropped.
    Generation(u32)
}

impl PeerId {
    /// The host, as an assignment names it; the signaling server numbers from 1.
    pub const HOST: Self = Self(0);
}

impl Step {
    /// The step after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
