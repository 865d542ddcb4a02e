//! A device measures itself: the seconds that a block of a run's own shapes takes here, and on a host the ends.
//!
//! What is measured is the code that trains ([`Part`], [`Ends`], [`ClassifierHead`]), on weights that are made up on the
//! device, so that nothing is fetched and nothing that is loaded is touched.

use crate::error::EngineError;
use crate::node::Environment;
use crate::source::{adamw, lora_spec, seq_len, storage};
use crate::stage::{Part, numbers};
use baton_formats::{Label, ModelConfig};
use baton_model::{
    ClassifierHead, Device, Ends, InFlight, Tensor, boundary_to_f32, end_bytes, f32_to_boundary, head_memory,
    stage_memory,
};
use baton_plan::{Curve, DeviceProfile, HostProfile};
use baton_protocol::message::Assign;
use baton_protocol::run::Settings;
use std::ops::Range;
use std::time::Duration;

/// Passes are timed together until they take as long as this: a browser's clock is as coarse as a millisecond, and to
/// wait for a GPU costs as much.
const ROUND: Duration = Duration::from_millis(20);
/// No more passes at once.
const MOST_PASSES: u16 = 64;
/// Rounds of a size, as long as they take no longer than this in all. The fastest counts: what else the machine does just
/// then, other devices that measure themselves on it among that, only adds to a time, and what lasts the run's own times tell.
/// With the median, two stages on a busy machine found themselves 24 times as slow as one another.
const ROUNDS: usize = 7;
const ENOUGH: Duration = Duration::from_millis(200);
/// As long as the last rounds were faster than all before by this share, the browser may still be compiling the engine anew:
/// rounds go on, but no longer than this. A stage on code of the first compilation takes twice as long as its host.
const FALLS: f64 = 0.05;
const LAST: usize = 3;
const SETTLED: Duration = Duration::from_millis(1500);
/// What is expected to take longer than this in all is measured on fewer tokens, or on one sample alone.
const LONGEST: Duration = Duration::from_secs(4);
/// The tokens by which that is found out.
const FEW: usize = 16;
/// Words of the vocabulary that the head is measured on; its time is that many times as long as it has more.
const WORDS: usize = 4096;
/// No pass is faster: what the clock cannot tell from nothing.
const SHORTEST: f64 = 1e-6;
/// Seconds of a pass that is never to be.
const NEVER: f64 = 3600.0;
/// The adapters that are made up hardly move.
const LR: f64 = 1e-6;

/// Measures a device that takes part in a run of this model: `memory` bytes are what it can spare.
///
/// # Errors
///
/// When the settings make no sense or name maps that the model has not, one block does not fit `memory`, or the device
/// fails.
pub async fn device(
    config: &ModelConfig,
    settings: &Settings,
    device: &Device,
    memory: u64,
    environment: &impl Environment,
) -> Result<DeviceProfile, EngineError> {
    let profile =
        Bench::new(config, settings, device, memory, environment)?.block().await.map(|(own, _)| own);
    // What the device's pools keep for the next time is wanted for other shapes now.
    device.memory_cleanup();
    profile
}

/// Measures a host: what [`device`] does, and the ends. `config` has the head that the run trains.
///
/// # Errors
///
/// As [`device`]'s; but a host that has no memory for a block can be one still.
pub async fn host(
    config: &ModelConfig,
    settings: &Settings,
    device: &Device,
    memory: u64,
    environment: &impl Environment,
) -> Result<HostProfile, EngineError> {
    let bench = Bench::new(config, settings, device, memory, environment)?;
    let (own, tokens) = match bench.block().await {
        Ok(measured) => measured,
        // The blocks may all go to others.
        Err(EngineError::TooLittleMemory { .. }) => bench.no_block()?,
        Err(error) => return Err(error),
    };
    let profile = bench.ends(own, tokens).await;
    device.memory_cleanup();
    profile
}

/// Bytes that a stage will take at most.
///
/// # Errors
///
/// When the assignment's config or settings are none.
pub fn expected(assign: &Assign) -> Result<u64, EngineError> {
    let config = ModelConfig::parse(assign.config.as_bytes())?;
    // One more than the stages that follow, the host's head being the last of them.
    let in_flight = assign.stages.saturating_sub(assign.stage.0).saturating_add(1);
    let in_flight = in_flight.saturating_add(assign.settings.ahead);
    part_bytes(&config, &assign.settings, &assign.blocks, in_flight)
}

