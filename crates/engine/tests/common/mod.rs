//! A room in one process: a host and stages on threads of execution of their own, joined by channels in memory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod clock;

use baton_engine::cache::AnyCache;
use baton_engine::evaluate::Judgement;
use baton_engine::kept::RunStore;
use baton_engine::node::{
    HostCommand, HostEvent, Input, Inputs, ModelChoice, StageCommand, StageEvent, queue, run_host, run_stage,
};
use baton_engine::source::AnyFiles;
use baton_formats::{MemoryCache, MemoryFiles};
use baton_protocol::PeerId;
use baton_protocol::coordinator::RunPhase;
use baton_protocol::link::Lane;
use baton_protocol::message::Device;
use baton_protocol::run::{ModelSource, Settings};
use baton_transport::memory::{Arrived, MemoryChannel};
use clock::AtOnce;
use futures::FutureExt;
use futures::executor::LocalPool;
use futures::future::{AbortHandle, Abortable};
use futures::task::LocalSpawnExt;
use std::cell::RefCell;
use std::io::Read;
use std::rc::Rc;

/// What a run left.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) losses: Vec<f64>,
    /// The adapter archive.
    pub(crate) zip: Vec<u8>,
    pub(crate) samples: Vec<String>,
    pub(crate) judged: Vec<(u32, Judgement)>,
    pub(crate) errors: Vec<String>,
    pub(crate) phase: Option<RunPhase>,
    pub(crate) stage_blocks: Vec<Option<std::ops::Range<u16>>>,
}

const HOST: PeerId = PeerId(1);

fn connect<A: 'static, B: 'static>(
    (a, inputs_a): (PeerId, &Inputs<MemoryChannel, A>),
    (b, inputs_b): (PeerId, &Inputs<MemoryChannel, B>),
    lane: Lane,
) {
    fn give<T: 'static>(inputs: &Inputs<MemoryChannel, T>, peer: PeerId, lane: Lane, channel: MemoryChannel) {
        let handler = inputs.clone();
        let make = move |id| {
            channel.attach(move |arrived| {
                let _ = handler.unbounded_send(match arrived {
                    Arrived::Frame(bytes) => Input::Frame { id, bytes },
                    Arrived::Closed => Input::Closed { id },
                });
            });
            channel
        };
        inputs.unbounded_send(Input::Channel { peer, lane, make: Box::new(make) }).expect("the loop runs");
    }
    let (end_a, end_b) = MemoryChannel::pair();
    give(inputs_a, b, lane, end_a);
    give(inputs_b, a, lane, end_b);
}

/// Pieces of models that a device keeps.
fn cache() -> AnyCache {
    AnyCache::Memory(Rc::new(MemoryCache::new(64 << 20)))
}

/// Runs a room of `stages` devices to its end. With `lose`, that stage leaves after that many steps.
pub(crate) fn run_room(
    files: AnyFiles,
    text: (&str, Vec<u8>),
    settings: &Settings,
    stages: usize,
    lose: Option<(usize, usize)>,
) -> Outcome {
    play(files, Some(text), settings, stages, &Script { lose, ..Script::default() })
}

/// What happens in a room.
#[derive(Default)]
pub(crate) struct Script {
    /// A stage that leaves after so many steps.
    pub(crate) lose: Option<(usize, usize)>,
    /// A stage that joins only after so many steps.
    pub(crate) late: Option<(usize, usize)>,
    /// The host's machine is gone after so many steps, without a word.
    pub(crate) crash: Option<usize>,
    /// Where the host keeps its run.
    pub(crate) store: AnyCache,
}

