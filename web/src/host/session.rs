//! Everything a host's page knows and does: signals for the view, and the engine, room and connections behind them.

use crate::{
    browser::{self, PulseWatch, WakeLock},
    engine::{Beside, Engine, EngineEvent},
    form::Form,
};
use baton_protocol::{
    PeerId,
    link::Lane,
    run::Settings,
    signal::{ErrorCode, Role},
};
use baton_transport::browser::{Gone, Mesh, MeshConfig, MeshEvent, SignalClient, SignalError, SignalEvent};
use baton_web_api::{
    CacheInfo, ChatMessage, DeviceInfo, DeviceState, ErrorAbout, FromWorker, Inspection, Judgement, KeptInfo,
    Mapping, ModelChoice, ModelInfo, Prompt, RunPhase, StepReport, TextInfo, ToWorker,
};
use gloo::events::{EventListener, EventListenerOptions};
use gloo::timers::callback::Timeout;
use js_sys::{ArrayBuffer, Uint8Array};
use leptos::prelude::*;
use std::collections::BTreeSet;
use wasm_bindgen::JsCast;
use wasm_bindgen_futures::{JsFuture, spawn_local};

const FORM_KEY: &str = "baton.settings";
/// A text beyond this would not fit beside a model in a phone's tab.
const MAX_TEXT_BYTES: f64 = 256.0 * 1024.0 * 1024.0;
/// A text is counted anew so long after the last change of the settings, and one that is typed is used so long after the
/// last letter, in milliseconds.
const PREVIEW_AFTER: u32 = 500;
/// That a device went out is shown for so long, in milliseconds.
const LEFT_SHOWN: u32 = 60_000;

/// What has become of a choice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Choice<T> {
    None,
    Busy,
    Ready(T),
    Error,
}

impl<T> Choice<T> {
    /// As tests and styles know it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Busy => "busy",
            Self::Ready(_) => "ready",
            Self::Error => "error",
        }
    }

    /// Whether there is nothing to come of it.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::None | Self::Error)
    }
}

/// How far the engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EngineState {
    Starting { loaded: u64 },
    Ready { backend: String },
    Failed,
}

/// How far the room is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RoomState {
    Opening,
    Open,
    Retrying,
    Failed,
}

/// The text that was chosen, kept so that another model can read it again.
#[derive(Clone)]
pub(crate) enum TextChoice {
    Sample,
    Pasted(String),
    File(web_sys::File),
}

/// The model that was chosen.
#[derive(Clone)]
pub(crate) enum ModelPick {
    Default,
    Url(String),
    Files(Vec<web_sys::File>),
}

/// One message a place.
#[derive(Clone, Copy)]
pub(crate) struct Errors {
    pub(crate) engine: RwSignal<Option<String>>,
    pub(crate) room: RwSignal<Option<String>>,
    pub(crate) model: RwSignal<Option<String>>,
    pub(crate) text: RwSignal<Option<String>>,
    pub(crate) settings: RwSignal<Option<String>>,
    pub(crate) run: RwSignal<Option<String>>,
    pub(crate) peer: RwSignal<Option<String>>,
    pub(crate) generate: RwSignal<Option<String>>,
    pub(crate) cache: RwSignal<Option<String>>,
}

/// A sample: the beginning that was given, and the whole text.
pub(crate) type Sample = Option<(String, String)>;

/// The state of the page; copies are handles to the same.
#[derive(Clone, Copy)]
pub(crate) struct Session {
    pub(crate) engine_state: RwSignal<EngineState>,
    pub(crate) room: RwSignal<RoomState>,
    pub(crate) link: Memo<Option<String>>,
    /// Where others find a page that was opened at an address of this device alone.
    pub(crate) lan: RwSignal<Option<String>>,
    pub(crate) model: RwSignal<Choice<ModelInfo>>,
    pub(crate) text: RwSignal<Choice<TextInfo>>,
    /// What the chosen text was found to be.
    pub(crate) inspection: RwSignal<Option<Inspection>>,
    /// How it is read.
    pub(crate) mapping: RwSignal<Option<Mapping>>,
    pub(crate) form: RwSignal<Form>,
    /// A text that is being typed, until it is used.
    pub(crate) typed_text: RwSignal<Option<String>>,
    /// A model's name or address that is being typed, until it is used.
    pub(crate) typed_model: RwSignal<Option<String>>,
    /// A run is to start as soon as what is chosen has been read.
    pub(crate) starting: RwSignal<bool>,
    pub(crate) devices: RwSignal<Vec<DeviceInfo>>,
    /// The device that went out of the run last, and why.
    pub(crate) left: RwSignal<Option<(String, String)>>,
    pub(crate) phase: RwSignal<RunPhase>,
    /// A run of before that can be gone on with.
    pub(crate) kept: RwSignal<Option<KeptInfo>>,
    /// Bytes of bytes that were read of the model before the run, while that goes on.
    pub(crate) checking: RwSignal<Option<(u64, u64)>>,
    pub(crate) steps: RwSignal<u32>,
    pub(crate) reports: RwSignal<Vec<StepReport>>,
    pub(crate) judgements: RwSignal<Vec<Judgement>>,
    pub(crate) before: RwSignal<Sample>,
    pub(crate) after: RwSignal<Sample>,
    /// A conversation with the model, but for the answer in [`Session::generated`].
    pub(crate) talk: RwSignal<Vec<ChatMessage>>,
    pub(crate) generated: RwSignal<Option<String>>,
    pub(crate) generating: RwSignal<bool>,
    pub(crate) downloading: RwSignal<bool>,
    /// Whether the run's adapter was offered as a download.
    pub(crate) downloaded: RwSignal<bool>,
    pub(crate) cache: RwSignal<Option<CacheInfo>>,
    pub(crate) errors: Errors,
    code: RwSignal<Option<String>>,
    held: StoredValue<Held, LocalStorage>,
}

