//! What there is to know of a model, gathered from its configuration, the headers of its weights and its tokenizer.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use baton_engine::source::{AnyFiles, CONFIG_FILE, TOKENIZER_FILE};
use baton_formats::{
    ChatTemplate, Files, FilesError, Gguf, ModelConfig, TensorEntry, TensorIndex, TensorSpec, Tokenizer,
    WeightsError, block_tensors, end_tensors, head_tensors, read_all,
};
use baton_model::{
    InFlight, LoraSpec, StageMemory, Storage, end_bytes, frozen_bytes, head_memory, stage_memory,
};
use baton_plan::even_split;
use baton_protocol::run::Settings;
use serde::{Deserialize, Serialize};

const CONFIG_LIMIT: u64 = 1 << 20;
const TOKENIZER_LIMIT: u64 = 64 << 20;

/// All of it.
#[derive(Serialize)]
pub(super) struct Facts {
    /// As it was asked for.
    pub(super) model: String,
    /// As in "Llama".
    pub(super) family: &'static str,
    pub(super) head: String,
    pub(super) sizes: Sizes,
    pub(super) files: Vec<File>,
    pub(super) tensors: Tensors,
    pub(super) tokenizer: TokenizerFacts,
    pub(super) bytes: Bytes,
    pub(super) estimate: Estimate,
    /// What is worth knowing of the settings that were asked for.
    pub(super) notes: Vec<String>,
    /// What keeps the model from being used, in words; empty where nothing does.
    pub(super) problems: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Sizes {
    pub(super) parameters: u64,
    pub(super) block_parameters: u64,
    pub(super) blocks: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) mlp: usize,
    pub(super) vocabulary: usize,
    pub(super) positions: usize,
    /// How far a position sees, in the blocks where that is bounded.
    pub(super) window: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) bytes: u64,
}

#[derive(Serialize)]
pub(super) struct Tensors {
    pub(super) count: usize,
    pub(super) bytes: u64,
    /// By the name of the number format.
    pub(super) formats: BTreeMap<&'static str, Format>,
    /// How many the model needs.
    pub(super) needed: usize,
    /// Those that it needs and that are not there.
    pub(super) missing: Vec<String>,
    /// Those that are there, and are not needed.
    pub(super) unused: Vec<String>,
    /// A trained head whose tensors are not all there, and so begins afresh.
    pub(super) fresh_head: bool,
    /// All, with `--tensors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) list: Option<Vec<Tensor>>,
}

#[derive(Default, Serialize)]
pub(super) struct Format {
    pub(super) tensors: usize,
    pub(super) bytes: u64,
}

#[derive(Serialize)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) format: &'static str,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: u64,
    pub(super) file: String,
}

#[derive(Default, Serialize)]
pub(super) struct TokenizerFacts {
    /// As in "BPE".
    pub(super) kind: Option<String>,
    pub(super) tokens: Option<usize>,
    pub(super) begin: Option<u32>,
    pub(super) end: Vec<u32>,
    /// Whether the model has a way to write conversations.
    pub(super) chat_template: bool,
    /// What is wrong with any of this: a model without a tokenizer cannot be trained on text.
    pub(super) problems: Vec<String>,
}

/// Frozen weights on the devices, by how they are kept there.
#[derive(Serialize)]
pub(super) struct Bytes {
    /// The largest of the blocks.
    pub(super) block: ByStorage,
    /// The ends, which the host has.
    pub(super) ends: ByStorage,
    pub(super) spread: Vec<Spread>,
}

/// Bytes by the name of the storage.
pub(super) type ByStorage = BTreeMap<Storage, u64>;

/// The blocks over some phones.
#[derive(Serialize)]
pub(super) struct Spread {
    pub(super) phones: usize,
    /// One a phone; fewer where there are not as many blocks.
    pub(super) stages: Vec<Stage>,
}

#[derive(Serialize)]
pub(super) struct Stage {
    /// The first block, and one past the last.
    pub(super) blocks: [u16; 2],
    pub(super) memory: BTreeMap<Storage, StageMemory>,
}

/// What the estimates are for.
#[derive(Serialize)]
pub(super) struct Estimate {
    pub(super) samples: u64,
    pub(super) seq_len: u32,
    pub(super) micro_batches: u16,
    pub(super) lora_rank: u16,
    pub(super) targets: Vec<String>,
    /// Beside the ends' weights, on the host.
    pub(super) host_activations: u64,
}

