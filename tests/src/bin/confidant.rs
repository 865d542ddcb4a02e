//! `cargo xtask bench confidant`: how much less the most loaded device of a room holds than one device alone, measured in
//! real tabs beside what the model of memory says.

use anyhow::{Context, Result, ensure};
use baton_e2e::{Browser, Server, TabOptions, WATCH_MEMORY, baton, bench, join, made, text_file};
use clap::Parser;
use serde::Deserialize;

/// Makes models of public shapes with random weights and trains each two steps: in a host's tab alone, and in rooms of
/// more tabs, every one a Chromium process of its own on the CPU. What counts is WebAssembly's memory of each tab's
/// engine, which never shrinks: with the program, the weights, and all that training took.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench confidant")]
struct Options {
    /// What to measure, as `baton memory` names it.
    #[arg(long, value_delimiter = ',', default_value = "gpt2,smollm2-135m")]
    models: Vec<String>,
    /// Devices of a room, the host among them.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
    devices: Vec<usize>,
    /// How frozen weights are kept: f32, bf16, int8 or nf4.
    #[arg(long, default_value = "f32")]
    backbone: String,
    #[arg(long, default_value_t = 8)]
    batch_size: u32,
    #[arg(long, default_value_t = 8)]
    micro_batches: u32,
    #[arg(long, default_value_t = 64)]
    seq_len: u32,
    /// Have activations kept, where otherwise backward computes them again.
    #[arg(long)]
    keep: bool,
    /// Have the room share the blocks for the least memory of the most loaded device, where otherwise it does for the
    /// shortest step.
    #[arg(long)]
    light: bool,
    /// When to give a run up.
    #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
    limit: u64,
    /// Only says what the model of memory says, of all four shapes.
    #[arg(long)]
    table: bool,
}

impl Options {
    /// Whether the host may have blocks of its own in a room of so many. In larger ones it has none where time counts: the
    /// fastest plan might leave the others out.
    fn shares(&self, devices: usize) -> bool {
        self.light || devices == 2
    }
}

/// What `baton memory --json` says of a model.
#[derive(Deserialize)]
struct Said {
    model: String,
    config: String,
    rooms: Vec<Room>,
}

#[derive(Deserialize)]
struct Room {
    devices: usize,
    /// The host first.
    loads: Vec<Load>,
}

#[derive(Deserialize)]
struct Load {
    total: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    println!("{}", said(&options, &[], None, false).await?);
    if options.table {
        return Ok(());
    }
    let models: Vec<&str> = options.models.iter().map(String::as_str).collect();
    let said: Vec<Said> = serde_json::from_str(&said(&options, &models, Some(0), true).await?)?;
    println!(
        "| model | devices | MiB of each at its most, the host first: measured (said) | the most | less than alone |"
    );
    println!("| --- | --- | --- | --- | --- |");
    let mut worst: f64 = 0.0;
    for Said { model, config, rooms } in said {
        let folder = tempfile::tempdir()?;
        made::make(folder.path(), &config)?;
        let mut alone = None;
        for room in rooms {
            let path = folder.path().to_string_lossy();
            let (measured, own) = measure(&options, &path, room.devices).await?;
            // Where the plan has found its own balance the model is asked about that one.
            let room = match own {
                Some(own) if options.shares(room.devices) => {
                    with_host_blocks(&options, &model, room.devices, own).await?
                }
                _ => room,
            };
            ensure!(own.is_some() == (room.devices > 1), "no stage said which blocks it had");
            ensure!(measured.len() == room.loads.len(), "{model}: not every device got blocks");
            let peak = measured.iter().copied().max().unwrap_or(0);
            let alone = *alone.get_or_insert(peak);
            let mib = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
            let each = measured.iter().zip(&room.loads).map(|(measured, load)| {
                worst = worst.max((load.total as f64 / *measured as f64 - 1.0).abs());
                format!("{} ({})", mib(*measured), mib(load.total))
            });
            let less = match room.devices {
                1 => "–".to_owned(),
                _ => format!("{:.1} %", 100.0 * (1.0 - peak as f64 / alone as f64)),
            };
            let each = each.collect::<Vec<_>>().join(", ");
            println!("| {model} | {} | {each} | {} | {less} |", room.devices, mib(peak));
        }
    }
    println!("\nWhat is said is off by {:.1} % at the most.", 100.0 * worst);
    ensure!(worst <= 0.1, "the model of memory is off by more than a tenth");
    Ok(())
}

