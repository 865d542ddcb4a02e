//! What the end-to-end tests share: a real server, real browser processes, and the page's elements by name.
//!
//! `cargo xtask test --only e2e` sets the environment: BATON_DIST (the built page), BATON_SERVER and BATON_CLI (the
//! binaries), CHROMEDRIVER and CHROME, GECKODRIVER and FIREFOX.

pub mod bench;
pub mod made;
pub mod reference;

use anyhow::{Context, Result, bail, ensure};
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// As root, quiet, and without what needs a network card: see the design's notes on WebRTC in tests.
const CHROMIUM_FLAGS: [&str; 11] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--disable-dev-shm-usage",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
];

/// A script for [`TabOptions`]: hears the engine where [`Server::report_memory`] has it speak, for [`Tab::wasm_memory`].
pub const WATCH_MEMORY: &str = "
    window.batonMemory = {};
    new BroadcastChannel('baton-memory').onmessage = event => {
        const now = document.querySelector('#stage')?.dataset.state
            ?? document.querySelector('#phase')?.dataset.phase ?? 'starting';
        window.batonMemory[now] = Math.max(window.batonMemory[now] ?? 0, event.data);
    };";

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// What lies beside the repository in `shared/`, or where that is missing a stand-in from the repository.
fn shared_or(path: &str, stand_in: &str) -> Result<PathBuf> {
    let shared = repository("../shared").join(path);
    let path = if shared.exists() { shared } else { repository(stand_in) };
    path.canonicalize().with_context(|| format!("{} is not there", path.display()))
}

/// A real pretrained model: stories260k, or else the embedded one.
pub fn model_folder() -> Result<PathBuf> {
    shared_or("models/stories260k", "static/model")
}

/// A real text: E2E restaurant descriptions, or else the sample text.
pub fn text_file() -> Result<PathBuf> {
    shared_or("data/e2e/valid.txt", "static/sample.txt")
}

fn variable(name: &str) -> Result<PathBuf> {
    let value = std::env::var_os(name);
    value.map(PathBuf::from).with_context(|| format!("{name} is not set: run `cargo xtask test --only e2e`"))
}

/// Runs `baton` with these arguments; gives its standard output.
pub async fn baton(arguments: &[&str]) -> Result<String> {
    let output = Command::new(variable("BATON_CLI")?).args(arguments).output().await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "baton {}: {errors}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

/// The server with a copy of the built page, so that a test can put files beside it.
pub struct Server {
    /// `http://127.0.0.1:PORT/`
    pub url: String,
    /// The copy of the page.
    pub dist: tempfile::TempDir,
    _process: Child,
}

impl Server {
    /// Starts a server on a port of its own, with these further flags.
    pub async fn start(flags: &[&str]) -> Result<Self> {
        let dist = tempfile::tempdir()?;
        copy(&variable("BATON_DIST")?, dist.path())?;
        let mut process = Command::new(variable("BATON_SERVER")?)
            .args(["--listen", "127.0.0.1:0", "--no-qr", "--dist"])
            .arg(dist.path())
            .args(flags)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the server does not start")?;
        let line = find_line(&mut process, "listening on ").await?;
        let url =
            line.split_whitespace().last().context("no address")?.trim_end_matches('/').to_owned() + "/";
        Ok(Self { url, dist, _process: process })
    }

    /// Has the engines of this copy of the page say on a `BroadcastChannel("baton-memory")`, ten times a second where they
    /// have the time, how many bytes WebAssembly's memory has. It never shrinks.
    pub fn report_memory(&self) -> Result<()> {
        let worker = self.dist.path().join("static/worker.js");
        let text = std::fs::read_to_string(&worker)?;
        let start = "await wasm_bindgen(";
        ensure!(text.contains(start), "{} starts no engine by {start:?}", worker.display());
        let text = text.replace(start, &format!("engine = {start}"))
            + "\nlet engine;\nconst memory = new BroadcastChannel('baton-memory');\n\
               setInterval(() => engine && memory.postMessage(engine.memory.buffer.byteLength), 100);\n";
        // The copy may be a link to the page itself, and the server prefers what is compressed.
        let _ = std::fs::remove_file(worker.with_extension("js.gz"));
        std::fs::remove_file(&worker)?;
        Ok(std::fs::write(&worker, text)?)
    }

    /// Puts files of a folder under the server's root.
    pub fn add(&self, name: &str, folder: &Path) -> Result<()> {
        copy(folder, &self.dist.path().join(name))
    }
}

/// Links where it can: the page is some 50 MB.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if std::fs::hard_link(entry.path(), &target).is_err() {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

async fn find_line(process: &mut Child, wanted: &str) -> Result<String> {
    let stdout = process.stdout.take().context("no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    let found = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains(wanted) {
                return Ok(line);
            }
        }
        bail!("it ended without saying {wanted:?}")
    };
    let line =
        tokio::time::timeout(Duration::from_secs(30), found).await.context("it said nothing in 30 s")??;
    // Whoever writes to a full pipe stands still.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok(line)
}

