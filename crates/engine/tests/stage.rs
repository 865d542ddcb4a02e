//! A stage by itself, with a host and a neighbour that are played here: what it takes from others, and what it gives them.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use baton_engine::cache::AnyCache;
use baton_engine::node::{Environment, Input, Inputs, StageCommand, queue, run_stage};
use baton_formats::files::{Hash, sha256};
use baton_formats::{ChunkCache, Manifest, MemoryCache, MemoryFiles};
use baton_protocol::codec::Precision;
use baton_protocol::ids::StageIndex;
use baton_protocol::link::Lane;
use baton_protocol::message::{Assign, Device, FileAnswer, Message};
use baton_protocol::run::{ModelSource, Settings};
use baton_protocol::{Generation, PeerId, Step};
use baton_testhub::TestHub;
use baton_transport::memory::{Arrived, MemoryChannel};
use baton_transport::{Arrival, PortId, Ports};
use futures::FutureExt;
use futures::executor::{LocalPool, block_on};
use futures::task::LocalSpawnExt;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const HOST: PeerId = PeerId(1);
const NEIGHBOUR: PeerId = PeerId(2);
const WEIGHTS: &str = "model.safetensors";
const REPO: &str = "org/name";

#[derive(Clone)]
struct AtOnce;

impl Environment for AtOnce {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    async fn breathe(&self) {}

    async fn memory(&self, most: u64, _held: u64) -> u64 {
        most
    }
}

/// Frames that the stage sent, by the channel of the other end.
type Frames = Rc<RefCell<VecDeque<(PortId, Vec<u8>)>>>;

/// A stage, and what everybody else in its room does.
struct Room {
    pool: LocalPool,
    others: Ports<MemoryChannel>,
    frames: Frames,
    /// What the host says when it is asked for a piece.
    host_gives: FileAnswer,
    /// What the stage said to anybody, questions for pieces apart.
    heard: Vec<(PeerId, Message)>,
}

impl Room {
    fn new(cache: AnyCache, host_gives: FileAnswer) -> Self {
        let (inputs, stage_queue) = queue::<MemoryChannel, StageCommand>();
        let (mut others, frames) = (Ports::default(), Frames::default());
        for (peer, lane) in [(HOST, Lane::Control), (HOST, Lane::Bulk), (NEIGHBOUR, Lane::Bulk)] {
            let end = join(&inputs, peer, lane);
            let frames = frames.clone();
            let attach = move |id| {
                end.attach(move |arrived| {
                    if let Arrived::Frame(bytes) = arrived {
                        frames.borrow_mut().push_back((id, bytes));
                    }
                });
                end
            };
            others.insert(peer, lane, attach).unwrap();
        }
        let pool = LocalPool::new();
        let stage = run_stage(
            HOST,
            Device { name: "stage".into(), backend: "CPU".into() },
            baton_model::cpu(),
            None,
            cache,
            AtOnce,
            inputs,
            stage_queue,
            |_| (),
        );
        pool.spawner().spawn_local(stage.map(drop)).unwrap();
        let mut room = Self { pool, others, frames, host_gives, heard: Vec::new() };
        room.go_on();
        room.say(HOST, &Message::Welcome(Device { name: "host".into(), backend: "CPU".into() }));
        room
    }

    fn say(&mut self, from: PeerId, message: &Message) {
        self.others.send(from, message).unwrap();
        self.go_on();
    }

    /// Until nobody has anything to say.
    fn go_on(&mut self) {
        loop {
            self.pool.run_until_stalled();
            let Some((id, bytes)) = self.frames.borrow_mut().pop_front() else { return };
            for arrival in self.others.receive(id, &bytes).unwrap() {
                match arrival {
                    Arrival::Linked { .. } => {}
                    Arrival::Message { from, message: Message::ChunkRead { id, .. } } => {
                        let answer = self.host_gives.clone();
                        self.others.send(from, &Message::File { id, answer }).unwrap();
                    }
                    Arrival::Message { from, message } => self.heard.push((from, message)),
                }
            }
        }
    }

    /// Gives the stage its blocks, and waits until it has them or says why not: a hub answers on a thread of its own.
    fn load(&mut self, assign: &Message) {
        self.say(HOST, assign);
        for _ in 0..30_000 {
            if self.is_ready() || self.failure().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            self.go_on();
        }
    }

    /// Asks the stage for a piece, as its neighbour.
    fn ask(&mut self, hash: Hash) -> FileAnswer {
        self.say(NEIGHBOUR, &Message::ChunkRead { id: 7, hash });
        match self.heard.pop() {
            Some((NEIGHBOUR, Message::File { id: 7, answer })) => answer,
            other => panic!("{other:?} is no answer"),
        }
    }

    /// Nothing if the stage is ready, or else why it is not.
    fn failure(&self) -> Option<&str> {
        self.heard.iter().find_map(|(_, message)| match message {
            Message::Ready { .. } => Some(None),
            Message::Failed { reason, .. } => Some(Some(reason.as_str())),
            _ => None,
        })?
    }

