//! What the page asks of its browser: address, storage, clipboard, downloads, wake lock, WebGPU.

use baton_protocol::{pulse::Pulse, room::RoomSecret};
use baton_web_api::Visit;
use gloo::{
    events::EventListener,
    storage::{LocalStorage, SessionStorage, Storage},
    timers::callback::Timeout,
};
use js_sys::{Array, ArrayBuffer, Function, Promise, Reflect};
use leptos::prelude::{document, window};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};

const ROOM_KEY: &str = "baton.room";
const CLAIM_KEY: &str = "baton.claim";
const KEPT_ROOM_KEY: &str = "baton.kept-room";
const VISITS_KEY: &str = "baton.visits";
/// So many visits are remembered.
const MOST_VISITS: usize = 32;

/// Reads what [`store`] wrote; whatever is unreadable counts as nothing.
pub(crate) fn stored<T: DeserializeOwned>(key: &str) -> Option<T> {
    LocalStorage::get(key).ok()
}

/// Keeps a value for the next visit, where the browser allows it.
pub(crate) fn store<T: Serialize>(key: &str, value: &T) {
    LocalStorage::set(key, value).ok();
}

/// This visit to the page, which begins with the first call, and which of those before were left.
///
/// Nothing is told to a page whose process is killed, so each visit notes down when it goes out of sight or ends: one that
/// broke off in plain sight was killed.
pub(crate) fn visit() -> Visit {
    thread_local!(static VISIT: OnceCell<Visit> = const { OnceCell::new() });
    VISIT.with(|visit| visit.get_or_init(begin_visit).clone())
}

fn begin_visit() -> Visit {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // whole and positive for long
    let number = js_sys::Date::now() as u64;
    let before: BTreeMap<u64, bool> = stored(VISITS_KEY).unwrap_or_default();
    let note = move |left: bool| {
        let mut visits: BTreeMap<u64, bool> = stored(VISITS_KEY).unwrap_or_default();
        visits.insert(number, left);
        while visits.len() > MOST_VISITS {
            visits.pop_first();
        }
        store(VISITS_KEY, &visits);
    };
    let hidden = || document().hidden();
    note(hidden());
    // For as long as the page lives.
    EventListener::new(&document(), "visibilitychange", move |_| note(hidden())).forget();
    EventListener::new(&window(), "pagehide", move |_| note(true)).forget();
    EventListener::new(&window(), "pageshow", move |_| note(hidden())).forget();
    Visit { number, left: before.into_iter().filter(|(_, left)| *left).map(|(number, _)| number).collect() }
}

/// The part of the address after `#`.
pub(crate) fn fragment() -> String {
    window().location().hash().unwrap_or_default()
}

/// A parameter of the address.
pub(crate) fn query(name: &str) -> Option<String> {
    let search = window().location().search().ok()?;
    web_sys::UrlSearchParams::new_with_str(&search).ok()?.get(name)
}

/// A file of the page, as an absolute address.
pub(crate) fn asset(path: &str) -> String {
    let base = document().base_uri().ok().flatten().unwrap_or_default();
    web_sys::Url::new_with_base(path, &base).map_or_else(|_| path.to_owned(), |url| url.href())
}

/// The signaling server of this page.
pub(crate) fn server_url() -> String {
    let location = window().location();
    let scheme = if location.protocol().is_ok_and(|p| p == "https:") { "wss" } else { "ws" };
    format!("{scheme}://{}/ws", location.host().unwrap_or_default())
}

/// The link that joins the room of this code: at `base`, or at this page's own address.
pub(crate) fn join_link(code: &str, base: Option<String>) -> String {
    let base = base.unwrap_or_else(|| {
        let location = window().location();
        location.origin().unwrap_or_default() + &location.pathname().unwrap_or_default()
    });
    format!("{base}#/join/{code}")
}

/// Whether other devices cannot open this page's address.
pub(crate) fn only_reachable_here() -> bool {
    let host = window().location().hostname().unwrap_or_default();
    matches!(host.as_str(), "localhost" | "127.0.0.1" | "[::1]")
}

/// The address at which others can open this page, if its server knows one; trunk's, for one, does not.
pub(crate) async fn lan_address() -> Option<String> {
    let answer = fetch_bytes(&asset("/lan")).await.ok()?;
    let addresses: Vec<String> = serde_json::from_slice(&answer).ok()?;
    addresses.into_iter().next()
}

/// WebGPU, wake lock and the clipboard exist in secure contexts only.
pub(crate) fn is_secure() -> bool {
    window().is_secure_context()
}

