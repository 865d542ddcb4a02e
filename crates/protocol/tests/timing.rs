//! Links between stages are timed while nobody works, one of a device at a time, and no answer to that stops a run.
//!
//! The machines of a host and its phones, with engines that take the same time for every job and a network that takes the
//! same time for every message.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use baton_plan::{
    BlockProfile, Curve, DeviceProfile, EndsProfile, Growth, HostProfile, LinkProfile, ModelProfile,
};
use baton_protocol::codec::{Boundary, Precision};
use baton_protocol::coordinator::{self, Coordinator, RunPhase, Start};
use baton_protocol::link::Lane;
use baton_protocol::message::{Assign, BlockBytes, Device, Message};
use baton_protocol::run::{ModelSource, Settings};
use baton_protocol::stage::{self, Stage, View};
use baton_protocol::{Generation, PeerId, StageIndex, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const HOST: PeerId = PeerId(1);
const BLOCKS: u16 = 12;
/// What a message is under way.
const WAY: Duration = Duration::from_millis(5);
/// What a job takes.
const WORK: Duration = Duration::from_millis(20);
/// The longest that a round of links is waited for.
const ROUND: Duration = Duration::from_secs(12);
const STEPS: u32 = 12;

fn phone(n: u32) -> PeerId {
    PeerId(HOST.0 + 1 + n)
}

fn device(name: &str) -> Device {
    Device { name: name.into(), backend: "toy".into() }
}

fn tensor() -> Boundary {
    Boundary::encode(&[1.0, -2.0], [1, 1, 2], Precision::F32).unwrap()
}

fn profile() -> DeviceProfile {
    let curve = Curve::affine(0.0, 0.01).unwrap();
    DeviceProfile { memory: u64::MAX, forward: curve.clone(), backward: curve, update: 0.0, slowness: 1.0 }
}

/// Alike blocks with hidden states of 200 kB a sample.
fn model() -> ModelProfile {
    let block = BlockProfile { work: 1.0, frozen: [100; 4], ..BlockProfile::default() };
    ModelProfile {
        blocks: vec![block; BLOCKS.into()],
        ends: EndsProfile::default(),
        tokens: 100,
        hidden: 1000,
        buffers: Growth::default(),
        loading: 0,
    }
}

fn start() -> Start {
    Start {
        settings: Settings { steps: STEPS, warmup_steps: 0, validation: 0.0, ..Settings::default() },
        blocks: BLOCKS,
        source: ModelSource::Host,
        config: "{}".into(),
        manifest: Vec::new(),
        profile: Some(model()),
        committed: Step(0),
        judged: false,
        secret: 7,
        states: Vec::new(),
        head: false,
    }
}

#[derive(Debug)]
enum Event {
    Host(coordinator::Event),
    Phone(PeerId, stage::Event),
}

/// What was seen, in order.
#[derive(Debug, PartialEq)]
enum Seen {
    /// A message reached a member.
    Message(PeerId, PeerId, Message),
    /// An engine began a job of the step, or ended it.
    Begins(PeerId),
    Ends(PeerId),
    Loaded,
    Committed(Step),
}

struct Room {
    now: Duration,
    host: Coordinator,
    phones: BTreeMap<PeerId, Stage>,
    queue: BTreeMap<(Duration, u64), Event>,
    sequence: u64,
    seen: Vec<(Duration, Seen)>,
    /// Whose answers about their links do not arrive.
    mute: BTreeSet<PeerId>,
    /// Who says of its link something else than it found.
    lies: Option<(PeerId, LinkProfile)>,
}

impl Room {
    /// Phones that are there and have measured themselves, before the start.
    fn new(phones: u32) -> Self {
        let mut room = Self {
            now: Duration::ZERO,
            host: Coordinator::new(device("host"), Duration::ZERO),
            phones: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            seen: Vec::new(),
            mute: BTreeSet::new(),
            lies: None,
        };
        for id in (0..phones).map(phone) {
            room.phones.insert(id, Stage::new(HOST, device(&format!("phone {id}")), Duration::ZERO));
            for lane in [Lane::Control, Lane::Bulk] {
                room.link(HOST, id, lane);
            }
        }
        room.go_on(Duration::from_secs(2));
        room
    }

    /// Started, and every phone has its part.
    fn started(phones: u32) -> Self {
        let mut room = Self::new(phones);
        room.tell_host(coordinator::Event::Start(Box::new(start())));
        room
    }

    fn later(&mut self, wait: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + wait, self.sequence), event);
    }

    fn link(&mut self, a: PeerId, b: PeerId, lane: Lane) {
        for (at, peer) in [(a, b), (b, a)] {
            let event = if at == HOST {
                Event::Host(coordinator::Event::Linked { peer, lane })
            } else {
                Event::Phone(at, stage::Event::Linked { peer, lane })
            };
            self.later(WAY, event);
        }
    }

    fn see(&mut self, seen: Seen) {
        self.seen.push((self.now, seen));
    }

    fn tell_host(&mut self, event: coordinator::Event) {
        self.host.handle(event, self.now);
        self.host_outputs();
    }

    fn say(&mut self, from: PeerId, to: PeerId, message: Message) {
        let message = match message {
            Message::Timed { .. } | Message::Probed { .. } if to != HOST && self.mute.contains(&from) => {
                return;
            }
            Message::Timed { .. } if self.mute.contains(&from) => return,
            Message::Timed { generation, link } => {
                let lie = self.lies.filter(|(who, _)| *who == from).map(|(_, lie)| lie);
                Message::Timed { generation, link: lie.unwrap_or(link) }
            }
            message => message,
        };
        let event = if to == HOST {
            Event::Host(coordinator::Event::Message { from, message })
        } else {
            Event::Phone(to, stage::Event::Message { from, message })
        };
        self.later(WAY, event);
    }

    fn host_outputs(&mut self) {
        use coordinator::{Done, Job, Output};
        while let Some(output) = self.host.poll() {
            match output {
                Output::Send { to, message } => self.say(HOST, to, message),
                Output::Loaded => self.see(Seen::Loaded),
                Output::Committed(report) => self.see(Seen::Committed(report.step)),
                Output::Job(job) => {
                    self.see(Seen::Begins(HOST));
                    let done = match job {
                        Job::Load { .. } => Done::Load,
                        Job::Front { .. } => Done::Front(tensor()),
                        Job::Head { .. } => Done::Head { loss: 1.0, tokens: 1, grad: tensor() },
                        Job::BackFront { .. } => Done::BackFront,
                        Job::GradNorm => Done::GradNorm(1.0),
                        Job::Check { .. } => Done::Check(tensor()),
                        Job::Measure(_) => {
                            let front = Curve::affine(0.0, 0.001).unwrap();
                            let (device, head) = (profile(), front.clone());
                            Done::Measure(Box::new(HostProfile { device, front, head }))
                        }
                        job => panic!("{job:?}"),
                    };
                    self.later(WORK, Event::Host(coordinator::Event::Done(done)));
                }
                _ => {}
            }
        }
    }

    fn phone_outputs(&mut self, id: PeerId) {
        use stage::{Done, Job, Output};
        while let Some(output) = self.phones.get_mut(&id).and_then(Stage::poll) {
            match output {
                Output::Send { to, message } => self.say(id, to, message),
                Output::Connect { peer } => self.link(id, peer, Lane::Bulk),
                Output::Job(job) => {
                    self.see(Seen::Begins(id));
                    let done = match job {
                        Job::Load(_) => Done::Load,
                        Job::Forward { .. } => Done::Forward(tensor()),
                        Job::Backward { want_input_grad, .. } => Done::Backward(want_input_grad.then(tensor)),
                        Job::GradNorm => Done::GradNorm(1.0),
                        Job::Apply { .. } => {
                            let blocks = self.phones[&id].assign().unwrap().blocks.clone();
                            Done::Apply(blocks.map(|block| BlockBytes { block, bytes: vec![0; 8] }).collect())
                        }
                        Job::Measure(_) => Done::Measure(Box::new(profile())),
                        job @ Job::Infer { .. } => panic!("{job:?}"),
                    };
                    self.later(WORK, Event::Phone(id, stage::Event::Done(done)));
                }
                Output::Fetch(assign) => {
                    let fetched = stage::Event::Fetched { blocks: assign.blocks };
                    self.later(WORK, Event::Phone(id, fetched));
                }
                Output::Changed => {}
            }
        }
    }

    /// Lets the next thing happen.
    fn step(&mut self) {
        let timers = self.phones.iter().filter_map(|(id, phone)| Some((phone.poll_timeout()?, *id)));
        let (due, who) = timers.chain([(self.host.poll_timeout(), HOST)]).min().unwrap();
        let event = self.queue.first_key_value().map(|((at, _), _)| *at);
        if event.is_none_or(|at| due < at) {
            self.now = self.now.max(due);
            if who == HOST {
                self.host.handle_timeout(self.now);
                self.host_outputs();
            } else if let Some(phone) = self.phones.get_mut(&who) {
                phone.handle_timeout(self.now);
                self.phone_outputs(who);
            }
            return;
        }
        let ((at, _), event) = self.queue.pop_first().unwrap();
        self.now = at;
        match event {
            Event::Host(event) => {
                match &event {
                    coordinator::Event::Done(_) => self.see(Seen::Ends(HOST)),
                    coordinator::Event::Message { from, message } => {
                        self.see(Seen::Message(*from, HOST, message.clone()));
                    }
                    _ => {}
                }
                self.tell_host(event);
            }
            Event::Phone(id, event) if self.phones.contains_key(&id) => {
                match &event {
                    stage::Event::Done(_) => self.see(Seen::Ends(id)),
                    stage::Event::Message { from, message } => {
                        self.see(Seen::Message(*from, id, message.clone()));
                    }
                    _ => {}
                }
                self.phones.get_mut(&id).unwrap().handle(event, self.now);
                self.phone_outputs(id);
            }
            Event::Phone(..) => {}
        }
    }

    fn go_on(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step();
        }
    }

    fn go_on_until(&mut self, done: impl Fn(&Self) -> bool) {
        let most = self.now + Duration::from_secs(600);
        while !done(self) {
            assert!(self.now < most, "{:?} {:?}", self.host.phase(), &self.seen[self.seen.len() - 20..]);
            self.step();
        }
    }

    fn is_loaded(&self) -> bool {
        self.host.phase() == RunPhase::Loaded && self.seen.iter().any(|(_, seen)| *seen == Seen::Loaded)
    }

    /// Lets a loaded run go, to its end.
    fn finish(&mut self) {
        self.tell_host(coordinator::Event::Resume);
        self.go_on_until(|room| room.host.phase() == RunPhase::Finished);
    }

    /// Devices in the order of the plan in force.
    fn order(&self) -> Vec<PeerId> {
        let mut stages: Vec<_> =
            self.phones.iter().filter_map(|(id, phone)| Some((phone.assign()?.stage, *id))).collect();
        stages.sort_unstable();
        stages.into_iter().map(|(_, id)| id).collect()
    }

    /// Takes all that was seen so far apart from what will be.
    fn forget(&mut self) -> Vec<(Duration, Seen)> {
        std::mem::take(&mut self.seen)
    }
}

