//! Campaigns: rooms drawn from seeds, faults at every point of their steps, and the count of what they survived.

use crate::act::{Act, JobName, Moment, Word};
use crate::cost::{Access, Costs, DeviceSpec, Shape, Thermal};
use crate::engine::{JobError, Model};
use crate::net::Network;
use crate::seeds::Seeds;
use crate::toy::{Toy, ToyModel};
use crate::violation::Violation;
use crate::world::{Entry, HOST, Pace, Point, Room, Scenario, World, peer};
use baton_protocol::PeerId;
use baton_protocol::run::{Aim, Freedom};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What a campaign survived, and what not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Rooms.
    pub runs: u64,
    /// Committed steps.
    pub steps: u64,
    /// Plans that were put in force.
    pub plans: u64,
    /// Virtual time.
    pub time: Duration,
    /// Faults by name, and devices that joined late.
    pub faults: BTreeMap<&'static str, u64>,
    /// The same by the point of the run at which who was struck was then; the host, if it was nobody in particular.
    pub during: BTreeMap<Point, u64>,
    /// The seeds of the runs that broke a promise.
    pub broken: Vec<(u64, Violation)>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.steps += other.steps;
        self.plans += other.plans;
        self.time += other.time;
        for (name, count) in other.faults {
            *self.faults.entry(name).or_default() += count;
        }
        for (name, count) in other.during {
            *self.during.entry(name).or_default() += count;
        }
        self.broken.extend(other.broken);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, steps, plans, time, .. } = self;
        let hours = time.as_secs_f64() / 3600.0;
        writeln!(f, "{runs} runs, {steps} steps, {plans} plans, {hours:.1} hours of virtual time")?;
        let each = |(name, count): (&&str, &u64)| format!("{name} {count}");
        writeln!(f, "faults: {}", self.faults.iter().map(each).collect::<Vec<_>>().join(", "))?;
        let each = |(point, count): (&Point, &u64)| format!("{point} {count}");
        writeln!(f, "struck: {}", self.during.iter().map(each).collect::<Vec<_>>().join(", "))?;
        match self.broken.len() {
            0 => write!(
                f,
                "every run ended with all its steps done once, equal to one process to the last bit"
            ),
            broken => {
                write!(f, "{broken} runs broke a promise:")?;
                for (seed, violation) in self.broken.iter().take(20) {
                    write!(f, "\n  seed {seed}: {violation}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (of, job) = match *self {
            Self::NoRun => return write!(f, "no run"),
            Self::Handshake(entry) => return write!(f, "handshake/{entry}"),
            Self::Replication(job) => ("replication", job),
            Self::Start(job) => ("start", job),
            Self::Step(job) => ("step", job),
            Self::Recovery(job) => ("recovery", job),
        };
        write!(f, "{of}/{}", job.map_or("waiting", JobName::name))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Greeting => "greeting",
            Self::Timing => "timing the link",
            Self::Measuring => "measuring",
        })
    }
}

/// A room of the toy, drawn from a seed, with up to ten faults to come, and in every second room one more at a point that
/// is over so soon that chance alone seldom strikes it.
///
/// # Errors
///
/// When the toy's numbers are none.
pub fn room(seed: u64) -> Result<World<ToyModel>, JobError> {
    use rand::SeedableRng;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ 0xfa17);
    let peers = rng.random_range(1..=5);
    let micro_batches = *[1, 2, 4, 8].choose(&mut rng).unwrap_or(&4);
    let Scenario { mut toy, mut settings, .. } = Scenario::new(peers, micro_batches);
    toy.blocks = rng.random_range(1..=8);
    toy.head = rng.random();
    let drawn = rng.random();
    settings.freedom = Freedom {
        micro_batches: rng.random(),
        ahead: rng.random(),
        recompute: rng.random(),
        host_blocks: rng.random(),
    };
    settings.aim = if seed % 5 == 2 { Aim::Memory } else { Aim::Time };
    let delays = [0, 2, 30, 400].map(Duration::from_millis);
    let network = if drawn {
        Network::Drawn(*delays.choose(&mut rng).unwrap_or(&delays[0]))
    } else {
        Network::Modelled(BTreeMap::new())
    };
    let costs = Costs { boundary: 2e4, state: 1e4, file: 2e5, ..costs(&toy, &settings) };
    let room = Room {
        settings: settings.clone(),
        peers,
        pace: if drawn { Pace::Random } else { Pace::Modelled(costs) },
        network,
        patience: if rng.random() { Duration::from_secs(60) } else { Duration::ZERO },
        host: device(&mut rng, "host".into()),
        devices: (0..peers).map(|n| device(&mut rng, format!("phone {n}"))).collect(),
    };
    let mut world = World::with(ToyModel::new(toy, &settings)?, room, seed);
    world.has_spares = world.rng.random();
    plan_faults(&mut world, 10);
    if seed.is_multiple_of(2) {
        aim(&mut world, &mut rng);
    }
    for request in 0..world.rng.random_range(0..4) {
        let at = Duration::from_millis(world.rng.random_range(1_000..8_000));
        world.plan(Moment::At(at), Act::Infer { request, want: 12 });
    }
    Ok(world)
}

