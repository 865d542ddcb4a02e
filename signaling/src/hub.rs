//! The rooms behind a lock, with the clock and the clients' queues: what the sockets share.

use crate::{
    config::Config,
    outbox::{End, Full, Outbox},
    rooms::{Census, ClientId, Closing, Event, Output, Rooms},
};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// What the sockets share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) message_bytes: usize,
    queue_bytes: usize,
    started: Instant,
    state: Mutex<State>,
    emptied: Notify,
}

#[derive(Debug)]
struct State {
    rooms: Rooms,
    outboxes: HashMap<ClientId, Arc<Outbox>>,
    next: u64,
}

impl Hub {
    pub(crate) fn new(config: &Config) -> Self {
        let rooms = Rooms::new(config.limits, config.timeouts, config.ice_servers.clone());
        Self {
            message_bytes: config.limits.message_bytes,
            queue_bytes: config.limits.queue_bytes,
            started: Instant::now(),
            state: Mutex::new(State { rooms, outboxes: HashMap::new(), next: 0 }),
            emptied: Notify::new(),
        }
    }

    /// A new socket: its number and its queue.
    pub(crate) fn open(&self, address: IpAddr) -> (ClientId, Arc<Outbox>) {
        let mut state = self.state();
        let client = ClientId(state.next);
        state.next += 1;
        let outbox = Arc::new(Outbox::new(self.queue_bytes));
        state.outboxes.insert(client, Arc::clone(&outbox));
        state.handle(Event::Opened { client, address }, self.started.elapsed());
        (client, outbox)
    }

    /// The socket is gone.
    pub(crate) fn close(&self, client: ClientId) {
        let mut state = self.state();
        if let Some(outbox) = state.outboxes.remove(&client) {
            outbox.end(End::Abort);
        }
        state.handle(Event::Closed { client }, self.started.elapsed());
        if state.outboxes.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    pub(crate) fn handle(&self, event: Event) {
        // Under the lock: time must not run backwards from one event to the next.
        let mut state = self.state();
        state.handle(event, self.started.elapsed());
    }

    pub(crate) fn census(&self) -> Census {
        self.state().rooms.census()
    }

    /// Turns the machine's clock, for ever.
    pub(crate) async fn tick(&self, period: Duration) {
        let mut interval = tokio::time::interval(period);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.handle(Event::Tick);
        }
    }

    /// Waits until no socket is open.
    pub(crate) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.state().outboxes.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn handle(&mut self, event: Event, now: Duration) {
        self.rooms.handle(event, now);
        while let Some(output) = self.rooms.poll() {
            match output {
                Output::Send { client, message } => {
                    let Some(outbox) = self.outboxes.get(&client) else { continue };
                    let text =
                        serde_json::to_string(&message).expect("strings and numbers always have a JSON form");
                    if outbox.push(text.into()) == Err(Full) {
                        self.rooms.handle(Event::Stuck { client }, now);
                    }
                }
                Output::Close { client, why } => {
                    if let Some(outbox) = self.outboxes.get(&client) {
                        outbox.end(if why == Closing::Stuck { End::Abort } else { End::Close(why) });
                    }
                }
            }
        }
    }
}
