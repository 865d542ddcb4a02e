//! `cargo xtask test`: every layer of tests, in order, and one line that sums them up.

use crate::browser::{self, Browser};
use crate::cargo::{self, WASM};
use crate::page;
use crate::process::{self, spell};
use crate::tools::{self, Install};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The packages with tests that run in a browser, and their folders. Each has to run at least one there.
const WASM_PACKAGES: [(&str, &str); 6] = [
    ("baton-formats", "crates/formats"),
    ("baton-kernels", "crates/kernels"),
    ("baton-model", "crates/model"),
    ("baton-engine", "crates/engine"),
    ("baton-transport", "crates/transport"),
    ("baton-worker", "web/engine"),
];

/// Seconds for one wasm test program. The software WebGPU adapter needs minutes for what a phone does in seconds.
const WASM_TIMEOUT: &str = "300";

/// What `test` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only these layers (comma-separated, or given again).
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LAYER")]
    only: Vec<Layer>,
    /// Fail where something is missing, instead of installing it.
    #[arg(long)]
    no_install: bool,
}

/// The layers, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Layer {
    /// Formatting.
    Fmt,
    /// Lints.
    Clippy,
    /// Tests on this machine.
    Native,
    /// Tests of the same crates in headless Chromium, on the CPU backend.
    Wasm,
    /// The page builds.
    Page,
    /// Real tabs against the real server.
    E2e,
}

const LAYERS: [Layer; 6] = [Layer::Fmt, Layer::Clippy, Layer::Native, Layer::Wasm, Layer::Page, Layer::E2e];

impl Layer {
    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Native => "native",
            Self::Wasm => "wasm",
            Self::Page => "page",
            Self::E2e => "e2e",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Fmt => "formatting",
            Self::Clippy => "lints",
            Self::Native => "tests on this machine",
            Self::Wasm => "tests in headless Chromium",
            Self::Page => "the page builds",
            Self::E2e => "real tabs against the real server",
        }
    }
}

/// Tests counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
}

