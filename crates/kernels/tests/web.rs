//! In the browser: the products, gradients and look-ups of every storage, on the CPU and on WebGPU.
//!
//! ```text
//! CHROMEDRIVER=/usr/bin/chromedriver cargo test --release --target wasm32-unknown-unknown -p baton-kernels --test web
//! ```
//!
//! and `--features webgpu` for the second half, in a Chromium started with `--enable-unsafe-webgpu`.
#![cfg(target_arch = "wasm32")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use baton_kernels::Storage;
use burn::tensor::Device;
use common::{check_gradients, check_products, check_rows};
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};

wasm_bindgen_test_configure!(run_in_dedicated_worker);

#[wasm_bindgen_test]
async fn the_cpu_in_wasm_multiplies_as_burn_does() {
    let device = Device::flex();
    for storage in Storage::ALL {
        for shape in [[1, 1], [3, 5], [64, 172], [192, 576], [513, 530]] {
            for n in [1, 4, 5, 33] {
                check_products(storage, shape, n, &device).await;
            }
        }
        check_gradients(storage, [96, 172], 6, &device).await;
        check_rows(storage, [50, 172], &device).await;
    }
}

#[cfg(feature = "webgpu")]
#[wasm_bindgen_test]
async fn webgpu_multiplies_as_the_cpu_does() {
    use common::{matrix, numbers, relative, tensor, values};

    let cpu = Device::flex();
    let gpu = Device::wgpu_options().init_async().await.unwrap();
    for storage in Storage::ALL {
        // Smaller than a word, odd, wider than a block, and more than a tile of the kernel along every axis.
        for [rows, columns] in [[1, 1], [3, 5], [64, 172], [131, 200]] {
            let (on_cpu, _) = matrix(storage, [rows, columns], &cpu).await;
            let (on_gpu, _) = matrix(storage, [rows, columns], &gpu).await;
            let numbers_on = [on_cpu.to_f32().await.unwrap(), on_gpu.to_f32().await.unwrap()];
            assert_eq!(numbers_on[0], numbers_on[1], "{} {rows} x {columns}", storage.name());
            // One token, the last few, a low tile, a high one, and two of them.
            for n in [1, 4, 5, 17, 70] {
                let x = numbers(n * columns, 2);
                let [right, found] = [(&on_cpu, &cpu), (&on_gpu, &gpu)]
                    .map(|(matrix, device)| matrix.apply(tensor(x.clone(), [n, columns], device)));
                let error = relative(&values(found).await, &values(right).await);
                assert!(error < 1e-5, "{} {rows} x {columns}, {n} rows: {error:e}", storage.name());

                let x = numbers(n * rows, 3);
                let [right, found] = [(&on_cpu, &cpu), (&on_gpu, &gpu)]
                    .map(|(matrix, device)| matrix.apply_transposed(tensor(x.clone(), [n, rows], device)));
                let error = relative(&values(found).await, &values(right).await);
                assert!(error < 1e-5, "{} {rows} x {columns}ᵀ, {n} rows: {error:e}", storage.name());
            }
        }
        check_gradients(storage, [40, 172], 6, &gpu).await;
        check_rows(storage, [50, 172], &gpu).await;
    }
}
