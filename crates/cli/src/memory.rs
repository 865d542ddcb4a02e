//! `baton memory`: what every device of a room would hold, from the planner's model of memory; nothing is downloaded.

use crate::shape::{RunShape, count_of_devices};
use crate::words::{grouped, plural};
use anyhow::{Context, Result, ensure};
use baton_engine::profile::{HOST_PROGRAM, STAGE_PROGRAM, model_profile};
use baton_engine::source::CONFIG_FILE;
use baton_formats::ModelConfig;
use baton_plan::{
    BoundaryPrecision, Curve, DeviceIndex, DeviceProfile, HostProfile, LinkProfile, Load, ModelProfile, Node,
    Options, Partition, PeerProfile, Recompute, Room, StagePlan, Storage, even_split, predict,
};
use baton_protocol::run::{Backbone, Settings};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Models that many know, by the numbers that their public config.json have. BERT with a head for two classes.
const SHAPES: [(&str, &str); 4] = [
    (
        "bert-base",
        r#"{"architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 768,
"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 30522,
"max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
"pad_token_id": 0}"#,
    ),
    (
        "gpt2",
        r#"{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12,
"n_positions": 1024, "vocab_size": 50257, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
"bos_token_id": 50256, "eos_token_id": 50256}"#,
    ),
    (
        "smollm2-135m",
        r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576,
"intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
"vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
"hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0}"#,
    ),
    (
        "tinyllama-1.1b",
        r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
"intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
"vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
"hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2}"#,
    ),
];

