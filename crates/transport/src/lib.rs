//! Frames between peers under one trait: WebRTC data channels in the browser and in a process of its own, and channels
//! in memory for tests.

#[cfg(target_arch = "wasm32")]
pub mod browser;
pub mod memory;
#[cfg(all(feature = "native", not(target_arch = "wasm32")))]
pub mod native;
#[cfg(any(feature = "native", target_arch = "wasm32"))]
pub mod negotiation;
pub mod ports;

pub use ports::{Arrival, Channel, PortError, PortId, Ports};
