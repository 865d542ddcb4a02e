//! Messages cut into frames over one ordered, reliable channel, with credits so that a stalled receiver stops its sender.
//!
//! A frame is at most 64 KiB: a kind byte and its body. The first frame of a message carries the message's length, the
//! following ones only bytes; messages are not interleaved. A browser's data channel has no backpressure at the
//! receiver (one blocked for 4 s was still sent 37 MB), so a sender may have at most [`WINDOW`] bytes on the way that
//! the receiver has not yet taken in. A message that reaches a data channel before its handler is attached is lost, so
//! nothing is sent before the other side said READY; a side that hears READY for the first time says it again, because
//! its own first one may have been lost.

use crate::{PROTOCOL_VERSION, message::Message};
use std::collections::VecDeque;

/// What a connection between two peers carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Control and heartbeats, between the host and each peer.
    Control,
    /// Boundaries, states and files.
    Bulk,
}

/// The longest frame in bytes.
pub const MAX_FRAME: usize = 64 * 1024;
/// The longest message in bytes.
pub const MAX_MESSAGE: usize = 128 * 1024 * 1024;
/// Bytes that may be on the way without having been taken in.
pub const WINDOW: usize = 4 * 1024 * 1024;
/// The receiver grants anew when it has taken in this much.
const GRANT: usize = WINDOW / 4;

const READY: u8 = 0;
const FIRST: u8 = 1;
const NEXT: u8 = 2;
const CREDIT: u8 = 3;

/// What makes a link unusable; the shell closes the channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The other side speaks another version of the protocol.
    #[error(
        "this device speaks version {ours} of Baton's protocol and the other one version {theirs}: reload the page on both"
    )]
    Version {
        /// Our [`PROTOCOL_VERSION`].
        ours: u16,
        /// Theirs.
        theirs: u16,
    },
    /// The bytes are not a frame, or not one that may come now.
    #[error("the other device sent something that is not Baton's protocol ({what})")]
    Malformed {
        /// What was wrong with it.
        what: &'static str,
    },
    /// A message longer than any that is allowed.
    #[error("the other device announced a message of {len} bytes (at most {MAX_MESSAGE} are allowed)")]
    TooLong {
        /// Its announced length.
        len: usize,
    },
    /// The sender ignores its credits.
    #[error("the other device sent more than it was granted")]
    Overrun,
    /// The message does not decode.
    #[error("the other device sent a message that cannot be read: {reason}")]
    Undecodable {
        /// From the decoder.
        reason: String,
    },
}

/// One end of a link. The shell hands arriving frames to [`receive`](Self::receive) and puts what
/// [`poll_frame`](Self::poll_frame) gives on the channel for as long as the channel's own queue is short.
#[derive(Debug)]
pub struct Link {
    heard: bool,
    ready_to_say: u8,
    queue: VecDeque<Vec<u8>>,
    /// Bytes of the front message that are already in frames.
    cut: usize,
    credit: usize,
    incoming: Option<Incoming>,
    /// Taken in, and not yet granted again.
    taken: usize,
}

#[derive(Debug)]
struct Incoming {
    len: usize,
    bytes: Vec<u8>,
}

impl Default for Link {
    fn default() -> Self {
        Self::new()
    }
}

impl Link {
    /// A link whose handler is attached.
    pub fn new() -> Self {
        let queue = VecDeque::new();
        Self { heard: false, ready_to_say: 1, queue, cut: 0, credit: WINDOW, incoming: None, taken: 0 }
    }

    /// Whether the other side has said READY.
    pub fn is_open(&self) -> bool {
        self.heard
    }

    /// Bytes that wait for credit or for the channel.
    pub fn queued(&self) -> usize {
        self.queue.iter().map(Vec::len).sum::<usize>() - self.cut
    }

    /// Queues a message.
    pub fn send(&mut self, message: &Message) {
        self.queue.push_back(message.to_bytes());
    }