/// What is not for showing.
#[derive(Default)]
struct Held {
    engine: Option<Engine>,
    signal: Option<SignalClient>,
    /// The last is the current one; connections of an older one outlive a lost socket.
    meshes: Vec<(PeerId, Mesh)>,
    /// What this device says of itself, one for each of the meshes.
    pulses: Vec<PulseWatch>,
    waiting: Vec<PeerId>,
    /// Devices that have been in the room; the worker says what becomes of them.
    met: BTreeSet<PeerId>,
    text: Option<TextChoice>,
    text_request: u32,
    /// Whether the engine was given the chosen text; before, it may still speak of another.
    text_given: bool,
    preview: Option<Timeout>,
    typing: Option<Timeout>,
    left_shown: Option<Timeout>,
    pick: Option<ModelPick>,
    /// Whether a model is chosen; otherwise the engine may still speak of one that was.
    model_asked: bool,
    request: u32,
    wake: Option<WakeLock>,
    leaving: Option<EventListener>,
    asked_new_room: bool,
    /// Whether the worker has spoken of a run that the person has not put away.
    begun: bool,
}

fn none() -> RwSignal<Option<String>> {
    RwSignal::new(None)
}

/// What a text that was pasted is: one JSON object a line is jsonl, a list of them json.
fn pasted_name(text: &str) -> &'static str {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
    let objects = lines.peek().is_some() && lines.all(|line| line.starts_with('{') && line.ends_with('}'));
    let list = || {
        let inside = text.trim().strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        inside.is_some_and(|inside| inside.trim_start().starts_with('{'))
    };
    match () {
        () if objects => "pasted.jsonl",
        () if list() => "pasted.json",
        () => "pasted.txt",
    }
}

/// What of the settings decides how a text is cut and split.
fn cuts(settings: &Settings) -> (u32, bool, bool, f64, u64) {
    let Settings { seq_len, packing, append_eos, validation, seed, .. } = settings;
    (*seq_len, *packing, *append_eos, *validation, *seed)
}

/// A device's name, numbered from the second one of the same name on.
pub(crate) fn device_label(devices: &[DeviceInfo], peer: Option<PeerId>) -> Option<String> {
    let (before, from) = devices.split_at(devices.iter().position(|device| device.peer == peer)?);
    let name = &from.first()?.name;
    let same = before.iter().filter(|device| device.name == *name).count();
    Some(if same == 0 { name.clone() } else { format!("{name} {}", same + 1) })
}

