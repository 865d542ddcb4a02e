//! The engine in its dedicated worker: channels and messages of the page on one side, a node's loop on the other.
//!
//! Two binaries wrap this, with and without WebGPU, so that a device loads what it needs.
#![cfg(target_arch = "wasm32")]

mod channel;
mod host;
pub mod memory;
mod stage;

use baton_engine::cache::AnyCache;
use baton_engine::node::{Environment, Input, Inputs};
use baton_formats::files::OpfsCache;
use baton_model::Device;
use baton_protocol::PeerId;
use baton_protocol::link::Lane;
use baton_transport::PortId;
use baton_web_api::{CacheInfo, ErrorAbout, FromWorker, ToWorker, Visit};
use channel::{Handlers, RtcChannel, Signal};
use gloo::events::EventListener;
use gloo::timers::callback::Interval;
use js_sys::{Array, Object, Reflect, Uint8Array};
use memory::Memory;
use serde::Serialize;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use wasm_bindgen::{JsCast, JsValue, UnwrapThrowExt};
use wasm_bindgen_futures::JsFuture;
use web_sys::{DedicatedWorkerGlobalScope, MessageEvent, RtcDataChannel};

/// Half of a heartbeat, in milliseconds.
const TICK: u32 = 500;

/// Takes the worker over: the device is made ready, and the page's messages are served for good.
pub fn start() {
    console_error_panic_hook::set_once();
    wasm_bindgen_futures::spawn_local(async {
        match device().await {
            Ok((device, backend)) => serve(device, backend),
            Err(message) => post(&FromWorker::Error { about: ErrorAbout::Engine, message }, None),
        }
    });
}

#[cfg(not(feature = "webgpu"))]
async fn device() -> Result<(Device, &'static str), String> {
    Ok((baton_model::cpu(), "CPU"))
}

#[cfg(feature = "webgpu")]
async fn device() -> Result<(Device, &'static str), String> {
    Ok((baton_model::webgpu().await?, "WebGPU"))
}

/// What this worker has become.
enum Role {
    Unknown,
    Host(Inputs<RtcChannel, baton_engine::node::HostCommand>),
    Stage(Inputs<RtcChannel, baton_engine::node::StageCommand>),
}

fn scope() -> DedicatedWorkerGlobalScope {
    js_sys::global().dyn_into().expect_throw("this module runs in a dedicated worker")
}

fn serve(device: Device, backend: &'static str) {
    let role = Rc::new(RefCell::new(Role::Unknown));
    let on_message = {
        let role = role.clone();
        move |event: &web_sys::Event| {
            let Some(event) = event.dyn_ref::<MessageEvent>() else { return };
            if let Err(error) = receive(&device, backend, &role, &event.data()) {
                let message = format!("The page's message could not be read: {error:?}");
                post(&FromWorker::Error { about: ErrorAbout::Engine, message }, None);
            }
        }
    };
    // Listens for as long as the worker lives.
    EventListener::new(&scope(), "message", on_message).forget();
    // A listener that is added, unlike `onmessage`, does not start the queue by itself in every browser.
    Interval::new(TICK, move || match &*role.borrow() {
        Role::Unknown => {}
        Role::Host(inputs) => feed(inputs, Input::Tick),
        Role::Stage(inputs) => feed(inputs, Input::Tick),
    })
    .forget();
    post(&FromWorker::Ready { backend: backend.into() }, None);
}

/// A loop that has ended takes no more, and needs no more.
fn feed<T>(inputs: &Inputs<RtcChannel, T>, input: Input<RtcChannel, T>) {
    let _ = inputs.unbounded_send(input);
}

fn receive(device: &Device, backend: &str, role: &RefCell<Role>, data: &JsValue) -> Result<(), JsValue> {
    let beside = |name: &str| Reflect::get(data, &name.into());
    let message: ToWorker = serde_wasm_bindgen::from_value(beside("message")?)?;
    let become_role = |new: Role| {
        let mut role = role.borrow_mut();
        if matches!(*role, Role::Unknown) {
            *role = new;
        }
    };
    match message {
        ToWorker::CacheUsage => wasm_bindgen_futures::spawn_local(tell_cache(false)),
        ToWorker::ClearCache => wasm_bindgen_futures::spawn_local(tell_cache(true)),
        ToWorker::Host { name, visit } => {
            become_role(Role::Host(host::start(name, visit, backend, device.clone())));
        }
        ToWorker::Join { name, host, me: _, visit } => {
            become_role(Role::Stage(stage::start(name, visit, backend, host, device.clone())));
        }
        ToWorker::Channel { peer, lane } => {
            let channel: RtcDataChannel = beside("channel")?.dyn_into()?;
            match &*role.borrow() {
                Role::Unknown => channel.close(),
                Role::Host(inputs) => attach(inputs, peer, lane, channel),
                Role::Stage(inputs) => attach(inputs, peer, lane, channel),
            }
        }
        ToWorker::PeerGone { peer } => {
            let reason = "it left the room or cannot be reached".to_owned();
            match &*role.borrow() {
                Role::Unknown => {}
                Role::Host(inputs) => feed(inputs, Input::Gone { peer, reason }),
                Role::Stage(inputs) => feed(inputs, Input::Gone { peer, reason }),
            }
        }
        ToWorker::HostReturned { host } => {
            if let Role::Stage(inputs) = &*role.borrow() {
                feed(inputs, Input::HostReturned(host));
            }
        }
        ToWorker::Presence { peer, presence } => match &*role.borrow() {
            Role::Unknown => {}
            Role::Host(inputs) => feed(inputs, Input::Presence { peer, presence }),
            Role::Stage(inputs) => feed(inputs, Input::Presence { peer, presence }),
        },
        message => {
            if let Role::Host(inputs) = &*role.borrow() {
                host::command(inputs, message, &beside)?;
            }
        }
    }
    Ok(())
}

