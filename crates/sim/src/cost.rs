//! What jobs cost: a transformer's work and bytes by its shape, and the devices that do it.

use crate::act::JobName;
use baton_plan::{BlockProfile, EndsProfile, Growth, ModelProfile};
use baton_protocol::run::{Backbone, Settings};
use baton_protocol::{codec::Precision, message::Message};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A transformer by its numbers, as its `config.json` names them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Blocks.
    pub blocks: u16,
    /// Numbers in a hidden state.
    pub hidden: u32,
    /// Width of the MLP.
    pub inner: u32,
    /// Attention heads.
    pub heads: u32,
    /// Heads of keys and values; as many as `heads` if 0.
    #[serde(default)]
    pub kv_heads: u32,
    /// Whether the MLP has a gate.
    #[serde(default = "yes")]
    pub gated: bool,
    /// Tokens in the vocabulary.
    pub vocab: u32,
}

/// Maps of a block that may get an adapter, by their Hugging Face names.
pub const PROJECTIONS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"];

fn yes() -> bool {
    true
}

impl Shape {
    /// Widths (in, out) of a block's maps, with their names.
    fn maps(&self) -> Vec<(&'static str, f64, f64)> {
        let (hidden, inner) = (f64::from(self.hidden), f64::from(self.inner));
        let kv_heads = if self.kv_heads == 0 { self.heads } else { self.kv_heads };
        let kv = hidden * f64::from(kv_heads) / f64::from(self.heads.max(1));
        let mut maps = vec![
            ("q_proj", hidden, hidden),
            ("k_proj", hidden, kv),
            ("v_proj", hidden, kv),
            ("o_proj", hidden, hidden),
            ("up_proj", hidden, inner),
            ("down_proj", inner, hidden),
        ];
        if self.gated {
            maps.push(("gate_proj", hidden, inner));
        }
        maps
    }
}

/// What the jobs of a run cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// Floating-point operations of a block's forward pass, a sample.
    pub forward: f64,
    /// Of its backward pass, the activations kept.
    pub backward: f64,
    /// Of the embedding, a sample.
    pub front: f64,
    /// Of the LM head with the loss, both ways, a sample.
    pub head: f64,
    /// Of the norm and of the update of a block's adapters, each.
    pub update: f64,
    /// Samples of a micro-batch.
    pub samples: f64,
    /// Bytes of a block in the model's files.
    pub file: f64,
    /// Bytes of a block as a device holds it.
    pub weights: f64,
    /// Bytes of the ends as the host holds them.
    pub ends: f64,
    /// Frozen numbers of a block, and of the ends.
    pub numbers: [f64; 2],
    /// Tokens of a sample.
    pub tokens: u32,
    /// Bytes of a block's adapters with gradients and moments.
    pub adapters: f64,
    /// Bytes of its adapters and moments on the way to the host.
    pub state: f64,
    /// Bytes of a sample's hidden state on the way.
    pub boundary: f64,
    /// Bytes that a block keeps of a sample for backward: all, or its input where the rest is computed again.
    pub kept: [f64; 2],
    /// Of them, those for every pair of tokens: attention's scores.
    pub scores: f64,
    /// Bytes that the one block that runs takes on top, a sample: likewise; the scores of one are in the first, of two in
    /// the other.
    pub open: [f64; 2],
}

/// Bytes of a frozen number in each of [`Storage::ALL`].
const STORED: [f64; 4] = [4.0, 2.0, 1.06, 0.53];

