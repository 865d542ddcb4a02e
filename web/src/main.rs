//! The page: a host's three steps and its run, or a joiner's stage. The engine runs in a worker; tensor bytes never
//! come here.
#![cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
// Leptos makes a public type of every component's properties.
#![allow(unreachable_pub)]

#[cfg(target_arch = "wasm32")]
mod app;
#[cfg(target_arch = "wasm32")]
mod browser;
#[cfg(target_arch = "wasm32")]
mod chart;
#[cfg(target_arch = "wasm32")]
mod engine;
mod form;
mod format;
#[cfg(target_arch = "wasm32")]
mod host;
mod ids;
#[cfg(target_arch = "wasm32")]
mod join;
#[cfg(target_arch = "wasm32")]
mod lengths;
#[cfg(target_arch = "wasm32")]
mod storage;
#[cfg(target_arch = "wasm32")]
mod track;

#[cfg(target_arch = "wasm32")]
fn main() {
    console_error_panic_hook::set_once();
    app::mount();
}

#[cfg(not(target_arch = "wasm32"))]
fn main() {
    eprintln!("The page runs in a browser: `cargo xtask serve` builds and serves it.");
}

#[cfg(all(test, target_arch = "wasm32"))]
wasm_bindgen_test::wasm_bindgen_test_configure!(run_in_browser);
