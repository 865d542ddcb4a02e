//! `baton train`.

use crate::report::{Report, peak_memory};
use anyhow::{Context, Result, bail};
use baton_engine::adapter;
use baton_engine::alone::{self, Told};
use baton_engine::evaluate::Judgement;
use baton_engine::host::{HostEngine, Requests};
use baton_formats::config::ALL_LINEAR;
use baton_formats::peft::{Adapter, CONFIG_FILE, WEIGHTS_FILE};
use baton_formats::{Dataset, DirFiles, Projection, dataset};
use baton_protocol::Step;
use baton_protocol::codec::Precision;
use baton_protocol::coordinator::Start;
use baton_protocol::run::{Backbone, LrSchedule, ModelSource, Settings};
use clap::{Args, ValueEnum};
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

#[derive(Args)]
pub(crate) struct Train {
    /// Folder of the model in the Hugging Face layout (or a URL, or org/name on the hub)
    #[arg(long)]
    model: String,
    /// Text to train on: plain text (a sample a line), jsonl, json, csv or tsv; for an encoder, labelled text
    #[arg(long)]
    data: PathBuf,
    /// Text of the same form to judge the model by; instead of --validation
    #[arg(long)]
    validation_data: Option<PathBuf>,
    /// Share of the samples that is kept out of training to judge the model by
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    validation: f64,
    /// Steps between two judgements; 0 is before the first and after the last only
    #[arg(long, default_value_t = 0)]
    evaluate_every: u32,
    /// How the frozen weights are kept in memory: f32, bf16, int8 or nf4
    #[arg(long, default_value = "f32")]
    backbone: Backbone,
    /// Folder for the adapter
    #[arg(long)]
    out: PathBuf,
    /// Optimizer updates
    #[arg(long, default_value_t = 60)]
    steps: u32,
    /// Samples a step
    #[arg(long, default_value_t = 8)]
    batch_size: u32,
    /// Slices of a step's batch [default: 4]
    #[arg(long)]
    micro_batches: Option<u16>,
    /// The longest sample in tokens; longer ones are cut
    #[arg(long, default_value_t = 128)]
    seq_len: u32,
    /// Rank of the adapters
    #[arg(long, default_value_t = 8)]
    lora_rank: u16,
    /// The adapter's output is scaled by alpha / rank
    #[arg(long, default_value_t = 16.0)]
    lora_alpha: f64,
    /// Projections that get an adapter, separated by commas; all-linear is all of them [default: queries and values]
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// Peak learning rate [default: by the size of the model, 1.5e-2 for the smallest to 2e-4]
    #[arg(long, allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Course of the learning rate after warm-up
    #[arg(long, value_enum, default_value_t = Schedule::Cosine)]
    lr_schedule: Schedule,
    /// Steps over which the learning rate rises from 0
    #[arg(long, default_value_t = 0)]
    warmup_steps: u32,
    /// Decoupled weight decay
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    weight_decay: f64,
    /// Norm to which the whole gradient is clipped; 0 is never
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    grad_clip: f64,
    /// Makes the run repeatable
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Draw the samples in a new order every epoch
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true")]
    shuffle: bool,
    /// End every sample with the end token
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true")]
    append_eos: bool,
    /// Join samples and cut them in pieces of --seq-len instead of padding
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    packing: bool,
    /// Compute activations again in backward instead of keeping them
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    recompute: bool,
    /// Adapter to start from
    #[arg(long)]
    init_adapter: Option<PathBuf>,
    /// File for the losses and figures of the run, as JSON
    #[arg(long)]
    report: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Schedule {
    Constant,
    Linear,
    Cosine,
}

impl Train {
    /// The learning rate is settled once the model is known.
    fn settings(&self) -> Settings {
        Settings {
            steps: self.steps,
            batch_size: self.batch_size,
            micro_batches: self.micro_batches.unwrap_or_else(|| {
                let most = u16::try_from(self.batch_size).unwrap_or(u16::MAX).max(1);
                Settings::default().micro_batches.min(most)
            }),
            seq_len: self.seq_len,
            lora_rank: self.lora_rank,
            lora_alpha: self.lora_alpha,
            targets: self.targets.iter().map(|target| target.trim().to_owned()).collect(),
            lr: self.lr.unwrap_or(Settings::default().lr),
            lr_schedule: match self.lr_schedule {
                Schedule::Constant => LrSchedule::Constant,
                Schedule::Linear => LrSchedule::Linear,
                Schedule::Cosine => LrSchedule::Cosine,
            },
            warmup_steps: self.warmup_steps,
            weight_decay: self.weight_decay,
            grad_clip: self.grad_clip,
            seed: self.seed,
            shuffle: self.shuffle,
            append_eos: self.append_eos,
            packing: self.packing,
            recompute: self.recompute,
            // Nothing crosses to another device.
            boundary: Precision::F32,
            backbone: self.backbone,
            validation: if self.validation_data.is_some() { 0.5 } else { self.validation },
            evaluate_every: self.evaluate_every,
            sample_tokens: 0,
        }
    }