impl Counts {
    /// Adds what a line of a test program's output says.
    fn read(&mut self, line: &str) {
        if let Some(counts) = test_result(line) {
            self.add(counts);
        }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// How a layer ended.
enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
}

struct Report {
    layer: Layer,
    verdict: Verdict,
    counts: Counts,
    time: Duration,
}

/// Runs the layers and says how they went; true if nothing failed.
pub(crate) fn test(workspace: &Workspace, options: &Options) -> Result<bool> {
    let install = if options.no_install { Install::Forbidden } else { Install::Allowed };
    let started = Instant::now();
    let mut reports: Vec<Report> = Vec::new();
    let chosen = |layer: &&Layer| options.only.is_empty() || options.only.contains(layer);
    for layer in LAYERS.iter().filter(chosen) {
        let report = run_layer(workspace, install, *layer, &reports);
        reports.push(report);
    }
    println!("\n{}", table(&reports, started.elapsed()));
    let total = total(&reports);
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(total.failed == 0)
}

fn run_layer(workspace: &Workspace, install: Install, layer: Layer, before: &[Report]) -> Report {
    println!("\n== {}: {}", layer.name(), layer.title());
    let started = Instant::now();
    let mut counts = Counts::default();
    let page_failed = before.iter().any(|r| r.layer == Layer::Page && !matches!(r.verdict, Verdict::Passed));
    let verdict = if layer == Layer::E2e && page_failed {
        Verdict::Skipped("the page did not build".into())
    } else {
        let outcome = match layer {
            Layer::Fmt => fmt(workspace, install),
            Layer::Clippy => clippy(workspace, install),
            Layer::Native => native(workspace, &mut counts),
            Layer::Wasm => wasm(workspace, install, &mut counts),
            Layer::Page => build_page(workspace, install),
            Layer::E2e => end_to_end(workspace, install, &mut counts),
        };
        match outcome {
            Ok(()) => Verdict::Passed,
            Err(error) => Verdict::Failed(format!("{error:#}")),
        }
    };
    let time = started.elapsed();
    match &verdict {
        Verdict::Passed => println!("   {}: passed in {}", layer.name(), spell(time)),
        Verdict::Failed(why) => println!("   {}: FAILED after {}: {why}", layer.name(), spell(time)),
        Verdict::Skipped(why) => println!("   {}: skipped, for {why}", layer.name()),
    }
    Report { layer, verdict, counts, time }
}

fn fmt(workspace: &Workspace, install: Install) -> Result<()> {
    tools::rustfmt(install)?;
    process::run(cargo::cargo(workspace).args(["fmt", "--all", "--check"]))
}

fn clippy(workspace: &Workspace, install: Install) -> Result<()> {
    tools::clippy(install)?;
    let arguments = ["clippy", "--release", "--all-targets"];
    process::run(cargo::cargo(workspace).args(arguments).args(["--", "-D", "warnings"]))
}

fn native(workspace: &Workspace, counts: &mut Counts) -> Result<()> {
    let arguments = ["test", "--release", "--no-fail-fast"];
    cargo_test(cargo::cargo(workspace).args(arguments), counts)
}

fn build_page(workspace: &Workspace, install: Install) -> Result<()> {
    tools::wasm_target(install)?;
    tools::wasm_bindgen(workspace, install)?;
    tools::trunk(workspace, install)?;
    page::build(workspace)
}

fn wasm(workspace: &Workspace, install: Install, counts: &mut Counts) -> Result<()> {
    tools::wasm_target(install)?;
    tools::wasm_bindgen(workspace, install)?;
    let browser = browser::browser(install)?;

    // All packages at once: one set of features, so that burn is compiled once.
    let mut build = cargo::cargo(workspace);
    build.args(["test", "--release", "--no-run", "--target", WASM, "--lib", "--tests"]);
    build.args(WASM_PACKAGES.iter().flat_map(|(package, _)| ["--package", package]));
    build.arg("--message-format=json-render-diagnostics");
    let modules = build_modules(&mut build)?;

    let mut failures = Vec::new();
    for (package, folder) in WASM_PACKAGES {
        let Some((_, modules)) = modules.iter().find(|(manifest, _)| is_in(manifest, folder)) else {
            failures.push(format!("{package} has no test program"));
            continue;
        };
        let mut package_counts = Counts::default();
        for module in modules {
            if let Err(error) = run_module(workspace, &browser, module, &mut package_counts) {
                failures.push(format!("{package}: {error:#}"));
            }
        }
        if package_counts == Counts::default() {
            failures.push(format!("{package} ran no test in the browser"));
        }
        counts.add(package_counts);
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("; ")) }
}

/// Builds test programs; gives them by their package's manifest.
fn build_modules(build: &mut Command) -> Result<BTreeMap<String, Vec<cargo::TestModule>>> {
    process::announce(build);
    let mut child = build.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let messages = child.stdout.take().context("cargo has no output")?;
    let mut modules: BTreeMap<String, Vec<cargo::TestModule>> = BTreeMap::new();
    for message in BufReader::new(messages).lines() {
        if let Some(module) = cargo::test_module(&message.context("cannot read what cargo says")?) {
            modules.entry(module.manifest.clone()).or_default().push(module);
        }
    }
    let status = child.wait().context("lost cargo")?;
    if !status.success() {
        bail!("the tests do not compile for {WASM} ({status})");
    }
    Ok(modules)
}

/// Whether a manifest is of the package in that folder.
fn is_in(manifest: &str, folder: &str) -> bool {
    Path::new(manifest).parent().is_some_and(|own| own.ends_with(folder))
}

