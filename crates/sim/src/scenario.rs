//! Scenarios as TOML files: the room, its devices and links, and what happens; checked, with the line of what is wrong.

use crate::act::{Act, JobName, Moment};
use crate::campaign;
use crate::cost::{Access, Costs, DeviceSpec, PROJECTIONS, Shape, Thermal, seconds};
use crate::counted::Counted;
use crate::engine::{JobError, Model};
use crate::net::{Network, Wire};
use crate::outcome::Outcome;
use crate::toy::{Toy, ToyModel};
use crate::world::{HOST, Pace, Room, World, peer};
use baton_protocol::PeerId;
use baton_protocol::codec::Precision;
use baton_protocol::run::{Aim, Backbone, Freedom, Settings, SettingsError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;
use toml::Spanned;

/// Devices of a scenario at most: the signaling server's rooms are no larger.
const MOST_DEVICES: usize = 1024;

/// Faults drawn for a run at most: more would leave nobody to strike.
const MOST_RANDOM_FAULTS: u32 = 1000;

/// How long devices wait for a host that loads its page anew.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a scenario cannot be run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScenarioError {
    /// It is not TOML, or says something that a scenario does not have.
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    /// What it says makes no sense.
    #[error("line {line}: {what}")]
    Nonsense {
        /// Where.
        line: usize,
        /// What, and what to do.
        what: String,
    },
    /// The settings make no sense together.
    #[error("line {line}: the settings make no sense: {wrong}")]
    Settings {
        /// Of the settings.
        line: usize,
        /// What is wrong.
        wrong: SettingsError,
    },
    /// The toy's numbers are none.
    #[error("the toy cannot be trained with these settings: {0}")]
    Toy(JobError),
}

/// A number above 0.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "f64")]
struct Positive(f64);

impl TryFrom<f64> for Positive {
    type Error = String;

    fn try_from(number: f64) -> Result<Self, String> {
        let fits = number.is_finite() && number > 0.0 && number < 1e15;
        fits.then_some(Self(number)).ok_or_else(|| format!("{number} must be a number above 0"))
    }
}

/// Seconds or milliseconds: 0 or more.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "f64")]
struct Time(f64);

impl TryFrom<f64> for Time {
    type Error = String;

    fn try_from(number: f64) -> Result<Self, String> {
        let fits = number.is_finite() && (0.0..=1e9).contains(&number);
        fits.then_some(Self(number)).ok_or_else(|| format!("{number} must be 0 or more, and a sensible time"))
    }
}

/// A share of a whole: 0 or more, less than 1.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "f64")]
struct Share(f64);

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(number: f64) -> Result<Self, String> {
        let fits = (0.0..1.0).contains(&number);
        fits.then_some(Self(number)).ok_or_else(|| format!("{number} must be at least 0 and less than 1"))
    }
}

/// A share of a whole: above 0, at most 1.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "f64")]
struct Part(f64);

impl TryFrom<f64> for Part {
    type Error = String;

    fn try_from(number: f64) -> Result<Self, String> {
        let fits = number > 0.0 && number <= 1.0;
        fits.then_some(Self(number)).ok_or_else(|| format!("{number} must be above 0 and at most 1"))
    }
}

/// Whole numbers from 1 to `MOST`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "u64")]
struct Count<const MOST: u32>(u32);

impl<const MOST: u32> TryFrom<u64> for Count<MOST> {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        let fits = u32::try_from(number).ok().filter(|number| (1..=MOST).contains(number));
        fits.map(Self).ok_or_else(|| format!("{number} must be 1 to {MOST}"))
    }
}

impl<const MOST: u32> Count<MOST> {
    /// Where no more than 65,535 are allowed.
    fn small(self) -> u16 {
        u16::try_from(self.0).unwrap_or(u16::MAX)
    }
}

/// Blocks of a model: no model has more than some hundred.
type Blocks = Count<1024>;
/// Numbers of a hidden state and of an MLP, heads.
type Width = Count<1_048_576>;
/// Tokens.
type Vocabulary = Count<16_777_216>;
/// Seconds for which something lasts: about a day.
type Lasting = Count<100_000>;
/// How many times as slow something is.
type Factor = Count<1_000_000>;

