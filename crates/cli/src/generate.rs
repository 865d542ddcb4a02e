//! `baton generate`.

use anyhow::{Context, Result, ensure};
use baton_engine::generate::generate;
use baton_engine::texts::TextRequest;
use baton_formats::DirFiles;
use baton_formats::peft::Adapter;
use clap::Args;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct Generate {
    /// Folder of the model in the Hugging Face layout (or a URL, or org/name on the hub)
    #[arg(long)]
    model: String,
    /// Folder of a LoRA adapter in PEFT's format
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// The beginning; empty starts from the begin token
    #[arg(long, default_value = "")]
    prompt: String,
    /// Tokens to write at the most; an end token ends the text before
    #[arg(long, default_value_t = 100)]
    tokens: u32,
    /// 0 takes the likeliest token, 1 draws by the model's own odds
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Makes a draw repeatable
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Generate {
    pub(crate) async fn run(self) -> Result<()> {
        ensure!(
            self.temperature.is_finite() && self.temperature >= 0.0,
            "--temperature is {}, and must be 0 or more",
            self.temperature
        );
        let model = crate::open(&self.model).await?;
        let adapter = match &self.adapter {
            Some(folder) => {
                let adapter = Adapter::read(&DirFiles::new(folder), &model.config).await;
                Some(adapter.with_context(|| format!("the adapter at {} cannot be used", folder.display()))?)
            }
            None => None,
        };
        let request = TextRequest {
            prompt: self.prompt.into(),
            tokens: self.tokens,
            temperature: self.temperature,
            seed: self.seed,
        };
        let mut out = std::io::stdout();
        let mut printed = String::new();
        let device = baton_model::cpu();
        let text = generate(&model, adapter.as_ref(), &request, &device, |text| {
            // A token may be part of a character: what could still change is not printed yet.
            if let Ok(so_far) = text.decode(&model) {
                let stable = so_far.trim_end_matches(char::REPLACEMENT_CHARACTER);
                if let Some(new) = stable.strip_prefix(&printed) {
                    // The whole text is checked and written at the end.
                    let _ = write!(out, "{new}").and_then(|()| out.flush());
                    printed.push_str(new);
                }
            }
        })
        .await?
        .decode(&model)?;
        let rest = text.strip_prefix(&printed).unwrap_or_default();
        let end = if out.is_terminal() { "\n" } else { "" };
        match write!(out, "{rest}{end}").and_then(|()| out.flush()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written.context("cannot write the text"),
        }
    }
}
