//! The channel for pulses: a few bytes four times a second, of which only the newest counts.

use baton_protocol::pulse::Pulse;
use bytes::BytesMut;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;
use webrtc::data_channel::{DataChannel, DataChannelEvent, RTCDataChannelState};

/// A pulse.
type Bytes = [u8; 3];

/// What came on a channel for pulses.
pub(super) struct Heard {
    number: u64,
    bytes: Option<Vec<u8>>,
    waiting: Arc<AtomicBool>,
}

impl Heard {
    /// The number of the connection.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What came; none: the channel is open.
    pub(super) fn take(self) -> Option<Vec<u8>> {
        self.waiting.store(false, Ordering::Release);
        self.bytes
    }
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Heard").field(&self.number).field(&self.bytes).finish()
    }
}

/// A channel for pulses.
pub(super) struct Pulses(mpsc::Sender<Bytes>);

impl Pulses {
    /// Starts the channel's two tasks; they end with it.
    pub(super) fn attach(
        channel: Arc<dyn DataChannel>,
        number: u64,
        say: impl Fn(Heard) + Send + Sync + 'static,
    ) -> Self {
        let (sender, mut pulses) = mpsc::channel::<Bytes>(1);
        let is_open = Arc::new(AtomicBool::new(false));
        tokio::spawn({
            let (channel, is_open) = (Arc::clone(&channel), Arc::clone(&is_open));
            async move {
                let waiting = Arc::<AtomicBool>::default();
                let opened = || {
                    if !is_open.swap(true, Ordering::AcqRel) {
                        say(Heard { number, bytes: None, waiting: Arc::default() });
                    }
                };
                // It may have opened before anybody polled.
                if channel.ready_state().await.is_ok_and(|state| state == RTCDataChannelState::Open) {
                    opened();
                }
                while let Some(event) = channel.poll().await {
                    match event {
                        DataChannelEvent::OnOpen => opened(),
                        // One that was not looked at yet says the same: whoever sends more fills no memory with it.
                        DataChannelEvent::OnMessage(message)
                            if Pulse::from_bytes(&message.data).is_some()
                                && !waiting.swap(true, Ordering::AcqRel) =>
                        {
                            let bytes = Some(message.data.to_vec());
                            say(Heard { number, bytes, waiting: Arc::clone(&waiting) });
                        }
                        DataChannelEvent::OnClosing | DataChannelEvent::OnClose => return,
                        _ => {}
                    }
                }
            }
        });
        tokio::spawn(async move {
            while let Some(pulse) = pulses.recv().await {
                // One that cannot be sent is missed as any other that gets lost.
                if is_open.load(Ordering::Acquire)
                    && channel.try_send(BytesMut::from(&pulse[..])).await.is_err()
                {
                    return;
                }
            }
        });
        Self(sender)
    }

    /// Sends a pulse, unless the one before still waits.
    pub(super) fn send(&self, pulse: Bytes) {
        let _ = self.0.try_send(pulse);
    }
}
