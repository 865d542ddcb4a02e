//! When what is sent arrives: bandwidth, latency, jitter, loss and partitions.
//!
//! A channel is reliable and ordered, so a lost packet is time: the round in which it is sent again. Every device has a
//! way up and a way down that all its bulk connections share, first come first served; control frames are small and on
//! a connection of their own, and wait for nobody.

use crate::cost::{Access, seconds};
use baton_protocol::PeerId;
use baton_protocol::link::Lane;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Bytes of a packet.
const PACKET: f64 = 1200.0;
/// Packets that a fresh connection sends before it hears of the first (RFC 6928).
const FIRST_WINDOW: f64 = 10.0;
/// The least time after which a lost packet is sent again if nothing followed it.
const LEAST_TIMEOUT: Duration = Duration::from_millis(220);
/// Mathis et al. 1997, <https://doi.org/10.1145/263932.264023>: rate = 1.22 · packet / (round trip · √loss).
const MATHIS: f64 = 1.22;

/// A connection in one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wire {
    /// Bytes a second.
    pub bandwidth: f64,
    /// One way.
    pub latency: Duration,
    /// What is added at most, drawn for each frame.
    pub jitter: Duration,
    /// Share of packets that get lost.
    pub loss: f64,
}

/// The network of a room.
#[derive(Clone, Debug)]
pub enum Network {
    /// Every direction of every connection draws its own delay up to this; bandwidth is no matter.
    Drawn(Duration),
    /// As the devices are reached ([`Access`]), and between these two as told.
    Modelled(BTreeMap<(PeerId, PeerId), Wire>),
}

/// A member that is out of reach for a while, or a pair that is.
#[derive(Clone, Copy, Debug)]
struct Partition {
    of: PeerId,
    from: Option<PeerId>,
    until: Duration,
}

/// The state of the network.
#[derive(Debug)]
pub(crate) struct Fabric {
    accesses: HashMap<PeerId, Access>,
    wires: BTreeMap<(PeerId, PeerId), Wire>,
    up_free: HashMap<PeerId, Duration>,
    down_free: HashMap<PeerId, Duration>,
    pairs: HashMap<(PeerId, PeerId), Pair>,
    partitions: Vec<Partition>,
    lags: HashMap<PeerId, Duration>,
}

#[derive(Debug)]
struct Pair {
    free: Duration,
    /// Bytes that may be on the way.
    window: f64,
}

impl Fabric {
    pub(crate) fn new(network: &Network) -> Self {
        let wires = match network {
            Network::Drawn(_) => BTreeMap::new(),
            Network::Modelled(wires) => wires.clone(),
        };
        Self {
            accesses: HashMap::new(),
            wires,
            up_free: HashMap::new(),
            down_free: HashMap::new(),
            pairs: HashMap::new(),
            partitions: Vec::new(),
            lags: HashMap::new(),
        }
    }

    pub(crate) fn join(&mut self, member: PeerId, access: Access) {
        self.accesses.insert(member, access);
    }

    /// Nothing passes between a member and another one, or all others, until a time.
    pub(crate) fn part(&mut self, of: PeerId, from: Option<PeerId>, until: Duration, now: Duration) {
        self.partitions.retain(|partition| partition.until > now);
        self.partitions.push(Partition { of, from, until });
    }

    /// Everything from and to a member is later by this.
    pub(crate) fn lag(&mut self, member: PeerId, by: Duration) {
        self.lags.insert(member, by);
    }

    /// When two members reach each other again, if they do not now.
    pub(crate) fn heals(&self, a: PeerId, b: PeerId, now: Duration) -> Option<Duration> {
        let parts = |partition: &&Partition| {
            let other = if partition.of == a {
                b
            } else if partition.of == b {
                a
            } else {
                return false;
            };
            partition.until > now && partition.from.is_none_or(|from| from == other)
        };
        self.partitions.iter().filter(parts).map(|partition| partition.until).max()
    }

    /// What is added to whatever passes between two members now.
    pub(crate) fn hindrance(&self, a: PeerId, b: PeerId, now: Duration) -> Duration {
        let lag = |who| self.lags.get(&who).copied().unwrap_or_default();
        let waits = self.heals(a, b, now).map_or(Duration::ZERO, |until| until - now);
        lag(a) + lag(b) + waits
    }

    fn access(&self, member: PeerId) -> Access {
        self.accesses.get(&member).copied().unwrap_or(Access::IDEAL)
    }

    /// The connection between two members.
    pub(crate) fn wire(&self, from: PeerId, to: PeerId) -> Wire {
        if let Some(wire) = self.wires.get(&(from, to)) {
            return *wire;
        }
        let (a, b) = (self.access(from), self.access(to));
        Wire {
            bandwidth: a.up.min(b.down),
            latency: a.latency + b.latency,
            jitter: a.jitter + b.jitter,
            loss: 1.0 - (1.0 - a.loss) * (1.0 - b.loss),
        }
    }

