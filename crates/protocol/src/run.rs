//! What a run is: the settings that a person chooses and the specification that every stage is given.

use crate::codec::Precision;
use serde::{Deserialize, Serialize};

/// What a person (or a command line) chooses for a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Optimizer updates.
    pub steps: u32,
    /// Samples a step.
    pub batch_size: u32,
    /// Slices of a step's batch, M.
    pub micro_batches: u16,
    /// So many micro-batches more than 1F1B's P − p may be in flight at every position p of P; a plan's own, not a person's.
    pub ahead: u16,
    /// The longest sample in tokens; longer ones are cut.
    pub seq_len: u32,
    /// Rank r of the adapters.
    pub lora_rank: u16,
    /// α; the adapter's output is scaled by α/r.
    pub lora_alpha: f64,
    /// Projections that get an adapter, by their Hugging Face names.
    pub targets: Vec<String>,
    /// The peak learning rate.
    pub lr: f64,
    /// Its course after warm-up.
    pub lr_schedule: LrSchedule,
    /// Steps over which it rises linearly from 0.
    pub warmup_steps: u32,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The norm to which the whole gradient is clipped; 0 is never.
    pub grad_clip: f64,
    /// Makes the run repeatable: adapter initialisation and the order of the samples.
    pub seed: u64,
    /// Whether the samples of every epoch are drawn in a new order.
    pub shuffle: bool,
    /// Whether every sample ends with the end token.
    pub append_eos: bool,
    /// Whether samples are joined and cut in pieces of `seq_len` instead of padded.
    pub packing: bool,
    /// How boundaries travel.
    pub boundary: Precision,
    /// Whether a stage computes its activations again in backward instead of keeping them.
    pub recompute: bool,
    /// How the frozen weights are kept on every device.
    pub backbone: Backbone,
    /// The share of the samples that is kept out of training to judge it by; 0 is none.
    pub validation: f64,
    /// Steps between two judgements; 0 is before the first and after the last only.
    pub evaluate_every: u32,
    /// Tokens that the model writes before and after the run, to compare; 0 is none.
    pub sample_tokens: u32,
    /// What is left to the planner.
    pub freedom: Freedom,
    /// What it looks for.
    pub aim: Aim,
}

/// What a plan is to be good at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// The shortest step among the plans that every device has the memory for.
    #[default]
    Time,
    /// The least memory of the most loaded device. What is left to the planner is chosen for that, too: as many micro-batches as
    /// there may be, activations computed again, none more in flight than 1F1B has. In rooms of up to 64 devices.
    Memory,
}

/// What the planner may choose from what the devices of a room measured; none of it changes what is learned, but for the
/// rounding of sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Freedom {
    /// Into how many micro-batches a step is cut; [`Settings::micro_batches`] until it knows.
    pub micro_batches: bool,
    /// How many of them are in flight: more than [`Settings::ahead`] where the way between devices is long.
    pub ahead: bool,
    /// Which devices compute activations again: those that lack the memory to keep them, or all where little memory is the
    /// aim.
    pub recompute: bool,
    /// Whether the host has blocks of its own beside others that have some, as many as make a step the shortest.
    /// Otherwise it takes those that the others cannot hold.
    pub host_blocks: bool,
}

impl Freedom {
    /// All of it.
    pub const FULL: Self = Self { micro_batches: true, ahead: true, recompute: true, host_blocks: true };
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            steps: 60,
            batch_size: 8,
            micro_batches: 4,
            ahead: 0,
            seq_len: 128,
            lora_rank: 8,
            lora_alpha: 16.0,
            // The embedded model in a minute: with q_proj and v_proj, or at 2e-3, its 60 steps change too little to see
            // (docs/default-model.md).
            targets: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
                .map(String::from)
                .to_vec(),
            lr: 1.5e-2,
            lr_schedule: LrSchedule::Cosine,
            warmup_steps: 5,
            weight_decay: 0.0,
            grad_clip: 1.0,
            seed: 0,
            shuffle: true,
            append_eos: true,
            packing: false,
            boundary: Precision::F16,
            recompute: false,
            backbone: Backbone::F32,
            validation: 0.1,
            evaluate_every: 10,
            sample_tokens: 48,
            freedom: Freedom::default(),
            aim: Aim::default(),
        }
    }
}

