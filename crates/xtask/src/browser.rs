//! The browsers that the tests drive: found where they are, installed where that is simple, asked for elsewhere.

use crate::process;
use crate::tools::{self, Install};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const NAMES: [&str; 5] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
const APPS: [&str; 2] = [
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
];
/// Where distributions put chromedriver when not on PATH.
const DRIVER_DIRS: [&str; 3] =
    ["/usr/lib/chromium", "/usr/lib/chromium-browser", "/usr/lib64/chromium-browser"];

const FIREFOX_NAMES: [&str; 2] = ["firefox-esr", "firefox"];
const FIREFOX_APPS: [&str; 1] = ["/Applications/Firefox.app/Contents/MacOS/firefox"];

/// What every test browser is started with. Without the last, WebRTC's candidates are host names that only multicast on
/// a real network resolves.
const FLAGS: [&str; 8] = [
    "--headless=new",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-webgpu",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
];

/// Chromium or Chrome and the driver that speaks WebDriver for it.
#[derive(Debug)]
pub(crate) struct Browser {
    /// Chromium or Chrome.
    pub(crate) chrome: PathBuf,
    /// Its chromedriver.
    pub(crate) driver: PathBuf,
}

/// Finds Chromium and chromedriver, or installs Debian's where we are root.
pub(crate) fn browser(install: Install) -> Result<Browser> {
    if let Some(browser) = find()? {
        return check(browser);
    }
    install_debians(install, "Chromium or its chromedriver", &["chromium", "chromium-driver"], advice)?;
    match find()? {
        Some(browser) => check(browser),
        None => bail!("apt-get installed no Chromium that runs: {}", advice(true)),
    }
}

/// Firefox and the driver that speaks WebDriver for it.
pub(crate) struct Firefox {
    /// Firefox itself.
    pub(crate) firefox: PathBuf,
    /// geckodriver.
    pub(crate) driver: PathBuf,
}

/// Finds Firefox, or installs Debian's where we are root; geckodriver, which Debian does not have, comes from crates.io.
pub(crate) fn firefox(workspace: &Workspace, install: Install) -> Result<Firefox> {
    let find = || program("FIREFOX", &FIREFOX_NAMES, &FIREFOX_APPS);
    let firefox = match find()? {
        Some(firefox) => firefox,
        None => {
            install_debians(install, "Firefox", &["firefox-esr"], firefox_advice)?;
            find()?.with_context(|| {
                format!("apt-get installed no Firefox that runs: {}", firefox_advice(true))
            })?
        }
    };
    let driver = match from_environment("GECKODRIVER")? {
        Some(driver) => driver,
        None => tools::geckodriver(workspace, install)?,
    };
    Ok(Firefox { firefox, driver })
}

/// Installs packages of Debian where that is possible, and otherwise fails with what to type.
fn install_debians(
    install: Install,
    what: &str,
    packages: &[&str],
    advice: fn(bool) -> &'static str,
) -> Result<()> {
    let debian = on_path("apt-get").is_some() && Path::new("/etc/debian_version").exists();
    let root = process::output(Command::new("id").arg("-u")).as_deref() == Some("0");
    if install == Install::Forbidden || !debian || !root {
        bail!("{what} is missing: {}", advice(debian));
    }
    println!("   {what} is missing: installing Debian's");
    process::run(Command::new("apt-get").arg("update"))?;
    let mut apt = Command::new("apt-get");
    apt.args(["install", "-y", "--no-install-recommends"]).args(packages);
    process::run(apt.env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Writes the capabilities that wasm-bindgen's test runner asks its browser for.
pub(crate) fn write_capabilities(browser: &Browser, file: &Path) -> Result<()> {
    let flags = FLAGS.map(|flag| format!("\"{flag}\"")).join(", ");
    let chrome = browser.chrome.display().to_string().replace('\\', "\\\\");
    let json = format!("{{\"goog:chromeOptions\": {{\"binary\": \"{chrome}\", \"args\": [{flags}]}}}}\n");
    fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))
}

