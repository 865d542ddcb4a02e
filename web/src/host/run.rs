//! The run as it goes, and what comes out of it.

use super::{
    phase_reason, phase_words,
    session::{Choice, Session},
};
use crate::{app::Alert, browser, chart, chart::LossChart, format};
use baton_web_api::{ChatMessage, ModelInfo, RunPhase, StepReport};
use leptos::prelude::*;

/// Steps over which speed and time left are averaged.
const WINDOW: usize = 8;

/// Tokens (samples, where labels are learned) a second and seconds a step, over the last steps.
fn pace(reports: &[StepReport]) -> Option<(f64, f64)> {
    // The first step pays for compiling and is not typical.
    let from = reports.len().saturating_sub(WINDOW).max(usize::from(reports.len() > 1));
    let recent = reports.get(from..)?;
    let seconds: f64 = recent.iter().map(|report| report.seconds).sum();
    let tokens: f64 = recent.iter().map(|report| f64::from(report.tokens)).sum();
    #[allow(clippy::cast_precision_loss)] // a handful
    let steps = recent.len() as f64;
    (seconds > 0.0).then(|| (tokens / seconds, seconds / steps))
}

/// Progress, curve, samples, adapter.
#[component]
pub(crate) fn RunPanel() -> impl IntoView {
    let session = expect_context::<Session>();
    let phase = session.phase;
    let done =
        Memo::new(move |_| session.reports.with(|reports| reports.last().map_or(0, |last| last.step.0 + 1)));
    let over = Memo::new(move |_| {
        phase.with(|phase| matches!(phase, RunPhase::Finished | RunPhase::Stopped | RunPhase::Failed { .. }))
    });
    let paused = Memo::new(move |_| phase.with(|phase| matches!(phase, RunPhase::Paused { .. })));
    let last = move || session.reports.with(|reports| reports.last().copied());
    let pace = Memo::new(move |_| session.reports.with(|reports| pace(reports)));
    let left = move || {
        let steps = session.steps.get().saturating_sub(done.get());
        pace.get().map_or_else(|| "–".into(), |(_, seconds)| format::duration(seconds * f64::from(steps)))
    };
    let elapsed =
        move || session.reports.with(|reports| format::duration(reports.iter().map(|r| r.seconds).sum()));
    let reason = move || match (phase.get(), session.checking.get()) {
        (RunPhase::Loading, Some((loaded, total))) => Some(format!(
            "The model is read once, so that each device can check its pieces: {} of {}.",
            format::bytes(loaded),
            format::bytes(total)
        )),
        (phase, _) => phase_reason(&phase),
    };
    let model = move |is: fn(&ModelInfo) -> bool| {
        session.model.with(|model| if let Choice::Ready(model) = model { is(model) } else { false })
    };
    let asking = RwSignal::new(false);
    // A download answers the question.
    let asks = move || asking.get() && over.get() && !session.downloaded.get();
    let leave = move || {
        asking.set(false);
        session.again();
    };
    let again = move |_| {
        if done.get_untracked() == 0 || session.downloaded.get_untracked() {
            return leave();
        }
        asking.set(true);
        browser::focus_soon("again-stay");
    };
    let stay = move || {
        asking.set(false);
        browser::focus_soon("again");
    };
    let labels = Memo::new(move |_| model(|model| !model.writes));
    let chats = Memo::new(move |_| model(|model| model.chat));
    view! {
        <section class="card run" aria-labelledby="run-title">
            <div class="run-head">
                <h2 id="run-title" tabindex="-1" class:alarming=move || phase.with(|phase| matches!(phase, RunPhase::Failed { .. }))>
                    {move || phase.with(phase_words)}
                </h2>
                <div class="buttons">
                    <button id="pause" type="button" hidden=move || over.get() || paused.get() on:click=move |_| session.pause()>
                        "Pause"
                    </button>
                    <button id="resume" type="button" class="primary" hidden=move || !paused.get() on:click=move |_| session.resume()>
                        "Resume"
                    </button>
                    <button id="stop" type="button" hidden=over on:click=move |_| session.stop()>"Stop"</button>
                </div>
            </div>
            <p class="reason" hidden=move || reason().is_none()>{reason}</p>
            <progress
                class="run-progress"
                aria-label="Steps done"
                prop:max=move || f64::from(session.steps.get().max(1))
                prop:value=move || f64::from(done.get())
            ></progress>
            <div class="figures-together">
            <dl class="figures">
                <div>
                    <dt>"Step"</dt>
                    <dd>
                        {move || format::grouped(done.get().into())}
                        <small>{move || format!(" of {}", format::grouped(session.steps.get().into()))}</small>
                    </dd>
                </div>
                <div>
                    <dt>"Loss"</dt>
                    <dd>{move || last().map_or_else(|| "–".into(), |report| format!("{:.3}", report.loss))}</dd>
                </div>
                <div>
                    <dt>{move || if labels.get() { "Samples a second" } else { "Tokens a second" }}</dt>
                    <dd>{move || pace.get().map_or_else(|| "–".into(), |(speed, _)| format::number(speed))}</dd>
                </div>
                <div>
                    <dt>{move || if over.get() { "Time" } else { "Time left" }}</dt>
                    <dd>{move || if over.get() { elapsed() } else { left() }}</dd>
                </div>
            </dl>
            <Judged />
            </div>
            <JudgedBy />
            <LossChart reports=session.reports judgements=session.judgements steps=session.steps.into() />
        </section>

        <section class="card finish" hidden=move || !over.get() aria-labelledby="finish-title">
            <h2 id="finish-title">"The adapter"</h2>
            <p class="hint">
                {move || format!("LoRA weights after {}, as Hugging Face PEFT loads them.", format::plural(u64::from(done.get()), "step", "steps"))}
            </p>
            <div class="buttons">
                <button
                    id="download"
                    type="button"
                    class="primary"
                    disabled=move || session.downloading.get() || done.get() == 0
                    on:click=move |_| session.fetch_adapter()
                >
                    {move || if session.downloading.get() { "Packing…" } else { "Download adapter" }}
                </button>
                <button id="again" type="button" aria-expanded=move || asking.get().to_string() on:click=again>
                    "Run again"
                </button>
            </div>
            <div
                class="ask"
                role="group"
                aria-labelledby="again-words"
                hidden=move || !asks()
                on:keydown=move |event| if event.key() == "Escape" { stay() }
            >
                <p id="again-words">
                    "This run’s adapter was not downloaded. The next run takes its place, and then it is gone."
                </p>
                <div class="buttons">
                    <button id="again-stay" type="button" aria-describedby="again-words" on:click=move |_| stay()>
                        "Stay here"
                    </button>
                    <button id="again-sure" type="button" on:click=move |_| leave()>"Run again without it"</button>
                </div>
            </div>
        </section>

        <section
            class="card"
            aria-labelledby="samples-title"
            hidden=move || session.before.with(Option::is_none) && session.after.with(Option::is_none)
        >
            <h2 id="samples-title">"What it writes"</h2>
            <div class="samples">
                <Sample id="sample-before" title="Before" sample=session.before empty="" />
                <Sample id="sample-after" title="After" sample=session.after empty="It writes again when the training is over." />
            </div>
        </section>

        <section class="card" hidden=move || !over.get() || labels.get() aria-labelledby="try-title">
            <h2 id="try-title">{move || if chats.get() { "Talk to it" } else { "Try it" }}</h2>
            <TryIt chats=chats />
        </section>

        <section class="card" id="labels-only" hidden=move || !labels.get() aria-labelledby="labels-title">
            <h2 id="labels-title">"What it does"</h2>
            <p>
                "This model labels texts and writes none, so there is no sample of its writing. How well it labels the samples kept out of training stands above: before the first step, as the run goes, and after the last."
            </p>
        </section>
    }
}

