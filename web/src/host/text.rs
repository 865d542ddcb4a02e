//! Step 2: what it is trained on.

use super::{
    choice::Ways,
    mapping::MappingTable,
    model::take_files,
    session::{Choice, Session, TextChoice},
};
use crate::{app::Alert, format, lengths::LengthsChart};
use baton_web_api::{ModelInfo, TextInfo};
use leptos::prelude::*;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tab {
    Sample,
    Paste,
    File,
}

/// Classes of which the counts are shown.
const MOST_LABELS: usize = 12;

/// The text: the sample, one that is pasted, or a file.
#[component]
pub(crate) fn TextStep() -> impl IntoView {
    let session = expect_context::<Session>();
    let tab = RwSignal::new(Tab::Sample);
    let pasted = RwSignal::new(String::new());
    let file = StoredValue::new_local(None::<web_sys::File>);
    // What is trained on is what the chosen way shows, and nothing if that is empty.
    let choose = move |tab| match tab {
        Tab::Sample => session.choose_text(TextChoice::Sample),
        Tab::Paste => {
            session.type_text(pasted.get_untracked());
            session.use_typed_text();
        }
        Tab::File => match file.get_value() {
            Some(file) => session.choose_text(TextChoice::File(file)),
            None => session.no_text(),
        },
    };
    let is_stale =
        move || session.text.with(|text| matches!(text, Choice::Ready(_))) && !session.is_counted();
    let has_model = move || session.model.with(|model| matches!(model, Choice::Ready(_)));
    view! {
        <section class="card" id="text" aria-labelledby="text-title" data-state=move || session.text.with(Choice::name)>
            <h2 id="text-title"><span class="number">"2"</span>"Text"</h2>
            <Ways
                name="text"
                legend="Where the text comes from"
                ways=[
                    ("text-sample", Tab::Sample, "Sample"),
                    ("text-paste-choice", Tab::Paste, "Paste"),
                    ("text-file-choice", Tab::File, "My file"),
                ]
                chosen=tab
                on_choose=choose
            />
            <div hidden=move || tab.get() != Tab::Paste>
                <label class="field" for="text-paste">"Your text"</label>
                <textarea
                    id="text-paste"
                    rows="6"
                    placeholder="Plain text, or one JSON object a line"
                    aria-describedby="text-paste-hint error-text"
                    prop:value=pasted
                    on:input=move |event| {
                        pasted.set(event_target_value(&event));
                        session.type_text(pasted.get_untracked());
                    }
                    on:change=move |_| session.use_typed_text()
                ></textarea>
                <p class="hint" id="text-paste-hint">"It is used as you type, and goes nowhere."</p>
            </div>
            <div hidden=move || tab.get() != Tab::File>
                <div class="files">
                    <label class="button">
                        "Choose a file"
                        <input
                            id="text-file"
                            type="file"
                            class="visually-hidden"
                            accept=".txt,.jsonl,.ndjson,.json,.csv,.tsv,.md,text/plain,text/csv,application/json"
                            on:change=move |event| {
                                if let Some(chosen) = take_files(&event).pop() {
                                    file.set_value(Some(chosen.clone()));
                                    session.choose_text(TextChoice::File(chosen));
                                }
                            }
                        />
                    </label>
                </div>
                <p class="hint">
                    "Plain text, a table (.csv, .tsv), or records (.jsonl, .json): texts with or without labels, prompts and completions, Alpaca’s instructions, conversations as of OpenAI or ShareGPT. It is read here, and goes nowhere."
                </p>
            </div>
            <Alert id="error-text" error=session.errors.text />
            <MappingTable />
            <div class="result" class:stale=is_stale aria-live="polite">
                {move || match session.text.get() {
                    Choice::Busy if has_model() => view! { <p class="busy">"Reading the text…"</p> }.into_any(),
                    Choice::Busy => view! { <p class="hint">"Its tokens are counted when there is a model."</p> }.into_any(),
                    Choice::Ready(text) => view! { <Summary text=text /> }.into_any(),
                    Choice::None | Choice::Error => ().into_any(),
                }}
            </div>
        </section>
    }
}

