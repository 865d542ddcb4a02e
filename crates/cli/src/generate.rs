//! `baton generate`.

use anyhow::{Context, Result, bail, ensure};
use baton_engine::generate::generate;
use baton_engine::texts::{Prompt, Text, TextRequest};
use baton_formats::ChatMessage;
use clap::Args;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct Generate {
    /// Folder of the model in the Hugging Face layout, a .gguf file, a URL, or org/name on the hub
    #[arg(long)]
    model: String,
    /// Folder of a LoRA adapter in PEFT's format
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// The beginning; empty starts from the begin token. With --chat, what the user says
    #[arg(long, default_value = "")]
    prompt: String,
    /// Take --prompt for a message and print the answer to it: what a model is for that was trained on conversations.
    ///
    /// The conversation is written by the model's chat template; where it has none, as training writes it then, with
    /// "user: " before the message and "assistant: " before the answer, which ends with its line. Without --chat the prompt
    /// is the beginning of a text as it stands, and is printed too.
    #[arg(long, requires = "prompt")]
    chat: bool,
    /// A system message before the conversation
    #[arg(long, requires = "chat")]
    system: Option<String>,
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
        if model.config.is_encoder() {
            bail!("{} labels texts and writes none: use baton classify", self.model);
        }
        let adapter = match &self.adapter {
            Some(folder) => Some(crate::read_adapter(folder, model.config.clone()).await?.1),
            None => None,
        };
        if model.template.is_some() && !self.chat && std::io::stderr().is_terminal() {
            eprintln!(
                "note: this model has a chat template: --chat gives it the prompt as a message to answer"
            );
        }
        let (prompt, turns) = if self.chat {
            conversation(self.prompt, self.system, model.template.is_some())
        } else {
            (self.prompt.into(), false)
        };
        // What is printed of the text: of a conversation the answer.
        let shown = |text: &Text| -> Result<String> {
            let whole = text.decode(&model)?;
            if !turns {
                return Ok(whole);
            }
            let given = text.decode_prompt(&model)?;
            let answer = whole.strip_prefix(&given).unwrap_or(&whole).trim_start();
            Ok(answer.lines().next().unwrap_or_default().to_owned())
        };
        let request =
            TextRequest { prompt, tokens: self.tokens, temperature: self.temperature, seed: self.seed };
        let mut out = std::io::stdout();
        let mut printed = String::new();
        let device = baton_model::cpu();
        let text = generate(&model, adapter.as_ref(), &request, &device, |text| {
            // A token may be part of a character: what could still change is not printed yet.
            if let Ok(so_far) = shown(text) {
                let stable = so_far.trim_end_matches(char::REPLACEMENT_CHARACTER);
                if let Some(new) = stable.strip_prefix(&printed) {
                    // The whole text is checked and written at the end.
                    let _ = write!(out, "{new}").and_then(|()| out.flush());
                    printed.push_str(new);
                }
            }
        })
        .await?;
        let text = shown(&text)?;
        let rest = text.strip_prefix(&printed).unwrap_or_default();
        let end = if text.ends_with('\n') { "" } else { "\n" };
        match write!(out, "{rest}{end}").and_then(|()| out.flush()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written.context("cannot write the text"),
        }
    }
}

/// A conversation that the assistant is to go on with, and whether it is written in turns, as training does for a model
/// without a chat template.
fn conversation(message: String, system: Option<String>, template: bool) -> (Prompt, bool) {
    let system = system.map(|system| ChatMessage::new("system", system));
    let messages: Vec<_> = system.into_iter().chain([ChatMessage::new("user", message)]).collect();
    if template {
        return (Prompt::Chat(messages), false);
    }
    // The space after the colon belongs to the answer's first word.
    let turns = messages.iter().map(|message| format!("{}: {}\n", message.role, message.content));
    (Prompt::Text(turns.collect::<String>() + "assistant:"), true)
}
