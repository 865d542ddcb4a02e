//! The loop that a shell runs: a machine, its engine and its channels, fed by one queue of inputs.
//!
//! A shell (the page's worker, a process, a test) makes a queue, attaches the handlers of its channels to it, and runs
//! [`run_host`] or [`run_stage`] on a single thread. Jobs run one at a time while the loop goes on taking inputs.

mod files;
mod host;
mod stage;

pub use files::ModelFiles;
pub use host::{About, HostCommand, HostEvent, KeptSummary, ModelChoice, run_host};
pub use stage::{StageCommand, StageEnd, StageEvent, run_stage};

use baton_protocol::PeerId;
use baton_protocol::link::Lane;
use baton_protocol::message::Message;
use baton_protocol::pulse::Presence;
use baton_transport::ports::WasOpen;
use baton_transport::{Arrival, Channel, PortError, PortId, Ports};
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use std::time::Duration;

/// What the loop needs of its environment.
pub trait Environment: Clone + 'static {
    /// Time since any fixed moment.
    fn now(&self) -> Duration;

    /// How long a stage keeps what it has loaded for a host that is gone: nothing, unless the shell can find it again and
    /// give [`Input::HostReturned`].
    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    /// A number that no other device can know, for a host to draw by; 0 where no host ever is.
    fn secret(&self) -> u64 {
        0
    }

    /// Lets the environment deliver what has arrived while a job kept the thread busy.
    fn breathe(&self) -> impl Future<Output = ()>;

    /// Bytes that this device can spare for what it trains, found out no further than `most`. `held` of them it has
    /// taken for that already.
    fn memory(&self, most: u64, held: u64) -> impl Future<Output = u64>;

    /// Hears before a part of a model is loaded how many bytes training it will take at most, and 0 when it is let go:
    /// for a shell whose end by too much of it is told by nothing else.
    fn holding(&self, _bytes: u64) -> impl Future<Output = ()> {
        async {}
    }
}

/// Makes a channel whose handlers report under the given number.
pub type MakeChannel<C> = Box<dyn FnOnce(PortId) -> C>;

/// What the loop is fed with. `T` are the commands of its owner.
pub enum Input<C, T> {
    /// A new channel.
    Channel {
        /// To whom.
        peer: PeerId,
        /// What for.
        lane: Lane,
        /// Attaches the handlers.
        make: MakeChannel<C>,
    },
    /// A frame came.
    Frame {
        /// Which channel.
        id: PortId,
        /// The frame.
        bytes: Vec<u8>,
    },
    /// A channel's own queue has become short.
    Writable {
        /// Which channel.
        id: PortId,
    },
    /// A channel is closed.
    Closed {
        /// Which channel.
        id: PortId,
    },
    /// A peer left the room, or cannot be reached.
    Gone {
        /// Who.
        peer: PeerId,
        /// In words.
        reason: String,
    },
    /// A peer stands otherwise than before, as its pulses say or their absence does.
    Presence {
        /// Who.
        peer: PeerId,
        /// How.
        presence: Presence,
    },
    /// The room has a host again, under this number.
    HostReturned(PeerId),
    /// To be given about twice a second.
    Tick,
    /// What the owner wants.
    Command(T),
    /// Blocks are being fetched: bytes of bytes.
    Progress(u64, u64),
    /// A question to a peer for a piece of a file.
    Ask(PeerId, Message),
}

/// The queue's end for the shell.
pub type Inputs<C, T> = UnboundedSender<Input<C, T>>;

/// A queue. What its channels put in is bounded by their links' credits.
pub fn queue<C, T>() -> (Inputs<C, T>, UnboundedReceiver<Input<C, T>>) {
    unbounded()
}

/// Every channel, with the losses that sending finds out.
struct Net<C> {
    ports: Ports<C>,
    /// Peers that were lost, and why; not yet told to the machine.
    lost: Vec<(PeerId, String)>,
}

impl<C: Channel> Net<C> {
    fn new() -> Self {
        Self { ports: Ports::default(), lost: Vec::new() }
    }

    fn send(&mut self, to: PeerId, message: &Message) {
        if let Err((id, error)) = self.ports.send(to, message) {
            self.fail(id, &error);
        }
    }

    fn insert(&mut self, peer: PeerId, lane: Lane, make: MakeChannel<C>) {
        if let Err(error) = self.ports.insert(peer, lane, make) {
            self.gone(peer, error.to_string());
        }
    }

    fn frame(&mut self, id: PortId, bytes: &[u8]) -> Vec<Arrival> {
        match self.ports.receive(id, bytes) {
            Ok(arrivals) => arrivals,
            Err(error) => {
                self.fail(id, &error);
                Vec::new()
            }
        }
    }

    fn writable(&mut self, id: PortId) {
        if let Err(error) = self.ports.pump(id) {
            self.fail(id, &error);
        }
    }

    /// A channel that was moved to a worker may miss an event; nothing waits longer than a tick for it.
    fn tick(&mut self) {
        for id in self.ports.ids() {
            self.writable(id);
        }
    }

    /// One that never opened is not a loss yet: whoever makes the connections goes on trying, or gives up in words.
    fn closed(&mut self, id: PortId) {
        if self.ports.close(id) == Some(WasOpen(true)) {
            self.gone(id.peer, "its connection closed".into());
        }
    }

    fn gone(&mut self, peer: PeerId, reason: String) {
        self.ports.close_peer(peer);
        self.lost.push((peer, reason));
    }

    fn fail(&mut self, id: PortId, error: &PortError) {
        if self.ports.close(id).is_some() {
            self.gone(id.peer, error.to_string());
        }
    }
}
