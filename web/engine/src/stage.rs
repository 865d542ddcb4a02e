//! A worker that is a stage.

use crate::channel::RtcChannel;
use crate::{WorkerEnvironment, post};
use baton_engine::node::{self, Inputs, StageCommand, StageEvent};
use baton_model::Device;
use baton_protocol::PeerId;
use baton_protocol::message::Device as Introduction;
use baton_protocol::stage::View;
use baton_web_api::{DeviceState, FromWorker, StageInfo, Visit};
use js_sys::Reflect;

/// Starts the stage's loop.
pub(crate) fn start(
    name: String,
    visit: Visit,
    backend: &str,
    host: PeerId,
    device: Device,
) -> Inputs<RtcChannel, StageCommand> {
    let (inputs, queue) = node::queue();
    let introduction = Introduction { name, backend: backend.into() };
    // The worker's script is at static/worker.js, the model beside it.
    let location = Reflect::get(&js_sys::global(), &"location".into()).ok();
    let href = location.and_then(|location| Reflect::get(&location, &"href".into()).ok()?.as_string());
    let own = href.unwrap_or_default();
    let base = own.rsplit_once("worker.js").map_or(own.as_str(), |(base, _)| base);
    let embedded = Some(format!("{base}model/"));
    let loop_inputs = inputs.clone();
    wasm_bindgen_futures::spawn_local(async move {
        let (cache, inputs) = (crate::cache().await, loop_inputs);
        let environment = WorkerEnvironment::open(visit).await;
        node::run_stage(host, introduction, device, embedded, cache, environment, inputs, queue, tell).await;
    });
    inputs
}

fn tell(event: StageEvent) {
    match event {
        StageEvent::Connect { peer } => post(&FromWorker::Connect { peer }, None),
        StageEvent::Changed { view, blocks, place, model_blocks, steps_done } => {
            let ended = match &view {
                View::Ended(reason) => Some(reason.clone()),
                _ => None,
            };
            let state = match view {
                View::Greeting => DeviceState::Connecting,
                View::Waiting | View::Ended(_) => DeviceState::Waiting,
                View::Measuring => DeviceState::Measuring,
                View::Loading(loaded, total) => DeviceState::Loading { loaded, total },
                View::Training => DeviceState::Training,
                View::Idle(_) => DeviceState::Idle,
                View::Standby => DeviceState::Standby,
                View::HostSilent => DeviceState::Silent,
            };
            let blocks = blocks.map(|blocks| (blocks.start, blocks.end));
            let model_blocks = model_blocks.and_then(|blocks| u16::try_from(blocks).ok());
            let view = StageInfo { model_blocks, blocks, place, state, steps_done, ended };
            post(&FromWorker::Stage { view }, None);
        }
    }
}
