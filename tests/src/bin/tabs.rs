//! `cargo xtask bench tabs`: a whole run in real tabs, with the losses, the seconds a step, and the most memory of each tab.

use anyhow::{Context, Result, ensure};
use baton_e2e::bench::{self, WATCH_STEPS};
use baton_e2e::{Browser, Server, Tab, TabOptions, WATCH_MEMORY, join};
use clap::Parser;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Trains in tabs of headless Chromium, each a process of its own, on the CPU. To pin it to cores or make it polite,
/// start it under `taskset` or `nice`: the browsers inherit that.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench tabs")]
struct Options {
    /// A model's folder, which is put beside the page, or an address as one would type it.
    #[arg(long)]
    model: String,
    /// A text, as one would choose it.
    #[arg(long)]
    data: PathBuf,
    /// Tabs beside the host's.
    #[arg(long, default_value_t = 3)]
    stages: usize,
    /// How frozen weights are kept: f32, bf16, int8 or nf4.
    #[arg(long, default_value = "f32")]
    backbone: String,
    #[arg(long, default_value_t = 3)]
    steps: u32,
    #[arg(long, default_value_t = 4)]
    batch_size: u32,
    #[arg(long, default_value_t = 4)]
    micro_batches: u32,
    #[arg(long, default_value_t = 64)]
    seq_len: u32,
    #[arg(long, default_value_t = 8)]
    lora_rank: u32,
    #[arg(long, default_value_t = 16.0)]
    lora_alpha: f64,
    /// Comma-separated, as the model calls them, or all-linear.
    #[arg(long, default_value = "all-linear", value_delimiter = ',')]
    targets: Vec<String>,
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// constant, linear or cosine.
    #[arg(long, default_value = "linear")]
    schedule: String,
    #[arg(long, default_value_t = 0)]
    warmup_steps: u32,
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    #[arg(long, default_value_t = 0.0)]
    grad_clip: f64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Takes the samples in the file's order.
    #[arg(long)]
    no_shuffle: bool,
    /// How boundaries travel: f32 or f16.
    #[arg(long, default_value = "f16")]
    boundary: String,
    /// The share of samples kept out of training.
    #[arg(long, default_value_t = 0.0)]
    validation_share: f64,
    #[arg(long, default_value_t = 0)]
    evaluate_every: u32,
    /// When to give up.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    limit: u64,
    /// Writes all that was measured, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Saves the adapter that the host offers at the end, so that `baton train --init-adapter` can judge it.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// What one tab had at the most, in bytes.
#[derive(Serialize)]
struct Memory {
    tab: String,
    /// First and last block, last exclusive; the host has none while others have them.
    blocks: String,
    /// WebAssembly's memory, by what the tab was doing.
    wasm: BTreeMap<String, u64>,
    /// The whole renderer process.
    renderer: Option<u64>,
}

#[derive(Serialize)]
struct Report {
    backbone: String,
    losses: Vec<f64>,
    /// Each as the page's table has it: step, loss, accuracy, …
    judgements: Vec<BTreeMap<String, String>>,
    /// When each step was complete, after the start.
    seconds: Vec<f64>,
    planned: Vec<Planned>,
    tabs: Vec<Memory>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    server.report_memory()?;
    let watched =
        TabOptions { script: Some(format!("{WATCH_MEMORY}{WATCH_STEPS}")), ..TabOptions::default() };
    let host = browser.open(&format!("{}?backend=cpu", server.url), &watched).await?;
    prepare(&host, &server, &options).await?;
    let stages = join(&browser, &host, options.stages, &watched).await?;
    host.wait_for_devices(options.stages, 120).await?;
    let planned = planned(&host).await?;
    let begun = bench::run(&host, options.limit).await?;
    let report = measure(&options, &host, &stages, planned, begun).await?;
    print(&report);
    if let Some(folder) = &options.out {
        save(&host.download().await?, folder)?;
    }
    if let Some(file) = &options.report {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| file.display().to_string())?;
    }
    for tab in stages.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}

