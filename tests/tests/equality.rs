//! Host and stages in Chromium processes of their own give the losses and the adapter of one native process.

use anyhow::{Context, Result, ensure};
use baton_e2e::{Browser, Server, Tab, TabOptions, adapter_tensors, baton, join, model_folder, text_file};
use std::path::Path;

struct Reference {
    losses: Vec<f64>,
    weights: Vec<u8>,
}

const FLAGS: &[(&str, &str)] = &[
    ("batch-size", "8"),
    ("micro-batches", "8"),
    ("seq-len", "48"),
    ("lora-rank", "8"),
    ("lora-alpha", "16"),
    ("targets", "q_proj,v_proj"),
    ("lr", "0.002"),
    ("lr-schedule", "cosine"),
    ("warmup-steps", "2"),
    ("weight-decay", "0.01"),
    ("grad-clip", "1"),
    ("seed", "11"),
    ("shuffle", "true"),
    ("append-eos", "true"),
    // All of the text is trained on; judging has tests of its own.
    ("validation", "0"),
];

async fn one_process(steps: &str) -> Result<Reference> {
    let out = tempfile::tempdir()?;
    let path = |name: &str| out.path().join(name).display().to_string();
    let (model, data) = (model_folder()?, text_file()?);
    let (model, data) = (model.display().to_string(), data.display().to_string());
    let (adapter, report) = (path("adapter"), path("report.json"));
    let mut arguments: Vec<String> =
        ["train", "--model", &model, "--data", &data, "--out", &adapter, "--report", &report]
            .map(String::from)
            .to_vec();
    arguments.extend(["--steps".into(), steps.into()]);
    arguments.extend(FLAGS.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]));
    baton(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&report)?)?;
    Ok(Reference {
        losses: serde_json::from_value(report["losses"].clone())?,
        weights: std::fs::read(Path::new(&adapter).join("adapter_model.safetensors"))?,
    })
}

async fn choose(host: &Tab, steps: &str, boundary: &str) -> Result<()> {
    host.wait("#model", "data-state", 60, |state| state == "ready").await?;
    host.click("#text-file-choice").await?;
    host.choose("#text-file", &[text_file()?]).await?;
    host.wait("#text", "data-state", 60, |state| state == "ready").await?;
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    for target in targets {
        let on = target == "q_proj" || target == "v_proj";
        host.settings(&[(&format!("target-{target}"), if on { "true" } else { "false" })]).await?;
    }
    host.settings(&[("steps", steps), ("boundary", boundary), ("sample_tokens", "0")]).await?;
    for (name, value) in FLAGS.iter().filter(|(name, _)| *name != "targets") {
        host.settings(&[(&name.replace('-', "_"), value)]).await?;
    }
    Ok(())
}

async fn finish(host: &Tab, seconds: u64) -> Result<(Vec<f64>, Vec<u8>)> {
    host.click("#start").await?;
    host.wait("#phase", "data-phase", seconds, |phase| phase == "finished" || phase == "failed").await?;
    ensure!(host.errors().await?.is_empty(), "{:?}", host.errors().await?);
    let files = host.download().await?;
    let weights = files.into_iter().find(|(name, _)| name.ends_with(".safetensors")).context("no weights")?.1;
    Ok((host.losses().await?, weights))
}

fn compare(losses: &[f64], weights: &[u8], reference: &Reference) -> Result<()> {
    ensure!(losses.len() == reference.losses.len(), "{losses:?}");
    let mut worst = 0.0_f64;
    for (step, (got, want)) in losses.iter().zip(&reference.losses).enumerate() {
        worst = worst.max((got - want).abs() / want);
        ensure!((got - want).abs() <= 1e-4 * want, "step {step}: {got} in tabs, {want} in one process");
    }
    let (got, want) = (adapter_tensors(weights)?, adapter_tensors(&reference.weights)?);
    ensure!(got.keys().eq(want.keys()), "other tensors: {:?}", got.keys());
    let pairs = got.values().flatten().zip(want.values().flatten());
    let difference = pairs.map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
    ensure!(difference <= 1e-4, "an adapter number differs by {difference}");
    println!("worst relative loss difference {worst:.1e}, worst adapter difference {difference:.1e}");
    Ok(())
}

#[tokio::test]
async fn three_cpu_tabs_equal_one_process_in_f32_and_come_close_in_f16() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    server.add("models/stories260k", &model_folder()?)?;
    let reference = one_process("20").await?;
    for boundary in ["f32", "f16"] {
        let host = browser.open(&format!("{}?backend=cpu", server.url), &TabOptions::default()).await?;
        host.wait("#engine", "data-state", 60, |state| state == "ready").await?;
        host.click("#model-url-choice").await?;
        host.fill("#model-url", &format!("{}models/stories260k", server.url)).await?;
        host.click("#model-url-use").await?;
        host.wait("#model", "text", 60, |text| text.contains("models/stories260k")).await?;
        choose(&host, "20", boundary).await?;
        let tabs = join(&browser, &host, 3, &TabOptions::default()).await?;
        host.wait_for_devices(3, 60).await?;
        let (losses, weights) = finish(&host, 240).await?;
        if boundary == "f32" {
            compare(&losses, &weights, &reference)?;
        } else {
            let (got, want) = (losses[19], reference.losses[19]);
            ensure!((got - want).abs() <= 0.01 * want, "f16: {got} in tabs, {want} in one process");
            ensure!(losses != reference.losses, "the boundaries were not rounded at all");
        }
        for tab in tabs.into_iter().chain([host]) {
            tab.close().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn one_webgpu_tab_among_cpu_tabs_equals_one_process() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let reference = one_process("3").await?;
    let host = browser.open(&format!("{}?backend=cpu", server.url), &TabOptions::default()).await?;
    host.wait("#engine", "data-state", 60, |state| state == "ready").await?;
    // From local files this time: the peers get their blocks from the host.
    host.click("#model-folder-choice").await?;
    let folder = model_folder()?;
    let files = ["config.json", "model.safetensors", "tokenizer.json"].map(|name| folder.join(name));
    host.choose("#model-files", &files).await?;
    choose(&host, "3", "f32").await?;
    let cpu = join(&browser, &host, 2, &TabOptions::default()).await?;
    let gpu = join(&browser, &host, 1, &TabOptions { webgpu: true, ..TabOptions::default() }).await?;
    gpu[0].wait("#stage", "data-backend", 120, |backend| backend == "WebGPU").await?;
    host.wait_for_devices(3, 120).await?;
    let (losses, weights) = finish(&host, 400).await?;
    compare(&losses, &weights, &reference)?;
    for tab in cpu.into_iter().chain(gpu).chain([host]) {
        tab.close().await?;
    }
    Ok(())
}
