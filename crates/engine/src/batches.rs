//! Which samples are in which micro-batch of which step; a function of the settings and the seed alone.

use baton_formats::Example;
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
    /// The token that follows each position.
    pub targets: Vec<Vec<u32>>,
    /// 1 / (target tokens of the whole step), or 0 where no loss is taken.
    pub weights: Vec<Vec<f32>>,
    /// Target tokens in this micro-batch.
    pub tokens: u32,
}

impl Batches {
    /// `shuffle` is the seed of the orders. There must be an example.
    pub fn new(examples: Vec<Example>, batch_size: u32, micro_batches: u16, shuffle: Option<u64>) -> Self {
        let batch_size = usize::try_from(batch_size).unwrap_or(usize::MAX);
        let order = (0, Self::order_of(0, examples.len(), shuffle));
        Self { examples, batch_size, micro_batches: micro_batches.into(), shuffle, order }
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
        let count = |example: &Example| example.train.iter().skip(1).filter(|train| **train).count();
        let total: usize = batch.iter().map(|row| count(row)).sum();
        let cut = |slice: usize| slice * batch.len() / self.micro_batches;
        let slice = usize::from(micro_batch);
        let rows = batch.get(cut(slice)..cut(slice + 1))?;
        // Position t foretells token t + 1; the last token is only ever a target.
        let time = rows.iter().map(|row| row.ids.len() - 1).max()?;
        #[expect(clippy::cast_precision_loss, reason = "a weight of a mean needs no more than f32")]
        let weight = 1.0 / total.max(1) as f32;
        let pad = |values: &mut dyn Iterator<Item = u32>| {
            values.chain(std::iter::repeat(0)).take(time).collect::<Vec<u32>>()
        };
        let weights = |row: &Example| {
            let weights = row.train.iter().skip(1).map(|train| if *train { weight } else { 0.0 });
            weights.chain(std::iter::repeat(0.0)).take(time).collect::<Vec<f32>>()
        };
        Some(MicroBatchData {
            ids: rows.iter().map(|row| pad(&mut row.ids[..row.ids.len() - 1].iter().copied())).collect(),
            targets: rows.iter().map(|row| pad(&mut row.ids.iter().copied().skip(1))).collect(),
            weights: rows.iter().map(|row| weights(row)).collect(),
            tokens: u32::try_from(rows.iter().map(|row| count(row)).sum::<usize>()).unwrap_or(u32::MAX),
        })
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
                let sum: f32 = slices.iter().flat_map(|slice| slice.weights.iter().flatten()).sum();
                assert!((sum - 1.0).abs() < 1e-5, "{sum}");
                let rows: Vec<_> = slices.iter().flat_map(|slice| &slice.targets).map(|row| row[0]).collect();
                assert_eq!(rows, whole.targets.iter().map(|row| row[0]).collect::<Vec<_>>());
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
        assert_eq!(data.targets, [[1, 2, 0], [101, 102, 103]]);
        assert_eq!(data.weights, [[0.2, 0.2, 0.0], [0.2, 0.2, 0.2]]);
        assert_eq!(data.tokens, 5);
    }
}
