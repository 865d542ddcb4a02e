//! LoRA adapters (Hu et al., 2021, arXiv:2106.09685) in factored form: `y = x Wᵀ + s · (x Aᵀ) Bᵀ`.

use std::collections::BTreeMap;
use std::ops::Range;

use baton_formats::peft::{LoraPair, Place};
use baton_formats::{ModelConfig, Projection};
use burn::tensor::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::device::{all_to_f32, matrix};

/// An adapter as plain numbers: a pair for each (block, projection).
pub type Pairs = BTreeMap<(usize, Projection), LoraPair>;

/// What is adapted, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSpec {
    /// The rank r of every pair.
    pub rank: usize,
    /// The update is scaled by alpha / rank.
    pub alpha: f64,
    /// The projections that are adapted, in any order.
    pub targets: Vec<Projection>,
    /// Rank and alpha of (block, projection) where they are others (PEFT's `rank_pattern` and `alpha_pattern`); with a
    /// rank of 0 the place is not adapted.
    #[serde(default)]
    pub overrides: BTreeMap<(usize, Projection), (usize, f64)>,
}

impl LoraSpec {
    /// The same rank and alpha for all blocks.
    pub fn new(rank: usize, alpha: f64, targets: Vec<Projection>) -> Self {
        Self { rank, alpha, targets, overrides: BTreeMap::new() }
    }

    /// What an adapter's settings say ([`AdapterConfig::places`](baton_formats::AdapterConfig::places)): one rank and
    /// alpha where all places agree, and the others' own.
    pub fn of_places(config: &ModelConfig, places: &[Place]) -> Self {
        let of = |place: &Place| (place.rank, place.scale * place.rank as f64);
        let (rank, alpha) = places.first().map_or((1, 1.0), of);
        let adapted = |projection: &Projection| places.iter().any(|place| place.projection == *projection);
        let mut spec = Self::new(rank, alpha, config.projections().filter(adapted).collect());
        let places: BTreeMap<_, _> =
            places.iter().map(|place| ((place.block, place.projection), of(place))).collect();
        for block in 0..config.num_hidden_layers {
            for &projection in &spec.targets {
                let own = places.get(&(block, projection)).copied().unwrap_or((0, 0.0));
                if own != (rank, alpha) {
                    spec.overrides.insert((block, projection), own);
                }
            }
        }
        spec
    }

    /// What the update `B A` of a place is multiplied by: alpha / rank.
    pub fn scale(&self, block: usize, projection: Projection) -> f64 {
        let (rank, alpha) = self.place(block, projection);
        alpha / rank as f64
    }

    /// The adapted maps of a block once each, in the order of [`Projection::ALL`].
    pub(crate) fn projections(&self, block: usize) -> impl Iterator<Item = Projection> + '_ {
        let adapted = move |projection: &Projection| {
            self.targets.contains(projection) && self.place(block, *projection).0 > 0
        };
        Projection::ALL.into_iter().filter(adapted)
    }

    /// The shapes of A `[r, in]` and B `[out, r]`.
    pub(crate) fn shapes(
        &self,
        config: &ModelConfig,
        block: usize,
        projection: Projection,
    ) -> [[usize; 2]; 2] {
        let (outputs, inputs) = projection.shape(config);
        let (rank, _) = self.place(block, projection);
        [[rank, inputs], [outputs, rank]]
    }

    fn place(&self, block: usize, projection: Projection) -> (usize, f64) {
        self.overrides.get(&(block, projection)).copied().unwrap_or((self.rank, self.alpha))
    }
}

/// The adapters of a slice of blocks: plain parameter tensors, kept outside the graph between steps.
#[derive(Clone, Debug)]
pub struct Lora {
    pub(crate) spec: LoraSpec,
    pub(crate) range: Range<usize>,
    /// One a block of `range`, in its order.
    pub(crate) blocks: Vec<BlockLora>,
}

impl Lora {
    /// PEFT's initialisation: A is drawn from U(-1/√in, 1/√in), which is its `kaiming_uniform_(a = √5)`, and B is 0.
    ///
    /// Each A has a generator of its own, seeded by (seed, block, projection): how the blocks are split into stages
    /// changes no number.
    ///
    /// # Errors
    ///
    /// [`ModelError::Rank`] for a rank of 0.
    pub fn init(
        config: &ModelConfig,
        spec: &LoraSpec,
        range: Range<usize>,
        seed: u64,
        device: &Device,
    ) -> Result<Self, ModelError> {
        Self::build(config, spec, range, device, |block, projection| {
            let [[rank, inputs], [outputs, _]] = spec.shapes(config, block, projection);
            let bound = 1.0 / (inputs as f32).sqrt();
            let mut rng = generator(seed, block, projection);
            let mut draw = || (rng.random::<f32>() * 2.0 - 1.0) * bound;
            Ok(LoraPair { a: (0..rank * inputs).map(|_| draw()).collect(), b: vec![0.0; outputs * rank] })
        })
    }

