//! `baton join` in a room whose host is a process too: real sockets and real WebRTC, without a browser.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use baton_engine::cache::AnyCache;
use baton_engine::kept::RunStore;
use baton_engine::node::{self, Environment, HostCommand, HostEvent, Input, Inputs, ModelChoice};
use baton_engine::source::AnyFiles;
use baton_formats::DirFiles;
use baton_protocol::codec::Precision;
use baton_protocol::coordinator::{DeviceView, RunPhase};
use baton_protocol::link::Lane;
use baton_protocol::message::Device as Introduction;
use baton_protocol::room::RoomSecret;
use baton_protocol::run::{LrSchedule, ModelSource, Settings};
use baton_protocol::signal::Role;
use baton_transport::native::{
    Mesh, MeshConfig, MeshEvent, NativeChannel, NewChannel, Signal, SignalClient, SignalEvent,
};
use common::baton;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../static/model");
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../static/sample.txt");
const STEPS: u32 = 6;

#[derive(Clone)]
struct Clock(Instant);

impl Environment for Clock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    async fn breathe(&self) {
        tokio::task::yield_now().await;
    }

    async fn memory(&self, most: u64, _held: u64) -> u64 {
        most
    }
}

type HostInputs = Inputs<NativeChannel, HostCommand>;

/// A server and a host.
struct Room {
    link: String,
    inputs: HostInputs,
    events: mpsc::UnboundedReceiver<HostEvent>,
    devices: Vec<DeviceView>,
    losses: Vec<f64>,
    phase: RunPhase,
}

impl Room {
    async fn open() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(baton_signaling::serve(
            listener,
            baton_signaling::Config::default(),
            std::future::pending(),
        ));
        let secret = RoomSecret::from_bytes(*b"a test's secret!");
        let link = format!("http://{address}/#/join/{}", secret.to_code());
        let (inputs, queue) = node::queue();
        let (tell, events) = mpsc::unbounded_channel();
        let own = Introduction { name: "host".into(), backend: "CPU".into() };
        let (device, clock, loop_inputs) = (baton_model::cpu(), Clock(Instant::now()), inputs.clone());
        let tell = move |event| drop(tell.send(event));
        let store = RunStore::new(AnyCache::None);
        spawn_local(node::run_host(own, device, AnyCache::None, store, clock, loop_inputs, queue, tell));
        let (joined, is_there) = oneshot::channel();
        spawn_local(connect(format!("ws://{address}/ws"), secret, inputs.clone(), joined));
        is_there.await.unwrap();
        Self { link, inputs, events, devices: Vec::new(), losses: Vec::new(), phase: RunPhase::Lobby }
    }

    fn command(&self, command: HostCommand) {
        self.inputs.unbounded_send(Input::Command(command)).unwrap();
    }

    /// Goes on until something is so.
    async fn until(&mut self, so: impl Fn(&Self, Option<&HostEvent>) -> bool) {
        let waited = async {
            while !so(self, None) {
                let event = self.events.recv().await.unwrap();
                match &event {
                    HostEvent::Changed { phase, devices, .. } => {
                        self.phase = phase.clone();
                        self.devices = devices.clone();
                    }
                    HostEvent::Committed { report, .. } => self.losses.push(report.loss),
                    HostEvent::Error { message, .. } => panic!("{message}"),
                    _ => {}
                }
                if so(self, Some(&event)) {
                    return;
                }
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(120), waited).await;
        assert!(waited.is_ok(), "{:?}, {:?}, {} steps", self.phase, self.devices, self.losses.len());
    }

    fn join(&self, flags: &[&str]) -> Peer {
        let process = Command::new(env!("CARGO_BIN_EXE_baton"))
            .args(["join", &self.link, "--name", "native", "--no-cache"])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Peer(process)
    }

    /// Waits until so many devices can be given work, and starts a run.
    async fn start(&mut self, devices: usize) {
        let files = AnyFiles::Dir(DirFiles::new(MODEL));
        let (source, name) = (ModelSource::Host, "the embedded model".to_owned());
        self.command(HostCommand::SetModel(Box::new(ModelChoice { files, source, name, base: None })));
        self.command(HostCommand::SetText("sample.txt".into(), std::fs::read(TEXT).unwrap()));
        self.until(|_, event| matches!(event, Some(HostEvent::Text { .. }))).await;
        self.until(|room, _| room.devices.iter().filter(|device| device.device.is_some()).count() == devices)
            .await;
        // The bulk lanes open a moment after the control lanes, which no event tells.
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.command(HostCommand::Start(Box::new(settings())));
    }

    fn working(&self) -> usize {
        self.devices.iter().filter(|device| device.blocks.is_some()).count()
    }
}