/// A projection that gets an adapter.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Target(String);

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if PROJECTIONS.contains(&name.as_str()) {
            return Ok(Self(name));
        }
        Err(format!("\"{name}\" is no projection of a block: there are {}", PROJECTIONS.join(", ")))
    }
}

/// A number of faults that is drawn in no time.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "u32")]
struct Faults(u32);

impl TryFrom<u32> for Faults {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        let fits = number <= MOST_RANDOM_FAULTS;
        fits.then_some(Self(number))
            .ok_or_else(|| format!("{number} faults are too many: at most {MOST_RANDOM_FAULTS} are drawn"))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: Option<String>,
    #[serde(default)]
    seed: u64,
    /// Faults drawn for each run, at most.
    #[serde(default)]
    random_faults: Faults,
    /// Seconds of virtual time after which a run counts as stuck.
    patience: Option<Time>,
    model: Spanned<ModelFile>,
    settings: Option<Spanned<SettingsFile>>,
    host: Option<Spanned<DeviceFile>>,
    #[serde(default)]
    devices: Vec<Spanned<DeviceFile>>,
    #[serde(default)]
    links: Vec<Spanned<LinkFile>>,
    #[serde(default)]
    faults: Vec<Spanned<FaultFile>>,
}

/// One table for both kinds: an error within a tagged one would be told without its line.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    kind: Kind,
    blocks: Blocks,
    mflop: Option<Positive>,
    hidden: Option<Width>,
    inner: Option<Width>,
    heads: Option<Width>,
    kv_heads: Option<Width>,
    gated: Option<bool>,
    vocab: Option<Vocabulary>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Toy,
    Transformer,
}

/// What is trained.
#[derive(Clone, Copy, Debug)]
enum ModelKind {
    /// Exact numbers, compared with one process; a pass of a block costs so many operations a sample.
    Toy { blocks: u16, flop: f64 },
    /// A transformer of this shape, without its numbers.
    Transformer(Shape),
}

/// What may be left to the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Free {
    MicroBatches,
    Ahead,
    Recompute,
    HostBlocks,
}

