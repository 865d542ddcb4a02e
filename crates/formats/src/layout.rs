//! What the files of each family call a model's tensors, and which shapes they have.

use crate::config::{Architecture, ClassifierForm, Head, ModelConfig, NormKind, NormPlace};
use crate::projection::Projection;

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec<Part> {
    /// What it is.
    pub part: Part,
    /// The names that files have for it; the first is the one in a model with its head, and PEFT's.
    pub names: Vec<String>,
    /// Its dimensions as they are used: `[out, in]` for a map, `[n]` for gains and biases.
    pub shape: Vec<usize>,
    /// Whether the file has it the other way round, `[in, out]`.
    pub transposed: bool,
}

impl<Part> TensorSpec<Part> {
    /// The name in a model with its head.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Its dimensions in the file.
    pub fn file_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.transposed {
            shape.reverse();
        }
        shape
    }

    /// How many numbers it has.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|dim| *dim as u64).product()
    }
}

/// What a tensor of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockPart {
    /// The weight of a map. `[out, in]`
    Weight(Projection),
    /// Its bias. `[out]`
    Bias(Projection),
    /// The gains of a norm. `[hidden]`, or `[head_dim]`
    Gain(Norm),
    /// What a norm adds. `[hidden]`
    Shift(Norm),
}

/// The norms of a block by where they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Norm {
    /// Before the attention.
    Attention,
    /// After it: on its output ([`NormPlace::Around`]) or on the sum with what went around it ([`NormPlace::After`]).
    AttentionOut,
    /// Before the MLP.
    Mlp,
    /// After it, as with the attention.
    MlpOut,
    /// On each head's queries.
    Query,
    /// On each head's keys.
    Key,
}

/// What a tensor of the frozen ends is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndPart {
    /// The token embedding. `[vocab, hidden]`
    Embedding,
    /// Learned positions. `[positions, hidden]`
    Positions,
    /// Embeddings of token types. `[types, hidden]`
    TokenTypes,
    /// The gains of the embeddings' norm. `[hidden]`
    EmbeddingGain,
    /// What that norm adds. `[hidden]`
    EmbeddingShift,
    /// The gains of the last norm. `[hidden]`
    FinalGain,
    /// What that norm adds. `[hidden]`
    FinalShift,
    /// The LM head where it is not the embedding. `[vocab, hidden]`
    LanguageHead,
    /// BERT's pooler. `[hidden, hidden]`
    Pooler,
    /// Its bias. `[hidden]`
    PoolerBias,
}

/// What a tensor of a trained head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeadPart {
    /// The map before the last one. `[hidden, hidden]`
    Dense,
    /// Its bias. `[hidden]`
    DenseBias,
    /// The last map. `[outputs, hidden]`
    Output,
    /// Its bias. `[outputs]`
    OutputBias,
}

/// The word that every family's path of a block is taken to contain, in [`ModelConfig::targets`].
pub(crate) const LAYERS: &str = "layers";

/// The path of a map within its block: `self_attn.q_proj`.
pub fn module(config: &ModelConfig, projection: Projection) -> &'static str {
    use Projection::{Down, Gate, K, O, Q, Qkv, Up, V};
    match config.architecture {
        Architecture::Gpt2 => match projection {
            Q | K | V | Qkv => "attn.c_attn",
            O => "attn.c_proj",
            Gate | Up => "mlp.c_fc",
            Down => "mlp.c_proj",
        },
        Architecture::Bert | Architecture::Roberta => match projection {
            Q => "attention.self.query",
            K => "attention.self.key",
            V | Qkv => "attention.self.value",
            O => "attention.output.dense",
            Gate | Up => "intermediate.dense",
            Down => "output.dense",
        },
        _ => match projection {
            Q => "self_attn.q_proj",
            K => "self_attn.k_proj",
            V => "self_attn.v_proj",
            Qkv => "self_attn.qkv_proj",
            O => "self_attn.o_proj",
            Gate => "mlp.gate_proj",
            Up => "mlp.up_proj",
            Down => "mlp.down_proj",
        },
    }
}

