//! Step 1: which model is trained.

use super::session::{Choice, ModelPick, Session};
use crate::{app::Alert, format};
use leptos::prelude::*;
use wasm_bindgen::JsCast;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tab {
    Default,
    Url,
    Folder,
}

/// The files of a file input, after which it can be used for the same files again.
pub(crate) fn take_files(event: &web_sys::Event) -> Vec<web_sys::File> {
    let Some(input) = event.target().and_then(|target| target.dyn_into::<web_sys::HtmlInputElement>().ok())
    else {
        return Vec::new();
    };
    let files =
        input.files().map_or_else(Vec::new, |list| (0..list.length()).filter_map(|i| list.get(i)).collect());
    input.set_value("");
    files
}

/// The model: the embedded one, one from a URL, or local files.
#[component]
pub(crate) fn ModelStep() -> impl IntoView {
    let session = expect_context::<Session>();
    let tab = RwSignal::new(Tab::Default);
    let url = RwSignal::new(String::new());
    let use_url = move || session.choose_model(ModelPick::Url(url.get_untracked()));
    let pick_files = move |event: web_sys::Event| {
        let files = take_files(&event);
        if !files.is_empty() {
            session.choose_model(ModelPick::Files(files));
        }
    };
    let option = move |id: &'static str, value: Tab, label: &'static str| {
        view! {
            <label class="option">
                <input
                    id=id
                    type="radio"
                    name="model"
                    prop:checked=move || tab.get() == value
                    on:change=move |_| {
                        tab.set(value);
                        if value == Tab::Default {
                            session.choose_model(ModelPick::Default);
                        }
                    }
                />
                <span>{label}</span>
            </label>
        }
    };
    view! {
        <section class="card" id="model" aria-labelledby="model-title" data-state=move || session.model.with(Choice::name)>
            <h2 id="model-title"><span class="number">"1"</span>"Model"</h2>
            <fieldset class="options">
                <legend class="visually-hidden">"Where the model comes from"</legend>
                {option("model-default", Tab::Default, "Built in")}
                {option("model-url-choice", Tab::Url, "Hugging Face")}
                {option("model-folder-choice", Tab::Folder, "My files")}
            </fieldset>
            <div hidden=move || tab.get() != Tab::Url>
                <label class="field" for="model-url">"Name or address"</label>
                <form
                    class="inline"
                    on:submit=move |event| {
                        event.prevent_default();
                        use_url();
                    }
                >
                    <input
                        id="model-url"
                        type="text"
                        inputmode="url"
                        autocomplete="off"
                        autocapitalize="off"
                        spellcheck="false"
                        placeholder="org/name or https://…"
                        aria-describedby="error-model"
                        prop:value=url
                        on:input=move |event| url.set(event_target_value(&event))
                    />
                    <button id="model-url-use" type="submit">"Use it"</button>
                </form>
                <p class="hint">"A Llama-family model in Hugging Face layout. Each device fetches only its own blocks."</p>
            </div>
            <div hidden=move || tab.get() != Tab::Folder>
                <div class="files">
                    <label class="button">
                        "Choose a folder"
                        <input id="model-folder" type="file" class="visually-hidden" prop:webkitdirectory=true multiple on:change=pick_files />
                    </label>
                    <label class="button">
                        "Choose files"
                        <input id="model-files" type="file" class="visually-hidden" multiple on:change=pick_files />
                    </label>
                </div>
                <p class="hint">
                    "config.json, tokenizer.json and model.safetensors. The other devices read their blocks from this one."
                </p>
            </div>
            <Alert id="error-model" error=session.errors.model />
            <div class="result" aria-live="polite">
                {move || match session.model.get() {
                    Choice::Busy => view! { <p class="busy">"Reading the model…"</p> }.into_any(),
                    Choice::Ready(model) => view! {
                        <p class="ok"><b>{model.name}</b></p>
                        <dl class="facts">
                            <div><dt>"Parameters"</dt><dd>{format::count(model.parameters)}</dd></div>
                            <div><dt>"Blocks"</dt><dd>{model.blocks}</dd></div>
                            <div><dt>"Vocabulary"</dt><dd>{format::count(u64::from(model.vocabulary))}</dd></div>
                            <div><dt>"Context"</dt><dd>{format::grouped(u64::from(model.context))}</dd></div>
                        </dl>
                        <p class="hint">{format!("Up to {} can share the work.", format::plural(u64::from(model.blocks), "device", "devices"))}</p>
                    }
                    .into_any(),
                    Choice::None | Choice::Error => ().into_any(),
                }}
            </div>
        </section>
    }
}
