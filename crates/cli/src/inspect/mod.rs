//! `baton inspect`: what a model is, whether all of it is there, and what it asks of the devices that would train it.

mod facts;
mod words;

use anyhow::{Context, Result, bail};
use baton_formats::config::ALL_LINEAR;
use baton_protocol::run::Settings;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use std::io::Write;

#[derive(Args)]
pub(crate) struct Inspect {
    /// Folder of the model in the Hugging Face layout, a .gguf file, a URL, or org/name on the hub
    model: String,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    /// Numbers of phones to spread the model over, separated by commas
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4], value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    phones: Vec<usize>,
    /// Samples a step, for the estimate
    #[arg(long, default_value_t = Settings::default().batch_size)]
    batch_size: u32,
    /// Slices of a step's batch, for the estimate
    #[arg(long, default_value_t = Settings::default().micro_batches)]
    micro_batches: u16,
    /// Tokens of a sample, for the estimate
    #[arg(long, default_value_t = Settings::default().seq_len)]
    seq_len: u32,
    /// Rank of the adapters, for the estimate
    #[arg(long, default_value_t = Settings::default().lora_rank)]
    lora_rank: u16,
    /// Projections that get an adapter, separated by commas; all-linear is all of them
    #[arg(long, value_delimiter = ',', default_value = ALL_LINEAR)]
    targets: Vec<String>,
}

impl Inspect {
    /// Prints what is known, whatever is wrong with the model; fails if it cannot be used.
    pub(crate) async fn run(self) -> Result<()> {
        let files = crate::open_files(&self.model)?;
        let settings = Settings {
            batch_size: self.batch_size,
            micro_batches: self.micro_batches,
            seq_len: self.seq_len,
            lora_rank: self.lora_rank,
            targets: self.targets,
            ..Settings::default()
        };
        settings.validate()?;
        let facts = facts::read(&files, &self.model, self.tensors, &settings, &self.phones).await;
        let facts = facts.with_context(|| crate::unusable(&self.model))?;
        let text = if self.json { serde_json::to_string_pretty(&facts)? + "\n" } else { words::of(&facts) };
        match std::io::stdout().write_all(text.as_bytes()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
        match facts.problems.len() {
            0 => Ok(()),
            1 => bail!("{} cannot be used: {}", self.model, facts.problems.concat()),
            count => bail!("{} cannot be used: {count} problems, listed above", self.model),
        }
    }
}
