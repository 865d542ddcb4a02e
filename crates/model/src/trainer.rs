//! A slice of blocks in training: forward saves, backward accumulates, apply steps.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use baton_formats::Projection;
use baton_formats::peft::LoraPair;
use burn::tensor::Tensor;

use crate::device::all_to_f32;
use crate::lora::{BlockLora, Pairs};
use crate::positions::{Positions, View};
use crate::state::PairState;
use crate::{AdamW, BlockState, Blocks, Lora, ModelError, Moments};

/// A slice of blocks with trainable adapters.
///
/// Each block is a graph of its own, backward walks them from the last to the first. With `recompute` a forward pass
/// saves the blocks' inputs alone and backward runs each block again: the memory of one block's activations in place
/// of all of them, for one more forward pass. The numbers are the same.
pub struct Trainer {
    blocks: Blocks,
    lora: Lora,
    adamw: AdamW,
    recompute: bool,
    /// What backward needs of each micro-batch, by its key.
    saved: HashMap<u64, Saved>,
    slots: BTreeMap<(usize, Projection), Slot>,
}

/// What backward needs of a micro-batch.
struct Saved {
    /// Tokens of each row; all, where there is no entry.
    lengths: Vec<usize>,
    /// [batch, time, hidden]
    shape: [usize; 3],
    /// One a block.
    blocks: Vec<SavedBlock>,
}

/// One block's part of a forward pass.
#[allow(clippy::large_enum_variant, reason = "a few exist, and what they point to is far larger")]
enum SavedBlock {
    /// Its input, plain. [batch, time, hidden]
    Input(Tensor<3>),
    Trace(Trace),
}

/// The graph of one block's forward pass.
struct Trace {
    /// [batch, time, hidden]
    input: Tensor<3>,
    lora: Option<BlockLora>,
    /// [batch, time, hidden]
    output: Tensor<3>,
}

/// What training keeps beside a pair of matrices, A's before B's.
struct Slot {
    gradient: Option<[Tensor<2>; 2]>,
    moments: [Moments; 2],
}

impl Trainer {
    /// Adapters that were never updated. Those outside the blocks' range are left alone.
    pub fn new(blocks: Blocks, lora: Lora, adamw: AdamW, recompute: bool) -> Self {
        let mut slots = BTreeMap::new();
        for block in blocks.range() {
            for (&projection, pair) in lora.block(block).iter().flat_map(|lora| &lora.pairs) {
                let slot = Slot { gradient: None, moments: pair.each_ref().map(Moments::zeros) };
                slots.insert((block, projection), slot);
            }
        }
        Self { blocks, lora, adamw, recompute, saved: HashMap::new(), slots }
    }

    /// Which blocks of the model these are.
    pub fn range(&self) -> Range<usize> {
        self.blocks.range()
    }

    /// The adapters as they are now.
    pub fn lora(&self) -> &Lora {
        &self.lora
    }

    /// The frozen blocks.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// The frozen blocks, for another run on them.
    pub fn into_blocks(self) -> Blocks {
        self.blocks
    }

    /// The training pass: h [batch, time, hidden] -> [batch, time, hidden]. What backward needs is saved under `key`.
    ///
    /// `lengths` are the rows' tokens, as for [`Blocks::forward`].
    pub fn forward(&mut self, key: u64, h: Tensor<3>, lengths: &[usize]) -> Tensor<3> {
        let shape = h.dims();
        let positions = self.positions(&h, lengths);
        let mut blocks = Vec::new();
        let first = self.range().start;
        let output = self.range().fold(h, |h, block| {
            if self.recompute {
                blocks.push(SavedBlock::Input(h.clone()));
                let lora = self.lora.block(block);
                return self.blocks.block_forward(block, lora, h, positions.view(block));
            }
            // Nothing precedes block 0 but the frozen embedding: its input's gradient is not wanted.
            let trace = self.trace(block, h, block > first || first > 0, positions.view(block));
            let output = trace.output.clone().inner();
            blocks.push(SavedBlock::Trace(trace));
            output
        });
        self.saved.insert(key, Saved { lengths: lengths.to_vec(), shape, blocks });
        output
    }

