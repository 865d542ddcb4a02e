//! Which samples are in which micro-batch of which step; a function of the settings and the seed alone.

use baton_formats::{Example, Label};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The order of the samples: file order or, shuffled, a new order every epoch, one epoch after the other without a gap
/// (a batch may hold the end of one and the beginning of the next, so every batch is full).
#[derive(Debug)]
pub struct Batches {
    examples: Vec<Example>,
    batch_size: usize,
    micro_batches: usize,
    shuffle: Option<u64>,
    /// The epoch whose order was made last.
    order: (usize, Vec<usize>),
}

/// A micro-batch as the ends take it.
#[derive(Clone, Debug, PartialEq)]
pub struct MicroBatchData {
    /// Rows of token ids, padded to the longest with 0.
    pub ids: Vec<Vec<u32>>,
    /// The types of these tokens; empty where all are 0.
    pub type_ids: Vec<Vec<u32>>,
    /// What is to be learned of them.
    pub aim: Aim,
    /// Target tokens, or labels, in this micro-batch.
    pub tokens: u32,
}

/// What is learned of a micro-batch. Its loss is a part of a mean over more than this micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Aim {
    /// To foretell tokens.
    Tokens {
        /// The token that follows each position.
        targets: Vec<Vec<u32>>,
        /// 1 / (target tokens of the whole mean), or 0 where no loss is taken.
        weights: Vec<Vec<f32>>,
    },
    /// To label the samples.
    Labels {
        /// One a row.
        labels: Vec<Label>,
        /// 1 / (samples of the whole mean).
        weight: f32,
        /// Tokens of each row: attention looks both ways, and must not see the padding.
        lengths: Vec<usize>,
    },
}

impl MicroBatchData {
    /// Tokens of each row where attention must know them; empty otherwise.
    pub fn lengths(&self) -> &[usize] {
        match &self.aim {
            Aim::Tokens { .. } => &[],
            Aim::Labels { lengths, .. } => lengths,
        }
    }

    /// `rows` as a part of a mean over `all` of them.
    fn new(rows: &[&Example], all: &[&Example]) -> Option<Self> {
        if rows.iter().all(|row| row.label.is_some()) {
            return Self::labelled(rows, all.len());
        }
        let count = |example: &Example| example.train.iter().skip(1).filter(|train| **train).count();
        let total: usize = all.iter().map(|row| count(row)).sum();
        // Position t foretells token t + 1; the last token is only ever a target.
        let time = rows.iter().map(|row| row.ids.len() - 1).max()?;
        #[expect(clippy::cast_precision_loss, reason = "a weight of a mean needs no more than f32")]
        let weight = 1.0 / total.max(1) as f32;
        let weights = |row: &Example| {
            let weights = row.train.iter().skip(1).map(|train| if *train { weight } else { 0.0 });
            weights.chain(std::iter::repeat(0.0)).take(time).collect::<Vec<f32>>()
        };
        Some(Self {
            ids: rows.iter().map(|row| pad(&row.ids[..row.ids.len() - 1], time)).collect(),
            type_ids: Vec::new(),
            aim: Aim::Tokens {
                targets: rows.iter().map(|row| pad(row.ids.get(1..).unwrap_or_default(), time)).collect(),
                weights: rows.iter().map(|row| weights(row)).collect(),
            },
            tokens: u32::try_from(rows.iter().map(|row| count(row)).sum::<usize>()).unwrap_or(u32::MAX),
        })
    }

    fn labelled(rows: &[&Example], samples: usize) -> Option<Self> {
        let time = rows.iter().map(|row| row.ids.len()).max()?;
        let typed = rows.iter().any(|row| !row.type_ids.is_empty());
        #[expect(clippy::cast_precision_loss, reason = "a weight of a mean needs no more than f32")]
        let weight = 1.0 / samples.max(1) as f32;
        Some(Self {
            ids: rows.iter().map(|row| pad(&row.ids, time)).collect(),
            type_ids: if typed {
                rows.iter().map(|row| pad(&row.type_ids, time)).collect()
            } else {
                Vec::new()
            },
            aim: Aim::Labels {
                labels: rows.iter().filter_map(|row| row.label).collect(),
                weight,
                lengths: rows.iter().map(|row| row.ids.len()).collect(),
            },
            tokens: u32::try_from(rows.len()).unwrap_or(u32::MAX),
        })
    }

    /// Examples in their order as slices of at most `size`, all of them parts of one mean.
    pub fn all(examples: &[Example], size: usize) -> Vec<Self> {
        let all: Vec<&Example> = examples.iter().collect();
        all.chunks(size.max(1)).filter_map(|rows| Self::new(rows, &all)).collect()
    }
}

fn pad(values: &[u32], time: usize) -> Vec<u32> {
    let mut row = values.to_vec();
    row.resize(time, 0);
    row
}

impl Batches {
    /// `shuffle` is the seed of the orders. There must be an example.
    pub fn new(examples: Vec<Example>, batch_size: u32, micro_batches: u16, shuffle: Option<u64>) -> Self {
        let batch_size = usize::try_from(batch_size).unwrap_or(usize::MAX);
        let order = (0, Self::order_of(0, examples.len(), shuffle));
        Self { examples, batch_size, micro_batches: micro_batches.into(), shuffle, order }
    }

    /// Cuts every step in so many slices from now on.
    pub fn cut_in(&mut self, micro_batches: u16) {
        self.micro_batches = micro_batches.max(1).into();
    }

