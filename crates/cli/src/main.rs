//! `baton`: the engine of the page in one native process, held to a contract so that runs can be compared.

mod generate;
mod report;
mod train;

use anyhow::{Context, Result};
use baton_engine::source::{AnyFiles, Model};
use baton_formats::{DirFiles, UrlFiles};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

/// Fine-tune a language model: the same engine as the page's, in one process.
#[derive(Parser)]
#[command(name = "baton", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a LoRA adapter on a text.
    Train(train::Train),
    /// Write a continuation of a text.
    Generate(generate::Generate),
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let done = match command {
        Command::Train(train) => futures::executor::block_on(train.run()),
        Command::Generate(generate) => futures::executor::block_on(generate.run()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Opens a folder, or a URL or hub repository if there is no such folder.
async fn open(model: &str) -> Result<Rc<Model>> {
    let files = if Path::new(model).is_dir() {
        AnyFiles::Dir(DirFiles::new(PathBuf::from(model)))
    } else if model.contains("://") || !Path::new(model).exists() && is_repository(model) {
        AnyFiles::Url(UrlFiles::new(model)?)
    } else {
        anyhow::bail!("{model} is neither a folder nor a URL: give the folder that holds config.json")
    };
    let place = if Path::new(model).is_dir() {
        "the model in the folder"
    } else {
        "there is no such folder here, and as an address the model"
    };
    Model::open(files).await.with_context(|| format!("{place} {model} cannot be used"))
}

/// `org/name`, and nothing that looks like a path.
fn is_repository(model: &str) -> bool {
    let parts: Vec<&str> = model.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| !part.is_empty() && !part.starts_with('.'))
}