fn find() -> Result<Option<Browser>> {
    let Some(chrome) = program("CHROME", &NAMES, &APPS)? else { return Ok(None) };
    let driver = match from_environment("CHROMEDRIVER")? {
        Some(driver) => Some(driver),
        None => {
            let beside = chrome.parent().map(Path::to_owned);
            let dirs = beside.into_iter().chain(DRIVER_DIRS.iter().map(PathBuf::from));
            let name = format!("chromedriver{}", env::consts::EXE_SUFFIX);
            on_path("chromedriver").or_else(|| dirs.map(|dir| dir.join(&name)).find(|file| file.is_file()))
        }
    };
    Ok(driver.map(|driver| Browser { chrome, driver }))
}

/// A program named by a variable, or one of these names, or one of these files.
fn program(variable: &str, names: &[&str], files: &[&str]) -> Result<Option<PathBuf>> {
    let named = from_environment(variable)?;
    let file = || files.iter().map(PathBuf::from).find(|file| file.is_file());
    Ok(named.or_else(|| names.iter().find_map(|name| on_path(name))).or_else(file))
}

/// A program named by a variable. That it was named and is not there is an error, not a reason to take another.
fn from_environment(variable: &str) -> Result<Option<PathBuf>> {
    match env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from) {
        Some(file) if !file.is_file() => bail!("{variable} is {}, where no file is", file.display()),
        file => Ok(file),
    }
}

/// chromedriver speaks to the browser of its own major version alone; what it says otherwise is hard to read.
fn check(browser: Browser) -> Result<Browser> {
    let version = |program: &Path| process::output(Command::new(program).arg("--version"));
    let chrome = version(&browser.chrome).unwrap_or_default();
    let driver = version(&browser.driver).unwrap_or_default();
    match (major(&chrome), major(&driver)) {
        (Some(ours), Some(theirs)) if ours != theirs => bail!(
            "{} is version {ours} and {} is {theirs}: install the chromedriver of the same version, \
             or name both with CHROME and CHROMEDRIVER",
            browser.chrome.display(),
            browser.driver.display()
        ),
        _ => Ok(browser),
    }
}

/// The first number of `Chromium 156.0.8078.79 built on Debian`.
fn major(said: &str) -> Option<u32> {
    said.split_whitespace().find_map(|word| word.split_once('.')?.0.parse().ok())
}

fn on_path(program: &str) -> Option<PathBuf> {
    let file = format!("{program}{}", env::consts::EXE_SUFFIX);
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(&file)).find(|file| file.is_file())
}

fn advice(debian: bool) -> &'static str {
    if debian {
        "`sudo apt-get install chromium chromium-driver`"
    } else if cfg!(target_os = "macos") {
        "`brew install --cask google-chrome chromedriver`"
    } else if cfg!(target_os = "windows") {
        "install Chrome and its chromedriver, and name them with CHROME and CHROMEDRIVER"
    } else {
        "install both (Fedora: `dnf install chromium chromedriver`, Arch: `pacman -S chromium`), \
         or name them with CHROME and CHROMEDRIVER"
    }
}

fn firefox_advice(debian: bool) -> &'static str {
    if debian {
        "`sudo apt-get install firefox-esr`"
    } else if cfg!(target_os = "macos") {
        "`brew install --cask firefox`"
    } else {
        "install it (Fedora: `dnf install firefox`, Arch: `pacman -S firefox`), or name it with FIREFOX"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_browsers_and_drivers_say() {
        assert_eq!(major("Chromium 156.0.8078.79 built on Debian GNU/Linux 12 (bookworm)"), Some(156));
        assert_eq!(major("ChromeDriver 156.0.8078.79 (a21ce95c-refs/branch-heads/8078@{#1704})"), Some(156));
        assert_eq!(major("Google Chrome for Testing 9.1"), Some(9));
        assert_eq!(major(""), None);
    }
}
