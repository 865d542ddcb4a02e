//! The main job, as a person does it: open the page, start, let phones join, watch the loss fall, take the adapter.

use anyhow::{Context, Result, ensure};
use baton_e2e::{Browser, Server, TabOptions, adapter_tensors, join};

#[tokio::test]
async fn a_person_fine_tunes_the_default_model_with_three_phones() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let host = browser.open(&format!("{}?backend=cpu", server.url), &TabOptions::default()).await?;
    host.wait("#engine", "data-state", 60, |state| state == "ready").await?;
    host.wait("#model", "data-state", 60, |state| state == "ready").await?;
    host.wait("#text", "data-state", 60, |state| state == "ready").await?;
    let phone = TabOptions { phone: true, ..TabOptions::default() };
    let phones = join(&browser, &host, 3, &phone).await?;
    host.wait_for_devices(3, 60).await?;
    host.screenshot("1-ready").await?;
    host.click("#start").await?;
    host.wait("#loss", "data-step", 120, |step| step.parse().is_ok_and(|step: u32| step >= 5)).await?;
    host.screenshot("2-running").await?;
    phones[1].screenshot("3-phone").await?;
    let blocks = phones[1].read("#stage", "data-blocks").await?;
    ensure!(!blocks.is_empty(), "the second phone shows no blocks");

    // Pausing stands still after a complete step; resuming goes on.
    host.click("#pause").await?;
    host.wait("#phase", "data-phase", 30, |phase| phase == "paused").await?;
    let paused = host.losses().await?.len();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    ensure!(host.losses().await?.len() == paused, "steps were made in a pause");
    host.click("#resume").await?;
    host.wait("#phase", "data-phase", 300, |phase| phase == "finished").await?;

    let losses = host.losses().await?;
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&losses[..3]), mean(&losses[losses.len() - 3..]));
    ensure!(last < 0.8 * first, "the loss fell only from {first} to {last}");
    host.wait("#sample-after", "text", 60, |text| text.trim().len() > 20).await?;
    let (before, after) =
        (host.read("#sample-before", "text").await?, host.read("#sample-after", "text").await?);
    ensure!(before != after, "the model writes as before: {before}");
    host.screenshot("4-finished").await?;

    let files = host.download().await?;
    let file = |ending: &str| {
        let found = files.iter().find(|(name, _)| name.ends_with(ending));
        found.map(|(_, bytes)| bytes.as_slice()).with_context(|| format!("the archive has no {ending}"))
    };
    let config: serde_json::Value = serde_json::from_slice(file("adapter_config.json")?)?;
    ensure!(config["peft_type"] == "LORA", "{config}");
    let tensors = adapter_tensors(file("adapter_model.safetensors")?)?;
    let trained = tensors.iter().filter(|(name, _)| name.ends_with("lora_B.weight"));
    ensure!(trained.clone().count() > 0, "no lora_B in {:?}", tensors.keys());
    for (name, values) in trained {
        ensure!(values.iter().any(|value| *value != 0.0), "{name} was not trained");
    }

    host.fill("#generate-prompt", "").await?;
    host.click("#generate").await?;
    host.wait("#generated", "data-done", 60, |done| done == "true").await?;
    ensure!(host.read("#generated", "text").await?.trim().len() > 20, "nothing was written");
    ensure!(host.errors().await?.is_empty(), "{:?}", host.errors().await?);
    for tab in phones.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_phone_that_closes_its_tab_costs_no_step() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let host = browser.open(&format!("{}?backend=cpu", server.url), &TabOptions::default()).await?;
    host.wait("#model", "data-state", 60, |state| state == "ready").await?;
    host.wait("#text", "data-state", 60, |state| state == "ready").await?;
    let mut phones = join(&browser, &host, 2, &TabOptions::default()).await?;
    host.wait_for_devices(2, 60).await?;
    host.settings(&[("steps", "30"), ("sample_tokens", "0"), ("lr", "0.001")]).await?;
    host.click("#start").await?;
    host.wait("#loss", "data-step", 120, |step| step.parse().is_ok_and(|step: u32| step >= 3)).await?;
    phones.remove(0).close().await?;
    host.wait("#phase", "data-phase", 240, |phase| phase == "finished").await?;
    ensure!(host.losses().await?.len() == 30, "{:?}", host.losses().await?);
    Ok(())
}
