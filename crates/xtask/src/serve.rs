//! `cargo xtask serve` and `cargo xtask build`: from a checkout to a page on the network.

use crate::cargo;
use crate::page;
use crate::process::{self, spell};
use crate::tools::{self, Install};
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

const SERVER: &str = "baton-signaling";

/// What `serve` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The port to listen on.
    #[arg(long, default_value_t = 8787)]
    port: u16,
    /// The address to listen on; by default every one, so that phones on the network reach the page.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), conflicts_with = "local")]
    address: IpAddr,
    /// Listen on this machine alone.
    #[arg(long)]
    local: bool,
    /// Serve what was built before.
    #[arg(long)]
    no_build: bool,
    /// Passed on to the server.
    #[arg(last = true)]
    server: Vec<OsString>,
}

/// Builds what is not built yet, and becomes the server.
pub(crate) fn serve(workspace: &Workspace, options: &Options) -> Result<()> {
    if !options.no_build {
        build(workspace)?;
    }
    let (dist, binary) = (workspace.dist(), workspace.binary(SERVER));
    for built in [dist.join("index.html"), binary.clone()] {
        if !built.is_file() {
            bail!("{} is not there: run `cargo xtask serve` without --no-build", built.display());
        }
    }
    let address = if options.local { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { options.address };
    let mut server = cargo::child(workspace, binary);
    server.arg("--listen").arg(SocketAddr::new(address, options.port).to_string());
    server.arg("--dist").arg(dist).args(&options.server);
    println!("\n== Serving; Ctrl-C stops it");
    become_program(&mut server)
}

/// Tools, page, server; each announced and timed.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    step("Tools", || {
        tools::wasm_target(Install::Allowed)?;
        tools::wasm_bindgen(workspace, Install::Allowed)?;
        tools::trunk(workspace, Install::Allowed)
    })?;
    step("Page", || page::build(workspace))?;
    step("Server", || process::run(cargo::cargo(workspace).args(["build", "--release", "--package", SERVER])))
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let started = Instant::now();
    work()?;
    println!("   {name}: ready in {}", spell(started.elapsed()));
    Ok(())
}

/// Replaces this process, so that Ctrl-C reaches the server alone and the prompt returns when it has shut down.
#[cfg(unix)]
fn become_program(command: &mut std::process::Command) -> Result<()> {
    use anyhow::Context;
    use std::os::unix::process::CommandExt;
    process::announce(command);
    Err(command.exec()).context("cannot start the server")
}

#[cfg(not(unix))]
fn become_program(command: &mut std::process::Command) -> Result<()> {
    process::run(command)
}
