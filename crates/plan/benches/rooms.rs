//! The planner on a thousand random rooms: beside an equal split, the fastest device alone, and every plan there is; and
//! how long it takes for 32 blocks on 16 devices.
#![allow(clippy::unwrap_used, reason = "a measurement may stop where it stands")]

#[path = "../tests/common/mod.rs"]
mod common;

use baton_plan::*;
use common::{brute, random, rng};
use cpu_time::ThreadTime;
use rand::Rng;

/// Ratios of the planner's step time to another's.
#[derive(Default)]
struct Ratios {
    all: Vec<f64>,
    /// Rooms in which the planner has a plan and the other has none.
    none: usize,
}

impl Ratios {
    fn add(&mut self, planned: f64, other: Option<f64>) {
        match other {
            Some(other) => self.all.push(planned / other),
            None => self.none += 1,
        }
    }

    fn row(&self, name: &str) {
        let count = self.all.len().max(1) as f64;
        let mean = self.all.iter().map(|ratio| ratio.ln()).sum::<f64>() / count;
        let (best, worst) =
            self.all.iter().fold((f64::INFINITY, 0.0f64), |(low, high), r| (low.min(*r), high.max(*r)));
        println!(
            "| {name} | {} | {} | {:.3} | {best:.3} | {worst:.6} |",
            self.all.len(),
            self.none,
            mean.exp()
        );
    }
}

/// The best of these partitions that fits, over all micro-batch counts; recomputation everywhere or nowhere.
fn best_of(room: &Room, model: &ModelProfile, options: &Options, partitions: &[Partition]) -> Option<f64> {
    let mut best: Option<f64> = None;
    for partition in partitions {
        for micro_batches in
            (1..=options.batch_size as u16).filter(|m| options.batch_size.is_multiple_of((*m).into()))
        {
            for recompute in [false, true] {
                if (recompute && options.recompute == Recompute::Never)
                    || (!recompute && options.recompute == Recompute::Always)
                {
                    continue;
                }
                let mut partition =
                    Partition { micro_batches, host_recompute: recompute, ..partition.clone() };
                partition.stages.iter_mut().for_each(|stage| stage.recompute = recompute);
                let prediction = predict(room, model, options, &partition).unwrap();
                if prediction.fits() {
                    best = Some(best.map_or(prediction.step, |best| best.min(prediction.step)));
                }
            }
        }
    }
    best
}

fn partition(options: &Options, host: u16, stages: Vec<StagePlan>) -> Partition {
    Partition {
        micro_batches: 1,
        ahead: 0,
        storage: options.storages[0],
        boundary: options.boundaries[0],
        host: 0..host,
        host_recompute: false,
        stages,
    }
}

fn stage(device: usize, blocks: std::ops::Range<u16>) -> StagePlan {
    StagePlan { devices: vec![DeviceIndex(device as u16)], blocks, recompute: false }
}

fn main() {
    let rooms = 1000;
    let (mut equal, mut alone, mut every) = (Ratios::default(), Ratios::default(), Ratios::default());
    let (mut refused, mut proven, mut planned) = (0, 0, 0);
    let mut slowest = 0.0f64;
    for seed in 0..rooms {
        let mut rng = rng(seed);
        // A third of them small enough to look at every plan.
        let (devices, blocks) = match seed % 3 {
            0 => (rng.random_range(1..=4), rng.random_range(1..=6)),
            1 => (rng.random_range(2..=8), rng.random_range(4..=24)),
            _ => (rng.random_range(4..=16), rng.random_range(8..=32)),
        };
        let (room, model, options) = random(&mut rng, devices, blocks);
        let start = ThreadTime::now();
        let plan = plan(&room, &model, &options);
        slowest = slowest.max(start.elapsed().as_secs_f64());
        let small = seed % 3 == 0;
        let Ok(plan) = plan else {
            refused += 1;
            assert!(!small || brute(&room, &model, &options).is_none(), "seed {seed}: refused what fits");
            continue;
        };
        planned += 1;
        proven += u32::from(plan.proven);
        let step = plan.prediction.step;
        let blocks = u16::try_from(blocks).unwrap();
        let split =
            even_split(blocks, devices).into_iter().enumerate().map(|(device, blocks)| stage(device, blocks));
        equal.add(step, best_of(&room, &model, &options, &[partition(&options, 0, split.collect())]));
        let mut single = vec![partition(&options, blocks, vec![])];
        single.extend((0..devices).map(|device| partition(&options, 0, vec![stage(device, 0..blocks)])));
        alone.add(step, best_of(&room, &model, &options, &single));
        if small {
            every.add(step, brute(&room, &model, &options));
        }
    }
    println!(
        "{rooms} rooms: {planned} planned ({proven} proven optimal), {refused} refused; the slowest plan took {:.1} ms\n",
        slowest * 1e3
    );
    println!("| step time, planner over … | rooms | it alone fits | mean (geometric) | best | worst |");
    println!("| --- | --- | --- | --- | --- | --- |");
    equal.row("equal split over all devices");
    alone.row("the fastest device alone");
    every.row("the best of every plan there is");

    let mut times: Vec<f64> = (0..50)
        .map(|seed| {
            let mut rng = rng(seed);
            let (mut room, model, mut options) = random(&mut rng, 16, 32);
            (options.batch_size, options.recompute) = (16, Recompute::WhereNeeded);
            // No two the same.
            for (index, peer) in room.devices.iter_mut().enumerate() {
                peer.device.slowness = 1.0 + 0.01 * index as f64;
            }
            let start = ThreadTime::now();
            let plan = plan(&room, &model, &options);
            let time = start.elapsed().as_secs_f64() * 1e3;
            plan.map_or(f64::NAN, |_| time)
        })
        .filter(|time| !time.is_nan())
        .collect();
    times.sort_by(f64::total_cmp);
    println!(
        "\n32 blocks on 16 different devices, batch 16, 5 micro-batch counts, {} rooms: median {:.1} ms, slowest {:.1} ms",
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
}
