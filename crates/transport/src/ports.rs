//! The channels of one device: a [`Link`] over each, pumped for as long as the channel's own queue is short.

use baton_protocol::PeerId;
use baton_protocol::link::{Lane, Link, LinkError};
use baton_protocol::message::Message;
use std::collections::BTreeMap;
use std::fmt;

/// A channel takes no more frames while it has this many bytes queued: enough to keep a fast link busy (measured in
/// Chromium), and far from the 16 MiB at which a browser refuses.
pub const HIGH_WATER: usize = 1024 * 1024;

/// One ordered, reliable channel of whole frames.
pub trait Channel {
    /// Queues a frame of at most 64 KiB.
    ///
    /// # Errors
    ///
    /// In words, when the channel is closed.
    fn send(&self, frame: &[u8]) -> Result<(), String>;

    /// Bytes that are queued and not yet on the network.
    fn buffered(&self) -> usize;

    /// Closes it; it tells nobody.
    fn close(&self);
}

/// A channel by who is at its other end and what it is for. `incarnation` tells a channel from the one that it replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId {
    /// Who is at the other end.
    pub peer: PeerId,
    /// What it is for.
    pub lane: Lane,
    /// Counted up by [`Ports::insert`].
    pub incarnation: u32,
}

/// What a frame brought.
#[derive(Debug, PartialEq)]
pub enum Arrival {
    /// The link has just opened in both directions.
    Linked {
        /// To whom.
        peer: PeerId,
        /// Which.
        lane: Lane,
    },
    /// A whole message.
    Message {
        /// Who sent it.
        from: PeerId,
        /// What it says.
        message: Message,
    },
}

/// Why a channel was given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// What came is not the protocol, or of another version.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The channel does not send any more.
    #[error("the connection is closed ({0})")]
    Channel(String),
}

/// Whether a channel that was closed had been open in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WasOpen(pub bool);

struct Port<C> {
    incarnation: u32,
    channel: C,
    link: Link,
}

/// Every channel of this device.
pub struct Ports<C> {
    ports: BTreeMap<(PeerId, Lane), Port<C>>,
    incarnation: u32,
}

impl<C> fmt::Debug for Ports<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.ports.keys()).finish()
    }
}

impl<C: Channel> Default for Ports<C> {
    fn default() -> Self {
        Self { ports: BTreeMap::new(), incarnation: 0 }
    }
}

impl<C: Channel> Ports<C> {
    /// Takes a channel whose handlers are attached by what `make` returns, given the number under which they are to
    /// report. One that was there before is closed.
    ///
    /// # Errors
    ///
    /// When it is closed already.
    pub fn insert(
        &mut self,
        peer: PeerId,
        lane: Lane,
        make: impl FnOnce(PortId) -> C,
    ) -> Result<PortId, PortError> {
        self.incarnation += 1;
        let id = PortId { peer, lane, incarnation: self.incarnation };
        let port = Port { incarnation: self.incarnation, channel: make(id), link: Link::new() };
        if let Some(old) = self.ports.insert((peer, lane), port) {
            old.channel.close();
        }
        self.pump(id)?;
        Ok(id)
    }

    /// Sends a message on its lane; to a neighbour there is only the bulk lane. What goes to nobody is dropped: the
    /// machine will hear of the loss.
    ///
    /// # Errors
    ///
    /// When the channel is closed; [`close`](Self::close) it then.
    pub fn send(&mut self, to: PeerId, message: &Message) -> Result<(), (PortId, PortError)> {
        let lane = message.lane();
        let Some(port) = self.ports.get_mut(&(to, lane)) else { return Ok(()) };
        port.link.send(message);
        let id = PortId { peer: to, lane, incarnation: port.incarnation };
        self.pump(id).map_err(|error| (id, error))
    }

    /// Takes in a frame that came on a channel.
    ///
    /// # Errors
    ///
    /// When it is not the protocol; [`close`](Self::close) the channel then.
    pub fn receive(&mut self, id: PortId, frame: &[u8]) -> Result<Vec<Arrival>, PortError> {
        let Some(port) = self.port(id) else { return Ok(Vec::new()) };
        let was_open = port.link.is_open();
        let message = port.link.receive(frame)?;
        let opened = !was_open && port.link.is_open();
        self.pump(id)?;
        let linked = opened.then_some(Arrival::Linked { peer: id.peer, lane: id.lane });
        let message = message.map(|message| Arrival::Message { from: id.peer, message });
        Ok(linked.into_iter().chain(message).collect())
    }

    /// Sends on after the channel's queue became short.
    ///
    /// # Errors
    ///
    /// When the channel is closed; [`close`](Self::close) it then.
    pub fn pump(&mut self, id: PortId) -> Result<(), PortError> {
        let Some(port) = self.port(id) else { return Ok(()) };
        while port.channel.buffered() < HIGH_WATER {
            let Some(frame) = port.link.poll_frame() else { break };
            port.channel.send(&frame).map_err(PortError::Channel)?;
        }
        Ok(())
    }

    /// Closes one channel; none if it was closed or replaced before.
    pub fn close(&mut self, id: PortId) -> Option<WasOpen> {
        self.port(id)?;
        let port = self.ports.remove(&(id.peer, id.lane))?;
        port.channel.close();
        Some(WasOpen(port.link.is_open()))
    }

    /// Bytes that wait for a peer to take them in.
    pub fn queued(&self, peer: PeerId) -> usize {
        [Lane::Control, Lane::Bulk]
            .iter()
            .filter_map(|lane| self.ports.get(&(peer, *lane)))
            .map(|port| port.link.queued())
            .sum()
    }

    /// Every channel, to be pumped now and then: an event of a channel that was moved to a worker may be missed.
    pub fn ids(&self) -> Vec<PortId> {
        let id = |(&(peer, lane), port): (&(PeerId, Lane), &Port<C>)| PortId {
            peer,
            lane,
            incarnation: port.incarnation,
        };
        self.ports.iter().map(id).collect()
    }

    /// Closes every channel to a peer; what is queued for it still goes out where the channel can.
    pub fn close_peer(&mut self, peer: PeerId) {
        for lane in [Lane::Control, Lane::Bulk] {
            if let Some(port) = self.ports.remove(&(peer, lane)) {
                port.channel.close();
            }
        }
    }

    fn port(&mut self, id: PortId) -> Option<&mut Port<C>> {
        self.ports.get_mut(&(id.peer, id.lane)).filter(|port| port.incarnation == id.incarnation)
    }
}
