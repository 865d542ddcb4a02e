//! What is measured of a room: devices, links, and the model in bytes and relative work.

use crate::bounded::at_most;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// How a device holds frozen weights, from the most exact to the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Storage {
    /// 4 bytes a number.
    F32,
    /// 2 bytes a number.
    Bf16,
    /// About 1.06 bytes a number.
    Int8,
    /// About 0.53 bytes a number.
    Nf4,
}

impl Storage {
    /// All of them, from the most exact to the smallest.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Nf4];

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::F32 => "32-bit",
            Self::Bf16 => "16-bit",
            Self::Int8 => "8-bit",
            Self::Nf4 => "4-bit",
        }
    }
}

/// How hidden states and their gradients travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BoundaryPrecision {
    /// 4 bytes a number.
    F32,
    /// 2 bytes a number.
    F16,
    /// About 1 byte a number.
    Int8,
}

impl BoundaryPrecision {
    /// Bytes that `numbers` of them take.
    pub fn bytes(self, numbers: u64) -> u64 {
        match self {
            Self::F32 => numbers.saturating_mul(4),
            Self::F16 => numbers.saturating_mul(2),
            // A scale, f32, for 64 numbers.
            Self::Int8 => numbers.saturating_add(numbers / 16),
        }
    }
}

/// A device's place in [`Room::devices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceIndex(pub u16);

/// One end of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Node {
    /// The host, which runs the ends.
    Host,
    /// A peer.
    Device(DeviceIndex),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => write!(f, "the host"),
            Self::Device(DeviceIndex(index)) => write!(f, "device {}", index + 1),
        }
    }
}

/// A number that no measurement gives.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the profile of {whose} says {what} = {value}; measure it again")]
pub struct BadProfile {
    /// Whose profile.
    pub whose: String,
    /// Which number.
    pub what: &'static str,
    /// What it is.
    pub value: f64,
}

/// Seconds as a function of the samples worked on at once.
///
/// Affine between the measured points; beyond them with the median of all pairs' slopes (Theil and Sen), so that one bad
/// point does not tilt it. Never falling: points that say that more samples take less time are pooled (isotonic
/// regression by pool adjacent violators), and of several measurements of the same size the median counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(into = "Vec<(u32, f64)>")]
pub struct Curve {
    /// Samples and seconds, both rising.
    points: Vec<(u32, f64)>,
    /// Seconds a sample beyond the points.
    slope: f64,
}

impl Curve {
    /// From measured `(samples, seconds)` in any order; more than one of a size is well.
    ///
    /// # Errors
    /// There is no point, one has no samples, or its seconds are negative or not finite.
    pub fn new(measured: impl IntoIterator<Item = (u32, f64)>) -> Result<Self, BadProfile> {
        let bad = |what, value| BadProfile { whose: "a device".into(), what, value };
        let mut by_size: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for (samples, seconds) in measured {
            if samples == 0 {
                return Err(bad("samples of a measured job", 0.0));
            }
            if !(0.0..=LONGEST).contains(&seconds) {
                return Err(bad("seconds of a measured job", seconds));
            }
            by_size.entry(samples).or_default().push(seconds);
        }
        if by_size.is_empty() {
            return Err(bad("number of measured jobs", 0.0));
        }
        // Pools of neighbours: sizes, sum of seconds.
        let mut pools: Vec<(Vec<u32>, f64)> = Vec::new();
        let mean = |pool: &(Vec<u32>, f64)| pool.1 / pool.0.len() as f64;
        for (samples, mut seconds) in by_size {
            let mut pool = (vec![samples], median(&mut seconds));
            while let Some(before) = pools.pop_if(|before| mean(before) > mean(&pool)) {
                let (mut sizes, sum) = before;
                sizes.append(&mut pool.0);
                pool = (sizes, sum + pool.1);
            }
            pools.push(pool);
        }
        let points: Vec<(u32, f64)> = pools
            .iter()
            .flat_map(|pool| pool.0.iter().map(move |&samples| (samples, pool.1 / pool.0.len() as f64)))
            .collect();
        let slope = match points.as_slice() {
            [(samples, seconds)] => seconds / f64::from(*samples),
            points => {
                let pairs =
                    points.iter().enumerate().flat_map(|(i, a)| points[..i].iter().map(move |b| (a, b)));
                let mut slopes: Vec<f64> = pairs.map(|(a, b)| (a.1 - b.1) / f64::from(a.0 - b.0)).collect();
                median(&mut slopes)
            }
        };
        Ok(Self { points, slope })
    }