fn settings() -> Settings {
    Settings {
        steps: STEPS,
        batch_size: 4,
        micro_batches: 4,
        seq_len: 32,
        lora_rank: 4,
        lora_alpha: 8.0,
        targets: vec!["q_proj".into(), "v_proj".into()],
        lr: 5e-3,
        lr_schedule: LrSchedule::Linear,
        boundary: Precision::F32,
        validation: 0.0,
        sample_tokens: 0,
        seed: 5,
        ..Settings::default()
    }
}

/// The losses of the same run in one process.
fn alone() -> Vec<f64> {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).display().to_string();
    let (out, report) = (path("adapter"), path("report.json"));
    let flags = ["train", "--model", MODEL, "--data", TEXT, "--out", &out, "--report", &report];
    let settings =
        "--steps 6 --batch-size 4 --micro-batches 4 --seq-len 32 --lora-rank 4 --lora-alpha 8 --seed 5
        --targets q_proj,v_proj --lr 5e-3 --lr-schedule linear";
    let default = Settings::default();
    let (warmup, decay, clip) =
        (default.warmup_steps.to_string(), default.weight_decay.to_string(), default.grad_clip.to_string());
    let rest = ["--warmup-steps", &warmup, "--weight-decay", &decay, "--grad-clip", &clip];
    baton(&flags.into_iter().chain(settings.split_whitespace()).chain(rest).collect::<Vec<_>>());
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    serde_json::from_value(report["losses"].clone()).unwrap()
}

fn assert_equal(losses: &[f64], reference: &[f64]) {
    assert_eq!(losses.len(), reference.len(), "{losses:?}");
    for (got, want) in losses.iter().zip(reference) {
        assert!((got - want).abs() <= 1e-4 * want, "{losses:?} in the room, {reference:?} in one process");
    }
}

/// A `baton join` process, which does not outlive its test.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // One that has ended is what was wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    /// Sends a signal; gives how it ended, and what it said.
    async fn signal(self, signal: &str) -> (ExitStatus, String) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        self.end(Duration::from_secs(30)).await
    }

    /// Waits until it ends; gives how, and what it said.
    async fn end(mut self, most: Duration) -> (ExitStatus, String) {
        let until = Instant::now() + most;
        let status = loop {
            match self.0.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > until => panic!("it went on for {most:?}"),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let mut said = String::new();
        std::io::Read::read_to_string(self.0.stderr.as_mut().unwrap(), &mut said).unwrap();
        (status, said)
    }
}