/// Bytes that a host with these blocks and so many micro-batches in flight will take at most.
///
/// # Errors
///
/// When the settings are none.
pub fn expected_of_host(
    config: &ModelConfig,
    settings: &Settings,
    blocks: &Range<u16>,
    in_flight: u16,
) -> Result<u64, EngineError> {
    let part = match blocks.is_empty() {
        true => 0,
        false => part_bytes(config, settings, blocks, in_flight)?,
    };
    let head = head_memory(config, samples(settings).into(), seq_len(config, settings) as u64);
    Ok(part.saturating_add(end_bytes(config, storage(settings))).saturating_add(head))
}

fn part_bytes(
    config: &ModelConfig,
    settings: &Settings,
    blocks: &Range<u16>,
    in_flight: u16,
) -> Result<u64, EngineError> {
    let spec = lora_spec(settings, config)?;
    let work = InFlight {
        micro_batches: in_flight.min(settings.micro_batches).into(),
        samples: samples(settings).into(),
        time: seq_len(config, settings) as u64,
        recompute: settings.recompute,
    };
    Ok(stage_memory(config, numbers(blocks), storage(settings), &spec, work).total())
}

/// Samples of the largest micro-batch.
fn samples(settings: &Settings) -> u32 {
    settings.batch_size.div_ceil(settings.micro_batches.max(1).into())
}

/// What the measurements share.
struct Bench<'a, E> {
    config: &'a ModelConfig,
    /// Those of the run, but that activations are kept: who computes them again adds a forward pass.
    settings: Settings,
    device: &'a Device,
    memory: u64,
    environment: &'a E,
    since: Duration,
}

/// The seconds of a pass.
struct Pass {
    forward: f64,
    backward: f64,
    update: f64,
}

/// How many tokens of each sample are worked on.
#[derive(Clone, Copy)]
struct Tokens {
    whole: usize,
    measured: usize,
}

impl Tokens {
    /// What a time is to be multiplied by.
    fn scale(self) -> f64 {
        self.whole as f64 / self.measured.max(1) as f64
    }
}

impl<'a, E: Environment> Bench<'a, E> {
    fn new(
        config: &'a ModelConfig,
        settings: &Settings,
        device: &'a Device,
        memory: u64,
        environment: &'a E,
    ) -> Result<Self, EngineError> {
        settings.validate()?;
        config.check()?;
        let settings = Settings { recompute: false, ..settings.clone() };
        Ok(Self { config, settings, device, memory, environment, since: environment.now() })
    }

    /// The profile of a block, and how many tokens it was worked on with.
    async fn block(&self) -> Result<(DeviceProfile, Tokens), EngineError> {
        let (needed, memory) = (self.needed(1, 1)?, self.memory);
        if needed > memory {
            return Err(EngineError::TooLittleMemory { what: "training one block", needed, memory });
        }
        let mut part = Part::made_up(self.config, &self.settings, self.device)?;
        let whole = seq_len(self.config, &self.settings);
        let mut tokens = Tokens { whole, measured: whole };
        if whole > FEW {
            // The first one compiles kernels.
            let mut took = Duration::ZERO;
            for _ in 0..2 {
                let began = self.environment.now();
                self.round(&mut part, [1, FEW], 1).await?;
                took = self.environment.now().saturating_sub(began);
            }
            // Two rounds at the least, of which the first one warms up.
            let share = LONGEST.as_secs_f64() / (2.0 * took.as_secs_f64() * whole as f64 / FEW as f64);
            if share < 1.0 {
                tokens.measured = ((whole as f64 * share) as usize).clamp(FEW, whole);
            }
        }
        let (mut forward, mut backward) = (Vec::new(), Vec::new());
        let (mut update, mut last) = (0.0, 0.0);
        for samples in self.sizes()? {
            let before = self.environment.now();
            if let Some((fewer, _)) = forward.last() {
                let expected = 2.0 * last * f64::from(samples) / f64::from(*fewer);
                if before.saturating_sub(self.since).as_secs_f64() + expected > LONGEST.as_secs_f64() {
                    break;
                }
            }
            let pass = self.passes(&mut part, [samples as usize, tokens.measured]).await?;
            forward.push((samples, pass.forward * tokens.scale()));
            backward.push((samples, pass.backward * tokens.scale()));
            (update, last) = (pass.update, pass.forward + pass.backward);
        }
        let (forward, backward) = (Curve::new(forward)?, Curve::new(backward)?);
        Ok((DeviceProfile { memory: self.memory, forward, backward, update, slowness: 1.0 }, tokens))
    }