    pub(crate) async fn run(self) -> Result<()> {
        let mut settings = self.settings();
        if settings.targets.is_empty() {
            // Until the model is known.
            settings.targets = vec![ALL_LINEAR.into()];
        }
        settings.validate()?;
        // What cannot be written is better known before an hour of training than after.
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot make the folder {}", self.out.display()))?;
        if let Some(path) = &self.report {
            std::fs::write(path, "")
                .with_context(|| format!("cannot write the report to {}", path.display()))?;
        }
        let model = crate::open(&self.model).await?;
        if self.targets.is_empty() {
            let default = |projection: &Projection| {
                matches!(projection, Projection::Q | Projection::V | Projection::Qkv)
            };
            let projections: Vec<_> = model.config.projections().filter(default).collect();
            settings.targets = model.config.target_names(&projections);
        }
        baton_engine::source::lora_spec(&settings, &model.config)?;
        if self.lr.is_none() {
            settings.lr = Settings::suggested_lr(model.config.parameters());
        }
        let context = model.config.max_position_embeddings;
        if usize::try_from(settings.seq_len).is_ok_and(|len| len > context) {
            eprintln!(
                "note: --seq-len {} is longer than the {context} tokens that this model was made for",
                settings.seq_len
            );
        }
        let text = read(&self.data)?;
        let validation = self.validation_data.as_deref().map(read).transpose()?;
        let prepared = model.prepare(&text, validation.as_ref(), &settings)?;
        let (encoded, run_config) = (&prepared.train, prepared.config.clone());
        let learned = match run_config.classifier() {
            Some(head) if head.regression => "to give a value for".to_owned(),
            Some(head) => format!("to label with one of {} classes", head.outputs),
            None => format!("with {} target tokens", encoded.targets()),
        };
        eprintln!(
            "{} samples {learned}{}{}",
            encoded.examples.len(),
            match prepared.validation.len() {
                0 => String::new(),
                count => format!("; {count} are kept out to judge the model by"),
            },
            match encoded.truncated_tokens {
                0 => String::new(),
                cut => format!(
                    "; {cut} tokens of {} samples beyond --seq-len {} are cut off",
                    encoded.truncated_samples, settings.seq_len
                ),
            }
        );
        if let Some(reason) = &encoded.refusal {
            eprintln!("note: {} conversations are left out: {reason}", encoded.refused);
        }
        if settings.append_eos && model.config.eos_token_ids.is_empty() {
            eprintln!("note: the model's config.json names no end token, so --append-eos does nothing");
        }
        let states = match &self.init_adapter {
            Some(folder) => {
                let adapter = Adapter::read(&DirFiles::new(folder), &run_config).await;
                let adapter =
                    adapter.with_context(|| format!("the adapter at {} cannot be used", folder.display()))?;
                adapter::to_states(&adapter, &settings, &run_config)?
            }
            None => Vec::new(),
        };
        let device = baton_model::cpu();
        let requests = Requests::default();
        let engine = HostEngine::new(device, model.clone(), prepared, settings.clone(), requests.clone());
        let blocks =
            u16::try_from(model.config.num_hidden_layers).context("the model has too many blocks")?;
        let config = model.config_text.clone();
        let start = Start {
            settings: settings.clone(),
            blocks,
            source: ModelSource::Host,
            config,
            manifest: Vec::new(),
            committed: Step(0),
            judged: false,
            profile: None,
            states,
            head: engine.trains_head(),
        };

        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = interrupted.clone();
        ctrlc::set_handler(move || {
            // A second Ctrl-C does not wait for the step.
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })
        .context("cannot listen for Ctrl-C")?;

        let mut report = Report::new(&settings);
        let began = Instant::now();
        let progress = std::io::stderr().is_terminal();
        let outcome = alone::train(engine, start, &requests, |told| {
            let step = match told {
                Told::Step(step) => step,
                Told::Judged(done, judgement) => {
                    report.judged(done, judgement);
                    eprintln!("{}{}", if progress { "\r\x1b[2K" } else { "" }, in_words(done, judgement));
                    return ControlFlow::Continue(());
                }
            };
            report.step(step, began.elapsed());
            let done = step.step.0 + 1;
            if progress || done == 1 || done == settings.steps || done.is_multiple_of(10) {
                let left = began.elapsed().as_secs_f64() / f64::from(done) * f64::from(settings.steps - done);
                eprint!(
                    "{}step {done}/{}  loss {:.4}  {:.0} tokens/s  {left:.0} s left{}",
                    if progress { "\r\x1b[2K" } else { "" },
                    settings.steps,
                    step.loss,
                    report.tokens_per_second(),
                    if progress && done < settings.steps { "" } else { "\n" },
                );
                // A terminal that is gone is no reason to lose the run.
                let _ = std::io::stderr().flush();
            }
            if interrupted.load(Ordering::SeqCst) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .await;
        if outcome.steps == 0 {
            bail!(
                "{}",
                outcome.failed.unwrap_or_else(|| "interrupted before the first step was complete".into())
            );
        }
        let base = (!self.model.contains("://")).then(|| self.model.clone());
        let adapter = adapter::from_states(outcome.states.iter(), &settings, &run_config, base)?;
        let (config, weights) = adapter.to_files(&run_config)?;
        for (name, bytes) in [(CONFIG_FILE, config.as_bytes()), (WEIGHTS_FILE, weights.as_slice())] {
            let path = self.out.join(name);
            std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        report.peak_memory_bytes = peak_memory();
        if let Some(path) = &self.report {
            let json = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
        eprintln!("the adapter of step {} is in {}", outcome.steps, self.out.display());
        if let Some(reason) = outcome.failed {
            bail!("{reason}");
        }
        if outcome.steps < settings.steps {
            bail!("interrupted after {} of {} steps", outcome.steps, settings.steps);
        }
        Ok(())
    }
}

/// A data set from a file.
fn read(path: &Path) -> Result<Dataset> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(dataset::parse(&name, &bytes)?)
}

/// A judgement as a line.
fn in_words(done: u32, judgement: &Judgement) -> String {
    let mut words = format!("after {done} steps: validation loss {:.4}", judgement.loss);
    if let Some(classes) = &judgement.classification {
        words += &format!(", accuracy {:.2} %", 100.0 * classes.accuracy);
        words += &format!(", F1 {:.4}", classes.f1.unwrap_or(classes.f1_macro));
    }
    if let Some(values) = &judgement.correlation {
        let shown = |value: Option<f64>| value.map_or("none".to_owned(), |value| format!("{value:.4}"));
        words += &format!(", Pearson {}, Spearman {}", shown(values.pearson), shown(values.spearman));
    }
    words
}
