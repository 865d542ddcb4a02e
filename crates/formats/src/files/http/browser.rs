//! Requests through the browser's `fetch`, in a page or a worker.

use std::time::Duration;

use js_sys::{Function, Promise, Reflect, Uint8Array};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{Headers, ReadableStreamDefaultReader, RequestInit, Response, Window, WorkerGlobalScope};

use super::{Answer, Ask, End};

/// Sends one request and reads its answer, which may not take longer than `time` in all.
pub(in crate::files) async fn fetch(url: &str, ask: &Ask, time: Duration) -> Result<Answer, String> {
    let slow = || format!("it was not all there after {} seconds", time.as_secs_f32());
    let explain = |error: &JsValue| if is_timeout(error) { slow() } else { describe(error) };
    let response = send(url, ask, time).await.map_err(|error| explain(&error))?;
    let header = |name: &str| response.headers().get(name).ok().flatten();
    let mut answer = Answer::new(response.status(), header);
    answer.target = response.redirected().then(|| response.url()).filter(|url| !url.is_empty());
    let limit = ask.body_limit(answer.status);
    if limit == 0 || answer.content_length.is_some_and(|length| length > limit) {
        // Tells the browser that the body is not wanted.
        if let Some(stream) = response.body() {
            drop(stream.cancel());
        }
        answer.end = if limit == 0 { End::Whole } else { End::Excess };
        return Ok(answer);
    }
    answer.end = match read(&response, limit, &mut answer.body).await {
        Ok(end) => end,
        Err(error) => End::Cut(explain(&error)),
    };
    Ok(answer)
}

/// Waits.
pub(in crate::files) async fn sleep(time: Duration) {
    let millis = JsValue::from_f64(time.as_millis() as f64);
    let promise = Promise::new(&mut |resolve, _| {
        let set = Reflect::get(&js_sys::global(), &JsValue::from_str("setTimeout"));
        match set.ok().and_then(|set| set.dyn_into::<Function>().ok()) {
            Some(set) => drop(set.call2(&JsValue::UNDEFINED, &resolve, &millis)),
            None => drop(resolve.call0(&JsValue::UNDEFINED)),
        }
    });
    // A timer does not fail.
    drop(JsFuture::from(promise).await);
}

/// What a JavaScript error says.
pub(in crate::files) fn describe(error: &JsValue) -> String {
    match error.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => format!("{error:?}"),
    }
}

/// Whether the signal of [`timeout`] ended it.
fn is_timeout(error: &JsValue) -> bool {
    Reflect::get(error, &JsValue::from_str("name")).is_ok_and(|name| name == "TimeoutError")
}

/// `AbortSignal.timeout`: Chrome 103, Firefox 100, Safari 16. Older browsers wait as long as they wait.
fn timeout(time: Duration) -> Option<JsValue> {
    let class = Reflect::get(&js_sys::global(), &JsValue::from_str("AbortSignal")).ok()?;
    let make: Function = Reflect::get(&class, &JsValue::from_str("timeout")).ok()?.dyn_into().ok()?;
    make.call1(&class, &JsValue::from_f64(time.as_millis() as f64)).ok()
}

async fn send(url: &str, ask: &Ask, time: Duration) -> Result<Response, JsValue> {
    let init = RequestInit::new();
    if let Some(range) = ask.range_header() {
        let headers = Headers::new()?;
        headers.set("Range", &range)?;
        init.set_headers(&headers);
    }
    if matches!(ask, Ask::Head) {
        init.set_method("HEAD");
    } else {
        // Chromium keeps a part, and asks for the next one with If-Range: to that a server may answer with the whole
        // file. Set by name, as web-sys has it only with a feature of its own.
        Reflect::set(&init, &JsValue::from_str("cache"), &JsValue::from_str("no-store"))?;
    }
    if let Some(signal) = timeout(time) {
        Reflect::set(&init, &JsValue::from_str("signal"), &signal)?;
    }
    let request = web_sys::Request::new_with_str_and_init(url, &init)?;
    let global = js_sys::global();
    let promise = match global.dyn_into::<Window>() {
        Ok(window) => window.fetch_with_request(&request),
        Err(global) => match global.dyn_into::<WorkerGlobalScope>() {
            Ok(worker) => worker.fetch_with_request(&request),
            Err(_) => {
                return Err(js_sys::Error::new("there is no fetch outside of a page or a worker").into());
            }
        },
    };
    JsFuture::from(promise).await?.dyn_into()
}

/// The body, piece by piece, into `bytes`; no more than `limit` of it.
async fn read(response: &Response, limit: u64, bytes: &mut Vec<u8>) -> Result<End, JsValue> {
    let Some(stream) = response.body() else { return Ok(End::Whole) };
    let reader: ReadableStreamDefaultReader = stream.get_reader().dyn_into()?;
    loop {
        let result = JsFuture::from(reader.read()).await?;
        if Reflect::get(&result, &JsValue::from_str("done"))?.is_truthy() {
            return Ok(End::Whole);
        }
        let piece: Uint8Array = Reflect::get(&result, &JsValue::from_str("value"))?.dyn_into()?;
        if bytes.len() as u64 + u64::from(piece.length()) > limit {
            // Whether the server hears of it makes no difference here.
            drop(reader.cancel());
            return Ok(End::Excess);
        }
        let start = bytes.len();
        bytes.resize(start + piece.length() as usize, 0);
        if let Some(rest) = bytes.get_mut(start..) {
            piece.copy_to(rest);
        }
    }
}
