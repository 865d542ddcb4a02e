//! A model opened from wherever its files are, and a text encoded for it.

use crate::error::EngineError;
#[cfg(target_arch = "wasm32")]
use baton_formats::BlobFiles;
#[cfg(not(target_arch = "wasm32"))]
use baton_formats::DirFiles;
use baton_formats::dataset::{self, Target, Validation};
use baton_formats::{
    ChatTemplate, Dataset, DatasetError, Encoded, Encoding, EndPart, Example, Files, FilesError, Gguf, Head,
    Label, MemoryFiles, ModelConfig, TensorIndex, Tokenizer, UrlFiles, WeightsError, block_tensors,
    end_tensors, read_all,
};
use baton_model::{AdamW, LoraSpec, Storage};
use baton_protocol::run::{Backbone, Settings};
use std::ops::Range;
use std::rc::Rc;

/// A model's configuration.
pub const CONFIG_FILE: &str = "config.json";
/// A model's weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Where the tensors are of a model whose weights are in parts.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// A model's tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// What else a tokenizer has: special tokens, the chat template.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// A chat template of its own.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";

const CONFIG_LIMIT: u64 = 1 << 20;
const TOKENIZER_LIMIT: u64 = 64 << 20;

/// Files from any of the places that a host can have them.
#[allow(clippy::large_enum_variant, reason = "one exists for each model that is open")]
pub enum AnyFiles {
    /// A folder on this machine.
    #[cfg(not(target_arch = "wasm32"))]
    Dir(DirFiles),
    /// Files that a person chose on the page.
    #[cfg(target_arch = "wasm32")]
    Blob(BlobFiles),
    /// A hub, or any server with byte ranges.
    Url(UrlFiles),
    /// Bytes.
    Memory(MemoryFiles),
}

impl Files for AnyFiles {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        match self {
            #[cfg(not(target_arch = "wasm32"))]
            Self::Dir(files) => files.size(name).await,
            #[cfg(target_arch = "wasm32")]
            Self::Blob(files) => files.size(name).await,
            Self::Url(files) => files.size(name).await,
            Self::Memory(files) => files.size(name).await,
        }
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        match self {
            #[cfg(not(target_arch = "wasm32"))]
            Self::Dir(files) => files.read(name, range).await,
            #[cfg(target_arch = "wasm32")]
            Self::Blob(files) => files.read(name, range).await,
            Self::Url(files) => files.read(name, range).await,
            Self::Memory(files) => files.read(name, range).await,
        }
    }

    fn span(&self) -> u64 {
        match self {
            #[cfg(not(target_arch = "wasm32"))]
            Self::Dir(files) => files.span(),
            #[cfg(target_arch = "wasm32")]
            Self::Blob(files) => files.span(),
            Self::Url(files) => files.span(),
            Self::Memory(files) => files.span(),
        }
    }

    fn weights_file(&self) -> Option<String> {
        match self {
            #[cfg(not(target_arch = "wasm32"))]
            Self::Dir(files) => files.weights_file(),
            #[cfg(target_arch = "wasm32")]
            Self::Blob(files) => files.weights_file(),
            Self::Url(files) => files.weights_file(),
            Self::Memory(files) => files.weights_file(),
        }
    }
}

/// A model whose small files are read and checked; its weights are read when they are needed.
pub struct Model {
    /// Where its files are.
    pub files: AnyFiles,
    /// Its configuration.
    pub config: ModelConfig,
    /// Its configuration as text, for the stages.
    pub config_text: String,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// How it writes conversations, if it says so.
    pub template: Option<ChatTemplate>,
    /// Where its tensors are.
    pub index: TensorIndex,
    /// The files that a stage reads, with their sizes.
    pub weight_files: Vec<(String, u64)>,
}

/// A text made ready for a model: what to train on, and what to judge by.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What is trained on, and what was cut off on the way.
    pub train: Encoded,
    /// What was kept out of training.
    pub validation: Vec<Example>,
    /// The model's configuration, with the head that the text's labels ask for.
    pub config: ModelConfig,
}