/// Attaches the channel's handlers at once, because what arrives before is lost, and hands it to the loop.
fn attach<T: 'static>(inputs: &Inputs<RtcChannel, T>, peer: PeerId, lane: Lane, channel: RtcDataChannel) {
    let handlers = {
        let inputs = inputs.clone();
        Handlers::attach(channel, move |id: PortId, signal| {
            feed(
                &inputs,
                match signal {
                    Signal::Frame(bytes) => Input::Frame { id, bytes },
                    Signal::Writable => Input::Writable { id },
                    Signal::Closed => Input::Closed { id },
                },
            );
        })
    };
    feed(inputs, Input::Channel { peer, lane, make: Box::new(move |id| handlers.report_as(id)) });
}

/// Posts to the page, with bytes transferred beside the message.
fn post(message: &FromWorker, bytes: Option<&[u8]>) {
    let send = || -> Result<(), JsValue> {
        let envelope = Object::new();
        let serializer = serde_wasm_bindgen::Serializer::json_compatible();
        Reflect::set(&envelope, &"message".into(), &message.serialize(&serializer)?)?;
        let transfer = Array::new();
        if let Some(bytes) = bytes {
            let buffer = Uint8Array::from(bytes).buffer();
            Reflect::set(&envelope, &"bytes".into(), &buffer)?;
            transfer.push(&buffer);
        }
        scope().post_message_with_transfer(&envelope, &transfer)
    };
    if let Err(error) = send() {
        web_sys::console::error_2(&"a message to the page was lost:".into(), &error);
    }
}

/// The pieces of models that this browser keeps.
pub(crate) async fn cache() -> AnyCache {
    AnyCache::Opfs(Rc::new(OpfsCache::open(None).await))
}

/// Tells the page how much is kept of models, after deleting it if that is wanted.
async fn tell_cache(clear: bool) {
    let cache = OpfsCache::open(None).await;
    if clear && let Err(error) = cache.clear().await {
        post(&FromWorker::Error { about: ErrorAbout::Cache, message: error.to_string() }, None);
    }
    let cache = CacheInfo { there: cache.is_there(), used: cache.usage().await, limit: cache.limit() };
    post(&FromWorker::Cache { cache }, None);
}

/// The worker's clock, a way to let its queue of events run, and its memory.
#[derive(Clone)]
struct WorkerEnvironment {
    memory: Rc<Memory>,
}

impl WorkerEnvironment {
    async fn open(visit: Visit) -> Self {
        Self { memory: Rc::new(Memory::open(visit.number, &visit.left).await) }
    }
}

impl Environment for WorkerEnvironment {
    fn now(&self) -> Duration {
        let milliseconds = scope().performance().map_or(0.0, |performance| performance.now());
        Duration::from_secs_f64(milliseconds.max(0.0) / 1000.0)
    }

    async fn memory(&self, most: u64, held: u64) -> u64 {
        self.memory.spare(most, held, || self.now(), async || self.breathe().await).await
    }

    async fn holding(&self, bytes: u64) {
        self.memory.holding(bytes);
    }

    /// The page finds the host again when it was only loaded anew.
    fn patience(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn secret(&self) -> u64 {
        memory::secret()
    }

    /// A message to oneself comes back after the events that wait; a timer would take 4 ms when nested.
    async fn breathe(&self) {
        let Ok(channel) = web_sys::MessageChannel::new() else { return };
        let promise = js_sys::Promise::new(&mut |resolve, _| {
            channel.port1().set_onmessage(Some(&resolve));
            if channel.port2().post_message(&JsValue::NULL).is_err() {
                // Without its message there is nothing to wait for.
                let _ = resolve.call0(&JsValue::NULL);
            }
        });
        // The promise is never rejected.
        let _ = JsFuture::from(promise).await;
        channel.port1().close();
    }
}
