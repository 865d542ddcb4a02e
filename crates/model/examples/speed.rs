//! How fast a model trains and writes on this machine's CPU, and in which layout its weights multiply fastest.
//!
//! ```text
//! cargo run --release -p baton-model --example speed -- MODEL_DIR [STORAGE]
//! ```

use std::error::Error;
use std::time::Instant;

use baton_formats::{MemoryFiles, ModelConfig, TensorIndex};
use baton_model::{AdamW, Blocks, Ends, KvCache, Lora, LoraSpec, Storage, Tensor, Trainer, cpu};
use burn::tensor::Distribution;
use futures::executor::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).ok_or("give a model's directory")?;
    layouts();
    block_on(train(&model))
}

/// Seconds a run, the best of several.
fn time(mut run: impl FnMut()) -> f64 {
    let times = (0..7).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

/// x Wᵀ with W held as `[out, in]` (a transposed view multiplies) or as `[in, out]`.
fn layouts() {
    let random = |rows, columns| Tensor::<2>::random([rows, columns], Distribution::Normal(0.0, 1.0), &cpu());
    for (rows, inputs, outputs) in
        [(1usize, 576usize, 1536usize), (64, 576, 1536), (256, 1536, 576), (256, 64, 172)]
    {
        let (x, grad) = (random(rows, inputs), random(rows, outputs));
        let (file, swapped) = (random(outputs, inputs), random(inputs, outputs));
        let flops = 2e-9 * (rows * inputs * outputs) as f64;
        let gflops =
            |product: &dyn Fn() -> Tensor<2>| flops * 20.0 / time(|| (0..20).for_each(|_| drop(product())));
        println!(
            "{rows} x {inputs} -> {outputs}: forward {:.1} ([out, in]) {:.1} ([in, out]), \
             backward {:.1} ([out, in]) {:.1} ([in, out]) GFLOP/s",
            gflops(&|| x.clone().matmul(file.clone().transpose())),
            gflops(&|| x.clone().matmul(swapped.clone())),
            gflops(&|| grad.clone().matmul(file.clone())),
            gflops(&|| grad.clone().matmul(swapped.clone().transpose())),
        );
    }
}

async fn train(directory: &str) -> Result<(), Box<dyn Error>> {
    let device = cpu();
    let mut files = MemoryFiles::new();
    for name in ["config.json", "model.safetensors"] {
        files.insert(name, std::fs::read(format!("{directory}/{name}"))?);
    }
    let config = ModelConfig::parse(&std::fs::read(format!("{directory}/config.json"))?)?;
    let storage = std::env::args().nth(2).unwrap_or_else(|| "f32".to_owned());
    let storage = Storage::from_name(&storage).ok_or("the storage is f32, bf16, int8 or nf4")?;
    let index = TensorIndex::open(&files, "model.safetensors").await?;
    let ends = Ends::load(&files, &index, &config, storage, &device, |_| ()).await?;
    let blocks = 0..config.num_hidden_layers;
    let spec = LoraSpec::new(8, 16.0, config.projections().collect());

    let (batch, length) = (8, 128);
    let tokens = (batch * length) as f64;
    let rows = vec![vec![5; length]; batch];
    let weights = vec![vec![1.0 / tokens as f32; length]; batch];
    for recompute in [false, true] {
        let slice = Blocks::load(&files, &index, &config, blocks.clone(), storage, &device, |_| ()).await?;
        let lora = Lora::init(&config, &spec, blocks.clone(), 1, &device)?;
        let mut stage = Trainer::new(slice, lora, AdamW::default(), recompute);
        let h = ends.embed(&rows, &[])?;
        let mut best = [f64::INFINITY; 4];
        for _ in 0..7 {
            let start = Instant::now();
            let out = stage.forward(0, h.clone(), &[]);
            let forward = start.elapsed().as_secs_f64();
            let (_, grad) = ends.loss_and_grad(out, &rows, &weights).await?;
            let loss = start.elapsed().as_secs_f64() - forward;
            stage.backward(0, grad, false)?;
            let backward = start.elapsed().as_secs_f64() - forward - loss;
            stage.apply(1e-3, 1.0);
            let apply = start.elapsed().as_secs_f64() - forward - loss - backward;
            for (best, now) in best.iter_mut().zip([forward, loss, backward, apply]) {
                *best = best.min(now);
            }
        }
        let [forward, loss, backward, apply] = best.map(|seconds| seconds * 1e6 / tokens);
        println!(
            "recompute {recompute}: forward {forward:.1}, loss {loss:.1}, backward {backward:.1}, \
             apply {apply:.2} µs a token"
        );
    }

    let slice = Blocks::load(&files, &index, &config, blocks, storage, &device, |_| ()).await?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        let mut cache = KvCache::new();
        for _ in 0..100 {
            let h = slice.forward_cached(None, ends.embed_after(cache.time(), &[vec![5]], &[])?, &mut cache);
            ends.logits_last(h).await?;
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("writing: {:.0} tokens/s", 100.0 / best);
    Ok(())
}
