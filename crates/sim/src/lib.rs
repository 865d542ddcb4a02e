//! The deterministic simulator: a whole room in virtual time, with the real machines of the protocol.
//!
//! A [`World`] holds the host's machine, the stages' machines, the links between them, an engine behind each, a person at
//! the host, and what happens to all of them. Everything is drawn from one seed, so a seed repeats a run. What computes
//! is a [`Model`]: the [`toy`] has exact numbers to compare with one process.

pub mod act;
pub mod engine;
pub mod toy;
pub mod violation;
pub mod world;

pub use act::{Act, JobName, Moment};
pub use engine::{HostEngine, JobError, Model, StageEngine, Text};
pub use toy::{Reference, Toy, ToyModel};
pub use violation::Violation;
pub use world::{HOST, Pace, Scenario, World, peer};
