//! A toy model with real gradients, and the same training in one process without any machine.
//!
//! A block is `h'ᵢ = hᵢ + w[i mod 3]·tanh(hᵢ₊₁)` with Adam on its three weights. Every block rounds what it gives to f32,
//! as a boundary does, gradients are added up sample by sample, and a loss or a sum of squares is rounded to f32 before
//! it is added: so every number is the same to the last bit, however blocks are split in stages and batches in slices.

use crate::engine::{HostEngine, JobError, Model, StageEngine, Text, even_profile};
use crate::violation::Violation;
use baton_protocol::codec::{Boundary, Precision};
use baton_protocol::coordinator::{self, Start, StepReport};
use baton_protocol::message::BlockBytes;
use baton_protocol::run::{ModelSource, Settings};
use baton_protocol::{MicroBatch, Step, stage};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// The shape of the model and its batches.
#[derive(Clone, Copy, Debug)]
pub struct Toy {
    /// Blocks that stages run.
    pub blocks: u16,
    /// Samples of a step's batch.
    pub samples: u32,
    /// Numbers in the hidden state of a sample.
    pub width: u32,
    /// How hidden states and gradients cross.
    pub precision: Precision,
    /// Whether the host trains a head: a block more, which never leaves it.
    pub head: bool,
}