/// What a WebDriver drives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chromium,
    Firefox,
}

/// A WebDriver: chromedriver, of which every session is a Chromium process of its own, or geckodriver, which has one
/// session at a time.
pub struct Browser {
    kind: Kind,
    driver: String,
    _process: Child,
}

/// How a tab is started.
#[derive(Clone, Default)]
pub struct TabOptions {
    /// Chromium's software adapter for WebGPU.
    pub webgpu: bool,
    /// A phone's screen.
    pub phone: bool,
    /// Runs in every document before its own scripts. Chromium only.
    pub script: Option<String>,
    /// Pins every process of this browser to a core. Chromium only.
    pub core: Option<usize>,
}

impl TabOptions {
    /// Chromium, or a script in `folder` that starts it on its core: what it starts inherits that.
    fn binary(&self, folder: &Path) -> Result<PathBuf> {
        let chrome = variable("CHROME")?;
        let Some(core) = self.core else { return Ok(chrome) };
        let script = folder.join("chrome.sh");
        std::fs::write(
            &script,
            format!("#!/bin/sh\nexec taskset -c {core} '{}' \"$@\"\n", chrome.display()),
        )?;
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, executable)?;
        Ok(script)
    }
}

impl Browser {
    /// Starts chromedriver on a port of its own.
    pub async fn start() -> Result<Self> {
        Self::drive(Kind::Chromium).await
    }

    /// Starts geckodriver on a port of its own.
    pub async fn firefox() -> Result<Self> {
        Self::drive(Kind::Firefox).await
    }

    async fn drive(kind: Kind) -> Result<Self> {
        let (driver, ready) = match kind {
            Kind::Chromium => ("CHROMEDRIVER", "started successfully on port"),
            Kind::Firefox => ("GECKODRIVER", "Listening on "),
        };
        let mut process = Command::new(variable(driver)?)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{driver} does not start"))?;
        let line = find_line(&mut process, ready).await?;
        // `… on port 41234.` and `… on 127.0.0.1:41234`
        let port = line.trim_end_matches('.').rsplit([' ', ':']).next().unwrap_or_default();
        let port: u16 = port.parse().with_context(|| format!("no port in {line:?}"))?;
        Ok(Self { kind, driver: format!("http://127.0.0.1:{port}"), _process: process })
    }