/// Gathers what can be known.
///
/// # Errors
///
/// When there is no configuration or no weights, or they cannot be read at all; what is wrong with single tensors or with
/// the tokenizer is among the facts, as problems.
pub(super) async fn read(
    files: &AnyFiles,
    model: &str,
    list: bool,
    settings: &Settings,
    phones: &[usize],
) -> Result<Facts> {
    let lone = match files.weights_file() {
        Some(_) => Some(TensorIndex::open_model(files).await?),
        None => None,
    };
    let gguf = lone.as_ref().and_then(TensorIndex::gguf);
    let config = or_from(read_all(files, CONFIG_FILE, CONFIG_LIMIT).await, gguf, Gguf::config_json)
        .with_context(|| format!("{model} has no configuration"))?;
    let config = ModelConfig::parse(&config)?;
    let tokenizer = tokenizer(files, gguf, &config).await;
    let index = match lone {
        Some(index) => index,
        None => TensorIndex::open_model(files).await?,
    };
    let mut problems = Vec::new();
    let tensors = tensors(&index, &config, list, &mut problems);
    problems.extend(tokenizer.problems.iter().cloned());
    let context = config.max_position_embeddings;
    let long = usize::try_from(settings.seq_len).is_ok_and(|len| len > context);
    let notes = long.then(|| {
        format!(
            "a --seq-len of {} is longer than the {context} tokens that this model was made for",
            settings.seq_len
        )
    });
    Ok(Facts {
        model: model.to_owned(),
        family: config.architecture.name(),
        head: match config.classifier() {
            None => "writes text".to_owned(),
            Some(head) if head.regression => "gives a value".to_owned(),
            Some(head) => format!("tells {} classes apart", head.outputs),
        },
        sizes: Sizes {
            parameters: config.parameters(),
            block_parameters: config.block_parameters(),
            blocks: config.num_hidden_layers,
            hidden: config.hidden_size,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            mlp: config.intermediate_size,
            vocabulary: config.vocab_size,
            positions: config.max_position_embeddings,
            window: config.block.window,
        },
        files: index.files().iter().map(|file| File { name: file.name.clone(), bytes: file.size }).collect(),
        tensors,
        tokenizer,
        bytes: bytes(&config, settings, phones)?,
        estimate: Estimate {
            samples: samples(settings),
            seq_len: settings.seq_len,
            micro_batches: settings.micro_batches,
            lora_rank: settings.lora_rank,
            targets: settings.targets.clone(),
            host_activations: host_activations(&config, settings)?,
        },
        notes: notes.into_iter().collect(),
        problems,
    })
}

/// What is there against what is needed: every tensor that is missing, of another shape or of a format that is not read.
fn tensors(index: &TensorIndex, config: &ModelConfig, list: bool, problems: &mut Vec<String>) -> Tensors {
    let mut formats: BTreeMap<&'static str, Format> = BTreeMap::new();
    for entry in index.entries() {
        let format = formats.entry(entry.format.name()).or_default();
        format.tensors += 1;
        format.bytes += entry.bytes();
    }
    let mut check = Check { index, used: BTreeSet::new(), needed: 0, missing: Vec::new(), problems };
    end_tensors(config).iter().for_each(|spec| check.tensor(spec));
    for block in 0..config.num_hidden_layers {
        block_tensors(config, block).iter().for_each(|spec| check.tensor(spec));
    }
    // A trained head may be missing: then it begins afresh.
    let head = head_tensors(config);
    let found =
        |spec: &TensorSpec<_>| check.index.find(&spec.names).filter(|entry| entry.shape == spec.file_shape());
    let heads: Vec<_> = head.iter().filter_map(found).collect();
    let fresh_head = heads.len() < head.len();
    check.used.extend(heads.into_iter().map(|entry| entry.name.as_str()));
    let Check { used, needed, missing, .. } = check;
    Tensors {
        count: index.entries().count(),
        bytes: index.entries().map(TensorEntry::bytes).sum(),
        formats,
        needed,
        missing,
        unused: index.names().filter(|name| !used.contains(name)).map(str::to_owned).collect(),
        fresh_head,
        list: list.then(|| index.entries().map(Tensor::from).collect()),
    }
}

/// The tensors that the model needs, as they are gone through.
struct Check<'a> {
    index: &'a TensorIndex,
    used: BTreeSet<&'a str>,
    needed: usize,
    missing: Vec<String>,
    problems: &'a mut Vec<String>,
}

impl Check<'_> {
    fn tensor<Part>(&mut self, spec: &TensorSpec<Part>) {
        self.needed += 1;
        let Some(entry) = self.index.find(&spec.names) else {
            self.problems.push(format!("the tensor {} is missing", spec.name()));
            self.missing.push(spec.name().to_owned());
            return;
        };
        self.used.insert(&entry.name);
        let (name, shape) = (&entry.name, spec.file_shape());
        if entry.shape != shape {
            self.problems.push(format!(
                "the tensor {name} has shape {:?}, and the model needs {shape:?}",
                entry.shape
            ));
        }
        if entry.format.block().is_none() {
            self.problems.push(format!("the tensor {name} is in {}, which is not read here", entry.format));
        }
    }
}

impl From<&TensorEntry> for Tensor {
    fn from(entry: &TensorEntry) -> Self {
        Self {
            name: entry.name.clone(),
            format: entry.format.name(),
            shape: entry.shape.clone(),
            bytes: entry.bytes(),
            file: entry.file.clone(),
        }
    }
}