    /// The next frame for the channel, if there is one and the other side has room.
    pub fn poll_frame(&mut self) -> Option<Vec<u8>> {
        if self.ready_to_say > 0 {
            self.ready_to_say -= 1;
            let mut frame = vec![READY];
            frame.extend(PROTOCOL_VERSION.to_le_bytes());
            return Some(frame);
        }
        if !self.heard {
            return None;
        }
        if self.taken >= GRANT {
            let mut frame = vec![CREDIT];
            frame.extend(length(std::mem::take(&mut self.taken)));
            return Some(frame);
        }
        let message = self.queue.front()?;
        let mut frame = Vec::with_capacity(MAX_FRAME.min(message.len() - self.cut + 5));
        if self.cut == 0 {
            frame.push(FIRST);
            frame.extend(length(message.len()));
        } else {
            frame.push(NEXT);
        }
        let body = (message.len() - self.cut).min(MAX_FRAME - frame.len());
        frame.extend(&message[self.cut..self.cut + body]);
        self.credit = self.credit.checked_sub(frame.len())?;
        self.cut += body;
        if self.cut == message.len() {
            self.queue.pop_front();
            self.cut = 0;
        }
        Some(frame)
    }

    /// Takes in a frame; gives the message that it completes, if it does.
    pub fn receive(&mut self, frame: &[u8]) -> Result<Option<Message>, LinkError> {
        let malformed = |what| LinkError::Malformed { what };
        if frame.len() > MAX_FRAME {
            return Err(malformed("a frame that is too long"));
        }
        let (&kind, body) = frame.split_first().ok_or(malformed("an empty frame"))?;
        if !self.heard && kind != READY {
            return Err(malformed("data before READY"));
        }
        match kind {
            READY => {
                let theirs = u16::from_le_bytes(body.try_into().map_err(|_| malformed("READY"))?);
                if theirs != PROTOCOL_VERSION {
                    return Err(LinkError::Version { ours: PROTOCOL_VERSION, theirs });
                }
                if !std::mem::replace(&mut self.heard, true) {
                    self.ready_to_say = 1;
                }
                Ok(None)
            }
            CREDIT => {
                let granted = read_length(body).ok_or(malformed("CREDIT"))?;
                self.credit = self
                    .credit
                    .checked_add(granted)
                    .filter(|&credit| credit <= WINDOW)
                    .ok_or(malformed("more credit than was used"))?;
                Ok(None)
            }
            FIRST => {
                if self.incoming.is_some() {
                    return Err(malformed("a message inside a message"));
                }
                let (len, body) =
                    body.split_at_checked(4).ok_or(malformed("a first frame without a length"))?;
                let len = read_length(len).ok_or(malformed("a length"))?;
                if len > MAX_MESSAGE {
                    return Err(LinkError::TooLong { len });
                }
                // Only what has come is allocated, whatever length was announced.
                self.incoming = Some(Incoming { len, bytes: Vec::with_capacity(body.len()) });
                self.append(frame.len(), body)
            }
            NEXT if self.incoming.is_some() => self.append(frame.len(), body),
            NEXT => Err(malformed("a frame of no message")),
            _ => Err(malformed("an unknown kind of frame")),
        }
    }

    fn append(&mut self, frame_len: usize, body: &[u8]) -> Result<Option<Message>, LinkError> {
        self.taken += frame_len;
        // The sender has at most WINDOW outstanding, and what was taken in is granted before the next message is cut.
        if self.taken > WINDOW + MAX_FRAME {
            return Err(LinkError::Overrun);
        }
        let Some(mut incoming) = self.incoming.take() else {
            return Err(LinkError::Malformed { what: "a frame of no message" });
        };
        if incoming.bytes.len() + body.len() > incoming.len || body.is_empty() {
            return Err(LinkError::Malformed { what: "a message longer or shorter than it said" });
        }
        incoming.bytes.extend(body);
        if incoming.bytes.len() < incoming.len {
            self.incoming = Some(incoming);
            return Ok(None);
        }
        let message = Message::from_bytes(&incoming.bytes);
        message.map(Some).map_err(|error| LinkError::Undecodable { reason: error.to_string() })
    }
}

fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).expect("messages and grants are far below 4 GiB").to_le_bytes()
}

