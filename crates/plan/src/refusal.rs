//! Why a model does not fit a room, and what would make it fit: each remedy is one that was tried and works.

use crate::costs::{Costs, Layout};
use crate::plan::{MAX_DEVICES, Prediction, prediction};
use crate::profile::{
    BoundaryPrecision, LinkProfile, ModelProfile, Node, Options, PeerProfile, Recompute, Room, Storage,
};
use crate::search;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A change that is enough by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Remedy {
    /// One more device with so many usable bytes.
    AnotherDevice {
        /// Bytes.
        memory: u64,
    },
    /// Frozen weights in a smaller storage.
    SmallerStorage(Storage),
    /// Shorter samples.
    ShorterSamples {
        /// Tokens of a sample, at most.
        tokens: u64,
    },
    /// Fewer samples at once, activations computed again in backward.
    MoreMicroBatches {
        /// Micro-batches of a step.
        micro_batches: u16,
    },
    /// Fewer samples in a step.
    SmallerBatch {
        /// Samples of a step, each a micro-batch of its own, activations computed again in backward.
        batch_size: u32,
    },
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnotherDevice { memory } => {
                write!(f, "with another device that can spare {}", Bytes(*memory))
            }
            Self::SmallerStorage(storage) => write!(f, "with {} weights", storage.words()),
            Self::ShorterSamples { tokens } => write!(f, "with texts of at most {tokens} tokens"),
            Self::MoreMicroBatches { micro_batches } => {
                write!(
                    f,
                    "with {micro_batches} micro-batches a step and activations computed again in backward"
                )
            }
            Self::SmallerBatch { batch_size } => write!(f, "with {batch_size} samples a step"),
        }
    }
}

/// A model that does not fit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub struct Refusal {
    /// The plan that lacks the fewest bytes of those looked at, in the smallest allowed storage: who needs what, and has
    /// what.
    pub nearest: Prediction,
    /// The storage of it.
    pub storage: Storage,
    /// Bytes that all of its devices need together.
    pub needed: u64,
    /// Bytes that all devices of the room have together.
    pub usable: u64,
    /// What would make it fit, each by itself; empty if none of them would.
    pub remedies: Vec<Remedy>,
}

/// A number of bytes in words, in the unit that a person would choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ 0..10_000 => write!(f, "{bytes} bytes"),
            bytes @ 10_000..10_000_000 => write!(f, "{} kB", bytes.div_ceil(1000)),
            bytes => write!(f, "{} MB", bytes.div_ceil(1_000_000)),
        }
    }
}

impl Refusal {
    /// The same words as those of [`Display`](fmt::Display), with devices called by their names.
    pub fn words(&self, name: impl Fn(Node) -> String) -> String {
        Worded(self, name).to_string()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Worded(self, |node: Node| node.to_string()).fmt(f)
    }
}

/// A refusal, and what devices are called in it.
struct Worded<'a, N>(&'a Refusal, N);

impl<N: Fn(Node) -> String> fmt::Display for Worded<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(refusal, name) = self;
        let Refusal { nearest, storage, needed, usable, remedies } = *refusal;
        let words = storage.words();
        write!(f, "the model does not fit this room: with {words} weights it needs {}", Bytes(*needed))?;
        write!(f, " and the devices can spare {}", Bytes(*usable))?;
        for load in nearest.loads.iter().filter(|load| load.memory.total() > load.usable) {
            write!(f, "; {} would need {}", name(load.node), Bytes(load.memory.total()))?;
            write!(f, " and has {}", Bytes(load.usable))?;
        }
        for (index, remedy) in remedies.iter().enumerate() {
            write!(f, "{} {remedy}", if index == 0 { ". It would fit" } else { ", or" })?;
        }
        if remedies.is_empty() {
            write!(f, ". No single change that was tried makes it fit; choose a smaller model")?;
        }
        write!(f, ".")
    }
}