    /// `overhead` seconds and `each` more for every sample.
    ///
    /// # Errors
    /// As [`Curve::new`].
    pub fn affine(overhead: f64, each: f64) -> Result<Self, BadProfile> {
        Self::new([(1, overhead + each), (2, overhead + 2.0 * each)])
    }

    /// Seconds for `samples` at once.
    pub fn at(&self, samples: u32) -> f64 {
        let right = self.points.partition_point(|point| point.0 < samples);
        let (left, right) = (right.checked_sub(1).and_then(|i| self.points.get(i)), self.points.get(right));
        match (left, right) {
            (Some(left), Some(right)) => {
                let share = f64::from(samples - left.0) / f64::from(right.0 - left.0);
                left.1 + share * (right.1 - left.1)
            }
            (Some(last), None) => last.1 + self.slope * f64::from(samples - last.0),
            // At least the share that it would have if there were no overhead.
            (None, Some(first)) => {
                let line = first.1 - self.slope * f64::from(first.0 - samples);
                let share = first.1 * f64::from(samples) / f64::from(first.0);
                // Rounding may have it a little above.
                line.max(share).min(first.1)
            }
            (None, None) => 0.0,
        }
    }

    /// The same, every time `factor` as long.
    pub fn scaled(&self, factor: f64) -> Self {
        let points = self.points.iter().map(|(samples, seconds)| (*samples, seconds * factor)).collect();
        Self { points, slope: self.slope * factor }
    }
}

/// The longest that a job may be said to take, in seconds: thirty years.
const LONGEST: f64 = 1e9;
/// So many points are read of a curve that comes from elsewhere: what is made of them grows with their square.
const MOST_POINTS: usize = 64;

impl<'de> Deserialize<'de> for Curve {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let points: Vec<(u32, f64)> = at_most::<_, _, MOST_POINTS>(deserializer)?;
        Self::new(points).map_err(serde::de::Error::custom)
    }
}

impl From<Curve> for Vec<(u32, f64)> {
    fn from(curve: Curve) -> Self {
        curve.points
    }
}

/// The median; the mean of the two in the middle of an even number. 0 of nothing.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (None, _) => 0.0,
        (Some(value), 1) => *value,
        (Some(value), _) => (value + values[middle - 1]) / 2.0,
    }
}

/// A device as it measured itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// Bytes that a stage may take, the program itself not counted.
    pub memory: u64,
    /// Seconds of the forward pass of a block of [`BlockProfile::work`] 1.
    pub forward: Curve,
    /// Seconds of its backward pass, with the activations kept.
    pub backward: Curve,
    /// Seconds that the gradient's norm and the update of the adapters of such a block take.
    pub update: f64,
    /// All of these times are to be multiplied by it: 1 as measured, above 1 when the device has slowed since.
    pub slowness: f64,
}

/// What a device's link to the host was measured at.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkProfile {
    /// Bytes a second that it sends; infinite for an ideal link.
    pub up: f64,
    /// Bytes a second that it receives.
    pub down: f64,
    /// Seconds there and back.
    pub round_trip: f64,
}

impl LinkProfile {
    /// As if there were no distance.
    pub const IDEAL: Self = Self { up: f64::INFINITY, down: f64::INFINITY, round_trip: 0.0 };
}