impl Session {
    /// Starts the engine and opens a room.
    pub(crate) fn start() -> Self {
        let (code, lan) = (none(), none());
        let session = Self {
            engine_state: RwSignal::new(EngineState::Starting { loaded: 0 }),
            room: RwSignal::new(RoomState::Opening),
            link: Memo::new(move |_| code.get().map(|code| browser::join_link(&code, lan.get()))),
            lan,
            model: RwSignal::new(Choice::Busy),
            text: RwSignal::new(Choice::Busy),
            inspection: RwSignal::new(None),
            mapping: RwSignal::new(None),
            form: RwSignal::new(browser::stored(FORM_KEY).unwrap_or_default()),
            typed_text: none(),
            typed_model: none(),
            starting: RwSignal::new(false),
            devices: RwSignal::new(Vec::new()),
            left: RwSignal::new(None),
            phase: RwSignal::new(RunPhase::Lobby),
            kept: RwSignal::new(None),
            checking: RwSignal::new(None),
            steps: RwSignal::new(0),
            reports: RwSignal::new(Vec::new()),
            judgements: RwSignal::new(Vec::new()),
            before: RwSignal::new(None),
            after: RwSignal::new(None),
            talk: RwSignal::new(Vec::new()),
            generated: RwSignal::new(None),
            generating: RwSignal::new(false),
            downloading: RwSignal::new(false),
            downloaded: RwSignal::new(false),
            cache: RwSignal::new(None),
            errors: Errors {
                engine: none(),
                room: none(),
                model: none(),
                text: none(),
                settings: none(),
                run: none(),
                peer: none(),
                generate: none(),
                cache: none(),
            },
            code,
            held: StoredValue::new_local(Held::default()),
        };
        session.with(|held| {
            held.text = Some(TextChoice::Sample);
            held.pick = Some(ModelPick::Default);
        });
        let engine = Engine::start(move |event| session.on_engine(event));
        session.with(|held| held.engine = Some(engine));
        session.open_room(false);
        if browser::only_reachable_here() {
            spawn_local(async move {
                lan.try_set(browser::lan_address().await);
            });
        }
        Effect::new(move |_| session.form.with(|form| browser::store(FORM_KEY, form)));
        Effect::new(move |_| session.hold_on(session.is_busy()));
        let cuts = Memo::new(move |_| session.form.with(Form::settings).ok().map(|settings| cuts(&settings)));
        Effect::new(move |_| {
            // Only a memo that is read hears of changes.
            if cuts.get().is_some() {
                let later = Timeout::new(PREVIEW_AFTER, move || session.preview());
                session.with(|held| held.preview = Some(later));
            }
        });
        Effect::new(move |_| {
            if session.starting.get() {
                session.start_when_read();
            }
        });
        session
    }

    /// Leaves the room and ends the engine.
    pub(crate) fn end(&self) {
        let held = self.with(std::mem::take);
        if let Some(signal) = &held.and_then(|held| held.signal) {
            signal.leave();
        }
    }

    /// Devices beside this one.
    pub(crate) fn helpers(&self) -> u64 {
        self.devices.with(|devices| devices.iter().filter(|device| device.peer.is_some()).count() as u64)
    }

    /// Whether closing the page would lose work.
    pub(crate) fn is_busy(&self) -> bool {
        use RunPhase::{Loading, Paused, Running, Sampling};
        self.phase.with(|phase| matches!(phase, Loading | Sampling | Running | Paused { .. }))
    }

    /// Nothing happens once the page is gone.
    fn with<T>(&self, change: impl FnOnce(&mut Held) -> T) -> Option<T> {
        self.held.try_update_value(change)
    }

    fn post(&self, message: &ToWorker, beside: Beside) {
        if let Some(engine) = self.with(|held| held.engine.clone()).flatten() {
            engine.post(message, beside);
        }
    }

    fn say(&self, message: &ToWorker) {
        self.post(message, Beside::Nothing);
    }

    /// A message about what is kept of models on this device.
    pub(crate) fn say_of_cache(&self, message: &ToWorker) {
        self.errors.cache.set(None);
        self.say(message);
    }

    fn is_ready(&self) -> bool {
        self.with(|held| held.engine.as_ref().is_some_and(Engine::is_ready)).unwrap_or(false)
    }

    // What the person does

    /// Reads a model; the engine counts the text's tokens again when it is there.
    pub(crate) fn choose_model(&self, pick: ModelPick) {
        self.starting.set(false);
        self.typed_model.set(None);
        self.errors.model.set(None);
        self.model.set(Choice::Busy);
        self.with(|held| {
            held.pick = Some(pick.clone());
            held.model_asked = true;
        });
        self.read_model(pick);
    }

    /// No model is chosen.
    pub(crate) fn no_model(&self) {
        self.starting.set(false);
        self.typed_model.set(None);
        self.errors.model.set(None);
        self.model.set(Choice::None);
        self.with(|held| {
            held.pick = None;
            held.model_asked = false;
        });
    }

    /// Uses the model's name or address that was typed last; false if nothing was typed since it was used.
    pub(crate) fn use_typed_model(&self) -> bool {
        let Some(url) = self.typed_model.get_untracked() else { return false };
        self.choose_model(ModelPick::Url(url));
        true
    }

    fn read_model(&self, pick: ModelPick) {
        if !self.is_ready() {
            // Asked again when the engine is there.
            return;
        }
        match pick {
            ModelPick::Default => {
                self.say(&ToWorker::SetModel { model: ModelChoice::Default { url: browser::asset("static/model/") } });
            }
            ModelPick::Url(url) if url.trim().is_empty() => self.fail(
                ErrorAbout::Model,
                "Type a Hugging Face name such as “HuggingFaceTB/SmolLM2-135M”, or the address of a folder with config.json, model.safetensors and tokenizer.json, or of a .gguf file.".into(),
            ),
            ModelPick::Url(url) => {
                self.say(&ToWorker::SetModel { model: ModelChoice::Url { url: url.trim().to_owned() } });
            }
            ModelPick::Files(files) => {
                self.post(&ToWorker::SetModel { model: ModelChoice::Folder }, Beside::Files(files));
            }
        }
    }

