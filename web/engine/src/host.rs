//! A worker that is a host: the page's words as commands, the node's events as words for the page.

use crate::channel::RtcChannel;
use crate::{WorkerEnvironment, feed, post};
use baton_engine::cache::AnyCache;
use baton_engine::evaluate::Judgement;
use baton_engine::kept::RunStore;
use baton_engine::node::{self, About, HostCommand, HostEvent, Input, Inputs};
use baton_engine::source::AnyFiles;
use baton_engine::source::backbone_storage;
use baton_engine::texts::{Prompt, TextRequest};
use baton_formats::files::OpfsCache;
use baton_formats::{BlobFiles, ModelConfig, UrlFiles, layout};
use baton_model::{Device, end_bytes, frozen_bytes};
use baton_protocol::coordinator::{DeviceView, RunPhase};
use baton_protocol::message::Device as Introduction;
use baton_protocol::pulse::Presence;
use baton_protocol::run::{Backbone, ModelSource};
use baton_web_api as api;
use baton_web_api::{
    DeviceFacts, DeviceInfo, DeviceState, ErrorAbout, FromWorker, ModelChoice, ToWorker, Visit,
};
use js_sys::{Array, Uint8Array};
use std::ops::Range;
use std::rc::Rc;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::File;

/// Where the built-in model lies in Baton's repository: it is on no hub.
const BUILT_IN: &str = "static/model";

/// The folder of the run that can be gone on with; the button that clears the models leaves it alone.
const RUN_FOLDER: &str = "baton-run";

/// Starts the host's loop.
pub(crate) fn start(
    name: String,
    visit: Visit,
    backend: &str,
    device: Device,
) -> Inputs<RtcChannel, HostCommand> {
    let (inputs, queue) = node::queue();
    let introduction = Introduction { name, backend: backend.into() };
    let own = introduction.clone();
    let tell = move |event| tell(&own, event);
    let loop_inputs = inputs.clone();
    wasm_bindgen_futures::spawn_local(async move {
        let (cache, inputs) = (crate::cache().await, loop_inputs);
        let store = RunStore::new(AnyCache::Opfs(Rc::new(OpfsCache::open_in(RUN_FOLDER, None).await)));
        let environment = WorkerEnvironment::open(visit).await;
        node::run_host(introduction, device, cache, store, environment, inputs, queue, tell).await;
    });
    inputs
}

/// Takes a message of the page; `beside` gives what rides with it.
pub(crate) fn command(
    inputs: &Inputs<RtcChannel, HostCommand>,
    message: ToWorker,
    beside: &dyn Fn(&str) -> Result<JsValue, JsValue>,
) -> Result<(), JsValue> {
    let command = match message {
        ToWorker::SetModel { model } => match choice(model, beside) {
            Ok(choice) => HostCommand::SetModel(Box::new(choice)),
            Err(message) => {
                post(&FromWorker::Error { about: ErrorAbout::Model, message }, None);
                return Ok(());
            }
        },
        ToWorker::SetText { name } => HostCommand::SetText(name, Uint8Array::new(&beside("bytes")?).to_vec()),
        ToWorker::MapText { mapping } => HostCommand::MapText(mapping),
        ToWorker::Preview { settings } => HostCommand::Preview(Box::new(settings)),
        ToWorker::Start { settings } => HostCommand::Start(Box::new(settings)),
        ToWorker::GoOn => HostCommand::GoOn,
        ToWorker::Forget => HostCommand::Forget,
        ToWorker::Pause => HostCommand::Pause,
        ToWorker::Resume => HostCommand::Resume,
        ToWorker::Stop => HostCommand::Stop,
        ToWorker::Generate { request, prompt, tokens, temperature } => {
            let seed = request.into();
            let prompt = match prompt {
                api::Prompt::Text { text } => Prompt::Text(text),
                api::Prompt::Chat { messages } => Prompt::Chat(messages),
            };
            HostCommand::Generate(request, TextRequest { prompt, tokens, temperature, seed })
        }
        ToWorker::GetAdapter => HostCommand::GetAdapter,
        ToWorker::Remove { peer } => HostCommand::Remove(peer),
        ToWorker::Host { .. }
        | ToWorker::Join { .. }
        | ToWorker::Channel { .. }
        | ToWorker::PeerGone { .. }
        | ToWorker::Presence { .. }
        | ToWorker::HostReturned { .. }
        | ToWorker::CacheUsage
        | ToWorker::ClearCache => {
            return Ok(());
        }
    };
    feed(inputs, Input::Command(command));
    Ok(())
}

