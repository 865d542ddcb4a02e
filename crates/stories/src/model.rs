//! The default model itself: its dimensions, the recipe of its training, and how good it is.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use baton_formats::{Files, ModelConfig, TensorIndex, Tokenizer, write_safetensors};
use baton_model::{AdamW, Blocks, Device, Ends, Pretrainer, Storage};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::{Purpose, Storyteller, Voice, tokenizer};

/// The longest text that it is made for, in tokens.
pub const CONTEXT: usize = 256;

/// How the model is made. The same recipe on the same kind of processor gives the same bytes: burn's CPU kernels pick
/// their instructions by what the processor has, and a sum in another order rounds otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Makes stories, initial weights and the order of the batches.
    pub seed: u64,
    /// Optimizer updates.
    pub steps: u32,
    /// Stories a step.
    pub batch_size: usize,
    /// The peak learning rate, after [`Self::warmup`] steps; then half a cosine, down to a twentieth of it.
    pub lr: f64,
    /// Steps over which the rate rises from 0.
    pub warmup: u32,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Blocks: as many devices can share the training.
    pub blocks: usize,
}

impl Default for Recipe {
    fn default() -> Self {
        Self { seed: 0, steps: 6400, batch_size: 8, lr: 5e-3, warmup: 60, hidden: 96, blocks: 6 }
    }
}

/// A batch is cut from this many batches' worth of lines sorted by length: less is padded.
const POOL: usize = 16;

impl Recipe {
    /// `config.json`.
    pub fn config(&self) -> serde_json::Value {
        let heads = self.hidden / 24;
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.hidden * 8 / 3,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": heads,
            "num_key_value_heads": heads / 2,
            "head_dim": 24,
            "vocab_size": tokenizer::VOCABULARY,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": true,
            "attention_bias": false,
            "mlp_bias": false,
            "bos_token_id": tokenizer::BEGIN.1,
            "eos_token_id": tokenizer::END.1,
            "pad_token_id": tokenizer::PAD.1,
            "torch_dtype": "float32",
        })
    }

    /// The learning rate of a step, counted from 0.
    fn lr_at(&self, step: u32) -> f64 {
        const FLOOR: f64 = 0.05;
        if step < self.warmup {
            return self.lr * f64::from(step + 1) / f64::from(self.warmup);
        }
        let progress = f64::from(step - self.warmup) / f64::from((self.steps - self.warmup).max(1));
        self.lr * (FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()))
    }

    /// Trains, and gives the bytes of `model.safetensors`. `on_step` hears each step's loss in nats a token and its
    /// number of tokens.
    ///
    /// # Errors
    ///
    /// When the training diverges, or the device fails.
    pub async fn train(
        &self,
        tokenizer: &Tokenizer,
        device: &Device,
        mut on_step: impl FnMut(u32, f64, usize),
    ) -> Result<Vec<u8>> {
        let config = ModelConfig::parse(self.config().to_string().as_bytes())?;
        let adamw = AdamW { beta2: 0.98, weight_decay: 0.01, ..AdamW::default() };
        let mut model = Pretrainer::new(&config, self.seed, adamw, device)?;
        let mut batches = Batches::new(self, tokenizer);
        for step in 0..self.steps {
            let batch = batches.next()?;
            let loss = model.step(&batch, self.lr_at(step)).await?;
            ensure!(loss.is_finite(), "the training diverged at step {step}: its loss is {loss}");
            on_step(step, loss, batch.iter().map(Vec::len).sum());
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok(write_safetensors(&model.to_tensors().await?, &metadata)?)
    }
}

/// Lines as token ids, in batches of about equal lengths.
struct Batches<'a> {
    teller: Storyteller,
    order: ChaCha8Rng,
    tokenizer: &'a Tokenizer,
    size: usize,
    ready: Vec<Vec<Vec<u32>>>,
}

impl<'a> Batches<'a> {
    fn new(recipe: &Recipe, tokenizer: &'a Tokenizer) -> Self {
        let mut order = ChaCha8Rng::seed_from_u64(recipe.seed);
        order.set_stream(5);
        let teller = Storyteller::new(recipe.seed, Purpose::Training);
        Self { teller, order, tokenizer, size: recipe.batch_size, ready: Vec::new() }
    }

    fn next(&mut self) -> Result<Vec<Vec<u32>>> {
        if self.ready.is_empty() {
            let lines = (0..POOL * self.size).map(|_| encode(self.tokenizer, &self.teller.line()));
            let mut lines = lines.collect::<Result<Vec<_>>>()?;
            lines.sort_by_key(Vec::len);
            self.ready = lines.chunks(self.size).map(<[_]>::to_vec).collect();
            self.ready.shuffle(&mut self.order);
        }
        self.ready.pop().context("a batch size of 0 leaves nothing to train on")
    }
}

/// A line as the model learns it: from the begin token to the end token.
fn encode(tokenizer: &Tokenizer, line: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(line)?;
    ids.push(tokenizer::END.1);
    Ok(ids)
}

/// The mean loss in nats a token of a model on new stories, `stories` of them.
///
/// # Errors
///
/// When the model cannot be read.
pub async fn loss(
    files: &impl Files,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    voice: Voice,
    stories: usize,
) -> Result<f64> {
    let device = &baton_model::cpu();
    let index = TensorIndex::open(files, "model.safetensors").await?;
    let ends = Ends::load(files, &index, config, Storage::F32, device, |_| ()).await?;
    let blocks =
        Blocks::load(files, &index, config, 0..config.num_hidden_layers, Storage::F32, device, |_| ())
            .await?;
    // No seed that a model is trained with.
    let mut teller = Storyteller::new(u64::MAX, Purpose::Validation);
    let (mut sum, mut count) = (0.0, 0);
    for _ in 0..stories {
        let ids = encode(tokenizer, &teller.tell(voice).text)?;
        let (inputs, targets) = (ids[..ids.len() - 1].to_vec(), ids[1..].to_vec());
        count += targets.len();
        let weights = vec![1.0; targets.len()];
        let h = blocks.forward(None, ends.embed(&[inputs], &[])?, &[]);
        let (nll, _) = ends.loss_and_grad(h, &[targets], &[weights]).await?;
        sum += nll;
    }
    Ok(sum / count as f64)
}
