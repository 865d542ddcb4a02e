//! What depends on positions alone: rotary angles, and who sees whom.

use std::ops::Range;

use baton_formats::ModelConfig;
use baton_formats::config::{Rope, RopeScaling};
use burn::tensor::{Device, Tensor};

use crate::device::matrix;

/// The positions of a pass: a view for each block of a slice, computed once for each kind of block.
pub(crate) struct Positions {
    start: usize,
    views: Vec<View>,
}

impl Positions {
    /// `time` positions after `past` ones, of `batch` rows. An encoder's row has as many real ones as `lengths` says;
    /// without an entry, all are.
    pub(crate) fn new(
        config: &ModelConfig,
        range: Range<usize>,
        past: usize,
        [batch, time]: [usize; 2],
        lengths: &[usize],
        device: &Device,
    ) -> Self {
        let padding = padding_mask(config, [batch, past + time], lengths, device);
        let mut kinds: [Option<View>; 2] = [None, None];
        let start = range.start;
        let views = range.map(|block| {
            let window = config.window(block);
            let make = || View {
                rotation: config.rope(block).map(|rope| Rotation::new(rope, config, past, time, device)),
                masks: sight_mask(config, window, past, time, device)
                    .into_iter()
                    .chain(padding.clone())
                    .collect(),
            };
            kinds[usize::from(window.is_some())].get_or_insert_with(make).clone()
        });
        Self { start, views: views.collect() }
    }

    /// What a block of the slice sees.
    pub(crate) fn view(&self, block: usize) -> &View {
        &self.views[block - self.start]
    }
}

/// The positions as one block sees them.
#[derive(Clone)]
pub(crate) struct View {
    rotation: Option<Rotation>,
    /// Each 0 where a position may look, and a number that no exponential survives where it may not.
    /// [1 or batch · kv heads, 1, 1 or time, past + time]
    masks: Vec<Tensor<4>>,
}

impl View {
    /// x: [batch, time, heads, head_dim], rotated by its positions where the model does this
    pub(crate) fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.rotation {
            Some(rotation) => rotation.apply(x),
            None => x,
        }
    }

    /// scores: [batch · kv heads, group, time, past + time], without those that may not be
    pub(crate) fn mask(&self, scores: Tensor<4>) -> Tensor<4> {
        self.masks.iter().fold(scores, |scores, mask| scores + mask.clone())
    }
}

/// Rotary angles.
#[derive(Clone)]
struct Rotation {
    /// Cosines. [1, time, 1, head_dim]
    cos: Tensor<4>,
    /// Sines, negated in the first half of `head_dim`: what `rotate_half` negates. [1, time, 1, head_dim]
    sin: Tensor<4>,
}

impl Rotation {
    fn new(rope: &Rope, config: &ModelConfig, past: usize, time: usize, device: &Device) -> Self {
        let width = config.head_dim;
        let frequencies = frequencies(rope, width);
        let mut cos = Vec::with_capacity(time * width);
        let mut sin = Vec::with_capacity(time * width);
        for position in past..past + time {
            for (sign, frequency) in [-1.0, 1.0]
                .into_iter()
                .flat_map(|sign| frequencies.iter().map(move |frequency| (sign, frequency)))
            {
                let (s, c) = (position as f32 * frequency).sin_cos();
                cos.push(c);
                sin.push(sign * s);
            }
        }
        let table = |values| matrix(values, [time, width], device).reshape([1, time, 1, width]);
        Self { cos: table(cos), sin: table(sin) }
    }

    fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, time, heads, width] = x.dims();
        let halves: Tensor<5> = x.clone().reshape([batch, time, heads, 2, width / 2]);
        let swapped = halves.flip([3]).reshape([batch, time, heads, width]);
        x * self.cos.clone() + swapped * self.sin.clone()
    }
}

/// The angle of one position further, for each pair of a head of `width`.
///
/// In f32 throughout, as transformers does: an exact angle would differ from the model's own at long range.
fn frequencies(rope: &Rope, width: usize) -> Vec<f32> {
    let plain = (0..width / 2).map(|i| 1.0 / (rope.theta as f32).powf((2 * i) as f32 / width as f32));
    plain.map(|frequency| scaled(rope.scaling, frequency)).collect()
}

/// transformers' `_compute_linear_scaling_rope_parameters` and `_compute_llama3_parameters`.
fn scaled(scaling: RopeScaling, frequency: f32) -> f32 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        } => {
            let original = original as f64;
            let wavelength = std::f64::consts::TAU as f32 / frequency;
            if wavelength > (original / low) as f32 {
                return frequency / factor as f32;
            }
            if wavelength < (original / high) as f32 {
                return frequency;
            }
            let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
            (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
        }
    }
}

/// What is added to the score of a position that is not to be seen. Finite: WGSL lets a compiler assume that there are
/// no infinities.
const HIDDEN: f32 = -1e9;

/// Which of `past + time` positions the last `time` do not see, whatever the row; none where they see all.
/// [1, 1, time, past + time]
fn sight_mask(
    config: &ModelConfig,
    window: Option<usize>,
    past: usize,
    time: usize,
    device: &Device,
) -> Option<Tensor<4>> {
    let (all, causal) = (past + time, config.block.causal);
    let hides = |row: usize, column: usize| {
        let own = past + row;
        // transformers' rule: of j, i sees those with i - window < j.
        (causal && column > own) || window.is_some_and(|window| own.abs_diff(column) >= window)
    };
    let needed = (causal && time > 1) || window.is_some_and(|window| all > window);
    let mask = || {
        let row = |row| (0..all).map(move |column| if hides(row, column) { HIDDEN } else { 0.0 });
        let values = (0..time).flat_map(row).collect();
        matrix(values, [time, all], device).reshape([1, 1, time, all])
    };
    needed.then(mask)
}

/// The padding of an encoder's rows, which no position sees. [batch · kv heads, 1, 1, time]
///
/// What attends to the past needs none: the padding is on the right, and no real position sees it.
fn padding_mask(
    config: &ModelConfig,
    [batch, time]: [usize; 2],
    lengths: &[usize],
    device: &Device,
) -> Option<Tensor<4>> {
    if config.block.causal || lengths.iter().all(|&length| length >= time) {
        return None;
    }
    let rows = batch * config.num_key_value_heads;
    let length = |row: usize| lengths.get(row / config.num_key_value_heads).copied().unwrap_or(time);
    let values = (0..rows).flat_map(|row| {
        let length = length(row);
        (0..time).map(move |column| if column >= length { HIDDEN } else { 0.0 })
    });
    Some(matrix(values.collect(), [rows, time], device).reshape([rows, 1, 1, time]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `_compute_llama3_parameters` of transformers 5.23 gives for Llama 3.2 1B: 0 to 14 are kept, 15 to 17 between.
    #[test]
    fn llama_3_keeps_high_frequencies_and_stretches_low_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let found = frequencies(&Rope { theta: 500_000.0, scaling }, 64);
        for (i, expected) in [
            (0, 1.0),
            (1, 6.636_013e-1),
            (13, 4.839_421_2e-3),
            (14, 3.211_446e-3),
            (15, 1.290_548e-3),
            (16, 4.295_567e-4),
            (17, 9.708_286e-5),
            (18, 1.946_163_9e-5),
            (31, 9.418_306_5e-8),
        ] {
            assert!((found[i] / expected - 1.0f32).abs() < 1e-5, "{i}: {}", found[i]);
        }
    }
}
