//! Host and stages in Chromium processes of their own give the losses and the adapter of one native process.

use anyhow::{Result, ensure};
use baton_e2e::reference::{choose, compare, finish, one_process};
use baton_e2e::{Browser, Server, TabOptions, join, model_folder};

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
