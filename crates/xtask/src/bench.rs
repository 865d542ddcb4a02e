//! `cargo xtask bench`: the measurements of speed, each a benchmark of the crate that it is about.

use crate::cargo;
use crate::process;
use crate::workspace::Workspace;
use anyhow::Result;

/// What `bench` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to measure.
    #[arg(value_enum)]
    what: Bench,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Bench {
    /// The products with frozen matrices of every storage, beside burn's f32 matmul (crates/kernels).
    Matmul,
}

impl Bench {
    /// The name of the bench target.
    fn target(self) -> &'static str {
        match self {
            Self::Matmul => "matmul",
        }
    }
}

/// Builds the benchmark and runs it, its table on the terminal.
pub(crate) fn bench(workspace: &Workspace, options: &Options) -> Result<()> {
    // No package named: the default members have the features that burn is built with already.
    process::run(cargo::cargo(workspace).args(["bench", "--bench", options.what.target()]))
}
