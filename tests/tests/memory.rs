//! What a tab holds while it loads its blocks: beside what it keeps, less than one large tensor.

use anyhow::{Context, Result, ensure};
use baton_e2e::made::make;
use baton_e2e::{Browser, Server, TabOptions, WATCH_MEMORY, join};

const STAGES: usize = 2;
const MIB: u64 = 1 << 20;

/// The bound: a tensor of the largest map in f32, 8192 x 512. The f32 block that is loaded has four times as much.
///
/// Pieces of 1 MiB pass through several hands (the frames of a message, the message, what is checked, what the disk is
/// given, what a neighbour asked for), and what is freed is not always fit for what comes next: 9 to 12 MiB were measured
/// with SmolLM2-135M's shape, 17 to 31 before pieces were read one at a time.
const BESIDE: u64 = 16 * MIB;

/// Two wide blocks.
const WIDE: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512,
    "intermediate_size": 8192, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8,
    "vocab_size": 2048, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2}"#;

#[tokio::test]
async fn a_tab_that_loads_its_blocks_holds_less_than_a_tensor_beside_them() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    server.report_memory()?;
    let folder = tempfile::tempdir()?;
    make(folder.path(), WIDE)?;
    server.add("models/wide", folder.path())?;
    let watched = TabOptions { script: Some(WATCH_MEMORY.into()), ..TabOptions::default() };
    let host = browser.open(&format!("{}?backend=cpu", server.url), &watched).await?;
    host.wait("#engine", "data-state", 60, |state| state == "ready").await?;
    host.wait("#text", "data-state", 60, |state| state == "ready").await?;
    host.click("#model-url-choice").await?;
    host.fill("#model-url", &format!("{}models/wide", server.url)).await?;
    host.click("#model-url-use").await?;
    host.wait("#model", "text", 60, |text| text.contains("models/wide")).await?;
    host.wait("#model", "data-state", 60, |state| state == "ready").await?;
    host.wait("#text", "data-state", 60, |state| state == "ready").await?;
    host.settings(&[
        ("backbone", "nf4"),
        ("steps", "1"),
        ("batch_size", "2"),
        ("micro_batches", "2"),
        // Every block is a stage's: of those that this test watches.
        ("host_blocks", "false"),
        ("seq_len", "16"),
        ("warmup_steps", "0"),
        ("validation", "0"),
        ("sample_tokens", "0"),
    ])
    .await?;
    let stages = join(&browser, &host, STAGES, &watched).await?;
    host.wait_for_devices(STAGES, 60).await?;
    // What the page says that each of two phones keeps of the frozen weights.
    let kept: u64 = host.read("#model-memory tr[data-phones='2']", "data-phone").await?.parse()?;
    ensure!((6 * MIB..9 * MIB).contains(&kept), "a block of 13.6 million numbers in nf4 is not {kept} bytes");
    host.click("#start").await?;
    host.wait("#phase", "data-phase", 240, |phase| phase == "finished" || phase == "failed").await?;
    ensure!(host.errors().await?.is_empty(), "{:?}", host.errors().await?);
    for (place, stage) in (1..).zip(&stages) {
        let memory = stage.wasm_memory().await?;
        let loading = *memory.get("loading").context("it loaded unseen: it never spoke while it did")?;
        // While it waits it measures itself on a block that it makes up: that room is used again for the real one.
        let before = *memory.values().min().context("it never spoke")?;
        let beside = loading.saturating_sub(before + kept);
        println!("stage {place}: {beside} bytes beside {kept}, of {loading}");
        ensure!(loading > before + kept / 2, "stage {place} loaded nothing that was seen: {memory:?}");
        ensure!(beside <= BESIDE, "stage {place} held {beside} bytes beside the {kept} that it keeps");
    }
    for tab in stages.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}