/// Runs a room; without a text it goes on with the run that is kept.
pub(crate) fn play(
    files: AnyFiles,
    text: Option<(&str, Vec<u8>)>,
    settings: &Settings,
    stages: usize,
    script: &Script,
) -> Outcome {
    let Script { lose, late, crash, ref store } = *script;
    let goes_on = text.is_none();
    let (abort, registration) = AbortHandle::new_pair();
    let environment = AtOnce::default();
    let outcome = Rc::new(RefCell::new(Outcome { stage_blocks: vec![None; stages], ..Outcome::default() }));
    let mut pool = LocalPool::new();
    let spawner = pool.spawner();
    let (host, host_queue) = queue::<MemoryChannel, HostCommand>();
    let peers: Vec<_> = (0..stages).map(|_| queue::<MemoryChannel, StageCommand>()).collect();
    let peer_inputs: Vec<Inputs<MemoryChannel, StageCommand>> =
        peers.iter().map(|(inputs, _)| inputs.clone()).collect();
    let number = |index: usize| PeerId(u32::try_from(index).unwrap() + 2);
    for (index, (inputs, queue)) in peers.into_iter().enumerate() {
        if late.is_none_or(|(late, _)| late != index) {
            connect((HOST, &host), (number(index), &inputs), Lane::Control);
            connect((HOST, &host), (number(index), &inputs), Lane::Bulk);
        }
        let everybody = peer_inputs.clone();
        let own = inputs.clone();
        let outcome = outcome.clone();
        let tell = move |event| match event {
            StageEvent::Connect { peer } => {
                let other = &everybody[peer.0 as usize - 2];
                connect((number(index), &own), (peer, other), Lane::Bulk);
            }
            StageEvent::Changed { blocks, .. } => outcome.borrow_mut().stage_blocks[index] = blocks,
        };
        let introduction = Device { name: format!("stage {index}"), backend: "CPU".into() };
        let device = baton_model::cpu();
        let run =
            run_stage(HOST, introduction, device, None, cache(), environment.clone(), inputs, queue, tell);
        spawner.spawn_local(run.map(drop)).unwrap();
    }
    let tell = {
        let outcome = outcome.clone();
        let host = host.clone();
        let settings = settings.clone();
        let at_first = stages - usize::from(late.is_some());
        let (mut chosen, mut here, mut started) = (false, at_first == 0, false);
        let mut kept = false;
        move |event| {
            match &event {
                HostEvent::Text { .. } => chosen = true,
                HostEvent::Model { .. } => chosen |= goes_on,
                HostEvent::Kept(summary) => kept |= summary.is_some(),
                _ => {}
            }
            if let HostEvent::Changed { devices, .. } = &event {
                here |= devices.iter().filter(|device| device.device.is_some()).count() == at_first;
            }
            if chosen && here && (kept || !goes_on) && !std::mem::replace(&mut started, true) {
                let start = match goes_on {
                    true => HostCommand::GoOn,
                    false => HostCommand::Start(Box::new(settings.clone())),
                };
                host.unbounded_send(Input::Command(start)).unwrap();
            }
            match event {
                HostEvent::Model { .. }
                | HostEvent::Text { .. }
                | HostEvent::Inspected(_)
                | HostEvent::Kept(_)
                | HostEvent::Checking { .. } => {}
                HostEvent::Judged { done, judgement } => outcome.borrow_mut().judged.push((done, judgement)),
                HostEvent::Changed { phase, .. } => {
                    if let RunPhase::Paused(Some(_)) = phase {
                        host.unbounded_send(Input::Command(HostCommand::Resume)).unwrap();
                    }
                    let over = matches!(phase, RunPhase::Finished | RunPhase::Failed(_));
                    let told = outcome.borrow_mut().phase.replace(phase.clone()) == Some(phase);
                    if over && !told {
                        host.unbounded_send(Input::Command(HostCommand::GetAdapter)).unwrap();
                    }
                }
                HostEvent::Committed { report, .. } => {
                    outcome.borrow_mut().losses.push(report.loss);
                    if crash == Some(outcome.borrow().losses.len()) {
                        abort.abort();
                    }
                    if let Some((stage, after)) = late
                        && outcome.borrow().losses.len() == after
                    {
                        connect((HOST, &host), (number(stage), &peer_inputs[stage]), Lane::Control);
                        connect((HOST, &host), (number(stage), &peer_inputs[stage]), Lane::Bulk);
                    }
                    if let Some((stage, after)) = lose
                        && outcome.borrow().losses.len() == after
                    {
                        peer_inputs[stage].unbounded_send(Input::Command(StageCommand::Leave)).unwrap();
                    }
                }
                HostEvent::Sample { text, .. } => outcome.borrow_mut().samples.push(text),
                HostEvent::Adapter { zip, .. } => outcome.borrow_mut().zip = zip,
                HostEvent::Error { message, .. } => outcome.borrow_mut().errors.push(message),
                HostEvent::Generated { .. } | HostEvent::Disconnect { .. } | HostEvent::Left { .. } => {}
            }
        }
    };
    let choice = ModelChoice { files, source: ModelSource::Host, name: "test".into(), base: None };
    host.unbounded_send(Input::Command(HostCommand::SetModel(Box::new(choice)))).unwrap();
    if let Some(text) = text {
        host.unbounded_send(Input::Command(HostCommand::SetText(text.0.into(), text.1))).unwrap();
    }
    let introduction = Device { name: "host".into(), backend: "CPU".into() };
    let store = RunStore::new(store.clone());
    let run = run_host(introduction, baton_model::cpu(), cache(), store, environment, host, host_queue, tell);
    spawner.spawn_local(Abortable::new(run, registration).map(drop)).unwrap();
    // Until nobody has anything to do: everything here answers at once.
    pool.run_until_stalled();
    outcome.take()
}

/// The numbers of an adapter archive, in the order of its tensors.
pub(crate) fn adapter_numbers(zip: &[u8], config: &[u8]) -> Vec<f32> {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(zip)).expect("our own archive reads back");
    let mut memory = MemoryFiles::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        memory.insert(entry.name().unwrap().trim_start_matches("adapter/"), bytes);
    }
    let config = baton_formats::ModelConfig::parse(config).unwrap();
    let read = futures::executor::block_on(baton_formats::Adapter::read(&memory, &config)).unwrap();
    read.weights.into_values().flat_map(|pair| pair.a.into_iter().chain(pair.b)).collect()
}
