//! The speed of the products: every storage beside burn's own f32 matmul, in one run. `cargo xtask bench matmul`.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use baton_kernels::{FrozenMatrix, Storage};
use burn::tensor::{Device, Tensor, TensorData};
use cpu_time::ThreadTime;

/// [rows of x, columns, rows of W]: SmolLM2-135M's MLP, a square one, and one token through both.
const SHAPES: [[usize; 3]; 5] =
    [[128, 576, 1536], [512, 576, 1536], [512, 2048, 2048], [1, 576, 1536], [1, 2048, 2048]];

/// What one storage is measured for. A run's time is that of the processor, which burn's CPU backend uses one thread of:
/// other work on the machine then takes no time from it, only room in the caches. None makes a run faster.
const TIME: Duration = Duration::from_millis(1000);

fn main() {
    let device = Device::flex();
    println!(
        "{:<22} {:<8} {:>10} {:>9}   {:>10} {:>9}",
        "x · Wᵀ", "", "GFLOP/s", "of f32", "x · W", "of f32"
    );
    for [n, columns, rows] in SHAPES {
        let values = numbers(rows * columns);
        let plain = Tensor::<2>::from_data(TensorData::new(values.clone(), [rows, columns]), &device);
        let x =
            |width: usize| Tensor::<2>::from_data(TensorData::new(numbers(n * width), [n, width]), &device);
        let (narrow, wide) = (x(columns), x(rows));
        let matrices = Storage::ALL.map(|storage| {
            FrozenMatrix::from_f32(storage, values.clone(), [rows, columns], &device).unwrap()
        });

        // In turns, so that what else the machine does falls on all alike; the fastest run counts.
        let mut best = vec![[Duration::MAX; 2]; 1 + matrices.len()];
        let started = Instant::now();
        while started.elapsed() < TIME * best.len() as u32 {
            let baseline = [
                time(|| narrow.clone().matmul(plain.clone().transpose())),
                time(|| wide.clone().matmul(plain.clone())),
            ];
            let of = |matrix: &FrozenMatrix| {
                [time(|| matrix.apply(narrow.clone())), time(|| matrix.apply_transposed(wide.clone()))]
            };
            let times = std::iter::once(baseline).chain(matrices.iter().map(of));
            for (best, times) in best.iter_mut().zip(times) {
                *best = [best[0].min(times[0]), best[1].min(times[1])];
            }
        }

        let operations = 2.0 * (n * columns * rows) as f64;
        let names = std::iter::once("burn").chain(Storage::ALL.map(Storage::name));
        for (name, times) in names.zip(&best) {
            let [forward, backward] = times.map(|time| operations / time.as_secs_f64() / 1e9);
            let ratio = |side: usize| best[0][side].as_secs_f64() / times[side].as_secs_f64();
            let shape = format!("[{n} x {columns}] [{rows}]");
            println!(
                "{shape:<22} {name:<8} {forward:>10.1} {:>9.2}   {backward:>10.1} {:>9.2}",
                ratio(0),
                ratio(1)
            );
        }
    }
    packing(&device);
}

/// How long a matrix takes from its numbers to the device: what loading a model adds to reading it.
fn packing(device: &Device) {
    let [rows, columns] = [1024, 1024];
    let values = numbers(rows * columns);
    for storage in Storage::ALL {
        let times = (0..20).map(|_| {
            let values = values.clone();
            let started = ThreadTime::now();
            black_box(FrozenMatrix::from_f32(storage, values, [rows, columns], device).unwrap());
            started.elapsed()
        });
        let nanoseconds = times.min().unwrap_or_default().as_secs_f64() * 1e9 / values.len() as f64;
        println!("packing {:<14} {nanoseconds:>19.2} ns a number", storage.name());
    }
}

fn time(product: impl FnOnce() -> Tensor<2>) -> Duration {
    let started = ThreadTime::now();
    black_box(product());
    started.elapsed()
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect()
}
