//! A contiguous slice of transformer blocks, frozen.
//!
//! The numbers follow Hugging Face's `modeling_*.py`, their `rotate_half` convention included.

use std::ops::Range;

use baton_formats::{Files, ModelConfig, TensorIndex, block_tensors};
use baton_kernels::Storage;
use burn::tensor::{Device, Tensor};

use crate::ModelError;
use crate::attention::KeysValues;
use crate::block::{Block, Weight};
use crate::load::{self, Reader};
use crate::lora::{BlockLora, Lora, checked_matrix};
use crate::positions::{Positions, View};

/// A contiguous slice of transformer blocks.
#[derive(Clone, Debug)]
pub struct Blocks {
    config: ModelConfig,
    start: usize,
    blocks: Vec<Block>,
}

impl Blocks {
    /// Reads the blocks of `range`, one after another, and nothing else of the files.
    ///
    /// The maps' matrices are kept in `storage`, norms and biases in f32. No tensor is ever held as f32 beside what is
    /// kept, but for one that its file has transposed (GPT-2). `on_bytes` hears the bytes as they come.
    ///
    /// # Errors
    ///
    /// When the model has no such blocks, its files cannot be read, or a weight does not fit `storage`.
    pub async fn load(
        files: &impl Files,
        index: &TensorIndex,
        config: &ModelConfig,
        range: Range<usize>,
        storage: Storage,
        device: &Device,
        mut on_bytes: impl FnMut(u64),
    ) -> Result<Self, ModelError> {
        if range.start > range.end || range.end > config.num_hidden_layers {
            return Err(ModelError::NoSuchBlocks {
                start: range.start,
                end: range.end,
                blocks: config.num_hidden_layers,
            });
        }
        let mut reader = Reader { files, index, storage, device, on_bytes: &mut on_bytes };
        let mut blocks = Vec::new();
        for block in range.clone() {
            let parts = reader.read(&block_tensors(config, block)).await?;
            let parts = parts.into_iter().map(|(part, matrix)| (part, Weight::Frozen(matrix)));
            blocks.push(Block::new(config, parts.collect()));
        }
        Ok(Self { config: config.clone(), start: range.start, blocks })
    }

    /// One block with numbers of no meaning, to measure a device on: block 1, as most are, whose input has a gradient.
    ///
    /// # Errors
    ///
    /// When a weight is too large for the device.
    pub fn made_up(config: &ModelConfig, storage: Storage, device: &Device) -> Result<Self, ModelError> {
        let parts = load::made_up(&block_tensors(config, 1), storage, device)?;
        let parts = parts.into_iter().map(|(part, matrix)| (part, Weight::Frozen(matrix)));
        let block = Block::new(config, parts.collect());
        Ok(Self { config: config.clone(), start: 1, blocks: vec![block] })
    }

    /// Those of them that are in `range`; the memory of the others is free then.
    #[must_use]
    pub fn within(mut self, range: Range<usize>) -> Self {
        let own = self.range();
        let (start, end) = (range.start.clamp(own.start, own.end), range.end.clamp(own.start, own.end));
        self.blocks.truncate(end - own.start);
        self.blocks.drain(..(start - own.start).min(self.blocks.len()));
        self.start = start;
        self
    }

    /// The blocks of `range`, of which those that are here already are not read again, as [`Blocks::load`] has them.
    ///
    /// # Errors
    ///
    /// As [`Blocks::load`]'s.
    pub async fn reload(
        self,
        files: &impl Files,
        index: &TensorIndex,
        range: Range<usize>,
        storage: Storage,
        device: &Device,
        mut on_bytes: impl FnMut(u64),
    ) -> Result<Self, ModelError> {
        let config = self.config.clone();
        let kept = self.within(range.clone());
        let own = if kept.blocks.is_empty() { range.start..range.start } else { kept.range() };
        let before = range.start..own.start;
        let mut blocks =
            Self::load(files, index, &config, before, storage, device, &mut on_bytes).await?.blocks;
        blocks.extend(kept.blocks);
        let after =
            Self::load(files, index, &config, own.end..range.end, storage, device, &mut on_bytes).await?;
        blocks.extend(after.blocks);
        Ok(Self { config, start: range.start, blocks })
    }

