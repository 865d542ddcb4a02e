//! The settings of a run, for those who want them.

use super::session::Session;
use crate::{
    app::Alert,
    form::{Form, TARGETS, TARGETS_FIELD},
};
use leptos::prelude::*;

type Field = fn(&mut Form) -> &mut String;
type Flag = fn(&mut Form) -> &mut bool;

/// A projection's name for a person.
fn target_label(target: &str) -> &str {
    target.strip_suffix("_proj").unwrap_or(target)
}

/// All settings, folded away.
#[component]
pub(crate) fn SettingsPanel() -> impl IntoView {
    let session = expect_context::<Session>();
    let form = session.form;
    let text = move |field: Field| move || form.with(|form| field(&mut form.clone()).clone());
    let wrong = Memo::new(move |_| form.with(|form| form.settings().err()));
    let is_wrong =
        move |id: &'static str| wrong.with(|wrong| wrong.as_ref().is_some_and(|wrong| wrong.field == id));
    let invalid = move |id: &'static str| move || is_wrong(id).then_some("true");
    let described = move |id: &'static str| move || is_wrong(id).then_some("settings-wrong");
    let number = move |id: &'static str, label: &'static str, field: Field| {
        view! {
            <div class="cell">
                <label for=id>{label}</label>
                <input
                    id=id
                    type="text"
                    inputmode="decimal"
                    autocomplete="off"
                    aria-invalid=invalid(id)
                    aria-describedby=described(id)
                    prop:value=text(field)
                    on:input=move |event| form.update(|form| *field(form) = event_target_value(&event))
                />
            </div>
        }
    };
    let flag = move |id: &'static str, label: &'static str, flag: Flag| {
        view! {
            <label class="check">
                <input
                    id=id
                    type="checkbox"
                    prop:checked=move || form.with(|form| *flag(&mut form.clone()))
                    on:change=move |event| form.update(|form| *flag(form) = event_target_checked(&event))
                />
                <span>{label}</span>
            </label>
        }
    };
    let select =
        move |id: &'static str, label: &'static str, field: Field, options: &'static [(&str, &str)]| {
            let options = options
                .iter()
                .map(|&(value, label)| {
                    view! { <option value=value selected=move || text(field)() == value>{label}</option> }
                })
                .collect_view();
            view! {
                <div class="cell">
                    <label for=id>{label}</label>
                    <select
                        id=id
                        prop:value=text(field)
                        on:change=move |event| form.update(|form| *field(form) = event_target_value(&event))
                    >
                        {options}
                    </select>
                </div>
            }
        };
    let targets = TARGETS
        .iter()
        .map(|&target| {
            let has = move || form.with(|form| form.targets.iter().any(|other| other == target));
            view! {
                <label class="check">
                    <input
                        id=format!("set-target-{target}")
                        type="checkbox"
                        aria-invalid=invalid(TARGETS_FIELD)
                        aria-describedby=described(TARGETS_FIELD)
                        prop:checked=has
                        on:change=move |event| {
                            let on = event_target_checked(&event);
                            form.update(|form| {
                                let chosen = |name: &str| if name == target { on } else { form.targets.iter().any(|t| t == name) };
                                form.targets = TARGETS.iter().filter(|name| chosen(name)).map(|name| (*name).to_owned()).collect();
                            });
                        }
                    />
                    <span>{target_label(target)}</span>
                </label>
            }
        })
        .collect_view();
    let brief = move || {
        form.with(|form| format!("{} steps, rank {}, learning rate {}", form.steps, form.lora_rank, form.lr))
    };
    view! {
        <details class="card settings" id="settings" open=move || session.errors.settings.with(Option::is_some)>
            <summary>
                <span class="summary-title">"Settings"</span>
                <span class="summary-brief">{brief}</span>
            </summary>
            <div class="settings-body">
            <div class="grid">
                {number("set-steps", "Steps", |f| &mut f.steps)}
                {number("set-batch_size", "Batch size", |f| &mut f.batch_size)}
                {number("set-micro_batches", "Micro-batches", |f| &mut f.micro_batches)}
                {number("set-seq_len", "Sequence length", |f| &mut f.seq_len)}
                {number("set-lr", "Learning rate", |f| &mut f.lr)}
                {select(
                    "set-lr_schedule",
                    "Schedule",
                    |f| &mut f.lr_schedule,
                    &[("cosine", "Cosine"), ("linear", "Linear"), ("constant", "Constant")],
                )}
                {number("set-warmup_steps", "Warm-up steps", |f| &mut f.warmup_steps)}
                {number("set-weight_decay", "Weight decay", |f| &mut f.weight_decay)}
                {number("set-grad_clip", "Gradient clip (0: never)", |f| &mut f.grad_clip)}
                {number("set-seed", "Seed", |f| &mut f.seed)}
                {number("set-lora_rank", "LoRA rank", |f| &mut f.lora_rank)}
                {number("set-lora_alpha", "LoRA alpha", |f| &mut f.lora_alpha)}
                {number("set-sample_tokens", "Sample length (0: none)", |f| &mut f.sample_tokens)}
                {select(
                    "set-boundary",
                    "Between devices",
                    |f| &mut f.boundary,
                    &[("f16", "16 bit (faster)"), ("f32", "32 bit (exact)")],
                )}
            </div>
            <fieldset class="checks" id=TARGETS_FIELD>
                <legend>"Projections that learn"</legend>
                {targets}
            </fieldset>
            <fieldset class="checks">
                <legend>"Samples and memory"</legend>
                {flag("set-shuffle", "Shuffle", |f| &mut f.shuffle)}
                {flag("set-append_eos", "End each sample with the end token", |f| &mut f.append_eos)}
                {flag("set-packing", "Pack samples together", |f| &mut f.packing)}
                {flag("set-recompute", "Recompute activations (less memory)", |f| &mut f.recompute)}
            </fieldset>
            <button id="set-reset" type="button" class="quiet" on:click=move |_| {
                session.errors.settings.set(None);
                form.set(Form::default());
            }>
                "Back to the defaults"
            </button>
            </div>
        </details>
        <div id="settings-wrong" class="alert" role="alert" hidden=move || wrong.with(Option::is_none)>
            <p>{move || wrong.get().map(|wrong| wrong.words)}</p>
        </div>
        <Alert id="error-settings" error=session.errors.settings />
    }
}
