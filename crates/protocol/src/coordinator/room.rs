//! What the planner is told of the room, and what it says: profiles of the devices from the run's own times.
//!
//! A device that was not timed yet is taken for one like the median of the others; where none was, all are alike.

use super::Coordinator;
use super::state::{Answer, Run, Shape};
use crate::codec::Precision;
use crate::ids::PeerId;
use crate::run::{Backbone, Settings};
use baton_plan::{
    BoundaryPrecision, Curve, DeviceIndex, DeviceProfile, HostProfile, LinkProfile, Options, Partition,
    PeerProfile, Prediction, Recompute, Room, StagePlan, Storage, plan, predict,
};

/// What a device on a home network reaches, until it is measured: 5 MB/s and 10 ms.
const LINK: LinkProfile = LinkProfile { up: 5e6, down: 5e6, round_trip: 0.01 };
/// Devices whose times differ by less than this share are taken for alike: a step's times vary as much.
const ALIKE: f64 = 0.25;
/// No plan is looked for again before some device's time has changed by this share: in a room of 64 phones the search
/// takes 70 ms.
const SAME: f64 = 0.1;
/// Seconds in which everybody stops, loads what it has ready and connects to new neighbours.
const TURN: f64 = 2.0;

impl Coordinator {
    /// The planner's own plan for these devices; none where the model or every device is unknown to it, or nothing fits.
    pub(super) fn planned(&self, devices: &[PeerId]) -> Option<Shape> {
        let run = self.run.as_ref()?;
        let model = run.start.profile.as_ref()?;
        let room = self.room(run, devices)?;
        let found = plan(&room, model, &options(&run.start.settings)).ok()?;
        let stage = |stage: StagePlan| {
            let DeviceIndex(index) = *stage.devices.first()?;
            Some((*devices.get(usize::from(index))?, stage.blocks))
        };
        let stages: Option<Vec<_>> = found.partition.stages.into_iter().map(stage).collect();
        Some(Shape { host: found.partition.host, stages: stages? })
    }

    /// What was found best for these devices, as long as they take as long for a block as they did then.
    pub(super) fn found_before(&self, devices: &[PeerId]) -> Option<Shape> {
        let answer = self.run.as_ref()?.answer.as_ref().filter(|answer| answer.devices == devices)?;
        let paces = self.paces(devices)?;
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= SAME * a.max(*b);
        answer.paces.iter().flatten().zip(paces.iter().flatten()).all(close).then(|| answer.shape.clone())
    }

    /// Keeps what was found best for these devices.
    pub(super) fn keep_found(&mut self, devices: Vec<PeerId>, shape: &Shape) {
        if let Some(paces) = self.paces(&devices)
            && let Some(run) = &mut self.run
        {
            run.answer = Some(Answer { devices, paces, shape: shape.clone() });
        }
    }

    /// Seconds of a step with a plan, if enough is known to tell.
    pub(super) fn step_time(&self, shape: &Shape) -> Option<f64> {
        Some(self.prediction(shape)?.step)
    }

    /// Whether every device has the memory for its part of a plan, if enough is known to tell.
    pub(super) fn fits(&self, shape: &Shape) -> Option<bool> {
        Some(self.prediction(shape)?.fits())
    }

    fn prediction(&self, shape: &Shape) -> Option<Prediction> {
        let run = self.run.as_ref()?;
        let model = run.start.profile.as_ref()?;
        let devices: Vec<PeerId> = shape.stages.iter().map(|(id, _)| *id).collect();
        let room = self.room(run, &devices)?;
        let options = options(&run.start.settings);
        let stages = (0..).zip(&shape.stages).map(|(index, (_, blocks))| StagePlan {
            devices: vec![DeviceIndex(index)],
            blocks: blocks.clone(),
            recompute: run.start.settings.recompute,
        });
        let partition = Partition {
            micro_batches: run.start.settings.micro_batches,
            storage: *options.storages.first()?,
            boundary: *options.boundaries.first()?,
            host: shape.host.clone(),
            host_recompute: run.start.settings.recompute,
            stages: stages.collect(),
        };
        predict(&room, model, &options, &partition).ok()
    }

    /// Seconds until these blocks are where they are to be: the bytes over an ordinary link, and the turn itself.
    pub(super) fn seconds_to_move(&self, blocks: Vec<u16>) -> f64 {
        let bytes = self.run.as_ref().and_then(|run| {
            let model = run.start.profile.as_ref()?;
            let storage = Storage::ALL.iter().position(|s| *s == storage(run.start.settings.backbone))?;
            let block =
                |block: u16| model.blocks.get(usize::from(block)).map_or(0, |block| block.frozen[storage]);
            Some(blocks.into_iter().map(block).sum::<u64>())
        });
        TURN + bytes.unwrap_or(0) as f64 / LINK.down
    }

    /// Seconds of a forward and a backward pass of a block for each of these devices; none where nobody was timed. Times
    /// that differ from the median by less than chance may make them differ are the median.
    pub(super) fn paces(&self, devices: &[PeerId]) -> Option<Vec<[f64; 2]>> {
        let pace = |id: &PeerId| self.peers.get(id).and_then(|peer| peer.pace.get());
        let sum = |[forward, backward]: [f64; 2]| forward + backward;
        let mut known: Vec<[f64; 2]> =
            devices.iter().filter_map(pace).filter(|pace| sum(*pace) > 0.0).collect();
        known.sort_by(|a, b| sum(*a).total_cmp(&sum(*b)));
        let usual = *known.get(known.len() / 2)?;
        let alike = |pace: &[f64; 2]| (sum(*pace) - sum(usual)).abs() < ALIKE * sum(usual);
        let other = |id: &PeerId| pace(id).filter(|pace| sum(*pace) > 0.0 && !alike(pace));
        Some(devices.iter().map(|id| other(id).unwrap_or(usual)).collect())
    }

    fn room(&self, run: &Run, devices: &[PeerId]) -> Option<Room> {
        let samples = run.start.settings.batch_size.div_ceil(run.start.settings.micro_batches.into()).max(1);
        let paces = self.paces(devices)?;
        let profile = |[forward, backward]: [f64; 2]| {
            Some(DeviceProfile {
                memory: u64::MAX,
                forward: Curve::new([(samples, forward)]).ok()?,
                backward: Curve::new([(samples, backward)]).ok()?,
                update: 0.0,
                slowness: 1.0,
            })
        };
        let peers = paces.iter().map(|pace| Some(PeerProfile { device: profile(*pace)?, link: LINK }));
        let nothing = Curve::new([(1, 0.0)]).ok()?;
        Some(Room {
            host: HostProfile { device: profile(*paces.first()?)?, front: nothing.clone(), head: nothing },
            devices: peers.collect::<Option<Vec<_>>>()?,
            wires: std::collections::BTreeMap::new(),
        })
    }
}

/// What a run leaves the planner to choose: who runs which blocks, and nothing else.
fn options(settings: &Settings) -> Options {
    Options {
        batch_size: settings.batch_size,
        micro_batches: vec![settings.micro_batches],
        storages: vec![storage(settings.backbone)],
        boundaries: vec![match settings.boundary {
            Precision::F32 => BoundaryPrecision::F32,
            Precision::F16 => BoundaryPrecision::F16,
        }],
        recompute: if settings.recompute { Recompute::Always } else { Recompute::Never },
        // The ends are enough for the host, which may be the weakest of all and has the text to prepare.
        host_blocks: 0,
        max_replicas: 1,
        commit_overlaps: true,
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