/// This room's secret: kept while the tab lives, so that a reload keeps the link.
pub(crate) fn room_secret(renew: bool) -> Option<RoomSecret> {
    // The room of a run that can be gone on with, in a new tab too.
    let kept = SessionStorage::get::<String>(ROOM_KEY).or_else(|_| {
        let (room, claim) = LocalStorage::get::<(String, String)>(KEPT_ROOM_KEY)?;
        SessionStorage::set(ROOM_KEY, &room)?;
        SessionStorage::set(CLAIM_KEY, claim)?;
        Ok::<_, gloo::storage::errors::StorageError>(room)
    });
    let kept = kept.ok();
    if let (false, Some(secret)) = (renew, kept.and_then(|code| RoomSecret::from_code(&code).ok())) {
        return Some(secret);
    }
    let mut bytes = [0; 16];
    window().crypto().ok()?.get_random_values_with_u8_array(&mut bytes).ok()?;
    let secret = RoomSecret::from_bytes(bytes);
    SessionStorage::set(ROOM_KEY, secret.to_code()).ok();
    Some(secret)
}

/// Keeps the room for a tab to come, with the run that goes on in it.
pub(crate) fn keep_room() {
    let get = |key| SessionStorage::get::<String>(key).ok();
    if let (Some(room), Some(claim)) = (get(ROOM_KEY), get(CLAIM_KEY)) {
        LocalStorage::set(KEPT_ROOM_KEY, (room, claim)).ok();
    }
}

/// There is no run to go on with: a new tab makes a new room.
pub(crate) fn forget_room() {
    LocalStorage::delete(KEPT_ROOM_KEY);
}

/// This host's claim to its room, kept as the secret is: with it a page that was loaded again has the room back at once.
pub(crate) fn room_claim() -> Option<String> {
    if let Ok(claim) = SessionStorage::get::<String>(CLAIM_KEY) {
        return Some(claim);
    }
    let mut bytes = [0; 16];
    window().crypto().ok()?.get_random_values_with_u8_array(&mut bytes).ok()?;
    let claim: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    SessionStorage::set(CLAIM_KEY, &claim).ok();
    Some(claim)
}

/// What this device is called: as its owner said, or by its platform.
pub(crate) fn device_name() -> String {
    let kept: Option<String> = stored("baton.name");
    kept.filter(|name| !name.trim().is_empty()).unwrap_or_else(|| {
        crate::format::device_name(&window().navigator().user_agent().unwrap_or_default()).to_owned()
    })
}

/// Whether WebGPU has an adapter that is more than an emulation on the CPU.
pub(crate) async fn has_webgpu() -> bool {
    async fn adapter() -> Option<JsValue> {
        let gpu = Reflect::get(&window().navigator(), &"gpu".into()).ok().filter(JsValue::is_object)?;
        let request: Function = Reflect::get(&gpu, &"requestAdapter".into()).ok()?.dyn_into().ok()?;
        let promise: Promise = request.call0(&gpu).ok()?.dyn_into().ok()?;
        JsFuture::from(promise).await.ok().filter(JsValue::is_object)
    }
    let Some(adapter) = adapter().await else { return false };
    let is = |of: &JsValue| {
        Reflect::get(of, &"isFallbackAdapter".into()).ok().and_then(|flag| flag.as_bool()).unwrap_or(false)
    };
    let info = Reflect::get(&adapter, &"info".into()).unwrap_or_default();
    !(is(&adapter) || info.is_object() && is(&info))
}

/// The bytes of a file of the page.
pub(crate) async fn fetch_bytes(url: &str) -> Result<Vec<u8>, String> {
    let response = gloo::net::http::Request::get(url).send().await.map_err(|error| error.to_string())?;
    if !response.ok() {
        return Err(format!("the server says {} {}", response.status(), response.status_text()));
    }
    response.binary().await.map_err(|error| error.to_string())
}

/// Copies a text; false where the browser does not allow it.
pub(crate) async fn copy(text: &str) -> bool {
    is_secure() && JsFuture::from(window().navigator().clipboard().write_text(text)).await.is_ok()
}

/// Once the page has changed: if the focus was on one of `from` and that is hidden now, the first of `to` that takes it
/// gets it. To be called before the change is drawn.
pub(crate) fn hand_focus_on(from: &[&str], to: &'static [&'static str]) {
    let Some(old) = document().active_element().filter(|old| from.contains(&old.id().as_str())) else {
        return;
    };
    Timeout::new(0, move || {
        if !matches!(old.closest("[hidden]"), Ok(Some(_))) && old.is_connected() {
            return;
        }
        for id in to {
            let Some(next) = document().get_element_by_id(id) else { continue };
            if matches!(next.closest("[hidden]"), Ok(Some(_))) {
                continue;
            }
            next.unchecked_ref::<web_sys::HtmlElement>().focus().ok();
            if document().active_element().is_some_and(|now| now.id() == *id) {
                return;
            }
        }
    })
    .forget();
}

/// Focuses an element once what has changed is drawn.
pub(crate) fn focus_soon(id: &'static str) {
    Timeout::new(0, move || {
        if let Some(element) = document().get_element_by_id(id) {
            element.unchecked_ref::<web_sys::HtmlElement>().focus().ok();
        }
    })
    .forget();
}