fn is_question(seen: &Seen) -> bool {
    matches!(seen, Seen::Message(HOST, _, Message::TimeLink { .. }))
}

/// Who timed a link, from when until when, by the words of the host and of the stage.
fn timed(seen: &[(Duration, Seen)]) -> Vec<(PeerId, Duration, Duration)> {
    let asked = seen.iter().filter_map(|(at, seen)| match seen {
        Seen::Message(HOST, to, Message::TimeLink { .. }) => Some((*to, *at)),
        _ => None,
    });
    let answered = |who: PeerId, since: Duration| {
        let answer = seen.iter().find(|(at, seen)| {
            *at >= since && matches!(seen, Seen::Message(from, HOST, Message::Timed { .. }) if *from == who)
        });
        answer.unwrap_or_else(|| panic!("{who} did not answer")).0
    };
    asked.map(|(who, since)| (who, since, answered(who, since))).collect()
}

/// That no engine works from the question about a link to its answer.
fn assert_nobody_works_meanwhile(seen: &[(Duration, Seen)]) {
    let (mut open, mut working) = (BTreeSet::new(), BTreeSet::new());
    for (at, seen) in seen {
        match seen {
            Seen::Message(HOST, to, Message::TimeLink { .. }) => {
                open.insert(*to);
            }
            Seen::Message(from, HOST, Message::Timed { .. }) => {
                open.remove(from);
            }
            Seen::Begins(who) => {
                working.insert(*who);
            }
            Seen::Ends(who) => {
                working.remove(who);
            }
            Seen::Message(..) | Seen::Loaded | Seen::Committed(_) => {}
        }
        assert!(open.is_empty() || working.is_empty(), "at {at:?} {open:?} time links and {working:?} work");
    }
}