/// The path of a map in a model with its head: a tensor's name without `.weight`, and PEFT's name for the module.
pub fn path(config: &ModelConfig, block: usize, projection: Projection) -> String {
    format!("{}.{block}.{}", blocks(config), module(config, projection))
}

/// The tensors of one block.
pub fn block_tensors(config: &ModelConfig, block: usize) -> Vec<TensorSpec<BlockPart>> {
    let form = &config.block;
    let mut tensors = Vec::new();
    for projection in config.projections() {
        let path = path(config, block, projection);
        let (out, input) = projection.shape(config);
        let weight = format!("{path}.weight");
        tensors.push(spec(BlockPart::Weight(projection), weight, &[out, input], form.transposed));
        let biased = match projection {
            Projection::Q | Projection::K | Projection::V | Projection::Qkv => form.qkv_bias,
            Projection::O => form.o_bias,
            Projection::Gate | Projection::Up | Projection::Down => form.mlp_bias,
        };
        if biased {
            tensors.push(spec(BlockPart::Bias(projection), format!("{path}.bias"), &[out], false));
        }
    }
    for norm in norms(config) {
        let (width, shifted) = match norm {
            Norm::Query | Norm::Key => (config.head_dim, false),
            _ => (config.hidden_size, form.norm == NormKind::Layer),
        };
        let path = format!("{}.{block}.{}", blocks(config), norm_module(config, norm));
        tensors.push(spec(BlockPart::Gain(norm), format!("{path}.weight"), &[width], false));
        if shifted {
            tensors.push(spec(BlockPart::Shift(norm), format!("{path}.bias"), &[width], false));
        }
    }
    tensors
}

/// The norms of a block.
pub fn norms(config: &ModelConfig) -> Vec<Norm> {
    let mut norms = match config.block.norm_place {
        NormPlace::Before => vec![Norm::Attention, Norm::Mlp],
        NormPlace::Around => vec![Norm::Attention, Norm::AttentionOut, Norm::Mlp, Norm::MlpOut],
        NormPlace::After => vec![Norm::AttentionOut, Norm::MlpOut],
    };
    if config.block.qk_norm {
        norms.extend([Norm::Query, Norm::Key]);
    }
    norms
}

/// The frozen tensors outside of the blocks.
pub fn end_tensors(config: &ModelConfig) -> Vec<TensorSpec<EndPart>> {
    let (hidden, form) = (config.hidden_size, &config.ends);
    let model = model(config);
    let mut tensors = Vec::new();
    let mut add = |part, name: String, shape: &[usize]| tensors.push(spec(part, name, shape, false));
    let bert = matches!(config.architecture, Architecture::Bert | Architecture::Roberta);
    let [words, positions] = match config.architecture {
        Architecture::Gpt2 => ["wte", "wpe"],
        _ if bert => ["embeddings.word_embeddings", "embeddings.position_embeddings"],
        _ => ["embed_tokens", ""],
    };
    add(EndPart::Embedding, format!("{model}.{words}.weight"), &[config.vocab_size, hidden]);
    if form.first_position.is_some() {
        let shape = [config.max_position_embeddings, hidden];
        add(EndPart::Positions, format!("{model}.{positions}.weight"), &shape);
    }
    if form.token_types > 0 {
        let name = format!("{model}.embeddings.token_type_embeddings.weight");
        add(EndPart::TokenTypes, name, &[form.token_types, hidden]);
    }
    if form.embedding_norm {
        let norm = format!("{model}.embeddings.LayerNorm");
        add(EndPart::EmbeddingGain, format!("{norm}.weight"), &[hidden]);
        add(EndPart::EmbeddingShift, format!("{norm}.bias"), &[hidden]);
    }
    if form.final_norm {
        let norm = if config.architecture == Architecture::Gpt2 { "ln_f" } else { "norm" };
        add(EndPart::FinalGain, format!("{model}.{norm}.weight"), &[hidden]);
        if config.block.norm == NormKind::Layer {
            add(EndPart::FinalShift, format!("{model}.{norm}.bias"), &[hidden]);
        }
    }
    match &form.head {
        Head::Language if config.tie_word_embeddings => {}
        Head::Language => {
            add(EndPart::LanguageHead, "lm_head.weight".to_owned(), &[config.vocab_size, hidden]);
        }
        Head::Classifier(classifier) => match classifier.form {
            ClassifierForm::Pooled => {
                add(EndPart::Pooler, format!("{model}.pooler.dense.weight"), &[hidden, hidden]);
                add(EndPart::PoolerBias, format!("{model}.pooler.dense.bias"), &[hidden]);
            }
            ClassifierForm::Dense => {}
        },
    }
    tensors
}