fn choice(
    model: ModelChoice,
    beside: &dyn Fn(&str) -> Result<JsValue, JsValue>,
) -> Result<node::ModelChoice, String> {
    match model {
        ModelChoice::Default { url } => {
            let files = AnyFiles::Url(UrlFiles::new(&url).map_err(|error| error.to_string())?);
            let name = "Baton's own story model".to_owned();
            let base = Some(BUILT_IN.to_owned());
            Ok(node::ModelChoice { files, source: ModelSource::Embedded, name, base })
        }
        ModelChoice::Url { url } => {
            let files = UrlFiles::new(&url).map_err(|error| error.to_string())?;
            let base = files.base().to_owned();
            // PEFT looks a model up by its name on the hub.
            let name = base
                .strip_prefix("https://huggingface.co/")
                .and_then(|path| path.split_once("/resolve/"))
                .map(|(name, _)| name.to_owned());
            // An adapter is passed on: what may be a password in an address is not for its readers.
            let address = Some(url.clone()).filter(|url| !url.contains(['@', '?']));
            Ok(node::ModelChoice {
                files: AnyFiles::Url(files),
                source: ModelSource::Url(base),
                name: name.clone().unwrap_or(url),
                base: name.or(address),
            })
        }
        ModelChoice::Folder => {
            let files = beside("files").map_err(|_| "no files came with the message".to_owned())?;
            let files: Vec<File> =
                Array::from(&files).iter().filter_map(|file| file.dyn_into().ok()).collect();
            let files = files.into_iter().map(|file| (file.name(), file)).collect();
            let name = "Local files".to_owned();
            Ok(node::ModelChoice {
                files: AnyFiles::Blob(BlobFiles::new(files)),
                source: ModelSource::Host,
                name,
                base: None,
            })
        }
    }
}

/// What adapters can be put on: each map of a block by a name that means it alone, where there is one.
fn targets(config: &ModelConfig) -> Vec<api::TargetInfo> {
    let mut targets: Vec<api::TargetInfo> = Vec::new();
    for projection in config.projections() {
        for name in config.target_names(&[projection]) {
            let meant = config.targets(std::slice::from_ref(&name)).unwrap_or_default();
            let modules = meant.iter().map(|meant| layout::module(config, *meant).to_owned()).collect();
            targets.push(api::TargetInfo { name, modules });
        }
    }
    // A name that means others with it stands for them.
    let wide: Vec<_> = targets.iter().filter(|target| target.modules.len() > 1).cloned().collect();
    targets.retain(|target| {
        !wide
            .iter()
            .any(|wide| wide.name != target.name && target.modules.iter().all(|m| wide.modules.contains(m)))
    });
    targets
}

/// What frozen weights take on the host, and on each of 1, 2 and 4 devices.
fn frozen(config: &ModelConfig, backbone: Backbone) -> api::FrozenInfo {
    let (storage, blocks) = (backbone_storage(backbone), config.num_hidden_layers);
    let share = |devices: u32| {
        let most = blocks.div_ceil(usize::try_from(devices).unwrap_or(usize::MAX));
        // Blocks are all of one size.
        (devices, frozen_bytes(config, 0..most, storage))
    };
    let devices = [1, 2, 4].into_iter().filter(|devices| u64::from(*devices) <= blocks as u64);
    api::FrozenInfo { backbone, ends: end_bytes(config, storage), shares: devices.map(share).collect() }
}

