//! A run on one device without channels: the coordinator and its engine in a plain loop.

use crate::host::HostEngine;
use baton_protocol::coordinator::{Coordinator, Event, Output, RunPhase, Start, StepReport};
use baton_protocol::message::{BlockBytes, Device};
use std::ops::ControlFlow;
use std::time::Instant;

/// What a run leaves.
#[derive(Debug)]
pub struct Outcome {
    /// Adapters and moments of every block, as of the last complete step.
    pub states: Vec<BlockBytes>,
    /// Complete steps.
    pub steps: u32,
    /// Why it ended before its time, if it failed.
    pub failed: Option<String>,
}

/// Trains; `on_step` hears each step and may end the run after it. What was complete before a failure is kept.
pub async fn train(
    mut engine: HostEngine,
    start: Start,
    mut on_step: impl FnMut(&StepReport) -> ControlFlow<()>,
) -> Outcome {
    let clock = Instant::now();
    let device = Device { name: "this process".into(), backend: "CPU".into() };
    let mut coordinator = Coordinator::new(device, clock.elapsed());
    coordinator.handle(Event::Start(Box::new(start)), clock.elapsed());
    while let Some(output) = coordinator.poll() {
        let event = match output {
            Output::Job(job) => match engine.run(job, |_, _| {}).await {
                Ok(done) => Some(Event::Done(done)),
                Err(error) => Some(Event::JobFailed { reason: error.in_words() }),
            },
            Output::Loaded => Some(Event::Resume),
            Output::Evaluate { .. } => Some(Event::Evaluated),
            Output::Committed(report) => match on_step(&report) {
                ControlFlow::Continue(()) => None,
                ControlFlow::Break(()) => Some(Event::Stop),
            },
            Output::Send { .. } | Output::Disconnect { .. } | Output::Inferred { .. } | Output::Changed => {
                None
            }
        };
        if let Some(event) = event {
            coordinator.handle(event, clock.elapsed());
        }
    }
    let failed = match coordinator.phase() {
        RunPhase::Failed(reason) => Some(reason),
        _ => None,
    };
    Outcome { states: coordinator.states().cloned().collect(), steps: coordinator.committed().0, failed }
}
