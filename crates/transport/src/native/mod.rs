//! WebRTC in a process of its own, with the crate `webrtc`: what `browser` is to a page. It speaks to the same server
//! and the same tabs; its tasks run on tokio, and the frames go to whichever thread the machine runs on.

mod channel;
mod mesh;
mod pulse;
mod signaling;

pub use channel::{Incoming, NativeChannel, NewChannel, Signal};
pub use mesh::{Gone, Mesh, MeshConfig, MeshEvent, News};
pub use signaling::{SignalClient, SignalError, SignalEvent};

/// 24 or fewer fresh random bytes; none if the system has no random generator.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes)
}
