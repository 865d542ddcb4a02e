//! Step 1: which model is trained.

use super::{
    choice::Ways,
    session::{Choice, ModelPick, Session},
};
use crate::{app::Alert, format};
use baton_protocol::run::Backbone;
use baton_web_api::{FrozenInfo, ModelInfo};
use leptos::prelude::*;
use wasm_bindgen::JsCast;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tab {
    Default,
    Url,
    Folder,
}

/// What can be trained.
const FAMILIES: &str =
    "Llama, SmolLM2, TinyLlama, Mistral, Qwen2 and 3, Gemma 3 (text), GPT-2, BERT, MiniLM, RoBERTa.";

/// A phone's tab is ended at about 1.5 GB (iOS); beside frozen weights it holds activations and adapters.
const MUCH: u64 = 1_000_000_000;

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
    let files = StoredValue::new_local(Vec::<web_sys::File>::new());
    let use_url = move || {
        // One that is read or being read already is left alone.
        if !session.use_typed_model() && session.model.with_untracked(Choice::is_missing) {
            session.choose_model(ModelPick::Url(url.get_untracked()));
        }
    };
    let pick_files = move |event: web_sys::Event| {
        let chosen = take_files(&event);
        if !chosen.is_empty() {
            files.set_value(chosen.clone());
            session.choose_model(ModelPick::Files(chosen));
        }
    };
    // What is trained is what the chosen way shows, and nothing if that is empty.
    let choose = move |tab| match tab {
        Tab::Default => session.choose_model(ModelPick::Default),
        Tab::Url => match url.get_untracked() {
            url if url.trim().is_empty() => session.no_model(),
            url => session.choose_model(ModelPick::Url(url)),
        },
        Tab::Folder => match files.get_value() {
            files if files.is_empty() => session.no_model(),
            files => session.choose_model(ModelPick::Files(files)),
        },
    };
    view! {
        <section class="card" id="model" aria-labelledby="model-title" data-state=move || session.model.with(Choice::name)>
            <h2 id="model-title"><span class="number">"1"</span>"Model"</h2>
            <Ways
                name="model"
                legend="Where the model comes from"
                ways=[
                    ("model-default", Tab::Default, "Built in"),
                    ("model-url-choice", Tab::Url, "Hugging Face"),
                    ("model-folder-choice", Tab::Folder, "My files"),
                ]
                chosen=tab
                on_choose=choose
            />
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
                        placeholder="HuggingFaceTB/SmolLM2-135M"
                        aria-describedby="model-url-hint error-model"
                        prop:value=url
                        on:input=move |event| {
                            url.set(event_target_value(&event));
                            session.typed_model.set(Some(url.get_untracked()));
                        }
                        on:change=move |_| {
                            session.use_typed_model();
                        }
                    />
                    <button id="model-url-use" type="submit">"Use it"</button>
                </form>
                <p class="hint" id="model-url-hint">
                    "Qwen/Qwen2.5-0.5B, openai-community/gpt2, sentence-transformers/all-MiniLM-L6-v2; also the address of such a page, of a web folder, or of a .gguf file. "
                    {FAMILIES}
                    " Each device fetches only its own blocks."
                </p>
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
                    "config.json, tokenizer.json and model.safetensors (or its parts, with model.safetensors.index.json); or one .gguf file, which has everything in it. The other devices read their blocks from this one."
                </p>
            </div>
            <Alert id="error-model" error=session.errors.model />
            <div class="result" aria-live="polite">
                {move || match session.model.get() {
                    Choice::Busy => view! { <p class="busy">"Reading the model…"</p> }.into_any(),
                    Choice::Ready(model) => view! { <Card model=model /> }.into_any(),
                    Choice::None | Choice::Error => ().into_any(),
                }}
            </div>
        </section>
    }
}