/// The settings that matter where there is no text.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsFile {
    steps: Option<u32>,
    batch_size: Option<u32>,
    micro_batches: Option<u16>,
    seq_len: Option<u32>,
    lora_rank: Option<u16>,
    targets: Option<Vec<Target>>,
    boundary: Option<Precision>,
    backbone: Option<Backbone>,
    recompute: Option<bool>,
    /// What the planner may choose: "micro_batches", "ahead", "recompute", "host_blocks".
    free: Option<Vec<Free>>,
    /// What the planner looks for: "time", "memory".
    aim: Option<Aim>,
    evaluate_every: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceFile {
    name: Option<String>,
    /// As many alike; they are numbered.
    count: Option<Count<65_535>>,
    gflops: Option<Positive>,
    overhead_ms: Option<Time>,
    memory_mb: Option<Positive>,
    disk_mb_s: Option<Positive>,
    up_mbit: Option<Positive>,
    down_mbit: Option<Positive>,
    latency_ms: Option<Time>,
    jitter_ms: Option<Time>,
    loss: Option<Share>,
    thermal: Option<ThermalFile>,
    joins_at: Option<Time>,
    leaves_at: Option<Time>,
    #[serde(default)]
    sleeps: Vec<SleepFile>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ThermalFile {
    slowest: Part,
    warms_s: Positive,
    cools_s: Positive,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SleepFile {
    at: Time,
    seconds: Lasting,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkFile {
    between: [String; 2],
    mbit: Option<Positive>,
    latency_ms: Option<Time>,
    jitter_ms: Option<Time>,
    loss: Option<Share>,
}

/// What happens, to whom, and either `at` a second or at the `nth` `job` of that device.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultFile {
    what: Fault,
    device: Option<String>,
    /// The other end of what is cut or parted.
    from: Option<String>,
    at: Option<Time>,
    job: Option<JobName>,
    nth: Option<Count<1_000_000_000>>,
    done: Option<bool>,
    seconds: Option<Lasting>,
    by_ms: Option<u32>,
    factor: Option<Factor>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fault {
    Kill,
    Vanish,
    Freeze,
    Leave,
    Remove,
    FailJob,
    Isolate,
    Part,
    Cut,
    Lag,
    SlowDown,
    Pause,
    ReloadHost,
    Hide,
    Show,
    Stall,
}

/// A scenario that was read and checked.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it is called.
    pub title: String,
    /// The seed that it asks for.
    pub seed: u64,
    /// How often a run is made to measure its host's machine by the real clock: the same calls in each, of which the
    /// shortest counts, because whatever else runs on the machine only makes them longer.
    pub measures: u32,
    model: ModelKind,
    room: Room,
    acts: Vec<(Moment, Act)>,
    random_faults: u32,
    patience: Option<Duration>,
}

/// The line of a byte of a text, from 1.
fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    ///
    /// When it is not one, with the line of what is wrong.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let file: File = toml::from_str(text)?;
        let settings = match &file.settings {
            Some(settings) => settings.get_ref().settings(),
            None => SettingsFile::default().settings(),
        };
        let at = file.settings.as_ref().map_or(0, |settings| settings.span().start);
        settings.validate().map_err(|wrong| ScenarioError::Settings { line: line(text, at), wrong })?;
        let mut devices = Devices { text, ..Devices::default() };
        let nobody = DeviceFile::default();
        let host_file = file.host.as_ref().map_or(&nobody, Spanned::get_ref);
        if let Some(host) = &file.host {
            devices.check_host(host)?;
        }
        devices.host = host_file.name.clone().unwrap_or_else(|| "host".into());
        let host = host_file.spec(&devices.host);
        for device in &file.devices {
            devices.add(device)?;
        }
        devices.order();
        let mut acts = devices.acts(host_file);
        let mut wires: BTreeMap<(PeerId, PeerId), Wire> = BTreeMap::new();
        for link in &file.links {
            for (between, wire) in devices.link(link, &host)? {
                if wires.insert(between, wire).is_some() {
                    let what = "there is a link between these two already: keep one of them".into();
                    return Err(devices.nonsense(&link.span(), what));
                }
            }
        }
        for fault in &file.faults {
            acts.push(devices.fault(fault)?);
        }
        let model = devices.model(&file.model)?;
        if let (Some(settings), ModelKind::Transformer(Shape { gated: false, .. })) = (&file.settings, model)
            && settings.get_ref().names("gate_proj")
        {
            let what = "the MLP of this model has no gate: take gate_proj out of the targets".into();
            return Err(devices.nonsense(&settings.span(), what));
        }
        let costs = model.costs(&settings);
        let room = Room {
            peers: devices.at_once(),
            settings,
            pace: Pace::Modelled(costs),
            network: Network::Modelled(wires),
            patience: PATIENCE,
            host,
            devices: devices.all.into_iter().map(|device| device.spec).collect(),
        };
        Ok(Self {
            title: file.title.unwrap_or_else(|| "A room".into()),
            seed: file.seed,
            measures: 0,
            model,
            room,
            acts,
            random_faults: file.random_faults.0,
            patience: file.patience.map(|time| seconds(time.0)),
        })
    }

    /// Whether runs of different seeds differ.
    pub fn is_random(&self) -> bool {
        self.random_faults > 0
    }

    /// Runs it.
    ///
    /// # Errors
    ///
    /// When the toy cannot be trained; what a run breaks is in its outcome.
    pub fn run(&self, seed: u64) -> Result<Outcome, ScenarioError> {
        let mut outcome = self.run_once(seed)?;
        for _ in 1..self.measures {
            let again = self.run_once(seed)?;
            if let (Some(calls), Some(others)) = (&mut outcome.host_calls, again.host_calls) {
                calls.iter_mut().zip(others).for_each(|(call, other)| *call = other.min(*call));
            }
        }
        Ok(outcome)
    }

    fn run_once(&self, seed: u64) -> Result<Outcome, ScenarioError> {
        Ok(match self.model {
            ModelKind::Toy { blocks, .. } => {
                let settings = &self.room.settings;
                let (samples, precision) = (settings.batch_size, Precision::F32);
                let toy = Toy { blocks, samples, width: 5, precision, head: false };
                self.run_with(ToyModel::new(toy, settings).map_err(ScenarioError::Toy)?, seed)
            }
            ModelKind::Transformer(Shape { blocks, .. }) => self.run_with(Counted { blocks }, seed),
        })
    }

    fn run_with<M: Model>(&self, model: M, seed: u64) -> Outcome {
        let mut world = World::with(model, self.room.clone(), seed);
        world.record();
        // Who is not written down does not come.
        world.is_public = false;
        world.host_calls = (self.measures > 0).then(Vec::new);
        world.patience = self.patience.unwrap_or(Duration::from_secs(1_000_000));
        for (moment, act) in &self.acts {
            world.plan(*moment, *act);
        }
        if self.random_faults > 0 {
            campaign::plan_faults(&mut world, self.random_faults);
        }
        let came_to_rest = world.settle();
        world.end_record();
        Outcome::new(&world, seed, came_to_rest)
    }
}

