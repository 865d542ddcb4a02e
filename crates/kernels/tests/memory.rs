//! The matrix is never whole in f32: the peak of the heap while one is built and multiplied.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use baton_kernels::{FrozenBuilder, FrozenMatrix, Storage};
use burn::tensor::{Device, Tensor};
use common::{numbers, tensor, values};
use futures::executor::block_on;
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const SIDE: usize = 4096;
const MIB: usize = 1 << 20;

/// The bytes by which the heap grew at most during some work.
fn growth<T>(work: impl FnOnce() -> T) -> (usize, T) {
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    let done = work();
    (HEAP.peak_usage() - before, done)
}

// One test: another at the same time would be measured with it.
#[test]
fn building_and_multiplying_hold_a_tile_and_no_matrix() {
    let device = Device::flex();
    let rows: Vec<f32> = numbers(64 * SIDE, 30);
    let build = || -> FrozenMatrix {
        let mut builder = FrozenBuilder::new(Storage::Nf4, [SIDE, SIDE], &device).unwrap();
        (0..SIDE / 64).for_each(|_| builder.push(&rows).unwrap());
        builder.finish().unwrap()
    };
    let (grown, matrix) = growth(build);
    let packed = matrix.bytes() as usize;
    assert!(packed < 9 * MIB);
    assert!(grown < packed + MIB / 4, "building took {grown} bytes for {packed}");

    for n in [1, 64] {
        let x = tensor(numbers(n * SIDE, 31), [n, SIDE], &device);
        let product = |product: fn(&FrozenMatrix, Tensor<2>) -> Tensor<2>| {
            let x = x.clone();
            let (grown, _) = growth(|| block_on(values(product(&matrix, x))));
            assert!(grown < 6 * MIB, "a product of {n} rows took {grown} bytes");
        };
        product(FrozenMatrix::apply);
        product(FrozenMatrix::apply_transposed);
        let (grown, _) = growth(|| {
            let x = x.clone().autodiff().require_grad();
            let grads = matrix.apply(x.clone()).powi_scalar(2).sum().backward();
            block_on(values(x.grad(&grads).unwrap()))
        });
        assert!(grown < 10 * MIB, "forward and backward of {n} rows took {grown} bytes");
    }
}
