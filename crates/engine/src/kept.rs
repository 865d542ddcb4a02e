//! A run as its host keeps it on its own disk, so that it goes on after the page was closed, loaded again or crashed.
//!
//! What was chosen is written when the run begins, and what is complete after every step: adapters, moments and what the
//! charts show. Two places take turns, so that a write that is torn leaves the step before. The text stays where it was:
//! on the host's own device.

use crate::cache::AnyCache;
use crate::evaluate::Judgement;
use baton_formats::ChunkCache;
use baton_formats::dataset::Mapping;
use baton_formats::files::{Hash, sha256};
use baton_protocol::Step;
use baton_protocol::coordinator::StepReport;
use baton_protocol::message::BlockBytes;
use baton_protocol::run::{ModelSource, Settings};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The layout of what is kept; another one is not read.
const FORM: u32 = 1;
/// A note is at most 16 MiB (`baton_formats::files::OpfsCache`).
const PIECE: usize = 8 << 20;
/// More would not be read back: 4 GiB of adapters and moments is far beyond what phones train.
const MOST_PIECES: usize = 512;
/// A longer text is not kept, and its run cannot go on later: the browser's disk is for models.
pub const MOST_TEXT: usize = 64 << 20;

/// What was chosen for a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptRun {
    form: u32,
    /// What the model is called.
    pub model: String,
    /// What PEFT finds it by.
    pub base: Option<String>,
    /// Where the stages read it.
    pub source: ModelSource,
    /// Where the host reads it; none if it was a person's own files, which only they can choose again.
    pub address: Option<String>,
    /// The model's `config.json`, to know own files again by.
    pub config: String,
    /// The text's file name.
    pub text: String,
    /// How it is read, as JSON: its types tell themselves apart by names.
    mapping: String,
    /// The settings, as JSON.
    settings: String,
    /// The text's bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

impl KeptRun {
    /// A run that begins; none if its text is too long to be kept.
    #[expect(clippy::too_many_arguments, reason = "each is of a meaning of its own")]
    pub fn new(
        model: String,
        base: Option<String>,
        source: ModelSource,
        address: Option<String>,
        config: String,
        (text, bytes): (String, Vec<u8>),
        mapping: &Mapping,
        settings: &Settings,
    ) -> Option<Self> {
        let mapping = serde_json::to_string(mapping).ok()?;
        let settings = serde_json::to_string(settings).ok()?;
        let run = Self { form: FORM, model, base, source, address, config, text, mapping, settings, bytes };
        (run.bytes.len() <= MOST_TEXT).then_some(run)
    }

    /// How the text is read, and the settings; none if this version does not know them.
    pub fn choices(&self) -> Option<(Mapping, Settings)> {
        let settings: Settings = serde_json::from_str(&self.settings).ok()?;
        settings.validate().ok()?;
        Some((serde_json::from_str(&self.mapping).ok()?, settings))
    }
}

/// What is complete of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeptSteps {
    /// Complete steps.
    pub committed: Step,
    /// Adapters and moments after them.
    pub states: Vec<BlockBytes>,
    /// Every step: what it took beside its numbers.
    pub reports: Vec<(StepReport, Duration)>,
    /// What the model was worth after so many steps.
    pub judged: Vec<(u32, Judgement)>,
}

/// The steps of one run, among those that lie there.
#[derive(Deserialize)]
struct Slot {
    run: Hash,
    steps: KeptSteps,
}

/// A [`Slot`] that is written, its states where they are: they may be tens of megabytes.
#[derive(Serialize)]
struct SlotRef<'a> {
    run: Hash,
    steps: StepsRef<'a>,
}

/// [`KeptSteps`] by reference, field for field.
#[derive(Serialize)]
struct StepsRef<'a> {
    committed: Step,
    states: Vec<&'a BlockBytes>,
    reports: &'a [(StepReport, Duration)],
    judged: &'a [(u32, Judgement)],
}

/// Steps of a run as they lie on the disk, for [`RunStore::keep`].
pub struct EncodedSteps(Vec<u8>);

impl EncodedSteps {
    /// What is complete of `run`; `states` are adapters and moments after so many steps.
    pub fn new<'a>(
        run: Hash,
        committed: Step,
        states: impl Iterator<Item = &'a BlockBytes>,
        reports: &'a [(StepReport, Duration)],
        judged: &'a [(u32, Judgement)],
    ) -> Option<Self> {
        let steps = StepsRef { committed, states: states.collect(), reports, judged };
        let slot = SlotRef { run, steps };
        let size = postcard::experimental::serialized_size(&slot).ok()?;
        postcard::to_extend(&slot, Vec::with_capacity(size)).ok().map(Self)
    }
}

