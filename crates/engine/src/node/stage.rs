//! The loop of a stage.

use super::files::{HostFiles, Questions};
use super::{Environment, Input, Inputs, Net};
use crate::error::EngineError;
use crate::stage::StageEngine;
use baton_formats::{Files, FilesError, ModelConfig, UrlFiles};
use baton_model::Device;
use baton_protocol::PeerId;
use baton_protocol::message::{Device as Introduction, Message};
use baton_protocol::run::ModelSource;
use baton_protocol::stage::{Done, Event, Job, Output, Stage, View};
use baton_transport::{Arrival, Channel};
use futures::channel::mpsc::UnboundedReceiver;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, select};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// What the owner of a stage wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageCommand {
    /// Leave the room.
    Leave,
}

/// What the owner of a stage is told.
#[derive(Clone, Debug, PartialEq)]
pub enum StageEvent {
    /// A bulk connection to a neighbour is wanted; this side makes the offer.
    Connect {
        /// To whom.
        peer: PeerId,
    },
    /// What there is to see has changed.
    Changed {
        /// What it does.
        view: View,
        /// Its blocks.
        blocks: Option<Range<u16>>,
        /// Its place among how many.
        place: Option<(u16, u16)>,
        /// Blocks of the whole model.
        model_blocks: Option<usize>,
        /// Steps in which it took part.
        steps_done: u32,
    },
}

/// The files that an assignment names.
enum StageFiles<C> {
    Url(UrlFiles),
    Host(HostFiles<C, StageCommand>),
}

impl<C> Files for StageFiles<C> {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        match self {
            Self::Url(files) => files.size(name).await,
            Self::Host(files) => files.size(name).await,
        }
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        match self {
            Self::Url(files) => files.read(name, range).await,
            Self::Host(files) => files.read(name, range).await,
        }
    }

    fn weights_file(&self) -> Option<String> {
        match self {
            Self::Url(files) => files.weights_file(),
            Self::Host(files) => files.weights_file(),
        }
    }
}

type Finished = (StageEngine, Result<Done, EngineError>);

/// Runs a stage until it has ended and its last message is handed to its channel. `embedded` is the URL of the model
/// that ships with the page.
#[expect(clippy::too_many_arguments, reason = "a shell has that many things to give, each of its own type")]
pub async fn run_stage<C: Channel + 'static>(
    host: PeerId,
    introduction: Introduction,
    device: Device,
    embedded: String,
    environment: impl Environment,
    inputs: Inputs<C, StageCommand>,
    mut queue: UnboundedReceiver<Input<C, StageCommand>>,
    mut tell: impl FnMut(StageEvent),
) {
    let mut stage = Stage::new(host, introduction, environment.now());
    let mut net = Net::new();
    let mut engine = Some(StageEngine::new(device));
    let mut jobs: FuturesUnordered<LocalBoxFuture<'_, Finished>> = FuturesUnordered::new();
    let questions = Rc::new(RefCell::new(Questions::default()));
    loop {
        let mut changed = false;
        loop {
            for (peer, reason) in std::mem::take(&mut net.lost) {
                if peer == host {
                    questions.borrow_mut().give_up();
                }
                stage.handle(Event::Lost { peer, reason }, environment.now());
            }
            let Some(output) = stage.poll() else { break };
            match output {
                Output::Send { to, message } => net.send(to, &message),
                Output::Connect { peer } => tell(StageEvent::Connect { peer }),
                Output::Changed => changed = true,
                Output::Job(job) => match engine.take() {
                    Some(mut engine) => {
                        let (environment, inputs) = (environment.clone(), inputs.clone());
                        let files = open(&job, &embedded, &inputs, &questions);
                        jobs.push(
                            async move {
                                environment.breathe().await;
                                let progress = |loaded, total| {
                                    // The loop that reads it is the one that waits for this job.
                                    let _ = inputs.unbounded_send(Input::Progress(loaded, total));
                                };
                                let done = match files.transpose() {
                                    Ok(files) => engine.run(job, files.as_ref(), progress).await,
                                    Err(error) => Err(error.into()),
                                };
                                (engine, done)
                            }
                            .boxed_local(),
                        );
                    }
                    None => stage.handle(
                        Event::JobFailed { reason: "the engine is busy".into(), diverged: false },
                        environment.now(),
                    ),
                },
            }
        }
        let view = stage.view();
        if changed {
            let assign = stage.assign();
            tell(StageEvent::Changed {
                view: view.clone(),
                blocks: assign.map(|assign| assign.blocks.clone()),
                place: assign.map(|assign| (assign.stage.0, assign.stages)),
                model_blocks: assign
                    .and_then(|assign| ModelConfig::parse(assign.config.as_bytes()).ok())
                    .map(|config| config.num_hidden_layers),
                steps_done: stage.steps_done(),
            });
        }
        if matches!(view, View::Ended(_)) {
            return;
        }
        let now = || environment.now();
        select! {
            input = queue.select_next_some() => match input {
                Input::Channel { peer, lane, make } => net.insert(peer, lane, make),
                Input::Frame { id, bytes } => for arrival in net.frame(id, &bytes) {
                    match arrival {
                        Arrival::Linked { peer, lane } => {
                            stage.handle(Event::Linked { peer, lane }, now());
                        }
                        Arrival::Message { from, message: Message::File { id, answer } } if from == host => {
                            questions.borrow_mut().answer(id, answer);
                        }
                        Arrival::Message { from, message } => {
                            stage.handle(Event::Message { from, message }, now());
                        }
                    }
                },
                Input::Writable { id } => net.writable(id),
                Input::Closed { id } => net.closed(id),
                Input::Gone { peer, reason } => net.gone(peer, reason),
                Input::Tick => {
                    net.tick();
                    if stage.poll_timeout().is_some_and(|at| at <= now()) {
                        stage.handle_timeout(now());
                    }
                }
                Input::Command(StageCommand::Leave) => stage.handle(Event::Leave, now()),
                Input::Progress(loaded, total) => stage.handle(Event::Progress { loaded, total }, now()),
                Input::Ask(message) => net.send(host, &message),
            },
            (back, done) = jobs.select_next_some() => {
                engine = Some(back);
                stage.handle(match done {
                    Ok(done) => Event::Done(done),
                    Err(error) => Event::JobFailed { reason: error.to_string(), diverged: error.is_divergence() },
                }, now());
            }
        }
    }
}

/// The files for a job that loads blocks.
fn open<C>(
    job: &Job,
    embedded: &str,
    inputs: &Inputs<C, StageCommand>,
    questions: &Rc<RefCell<Questions>>,
) -> Option<Result<StageFiles<C>, FilesError>> {
    let Job::Load(assign) = job else { return None };
    Some(match &assign.source {
        ModelSource::Embedded => UrlFiles::new(embedded).map(StageFiles::Url),
        ModelSource::Url(url) => UrlFiles::new(url).map(StageFiles::Url),
        ModelSource::Host => {
            Ok(StageFiles::Host(HostFiles { inputs: inputs.clone(), questions: questions.clone() }))
        }
    })
}
