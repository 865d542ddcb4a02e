//! The settings as a person types them, and as numbers.

use crate::format;
use baton_protocol::{
    codec::Precision,
    run::{Aim, Backbone, Freedom, LrSchedule, Settings, SettingsError},
};
use baton_web_api::TargetInfo;
use serde::{Deserialize, Serialize};

/// The name that means every projection, whatever the model calls them.
pub(crate) const ALL_LINEAR: &str = "all-linear";

/// JavaScript's numbers are exact up to here.
const MAX_SEED: u64 = (1 << 53) - 1;

/// What stands in the fields; whatever it is, it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Form {
    pub(crate) steps: String,
    pub(crate) batch_size: String,
    /// Empty: the planner chooses.
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
    /// Whether they are computed again in backward: "auto", "always" or "never".
    pub(crate) activations: String,
    /// Whether this device has blocks of its own where that is faster.
    pub(crate) host_blocks: bool,
    pub(crate) aim: String,
    pub(crate) backbone: String,
    pub(crate) validation: String,
    pub(crate) evaluate_every: String,
    pub(crate) sample_tokens: String,
}

impl Default for Form {
    fn default() -> Self {
        let s = Settings::default();
        Self {
            steps: s.steps.to_string(),
            batch_size: s.batch_size.to_string(),
            micro_batches: String::new(),
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
            activations: "auto".into(),
            host_blocks: true,
            aim: "time".into(),
            backbone: s.backbone.name().into(),
            validation: s.validation.to_string(),
            evaluate_every: s.evaluate_every.to_string(),
            sample_tokens: s.sample_tokens.to_string(),
        }
    }
}

/// A field that cannot be used as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// The id of the field.
    pub(crate) field: &'static str,
    /// What is wrong with it.
    pub(crate) words: String,
}

/// Where all the projections are chosen; it is no field of its own.
pub(crate) const TARGETS_FIELD: &str = "set-targets";

fn read<T: std::str::FromStr>(field: &'static str, name: &str, wanted: &str, text: &str) -> Result<T, Wrong> {
    let text = text.trim();
    text.parse().map_err(|_| {
        let words = if text.is_empty() {
            format!("{name} is empty: it must be {wanted}.")
        } else {
            format!("{name} is “{text}”: it must be {wanted}.")
        };
        Wrong { field, words }
    })
}

impl From<SettingsError> for Wrong {
    fn from(error: SettingsError) -> Self {
        let field = match &error {
            SettingsError::OutOfRange { name, .. } => match *name {
                "steps" => "set-steps",
                "batch size" => "set-batch_size",
                "micro-batches" => "set-micro_batches",
                "sequence length" => "set-seq_len",
                "LoRA rank" => "set-lora_rank",
                "LoRA alpha" => "set-lora_alpha",
                "LoRA targets" => TARGETS_FIELD,
                "learning rate" => "set-lr",
                "weight decay" => "set-weight_decay",
                "gradient clip" => "set-grad_clip",
                "validation share" => "set-validation",
                _ => "settings",
            },
            SettingsError::TooManyMicroBatches { .. } => "set-micro_batches",
            SettingsError::WarmupTooLong { .. } => "set-warmup_steps",
        };
        let words = match &error {
            SettingsError::OutOfRange { name: "LoRA targets", .. } => {
                "“Projections that learn” is empty: choose at least one.".into()
            }
            SettingsError::TooManyMicroBatches { batch_size, micro_batches } => format!(
                "Micro-batches is {micro_batches}, and a batch of {} can be cut in {batch_size} at most.",
                format::plural(u64::from(*batch_size), "sample", "samples"),
            ),
            SettingsError::WarmupTooLong { warmup_steps, steps } => format!(
                "Warm-up steps is {warmup_steps}, and the run has only {}.",
                format::plural(u64::from(*steps), "step", "steps"),
            ),
            SettingsError::OutOfRange { .. } => {
                let words = error.to_string();
                let mut chars = words.chars();
                chars
                    .next()
                    .map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), chars.as_str()))
            }
        };
        Self { field, words }
    }
}