    /// The pass without a graph: h [batch, time, hidden] -> [batch, time, hidden]. `lengths` as for [`Blocks::forward`].
    pub fn infer(&self, h: Tensor<3>, lengths: &[usize]) -> Tensor<3> {
        self.blocks.forward(Some(&self.lora), h, lengths)
    }

    /// Adds the adapters' gradients of the micro-batch `key` to the accumulators.
    ///
    /// `grad` is the loss's gradient with respect to the output, [batch, time, hidden]. Gives that with respect to the
    /// input if it is wanted, and otherwise spares its computation.
    ///
    /// # Errors
    ///
    /// When `key` has no saved forward pass, or `grad` has another shape than its output.
    pub fn backward(
        &mut self,
        key: u64,
        grad: Tensor<3>,
        want_input_grad: bool,
    ) -> Result<Option<Tensor<3>>, ModelError> {
        let saved = self.saved.remove(&key).ok_or(ModelError::UnknownKey(key))?;
        if saved.shape != grad.dims() {
            return Err(ModelError::Shape {
                what: "a gradient",
                found: grad.dims().to_vec(),
                expected: saved.shape.to_vec(),
            });
        }
        let positions = self.positions(&grad, &saved.lengths);
        let first = self.range().start;
        let mut grad = Some(grad);
        for (block, saved) in self.range().zip(saved.blocks).rev() {
            let Some(output_grad) = grad.take() else {
                break;
            };
            let want = want_input_grad || block > first;
            let trace = match saved {
                SavedBlock::Input(input) => self.trace(block, input, want, positions.view(block)),
                SavedBlock::Trace(trace) if want && !trace.input.is_require_grad() => {
                    self.trace(block, trace.input.inner(), want, positions.view(block))
                }
                SavedBlock::Trace(trace) => trace,
            };
            grad = self.backward_block(block, trace, output_grad);
        }
        Ok(grad.filter(|_| want_input_grad))
    }

    /// The sum of the squares of all accumulated gradients, for the global norm.
    ///
    /// Each tensor's sum is taken on the device and these are added in f64, so that it does not depend on how the
    /// blocks are split into stages.
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn grad_sum_of_squares(&self) -> Result<f64, ModelError> {
        let gradients = self.slots.values().filter_map(|slot| slot.gradient.clone());
        let sums = gradients.flatten().map(|g| g.square().sum().reshape([1, 1]));
        let sums = all_to_f32(sums).await?;
        Ok(sums.into_iter().flatten().map(f64::from).sum())
    }

    /// One step of AdamW on the accumulated gradients, multiplied by `scale` before; then they are cleared.
    ///
    /// An adapter without a gradient stays as it is, and so do its moments.
    pub fn apply(&mut self, lr: f64, scale: f64) {
        for (block, adapter) in self.lora.range.clone().zip(&mut self.lora.blocks) {
            for (&projection, pair) in &mut adapter.pairs {
                let Some(slot) = self.slots.get_mut(&(block, projection)) else {
                    continue;
                };
                let Some(gradient) = slot.gradient.take() else {
                    continue;
                };
                for ((parameter, gradient), moments) in pair.iter_mut().zip(gradient).zip(&mut slot.moments) {
                    let gradient = gradient.mul_scalar(scale);
                    *parameter = self.adamw.update(parameter.clone(), gradient, moments, lr);
                }
            }
        }
    }

    /// Drops saved activations and accumulated gradients: the step is abandoned.
    pub fn discard(&mut self) {
        self.saved.clear();
        for slot in self.slots.values_mut() {
            slot.gradient = None;
        }
    }

    /// The accumulated gradients, shaped like the adapters; those that have none are left out.
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn gradients(&self) -> Result<Pairs, ModelError> {
        let with = || {
            let slots = self.slots.iter();
            slots.filter_map(|(&at, slot)| Some((at, slot.gradient.clone()?)))
        };
        let values = all_to_f32(with().flat_map(|(_, gradient)| gradient)).await?;
        let mut values = values.into_iter();
        let mut next = || values.next().unwrap_or_default();
        let pairs = with().map(|(at, _)| (at, LoraPair { a: next(), b: next() }));
        Ok(pairs.collect())
    }