/// A connection in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wire {
    /// Bytes a second.
    pub bandwidth: f64,
    /// Seconds there and back.
    pub round_trip: f64,
}

/// A peer: what it can compute and how it is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerProfile {
    /// What it computes.
    pub device: DeviceProfile,
    /// How it is reached.
    pub link: LinkProfile,
}

/// The host: it runs the ends, and blocks if that is faster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostProfile {
    /// What it computes.
    pub device: DeviceProfile,
    /// Seconds of the embedding of a micro-batch.
    pub front: Curve,
    /// Seconds of the LM head with the loss, forward and backward in one.
    pub head: Curve,
}

/// All that a plan is made for, but the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Room {
    /// The host.
    pub host: HostProfile,
    /// Its peers.
    pub devices: Vec<PeerProfile>,
    /// Connections that were measured between these two themselves; the others follow from the links to the host.
    pub wires: BTreeMap<(Node, Node), Wire>,
}

impl Room {
    /// The connection between two of the room. Where it was not measured, it is as fast as the slower of the sender's
    /// uplink and the receiver's downlink, and as far as the farther of the two is from the host.
    pub fn wire(&self, from: Node, to: Node) -> Wire {
        match self.wires.get(&(from, to)) {
            Some(wire) if from != to => *wire,
            _ => self.unmeasured(from, to),
        }
    }

    /// The same of two that did not measure it themselves.
    pub(crate) fn unmeasured(&self, from: Node, to: Node) -> Wire {
        if from == to {
            return Wire { bandwidth: f64::INFINITY, round_trip: 0.0 };
        }
        let link = |node| match node {
            Node::Host => LinkProfile::IDEAL,
            Node::Device(DeviceIndex(index)) => {
                self.devices.get(usize::from(index)).map_or(LinkProfile::IDEAL, |peer| peer.link)
            }
        };
        let (sender, receiver) = (link(from), link(to));
        Wire {
            bandwidth: sender.up.min(receiver.down),
            round_trip: sender.round_trip.max(receiver.round_trip),
        }
    }

    /// The profile of the host or a peer, if there is such a peer.
    pub fn device(&self, node: Node) -> Option<&DeviceProfile> {
        match node {
            Node::Host => Some(&self.host.device),
            Node::Device(DeviceIndex(index)) => self.devices.get(usize::from(index)).map(|peer| &peer.device),
        }
    }

    pub(crate) fn check(&self) -> Result<(), BadProfile> {
        let positive = |value: f64| value > 0.0;
        let time = |value: f64| value.is_finite() && value >= 0.0;
        let check = |node: Node, what, value: f64, good: fn(f64) -> bool| {
            let bad = || BadProfile { whose: node.to_string(), what, value };
            good(value).then_some(()).ok_or_else(bad)
        };
        let device = |node, device: &DeviceProfile| {
            check(node, "update time", device.update, time)?;
            check(node, "slowness", device.slowness, |value| value.is_finite() && value > 0.0)
        };
        device(Node::Host, &self.host.device)?;
        for (peer, index) in self.devices.iter().zip(0..) {
            let node = Node::Device(DeviceIndex(index));
            device(node, &peer.device)?;
            check(node, "bytes a second sent", peer.link.up, positive)?;
            check(node, "bytes a second received", peer.link.down, positive)?;
            check(node, "round trip", peer.link.round_trip, time)?;
        }
        for ((from, _), wire) in &self.wires {
            check(*from, "bytes a second to another", wire.bandwidth, positive)?;
            check(*from, "round trip to another", wire.round_trip, time)?;
        }
        Ok(())
    }
}

/// Bytes of one sample that grow with its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// Bytes for every token.
    pub linear: u64,
    /// Bytes for every pair of tokens: attention's scores.
    pub quadratic: u64,
}

