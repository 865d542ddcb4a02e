//! What the measurements in tabs share: a host with a model, a text and settings, a run to its end, and its steps' times.

use crate::{Server, Tab};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::Path;

/// A script for [`crate::TabOptions`]: notes when steps were complete, for [`step_times`].
pub const WATCH_STEPS: &str = "
    window.batonSteps = {};
    setInterval(() => {
        const done = document.querySelector('#loss')?.dataset.step;
        if (done !== undefined) window.batonSteps[done] ??= performance.now() / 1000;
    }, 20);";

/// Chooses a model: a folder, which is put beside the page, or an address as one would type it.
pub async fn choose_model(host: &Tab, server: &Server, model: &str) -> Result<()> {
    host.wait("#engine", "data-state", 60, |state| state == "ready").await?;
    // What the page chooses by itself has to be there first, or it arrives later.
    host.wait("#text", "data-state", 60, |state| state == "ready").await?;
    let url = if Path::new(model).is_dir() {
        server.add("models/bench", Path::new(model))?;
        format!("{}models/bench", server.url)
    } else {
        model.to_owned()
    };
    host.click("#model-url-choice").await?;
    host.fill("#model-url", &url).await?;
    host.click("#model-url-use").await?;
    host.wait("#model", "text", 120, |text| text.contains(&url)).await?;
    host.wait("#model", "data-state", 120, |state| state == "ready").await?;
    Ok(())
}

/// Chooses a text.
pub async fn choose_text(host: &Tab, text: &Path) -> Result<()> {
    let data = text.canonicalize().with_context(|| text.display().to_string())?;
    let name = data.file_name().context("the text has no name")?.to_string_lossy().into_owned();
    host.click("#text-file-choice").await?;
    host.choose("#text-file", &[data]).await?;
    host.wait("#text", "text", 120, |text| text.contains(&name)).await?;
    Ok(())
}

/// Sets fields of the settings, each of which has to take its value.
pub async fn set(host: &Tab, values: &[(&str, String)]) -> Result<()> {
    for (name, value) in values {
        host.settings(&[(name, value)]).await?;
        let field = format!("#set-{name}");
        let is_flag = matches!(&**value, "true" | "false");
        ensure!(is_flag || host.read(&field, "value").await? == *value, "{field} does not take {value:?}");
    }
    // Other lengths and shares make another text of it.
    host.wait("#text", "data-state", 120, |state| state == "ready").await?;
    Ok(())
}

/// Starts the run and waits for its end. Gives when it was started, for [`step_times`].
pub async fn run(host: &Tab, limit: u64) -> Result<f64> {
    let begun = host.script("return performance.now() / 1000", vec![]).await?.as_f64().unwrap_or_default();
    host.click("#start").await?;
    let over = |phase: &str| phase == "finished" || phase == "failed";
    let phase = host.wait("#phase", "data-phase", limit, over).await?;
    if phase != "finished" {
        bail!("the run failed: {}", host.read("section.run p", "text").await?);
    }
    // The engines speak of their memory now and then.
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    Ok(begun)
}

/// When each step was complete, in seconds after `begun`.
pub async fn step_times(host: &Tab, begun: f64) -> Result<Vec<f64>> {
    let times: BTreeMap<u32, f64> =
        serde_json::from_value(host.script("return window.batonSteps", vec![]).await?)?;
    Ok(times.into_iter().filter(|(step, _)| *step > 0).map(|(_, time)| time - begun).collect())
}