async fn tokenizer(files: &AnyFiles, gguf: Option<&Gguf>, config: &ModelConfig) -> TokenizerFacts {
    let mut facts = TokenizerFacts {
        begin: config.bos_token_id,
        end: config.eos_token_ids.clone(),
        ..TokenizerFacts::default()
    };
    let json = read_all(files, TOKENIZER_FILE, TOKENIZER_LIMIT).await;
    match or_from(json, gguf, Gguf::tokenizer_json) {
        Err(error) => facts.problems.push(format!("{error:#}")),
        Ok(json) => {
            facts.kind = serde_json::from_slice(&json).ok().and_then(|file: TokenizerFile| file.model.kind);
            match Tokenizer::from_bytes(&json) {
                Err(error) => facts.problems.push(error.to_string()),
                Ok(tokenizer) => {
                    facts.tokens = Some(tokenizer.vocab_size());
                    // Added tokens may lie beyond the embedding: Gemma 3's marks for images do.
                    let (tokens, rows) = (tokenizer.base_vocab_size(), config.vocab_size);
                    if tokens > rows {
                        facts.problems.push(format!(
                            "the tokenizer has {tokens} tokens, and the model embeds only {rows}: it is another model's"
                        ));
                    }
                }
            }
        }
    }
    let there = read_all(files, "tokenizer_config.json", TOKENIZER_LIMIT).await;
    let there = or_from(there, gguf, |gguf| Ok(gguf.tokenizer_config_json()));
    let jinja = read_all(files, "chat_template.jinja", CONFIG_LIMIT).await.ok();
    if there.is_ok() || jinja.is_some() {
        let settings = there.unwrap_or_else(|_| b"{}".to_vec());
        match ChatTemplate::from_files(&settings, jinja.as_deref()) {
            Ok(template) => facts.chat_template = template.is_some(),
            Err(error) => facts.problems.push(error.to_string()),
        }
    }
    facts
}

/// Of `tokenizer.json`, what the library does not tell.
#[derive(Deserialize)]
struct TokenizerFile {
    model: TokenizerModel,
}

#[derive(Deserialize)]
struct TokenizerModel {
    #[serde(rename = "type")]
    kind: Option<String>,
}

fn bytes(config: &ModelConfig, settings: &Settings, phones: &[usize]) -> Result<Bytes> {
    let targets = config.targets(&settings.targets)?;
    let lora = LoraSpec::new(settings.lora_rank.into(), settings.lora_alpha, targets);
    let blocks = u16::try_from(config.num_hidden_layers).context("the model has too many blocks")?;
    let block = |storage| {
        let blocks = 0..config.num_hidden_layers;
        blocks.map(|block| frozen_bytes(config, block..block + 1, storage)).max().unwrap_or(0)
    };
    let spread = |&phones: &usize| {
        let split = even_split(blocks, phones);
        let count = split.len();
        let stages = split.into_iter().enumerate().map(|(place, blocks)| {
            // 1F1B with the host's front before the first stage and its head after the last one.
            let in_flight = (count + 1 - place).min(settings.micro_batches.into());
            let work = InFlight {
                micro_batches: in_flight as u64,
                samples: samples(settings),
                time: settings.seq_len.into(),
                recompute: settings.recompute,
            };
            let range = usize::from(blocks.start)..usize::from(blocks.end);
            let memory = |storage| (storage, stage_memory(config, range.clone(), storage, &lora, work));
            Stage { blocks: [blocks.start, blocks.end], memory: Storage::ALL.map(memory).into() }
        });
        Spread { phones, stages: stages.collect() }
    };
    Ok(Bytes {
        block: Storage::ALL.map(|storage| (storage, block(storage))).into(),
        ends: Storage::ALL.map(|storage| (storage, end_bytes(config, storage))).into(),
        spread: phones.iter().map(spread).collect(),
    })
}

/// Samples of a micro-batch.
fn samples(settings: &Settings) -> u64 {
    u64::from(settings.batch_size.div_ceil(settings.micro_batches.max(1).into()))
}

/// What the loss takes, and all adapters with their moments: those that are complete, and on their way to the disk.
fn host_activations(config: &ModelConfig, settings: &Settings) -> Result<u64> {
    let targets = config.targets(&settings.targets)?;
    let lora = LoraSpec::new(settings.lora_rank.into(), settings.lora_alpha, targets);
    let idle = InFlight { micro_batches: 0, samples: 1, time: 1, recompute: false };
    let all = stage_memory(config, 0..config.num_hidden_layers, Storage::F32, &lora, idle);
    Ok(head_memory(config, samples(settings), settings.seq_len.into()).saturating_add(all.handover / 3 * 2))
}

/// A file, or where there is none what a GGUF file says in its place.
fn or_from(
    file: Result<Vec<u8>, FilesError>,
    gguf: Option<&Gguf>,
    instead: impl FnOnce(&Gguf) -> Result<String, WeightsError>,
) -> Result<Vec<u8>> {
    match (file, gguf) {
        (Err(FilesError::NotFound { .. }), Some(gguf)) => Ok(instead(gguf)?.into_bytes()),
        (file, _) => Ok(file?),
    }
}
