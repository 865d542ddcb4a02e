//! Step 2: what it is trained on.

use super::{
    model::take_files,
    session::{Choice, Session, TextChoice},
};
use crate::{app::Alert, format};
use leptos::prelude::*;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tab {
    Sample,
    Paste,
    File,
}

/// The text: the sample, one that is pasted, or a file.
#[component]
pub(crate) fn TextStep() -> impl IntoView {
    let session = expect_context::<Session>();
    let tab = RwSignal::new(Tab::Sample);
    let pasted = RwSignal::new(String::new());
    let used = StoredValue::new(None::<String>);
    let use_pasted = move |again: bool| {
        let text = pasted.get_untracked();
        if again || used.get_value().as_ref() != Some(&text) {
            used.set_value(Some(text.clone()));
            session.choose_text(TextChoice::Pasted(text));
        }
    };
    let option = move |id: &'static str, value: Tab, label: &'static str| {
        view! {
            <label class="option">
                <input
                    id=id
                    type="radio"
                    name="text"
                    prop:checked=move || tab.get() == value
                    on:change=move |_| {
                        tab.set(value);
                        if value == Tab::Sample {
                            used.set_value(None);
                            session.choose_text(TextChoice::Sample);
                        }
                    }
                />
                <span>{label}</span>
            </label>
        }
    };
    let reads = move || session.model.with(|model| matches!(model, Choice::Ready(_)));
    view! {
        <section class="card" id="text" aria-labelledby="text-title" data-state=move || session.text.with(Choice::name)>
            <h2 id="text-title"><span class="number">"2"</span>"Text"</h2>
            <fieldset class="options">
                <legend class="visually-hidden">"Where the text comes from"</legend>
                {option("text-sample", Tab::Sample, "Sample")}
                {option("text-paste-choice", Tab::Paste, "Paste")}
                {option("text-file-choice", Tab::File, "My file")}
            </fieldset>
            <div hidden=move || tab.get() != Tab::Paste>
                <label class="field" for="text-paste">"Your text"</label>
                <textarea
                    id="text-paste"
                    rows="6"
                    placeholder="Plain text, or one JSON object a line"
                    aria-describedby="error-text"
                    prop:value=pasted
                    on:input=move |event| pasted.set(event_target_value(&event))
                    on:change=move |_| use_pasted(false)
                ></textarea>
                <button id="text-paste-use" type="button" on:click=move |_| use_pasted(true)>"Use this text"</button>
            </div>
            <div hidden=move || tab.get() != Tab::File>
                <div class="files">
                    <label class="button">
                        "Choose a file"
                        <input
                            id="text-file"
                            type="file"
                            class="visually-hidden"
                            accept=".txt,.jsonl,.json,.md,text/plain"
                            on:change=move |event| {
                                if let Some(file) = take_files(&event).pop() {
                                    used.set_value(None);
                                    session.choose_text(TextChoice::File(file));
                                }
                            }
                        />
                    </label>
                </div>
                <p class="hint">".txt, or .jsonl with “text”, “prompt” and “completion”, or “messages”. It is read here, and goes nowhere."</p>
            </div>
            <Alert id="error-text" error=session.errors.text />
            <div class="result" aria-live="polite">
                {move || match session.text.get() {
                    Choice::Busy if reads() => view! { <p class="busy">"Reading the text…"</p> }.into_any(),
                    Choice::Busy => view! { <p class="hint">"It is read when there is a model."</p> }.into_any(),
                    Choice::Ready(text) => view! {
                        <p class="ok">
                            <b>{text.name}</b>
                            {format!(
                                " · {} · {} tokens",
                                format::plural(u64::from(text.samples), "sample", "samples"),
                                format::count(text.tokens),
                            )}
                        </p>
                        <blockquote>{text.beginning}</blockquote>
                        {text.remark.map(|remark| view! { <p class="hint">{remark}</p> })}
                    }
                    .into_any(),
                    Choice::None | Choice::Error => ().into_any(),
                }}
            </div>
        </section>
    }
}
