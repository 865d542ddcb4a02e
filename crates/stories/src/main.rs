//! `baton-stories`: makes the embedded default model and its sample text, tells stories, measures a model.

use anyhow::{Context, Result};
use baton_formats::{DirFiles, ModelConfig, Tokenizer};
use baton_stories::model::{Recipe, loss};
use baton_stories::{Purpose, Storyteller, Voice, sample_text, tokenizer};
use clap::{Parser, Subcommand, ValueEnum};
use futures::executor::block_on;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The embedded default model: text, tokenizer and weights from a seed.
#[derive(Parser)]
#[command(name = "baton-stories")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make model/ and sample.txt in a folder
    Make {
        /// The folder
        #[arg(long, default_value = "static")]
        out: PathBuf,
        #[arg(long, default_value_t = Recipe::default().seed)]
        seed: u64,
        /// Optimizer updates
        #[arg(long, default_value_t = Recipe::default().steps)]
        steps: u32,
        /// Stories a step
        #[arg(long, default_value_t = Recipe::default().batch_size)]
        batch_size: usize,
        /// Peak learning rate
        #[arg(long, default_value_t = Recipe::default().lr)]
        lr: f64,
        /// Lines of the sample text
        #[arg(long, default_value_t = 400)]
        lines: usize,
    },
    /// Print stories
    Tell {
        #[arg(long, value_enum, default_value_t = Teller::Plain)]
        voice: Teller,
        #[arg(long, default_value_t = 0)]
        seed: u64,
        #[arg(long, default_value_t = 10)]
        count: usize,
    },
    /// Print a model's loss on new stories of both voices, in nats a token
    Measure {
        /// Folder of the model
        #[arg(long, default_value = "static/model")]
        model: PathBuf,
        #[arg(long, default_value_t = 200)]
        stories: usize,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Teller {
    Plain,
    Pirate,
    /// What the base model is trained on
    Training,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Make { out, seed, steps, batch_size, lr, lines } => {
            let recipe = Recipe { seed, steps, batch_size, lr, ..Recipe::default() };
            block_on(make(&out, &recipe, lines))
        }
        Command::Tell { voice, seed, count } => {
            let mut teller = Storyteller::new(seed, Purpose::Training);
            for _ in 0..count {
                let line = match voice {
                    Teller::Plain => teller.tell(Voice::Plain).text,
                    Teller::Pirate => teller.tell(Voice::Pirate).text,
                    Teller::Training => teller.line(),
                };
                println!("{line}");
            }
            Ok(())
        }
        Command::Measure { model, stories } => block_on(measure(&model, stories)),
    }
}

/// Writes everything at the end, so that a run cut short leaves the old model whole.
async fn make(out: &Path, recipe: &Recipe, lines: usize) -> Result<()> {
    let began = Instant::now();
    let tokenizer_json = tokenizer::train(recipe.seed)?;
    let tokenizer = Tokenizer::from_bytes(tokenizer_json.as_bytes())?;
    println!("the tokenizer has {} tokens ({:.1} s)", tokenizer.vocab_size(), began.elapsed().as_secs_f64());
    let began = Instant::now();
    let (mut mean, mut tokens) = (None, 0);
    let weights = recipe
        .train(&tokenizer, &baton_model::cpu(), |step, loss, count| {
            tokens += count;
            // A single batch says little.
            let smooth = mean.map_or(loss, |mean| 0.95 * mean + 0.05 * loss);
            mean = Some(smooth);
            let done = step + 1;
            if done == 1 || done == recipe.steps || done.is_multiple_of(25) {
                let seconds = began.elapsed().as_secs_f64();
                println!(
                    "step {done}/{}  loss {smooth:.4}  {:.0} tokens/s  {:.0} s left",
                    recipe.steps,
                    tokens as f64 / seconds,
                    seconds / f64::from(done) * f64::from(recipe.steps - done),
                );
            }
        })
        .await?;
    println!("trained on {tokens} tokens in {:.0} s", began.elapsed().as_secs_f64());

    let model = out.join("model");
    std::fs::create_dir_all(&model).with_context(|| format!("cannot make {}", model.display()))?;
    let write = |path: PathBuf, bytes: &[u8]| {
        println!("{} bytes in {}", bytes.len(), path.display());
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    let pretty = |json: serde_json::Value| format!("{json:#}\n").into_bytes();
    write(model.join("config.json"), &pretty(recipe.config()))?;
    write(model.join("tokenizer.json"), tokenizer_json.as_bytes())?;
    write(model.join("tokenizer_config.json"), &pretty(tokenizer::config()))?;
    write(model.join("model.safetensors"), &weights)?;
    write(out.join("sample.txt"), sample_text(recipe.seed, lines).as_bytes())?;
    measure(&model, 200).await
}

async fn measure(model: &Path, stories: usize) -> Result<()> {
    let read = |name: &str| {
        let path = model.join(name);
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let config = ModelConfig::parse(&read("config.json")?)?;
    let tokenizer = Tokenizer::from_bytes(&read("tokenizer.json")?)?;
    let files = DirFiles::new(model);
    for (voice, name) in [(Voice::Plain, "plain"), (Voice::Pirate, "pirate")] {
        let loss = loss(&files, &config, &tokenizer, voice, stories).await?;
        println!("loss on {stories} new {name} stories: {loss:.4}");
    }
    Ok(())
}
