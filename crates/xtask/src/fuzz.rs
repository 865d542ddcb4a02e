//! `cargo xtask fuzz`: hostile bytes for every reader, by cargo-fuzz (libFuzzer) on the nightly toolchain.

use crate::cargo;
use crate::process;
use crate::tools::{self, Install};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::process::Command;

/// An input that takes longer is a finding, in seconds.
const TIMEOUT: u32 = 10;
/// A reader that holds more is a finding, in megabytes. The sanitizer's own memory counts too.
const MEMORY: u32 = 1024;
/// One request for more memory than that is a finding, in megabytes: none of the inputs is longer than 1 MB.
const ALLOCATION: u32 = 256;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to fuzz; without one, everything in fuzz/fuzz_targets, one after another.
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
}

/// Fuzzes; false if anything was found.
pub(crate) fn fuzz(workspace: &Workspace, options: &Options) -> Result<bool> {
    let known = targets(workspace)?;
    let targets = match &options.target {
        Some(target) if known.contains(target) => vec![target.clone()],
        Some(target) => bail!("there is no target {target}; there are: {}", known.join(", ")),
        None => known,
    };
    tools::cargo_fuzz(workspace, Install::Allowed)?;
    process::run(&mut command(workspace, "build", &[]))?;
    let mut findings = Vec::new();
    for target in targets {
        println!("\n== {target} ({} min)", options.minutes);
        if process::run(&mut run(workspace, &target, options.minutes)).is_err() {
            findings.push(target);
        }
    }
    if !findings.is_empty() {
        println!(
            "\nFindings in {}: the inputs are in fuzz/artifacts. Mend the reader, and keep the input in a test of it.",
            findings.join(", ")
        );
    }
    Ok(findings.is_empty())
}

fn run(workspace: &Workspace, target: &str, minutes: u32) -> Command {
    let mut command = command(workspace, "run", &[target, "--"]);
    command
        .arg(format!("-max_total_time={}", minutes.saturating_mul(60)))
        .arg(format!("-timeout={TIMEOUT}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg(format!("-malloc_limit_mb={ALLOCATION}"))
        .args(["-print_final_stats=1", "-max_len=65536", "-detect_leaks=0", "-verbosity=0"]);
    // Leaks are no matter of safe Rust, and to look for them takes rights that a container may not give. A refused
    // allocation is an error that the readers answer; freed memory is not kept long, so that it fits.
    command.env("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=32");
    command
}

fn command(workspace: &Workspace, what: &str, arguments: &[&str]) -> Command {
    let mut command = cargo::cargo(workspace);
    // The sanitizer needs nightly; as a variable, because a cargo below cargo may not be rustup's.
    command.env("RUSTUP_TOOLCHAIN", "nightly");
    // A folder of its own: the flags differ from those of every other build.
    command.args(["fuzz", what, "--target-dir"]).arg(workspace.target.join("fuzz")).args(arguments);
    command
}

/// The names of the targets, sorted.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let dir = workspace.root.join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    #[test]
    fn every_target_is_a_program_of_the_fuzz_crate() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let workspace = Workspace { root, target: PathBuf::new(), tools: PathBuf::new() };
        let manifest = fs::read_to_string(workspace.root.join("fuzz/Cargo.toml")).unwrap();
        let targets = targets(&workspace).unwrap();
        assert!(!targets.is_empty());
        for target in &targets {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
        }
        assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
    }
}
