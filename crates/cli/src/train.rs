//! `baton train`.

use crate::report::{Report, peak_memory};
use crate::words::{are, plural};
use anyhow::{Context, Result, bail, ensure};
use baton_engine::adapter;
use baton_engine::alone::{self, Told};
use baton_engine::evaluate::Judgement;
use baton_engine::host::{HostEngine, Requests};
use baton_engine::source::{Model, Prepared};
use baton_formats::config::ALL_LINEAR;
use baton_formats::dataset::ColumnChoice;
use baton_formats::peft::{Adapter, CONFIG_FILE, LABELS_FILE, WEIGHTS_FILE, labels_json};
use baton_formats::{Classifier, Dataset, DatasetError, ModelConfig, Projection, dataset};
use baton_protocol::Step;
use baton_protocol::codec::Precision;
use baton_protocol::coordinator::Start;
use baton_protocol::run::{Aim, Backbone, Freedom, LrSchedule, ModelSource, Settings};
use clap::{Args, ValueEnum};
use std::io::{ErrorKind, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What the data may be.
const FORMS: &str = "\
DATA:
  A file of plain text is a sample a line. Of .jsonl (a JSON record a line), .json (a list of them), .csv and .tsv,
  these columns are known by their names:
    text (sentence, review, …)                        plain text
    text and label (class, sentiment, score, …)       labelled text, for an encoder; text_b for a second text
    prompt (question) and completion (answer, …)      the completion is learned, the prompt is only read
    instruction, input, output                        Alpaca's tasks
    messages [{role, content}]                        OpenAI's conversations; the assistant's words are learned
    conversations [{from, value}]                     ShareGPT's conversations
  Other names are given with --columns ROLE=COLUMN, separated by commas:
    --columns prompt=frage,completion=antwort         --columns text=body,label=stars
  The roles are text, text_b, prompt, completion, messages, system, instruction, input, output, label.";

#[derive(Args)]
#[command(after_help = FORMS)]
pub(crate) struct Train {
    /// Folder of the model in the Hugging Face layout, a .gguf file, a URL, or org/name on the hub
    #[arg(long)]
    model: String,
    /// Text to train on: plain text (a sample a line), jsonl, json, csv or tsv; for an encoder, labelled text. See below
    #[arg(long)]
    data: PathBuf,
    /// What the columns of the data are, as in prompt=question,completion=reply; the others are ignored [default: by their
    /// names]
    #[arg(long, value_delimiter = ',', value_name = "ROLE=COLUMN")]
    columns: Vec<ColumnChoice>,
    /// Text of the same form to judge the model by; instead of --validation
    #[arg(long)]
    validation_data: Option<PathBuf>,
    /// Share of the samples that is kept out of training to judge the model by
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, conflicts_with = "validation_data")]
    validation: f64,
    /// Steps between two judgements; 0 is before the first and after the last only
    #[arg(long, default_value_t = 0)]
    evaluate_every: u32,
    /// How the frozen weights are kept in memory: f32, bf16, int8 or nf4
    #[arg(long, default_value = "f32")]
    backbone: Backbone,
    /// Folder for the adapter; it must not hold one already, unless it is that of --init-adapter
    #[arg(long)]
    out: PathBuf,
    /// Overwrite an adapter that --out holds already
    #[arg(long)]
    force: bool,
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
    /// Rank of the adapters [default: 8, or that of --init-adapter]
    #[arg(long)]
    lora_rank: Option<u16>,
    /// The adapter's output is scaled by alpha / rank [default: 16, or that of --init-adapter]
    #[arg(long, allow_negative_numbers = true)]
    lora_alpha: Option<f64>,
    /// Projections that get an adapter, separated by commas; all-linear is all of them [default: queries and values, or
    /// those of --init-adapter]
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
    /// Folder of an adapter to start from; it may be --out
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
            ahead: 0,
            seq_len: self.seq_len,
            lora_rank: self.lora_rank.unwrap_or(8),
            lora_alpha: self.lora_alpha.unwrap_or(16.0),
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
            freedom: Freedom::default(),
            aim: Aim::default(),
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
        self.check_out()?;
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot make the folder {}", self.out.display()))?;
        if let Some(path) = &self.report {
            std::fs::write(path, "")
                .with_context(|| format!("cannot write the report to {}", path.display()))?;
        }
        let mut model = crate::open(&self.model).await?;
        let from = match &self.init_adapter {
            Some(folder) => {
                let (config, adapter) = crate::read_adapter(folder, model.config.clone()).await?;
                let adapter = adapter.uniform(&config)?;
                self.take_over(&adapter, &config, &mut settings)?;
                if let Some(model) = Rc::get_mut(&mut model) {
                    // The classes are counted as the adapter counts them.
                    model.config = config;
                }
                Some(adapter)
            }
            None => None,
        };
        if self.targets.is_empty() && from.is_none() {
            let default = |projection: &Projection| {
                matches!(projection, Projection::Q | Projection::V | Projection::Qkv)
            };
            let projections: Vec<_> = model.config.projections().filter(default).collect();
            settings.targets = model.config.target_names(&projections);
        }
        settings.validate()?;
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
        let text = self.read(&self.data, &model)?;
        let validation = self.validation_data.as_deref().map(|path| self.read(path, &model)).transpose()?;
        let prepared = model.prepare(&text, validation.as_ref(), &settings)?;
        let run_config = prepared.config.clone();
        self.tell(&model, &prepared, &settings);
        let states = match &from {
            Some(adapter) => {
                same_classes(&model.config, &run_config)?;
                adapter::to_states(adapter, &settings, &run_config)?
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
            secret: 0,
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

        let mut report = Report::new(&settings, run_config.classifier().is_some());
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
                    "{}step {done}/{}  loss {:.4}  {}  {left:.0} s left{}",
                    if progress { "\r\x1b[2K" } else { "" },
                    settings.steps,
                    step.loss,
                    report.speed(),
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
        let labels = labels_json(&run_config);
        let mut files = vec![(CONFIG_FILE, config.as_bytes()), (WEIGHTS_FILE, weights.as_slice())];
        match &labels {
            Some(labels) => files.push((LABELS_FILE, labels.as_bytes())),
            // Those of the adapter that was here before are not those of this one.
            None => match std::fs::remove_file(self.out.join(LABELS_FILE)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).context("cannot remove the old labels.json");
                }
                _ => {}
            },
        }
        for (name, bytes) in files {
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

    /// Refuses to overwrite an adapter, unless it was asked for, or the run goes on from it.
    fn check_out(&self) -> Result<()> {
        let there = [CONFIG_FILE, WEIGHTS_FILE].iter().any(|name| self.out.join(name).exists());
        let whole = |path: &Path| std::fs::canonicalize(path).ok();
        let goes_on = self.init_adapter.as_deref().is_some_and(|from| whole(from) == whole(&self.out));
        let out = self.out.display();
        ensure!(
            !there || goes_on || self.force,
            "{out} holds an adapter already: give another folder for --out, --init-adapter {out} to go on from it, or --force \
             to overwrite it"
        );
        Ok(())
    }

    /// What was not asked for otherwise is as in the adapter to start from.
    fn take_over(&self, adapter: &Adapter, config: &ModelConfig, settings: &mut Settings) -> Result<()> {
        if self.lora_rank.is_none() {
            let rank = adapter.config.r;
            settings.lora_rank = u16::try_from(rank).with_context(|| format!("rank {rank} is too high"))?;
        }
        if self.lora_alpha.is_none() {
            settings.lora_alpha = adapter.config.lora_alpha;
        }
        if self.targets.is_empty() {
            settings.targets = config.target_names(&adapter.config.projections(config)?);
        }
        Ok(())
    }

    /// A data set from a file; says how it was read.
    fn read(&self, path: &Path, model: &Model) -> Result<Dataset> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mapping = if self.columns.is_empty() {
            dataset::inspect(&name, &bytes)?.mapping
        } else {
            dataset::choose(&name, &bytes, &self.columns)?
        };
        let data = match dataset::parse_with(&name, &bytes, &mapping) {
            Err(error @ DatasetError::Record { .. }) => {
                bail!("{error}: --columns prompt=…,completion=… or --columns text=… (train --help has all)")
            }
            data => data?,
        };
        eprintln!("{name}: {}", mapping.in_words(model.config.is_encoder()));
        Ok(data)
    }

    /// Says what is learned, what judges it, and what is left out.
    fn tell(&self, model: &Model, prepared: &Prepared, settings: &Settings) {
        let encoded = &prepared.train;
        let head = prepared.config.classifier();
        let learned = match head {
            Some(head) if head.regression => "to give a value for".to_owned(),
            Some(head) => format!("to label with one of {}", plural(head.outputs, "class")),
            None => format!("with {}", plural(encoded.targets(), "target token")),
        };
        let mut words = format!("{} {learned}", plural(encoded.examples.len(), "sample"));
        let judges = prepared.validation.len();
        match &self.validation_data {
            Some(path) => {
                words +=
                    &format!("; {} of {} to judge the model by", plural(judges, "sample"), path.display());
            }
            None if judges > 0 => {
                words += &format!("; {judges} {} kept out to judge the model by", are(judges));
            }
            None => {}
        }
        if encoded.truncated_tokens > 0 && !settings.packing {
            let (tokens, samples) = (encoded.truncated_tokens, encoded.truncated_samples);
            words += &format!(
                "; {} of {} beyond --seq-len {} {} cut off: a larger --seq-len keeps more{}",
                plural(tokens, "token"),
                plural(samples, "sample"),
                settings.seq_len,
                are(tokens),
                if head.is_none() { ", and --packing keeps all, in pieces" } else { "" },
            );
        }
        eprintln!("{words}");
        let names = labels_json(&prepared.config).and(head).map_or(&[][..], |head| &head.labels);
        if !names.is_empty() {
            let said = names.iter().take(MOST_CLASSES).enumerate();
            let said: Vec<_> = said.map(|(class, name)| format!("{class} {name:?}")).collect();
            let dots = if names.len() > MOST_CLASSES { ", …" } else { "" };
            eprintln!("classes: {}{dots}", said.join(", "));
        }
        if let Some(reason) = &encoded.refusal {
            let refused = encoded.refused;
            eprintln!("note: {} {} left out: {reason}", plural(refused, "conversation"), are(refused));
        }
        if settings.append_eos && !model.config.is_encoder() && model.config.eos_token_ids.is_empty() {
            eprintln!("note: the model's config.json names no end token, so no sample is ended with one");
        }
    }
}

/// The adapter to start from must have a head of as many outputs as the data asks for.
fn same_classes(adapter: &ModelConfig, data: &ModelConfig) -> Result<()> {
    let (Some(own), Some(wanted)) = (adapter.classifier(), data.classifier()) else { return Ok(()) };
    let words = |head: &Classifier| match (head.regression, head.labels.is_empty()) {
        (true, _) => "a value".to_owned(),
        (false, true) => plural(head.outputs, "class"),
        (false, false) => format!("{} ({})", plural(head.outputs, "class"), head.labels.join(", ")),
    };
    ensure!(
        (own.outputs, own.regression) == (wanted.outputs, wanted.regression),
        "the adapter to start from was trained for {}, and the data has {}: start from another one, or from none",
        words(own),
        words(wanted)
    );
    Ok(())
}

/// Of many classes the first are said.
const MOST_CLASSES: usize = 20;

/// A judgement as a line.
fn in_words(done: u32, judgement: &Judgement) -> String {
    let mut words = format!(
        "after {}: validation loss {:.4}",
        plural(usize::try_from(done).unwrap_or(usize::MAX), "step"),
        judgement.loss
    );
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