impl ModelKind {
    fn costs(self, settings: &Settings) -> Costs {
        match self {
            Self::Toy { flop, .. } => {
                let none =
                    Shape { blocks: 0, hidden: 0, inner: 0, heads: 1, kv_heads: 1, gated: false, vocab: 0 };
                Costs { forward: flop, backward: flop, ..Costs::transformer(&none, settings) }
            }
            Self::Transformer(shape) => Costs::transformer(&shape, settings),
        }
    }
}

impl SettingsFile {
    /// Whether a projection is asked for by its name.
    fn names(&self, projection: &str) -> bool {
        self.targets.iter().flatten().any(|target| target.0 == projection)
    }

    fn settings(&self) -> Settings {
        let default = Settings::default();
        let steps = self.steps.unwrap_or(20);
        let is_free = |what: Free| self.free.as_ref().is_some_and(|free| free.contains(&what));
        Settings {
            steps,
            batch_size: self.batch_size.unwrap_or(default.batch_size),
            micro_batches: self.micro_batches.unwrap_or(default.micro_batches),
            seq_len: self.seq_len.unwrap_or(default.seq_len),
            lora_rank: self.lora_rank.unwrap_or(default.lora_rank),
            targets: match &self.targets {
                Some(targets) => targets.iter().map(|target| target.0.clone()).collect(),
                None => default.targets,
            },
            boundary: self.boundary.unwrap_or(default.boundary),
            backbone: self.backbone.unwrap_or(default.backbone),
            recompute: self.recompute.unwrap_or(default.recompute),
            warmup_steps: default.warmup_steps.min(steps),
            lr: 0.05,
            // Judging takes as long as a text of its own; it is asked for by name.
            validation: if self.evaluate_every.is_some() { 0.1 } else { 0.0 },
            evaluate_every: self.evaluate_every.unwrap_or(0),
            freedom: Freedom {
                micro_batches: is_free(Free::MicroBatches),
                ahead: is_free(Free::Ahead),
                recompute: is_free(Free::Recompute),
                host_blocks: is_free(Free::HostBlocks),
            },
            aim: self.aim.unwrap_or_default(),
            ..default
        }
    }
}

impl DeviceFile {
    fn spec(&self, name: &str) -> DeviceSpec {
        let default = DeviceSpec::default();
        let bytes = |mbit: Option<Positive>| mbit.map_or(f64::INFINITY, |mbit| mbit.0 * 1e6 / 8.0);
        let millis = |time: Option<Time>| seconds(time.unwrap_or_default().0 / 1e3);
        DeviceSpec {
            name: name.into(),
            flops: self.gflops.map_or(default.flops, |gflops| gflops.0 * 1e9),
            overhead: millis(self.overhead_ms),
            memory: self.memory_mb.map(|memory| memory.0 * 1e6),
            thermal: self.thermal.map(|thermal| Thermal {
                slowest: thermal.slowest.0,
                warms: seconds(thermal.warms_s.0),
                cools: seconds(thermal.cools_s.0),
            }),
            access: Access {
                up: bytes(self.up_mbit),
                down: bytes(self.down_mbit),
                latency: millis(self.latency_ms),
                jitter: millis(self.jitter_ms),
                loss: self.loss.unwrap_or_default().0,
            },
            disk: self.disk_mb_s.map_or(default.disk, |disk| disk.0 * 1e6),
        }
    }
}

