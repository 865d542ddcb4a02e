//! The loop of a host.

use super::files::{MOST_QUESTIONS, Shelf, manifest_bytes};
use super::{Environment, Input, Inputs, Net};
use crate::adapter;
use crate::cache::AnyCache;
use crate::error::EngineError;
use crate::evaluate::{Evaluation, Judgement};
use crate::host::{HostEngine, Requests, head_block};
use crate::kept::{EncodedSteps, KeptRun, KeptSteps, RunStore};
use crate::profile::model_profile;
use crate::source::{AnyFiles, Model, Prepared};
use crate::texts::{Prompt, Text, TextRequest};
use baton_formats::dataset::{self, Inspection, Lengths, Mapping};
use baton_formats::files::Hash;
use baton_formats::{Dataset, FilesError, Label, Manifest, ModelConfig, SampleBody, UrlFiles};
use baton_model::Device;
use baton_protocol::PeerId;
use baton_protocol::coordinator::{
    Coordinator, DeviceView, Done, Event, Output, RunPhase, Start, StepReport,
};
use baton_protocol::ids::Step;
use baton_protocol::message::{Device as Introduction, FileAnswer, Message};
use baton_protocol::run::{ModelSource, Settings};
use baton_protocol::stage::Failure;
use baton_transport::{Arrival, Channel};
use futures::channel::mpsc::UnboundedReceiver;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, select_biased};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// The texts that are written before and after the run have numbers of their own.
const BEFORE: u32 = u32::MAX;
const AFTER: u32 = u32::MAX - 1;

/// A model to open.
pub struct ModelChoice {
    /// Where the host reads it.
    pub files: AnyFiles,
    /// Where the stages do.
    pub source: ModelSource,
    /// What to call it.
    pub name: String,
    /// What PEFT finds it by, if it has such a name.
    pub base: Option<String>,
}

/// What the owner of a host wants.
pub enum HostCommand {
    /// Opens a model.
    SetModel(Box<ModelChoice>),
    /// Reads a text; the name's ending tells the format, and the first records which column is what.
    SetText(String, Vec<u8>),
    /// Reads the same text with other columns.
    MapText(Mapping),
    /// Says how a run would cut and split the text.
    Preview(Box<Settings>),
    /// Starts a run.
    Start(Box<Settings>),
    /// Goes on with the run that is kept.
    GoOn,
    /// Forgets it.
    Forget,
    /// Pauses after the open step.
    Pause,
    /// Goes on.
    Resume,
    /// Ends the run.
    Stop,
    /// Writes a text.
    Generate(u32, TextRequest),
    /// Gives the adapter as it is.
    GetAdapter,
    /// Sends a device away.
    Remove(PeerId),
}

/// What an error concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// The chosen model.
    Model,
    /// The chosen text.
    Text,
    /// The settings.
    Settings,
    /// The adapter or the run.
    Run,
    /// A text to be written.
    Generate,
}

/// What the owner of a host is told.
pub enum HostEvent {
    /// The model can be trained.
    Model {
        /// What to call it.
        name: String,
        /// The model.
        model: Rc<Model>,
    },
    /// A run that can be gone on with lies on this device, or none any more.
    Kept(Option<KeptSummary>),
    /// What a text was found to be, and how it is read unless [`HostCommand::MapText`] says otherwise.
    Inspected(Box<Inspection>),
    /// The text can be used.
    Text {
        /// The file's name.
        name: String,
        /// Samples in it.
        samples: usize,
        /// Records that were left out.
        skipped: usize,
        /// Tokens, cut to the length of a sequence.
        tokens: u64,
        /// That length, as [`HostCommand::Preview`] said and the model can read.
        seq_len: usize,
        /// What it was counted by: the last [`HostCommand::Preview`].
        settings: Box<Settings>,
        /// Tokens that this cuts off.
        truncated: usize,
        /// Samples that it cuts.
        truncated_samples: usize,
        /// How long the samples are.
        lengths: Lengths,
        /// Samples that are kept out of training.
        validation: usize,
        /// The classes that the samples are labelled with, and how many have each, where the model labels samples.
        labels: Vec<(String, usize)>,
        /// Why some conversations are left out, if any are.
        refusal: Option<String>,
        /// The first sample's beginning.
        beginning: String,
    },
    /// The model's files are read once, so that every device can check what it gets: bytes of bytes.
    Checking {
        /// Bytes read.
        loaded: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Who is there and where the run stands.
    Changed {
        /// Where the run stands.
        phase: RunPhase,
        /// Every other device.
        devices: Vec<DeviceView>,
        /// The host's own blocks, and bytes fetched of bytes.
        own: (Option<Range<u16>>, Option<(u64, u64)>),
    },
    /// A step is complete.
    Committed {
        /// Its numbers.
        report: StepReport,
        /// Steps in all.
        steps: u32,
        /// Time since the one before.
        time: Duration,
    },
    /// What the model is worth on the samples kept out of training.
    Judged {
        /// After so many steps.
        done: u32,
        /// What it is worth.
        judgement: Judgement,
    },
    /// What the model writes before or after the run.
    Sample {
        /// Whether it is after.
        after: bool,
        /// The beginning that was given.
        prompt: String,
        /// The text, with the beginning.
        text: String,
    },
    /// More of a text.
    Generated {
        /// Which.
        request: u32,
        /// The text so far.
        text: String,
        /// Whether this is all.
        done: bool,
    },
    /// The adapter, as a zip archive.
    Adapter {
        /// The archive.
        zip: Vec<u8>,
        /// Complete steps in it.
        step: Step,
    },
    /// A device is out of the room, or out of the plan until it is heard again.
    Left {
        /// What its owner calls it.
        device: String,
        /// Why, in words that follow the name.
        reason: String,
    },
    /// Every connection to a peer is to be closed.
    Disconnect {
        /// To whom.
        peer: PeerId,
    },
    /// Something went wrong.
    Error {
        /// What it concerns.
        about: About,
        /// In words.
        message: String,
    },
}

/// What a person is told of a run that can be gone on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSummary {
    /// What its model is called.
    pub model: String,
    /// Its text's file name.
    pub text: String,
    /// Complete steps.
    pub done: u32,
    /// Steps in all.
    pub steps: u32,
    /// Whether its model was a person's own files, which have to be chosen again first.
    pub needs_files: bool,
}

