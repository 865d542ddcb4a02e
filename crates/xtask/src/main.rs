//! `cargo xtask`: the only entry point for building, serving and testing Baton.

mod browser;
mod cargo;
mod page;
mod process;
mod serve;
mod test;
mod tools;
mod workspace;

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
    /// Build the page and the server.
    Build,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = Workspace::find().and_then(|workspace| match arguments.command {
        Command::Serve(options) => serve::serve(&workspace, &options).map(|()| true),
        Command::Test(options) => test::test(&workspace, &options),
        Command::Build => serve::build(&workspace).map(|()| true),
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
