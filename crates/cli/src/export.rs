//! `baton export-gguf`.

use anyhow::{Context, Result, ensure};
use baton_formats::gguf_adapter::to_gguf;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct ExportGguf {
    /// Folder of a LoRA adapter in PEFT's format
    adapter: PathBuf,
    /// The model that it belongs to: a folder, a .gguf file, a URL, or org/name on the hub; only its config is read
    #[arg(long)]
    model: String,
    /// The file to write, for llama.cpp's --lora
    #[arg(long)]
    out: PathBuf,
    /// Overwrite a file that is there already
    #[arg(long)]
    force: bool,
}

impl ExportGguf {
    pub(crate) async fn run(self) -> Result<()> {
        ensure!(
            self.force || !self.out.exists(),
            "{} is there already: give another file for --out, or --force to overwrite it",
            self.out.display()
        );
        let files = crate::open_files(&self.model)?;
        let (model, adapter, _) = crate::open_adapter(&files, &self.model, &self.adapter).await?;
        let bytes = to_gguf(&adapter, &model)?;
        std::fs::write(&self.out, &bytes).with_context(|| format!("cannot write {}", self.out.display()))?;
        let line = format!(
            "{}: {} pairs, {:.2} MB",
            self.out.display(),
            adapter.weights.len(),
            bytes.len() as f64 / 1e6
        );
        writeln!(std::io::stdout(), "{line}").context("cannot write to the terminal")
    }
}