/// What a run that is kept consists of.
type Kept = (KeptRun, KeptSteps, Hash);

/// Something to be written to the store, one after another.
enum Save {
    Run(Box<KeptRun>),
    Steps,
    Forget,
}

struct Opened {
    number: u32,
    choice: (ModelSource, String, Option<String>),
    model: Result<Rc<Model>, EngineError>,
}

enum Side {
    Opened(Opened),
    File { peer: PeerId, id: u32, answer: FileAnswer },
    Checked { number: u32, ready: Box<Ready>, manifest: Result<Manifest, FilesError> },
    Kept(Option<Box<Kept>>),
    Saved(Option<Hash>),
}

/// A run for which all is there but what its model's files are.
struct Ready {
    model: Rc<Model>,
    source: ModelSource,
    base: Option<String>,
    settings: Settings,
    prepared: Prepared,
    blocks: u16,
    /// What is complete of it already.
    done: Option<KeptSteps>,
    /// The beginning of the texts before and after it.
    prompt: Prompt,
}

/// A text as it was chosen.
struct ChosenText {
    name: String,
    bytes: Vec<u8>,
    mapping: Option<Mapping>,
    dataset: Option<Rc<Dataset>>,
}

type Finished = (u32, HostEngine, Result<Done, EngineError>);

struct Host<C: Channel + 'static, E: Environment, F: FnMut(HostEvent)> {
    coordinator: Coordinator,
    net: Net<C>,
    device: Device,
    cache: AnyCache,
    environment: E,
    inputs: Inputs<C, HostCommand>,
    tell: F,
    model: Option<(Rc<Model>, ModelSource, Option<String>)>,
    model_name: String,
    /// Models chosen so far.
    choices: u32,
    text: Option<ChosenText>,
    settings: Settings,
    /// How a text is cut and split before a run's settings say so.
    preview: Settings,
    /// The engine of the run, while no job has it; counted, so that a job of an earlier run does not bring its own back.
    engine: Option<HostEngine>,
    engines: u32,
    requests: Requests,
    sample_prompt: Prompt,
    /// The pieces of the run's model, for the others.
    shelf: Option<Rc<Shelf>>,
    /// A model's files as they were found, while it is the chosen one.
    manifest: Option<(Rc<Model>, Manifest)>,
    /// A run waits for its model's files to be read.
    checking: bool,
    /// Readings so far; one that was given up is told by its number.
    checks: u32,
    /// The model of the run, which may no longer be the chosen one, and its configuration with the run's head.
    run_model: Option<(Rc<Model>, Option<String>, ModelConfig)>,
    since: Duration,
    told_end: bool,
    jobs: FuturesUnordered<LocalBoxFuture<'static, Finished>>,
    sides: FuturesUnordered<LocalBoxFuture<'static, Side>>,
    /// Questions about files that each peer waits to have answered.
    questions: BTreeMap<PeerId, usize>,
    store: RunStore,
    /// What waits to be written, and whether something is being written.
    saves: VecDeque<Save>,
    saving: bool,
    /// What the run is told by in the store, and how often it was written.
    kept_as: Option<(Hash, u32)>,
    /// A run of before that can be gone on with.
    kept: Option<Box<Kept>>,
    /// It is gone on with as soon as its model is open.
    going_on: Option<Box<Kept>>,
    reports: Vec<(StepReport, Duration)>,
    judgements: Vec<(u32, Judgement)>,
}