pub(crate) fn explain(room: &Room, model: &ModelProfile, options: &Options) -> Refusal {
    let storage = options.storages.iter().copied().max().unwrap_or(Storage::F32);
    let costs = smallest(room, model, options, storage);
    let (_, shape) = search::roomiest(&costs);
    let mut layout = Layout::default();
    layout.lay(&costs, &shape, None);
    let nearest = prediction(&costs, &layout, &shape);
    let usable = (0..=costs.devices).map(|node| costs.memory(node)).fold(0, u64::saturating_add);
    let needed = nearest.loads.iter().map(|load| load.memory.total()).fold(0, u64::saturating_add);
    let fits = |room: &Room, model: &ModelProfile, options: &Options, storage| {
        search::roomiest(&smallest(room, model, options, storage)).0 == 0
    };
    let mut remedies = Vec::new();

    let most = costs.memory_of_everything();
    let with = |memory: u64| {
        let mut room = room.clone();
        room.devices.push(newcomer(&room, memory));
        fits(&room, model, options, storage)
    };
    if room.devices.len() < MAX_DEVICES && with(most) {
        // To half a percent of it.
        let part = most / 200 + 1;
        let parts = least(1, 200, |parts| with(parts.saturating_mul(part)));
        remedies.extend(parts.map(|parts| Remedy::AnotherDevice { memory: parts.saturating_mul(part) }));
    }
    let smaller = Storage::ALL.into_iter().filter(|smaller| *smaller > storage);
    remedies.extend(
        smaller
            .map(|smaller| (smaller, fits(room, model, options, smaller)))
            .find_map(|(smaller, fits)| fits.then_some(Remedy::SmallerStorage(smaller))),
    );
    let again = Options { recompute: Recompute::WhereNeeded, ..options.clone() };
    let count = u16::try_from(options.batch_size).unwrap_or(u16::MAX);
    let cut = Options { micro_batches: vec![count], ..again };
    let would_change = options.recompute == Recompute::Never || !options.counts().contains(&count);
    if would_change && fits(room, model, &cut, storage) {
        remedies.push(Remedy::MoreMicroBatches { micro_batches: count });
    }
    let tokens = least(1, model.tokens.saturating_sub(1), |less| {
        let shorter = ModelProfile { tokens: model.tokens - less, ..model.clone() };
        fits(room, &shorter, options, storage)
    });
    remedies.extend(tokens.map(|less| Remedy::ShorterSamples { tokens: model.tokens - less }));
    if remedies.iter().all(|remedy| !matches!(remedy, Remedy::MoreMicroBatches { .. })) {
        let batch = least(1, u64::from(options.batch_size.saturating_sub(1)), |less| {
            let batch_size = options.batch_size.saturating_sub(u32::try_from(less).unwrap_or(u32::MAX));
            let count = u16::try_from(batch_size).unwrap_or(u16::MAX);
            let options = Options { batch_size, micro_batches: vec![count], ..cut.clone() };
            fits(room, model, &options, storage)
        });
        let size = |less| options.batch_size.saturating_sub(u32::try_from(less).unwrap_or(u32::MAX));
        remedies.extend(batch.map(|less| Remedy::SmallerBatch { batch_size: size(less) }));
    }
    Refusal { nearest, storage, needed, usable, remedies }
}

/// The costs with the smallest micro-batches: what does not fit with them does not fit.
fn smallest(room: &Room, model: &ModelProfile, options: &Options, storage: Storage) -> Costs {
    let count = options.counts().last().copied().unwrap_or(1);
    Costs::new(room, model, options, count, storage, BoundaryPrecision::F16)
}

/// A device like the first one, or like the host, with so much memory.
fn newcomer(room: &Room, memory: u64) -> PeerProfile {
    let mut peer = room
        .devices
        .first()
        .cloned()
        .unwrap_or_else(|| PeerProfile { device: room.host.device.clone(), link: LinkProfile::IDEAL });
    peer.device.memory = memory;
    peer
}

/// The least of `from..=to` that is enough, if the last one is; more than enough is enough.
fn least(from: u64, to: u64, mut enough: impl FnMut(u64) -> bool) -> Option<u64> {
    if from > to || !enough(to) {
        return None;
    }
    let (mut low, mut high) = (from, to);
    while low < high {
        let middle = low + (high - low) / 2;
        if enough(middle) { high = middle } else { low = middle + 1 }
    }
    Some(low)
}
