//! `baton`: the engine of the page in one native process, held to a contract so that runs can be compared.

mod export;
mod generate;
mod inspect;
mod join;
mod memory;
mod merge;
mod report;
mod simulate;
mod train;

use anyhow::{Context, Result};
use baton_engine::source::{AnyFiles, Model, config_json};
use baton_formats::peft::fitted;
use baton_formats::{Adapter, DirFiles, ModelConfig, UrlFiles};
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
    Join(join::Join),
    /// Say what a model is, whether all of it is there, and what it needs on 1, 2 and 4 phones.
    Inspect(inspect::Inspect),
    Memory(memory::Memory),
    /// Write a continuation of a text.
    Generate(generate::Generate),
    /// Work an adapter into its model's weights: a model of its own, in the Hugging Face layout.
    Merge(merge::Merge),
    /// Write an adapter as a GGUF file for llama.cpp.
    ExportGguf(export::ExportGguf),
    /// Play a room in virtual time: devices, links and faults as a file says, or campaigns of thousands of rooms.
    Simulate(simulate::Simulate),
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let done = match command {
        Command::Train(train) => futures::executor::block_on(train.run()),
        Command::Join(join) => join.run(),
        Command::Inspect(inspect) => futures::executor::block_on(inspect.run()),
        Command::Memory(memory) => memory.run(),
        Command::Generate(generate) => futures::executor::block_on(generate.run()),
        Command::Merge(merge) => futures::executor::block_on(merge.run()),
        Command::ExportGguf(export) => futures::executor::block_on(export.run()),
        Command::Simulate(simulate) => simulate.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Opens a model: its small files are read and checked.
async fn open(model: &str) -> Result<Rc<Model>> {
    Model::open(open_files(model)?).await.with_context(|| unusable(model))
}

/// The files of a folder or a GGUF file, or of a URL or hub repository if there is no such folder. Nothing is read.
fn open_files(model: &str) -> Result<AnyFiles> {
    let path = Path::new(model);
    if path.is_dir() || path.is_file() && model.ends_with(".gguf") {
        Ok(AnyFiles::Dir(DirFiles::new(PathBuf::from(model))))
    } else if model.contains("://") || !path.exists() && is_repository(model) {
        Ok(AnyFiles::Url(UrlFiles::new(model)?))
    } else {
        anyhow::bail!(
            "{model} is neither a folder nor a .gguf file nor a URL: give the folder that holds config.json"
        )
    }
}

/// An adapter, its model's config with the head that the adapter was trained with, and the model's `config.json`.
async fn open_adapter(
    files: &AnyFiles,
    model: &str,
    folder: &Path,
) -> Result<(ModelConfig, Adapter, Vec<u8>)> {
    let json = config_json(files).await.with_context(|| unusable(model))?;
    let config = ModelConfig::parse(&json).with_context(|| unusable(model))?;
    let adapter_files = DirFiles::new(folder);
    let adapter = async {
        let config = fitted(&adapter_files, config).await?;
        let adapter = Adapter::read(&adapter_files, &config).await?;
        anyhow::Ok((config, adapter))
    };
    let (config, adapter) =
        adapter.await.with_context(|| format!("the adapter at {} cannot be used", folder.display()))?;
    Ok((config, adapter, json))
}

fn unusable(model: &str) -> String {
    let place = if Path::new(model).exists() {
        "the model in"
    } else {
        "there is no such folder here, and as an address the model"
    };
    format!("{place} {model} cannot be used")
}

/// `org/name`, and nothing that looks like a path.
fn is_repository(model: &str) -> bool {
    let parts: Vec<&str> = model.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| !part.is_empty() && !part.starts_with('.'))
}
