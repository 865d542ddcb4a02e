//! The same run in one native process, and the comparison with it.

use crate::{Browser, Server, Tab, TabOptions, adapter_tensors, baton, model_folder, text_file};
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// What one process got.
pub struct Reference {
    /// Of every step.
    pub losses: Vec<f64>,
    /// The adapter's file.
    pub weights: Vec<u8>,
}

/// The settings of both, by their names on the command line.
pub const FLAGS: &[(&str, &str)] = &[
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

/// Trains in one process.
pub async fn one_process(steps: &str) -> Result<Reference> {
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

/// Has the host's page load the reference's model from the server, and chooses the same text and settings.
pub async fn prepare(server: &Server, host: &Tab, steps: &str) -> Result<()> {
    host.wait("#engine", "data-state", 60, |state| state == "ready").await?;
    host.click("#model-url-choice").await?;
    host.fill("#model-url", &format!("{}models/stories260k", server.url)).await?;
    host.click("#model-url-use").await?;
    host.wait("#model", "text", 60, |text| text.contains("models/stories260k")).await?;
    choose(host, steps, "f32").await
}

/// Opens a host's page that computes on the CPU, prepared for the reference's run.
pub async fn prepared_host(server: &Server, browser: &Browser, steps: &str) -> Result<Tab> {
    server.add("models/stories260k", &model_folder()?)?;
    let host = browser.open(&format!("{}?backend=cpu", server.url), &TabOptions::default()).await?;
    prepare(server, &host, steps).await?;
    Ok(host)
}

/// Chooses the same text and settings on the host's page.
pub async fn choose(host: &Tab, steps: &str, boundary: &str) -> Result<()> {
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

/// Starts a run and waits for its end; gives its losses and its adapter's file.
pub async fn finish(host: &Tab, seconds: u64) -> Result<(Vec<f64>, Vec<u8>)> {
    host.click("#start").await?;
    host.wait("#phase", "data-phase", seconds, |phase| phase == "finished" || phase == "failed").await?;
    ensure!(host.errors().await?.is_empty(), "{:?}", host.errors().await?);
    let files = host.download().await?;
    let weights = files.into_iter().find(|(name, _)| name.ends_with(".safetensors")).context("no weights")?.1;
    Ok((host.losses().await?, weights))
}

/// That losses and adapter are within 1e-4 of those of one process.
pub fn compare(losses: &[f64], weights: &[u8], reference: &Reference) -> Result<()> {
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