#[test]
fn links_of_a_plan_are_timed_before_its_first_step_while_nobody_works() {
    let mut room = Room::started(4);
    room.go_on_until(Room::is_loaded);
    let seen = room.forget();
    assert_nobody_works_meanwhile(&seen);
    let order = room.order();
    let asked: BTreeSet<PeerId> = timed(&seen).into_iter().map(|(who, ..)| who).collect();
    assert_eq!(order.len(), 4);
    assert_eq!(asked, order[..3].iter().copied().collect(), "all but the last have a next one");
    let is_step = |seen: &Seen| matches!(seen, Seen::Message(_, _, Message::Forward { .. }));
    assert!(!seen.iter().any(|(_, seen)| is_step(seen)));
    // They are known now, and no step waits for them again.
    room.finish();
    let seen = room.forget();
    assert_eq!(timed(&seen), []);
    assert_eq!(seen.iter().filter(|(_, seen)| matches!(seen, Seen::Committed(_))).count(), STEPS as usize);
}

#[test]
fn after_a_loss_the_open_step_is_made_first_and_new_links_are_timed_then() {
    let mut room = Room::started(4);
    room.go_on_until(Room::is_loaded);
    let gone = room.order()[1];
    room.tell_host(coordinator::Event::Resume);
    let second = |room: &Room| {
        let seen = room.seen.iter().rev();
        seen.take(1).any(|(_, seen)| *seen == Seen::Committed(Step(1)))
    };
    room.go_on_until(second);
    room.go_on(3 * WORK);
    room.phones.remove(&gone);
    room.forget();
    let reason = String::from("its tab was closed");
    room.tell_host(coordinator::Event::Lost { peer: gone, reason });
    room.go_on_until(|room| room.host.phase() == RunPhase::Finished);
    let seen = room.forget();
    assert_nobody_works_meanwhile(&seen);
    let first = timed(&seen).first().copied().unwrap();
    let commits = |from: Duration, to: Duration| {
        let within = seen.iter().filter(|(at, _)| (from..to).contains(at));
        within.filter(|(_, seen)| matches!(seen, Seen::Committed(_))).count()
    };
    // The one that was open, and the one that had begun when it was committed.
    assert!((1..=2).contains(&commits(Duration::ZERO, first.1)), "{first:?}");
    assert_eq!(commits(Duration::ZERO, room.now + WAY), STEPS as usize - 2);
}

