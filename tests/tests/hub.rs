//! A room that has its model from a hub: the hub is asked once, its moods do no harm, and what it changes is refused.

use anyhow::{Context, Result, ensure};
use baton_e2e::{Browser, Server, Tab, TabOptions, join, model_folder};
use baton_testhub::{Cut, Place, TestHub};

const WEIGHTS: &str = "model.safetensors";
const REPOSITORY: &str = "someone/stories";
const STEPS: usize = 3;

/// A hub with the model; and how many bytes its weights have.
fn hub() -> Result<(TestHub, u64)> {
    let folder = model_folder()?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?));
        }
    }
    let weights = files.iter().find(|(name, _)| name == WEIGHTS).context("the model has no weights")?;
    let size = weights.1.len() as u64;
    let hub = TestHub::start()?;
    hub.push(REPOSITORY, "main", files);
    Ok((hub, size))
}

/// A host that has chosen the hub's model and a short run of it, and `count` devices that wait.
async fn room(browser: &Browser, server: &Server, hub: &TestHub, count: usize) -> Result<(Tab, Vec<Tab>)> {
    let host = browser.open(&format!("{}?backend=cpu", server.url), &TabOptions::default()).await?;
    host.wait("#engine", "data-state", 60, |state| state == "ready").await?;
    host.click("#model-url-choice").await?;
    host.fill("#model-url", &hub.url(REPOSITORY, "main")).await?;
    host.click("#model-url-use").await?;
    host.wait("#model", "text", 60, |text| text.contains(REPOSITORY)).await?;
    host.wait("#model", "data-state", 60, |state| state == "ready").await?;
    host.wait("#text", "data-state", 60, |state| state == "ready").await?;
    let steps = STEPS.to_string();
    host.settings(&[("steps", &steps), ("warmup_steps", "0"), ("sample_tokens", "0")]).await?;
    let phones = join(browser, &host, count, &TabOptions::default()).await?;
    host.wait_for_devices(count, 60).await?;
    Ok((host, phones))
}

async fn train(host: &Tab) -> Result<()> {
    host.click("#start").await?;
    host.wait("#phase", "data-phase", 240, |phase| phase == "finished" || phase == "failed").await?;
    ensure!(host.errors().await?.is_empty(), "{:?}", host.errors().await?);
    ensure!(host.losses().await?.len() == STEPS, "{:?}", host.losses().await?);
    Ok(())
}

#[tokio::test]
async fn a_room_asks_the_hub_for_its_model_once_whatever_happens_on_the_way() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let (hub, size) = hub()?;
    // Every address with a signature is good once; whoever keeps it is sent back to the hub.
    hub.faults(|faults| faults.signature_uses = Some(1));
    let (host, phones) = room(&browser, &server, &hub, 2).await?;
    let header = hub.sent(WEIGHTS);
    ensure!(header < size / 4, "{header} of {size} bytes were read only to describe the model");
    hub.clear_log();
    let after = size / 3;
    hub.faults(|faults| faults.cut = Some(Cut { after, times: 1 }));
    train(&host).await?;

    let log = hub.log();
    let of_weights = || log.iter().filter(|request| request.place == Place::Bytes && request.name == WEIGHTS);
    let expired = of_weights().filter(|request| request.status == 403).count();
    let cut = of_weights().find(|request| request.sent == after).context("no body was cut")?;
    let stopped = cut.range.as_ref().context("a body was cut that nobody asked a range of")?.start + after;
    let resumed = of_weights().any(|request| {
        request.range.as_ref().is_some_and(|r| {
            // The last bytes of a cut body may not have arrived.
            request.status == 206 && r.start > stopped - after && r.start <= stopped
        })
    });
    println!(
        "{} bytes of {size} asked of the hub, {expired} expired signatures; {:?}",
        hub.sent(WEIGHTS),
        of_weights().collect::<Vec<_>>()
    );
    ensure!(resumed, "nobody went on after {stopped}: {log:?}");
    // The weights once, and what was lost in the cut.
    ensure!(hub.sent(WEIGHTS) >= size, "{} of {size} bytes were read", hub.sent(WEIGHTS));
    ensure!(hub.sent(WEIGHTS) <= size + after, "{} of {size} bytes were read: {log:?}", hub.sent(WEIGHTS));
    ensure!(expired > 0, "no signature expired: {log:?}");

    // A second run finds everything in the room.
    hub.clear_log();
    host.click("#again").await?;
    // Its adapter was not downloaded.
    host.click("#again-sure").await?;
    host.wait("#phase", "data-phase", 30, |phase| phase == "lobby").await?;
    train(&host).await?;
    ensure!(hub.sent(WEIGHTS) == 0, "the second run asked again: {:?}", hub.log());
    for tab in phones.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}

/// Deletes what a device keeps of models.
async fn forget(tab: &Tab) -> Result<()> {
    tab.script("document.querySelector('#storage').open = true", vec![]).await?;
    tab.wait("#storage", "data-used", 30, |used| used.parse().is_ok_and(|used: u64| used > 0)).await?;
    tab.click("#storage-clear").await?;
    tab.wait("#storage", "data-used", 30, |used| used == "0").await?;
    Ok(())
}

#[tokio::test]
async fn a_byte_that_changes_at_the_hub_after_the_host_read_it_is_refused_by_its_hash() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let (hub, size) = hub()?;
    let (host, phones) = room(&browser, &server, &hub, 1).await?;
    train(&host).await?;
    // The host remembers the hashes, and nobody has the bytes any more.
    host.click("#again").await?;
    // Its adapter was not downloaded.
    host.click("#again-sure").await?;
    host.wait("#phase", "data-phase", 30, |phase| phase == "lobby").await?;
    for tab in phones.iter().chain([&host]) {
        forget(tab).await?;
    }
    hub.faults(|faults| faults.changed_byte = Some((WEIGHTS.into(), size - 100)));
    host.click("#start").await?;
    host.wait("#phase", "data-phase", 60, |phase| phase == "failed").await?;
    let words = |text: &str| text.contains(WEIGHTS) && text.contains("sha256");
    let message = host.wait("section.run p", "text", 30, words).await?;
    println!("{}", message.trim());
    ensure!(host.losses().await?.is_empty(), "it trained on: {:?}", host.losses().await?);
    for tab in phones.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}