impl Form {
    /// The settings, or which field is wrong and why.
    pub(crate) fn settings(&self) -> Result<Settings, Wrong> {
        let settings = Settings {
            steps: read("set-steps", "Steps", "a whole number from 1 to 1,000,000", &self.steps)?,
            batch_size: read(
                "set-batch_size",
                "Batch size",
                "a whole number from 1 to 4096",
                &self.batch_size,
            )?,
            micro_batches: self.micro_batches()?,
            ahead: 0,
            seq_len: read(
                "set-seq_len",
                "Sequence length",
                "a whole number from 2 to 131,072",
                &self.seq_len,
            )?,
            lora_rank: read("set-lora_rank", "LoRA rank", "a whole number from 1 to 1024", &self.lora_rank)?,
            lora_alpha: read("set-lora_alpha", "LoRA alpha", "a number above 0", &self.lora_alpha)?,
            targets: self.targets.clone(),
            lr: read("set-lr", "Learning rate", "a number from 0 to 10, such as 0.002 or 2e-3", &self.lr)?,
            lr_schedule: match self.lr_schedule.as_str() {
                "constant" => LrSchedule::Constant,
                "linear" => LrSchedule::Linear,
                _ => LrSchedule::Cosine,
            },
            warmup_steps: read(
                "set-warmup_steps",
                "Warm-up steps",
                "a whole number from 0 to the number of steps",
                &self.warmup_steps,
            )?,
            weight_decay: read(
                "set-weight_decay",
                "Weight decay",
                "a number, 0 or more",
                &self.weight_decay,
            )?,
            grad_clip: read(
                "set-grad_clip",
                "Gradient clip",
                "a number, 0 (never) or more",
                &self.grad_clip,
            )?,
            seed: read("set-seed", "Seed", &format!("a whole number from 0 to {MAX_SEED}"), &self.seed)?,
            shuffle: self.shuffle,
            append_eos: self.append_eos,
            packing: self.packing,
            boundary: if self.boundary == "f32" { Precision::F32 } else { Precision::F16 },
            recompute: self.activations == "always",
            backbone: self.backbone(),
            validation: read(
                "set-validation",
                "Kept for validation",
                "a share from 0 (none) to 0.5, such as 0.1",
                &self.validation,
            )?,
            evaluate_every: read(
                "set-evaluate_every",
                "Steps between judgements",
                "a whole number, 0 (only before and after) or more",
                &self.evaluate_every,
            )?,
            sample_tokens: read(
                "set-sample_tokens",
                "Sample length",
                "a whole number, 0 (none) or more",
                &self.sample_tokens,
            )?,
            freedom: Freedom {
                micro_batches: self.micro_batches.trim().is_empty(),
                ahead: true,
                recompute: self.activations == "auto",
                host_blocks: self.host_blocks,
            },
            aim: if self.aim == "memory" { Aim::Memory } else { Aim::Time },
        };
        if settings.seed > MAX_SEED {
            let words = format!("Seed is {}: it must be at most {MAX_SEED}.", settings.seed);
            return Err(Wrong { field: "set-seed", words });
        }
        settings.validate()?;
        Ok(settings)
    }

    /// What is typed; if nothing is, what holds until the planner has chosen, which a small batch may be too small for.
    fn micro_batches(&self) -> Result<u16, Wrong> {
        if self.micro_batches.trim().is_empty() {
            let usual = Settings::default().micro_batches;
            return Ok(self.batch_size.trim().parse().unwrap_or(usual).clamp(1, usual));
        }
        let wanted = "a whole number from 1 to 1024, or empty (the devices' own choice)";
        read("set-micro_batches", "Micro-batches", wanted, &self.micro_batches)
    }

    /// How frozen weights are to be kept.
    pub(crate) fn backbone(&self) -> Backbone {
        self.backbone.parse().unwrap_or_default()
    }

    /// Whether a projection is to have an adapter.
    pub(crate) fn has_target(&self, name: &str) -> bool {
        self.targets.iter().any(|target| target == ALL_LINEAR || target == name)
    }

    /// Chooses the projections of which `is_chosen` is true; all of them are [`ALL_LINEAR`].
    fn choose_targets(&mut self, of: &[TargetInfo], is_chosen: impl Fn(&str) -> bool) {
        let chosen: Vec<String> =
            of.iter().filter(|target| is_chosen(&target.name)).map(|target| target.name.clone()).collect();
        self.targets = if chosen.len() == of.len() { vec![ALL_LINEAR.to_owned()] } else { chosen };
    }

    /// Puts an adapter on a projection of a model that has those of `of`, or takes it off.
    pub(crate) fn set_target(&mut self, of: &[TargetInfo], name: &str, on: bool) {
        let before = self.clone();
        self.choose_targets(of, |other| if other == name { on } else { before.has_target(other) });
    }

    /// Puts an adapter on every projection, or on none.
    pub(crate) fn set_all_targets(&mut self, on: bool) {
        self.targets = if on { vec![ALL_LINEAR.to_owned()] } else { Vec::new() };
    }

