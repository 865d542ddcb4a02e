//! A stage on a thread of its own: the machine and the engine, fed by the channels that the visit makes.

use super::memory::Lent;
use baton_engine::cache::AnyCache;
use baton_engine::node::{self, Environment, Input, Inputs, StageCommand, StageEnd, StageEvent};
use baton_formats::files::DirCache;
use baton_protocol::PeerId;
use baton_protocol::link::Lane;
use baton_protocol::message::Device as Introduction;
use baton_protocol::pulse::Presence;
use baton_transport::PortId;
use baton_transport::native::{Incoming, NativeChannel, NewChannel, Signal};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::MissedTickBehavior;

const TICK: Duration = Duration::from_millis(500);
/// For a host that is gone from its room, as in a tab.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a stage needs to begin with.
pub(super) struct Begin {
    /// The room's host.
    pub(super) host: PeerId,
    /// What this device is called.
    pub(super) introduction: Introduction,
    /// Where pieces of models are kept, and how many bytes of them.
    pub(super) cache: Option<(PathBuf, u64)>,
    /// How much memory it may take.
    pub(super) lent: Lent,
    /// The model that ships with the page, if it can be read from here.
    pub(super) embedded: Option<String>,
}

/// What a stage is told.
enum Order {
    Channel { peer: PeerId, lane: Lane, channel: NewChannel },
    Gone { peer: PeerId, reason: String },
    Presence { peer: PeerId, presence: Presence },
    HostReturned(PeerId),
    Leave,
}

/// What a stage tells.
pub(super) enum Told {
    /// Something happened.
    Event(StageEvent),
    /// It is over, and its channels are closed.
    Ended(StageEnd),
    /// Its thread broke off.
    Broken,
}

/// A stage that works. One that is dropped leaves the room as soon as its job is done.
pub(super) struct StageThread {
    orders: UnboundedSender<Order>,
    told: UnboundedReceiver<Told>,
}

impl StageThread {
    /// Starts the thread.
    pub(super) fn start(begin: Begin) -> io::Result<Self> {
        let (orders, taken) = unbounded_channel();
        let (tell, told) = unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        std::thread::Builder::new().name("stage".to_owned()).spawn(move || {
            let end = LocalSet::new().block_on(&runtime, run(begin, taken, tell.clone()));
            // Whoever listened may be gone.
            let _ = tell.send(Told::Ended(end));
        })?;
        Ok(Self { orders, told })
    }

    /// The next thing that it tells. Nothing is lost if it is given up.
    pub(super) async fn next(&mut self) -> Told {
        self.told.recv().await.unwrap_or(Told::Broken)
    }

    /// Hands it a channel.
    pub(super) fn channel(&self, peer: PeerId, lane: Lane, channel: NewChannel) {
        self.order(Order::Channel { peer, lane, channel });
    }

    /// A peer cannot be reached any more.
    pub(super) fn gone(&self, peer: PeerId, reason: String) {
        self.order(Order::Gone { peer, reason });
    }

    /// A peer stands otherwise than before.
    pub(super) fn presence(&self, peer: PeerId, presence: Presence) {
        self.order(Order::Presence { peer, presence });
    }

    /// The room has a host again, under this number.
    pub(super) fn host_returned(&self, host: PeerId) {
        self.order(Order::HostReturned(host));
    }

    /// It is to leave the room.
    pub(super) fn leave(&self) {
        self.order(Order::Leave);
    }

    fn order(&self, order: Order) {
        // One that has ended needs no more.
        let _ = self.orders.send(order);
    }
}

async fn run(begin: Begin, orders: UnboundedReceiver<Order>, tell: UnboundedSender<Told>) -> StageEnd {
    let Begin { host, introduction, cache, lent, embedded } = begin;
    let (inputs, queue) = node::queue();
    spawn_local(pass_on(orders, inputs.clone()));
    let cache = match cache {
        Some((folder, limit)) => AnyCache::Dir(Rc::new(DirCache::new(folder, limit))),
        None => AnyCache::None,
    };
    let (device, here) = (baton_model::cpu(), Here { clock: Instant::now(), lent });
    let tell = move |event| {
        // Whoever listened may be gone.
        let _ = tell.send(Told::Event(event));
    };
    node::run_stage(host, introduction, device, embedded, cache, here, inputs, queue, tell).await
}

type StageInputs = Inputs<NativeChannel, StageCommand>;

/// What the visit orders, and the time.
async fn pass_on(mut orders: UnboundedReceiver<Order>, inputs: StageInputs) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let input = tokio::select! {
            _ = ticks.tick() => Input::Tick,
            order = orders.recv() => match order {
                Some(Order::Channel { peer, lane, channel: NewChannel { channel, incoming } }) => {
                    let inputs = inputs.clone();
                    let make = move |id| {
                        spawn_local(listen(id, incoming, inputs));
                        channel
                    };
                    Input::Channel { peer, lane, make: Box::new(make) }
                }
                Some(Order::Gone { peer, reason }) => Input::Gone { peer, reason },
                Some(Order::Presence { peer, presence }) => Input::Presence { peer, presence },
                Some(Order::HostReturned(host)) => Input::HostReturned(host),
                Some(Order::Leave) | None => Input::Command(StageCommand::Leave),
            },
        };
        if inputs.unbounded_send(input).is_err() {
            return;
        }
    }
}

/// What a channel says, under the number that it was given.
async fn listen(id: PortId, mut incoming: Incoming, inputs: StageInputs) {
    while let Some(signal) = incoming.next().await {
        let input = match signal {
            Signal::Frame(bytes) => Input::Frame { id, bytes },
            Signal::Writable => Input::Writable { id },
            Signal::Closed => Input::Closed { id },
        };
        if inputs.unbounded_send(input).is_err() {
            return;
        }
    }
}

/// This process, to a stage.
#[derive(Clone)]
struct Here {
    clock: Instant,
    lent: Lent,
}

impl Environment for Here {
    fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    /// The visit finds the host again when its page was only loaded anew.
    fn patience(&self) -> Duration {
        PATIENCE
    }

    async fn breathe(&self) {
        tokio::task::yield_now().await;
    }

    async fn memory(&self, most: u64, held: u64) -> u64 {
        self.lent.to_one(most, held)
    }
}