#[test]
fn a_device_is_in_one_pair_at_a_time() {
    let mut room = Room::started(6);
    room.go_on_until(Room::is_loaded);
    let (seen, order) = (room.forget(), room.order());
    let timed = timed(&seen);
    assert_eq!((order.len(), timed.len()), (6, 5));
    let pair = |who: PeerId| {
        let at = order.iter().position(|id| *id == who).unwrap();
        [order[at], order[at + 1]]
    };
    let mut beside = 0;
    for (index, (a, since, until)) in timed.iter().enumerate() {
        for (b, begun, ended) in &timed[index + 1..] {
            if since < ended && begun < until {
                beside += 1;
                assert!(!pair(*a).iter().any(|id| pair(*b).contains(id)), "{a} and {b} at {since:?}");
            }
        }
    }
    // Three beside each other, then two: no time is lost.
    assert_eq!(beside, 4);
}

/// Whether the first two of three stages are not neighbours any more: over a slow link a hidden state would take minutes from
/// one to the other.
fn is_planned_around(room: &Room, order: &[PeerId]) -> bool {
    let now = room.order();
    let beside = |pair: &[PeerId]| pair.contains(&order[0]) && pair.contains(&order[1]);
    now.len() < 3 || !now.windows(2).any(beside)
}

#[test]
fn a_device_that_does_not_answer_is_given_up_and_its_link_counts_as_very_slow() {
    let mut room = Room::started(3);
    room.go_on_until(|room| room.order().len() == 3);
    let order = room.order();
    room.mute.insert(order[0]);
    let asked = |room: &Room| room.seen.iter().any(|(_, seen)| is_question(seen));
    room.go_on_until(asked);
    let since = room.now;
    room.go_on(ROUND - Duration::from_secs(1));
    assert!(!room.is_loaded(), "it is waited for");
    room.go_on_until(Room::is_loaded);
    assert!(room.now < since + 4 * ROUND, "{:?}", room.now - since);
    assert!(is_planned_around(&room, &order), "{order:?} {:?}", room.order());
    room.finish();
}

