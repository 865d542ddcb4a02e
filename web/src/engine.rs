//! The engine's worker: which one this device gets, how it starts, and the messages across its border.

use crate::browser;
use baton_web_api::{FromWorker, ToWorker};
use gloo::events::EventListener;
use js_sys::{Array, ArrayBuffer, Object, Reflect};
use serde::{Deserialize, Serialize};
use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::spawn_local;
use web_sys::{ErrorEvent, MessageEvent, RtcDataChannel, Worker};

/// What rides beside a message.
#[derive(Debug)]
pub(crate) enum Beside {
    /// Nothing.
    Nothing,
    /// A data channel, transferred.
    Channel(RtcDataChannel),
    /// Files, cloned by reference.
    Files(Vec<web_sys::File>),
    /// Bytes, transferred.
    Bytes(ArrayBuffer),
}

/// What the worker tells the page.
#[derive(Debug)]
pub(crate) enum EngineEvent {
    /// So many bytes of the engine have arrived.
    Loading(u64),
    /// WebGPU did not start; the CPU engine is tried instead.
    FellBack(String),
    /// A message of the engine, and the bytes beside it.
    Message(FromWorker, Option<ArrayBuffer>),
    /// The engine cannot start, or broke.
    Failed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cpu,
    WebGpu,
}

/// A worker with an engine in it. Dropping it ends the worker.
#[derive(Clone)]
pub(crate) struct Engine(Rc<Inner>);

struct Inner {
    on_event: Box<dyn Fn(EngineEvent)>,
    worker: RefCell<Option<Running>>,
    ready: Cell<bool>,
}

struct Running {
    worker: Worker,
    _listeners: [EventListener; 3],
}

impl Drop for Running {
    fn drop(&mut self) {
        self.worker.terminate();
    }
}

/// What static/worker.js says before the engine can.
#[derive(Deserialize)]
struct FromLoader {
    loading: Option<f64>,
    failed: Option<String>,
}

impl Engine {
    /// Starts the engine that this device needs; its first message is [`FromWorker::Ready`].
    pub(crate) fn start(on_event: impl Fn(EngineEvent) + 'static) -> Self {
        let inner = Rc::new(Inner {
            on_event: Box::new(on_event),
            worker: RefCell::default(),
            ready: Cell::new(false),
        });
        let weak = Rc::downgrade(&inner);
        spawn_local(async move {
            let kind = match browser::query("backend").as_deref() {
                Some("cpu") => Kind::Cpu,
                Some("webgpu") => Kind::WebGpu,
                _ if browser::has_webgpu().await => Kind::WebGpu,
                _ => Kind::Cpu,
            };
            if let Some(inner) = weak.upgrade() {
                inner.run(kind);
            }
        });
        Self(inner)
    }

    /// Whether the engine has said that it is there; what is posted before is lost.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.ready.get()
    }

    /// Posts a message.
    pub(crate) fn post(&self, message: &ToWorker, beside: Beside) {
        // Chromium transfers channels since 2024, Firefox still later.
        let advice =
            if matches!(beside, Beside::Channel(_)) { "; update this browser, or use another" } else { "" };
        if let Err(error) = self.0.post(message, beside) {
            let words = baton_transport::browser::words(&error);
            let words = format!("The engine did not take a message: {words}{advice}");
            (self.0.on_event)(EngineEvent::Failed(words));
        }
    }
}

impl Inner {
    fn post(&self, message: &ToWorker, beside: Beside) -> Result<(), JsValue> {
        let envelope = Object::new();
        let serializer = serde_wasm_bindgen::Serializer::json_compatible();
        Reflect::set(&envelope, &"message".into(), &message.serialize(&serializer)?)?;
        let transfer = Array::new();
        match beside {
            Beside::Nothing => {}
            Beside::Channel(channel) => {
                Reflect::set(&envelope, &"channel".into(), &channel)?;
                transfer.push(&channel);
            }
            Beside::Files(files) => {
                let files: Array = files.into_iter().collect();
                Reflect::set(&envelope, &"files".into(), &files)?;
            }
            Beside::Bytes(bytes) => {
                Reflect::set(&envelope, &"bytes".into(), &bytes)?;
                transfer.push(&bytes);
            }
        }
        match &*self.worker.borrow() {
            Some(running) => running.worker.post_message_with_transfer(&envelope, &transfer),
            None => Ok(()),
        }
    }

    fn run(self: &Rc<Self>, kind: Kind) {
        let name = if kind == Kind::Cpu { "cpu" } else { "gpu" };
        let worker = match Worker::new(&browser::asset(&format!("static/worker.js?engine={name}"))) {
            Ok(worker) => worker,
            Err(error) => return self.failed(kind, &baton_transport::browser::words(&error)),
        };
        let on = |event: &'static str, handle: fn(&Rc<Self>, Kind, &web_sys::Event)| {
            let weak: Weak<Self> = Rc::downgrade(self);
            EventListener::new(&worker, event, move |event| {
                if let Some(inner) = weak.upgrade() {
                    handle(&inner, kind, event);
                }
            })
        };
        let listeners = [
            on("message", |inner, kind, event| {
                if let Some(event) = event.dyn_ref::<MessageEvent>() {
                    inner.receive(kind, &event.data());
                }
            }),
            on("error", |inner, kind, event| {
                let words = event.dyn_ref::<ErrorEvent>().map(ErrorEvent::message).unwrap_or_default();
                let words = if words.is_empty() { "its files did not load".into() } else { words };
                inner.failed(kind, &words);
            }),
            on("messageerror", |inner, kind, _| inner.failed(kind, "a message could not be read")),
        ];
        let old = self.worker.replace(Some(Running { worker, _listeners: listeners }));
        drop(old);
    }

    fn failed(self: &Rc<Self>, kind: Kind, why: &str) {
        if kind == Kind::WebGpu && !self.ready.get() {
            (self.on_event)(EngineEvent::FellBack(why.to_owned()));
            self.run(Kind::Cpu);
            return;
        }
        let words = if self.ready.get() {
            format!("The engine stopped: {why}. Reload the page to start it again.")
        } else {
            format!("The engine could not start: {why}. Reload the page, or try another browser.")
        };
        (self.on_event)(EngineEvent::Failed(words));
    }

    fn receive(self: &Rc<Self>, kind: Kind, data: &JsValue) {
        let message = Reflect::get(data, &"message".into()).unwrap_or_default();
        if message.is_undefined() {
            return match serde_wasm_bindgen::from_value::<FromLoader>(data.clone()) {
                Ok(FromLoader { failed: Some(why), .. }) => self.failed(kind, &why),
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a cast saturates
                Ok(FromLoader { loading: Some(bytes), .. }) => {
                    (self.on_event)(EngineEvent::Loading(bytes as u64));
                }
                _ => {}
            };
        }
        let bytes = Reflect::get(data, &"bytes".into()).ok().and_then(|bytes| bytes.dyn_into().ok());
        match serde_wasm_bindgen::from_value::<FromWorker>(message) {
            Ok(message) => {
                if matches!(message, FromWorker::Ready { .. }) {
                    self.ready.set(true);
                }
                // An engine that reports a failure before it is ready has failed to start.
                if let (false, FromWorker::Error { message, .. }) = (self.ready.get(), &message) {
                    return self.failed(kind, message);
                }
                (self.on_event)(EngineEvent::Message(message, bytes));
            }
            Err(error) => (self.on_event)(EngineEvent::Failed(format!(
                "The engine and the page are of different versions ({error}). Reload the page."
            ))),
        }
    }
}