/// The tensors of the head that is trained: PEFT's `modules_to_save`. None for a language model.
pub fn head_tensors(config: &ModelConfig) -> Vec<TensorSpec<HeadPart>> {
    let Some(classifier) = config.classifier() else {
        return Vec::new();
    };
    let (hidden, outputs) = (config.hidden_size, classifier.outputs);
    let own = |part, name: &str, shape: &[usize]| TensorSpec {
        part,
        names: vec![name.to_owned()],
        shape: shape.to_vec(),
        transposed: false,
    };
    match classifier.form {
        ClassifierForm::Pooled => vec![
            own(HeadPart::Output, "classifier.weight", &[outputs, hidden]),
            own(HeadPart::OutputBias, "classifier.bias", &[outputs]),
        ],
        ClassifierForm::Dense => vec![
            own(HeadPart::Dense, "classifier.dense.weight", &[hidden, hidden]),
            own(HeadPart::DenseBias, "classifier.dense.bias", &[hidden]),
            own(HeadPart::Output, "classifier.out_proj.weight", &[outputs, hidden]),
            own(HeadPart::OutputBias, "classifier.out_proj.bias", &[outputs]),
        ],
    }
}

/// The module that holds all but the head.
fn model(config: &ModelConfig) -> &'static str {
    match config.architecture {
        Architecture::Gpt2 => "transformer",
        Architecture::Bert => "bert",
        Architecture::Roberta => "roberta",
        _ => "model",
    }
}

/// The list of blocks.
fn blocks(config: &ModelConfig) -> &'static str {
    match config.architecture {
        Architecture::Gpt2 => "transformer.h",
        Architecture::Bert => "bert.encoder.layer",
        Architecture::Roberta => "roberta.encoder.layer",
        _ => "model.layers",
    }
}

fn norm_module(config: &ModelConfig, norm: Norm) -> &'static str {
    let gpt2 = config.architecture == Architecture::Gpt2;
    let place = config.block.norm_place;
    match norm {
        Norm::Attention if gpt2 => "ln_1",
        Norm::Mlp if gpt2 => "ln_2",
        Norm::Attention => "input_layernorm",
        Norm::AttentionOut if place == NormPlace::After => "attention.output.LayerNorm",
        Norm::MlpOut if place == NormPlace::After => "output.LayerNorm",
        Norm::Mlp if place == NormPlace::Around => "pre_feedforward_layernorm",
        Norm::AttentionOut | Norm::Mlp => "post_attention_layernorm",
        Norm::MlpOut => "post_feedforward_layernorm",
        Norm::Query => "self_attn.q_norm",
        Norm::Key => "self_attn.k_norm",
    }
}

/// A tensor by its full name; a model saved without its head has none of the first word, and old BERTs call a norm's
/// weight and bias gamma and beta.
fn spec<Part>(part: Part, name: String, shape: &[usize], transposed: bool) -> TensorSpec<Part> {
    let bare = name.split_once('.').map(|(_, rest)| rest.to_owned()).filter(|_| !name.starts_with("lm_head"));
    let mut names = vec![name];
    names.extend(bare);
    let old = |name: &String| {
        let gamma = name.strip_suffix("LayerNorm.weight").map(|start| format!("{start}LayerNorm.gamma"));
        gamma.or_else(|| name.strip_suffix("LayerNorm.bias").map(|start| format!("{start}LayerNorm.beta")))
    };
    let aliases: Vec<_> = names.iter().filter_map(old).collect();
    names.extend(aliases);
    TensorSpec { part, names, shape: shape.to_vec(), transposed }
}