/// How frozen weights are kept on a device. What is trained, and what crosses, is never stored like this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backbone {
    /// 4 bytes a weight.
    #[default]
    F32,
    /// 2 bytes: the upper half of f32.
    Bf16,
    /// 1.06 bytes: blocks of 32 with a scale.
    Int8,
    /// 0.53 bytes: the 4-bit normal floats of QLoRA (Dettmers et al. 2023, <https://arxiv.org/abs/2305.14314>), blocks
    /// of 64 with a scale.
    Nf4,
}

impl Backbone {
    /// All of them, from the largest.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Nf4];

    /// The name in settings and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Nf4 => "nf4",
        }
    }
}

impl std::str::FromStr for Backbone {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|backbone| backbone.name() == name);
        found.ok_or_else(|| format!("\"{name}\" is not one of f32, bf16, int8 and nf4"))
    }
}

/// The course of the learning rate after warm-up, as transformers' schedulers of the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Stays at the peak.
    Constant,
    /// Falls linearly to 0 at the last step.
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
}

/// A setting that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// A number outside its range.
    #[error("{name} is {found}, and must be {wanted}")]
    OutOfRange {
        /// Which setting.
        name: &'static str,
        /// Its value.
        found: String,
        /// The range in words.
        wanted: &'static str,
    },
    /// There would be empty micro-batches.
    #[error(
        "a batch of {batch_size} samples cannot be cut in {micro_batches} micro-batches of at least one sample"
    )]
    TooManyMicroBatches {
        /// Samples a step.
        batch_size: u32,
        /// Slices asked for.
        micro_batches: u16,
    },
    /// Warm-up would never end.
    #[error("a warm-up of {warmup_steps} steps is longer than the run of {steps} steps")]
    WarmupTooLong {
        /// Steps of warm-up.
        warmup_steps: u32,
        /// Steps in all.
        steps: u32,
    },
}

/// Peak learning rates by the size of the model (fewer parameters than), a starting point: an adapter of a small model
/// bears far larger ones than one of a large model. The first is measured on the embedded model, the last is QLoRA's
/// (Dettmers et al. 2023, <https://arxiv.org/abs/2305.14314>, table 9); between them it falls with the width.
const SUGGESTED_LRS: [(u64, f64); 4] =
    [(10_000_000, 1.5e-2), (100_000_000, 2e-3), (1_000_000_000, 5e-4), (u64::MAX, 2e-4)];

impl Settings {
    /// A peak learning rate to begin with for a model of so many parameters.
    pub fn suggested_lr(parameters: u64) -> f64 {
        let fits = SUGGESTED_LRS.iter().find(|(below, _)| parameters < *below);
        fits.map_or(2e-4, |(_, lr)| *lr)
    }

    /// Whether a learning rate is a suggestion, and not one that a person chose.
    pub fn is_suggested_lr(lr: f64) -> bool {
        SUGGESTED_LRS.iter().any(|(_, suggested)| *suggested == lr)
    }

    /// Checks every number against its range; a stage checks what it is sent, a page what a person typed.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let check = |ok: bool, name, found: String, wanted| {
            if ok { Ok(()) } else { Err(SettingsError::OutOfRange { name, found, wanted }) }
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let not_negative = |x: f64| x.is_finite() && x >= 0.0;
        check((1..=1_000_000).contains(&self.steps), "steps", self.steps.to_string(), "1 to 1,000,000")?;
        check((1..=4096).contains(&self.batch_size), "batch size", self.batch_size.to_string(), "1 to 4096")?;
        check(
            (1..=1024).contains(&self.micro_batches),
            "micro-batches",
            self.micro_batches.to_string(),
            "1 to 1024",
        )?;
        check(self.ahead <= 1024, "micro-batches ahead", self.ahead.to_string(), "at most 1024")?;
        check(
            (2..=131_072).contains(&self.seq_len),
            "sequence length",
            self.seq_len.to_string(),
            "2 to 131,072",
        )?;
        check((1..=1024).contains(&self.lora_rank), "LoRA rank", self.lora_rank.to_string(), "1 to 1024")?;
        check(positive(self.lora_alpha), "LoRA alpha", self.lora_alpha.to_string(), "above 0")?;
        check(!self.targets.is_empty(), "LoRA targets", "empty".into(), "at least one projection")?;
        check(not_negative(self.lr) && self.lr <= 10.0, "learning rate", self.lr.to_string(), "0 to 10")?;
        check(not_negative(self.weight_decay), "weight decay", self.weight_decay.to_string(), "0 or more")?;
        check(
            not_negative(self.grad_clip),
            "gradient clip",
            self.grad_clip.to_string(),
            "0 (never) or more",
        )?;
        check(
            (0.0..=0.5).contains(&self.validation),
            "validation share",
            self.validation.to_string(),
            "0 (none) to 0.5",
        )?;
        if u32::from(self.micro_batches) > self.batch_size {
            let (batch_size, micro_batches) = (self.batch_size, self.micro_batches);
            return Err(SettingsError::TooManyMicroBatches { batch_size, micro_batches });
        }
        if self.warmup_steps > self.steps {
            let (warmup_steps, steps) = (self.warmup_steps, self.steps);
            return Err(SettingsError::WarmupTooLong { warmup_steps, steps });
        }
        Ok(())
    }

    /// Whether the model is judged on the samples kept out of training when `done` steps are complete.
    pub fn evaluates_after(&self, done: u32) -> bool {
        let due = done.checked_rem(self.evaluate_every).is_some_and(|rest| rest == 0);
        self.validation > 0.0 && (due || done == 0 || done == self.steps)
    }

    /// The learning rate of a step, counted from 0. As in transformers, warm-up starts at 0: with one, the first
    /// update changes nothing.
    pub fn lr_at(&self, step: u32) -> f64 {
        if step < self.warmup_steps {
            return self.lr * f64::from(step) / f64::from(self.warmup_steps);
        }
        let after = f64::from(self.steps.saturating_sub(self.warmup_steps)).max(1.0);
        let progress = (f64::from(step - self.warmup_steps) / after).min(1.0);
        self.lr
            * match self.lr_schedule {
                LrSchedule::Constant => 1.0,
                LrSchedule::Linear => 1.0 - progress,
                LrSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            }
    }
}