/// Blocks of some ten milliseconds.
fn costs(toy: &Toy, settings: &baton_protocol::run::Settings) -> Costs {
    let shape =
        Shape { blocks: toy.blocks, hidden: 0, inner: 0, heads: 1, kv_heads: 1, gated: false, vocab: 0 };
    let bare = Costs::transformer(&shape, settings);
    Costs { forward: 5e7, backward: 1e8, head: 1e7, update: 1e7, ..bare }
}

fn device(rng: &mut impl Rng, name: String) -> DeviceSpec {
    let warms = Duration::from_secs(rng.random_range(1..20));
    let thermal = Thermal { slowest: rng.random_range(0.2..0.9), warms, cools: 2 * warms };
    DeviceSpec {
        name,
        flops: rng.random_range(4e9..40e9),
        overhead: Duration::from_micros(rng.random_range(0..2000)),
        memory: None,
        thermal: rng.random_ratio(1, 3).then_some(thermal),
        access: Access {
            up: rng.random_range(5e5..2e7),
            down: rng.random_range(5e5..2e7),
            latency: Duration::from_micros(rng.random_range(500..60_000)),
            jitter: Duration::from_micros(rng.random_range(0..20_000)),
            loss: if rng.random_ratio(1, 4) { rng.random_range(0.0..0.05) } else { 0.0 },
        },
        disk: 5e8,
    }
}

/// A moment in the life of a run, most of them while a certain job begins or ends.
fn moment(rng: &mut impl Rng, who: PeerId) -> Moment {
    if rng.random_ratio(1, 4) {
        return Moment::At(Duration::from_millis(rng.random_range(0..8_000)));
    }
    let job = *JobName::ALL.choose(rng).unwrap_or(&JobName::Forward);
    let most = if job.is_pass() { 20 } else { 5 };
    let nth = if job == JobName::Load { rng.random_range(1..=2) } else { rng.random_range(1..=most) };
    Moment::Job { who, job, nth, done: rng.random() }
}

/// Has up to `most` faults happen to a room, each at a moment of a device's work.
pub fn plan_faults<M: Model>(world: &mut World<M>, most: u32) {
    let peers = world.room.peers.max(1);
    for _ in 0..world.rng.random_range(0..=most) {
        let rng = &mut world.rng;
        let victim = peer(rng.random_range(0..peers));
        let next = peer(rng.random_range(0..peers));
        let witness = if rng.random_ratio(1, 4) { HOST } else { victim };
        let act = disturbance(rng, victim, next, world.is_public);
        let moment = moment(rng, witness);
        if matches!(act, Act::Hide(_)) {
            // Whenever its owner looks at it again.
            let at = Duration::from_millis(rng.random_range(0..60_000));
            world.plan(Moment::At(at), Act::Show(victim));
        }
        world.plan(moment, act);
    }
}

fn disturbance(rng: &mut impl Rng, victim: PeerId, next: PeerId, is_public: bool) -> Act {
    match rng.random_range(0..24) {
        0..=2 => Act::Kill { peer: victim, silent: false },
        3 | 4 => Act::Kill { peer: victim, silent: true },
        5 => Act::FailJob(victim),
        6 => Act::Leave(victim),
        7 => Act::Remove(victim),
        8 => Act::Cut(victim, next),
        9 => Act::Pause,
        10 | 11 if is_public => Act::Join,
        10 | 11 => Act::FailJob(victim),
        12 => Act::Replay,
        13 => Act::LinkedAgain,
        14 => Act::Freeze(victim, rng.random_range(1..50)),
        15 => Act::Isolate(victim, rng.random_range(1..30)),
        16 => Act::Part(victim, next, rng.random_range(1..30)),
        17 => Act::Lag(victim, rng.random_range(1..2_000)),
        18 => Act::SlowDown(victim, rng.random_range(2..50)),
        19 | 20 => Act::ReloadHost,
        21 => Act::Hide(victim),
        22 => Act::Stall(victim),
        _ => Act::FreezeAll(Duration::from_secs(rng.random_range(1..100))),
    }
}

