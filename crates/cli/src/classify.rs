//! `baton classify`.

use anyhow::{Context, Result, bail};
use baton_engine::classify::{ClassifyRequest, classify};
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

/// Of many classes the likeliest are said.
const SAID: usize = 5;

#[derive(Args)]
pub(crate) struct Classify {
    /// Folder of the model in the Hugging Face layout, a .gguf file, a URL, or org/name on the hub
    #[arg(long)]
    model: String,
    /// Folder of a LoRA adapter in PEFT's format
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// A text; may be given several times
    #[arg(long, required = true)]
    text: Vec<String>,
    /// The second text of each, for a model of pairs
    #[arg(long)]
    text_b: Vec<String>,
}

impl Classify {
    /// Prints a line for each text: the classes with their probabilities, the likeliest first, or the value.
    pub(crate) async fn run(self) -> Result<()> {
        let (texts, seconds) = (self.text.len(), self.text_b.len());
        if seconds > 0 && seconds != texts {
            bail!("there are {texts} --text and {seconds} --text-b: give a second text for each, or none");
        }
        let model = crate::open(&self.model).await?;
        let (config, adapter) = match &self.adapter {
            Some(folder) => {
                let (config, adapter) = crate::read_adapter(folder, model.config.clone()).await?;
                (config, Some(adapter))
            }
            None => (model.config.clone(), None),
        };
        let mut seconds = self.text_b.into_iter();
        let requests: Vec<_> =
            self.text.into_iter().map(|text| ClassifyRequest { text, second: seconds.next() }).collect();
        let device = baton_model::cpu();
        let rows = classify(&model, &config, adapter.as_ref(), &requests, &device).await?;
        let head = config.classifier();
        let name = |class: usize| match head.and_then(|head| head.labels.get(class)) {
            Some(label) => label.clone(),
            None => format!("class {class}"),
        };
        let mut lines = String::new();
        for (request, row) in requests.iter().zip(rows) {
            let answer = if head.is_some_and(|head| head.regression) {
                row.first().map_or_else(String::new, |value| format!("{value:.4}"))
            } else {
                let mut classes: Vec<_> = row.into_iter().enumerate().collect();
                classes.sort_by(|(_, one), (_, other)| other.total_cmp(one));
                let said = classes.iter().take(SAID);
                let said = said.map(|(class, odds)| format!("{} {:.2} %", name(*class), 100.0 * odds));
                said.collect::<Vec<_>>().join(", ")
            };
            let second = request.second.as_ref().map(|second| format!(" and {second:?}"));
            lines += &format!("{:?}{}: {answer}\n", request.text, second.unwrap_or_default());
        }
        match std::io::stdout().write_all(lines.as_bytes()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written.context("cannot write the answer"),
        }
    }
}
