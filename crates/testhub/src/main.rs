//! `baton-testhub`: serves a folder as a repository of a model hub, with faults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use baton_testhub::{Busy, Cut, Drip, TestHub};
use clap::Parser;

/// A model hub on this machine, to try what happens when the real one fails.
#[derive(Parser)]
struct Options {
    /// The folder with the model's files.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// What the repository is called there.
    #[arg(long, value_name = "ORG/NAME", default_value = "org/name")]
    repo: String,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8088")]
    listen: SocketAddr,
    /// Requests that a signature is good for.
    #[arg(long, value_name = "N")]
    signature_uses: Option<u32>,
    /// Milliseconds that a signature is good for.
    #[arg(long, value_name = "MS")]
    signature_age: Option<u64>,
    /// End every body after so many bytes.
    #[arg(long, value_name = "BYTES")]
    cut: Option<u64>,
    /// Send so many bytes every ten milliseconds.
    #[arg(long, value_name = "BYTES")]
    drip: Option<usize>,
    /// Answer 503 so many times first.
    #[arg(long, value_name = "N")]
    busy: Option<u32>,
    /// Change a byte: FILE:PLACE.
    #[arg(long, value_name = "FILE:PLACE")]
    changed_byte: Option<String>,
    /// Do not know ranges.
    #[arg(long)]
    whole_files: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&options.dir)? {
        let entry = entry?;
        if entry.metadata()?.is_file() {
            files.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?));
        }
    }
    let changed_byte = match options.changed_byte.as_deref().map(|text| text.rsplit_once(':')) {
        None => None,
        Some(Some((file, place))) => Some((file.to_owned(), place.parse()?)),
        Some(None) => return Err("--changed-byte takes FILE:PLACE".into()),
    };
    let hub = TestHub::start_at(options.listen)?;
    let commit = hub.push(&options.repo, "main", files);
    hub.faults(|faults| {
        faults.signature_uses = options.signature_uses;
        faults.signature_age = options.signature_age.map(Duration::from_millis);
        faults.cut = options.cut.map(|after| Cut { after, times: u32::MAX });
        let every = Duration::from_millis(10);
        faults.drip = options.drip.map(|bytes| Drip { bytes, every, times: u32::MAX });
        faults.busy = options.busy.map(|times| Busy { status: 503, retry_after: None, times });
        faults.changed_byte = changed_byte;
        faults.whole_files = options.whole_files;
    });
    println!("{} is at {} (commit {commit})", options.repo, hub.url(&options.repo, "main"));
    println!("what it was asked: {}/log", hub.address());
    loop {
        std::thread::park();
    }
}