    /// Reads a text, now or as soon as there is an engine; its tokens are counted as soon as there is a model.
    pub(crate) fn choose_text(&self, choice: TextChoice) {
        self.another_text(Choice::Busy, Some(choice));
        if self.is_ready() {
            self.read_text();
        }
    }

    /// No text is chosen.
    pub(crate) fn no_text(&self) {
        self.another_text(Choice::None, None);
    }

    fn another_text(&self, state: Choice<TextInfo>, choice: Option<TextChoice>) {
        self.starting.set(false);
        self.typed_text.set(None);
        self.errors.text.set(None);
        self.text.set(state);
        self.inspection.set(None);
        self.mapping.set(None);
        self.with(|held| {
            held.typing = None;
            held.text = choice;
            held.text_given = false;
            // One that is being read is not wanted any more.
            held.text_request += 1;
        });
    }

    /// Takes a text that is being typed; it is used when the typing pauses.
    pub(crate) fn type_text(&self, text: String) {
        let session = *self;
        self.typed_text.set(Some(text));
        let later = Timeout::new(PREVIEW_AFTER, move || session.use_typed_text());
        self.with(|held| held.typing = Some(later));
    }

    /// Uses the text that was typed last, if it was not used yet.
    pub(crate) fn use_typed_text(&self) {
        match self.typed_text.get_untracked() {
            Some(text) if text.is_empty() => self.no_text(),
            Some(text) => self.choose_text(TextChoice::Pasted(text)),
            None => {}
        }
    }

    /// Reads the same text with other columns.
    pub(crate) fn map_text(&self, mapping: Mapping) {
        self.starting.set(false);
        self.errors.text.set(None);
        self.text.set(Choice::Busy);
        self.mapping.set(Some(mapping.clone()));
        self.say(&ToWorker::MapText { mapping });
    }

    /// Has the text cut and split as the settings are now.
    fn preview(&self) {
        if let (true, Ok(settings)) = (self.is_ready(), self.form.with_untracked(Form::settings)) {
            self.say(&ToWorker::Preview { settings });
        }
    }

    fn read_text(&self) {
        let Some((choice, request)) = self
            .with(|held| {
                held.text_request += 1;
                held.text.clone().map(|choice| (choice, held.text_request))
            })
            .flatten()
        else {
            return;
        };
        let session = *self;
        spawn_local(async move {
            let read = match choice {
                TextChoice::Pasted(text) => {
                    let name = pasted_name(&text).to_owned();
                    Ok((name, Uint8Array::from(text.as_bytes()).buffer()))
                }
                TextChoice::Sample => browser::fetch_bytes(&browser::asset("static/sample.txt"))
                    .await
                    .map(|bytes| ("sample.txt".to_owned(), Uint8Array::from(&bytes[..]).buffer()))
                    .map_err(|why| format!("The sample text could not be fetched: {why}.")),
                TextChoice::File(file) if file.size() > MAX_TEXT_BYTES => Err(format!(
                    "“{}” has {:.0} MB; a tab can hold 256 MB of text. Cut the file into parts.",
                    file.name(),
                    file.size() / 1e6
                )),
                TextChoice::File(file) => JsFuture::from(file.array_buffer())
                    .await
                    .map(|bytes| (file.name(), bytes.unchecked_into()))
                    .map_err(|_| format!("“{}” could not be read. Choose it again.", file.name())),
            };
            // Another text may have been chosen meanwhile.
            if session.with(|held| held.text_request) != Some(request) {
                return;
            }
            match read {
                Ok((name, bytes)) => {
                    session.with(|held| held.text_given = true);
                    session.post(&ToWorker::SetText { name }, Beside::Bytes(bytes));
                }
                Err(words) => session.fail(ErrorAbout::Text, words),
            }
        });
    }

    /// Whether the figures of the text are those of the settings as they are.
    pub(crate) fn is_counted(&self) -> bool {
        let now = self.form.with(|form| form.settings().ok().map(|settings| cuts(&settings)));
        self.text.with(|text| match text {
            Choice::Ready(text) => Some(cuts(&text.settings)) == now,
            _ => false,
        })
    }

    /// Starts the run with all that is chosen, typed and set, as soon as it is read.
    pub(crate) fn begin(&self) {
        self.use_typed_model();
        self.use_typed_text();
        if !untrack(|| self.is_counted()) {
            self.with(|held| held.preview = None);
            self.preview();
        }
        self.starting.set(true);
    }