    /// Adapter and moments of every block, for another device to go on from.
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn state(&self) -> Result<Vec<BlockState>, ModelError> {
        let mut tensors = Vec::new();
        for (&(block, projection), slot) in &self.slots {
            let pair = self.lora.block(block).and_then(|lora| lora.pairs.get(&projection));
            let [a, b] = pair.ok_or(ModelError::MissingPair { block, projection })?;
            let [ma, mb] = &slot.moments;
            tensors.extend([a, b, &ma.m, &mb.m, &ma.v, &mb.v].map(Tensor::clone));
        }
        let mut values = all_to_f32(tensors).await?.into_iter();
        let mut next = || values.next().unwrap_or_default();
        let states = self.range().map(|block| {
            let slots = self.slots.range((block, Projection::ALL[0])..);
            let slots = slots.take_while(|((other, _), _)| *other == block);
            let mut step = 0;
            let pairs = slots.map(|(&(_, projection), slot)| {
                step = slot.moments[0].step;
                (projection, PairState { values: [(); 6].map(|()| next()) })
            });
            let pairs = pairs.collect();
            BlockState { block, step, pairs }
        });
        Ok(states.collect())
    }

    /// Takes adapter and moments of every block over from `states`, in any order; an open step is discarded.
    ///
    /// # Errors
    ///
    /// When they are of other blocks, projections or sizes. Nothing is taken over then.
    pub fn restore(&mut self, states: &[BlockState]) -> Result<(), ModelError> {
        let mut found: Vec<usize> = states.iter().map(|state| state.block).collect();
        found.sort_unstable();
        let expected: Vec<usize> = self.range().collect();
        if found != expected {
            return Err(ModelError::StateOfOtherBlocks { found, expected });
        }
        let mut lora = self.lora.clone();
        let mut slots = BTreeMap::new();
        for BlockState { block, step, pairs } in states {
            let block = *block;
            let adapter = block.checked_sub(lora.range.start);
            let adapter = adapter.and_then(|i| lora.blocks.get_mut(i));
            for (&projection, pair) in adapter.into_iter().flat_map(|adapter| &mut adapter.pairs) {
                let saved = pairs.get(&projection);
                let saved = saved.ok_or(ModelError::MissingPair { block, projection })?;
                let [a, b, ma, mb, va, vb] = saved.tensors(pair)?;
                let step = *step;
                let moments = [(ma, va), (mb, vb)].map(|(m, v)| Moments { m, v, step });
                *pair = [a, b];
                let gradient = None;
                slots.insert((block, projection), Slot { gradient, moments });
            }
        }
        self.saved.clear();
        self.lora = lora;
        self.slots = slots;
        Ok(())
    }

    /// h: [batch, time, hidden]
    fn positions(&self, h: &Tensor<3>, lengths: &[usize]) -> Positions {
        let [batch, time, _] = h.dims();
        Positions::new(self.blocks.config(), self.range(), 0, [batch, time], lengths, &h.device())
    }

    fn trace(&self, block: usize, input: Tensor<3>, want_input_grad: bool, view: &View) -> Trace {
        let input = input.autodiff();
        let input = if want_input_grad { input.require_grad() } else { input };
        let lora = self.lora.block(block).map(BlockLora::leaves);
        let output = self.blocks.block_forward(block, lora.as_ref(), input.clone(), view);
        Trace { input, lora, output }
    }

    fn backward_block(&mut self, block: usize, trace: Trace, grad: Tensor<3>) -> Option<Tensor<3>> {
        let product = trace.output * grad;
        if !product.is_tracked() {
            return None; // nothing is adapted here, and nobody asks for the input's gradient
        }
        let mut gradients = product.sum().backward();
        for (&projection, [a, b]) in trace.lora.iter().flat_map(|lora| &lora.pairs) {
            let (Some(a), Some(b)) = (a.grad_remove(&mut gradients), b.grad_remove(&mut gradients)) else {
                continue;
            };
            if let Some(slot) = self.slots.get_mut(&(block, projection)) {
                slot.gradient = Some(match slot.gradient.take() {
                    None => [a, b],
                    Some([sum_a, sum_b]) => [sum_a + a, sum_b + b],
                });
            }
        }
        trace.input.grad_remove(&mut gradients)
    }
}
