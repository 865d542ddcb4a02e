//! Frames between peers: WebRTC data channels in the browser, channels in memory for tests, under one trait.

#[cfg(target_arch = "wasm32")]
pub mod browser;
pub mod memory;
pub mod ports;

pub use ports::{Arrival, Channel, PortError, PortId, Ports};