/// A model that can be trained, and what it asks of the devices.
#[component]
fn Card(model: ModelInfo) -> impl IntoView {
    let session = expect_context::<Session>();
    let does = if model.writes {
        match model.chat {
            true => "It writes texts, and has a chat template: conversations are written as it knows them.",
            false => "It writes texts; it has no chat template.",
        }
    } else {
        "It labels texts with a head that is trained; it writes none. Its text needs labels."
    };
    let frozen = model.frozen;
    let kept = Memo::new(move |_| {
        let backbone = session.form.with(|form| form.backbone());
        frozen.iter().find(|kept| kept.backbone == backbone).cloned()
    });
    view! {
        <p class="ok"><b>{model.name}</b></p>
        <dl class="facts">
            <div><dt>"Family"</dt><dd id="model-family">{model.family}</dd></div>
            <div><dt>"Parameters"</dt><dd>{format::count(model.parameters)}</dd></div>
            <div><dt>"Blocks"</dt><dd>{model.blocks}</dd></div>
            <div><dt>"Vocabulary"</dt><dd>{format::count(u64::from(model.vocabulary))}</dd></div>
            <div><dt>"Context"</dt><dd>{format::grouped(u64::from(model.context))}</dd></div>
        </dl>
        <p class="hint">
            {does}
            {format!(" Up to {} can share the work.", format::plural(u64::from(model.blocks), "device", "devices"))}
        </p>
        <Memory kept=kept />
    }
}

/// How frozen weights are kept, as a person reads it.
pub(crate) fn backbone_words(backbone: Backbone) -> &'static str {
    match backbone {
        Backbone::F32 => "32 bit",
        Backbone::Bf16 => "16 bit",
        Backbone::Int8 => "8 bit",
        Backbone::Nf4 => "4 bit",
    }
}

/// What each device keeps of the model.
#[component]
fn Memory(kept: Memo<Option<FrozenInfo>>) -> impl IntoView {
    let cell = |bytes: u64| view! { <td class:alarming={bytes > MUCH}>{format::bytes(bytes)}</td> };
    let row = move |phones: u32, phone: Option<u64>, own: u64| {
        view! {
            <tr data-phones=phones data-phone=phone data-own=own>
                <th scope="row">{phones}</th>
                {phone.map_or_else(|| view! { <td>"–"</td> }.into_any(), |bytes| cell(bytes).into_any())}
                {cell(own)}
            </tr>
        }
    };
    let rows = move || {
        kept.get().map(|kept| {
            let shares = kept.shares.iter().map(|&(phones, bytes)| row(phones, Some(bytes), kept.ends));
            let shares = shares.collect_view();
            view! { {row(0, None, kept.ends.saturating_add(kept.blocks()))} {shares} }
        })
    };
    let brief = move || {
        kept.get().map(|kept| {
            let all = format::bytes(kept.ends.saturating_add(kept.blocks()));
            format!("Memory: {all} of frozen weights, kept at {}", backbone_words(kept.backbone))
        })
    };
    let tight = move || {
        kept.with(|kept| {
            kept.as_ref().is_some_and(|kept| {
                let least = kept.shares.iter().map(|(_, bytes)| *bytes).min().unwrap_or_default();
                least.max(kept.ends) > MUCH
            })
        })
    };
    view! {
        <details
            class="fold"
            id="model-memory"
            hidden=move || kept.with(Option::is_none)
            data-backbone=move || kept.with(|kept| kept.as_ref().map(|kept| kept.backbone.name()))
        >
            <summary>{brief}</summary>
            <table>
                <thead>
                    <tr>
                        <th scope="col">"Phones"</th>
                        <th scope="col">"Each phone"</th>
                        <th scope="col">"This device"</th>
                    </tr>
                </thead>
                <tbody>{rows}</tbody>
            </table>
            <p class="hint">
                "Training comes on top: adapters, activations, and the text on this device, which takes over blocks of the phones where that helps (Settings). A phone’s browser ends a tab at about 1.5 GB."
            </p>
            <p class="hint" hidden=move || !tight()>
                "That is tight here: keep the frozen weights smaller (Settings), or invite more phones."
            </p>
        </details>
    }
}
