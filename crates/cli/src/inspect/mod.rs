//! `baton inspect`: what a model is, whether all of it is there, and what it asks of the devices that would train it.

mod facts;
mod words;

use crate::shape::{RunShape, count_of_devices};
use anyhow::{Context, Result, bail};
use clap::Args;

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
    #[arg(long, value_delimiter = ',', default_value = "1,2,4", value_parser = count_of_devices)]
    phones: Vec<usize>,
    #[command(flatten)]
    shape: RunShape,
}

impl Inspect {
    /// Prints what is known, whatever is wrong with the model; fails if it cannot be used.
    pub(crate) async fn run(self) -> Result<()> {
        let files = crate::open_files(&self.model)?;
        let settings = self.shape.settings();
        settings.validate()?;
        let facts = facts::read(&files, &self.model, self.tensors, &settings, &self.phones).await;
        let facts = facts.with_context(|| crate::unusable(&self.model))?;
        let text = if self.json { serde_json::to_string_pretty(&facts)? + "\n" } else { words::of(&facts) };
        crate::print(&text)?;
        match facts.problems.len() {
            0 => Ok(()),
            1 => bail!("{} cannot be used: {}", self.model, facts.problems.concat()),
            count => bail!("{} cannot be used: {count} problems, listed above", self.model),
        }
    }
}