/// Runs a host until the queue is closed. `store` keeps its run, for a host that comes back.
#[expect(clippy::too_many_arguments, reason = "a shell has that many things to give, each of its own type")]
pub async fn run_host<C: Channel + 'static>(
    introduction: Introduction,
    device: Device,
    cache: AnyCache,
    store: RunStore,
    environment: impl Environment,
    inputs: Inputs<C, HostCommand>,
    mut queue: UnboundedReceiver<Input<C, HostCommand>>,
    tell: impl FnMut(HostEvent),
) {
    let mut host = Host {
        coordinator: Coordinator::new(introduction, environment.now()),
        net: Net::new(),
        device,
        cache,
        since: environment.now(),
        environment,
        inputs,
        tell,
        model: None,
        model_name: String::new(),
        choices: 0,
        text: None,
        settings: Settings::default(),
        preview: Settings::default(),
        engine: None,
        engines: 0,
        requests: Requests::default(),
        sample_prompt: Prompt::Text(String::new()),
        shelf: None,
        manifest: None,
        checking: false,
        checks: 0,
        run_model: None,
        told_end: false,
        jobs: FuturesUnordered::new(),
        sides: FuturesUnordered::new(),
        questions: BTreeMap::new(),
        store,
        saves: VecDeque::new(),
        saving: false,
        kept_as: None,
        kept: None,
        going_on: None,
        reports: Vec::new(),
        judgements: Vec::new(),
    };
    host.changed();
    let store = host.store.clone();
    host.sides.push(async move { Side::Kept(store.load().await.map(Box::new)) }.boxed_local());
    loop {
        host.drain();
        select_biased! {
            input = queue.next() => match input {
                Some(input) => host.input(input),
                None => return,
            },
            finished = host.jobs.select_next_some() => host.finished(finished),
            side = host.sides.select_next_some() => host.side(side),
        }
    }
}

