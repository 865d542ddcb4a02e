//! The deterministic simulator: a whole room in virtual time, with the real machines of the protocol.
//!
//! A [`World`] holds the host's machine, the stages' machines, the links between them, an engine behind each, a person at
//! the host, and what happens to all of them. Everything is drawn from one seed, so a seed repeats a run. What computes
//! is a [`Model`]: the [`toy`] has exact numbers to compare with one process, the [`counted`] one has none and is for rooms
//! of a thousand devices. How long it takes, and when what is sent arrives, is drawn at random or follows from [`cost`]s
//! and the [`net`]work.

pub mod act;
pub mod campaign;
pub mod cost;
pub mod counted;
pub mod engine;
pub mod net;
pub mod outcome;
pub mod scenario;
pub mod seeds;
pub mod series;
pub mod timeline;
pub mod toy;
pub mod trace;
pub mod violation;
pub mod world;

pub use act::{Act, JobName, Moment, Word};
pub use cost::{Access, Costs, DeviceSpec, Shape, Thermal};
pub use counted::Counted;
pub use engine::{HostEngine, JobError, Model, StageEngine, Text};
pub use net::{Network, Wire};
pub use seeds::{Seeds, SeedsError};
pub use series::Series;
pub use toy::{Reference, Toy, ToyModel};
pub use trace::Trace;
pub use violation::Violation;
pub use world::{Entry, HOST, Pace, PlanMade, Point, Room, Scenario, World, peer};
