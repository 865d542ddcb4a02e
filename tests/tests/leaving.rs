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

/// A device as the host's list shows it.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
struct Row {
    peer: String,
    state: String,
    blocks: Option<String>,
}

impl Row {
    /// The others do not go on without it.
    fn is_there(&self) -> bool {
        !matches!(self.state.as_str(), "hidden" | "drained" | "silent")
    }
}

async fn rows(host: &Tab) -> Result<Vec<Row>> {
    let script =
        "return [...document.querySelectorAll('#devices [data-peer]')].filter(e => e.dataset.peer !== 'host')
        .map(e => ({ peer: e.dataset.peer, state: e.dataset.state, blocks: e.dataset.blocks ?? null }));";
    Ok(serde_json::from_value(host.script(script, vec![]).await?)?)
}

/// Waits until the host's list of devices is as wanted; says what it was meanwhile where it does not come to be.
async fn wait_for_rows(host: &Tab, seconds: u64, is_wanted: impl Fn(&[Row]) -> bool) -> Result<Duration> {
    let since = Instant::now();
    let mut seen: Vec<(Duration, Vec<Row>)> = Vec::new();
    loop {
        let found = rows(host).await?;
        if is_wanted(&found) {
            return Ok(since.elapsed());
        }
        if seen.last().is_none_or(|last| last.1 != found) {
            seen.push((since.elapsed(), found));
        }
        ensure!(since.elapsed() < Duration::from_secs(seconds), "not in {seconds} s: {seen:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Which of these tabs has blocks and trains: a plan may leave one out, whose loss would cost nothing.
async fn at_work(tabs: &[Tab]) -> Result<usize> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        for (index, tab) in tabs.iter().enumerate() {
            if tab.read("#stage", "data-state").await? == "training" {
                return Ok(index);
            }
        }
        ensure!(Instant::now() < until, "no tab trains");
    }
}

/// That a loss is noticed in two seconds, and the next step done in five; both from `since`.
async fn goes_on_without(host: &Tab, what: &str, since: Instant, left: usize) -> Result<()> {
    let there = |rows: &[Row]| rows.iter().filter(|row| row.is_there()).count() == left;
    wait_for_rows(host, 10, there).await?;
    let noticed = since.elapsed();
    let before = steps(host).await?;
    wait_for_steps(host, before + 1, 20).await?;
    let on = since.elapsed();
    println!("{what}: noticed after {noticed:?}, went on after {on:?}");
    let in_time = noticed < Duration::from_secs(2) && on < Duration::from_secs(5);
    ensure!(in_time, "{what}: {noticed:?}, {on:?}; {:?}; {:?}", rows(host).await?, host.errors().await?);
    Ok(())
}

/// Waits until every device says that its host is not heard; gives how long that was after `closed`.
async fn wait_for_silence(tabs: &[Tab], closed: Instant) -> Result<Duration> {
    for tab in tabs {
        loop {
            let state = tab.read("#stage", "data-state").await?;
            if state == "silent" {
                break;
            }
            ensure!(closed.elapsed() < Duration::from_secs(10), "{state} after {:?}", closed.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(closed.elapsed())
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
    let known: Vec<String> = rows(&host).await?.into_iter().map(|row| row.peer).collect();
    let index = at_work(&tabs).await?;
    tabs.remove(index).kill();
    goes_on_without(&host, "killed", Instant::now(), 2).await?;

    // A device that comes late is put to work.
    tabs.extend(join(&browser, &host, 1, &TabOptions::default()).await?);
    let works = |row: &Row| row.blocks.is_some() && !known.contains(&row.peer);
    let employed = wait_for_rows(&host, 120, |rows| rows.iter().any(works)).await?;
    println!("a late one has blocks after {employed:?}");

    // A hidden one hands its stage over.
    let index = at_work(&tabs).await?;
    let hidden = Instant::now();
    tabs[index].hide().await?;
    goes_on_without(&host, "hidden", hidden, 2).await?;
    tabs[index].show().await?;

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
    // A plan may leave one out; it notices as well.
    at_work(&tabs).await?;
    // Closed, with an empty tab in its place, which is counted too: the devices notice.
    let closed = Instant::now();
    host.reopen("about:blank").await?;
    let noticed = wait_for_silence(&tabs, closed).await?;
    println!("the host's closed page was noticed after {noticed:?}");
    ensure!(noticed < Duration::from_secs(2), "{noticed:?}");
    // Opened again in another tab.
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