#[component]
fn Sample(
    id: &'static str,
    title: &'static str,
    sample: RwSignal<super::session::Sample>,
    empty: &'static str,
) -> impl IntoView {
    view! {
        <figure class="sample">
            <figcaption>{title}</figcaption>
            <blockquote id=id>
                {move || match sample.get() {
                    None => view! { <span class="hint">{empty}</span> }.into_any(),
                    Some((prompt, text)) => match text.strip_prefix(&prompt) {
                        Some(rest) => view! { <mark>{prompt.clone()}</mark>{rest.to_owned()} }.into_any(),
                        None => text.into_any(),
                    },
                }}
            </blockquote>
        </figure>
    }
}

/// What the model is worth on samples that it is not trained on, as it was last judged.
#[component]
fn Judged() -> impl IntoView {
    let session = expect_context::<Session>();
    let last = move || session.judgements.with(|judgements| judgements.last().copied());
    let first = move || {
        session.judgements.with(|judgements| match judgements.as_slice() {
            [first, _, ..] => Some(*first),
            _ => None,
        })
    };
    let rows = move || {
        let last = last()?;
        let before = first().map(|first| chart::figures(&first)).unwrap_or_default();
        let loss = std::iter::once((
            "Validation loss",
            format!("{:.3}", last.loss),
            first().map(|first| format!("{:.3}", first.loss)),
        ));
        let figures = chart::figures(&last).into_iter().map(|(name, figure)| {
            let before = before.iter().find(|(other, _)| *other == name).map(|(_, figure)| figure.clone());
            (name, figure, before)
        });
        let row = |(name, figure, before): (&'static str, String, Option<String>)| {
            view! {
                <div>
                    <dt>{name}</dt>
                    <dd>{figure}<small>{before.map(|before| format!(" from {before}"))}</small></dd>
                </div>
            }
        };
        Some(loss.chain(figures).map(row).collect_view())
    };
    view! {
        <dl
            class="figures judged"
            id="judged"
            hidden=move || last().is_none()
            data-step=move || last().map(|judgement| judgement.done)
            data-loss=move || last().map(|judgement| judgement.loss.to_string())
        >
            {rows}
        </dl>
    }
}