    /// The profile of a device that no plan gives a block to: as its memory says, and the times say no less.
    fn no_block(&self) -> Result<(DeviceProfile, Tokens), EngineError> {
        let tokens = seq_len(self.config, &self.settings);
        let never = Curve::new([(1, NEVER)])?;
        let (forward, backward) = (never.clone(), never);
        let profile = DeviceProfile { memory: self.memory, forward, backward, update: 0.0, slowness: 1.0 };
        Ok((profile, Tokens { whole: tokens, measured: tokens }))
    }

    /// One sample, and as many as a micro-batch has, if that fits.
    fn sizes(&self) -> Result<Vec<u32>, EngineError> {
        let mut sizes = vec![1];
        let most = samples(&self.settings);
        if most > 1 && self.needed(1, most)? <= self.memory {
            sizes.push(most);
        }
        Ok(sizes)
    }

    /// Bytes of a block with so many micro-batches in flight.
    fn needed(&self, micro_batches: u16, samples: u32) -> Result<u64, EngineError> {
        let spec = lora_spec(&self.settings, self.config)?;
        let work = InFlight {
            micro_batches: micro_batches.into(),
            samples: samples.into(),
            time: seq_len(self.config, &self.settings) as u64,
            recompute: false,
        };
        let memory = stage_memory(self.config, 1..2, storage(&self.settings), &spec, work);
        // Nothing is loaded here.
        let passing = memory.activations.saturating_add(memory.working).max(memory.handover);
        Ok(memory.frozen.saturating_add(memory.adapters).saturating_add(passing))
    }

    /// The fastest pass over `[samples, tokens]`.
    async fn passes(&self, part: &mut Part, shape: [usize; 2]) -> Result<Pass, EngineError> {
        self.round(part, shape, 1).await?;
        let began = self.environment.now();
        let first = self.round(part, shape, 1).await?;
        let samples = u32::try_from(shape[0]).unwrap_or(u32::MAX);
        let mut at_once = together(first.forward);
        while at_once > 1 && self.needed(at_once, samples)? > self.memory / 2 {
            at_once /= 2;
        }
        let mut rounds = vec![first];
        if at_once > 1 {
            rounds.clear();
        }
        loop {
            let both: Vec<f64> = rounds.iter().map(|pass| pass.forward + pass.backward).collect();
            if !goes_on(&both, self.environment.now().saturating_sub(began)) {
                break;
            }
            rounds.push(self.round(part, shape, at_once).await?);
        }
        let of = |seconds: fn(&Pass) -> f64| fastest(rounds.iter().map(seconds));
        // The update is timed once a round, so a coarse clock is right on average only.
        let update = rounds.iter().map(|pass| pass.update).sum::<f64>() / rounds.len() as f64;
        Ok(Pass { forward: of(|pass| pass.forward), backward: of(|pass| pass.backward), update })
    }

    /// So many passes at once over `[samples, tokens]`, and one update.
    async fn round(&self, part: &mut Part, shape: [usize; 2], passes: u16) -> Result<Pass, EngineError> {
        let hidden = self.config.hidden_size;
        let h = made_up([shape[0], shape[1], hidden], self.device);
        finished(&h).await?;
        self.environment.breathe().await;
        let began = self.environment.now();
        let mut last = h.clone();
        for key in 0..passes {
            last = part.forward(key, h.clone(), &[]);
        }
        finished(&last).await?;
        let forward = self.environment.now().saturating_sub(began);
        self.environment.breathe().await;
        let began = self.environment.now();
        for key in 0..passes {
            // Each as a stage does that is not the first.
            last = part.backward(key, h.clone(), true)?.unwrap_or(last);
        }
        finished(&last).await?;
        let backward = self.environment.now().saturating_sub(began);
        self.environment.breathe().await;
        let began = self.environment.now();
        part.grad_sum_of_squares().await?;
        part.apply(LR, 1.0).await?;
        let update = self.environment.now().saturating_sub(began);
        Ok(Pass {
            forward: seconds(forward, passes),
            backward: seconds(backward, passes),
            update: seconds(update, 1),
        })
    }

