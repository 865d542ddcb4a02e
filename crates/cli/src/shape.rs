//! The flags of a run that say what it asks of devices' memory.

use crate::words::grouped;
use baton_formats::config::ALL_LINEAR;
use baton_protocol::run::Settings;
use clap::Args;

/// The most devices that are spread over.
const MOST_DEVICES: usize = 10_000;

/// How many devices share a model, as a flag says it.
pub(crate) fn count_of_devices(text: &str) -> Result<usize, String> {
    let count = text.trim().parse().ok().filter(|count| (1..=MOST_DEVICES).contains(count));
    count.ok_or_else(|| {
        format!(
            "give whole numbers from 1 to {}, separated by commas, such as 1,2,4",
            grouped(MOST_DEVICES as u64)
        )
    })
}

/// For an estimate of what a run takes.
#[derive(Args)]
pub(crate) struct RunShape {
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

impl RunShape {
    /// A run of this shape; everything else as by default.
    pub(crate) fn settings(self) -> Settings {
        let Self { batch_size, micro_batches, seq_len, lora_rank, targets } = self;
        Settings { batch_size, micro_batches, seq_len, lora_rank, targets, ..Settings::default() }
    }
}