    /// Starts the run that is wanted if everything is there, and gives it up if something cannot be.
    fn start_when_read(&self) {
        let settings = self.form.with(Form::settings);
        let model = self.model.with(|model| matches!(model, Choice::Ready(_)));
        let broken = self.model.with(Choice::is_missing)
            || self.text.with(Choice::is_missing)
            || self.engine_state.with(|state| *state == EngineState::Failed);
        match settings {
            Err(wrong) => {
                self.starting.set(false);
                self.errors.settings.set(Some(wrong.words));
            }
            Ok(_) if broken => self.starting.set(false),
            Ok(settings) if model && self.is_counted() => {
                self.starting.set(false);
                self.clear(settings.steps);
                self.say(&ToWorker::Start { settings });
            }
            Ok(_) => {}
        }
    }

    /// Goes on with the run that is kept.
    pub(crate) fn go_on(&self) {
        let Some(run) = self.kept.get_untracked() else { return };
        self.clear(run.steps);
        // The worker speaks of the model and the text that it has kept.
        self.with(|held| (held.text_given, held.model_asked) = (true, true));
        self.say(&ToWorker::GoOn);
    }

    /// Forgets it.
    pub(crate) fn forget(&self) {
        self.say(&ToWorker::Forget);
    }

    /// Nothing of a run before is shown beside one that begins, and its room is kept for it.
    fn clear(&self, steps: u32) {
        browser::keep_room();
        for error in [self.errors.run, self.errors.settings, self.errors.generate, self.errors.peer] {
            error.set(None);
        }
        self.steps.set(steps);
        self.reports.set(Vec::new());
        self.judgements.set(Vec::new());
        self.talk.set(Vec::new());
        self.before.set(None);
        self.after.set(None);
        self.generated.set(None);
        self.generating.set(false);
        self.left.set(None);
        self.downloaded.set(false);
        self.checking.set(None);
        self.phase.set(RunPhase::Loading);
        window().scroll_to_with_x_and_y(0.0, 0.0);
    }

    /// Back to the three steps, with everything as it was.
    pub(crate) fn again(&self) {
        self.errors.run.set(None);
        self.errors.peer.set(None);
        self.left.set(None);
        self.with(|held| held.begun = false);
        self.phase.set(RunPhase::Lobby);
        window().scroll_to_with_x_and_y(0.0, 0.0);
        // A run that was kept was counted by its own settings.
        self.preview();
    }

    pub(crate) fn pause(&self) {
        self.say(&ToWorker::Pause);
    }

    pub(crate) fn resume(&self) {
        self.say(&ToWorker::Resume);
    }

    pub(crate) fn stop(&self) {
        self.say(&ToWorker::Stop);
    }

    pub(crate) fn remove(&self, peer: PeerId) {
        self.say(&ToWorker::Remove { peer });
    }

    /// Asks for the adapter; it is offered as a download when it comes.
    pub(crate) fn fetch_adapter(&self) {
        self.errors.run.set(None);
        self.downloading.set(true);
        self.say(&ToWorker::GetAdapter);
    }

    /// Asks for a continuation.
    pub(crate) fn write_on(&self, text: String, tokens: u32, temperature: f64) {
        self.generated.set(Some(text.clone()));
        self.generate(Prompt::Text { text }, tokens, temperature);
    }

    /// Says something to the model, and asks for its answer.
    pub(crate) fn say_to_model(&self, words: String, tokens: u32, temperature: f64) {
        let answer = self.generated.get_untracked();
        self.generated.set(Some(String::new()));
        self.talk.update(|talk| {
            match answer {
                Some(answer) => talk.push(ChatMessage::new("assistant", answer)),
                // What had no answer is said anew.
                None => drop(talk.pop()),
            }
            talk.push(ChatMessage::new("user", words));
        });
        let messages = self.talk.get_untracked();
        self.generate(Prompt::Chat { messages }, tokens, temperature);
    }

    fn generate(&self, prompt: Prompt, tokens: u32, temperature: f64) {
        self.errors.generate.set(None);
        self.generating.set(true);
        let request = self.with(|held| {
            held.request = held.request.wrapping_add(1);
            held.request
        });
        let request = request.unwrap_or_default();
        self.say(&ToWorker::Generate { request, prompt, tokens, temperature });
    }

    /// Begins a new conversation.
    pub(crate) fn forget_talk(&self) {
        // What is still being written has no place any more.
        self.with(|held| held.request = held.request.wrapping_add(1));
        self.generating.set(false);
        self.generated.set(None);
        self.talk.set(Vec::new());
    }

    /// Tries the server again after it could not be reached.
    pub(crate) fn retry_room(&self) {
        self.errors.room.set(None);
        self.open_room(false);
    }

    // What the engine says

