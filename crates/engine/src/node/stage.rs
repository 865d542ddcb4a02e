//! The loop of a stage.

use super::files::{MOST_QUESTIONS, Offer, Questions, StageSource, manifest};
use super::{Environment, Input, Inputs, Net};
use crate::cache::AnyCache;
use crate::error::EngineError;
use crate::stage::{StageEngine, fetch};
use baton_formats::files::FilesSource;
use baton_formats::{ChunkCache, FilesError, ModelConfig, UrlFiles, VerifiedFiles};
use baton_model::Device;
use baton_protocol::PeerId;
use baton_protocol::link::Lane;
use baton_protocol::message::{Assign, Device as Introduction, FileAnswer, Message};
use baton_protocol::run::ModelSource;
use baton_protocol::stage::{Done, Event, Failure, Job, Output, Stage, View};
use baton_transport::{Arrival, Channel};
use futures::channel::mpsc::UnboundedReceiver;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, select_biased};
use std::cell::RefCell;
use std::collections::BTreeMap;
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

/// How the loop of a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageEnd {
    /// The owner left, or the host let this device go.
    Over,
    /// The host was lost: it is worth coming back.
    HostLost,
}

/// The files that an assignment names, checked piece by piece.
type StageFiles<C> = VerifiedFiles<StageSource<C, StageCommand>, AnyCache>;

type Finished = (StageEngine, Result<Done, EngineError>);

