//! How far the stored numbers are from those given: the bounds that each storage promises.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use baton_kernels::{FrozenMatrix, Storage};
use burn::tensor::Device;
use common::numbers;
use futures::executor::block_on;
use half::{bf16, f16};

/// The code book of NF4 as bitsandbytes prints it.
const NF4: [f64; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

fn stored(storage: Storage, values: &[f32], columns: usize) -> Vec<f32> {
    let shape = [values.len() / columns, columns];
    let matrix = FrozenMatrix::from_f32(storage, values.to_vec(), shape, &Device::flex()).unwrap();
    block_on(matrix.to_f32()).unwrap()
}

fn magnitude(block: &[f32]) -> f64 {
    f64::from(block.iter().fold(0.0, |largest: f32, x| largest.max(x.abs())))
}

/// Weights of all sizes: plain, tiny, huge, below f32's and f16's normal numbers, blocks of zeros and of one number.
fn rows() -> Vec<f32> {
    let plain = numbers(172, 20);
    let scaled = |scale: f32| plain.iter().map(move |x| x * scale);
    let mut rows: Vec<f32> = [1.0, 1e-3, 1e-6, 1e-9, 1e-41, 1e4, 3e5].into_iter().flat_map(scaled).collect();
    rows.extend(std::iter::repeat_n(0.0, 172));
    rows.extend(std::iter::repeat_n(-0.7, 172));
    rows.extend((0..172).map(|i| if i == 70 { 5.0 } else { 0.0 }));
    rows
}

/// Every block of every row, as given and as stored.
fn blocks(storage: Storage, size: usize, mut check: impl FnMut(&[f32], &[f32])) {
    let given = rows();
    let found = stored(storage, &given, 172);
    for (given, found) in given.chunks(172).zip(found.chunks(172)) {
        for (given, found) in given.chunks(size).zip(found.chunks(size)) {
            check(given, found);
        }
    }
}

#[test]
fn bf16_is_the_nearest_bf16() {
    let given = rows();
    let nearest: Vec<f32> = given.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    assert_eq!(stored(Storage::Bf16, &given, 172), nearest);
}

#[test]
fn int8_is_within_half_a_step() {
    blocks(Storage::Int8, 32, |given, found| {
        // The scale is the least f16 that reaches the largest number: at most 2^-10 above it, or f16's least step.
        let step = magnitude(given) / 127.0;
        let step = (step * (1.0 + 2f64.powi(-10))).max(step + 2f64.powi(-24));
        for (&x, &y) in given.iter().zip(found) {
            let error = (f64::from(x) - f64::from(y)).abs();
            assert!(error <= step * 0.500_001, "{x:e} became {y:e}, with steps of {step:e}");
        }
    });
}

#[test]
fn nf4_is_the_nearest_of_its_code_book() {
    blocks(Storage::Nf4, 64, |given, found| {
        let largest = magnitude(given);
        let scale = f16::from_f64(largest);
        let scale = if scale.to_f64() < largest { f16::from_bits(scale.to_bits() + 1) } else { scale };
        for (&x, &y) in given.iter().zip(found) {
            let distances = NF4.iter().map(|code| (code * scale.to_f64() - f64::from(x)).abs());
            let nearest = distances.fold(f64::MAX, f64::min);
            let error = (f64::from(x) - f64::from(y)).abs();
            assert!(error <= nearest + scale.to_f64() * 1e-6, "{x:e} became {y:e}, scale {scale}");
        }
    });
}

#[test]
fn the_code_book_is_quantiles_of_a_normal_distribution() {
    // The area under the density from 0 to x, by Simpson's rule.
    let area = |x: f64| {
        let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
        let (pieces, width) = (200, x / 200.0);
        let inner: f64 = (1..pieces).map(|i| [2.0, 4.0][i % 2] * density(i as f64 * width)).sum();
        (density(0.0) + inner + density(x)) * width / 3.0
    };
    let quantile = |p: f64| {
        let (mut low, mut high) = (0.0, 8.0);
        for _ in 0..60 {
            let middle = f64::midpoint(low, high);
            if area(middle) < p - 0.5 { low = middle } else { high = middle }
        }
        low
    };
    // The paper's ends: halfway between the last of 16 quantiles, and of 15.
    let end = 0.5 * ((1.0 - 1.0 / 32.0) + (1.0 - 1.0 / 30.0));
    let side = |count: usize| {
        (0..count).map(move |i| quantile(end + (0.5 - end) * i as f64 / count as f64) / quantile(end))
    };
    // Seven below zero and eight above.
    let mut codes: Vec<f64> = side(7).map(|x| -x).chain([0.0]).chain(side(8)).collect();
    codes.sort_by(f64::total_cmp);
    for (code, right) in NF4.iter().zip(codes) {
        assert!((code - right).abs() < 1e-4, "{code} is not {right}");
    }
}

#[test]
fn q8_0_of_a_gguf_file_survives_unchanged() {
    // As llama.cpp writes it: an f16 scale, and steps of which one is ±127.
    let mut values = Vec::new();
    for (block, scale) in [1.234e-3f32, 7.7e-7, 5.96e-8, 900.0, 0.0].into_iter().enumerate() {
        let scale = f16::from_f32(scale).to_f32();
        let step = |i: usize| if i == block { 127.0 } else { ((i * 37 + 11 * block) % 255) as f32 - 127.0 };
        values.extend((0..32).map(|i| step(i) * scale));
    }
    assert_eq!(stored(Storage::Int8, &values, 160), values);
}

#[test]
fn zeros_stay_zeros() {
    for storage in Storage::ALL {
        let found = stored(storage, &[0.0, -0.0, 0.0, 0.0, 127.0, 0.0], 3);
        assert_eq!(found, [0.0, 0.0, 0.0, 0.0, 127.0, 0.0], "{}", storage.name());
    }
}