/// What was left out or cut, in words.
fn losses(text: &TextInfo, model: Option<&ModelInfo>) -> Vec<String> {
    let mut losses = Vec::new();
    let (wanted, context) = (u64::from(text.settings.seq_len), model.map(|model| u64::from(model.context)));
    if text.seq_len < wanted {
        losses.push(format!(
            "This model reads {} tokens at the most, so a sequence length of {} (Settings) means {0}.",
            format::grouped(text.seq_len),
            format::grouped(wanted),
        ));
    } else if let Some(context) = context.filter(|context| *context < wanted) {
        losses.push(format!(
            "A sequence length of {} (Settings) is more than the {} tokens of this model’s context: samples longer than that are read where it has learned little.",
            format::grouped(wanted),
            format::grouped(context),
        ));
    }
    if text.truncated > 0 {
        let whole = text.tokens.saturating_add(text.truncated);
        #[allow(clippy::cast_precision_loss)] // a share of one digit
        let share = text.truncated as f64 / whole as f64;
        losses.push(format!(
            "{} longer than {} tokens and lose {} together ({}). A longer sequence length (Settings) keeps more, and takes more memory.",
            if text.truncated_samples == 1 { "1 sample is".into() } else { format!("{} samples are", format::grouped(text.truncated_samples)) },
            format::grouped(text.seq_len),
            format::plural(text.truncated, "token", "tokens"),
            format::percent(share),
        ));
        // Labels cannot be packed.
        if model.is_some_and(|model| model.writes) && !text.settings.packing {
            losses.push("Or pack samples together (Settings): they are cut into as many sequences as they need, and none of them is lost.".into());
        }
    }
    if text.skipped > 0 {
        let records = if text.skipped == 1 {
            "1 record is".into()
        } else {
            format!("{} records are", format::grouped(text.skipped))
        };
        losses.push(format!("{records} left out: empty, or without anything to learn."));
    }
    if let Some(why) = &text.refusal {
        losses.push(format!("Some conversations are left out: {why}."));
    }
    losses
}

/// A text that can be used.
#[component]
fn Summary(text: TextInfo) -> impl IntoView {
    let session = expect_context::<Session>();
    let model = session.model.with_untracked(|model| match model {
        Choice::Ready(model) => Some(model.clone()),
        _ => None,
    });
    let losses = losses(&text, model.as_ref())
        .into_iter()
        .map(|loss| view! { <p class="hint">{loss}</p> })
        .collect_view();
    let labels_texts = model.is_some_and(|model| !model.writes);
    let labels = labels_texts.then(|| {
        let count = text.labels.len();
        let row = |(name, samples): &(String, u64)| {
            view! {
                <div data-label=name.clone() data-count=*samples>
                    <dt>{name.clone()}</dt>
                    <dd>{format::grouped(*samples)}</dd>
                </div>
            }
        };
        let rows = text.labels.iter().take(MOST_LABELS).map(row).collect_view();
        let more = count.saturating_sub(MOST_LABELS);
        view! {
            <p class="hint">
                {if count == 0 { "The labels are values.".to_owned() } else { format!("Labels: {count} classes, by samples in the file.") }}
            </p>
            <dl class="labels" id="text-labels" hidden={count == 0}>{rows}</dl>
            {(more > 0).then(|| view! { <p class="hint">{format!("And {more} more.")}</p> })}
        }
    });
    let figures = [
        ("text-samples", "Samples", format::grouped(text.samples)),
        ("text-tokens", "Tokens", format::count(text.tokens)),
        ("text-validation", "For validation", format::grouped(text.validation)),
        ("text-truncated", "Tokens cut off", format::grouped(text.truncated)),
    ];
    let figures =
        figures.map(|(id, term, figure)| view! { <div><dt>{term}</dt><dd id=id>{figure}</dd></div> });
    view! {
        <p class="ok"><b>{text.name}</b></p>
        <dl class="facts">{figures.into_iter().collect_view()}</dl>
        <blockquote>{text.beginning}</blockquote>
        {labels}
        {losses}
        <LengthsChart lengths=text.lengths seq_len=text.seq_len />
    }
}