/// No more samples than this are kept out of training: each is a forward pass at every judgement.
const MOST_VALIDATION: usize = 256;

impl Model {
    /// Reads configuration, tokenizer and header. A lone GGUF file has all of them in itself.
    ///
    /// # Errors
    ///
    /// In words, when a file is missing, broken, or of a model that cannot be trained.
    pub async fn open(files: AnyFiles) -> Result<Rc<Self>, EngineError> {
        // The small files first: a folder that is no model's is told by its missing config.json.
        let lone = match files.weights_file() {
            Some(_) => Some(TensorIndex::open_model(&files).await?),
            None => None,
        };
        let gguf = lone.as_ref().and_then(TensorIndex::gguf);
        let config_bytes = read_all(&files, CONFIG_FILE, CONFIG_LIMIT).await;
        let config_bytes = or_from(config_bytes, gguf, Gguf::config_json)?;
        let config = ModelConfig::parse(&config_bytes)?;
        let tokenizer = read_all(&files, TOKENIZER_FILE, TOKENIZER_LIMIT).await;
        let tokenizer = Tokenizer::from_bytes(&or_from(tokenizer, gguf, Gguf::tokenizer_json)?)?;
        // Added tokens may lie beyond the embedding (Gemma 3's marks for images do): a text that has one is refused.
        if tokenizer.base_vocab_size() > config.vocab_size {
            return Err(EngineError::VocabularyMismatch {
                tokens: tokenizer.base_vocab_size(),
                embeddings: config.vocab_size,
            });
        }
        let template = template(&files, gguf).await?;
        let index = match lone {
            Some(index) => index,
            None => TensorIndex::open_model(&files).await?,
        };
        check_tensors(&index, &config)?;
        let config_text = String::from_utf8_lossy(&config_bytes).into_owned();
        let mut weight_files: Vec<_> =
            index.files().iter().map(|file| (file.name.clone(), file.size)).collect();
        if index.gguf().is_none() && weight_files.iter().all(|(name, _)| name != WEIGHTS_FILE) {
            // Which tensor is in which part.
            weight_files.push((INDEX_FILE.into(), files.size(INDEX_FILE).await?));
        }
        Ok(Rc::new(Self { files, config, config_text, tokenizer, template, index, weight_files }))
    }

    /// The configuration with the head that a text's labels ask for; a language model has none.
    ///
    /// # Errors
    ///
    /// When the model labels samples, and these have no labels.
    pub fn with_head(&self, dataset: &Dataset) -> Result<ModelConfig, EngineError> {
        if !self.config.is_encoder() {
            return Ok(self.config.clone());
        }
        let config = self.config.clone();
        let mut labels = dataset.samples.iter().filter_map(|sample| sample.label);
        match labels.next() {
            None => Err(EngineError::NoLabels),
            Some(Label::Value(_)) => Ok(config.with_classifier(1, true)?),
            Some(Label::Class(_)) => {
                let head = config.classifier().filter(|head| !head.regression && !head.labels.is_empty());
                // A head that the file has may know more classes than these samples show.
                let known = head.is_some_and(|head| places(&dataset.labels, &head.labels).is_some());
                if known {
                    return Ok(config);
                }
                let mut config = config.with_classifier(dataset.labels.len().max(2), false)?;
                if let Head::Classifier(head) = &mut config.ends.head {
                    head.labels = dataset.labels.clone();
                }
                Ok(config)
            }
        }
    }

