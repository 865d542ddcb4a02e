//! What this device keeps of models, and a button to delete it.

use crate::{app::Alert, format};
use baton_web_api::{CacheInfo, ToWorker};
use leptos::prelude::*;
use wasm_bindgen::JsCast;

/// Folded away until a person wants to know.
#[component]
pub(crate) fn StoragePanel(
    /// What is kept, once the engine has said so.
    cache: RwSignal<Option<CacheInfo>>,
    /// What went wrong.
    error: RwSignal<Option<String>>,
    /// Tells the engine.
    say: impl Fn(&ToWorker) + Copy + Send + Sync + 'static,
) -> impl IntoView {
    let used = move || cache.get().map_or(0, |cache| cache.used);
    let words = move || match cache.get() {
        None => "Looking…".into(),
        Some(CacheInfo { there: false, .. }) => {
            "This browser keeps nothing for this page; models are fetched again for every run.".into()
        }
        Some(CacheInfo { used: 0, .. }) => "No pieces of models are stored on this device.".into(),
        Some(CacheInfo { used, limit, .. }) => format!(
            "Pieces of models are stored on this device, so that they are not fetched again: {} of at most {}.",
            format::bytes(used),
            format::bytes(limit)
        ),
    };
    view! {
        <details
            class="card settings"
            id="storage"
            data-used=move || cache.get().map(|cache| cache.used)
            on:toggle=move |event| {
                let open = event.target().and_then(|target| target.dyn_into::<web_sys::HtmlDetailsElement>().ok());
                if open.is_some_and(|details| details.open()) {
                    say(&ToWorker::CacheUsage);
                }
            }
        >
            <summary><span class="summary-title">"Storage"</span></summary>
            <div class="settings-body">
                <p role="status">{words}</p>
                <Alert id="error-storage" error=error />
                <button
                    id="storage-clear"
                    type="button"
                    disabled=move || used() == 0
                    on:click=move |_| say(&ToWorker::ClearCache)
                >
                    "Clear stored models"
                </button>
            </div>
        </details>
    }
}