/// What a whole of pieces is.
#[derive(Serialize, Deserialize)]
struct Head {
    pieces: usize,
    sha256: Hash,
}

/// Where a run is kept: one at a time.
#[derive(Clone, Debug)]
pub struct RunStore {
    cache: AnyCache,
}

impl RunStore {
    /// A store in a cache of its own.
    pub fn new(cache: AnyCache) -> Self {
        Self { cache }
    }

    /// Keeps a run in place of the one before. Gives what its steps are told by.
    pub async fn begin(&self, run: &KeptRun) -> Option<Hash> {
        let bytes = postcard::to_allocvec(run).ok()?;
        self.write("run", &bytes).await;
        Some(sha256(&bytes))
    }

    /// Keeps the steps of a run. `turn` counts up.
    pub async fn keep(&self, steps: EncodedSteps, turn: u32) {
        self.write(slot(turn), &steps.0).await;
    }

    /// The run that is kept, and its last complete step.
    pub async fn load(&self) -> Option<(KeptRun, KeptSteps, Hash)> {
        let bytes = self.read("run").await?;
        let run: KeptRun = postcard::from_bytes(&bytes).ok().filter(|run: &KeptRun| run.form == FORM)?;
        let own = sha256(&bytes);
        let mut last: Option<KeptSteps> = None;
        for turn in 0..2 {
            let slot =
                self.read(slot(turn)).await.and_then(|bytes| postcard::from_bytes::<Slot>(&bytes).ok());
            let steps = slot.filter(|slot| slot.run == own).map(|slot| slot.steps);
            if let Some(steps) =
                steps.filter(|steps| last.as_ref().is_none_or(|l| steps.committed > l.committed))
            {
                last = Some(steps);
            }
        }
        Some((run, last.unwrap_or_default(), own))
    }

    /// Forgets it.
    pub async fn forget(&self) {
        self.write("run", &[]).await;
        for turn in 0..2 {
            self.write(slot(turn), &[]).await;
        }
    }

    /// The pieces first: until the head says so, they are nothing.
    async fn write(&self, name: &str, bytes: &[u8]) {
        let pieces = bytes.chunks(PIECE);
        let head = Head { pieces: pieces.len(), sha256: sha256(bytes) };
        for (at, piece) in pieces.enumerate() {
            self.cache.remember(&key(name, Some(at)), piece).await;
        }
        if let Ok(head) = postcard::to_allocvec(&head) {
            self.cache.remember(&key(name, None), &head).await;
        }
    }

    async fn read(&self, name: &str) -> Option<Vec<u8>> {
        let head: Head = postcard::from_bytes(&self.cache.recall(&key(name, None)).await?).ok()?;
        let mut bytes = Vec::new();
        for at in 0..head.pieces.min(MOST_PIECES) {
            bytes.extend(self.cache.recall(&key(name, Some(at))).await?);
        }
        (sha256(&bytes) == head.sha256).then_some(bytes)
    }
}

fn slot(turn: u32) -> &'static str {
    if turn.is_multiple_of(2) { "steps 0" } else { "steps 1" }
}

fn key(name: &str, piece: Option<usize>) -> Hash {
    sha256(format!("baton kept {name} {piece:?}").as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn steps_that_were_written_where_they_are_read_back_the_same() {
        let run = sha256(b"a run");
        let states = [(0, vec![1, 2, 3]), (1, vec![])].map(|(block, bytes)| BlockBytes { block, bytes });
        let report = StepReport { step: Step(6), loss: 1.5, lr: 1e-3, grad_norm: 0.25, tokens: 9 };
        let reports = vec![(report, Duration::from_millis(40))];
        let encoded = EncodedSteps::new(run, Step(7), states.iter(), &reports, &[]).unwrap();
        assert_eq!(encoded.0.len(), encoded.0.capacity(), "nothing is allocated that is not written");
        let slot: Slot = postcard::from_bytes(&encoded.0).unwrap();
        let want = KeptSteps { committed: Step(7), states: states.to_vec(), reports, judged: vec![] };
        assert_eq!((slot.run, slot.steps), (run, want));
    }
}