    /// When `bytes` that are sent now arrive.
    pub(crate) fn arrival(
        &mut self,
        rng: &mut ChaCha8Rng,
        [from, to]: [PeerId; 2],
        lane: Lane,
        bytes: f64,
        now: Duration,
    ) -> Duration {
        let wire = self.wire(from, to);
        let round_trip = 2.0 * (wire.latency + wire.jitter / 2).as_secs_f64();
        let mut rate = wire.bandwidth;
        if wire.loss > 0.0 && round_trip > 0.0 {
            rate = rate.min(MATHIS * PACKET / (round_trip * wire.loss.sqrt()));
        }
        let late = lost(rng, wire, bytes) + drawn(rng, wire.jitter) + self.hindrance(from, to, now);
        if lane == Lane::Control {
            return now + seconds(bytes / rate) + wire.latency + late;
        }
        let (up, down) = (self.access(from).up, self.access(to).down);
        let window = FIRST_WINDOW * PACKET;
        let pair = self.pairs.entry((from, to)).or_insert(Pair { free: Duration::ZERO, window });
        // Slow start: the window doubles with every round trip until it no longer matters.
        if round_trip > 0.0 && pair.window < rate * round_trip {
            rate = rate.min(pair.window / round_trip);
            pair.window += bytes;
        }
        let free = self.up_free.get(&from).copied().unwrap_or_default();
        let start = now.max(free).max(pair.free);
        pair.free = start + seconds(bytes / rate);
        self.up_free.insert(from, start + seconds(bytes / up));
        let through = pair.free + wire.latency;
        let free = self.down_free.entry(to).or_default();
        *free = through.max(*free + seconds(bytes / down));
        *free + late
    }
}

fn drawn(rng: &mut ChaCha8Rng, most: Duration) -> Duration {
    if most.is_zero() { Duration::ZERO } else { most.mul_f64(rng.random()) }
}

/// How much later bytes arrive because some of their packets got lost.
fn lost(rng: &mut ChaCha8Rng, wire: Wire, bytes: f64) -> Duration {
    let mut late = Duration::ZERO;
    let mut packets = (bytes / PACKET).ceil().max(1.0);
    let again = (2 * wire.latency + wire.jitter).max(Duration::from_millis(1));
    while wire.loss > 0.0 && rng.random::<f64>() > (1.0 - wire.loss).powf(packets) {
        // Three packets after it tell that it is missing; a lone one has to be waited for.
        late += if packets > 4.0 { again } else { (2 * again).max(LEAST_TIMEOUT) };
        // A few packets on a bad way would be all of them, for ever.
        packets = (packets * wire.loss).ceil().min(packets - 1.0).max(1.0);
    }
    late
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const A: PeerId = PeerId(1);
    const B: PeerId = PeerId(2);
    const C: PeerId = PeerId(3);

    fn fabric(access: Access) -> (Fabric, ChaCha8Rng) {
        let mut fabric = Fabric::new(&Network::Modelled(BTreeMap::new()));
        [A, B, C].iter().for_each(|member| fabric.join(*member, access));
        (fabric, ChaCha8Rng::seed_from_u64(0))
    }

    fn millis(time: Duration) -> f64 {
        time.as_secs_f64() * 1e3
    }

    #[test]
    fn one_way_up_is_shared_and_control_waits_for_nobody() {
        let (mut fabric, mut rng) = fabric(Access { up: 1e6, ..Access::IDEAL });
        let mut send =
            |to, lane, bytes| millis(fabric.arrival(&mut rng, [A, to], lane, bytes, Duration::ZERO));
        assert_eq!(send(B, Lane::Bulk, 1e6), 1000.0);
        assert_eq!(send(C, Lane::Bulk, 1e6), 2000.0);
        assert_eq!(send(B, Lane::Control, 1e3), 1.0);
    }

    #[test]
    fn a_fresh_connection_starts_slowly() {
        let access = Access { latency: Duration::from_millis(10), up: 1e7, down: 1e7, ..Access::IDEAL };
        let (mut fabric, mut rng) = fabric(access);
        let mut now = Duration::ZERO;
        let mut times = Vec::new();
        for _ in 0..30 {
            let at = fabric.arrival(&mut rng, [A, B], Lane::Bulk, 64e3, now);
            times.push(millis(at - now));
            now = at;
        }
        assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
        // 20 ms one way, and 64 kB at full speed in 6.4 ms; at first by 12 kB in 40 ms.
        assert!((times[0] - 233.3).abs() < 0.1 && (times[29] - 26.4).abs() < 1e-6, "{times:?}");
    }

    #[test]
    fn loss_costs_rounds_and_partitions_wait_for_their_end() {
        let lossy = Access { latency: Duration::from_millis(5), loss: 0.05, ..Access::IDEAL };
        let (mut fabric, mut rng) = fabric(lossy);
        let mut send = |bytes| fabric.arrival(&mut rng, [A, B], Lane::Control, bytes, Duration::ZERO);
        let least = Duration::from_millis(10);
        let late = (0..1000).filter(|_| send(100.0) >= least + LEAST_TIMEOUT).count();
        // One packet is lost with 1 − 0.95².
        assert!((60..140).contains(&late), "{late}");
        // On a way on which hardly anything comes through, it does in the end.
        let (mut fabric, mut rng) = self::fabric(Access { loss: 0.9, ..lossy });
        let there = fabric.arrival(&mut rng, [A, B], Lane::Control, 64e3, Duration::ZERO);
        assert!(there > Duration::from_secs(1) && there < Duration::from_secs(60), "{there:?}");
        let (mut fabric, mut rng) = self::fabric(Access::IDEAL);
        let until = Duration::from_secs(9);
        fabric.part(B, None, until, Duration::ZERO);
        let mut send = |from, to| fabric.arrival(&mut rng, [from, to], Lane::Control, 1.0, Duration::ZERO);
        assert_eq!((send(A, B), send(B, C), send(A, C)), (until, until, Duration::ZERO));
    }
}
