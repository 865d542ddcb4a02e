//! Bad input gets a clear message where it belongs, and what the person chose before is kept.

use anyhow::{Result, ensure};
use baton_e2e::{Browser, Server, Tab, TabOptions, join, repository};
use std::path::{Path, PathBuf};

async fn ready(browser: &Browser, server: &Server) -> Result<Tab> {
    let host = browser.open(&format!("{}?backend=cpu", server.url), &TabOptions::default()).await?;
    host.wait("#model", "data-state", 60, |state| state == "ready").await?;
    host.wait("#text", "data-state", 60, |state| state == "ready").await?;
    Ok(host)
}

/// A copy of the embedded model in which one file is changed.
fn damaged(folder: &Path, name: &str, damage: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<Vec<PathBuf>> {
    let source = repository("static/model");
    std::fs::create_dir_all(folder)?;
    let mut damage = Some(damage);
    ["config.json", "model.safetensors", "tokenizer.json"]
        .into_iter()
        .map(|file| {
            let bytes = std::fs::read(source.join(file))?;
            let bytes =
                if file == name { damage.take().map_or(Vec::new(), |damage| damage(bytes)) } else { bytes };
            std::fs::write(folder.join(file), bytes)?;
            Ok(folder.join(file))
        })
        .collect()
}

#[tokio::test]
async fn broken_models_and_texts_are_refused_in_words() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let host = ready(&browser, &server).await?;
    let home = tempfile::tempdir()?;
    let edit = |from: &'static str, to: &'static str| {
        move |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace(from, to).into_bytes()
    };
    let lie = |bytes: Vec<u8>| [&(u64::MAX >> 8).to_le_bytes(), &bytes[8..]].concat();
    let cases: Vec<(&str, Vec<PathBuf>, &str)> = vec![
        (
            "unsupported architecture",
            damaged(&home.path().join("a"), "config.json", edit("LlamaForCausalLM", "MambaForCausalLM"))?,
            "MambaForCausalLM",
        ),
        (
            "truncated safetensors",
            damaged(&home.path().join("b"), "model.safetensors", |bytes| {
                bytes[..bytes.len() - 5000].to_vec()
            })?,
            "model.safetensors",
        ),
        (
            "header length that lies",
            damaged(&home.path().join("c"), "model.safetensors", lie)?,
            "model.safetensors",
        ),
        (
            "tensor that lies",
            damaged(&home.path().join("d"), "model.safetensors", |bytes| edit_header(&bytes))?,
            "model.safetensors",
        ),
    ];
    host.click("#model-folder-choice").await?;
    for (what, files, words) in cases {
        host.choose("#model-files", &files).await?;
        let message = host.wait("#error-model", "text", 30, |text| text.contains(words)).await;
        let message = message.map_err(|error| error.context(what))?;
        println!("{what}: {}", message.trim());
        host.click("#error-model button").await?;
    }
    // The room and the text are still there, and a good model is taken at once.
    host.click("#model-default").await?;
    host.wait("#model", "data-state", 30, |state| state == "ready").await?;
    // It is counted anew for the other model.
    host.wait("#text", "data-state", 30, |state| state == "ready").await?;
    ensure!(host.read("#join-link", "value").await?.contains("#/join/"), "the room was lost");

    host.click("#text-paste-choice").await?;
    host.fill("#text-paste", "   \n  \n").await?;
    let message = host.wait("#error-text", "text", 30, |text| !text.trim().is_empty()).await?;
    println!("empty text: {}", message.trim());
    host.click("#text-sample").await?;
    host.wait("#text", "data-state", 30, |state| state == "ready").await?;
    host.close().await
}

/// The first tensor is said to end far beyond the file.
fn edit_header(bytes: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("a header")) as usize;
    let header = String::from_utf8_lossy(&bytes[8..8 + length]).into_owned();
    let (before, rest) = header.split_once("\"data_offsets\":[0,").expect("a tensor begins at 0");
    let (_, after) = rest.split_once(']').expect("a range ends");
    let header = format!("{before}\"data_offsets\":[0,999999999]{}", after.trim_end());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..]].concat()
}

#[tokio::test]
async fn a_joiner_is_told_why_it_cannot_join() -> Result<()> {
    let (server, browser) = (Server::start(&["--max-members", "2"]).await?, Browser::start().await?);
    let url = |code: &str| format!("{}?backend=cpu#/join/{code}", server.url);
    let refused = async |url: &str, options: &TabOptions, words: &[&str]| -> Result<()> {
        let tab = browser.open(url, options).await?;
        let said = |text: &str| words.iter().any(|word| text.to_lowercase().contains(word));
        let message = tab.wait("#join-error", "text", 60, said).await?;
        println!("{}", message.trim());
        tab.close().await
    };
    let plain = TabOptions::default();
    refused(&url("AAAAAAAAAAAAAAAAAAAAAA"), &plain, &["no such room", "no room", "room"]).await?;
    refused(&url("too-short"), &plain, &["link"]).await?;

    let host = ready(&browser, &server).await?;
    let phones = join(&browser, &host, 1, &plain).await?;
    host.wait_for_devices(1, 60).await?;
    let link = host.read("#join-link", "value").await?;
    let code = link.rsplit('/').next().unwrap_or_default().to_owned();
    refused(&url(&code), &plain, &["full"]).await?;

    let other_version = "const send = WebSocket.prototype.send; WebSocket.prototype.send = function (data) {
        return send.call(this, typeof data === 'string' ? data.replace(/\"version\":[0-9]+/, '\"version\":99') : data); };";
    let options = TabOptions { script: Some(other_version.into()), ..TabOptions::default() };
    refused(&url(&code), &options, &["version"]).await?;
    for tab in phones.into_iter().chain([host]) {
        tab.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_browser_without_simd_is_told_so() -> Result<()> {
    let (server, browser) = (Server::start(&[]).await?, Browser::start().await?);
    let script = Some("WebAssembly.validate = () => false;".into());
    for page in ["", "#/join/AAAAAAAAAAAAAAAAAAAAAA"] {
        let options = TabOptions { script: script.clone(), phone: true, ..TabOptions::default() };
        let tab = browser.open(&format!("{}{page}", server.url), &options).await?;
        let message = tab.wait("#unsupported", "text", 20, |text| text.contains("SIMD")).await?;
        ensure!(message.contains("Open the same link"), "{message}");
        tab.screenshot("no-simd").await?;
        tab.close().await?;
    }
    Ok(())
}
