//! Devices that are killed, hidden or come late while a run is on: the others go on at once, and the losses and the adapter
//! are those of one process.

use anyhow::{Result, ensure};
use baton_e2e::reference::{compare, finish, one_process, prepare, prepared_host};
use baton_e2e::{Browser, Server, Tab, TabOptions, join};
use std::time::{Duration, Instant};

const STEPS: &str = "500";

/// A host with so many CPU tabs, and the same run chosen as in one process.
async fn room(server: &Server, browser: &Browser, tabs: usize) -> Result<(Tab, Vec<Tab>)> {
    let host = prepared_host(server, browser, STEPS).await?;
    let tabs = join(browser, &host, tabs, &TabOptions::default()).await?;
    host.wait_for_devices(tabs.len(), 60).await?;
    Ok((host, tabs))
}

async fn steps(host: &Tab) -> Result<usize> {
    Ok(host.losses().await?.len())
}

async fn wait_for_steps(host: &Tab, wanted: usize, seconds: u64) -> Result<usize> {
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        let found = steps(host).await?;
        if found >= wanted {
            return Ok(found);
        }
        ensure!(
            Instant::now() < until,
            "{found} steps after {seconds} s, and not {wanted}: {:?}",
            host.errors().await?
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many devices have blocks.
async fn employed(host: &Tab) -> Result<u64> {
    let script = "return [...document.querySelectorAll('#devices [data-peer]')]
        .filter(e => e.dataset.peer !== 'host' && e.dataset.blocks).length;";
    Ok(host.script(script, vec![]).await?.as_u64().unwrap_or(0))
}

async fn wait_until_employed(host: &Tab, wanted: u64, seconds: u64) -> Result<Duration> {
    let since = Instant::now();
    loop {
        let found = employed(host).await?;
        if found == wanted {
            return Ok(since.elapsed());
        }
        ensure!(
            since.elapsed() < Duration::from_secs(seconds),
            "{found} devices have blocks, and not {wanted}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn end(host: &Tab) -> Result<(Vec<f64>, Vec<u8>)> {
    host.wait("#phase", "data-phase", 300, |phase| phase == "finished" || phase == "failed").await?;
    let files = host.download().await?;
    let weights = files.into_iter().find(|(name, _)| name.ends_with(".safetensors")).map(|file| file.1);
    Ok((host.losses().await?, weights.unwrap_or_default()))
}

#[tokio::test]
async fn a_killed_tab_and_a_hidden_one_cost_no_step_and_a_late_one_is_put_to_work() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let reference = one_process(STEPS).await?;
    let (host, mut tabs) = room(&server, &browser, 3).await?;
    host.click("#start").await?;
    let done = wait_for_steps(&host, 5, 120).await?;
    println!("{done} steps");

    // kill -9, in the middle of a step.
    tabs.remove(1).kill();
    let killed = Instant::now();
    let detected = wait_until_employed(&host, 2, 10).await?;
    let before = steps(&host).await?;
    wait_for_steps(&host, before + 1, 20).await?;
    let on = killed.elapsed();
    println!("killed: noticed after {detected:?}, went on after {on:?}");
    ensure!(detected < Duration::from_secs(2) && on < Duration::from_secs(5), "{detected:?}, {on:?}");

    // A device that comes late is put to work.
    tabs.extend(join(&browser, &host, 1, &TabOptions::default()).await?);
    let employed = wait_until_employed(&host, 3, 60).await?;
    println!("a late one has blocks after {employed:?}");

    // A hidden one hands its stage over.
    tabs[0].hide().await?;
    let hidden = Instant::now();
    let detected = wait_until_employed(&host, 2, 10).await?;
    let before = steps(&host).await?;
    wait_for_steps(&host, before + 1, 20).await?;
    let on = hidden.elapsed();
    println!("hidden: noticed after {detected:?}, went on after {on:?}");
    ensure!(detected < Duration::from_secs(2) && on < Duration::from_secs(5), "{detected:?}, {on:?}");
    tabs[0].show().await?;

    let (losses, weights) = end(&host).await?;
    compare(&losses, &weights, &reference)?;
    for tab in tabs.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn devices_meet_a_host_again_that_loads_its_page_anew() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let reference = one_process("10").await?;
    let (host, tabs) = room(&server, &browser, 2).await?;
    let link = host.read("#join-link", "value").await?;
    host.click("#start").await?;
    wait_for_steps(&host, 3, 120).await?;
    host.reload().await?;
    // What is loaded is kept for the host, and its page finds everybody again under the same link.
    host.wait("#engine", "data-state", 60, |state| state == "ready").await?;
    host.wait_for_devices(2, 20).await?;
    ensure!(host.read("#join-link", "value").await? == link, "another link");
    for tab in &tabs {
        tab.wait("#stage", "data-state", 10, |state| state == "waiting").await?;
        ensure!(tab.errors().await?.is_empty(), "{:?}", tab.errors().await?);
    }
    prepare(&server, &host, "10").await?;
    let (losses, weights) = finish(&host, 120).await?;
    compare(&losses, &weights, &reference)?;
    for tab in tabs.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_run_goes_on_after_its_hosts_page_was_closed() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let reference = one_process(STEPS).await?;
    let (host, tabs) = room(&server, &browser, 2).await?;
    let link = host.read("#join-link", "value").await?;
    host.click("#start").await?;
    wait_for_steps(&host, 20, 120).await?;
    // Closed, and opened again in another tab.
    host.reopen(&format!("{}?backend=cpu", server.url)).await?;
    let opened = Instant::now();
    host.wait("#kept", "data-steps", 30, |steps| steps == STEPS).await?;
    let done: usize = host.read("#kept", "data-done").await?.parse()?;
    ensure!(done >= 20, "{done} steps were kept");
    ensure!(host.read("#join-link", "value").await? == link, "another link");
    host.wait_for_devices(2, 20).await?;
    let together = opened.elapsed();
    host.screenshot("kept").await?;
    host.click("#go-on").await?;
    let clicked = Instant::now();
    wait_for_steps(&host, done + 1, 20).await?;
    let on = clicked.elapsed();
    println!("{done} steps kept; everybody is back after {together:?}, the next step after {on:?}");
    ensure!(on < Duration::from_secs(5), "{on:?}");
    let (losses, weights) = end(&host).await?;
    compare(&losses, &weights, &reference)?;
    for tab in tabs.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}