/// What it was judged by.
#[component]
fn JudgedBy() -> impl IntoView {
    let session = expect_context::<Session>();
    let last = move || session.judgements.with(|judgements| judgements.last().copied());
    view! {
        <p class="hint" hidden=move || last().is_none()>
            {move || last().map(|judgement| format!(
                "On {} kept out of training, after step {}.",
                format::plural(judgement.samples, "sample", "samples"),
                format::grouped(judgement.done.into())
            ))}
        </p>
    }
}

/// A conversation where the model knows how to hold one, a continuation where it does not.
#[component]
fn TryIt(chats: Memo<bool>) -> impl IntoView {
    let session = expect_context::<Session>();
    let prompt = RwSignal::new(String::new());
    let tokens = RwSignal::new("80".to_owned());
    let temperature = RwSignal::new("0.7".to_owned());
    Effect::new(move |_| {
        // The beginning of the sample is a good first prompt.
        if let Some((beginning, _)) = session.before.get()
            && !chats.get_untracked()
            && prompt.with_untracked(String::is_empty)
        {
            prompt.set(beginning);
        }
    });
    let ask = move |event: web_sys::SubmitEvent| {
        event.prevent_default();
        let tokens =
            tokens.with_untracked(|text| text.trim().parse().ok().filter(|n| (1..=4096).contains(n)));
        let temperature = temperature
            .with_untracked(|text| text.trim().parse().ok().filter(|t: &f64| (0.0..=10.0).contains(t)));
        let wrong = match (tokens, temperature) {
            (Some(_), Some(_)) if chats.get_untracked() && prompt.with_untracked(|p| p.trim().is_empty()) => {
                return session.errors.generate.set(Some("Say something to it first.".into()));
            }
            (Some(tokens), Some(temperature)) if chats.get_untracked() => {
                session.say_to_model(prompt.get_untracked(), tokens, temperature);
                return prompt.set(String::new());
            }
            (Some(tokens), Some(temperature)) => {
                return session.write_on(prompt.get_untracked(), tokens, temperature);
            }
            (None, _) => "Tokens must be a whole number from 1 to 4096.",
            (_, None) => "Temperature must be a number from 0 to 10; 0 always takes the likeliest token.",
        };
        if !chats.get_untracked() {
            session.generated.set(None);
        }
        session.errors.generate.set(Some(wrong.into()));
    };
    let talk = move || {
        let said = |message: ChatMessage| {
            let by = if message.by_assistant() { "Model" } else { "You" };
            view! { <li data-role=message.role><b>{by}</b><p>{message.content}</p></li> }
        };
        session.talk.get().into_iter().map(said).collect_view()
    };
    let has_talk = move || session.talk.with(|talk| !talk.is_empty());
    view! {
        <div class="try-it" class:chats=chats>
        <ol class="talk" id="talk" aria-label="The conversation" hidden=move || !has_talk()>{talk}</ol>
        <form on:submit=ask>
            <label class="field" for="generate-prompt">
                {move || if chats.get() { "Your message" } else { "A beginning" }}
            </label>
            <textarea
                id="generate-prompt"
                rows="2"
                prop:value=prompt
                on:input=move |event| prompt.set(event_target_value(&event))
            ></textarea>
            <div class="grid try">
                <div class="cell">
                    <label for="generate-tokens">"Tokens"</label>
                    <input
                        id="generate-tokens"
                        type="text"
                        inputmode="numeric"
                        prop:value=tokens
                        on:input=move |event| tokens.set(event_target_value(&event))
                    />
                </div>
                <div class="cell">
                    <label for="generate-temperature">"Temperature"</label>
                    <input
                        id="generate-temperature"
                        type="text"
                        inputmode="decimal"
                        prop:value=temperature
                        on:input=move |event| temperature.set(event_target_value(&event))
                    />
                </div>
                <button id="generate" type="submit" disabled=session.generating>
                    {move || match (session.generating.get(), chats.get()) {
                        (true, _) => "Writing…",
                        (false, true) => "Send",
                        (false, false) => "Write on",
                    }}
                </button>
            </div>
        </form>
        <Alert id="error-generate" error=session.errors.generate />
        <blockquote
            id="generated"
            role="status"
            aria-busy=move || session.generating.get().to_string()
            data-done=move || (!session.generating.get() && session.generated.with(Option::is_some)).to_string()
            hidden=move || session.generated.with(Option::is_none)
        >
            {move || session.generated.get()}
        </blockquote>
        <button
            id="talk-again"
            type="button"
            class="quiet"
            hidden=move || !has_talk()
            on:click=move |_| session.forget_talk()
        >
            "Start a new conversation"
        </button>
        </div>
    }
}