/// A connection from one member to another.
type Directed = ((PeerId, PeerId), Wire);

/// The devices of a scenario by name, in the order in which they join.
#[derive(Default)]
struct Devices<'a> {
    text: &'a str,
    /// What the host is called.
    host: String,
    all: Vec<Named>,
}

struct Named {
    spec: DeviceSpec,
    joins_at: f64,
    leaves_at: Option<f64>,
    sleeps: Vec<SleepFile>,
}

impl Devices<'_> {
    fn nonsense(&self, span: &Range<usize>, what: String) -> ScenarioError {
        ScenarioError::Nonsense { line: line(self.text, span.start), what }
    }

    /// There is one host, from the beginning to the end.
    fn check_host(&self, host: &Spanned<DeviceFile>) -> Result<(), ScenarioError> {
        let file = host.get_ref();
        let not_its = [
            ("count", file.count.is_some()),
            ("joins_at", file.joins_at.is_some()),
            ("leaves_at", file.leaves_at.is_some()),
        ];
        if let Some((key, _)) = not_its.iter().find(|(_, given)| *given) {
            let what = format!("the host has no `{key}`: there is one, from the beginning to the end");
            return Err(self.nonsense(&host.span(), what));
        }
        match &file.name {
            Some(name) if name.trim().is_empty() => {
                Err(self.nonsense(&host.span(), "a name is empty".into()))
            }
            _ => Ok(()),
        }
    }

    fn add(&mut self, device: &Spanned<DeviceFile>) -> Result<(), ScenarioError> {
        let (span, file) = (device.span(), device.get_ref());
        let count = file.count.map_or(1, Count::small);
        let joins_at = file.joins_at.unwrap_or_default().0;
        let leaves_at = file.leaves_at.map(|time| time.0);
        if leaves_at.is_some_and(|leaves| leaves <= joins_at) {
            return Err(self.nonsense(&span, "a device leaves before it joins: correct leaves_at".into()));
        }
        if self.all.len() + usize::from(count) > MOST_DEVICES {
            let what = format!("a room has at most {MOST_DEVICES} devices: lower the counts");
            return Err(self.nonsense(&span, what));
        }
        for number in 1..=count {
            let name = match (&file.name, count) {
                (Some(name), 1) => name.clone(),
                (Some(name), _) => format!("{name} {number}"),
                (None, _) => format!("phone {}", self.all.len() + 1),
            };
            if name.trim().is_empty() {
                return Err(self.nonsense(&span, "a name is empty".into()));
            }
            if name == "host" || name == self.host || self.all.iter().any(|other| other.spec.name == name) {
                let what = format!("there are two devices named \"{name}\": give one another name");
                return Err(self.nonsense(&span, what));
            }
            let sleeps = file.sleeps.clone();
            self.all.push(Named { spec: file.spec(&name), joins_at, leaves_at, sleeps });
        }
        Ok(())
    }

    fn model(&self, model: &Spanned<ModelFile>) -> Result<ModelKind, ScenarioError> {
        let file = model.get_ref();
        let wrong = |what: String| self.nonsense(&model.span(), what);
        let missing = |what| wrong(format!("a model of this kind needs `{what}`"));
        let number = |number: Option<Width>, what| number.map(|n| n.0).ok_or_else(|| missing(what));
        let blocks = file.blocks.small();
        let is_toy = file.kind == Kind::Toy;
        let of_the_other = [
            ("mflop", !is_toy && file.mflop.is_some()),
            ("hidden", is_toy && file.hidden.is_some()),
            ("inner", is_toy && file.inner.is_some()),
            ("heads", is_toy && file.heads.is_some()),
            ("kv_heads", is_toy && file.kv_heads.is_some()),
            ("gated", is_toy && file.gated.is_some()),
            ("vocab", is_toy && file.vocab.is_some()),
        ];
        if let Some((key, _)) = of_the_other.iter().find(|(_, given)| *given) {
            return Err(wrong(format!("a model of this kind has no `{key}`: take it out")));
        }
        if is_toy {
            return Ok(ModelKind::Toy { blocks, flop: file.mflop.ok_or_else(|| missing("mflop"))?.0 * 1e6 });
        }
        let (hidden, heads) = (number(file.hidden, "hidden")?, number(file.heads, "heads")?);
        let kv_heads = file.kv_heads.map_or(heads, |kv_heads| kv_heads.0);
        if hidden % heads != 0 {
            return Err(wrong(format!(
                "a hidden state of {hidden} numbers cannot be shared by {heads} heads"
            )));
        }
        if kv_heads > heads || heads % kv_heads != 0 {
            return Err(wrong(format!("{heads} heads cannot share {kv_heads} heads of keys and values")));
        }
        Ok(ModelKind::Transformer(Shape {
            blocks,
            hidden,
            inner: number(file.inner, "inner")?,
            heads,
            kv_heads,
            gated: file.gated.unwrap_or(true),
            vocab: file.vocab.map(|vocab| vocab.0).ok_or_else(|| missing("vocab"))?,
        }))
    }

    /// In the order in which they join, so that a device's place is the number that it is given.
    fn order(&mut self) {
        self.all.sort_by(|a, b| a.joins_at.total_cmp(&b.joins_at));
    }

    fn at_once(&self) -> u32 {
        u32::try_from(self.all.iter().filter(|device| device.joins_at == 0.0).count()).unwrap_or(u32::MAX)
    }

    fn acts(&self, host: &DeviceFile) -> Vec<(Moment, Act)> {
        let mut acts = Vec::new();
        let at = |time: f64| Moment::At(seconds(time));
        for (device, n) in self.all.iter().zip(0..) {
            if device.joins_at > 0.0 {
                acts.push((at(device.joins_at), Act::Join));
            }
            if let Some(leaves) = device.leaves_at {
                acts.push((at(leaves), Act::Leave(peer(n))));
            }
            let sleep = |sleep: &SleepFile| (at(sleep.at.0), Act::Freeze(peer(n), sleep.seconds.0.into()));
            acts.extend(device.sleeps.iter().map(sleep));
        }
        let sleep = |sleep: &SleepFile| (at(sleep.at.0), Act::Freeze(HOST, sleep.seconds.0.into()));
        acts.extend(host.sleeps.iter().map(sleep));
        acts
    }

    fn find(&self, name: &str, span: &Range<usize>) -> Result<PeerId, ScenarioError> {
        if name == "host" || name == self.host {
            return Ok(HOST);
        }
        let found = self.all.iter().zip(0..).find(|(device, _)| device.spec.name == name);
        found.map(|(_, n)| peer(n)).ok_or_else(|| {
            let mut names: Vec<&str> = self.all.iter().map(|device| device.spec.name.as_str()).collect();
            names.truncate(12);
            let what = format!("there is no device named \"{name}\"; there are host, {}", names.join(", "));
            self.nonsense(span, what)
        })
    }

    fn link(&self, link: &Spanned<LinkFile>, host: &DeviceSpec) -> Result<[Directed; 2], ScenarioError> {
        let (span, file) = (link.span(), link.get_ref());
        let [a, b] = [self.find(&file.between[0], &span)?, self.find(&file.between[1], &span)?];
        if a == b {
            return Err(self.nonsense(&span, "a link is between two devices".into()));
        }
        let access = |who: PeerId| match (who.0 as usize).checked_sub(HOST.0 as usize + 1) {
            Some(place) => self.all.get(place).map_or(Access::IDEAL, |device| device.spec.access),
            None => host.access,
        };
        let wire = |from: Access, to: Access| Wire {
            bandwidth: file.mbit.map_or(from.up.min(to.down), |mbit| mbit.0 * 1e6 / 8.0),
            latency: file.latency_ms.map_or(from.latency + to.latency, |time| seconds(time.0 / 1e3)),
            jitter: file.jitter_ms.map_or(from.jitter + to.jitter, |time| seconds(time.0 / 1e3)),
            loss: file.loss.map_or(1.0 - (1.0 - from.loss) * (1.0 - to.loss), |loss| loss.0),
        };
        Ok([((a, b), wire(access(a), access(b))), ((b, a), wire(access(b), access(a)))])
    }

    fn fault(&self, fault: &Spanned<FaultFile>) -> Result<(Moment, Act), ScenarioError> {
        let (span, file) = (fault.span(), fault.get_ref());
        let missing = |what: &str| self.nonsense(&span, format!("this fault needs {what}"));
        let other_keys = [
            ("from", file.from.is_some(), matches!(file.what, Fault::Cut | Fault::Part)),
            (
                "seconds",
                file.seconds.is_some(),
                matches!(file.what, Fault::Freeze | Fault::Isolate | Fault::Part),
            ),
            ("by_ms", file.by_ms.is_some(), file.what == Fault::Lag),
            ("factor", file.factor.is_some(), file.what == Fault::SlowDown),
            (
                "device",
                file.device.is_some(),
                file.job.is_some() || !matches!(file.what, Fault::Pause | Fault::ReloadHost),
            ),
            ("nth", file.nth.is_some(), file.job.is_some()),
            ("done", file.done.is_some(), file.job.is_some()),
        ];
        if let Some((key, ..)) = other_keys.iter().find(|(_, given, has)| *given && !has) {
            let what = format!("this fault has no `{key}`: take it out");
            return Err(self.nonsense(&span, what));
        }
        let device = || match &file.device {
            Some(name) => self.find(name, &span),
            None => Err(missing("a `device`")),
        };
        let other = || match &file.from {
            Some(name) => match self.find(name, &span)? {
                other if other == device()? => {
                    Err(self.nonsense(&span, "this happens between two devices".into()))
                }
                other => Ok(other),
            },
            None => Err(missing("the other device in `from`")),
        };
        let time = || file.seconds.map(|time| time.0.into()).ok_or_else(|| missing("how many `seconds`"));
        let factor = || file.factor.map(|factor| factor.0).ok_or_else(|| missing("a `factor`"));
        let not_host = |who: PeerId| {
            let host = || self.nonsense(&span, "this cannot happen to the host: name another device".into());
            if who == HOST { Err(host()) } else { Ok(who) }
        };
        let act = match file.what {
            Fault::Kill => Act::Kill { peer: not_host(device()?)?, silent: false },
            Fault::Vanish => Act::Kill { peer: not_host(device()?)?, silent: true },
            Fault::Freeze => Act::Freeze(device()?, time()?),
            Fault::Leave => Act::Leave(not_host(device()?)?),
            Fault::Remove => Act::Remove(not_host(device()?)?),
            Fault::FailJob => Act::FailJob(device()?),
            Fault::Isolate => Act::Isolate(device()?, time()?),
            Fault::Part => Act::Part(device()?, other()?, time()?),
            Fault::Cut => Act::Cut(device()?, other()?),
            Fault::Lag => Act::Lag(device()?, file.by_ms.ok_or_else(|| missing("`by_ms`"))?),
            Fault::SlowDown => Act::SlowDown(device()?, factor()?),
            Fault::Pause => Act::Pause,
            Fault::ReloadHost => Act::ReloadHost,
            Fault::Hide => Act::Hide(not_host(device()?)?),
            Fault::Show => Act::Show(not_host(device()?)?),
            Fault::Stall => Act::Stall(not_host(device()?)?),
        };
        let moment = match (file.at, file.job) {
            (Some(at), None) => Moment::At(seconds(at.0)),
            (None, Some(job)) => {
                let who = if file.device.is_some() { device()? } else { HOST };
                let (nth, done) = (file.nth.map_or(1, |nth| nth.0), file.done.unwrap_or(false));
                Moment::Job { who, job, nth, done }
            }
            _ => return Err(missing("either the second, `at`, or the `job` at which it happens")),
        };
        Ok((moment, act))
    }
}
