//! `cargo xtask bench pipeline`: a step of two Chromium processes on two cores against the same step on one core.

use anyhow::{Context, Result, ensure};
use baton_e2e::{Browser, Server, Tab, TabOptions, bench, join, made, text_file};
use clap::Parser;

/// Trains the same model, text and settings three ways: the host's tab alone on core 0; the host on core 0 with a stage on
/// core 1, the blocks shared between them as the planner finds best; and two hosts, each alone, on the two cores at once, which
/// shows what the second core is worth where nothing is waited for. Every tab is a Chromium process of its own, pinned with all
/// its threads.
///
/// The plan's own bound for two equal shares and M micro-batches is (M + 1) / 2M of the time on one core.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench pipeline")]
struct Options {
    /// Blocks of SmolLM2-135M's shape.
    #[arg(long, default_value_t = 8)]
    blocks: usize,
    #[arg(long, default_value_t = 16)]
    batch_size: u32,
    #[arg(long, default_value_t = 16)]
    micro_batches: u32,
    #[arg(long, default_value_t = 64)]
    seq_len: u32,
    /// Steps of a run...
    #[arg(long, default_value_t = 8)]
    steps: u32,
    /// ... of which the first so many are not counted: the browser compiles the engine anew while it already runs.
    #[arg(long, default_value_t = 4)]
    warm_up: usize,
    /// How often everything is measured; medians count.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// How boundaries travel: f32 or f16.
    #[arg(long, default_value = "f16")]
    boundary: String,
    /// Only this one of the three ways, by its number.
    #[arg(long, value_name = "WAY", value_parser = clap::value_parser!(u8).range(1..=3))]
    only: Option<u8>,
    /// The priority of every thread of the browsers, as `nice` takes it: below 0 where others' work is on the machine, which root may.
    #[arg(long, allow_hyphen_values = true)]
    nice: Option<i32>,
    /// When to give a run up.
    #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
    limit: u64,
}

/// The core of a host, and those of its stages.
type Cores = (usize, &'static [usize]);

/// The ways: a name for one, and who is where.
const WAYS: [(&str, &[Cores]); 3] = [
    ("the host alone", &[(0, &[])]),
    ("host and stage", &[(0, &[1])]),
    ("two hosts at once, each alone", &[(0, &[]), (1, &[])]),
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let config = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": {}, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 512, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
        "hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0}}"#,
        options.blocks
    );
    let folder = tempfile::tempdir()?;
    made::make(folder.path(), &config)?;
    let model = folder.path().to_string_lossy();
    let mut seconds: [Vec<f64>; WAYS.len()] = Default::default();
    for round in 1..=options.repeat {
        for (way, ((name, hosts), seconds)) in (1..).zip(WAYS.iter().zip(&mut seconds)) {
            if options.only.is_some_and(|only| only != way) {
                continue;
            }
            let runs = hosts.iter().map(|(host, stages)| measure(&options, &model, *host, stages));
            for times in futures::future::try_join_all(runs).await? {
                let shown: Vec<String> = times.iter().map(|time| format!("{time:.2}")).collect();
                println!("{round}: {name}: {} s a step", shown.join(", "));
                seconds.extend(times.into_iter().skip(options.warm_up));
            }
        }
    }
    if options.only.is_some() {
        return Ok(());
    }
    let [alone, two, apart] = seconds.map(median);
    let count = f64::from(options.micro_batches);
    let bound = (count + 1.0) / (2.0 * count);
    let cores = 2.0 * alone / apart;
    println!(
        "\nmedians: {alone:.2} s alone, {two:.2} s on two cores; {apart:.2} s for two that share no work"
    );
    println!(
        "a speed-up of {:.3}, efficiency {:.3}; {:.3} of the plan's bound ({:.3})",
        alone / two,
        alone / two / 2.0,
        bound * alone / two,
        1.0 / bound,
    );
    println!("the two cores are {cores:.3} times one: {:.3} of that", alone / two / cores);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Says which device has which blocks, whenever that changes. Ends only with an error.
async fn watch(host: &Tab) -> anyhow::Error {
    let script = "const rows = [...document.querySelectorAll('#devices [data-peer]')];
        return rows.map(e => `${e.dataset.peer} ${e.dataset.blocks} (${e.innerText.match(/[0-9.]+ m?s a block/)?.[0]})`)
            .join(', ') + '; ' + Object.keys(window.batonSteps).length;";
    let mut last = String::new();
    loop {
        match host.script(script, vec![]).await {
            Ok(now) if now.as_str().is_some_and(|now| now != last) => {
                last = now.as_str().unwrap_or_default().to_owned();
                println!("   {last}");
            }
            Ok(_) => {}
            Err(error) => return error,
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
}

/// Seconds of every step.
async fn measure(options: &Options, model: &str, core: usize, cores: &[usize]) -> Result<Vec<f64>> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let preferred = options.nice.map(|nice| browser.prefer(nice)).transpose()?;
    let on = |core| TabOptions {
        script: Some(bench::WATCH_STEPS.into()),
        core: Some(core),
        ..TabOptions::default()
    };
    let host = browser.open(&format!("{}?backend=cpu", server.url), &on(core)).await?;
    bench::choose_model(&host, &server, model).await?;
    bench::choose_text(&host, &text_file()?).await?;
    let values = [
        ("backbone", "f32".into()),
        ("steps", options.steps.to_string()),
        ("batch_size", options.batch_size.to_string()),
        ("micro_batches", options.micro_batches.to_string()),
        ("seq_len", options.seq_len.to_string()),
        ("packing", "true".into()),
        ("boundary", options.boundary.clone()),
        ("target-all-linear", "true".into()),
        ("warmup_steps", "0".into()),
        ("validation", "0".into()),
        ("sample_tokens", "0".into()),
    ];
    bench::set(&host, &values).await?;
    let mut stages = Vec::new();
    for core in cores {
        stages.extend(join(&browser, &host, 1, &on(*core)).await?);
    }
    host.wait_for_devices(cores.len(), 120).await?;
    let begun = tokio::select! {
        begun = bench::run(&host, options.limit) => begun?,
        error = watch(&host) => return Err(error),
    };
    let times = bench::step_times(&host, begun).await?;
    ensure!(times.len() == options.steps as usize, "{} of {} steps were seen", times.len(), options.steps);
    for (stage, core) in stages.iter().zip(cores) {
        let blocks = stage.read("#stage", "data-blocks").await.context("a stage without blocks")?;
        println!("   core {core}: blocks {blocks}, the others on the host");
    }
    for tab in stages.into_iter().chain([host]) {
        tab.close().await?;
    }
    if let Some(preferred) = preferred {
        preferred.abort();
    }
    let before = std::iter::once(0.0).chain(times.iter().copied());
    Ok(times.iter().zip(before).map(|(time, before)| time - before).collect())
}
