//! The host's page: a model, a text, the devices; then the run.

mod choice;
mod devices;
mod mapping;
mod model;
mod run;
mod session;
mod settings;
mod text;

use crate::{
    app::{Alert, InsecureNote, Masthead},
    browser, format,
    storage::StoragePanel,
};
use baton_web_api::{KeptInfo, RunPhase};
use leptos::prelude::*;
use session::{Choice, EngineState, Session};

/// The host's page.
#[component]
pub(crate) fn Host() -> impl IntoView {
    let session = Session::start();
    provide_context(session);
    on_cleanup(move || session.end());
    let in_lobby = Memo::new(move |_| session.phase.with(|phase| *phase == RunPhase::Lobby));
    Effect::new(move |_| {
        let to: &[&str] = session.phase.with(|phase| match phase {
            RunPhase::Lobby => ["start", "intro-title"].as_slice(),
            RunPhase::Paused { .. } => &["resume", "run-title"],
            RunPhase::Running => &["pause", "run-title"],
            _ => &["run-title"],
        });
        browser::hand_focus_on(&["start", "pause", "resume", "stop", "again", "again-sure", "run-title"], to);
    });
    view! {
        <Masthead>
            <EngineChip />
        </Masthead>
        <main>
            <div class="intro" hidden=move || !in_lobby.get()>
                <h1 id="intro-title" tabindex="-1">"Teach a language model, together"</h1>
                <p>
                    "Every phone that opens the link carries a part of the model. Your text stays in this tab; at the end you download a LoRA adapter."
                </p>
            </div>
            <InsecureNote />
            <Alert id="error-engine" error=session.errors.engine />
            <Alert id="error-run" error=session.errors.run />
            <KeptRun in_lobby=in_lobby />
            <p id="phase" class="visually-hidden" role="status" data-phase=move || phase_name(&session.phase.get())>
                {move || session.phase.with(phase_words)}
            </p>
            <div class="columns">
                <div class="wide">
                    <div class="stack" hidden=move || !in_lobby.get()>
                        <model::ModelStep />
                        <text::TextStep />
                        <settings::SettingsPanel />
                        <StoragePanel
                            cache=session.cache
                            error=session.errors.cache
                            say=move |message| session.say_of_cache(message)
                        />
                    </div>
                    <div class="stack" hidden=in_lobby>
                        <run::RunPanel />
                    </div>
                </div>
                <div class="narrow">
                    <devices::DevicesStep />
                </div>
            </div>
        </main>
        <StartBar in_lobby=in_lobby />
    }
}

/// A run that was interrupted, and what to do about it.
#[component]
fn KeptRun(in_lobby: Memo<bool>) -> impl IntoView {
    let session = expect_context::<Session>();
    let words = move |run: &KeptInfo| {
        let KeptInfo { model, text, done, steps, needs_files } = run;
        let on = format!("on “{text}” with {model}");
        let then = if *needs_files { " Choose the model’s files again first." } else { "" };
        if done >= steps {
            format!("Its adapter is still here: all {steps} steps {on}.{then}")
        } else {
            format!(
                "{done} of {steps} steps {on} are done. Its devices come back by themselves; others can join now.{then}"
            )
        }
    };
    view! {
        {move || in_lobby.get().then(|| session.kept.get()).flatten().map(|run| view! {
            <section class="card kept" id="kept" aria-labelledby="kept-title" data-done=run.done data-steps=run.steps>
                <h2 id="kept-title">{if run.done >= run.steps { "The last run" } else { "A run was interrupted" }}</h2>
                <p>{words(&run)}</p>
                <div class="buttons">
                    <button id="go-on" type="button" class="primary" on:click=move |_| session.go_on()>
                        {if run.done >= run.steps { "Look at it" } else { "Go on" }}
                    </button>
                    <button id="forget" type="button" on:click=move |_| session.forget()>"Forget it"</button>
                </div>
            </section>
        })}
    }
}

/// A phase as tests and styles know it.
fn phase_name(phase: &RunPhase) -> &'static str {
    match phase {
        RunPhase::Lobby => "lobby",
        RunPhase::Loading => "loading",
        RunPhase::Sampling => "sampling",
        RunPhase::Running => "running",
        RunPhase::Paused { .. } => "paused",
        RunPhase::Finished => "finished",
        RunPhase::Stopped => "stopped",
        RunPhase::Failed { .. } => "failed",
    }
}

