//! The settings of a run, for those who want them.

use super::{
    model::backbone_words,
    session::{Choice, Session},
};
use crate::{
    app::Alert,
    form::{ALL_LINEAR, Form, TARGETS_FIELD},
};
use baton_protocol::run::Backbone;
use baton_web_api::TargetInfo;
use leptos::prelude::*;

type Field = fn(&mut Form) -> &mut String;
type Flag = fn(&mut Form) -> &mut bool;

/// A projection's name for a person.
fn target_label(target: &TargetInfo) -> String {
    match target.modules.as_slice() {
        [_] => {
            target.name.strip_suffix("_proj").filter(|name| *name != "c").unwrap_or(&target.name).to_owned()
        }
        modules => modules.join(" and "),
    }
}

/// What it means for the run, in one sentence.
fn backbone_meaning(backbone: Backbone) -> &'static str {
    match backbone {
        Backbone::F32 => "The weights as they are computed with, 4 bytes each: exact, and the most memory.",
        Backbone::Bf16 => "2 bytes a weight: half the memory, and all but the same results.",
        Backbone::Int8 => "About 1 byte a weight: a quarter of the memory, with a small loss of accuracy.",
        Backbone::Nf4 => {
            "About half a byte a weight (QLoRA’s): an eighth of the memory, with a loss that can be seen."
        }
    }
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
    let names = Memo::new(move |before: Option<&Vec<TargetInfo>>| match session.model.get() {
        Choice::Ready(model) => model.targets,
        // Another model on its way: the names of the last one stay.
        _ => before.cloned().unwrap_or_default(),
    });
    let all = move || form.with(|form| form.targets.iter().any(|target| target == ALL_LINEAR));
    let target = move |target: TargetInfo| {
        let (has, name) = (target.name.clone(), target.name.clone());
        view! {
            <label class="check">
                <input
                    id=format!("set-target-{}", target.name)
                    type="checkbox"
                    aria-invalid=invalid(TARGETS_FIELD)
                    aria-describedby=described(TARGETS_FIELD)
                    prop:checked=move || form.with(|form| form.has_target(&has))
                    on:change=move |event| {
                        let on = event_target_checked(&event);
                        names.with_untracked(|names| form.update(|form| form.set_target(names, &name, on)));
                    }
                />
                <span>{target_label(&target)}</span>
            </label>
        }
    };
    let brief = move || {
        form.with(|form| {
            let Form { steps, lora_rank, lr, .. } = form;
            let weights = match form.backbone() {
                Backbone::F32 => String::new(),
                packed => format!(", weights in {}", backbone_words(packed)),
            };
            format!("{steps} steps, rank {lora_rank}, learning rate {lr}{weights}")
        })
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
                {number("set-micro_batches", "Micro-batches (empty: automatic)", |f| &mut f.micro_batches)}
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
                {number("set-validation", "Kept for validation (share)", |f| &mut f.validation)}
                {number("set-evaluate_every", "Judge every … steps", |f| &mut f.evaluate_every)}
                {number("set-sample_tokens", "Sample length (0: none)", |f| &mut f.sample_tokens)}
                {select(
                    "set-boundary",
                    "Between devices",
                    |f| &mut f.boundary,
                    &[("f16", "16 bit (faster)"), ("f32", "32 bit (exact)")],
                )}
                {select(
                    "set-activations",
                    "Activations",
                    |f| &mut f.activations,
                    &[
                        ("auto", "Automatic"),
                        ("never", "Kept (faster)"),
                        ("always", "Recomputed"),
                    ],
                )}
                {select(
                    "set-aim",
                    "Blocks shared for",
                    |f| &mut f.aim,
                    &[("time", "Speed"), ("memory", "Little memory")],
                )}
            </div>
            <div class="cell">
                <label for="set-backbone">"Frozen weights"</label>
                <select
                    id="set-backbone"
                    aria-describedby="set-backbone-meaning"
                    prop:value=text(|f| &mut f.backbone)
                    on:change=move |event| form.update(|form| form.backbone = event_target_value(&event))
                >
                    {Backbone::ALL.map(|backbone| {
                        let chosen = move || form.with(|form| form.backbone() == backbone);
                        view! { <option value=backbone.name() selected=chosen>{format!("{}: {}", backbone.name(), backbone_words(backbone))}</option> }
                    }).into_iter().collect_view()}
                </select>
                <p class="hint" id="set-backbone-meaning" role="status">
                    {move || backbone_meaning(form.with(Form::backbone))}
                </p>
            </div>
            <fieldset class="checks" id=TARGETS_FIELD>
                <legend>"Projections that learn"</legend>
                <label class="check">
                    <input
                        id="set-target-all-linear"
                        type="checkbox"
                        aria-invalid=invalid(TARGETS_FIELD)
                        aria-describedby=described(TARGETS_FIELD)
                        prop:checked=all
                        on:change=move |event| {
                            let on = event_target_checked(&event);
                            form.update(|form| form.set_all_targets(on));
                        }
                    />
                    <span>"All"</span>
                </label>
                <For each=move || names.get() key=|target| target.name.clone() children=target />
            </fieldset>
            <fieldset class="checks">
                <legend>"Samples and devices"</legend>
                {flag("set-shuffle", "Shuffle", |f| &mut f.shuffle)}
                {flag("set-append_eos", "End each sample with the end token", |f| &mut f.append_eos)}
                {flag("set-packing", "Pack samples together", |f| &mut f.packing)}
                {flag("set-host_blocks", "This device computes blocks too, where that helps", |f| &mut f.host_blocks)}
            </fieldset>
            <button id="set-reset" type="button" class="quiet" on:click=move |_| {
                session.errors.settings.set(None);
                let mut defaults = Form::default();
                names.with_untracked(|names| defaults.fit_targets(names));
                form.set(defaults);
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
