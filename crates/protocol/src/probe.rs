//! How a link is timed: an empty message there and back, then padding each way, again as long as it goes faster.
//!
//! The host times its own links, a stage the one to the next stage.

use crate::message::Message;
use baton_plan::LinkProfile;
use std::time::Duration;

/// Padding of the first message each way: all that a slow link is asked to carry.
const LEAST_PADDING: u32 = 16 << 10;
/// Padding of the messages that any other link is timed with: a tenth of a second at 10 Mbit/s.
const MOST_PADDING: u32 = 128 << 10;
/// The same goes the same way so often at most, ...
const ROUNDS: u8 = 7;
/// ... as long as it goes faster by this factor, ...
const FASTER: f64 = 1.15;
/// ... and takes no longer than this, in seconds.
const LONG: f64 = 0.3;
/// After so long without an answer a link is taken for as slow as that.
const GIVES_UP: Duration = Duration::from_secs(10);

/// A link that is to be timed, with what was known of it before; is being timed; or was.
#[derive(Debug, PartialEq)]
pub(crate) enum Probe {
    /// Not yet, or again.
    Wanted(Option<LinkProfile>),
    /// A message is on its way there and back.
    Asked(Asked),
    /// Timed.
    Known(LinkProfile),
}

/// A message on its way there and back.
#[derive(Debug, PartialEq)]
pub(crate) struct Asked {
    id: u32,
    sent: Duration,
    padding: Padding,
    /// How often it went this way with padding.
    rounds: u8,
    /// The best so far.
    link: LinkProfile,
    /// What was known before.
    before: Option<LinkProfile>,
}

impl Default for Probe {
    fn default() -> Self {
        Self::Wanted(None)
    }
}

/// On which way a message carries padding.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Padding {
    None,
    Down,
    Up,
}

impl Asked {
    /// Bytes of padding on the way there, and wanted on the way back.
    fn bytes(&self) -> (u32, u32) {
        let bytes = if self.rounds == 0 { LEAST_PADDING } else { MOST_PADDING };
        match self.padding {
            Padding::None => (0, 0),
            Padding::Down => (bytes, 0),
            Padding::Up => (0, bytes),
        }
    }

    /// The message that is on its way.
    fn message(&self) -> Message {
        let (there, back) = self.bytes();
        Message::Probe { id: self.id, want: back, padding: vec![0; there as usize] }
    }
}

impl Probe {
    /// Begins, under a number of its own; the first message.
    pub(crate) fn ask(&mut self, id: u32, now: Duration) -> Message {
        let link = LinkProfile { up: 0.0, down: 0.0, round_trip: 0.0 };
        let asked = Asked { id, sent: now, padding: Padding::None, rounds: 0, link, before: self.link() };
        let message = asked.message();
        *self = Self::Asked(asked);
        message
    }

    /// The answer with this number came: the next message, if there is one; none either if nothing of the kind was asked.
    pub(crate) fn hear(&mut self, id: u32, now: Duration) -> Option<Message> {
        if !matches!(self, Self::Asked(asked) if asked.id == id) {
            return None;
        }
        self.answered(now);
        match self {
            Self::Asked(asked) => Some(asked.message()),
            _ => None,
        }
    }

    /// Whether a message is on its way.
    pub(crate) fn is_asked(&self) -> bool {
        matches!(self, Self::Asked(_))
    }

    /// Whether it is to be timed.
    pub(crate) fn is_wanted(&self) -> bool {
        matches!(self, Self::Wanted(_))
    }

    /// Leaves it at what was known before, if anything was.
    pub(crate) fn leave(&mut self) {
        if let Some(link) = self.link() {
            *self = Self::Known(link);
        }
    }

    /// Whether it was timed, and nothing is on its way.
    pub(crate) fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }

    /// Has it timed again: it may have come back another way, or become slower. A question on its way stays on its way.
    pub(crate) fn again(&mut self) {
        if let Self::Known(link) = self {
            *self = Self::Wanted(Some(*link));
        }
    }

    /// What is known of the link.
    pub(crate) fn link(&self) -> Option<LinkProfile> {
        match self {
            Self::Known(link) => Some(*link),
            Self::Wanted(before) | Self::Asked(Asked { before, .. }) => *before,
        }
    }

    /// The answer to the last question came; the next one, if there is one.
    ///
    /// A new connection sends faster with every round trip (slow start), so that the same is sent again as long as it
    /// goes faster.
    fn answered(&mut self, now: Duration) {
        let Self::Asked(asked) = self else { return };
        let took = now.saturating_sub(asked.sent).as_secs_f64();
        // What the padding took on top of an empty message; clocks of browsers are coarse.
        // An empty message that met a busy thread says little: no more than three quarters of the time are the way.
        let (there, back) = asked.bytes();
        let rate = f64::from(there.max(back)) / (took - asked.link.round_trip).max(took / 4.0).max(1e-4);
        asked.sent = now;
        let best = match asked.padding {
            Padding::None => {
                asked.link.round_trip = took;
                asked.padding = Padding::Down;
                return;
            }
            Padding::Down => &mut asked.link.down,
            Padding::Up => &mut asked.link.up,
        };
        asked.rounds += 1;
        // So little is said too soon of a link that is not slow.
        let long = took - asked.link.round_trip >= LONG;
        if asked.rounds == 1 && !long {
            return;
        }
        let goes_faster = rate > *best * FASTER;
        *best = best.max(rate);
        if goes_faster && asked.rounds < ROUNDS && !long {
            return;
        }
        asked.rounds = 0;
        match asked.padding {
            Padding::Up => *self = Self::Known(asked.link),
            Padding::None | Padding::Down => asked.padding = Padding::Up,
        }
    }

    /// This side slept for so long: what was on its way meanwhile tells nothing of the link.
    pub(crate) fn forgive(&mut self, late: Duration, now: Duration) {
        if let Self::Asked(asked) = self {
            asked.sent = (asked.sent + late).min(now);
        }
    }

    /// No answer came for long: the link is as slow as that.
    pub(crate) fn gives_up(&mut self, now: Duration) {
        if let Self::Asked(asked) = self
            && now >= asked.sent + GIVES_UP
        {
            let slow = f64::from(LEAST_PADDING) / GIVES_UP.as_secs_f64();
            let link =
                LinkProfile { up: asked.link.up.max(slow), down: asked.link.down.max(slow), ..asked.link };
            *self = Self::Known(link);
        }
    }
}
