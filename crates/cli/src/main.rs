//! `baton`: the engine of the page in one native process, held to a contract so that runs can be compared.

mod classify;
mod export;
mod generate;
mod inspect;
mod join;
mod memory;
mod merge;
mod report;
mod shape;
mod simulate;
mod train;
mod words;

use anyhow::{Context, Result, bail, ensure};
use baton_engine::source::{AnyFiles, CONFIG_FILE, Model, config_json};
use baton_formats::peft::{CONFIG_FILE as ADAPTER_CONFIG, fitted};
use baton_formats::{Adapter, AdapterConfig, DirFiles, Files, ModelConfig, UrlFiles};
use clap::{Parser, Subcommand};
use std::io::Write;
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
    /// Write a continuation of a text, or an answer (--chat).
    Generate(generate::Generate),
    /// Say which class a text is of, and how sure the model is.
    Classify(classify::Classify),
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
        Command::Classify(classify) => futures::executor::block_on(classify.run()),
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

/// Writes to standard output.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output cannot be written"),
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
        let files = DirFiles::new(PathBuf::from(model));
        if path.join(ADAPTER_CONFIG).exists()
            && !path.join(CONFIG_FILE).exists()
            && files.weights_file().is_none()
        {
            bail!("{model} is {}, and no model: give the model that it was trained on", adapter_words(path));
        }
        Ok(AnyFiles::Dir(files))
    } else if model.contains("://") || !path.exists() && is_repository(model) {
        Ok(AnyFiles::Url(UrlFiles::new(model)?))
    } else if path.exists() {
        bail!("{model} is neither a folder nor a .gguf file: give the folder that holds config.json")
    } else {
        bail!(
            "there is no {model}: it is neither a folder nor a .gguf file that is here, nor a URL, nor org/name on the hub"
        )
    }
}

/// As in "a LoRA adapter of rank 8 on q_proj, v_proj for the model stories260k".
fn adapter_words(folder: &Path) -> String {
    let json = std::fs::read(folder.join(ADAPTER_CONFIG)).unwrap_or_default();
    let Ok(config) = AdapterConfig::parse(&json) else { return "an adapter".to_owned() };
    let base = config.base_model_name_or_path.filter(|base| !base.is_empty());
    let base = base.map_or_else(String::new, |base| format!(" for the model {base}"));
    format!("a LoRA adapter of rank {} on {}{base}", config.r, config.target_modules)
}

/// The files of an adapter's folder.
fn adapter_files(folder: &Path) -> Result<DirFiles> {
    let shown = folder.display();
    if folder.is_file() {
        ensure!(
            folder.extension().is_none_or(|end| end != "gguf"),
            "{shown} is a GGUF file, and an adapter in GGUF is for llama.cpp alone: give the folder of the adapter in PEFT's \
             format, which holds {ADAPTER_CONFIG}"
        );
        bail!("{shown} is a file: give the folder of the adapter, which holds {ADAPTER_CONFIG}");
    }
    ensure!(
        folder.exists(),
        "there is no {shown}: give the folder of a LoRA adapter in PEFT's format, which holds {ADAPTER_CONFIG}"
    );
    if !folder.join(ADAPTER_CONFIG).exists() {
        let model = if folder.join(CONFIG_FILE).exists() { "a model's folder, and " } else { "" };
        bail!("{shown} is {model}no LoRA adapter in PEFT's format: there is no {ADAPTER_CONFIG} in it");
    }
    Ok(DirFiles::new(folder))
}

/// An adapter, and its model's config with the head and the classes that the adapter was trained with.
async fn read_adapter(folder: &Path, config: ModelConfig) -> Result<(ModelConfig, Adapter)> {
    let files = adapter_files(folder)?;
    let adapter = async {
        let config = fitted(&files, config).await?;
        let adapter = Adapter::read(&files, &config).await?;
        anyhow::Ok((config, adapter))
    };
    adapter.await.with_context(|| format!("the adapter at {} cannot be used", folder.display()))
}

/// An adapter, its model's config with the head that the adapter was trained with, and the model's `config.json`.
async fn open_adapter(
    files: &AnyFiles,
    model: &str,
    folder: &Path,
) -> Result<(ModelConfig, Adapter, Vec<u8>)> {
    adapter_files(folder)?;
    let json = config_json(files).await.with_context(|| unusable(model))?;
    let config = ModelConfig::parse(&json).with_context(|| unusable(model))?;
    let (config, adapter) = read_adapter(folder, config).await?;
    Ok((config, adapter, json))
}

fn unusable(model: &str) -> String {
    if Path::new(model).exists() {
        format!("the model in {model} cannot be used")
    } else if model.contains("://") {
        format!("the model at {model} cannot be used")
    } else {
        format!("there is no folder {model} here, and as a model on the hub it cannot be used")
    }
}

/// `org/name`, and nothing that looks like a path.
fn is_repository(model: &str) -> bool {
    let parts: Vec<&str> = model.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| !part.is_empty() && !part.starts_with('.'))
}
