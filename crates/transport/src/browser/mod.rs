//! The main thread's half of WebRTC in a browser: the signaling socket, and the connections whose data channels are
//! handed to the worker in the task that makes them. No tensor byte passes through here.

mod mesh;
mod signaling;

pub use mesh::{Gone, Mesh, MeshConfig, MeshEvent};
pub use signaling::{SignalClient, SignalError, SignalEvent};

use wasm_bindgen::{JsCast, JsValue};

/// What a JavaScript exception says, for a person.
pub fn words(error: &JsValue) -> String {
    if let Some(error) = error.dyn_ref::<js_sys::Error>() {
        return String::from(error.message());
    }
    error.as_string().unwrap_or_else(|| format!("{error:?}"))
}