fn run_module(
    workspace: &Workspace,
    browser: &Browser,
    module: &cargo::TestModule,
    counts: &mut Counts,
) -> Result<()> {
    let mut runner = cargo::child(workspace, workspace.tool("wasm-bindgen-test-runner"));
    let package = Path::new(&module.manifest).parent().context("a manifest without a directory")?;
    runner.arg(&module.file).current_dir(package);
    runner.env("CHROMEDRIVER", &browser.driver).env("CHROME", &browser.chrome);
    // Tests that do not say where they run would run in Node.
    runner.env("WASM_BINDGEN_USE_BROWSER", "1").env("WASM_BINDGEN_TEST_TIMEOUT", WASM_TIMEOUT);
    // Other drivers that the machine may name in its environment go before ours.
    for other in ["GECKODRIVER", "SAFARIDRIVER", "MSEDGEDRIVER"] {
        runner.env_remove(other).env_remove(format!("{other}_REMOTE"));
    }
    if !package.join("webdriver.json").is_file() {
        let file = workspace.cache("browser")?.join("webdriver.json");
        browser::write_capabilities(browser, &file)?;
        runner.env("WASM_BINDGEN_TEST_WEBDRIVER_JSON", &file);
    }
    let before = counts.failed;
    let status = process::run_reading(&mut runner, |line| counts.read(line))?;
    ended_well(status.success(), counts.failed - before)
}

fn end_to_end(workspace: &Workspace, install: Install, counts: &mut Counts) -> Result<()> {
    let mut tests = cargo::cargo(workspace);
    tests.args(["test", "--release", "--no-fail-fast", "--package", "baton-e2e", "--", "--test-threads=1"]);
    let firefox = browser::firefox(workspace, install)?;
    tests.env("FIREFOX", &firefox.firefox).env("GECKODRIVER", &firefox.driver);
    prepare_tabs(workspace, install, &mut tests)?;
    cargo_test(&mut tests, counts)
}

/// Builds what stands around the page, and tells a program of tests/ where everything is.
pub(crate) fn prepare_tabs(workspace: &Workspace, install: Install, program: &mut Command) -> Result<()> {
    let dist = workspace.dist();
    if !dist.join("index.html").is_file() {
        bail!("{} holds no page: run `cargo xtask build` first", dist.display());
    }
    let browser = browser::browser(install)?;
    // The default members, as the layer `native` builds them: a package alone has other features, and burn is built anew.
    process::run(cargo::cargo(workspace).args(["build", "--release", "--bins"]))?;
    program.env("BATON_DIST", dist);
    program
        .env("BATON_SERVER", workspace.binary("baton-signaling"))
        .env("BATON_CLI", workspace.binary("baton"))
        .env("CHROMEDRIVER", &browser.driver)
        .env("CHROME", &browser.chrome);
    Ok(())
}

fn cargo_test(command: &mut Command, counts: &mut Counts) -> Result<()> {
    let status = process::run_reading(command, |line| counts.read(line))?;
    ended_well(status.success(), counts.failed)?;
    if *counts == Counts::default() {
        bail!("no test ran");
    }
    Ok(())
}

fn ended_well(success: bool, failed: usize) -> Result<()> {
    match (success, failed) {
        (true, 0) => Ok(()),
        (_, 0) => bail!("it did not run to its end"),
        (_, 1) => bail!("1 test failed"),
        (_, failed) => bail!("{failed} tests failed"),
    }
}

/// The tests of all layers. A layer that failed before or without a failing test counts as one failure, so that nothing
/// failed exactly if the sum says so.
fn total(reports: &[Report]) -> Counts {
    let mut total = Counts::default();
    for report in reports {
        total.add(report.counts);
        if matches!(report.verdict, Verdict::Failed(_)) && report.counts.failed == 0 {
            total.failed += 1;
        }
    }
    total
}

