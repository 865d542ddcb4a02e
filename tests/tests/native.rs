//! `baton join` beside tabs: the losses and the adapter are those of one process, and who leaves costs no step.

use anyhow::{Context, Result, ensure};
use baton_e2e::reference::{compare, finish, one_process, prepared_host};
use baton_e2e::{Browser, NativePeer, Server, TabOptions, join};

#[tokio::test]
async fn a_native_peer_beside_a_tab_equals_one_process() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let reference = one_process("12").await?;
    let host = prepared_host(&server, &browser, "12").await?;
    let native = NativePeer::join(&host, 1).await?;
    host.wait_for_devices(1, 60).await?;
    let tabs = join(&browser, &host, 1, &TabOptions::default()).await?;
    host.wait_for_devices(2, 60).await?;
    let (losses, weights) = finish(&host, 240).await?;
    compare(&losses, &weights, &reference)?;
    ensure!(native.interrupt().await?, "the native peer did not leave cleanly");
    for tab in tabs.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_native_peer_that_is_interrupted_leaves_the_run_to_the_others() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let reference = one_process("20").await?;
    let host = prepared_host(&server, &browser, "20").await?;
    let two = NativePeer::join(&host, 2).await?;
    let one = NativePeer::join(&host, 1).await?;
    host.wait_for_devices(3, 60).await?;
    host.click("#start").await?;
    let made = |step: &str| step.parse::<u32>().is_ok_and(|step| step >= 4);
    host.wait("#loss", "data-step", 120, made).await?;
    ensure!(one.interrupt().await?, "the native peer did not leave cleanly");
    let over = |phase: &str| phase == "finished" || phase == "failed";
    ensure!(host.wait("#phase", "data-phase", 240, over).await? == "finished", "{:?}", host.errors().await?);
    let files = host.download().await?;
    let weights = files.into_iter().find(|(name, _)| name.ends_with(".safetensors")).context("no weights")?.1;
    compare(&host.losses().await?, &weights, &reference)?;
    ensure!(two.interrupt().await?, "the other native peer did not leave cleanly");
    host.close().await
}