impl Growth {
    /// Bytes of a sample of `tokens` tokens.
    pub fn bytes(self, tokens: u64) -> u64 {
        let pairs = self.quadratic.saturating_mul(tokens).saturating_mul(tokens);
        self.linear.saturating_mul(tokens).saturating_add(pairs)
    }
}

/// A transformer block. Bytes as `baton_model::stage_memory` counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockProfile {
    /// Time that it takes, in times of the block that the devices measured themselves on.
    pub work: f64,
    /// Bytes of its frozen weights in each of [`Storage::ALL`].
    pub frozen: [u64; 4],
    /// Bytes of its adapters, their gradients and moments.
    pub adapters: u64,
    /// Bytes of adapters and moments that go to the host after every step.
    pub state: u64,
    /// Bytes kept of every sample in flight.
    pub kept: Growth,
    /// Bytes kept of every sample in flight where backward computes the block again: its input.
    pub input: Growth,
    /// Bytes of every sample that is worked on, on top, while this block is the one that runs.
    pub open: Growth,
    /// The same with recomputation.
    pub open_recompute: Growth,
}

/// What the host needs for the ends, its blocks not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndsProfile {
    /// Bytes of embedding and LM head in each of [`Storage::ALL`].
    pub frozen: [u64; 4],
    /// Bytes of a head that is trained, with gradients and moments.
    pub trained: u64,
    /// Bytes of every sample whose loss is taken, without the logits.
    pub open: Growth,
    /// Bytes of its logits and what is made of them...
    pub logits: Growth,
    /// ... of which no more exist at once than this, whatever the samples.
    pub most_logits: u64,
}

/// The model, as far as a plan needs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelProfile {
    /// First to last.
    pub blocks: Vec<BlockProfile>,
    /// The ends.
    pub ends: EndsProfile,
    /// Tokens of a sample.
    pub tokens: u64,
    /// Numbers of a hidden state.
    pub hidden: u64,
    /// Bytes of every sample of a micro-batch that a stage takes for messages in and out.
    pub buffers: Growth,
    /// Bytes that pass through a device while it loads its weights, beside them.
    pub loading: u64,
}

impl ModelProfile {
    pub(crate) fn check(&self) -> Result<(), BadProfile> {
        for (number, block) in self.blocks.iter().enumerate() {
            if !(block.work.is_finite() && block.work >= 0.0) {
                let whose = format!("block {number}");
                return Err(BadProfile { whose, what: "work", value: block.work });
            }
        }
        Ok(())
    }
}

/// Whether backward computes activations again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recompute {
    /// It never does.
    Never,
    /// On the stages whose memory demands it.
    #[default]
    WhereNeeded,
    /// On every stage.
    Always,
}

/// What the planner may choose from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Samples of a step.
    pub batch_size: u32,
    /// Into how many micro-batches a step may be cut; those above the batch size do not count. Empty: every divisor of
    /// the batch size.
    pub micro_batches: Vec<u16>,
    /// Storages, the most wanted first: a later one is taken only if nothing fits with those before.
    pub storages: Vec<Storage>,
    /// Precisions of the boundary, the most wanted first: a later one is taken only if it is faster by
    /// [`Options::WORTH`].
    pub boundaries: Vec<BoundaryPrecision>,
    /// The most of [`Partition::ahead`](crate::Partition::ahead) that [`tune`](crate::tune) may choose.
    pub most_ahead: u16,
    /// Whether backward may compute activations again.
    pub recompute: Recompute,
    /// Blocks that the host may run itself, at most.
    pub host_blocks: u16,
    /// Devices that may share a stage, at most.
    pub max_replicas: u16,
    /// Whether the next step's forward passes may begin before the states of this one have reached the host.
    pub commit_overlaps: bool,
}

impl Options {
    /// A less wanted boundary precision must save this share of the step.
    pub const WORTH: f64 = 0.02;