impl Costs {
    /// Of a transformer. Matrix products count 2 operations a weight and token; backward has those of the input's
    /// gradient only, for the weights are frozen (LoRA), and attention's products twice.
    pub fn transformer(shape: &Shape, settings: &Settings) -> Self {
        let tokens = f64::from(settings.seq_len);
        let hidden = f64::from(shape.hidden);
        let maps = shape.maps();
        let weights: f64 = maps.iter().map(|(_, a, b)| a * b).sum();
        let named = |name: &str| settings.targets.iter().any(|target| target == name);
        let adapted: f64 = maps.iter().filter(|(name, ..)| named(name)).map(|(_, a, b)| a + b).sum::<f64>();
        let adapter = f64::from(settings.lora_rank) * adapted;
        let attention = 4.0 * tokens * hidden;
        let forward = tokens * (2.0 * weights + attention + 2.0 * adapter);
        let place = Backbone::ALL.iter().position(|backbone| *backbone == settings.backbone);
        let bytes = place.and_then(|place| STORED.get(place)).copied().unwrap_or(STORED[0]);
        let crossing = match settings.boundary {
            Precision::F32 => 4.0,
            _ => 2.0,
        };
        // As `baton_model::stage_memory` counts what the graph of a block keeps.
        let kv: f64 = maps.iter().filter(|(name, ..)| *name == "k_proj").map(|(.., b)| b).sum();
        let mlp = f64::from(shape.inner) * if shape.gated { 5.0 } else { 2.0 };
        let scores = 4.0 * 3.0 * f64::from(shape.heads);
        let trace = 4.0 * tokens * (6.0 * hidden + 2.0 * kv + mlp) + scores * tokens * tokens;
        let input = 4.0 * tokens * hidden;
        let vocab = f64::from(shape.vocab) * hidden;
        Self {
            forward,
            backward: tokens * (2.0 * weights + 2.0 * attention + 4.0 * adapter),
            front: 2.0 * tokens * hidden,
            head: 4.0 * tokens * vocab,
            update: 10.0 * adapter,
            samples: f64::from(settings.batch_size) / f64::from(settings.micro_batches.max(1)),
            file: 2.0 * weights,
            weights: bytes * weights,
            ends: bytes * vocab,
            numbers: [weights, vocab],
            tokens: settings.seq_len,
            adapters: 16.0 * adapter,
            state: 12.0 * adapter,
            boundary: crossing * tokens * hidden,
            kept: [trace, input],
            scores,
            open: [trace, 2.0 * trace],
        }
    }

    /// Cuts a step of `batch` samples in so many micro-batches.
    pub fn cut(&mut self, batch: u32, micro_batches: u16) {
        self.samples = f64::from(batch) / f64::from(micro_batches.max(1));
    }

    /// Operations of a job over so many blocks, on the host (`ends`) or on a stage, with activations computed again or not.
    pub fn work(&self, job: JobName, blocks: u16, ends: bool, recompute: bool) -> f64 {
        let again = if recompute { self.forward } else { 0.0 };
        let (blocks, samples) = (f64::from(blocks), self.samples);
        let front = if ends { self.front } else { 0.0 };
        match job {
            JobName::Load | JobName::Measure => 0.0,
            JobName::Check => samples * blocks * self.forward,
            JobName::Forward => samples * (blocks * self.forward + front),
            JobName::Head => samples * self.head,
            JobName::Backward => samples * blocks * (self.backward + again),
            JobName::Norm | JobName::Apply => blocks * self.update,
            JobName::Infer => blocks * self.forward + front,
        }
    }

    /// Bytes of a message on the way; `encoded` are those of its bare form, without the model's numbers.
    pub fn message(&self, message: &Message, encoded: f64) -> f64 {
        let states = |count: usize| count as f64 * self.state;
        encoded
            + match message {
                Message::Forward { .. } | Message::Backward { tensor: Some(_), .. } => {
                    self.samples * self.boundary
                }
                Message::Infer { .. } => self.boundary,
                Message::Applied { states: of, .. } => states(of.len()),
                Message::Assign(assign) => states(assign.states.len()),
                _ => 0.0,
            }
    }