    /// Embedding and head, with the profile of a block beside them.
    async fn ends(&self, device: DeviceProfile, tokens: Tokens) -> Result<HostProfile, EngineError> {
        let words = self.config.vocab_size.min(WORDS);
        let first = self.config.ends.first_position.unwrap_or(0);
        let config = ModelConfig {
            vocab_size: words,
            max_position_embeddings: self
                .config
                .max_position_embeddings
                .min(first.saturating_add(tokens.whole)),
            ..self.config.clone()
        };
        let storage = storage(&self.settings);
        let (needed, memory) = (end_bytes(&config, storage), self.memory);
        if needed > memory {
            return Err(EngineError::TooLittleMemory { what: "the head", needed, memory });
        }
        let ends = Ends::made_up(&config, storage, self.device)?;
        let mut head = match config.classifier() {
            Some(_) => Some(ClassifierHead::init(&config, 0, adamw(&self.settings), self.device)?),
            None => None,
        };
        let scale = match head {
            Some(_) => 1.0,
            None => self.config.vocab_size as f64 / words as f64,
        };
        let (mut fronts, mut heads) = (Vec::new(), Vec::new());
        for samples in self.sizes()? {
            let shape = [samples as usize, tokens.measured];
            let ids: Vec<Vec<u32>> = (0..shape[0]).map(|row| row_of_ids(row, shape[1], words)).collect();
            let front = async |passes: u16| {
                let mut last = ends.embed(&ids, &[])?;
                for _ in 1..passes {
                    last = ends.embed(&ids, &[])?;
                }
                finished(&last).await
            };
            fronts.push((samples, self.fastest_of(front).await? * tokens.scale()));
            let h = made_up([shape[0], shape[1], config.hidden_size], self.device);
            let weights = vec![vec![1.0; shape[1]]; shape[0]];
            let label = match config.classifier() {
                Some(classifier) if classifier.regression => Label::Value(0.0),
                _ => Label::Class(0),
            };
            let labels = vec![label; shape[0]];
            let pass = async |passes: u16| {
                for _ in 0..passes {
                    let grad = match &mut head {
                        Some(head) => head.loss_and_grad(h.clone(), &ends, &labels, 1.0).await?.1,
                        None => ends.loss_and_grad(h.clone(), &ids, &weights).await?.1,
                    };
                    finished(&grad).await?;
                }
                Ok(())
            };
            heads.push((samples, self.fastest_of(pass).await? * tokens.scale() * scale));
        }
        Ok(HostProfile { device, front: Curve::new(fronts)?, head: Curve::new(heads)? })
    }

    /// The fewest seconds of something that does as many passes as it is told.
    async fn fastest_of(
        &self,
        mut passes: impl AsyncFnMut(u16) -> Result<(), EngineError>,
    ) -> Result<f64, EngineError> {
        passes(1).await?;
        let began = self.environment.now();
        let mut at_once = 1;
        let mut all = Vec::new();
        while goes_on(&all, self.environment.now().saturating_sub(began)) {
            self.environment.breathe().await;
            let began = self.environment.now();
            passes(at_once).await?;
            let took = seconds(self.environment.now().saturating_sub(began), at_once);
            match together(took) {
                more @ 2.. if at_once == 1 => at_once = more,
                _ => all.push(took),
            }
        }
        Ok(fastest(all))
    }
}

/// Whether another round is to be timed, after those that took so many seconds each and `since` in all: there were not enough,
/// or they are still getting faster.
fn goes_on(rounds: &[f64], since: Duration) -> bool {
    let best = |rounds: &[f64]| fastest(rounds.iter().copied());
    let is_falling = match rounds.len().checked_sub(LAST) {
        None | Some(0) => true,
        Some(before) => best(rounds) < (1.0 - FALLS) * best(&rounds[..before]),
    };
    let enough = rounds.len() >= ROUNDS || since >= ENOUGH;
    rounds.is_empty() || since < SETTLED && (!enough || is_falling)
}

/// How many passes that take so many seconds are timed together.
fn together(pass: f64) -> u16 {
    (ROUND.as_secs_f64() / pass).ceil().clamp(1.0, MOST_PASSES.into()) as u16
}

fn seconds(took: Duration, passes: u16) -> f64 {
    (took.as_secs_f64() / f64::from(passes.max(1))).max(SHORTEST)
}

fn fastest(seconds: impl IntoIterator<Item = f64>) -> f64 {
    seconds.into_iter().min_by(f64::total_cmp).unwrap_or(SHORTEST)
}

/// Hidden states `[batch, time, hidden]`, no two rows alike.
fn made_up(shape: [usize; 3], device: &Device) -> Tensor<3> {
    let values = (0..shape.iter().product()).map(|i: usize| ((i * 7919) % 1009) as f32 / 504.5 - 1.0);
    f32_to_boundary(values.collect(), shape, device)
}

/// Tokens that lie apart in the vocabulary.
fn row_of_ids(row: usize, tokens: usize, words: usize) -> Vec<u32> {
    let id = |place: usize| u32::try_from((row * 31 + place * 97) % words.max(1)).unwrap_or(0);
    (0..tokens).map(id).collect()
}

/// Waits until the device has computed a tensor: one number of it is read.
async fn finished(tensor: &Tensor<3>) -> Result<(), EngineError> {
    boundary_to_f32(tensor.clone().slice([0..1, 0..1, 0..1])).await?;
    Ok(())
}