/// Runs a stage until it has ended and its last message is handed to its channel. `embedded` is the URL of the model
/// that ships with the page, unless that cannot be read here; `cache` keeps what is fetched, for the next time and for the neighbours.
#[expect(clippy::too_many_arguments, reason = "a shell has that many things to give, each of its own type")]
pub async fn run_stage<C: Channel + 'static>(
    host: PeerId,
    introduction: Introduction,
    device: Device,
    embedded: Option<String>,
    cache: AnyCache,
    environment: impl Environment,
    inputs: Inputs<C, StageCommand>,
    mut queue: UnboundedReceiver<Input<C, StageCommand>>,
    mut tell: impl FnMut(StageEvent),
) -> StageEnd {
    let mut host = host;
    let mut end = StageEnd::Over;
    let mut stage = Stage::new(host, introduction, environment.now()).with_patience(environment.patience());
    let mut net = Net::new();
    let mut engine = Some(StageEngine::new(device));
    let mut jobs: FuturesUnordered<LocalBoxFuture<'_, Finished>> = FuturesUnordered::new();
    let questions = Rc::new(RefCell::new(Questions::default()));
    let mut fetches: FuturesUnordered<LocalBoxFuture<'_, Range<u16>>> = FuturesUnordered::new();
    // Questions of others, and how many each has open.
    let mut answers: FuturesUnordered<LocalBoxFuture<'_, (PeerId, Message)>> = FuturesUnordered::new();
    let mut asked: BTreeMap<PeerId, usize> = BTreeMap::new();
    let mut offer = Offer::default();
    loop {
        let mut changed = false;
        loop {
            for (peer, reason) in std::mem::take(&mut net.lost) {
                questions.borrow_mut().lost(peer);
                asked.remove(&peer);
                let was_over = is_over(&stage);
                stage.handle(Event::Lost { peer, reason }, environment.now());
                if peer == host && !was_over && is_over(&stage) {
                    end = StageEnd::HostLost;
                }
            }
            let Some(output) = stage.poll() else { break };
            match output {
                Output::Send { to, message } => net.send(to, &message),
                Output::Connect { peer } => tell(StageEvent::Connect { peer }),
                Output::Changed => changed = true,
                Output::Job(job) => match engine.take() {
                    Some(mut engine) => {
                        let (environment, inputs) = (environment.clone(), inputs.clone());
                        let files = open(&job, host, embedded.as_deref(), &cache, &inputs, &questions);
                        jobs.push(
                            async move {
                                let progress = |loaded, total| {
                                    // The loop that reads it is the one that waits for this job.
                                    let _ = inputs.unbounded_send(Input::Progress(loaded, total));
                                };
                                let done = match files.transpose() {
                                    Ok(files) => {
                                        engine.run(job, files.as_ref(), &environment, progress).await
                                    }
                                    Err(error) => Err(error),
                                };
                                // What came meanwhile is heard before the next job is chosen.
                                environment.breathe().await;
                                (engine, done)
                            }
                            .boxed_local(),
                        );
                    }
                    None => stage.handle(
                        Event::JobFailed { reason: "the engine is busy".into(), failure: Failure::Engine },
                        environment.now(),
                    ),
                },
                Output::Fetch(assign) => {
                    let own = stage.assign().map_or(0..0, |own| own.blocks.clone());
                    let files = files(&assign, host, embedded.as_deref(), &cache, &inputs, &questions);
                    let worth = !matches!(cache, AnyCache::None);
                    // The one before is not wanted any more.
                    fetches.clear();
                    fetches.push(
                        async move {
                            // Best effort: what is not there then is fetched when it is loaded.
                            if let (Ok(files), true) = (files, worth) {
                                let _ = fetch(&assign, own, &files).await;
                            }
                            assign.blocks.clone()
                        }
                        .boxed_local(),
                    );
                }
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
            environment.holding(0).await;
            return end;
        }
        let now = || environment.now();
        select_biased! {
            input = queue.select_next_some() => match input {
                Input::Channel { peer, lane, make } => net.insert(peer, lane, make),
                Input::Frame { id, bytes } => for arrival in net.frame(id, &bytes) {
                    match arrival {
                        Arrival::Linked { peer, lane } => {
                            if lane == Lane::Bulk {
                                questions.borrow_mut().linked(peer);
                            }
                            stage.handle(Event::Linked { peer, lane }, now());
                        }
                        Arrival::Message { from, message: Message::File { id, answer } } => {
                            questions.borrow_mut().answer(from, id, answer);
                        }
                        Arrival::Message { from, message: Message::ChunkRead { id, hash } } => {
                            if !offer.has(stage.assign(), &hash) {
                                net.send(from, &Message::File { id, answer: FileAnswer::Absent });
                                continue;
                            }
                            let open = asked.entry(from).or_default();
                            if *open >= MOST_QUESTIONS {
                                let answer = FileAnswer::Error("too many questions at once".into());
                                net.send(from, &Message::File { id, answer });
                                continue;
                            }
                            *open += 1;
                            let cache = cache.clone();
                            let answer = async move {
                                let bytes = cache.get(&hash).await;
                                let answer = bytes.map_or(FileAnswer::Absent, FileAnswer::Bytes);
                                (from, Message::File { id, answer })
                            };
                            answers.push(answer.boxed_local());
                        }
                        Arrival::Message { from, message } => {
                            stage.handle(Event::Message { from, message }, now());
                        }
                    }
                },
                Input::Writable { id } => net.writable(id),
                Input::Closed { id } => net.closed(id),
                Input::Gone { peer, reason } => net.gone(peer, reason),
                Input::Presence { peer, presence } if peer == host => {
                    stage.handle(Event::Presence(presence), now());
                }
                Input::Presence { .. } => {}
                Input::HostReturned(returned) => {
                    // What was asked of the host before is asked of nobody now.
                    questions.borrow_mut().lost(host);
                    host = returned;
                    stage.handle(Event::HostReturned { host }, now());
                }
                Input::Tick => {
                    net.tick();
                    questions.borrow_mut().tick(host);
                    if stage.poll_timeout().is_some_and(|at| at <= now()) {
                        stage.handle_timeout(now());
                        // Time alone ends a stage only if the host is silent.
                        if is_over(&stage) {
                            end = StageEnd::HostLost;
                        }
                    }
                }
                Input::Command(StageCommand::Leave) => stage.handle(Event::Leave, now()),
                Input::Progress(loaded, total) => stage.handle(Event::Progress { loaded, total }, now()),
                Input::Ask(peer, message) => net.send(peer, &message),
            },
            blocks = fetches.select_next_some() => stage.handle(Event::Fetched { blocks }, now()),
            (peer, answer) = answers.select_next_some() => {
                if let Some(open) = asked.get_mut(&peer) {
                    *open = open.saturating_sub(1);
                    net.send(peer, &answer);
                }
            }
            (back, done) = jobs.select_next_some() => {
                engine = Some(back);
                stage.handle(match done {
                    Ok(done) => Event::Done(done),
                    Err(error) => Event::JobFailed { reason: error.to_string(), failure: error.failure() },
                }, now());
            }
        }
    }
}

fn is_over(stage: &Stage) -> bool {
    matches!(stage.view(), View::Ended(_))
}

/// The files for a job that loads blocks: from its neighbours, the host, and the hub where there is one; the model that
/// ships with the page is nearer than any of them.
fn open<C>(
    job: &Job,
    host: PeerId,
    embedded: Option<&str>,
    cache: &AnyCache,
    inputs: &Inputs<C, StageCommand>,
    questions: &Rc<RefCell<Questions>>,
) -> Option<Result<StageFiles<C>, EngineError>> {
    let Job::Load(assign) = job else { return None };
    Some(files(assign, host, embedded, cache, inputs, questions))
}

/// The files that an assignment names.
fn files<C>(
    assign: &Assign,
    host: PeerId,
    embedded: Option<&str>,
    cache: &AnyCache,
    inputs: &Inputs<C, StageCommand>,
    questions: &Rc<RefCell<Questions>>,
) -> Result<StageFiles<C>, EngineError> {
    let manifest = manifest(&assign.manifest)?;
    let peer =
        |peer: PeerId| StageSource::Peer { peer, inputs: inputs.clone(), questions: questions.clone() };
    let url = |address: &str| {
        let files = UrlFiles::new(address)?;
        Ok::<_, FilesError>(StageSource::Url(Box::new(FilesSource::new(files, &manifest))))
    };
    // The host stands at both ends of the ring under a number of its own.
    let neighbours = [assign.prev, assign.next].into_iter().filter(|id| *id != PeerId::HOST && *id != host);
    let mut sources: Vec<_> = match &assign.source {
        ModelSource::Embedded => embedded.map(url).transpose()?.into_iter().collect(),
        ModelSource::Url(_) | ModelSource::Host => neighbours.map(peer).collect(),
    };
    sources.push(peer(host));
    if let ModelSource::Url(address) = &assign.source {
        sources.push(url(address)?);
    }
    Ok(VerifiedFiles::new(manifest.clone(), sources, cache.clone())?)
}