    /// Which blocks of the model these are.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.blocks.len()
    }

    /// The model that they are of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The bytes of their weights on the device.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(Block::bytes).sum()
    }

    /// h: [batch, time, hidden] -> [batch, time, hidden].
    ///
    /// Positions start at 0. `lengths` are the rows' tokens, the rest of a row being padding on the right; without an
    /// entry a row is full. They matter to encoders alone: no real position of a causal model sees the padding.
    pub fn forward(&self, lora: Option<&Lora>, h: Tensor<3>, lengths: &[usize]) -> Tensor<3> {
        let [batch, time, _] = h.dims();
        let positions = Positions::new(&self.config, self.range(), 0, [batch, time], lengths, &h.device());
        self.range().fold(h, |h, block| {
            let lora = lora.and_then(|lora| lora.block(block));
            self.block_forward(block, lora, h, positions.view(block))
        })
    }

    /// [`Self::forward`] for positions that follow those in `cache`, which then holds them too.
    ///
    /// Takes a whole prompt or a single token. Inference of causal models only.
    pub fn forward_cached(&self, lora: Option<&Lora>, h: Tensor<3>, cache: &mut KvCache) -> Tensor<3> {
        let [batch, time, _] = h.dims();
        let shape = [batch, time];
        let positions = Positions::new(&self.config, self.range(), cache.time, shape, &[], &h.device());
        cache.time += time;
        cache.blocks.resize(self.blocks.len(), None);
        let blocks = self.range().zip(&self.blocks).zip(&mut cache.blocks);
        blocks.fold(h, |h, ((number, block), cached)| {
            let lora = lora.and_then(|lora| lora.block(number));
            block.forward(&self.config, lora, h, positions.view(number), Some(cached))
        })
    }

    /// One block, by its number in the model, which is in [`Self::range`].
    pub(crate) fn block_forward(
        &self,
        block: usize,
        lora: Option<&BlockLora>,
        h: Tensor<3>,
        view: &View,
    ) -> Tensor<3> {
        self.blocks[block - self.start].forward(&self.config, lora, h, view, None)
    }

    /// All blocks of a model to be trained as a whole, their values given by name and shape.
    pub(crate) fn from_fn(
        config: &ModelConfig,
        device: &Device,
        mut values: impl FnMut(&str, &[usize]) -> Vec<f32>,
    ) -> Result<Self, ModelError> {
        let blocks = (0..config.num_hidden_layers).map(|block| {
            let parts = block_tensors(config, block).into_iter().map(|spec| {
                let values = values(spec.name(), &spec.shape);
                let tensor = checked_matrix("a weight", values, load::dims(&spec), device)?;
                Ok((spec.part, Weight::Trained(tensor)))
            });
            Ok(Block::new(config, parts.collect::<Result<_, ModelError>>()?))
        });
        Ok(Self { config: config.clone(), start: 0, blocks: blocks.collect::<Result<_, ModelError>>()? })
    }

    /// The same blocks to be trained as a whole.
    pub(crate) fn into_trained(mut self) -> Self {
        self.blocks = self.blocks.into_iter().map(Block::into_trained).collect();
        self
    }

    /// Every tensor of blocks that are trained as a whole, with its name in the file.
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor<2>)> {
        let (start, config) = (self.start, &self.config);
        self.blocks.iter_mut().enumerate().flat_map(move |(i, block)| {
            let specs = block_tensors(config, start + i);
            block.trained_mut().map(move |(part, tensor)| {
                let spec = specs.iter().find(|spec| spec.part == part);
                (spec.map(|spec| spec.name().to_owned()).unwrap_or_default(), tensor)
            })
        })
    }
}

/// The bytes of the frozen weights of the blocks `range`, as [`Blocks::bytes`] has them once they are loaded.
pub fn frozen_bytes(config: &ModelConfig, range: Range<usize>, storage: Storage) -> u64 {
    range.map(|block| load::bytes(&block_tensors(config, block), storage)).fold(0, u64::saturating_add)
}

/// Keys and values of the positions seen so far, for each block of a slice.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    time: usize,
    /// Windowed blocks keep what they no longer see: a text outgrows a window by little here.
    blocks: Vec<Option<KeysValues>>,
}

impl KvCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many positions it holds.
    pub fn time(&self) -> usize {
        self.time
    }
}