fn tell(own: &Introduction, event: HostEvent) {
    match event {
        HostEvent::Model { name, model } => {
            let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            let config = &model.config;
            let model = api::ModelInfo {
                name,
                parameters: config.parameters(),
                blocks: count(config.num_hidden_layers),
                hidden: count(config.hidden_size),
                vocabulary: count(config.vocab_size),
                context: count(config.max_position_embeddings),
                family: config.architecture.name().to_owned(),
                writes: !config.is_encoder(),
                chat: model.template.is_some(),
                targets: targets(config),
                frozen: Backbone::ALL.map(|backbone| frozen(config, backbone)).into(),
            };
            post(&FromWorker::Model { model }, None);
        }
        HostEvent::Inspected(inspection) => {
            post(&FromWorker::Inspected { inspection: *inspection }, None);
        }
        HostEvent::Text {
            name,
            samples,
            skipped,
            tokens,
            seq_len,
            settings,
            truncated,
            truncated_samples,
            lengths,
            validation,
            labels,
            refusal,
            beginning,
        } => {
            // No number of these is wider than 64 bits.
            let wide = |number: usize| number as u64;
            let text = api::TextInfo {
                name,
                samples: wide(samples),
                validation: wide(validation),
                skipped: wide(skipped),
                tokens,
                seq_len: wide(seq_len),
                settings,
                truncated: wide(truncated),
                truncated_samples: wide(truncated_samples),
                lengths,
                labels: labels.into_iter().map(|(label, samples)| (label, wide(samples))).collect(),
                refusal,
                beginning,
            };
            post(&FromWorker::Text { text }, None);
        }
        HostEvent::Checking { loaded, total } => post(&FromWorker::Checking { loaded, total }, None),
        HostEvent::Changed { phase, devices, own: part } => {
            let training = phase == RunPhase::Running;
            let idle = if training { DeviceState::Training } else { DeviceState::Idle };
            let pair = |blocks: Range<u16>| (blocks.start, blocks.end);
            let state = |loading: Option<(u64, u64)>, working: bool| match loading {
                Some((loaded, total)) => DeviceState::Loading { loaded, total },
                None if working => idle.clone(),
                None => DeviceState::Waiting,
            };
            let (blocks, loading) = part;
            let in_run = phase != RunPhase::Lobby;
            let me = DeviceInfo {
                peer: None,
                name: own.name.clone(),
                backend: own.backend.clone(),
                blocks: blocks.map(pair),
                state: state(loading.filter(|_| in_run), in_run),
                facts: DeviceFacts::default(),
            };
            let row = |view: DeviceView| {
                let facts = DeviceFacts {
                    pace: view.pace,
                    memory: view.memory,
                    link: view.link.map(|link| (link.up.min(link.down), link.round_trip)),
                    checked: view.checked.map(|step| step.0),
                };
                let DeviceView { peer, device, blocks, loading, presence, standby, measuring, .. } = view;
                let state = match (&device, presence) {
                    (_, Presence::Hidden) => DeviceState::Hidden,
                    (_, Presence::Drained) => DeviceState::Drained,
                    (_, Presence::Silent) => DeviceState::Silent,
                    (None, Presence::Present) => DeviceState::Connecting,
                    (Some(_), Presence::Present) if measuring => DeviceState::Measuring,
                    (Some(_), Presence::Present) if standby.is_some() => DeviceState::Standby,
                    (Some(_), Presence::Present) => state(loading, blocks.is_some()),
                };
                let (name, backend) = device.map_or_else(
                    || (format!("Device {peer}"), String::new()),
                    |device| (device.name, device.backend),
                );
                DeviceInfo { peer: Some(peer), name, backend, blocks: blocks.map(pair), state, facts }
            };
            let devices = std::iter::once(me).chain(devices.into_iter().map(row)).collect();
            post(&FromWorker::Devices { devices }, None);
            let phase = match phase {
                RunPhase::Lobby => api::RunPhase::Lobby,
                RunPhase::Loading => api::RunPhase::Loading,
                RunPhase::Loaded => api::RunPhase::Sampling,
                RunPhase::Running => api::RunPhase::Running,
                RunPhase::Paused(reason) => api::RunPhase::Paused { reason },
                RunPhase::Finished => api::RunPhase::Finished,
                RunPhase::Stopped => api::RunPhase::Stopped,
                RunPhase::Failed(reason) => api::RunPhase::Failed { reason },
            };
            post(&FromWorker::Phase { phase }, None);
        }
        HostEvent::Committed { report, steps, time } => {
            let report = api::StepReport {
                step: report.step,
                steps,
                loss: report.loss,
                lr: report.lr,
                grad_norm: report.grad_norm,
                tokens: report.tokens,
                seconds: time.as_secs_f64(),
            };
            post(&FromWorker::Step { report }, None);
        }
        HostEvent::Judged { done, judgement } => {
            let Judgement { loss, samples, classification, correlation } = judgement;
            let samples = samples as u64;
            let judgement = api::Judgement { done, loss, samples, classification, correlation };
            post(&FromWorker::Judged { judgement }, None);
        }
        HostEvent::Sample { after, prompt, text } => post(&FromWorker::Sample { after, prompt, text }, None),
        HostEvent::Generated { request, text, done } => {
            post(&FromWorker::Generated { request, text, done }, None);
        }
        HostEvent::Adapter { zip, step } => {
            let name = format!("baton-adapter-step-{step}.zip");
            post(&FromWorker::Adapter { name, step }, Some(&zip));
        }
        HostEvent::Kept(run) => {
            let run = run.map(|run| api::KeptInfo {
                model: run.model,
                text: run.text,
                done: run.done,
                steps: run.steps,
                needs_files: run.needs_files,
            });
            post(&FromWorker::Kept { run }, None);
        }
        HostEvent::Left { device, reason } => post(&FromWorker::Left { device, reason }, None),
        HostEvent::Disconnect { peer } => post(&FromWorker::Disconnect { peer }, None),
        HostEvent::Error { about, message } => {
            let about = match about {
                About::Model => ErrorAbout::Model,
                About::Text => ErrorAbout::Text,
                About::Settings => ErrorAbout::Settings,
                About::Run => ErrorAbout::Run,
                About::Generate => ErrorAbout::Generate,
            };
            post(&FromWorker::Error { about, message }, None);
        }
    }
}