/// What the model of memory says of a room of so many, the host with so many blocks.
async fn with_host_blocks(options: &Options, model: &str, devices: usize, own: u16) -> Result<Room> {
    let said: Vec<Said> = serde_json::from_str(&said(options, &[model], Some(own), true).await?)?;
    let mut rooms = said.into_iter().flat_map(|said| said.rooms);
    rooms.find(|room| room.devices == devices).with_context(|| format!("no room of {devices}"))
}

/// What the model of memory says of these models, or of all that it knows; without a number of blocks for the host, with the
/// one that is best.
async fn said(options: &Options, models: &[&str], own: Option<u16>, json: bool) -> Result<String> {
    let devices = options.devices.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let numbers =
        [options.batch_size, options.micro_batches, options.seq_len].map(|number| number.to_string());
    let [batch_size, micro_batches, seq_len] = &numbers;
    let mut arguments = vec!["memory", "--backbone", &options.backbone, "--batch-size", batch_size];
    arguments.extend(["--micro-batches", micro_batches, "--seq-len", seq_len]);
    if !options.keep {
        arguments.push("--recompute");
    }
    let own = own.map(|own| own.to_string());
    if let Some(own) = &own {
        arguments.extend(["--host-blocks", own]);
    }
    if json {
        arguments.extend(["--devices", &devices, "--json"]);
    }
    arguments.extend(models);
    baton(&arguments).await
}

/// The most bytes that each device's engine had, the host's first, and how many blocks the host had beside others.
async fn measure(options: &Options, model: &str, devices: usize) -> Result<(Vec<u64>, Option<u16>)> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    server.report_memory()?;
    let watched = TabOptions { script: Some(WATCH_MEMORY.into()), ..TabOptions::default() };
    let host = browser.open(&format!("{}?backend=cpu", server.url), &watched).await?;
    bench::choose_model(&host, &server, model).await?;
    bench::choose_text(&host, &text_file()?).await?;
    let values = [
        ("backbone", options.backbone.clone()),
        ("steps", "2".into()),
        ("batch_size", options.batch_size.to_string()),
        ("micro_batches", options.micro_batches.to_string()),
        ("seq_len", options.seq_len.to_string()),
        // Every sample as long as it may be.
        ("packing", "true".into()),
        ("activations", if options.keep { "never" } else { "always" }.into()),
        ("host_blocks", options.shares(devices).to_string()),
        ("aim", if options.light { "memory" } else { "time" }.into()),
        ("target-all-linear", "true".into()),
        ("warmup_steps", "0".into()),
        ("validation", "0".into()),
        ("sample_tokens", "0".into()),
    ];
    bench::set(&host, &values).await?;
    let stages = join(&browser, &host, devices - 1, &watched).await?;
    host.wait_for_devices(devices - 1, 120).await?;
    bench::run(&host, options.limit).await?;
    let mut peaks = Vec::new();
    for tab in std::iter::once(&host).chain(&stages) {
        peaks.push(tab.wasm_memory().await?.into_values().max().context("an engine never spoke")?);
    }
    // In the order of the pipeline.
    let mut order = vec![0];
    for stage in &stages {
        let blocks = stage.read("#stage", "data-blocks").await?;
        let first = blocks.split('-').next().and_then(|first| first.parse::<u16>().ok());
        order.push(first.context("a stage without blocks")?.saturating_add(1));
    }
    // The host stands first in any case.
    let own = order.get(1..).and_then(|stages| stages.iter().min()).map(|first| first - 1);
    let mut peaks: Vec<(u16, u64)> = order.into_iter().zip(peaks).collect();
    peaks.sort_unstable();
    for tab in stages.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok((peaks.into_iter().map(|(_, peak)| peak).collect(), own))
}