/// Chooses the model, the text and the settings.
async fn prepare(host: &Tab, server: &Server, options: &Options) -> Result<()> {
    bench::choose_model(host, server, &options.model).await?;
    bench::choose_text(host, &options.data).await?;
    let values: [(&str, Value); 18] = [
        ("backbone", json!(options.backbone)),
        ("steps", json!(options.steps)),
        ("batch_size", json!(options.batch_size)),
        ("micro_batches", json!(options.micro_batches)),
        // What is measured stands beside what the page says of phones that have all blocks.
        ("host_blocks", json!("false")),
        ("seq_len", json!(options.seq_len)),
        ("lora_rank", json!(options.lora_rank)),
        ("lora_alpha", json!(options.lora_alpha)),
        ("lr", json!(options.lr)),
        ("lr_schedule", json!(options.schedule)),
        ("warmup_steps", json!(options.warmup_steps)),
        ("weight_decay", json!(options.weight_decay)),
        ("grad_clip", json!(options.grad_clip)),
        ("seed", json!(options.seed)),
        ("boundary", json!(options.boundary)),
        ("validation", json!(options.validation_share)),
        ("evaluate_every", json!(options.evaluate_every)),
        ("sample_tokens", json!(0)),
    ];
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut values: Vec<(&str, String)> =
        values.into_iter().map(|(name, value)| (name, text(value))).collect();
    values.push(("shuffle", (!options.no_shuffle).to_string()));
    bench::set(host, &values).await?;
    choose_targets(host, &options.targets).await
}

async fn choose_targets(host: &Tab, targets: &[String]) -> Result<()> {
    let all = "target-all-linear";
    host.settings(&[(all, "true")]).await?;
    if targets.iter().any(|target| target == "all-linear") {
        return Ok(());
    }
    host.settings(&[(all, "false")]).await?;
    for target in targets {
        host.settings(&[(&format!("target-{target}"), "true")]).await?;
    }
    let script = "return [...document.querySelectorAll('[id^=set-target-]')].filter(e => e.checked).length;";
    let chosen = host.script(script, vec![]).await?;
    ensure!(chosen.as_u64() == Some(targets.len() as u64), "{targets:?} are {chosen} of the model's targets");
    Ok(())
}

/// What the page says beforehand that devices keep of frozen weights, in bytes; it says so for some numbers of phones.
#[derive(Serialize, Deserialize)]
struct Planned {
    phones: u64,
    /// The most that one of them has.
    phone: Option<u64>,
    /// What the host has.
    own: u64,
}

async fn planned(host: &Tab) -> Result<Vec<Planned>> {
    let script = "const number = text => text === undefined ? null : Number(text);
        return [...document.querySelectorAll('#model-memory tr[data-phones]')].map(({dataset: row}) =>
            ({phones: number(row.phones), phone: number(row.phone), own: number(row.own)}));";
    Ok(serde_json::from_value(host.script(script, vec![]).await?)?)
}

async fn measure(
    options: &Options,
    host: &Tab,
    stages: &[Tab],
    planned: Vec<Planned>,
    begun: f64,
) -> Result<Report> {
    let losses = host.losses().await?;
    let rows =
        "return [...document.querySelectorAll('#judged-table tr[data-step]')].map(e => ({...e.dataset}));";
    let judgements = serde_json::from_value(host.script(rows, vec![]).await?)?;
    let seconds = bench::step_times(host, begun).await?;
    let mut tabs = Vec::new();
    for (index, tab) in std::iter::once(host).chain(stages).enumerate() {
        let wasm = tab.wasm_memory().await?;
        let is_host = index == 0;
        let blocks = match is_host {
            true => String::new(),
            false => tab.read("#stage", "data-blocks").await.unwrap_or_default(),
        };
        let tab_name = if is_host { "host".to_owned() } else { format!("stage {index}") };
        tabs.push(Memory { tab: tab_name, blocks, wasm, renderer: tab.peak_memory() });
    }
    Ok(Report { backbone: options.backbone.clone(), losses, judgements, seconds, planned, tabs })
}

/// Without the archive's own folder.
fn save(files: &[(String, Vec<u8>)], folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for (name, bytes) in files {
        let name = Path::new(name).file_name().context("a file of the archive has no name")?;
        std::fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

fn print(report: &Report) {
    let mut before = 0.0;
    for (step, loss) in report.losses.iter().enumerate() {
        let done = report.seconds.get(step).copied().unwrap_or(before);
        println!("step {step:>4}  loss {loss:.6}  {:.2} s", done - before);
        before = done;
    }
    for judgement in &report.judgements {
        println!("judged {judgement:?}");
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("{} backbone; MiB, each at its most:", report.backbone);
    for Planned { phones, phone, own } in &report.planned {
        println!(
            "frozen, with {phones} phones: {:.1} each, the host {:.1}",
            mib(phone.unwrap_or(0)),
            mib(*own)
        );
    }
    for tab in &report.tabs {
        let wasm: Vec<_> =
            tab.wasm.iter().map(|(when, bytes)| format!("{when} {:.1}", mib(*bytes))).collect();
        println!(
            "{:<8} blocks {:<6} renderer {:>7.1}  wasm: {}",
            tab.tab,
            tab.blocks,
            mib(tab.renderer.unwrap_or_default()),
            wasm.join(", ")
        );
    }
}