    /// Makes a text ready as the settings say: keeps some of it out of training, unless there is `validation` for that,
    /// and encodes both.
    ///
    /// # Errors
    ///
    /// When there is nothing in it to learn.
    pub fn prepare(
        &self,
        dataset: &Dataset,
        validation: Option<&Dataset>,
        settings: &Settings,
    ) -> Result<Prepared, EngineError> {
        let config = self.with_head(dataset)?;
        let names = config.classifier().map_or(&[][..], |head| &head.labels);
        let dataset = renumbered(dataset, names)?;
        let given = validation.is_some();
        let validation = validation.map(|samples| renumbered(samples, names)).transpose()?;
        let share = settings.validation;
        let total = dataset.samples.len();
        let (train, aside) = match validation {
            Some(validation) => (dataset, Some(validation)),
            None if share == 0.0 || total < 2 => (dataset, None),
            None => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "below the total"
                )]
                let wanted = (share * total as f64).round() as usize;
                let wanted = Validation::Count(wanted.clamp(1, MOST_VALIDATION));
                match dataset.clone().split(wanted, settings.seed) {
                    Ok((train, aside)) => (train, Some(aside)),
                    // All samples are the same: there is nothing to judge by.
                    Err(DatasetError::Split { .. }) => (dataset, None),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let train = self.encode(&train, settings)?;
        let validation = match aside {
            // What is kept aside may be too short to foretell anything in it.
            Some(aside) => match self.encode(&aside, &Settings { packing: false, ..settings.clone() }) {
                Ok(encoded) => encoded.examples,
                Err(EngineError::Dataset(DatasetError::NoTargets { .. })) if !given => Vec::new(),
                Err(error) => return Err(error),
            },
            None => Vec::new(),
        };
        let wrong = |example: &&Example| match (config.classifier(), example.label) {
            (Some(head), Some(Label::Class(class))) => {
                head.regression || usize::try_from(class).is_ok_and(|class| class >= head.outputs)
            }
            (Some(head), Some(Label::Value(_))) => !head.regression,
            _ => false,
        };
        if validation.iter().find(wrong).is_some() {
            return Err(EngineError::OtherLabels);
        }
        Ok(Prepared { train, validation, config })
    }

    /// The longest sample in tokens.
    pub fn seq_len(&self, settings: &Settings) -> usize {
        seq_len(&self.config, settings)
    }

    /// Encodes a text as the settings say.
    ///
    /// # Errors
    ///
    /// When there is nothing in it to learn.
    pub fn encode(&self, dataset: &Dataset, settings: &Settings) -> Result<Encoded, EngineError> {
        let append_eos = self.config.eos_token_ids.first().copied().filter(|_| settings.append_eos);
        let seq_len = self.seq_len(settings);
        let target = if self.config.is_encoder() { Target::Label } else { Target::Text };
        let encoding = Encoding { seq_len, append_eos, packing: settings.packing, target };
        let encoded = dataset::encode(dataset, &self.tokenizer, self.template.as_ref(), &encoding)?;
        encoded.check_vocab(self.config.vocab_size)?;
        Ok(encoded)
    }
}

/// Every frozen tensor must be there: a device that finds one missing is far into a run, and no other has it either.
fn check_tensors(index: &TensorIndex, config: &ModelConfig) -> Result<(), EngineError> {
    let ends = end_tensors(config);
    let pooler = ends.iter().find(|spec| spec.part == EndPart::Pooler);
    if let Some(spec) = pooler.filter(|spec| index.find(&spec.names).is_none()) {
        return Err(EngineError::NoPooler { tensor: spec.name().to_owned() });
    }
    index.require(&ends)?;
    (0..config.num_hidden_layers).try_for_each(|block| Ok(index.require(&block_tensors(config, block))?))
}

/// Where each of `labels` is among `names`, whatever their case; none if one is not there. Numbers mean places by themselves.
fn places(labels: &[String], names: &[String]) -> Option<Vec<u32>> {
    let place = |label: &String| {
        let named = names.iter().position(|name| name.to_lowercase() == label.to_lowercase());
        let place = named.or_else(|| label.parse().ok().filter(|place| *place < names.len()));
        place.and_then(|place| u32::try_from(place).ok())
    };
    labels.iter().map(place).collect()
}