/// The same number for the same keys, in [-1, 1).
fn noise(keys: [u32; 4]) -> f64 {
    let mut hash = 0x9e37_79b9_7f4a_7c15_u64;
    for key in keys {
        hash = (hash ^ u64::from(key)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash ^= hash >> 29;
    }
    f64::from((hash >> 32) as u32) / f64::from(1_u32 << 31) - 1.0
}

impl Toy {
    fn row(&self, kind: u32, a: u32, b: u32) -> Vec<f32> {
        (0..self.width).map(|i| noise([kind, a, b, i]) as f32).collect()
    }

    /// Blocks of the model in one process.
    fn depth(&self) -> u16 {
        self.blocks + u16::from(self.head)
    }

    /// The samples of a slice, embedded: one row each.
    fn samples_of(&self, micro_batch: MicroBatch, micro_batches: u16) -> Range<u32> {
        let each = self.samples / u32::from(micro_batches);
        let first = u32::from(micro_batch.0) * each;
        first..first + each
    }

    fn embed(&self, step: Step, samples: Range<u32>) -> Vec<Vec<f32>> {
        samples.map(|sample| self.row(1, step.0, sample)).collect()
    }

    /// The part of the batch's mean loss, and the gradient of the hidden states.
    fn head(&self, step: Step, samples: Range<u32>, h: &[Vec<f32>]) -> (f64, Vec<Vec<f32>>) {
        let total = f64::from(self.samples * self.width);
        let (mut loss, mut grad) = (0.0, Vec::new());
        for (sample, row) in samples.zip(h) {
            let target = self.row(2, step.0, sample);
            let diff: Vec<f64> = row.iter().zip(target).map(|(h, y)| f64::from(*h) - f64::from(y)).collect();
            loss += f64::from((diff.iter().map(|d| d * d).sum::<f64>() / total) as f32);
            grad.push(diff.iter().map(|d| (2.0 * d / total) as f32).collect());
        }
        (loss, grad)
    }

    fn text_rows(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let at = |(position, token): (usize, &u32)| self.row(3, *token, position as u32);
        tokens.iter().enumerate().map(at).collect()
    }

    fn next_token(h: &[Vec<f32>]) -> u32 {
        let last = h.last().map_or(&[][..], Vec::as_slice);
        last.iter().fold(7_u32, |hash, x| (hash ^ x.to_bits()).wrapping_mul(0x0100_0193)) % 1000
    }

    fn boundary(&self, rows: &[Vec<f32>]) -> Result<Boundary, JobError> {
        let shape = [rows.len() as u32, 1, self.width];
        Boundary::encode(&rows.concat(), shape, self.precision).map_err(|error| JobError::Failed {
            reason: error.to_string(),
            failure: stage::Failure::Diverged,
        })
    }

    fn rows(&self, boundary: &Boundary) -> Result<Vec<Vec<f32>>, JobError> {
        let width = self.width as usize;
        let numbers = boundary.decode().map_err(|error| nonsense(format!("a torn boundary ({error})")))?;
        Ok(numbers.chunks(width).map(<[f32]>::to_vec).collect())
    }
}

fn nonsense(what: String) -> JobError {
    JobError::Nonsense(what)
}

/// What a machine must have seen to before it gave a job.
fn ensure(ok: bool, what: impl FnOnce() -> String) -> Result<(), JobError> {
    if ok { Ok(()) } else { Err(nonsense(what())) }
}

/// Three weights, their gradient, and Adam's moments.
#[derive(Clone, Debug)]
struct Block {
    block: u16,
    w: [f64; 3],
    m: [f64; 3],
    v: [f64; 3],
    updates: f64,
    grad: [f64; 3],
}

impl Block {
    fn fresh(block: u16) -> Self {
        let w = [0, 1, 2].map(|i| 0.5 * noise([4, block.into(), i, 0]));
        Self { block, w, m: [0.0; 3], v: [0.0; 3], updates: 0.0, grad: [0.0; 3] }
    }

    fn restore(state: &BlockBytes) -> Result<Self, JobError> {
        let numbers: Vec<f64> =
            state.bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        let Ok([w0, w1, w2, m0, m1, m2, v0, v1, v2, updates]) = <[f64; 10]>::try_from(numbers) else {
            return Err(nonsense(format!(
                "a state of {} bytes for block {}",
                state.bytes.len(),
                state.block
            )));
        };
        let (w, m, v) = ([w0, w1, w2], [m0, m1, m2], [v0, v1, v2]);
        Ok(Self { block: state.block, w, m, v, updates, grad: [0.0; 3] })
    }

    fn state(&self) -> BlockBytes {
        let numbers = [self.w, self.m, self.v].concat().into_iter().chain([self.updates]);
        BlockBytes { block: self.block, bytes: numbers.flat_map(f64::to_le_bytes).collect() }
    }

    fn forward(&self, h: &[f32]) -> Vec<f32> {
        let next = |i: usize| f64::from(h[(i + 1) % h.len()]);
        (0..h.len()).map(|i| (f64::from(h[i]) + self.w[i % 3] * next(i).tanh()) as f32).collect()
    }

    fn backward(&mut self, h: &[f32], grad: &[f32]) -> Vec<f32> {
        let mut back: Vec<f64> = grad.iter().map(|g| f64::from(*g)).collect();
        for (i, &g) in grad.iter().enumerate() {
            let (g, next) = (f64::from(g), (i + 1) % h.len());
            let tanh = f64::from(h[next]).tanh();
            self.grad[i % 3] += g * tanh;
            back[next] += g * self.w[i % 3] * (1.0 - tanh * tanh);
        }
        back.into_iter().map(|g| g as f32).collect()
    }

    fn sum_of_squares(&self) -> f64 {
        f64::from(self.grad.iter().map(|g| g * g).sum::<f64>() as f32)
    }

    fn apply(&mut self, lr: f64, scale: f64) {
        self.updates += 1.0;
        for i in 0..3 {
            let g = self.grad[i] * scale;
            self.m[i] = 0.9 * self.m[i] + 0.1 * g;
            self.v[i] = 0.999 * self.v[i] + 0.001 * g * g;
            let (m, v) = (
                self.m[i] / (1.0 - 0.9_f64.powf(self.updates)),
                self.v[i] / (1.0 - 0.999_f64.powf(self.updates)),
            );
            self.w[i] -= lr * m / (v.sqrt() + 1e-8);
            self.grad[i] = 0.0;
        }
    }
}

/// Consecutive blocks with what backward needs; it also watches that jobs come in an order that makes sense.
#[derive(Debug, Default)]
struct Slice {
    blocks: Vec<Block>,
    /// By slice, by block, by sample: the block's input.
    kept: BTreeMap<MicroBatch, Vec<Vec<Vec<f32>>>>,
    micro_batches: u16,
    forwards: u16,
    backwards: u16,
    normed: bool,
    /// Activations of how many slices may be held at once, and were.
    limit: usize,
    most_kept: usize,
}

impl Slice {
    fn fresh(range: Range<u16>) -> Self {
        Self { blocks: range.map(Block::fresh).collect(), micro_batches: 1, limit: 1, ..Self::default() }
    }

    /// With the adapters of `states`, which are of all blocks or of none.
    fn load(
        range: Range<u16>,
        states: &[BlockBytes],
        micro_batches: u16,
        limit: usize,
    ) -> Result<Self, JobError> {
        let blocks = if states.is_empty() {
            range.map(Block::fresh).collect()
        } else {
            let found = || states.iter().map(|state| state.block);
            ensure(found().eq(range.clone()), || {
                format!("the states of blocks {:?} for blocks {range:?}", found().collect::<Vec<_>>())
            })?;
            states.iter().map(Block::restore).collect::<Result<_, _>>()?
        };
        Ok(Self { blocks, micro_batches, limit, ..Self::default() })
    }

    fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    fn infer(&self, mut h: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        for block in &self.blocks {
            h = h.iter().map(|row| block.forward(row)).collect();
        }
        h
    }

    fn forward(&mut self, micro_batch: MicroBatch, mut h: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, JobError> {
        ensure(micro_batch.0 == self.forwards && self.forwards < self.micro_batches, || {
            format!("forward of micro-batch {micro_batch} after {} of {}", self.forwards, self.micro_batches)
        })?;
        self.forwards += 1;
        let mut inputs = Vec::new();
        for block in &self.blocks {
            let out = h.iter().map(|row| block.forward(row)).collect();
            inputs.push(std::mem::replace(&mut h, out));
        }
        self.kept.insert(micro_batch, inputs);
        self.most_kept = self.most_kept.max(self.kept.len());
        ensure(self.kept.len() <= self.limit, || {
            format!("more activations than it may hold: {} of {}", self.kept.len(), self.limit)
        })?;
        Ok(h)
    }

    fn backward(
        &mut self,
        micro_batch: MicroBatch,
        mut grad: Vec<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>, JobError> {
        ensure(micro_batch.0 == self.backwards, || {
            format!("backward of micro-batch {micro_batch} after {}", self.backwards)
        })?;
        self.backwards += 1;
        let Some(inputs) = self.kept.remove(&micro_batch) else {
            return Err(nonsense(format!("backward of micro-batch {micro_batch} before its forward")));
        };
        for (block, inputs) in self.blocks.iter_mut().zip(inputs).rev() {
            grad = inputs.iter().zip(&grad).map(|(h, grad)| block.backward(h, grad)).collect();
        }
        Ok(grad)
    }

    fn grad_norm(&mut self) -> Result<f64, JobError> {
        let complete = self.backwards == self.micro_batches && self.kept.is_empty() && !self.normed;
        ensure(complete, || {
            format!("the norm after {} of {} backward passes", self.backwards, self.micro_batches)
        })?;
        self.normed = true;
        Ok(self.blocks.iter().map(Block::sum_of_squares).sum())
    }

    fn apply(&mut self, lr: f64, scale: f64) -> Result<Vec<BlockBytes>, JobError> {
        ensure(std::mem::take(&mut self.normed), || "an update without a complete gradient".into())?;
        (self.forwards, self.backwards) = (0, 0);
        self.blocks.iter_mut().for_each(|block| block.apply(lr, scale));
        Ok(self.blocks.iter().map(Block::state).collect())
    }
}

/// The engine of a stage.
#[derive(Debug)]
pub struct ToyStage {
    toy: Toy,
    slice: Slice,
}

impl StageEngine for ToyStage {
    fn run(&mut self, job: stage::Job) -> Result<stage::Done, JobError> {
        use stage::{Done, Job};
        let (toy, slice) = (self.toy, &mut self.slice);
        Ok(match job {
            Job::Load(assign) => {
                // Position p of P holds at most P − p; the host's front is position 0 and its head the last one.
                let limit = usize::from(assign.stages + 2 - (assign.stage.0 + 1) + assign.settings.ahead);
                let micro_batches = assign.settings.micro_batches;
                *slice = Slice::load(assign.blocks, &assign.states, micro_batches, limit)?;
                Done::Load
            }
            Job::Forward { micro_batch, tensor } => {
                Done::Forward(toy.boundary(&slice.forward(micro_batch, toy.rows(&tensor)?)?)?)
            }
            Job::Backward { micro_batch, tensor, want_input_grad } => {
                let grad = slice.backward(micro_batch, toy.rows(&tensor)?)?;
                Done::Backward(if want_input_grad { Some(toy.boundary(&grad)?) } else { None })
            }
            Job::GradNorm => Done::GradNorm(slice.grad_norm()?),
            Job::Apply { lr, scale } => Done::Apply(slice.apply(lr, scale)?),
            Job::Infer { tensor, .. } => Done::Infer(toy.boundary(&slice.infer(toy.rows(&tensor)?))?),
            Job::Measure(_) => return Err(nonsense("the world measures, not its engines".into())),
        })
    }

    fn most_kept(&self) -> usize {
        self.slice.most_kept
    }
}

/// The engine of the host: the ends, and every block if there is no stage.
#[derive(Debug)]
pub struct ToyHost {
    toy: Toy,
    micro_batches: u16,
    slice: Slice,
    head: Option<Block>,
    texts: BTreeMap<u32, Text>,
}

impl HostEngine for ToyHost {
    fn run(&mut self, job: coordinator::Job) -> Result<coordinator::Done, JobError> {
        use coordinator::{Done, Job};
        let (toy, micro_batches) = (self.toy, self.micro_batches);
        Ok(match job {
            Job::Load { blocks, states, micro_batches, in_flight, .. } => {
                self.micro_batches = micro_batches;
                let (own, head): (Vec<_>, Vec<_>) =
                    states.into_iter().partition(|state| state.block < toy.blocks);
                // Alone the next forward pass comes before the last backward one.
                let limit = usize::from(in_flight).max(2);
                self.slice = Slice::load(blocks, &own, micro_batches, limit)?;
                let head = head.first().map_or_else(|| Ok(Block::fresh(toy.blocks)), Block::restore)?;
                self.head = toy.head.then_some(head);
                Done::Load
            }
            Job::Front { step, micro_batch } => {
                let h = toy.embed(step, toy.samples_of(micro_batch, micro_batches));
                let h = if self.slice.is_empty() { h } else { self.slice.forward(micro_batch, h)? };
                Done::Front(toy.boundary(&h)?)
            }
            Job::Head { step, micro_batch, tensor } => {
                let samples = toy.samples_of(micro_batch, micro_batches);
                let tokens = samples.end - samples.start;
                let rows = toy.rows(&tensor)?;
                let (loss, grad) = match &mut self.head {
                    None => toy.head(step, samples, &rows),
                    Some(head) => {
                        let out: Vec<_> = rows.iter().map(|row| head.forward(row)).collect();
                        let (loss, grad) = toy.head(step, samples, &out);
                        (loss, rows.iter().zip(&grad).map(|(h, grad)| head.backward(h, grad)).collect())
                    }
                };
                Done::Head { loss, tokens, grad: toy.boundary(&grad)? }
            }
            Job::BackFront { micro_batch, tensor } => {
                self.slice.backward(micro_batch, toy.rows(&tensor)?)?;
                Done::BackFront
            }
            Job::GradNorm => {
                let own = if self.slice.is_empty() { 0.0 } else { self.slice.grad_norm()? };
                Done::GradNorm(own + self.head.as_ref().map_or(0.0, Block::sum_of_squares))
            }
            Job::Apply { lr, scale } => {
                let mut states =
                    if self.slice.is_empty() { Vec::new() } else { self.slice.apply(lr, scale)? };
                if let Some(head) = &mut self.head {
                    head.apply(lr, scale);
                    states.push(head.state());
                }
                Done::Apply(states)
            }
            Job::InferFront { request } => {
                let text = self.texts.get(&request).ok_or_else(|| nonsense(format!("text {request}")))?;
                Done::InferFront(toy.boundary(&self.slice.infer(toy.text_rows(&text.tokens)))?)
            }
            Job::InferHead { request, tensor } => {
                let mut rows = toy.rows(&tensor)?;
                if let Some(head) = &self.head {
                    rows = rows.iter().map(|row| head.forward(row)).collect();
                }
                let text = self.texts.get_mut(&request).ok_or_else(|| nonsense(format!("text {request}")))?;
                ensure(!text.is_written(), || format!("text {request} again after its end"))?;
                text.tokens.push(Toy::next_token(&rows));
                Done::InferHead { done: text.is_written() }
            }
            Job::Measure(_) => return Err(nonsense("the world measures, not its engines".into())),
            Job::Check { blocks, input, states } => {
                let slice = Slice::load(blocks, &states, micro_batches, 1)?;
                Done::Check(toy.boundary(&slice.infer(toy.rows(&input)?))?)
            }
        })
    }

    fn ask(&mut self, request: u32, want: usize) {
        self.texts.insert(request, Text { tokens: vec![request], want });
    }

    fn text(&self, request: u32) -> Option<&Text> {
        self.texts.get(&request)
    }
}

/// The toy as what a room trains, with what one process gets.
#[derive(Clone, Debug)]
pub struct ToyModel {
    /// Its shape.
    pub toy: Toy,
    /// What one process gets.
    pub reference: Rc<Reference>,
}

impl ToyModel {
    /// Trains it in one process first.
    ///
    /// # Errors
    ///
    /// When its numbers are none.
    pub fn new(toy: Toy, settings: &Settings) -> Result<Self, JobError> {
        Ok(Self { toy, reference: Rc::new(Reference::train(toy, settings)?) })
    }
}

impl Model for ToyModel {
    type Stage = ToyStage;
    type Host = ToyHost;

    fn stage(&self) -> ToyStage {
        ToyStage { toy: self.toy, slice: Slice::default() }
    }

    fn host(&self, settings: &Settings) -> ToyHost {
        let (toy, micro_batches) = (self.toy, settings.micro_batches);
        ToyHost { toy, micro_batches, slice: Slice::default(), head: None, texts: BTreeMap::new() }
    }

    fn start(&self, settings: &Settings) -> Start {
        Start {
            settings: settings.clone(),
            blocks: self.toy.blocks,
            source: ModelSource::Host,
            config: "{}".into(),
            manifest: Vec::new(),
            profile: Some(even_profile(self.toy.blocks)),
            committed: Step(0),
            judged: false,
            secret: settings.seed,
            states: Vec::new(),
            head: self.toy.head,
        }
    }

    fn check(&self, report: &StepReport, states: &[&BlockBytes]) -> Result<(), Violation> {
        let (reference, step) = (&self.reference, report.step);
        let done = step.0 as usize;
        let same = |what, found: f64, expected: f64| {
            // To the last bit; other precisions round what crosses, and are compared by who asks for them.
            if found.to_bits() == expected.to_bits() {
                return Ok(());
            }
            Err(Violation::Number { what, step, found, expected })
        };
        let (Some(loss), Some(norm), Some(after)) =
            (reference.losses.get(done), reference.norms.get(done), reference.states.get(done + 1))
        else {
            return Err(Violation::NoSuchStep { step, steps: reference.losses.len() });
        };
        same("number of tokens", report.tokens.into(), self.toy.samples.into())?;
        if self.toy.precision == Precision::F32 {
            same("loss", report.loss, *loss)?;
            same("gradient norm", report.grad_norm, *norm)?;
            if !states.iter().copied().eq(after) {
                return Err(Violation::States { step });
            }
        }
        Ok(())
    }
}

/// What one process gets: losses, gradient norms, and the states after every step.
#[derive(Debug)]
pub struct Reference {
    /// By step.
    pub losses: Vec<f64>,
    /// By step, before clipping.
    pub norms: Vec<f64>,
    /// `states[n]` belongs to n complete steps; `states[0]` are the fresh ones.
    pub states: Vec<Vec<BlockBytes>>,
    toy: Toy,
}

impl Reference {
    /// Trains a toy in one process.
    ///
    /// # Errors
    ///
    /// When its numbers are none.
    pub fn train(toy: Toy, settings: &Settings) -> Result<Self, JobError> {
        let mut slice = Slice::fresh(0..toy.depth());
        let fresh = slice.blocks.iter().map(Block::state).collect();
        let mut reference = Self { losses: Vec::new(), norms: Vec::new(), states: vec![fresh], toy };
        for step in (0..settings.steps).map(Step) {
            let h = slice.forward(MicroBatch(0), toy.embed(step, 0..toy.samples))?;
            let (loss, grad) = toy.head(step, 0..toy.samples, &h);
            slice.backward(MicroBatch(0), grad)?;
            let norm = slice.grad_norm()?.sqrt();
            let clip = settings.grad_clip;
            let scale = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
            reference.states.push(slice.apply(settings.lr_at(step.0), scale)?);
            reference.losses.push(loss);
            reference.norms.push(norm);
        }
        Ok(reference)
    }

    /// The text that the model of `steps` steps writes; empty if it never made so many.
    pub fn text(&self, steps: usize, first: u32, want: usize) -> Vec<u32> {
        let states = self.states.get(steps).map(Vec::as_slice).unwrap_or_default();
        let Ok(slice) = Slice::load(0..self.toy.depth(), states, 1, 1) else { return Vec::new() };
        let mut tokens = vec![first];
        while tokens.len() < want {
            tokens.push(Toy::next_token(&slice.infer(self.toy.text_rows(&tokens))));
        }
        tokens
    }
}
