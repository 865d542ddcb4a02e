//! What the planner is told of the room, and what it says: profiles of the devices as they measured themselves and as the
//! run's own times have them since.
//!
//! A device that was not measured yet is taken for one like the median of the others; where none was, all are alike.

use super::Coordinator;
use super::replan::{LEAVE_OUT, REORDER, STEPS_LEFT};
use super::state::{Answer, Run, Shape, TimedWire};
use crate::codec::Precision;
use crate::ids::PeerId;
use crate::run::{Aim, Backbone, Freedom, Settings};
use baton_plan::{
    BoundaryPrecision, Bytes, Curve, DeviceIndex, DeviceProfile, HostProfile, Hysteresis, LinkProfile,
    ModelProfile, Node, Options, Partition, PeerProfile, PlanError, Prediction, Recompute, Room, Situation,
    StagePlan, Storage, Wire, fetch_time, fetches, lightest, plan, predict, settle, tune,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// What a device on a home network reaches, until it is measured: 5 MB/s and 10 ms.
const LINK: LinkProfile = LinkProfile { up: 5e6, down: 5e6, round_trip: 0.01 };
/// Devices whose times differ by less than this share are taken for alike: a step's times vary as much.
const ALIKE: f64 = 0.25;
/// No plan is looked for again before some device's time has changed by this share: in a room of 64 phones the search
/// takes 70 ms.
const SAME: f64 = 0.1;
/// Seconds in which everybody stops, loads what it has ready and connects to new neighbours.
const TURN: f64 = 2.0;
/// Bytes a second that the model's files come with, all devices together: from their own disks and from each other.
const SOURCE: f64 = 1e12;
/// Bytes a second that a host reads of its own disk and checks.
const HOST_READS: f64 = 1e8;
/// A run whose aim is little memory is moved to a plan whose most loaded device holds no more than this share of what one
/// holds now.
const LIGHTER: f64 = 0.95;
/// For so long after a run began its browsers may still compile the engine anew, next to the work.
pub(super) const COMPILES: Duration = Duration::from_secs(60);
/// Every device that opens the page has as many bytes as this.
const LEAST: u64 = 32 << 20;
/// The most micro-batches in flight beyond 1F1B's own.
const MOST_AHEAD: u16 = 4;
/// The most micro-batches of a step that are looked at.
const MOST_MICRO_BATCHES: u16 = 64;
/// A plan that takes no more than this share of a step's time is moved to even if the last move was a short time ago.
pub(super) const FAR_OFF: f64 = 0.6;

impl Coordinator {
    /// The planner's own plan for these devices, or why nothing fits, in words; none where the model or every device is
    /// unknown to it.
    pub(super) fn planned(&self, devices: &[PeerId]) -> Option<Result<Shape, String>> {
        let run = self.run.as_ref()?;
        let model = run.start.profile.as_ref()?;
        let room = self.room(run, devices)?;
        let mut options = self.options(run);
        let mut found = plan(&room, model, &options);
        if options.host_blocks == 0 && matches!(found, Err(PlanError::Refused(_))) {
            // What does not fit the others, the host takes, if it can.
            options.host_blocks = run.start.blocks;
            found = plan(&room, model, &options);
        }
        let found = match found {
            Ok(found) => found,
            Err(PlanError::Refused(refusal)) => {
                return Some(Err(sentence(&refusal.words(|node| self.name_of(node, devices)))));
            }
            Err(_) => return None,
        };
        Some(Ok(self.tuned(shape(found.partition, devices)?)))
    }

    /// The plan for these devices, in this order, whose most loaded device holds the least; none where that is not the
    /// run's aim, nothing fits, or the model or every device is unknown to the planner.
    pub(super) fn lightest(&self, devices: &[PeerId]) -> Option<Shape> {
        let run = self.run.as_ref().filter(|run| run.start.settings.aim == Aim::Memory)?;
        let (room, model) = (self.room(run, devices)?, run.start.profile.as_ref()?);
        let own = self.options(run);
        // What does not fit the others, the host takes, if it can.
        let with_host = || Options { host_blocks: run.start.blocks, ..own.clone() };
        let light = |options: &Options| lightest(&room, model, options).ok().flatten();
        shape(light(&own).or_else(|| light(&with_host()))?, devices)
    }

    /// What a plan that is looked for may be.
    fn options(&self, run: &Run) -> Options {
        let host_blocks = if self.host_may_help(run) { run.start.blocks } else { 0 };
        Options { host_blocks, ..options(&run.start.settings) }
    }

    /// Whether the host has blocks of its own where that makes steps shorter: how fast it is has to be known.
    pub(super) fn host_may_help(&self, run: &Run) -> bool {
        run.start.settings.freedom.host_blocks && self.own.is_some()
    }

    /// Seconds of a forward and a backward pass of a block on the host, and of the ends of a micro-batch; none where it did
    /// not measure itself.
    pub(super) fn own_pace(&self, run: &Run, devices: &[PeerId]) -> Option<(f64, f64)> {
        let profiles = self.profiles(run, devices).unwrap_or_default();
        let HostProfile { device, front, head } = self.own_profile(run, &profiles)?;
        let ends = front.at(run.samples()) + head.at(run.samples());
        Some((pace(&device, run).iter().sum(), ends))
    }

    /// The same devices with the same blocks, a step cut and micro-batches in flight as is best, as far as that is free.
    pub(super) fn tuned(&self, shape: Shape) -> Shape {
        match self.asked_of(&shape, tune) {
            Some((Partition { micro_batches, ahead, .. }, _)) => Shape { micro_batches, ahead, ..shape },
            None => shape,
        }
    }

    /// Who computes activations again under a plan: the host, and each stage.
    pub(super) fn recomputing(&self, shape: &Shape) -> (bool, Vec<bool>) {
        let settings = self.run.as_ref().map(|run| &run.start.settings);
        let always = settings.is_some_and(|settings| settings.recompute);
        let settled =
            settings.is_some_and(|settings| settings.freedom.recompute).then(|| self.asked_of(shape, settle));
        match settled.flatten() {
            Some((partition, _)) => {
                (partition.host_recompute, partition.stages.iter().map(|stage| stage.recompute).collect())
            }
            None => (always, vec![always; shape.stages.len()]),
        }
    }

    /// What was found best for these devices, as long as they take as long for a block as they did then.
    pub(super) fn found_before(&self, devices: &[PeerId]) -> Option<Shape> {
        let answer = self.run.as_ref()?.answer.as_ref().filter(|answer| answer.devices == devices)?;
        let paces = self.keys(devices)?;
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= SAME * a.max(*b);
        answer.paces.iter().flatten().zip(paces.iter().flatten()).all(close).then(|| answer.shape.clone())
    }

    /// Keeps what was found best for these devices.
    pub(super) fn keep_found(&mut self, devices: Vec<PeerId>, shape: &Shape) {
        if let Some(paces) = self.keys(&devices)
            && let Some(run) = &mut self.run
        {
            run.answer = Some(Answer { devices, paces, shape: shape.clone() });
        }
    }

    /// What a plan takes and needs, if enough is known to tell.
    pub(super) fn prediction(&self, shape: &Shape) -> Option<Prediction> {
        self.asked_of(shape, settle).map(|(_, prediction)| prediction)
    }

    /// What [`settle`] or [`tune`] makes of a plan.
    fn asked_of(
        &self,
        shape: &Shape,
        planner: impl Fn(&Room, &ModelProfile, &Options, &Partition) -> Result<(Partition, Prediction), PlanError>,
    ) -> Option<(Partition, Prediction)> {
        let run = self.run.as_ref()?;
        let devices: Vec<PeerId> = shape.stages.iter().map(|(id, _)| *id).collect();
        let (room, model) = (self.room(run, &devices)?, run.start.profile.as_ref()?);
        planner(&room, model, &options(&run.start.settings), &partition(run, shape, &devices)?).ok()
    }

    /// Whether every device has the memory for its part of a plan, as far as is known.
    pub(super) fn fits(&self, shape: &Shape) -> bool {
        self.prediction(shape).is_none_or(|prediction| prediction.fits())
    }

    /// Why the host cannot train all blocks by itself, in words; none if it can, or nothing is known.
    pub(super) fn too_small_alone(&self) -> Option<String> {
        let run = self.run.as_ref()?;
        let alone = Shape::alone(run.start.blocks, run.plan.micro_batches());
        let loads = self.prediction(&alone)?.loads;
        let own = loads.first().filter(|load| load.memory.total() > load.usable)?;
        let (needed, usable) = (Bytes(own.memory.total()), Bytes(own.usable));
        Some(format!(
            "This device cannot go on alone: training all {} blocks takes {needed} of memory, and it has {usable}. The \
             run goes on as soon as another device joins; what was trained so far is kept.",
            run.start.blocks,
        ))
    }

    /// Whether a plan is so much better than the one in force that the way to it pays in the steps that are left, if
    /// enough is known to tell.
    pub(super) fn pays(&self, run: &Run, wanted: &Shape) -> Option<bool> {
        let now = &run.plan.shape;
        let (model, options) = (run.start.profile.as_ref()?, options(&run.start.settings));
        let Move { room, from, to, .. } = self.way(run, wanted)?;
        let (current, candidate) =
            (settle(&room, model, &options, &from).ok()?.1, settle(&room, model, &options, &to).ok()?.1);
        if current.fits() != candidate.fits() {
            return Some(candidate.fits());
        }
        // A device that is new to the room, or a plan that is far off, is not kept waiting by the moves before.
        let is_new = |id: &PeerId| self.peers.get(id).is_some_and(|peer| peer.fresh);
        let helps = wanted.stages.iter().any(|(id, _)| is_new(id));
        let at_once = helps || candidate.step <= FAR_OFF * current.step;
        let steps_left = run.steps_left();
        let new_to_host = to.host.clone().filter(|block| !from.host.contains(block));
        let storage = to.storage as usize;
        let bytes: u64 =
            new_to_host.filter_map(|block| Some(model.blocks.get(usize::from(block))?.frozen[storage])).sum();
        // Everybody stands still while the host reads its own: it gets nothing ready before.
        let host_loads = bytes as f64 / HOST_READS;
        let move_time = TURN + host_loads + fetch_time(&room, &fetches(model, &from, &to), SOURCE);
        if run.start.settings.aim == Aim::Memory {
            // It must ask less of the most loaded, and the way be short beside the work that is left. Who came takes part,
            // if nobody holds more for it.
            let (new, old) = (candidate.peak_memory() as f64, current.peak_memory() as f64);
            let joined = helps && wanted.stages.len() > now.stages.len() && new <= old;
            let wanted = new <= LIGHTER * old || joined || now.stages.is_empty();
            let rest = candidate.step * f64::from(steps_left);
            return Some(wanted && steps_left > STEPS_LEFT && rest > 2.0 * move_time);
        }
        if helps && wanted.stages.len() > now.stages.len() {
            // Who came takes part, as from the start: unless the rest is over soon, or much shorter without.
            let (rest, with) = (current.step * f64::from(steps_left), candidate.step * f64::from(steps_left));
            let longer = with + move_time - rest;
            return Some(rest > 2.0 * move_time && (longer < LEAVE_OUT || REORDER * with < rest));
        }
        let (last, moves) = run.moved;
        let situation = Situation {
            current: current.step,
            candidate: candidate.step,
            move_time,
            lost: 0.0,
            steps_left,
            steps_since: run.committed.0.saturating_sub(last.0),
            // The first moves wait as well.
            moves: match (at_once, self.now < run.since + COMPILES) {
                (true, _) => 0,
                (false, true) => moves.max(1),
                (false, false) => moves,
            },
        };
        let usual = Hysteresis::default();
        // Who came to help is given work as soon as it pays at all.
        let hysteresis = if helps { Hysteresis { least_gain: 0.02, margin: 1.0, ..usual } } else { usual };
        Some(hysteresis.worth_moving(&situation).moves())
    }

    /// The plan in force and another one as the planner writes them, for the devices of both.
    fn way(&self, run: &Run, wanted: &Shape) -> Option<Move> {
        let now = &run.plan.shape;
        let mut devices: Vec<PeerId> = now.stages.iter().chain(&wanted.stages).map(|(id, _)| *id).collect();
        devices.sort_unstable();
        devices.dedup();
        let room = self.room(run, &devices)?;
        let (from, to) = (partition(run, now, &devices)?, partition(run, wanted, &devices)?);
        Some(Move { devices, room, from, to })
    }

    /// Seconds until everybody has what is new to them under a plan: what a device has ready it does not fetch. None where the
    /// model or every device is unknown to the planner.
    pub(super) fn way_to(&self, shape: &Shape) -> Option<f64> {
        let run = self.run.as_ref()?;
        let model = run.start.profile.as_ref()?;
        let Move { devices, room, from, to } = self.way(run, shape)?;
        let mut missing = fetches(model, &from, &to);
        for fetch in &mut missing {
            let Node::Device(DeviceIndex(index)) = fetch.node else { continue };
            let id = devices.get(usize::from(index))?;
            let ready = |blocks| self.peers.get(id).is_some_and(|peer| peer.has_ready(blocks));
            if shape.blocks_of(*id).is_some_and(ready) {
                fetch.weights = 0;
            }
        }
        Some(fetch_time(&room, &missing, SOURCE))
    }

    /// Seconds of a forward and a backward pass of a block for each of these devices; none where nobody was timed.
    pub(super) fn paces(&self, devices: &[PeerId]) -> Option<Vec<[f64; 2]>> {
        let run = self.run.as_ref()?;
        Some(self.profiles(run, devices)?.iter().map(|profile| pace(profile, run)).collect())
    }

    /// What an answer was found for: seconds of the passes of a block over one sample, whatever a step is cut into; the
    /// host's and its head's at the end, if it may have blocks.
    fn keys(&self, devices: &[PeerId]) -> Option<Vec<[f64; 2]>> {
        let run = self.run.as_ref()?;
        let mut keys: Vec<_> =
            self.profiles(run, devices)?.iter().map(|own| [own.forward.at(1), own.backward.at(1)]).collect();
        if let Some(own) = self.own.as_ref().filter(|_| self.host_may_help(run)) {
            let device = own.tracker.profile();
            keys.push([device.forward.at(1) + device.backward.at(1), own.head.at(1)]);
        }
        Some(keys)
    }

    /// What these devices can do; none where nobody was timed. Times that differ from the median by less than chance may
    /// make them differ are the median.
    fn profiles(&self, run: &Run, devices: &[PeerId]) -> Option<Vec<DeviceProfile>> {
        let own = |id: &PeerId| {
            self.peers.get(id).and_then(|peer| peer.compute.tracker()).map(baton_plan::Tracker::profile)
        };
        let all: Vec<Option<DeviceProfile>> = devices.iter().map(own).collect();
        let time = |profile: &DeviceProfile| pace(profile, run).iter().sum::<f64>();
        let mut known: Vec<(f64, &DeviceProfile)> =
            all.iter().flatten().map(|profile| (time(profile), profile)).collect();
        known.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (usual_time, usual) = known.get(known.len() / 2)?;
        let alike = |profile: &DeviceProfile| (time(profile) - usual_time).abs() < ALIKE * usual_time;
        let usual_with = |memory| DeviceProfile { memory, ..(*usual).clone() };
        let profile = |own: &Option<DeviceProfile>| match own {
            Some(own) if alike(own) => usual_with(own.memory),
            Some(own) => own.clone(),
            None => usual_with(u64::MAX),
        };
        Some(all.iter().map(profile).collect())
    }

    /// What the host can do; one that is nearly as fast as these devices is taken for one of them.
    fn own_profile(&self, run: &Run, profiles: &[DeviceProfile]) -> Option<HostProfile> {
        let own = self.own.as_ref()?.profile();
        let time = |profile: &DeviceProfile| pace(profile, run).iter().sum::<f64>();
        let off = |other: &DeviceProfile| (time(&own.device) / time(other) - 1.0).abs();
        let memory = own.device.memory;
        let nearest = profiles.iter().min_by(|a, b| off(a).total_cmp(&off(b)));
        match nearest.filter(|nearest| off(nearest) < ALIKE) {
            Some(alike) => Some(HostProfile { device: DeviceProfile { memory, ..alike.clone() }, ..own }),
            None => Some(own),
        }
    }

    fn room(&self, run: &Run, devices: &[PeerId]) -> Option<Room> {
        let link = |id: &PeerId| self.peers.get(id).and_then(|peer| peer.probe.link()).unwrap_or(LINK);
        let profiles = if devices.is_empty() { Vec::new() } else { self.profiles(run, devices)? };
        let host = match (self.own_profile(run, &profiles), profiles.first()) {
            (Some(own), _) => own,
            // Its blocks, if it has any, are all that it is judged by.
            (None, Some(first)) => {
                let nothing = Curve::new([(1, 0.0)]).ok()?;
                let device = DeviceProfile { memory: u64::MAX, ..first.clone() };
                HostProfile { device, front: nothing.clone(), head: nothing }
            }
            (None, None) => return None,
        };
        let peers = devices.iter().zip(profiles);
        Some(Room {
            host,
            devices: peers.map(|(id, device)| PeerProfile { device, link: link(id) }).collect(),
            wires: self.wires_between(devices),
        })
    }

    /// Links between these devices that were timed, as the planner numbers them.
    fn wires_between(&self, devices: &[PeerId]) -> BTreeMap<(Node, Node), Wire> {
        let mut nodes = BTreeMap::new();
        for (id, index) in devices.iter().zip(0..) {
            nodes.insert(*id, Node::Device(DeviceIndex(index)));
        }
        let between = |((from, to), timed): (&(PeerId, PeerId), &TimedWire)| {
            Some(((*nodes.get(from)?, *nodes.get(to)?), timed.wire))
        };
        self.wires.iter().filter(|(pair, _)| self.is_timed(pair)).filter_map(between).collect()
    }
}

/// From one plan to another.
struct Move {
    devices: Vec<PeerId>,
    room: Room,
    from: Partition,
    to: Partition,
}

/// Seconds of a forward and of a backward pass of a block.
fn pace(profile: &DeviceProfile, run: &Run) -> [f64; 2] {
    let samples = run.samples();
    let forward = profile.forward.at(samples);
    let again = if recompute(&run.start.settings) == Recompute::Always { forward } else { 0.0 };
    [forward, profile.backward.at(samples) + again]
}

/// A plan as the room writes it; these devices are those of the planner's room.
fn shape(partition: Partition, devices: &[PeerId]) -> Option<Shape> {
    let stage = |stage: StagePlan| {
        let DeviceIndex(index) = *stage.devices.first()?;
        Some((*devices.get(usize::from(index))?, stage.blocks))
    };
    let Partition { host, stages, micro_batches, ahead, .. } = partition;
    let stages = stages.into_iter().map(stage).collect::<Option<_>>()?;
    Some(Shape { host, stages, micro_batches, ahead })
}

/// A plan as the planner writes it; these devices are those of its room.
fn partition(run: &Run, shape: &Shape, devices: &[PeerId]) -> Option<Partition> {
    let settings = &run.start.settings;
    let options = options(settings);
    let stage = |(id, blocks): &(PeerId, Range<u16>)| {
        let index = devices.iter().position(|device| device == id)?;
        let devices = vec![DeviceIndex(u16::try_from(index).ok()?)];
        Some(StagePlan { devices, blocks: blocks.clone(), recompute: settings.recompute })
    };
    Some(Partition {
        micro_batches: shape.micro_batches,
        ahead: shape.ahead,
        storage: *options.storages.first()?,
        boundary: *options.boundaries.first()?,
        host: shape.host.clone(),
        host_recompute: settings.recompute,
        stages: shape.stages.iter().map(stage).collect::<Option<_>>()?,
    })
}

/// Bytes that no device needs more of, whatever the plan: for all blocks, the ends and every micro-batch at once; none if the
/// planner cannot tell.
pub(super) fn whole(run: &Run) -> Option<u64> {
    let model: &ModelProfile = run.start.profile.as_ref()?;
    let time = Curve::new([(1, 1.0)]).ok()?;
    let device = DeviceProfile {
        memory: u64::MAX,
        forward: time.clone(),
        backward: time.clone(),
        update: 0.0,
        slowness: 1.0,
    };
    let room = Room {
        host: HostProfile { device: device.clone(), front: time.clone(), head: time },
        devices: vec![PeerProfile { device, link: LinkProfile::IDEAL }],
        wires: BTreeMap::new(),
    };
    let stages = vec![(PeerId::HOST, 0..run.start.blocks)];
    let shape = Shape { host: 0..0, stages, micro_batches: run.start.settings.micro_batches, ahead: 0 };
    let partition = partition(run, &shape, &[PeerId::HOST])?;
    let loads = predict(&room, model, &options(&run.start.settings), &partition).ok()?.loads;
    // The first of many stages has every micro-batch in flight.
    let in_flight = u64::from(run.start.settings.micro_batches);
    let most = |load: &baton_plan::Load| {
        let again = load.memory.activations.saturating_mul(in_flight.saturating_sub(1));
        load.memory.total().saturating_add(again)
    };
    Some(loads.iter().map(most).fold(LEAST, u64::saturating_add))
}

/// What a run leaves the planner to choose.
fn options(settings: &Settings) -> Options {
    Options {
        batch_size: settings.batch_size,
        micro_batches: counts(settings),
        storages: vec![storage(settings.backbone)],
        boundaries: vec![match settings.boundary {
            Precision::F32 => BoundaryPrecision::F32,
            Precision::F16 => BoundaryPrecision::F16,
        }],
        // More in flight is more to hold.
        most_ahead: if settings.freedom.ahead && settings.aim == Aim::Time { MOST_AHEAD } else { 0 },
        recompute: recompute(settings),
        // More only for a host that may help, or where the others lack the memory.
        host_blocks: 0,
        max_replicas: 1,
        commit_overlaps: true,
    }
}

/// Into how many micro-batches a step may be cut.
fn counts(settings: &Settings) -> Vec<u16> {
    if !settings.freedom.micro_batches {
        return vec![settings.micro_batches];
    }
    let divides =
        |count: &u16| settings.batch_size.is_multiple_of((*count).into()) || *count == settings.micro_batches;
    let mut counts: Vec<u16> = (1..=MOST_MICRO_BATCHES)
        .filter(|count| u32::from(*count) <= settings.batch_size)
        .filter(divides)
        .collect();
    if settings.aim == Aim::Memory {
        // The fewer samples at once, the less there is to hold.
        counts.drain(..counts.len().saturating_sub(1));
    }
    counts
}

fn recompute(settings: &Settings) -> Recompute {
    match settings {
        Settings { freedom: Freedom { recompute: true, .. }, aim: Aim::Memory, .. } => Recompute::Always,
        Settings { freedom: Freedom { recompute: true, .. }, .. } => Recompute::WhereNeeded,
        Settings { recompute: true, .. } => Recompute::Always,
        Settings { recompute: false, .. } => Recompute::Never,
    }
}

fn storage(backbone: Backbone) -> Storage {
    match backbone {
        Backbone::F32 => Storage::F32,
        Backbone::Bf16 => Storage::Bf16,
        Backbone::Int8 => Storage::Int8,
        Backbone::Nf4 => Storage::Nf4,
    }
}

/// Words with a capital letter in front.
fn sentence(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