    fn on_engine(&self, event: EngineEvent) {
        // The page may be gone while a message is on its way.
        if self.held.try_with_value(|_| ()).is_none() {
            return;
        }
        match event {
            EngineEvent::Loading(loaded) => self.engine_state.set(EngineState::Starting { loaded }),
            EngineEvent::FellBack(why) => self.errors.engine.set(Some(format!(
                "WebGPU did not start ({why}), so this device computes on its CPU. That is slower, and gives the same results."
            ))),
            EngineEvent::Failed(words) => {
                self.engine_state.set(EngineState::Failed);
                self.errors.engine.set(Some(words.clone()));
                for busy in [self.generating, self.downloading] {
                    busy.set(false);
                }
                if self.is_busy_untracked() {
                    self.phase.set(RunPhase::Failed { reason: words });
                }
                self.model.update(|model| {
                    if *model == Choice::Busy {
                        *model = Choice::None;
                    }
                });
            }
            EngineEvent::Message(message, bytes) => self.on_message(message, bytes),
        }
    }

    fn is_text_given(&self) -> bool {
        self.with(|held| held.text_given) == Some(true)
    }

    fn is_busy_untracked(&self) -> bool {
        untrack(|| self.is_busy())
    }

    fn on_message(&self, message: FromWorker, bytes: Option<ArrayBuffer>) {
        match message {
            FromWorker::Ready { backend } => {
                self.engine_state.set(EngineState::Ready { backend });
                self.say(&ToWorker::Host { name: browser::device_name(), visit: browser::visit() });
                self.preview();
                // A person may have chosen before.
                if let Some(pick) = self.with(|held| held.pick.clone()).flatten() {
                    self.with(|held| held.model_asked = true);
                    self.read_model(pick);
                }
                self.read_text();
                let waiting = self.with(|held| std::mem::take(&mut held.waiting)).unwrap_or_default();
                for peer in waiting {
                    self.connect(peer);
                }
            }
            FromWorker::Connect { peer } => {
                if let Some(mesh) = self.mesh_to(peer) {
                    mesh.connect(peer, Lane::Bulk);
                }
            }
            FromWorker::Kept { run } => {
                // A run that begins replaces the one that was kept, and keeps the room.
                if run.is_none() && self.phase.with_untracked(|phase| *phase == RunPhase::Lobby) {
                    browser::forget_room();
                }
                self.kept.set(run);
            }
            FromWorker::Left { device, reason } => {
                self.left.set(Some((device, reason)));
                // It may come back, and the list says how each device is.
                let left = self.left;
                let later = Timeout::new(LEFT_SHOWN, move || drop(left.try_set(None)));
                self.with(|held| held.left_shown = Some(later));
            }
            FromWorker::Disconnect { peer } => {
                for mesh in self.meshes() {
                    mesh.close(peer);
                }
            }
            FromWorker::Model { .. } if self.with(|held| held.model_asked) != Some(true) => {}
            FromWorker::Model { model } => {
                self.errors.model.set(None);
                // What a person typed stays; a suggestion follows the model.
                let lr = self.form.with_untracked(|form| form.lr.parse::<f64>());
                if lr.is_ok_and(Settings::is_suggested_lr) {
                    self.form.update(|form| form.lr = Settings::suggested_lr(model.parameters).to_string());
                }
                self.form.update(|form| form.fit_targets(&model.targets));
                self.model.set(Choice::Ready(model));
                // The engine counts it anew for this model.
                self.text.update(|text| {
                    if matches!(text, Choice::Ready(_)) {
                        *text = Choice::Busy;
                    }
                });
            }
            FromWorker::Inspected { .. } | FromWorker::Text { .. } if !self.is_text_given() => {}
            FromWorker::Inspected { inspection } => {
                self.mapping.set(Some(inspection.mapping.clone()));
                self.inspection.set(Some(inspection));
            }
            FromWorker::Text { text } => {
                self.errors.text.set(None);
                self.text.set(Choice::Ready(text));
            }
            FromWorker::Judged { judgement } => self.judgements.update(|judgements| {
                let keep = judgements.partition_point(|old| old.done < judgement.done);
                judgements.truncate(keep);
                judgements.push(judgement);
            }),
            FromWorker::Cache { cache } => self.cache.set(Some(cache)),
            FromWorker::Checking { loaded, total } => self.checking.set(Some((loaded, total))),
            FromWorker::Devices { devices } => {
                let met = devices.iter().filter(|device| device.state != DeviceState::Connecting);
                self.with(|held| held.met.extend(met.filter_map(|device| device.peer)));
                self.devices.set(devices);
            }
            FromWorker::Phase { phase } => {
                use RunPhase::{Failed, Finished, Lobby, Stopped};
                // It is told again with every change in the room: an end that comes before a run has begun is that of
                // the run before, which the person has put away.
                let goes_on = !matches!(phase, Lobby | Finished | Stopped | Failed { .. });
                let begun = self.with(|held| {
                    held.begun |= goes_on;
                    held.begun
                });
                if begun == Some(true) {
                    self.checking.set(None);
                    self.phase.set(phase);
                }
            }
            FromWorker::Step { report } => {
                self.steps.set(report.steps);
                self.reports.update(|reports| {
                    // A step that ran again after a lost device replaces its first report.
                    let keep = reports.partition_point(|old| old.step < report.step);
                    reports.truncate(keep);
                    reports.push(report);
                });
            }
            FromWorker::Sample { after, prompt, text } => {
                let sample = if after { self.after } else { self.before };
                sample.set(Some((prompt, text)));
            }
            FromWorker::Generated { request, text, done } => {
                if self.with(|held| held.request) == Some(request) {
                    self.generated.set(Some(text));
                    self.generating.set(!done);
                }
            }
            FromWorker::Adapter { name, .. } => {
                self.downloading.set(false);
                match bytes.map(|bytes| browser::download(&name, &bytes)) {
                    Some(Ok(())) => self.downloaded.set(true),
                    _ => self.fail(
                        ErrorAbout::Run,
                        "The adapter could not be saved by this browser. Try again, or allow downloads for this page.".into(),
                    ),
                }
            }
            FromWorker::Stage { .. } => {}
            // Of a choice that is no longer the one.
            FromWorker::Error { about: ErrorAbout::Text, .. } if !self.is_text_given() => {}
            FromWorker::Error { about: ErrorAbout::Model, .. }
                if self.with(|held| held.model_asked) != Some(true) => {}
            FromWorker::Error { about, message } => self.fail(about, message),
        }
    }