    /// The adapters of `range` from plain numbers; pairs of other blocks are ignored.
    ///
    /// # Errors
    ///
    /// When a pair is missing or has another size than `spec` says.
    pub fn from_pairs(
        config: &ModelConfig,
        spec: &LoraSpec,
        range: Range<usize>,
        pairs: &Pairs,
        device: &Device,
    ) -> Result<Self, ModelError> {
        Self::build(config, spec, range, device, |block, projection| {
            pairs.get(&(block, projection)).cloned().ok_or(ModelError::MissingPair { block, projection })
        })
    }

    /// The adapters as plain numbers.
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn to_pairs(&self) -> Result<Pairs, ModelError> {
        let all = self.blocks.iter().flat_map(|block| block.pairs.values());
        let tensors = all.flat_map(|[a, b]| [a.clone(), b.clone()]);
        let mut values = all_to_f32(tensors).await?.into_iter();
        let mut pairs = Pairs::new();
        for (block, adapters) in self.range.clone().zip(&self.blocks) {
            for &projection in adapters.pairs.keys() {
                let (Some(a), Some(b)) = (values.next(), values.next()) else {
                    return Err(ModelError::MissingPair { block, projection });
                };
                pairs.insert((block, projection), LoraPair { a, b });
            }
        }
        Ok(pairs)
    }

    /// The blocks that are adapted.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// What is adapted, and how.
    pub fn spec(&self) -> &LoraSpec {
        &self.spec
    }

    /// The adapter of a block of the whole model, if it is in this slice.
    pub(crate) fn block(&self, block: usize) -> Option<&BlockLora> {
        self.blocks.get(block.checked_sub(self.range.start)?)
    }

    fn build(
        config: &ModelConfig,
        spec: &LoraSpec,
        range: Range<usize>,
        device: &Device,
        mut pair: impl FnMut(usize, Projection) -> Result<LoraPair, ModelError>,
    ) -> Result<Self, ModelError> {
        if spec.rank == 0 {
            return Err(ModelError::Rank(spec.rank));
        }
        let blocks = range.clone().map(|block| {
            let pairs = spec.projections(block).map(|projection| {
                let [a, b] = spec.shapes(config, block, projection);
                let pair = pair(block, projection)?;
                let a = checked_matrix("lora_A", pair.a, a, device)?;
                let b = checked_matrix("lora_B", pair.b, b, device)?;
                Ok((projection, [a, b]))
            });
            let pairs: BTreeMap<_, _> = pairs.collect::<Result<_, ModelError>>()?;
            let scales = pairs.keys().map(|&projection| (projection, spec.scale(block, projection)));
            Ok(BlockLora { scales: scales.collect(), pairs })
        });
        Ok(Self { blocks: blocks.collect::<Result<_, ModelError>>()?, spec: spec.clone(), range })
    }
}

/// The adapters of one block.
#[derive(Clone, Debug)]
pub(crate) struct BlockLora {
    /// What each update is multiplied by.
    scales: BTreeMap<Projection, f64>,
    /// A `[r, in]` and B `[out, r]`.
    pub(crate) pairs: BTreeMap<Projection, [Tensor<2>; 2]>,
}

impl BlockLora {
    /// The update of a projection. x: [rows, in] -> [rows, out]
    pub(crate) fn update(&self, projection: Projection, x: &Tensor<2>) -> Option<Tensor<2>> {
        let [a, b] = self.pairs.get(&projection)?.clone();
        let scale = self.scales.get(&projection).copied()?;
        let low = x.clone().matmul(a.transpose()).mul_scalar(scale); // [rows, r]
        Some(low.matmul(b.transpose()))
    }

    /// The same adapters as leaves of a new graph.
    pub(crate) fn leaves(&self) -> Self {
        let leaf = |tensor: &Tensor<2>| tensor.clone().autodiff().require_grad();
        let pairs = self.pairs.iter();
        Self {
            scales: self.scales.clone(),
            pairs: pairs.map(|(&projection, [a, b])| (projection, [leaf(a), leaf(b)])).collect(),
        }
    }
}

/// A matrix of `shape`, if there are as many values.
pub(crate) fn checked_matrix(
    what: &'static str,
    values: Vec<f32>,
    shape: [usize; 2],
    device: &Device,
) -> Result<Tensor<2>, ModelError> {
    if values.len() != shape[0] * shape[1] {
        return Err(ModelError::Shape { what, found: vec![values.len()], expected: shape.to_vec() });
    }
    Ok(matrix(values, shape, device))
}

fn generator(seed: u64, block: usize, projection: Projection) -> ChaCha8Rng {
    let position = Projection::ALL.iter().position(|&other| other == projection);
    let words = [seed, block as u64, position.map_or(u64::MAX, |position| position as u64), 0];
    let mut bytes = [0; 32];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(bytes)
}
