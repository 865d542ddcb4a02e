//! What packing the frozen weights does to a model's logits: a table, one line a storage.
//!
//! `cargo run --release --example quantisation -- MODEL DATA [ADAPTER]`; the figures in docs/measurements.md are its.
#![allow(clippy::print_stdout, reason = "a table is what it is for")]

use baton_engine::batches::{Aim, MicroBatchData};
use baton_engine::error::EngineError;
use baton_engine::source::{AnyFiles, Model, Prepared};
use baton_formats::dataset;
use baton_formats::peft::{Adapter, fitted};
use baton_formats::{DirFiles, Label, ModelConfig};
use baton_model::{AdamW, Blocks, ClassifierHead, Ends, HeadState, Lora, LoraSpec, Storage, frozen_bytes};
use baton_protocol::run::Settings;
use std::error::Error;
use std::path::PathBuf;

/// Samples that are looked at.
const SAMPLES: usize = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, rest @ ..] = arguments.as_slice() else {
        return Err("give a model's folder, a data set and perhaps an adapter's folder".into());
    };
    futures::executor::block_on(table(model, data, rest.first()))
}

async fn table(model: &str, data: &str, adapter: Option<&String>) -> Result<(), Box<dyn Error>> {
    let model = Model::open(AnyFiles::Dir(DirFiles::new(PathBuf::from(model)))).await?;
    let settings = Settings { seq_len: 64, validation: 0.0, ..Settings::default() };
    let mut text = dataset::parse(data, &std::fs::read(data)?)?;
    text.samples.truncate(SAMPLES);
    let Prepared { train, mut config, .. } = model.prepare(&text, None, &settings)?;
    let adapter = match adapter {
        Some(folder) => {
            let files = DirFiles::new(folder);
            config = fitted(&files, config).await?;
            Some(Adapter::read(&files, &config).await?.uniform(&config)?)
        }
        None => None,
    };
    let batches = MicroBatchData::all(&train.examples, 16);
    let mut whole: Option<Vec<Vec<f32>>> = None;
    println!(
        "| storage | bytes a parameter of the blocks | logits' error (RMS, of their own RMS) | same choice | loss | accuracy |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for storage in Storage::ALL {
        let seen = look(&model, &config, adapter.as_ref(), &batches, storage).await?;
        let whole = whole.get_or_insert_with(|| seen.rows.clone());
        let (mut error, mut size, mut same) = (0.0, 0.0, 0_usize);
        for (row, wanted) in seen.rows.iter().zip(whole.iter()) {
            for (got, want) in row.iter().zip(wanted) {
                error += f64::from(got - want).powi(2);
                size += f64::from(*want).powi(2);
            }
            same += usize::from(best(row) == best(wanted));
        }
        let blocks = config.num_hidden_layers;
        let bytes = frozen_bytes(&config, 0..blocks, storage) as f64;
        let parameters = config.block_parameters() as f64 * blocks as f64;
        println!(
            "| {} | {:.3} | {:.2e} | {:.2} % | {:.4} | {} |",
            storage.name(),
            bytes / parameters,
            (error / size).sqrt(),
            100.0 * same as f64 / whole.len() as f64,
            seen.loss,
            seen.accuracy.map_or("".into(), |accuracy| format!("{:.2} %", 100.0 * accuracy)),
        );
    }
    Ok(())
}

/// What a model makes of the samples.
struct Seen {
    /// The logits of each position that counts, or of each sample.
    rows: Vec<Vec<f32>>,
    loss: f64,
    accuracy: Option<f64>,
}

async fn look(
    model: &Model,
    config: &ModelConfig,
    adapter: Option<&Adapter>,
    batches: &[MicroBatchData],
    storage: Storage,
) -> Result<Seen, EngineError> {
    let (device, range) = (baton_model::cpu(), 0..config.num_hidden_layers);
    let (files, index) = (&model.files, &model.index);
    let ends = Ends::load(files, index, config, storage, &device, |_| {}).await?;
    let blocks = Blocks::load(files, index, config, range.clone(), storage, &device, |_| {}).await?;
    let lora = match adapter {
        Some(adapter) => {
            let targets = adapter.config.projections(config)?;
            let spec = LoraSpec::new(adapter.config.r, adapter.config.lora_alpha, targets);
            Some(Lora::from_pairs(config, &spec, range, &adapter.weights, &device)?)
        }
        None => None,
    };
    let mut head = match config.classifier() {
        Some(_) => {
            Some(ClassifierHead::load_or_init(files, index, config, 0, AdamW::default(), &device).await?)
        }
        None => None,
    };
    if let (Some(head), Some(adapter)) = (&mut head, adapter.filter(|adapter| !adapter.head.is_empty())) {
        let tensors = baton_formats::head_tensors(config);
        let named = tensors
            .iter()
            .filter_map(|tensor| Some((tensor.name().to_owned(), adapter.head.get(&tensor.part)?.clone())));
        head.restore(&HeadState::fresh(config, &named.collect())?)?;
    }
    let mut seen = Seen { rows: Vec::new(), loss: 0.0, accuracy: None };
    let (mut right, mut all) = (0_usize, 0_usize);
    for batch in batches {
        let h = ends.embed(&batch.ids, &batch.type_ids)?;
        let h = blocks.forward(lora.as_ref(), h, batch.lengths());
        match (&batch.aim, &head) {
            (Aim::Tokens { targets, weights }, _) => {
                seen.loss += ends.loss(h.clone(), targets, weights).await?;
                let logits = ends.logits(h).await?;
                let counts = weights.iter().flatten().zip(logits.chunks(config.vocab_size));
                seen.rows.extend(counts.filter(|(weight, _)| **weight > 0.0).map(|(_, row)| row.to_vec()));
            }
            (Aim::Labels { labels, weight, .. }, Some(head)) => {
                let (loss, predictions) = head.loss(h.clone(), &ends, labels, *weight).await?;
                seen.loss += loss;
                right += predictions.iter().zip(labels).filter(|(found, wanted)| found == wanted).count();
                all += labels.len();
                seen.rows.extend(head.logits(h, &ends).await?);
            }
            (Aim::Labels { .. }, None) => return Err(EngineError::NoLabels),
        }
    }
    let classes = batches.iter().any(|batch| {
        matches!(&batch.aim, Aim::Labels { labels, .. } if labels.iter().any(|l| matches!(l, Label::Class(_))))
    });
    seen.accuracy = classes.then(|| right as f64 / all.max(1) as f64);
    Ok(seen)
}

/// The place of the largest.
fn best(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]))
}