#[test]
fn an_answer_that_nobody_asked_for_changes_nothing() {
    let mut room = Room::started(3);
    room.go_on_until(Room::is_loaded);
    let generation = room.phones[&phone(0)].assign().unwrap().generation;
    let slow = LinkProfile { up: 1.0, down: 1.0, round_trip: 50.0 };
    for at in 0..4 {
        if at == 3 {
            // In the middle of a step too.
            room.tell_host(coordinator::Event::Resume);
            room.go_on(4 * WORK);
        }
        for from in room.order() {
            let tell = |room: &mut Room, message| {
                room.host.handle(coordinator::Event::Message { from, message }, room.now);
            };
            // It was heard just now.
            tell(&mut room, Message::Heartbeat);
            room.host_outputs();
            let before = format!("{:?}", room.host);
            for generation in [Generation(generation.0 - 1), generation, Generation(generation.0 + 1)] {
                for rate in [1.0, 0.0, -1.0, f64::NAN, f64::INFINITY] {
                    let link = LinkProfile { down: rate, ..slow };
                    tell(&mut room, Message::Timed { generation, link });
                    assert_eq!(room.host.poll(), None);
                }
            }
            // Not assert_eq: they are pages long.
            assert!(format!("{:?}", room.host) == before, "{from} was believed");
        }
        room.go_on(WAY);
    }
    let order = room.order();
    room.go_on_until(|room| room.host.phase() == RunPhase::Finished);
    assert_eq!(room.order(), order);
}

#[test]
fn while_links_are_timed_only_those_are_believed_who_were_asked() {
    let mut room = Room::started(3);
    room.go_on_until(|room| room.order().len() == 3);
    let order = room.order();
    let is_second_round = |room: &Room| {
        let asked = |seen: &Seen| matches!(seen, Seen::Message(_, to, _) if *to == order[1]);
        room.seen.iter().any(|(_, seen)| is_question(seen) && asked(seen))
    };
    room.go_on_until(is_second_round);
    let Some((_, Seen::Message(_, _, Message::TimeLink { generation }))) = room.seen.pop() else { panic!() };
    let link = LinkProfile { up: 1.0, down: 1.0, round_trip: 50.0 };
    // The first has answered, the last has no next one.
    for from in [order[0], order[2], phone(9)] {
        room.tell_host(coordinator::Event::Message { from, message: Message::Timed { generation, link } });
    }
    assert!(!room.is_loaded(), "the second is waited for");
    room.go_on_until(Room::is_loaded);
    assert_eq!(room.order(), order);
}

#[test]
fn numbers_of_a_link_that_cannot_be_are_no_answer_and_the_run_goes_on() {
    let good = LinkProfile { up: 1e8, down: 1e8, round_trip: 0.01 };
    let mut lies = Vec::new();
    for rate in [f64::NAN, 0.0, -0.0, -1e8, f64::INFINITY, f64::NEG_INFINITY] {
        lies.extend([LinkProfile { up: rate, ..good }, LinkProfile { down: rate, ..good }]);
    }
    for time in [f64::NAN, -1.0, 61.0, f64::INFINITY, f64::NEG_INFINITY] {
        lies.push(LinkProfile { round_trip: time, ..good });
    }
    let can_be = [good, LinkProfile { up: f64::MAX, down: f64::MAX, round_trip: 0.0 }];
    for (lie, counts) in
        can_be.map(|lie| (lie, true)).into_iter().chain(lies.into_iter().map(|lie| (lie, false)))
    {
        let mut room = Room::started(3);
        room.go_on_until(|room| room.order().len() == 3);
        let order = room.order();
        room.lies = Some((order[0], lie));
        let begun = room.now;
        room.go_on_until(Room::is_loaded);
        assert!(room.now < begun + ROUND, "{lie:?}: {:?}", room.now - begun);
        assert_eq!(is_planned_around(&room, &order), !counts, "{lie:?}");
        room.finish();
        let commits = room.seen.iter().filter(|(_, seen)| matches!(seen, Seen::Committed(_))).count();
        assert_eq!(commits, STEPS as usize, "{lie:?}");
    }
}