/// The samples with their classes numbered as in `names`: two files count their own names each in their own way.
fn renumbered(dataset: &Dataset, names: &[String]) -> Result<Dataset, EngineError> {
    let mut dataset = dataset.clone();
    if names.is_empty() || dataset.labels.is_empty() {
        return Ok(dataset);
    }
    let places = places(&dataset.labels, names).ok_or(EngineError::OtherLabels)?;
    for sample in &mut dataset.samples {
        if let Some(Label::Class(class)) = &mut sample.label {
            let place = usize::try_from(*class).ok().and_then(|class| places.get(class));
            *class = *place.ok_or(EngineError::OtherLabels)?;
        }
    }
    dataset.labels = names.to_vec();
    Ok(dataset)
}

/// A model's `config.json`, or what a GGUF file that stands alone says in its place; nothing of it is checked.
///
/// # Errors
///
/// When there is none, or the GGUF file is broken.
pub async fn config_json(files: &AnyFiles) -> Result<Vec<u8>, EngineError> {
    let config = read_all(files, CONFIG_FILE, CONFIG_LIMIT).await;
    if config.is_ok() || files.weights_file().is_none() {
        return Ok(config?);
    }
    let index = TensorIndex::open_model(files).await?;
    or_from(config, index.gguf(), Gguf::config_json)
}

/// A file, or where there is none what a GGUF file says in its place.
fn or_from(
    file: Result<Vec<u8>, FilesError>,
    gguf: Option<&Gguf>,
    instead: impl FnOnce(&Gguf) -> Result<String, WeightsError>,
) -> Result<Vec<u8>, EngineError> {
    match (file, gguf) {
        (Err(FilesError::NotFound { .. }), Some(gguf)) => Ok(instead(gguf)?.into_bytes()),
        (file, _) => Ok(file?),
    }
}