/// Where a stage fetches its blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelSource {
    /// The model that ships with the page: every device has its own copy at hand.
    Embedded,
    /// By byte range from a URL of a folder in the Hugging Face layout.
    Url(String),
    /// By byte range from the host, over the data channel.
    Host,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_those_of_transformers() {
        // transformers.get_{linear,cosine}_schedule_with_warmup(optimizer, 2, 6), lr 1
        let lrs = |lr_schedule| {
            let settings =
                Settings { steps: 6, warmup_steps: 2, lr: 1.0, lr_schedule, ..Settings::default() };
            (0..6).map(|step| settings.lr_at(step)).collect::<Vec<_>>()
        };
        assert_eq!(lrs(LrSchedule::Linear), [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
        assert_eq!(lrs(LrSchedule::Constant), [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]);
        let cosine = [0.0, 0.5, 1.0, 0.853_553_390_593_273_8, 0.5, 0.146_446_609_406_726_24];
        for (got, want) in lrs(LrSchedule::Cosine).into_iter().zip(cosine) {
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
    }

    #[test]
    fn the_default_is_the_suggestion_for_the_embedded_model_and_larger_ones_get_less() {
        assert_eq!(Settings::suggested_lr(1_000_000), Settings::default().lr);
        let suggested =
            [1_000_000, 22_000_000, 135_000_000, 1_100_000_000, u64::MAX].map(Settings::suggested_lr);
        assert!(
            suggested.is_sorted_by(|a, b| a >= b)
                && suggested.iter().all(|lr| Settings::is_suggested_lr(*lr))
        );
        assert!(!Settings::is_suggested_lr(3e-3));
    }

    #[test]
    fn the_model_is_judged_before_between_and_after() {
        let due = |settings: &Settings| {
            (0..=settings.steps).filter(|done| settings.evaluates_after(*done)).collect::<Vec<_>>()
        };
        let settings = Settings { steps: 7, evaluate_every: 3, ..Settings::default() };
        assert_eq!(due(&settings), [0, 3, 6, 7]);
        assert_eq!(due(&Settings { evaluate_every: 0, ..settings.clone() }), [0, 7]);
        assert!(due(&Settings { validation: 0.0, ..settings }).is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let refuse = |settings: Settings| settings.validate().unwrap_err().to_string();
        assert_eq!(Settings::default().validate(), Ok(()));
        assert!(refuse(Settings { steps: 0, ..Settings::default() }).contains("steps is 0"));
        assert!(refuse(Settings { lr: f64::NAN, ..Settings::default() }).contains("learning rate is NaN"));
        assert!(refuse(Settings { micro_batches: 9, ..Settings::default() }).contains("9 micro-batches"));
        assert!(refuse(Settings { warmup_steps: 61, ..Settings::default() }).contains("warm-up of 61"));
    }
}