    fn is_ready(&self) -> bool {
        self.heard.iter().any(|(_, message)| matches!(message, Message::Ready { .. }))
    }
}

/// A channel to the stage; gives the end of whoever plays `peer`.
fn join(inputs: &Inputs<MemoryChannel, StageCommand>, peer: PeerId, lane: Lane) -> MemoryChannel {
    let (own, other) = MemoryChannel::pair();
    let handler = inputs.clone();
    let make = move |id| {
        own.attach(move |arrived| {
            // A stage that has ended hears no more.
            let _ = handler.unbounded_send(match arrived {
                Arrived::Frame(bytes) => Input::Frame { id, bytes },
                Arrived::Closed => Input::Closed { id },
            });
        });
        own
    };
    inputs.unbounded_send(Input::Channel { peer, lane, make: Box::new(make) }).unwrap();
    other
}

struct Golden {
    config: String,
    weights: Vec<u8>,
    manifest: Manifest,
}

fn golden() -> Golden {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families/llama2");
    let weights = std::fs::read(folder.join(WEIGHTS)).unwrap();
    let mut files = MemoryFiles::new();
    files.insert(WEIGHTS, weights.clone());
    let manifest = block_on(Manifest::make(&files, &[WEIGHTS.to_owned()], &(), |_| ())).unwrap();
    Golden { config: std::fs::read_to_string(folder.join("config.json")).unwrap(), weights, manifest }
}

impl Golden {
    fn hash(&self) -> Hash {
        assert_eq!(self.manifest.files[0].chunks.len(), 1, "the model is one piece");
        self.manifest.files[0].chunks[0]
    }

    /// The stage gets the first block.
    fn assign(&self, source: ModelSource) -> Message {
        Message::Assign(Box::new(Assign {
            generation: Generation(1),
            stage: StageIndex(0),
            stages: 1,
            blocks: 0..1,
            prev: PeerId::HOST,
            next: PeerId::HOST,
            prev_trains: false,
            step: Step(0),
            settings: Settings { boundary: Precision::F32, ..Settings::default() },
            source,
            config: self.config.clone(),
            manifest: postcard::to_allocvec(&self.manifest).unwrap(),
            states: Vec::new(),
        }))
    }

    fn hub(&self) -> (TestHub, ModelSource) {
        let hub = TestHub::start().unwrap();
        hub.push(REPO, "main", [(WEIGHTS.to_owned(), self.weights.clone())]);
        let source = ModelSource::Url(hub.url(REPO, "main"));
        (hub, source)
    }

    /// A number of the last tensor is another one.
    fn changed(&self) -> Vec<u8> {
        let mut bytes = self.weights.clone();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    }
}

#[test]
fn a_stage_refuses_by_its_hash_a_byte_that_the_hub_has_changed() {
    let golden = golden();
    let (hub, source) = golden.hub();
    let mut room = Room::new(AnyCache::None, FileAnswer::Absent);
    room.load(&golden.assign(source.clone()));
    assert!(room.is_ready(), "{:?}", room.failure());

    hub.faults(|faults| faults.changed_byte = Some((WEIGHTS.into(), golden.weights.len() as u64 - 1)));
    let mut room = Room::new(AnyCache::None, FileAnswer::Absent);
    room.load(&golden.assign(source));
    let reason = room.failure().unwrap();
    let found = baton_formats::files::hex(&sha256(&golden.changed()));
    assert!(reason.contains(WEIGHTS) && reason.contains(&found), "{reason}");
    assert!(!room.is_ready());
}

#[test]
fn a_byte_that_the_host_has_changed_is_refused_and_the_hub_asked_instead() {
    let golden = golden();
    let lie = || FileAnswer::Bytes(golden.changed());
    let mut room = Room::new(AnyCache::None, lie());
    room.load(&golden.assign(ModelSource::Host));
    assert!(room.failure().unwrap().contains("sha256"), "{:?}", room.failure());

    let (hub, source) = golden.hub();
    let mut room = Room::new(AnyCache::None, lie());
    room.load(&golden.assign(source));
    assert!(room.is_ready(), "{:?}", room.failure());
    assert_eq!(hub.sent(WEIGHTS), golden.weights.len() as u64);
}

#[test]
fn a_stage_gives_away_pieces_of_the_room_s_model_and_of_no_other() {
    let golden = golden();
    let (cache, secret) = (Rc::new(MemoryCache::new(1 << 20)), b"a piece of another room's model");
    block_on(cache.put(&sha256(secret), secret));
    let mut room = Room::new(AnyCache::Memory(cache.clone()), FileAnswer::Bytes(golden.weights.clone()));
    assert_eq!(room.ask(sha256(secret)), FileAnswer::Absent);
    room.load(&golden.assign(ModelSource::Host));
    assert!(room.is_ready(), "{:?}", room.failure());
    assert_eq!(room.ask(golden.hash()), FileAnswer::Bytes(golden.weights));
    assert_eq!(room.ask(sha256(secret)), FileAnswer::Absent);
    assert!(block_on(cache.get(&sha256(secret))).is_some());
}
