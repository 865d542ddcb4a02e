//! `baton export-gguf`.

use anyhow::{Context, Result};
use baton_formats::gguf_adapter::to_gguf;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct ExportGguf {
    /// Folder of a LoRA adapter in PEFT's format
    adapter: PathBuf,
    /// Folder of the model that it belongs to (or a URL, or org/name on the hub); only its config is read
    #[arg(long)]
    model: String,
    /// The file to write, for llama.cpp's --lora
    #[arg(long)]
    out: PathBuf,
}

impl ExportGguf {
    pub(crate) async fn run(self) -> Result<()> {
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