/// The host's connections: it offers both lanes to whoever joins.
async fn connect(url: String, secret: RoomSecret, inputs: HostInputs, joined: oneshot::Sender<()>) {
    let mut signal = SignalClient::connect(url, secret.room_id(), Role::Host, None, 0);
    let Some(SignalEvent::Joined { me, host, ice_servers, .. }) = signal.next().await else {
        panic!("there is no room");
    };
    joined.send(()).unwrap();
    let mut mesh = Mesh::new(MeshConfig { me, host, secret, ice_servers, loopback: true });
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    loop {
        while let Some(event) = mesh.poll() {
            let input = match event {
                MeshEvent::Envelope { to, sealed } => {
                    signal.relay(to, sealed);
                    continue;
                }
                MeshEvent::Channel { peer, lane, channel: NewChannel { channel, mut incoming } } => {
                    let inputs = inputs.clone();
                    let make = move |id| {
                        spawn_local(async move {
                            while let Some(signal) = incoming.next().await {
                                let _ = inputs.unbounded_send(match signal {
                                    Signal::Frame(bytes) => Input::Frame { id, bytes },
                                    Signal::Writable => Input::Writable { id },
                                    Signal::Closed => Input::Closed { id },
                                });
                            }
                        });
                        channel
                    };
                    Input::Channel { peer, lane, make: Box::new(make) }
                }
                MeshEvent::Presence { peer, presence } => Input::Presence { peer, presence },
                MeshEvent::Gone { peer, reason } => Input::Gone { peer, reason: reason.to_string() },
            };
            let _ = inputs.unbounded_send(input);
        }
        tokio::select! {
            event = signal.next() => match event {
                Some(SignalEvent::PeerJoined(peer)) => {
                    mesh.connect(peer, Lane::Control).await;
                    mesh.connect(peer, Lane::Bulk).await;
                }
                Some(SignalEvent::PeerLeft(peer)) => mesh.left(peer).await,
                Some(SignalEvent::Relay { from, sealed }) => mesh.receive(from, &sealed).await,
                Some(_) => {}
                None => return,
            },
            news = mesh.news() => mesh.take(news).await,
            _ = ticks.tick() => drop(inputs.unbounded_send(Input::Tick)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_native_stages_train_as_one_process_does_and_leave_cleanly() {
    let reference = alone();
    let test = async {
        let mut room = Room::open().await;
        let peer = room.join(&["--stages", "2"]);
        room.start(2).await;
        room.until(|room, _| room.phase == RunPhase::Running).await;
        assert_eq!(room.working(), 2);
        room.until(|room, _| room.phase == RunPhase::Finished).await;
        assert_equal(&room.losses, &reference);
        let (status, said) = peer.signal("-INT").await;
        assert!(status.success() && said.contains("stage 2: left the room"), "{said}");
        room.until(|room, _| room.devices.is_empty()).await;
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_peer_that_is_killed_costs_no_step() {
    let reference = alone();
    let test = async {
        let mut room = Room::open().await;
        let (_stays, dies) = (room.join(&[]), room.join(&[]));
        room.start(2).await;
        room.until(|room, _| room.losses.len() == 2).await;
        assert_eq!(room.working(), 2);
        let (status, _) = dies.signal("-KILL").await;
        assert!(!status.success());
        room.until(|room, _| room.phase == RunPhase::Finished).await;
        assert_equal(&room.losses, &reference);
        assert_eq!(room.working(), 1);
    };
    LocalSet::new().run_until(test).await;
}

#[test]
fn a_link_that_leads_nowhere_is_refused_in_words() {
    for (link, said) in [
        ("hello", "this is not a join link"),
        ("http://127.0.0.1:9/", "quotes"),
        ("http://127.0.0.1:9/#/join/short", "22 letters"),
    ] {
        let error = common::fails(&["join", link]);
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn what_a_room_could_not_use_is_refused_before_anybody_is_asked() {
    let link = "http://127.0.0.1:9/#/join/c2l4dGVlbiBieXRlcyBvaw";
    let error = common::fails(&["join", link, "--memory", "1KB", "--stages", "2"]);
    assert!(error.contains("--memory of 1,000 bytes") && error.contains("32MiB or more"), "{error}");
    for name in ["", "  ", &"x".repeat(41)] {
        let error = common::refuses(&["join", link, "--name", name]);
        assert!(error.contains("--name") && error.contains("1 to 40 characters"), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_never_reached_is_given_up_with_one_message() {
    // One port refuses, the other one takes connections and says nothing.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let join = |address: std::net::SocketAddr| {
        let link = format!("http://{address}/#/join/c2l4dGVlbiBieXRlcyBvaw");
        let process = Command::new(env!("CARGO_BIN_EXE_baton"))
            .args(["join", &link, "--no-cache", "--stages", "2"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Peer(process)
    };
    for (peer, why) in
        [join(closed), join(silent.local_addr().unwrap())].into_iter().zip(["refused", "no answer"])
    {
        // A room that was lost is looked for over a minute.
        let (status, said) = peer.end(Duration::from_secs(40)).await;
        assert_eq!(status.code(), Some(1), "{said}");
        assert_eq!(said.matches("error:").count(), 1, "{said}");
        let message = said.lines().last().unwrap();
        assert!(message.starts_with("error: the server at ws://127.0.0.1:"), "{said}");
        assert!(message.contains("cannot be reached") && message.contains(why), "{said}");
        assert!(!said.contains("joining again"), "{said}");
    }
}
