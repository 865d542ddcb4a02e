//! A room of every kind of device: what a tab of Chromium, a tab of Firefox and a native peer train together is what one
//! process trains.

use anyhow::{Result, ensure};
use baton_e2e::reference::{compare, finish, one_process, prepared_host};
use baton_e2e::{Browser, NativePeer, Server, TabOptions, join};

#[tokio::test]
async fn chromium_firefox_and_a_native_peer_together_equal_one_process() -> Result<()> {
    let (server, chromium) = (Server::start(&[]).await?, Browser::start().await?);
    let firefox = Browser::firefox().await?;
    let reference = one_process("12").await?;
    let host = prepared_host(&server, &chromium, "12").await?;
    let tabs = join(&firefox, &host, 1, &TabOptions { phone: true, ..TabOptions::default() }).await?;
    let native = NativePeer::join(&host, 1).await?;
    host.wait_for_devices(2, 60).await?;
    let (losses, weights) = finish(&host, 240).await?;
    tabs[0].screenshot("firefox").await?;
    ensure!(tabs[0].errors().await?.is_empty(), "{:?}", tabs[0].errors().await?);
    // The losses are the same whoever computes: that both did is for the list of devices to say.
    let script = "return [...document.querySelectorAll('#devices [data-peer]')]
        .filter(e => e.dataset.peer !== 'host').map(e => e.dataset.blocks || 'none').sort();";
    let blocks: Vec<String> = serde_json::from_value(host.script(script, vec![]).await?)?;
    ensure!(blocks.len() == 2 && !blocks.contains(&"none".to_owned()), "the blocks of the two: {blocks:?}");
    compare(&losses, &weights, &reference)?;
    ensure!(native.interrupt().await?, "the native peer did not leave cleanly");
    for tab in tabs.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}