/// A stage with its blocks loaded, between two neighbours.
struct Lone {
    stage: Stage,
    now: Duration,
    generation: Generation,
    said: Vec<(PeerId, Message)>,
}

impl Lone {
    fn new(prev: PeerId, next: PeerId) -> Self {
        let generation = Generation(3);
        let stage = Stage::new(HOST, device("phone"), Duration::ZERO);
        let mut lone = Self { stage, now: Duration::ZERO, generation, said: Vec::new() };
        for (peer, lane) in
            [(HOST, Lane::Control), (HOST, Lane::Bulk), (prev, Lane::Bulk), (next, Lane::Bulk)]
        {
            lone.tell(stage::Event::Linked { peer, lane });
        }
        let from = HOST;
        lone.tell(stage::Event::Message { from, message: Message::Welcome(device("host")) });
        let assign = Assign {
            generation,
            stage: StageIndex(1),
            stages: 3,
            blocks: 4..8,
            prev,
            next,
            prev_trains: true,
            step: Step(0),
            settings: start().settings,
            source: ModelSource::Host,
            config: "{}".into(),
            manifest: Vec::new(),
            states: Vec::new(),
        };
        lone.tell(stage::Event::Message { from, message: Message::Assign(Box::new(assign)) });
        lone.tell(stage::Event::Done(stage::Done::Load));
        assert!(lone.said.iter().any(|(_, message)| *message == Message::Ready { generation }));
        lone.said.clear();
        lone
    }

    fn tell(&mut self, event: stage::Event) {
        self.stage.handle(event, self.now);
        self.listen();
    }

    fn hear(&mut self, from: PeerId, message: Message) {
        self.tell(stage::Event::Message { from, message });
    }

    fn listen(&mut self) {
        while let Some(output) = self.stage.poll() {
            if let stage::Output::Send { to, message } = output
                && message != Message::Heartbeat
            {
                self.said.push((to, message));
            }
        }
    }

    /// The host goes on to be heard.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.stage.poll_timeout().filter(|due| *due <= until) {
            self.now = due.max(self.now);
            self.hear(HOST, Message::Heartbeat);
            self.stage.handle_timeout(self.now);
            self.listen();
        }
        self.now = until;
    }

    /// It still does its part of a step.
    fn assert_works(&mut self, prev: PeerId, next: PeerId) {
        self.said.clear();
        let (generation, step) = (self.generation, Step(0));
        let micro_batch = baton_protocol::MicroBatch(0);
        self.hear(prev, Message::Forward { generation, step, micro_batch, tensor: tensor() });
        self.tell(stage::Event::Done(stage::Done::Forward(tensor())));
        let sent = Message::Forward { generation, step, micro_batch, tensor: tensor() };
        assert_eq!(self.said, [(next, sent)]);
    }
}

#[test]
fn a_stage_times_the_link_to_the_next_one_at_the_word_of_the_host_alone() {
    let (prev, next, stranger) = (phone(0), phone(2), phone(7));
    let mut lone = Lone::new(prev, next);
    let generation = lone.generation;
    for from in [prev, next, stranger] {
        lone.hear(from, Message::TimeLink { generation });
    }
    for generation in [Generation(2), Generation(4)] {
        lone.hear(HOST, Message::TimeLink { generation });
    }
    // Nor is an answer without a question one.
    for (from, id) in [(next, 0), (next, 1), (prev, 1), (stranger, 1), (HOST, 1)] {
        lone.hear(from, Message::Probed { id, padding: vec![0; 8] });
    }
    assert_eq!(lone.said, []);
    lone.hear(HOST, Message::TimeLink { generation });
    while !lone.said.iter().any(|(to, _)| *to == HOST) {
        let (to, message) = lone.said.pop().unwrap();
        let Message::Probe { id, want, padding } = message else { panic!("{message:?}") };
        assert_eq!(to, next);
        // Answers of another question, or of somebody else, are not taken for this one's.
        lone.hear(stranger, Message::Probed { id, padding: Vec::new() });
        lone.hear(next, Message::Probed { id: id + 1, padding: Vec::new() });
        assert_eq!(lone.said, []);
        // 10 ms there and back, and 1 MB/s each way.
        let bytes = want as usize + padding.len();
        lone.wait(Duration::from_millis(10) + Duration::from_micros(bytes as u64));
        lone.hear(next, Message::Probed { id, padding: vec![0; want as usize] });
    }
    let [(_, Message::Timed { generation: of, link })] = &lone.said[..] else { panic!("{:?}", lone.said) };
    assert_eq!(*of, generation);
    assert!((link.round_trip - 0.01).abs() < 1e-6, "{link:?}");
    assert!([link.up, link.down].iter().all(|rate| (rate / 1e6 - 1.0).abs() < 0.01), "{link:?}");
    lone.assert_works(prev, next);
}

