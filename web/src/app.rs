//! The frame of the page, and which of its two faces the fragment asks for.

use crate::{browser, host, join};
use baton_protocol::room::{RoomError, RoomSecret};
use gloo::events::EventListener;
use leptos::prelude::*;

/// What the fragment asks for.
#[derive(Clone)]
enum Route {
    Host,
    Join(Result<RoomSecret, RoomError>),
}

impl Route {
    fn read() -> Self {
        let fragment = browser::fragment();
        match fragment.strip_prefix("#/join/").or_else(|| (fragment == "#/join").then_some("")) {
            Some(code) => Self::Join(RoomSecret::from_code(code.trim_end_matches('/'))),
            None => Self::Host,
        }
    }
}

/// Puts the page in place of the words in index.html, unless they say that this browser cannot run it.
pub(crate) fn mount() {
    if js_sys::Reflect::get(&window(), &"batonUnsupported".into()).is_ok_and(|flag| flag.is_truthy()) {
        return;
    }
    if let Some(boot) = document().get_element_by_id("boot") {
        boot.remove();
    }
    leptos::mount::mount_to_body(App);
}

#[component]
fn App() -> impl IntoView {
    let (route, set_route) = signal_local(Route::read());
    let listener = EventListener::new(&window(), "hashchange", move |_| set_route.set(Route::read()));
    let listener = StoredValue::new_local(listener);
    on_cleanup(move || listener.dispose());
    view! {
        <div class="page">
            {move || match route.get() {
                Route::Host => host::Host().into_any(),
                Route::Join(Ok(secret)) => view! { <join::Join secret=secret /> }.into_any(),
                Route::Join(Err(error)) => view! { <join::BadLink error=format!("{error}.").replacen("this", "This", 1) /> }.into_any(),
            }}
        </div>
    }
}

/// The name of the thing, and what it is.
#[component]
pub(crate) fn Masthead(children: Children) -> impl IntoView {
    view! {
        <header class="masthead">
            <a class="brand" href="#/" aria-label="Baton, start page">
                <svg class="mark" viewBox="0 0 40 40" aria-hidden="true">
                    <rect class="mark-track" x="3" y="10" width="34" height="20" rx="10" />
                    <rect class="mark-baton" x="7" y="16.5" width="26" height="7" rx="3.5" />
                </svg>
                <span>"Baton"</span>
            </a>
            {children()}
        </header>
    }
}

/// An error in words that stays until it is dismissed or no longer true.
#[component]
pub(crate) fn Alert(id: &'static str, #[prop(into)] error: RwSignal<Option<String>>) -> impl IntoView {
    view! {
        <div id=id class="alert" role="alert" hidden=move || error.with(Option::is_none)>
            <p>{move || error.get()}</p>
            <button type="button" class="icon" aria-label="Dismiss this message" on:click=move |_| error.set(None)>
                <svg viewBox="0 0 20 20" aria-hidden="true"><path d="M5 5l10 10M15 5L5 15" /></svg>
            </button>
        </div>
    }
}

/// One line for a page that is not a secure context.
#[component]
pub(crate) fn InsecureNote() -> impl IntoView {
    view! {
        <p class="note" hidden=browser::is_secure()>
            "This page came over plain http, so the browser keeps WebGPU and the screen lock from it: this device computes on its CPU. Open the https address for full speed."
        </p>
    }
}
