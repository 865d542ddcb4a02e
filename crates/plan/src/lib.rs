//! Plans: which device runs which blocks.
//!
//! For now every device is taken to be as good as any other; profiles and the search over them come with the planner.

use std::ops::Range;

/// Cuts `blocks` blocks in at most `devices` contiguous stages whose lengths differ by at most one, the longer ones
/// last: the first stages hold the activations of more micro-batches. No stage is empty, so there may be fewer stages
/// than devices.
pub fn even_split(blocks: u16, devices: usize) -> Vec<Range<u16>> {
    let stages = u16::try_from(devices).unwrap_or(u16::MAX).min(blocks);
    let mut start = 0;
    (0..stages)
        .map(|stage| {
            let left = stages - stage;
            let len = (blocks - start) / left;
            let range = start..start + len;
            start = range.end;
            range
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_one_owner_and_stages_are_even() {
        for blocks in 0..40 {
            for devices in 0..45 {
                let plan = even_split(blocks, devices);
                assert_eq!(plan.len(), devices.min(blocks.into()));
                let covered: Vec<u16> = plan.iter().cloned().flatten().collect();
                if devices > 0 {
                    assert_eq!(covered, (0..blocks).collect::<Vec<_>>());
                }
                let lens: Vec<usize> = plan.iter().map(ExactSizeIterator::len).collect();
                assert!(lens.is_sorted() && lens.last().unwrap_or(&0) - lens.first().unwrap_or(&0) <= 1);
            }
        }
    }
}