    /// The model as the planner is told of it.
    pub fn profile(&self, blocks: u16, settings: &Settings) -> ModelProfile {
        let tokens = f64::from(self.tokens.max(1));
        // Of a sample of so many tokens, with the scores of so many blocks.
        let growth = |bytes: f64, of: f64| {
            let quadratic = of * self.scores;
            let linear = (bytes - quadratic * tokens * tokens).max(0.0) / tokens;
            Growth { linear: linear.ceil() as u64, quadratic: quadratic as u64 }
        };
        let stored = |numbers: f64| STORED.map(|bytes| (bytes * numbers) as u64);
        let block = BlockProfile {
            work: 1.0,
            frozen: stored(self.numbers[0]),
            adapters: self.adapters as u64,
            state: self.state as u64,
            kept: growth(self.kept[0], 1.0),
            input: growth(self.kept[1], 0.0),
            open: growth(self.open[0], 1.0),
            open_recompute: growth(self.open[1], 2.0),
        };
        let numbers = match settings.boundary {
            Precision::F32 => self.boundary / 4.0,
            Precision::F16 => self.boundary / 2.0,
        };
        ModelProfile {
            blocks: vec![block; blocks.into()],
            ends: EndsProfile { frozen: stored(self.numbers[1]), ..EndsProfile::default() },
            tokens: tokens as u64,
            hidden: (numbers / tokens).ceil() as u64,
            buffers: Growth::default(),
            loading: 0,
        }
    }

    /// Bytes that a stage of so many blocks holds with so many micro-batches in flight.
    pub fn memory(&self, blocks: u16, in_flight: u16, recompute: bool) -> f64 {
        let (kept, open) = (self.kept[usize::from(recompute)], self.open[usize::from(recompute)]);
        let (blocks, in_flight) = (f64::from(blocks), f64::from(in_flight));
        let resting = blocks * (self.weights + self.adapters);
        let open = if blocks > 0.0 { self.samples * open } else { 0.0 };
        resting + in_flight * blocks * self.samples * kept + open
    }
}

/// How a device is reached: the way from it to the middle of the room's network, and back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    /// Bytes a second that it sends.
    pub up: f64,
    /// Bytes a second that it receives.
    pub down: f64,
    /// One way.
    pub latency: Duration,
    /// What is added at most, drawn for each frame.
    pub jitter: Duration,
    /// Share of packets that get lost; the channel sends them again.
    pub loss: f64,
}

impl Access {
    /// As if there were no distance.
    pub const IDEAL: Self = Self {
        up: f64::INFINITY,
        down: f64::INFINITY,
        latency: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
    };
}

/// A device that gets slower as it works, and recovers as it rests.
///
/// Newton's law: its heat goes to 1 while it works and to 0 while it rests, each with a time constant. Up to a heat of
/// one half it is as fast as ever, from there its speed falls linearly to `slowest`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thermal {
    /// The share of its speed that is left when it is as hot as it gets.
    pub slowest: f64,
    /// Time constant of working.
    pub warms: Duration,
    /// Time constant of resting.
    pub cools: Duration,
}

impl Thermal {
    /// The share of its speed that is left at a heat of 0 to 1.
    pub fn speed(&self, heat: f64) -> f64 {
        1.0 - (2.0 * heat - 1.0).max(0.0) * (1.0 - self.slowest)
    }
}

/// A device by its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceSpec {
    /// What its owner calls it.
    pub name: String,
    /// Floating-point operations a second when it is cool.
    pub flops: f64,
    /// What every job takes beside its operations.
    pub overhead: Duration,
    /// Bytes that a stage may hold; one that holds more is killed by the system, as iOS does.
    pub memory: Option<f64>,
    /// Whether it gets slower as it works.
    pub thermal: Option<Thermal>,
    /// How it is reached.
    pub access: Access,
    /// Bytes a second that it reads from its own disk.
    pub disk: f64,
}

impl Default for DeviceSpec {
    fn default() -> Self {
        Self {
            name: "phone".into(),
            flops: 20e9,
            overhead: Duration::ZERO,
            memory: None,
            thermal: None,
            access: Access::IDEAL,
            disk: 500e6,
        }
    }
}

/// How warm a device is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Heat {
    heat: f64,
    at: Duration,
}