    fn fail(&self, about: ErrorAbout, words: String) {
        // A run that was refused has not begun.
        let refused = matches!(about, ErrorAbout::Model | ErrorAbout::Text | ErrorAbout::Settings);
        if refused && self.phase.with_untracked(|phase| *phase == RunPhase::Loading) {
            self.phase.set(RunPhase::Lobby);
        }
        let place = match about {
            ErrorAbout::Engine => self.errors.engine,
            ErrorAbout::Model => {
                self.model.set(Choice::Error);
                self.errors.model
            }
            ErrorAbout::Text => {
                self.text.set(Choice::Error);
                self.errors.text
            }
            ErrorAbout::Settings => self.errors.settings,
            ErrorAbout::Run => {
                self.downloading.set(false);
                self.errors.run
            }
            ErrorAbout::Peer => self.errors.peer,
            ErrorAbout::Generate => {
                self.generating.set(false);
                self.generated.set(None);
                self.errors.generate
            }
            ErrorAbout::Cache => self.errors.cache,
        };
        place.set(Some(words));
    }

    // The room

    fn open_room(&self, renew: bool) {
        let Some(secret) = browser::room_secret(renew) else {
            self.room.set(RoomState::Failed);
            return self
                .errors
                .room
                .set(Some("This browser gives no random numbers, so no room can be made.".into()));
        };
        self.code.set(Some(secret.to_code()));
        self.room.set(RoomState::Opening);
        let (session, room_id, claim) = (*self, secret.room_id(), browser::room_claim());
        let client = SignalClient::connect(
            browser::server_url(),
            room_id,
            Role::Host,
            claim,
            u32::MAX,
            move |event| {
                session.on_signal(event, &secret);
            },
        );
        self.with(|held| held.signal = Some(client));
    }

