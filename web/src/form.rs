//! The settings as a person types them, and as numbers.

use baton_protocol::{
    codec::Precision,
    run::{LrSchedule, Settings},
};
use serde::{Deserialize, Serialize};

/// The projections that can have an adapter.
pub(crate) const TARGETS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// JavaScript's numbers are exact up to here.
const MAX_SEED: u64 = (1 << 53) - 1;

/// What stands in the fields; whatever it is, it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Form {
    pub(crate) steps: String,
    pub(crate) batch_size: String,
    pub(crate) micro_batches: String,
    pub(crate) seq_len: String,
    pub(crate) lora_rank: String,
    pub(crate) lora_alpha: String,
    pub(crate) targets: Vec<String>,
    pub(crate) lr: String,
    pub(crate) lr_schedule: String,
    pub(crate) warmup_steps: String,
    pub(crate) weight_decay: String,
    pub(crate) grad_clip: String,
    pub(crate) seed: String,
    pub(crate) shuffle: bool,
    pub(crate) append_eos: bool,
    pub(crate) packing: bool,
    pub(crate) boundary: String,
    pub(crate) recompute: bool,
    pub(crate) sample_tokens: String,
}

impl Default for Form {
    fn default() -> Self {
        let s = Settings::default();
        Self {
            steps: s.steps.to_string(),
            batch_size: s.batch_size.to_string(),
            micro_batches: s.micro_batches.to_string(),
            seq_len: s.seq_len.to_string(),
            lora_rank: s.lora_rank.to_string(),
            lora_alpha: s.lora_alpha.to_string(),
            targets: s.targets,
            lr: s.lr.to_string(),
            lr_schedule: match s.lr_schedule {
                LrSchedule::Constant => "constant",
                LrSchedule::Linear => "linear",
                LrSchedule::Cosine => "cosine",
            }
            .into(),
            warmup_steps: s.warmup_steps.to_string(),
            weight_decay: s.weight_decay.to_string(),
            grad_clip: s.grad_clip.to_string(),
            seed: s.seed.to_string(),
            shuffle: s.shuffle,
            append_eos: s.append_eos,
            packing: s.packing,
            boundary: if s.boundary == Precision::F32 { "f32" } else { "f16" }.into(),
            recompute: s.recompute,
            sample_tokens: s.sample_tokens.to_string(),
        }
    }
}

fn read<T: std::str::FromStr>(name: &str, wanted: &str, text: &str) -> Result<T, String> {
    let text = text.trim();
    text.parse().map_err(|_| {
        if text.is_empty() {
            format!("{name} is empty: it must be {wanted}.")
        } else {
            format!("{name} is “{text}”: it must be {wanted}.")
        }
    })
}

impl Form {
    /// The settings, or what is wrong in words.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        let whole = "a whole number";
        let settings = Settings {
            steps: read("Steps", whole, &self.steps)?,
            batch_size: read("Batch size", whole, &self.batch_size)?,
            micro_batches: read("Micro-batches", whole, &self.micro_batches)?,
            seq_len: read("Sequence length", whole, &self.seq_len)?,
            lora_rank: read("LoRA rank", whole, &self.lora_rank)?,
            lora_alpha: read("LoRA alpha", "a number", &self.lora_alpha)?,
            targets: self.targets.clone(),
            lr: read("Learning rate", "a number such as 0.002 or 2e-3", &self.lr)?,
            lr_schedule: match self.lr_schedule.as_str() {
                "constant" => LrSchedule::Constant,
                "linear" => LrSchedule::Linear,
                _ => LrSchedule::Cosine,
            },
            warmup_steps: read("Warm-up", whole, &self.warmup_steps)?,
            weight_decay: read("Weight decay", "a number", &self.weight_decay)?,
            grad_clip: read("Gradient clip", "a number", &self.grad_clip)?,
            seed: read("Seed", whole, &self.seed)?,
            shuffle: self.shuffle,
            append_eos: self.append_eos,
            packing: self.packing,
            boundary: if self.boundary == "f32" { Precision::F32 } else { Precision::F16 },
            recompute: self.recompute,
            sample_tokens: read("Sample length", whole, &self.sample_tokens)?,
        };
        if settings.seed > MAX_SEED {
            return Err(format!("Seed is {}: it must be at most {MAX_SEED}.", settings.seed));
        }
        settings.validate().map_err(|error| {
            let words = error.to_string();
            let mut chars = words.chars();
            chars
                .next()
                .map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), chars.as_str()))
        })?;
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn the_defaults_read_back() {
        assert_eq!(Form::default().settings(), Ok(Settings::default()));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_is_typed_wrong_is_named() {
        let wrong = Form { steps: "many".into(), ..Form::default() };
        assert_eq!(wrong.settings(), Err("Steps is “many”: it must be a whole number.".into()));
        let wrong = Form { steps: "0".into(), ..Form::default() };
        assert_eq!(wrong.settings(), Err("Steps is 0, and must be 1 to 1,000,000.".into()));
        let wrong = Form { seed: u64::MAX.to_string(), ..Form::default() };
        assert!(wrong.settings().is_err());
    }
}
