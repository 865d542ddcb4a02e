//! A run on one device without channels: the coordinator and its engine in a plain loop.

use crate::evaluate::Judgement;
use crate::host::{HostEngine, Requests};
use crate::node::Environment;
use baton_protocol::coordinator::{Coordinator, Event, Output, RunPhase, Start, StepReport};
use baton_protocol::message::{BlockBytes, Device};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// What a run leaves.
#[derive(Debug)]
pub struct Outcome {
    /// Adapters and moments of every block, and the head's, as of the last complete step.
    pub states: Vec<BlockBytes>,
    /// Complete steps.
    pub steps: u32,
    /// Why it ended before its time, if it failed.
    pub failed: Option<String>,
}

/// What a run tells of itself.
#[derive(Debug)]
pub enum Told<'a> {
    /// A step is complete.
    Step(&'a StepReport),
    /// The model was judged after so many steps.
    Judged(u32, &'a Judgement),
}

/// Trains; `on_step` hears each step and each judgement, and may end the run after it. What was complete before a failure
/// is kept. `requests` are those that the engine was made with.
pub async fn train(
    mut engine: HostEngine,
    start: Start,
    requests: &Requests,
    mut on_step: impl FnMut(Told<'_>) -> ControlFlow<()>,
) -> Outcome {
    let clock = Instant::now();
    let here = Here(clock);
    let device = Device { name: "this process".into(), backend: "CPU".into() };
    let mut coordinator = Coordinator::new(device, clock.elapsed());
    coordinator.handle(Event::Start(Box::new(start)), clock.elapsed());
    let begin = |coordinator: &mut Coordinator, done: u32| {
        let wanted = requests.evaluation.borrow_mut().begin(done);
        for request in wanted.clone() {
            coordinator.handle(Event::Infer { request }, clock.elapsed());
        }
        !wanted.is_empty()
    };
    while let Some(output) = coordinator.poll() {
        let event = match output {
            Output::Job(job) => match engine.run(job, &here, |_, _| {}).await {
                Ok(done) => Some(Event::Done(done)),
                Err(error) => Some(Event::JobFailed { reason: error.in_words(), failure: error.failure() }),
            },
            Output::Loaded => Some(Event::Resume),
            Output::Evaluate { done } => (!begin(&mut coordinator, done.0)).then_some(Event::Evaluated),
            Output::Committed(report) => match on_step(Told::Step(&report)) {
                ControlFlow::Continue(()) => None,
                ControlFlow::Break(()) => Some(Event::Stop),
            },
            Output::Inferred { request, .. } => {
                let over = requests.evaluation.borrow_mut().over(request);
                over.map(|(done, judgement)| {
                    match judgement.map(|judgement| on_step(Told::Judged(done, &judgement))) {
                        Some(ControlFlow::Break(())) => Event::Stop,
                        _ => Event::Evaluated,
                    }
                })
            }
            Output::Send { .. } | Output::Disconnect { .. } | Output::Left { .. } | Output::Changed => None,
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

/// A process that nobody waits for.
#[derive(Clone)]
struct Here(Instant);

impl Environment for Here {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    async fn breathe(&self) {}

    /// There is no other device that what does not fit could go to.
    async fn memory(&self, most: u64, _held: u64) -> u64 {
        most
    }
}