/// A phase as a person knows it.
fn phase_words(phase: &RunPhase) -> &'static str {
    match phase {
        RunPhase::Lobby => "Getting ready",
        RunPhase::Loading => "Handing out the model",
        RunPhase::Sampling => "Before the first step",
        RunPhase::Running => "Training",
        RunPhase::Paused { .. } => "Paused",
        RunPhase::Finished => "Finished",
        RunPhase::Stopped => "Stopped",
        RunPhase::Failed { .. } => "The run could not go on",
    }
}

/// Why a run stands still, if there is more to say.
fn phase_reason(phase: &RunPhase) -> Option<String> {
    match phase {
        RunPhase::Loading => Some("Each device fetches its own blocks.".into()),
        RunPhase::Sampling => Some("What the model is worth and writes now, to compare with after.".into()),
        RunPhase::Paused { reason } => reason.clone(),
        RunPhase::Failed { reason } => Some(reason.clone()),
        _ => None,
    }
}

#[component]
fn EngineChip() -> impl IntoView {
    let session = expect_context::<Session>();
    let state = move || match session.engine_state.get() {
        EngineState::Starting { .. } => "starting",
        EngineState::Ready { .. } => "ready",
        EngineState::Failed => "failed",
    };
    let backend = move || match session.engine_state.get() {
        EngineState::Ready { backend } => Some(backend),
        _ => None,
    };
    let words = move || match session.engine_state.get() {
        EngineState::Starting { loaded: 0 } => "Loading the engine…".into(),
        EngineState::Starting { loaded } => format!("Loading the engine… {}", format::bytes(loaded)),
        EngineState::Ready { backend } => format!("Ready on {backend}"),
        EngineState::Failed => "No engine".into(),
    };
    view! {
        <p id="engine" class="chip" role="status" data-state=state data-backend=backend>
            <i class="dot"></i>
            {words}
        </p>
    }
}

/// What is chosen so far, and the button that starts it.
#[component]
fn StartBar(in_lobby: Memo<bool>) -> impl IntoView {
    let session = expect_context::<Session>();
    // What is typed is read when it is wanted.
    let typed = |typed: RwSignal<Option<String>>| {
        typed.with(|typed| typed.as_ref().is_some_and(|typed| !typed.trim().is_empty()))
    };
    let missing = Memo::new(move |_| {
        if session.engine_state.with(|state| *state == EngineState::Failed) {
            return Some("The engine could not start; see above.".to_owned());
        }
        if !typed(session.typed_model) {
            match session.model.with(Choice::name) {
                "none" => return Some("Choose a model (step 1).".into()),
                "error" => return Some("Choose a model that can be trained (step 1).".into()),
                _ => {}
            }
        }
        if !typed(session.typed_text) {
            match session.text.with(Choice::name) {
                "none" => return Some("Choose a text (step 2).".into()),
                "error" => return Some("This text cannot be used as it is; see step 2.".into()),
                _ => {}
            }
        }
        session.form.with(|form| form.settings().err()).map(|wrong| wrong.words)
    });
    let reading = move || {
        let then = if session.starting.get() { ", then it starts" } else { "" };
        let busy = |what: &str| Some(format!("Reading the {what}{then}…"));
        match (session.model.with(Choice::name), session.text.with(Choice::name)) {
            ("busy", _) => busy("model"),
            (_, "busy") => busy("text"),
            _ if session.starting.get() => busy("text"),
            _ => None,
        }
    };
    let summary = move || {
        missing.get().or_else(reading).unwrap_or_else(|| {
            let helpers = session.helpers();
            match helpers {
                0 => "This device alone: others can join now.".into(),
                n => format!("This device and {}.", format::plural(n, "other", "others")),
            }
        })
    };
    view! {
        <div class="startbar" hidden=move || !in_lobby.get()>
            <div class="startbar-inner">
                <p aria-live="polite" title=summary>{summary}</p>
                <button
                    id="start"
                    type="button"
                    class="primary"
                    disabled=move || missing.with(Option::is_some)
                    on:click=move |_| session.begin()
                >
                    {move || if session.starting.get() { "Starting…" } else { "Start training" }}
                </button>
            </div>
        </div>
    }
}
