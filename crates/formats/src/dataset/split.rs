//! Putting samples aside to validate on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Dataset, DatasetError, Label, Sample, SampleBody};

/// How much is put aside.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Validation {
    /// A share of the samples, from 0 (none) to below 1.
    Share(f64),
    /// So many samples; 0: none.
    Count(usize),
}

impl Dataset {
    /// Puts samples aside to validate on: `(train, validation)`, both in the order of the file.
    ///
    /// The same samples, seed and amount give the same parts. Each class gives its share. Samples of the same text stay
    /// together, so that nothing that is trained on is validated on; because of them the amount may be missed by a little.
    /// Neither part is empty, unless none is to be put aside: then validation is.
    ///
    /// # Errors
    ///
    /// When the share is none, or no two samples differ.
    pub fn split(self, validation: Validation, seed: u64) -> Result<(Self, Self), DatasetError> {
        let total = self.samples.len();
        let wanted = match validation {
            Validation::Share(share) if !(0.0..1.0).contains(&share) => {
                return Err(DatasetError::Share { share });
            }
            Validation::Share(0.0) | Validation::Count(0) => 0,
            // At least one of each part; the product is below the total.
            Validation::Share(share) => ((share * total as f64).round() as usize).max(1),
            Validation::Count(count) => count,
        };
        let empty = Self { samples: Vec::new(), labels: self.labels.clone(), skipped: 0 };
        if wanted == 0 {
            return Ok((self, empty));
        }
        let aside = choose(&self.samples, wanted.min(total.saturating_sub(1)), seed)?;
        let (mut train, mut validation) = (Self { skipped: self.skipped, ..empty.clone() }, empty);
        for (sample, aside) in self.samples.into_iter().zip(aside) {
            if aside { validation.samples.push(sample) } else { train.samples.push(sample) }
        }
        Ok((train, validation))
    }
}

/// Samples of the same text: a hash of it with the seed, which puts them in an order that is as good as random.
type Groups = BTreeMap<[u8; 32], Vec<usize>>;

/// Which samples are put aside.
fn choose(samples: &[Sample], wanted: usize, seed: u64) -> Result<Vec<bool>, DatasetError> {
    let mut distinct = 0;
    let mut first_label = BTreeMap::new();
    let mut strata: BTreeMap<Option<u32>, Groups> = BTreeMap::new();
    for (place, sample) in samples.iter().enumerate() {
        let key = key(&sample.body, seed);
        // The same text may be labelled in two ways; it goes where it was first seen.
        let class = *first_label.entry(key).or_insert_with(|| {
            distinct += 1;
            match sample.label {
                Some(Label::Class(class)) => Some(class),
                _ => None,
            }
        });
        strata.entry(class).or_default().entry(key).or_default().push(place);
    }
    if distinct < 2 {
        return Err(DatasetError::Split { samples: samples.len(), distinct });
    }
    let mut aside = vec![false; samples.len()];
    let mut taken = 0;
    let (mut seen, mut groups_left) = (0, distinct);
    for groups in strata.values() {
        seen += groups.values().map(Vec::len).sum::<usize>();
        // What is due up to here, so that what one class rounds off the next one makes up.
        let due = (wanted as f64 * seen as f64 / samples.len() as f64).round() as usize;
        for places in groups.values() {
            groups_left -= 1;
            // At least one group is put aside, and at least one is left.
            let last_chance = taken == 0 && groups_left == 0;
            let fits = taken + places.len().div_ceil(2) <= due;
            if last_chance || (fits && aside.len() > taken + places.len()) {
                for place in places {
                    if let Some(flag) = aside.get_mut(*place) {
                        *flag = true;
                    }
                }
                taken += places.len();
            }
        }
    }
    Ok(aside)
}

fn key(body: &SampleBody, seed: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    match body {
        SampleBody::Segments(segments) => segments.iter().for_each(|segment| add(&segment.text)),
        SampleBody::Chat(messages) => messages.iter().for_each(|message| {
            add(&message.role);
            add(&message.content);
        }),
        SampleBody::Task { instruction, input, output } => {
            [instruction, input, output].into_iter().for_each(|text| add(text));
        }
        SampleBody::Pair(first, second) => [first, second].into_iter().for_each(|text| add(text)),
    }
    hash.finalize().into()
}