fn read_length(bytes: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Boundary, Precision};
    use crate::{Generation, MicroBatch, Step};

    fn pump(from: &mut Link, to: &mut Link) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(frame) = from.poll_frame() {
            assert!(frame.len() <= MAX_FRAME);
            messages.extend(to.receive(&frame).unwrap());
        }
        messages
    }

    fn pair() -> (Link, Link) {
        let (mut a, mut b) = (Link::new(), Link::new());
        pump(&mut a, &mut b);
        pump(&mut b, &mut a);
        assert!(a.is_open() && b.is_open());
        (a, b)
    }

    fn forward(numbers: u16) -> Message {
        let values: Vec<f32> = (0..numbers).map(f32::from).collect();
        let tensor = Boundary::encode(&values, [1, 1, u32::from(numbers)], Precision::F32).unwrap();
        Message::Forward { generation: Generation(1), step: Step(2), micro_batch: MicroBatch(3), tensor }
    }

    #[test]
    fn a_message_of_many_frames_arrives_whole() {
        let (mut a, mut b) = pair();
        let messages = [forward(60_000), Message::Heartbeat, forward(1), forward(16_384)];
        messages.iter().for_each(|message| a.send(message));
        assert_eq!(pump(&mut a, &mut b), messages);
        assert_eq!(a.queued(), 0);
    }

    #[test]
    fn nothing_is_sent_before_ready_and_a_lost_ready_is_said_again() {
        let (mut a, mut b) = (Link::new(), Link::new());
        a.send(&Message::Heartbeat);
        let lost = a.poll_frame().unwrap(); // b's handler was not attached yet
        assert_eq!((lost[0], a.poll_frame()), (READY, None));
        assert_eq!(pump(&mut b, &mut a), []);
        assert_eq!(pump(&mut a, &mut b), [Message::Heartbeat]);
        pump(&mut b, &mut a);
        assert!(a.is_open() && b.is_open());
        assert_eq!((a.poll_frame(), b.poll_frame()), (None, None));
    }

    #[test]
    fn a_receiver_that_takes_nothing_in_stops_the_sender_at_the_window() {
        let (mut a, mut b) = pair();
        for _ in 0..40 {
            a.send(&forward(60_000)); // 240 kB each
        }
        let mut on_the_way = Vec::new();
        while let Some(frame) = a.poll_frame() {
            on_the_way.push(frame);
        }
        let bytes: usize = on_the_way.iter().map(Vec::len).sum();
        assert!(bytes <= WINDOW && bytes > WINDOW - MAX_FRAME, "{bytes}");
        let mut arrived = 0;
        for frame in on_the_way {
            arrived += usize::from(b.receive(&frame).unwrap().is_some());
        }
        for _ in 0..20 {
            pump(&mut b, &mut a);
            arrived += pump(&mut a, &mut b).len();
        }
        assert_eq!(arrived, 40);
    }

    #[test]
    fn another_version_is_refused_in_plain_words() {
        let mut a = Link::new();
        let error = a.receive(&[READY, 0xff, 0x7f]).unwrap_err();
        assert_eq!(error, LinkError::Version { ours: PROTOCOL_VERSION, theirs: 0x7fff });
        assert!(error.to_string().contains("reload the page"));
    }

    #[test]
    fn hostile_frames_are_errors_and_allocate_nothing() {
        let announce = |len: u32| [&[FIRST][..], &len.to_le_bytes(), &[0; 8]].concat();
        let refuse = |frame: &[u8]| pair().0.receive(frame).unwrap_err();
        assert!(matches!(refuse(&announce(u32::MAX)), LinkError::TooLong { .. }));
        assert!(matches!(refuse(&announce(3)), LinkError::Malformed { .. }));
        assert!(matches!(refuse(&[]), LinkError::Malformed { .. }));
        assert!(matches!(refuse(&[NEXT, 1]), LinkError::Malformed { .. }));
        assert!(matches!(refuse(&[9, 1]), LinkError::Malformed { .. }));
        assert!(matches!(refuse(&[CREDIT, 1, 0, 0, 0]), LinkError::Malformed { .. }));
        assert!(matches!(refuse(&announce(8)), LinkError::Undecodable { .. }));
        assert!(matches!(refuse(&vec![0; MAX_FRAME + 1]), LinkError::Malformed { .. }));
        assert!(matches!(Link::new().receive(&announce(8)), Err(LinkError::Malformed { .. })));
        let (mut a, _) = pair();
        assert_eq!(a.receive(&announce(100_000_000)), Ok(None));
        assert!(a.incoming.as_ref().is_some_and(|incoming| incoming.bytes.capacity() < 1024));
        let flood = [&[NEXT][..], &[0; MAX_FRAME - 1]].concat();
        assert_eq!((0..100).find_map(|_| a.receive(&flood).err()), Some(LinkError::Overrun));
    }
}
