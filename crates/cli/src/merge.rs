//! `baton merge`.

use anyhow::{Context, Result, ensure};
use baton_engine::source::{CONFIG_FILE, TOKENIZER_FILE};
use baton_formats::merge::{merge, merged_config};
use baton_formats::{FilesError, NumberFormat, TensorIndex, read_all};
use clap::{Args, ValueEnum};
use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;

/// What belongs to a model beside its weights and its config.json, where it is there.
const COMPANIONS: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];
/// Larger than any of them.
const COMPANION_LIMIT: u64 = 256 << 20;

#[derive(Args)]
pub(crate) struct Merge {
    /// Folder of the model in the Hugging Face layout, a .gguf file, a URL, or org/name on the hub
    model: String,
    /// Folder of a LoRA adapter in PEFT's format
    adapter: PathBuf,
    /// Folder for the merged model; it must not hold one already
    #[arg(long)]
    out: PathBuf,
    /// Overwrite a model that --out holds already
    #[arg(long)]
    force: bool,
    /// Numbers of the merged weights [default: the model's own]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Merge {
    pub(crate) async fn run(self) -> Result<()> {
        let weights = self.out.join("model.safetensors");
        ensure!(
            self.force || !weights.exists(),
            "{} is there already: give another folder for --out, or --force to overwrite it",
            weights.display()
        );
        // What is read piece by piece cannot be written at the same time.
        let same = fs::canonicalize(&self.out)
            .is_ok_and(|out| fs::canonicalize(&self.model).is_ok_and(|model| model == out));
        ensure!(!same, "--out is the folder of the model itself: give another one");
        let files = crate::open_files(&self.model)?;
        let (model, adapter, config) = crate::open_adapter(&files, &self.model, &self.adapter).await?;
        let index = TensorIndex::open_model(&files).await?;
        let total: u64 = index.entries().map(|entry| entry.bytes()).sum();
        let format = self.dtype.map(|dtype| match dtype {
            Dtype::F32 => NumberFormat::F32,
            Dtype::F16 => NumberFormat::F16,
            Dtype::Bf16 => NumberFormat::Bf16,
        });

        fs::create_dir_all(&self.out).with_context(|| format!("cannot make {}", self.out.display()))?;
        // Under another name until it is whole: what was cut short is no model.
        let partial = self.out.join("model.safetensors.partial");
        let cannot_write = || format!("cannot write {}", partial.display());
        let sink = BufWriter::new(File::create(&partial).with_context(cannot_write)?);
        let (mut read, mut shown) = (0, None);
        let progress = std::io::stderr().is_terminal();
        let merged = merge(&files, &model, &adapter, format, sink, &mut |bytes| {
            read += bytes;
            let percent = 100 * read / total.max(1);
            if progress && shown != Some(percent) {
                shown = Some(percent);
                eprint!("\rmerging: {percent} %");
            }
        })
        .await;
        if progress {
            eprintln!();
        }
        if let Err(error) = merged {
            // The first error is the one to tell.
            let _ = fs::remove_file(&partial);
            return Err(error).context("the adapter could not be merged");
        }
        let write = |name: &str, bytes: &[u8]| {
            let path = self.out.join(name);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
        };
        write(CONFIG_FILE, merged_config(&config, &model, &adapter, format)?.as_bytes())?;
        if let Some(gguf) = index.gguf() {
            write(TOKENIZER_FILE, gguf.tokenizer_json()?.as_bytes())?;
            write("tokenizer_config.json", gguf.tokenizer_config_json().as_bytes())?;
        }
        for name in COMPANIONS {
            match read_all(&files, name, COMPANION_LIMIT).await {
                Ok(bytes) => write(name, &bytes)?,
                Err(FilesError::NotFound { .. }) => {}
                // A server that hides what it does not have.
                Err(FilesError::Http { status: 401 | 403 | 404 | 410, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        fs::rename(&partial, &weights).with_context(cannot_write)?;
        let size = fs::metadata(&weights).map_or(0, |metadata| metadata.len());
        let mut out = std::io::stdout();
        let line = format!(
            "{}: {:.2} MB, the adapter's {} pairs merged",
            weights.display(),
            size as f64 / 1e6,
            adapter.weights.len()
        );
        writeln!(out, "{line}").context("cannot write to the terminal")
    }
}