/// The chat template, from wherever transformers looks for it, or from a GGUF file.
async fn template(files: &AnyFiles, gguf: Option<&Gguf>) -> Result<Option<ChatTemplate>, EngineError> {
    let optional = async |name: &str| match read_all(files, name, CONFIG_LIMIT).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(FilesError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let settings = match (optional(TOKENIZER_CONFIG_FILE).await?, gguf) {
        (Some(settings), _) => settings,
        (None, Some(gguf)) => gguf.tokenizer_config_json().into_bytes(),
        (None, None) => return Ok(None),
    };
    let jinja = optional(TEMPLATE_FILE).await?;
    Ok(ChatTemplate::from_files(&settings, jinja.as_deref())?)
}

/// The adapters that the settings ask for.
///
/// # Errors
///
/// When they name a projection that is none.
pub fn lora_spec(settings: &Settings, config: &ModelConfig) -> Result<LoraSpec, EngineError> {
    let targets = config.targets(&settings.targets)?;
    Ok(LoraSpec::new(settings.lora_rank.into(), settings.lora_alpha, targets))
}

/// The longest sample in tokens: as the settings say, unless the model has learned fewer positions.
pub fn seq_len(config: &ModelConfig, settings: &Settings) -> usize {
    let wanted = usize::try_from(settings.seq_len).unwrap_or(usize::MAX);
    match config.ends.first_position {
        Some(first) => wanted.min(config.max_position_embeddings.saturating_sub(first)),
        None => wanted,
    }
}

/// How the settings have frozen weights kept.
pub fn storage(settings: &Settings) -> Storage {
    backbone_storage(settings.backbone)
}

/// What a way to keep frozen weights is called in the kernels.
pub fn backbone_storage(backbone: Backbone) -> Storage {
    match backbone {
        Backbone::F32 => Storage::F32,
        Backbone::Bf16 => Storage::Bf16,
        Backbone::Int8 => Storage::Int8,
        Backbone::Nf4 => Storage::Nf4,
    }
}

/// PyTorch's AdamW with the settings' weight decay.
pub fn adamw(settings: &Settings) -> AdamW {
    AdamW { weight_decay: settings.weight_decay, ..AdamW::default() }
}

#[cfg(test)]
#[cfg(not(target_arch = "wasm32"))]
mod tests {
    use super::*;
    use baton_formats::{GgufValue, write_gguf};
    use futures::executor::block_on;

    fn lone(tokens: &[&str]) -> AnyFiles {
        let text = |text: &str| GgufValue::String(text.to_owned());
        let metadata = [
            ("general.architecture", text("llama")),
            ("llama.embedding_length", GgufValue::U32(8)),
            ("llama.feed_forward_length", GgufValue::U32(12)),
            ("llama.block_count", GgufValue::U32(1)),
            ("llama.attention.head_count", GgufValue::U32(2)),
            ("llama.attention.layer_norm_rms_epsilon", GgufValue::F32(1e-5)),
            ("llama.context_length", GgufValue::U32(64)),
            ("tokenizer.ggml.model", text("llama")),
            ("tokenizer.ggml.tokens", GgufValue::Strings(tokens.iter().collect())),
            ("tokenizer.ggml.scores", GgufValue::Floats(vec![0.0; tokens.len()])),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        let (square, wide) = ([0.5; 64], [0.25; 96]);
        let mut tensors = vec![
            ("token_embd.weight", vec![4, 8], &square[..32]),
            ("output_norm.weight", vec![8], &square[..8]),
        ];
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            tensors.push((name, vec![8, 8], &square[..]));
        }
        for (name, shape) in [("ffn_gate", [12, 8]), ("ffn_up", [12, 8]), ("ffn_down", [8, 12])] {
            tensors.push((name, shape.to_vec(), &wide[..]));
        }
        for name in ["attn_norm", "ffn_norm"] {
            tensors.push((name, vec![8], &square[..8]));
        }
        let tensors: Vec<_> = tensors
            .into_iter()
            .map(|(name, shape, values)| match name.contains('.') {
                true => (name.to_owned(), shape, values),
                false => (format!("blk.0.{name}.weight"), shape, values),
            })
            .collect();
        let mut files = MemoryFiles::new();
        files.insert("tiny.gguf", write_gguf(&metadata, &tensors).unwrap());
        AnyFiles::Memory(files)
    }

    #[test]
    fn a_gguf_file_that_stands_alone_is_a_model() {
        let model = block_on(Model::open(lone(&["a", "b", "▁", "▁a"]))).unwrap();
        assert_eq!((model.config.hidden_size, model.config.vocab_size), (8, 4));
        assert!(model.config.tie_word_embeddings);
        // What the stages read is the same config.
        assert_eq!(ModelConfig::parse(model.config_text.as_bytes()).unwrap(), model.config);
        assert_eq!(model.tokenizer.encode("ab").unwrap(), [3, 1]);
        let shapes = block_tensors(&model.config, 0)
            .into_iter()
            .map(|spec| (spec.name().to_owned(), spec.file_shape()));
        let ends =
            end_tensors(&model.config).into_iter().map(|spec| (spec.name().to_owned(), spec.file_shape()));
        let wanted: Vec<_> = shapes.chain(ends).collect();
        let tensors = block_on(model.index.read_many_f32(&model.files, &wanted, |_| ())).unwrap();
        assert_eq!(tensors.len(), 11);
    }

    #[test]
    fn a_tokenizer_beside_the_file_is_the_one_that_counts() {
        let AnyFiles::Memory(mut files) = lone(&["a", "b", "▁", "▁a"]) else { return };
        files.insert("tokenizer.json", *b"{}");
        assert!(matches!(block_on(Model::open(AnyFiles::Memory(files))), Err(EngineError::Tokenizer(_))));
        let many = block_on(Model::open(lone(&["a", "b", "c", "d", "e"])));
        assert!(matches!(many, Err(EngineError::VocabularyMismatch { tokens: 5, embeddings: 4 })));
    }
}
