//! A data channel of `webrtc` as a channel of frames: one task that never stops reading, and one that writes as fast as
//! the other side takes in.

use crate::ports::Channel;
use baton_protocol::link::WINDOW;
use bytes::BytesMut;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use webrtc::data_channel::{DataChannel, DataChannelEvent, RTCDataChannelState};

/// The channel says that its queue is short at this many bytes, as in the browser.
const LOW_WATER: usize = 256 * 1024;
/// Bytes that `webrtc` has of one channel and the other side has not taken in: a round trip of 20 ms at 50 MB/s. Without
/// a limit it would take everything.
pub(super) const SEND_BUFFER: usize = 1024 * 1024;
/// Bytes that were read and not yet looked at. A side that keeps to the credits of its link stays below its window; one
/// that does not is cut off here rather than fill the memory while the machine's thread computes.
const MOST_HELD: usize = WINDOW + 1024 * 1024;
/// What a frame costs beside its bytes.
const FRAME_OVERHEAD: usize = 64;
/// How long a channel that is closed has for what is still queued.
const LINGER: Duration = Duration::from_secs(2);

/// What a channel has to say.
#[derive(Debug, PartialEq, Eq)]
pub enum Signal {
    /// A frame came.
    Frame(Vec<u8>),
    /// Its queue has become short.
    Writable,
    /// It is closed.
    Closed,
}

/// A channel that is new: its end for sending, and what comes.
pub struct NewChannel {
    /// For the ports.
    pub channel: NativeChannel,
    /// What it says from now on.
    pub incoming: Incoming,
}

impl fmt::Debug for NewChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewChannel(…)")
    }
}

/// What a channel says, in order.
pub struct Incoming {
    signals: mpsc::UnboundedReceiver<Signal>,
    state: Arc<State>,
}

impl Incoming {
    /// The next signal; none after [`Signal::Closed`].
    pub async fn next(&mut self) -> Option<Signal> {
        let signal = self.signals.recv().await?;
        if let Signal::Frame(bytes) = &signal {
            self.state.held.fetch_sub(bytes.len() + FRAME_OVERHEAD, Ordering::AcqRel);
        }
        Some(signal)
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Incoming(…)")
    }
}

#[derive(Default)]
struct State {
    open: AtomicBool,
    /// Bytes that wait for the writing task.
    queued: AtomicUsize,
    /// Bytes that were read and wait to be looked at.
    held: AtomicUsize,
}

enum Order {
    Frame(Vec<u8>),
    Close,
}

/// A data channel as the ports use it. What is queued when it is closed or dropped still goes out, for a short while.
pub struct NativeChannel {
    orders: mpsc::UnboundedSender<Order>,
    state: Arc<State>,
}

impl Channel for NativeChannel {
    fn send(&self, frame: &[u8]) -> Result<(), String> {
        self.state.queued.fetch_add(frame.len(), Ordering::AcqRel);
        let sent = self.orders.send(Order::Frame(frame.to_vec()));
        sent.map_err(|_| "nothing can be sent any more".to_owned())
    }

    /// One that is not open yet takes nothing; that it opens is a [`Signal::Writable`].
    fn buffered(&self) -> usize {
        if self.state.open.load(Ordering::Acquire) {
            self.state.queued.load(Ordering::Acquire)
        } else {
            usize::MAX
        }
    }

    fn close(&self) {
        // A writer that has ended is closed already.
        let _ = self.orders.send(Order::Close);
    }
}

impl fmt::Debug for NativeChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NativeChannel(…)")
    }
}

/// Starts a channel's two tasks. `ended` is dropped when nothing of it is left to be sent.
pub(super) fn attach(channel: Arc<dyn DataChannel>, ended: mpsc::Sender<()>) -> NewChannel {
    let (say, signals) = mpsc::unbounded_channel();
    let (order, orders) = mpsc::unbounded_channel();
    let (over, is_over) = watch::channel(false);
    let state = Arc::<State>::default();
    tokio::spawn({
        let (channel, state, say) = (Arc::clone(&channel), Arc::clone(&state), say.clone());
        async move {
            read(&*channel, &state, &say).await;
            state.open.store(false, Ordering::Release);
            // Whoever listened may be gone.
            let _ = say.send(Signal::Closed);
            let _ = over.send(true);
        }
    });
    tokio::spawn({
        let state = Arc::clone(&state);
        async move {
            write(&*channel, &state, orders, &say, is_over).await;
            // One that is closed already is closed.
            let _ = channel.close().await;
            drop(ended);
        }
    });
    NewChannel {
        channel: NativeChannel { orders: order, state: Arc::clone(&state) },
        incoming: Incoming { signals, state },
    }
}

/// Reads until the channel is closed: a channel that is not read stalls its connection.
async fn read(channel: &dyn DataChannel, state: &State, say: &mpsc::UnboundedSender<Signal>) {
    let opened = || {
        if !state.open.swap(true, Ordering::AcqRel) {
            // Whoever listened may be gone.
            let _ = say.send(Signal::Writable);
        }
    };
    // It may have opened before anybody polled.
    if channel.ready_state().await.is_ok_and(|state| state == RTCDataChannelState::Open) {
        opened();
    }
    while let Some(event) = channel.poll().await {
        match event {
            DataChannelEvent::OnOpen => opened(),
            DataChannelEvent::OnMessage(message) => {
                // Text is not of the protocol; an empty frame is refused by the link.
                let bytes = if message.is_string { Vec::new() } else { message.data.to_vec() };
                let size = bytes.len() + FRAME_OVERHEAD;
                if say.is_closed() {
                    continue;
                }
                if state.held.fetch_add(size, Ordering::AcqRel) + size > MOST_HELD {
                    return;
                }
                let _ = say.send(Signal::Frame(bytes));
            }
            DataChannelEvent::OnClosing | DataChannelEvent::OnClose => return,
            _ => {}
        }
    }
}

/// Writes what is ordered, at the speed of the other side, until the channel is closed from either end.
async fn write(
    channel: &dyn DataChannel,
    state: &State,
    mut orders: mpsc::UnboundedReceiver<Order>,
    say: &mpsc::UnboundedSender<Signal>,
    mut is_over: watch::Receiver<bool>,
) {
    let ordered = async {
        while let Some(Order::Frame(frame)) = orders.recv().await {
            // Waits while the other side takes nothing in. The reading task hears the reason of an error.
            let sent = channel.send(BytesMut::from(&frame[..])).await;
            let before = state.queued.fetch_sub(frame.len(), Ordering::AcqRel);
            if sent.is_err() {
                return;
            }
            if before > LOW_WATER && before - frame.len() <= LOW_WATER {
                // Whoever listened may be gone.
                let _ = say.send(Signal::Writable);
            }
        }
        // What is sent but not acknowledged would be lost with the connection.
        let acknowledged = async {
            while channel.outstanding_bytes().await.is_ok_and(|bytes| bytes > 0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // A side that does not answer has lost it then.
        let _ = tokio::time::timeout(LINGER, acknowledged).await;
    };
    tokio::select! {
        () = ordered => {}
        _ = is_over.wait_for(|over| *over) => {}
    }
}