fn table(reports: &[Report], time: Duration) -> String {
    let mut table = format!("{:<8} {:<8} {:>6} {:>6}  {:>12}\n", "layer", "", "passed", "failed", "time");
    for report in reports {
        let (word, why) = match &report.verdict {
            Verdict::Passed => ("ok", ""),
            Verdict::Failed(why) => ("FAILED", why.as_str()),
            Verdict::Skipped(why) => ("skipped", why.as_str()),
        };
        let number =
            |count: usize| if report.counts == Counts::default() { "-".into() } else { count.to_string() };
        let line = format!(
            "{:<8} {word:<8} {:>6} {:>6}  {:>12}  {why}",
            report.layer.name(),
            number(report.counts.passed),
            number(report.counts.failed),
            spell(report.time)
        );
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table.push_str(&format!("{:<31}  {:>12}\n", "all", spell(time)));
    table
}

/// The counts of `test result: ok. 3 passed; 0 failed; 0 ignored; …`, coloured or not.
fn test_result(line: &str) -> Option<Counts> {
    let plain = without_colours(line);
    let (_, result) = plain.split_once("test result: ")?;
    let number = |label: &str| {
        let words: Vec<&str> = result.split([' ', ';']).collect();
        words.windows(2).find(|pair| pair[1] == label)?[0].parse().ok()
    };
    Some(Counts { passed: number("passed")?, failed: number("failed")? })
}

/// A line without terminal escapes (`ESC [ … letter`, `ESC ( letter`).
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character != '\u{1b}' {
            plain.push(character);
        } else if characters.next() == Some('[') {
            characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            characters.next();
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(layer: Layer, verdict: Verdict, passed: usize, failed: usize) -> Report {
        Report { layer, verdict, counts: Counts { passed, failed }, time: Duration::ZERO }
    }

    #[test]
    fn results_are_read_from_cargo_and_from_wasm_bindgen() {
        let cargo =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s";
        assert_eq!(test_result(cargo), Some(Counts { passed: 12, failed: 0 }));
        let failed = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(test_result(failed), Some(Counts { passed: 3, failed: 2 }));
        let coloured = "test result: \u{1b}[32mok\u{1b}(B\u{1b}[m. 7 passed; 0 failed; 0 ignored";
        assert_eq!(test_result(coloured), Some(Counts { passed: 7, failed: 0 }));
        assert_eq!(test_result("test adapters::load ... ok"), None);
        assert_eq!(test_result("test result: ok."), None);
    }

    #[test]
    fn the_results_of_several_programs_add_up() {
        let mut counts = Counts::default();
        for line in [
            "running 2 tests",
            "test result: ok. 2 passed; 0 failed;",
            "test result: FAILED. 1 passed; 1 failed;",
        ] {
            counts.read(line);
        }
        assert_eq!(counts, Counts { passed: 3, failed: 1 });
    }

    #[test]
    fn a_layer_that_fails_without_a_failing_test_is_counted() {
        let failed = || Verdict::Failed("it does not compile".into());
        let reports = [
            report(Layer::Fmt, Verdict::Passed, 0, 0),
            report(Layer::Clippy, failed(), 0, 0),
            report(Layer::Native, failed(), 10, 2),
            report(Layer::Wasm, failed(), 5, 0),
            report(Layer::E2e, Verdict::Skipped("the page did not build".into()), 0, 0),
        ];
        assert_eq!(total(&reports), Counts { passed: 15, failed: 4 });
    }

    #[test]
    fn a_run_without_an_end_is_no_success() {
        assert!(ended_well(true, 0).is_ok());
        assert!(ended_well(false, 0).is_err());
        assert!(ended_well(true, 1).is_err());
    }

    #[test]
    fn a_package_is_known_by_its_directory() {
        assert!(is_in("/w/crates/formats/Cargo.toml", "crates/formats"));
        assert!(!is_in("/w/crates/formats-extra/Cargo.toml", "crates/formats"));
        assert!(!is_in("/w/web/engine/Cargo.toml", "crates/engine"));
        assert!(!is_in("Cargo.toml", "crates/formats"));
    }
}
