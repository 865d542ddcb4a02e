//! `cargo xtask`: the only entry point for building, serving and testing Baton.

mod bench;
mod browser;
mod cargo;
mod fuzz;
mod page;
mod process;
mod serve;
mod test;
mod tools;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use workspace::Workspace;

/// Build, serve and test Baton.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the page and the server, start it, and print the link and its QR code.
    Serve(serve::Options),
    /// Run every test, headless Chromium included.
    Test(test::Options),
    /// Measure how fast something is.
    Bench(bench::Options),
    /// Build the page and the server.
    Build,
    /// Give every reader hostile bytes (nightly Rust; five minutes a target).
    Fuzz(fuzz::Options),
    /// Make static/model and static/sample.txt again, from a seed (about eight minutes).
    DefaultModel,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = Workspace::find().and_then(|workspace| match arguments.command {
        Command::Serve(options) => serve::serve(&workspace, &options).map(|()| true),
        Command::Test(options) => test::test(&workspace, &options),
        Command::Bench(options) => bench::bench(&workspace, &options).map(|()| true),
        Command::Build => serve::build(&workspace).map(|()| true),
        Command::Fuzz(options) => fuzz::fuzz(&workspace, &options),
        Command::DefaultModel => default_model(&workspace).map(|()| true),
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The release build: a debug build would train for hours.
fn default_model(workspace: &Workspace) -> Result<()> {
    let arguments = ["run", "--release", "-p", "baton-stories", "--", "make", "--out", "static"];
    process::run(cargo::cargo(workspace).args(arguments))
}