    /// Keeps the choice of projections if another model has all of them; otherwise chooses all that it has.
    pub(crate) fn fit_targets(&mut self, of: &[TargetInfo]) {
        let before = self.clone();
        let known = |name: &String| name == ALL_LINEAR || of.iter().any(|target| target.name == *name);
        if before.targets.iter().all(known) {
            self.choose_targets(of, |name| before.has_target(name));
        } else {
            self.set_all_targets(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn the_defaults_read_back() {
        let settings = Settings { freedom: Freedom::FULL, ..Settings::default() };
        assert_eq!(Form::default().settings(), Ok(settings));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_is_left_empty_or_automatic_is_the_planners() {
        let one = Form { batch_size: "2".into(), ..Form::default() }.settings().unwrap();
        assert_eq!((one.micro_batches, one.freedom), (2, Freedom::FULL));
        let chosen = Form {
            micro_batches: "8".into(),
            activations: "always".into(),
            host_blocks: false,
            aim: "memory".into(),
            ..Form::default()
        };
        let chosen = chosen.settings().unwrap();
        assert_eq!((chosen.micro_batches, chosen.recompute, chosen.aim), (8, true, Aim::Memory));
        assert_eq!(chosen.freedom, Freedom { ahead: true, ..Freedom::default() });
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_is_typed_wrong_is_named() {
        let wrong = |form: Form| form.settings().map_err(|wrong| (wrong.field, wrong.words));
        let fails = |field, words: &str| Err((field, words.to_owned()));
        assert_eq!(
            wrong(Form { steps: "many".into(), ..Form::default() }),
            fails("set-steps", "Steps is “many”: it must be a whole number from 1 to 1,000,000.")
        );
        assert_eq!(
            wrong(Form { steps: "0".into(), ..Form::default() }),
            fails("set-steps", "Steps is 0, and must be 1 to 1,000,000.")
        );
        assert_eq!(
            wrong(Form { lora_rank: "99999".into(), ..Form::default() }),
            fails("set-lora_rank", "LoRA rank is “99999”: it must be a whole number from 1 to 1024.")
        );
        assert_eq!(
            wrong(Form { batch_size: "1".into(), micro_batches: "2".into(), ..Form::default() }),
            fails(
                "set-micro_batches",
                "Micro-batches is 2, and a batch of 1 sample can be cut in 1 at most."
            )
        );
        assert_eq!(
            wrong(Form { targets: Vec::new(), ..Form::default() }),
            fails(TARGETS_FIELD, "“Projections that learn” is empty: choose at least one.")
        );
        let wrong = Form { seed: u64::MAX.to_string(), ..Form::default() };
        assert!(wrong.settings().is_err());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn every_range_points_at_its_own_field() {
        type Set = fn(&mut Form);
        let wrong: [(&str, Set); 9] = [
            ("set-batch_size", |f| f.batch_size = "0".into()),
            ("set-micro_batches", |f| f.micro_batches = "0".into()),
            ("set-seq_len", |f| f.seq_len = "1".into()),
            ("set-lora_rank", |f| f.lora_rank = "0".into()),
            ("set-lora_alpha", |f| f.lora_alpha = "0".into()),
            ("set-lr", |f| f.lr = "11".into()),
            ("set-weight_decay", |f| f.weight_decay = "-1".into()),
            ("set-grad_clip", |f| f.grad_clip = "-1".into()),
            ("set-validation", |f| f.validation = "0.9".into()),
        ];
        for (field, spoil) in wrong {
            let mut form = Form::default();
            spoil(&mut form);
            assert_eq!(form.settings().map_err(|wrong| wrong.field), Err(field));
        }
    }

    fn targets(names: &[&str]) -> Vec<TargetInfo> {
        let target = |name: &&str| TargetInfo { name: (*name).to_owned(), modules: vec![(*name).to_owned()] };
        names.iter().map(target).collect()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_choice_of_projections_outlives_models_that_have_them() {
        let (llama, gpt2) = (targets(&["q_proj", "k_proj", "up_proj"]), targets(&["c_attn", "c_fc"]));
        let mut form = Form { targets: vec!["q_proj".into(), "k_proj".into()], ..Form::default() };
        form.fit_targets(&llama);
        assert_eq!(form.targets, ["q_proj", "k_proj"]);
        form.fit_targets(&gpt2);
        assert_eq!(form.targets, [ALL_LINEAR]);
        form.fit_targets(&llama);
        assert!(form.has_target("up_proj"));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn all_projections_are_one_word() {
        let llama = targets(&["q_proj", "k_proj"]);
        let mut form = Form { targets: vec![ALL_LINEAR.into()], ..Form::default() };
        form.set_target(&llama, "q_proj", false);
        assert_eq!(form.targets, ["k_proj"]);
        form.set_target(&llama, "q_proj", true);
        assert_eq!(form.targets, [ALL_LINEAR]);
        form.set_all_targets(false);
        assert_eq!(form.settings().map_err(|wrong| wrong.field), Err(TARGETS_FIELD));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn every_way_to_keep_frozen_weights_reads_back() {
        for backbone in Backbone::ALL {
            let form = Form { backbone: backbone.name().into(), ..Form::default() };
            assert_eq!(form.settings().map(|settings| settings.backbone), Ok(backbone));
        }
    }
}