    /// Gives every thread of every browser a priority, now and for as long as the task that comes back is not aborted:
    /// Chromium sets its threads' priorities itself.
    pub fn prefer(&self, nice: i32) -> Result<tokio::task::JoinHandle<()>> {
        let driver = self._process.id().context("chromedriver has ended")?;
        Ok(tokio::spawn(async move {
            loop {
                let threads = threads_below(driver);
                let threads = threads.iter().map(u32::to_string);
                let quiet = Stdio::null;
                let renice = Command::new("renice")
                    .args(["-n", &nice.to_string(), "-p"])
                    .args(threads)
                    .stdout(quiet())
                    .stderr(quiet())
                    .status();
                // Threads come and go.
                let _ = renice.await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }))
    }

    /// Opens a page in a browser process of its own.
    pub async fn open(&self, url: &str, options: &TabOptions) -> Result<Tab> {
        let home = tempfile::tempdir()?;
        let capabilities = match self.kind {
            Kind::Chromium => chromium(home.path(), options)?,
            Kind::Firefox => firefox(home.path(), options)?,
        };
        let Value::Object(capabilities) = capabilities else { bail!("capabilities are an object") };
        let client =
            ClientBuilder::new(HttpConnector::new()).capabilities(capabilities).connect(&self.driver).await?;
        let tab = Tab { client, home };
        if let Some(script) = &options.script {
            tab.cdp("Page.addScriptToEvaluateOnNewDocument", json!({ "source": script })).await?;
        }
        tab.client.goto(url).await?;
        Ok(tab)
    }
}

/// A Chromium that keeps everything in this folder.
fn chromium(home: &Path, options: &TabOptions) -> Result<Value> {
    let mut flags: Vec<String> = CHROMIUM_FLAGS.map(String::from).to_vec();
    flags.push(format!("--user-data-dir={}", profile(home).display()));
    flags.push(format!("--window-size={}", if options.phone { "390,844" } else { "1280,900" }));
    if options.webgpu {
        flags.push("--enable-unsafe-webgpu".into());
    }
    let chrome = json!({
        "args": flags,
        "binary": options.binary(home)?,
        "prefs": { "download.default_directory": home, "download.prompt_for_download": false },
    });
    Ok(json!({
        "browserName": "chrome",
        "goog:chromeOptions": chrome,
        "goog:loggingPrefs": { "browser": "ALL" },
        "unhandledPromptBehavior": "accept",
    }))
}

/// A Firefox that keeps everything in this folder.
fn firefox(home: &Path, options: &TabOptions) -> Result<Value> {
    std::fs::create_dir(profile(home))?;
    let (width, height) = if options.phone { ("390", "844") } else { ("1280", "900") };
    let firefox = json!({
        "args": ["-headless", "-profile", profile(home), "-width", width, "-height", height],
        "binary": variable("FIREFOX")?,
        "prefs": {
            // Candidates as addresses: host names would be resolved by multicast on the network card.
            "media.peerconnection.ice.obfuscate_host_addresses": false,
            "browser.download.folderList": 2,
            "browser.download.dir": home,
        },
    });
    Ok(
        json!({ "browserName": "firefox", "moz:firefoxOptions": firefox, "unhandledPromptBehavior": "accept" }),
    )
}

/// Where a browser has its profile, which no other process names.
fn profile(home: &Path) -> PathBuf {
    home.join("profile")
}

/// A Chrome DevTools command, through chromedriver.
#[derive(Debug)]
struct Cdp(&'static str, Value);

impl WebDriverCompatibleCommand for Cdp {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({ "cmd": self.0, "params": self.1 }).to_string()))
    }
}

/// What the browser's console said.
#[derive(Debug)]
struct Log;

impl WebDriverCompatibleCommand for Log {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({ "type": "browser" }).to_string()))
    }
}

/// A page in a browser process of its own.
pub struct Tab {
    client: Client,
    home: tempfile::TempDir,
}

impl Drop for Tab {
    /// A test that failed leaves no browser behind that trains on and slows the others.
    fn drop(&mut self) {
        let profile = profile(self.home.path()).display().to_string();
        // Nothing to kill is the usual case.
        let _ = std::process::Command::new("pkill").args(["-9", "-f", "--", &profile]).status();
    }
}

impl Tab {
    async fn cdp(&self, command: &'static str, parameters: Value) -> Result<Value> {
        Ok(self.client.issue_cmd(Cdp(command, parameters)).await?)
    }

    /// Runs a script in the page; gives what it returns.
    pub async fn script(&self, script: &str, arguments: Vec<Value>) -> Result<Value> {
        Ok(self.client.execute(script, arguments).await?)
    }

    /// The value of an attribute, or `text` for what an element says; null if there is no such element.
    async fn look(&self, selector: &str, attribute: &str) -> Result<Value> {
        let script = "const e = document.querySelector(arguments[0]);
            return !e ? null : arguments[1] === 'text' ? (e.hidden ? null : e.textContent)
                : arguments[1] === 'value' ? e.value : e.getAttribute(arguments[1]);";
        self.script(script, vec![selector.into(), attribute.into()]).await
    }