/// A fault while a device comes into the room, while its adapters and moments are on their way to the host, or while a plan
/// is put in force.
fn aim(world: &mut World<ToyModel>, rng: &mut impl Rng) {
    use Word::{Applied, Assign, Hello, Measure, Measured, Ready, Welcome};
    let peers = world.room.peers.max(1);
    let mut victim = peer(rng.random_range(0..peers));
    let next = peer(rng.random_range(0..peers));
    let word = *[Hello, Welcome, Welcome, Measure, Measured, Assign, Ready, Applied, Applied, Applied]
        .choose(rng)
        .unwrap_or(&Applied);
    let most = match word {
        Applied => 5,
        Assign | Ready => 3,
        // A second time when the host's page was loaded anew.
        Hello | Welcome | Measure | Measured => 2,
    };
    let mut nth = rng.random_range(1..=most);
    let mut comes = Duration::ZERO;
    if matches!(word, Hello | Welcome | Measure | Measured) && rng.random() {
        // One that comes late, while the others train.
        comes = Duration::from_millis(rng.random_range(1_000..6_000));
        world.plan(Moment::At(comes), Act::Join);
        (victim, nth) = (peer(peers), 1);
    }
    let moment = if word == Hello && rng.random() {
        // Before there is a way to say anything.
        Moment::At(comes + Duration::from_millis(rng.random_range(1..200)))
    } else {
        Moment::Said { who: victim, word, nth }
    };
    let act = disturbance(rng, victim, next, world.is_public);
    if matches!(act, Act::Hide(_)) {
        let at = Duration::from_millis(rng.random_range(0..60_000));
        world.plan(Moment::At(at), Act::Show(victim));
    }
    world.plan(moment, act);
}

/// Runs the room of a seed to its end, and has it write a text then.
///
/// # Errors
///
/// When the toy's numbers are none.
pub fn run(seed: u64) -> Result<Tally, JobError> {
    let mut world = room(seed)?;
    let outcome = finish(&mut world);
    let mut tally = Tally { runs: 1, steps: world.committed.len() as u64, ..Tally::default() };
    tally.plans = world.plans.len() as u64;
    tally.time = world.now;
    for (name, point) in &world.struck {
        *tally.faults.entry(name).or_default() += 1;
        *tally.during.entry(*point).or_default() += 1;
    }
    tally.broken.extend(outcome.err().map(|violation| (seed, violation)));
    Ok(tally)
}

fn finish(world: &mut World<ToyModel>) -> Result<(), Violation> {
    const LAST: u32 = 100;
    world.settle()?;
    world.verify()?;
    world.act(Act::Infer { request: LAST, want: 6 });
    world.settle()?;
    let expected = world.model.reference.text(world.committed.len(), LAST, 6);
    let found = world.text(LAST).to_vec();
    if found != expected {
        return Err(Violation::Text { expected, found });
    }
    Ok(())
}

/// Threads of a campaign at most.
const MOST_THREADS: usize = 256;

/// Why a campaign was not made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CampaignError {
    /// None, or more than any machine has use for.
    #[error("a campaign runs on 1 to {MOST_THREADS} threads, and {found} were asked for")]
    Threads {
        /// How many were asked for.
        found: usize,
    },
    /// The system gave no thread.
    #[error("the system starts no thread ({0}): ask for fewer")]
    NoThread(String),
    /// A room that cannot be.
    #[error(transparent)]
    Room(#[from] JobError),
}

/// Runs many seeds, on so many threads.
///
/// # Errors
///
/// When there cannot be so many threads, or when the toy's numbers are none.
pub fn campaign(seeds: Seeds, threads: usize) -> Result<Tally, CampaignError> {
    if !(1..=MOST_THREADS).contains(&threads) {
        return Err(CampaignError::Threads { found: threads });
    }
    let next = Mutex::new(Some(seeds.first()));
    // A thread that panicked is told of where it is joined.
    let take = || {
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        let seed = *next;
        *next = seed.and_then(|seed| seeds.after(seed));
        seed
    };
    let work = || {
        let mut tally = Tally::default();
        while let Some(seed) = take() {
            tally.add(run(seed)?);
        }
        Ok::<_, JobError>(tally)
    };
    let mut all = Tally::default();
    std::thread::scope(|scope| -> Result<(), CampaignError> {
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, work);
        let workers = (0..threads).map(start).collect::<Result<Vec<_>, _>>();
        for worker in workers.map_err(|error| CampaignError::NoThread(error.to_string()))? {
            match worker.join() {
                Ok(tally) => all.add(tally?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })?;
    all.broken.sort_by_key(|(seed, _)| *seed);
    Ok(all)
}