    fn on_signal(&self, event: SignalEvent, secret: &baton_protocol::room::RoomSecret) {
        if self.held.try_with_value(|_| ()).is_none() {
            return;
        }
        match event {
            SignalEvent::Joined { me, host, peers, ice_servers } => {
                self.room.set(RoomState::Open);
                self.errors.room.set(None);
                let config = MeshConfig { me, host, secret: secret.clone(), ice_servers };
                let (relaying, session) = (*self, *self);
                let mesh = Mesh::new(
                    config,
                    move |to, sealed| {
                        if let Some(signal) = relaying.with(|held| held.signal.clone()).flatten() {
                            signal.relay(to, sealed);
                        }
                    },
                    move |event| session.on_mesh(event),
                );
                let pulse = browser::watch_pulse({
                    let mesh = mesh.clone();
                    move |pulse| mesh.set_pulse(pulse)
                });
                // Who stayed connected while the socket was away is met already.
                let older = self.meshes();
                let emptied = self.with(|held| {
                    // Those that nobody is connected by any more, and their clocks, go.
                    let both =
                        std::mem::take(&mut held.meshes).into_iter().zip(std::mem::take(&mut held.pulses));
                    let (used, emptied): (Vec<_>, Vec<_>) = both.partition(|((_, mesh), _)| !mesh.is_empty());
                    (held.meshes, held.pulses) = used.into_iter().unzip();
                    held.meshes.push((me, mesh));
                    held.pulses.push(pulse);
                    held.waiting.clear();
                    emptied
                });
                drop(emptied);
                for peer in peers.into_iter().filter(|peer| !older.iter().any(|mesh| mesh.has(*peer))) {
                    self.connect(peer);
                }
            }
            SignalEvent::PeerJoined(peer) => self.connect(peer),
            // That is this page.
            SignalEvent::HostReturned(_) => {}
            SignalEvent::PeerLeft(peer) => {
                self.with(|held| held.waiting.retain(|waiting| *waiting != peer));
                if let Some(mesh) = self.meshes().pop() {
                    mesh.left(peer);
                }
            }
            SignalEvent::Relay { from, sealed } => {
                if let Some(mesh) = self.meshes().pop() {
                    mesh.receive(from, &sealed);
                }
            }
            SignalEvent::Trouble(SignalError::Refused { code: ErrorCode::NoSuchPeer, .. }) => {}
            SignalEvent::Trouble(error) => self.errors.room.set(Some(error.to_string())),
            SignalEvent::Lost { retry_in } => {
                self.room.set(RoomState::Retrying);
                if retry_in > 1.5 {
                    self.errors.room.set(Some(format!(
                        "The server cannot be reached; trying again every {retry_in:.0} s. Devices that are connected go on, new ones cannot join."
                    )));
                }
            }
            SignalEvent::Ended(SignalError::Refused { code: ErrorCode::RoomTaken, .. })
                if self.with(|held| !std::mem::replace(&mut held.asked_new_room, true)) == Some(true) =>
            {
                // Another tab (a duplicate of this one) holds the kept room.
                let session = *self;
                spawn_local(async move { session.open_room(true) });
            }
            SignalEvent::Ended(error) => {
                self.room.set(RoomState::Failed);
                self.errors.room.set(Some(error.to_string()));
            }
        }
    }

    fn meshes(&self) -> Vec<Mesh> {
        self.with(|held| held.meshes.iter().map(|(_, mesh)| mesh.clone()).collect()).unwrap_or_default()
    }

    fn mesh_to(&self, peer: PeerId) -> Option<Mesh> {
        let meshes = self.meshes();
        meshes.iter().find(|mesh| mesh.has(peer)).or(meshes.last()).cloned()
    }

    /// The host offers both lanes to whoever joins.
    fn connect(&self, peer: PeerId) {
        if !self.is_ready() {
            self.with(|held| held.waiting.push(peer));
            return;
        }
        let mut meshes = self.meshes();
        let Some(mesh) = meshes.pop() else { return };
        // A room that the server made anew numbers from the start again.
        if meshes.iter().any(|older| older.has(peer)) {
            return self.errors.peer.set(Some(
                "A device could not join: the server was restarted during the run. Start a new room by reloading this page when the run is over.".into(),
            ));
        }
        mesh.connect(peer, Lane::Control);
        mesh.connect(peer, Lane::Bulk);
    }

    fn on_mesh(&self, event: MeshEvent) {
        match event {
            MeshEvent::Channel { peer, lane, channel } => {
                self.post(&ToWorker::Channel { peer, lane }, Beside::Channel(channel));
            }
            MeshEvent::Presence { peer, presence } => self.say(&ToWorker::Presence { peer, presence }),
            MeshEvent::Gone { peer, reason } => {
                self.say(&ToWorker::PeerGone { peer });
                let met = self.with(|held| held.met.contains(&peer)) == Some(true);
                let in_lobby = self.phase.with_untracked(|phase| *phase == RunPhase::Lobby);
                // Of one that was in the run the worker speaks; after a run nobody misses it.
                if reason != Gone::Left && (in_lobby || !met) {
                    let name = self.devices.try_with_untracked(|devices| device_label(devices, Some(peer)));
                    let name = name.flatten().unwrap_or_else(|| "A device that joined".into());
                    self.errors.peer.set(Some(format!("{name} {reason}.")));
                }
            }
        }
    }

    /// While a run is on, the screen stays on and closing the page asks first.
    fn hold_on(&self, busy: bool) {
        self.with(|held| {
            if !busy {
                held.wake = None;
                held.leaving = None;
            } else if held.wake.is_none() {
                held.wake = Some(WakeLock::hold());
                let options = EventListenerOptions::enable_prevent_default();
                held.leaving =
                    Some(EventListener::new_with_options(&window(), "beforeunload", options, |event| {
                        event.prevent_default();
                        if let Some(event) = event.dyn_ref::<web_sys::BeforeUnloadEvent>() {
                            event.set_return_value("The run is still going.");
                        }
                    }));
            }
        });
    }
}
