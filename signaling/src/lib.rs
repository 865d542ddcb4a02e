//! The library behind the signaling server.
