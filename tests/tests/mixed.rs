//! A room of every kind of device: what a tab of Chromium, a tab of Firefox and a native peer train together is what one
//! process trains.

use anyhow::{Result, ensure};
use baton_e2e::reference::{compare, finish, one_process, prepared_host};
use baton_e2e::{Browser, NativePeer, Server, Tab, TabOptions, join};
use std::time::{Duration, Instant};

#[tokio::test]
async fn chromium_firefox_and_a_native_peer_together_equal_one_process() -> Result<()> {
    let (server, chromium) = (Server::start(&[]).await?, Browser::start().await?);
    let firefox = Browser::firefox().await?;
    let reference = one_process("12").await?;
    let host = prepared_host(&server, &chromium, "12").await?;
    let tabs = join(&firefox, &host, 1, &TabOptions { phone: true, ..TabOptions::default() }).await?;
    let native = NativePeer::join(&host, 1).await?;
    host.wait_for_devices(2, 60).await?;
    let (shared, run) = tokio::join!(both_have_blocks(&host), finish(&host, 240));
    let (losses, weights) = run?;
    shared?;
    tabs[0].screenshot("firefox").await?;
    ensure!(tabs[0].errors().await?.is_empty(), "{:?}", tabs[0].errors().await?);
    compare(&losses, &weights, &reference)?;
    ensure!(native.interrupt().await?, "the native peer did not leave cleanly");
    for tab in tabs.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}

/// The losses are the same whoever computes: that both do is for the list of devices to say.
async fn both_have_blocks(host: &Tab) -> Result<()> {
    let script = "return [document.querySelector('#phase')?.dataset.phase,
        [...document.querySelectorAll('#devices [data-peer]')]
            .filter(e => e.dataset.peer !== 'host').map(e => e.dataset.blocks || 'none')];";
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let (phase, blocks): (Option<String>, Vec<String>) =
            serde_json::from_value(host.script(script, vec![]).await?)?;
        if phase.as_deref() == Some("running") && blocks.len() == 2 && !blocks.contains(&"none".to_owned()) {
            return Ok(());
        }
        let over = phase.as_deref() == Some("finished") || Instant::now() > until;
        ensure!(!over, "never had both devices blocks; at the end: {blocks:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
