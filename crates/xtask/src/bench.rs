//! `cargo xtask bench`: the measurements of speed, each a benchmark of the crate that it is about.

use crate::cargo;
use crate::process;
use crate::test;
use crate::tools::Install;
use crate::workspace::Workspace;
use anyhow::Result;

/// What `bench` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to measure.
    #[arg(value_enum)]
    what: Bench,
    /// What the measurement itself takes (`cargo xtask bench tabs --help`).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Bench {
    /// The products with frozen matrices of every storage, beside burn's f32 matmul (crates/kernels).
    Matmul,
    /// The planner on random rooms: beside an equal split, the fastest device alone and every plan there is; its own time
    /// (crates/plan).
    Plan,
    /// A whole run in tabs of headless Chromium, each a process of its own: losses, seconds a step, and the most memory
    /// that every tab had (tests/).
    Tabs,
    /// How much less the most loaded device of a room holds than one device alone: what the memory model says of four
    /// public shapes, and what tabs hold (tests/).
    Confidant,
    /// A step of two tabs pinned to two cores against the same step on one core (tests/).
    Pipeline,
}

/// Builds the benchmark and runs it, its table on the terminal.
pub(crate) fn bench(workspace: &Workspace, options: &Options) -> Result<()> {
    match options.what {
        // No package named: the default members have the features that burn is built with already.
        Bench::Matmul => process::run(
            cargo::cargo(workspace).args(["bench", "--bench", "matmul", "--"]).args(&options.arguments),
        ),
        Bench::Plan => process::run(
            cargo::cargo(workspace)
                .args(["bench", "--package", "baton-plan", "--bench", "rooms", "--"])
                .args(&options.arguments),
        ),
        Bench::Tabs => tabs(workspace, "tabs", options),
        Bench::Confidant => tabs(workspace, "confidant", options),
        Bench::Pipeline => tabs(workspace, "pipeline", options),
    }
}

/// A program of tests/ that opens tabs.
fn tabs(workspace: &Workspace, program: &str, options: &Options) -> Result<()> {
    let run = ["run", "--release", "--package", "baton-e2e", "--bin", program, "--"];
    let mut tabs = cargo::cargo(workspace);
    tabs.args(run).args(&options.arguments);
    test::prepare_tabs(workspace, Install::Allowed, &mut tabs)?;
    process::run(&mut tabs)
}