#[test]
fn a_next_stage_that_never_answers_is_told_of_as_very_slow() {
    let (prev, next) = (phone(0), phone(2));
    let mut lone = Lone::new(prev, next);
    let generation = lone.generation;
    lone.hear(HOST, Message::TimeLink { generation });
    lone.said.clear();
    lone.wait(Duration::from_secs(9));
    assert_eq!(lone.said, []);
    lone.wait(Duration::from_secs(3));
    let [(HOST, Message::Timed { link, .. })] = &lone.said[..] else { panic!("{:?}", lone.said) };
    assert!([link.up, link.down].iter().all(|rate| (1.0..10_000.0).contains(rate)), "{link:?}");
    // Once, and an answer that comes after all is none.
    lone.said.clear();
    lone.hear(next, Message::Probed { id: 1, padding: Vec::new() });
    lone.wait(Duration::from_secs(30));
    assert_eq!(lone.said, []);
    lone.assert_works(prev, next);
}

#[test]
fn a_stage_whose_next_one_is_itself_or_a_stranger_times_no_link_and_goes_on() {
    let (own, prev, stranger) = (phone(1), phone(0), phone(7));
    for next in [own, stranger] {
        let mut lone = Lone::new(prev, next);
        let generation = lone.generation;
        if next == stranger {
            // Nobody by this number is connected any more.
            lone.tell(stage::Event::Lost { peer: next, reason: "it is gone".into() });
        }
        for _ in 0..3 {
            lone.hear(HOST, Message::TimeLink { generation });
            lone.said.clear();
            lone.wait(Duration::from_secs(12));
            assert!(matches!(lone.said[..], [(HOST, Message::Timed { .. })]), "{:?}", lone.said);
        }
        assert!(!matches!(lone.stage.view(), View::Ended(_)));
        lone.assert_works(prev, next);
    }
    // The last stage of a plan has no link to a next one.
    let mut last = Lone::new(prev, HOST);
    last.hear(HOST, Message::TimeLink { generation: last.generation });
    last.wait(Duration::from_secs(12));
    assert_eq!(last.said, []);
    last.assert_works(prev, HOST);
}

#[test]
fn a_stage_answers_probes_of_the_host_and_the_one_before_and_not_without_end() {
    let (prev, next, stranger) = (phone(0), phone(2), phone(7));
    let mut lone = Lone::new(prev, next);
    let probe = || Message::Probe { id: 5, want: u32::MAX, padding: Vec::new() };
    for from in [next, stranger] {
        lone.hear(from, probe());
    }
    assert_eq!(lone.said, []);
    let mut answered = 0;
    for _ in 0..1000 {
        lone.hear(prev, probe());
        answered += lone.said.len();
        for (to, message) in lone.said.drain(..) {
            let Message::Probed { id: 5, padding } = message else { panic!("{message:?}") };
            assert!(to == prev && padding.len() <= baton_protocol::message::MAX_PROBE as usize);
        }
    }
    assert!((20..=200).contains(&answered), "{answered}");
    lone.hear(HOST, probe());
    assert!(matches!(lone.said[..], [(HOST, Message::Probed { .. })]), "{:?}", lone.said);
    lone.said.clear();
    lone.assert_works(prev, next);
}