    /// Samples in an epoch.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is nothing to learn.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    fn order_of(epoch: usize, len: usize, shuffle: Option<u64>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        if let Some(seed) = shuffle {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(epoch as u64 + 1);
            order.shuffle(&mut rng);
        }
        order
    }

    /// Which example stands at a position of the endless order.
    fn at(&mut self, position: usize) -> usize {
        let len = self.examples.len();
        let (epoch, place) = (position / len, position % len);
        if self.order.0 != epoch {
            self.order = (epoch, Self::order_of(epoch, len, self.shuffle));
        }
        self.order.1[place]
    }

    /// A slice of a step: contiguous samples, as evenly as it goes. None if there is no text at all.
    pub fn micro_batch(&mut self, step: u32, micro_batch: u16) -> Option<MicroBatchData> {
        if self.examples.is_empty() {
            return None;
        }
        let first = step as usize * self.batch_size;
        let places: Vec<usize> = (first..first + self.batch_size).map(|position| self.at(position)).collect();
        let batch: Vec<&Example> = places.iter().map(|place| &self.examples[*place]).collect();
        let cut = |slice: usize| slice * batch.len() / self.micro_batches;
        let slice = usize::from(micro_batch);
        MicroBatchData::new(batch.get(cut(slice)..cut(slice + 1))?, &batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(lens: &[usize]) -> Vec<Example> {
        let example = |(number, &len): (usize, &usize)| Example {
            ids: (0..len).map(|t| u32::try_from(100 * number + t).unwrap()).collect(),
            train: (0..len).map(|t| t > 0).collect(),
            ..Example::default()
        };
        lens.iter().enumerate().map(example).collect()
    }

    fn targets(data: &MicroBatchData) -> (&[Vec<u32>], &[Vec<f32>]) {
        match &data.aim {
            Aim::Tokens { targets, weights } => (targets, weights),
            Aim::Labels { .. } => (&[], &[]),
        }
    }

    #[test]
    fn unshuffled_batches_follow_the_file_and_wrap() {
        let mut batches = Batches::new(examples(&[3, 4, 5]), 2, 1, None);
        let firsts = |batches: &mut Batches, step| {
            batches.micro_batch(step, 0).unwrap().ids.iter().map(|row| row[0]).collect::<Vec<_>>()
        };
        assert_eq!(firsts(&mut batches, 0), [0, 100]);
        assert_eq!(firsts(&mut batches, 1), [200, 0]);
        assert_eq!(firsts(&mut batches, 2), [100, 200]);
    }

    #[test]
    fn a_step_is_the_same_whatever_its_micro_batches() {
        for shuffle in [None, Some(7)] {
            let whole =
                Batches::new(examples(&[3, 9, 5, 4, 2, 6, 7]), 5, 1, shuffle).micro_batch(3, 0).unwrap();
            for count in [2, 3, 5_u16] {
                let mut batches = Batches::new(examples(&[3, 9, 5, 4, 2, 6, 7]), 5, count, shuffle);
                let slices: Vec<_> = (0..count).map(|m| batches.micro_batch(3, m).unwrap()).collect();
                assert_eq!(slices.iter().map(|slice| slice.tokens).sum::<u32>(), whole.tokens);
                let sum: f32 = slices.iter().flat_map(|slice| targets(slice).1.iter().flatten()).sum();
                assert!((sum - 1.0).abs() < 1e-5, "{sum}");
                let rows: Vec<_> =
                    slices.iter().flat_map(|slice| targets(slice).0).map(|row| row[0]).collect();
                assert_eq!(rows, targets(&whole).0.iter().map(|row| row[0]).collect::<Vec<_>>());
                assert!(slices.iter().all(|slice| !slice.ids.is_empty()));
            }
        }
    }

    #[test]
    fn shuffled_epochs_hold_every_sample_once_in_new_orders() {
        let mut batches = Batches::new(examples(&[2; 20]), 20, 1, Some(1));
        let mut epoch =
            |step| batches.micro_batch(step, 0).unwrap().ids.iter().map(|row| row[0]).collect::<Vec<_>>();
        let (first, second, again) = (epoch(0), epoch(1), epoch(0));
        assert_ne!(first, second);
        assert_eq!(first, again);
        for mut order in [first, second] {
            order.sort_unstable();
            assert_eq!(order, (0..20).map(|number| number * 100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn targets_are_the_next_tokens_and_padding_weighs_nothing() {
        let data = Batches::new(examples(&[3, 4]), 2, 1, None).micro_batch(0, 0).unwrap();
        assert_eq!(data.ids, [[0, 1, 0], [100, 101, 102]]);
        assert_eq!(targets(&data).0, [[1, 2, 0], [101, 102, 103]]);
        assert_eq!(targets(&data).1, [[0.2, 0.2, 0.0], [0.2, 0.2, 0.2]]);
        assert_eq!(data.tokens, 5);
    }

    #[test]
    fn labelled_samples_are_whole_and_say_how_long_they_are() {
        let labelled = |(number, mut example): (u32, Example)| {
            example.label = Some(Label::Class(number));
            example
        };
        let examples: Vec<_> = (0..).zip(examples(&[3, 1, 2])).map(labelled).collect();
        let data = Batches::new(examples.clone(), 2, 1, None).micro_batch(0, 0).unwrap();
        assert_eq!((data.ids.as_slice(), data.tokens), (&[vec![0, 1, 2], vec![100, 0, 0]][..], 2));
        let labels = vec![Label::Class(0), Label::Class(1)];
        assert_eq!(data.aim, Aim::Labels { labels, weight: 0.5, lengths: vec![3, 1] });
        let parts = MicroBatchData::all(&examples, 2);
        assert!(
            parts.iter().all(|part| matches!(part.aim, Aim::Labels { weight, .. } if weight == 1.0 / 3.0))
        );
        assert_eq!(parts.iter().map(|part| part.tokens).sum::<u32>(), 3);
    }
}
