//! The state of a block in training as plain bytes: what lets another device take the block over.

use std::collections::BTreeMap;

use baton_formats::peft::LoraPair;
use baton_formats::{ModelConfig, Projection};
use burn::tensor::Tensor;

use crate::ModelError;
use crate::lora::{LoraSpec, Pairs, checked_matrix};

/// Adapter and moments of one block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockState {
    /// The block's number in the model.
    pub block: usize,
    /// Optimizer steps taken.
    pub step: u64,
    pub(crate) pairs: BTreeMap<Projection, PairState>,
}

/// The matrices of one projection: A, B, their first moments, their second moments.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PairState {
    pub(crate) values: [Vec<f32>; 6],
}

/// Block (u32) and step (u64), little-endian; then the projections in the order of `Projection::ALL`, each as the six
/// matrices of [`PairState`] in f32.
const HEADER: usize = 12;

impl BlockState {
    /// States that no step has touched, one for each block of the model, with the adapter `pairs`.
    ///
    /// # Errors
    ///
    /// When a pair is missing. Sizes are checked where the states are read.
    pub fn fresh(spec: &LoraSpec, config: &ModelConfig, pairs: &Pairs) -> Result<Vec<Self>, ModelError> {
        let state = |block| {
            let pair = |projection| {
                let LoraPair { a, b } = pairs
                    .get(&(block, projection))
                    .ok_or(ModelError::MissingPair { block, projection })?
                    .clone();
                let [za, zb] = [&a, &b].map(|values| vec![0.0; values.len()]);
                let values = [a, b, za.clone(), zb.clone(), za, zb];
                Ok((projection, PairState { values }))
            };
            let pairs = spec.projections(block).map(pair).collect::<Result<_, ModelError>>()?;
            Ok(Self { block, step: 0, pairs })
        };
        (0..config.num_hidden_layers).map(state).collect()
    }

    /// How many bytes the state of a block takes.
    pub fn length(spec: &LoraSpec, config: &ModelConfig, block: usize) -> usize {
        let projections = spec.projections(block);
        let floats = projections.map(|p| {
            3 * spec.shapes(config, block, p).map(|[r, c]| r.saturating_mul(c)).iter().sum::<usize>()
        });
        floats.sum::<usize>().saturating_mul(4).saturating_add(HEADER)
    }

    /// The state as bytes, as many as [`Self::length`] says.
    pub fn to_bytes(&self) -> Vec<u8> {
        let floats = self.pairs.values().flat_map(|pair| pair.values.iter().flatten());
        let block = u32::try_from(self.block).unwrap_or(u32::MAX);
        let numbers: usize = self.pairs.values().flat_map(|pair| pair.values.iter().map(Vec::len)).sum();
        let mut bytes = Vec::with_capacity(HEADER + 4 * numbers);
        bytes.extend(block.to_le_bytes());
        bytes.extend(self.step.to_le_bytes());
        bytes.extend(floats.flat_map(|float| float.to_le_bytes()));
        bytes
    }

    /// The state from bytes.
    ///
    /// # Errors
    ///
    /// When they are not as many as the adapter asks for, name a block that the model lacks, or hold NaN or infinity.
    pub fn from_bytes(spec: &LoraSpec, config: &ModelConfig, bytes: &[u8]) -> Result<Self, ModelError> {
        let wrong = |expected| ModelError::StateLength { found: bytes.len(), expected };
        let Some((block, rest)) = bytes.split_first_chunk::<4>() else {
            return Err(wrong(HEADER));
        };
        let Some((step, rest)) = rest.split_first_chunk::<8>() else {
            return Err(wrong(HEADER));
        };
        let block = u32::from_le_bytes(*block) as usize;
        if block >= config.num_hidden_layers {
            return Err(ModelError::NoSuchBlocks {
                start: block,
                end: block.saturating_add(1),
                blocks: config.num_hidden_layers,
            });
        }
        let expected = Self::length(spec, config, block);
        if bytes.len() != expected {
            return Err(wrong(expected));
        }
        let mut floats = rest.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut take = |count: usize| floats.by_ref().take(count).collect::<Vec<f32>>();
        let pairs = spec.projections(block).map(|projection| {
            let [a, b] = spec.shapes(config, block, projection).map(|[rows, columns]| rows * columns);
            let values = [a, b, a, b, a, b].map(&mut take);
            (projection, PairState { values })
        });
        let state = Self { block, step: u64::from_le_bytes(*step), pairs: pairs.collect() };
        state.check_finite()?;
        Ok(state)
    }

    /// Refuses numbers that are infinite or not a number.
    ///
    /// # Errors
    ///
    /// [`ModelError::StateNotFinite`] if there is one.
    pub fn check_finite(&self) -> Result<(), ModelError> {
        let mut floats = self.pairs.values().flat_map(|pair| pair.values.iter().flatten());
        if floats.all(|float| float.is_finite()) {
            Ok(())
        } else {
            Err(ModelError::StateNotFinite(self.block))
        }
    }

    /// The block's adapter.
    pub fn pairs(&self) -> Pairs {
        let pairs = self.pairs.iter().map(|(&projection, state)| {
            let [a, b, ..] = state.values.clone();
            ((self.block, projection), LoraPair { a, b })
        });
        pairs.collect()
    }
}

impl PairState {
    /// The matrices on the device of `pair` and of its shapes.
    pub(crate) fn tensors(&self, pair: &[Tensor<2>; 2]) -> Result<[Tensor<2>; 6], ModelError> {
        let device = pair[0].device();
        let [a, b] = pair.each_ref().map(Tensor::dims);
        let [va, vb, vma, vmb, vva, vvb] = self.values.clone();
        let matrix = |values, shape| checked_matrix("a matrix of a block's state", values, shape, &device);
        Ok([
            matrix(va, a)?,
            matrix(vb, b)?,
            matrix(vma, a)?,
            matrix(vmb, b)?,
            matrix(vva, a)?,
            matrix(vvb, b)?,
        ])
    }
}
