//! What a build needs beyond cargo, installed where it is missing, at pinned versions.

use crate::cargo::{self, WASM};
use crate::process;
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The last trunk that our toolchain builds: 0.22 wants rustc 1.96.
const TRUNK_VERSION: &str = "0.21.14";
const GECKODRIVER_VERSION: &str = "0.37.1";
const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// Whether what is missing may be installed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Install {
    /// Install it.
    Allowed,
    /// Say what is missing, and fail.
    Forbidden,
}

/// The standard library for wasm, and the compiler flags that it is used with.
pub(crate) fn wasm_target(install: Install) -> Result<()> {
    for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        if env::var_os(variable).is_some_and(|flags| !flags.is_empty()) {
            bail!(
                "{variable} is set and would replace what .cargo/config.toml gives {WASM} (SIMD): unset it"
            );
        }
    }
    let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]));
    if sysroot.is_some_and(|dir| Path::new(&dir).join("lib/rustlib").join(WASM).join("lib").is_dir()) {
        return Ok(());
    }
    rustup(install, &format!("Rust's target {WASM}"), &["target", "add", WASM])
}

/// `cargo fmt`.
pub(crate) fn rustfmt(install: Install) -> Result<()> {
    component(install, "rustfmt", "fmt")
}

/// `cargo clippy`.
pub(crate) fn clippy(install: Install) -> Result<()> {
    component(install, "clippy", "clippy")
}

/// wasm-bindgen and its test runner, at the version in Cargo.lock.
pub(crate) fn wasm_bindgen(workspace: &Workspace, install: Install) -> Result<()> {
    let version = workspace.wasm_bindgen_version()?;
    cargo_tool(
        workspace,
        install,
        "wasm-bindgen-cli",
        &["wasm-bindgen", "wasm-bindgen-test-runner"],
        &version,
        3,
    )
}

/// trunk.
pub(crate) fn trunk(workspace: &Workspace, install: Install) -> Result<()> {
    cargo_tool(workspace, install, "trunk", &["trunk"], TRUNK_VERSION, 4)
}

/// The driver of Firefox.
pub(crate) fn geckodriver(workspace: &Workspace, install: Install) -> Result<PathBuf> {
    cargo_tool(workspace, install, "geckodriver", &["geckodriver"], GECKODRIVER_VERSION, 2)?;
    Ok(workspace.tool("geckodriver"))
}

/// cargo-fuzz, and the nightly toolchain that it needs.
pub(crate) fn cargo_fuzz(workspace: &Workspace, install: Install) -> Result<()> {
    let mut nightly = Command::new("rustc");
    if process::output(nightly.env("RUSTUP_TOOLCHAIN", "nightly").arg("--version")).is_none() {
        rustup(
            install,
            "Rust's nightly toolchain",
            &["toolchain", "install", "nightly", "--profile", "minimal"],
        )?;
    }
    cargo_tool(workspace, install, "cargo-fuzz", &["cargo-fuzz"], CARGO_FUZZ_VERSION, 2)
}

fn component(install: Install, component: &str, subcommand: &str) -> Result<()> {
    if process::output(Command::new("cargo").args([subcommand, "--version"])).is_some() {
        return Ok(());
    }
    rustup(install, component, &["component", "add", component])
}

fn rustup(install: Install, what: &str, arguments: &[&str]) -> Result<()> {
    let by_hand = format!("rustup {}", arguments.join(" "));
    if install == Install::Forbidden {
        bail!("{what} is missing: `{by_hand}`");
    }
    if process::output(Command::new("rustup").arg("--version")).is_none() {
        bail!("{what} is missing, and so is rustup, which installs it: https://rustup.rs, then `{by_hand}`");
    }
    println!("   {what} is missing: installing it");
    process::run(Command::new("rustup").args(arguments))
}

/// Makes sure of `programs`, which all come from one package of crates.io; `minutes` is what two cores take to build it.
fn cargo_tool(
    workspace: &Workspace,
    install: Install,
    package: &str,
    programs: &[&str],
    version: &str,
    minutes: u32,
) -> Result<()> {
    let found = |program: &&str| process::output(Command::new(workspace.tool(program)).arg("--version"));
    let found: Vec<_> = programs.iter().map(found).collect();
    let has_version = |said: &Option<String>| said.as_deref().is_some_and(|said| says_version(said, version));
    if found.iter().all(has_version) {
        return Ok(());
    }
    if install == Install::Forbidden {
        bail!(
            "{package} {version} is missing in {}: `cargo install {package} --version {version} --root {}`",
            workspace.tools.display(),
            workspace.tools.display()
        );
    }
    match found.into_iter().flatten().next() {
        Some(other) => println!("   {package} {version} is wanted, there is \"{other}\": installing it"),
        None => println!("   {package} {version} is missing: installing it"),
    }
    println!("   (about {minutes} minutes on 2 cores, once; into {})", workspace.tools.display());

    let started = Instant::now();
    let build = workspace.tools.join("build");
    let cargo_install = |locked: bool| {
        let mut command = cargo::cargo(workspace);
        command.args(["install", package, "--version", version, "--force", "--root"]).arg(&workspace.tools);
        if locked {
            command.arg("--locked");
        }
        process::run(command.env("CARGO_TARGET_DIR", &build))
    };
    // A lock file can name a version that a registry mirror does not have (seen: webpki-roots in wasm-bindgen-cli's).
    if cargo_install(true).is_err() {
        println!("   {package} cannot be installed as it was locked: trying without its lock file");
        cargo_install(false)?;
    }
    // Half a gigabyte, never needed again; if it stays, no harm is done.
    let _ = fs::remove_dir_all(&build);
    println!("   {package} {version} installed in {}", process::spell(started.elapsed()));
    Ok(())
}

/// Whether what a program says of itself (`trunk 0.21.14`) names exactly this version.
fn says_version(said: &str, version: &str) -> bool {
    said.split_whitespace().nth(1) == Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_of_a_tool_is_not_taken_for_ours() {
        assert!(says_version("trunk 0.21.14", "0.21.14"));
        assert!(says_version("wasm-bindgen 0.2.130 (abc)", "0.2.130"));
        assert!(!says_version("trunk 0.21.14-beta.1", "0.21.14"));
        assert!(!says_version("trunk 0.21.1", "0.21.14"));
        assert!(!says_version("", "0.21.14"));
    }
}
