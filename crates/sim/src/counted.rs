//! A model without numbers, for rooms of a thousand devices: its blocks count their updates, so that a step that is lost
//! or made twice is seen.

use crate::engine::{HostEngine, JobError, Model, StageEngine, Text, even_profile};
use crate::violation::Violation;
use baton_protocol::codec::{Boundary, Precision};
use baton_protocol::coordinator::{self, Start, StepReport};
use baton_protocol::message::BlockBytes;
use baton_protocol::run::{ModelSource, Settings};
use baton_protocol::{Step, stage};
use std::collections::BTreeMap;
use std::ops::Range;

/// The model: how many blocks.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Blocks that stages run.
    pub blocks: u16,
}

/// Updates of each block.
#[derive(Debug, Default)]
struct Counts {
    first: u16,
    updates: Vec<u32>,
}

fn boundary() -> Result<Boundary, JobError> {
    Boundary::encode(&[0.0], [1, 1, 1], Precision::F32)
        .map_err(|error| JobError::Failed { reason: error.to_string(), failure: stage::Failure::Diverged })
}

impl Counts {
    fn load(range: &Range<u16>, states: &[BlockBytes]) -> Result<Self, JobError> {
        if states.is_empty() {
            return Ok(Self { first: range.start, updates: vec![0; range.len()] });
        }
        if !states.iter().map(|state| state.block).eq(range.clone()) {
            return Err(JobError::Nonsense(format!("states of other blocks than {range:?}")));
        }
        let count = |state: &BlockBytes| match <[u8; 4]>::try_from(&state.bytes[..]) {
            Ok(bytes) => Ok(u32::from_le_bytes(bytes)),
            Err(_) => Err(JobError::Nonsense(format!("a state of {} bytes", state.bytes.len()))),
        };
        Ok(Self { first: range.start, updates: states.iter().map(count).collect::<Result<_, _>>()? })
    }

    fn apply(&mut self) -> Vec<BlockBytes> {
        self.updates.iter_mut().for_each(|count| *count += 1);
        let state = |(block, count): (u16, &u32)| BlockBytes { block, bytes: count.to_le_bytes().to_vec() };
        (self.first..).zip(&self.updates).map(state).collect()
    }
}

/// The engine of a stage.
#[derive(Debug, Default)]
pub struct CountedStage(Counts);

impl StageEngine for CountedStage {
    fn run(&mut self, job: stage::Job) -> Result<stage::Done, JobError> {
        use stage::{Done, Job};
        Ok(match job {
            Job::Load(assign) => {
                self.0 = Counts::load(&assign.blocks, &assign.states)?;
                Done::Load
            }
            Job::Forward { .. } => Done::Forward(boundary()?),
            Job::Backward { want_input_grad, .. } => {
                Done::Backward(if want_input_grad { Some(boundary()?) } else { None })
            }
            Job::GradNorm => Done::GradNorm(1.0),
            Job::Apply { .. } => Done::Apply(self.0.apply()),
            Job::Infer { .. } => Done::Infer(boundary()?),
            Job::Measure(_) => return Err(JobError::Nonsense("the world measures, not its engines".into())),
        })
    }
}

/// The engine of the host.
#[derive(Debug)]
pub struct CountedHost {
    own: Counts,
    texts: BTreeMap<u32, Text>,
}

impl HostEngine for CountedHost {
    fn run(&mut self, job: coordinator::Job) -> Result<coordinator::Done, JobError> {
        use coordinator::{Done, Job};
        Ok(match job {
            Job::Load { blocks, states, .. } => {
                self.own = Counts::load(&blocks, &states)?;
                Done::Load
            }
            Job::Front { .. } => Done::Front(boundary()?),
            Job::Head { .. } => Done::Head { loss: 1.0, tokens: 1, grad: boundary()? },
            Job::BackFront { .. } => Done::BackFront,
            Job::GradNorm => Done::GradNorm(1.0),
            Job::Apply { .. } => Done::Apply(self.own.apply()),
            Job::InferFront { .. } => Done::InferFront(boundary()?),
            Job::InferHead { request, .. } => {
                let text = self.texts.get_mut(&request);
                let text = text.ok_or_else(|| JobError::Nonsense(format!("text {request}")))?;
                text.tokens.push(0);
                Done::InferHead { done: text.is_written() }
            }
            Job::Measure(_) => return Err(JobError::Nonsense("the world measures, not its engines".into())),
            Job::Check { .. } => Done::Check(boundary()?),
        })
    }

    fn ask(&mut self, request: u32, want: usize) {
        self.texts.insert(request, Text { tokens: vec![request], want });
    }

    fn text(&self, request: u32) -> Option<&Text> {
        self.texts.get(&request)
    }
}

impl Model for Counted {
    type Stage = CountedStage;
    type Host = CountedHost;

    fn stage(&self) -> CountedStage {
        CountedStage::default()
    }

    fn host(&self, _: &Settings) -> CountedHost {
        CountedHost { own: Counts::default(), texts: BTreeMap::new() }
    }

    fn start(&self, settings: &Settings) -> Start {
        Start {
            settings: settings.clone(),
            blocks: self.blocks,
            source: ModelSource::Host,
            config: "{}".into(),
            manifest: Vec::new(),
            profile: Some(even_profile(self.blocks)),
            committed: Step(0),
            judged: false,
            secret: settings.seed,
            states: Vec::new(),
            head: false,
        }
    }

    fn check(&self, report: &StepReport, states: &[&BlockBytes]) -> Result<(), Violation> {
        let step = report.step;
        let updates = (step.0 + 1).to_le_bytes();
        let counted = states.iter().all(|state| state.bytes == updates);
        if !counted || !states.iter().map(|state| state.block).eq(0..self.blocks) {
            return Err(Violation::States { step });
        }
        Ok(())
    }
}