/// Say what the devices of a room would hold at their most, and how much less that is than on one device alone.
///
/// A room of N devices is the host, which has both ends of the model, and N − 1 others. The host has as many blocks of its
/// own as leave the most loaded device the least (or as many as you say), and the rest is spread evenly over the others;
/// alone, the host has everything. Every device counts, and so does the program that a tab runs.
///
/// A room that trains shares its blocks for the shortest step, where every device has the memory: its most loaded device may
/// then hold more than is said here. Settings on the page can have it share them for the least memory instead.
#[derive(Args)]
pub(crate) struct Memory {
    /// bert-base, gpt2, smollm2-135m, tinyllama-1.1b, or a folder with a config.json; all four where none is named
    models: Vec<String>,
    /// Devices of a room, the host among them, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "1,2,3,4", value_parser = count_of_devices)]
    devices: Vec<usize>,
    /// How frozen weights are kept: f32, bf16, int8 or nf4
    #[arg(long, default_value = "f32")]
    backbone: String,
    /// Blocks of the host's own beside other devices; otherwise as many as leave the most loaded device the least
    #[arg(long)]
    host_blocks: Option<u16>,
    #[command(flatten)]
    shape: RunShape,
    /// Keep the blocks' inputs alone, and compute the rest again in backward
    #[arg(long)]
    recompute: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// A model in rooms of several sizes.
#[derive(Serialize)]
struct Rooms {
    model: String,
    /// Its config.json.
    config: String,
    /// Of a sample: as many as were asked for, or as the model has positions.
    tokens: u64,
    rooms: Vec<OneRoom>,
}

#[derive(Serialize)]
struct OneRoom {
    devices: usize,
    /// The host first, then the stages.
    loads: Vec<Share>,
    /// Devices that hold nothing, because the others have all blocks.
    idle: usize,
    /// The most of them.
    peak: u64,
    /// How much less that is than what one device alone has, as a share of it.
    reduction: f64,
}

/// What one device holds, in bytes.
#[derive(Serialize)]
struct Share {
    blocks: [u16; 2],
    /// The engine, and with it the host's text and tokenizer.
    program: u64,
    frozen: u64,
    adapters: u64,
    activations: u64,
    working: u64,
    ends: u64,
    total: u64,
}

impl Memory {
    pub(crate) fn run(self) -> Result<()> {
        let settings = Settings {
            recompute: self.recompute,
            backbone: self.backbone.parse().map_err(anyhow::Error::msg)?,
            ..self.shape.settings()
        };
        settings.validate()?;
        let named = match &*self.models {
            [] => SHAPES.map(|(name, _)| name.to_owned()).to_vec(),
            models => models.to_vec(),
        };
        let all: Vec<Rooms> = named
            .into_iter()
            .map(|model| rooms(model, &settings, &self.devices, self.host_blocks))
            .collect::<Result<_>>()?;
        if self.json {
            crate::print(&(serde_json::to_string_pretty(&all)? + "\n"))
        } else {
            crate::print(&table(&all, &settings))
        }
    }
}

fn rooms(model: String, settings: &Settings, devices: &[usize], own: Option<u16>) -> Result<Rooms> {
    let known = SHAPES.iter().find(|(name, _)| *name == model).map(|(_, json)| (*json).to_owned());
    let json = match known {
        Some(json) => json,
        None => {
            let file = Path::new(&model).join(CONFIG_FILE);
            std::fs::read_to_string(&file).with_context(|| {
                let known = SHAPES.map(|(name, _)| name).join(", ");
                format!("{} cannot be read, and {model} is none of {known}", file.display())
            })?
        }
    };
    let config = ModelConfig::parse(json.as_bytes())?;
    let profile = model_profile(&config, settings)?;
    let blocks = u16::try_from(config.num_hidden_layers).context("the model has too many blocks")?;
    let most = blocks.saturating_sub(1);
    if let Some(own) = own {
        ensure!(
            own <= most,
            "--host-blocks {own} is too many: {model} has {}, of which the other devices have one at least; give 0 to {most}",
            plural(blocks.into(), "block")
        );
    }
    let one = peak(&shares(&profile, settings, 1, 0)?);
    let room = |&devices: &usize| {
        let candidates = own.map_or(0..=most, |own| own..=own);
        let all: Vec<_> =
            candidates.map(|own| shares(&profile, settings, devices, own)).collect::<Result<_>>()?;
        let loads = all.into_iter().min_by_key(|loads| peak(loads)).context("a model without blocks")?;
        let (most, idle) = (peak(&loads), devices.saturating_sub(loads.len()));
        Ok(OneRoom { devices, loads, idle, peak: most, reduction: 1.0 - most as f64 / one as f64 })
    };
    let rooms = devices.iter().map(room).collect::<Result<_>>()?;
    Ok(Rooms { model, config: json, tokens: profile.tokens, rooms })
}

fn peak(loads: &[Share]) -> u64 {
    loads.iter().map(|load| load.total).max().unwrap_or(0)
}

/// What each of so many devices holds, the host with its own blocks first.
fn shares(profile: &ModelProfile, settings: &Settings, devices: usize, own: u16) -> Result<Vec<Share>> {
    let blocks = u16::try_from(profile.blocks.len()).context("the model has too many blocks")?;
    let stages = even_split(blocks.saturating_sub(own), devices.saturating_sub(1));
    let stages: Vec<_> = stages.into_iter().map(|stage| stage.start + own..stage.end + own).collect();
    let host = if stages.is_empty() { 0..blocks } else { 0..own };
    let ranges: Vec<_> = std::iter::once(host.clone()).chain(stages.iter().cloned()).collect();
    let storage = match settings.backbone {
        Backbone::F32 => Storage::F32,
        Backbone::Bf16 => Storage::Bf16,
        Backbone::Int8 => Storage::Int8,
        Backbone::Nf4 => Storage::Nf4,
    };
    let options = Options {
        batch_size: settings.batch_size,
        recompute: if settings.recompute { Recompute::Always } else { Recompute::Never },
        ..Options::default()
    };
    let stages = (0..).zip(stages).map(|(index, blocks)| StagePlan {
        devices: vec![DeviceIndex(index)],
        blocks,
        recompute: settings.recompute,
    });
    let partition = Partition {
        micro_batches: settings.micro_batches,
        ahead: 0,
        storage,
        boundary: BoundaryPrecision::F16,
        host,
        host_recompute: settings.recompute,
        stages: stages.collect(),
    };
    let room = room_of(partition.stages.len())?;
    let prediction = predict(&room, profile, &options, &partition)?;
    let share = |(load, blocks): (&Load, &std::ops::Range<u16>)| {
        let program = if load.node == Node::Host { HOST_PROGRAM } else { STAGE_PROGRAM };
        Share {
            blocks: [blocks.start, blocks.end],
            program,
            frozen: load.memory.frozen,
            adapters: load.memory.adapters,
            activations: load.memory.activations,
            working: load.memory.working,
            ends: load.memory.ends,
            total: program.saturating_add(load.memory.total()),
        }
    };
    Ok(prediction.loads.iter().zip(&ranges).map(share).collect())
}

/// Devices of which nobody asks how fast they are.
fn room_of(stages: usize) -> Result<Room> {
    let second = Curve::new([(1, 1.0)])?;
    let device = DeviceProfile {
        memory: u64::MAX,
        forward: second.clone(),
        backward: second.clone(),
        update: 0.0,
        slowness: 1.0,
    };
    let peer = PeerProfile { device: device.clone(), link: LinkProfile::IDEAL };
    Ok(Room {
        host: HostProfile { device, front: second.clone(), head: second },
        devices: vec![peer; stages],
        wires: BTreeMap::new(),
    })
}

fn table(all: &[Rooms], settings: &Settings) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing into a string does not fail.
        let _ = writeln!(text, "{line}");
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let asked = u64::from(settings.seq_len);
    let is_cut = |rooms: &Rooms| rooms.tokens < asked;
    line(format!(
        "MiB at the most, weights in {}, {} a step in {}, {}{} tokens each, rank {} on {}{}",
        settings.backbone.name(),
        plural(usize::try_from(settings.batch_size).unwrap_or(usize::MAX), "sample"),
        plural(settings.micro_batches.into(), "micro-batch"),
        if all.iter().any(is_cut) { "at most " } else { "" },
        grouped(asked),
        settings.lora_rank,
        settings.targets.join(", "),
        if settings.recompute { ", recomputing" } else { "" },
    ));
    line(String::new());
    line("| model | devices | the host (its blocks) | each other device (its blocks) | the most loaded | less than alone |".into());
    line("| --- | --- | --- | --- | --- | --- |".into());
    for model in all {
        let name = match is_cut(model) {
            true => format!("{}, {} tokens", model.model, grouped(model.tokens)),
            false => model.model.clone(),
        };
        for room in &model.rooms {
            let (host, stages) = room.loads.split_at(1);
            let each = |share: &Share| match share.blocks {
                [from, to] if from == to => format!("{:.0}", mib(share.total)),
                [from, to] => format!("{:.0} ({})", mib(share.total), to - from),
            };
            let mut others: Vec<_> = stages.iter().map(each).collect();
            match room.idle {
                0 => {}
                1 => others.push("one more has no block".into()),
                idle => others.push(format!("{} more have no block", grouped(idle as u64))),
            }
            line(format!(
                "| {name} | {} | {} | {} | {:.0} | {} |",
                room.devices,
                host.iter().map(each).collect::<String>(),
                if others.is_empty() { "–".into() } else { others.join(", ") },
                mib(room.peak),
                if room.devices == 1 { "–".into() } else { format!("{:.1} %", 100.0 * room.reduction) },
            ));
        }
    }
    for model in all.iter().filter(|model| is_cut(model)) {
        line(String::new());
        line(format!(
            "Note: {} has {} positions and no more, so its figures are of samples of as many tokens, not of {}.",
            model.model,
            grouped(model.tokens),
            grouped(asked)
        ));
    }
    text
}