    /// How many micro-batches a step may have, rising.
    pub(crate) fn counts(&self) -> Vec<u16> {
        let most = u16::try_from(self.batch_size).unwrap_or(u16::MAX);
        let mut counts: Vec<u16> = if self.micro_batches.is_empty() {
            (1..=most).filter(|&count| self.batch_size.is_multiple_of(count.into())).collect()
        } else {
            self.micro_batches.iter().copied().filter(|count| (1..=most).contains(count)).collect()
        };
        counts.sort_unstable();
        counts.dedup();
        counts
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            batch_size: 8,
            micro_batches: Vec::new(),
            storages: vec![Storage::F32],
            boundaries: vec![BoundaryPrecision::F16],
            most_ahead: 0,
            recompute: Recompute::default(),
            host_blocks: u16::MAX,
            max_replicas: 1,
            commit_overlaps: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_through_its_points_and_on_beyond_them() {
        let curve = Curve::new([(1, 1.5), (4, 3.0), (8, 5.0)]).unwrap();
        for (samples, seconds) in [(1, 1.5), (2, 2.0), (3, 2.5), (4, 3.0), (6, 4.0), (8, 5.0), (16, 9.0)] {
            assert!((curve.at(samples) - seconds).abs() < 1e-12, "{samples}: {}", curve.at(samples));
        }
        let line = Curve::new([(8, 5.0), (4, 3.0)]).unwrap();
        assert!((line.at(2) - 2.0).abs() < 1e-12);
        let one = Curve::new([(4, 3.0)]).unwrap();
        assert!((one.at(8) - 6.0).abs() < 1e-12 && (one.at(1) - 0.75).abs() < 1e-12);
    }

    #[test]
    fn noise_neither_makes_more_samples_faster_nor_tilts_the_line() {
        // One of three measurements of a size disturbed, and one size that came out too fast.
        let curve =
            Curve::new([(1, 1.0), (1, 9.0), (1, 1.0), (2, 3.0), (3, 2.0), (4, 4.0), (8, 8.0)]).unwrap();
        let times: Vec<f64> = (1..40).map(|samples| curve.at(samples)).collect();
        assert!(times.is_sorted() && (times[0] - 1.0).abs() < 1e-12);
        assert!((curve.at(2) - 2.5).abs() < 1e-12 && (curve.at(3) - 2.5).abs() < 1e-12);
        assert!((curve.at(16) - 16.0).abs() < 0.5, "{}", curve.at(16));
        let steep = Curve::new([(4, 1.0), (5, 9.0)]).unwrap();
        assert!((steep.at(1) - 0.25).abs() < 1e-12, "never below its share");
    }

    #[test]
    fn measurements_that_cannot_be_are_refused() {
        for points in [vec![], vec![(0, 1.0)], vec![(1, f64::NAN)], vec![(1, -1.0)], vec![(1, f64::INFINITY)]]
        {
            assert!(Curve::new(points).is_err());
        }
        let bytes = postcard::to_stdvec(&vec![(1u32, f64::NAN)]).unwrap();
        assert!(postcard::from_bytes::<Curve>(&bytes).is_err());
        for samples in 1..200 {
            for time in [1e-9, 0.3, 1.0 / 3.0, 1e9] {
                let one = Curve::new([(samples, time)]).unwrap();
                assert!((1..400).all(|at| one.at(at).is_finite() && (at > samples || one.at(at) <= time)));
            }
        }
        let many: Vec<(u32, f64)> = (1..=65).map(|samples| (samples, 1.0)).collect();
        assert!(postcard::from_bytes::<Curve>(&postcard::to_stdvec(&many).unwrap()).is_err());
        let curve = Curve::new([(1, 1.0), (4, 2.0)]).unwrap();
        let bytes = postcard::to_stdvec(&curve).unwrap();
        assert_eq!(postcard::from_bytes::<Curve>(&bytes).unwrap(), curve);
    }
}