/// Offers bytes as a download; the object URL lives a minute.
pub(crate) fn download(name: &str, bytes: &ArrayBuffer) -> Result<(), JsValue> {
    let options = web_sys::BlobPropertyBag::new();
    options.set_type("application/zip");
    let blob = web_sys::Blob::new_with_buffer_source_sequence_and_options(&Array::of1(bytes), &options)?;
    let url = web_sys::Url::create_object_url_with_blob(&blob)?;
    let link: web_sys::HtmlAnchorElement = document().create_element("a")?.unchecked_into();
    link.set_href(&url);
    link.set_download(name);
    link.click();
    Timeout::new(60_000, move || {
        web_sys::Url::revoke_object_url(&url).ok();
    })
    .forget();
    Ok(())
}

/// Keeps the screen on while it lives; the browser lets go when the page is hidden, and is asked again after.
pub(crate) struct WakeLock {
    lock: Rc<RefCell<Option<JsValue>>>,
    _listener: EventListener,
}

impl WakeLock {
    /// Asks for it; where there is none, nothing happens.
    pub(crate) fn hold() -> Self {
        let lock = Rc::new(RefCell::new(None));
        ask_for_wake_lock(&lock);
        let again = Rc::clone(&lock);
        let listener = EventListener::new(&document(), "visibilitychange", move |_| {
            if !document().hidden() {
                ask_for_wake_lock(&again);
            }
        });
        Self { lock, _listener: listener }
    }
}

/// Watches what this device has to say of itself while it lives: whether its page is looked at, and its battery.
pub(crate) struct PulseWatch {
    _visibility: EventListener,
    _battery: Rc<RefCell<Vec<EventListener>>>,
}

/// Tells the pulse as it is now, and whenever it changes.
pub(crate) fn watch_pulse(tell: impl Fn(Pulse) + 'static) -> PulseWatch {
    let pulse = Rc::new(Cell::new(Pulse { hidden: document().hidden(), ..Pulse::default() }));
    tell(pulse.get());
    let tell: Rc<dyn Fn(Pulse)> = Rc::new(tell);
    let visibility = {
        let (pulse, tell) = (Rc::clone(&pulse), Rc::clone(&tell));
        EventListener::new(&document(), "visibilitychange", move |_| {
            pulse.set(Pulse { hidden: document().hidden(), ..pulse.get() });
            tell(pulse.get());
        })
    };
    let listeners = Rc::new(RefCell::new(Vec::new()));
    let kept = Rc::downgrade(&listeners);
    spawn_local(async move {
        // Chromium alone has it.
        let Some(promise) = call(&window().navigator(), "getBattery", &JsValue::UNDEFINED) else { return };
        let Ok(battery) = JsFuture::from(promise).await else { return };
        let Ok(battery) = battery.dyn_into::<web_sys::EventTarget>() else { return };
        let read = move |battery: &JsValue| {
            let get = |name: &str| Reflect::get(battery, &name.into()).unwrap_or_default();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of 1, in percent
            let percent = get("level").as_f64().map(|level| (level.clamp(0.0, 1.0) * 100.0).round() as u8);
            pulse.set(Pulse {
                battery: percent,
                charging: get("charging").as_bool().unwrap_or(false),
                ..pulse.get()
            });
            tell(pulse.get());
        };
        read(&battery);
        let read = Rc::new(read);
        if let Some(kept) = kept.upgrade() {
            for event in ["levelchange", "chargingchange"] {
                let (read, target) = (Rc::clone(&read), battery.clone());
                kept.borrow_mut().push(EventListener::new(&battery, event, move |_| read(&target)));
            }
        }
    });
    PulseWatch { _visibility: visibility, _battery: listeners }
}

fn call(of: &JsValue, method: &str, argument: &JsValue) -> Option<Promise> {
    let function: Function = Reflect::get(of, &method.into()).ok()?.dyn_into().ok()?;
    function.call1(of, argument).ok()?.dyn_into().ok()
}

fn ask_for_wake_lock(lock: &Rc<RefCell<Option<JsValue>>>) {
    let Ok(source) = Reflect::get(&window().navigator(), &"wakeLock".into()) else { return };
    let Some(promise) =
        Some(source).filter(JsValue::is_object).and_then(|source| call(&source, "request", &"screen".into()))
    else {
        return;
    };
    let weak = Rc::downgrade(lock);
    spawn_local(async move {
        let Ok(sentinel) = JsFuture::from(promise).await else { return };
        match weak.upgrade() {
            Some(lock) => drop(lock.replace(Some(sentinel))),
            None => drop(call(&sentinel, "release", &JsValue::UNDEFINED)),
        }
    });
}

impl Drop for WakeLock {
    fn drop(&mut self) {
        if let Some(sentinel) = self.lock.take() {
            call(&sentinel, "release", &JsValue::UNDEFINED);
        }
    }
}