    /// An attribute (or `text`, or `value`) of an element that must be there.
    pub async fn read(&self, selector: &str, attribute: &str) -> Result<String> {
        let found = self.look(selector, attribute).await?;
        found.as_str().map(str::to_owned).with_context(|| format!("{selector} has no {attribute}"))
    }

    /// Waits until an element's attribute (or `text`, or `value`) is as wanted.
    pub async fn wait(
        &self,
        selector: &str,
        attribute: &str,
        seconds: u64,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let until = Instant::now() + Duration::from_secs(seconds);
        loop {
            let found = self.look(selector, attribute).await?;
            if let Some(found) = found.as_str().filter(|found| wanted(found)) {
                return Ok(found.to_owned());
            }
            if Instant::now() > until {
                let errors = self.errors().await?;
                let log = self.client.issue_cmd(Log).await.unwrap_or_default();
                bail!(
                    "{selector} [{attribute}] is {found} after {seconds} s; errors on the page: {errors:?}; console: {log}"
                );
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    /// Everything that the page says went wrong.
    pub async fn errors(&self) -> Result<Vec<String>> {
        let script = "return [...document.querySelectorAll('[id^=error-], #join-error')]
            .filter(e => !e.hidden && e.textContent.trim()).map(e => e.id + ': ' + e.textContent.trim());";
        Ok(serde_json::from_value(self.script(script, vec![]).await?)?)
    }

    /// Clicks as a person does.
    pub async fn click(&self, selector: &str) -> Result<()> {
        // Away from the bar that sticks to the bottom.
        let script =
            "document.querySelector(arguments[0])?.scrollIntoView({block: 'center', behavior: 'instant'})";
        self.script(script, vec![selector.into()]).await?;
        self.client
            .find(Locator::Css(selector))
            .await?
            .click()
            .await
            .with_context(|| format!("click on {selector}"))
    }

    /// Types into a field after emptying it.
    pub async fn fill(&self, selector: &str, text: &str) -> Result<()> {
        let script = "const e = document.querySelector(arguments[0]); e.value = arguments[1];
            e.dispatchEvent(new Event('input', {bubbles: true})); e.dispatchEvent(new Event('change', {bubbles: true}));";
        self.script(script, vec![selector.into(), text.into()]).await?;
        Ok(())
    }

    /// Sets a checkbox.
    pub async fn check(&self, selector: &str, on: bool) -> Result<()> {
        let script =
            "const e = document.querySelector(arguments[0]); if (e.checked !== arguments[1]) e.click();";
        self.script(script, vec![selector.into(), on.into()]).await?;
        Ok(())
    }

    /// Chooses files in a file input.
    pub async fn choose(&self, selector: &str, files: &[PathBuf]) -> Result<()> {
        let paths: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
        let input = self.client.find(Locator::Css(selector)).await?;
        Ok(input.send_keys(&paths.join("\n")).await?)
    }

    /// Sets fields of the settings: `("steps", "20")`, flags and projections by `"true"` and `"false"`.
    pub async fn settings(&self, values: &[(&str, &str)]) -> Result<()> {
        self.script("document.querySelector('#settings').open = true", vec![]).await?;
        for (name, value) in values {
            let selector = format!("#set-{name}");
            match *value {
                "true" => self.check(&selector, true).await?,
                "false" => self.check(&selector, false).await?,
                value => self.fill(&selector, value).await?,
            }
        }
        Ok(())
    }

    /// Waits until a device list has so many other devices that are ready for work.
    pub async fn wait_for_devices(&self, count: usize, seconds: u64) -> Result<()> {
        let script = "return [...document.querySelectorAll('#devices [data-peer]')]
            .filter(e => e.dataset.peer !== 'host' && e.dataset.state === 'waiting').length;";
        let until = Instant::now() + Duration::from_secs(seconds);
        loop {
            let found = self.script(script, vec![]).await?;
            if found.as_u64() == Some(count as u64) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{found} devices wait after {seconds} s, and not {count}");
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    /// The most bytes that the engine's WebAssembly had so far, by what the page said that it was doing.
    pub async fn wasm_memory(&self) -> Result<BTreeMap<String, u64>> {
        Ok(serde_json::from_value(self.script("return window.batonMemory", vec![]).await?)?)
    }

    /// The most memory that a renderer of this Chromium ever had, in bytes; none where there is no /proc.
    pub fn peak_memory(&self) -> Option<u64> {
        let profile = self.home.path().display().to_string();
        processes()
            .into_iter()
            .filter(|process| process.is_renderer_of(&profile))
            .map(|found| found.peak)
            .max()
    }

    /// Every loss of the run, with all digits.
    pub async fn losses(&self) -> Result<Vec<f64>> {
        let script = "return [...document.querySelectorAll('#loss-table tr[data-loss]')]
            .sort((a, b) => a.dataset.step - b.dataset.step).map(e => e.dataset.loss);";
        let losses: Vec<String> = serde_json::from_value(self.script(script, vec![]).await?)?;
        losses.iter().map(|loss| Ok(loss.parse()?)).collect()
    }

    /// Clicks the download and waits for the archive; gives its files.
    pub async fn download(&self) -> Result<Vec<(String, Vec<u8>)>> {
        self.click("#download").await?;
        let until = Instant::now() + Duration::from_secs(30);
        let path = loop {
            let entries = std::fs::read_dir(self.home.path())?.filter_map(|entry| Some(entry.ok()?.path()));
            if let Some(path) = entries.into_iter().find(|path| path.extension().is_some_and(|e| e == "zip"))
            {
                break path;
            }
            ensure!(Instant::now() < until, "no archive was downloaded; errors: {:?}", self.errors().await?);
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        unzip(&std::fs::read(path)?)
    }

    /// Saves a picture of the page, if the environment names a folder for it (BATON_SCREENSHOTS).
    pub async fn screenshot(&self, name: &str) -> Result<()> {
        if let Some(folder) = std::env::var_os("BATON_SCREENSHOTS") {
            std::fs::create_dir_all(&folder)?;
            std::fs::write(Path::new(&folder).join(format!("{name}.png")), self.client.screenshot().await?)?;
        }
        Ok(())
    }

    /// Kills every process of this browser, as a phone that runs out of memory does with a tab.
    pub fn kill(self) {}

    /// Has the page take itself for hidden, and freezes it, as a phone does when its screen is locked.
    pub async fn hide(&self) -> Result<()> {
        let script = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => true});
            document.dispatchEvent(new Event('visibilitychange'));";
        self.script(script, vec![]).await?;
        self.cdp("Page.setWebLifecycleState", json!({ "state": "frozen" })).await?;
        Ok(())
    }

    /// Thaws it again.
    pub async fn show(&self) -> Result<()> {
        self.cdp("Page.setWebLifecycleState", json!({ "state": "active" })).await?;
        let script = "delete document.hidden; document.dispatchEvent(new Event('visibilitychange'));";
        self.script(script, vec![]).await?;
        Ok(())
    }

    /// Loads the page again, as a person does who presses the button for it.
    pub async fn reload(&self) -> Result<()> {
        Ok(self.client.refresh().await?)
    }

    /// Opens a page in a new tab of the same browser and closes the one before.
    pub async fn reopen(&self, url: &str) -> Result<()> {
        let new = self.client.new_window(true).await?;
        self.client.close_window().await?;
        self.client.switch_to_window(new.handle).await?;
        Ok(self.client.goto(url).await?)
    }

    /// Closes the tab and its browser.
    pub async fn close(self) -> Result<()> {
        Ok(self.client.clone().close().await?)
    }
}

/// A process of this machine.
struct Process {
    arguments: String,
    /// The most bytes that it had in memory.
    peak: u64,
}

impl Process {
    /// Chromium gives its profile to every renderer, to write down how it crashed.
    fn is_renderer_of(&self, profile: &str) -> bool {
        self.arguments.contains("--type=renderer") && self.arguments.contains(profile)
    }
}

/// The processes that /proc knows; one that ends meanwhile is left out.
fn processes() -> Vec<Process> {
    let read = |folder: &Path| {
        let arguments = std::fs::read(folder.join("cmdline")).ok()?;
        let status = std::fs::read_to_string(folder.join("status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = peak.split_whitespace().next()?.parse().ok()?;
        Some(Process { arguments: String::from_utf8_lossy(&arguments).into_owned(), peak: kibibytes * 1024 })
    };
    let folders = std::fs::read_dir("/proc").into_iter().flatten();
    folders.filter_map(|folder| read(&folder.ok()?.path())).collect()
}

/// Every thread of every process that descends from `ancestor`.
fn threads_below(ancestor: u32) -> Vec<u32> {
    let number = |path: PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let children = |folder: &str| {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.filter_map(|entry| number(entry.ok()?.path())).collect::<Vec<_>>()
    };
    let parent = |id: u32| -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    let parents: BTreeMap<u32, u32> =
        children("/proc").into_iter().filter_map(|id| Some((id, parent(id)?))).collect();
    let descends = |id: &u32| {
        let mut at = *id;
        while let Some(parent) = parents.get(&at) {
            if *parent == ancestor {
                return true;
            }
            at = *parent;
        }
        false
    };
    parents.keys().copied().filter(descends).flat_map(|id| children(&format!("/proc/{id}/task"))).collect()
}

/// The files of an archive.
pub fn unzip(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes))?;
    (0..archive.len())
        .map(|index| {
            let mut entry = archive.by_index(index)?;
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes)?;
            Ok((entry.name()?.into_owned(), bytes))
        })
        .collect()
}

/// Opens `count` tabs on the host's join link.
pub async fn join(browser: &Browser, host: &Tab, count: usize, options: &TabOptions) -> Result<Vec<Tab>> {
    let link = host.wait("#join-link", "value", 30, |link| link.contains("#/join/")).await?;
    let (link, fragment) = link.split_once('#').context("a join link has a fragment")?;
    let backend = if options.webgpu { "webgpu" } else { "cpu" };
    let url = format!("{}?backend={backend}#{fragment}", link.split('?').next().unwrap_or_default());
    let mut tabs = Vec::new();
    for _ in 0..count {
        tabs.push(browser.open(&url, options).await?);
    }
    Ok(tabs)
}

/// A `baton join` process.
pub struct NativePeer {
    process: Child,
    /// What it keeps, so that a test does not use the cache of this machine.
    _cache: tempfile::TempDir,
}

impl NativePeer {
    /// Joins the host's room with so many stages.
    pub async fn join(host: &Tab, stages: usize) -> Result<Self> {
        let link = host.wait("#join-link", "value", 30, |link| link.contains("#/join/")).await?;
        let cache = tempfile::tempdir()?;
        let process = Command::new(variable("BATON_CLI")?)
            .args(["join", &link, "--name", "native", "--stages", &stages.to_string(), "--cache"])
            .arg(cache.path())
            .kill_on_drop(true)
            .spawn()
            .context("baton join does not start")?;
        Ok(Self { process, _cache: cache })
    }

    /// Ctrl-C; gives whether it then ended well.
    pub async fn interrupt(mut self) -> Result<bool> {
        let id = self.process.id().context("it has ended before")?.to_string();
        ensure!(Command::new("kill").args(["-INT", &id]).status().await?.success(), "no signal was sent");
        let ended = tokio::time::timeout(Duration::from_secs(30), self.process.wait()).await;
        Ok(ended.context("it went on for 30 s")??.success())
    }
}

/// An adapter's numbers by tensor name.
pub fn adapter_tensors(weights: &[u8]) -> Result<BTreeMap<String, Vec<f32>>> {
    futures_lite(async {
        let mut files = baton_formats::MemoryFiles::new();
        files.insert("adapter_model.safetensors", weights.to_vec());
        let index = baton_formats::TensorIndex::open(&files, "adapter_model.safetensors").await?;
        let mut tensors = BTreeMap::new();
        for name in index.names() {
            let shape = index.get(name).map(|entry| entry.shape.clone()).unwrap_or_default();
            tensors.insert(name.to_owned(), index.read_f32(&files, name, &shape).await?);
        }
        Ok(tensors)
    })
}

/// What reads from memory is ready at once.
fn futures_lite<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => bail!("memory kept us waiting"),
    }
}