impl<C: Channel + 'static, E: Environment, F: FnMut(HostEvent)> Host<C, E, F> {
    fn handle(&mut self, event: Event) {
        self.coordinator.handle(event, self.environment.now());
    }

    fn error(&mut self, about: About, message: &impl ToString) {
        (self.tell)(HostEvent::Error { about, message: message.to_string() });
    }

    fn changed(&mut self) {
        let (phase, devices, own) =
            (self.coordinator.phase(), self.coordinator.devices(), self.coordinator.own_part());
        (self.tell)(HostEvent::Changed { phase, devices, own });
    }

    /// Does everything that the machine wants done.
    fn drain(&mut self) {
        let mut changed = false;
        loop {
            for (peer, reason) in std::mem::take(&mut self.net.lost) {
                (self.tell)(HostEvent::Disconnect { peer });
                self.questions.remove(&peer);
                self.handle(Event::Lost { peer, reason });
            }
            let Some(output) = self.coordinator.poll() else { break };
            match output {
                Output::Send { to, message } => self.net.send(to, &message),
                Output::Disconnect { peer } => {
                    self.net.ports.close_peer(peer);
                    (self.tell)(HostEvent::Disconnect { peer });
                }
                Output::Job(job) => self.job(job),
                Output::Committed(report) => {
                    let now = self.environment.now();
                    let time = now.saturating_sub(self.since);
                    self.since = now;
                    self.reports.push((report, time));
                    self.save(Save::Steps);
                    (self.tell)(HostEvent::Committed { report, steps: self.settings.steps, time });
                }
                Output::Loaded => self.loaded(),
                Output::Evaluate { done } => {
                    if !self.judge(done.0) {
                        self.handle(Event::Evaluated);
                    }
                }
                Output::Inferred { request, done } => self.inferred(request, done),
                Output::Left { device, reason } => (self.tell)(HostEvent::Left { device, reason }),
                Output::Changed => changed = true,
            }
        }
        if changed {
            self.changed();
            if self.ended() {
                self.drain();
            }
        }
    }

    fn job(&mut self, job: baton_protocol::coordinator::Job) {
        let Some(mut engine) = self.engine.take() else {
            let reason = "the engine is busy".into();
            return self.handle(Event::JobFailed { reason, failure: Failure::Engine });
        };
        let (environment, inputs, number) = (self.environment.clone(), self.inputs.clone(), self.engines);
        let run = async move {
            let progress = |loaded, total| {
                // The loop that reads it is the one that waits for this job.
                let _ = inputs.unbounded_send(Input::Progress(loaded, total));
            };
            let done = engine.run(job, &environment, progress).await;
            // What came meanwhile is heard before the next job is chosen: a stage may wait for the head.
            environment.breathe().await;
            (number, engine, done)
        };
        self.jobs.push(run.boxed_local());
    }

    fn finished(&mut self, (number, engine, done): Finished) {
        if number == self.engines {
            self.engine = Some(engine);
        }
        self.handle(match done {
            Ok(done) => Event::Done(done),
            Err(error) => Event::JobFailed { reason: error.in_words(), failure: error.failure() },
        });
    }

    fn side(&mut self, side: Side) {
        match side {
            Side::File { peer, id, answer } => {
                if let Some(open) = self.questions.get_mut(&peer) {
                    *open = open.saturating_sub(1);
                }
                self.net.send(peer, &Message::File { id, answer });
            }
            Side::Checked { number, ready, manifest } => {
                // One that was given up was not read in vain.
                if let Ok(manifest) = &manifest {
                    self.manifest = Some((ready.model.clone(), manifest.clone()));
                }
                if number == self.checks {
                    self.checking = false;
                    let begun = manifest.map_err(EngineError::from);
                    if let Err(error) = begun.and_then(|manifest| self.begin(*ready, manifest)) {
                        self.error(About::Model, &error);
                    }
                }
            }
            Side::Kept(kept) => {
                // Not beside a run that has begun meanwhile.
                if self.kept_as.is_none() && self.run_model.is_none() {
                    self.kept = kept;
                    self.tell_kept();
                }
            }
            Side::Saved(run) => {
                self.saving = false;
                if let Some(run) = run {
                    self.kept_as = Some((run, 0));
                }
                self.save_next();
            }
            // The choice that was made last counts, whichever is read first.
            Side::Opened(Opened { number, .. }) if number != self.choices => {}
            Side::Opened(Opened { choice: (source, name, base), model, .. }) => match model {
                Ok(model) => {
                    self.model = Some((model.clone(), source, base));
                    self.model_name.clone_from(&name);
                    (self.tell)(HostEvent::Model { name, model });
                    match self.going_on.take() {
                        Some(kept) => self.go_on_with(kept),
                        None => self.describe_text(),
                    }
                }
                Err(error) => {
                    // It can be tried again.
                    if let Some(kept) = self.going_on.take() {
                        self.kept = Some(kept);
                        self.tell_kept();
                    }
                    self.error(About::Model, &error);
                }
            },
        }
    }

    fn input(&mut self, input: Input<C, HostCommand>) {
        match input {
            Input::Channel { peer, lane, make } => self.net.insert(peer, lane, make),
            Input::Frame { id, bytes } => {
                for arrival in self.net.frame(id, &bytes) {
                    match arrival {
                        Arrival::Linked { peer, lane } => self.handle(Event::Linked { peer, lane }),
                        Arrival::Message { from, message } => self.message(from, message),
                    }
                }
            }
            Input::Writable { id } => self.net.writable(id),
            Input::Closed { id } => self.net.closed(id),
            Input::Gone { peer, reason } => self.net.gone(peer, reason),
            Input::Presence { peer, presence } => self.handle(Event::Presence { peer, presence }),
            Input::Tick => {
                self.net.tick();
                let now = self.environment.now();
                if self.coordinator.poll_timeout() <= now {
                    self.coordinator.handle_timeout(now);
                }
            }
            Input::Progress(loaded, total) if self.checking => {
                (self.tell)(HostEvent::Checking { loaded, total });
            }
            Input::Progress(loaded, total) => self.handle(Event::Progress { loaded, total }),
            Input::Ask(..) | Input::HostReturned(_) => {}
            Input::Command(command) => self.command(command),
        }
    }

    fn message(&mut self, from: PeerId, message: Message) {
        if let (Message::Applied { states, .. }, Some((.., config))) = (&message, &self.run_model)
            && let Err(error) = adapter::check(states, &self.settings, config)
        {
            let reason = "This device sent adapters that cannot be used.".into();
            self.net.send(from, &Message::Goodbye { reason });
            return self.net.gone(from, format!("it sent adapters that cannot be used: {error}"));
        }
        let Message::ChunkRead { id, hash } = message else {
            return self.handle(Event::Message { from, message });
        };
        // A stage asks one question at a time; answers that nobody reads must not pile up.
        let open = self.questions.entry(from).or_default();
        if *open >= MOST_QUESTIONS {
            let answer = FileAnswer::Error("too many questions at once".into());
            return self.net.send(from, &Message::File { id, answer });
        }
        *open += 1;
        let shelf = self.shelf.clone();
        let side = async move {
            let answer = match shelf {
                Some(shelf) => shelf.answer(&hash).await,
                None => FileAnswer::Absent,
            };
            Side::File { peer: from, id, answer }
        };
        self.sides.push(side.boxed_local());
    }

    fn command(&mut self, command: HostCommand) {
        match command {
            HostCommand::SetModel(choice) => {
                let ModelChoice { files, source, name, base } = *choice;
                self.give_check_up();
                self.choices += 1;
                let number = self.choices;
                let open = async move {
                    let model = Model::open(files).await;
                    Side::Opened(Opened { number, choice: (source, name, base), model })
                };
                self.sides.push(open.boxed_local());
            }
            HostCommand::SetText(name, bytes) => match dataset::inspect(&name, &bytes) {
                Ok(inspection) => {
                    let mapping = inspection.mapping.clone();
                    self.text = Some(ChosenText { name, bytes, mapping: None, dataset: None });
                    (self.tell)(HostEvent::Inspected(Box::new(inspection)));
                    self.map_text(&mapping);
                }
                Err(error) => self.error(About::Text, &error),
            },
            HostCommand::MapText(mapping) => self.map_text(&mapping),
            HostCommand::Preview(settings) => match settings.validate() {
                Ok(()) => {
                    self.preview = *settings;
                    self.describe_text();
                }
                Err(error) => self.error(About::Settings, &error),
            },
            HostCommand::Start(settings) => {
                if let Err((about, message)) = self.start(*settings, None) {
                    self.error(about, &message);
                }
            }
            HostCommand::GoOn => self.go_on(),
            HostCommand::Forget => {
                self.kept = None;
                self.save(Save::Forget);
                self.tell_kept();
            }
            HostCommand::Pause => self.handle(Event::Pause),
            HostCommand::Resume => {
                self.since = self.environment.now();
                self.handle(Event::Resume);
            }
            HostCommand::Stop => {
                self.give_check_up();
                self.handle(Event::Stop);
            }
            HostCommand::Generate(request, text) => {
                if let Err(error) = self.generate(request, &text) {
                    self.error(About::Generate, &error);
                }
            }
            HostCommand::GetAdapter => match self.adapter() {
                Ok(zip) => (self.tell)(HostEvent::Adapter { zip, step: self.coordinator.committed() }),
                Err(error) => self.error(About::Run, &error),
            },
            HostCommand::Remove(peer) => self.handle(Event::Remove { peer }),
        }
    }

    fn map_text(&mut self, mapping: &Mapping) {
        let Some(text) = &mut self.text else { return };
        match dataset::parse_with(&text.name, &text.bytes, mapping) {
            Ok(dataset) => {
                text.dataset = Some(Rc::new(dataset));
                text.mapping = Some(mapping.clone());
                self.describe_text();
            }
            Err(error) => {
                text.dataset = None;
                self.error(About::Text, &error);
            }
        }
    }

    /// The text can only be counted in tokens once the model is there.
    fn describe_text(&mut self) {
        let Some((name, dataset)) =
            self.text.as_ref().and_then(|text| Some((text.name.clone(), text.dataset.clone()?)))
        else {
            return;
        };
        let Some((model, ..)) = &self.model else { return };
        match model.prepare(&dataset, None, &self.preview) {
            Ok(prepared) => {
                let train = &prepared.train;
                let first = dataset.samples.first();
                let segments = first.and_then(|sample| sample.segments(model.template.as_ref()).ok());
                let beginning: String =
                    segments.iter().flat_map(|parts| parts.iter()).map(|part| part.text.as_str()).collect();
                let event = HostEvent::Text {
                    name,
                    samples: train.examples.len(),
                    skipped: dataset.skipped + train.dropped + train.refused,
                    tokens: train.examples.iter().map(|example| example.ids.len() as u64).sum(),
                    truncated: train.truncated_tokens,
                    truncated_samples: train.truncated_samples,
                    lengths: train.lengths.clone(),
                    seq_len: model.seq_len(&self.preview),
                    settings: Box::new(self.preview.clone()),
                    validation: prepared.validation.len(),
                    labels: if model.config.is_encoder() { classes(&dataset) } else { Vec::new() },
                    refusal: train.refusal.clone(),
                    beginning: beginning.chars().take(200).collect(),
                };
                (self.tell)(event);
            }
            Err(error) => self.error(About::Text, &error),
        }
    }

    fn tell_kept(&mut self) {
        let summary = self.kept.as_ref().and_then(|kept| {
            let (run, done, _) = &**kept;
            let (_, settings) = run.choices()?;
            Some(KeptSummary {
                model: run.model.clone(),
                text: run.text.clone(),
                done: done.committed.0,
                steps: settings.steps,
                needs_files: run.address.is_none(),
            })
        });
        (self.tell)(HostEvent::Kept(summary));
    }

    /// Goes on with the run that is kept: first its model is opened, where that can be done without a person.
    fn go_on(&mut self) {
        let Some(kept) = self.kept.take() else { return };
        let (run, ..) = &*kept;
        let Some(address) = &run.address else {
            let same = self.model.as_ref().is_some_and(|(model, ..)| model.config_text == run.config);
            if same {
                return self.go_on_with(kept);
            }
            let message =
                format!("Choose the files of “{}” again first, then go on with the run.", run.model);
            self.kept = Some(kept);
            return self.error(About::Model, &message);
        };
        match UrlFiles::new(address) {
            Ok(files) => {
                let (name, base, source) = (run.model.clone(), run.base.clone(), run.source.clone());
                self.going_on = Some(kept);
                let choice = ModelChoice { files: AnyFiles::Url(files), source, name, base };
                self.command(HostCommand::SetModel(Box::new(choice)));
            }
            Err(error) => {
                self.kept = Some(kept);
                self.error(About::Model, &error);
            }
        }
    }

    fn go_on_with(&mut self, kept: Box<Kept>) {
        let begun = self.try_to_go_on(&kept);
        if let Err((about, message)) = begun {
            self.kept = Some(kept);
            self.tell_kept();
            self.error(about, &message);
        } else {
            self.tell_kept();
        }
    }

    fn try_to_go_on(&mut self, kept: &Kept) -> Result<(), (About, String)> {
        let (run, done, hash) = kept;
        let other = || "It was kept by another version of this page.".to_owned();
        let (mapping, settings) = run.choices().ok_or_else(|| (About::Run, other()))?;
        let inspection =
            dataset::inspect(&run.text, &run.bytes).map_err(|error| (About::Text, error.to_string()))?;
        let text =
            ChosenText { name: run.text.clone(), bytes: run.bytes.clone(), mapping: None, dataset: None };
        self.text = Some(text);
        self.preview = settings.clone();
        (self.tell)(HostEvent::Inspected(Box::new(inspection)));
        self.map_text(&mapping);
        self.start(settings, Some(done.clone()))?;
        self.kept_as = Some((*hash, 0));
        Ok(())
    }

    /// Has something written to the store. Steps that wait to be written are written once, as they are then.
    fn save(&mut self, save: Save) {
        if !(matches!(save, Save::Steps) && matches!(self.saves.back(), Some(Save::Steps))) {
            self.saves.push_back(save);
        }
        self.save_next();
    }

    fn save_next(&mut self) {
        if self.saving {
            return;
        }
        let Some(save) = self.saves.pop_front() else { return };
        let store = self.store.clone();
        let writing = match save {
            Save::Run(run) => async move { Side::Saved(store.begin(&run).await) }.boxed_local(),
            Save::Forget => {
                self.kept_as = None;
                async move {
                    store.forget().await;
                    Side::Saved(None)
                }
                .boxed_local()
            }
            Save::Steps => {
                // A run that could not be kept has no steps to keep.
                let Some((run, turn)) = &mut self.kept_as else { return self.save_next() };
                let (run, now) = (*run, *turn);
                *turn = turn.wrapping_add(1);
                let (committed, states) = (self.coordinator.committed(), self.coordinator.states());
                let steps = EncodedSteps::new(run, committed, states, &self.reports, &self.judgements);
                async move {
                    if let Some(steps) = steps {
                        store.keep(steps, now).await;
                    }
                    Side::Saved(None)
                }
                .boxed_local()
            }
        };
        self.saving = true;
        self.sides.push(writing);
    }

    /// What is to be kept of a run that begins.
    fn to_keep(&self, ready: &Ready) -> Option<KeptRun> {
        let text = self.text.as_ref()?;
        let address = match &ready.model.files {
            AnyFiles::Url(files) => Some(files.pinned_base()),
            _ => None,
        };
        let config = ready.model.config_text.clone();
        let bytes = (text.name.clone(), text.bytes.clone());
        let (base, source) = (ready.base.clone(), ready.source.clone());
        let mapping = text.mapping.as_ref()?;
        KeptRun::new(self.model_name.clone(), base, source, address, config, bytes, mapping, &ready.settings)
    }

    fn start(&mut self, settings: Settings, done: Option<KeptSteps>) -> Result<(), (About, String)> {
        let said = |about: About| move |error: EngineError| (about, error.to_string());
        settings.validate().map_err(|error| (About::Settings, error.to_string()))?;
        let running = matches!(
            self.coordinator.phase(),
            RunPhase::Loading | RunPhase::Loaded | RunPhase::Running | RunPhase::Paused(_)
        );
        if running || self.checking {
            return Err((About::Run, "A run is under way: stop it before you start another.".into()));
        }
        let (model, source, base) =
            self.model.clone().ok_or((About::Model, "Choose a model first.".to_owned()))?;
        model.config.targets(&settings.targets).map_err(|error| (About::Settings, error.to_string()))?;
        let text = self.text.as_ref().and_then(|text| text.dataset.clone());
        let dataset = text.ok_or((About::Text, "Choose a text first.".to_owned()))?;
        let prepared = model.prepare(&dataset, None, &settings).map_err(said(About::Text))?;
        let blocks = u16::try_from(model.config.num_hidden_layers)
            .map_err(|_| (About::Model, "The model has too many blocks.".to_owned()))?;
        // What a sample reads before it is trained is the natural beginning; otherwise the begin token is.
        let first = dataset.samples.first();
        let segments = first.and_then(|sample| sample.segments(model.template.as_ref()).ok());
        let templated = model.template.is_some()
            && first.is_some_and(|s| matches!(s.body, SampleBody::Chat(_) | SampleBody::Task { .. }));
        let prompt = match segments.as_deref().and_then(<[_]>::first) {
            Some(segment) if !segment.train && templated => Prompt::Templated(segment.text.clone()),
            Some(segment) if !segment.train => Prompt::Text(segment.text.clone()),
            Some(segment) if model.config.bos_token_id.is_none() => {
                Prompt::Text(segment.text.split_whitespace().next().unwrap_or_default().into())
            }
            _ => Prompt::Text(String::new()),
        };
        let ready = Ready { model, source, base, settings, prepared, blocks, done, prompt };
        match self.manifest_of(&ready.model) {
            Some(manifest) => self.begin(ready, manifest).map_err(said(About::Model)),
            None => {
                self.check(ready);
                Ok(())
            }
        }
    }

    /// Begins a run whose model's files are known.
    fn begin(&mut self, ready: Ready, manifest: Manifest) -> Result<(), EngineError> {
        if ready.done.is_none() {
            self.kept = None;
            self.kept_as = None;
            match self.to_keep(&ready) {
                Some(run) => self.save(Save::Run(Box::new(run))),
                None => self.save(Save::Forget),
            }
            self.tell_kept();
        }
        let Ready { model, source, base, settings, prepared, blocks, done, prompt } = ready;
        let KeptSteps { committed, states, reports, judged } = done.unwrap_or_default();
        let own = head_block(&prepared.config);
        let of_blocks: Vec<_> = states.iter().filter(|state| state.block != own).cloned().collect();
        adapter::check(&of_blocks, &settings, &prepared.config)?;
        // A branch may move on: the stages read the commit that the host has read.
        let source = match (&model.files, source) {
            (AnyFiles::Url(files), ModelSource::Url(_)) => ModelSource::Url(files.pinned_base()),
            (_, source) => source,
        };
        let run_config = prepared.config.clone();
        let (device, requests) = (self.device.clone(), self.requests.clone());
        let mut engine = HostEngine::new(device, model.clone(), prepared, settings.clone(), requests);
        let cache = self.cache_for(&model);
        let bytes = manifest_bytes(&manifest);
        engine.check_files(manifest.clone(), cache.clone())?;
        self.shelf = Some(Rc::new(Shelf::new(model.clone(), manifest, cache)));
        let head = engine.trains_head();
        self.engines += 1;
        self.engine = Some(engine);
        self.told_end = false;
        self.sample_prompt = prompt;
        let config = model.config_text.clone();
        let profile = Some(model_profile(&run_config, &settings)?);
        self.run_model = Some((model, base, run_config));
        self.settings = settings.clone();
        for (report, time) in &reports {
            let (report, time) = (*report, *time);
            (self.tell)(HostEvent::Committed { report, steps: settings.steps, time });
        }
        for (done, judgement) in &judged {
            (self.tell)(HostEvent::Judged { done: *done, judgement: *judgement });
        }
        (self.reports, self.judgements) = (reports, judged);
        let start = Start {
            settings,
            blocks,
            source,
            config,
            manifest: bytes,
            profile,
            committed,
            secret: self.environment.secret(),
            judged: self.judgements.last().is_some_and(|(done, _)| *done == committed.0),
            states,
            head,
        };
        self.handle(Event::Start(Box::new(start)));
        Ok(())
    }

    /// What is on this machine already is not kept a second time.
    fn cache_for(&self, model: &Model) -> AnyCache {
        match model.files {
            AnyFiles::Url(_) => self.cache.clone(),
            _ => AnyCache::None,
        }
    }

    /// The run that waits for its model's files to be read is not wanted any more.
    fn give_check_up(&mut self) {
        if std::mem::take(&mut self.checking) {
            self.checks += 1;
            self.changed();
        }
    }

    /// What the model's files are, if they were read already.
    fn manifest_of(&self, model: &Rc<Model>) -> Option<Manifest> {
        let known = self.manifest.as_ref().filter(|(known, _)| Rc::ptr_eq(known, model));
        known.map(|(_, manifest)| manifest.clone())
    }

    /// Reads all of the model's files once; the run starts after it.
    fn check(&mut self, ready: Ready) {
        self.checking = true;
        self.checks += 1;
        let number = self.checks;
        let (cache, inputs, environment) =
            (self.cache_for(&ready.model), self.inputs.clone(), self.environment.clone());
        let check = async move {
            let model = &ready.model;
            let total = model.weight_files.iter().map(|(_, size)| size).sum();
            let names: Vec<String> = model.weight_files.iter().map(|(name, _)| name.clone()).collect();
            environment.breathe().await;
            let mut loaded = 0;
            let on_bytes = |bytes| {
                loaded += bytes;
                // The loop that reads it is the one that waits for this.
                let _ = inputs.unbounded_send(Input::Progress(loaded, total));
            };
            // Only a commit of a hub means the same bytes the next time.
            let key = match &model.files {
                AnyFiles::Url(files) => files.identity().await.ok().flatten(),
                _ => None,
            };
            let manifest = Manifest::make_once(&model.files, &names, &cache, key.as_ref(), on_bytes).await;
            Side::Checked { number, ready: Box::new(ready), manifest }
        };
        self.sides.push(check.boxed_local());
    }

    /// Begins to judge the model as it is after `done` steps; false if there is nothing to judge by.
    fn judge(&mut self, done: u32) -> bool {
        let requests = self.requests.evaluation.borrow_mut().begin(done);
        for request in requests.clone() {
            self.handle(Event::Infer { request });
        }
        !requests.is_empty()
    }

    /// A pass that judges is over.
    fn judged(&mut self, request: u32) {
        let Some((done, judgement)) = self.requests.evaluation.borrow_mut().over(request) else { return };
        match judgement {
            Some(judgement) => {
                self.judgements.push((done, judgement));
                self.save(Save::Steps);
                (self.tell)(HostEvent::Judged { done, judgement });
            }
            None => {
                let message =
                    format!("The model could not be judged after {done} steps; the training goes on.");
                self.error(About::Run, &message);
            }
        }
        // The time of a step is that of its training.
        self.since = self.environment.now();
        self.handle(Event::Evaluated);
    }

    fn generate(&mut self, request: u32, text: &TextRequest) -> Result<(), EngineError> {
        let (model, ..) = self.run_model.as_ref().ok_or(EngineError::NotLoaded)?;
        let text = Text::begin(model, text)?;
        self.requests.texts.borrow_mut().insert(request, text);
        self.handle(Event::Infer { request });
        Ok(())
    }

    fn sample(&mut self, request: u32) -> bool {
        let tokens = self.settings.sample_tokens;
        let text = TextRequest { prompt: self.sample_prompt.clone(), tokens, temperature: 0.0, seed: 0 };
        tokens > 0 && self.generate(request, &text).is_ok()
    }

    fn go(&mut self) {
        self.since = self.environment.now();
        self.handle(Event::Resume);
    }

    fn loaded(&mut self) {
        // The plan may have changed while the text before was being written: it goes on by itself.
        if self.requests.texts.borrow().get(BEFORE).is_some() {
            return;
        }
        // What the model wrote before a run that goes on was told then.
        if self.coordinator.committed().0 > 0 || !self.sample(BEFORE) {
            self.go();
        }
    }

    /// Whether the text after the run has just been begun.
    fn ended(&mut self) -> bool {
        let ended = matches!(self.coordinator.phase(), RunPhase::Finished | RunPhase::Stopped);
        ended
            && !std::mem::replace(&mut self.told_end, ended)
            && self.coordinator.committed().0 > 0
            && self.sample(AFTER)
    }

    fn inferred(&mut self, request: u32, done: bool) {
        if Evaluation::is_request(request) {
            return self.judged(request);
        }
        let Some((model, ..)) = self.run_model.clone() else { return };
        let read = |text: &Text| Ok::<_, EngineError>((text.decode_prompt(&model)?, text.decode(&model)?));
        let text = self.requests.texts.borrow().get(request).map(read);
        match text {
            Some(Ok((prompt, text))) => match request {
                BEFORE | AFTER if done => {
                    (self.tell)(HostEvent::Sample { after: request == AFTER, prompt, text });
                }
                BEFORE | AFTER => {}
                request => (self.tell)(HostEvent::Generated { request, text, done }),
            },
            Some(Err(error)) => self.error(About::Generate, &error),
            None => {}
        }
        if !done {
            return self.handle(Event::Infer { request });
        }
        self.requests.texts.borrow_mut().remove(request);
        if request == BEFORE && self.coordinator.phase() == RunPhase::Loaded {
            self.go();
        }
    }

    fn adapter(&self) -> Result<Vec<u8>, EngineError> {
        let (_, base, config) = self.run_model.as_ref().ok_or(EngineError::NoStep)?;
        let states = self.coordinator.states();
        let adapter = adapter::from_states(states, &self.settings, config, base.clone())?;
        adapter::to_zip(&adapter, config)
    }
}

/// The classes of a data set, and how many of its samples have each.
fn classes(dataset: &Dataset) -> Vec<(String, usize)> {
    let mut classes: Vec<_> = dataset.labels.iter().map(|name| (name.clone(), 0)).collect();
    for sample in &dataset.samples {
        if let Some(Label::Class(class)) = sample.label
            && let Some((_, count)) = usize::try_from(class).ok().and_then(|class| classes.get_mut(class))
        {
            *count += 1;
        }
    }
    classes
}