impl Heat {
    /// How long a job of `flop` operations takes from `now`; the device is warmer then.
    pub(crate) fn work(&mut self, device: &DeviceSpec, flop: f64, now: Duration) -> Duration {
        let Some(thermal) = &device.thermal else {
            return device.overhead + seconds(flop / device.flops);
        };
        let share = |time: Duration, constant: Duration| (-time.as_secs_f64() / constant.as_secs_f64()).exp();
        self.heat *= share(now.saturating_sub(self.at), thermal.cools);
        let time = device.overhead + seconds(flop / (device.flops * thermal.speed(self.heat)));
        self.heat = 1.0 - (1.0 - self.heat) * share(time, thermal.warms);
        self.at = now + time;
        time
    }
}

/// Seconds as a duration, to the nanosecond; what is no time at all, or longer than any run, is cut.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, 1e9)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_slows_down_with_work_and_recovers_with_rest() {
        let thermal =
            Thermal { slowest: 0.4, warms: Duration::from_secs(60), cools: Duration::from_secs(120) };
        let device = DeviceSpec { flops: 1e9, thermal: Some(thermal), ..DeviceSpec::default() };
        let (mut heat, mut now, mut times) = (Heat::default(), Duration::ZERO, Vec::new());
        for _ in 0..300 {
            let time = heat.work(&device, 1e9, now);
            now += time;
            times.push(time.as_secs_f64());
        }
        assert!(times.is_sorted() && times[0] == 1.0 && times[30] == 1.0);
        assert!((times[299] - 2.5).abs() < 0.05, "{}", times[299]);
        let rested = heat.work(&device, 1e9, now + Duration::from_secs(600));
        assert_eq!(rested, Duration::from_secs(1));
    }

    #[test]
    fn costs_follow_the_shape() {
        // SmolLM2-135M: 30 blocks of 3.54 million weights.
        let shape =
            Shape { blocks: 30, hidden: 576, inner: 1536, heads: 9, kv_heads: 3, gated: true, vocab: 49_152 };
        let settings = Settings { seq_len: 64, batch_size: 4, micro_batches: 4, ..Settings::default() };
        let costs = Costs::transformer(&shape, &settings);
        assert_eq!(costs.weights, 4.0 * 3_538_944.0);
        assert_eq!(costs.boundary, 2.0 * 64.0 * 576.0);
        let backward = |recompute| costs.work(JobName::Backward, 2, false, recompute);
        assert_eq!(backward(true) - backward(false), costs.work(JobName::Forward, 2, false, false));
        assert!(costs.kept[1] < costs.kept[0] / 5.0);
        let one = costs.memory(3, 1, false);
        assert!((costs.memory(3, 3, false) - one - 2.0 * 3.0 * costs.kept[0]).abs() < 1.0);
        assert_eq!(costs.memory(0, 0, false), 0.0);
    }

    #[test]
    fn the_planner_is_told_of_every_storage_and_of_what_grows_with_a_text() {
        let shape =
            Shape { blocks: 30, hidden: 576, inner: 1536, heads: 9, kv_heads: 3, gated: true, vocab: 49_152 };
        let settings = |seq_len, backbone| Settings {
            seq_len,
            backbone,
            batch_size: 4,
            micro_batches: 4,
            ..Settings::default()
        };
        let costs = |seq_len, backbone| Costs::transformer(&shape, &settings(seq_len, backbone));
        let profile = costs(128, Backbone::F32).profile(30, &settings(128, Backbone::F32));
        assert_eq!((profile.tokens, profile.hidden), (128, 576));
        for (place, backbone) in Backbone::ALL.into_iter().enumerate() {
            assert_eq!(profile.blocks[0].frozen[place], costs(128, backbone).weights as u64);
            assert_eq!(profile.ends.frozen[place], costs(128, backbone).ends as u64);
        }
        // What is said of one length holds for another.
        let block = &profile.blocks[0];
        for tokens in [32, 128, 1024] {
            let costs = costs(tokens, Backbone::F32);
            let told = [block.kept, block.input, block.open, block.open_recompute];
            for (growth, bytes) in told.iter().zip([costs.kept, costs.open].concat()) {
                assert_eq!(growth.bytes(tokens.into()), bytes as u64, "{tokens}");
            }
        }
    }
}
