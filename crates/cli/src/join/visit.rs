//! One stay of one stage in a room, from the socket to the last word.

use super::link::RoomLink;
use super::memory::Lent;
use super::screen::Row;
use super::stage::{Begin, StageThread, Told};
use crate::words::numbered;
use baton_engine::node::{StageEnd, StageEvent};
use baton_protocol::PeerId;
use baton_protocol::link::Lane;
use baton_protocol::message::Device as Introduction;
use baton_protocol::message::RoomState;
use baton_protocol::signal::{ErrorCode, IceServer, Role};
use baton_protocol::stage::View;
use baton_transport::native::{Mesh, MeshConfig, MeshEvent, News, SignalClient, SignalError, SignalEvent};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// For the server to answer. On a local network it takes milliseconds, over the internet a second or two.
const REACH: Duration = Duration::from_secs(10);
const HOST_LEFT: &str = "the host has left, and the room is closed; thank you for lending this machine";
/// A job that is begun is finished before a stage leaves; a large one takes a while.
const LEAVE: Duration = Duration::from_secs(30);

/// A stage that visits a room.
pub(super) struct Visitor {
    /// The room.
    pub(super) link: RoomLink,
    /// What the host calls this stage.
    pub(super) name: String,
    /// Where pieces of models are kept, and how many bytes of them.
    pub(super) cache: Option<(PathBuf, u64)>,
    /// How much memory it may take.
    pub(super) lent: Lent,
    /// Where a person sees it.
    pub(super) row: Row,
    /// Whether the server's certificate has been spoken of.
    pub(super) doubted: bool,
}

/// How a visit ended; in words, where there is something to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The person wanted it.
    Left,
    /// The host let this device go, or is done.
    Over(String),
    /// The server did not answer.
    Unreachable(String),
    /// Something broke: the room may still be there.
    Lost(String),
    /// The room is not there, or will not have this device.
    Refused {
        /// In words.
        words: String,
        /// There is no such room: its host may come back.
        no_room: bool,
    },
}

struct Visit<'a> {
    visitor: &'a mut Visitor,
    signal: Option<SignalClient>,
    mesh: Option<Mesh>,
    stage: Option<StageThread>,
    /// The host has greeted this device.
    in_room: bool,
    /// The page's own model can be read from here.
    trusted: bool,
    /// The server has closed the room.
    is_over: bool,
    /// The server cannot be heard any more: nobody would say that the host is back.
    is_cut_off: bool,
    /// The host's number since it came back to the room, until it makes an offer.
    returned: Option<PeerId>,
    /// This device's number, and the servers for its connections; none before the server has answered.
    place: Option<(PeerId, Vec<IceServer>)>,
    /// Why the socket was lost last.
    why: Option<String>,
    /// What the machine said last.
    last_words: String,
}

impl Visitor {
    /// Joins, and works until it is over or `stop` is true; a socket that is lost is tried again so many times in a row.
    pub(super) async fn visit(&mut self, attempts: u32, stop: &mut watch::Receiver<bool>) -> Outcome {
        self.row.show("joining", "joining the room");
        let signal = SignalClient::connect(
            self.link.socket.clone(),
            self.link.secret.room_id(),
            Role::Peer,
            None,
            attempts,
        );
        let mut visit = Visit {
            visitor: self,
            signal: Some(signal),
            mesh: None,
            stage: None,
            in_room: false,
            trusted: true,
            is_over: false,
            is_cut_off: false,
            returned: None,
            place: None,
            why: None,
            last_words: String::new(),
        };
        let outcome = visit.stay(stop).await;
        let Visit { signal, mesh, stage, .. } = visit;
        // A stage that still works leaves when its job is done; nobody waits for that.
        drop(stage);
        if let Some(mesh) = mesh {
            mesh.leave().await;
        }
        if let Some(signal) = signal {
            signal.leave().await;
        }
        outcome
    }
}

/// What a visit waits for.
enum Happening {
    Stop,
    Signal(Option<SignalEvent>),
    News(News),
    Told(Told),
    Late,
    NoAnswer,
}

impl Visit<'_> {
    async fn stay(&mut self, stop: &mut watch::Receiver<bool>) -> Outcome {
        let mut leaving = None;
        let reach = Instant::now() + REACH;
        loop {
            while let Some(event) = self.mesh.as_mut().and_then(Mesh::poll) {
                if let Some(outcome) = self.on_mesh(event) {
                    return outcome;
                }
            }
            let happening = tokio::select! {
                _ = stop.wait_for(|stop| *stop), if leaving.is_none() => Happening::Stop,
                event = next(self.signal.as_mut(), SignalClient::next) => Happening::Signal(event),
                news = next(self.mesh.as_mut(), Mesh::news) => Happening::News(news),
                told = next(self.stage.as_mut(), StageThread::next) => Happening::Told(told),
                () = until(leaving) => Happening::Late,
                () = until(self.place.is_none().then_some(reach)) => Happening::NoAnswer,
            };
            let outcome = match happening {
                Happening::Stop => match &self.stage {
                    Some(stage) => {
                        stage.leave();
                        leaving = Some(Instant::now() + LEAVE);
                        self.visitor.row.show("leaving", "leaving the room (once more to stop at once)");
                        None
                    }
                    None => Some(Outcome::Left),
                },
                Happening::Late => Some(Outcome::Left),
                Happening::NoAnswer => {
                    let none = || format!("no answer in {} seconds", REACH.as_secs());
                    let (url, why) = (self.visitor.link.socket.clone(), self.why.take().unwrap_or_else(none));
                    Some(Outcome::Unreachable(SignalError::Unreachable { url, why }.to_string()))
                }
                Happening::Signal(Some(event)) => self.on_signal(event).await,
                Happening::Signal(None) => {
                    self.signal = None;
                    None
                }
                Happening::News(news) => {
                    if let Some(mesh) = &mut self.mesh {
                        mesh.take(news).await;
                    }
                    None
                }
                Happening::Told(told) => self.on_stage(told, leaving.is_some()).await,
            };
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    /// Begins to connect from the place in the room.
    fn enter(&mut self, me: PeerId, host: PeerId, ice_servers: Vec<IceServer>) -> Option<Outcome> {
        let link = &self.visitor.link;
        let begin = Begin {
            host,
            introduction: Introduction { name: self.visitor.name.clone(), backend: "CPU".into() },
            cache: self.visitor.cache.clone(),
            lent: self.visitor.lent,
            embedded: self.trusted.then(|| link.embedded.clone()),
        };
        match StageThread::start(begin) {
            Ok(stage) => self.stage = Some(stage),
            Err(error) => {
                let words = format!("no thread could be started: {error}");
                return Some(Outcome::Refused { words, no_room: false });
            }
        }
        self.place = Some((me, ice_servers));
        self.connect(host);
        self.visitor.row.show("connecting", "connecting to the host");
        None
    }

    fn connect(&mut self, host: PeerId) {
        let Some((me, ice_servers)) = self.place.clone() else { return };
        let (secret, loopback) = (self.visitor.link.secret.clone(), self.visitor.link.loopback);
        let mesh = Mesh::new(MeshConfig { me, host, secret, ice_servers, loopback });
        if let Some(old) = self.mesh.replace(mesh) {
            // What it has to send is for a page that is gone.
            tokio::spawn(old.leave());
        }
    }

    /// The host's page was loaded again: it knows nobody, and this device has its blocks still.
    fn meet_again(&mut self, host: PeerId) {
        if let Some(stage) = &self.stage {
            stage.host_returned(host);
        }
        self.connect(host);
    }

    async fn on_signal(&mut self, event: SignalEvent) -> Option<Outcome> {
        match event {
            SignalEvent::Unverified(why) => {
                self.trusted = false;
                if !std::mem::replace(&mut self.visitor.doubted, true) {
                    self.visitor.row.say(&format!(
                        "note: no known authority vouches for the server's certificate, as is usual on a local network; the room's secret protects this run all the same ({why})"
                    ));
                }
                None
            }
            SignalEvent::Joined { me, host, ice_servers, .. } => {
                if self.in_room {
                    // The connections stand from the first place; this one is a stranger's.
                    if let Some(signal) = self.signal.take() {
                        signal.leave().await;
                    }
                    None
                } else if self.mesh.is_some() {
                    // The machine is bound to the first place, which is lost.
                    Some(Outcome::Lost("the connection to the server was lost while joining".into()))
                } else {
                    self.enter(me, host, ice_servers)
                }
            }
            SignalEvent::PeerJoined(_) => None,
            // Whether it is a new page, or the old one behind a new socket, shows when it makes an offer.
            SignalEvent::HostReturned(host) => {
                self.returned = Some(host);
                None
            }
            SignalEvent::PeerLeft(peer) => {
                // The host's page may be closed, loaded again, or only out of the server's sight. The server says when the
                // room is over; until then what is loaded is kept.
                match &mut self.mesh {
                    Some(mesh) if mesh.host() == peer => mesh.doubt(peer),
                    Some(mesh) => mesh.left(peer).await,
                    None => {}
                }
                None
            }
            SignalEvent::Relay { from, sealed } => {
                if self.returned.take_if(|host| *host == from).is_some() {
                    self.meet_again(from);
                }
                if let Some(mesh) = &mut self.mesh {
                    mesh.receive(from, &sealed).await;
                }
                None
            }
            SignalEvent::Trouble(SignalError::Refused { code: ErrorCode::NoSuchPeer, .. }) => None,
            SignalEvent::Trouble(error) => {
                self.visitor.row.say(&error.to_string());
                None
            }
            SignalEvent::Lost { retry_in, why } => {
                if !self.in_room {
                    let words = format!(
                        "the server cannot be reached ({why}); again in {:.1} s",
                        retry_in.as_secs_f64()
                    );
                    self.visitor.row.show("retrying", &words);
                }
                self.why = Some(why);
                None
            }
            SignalEvent::Ended(error) => {
                self.signal = None;
                match &error {
                    SignalError::Refused { code: ErrorCode::HostLeft, .. } if self.in_room => {
                        // A host that the server lost may be there still.
                        self.is_over = self.mesh.as_ref().is_some_and(|mesh| mesh.stands(mesh.host()));
                        (!self.is_over).then(|| Outcome::Over(HOST_LEFT.into()))
                    }
                    // Without a socket a device that is connected goes on.
                    _ if self.in_room => {
                        self.is_cut_off = true;
                        None
                    }
                    SignalError::Unreachable { .. } if self.place.is_none() => {
                        Some(Outcome::Unreachable(error.to_string()))
                    }
                    SignalError::Unreachable { .. } => Some(Outcome::Lost(error.to_string())),
                    SignalError::Refused { code, .. } => {
                        let no_room = matches!(code, ErrorCode::NoSuchRoom | ErrorCode::HostLeft);
                        Some(Outcome::Refused { words: error.to_string(), no_room })
                    }
                    SignalError::NotUnderstood { .. } => {
                        Some(Outcome::Refused { words: error.to_string(), no_room: false })
                    }
                }
            }
        }
    }

    fn on_mesh(&mut self, event: MeshEvent) -> Option<Outcome> {
        match event {
            MeshEvent::Envelope { to, sealed } => {
                if let Some(signal) = &self.signal {
                    signal.relay(to, sealed);
                }
            }
            MeshEvent::Channel { peer, lane, channel } => {
                if let Some(stage) = &self.stage {
                    stage.channel(peer, lane, channel);
                }
            }
            MeshEvent::Presence { peer, presence } => {
                if let Some(stage) = &self.stage {
                    stage.presence(peer, presence);
                }
            }
            MeshEvent::Gone { peer, reason } => {
                if let Some(stage) = &self.stage {
                    stage.gone(peer, "it left the room or cannot be reached".into());
                }
                let is_host = self.mesh.as_ref().is_some_and(|mesh| mesh.host() == peer);
                if is_host && self.is_over {
                    return Some(Outcome::Over(HOST_LEFT.into()));
                }
                if is_host && (self.is_cut_off || !self.in_room) {
                    return Some(Outcome::Lost(format!("the host {reason}")));
                }
                // Otherwise the stage keeps what it has, and the host is met again when it comes back.
            }
        }
        None
    }

    async fn on_stage(&mut self, told: Told, leaving: bool) -> Option<Outcome> {
        match told {
            Told::Event(StageEvent::Connect { peer }) => {
                if let Some(mesh) = &mut self.mesh {
                    mesh.connect(peer, Lane::Bulk).await;
                }
                None
            }
            Told::Event(StageEvent::Changed { view, blocks, place, model_blocks, steps_done }) => {
                if !matches!(view, View::Greeting | View::Ended(_))
                    && !std::mem::replace(&mut self.in_room, true)
                {
                    // From here on the connections carry everything; a lost socket would only make it a stranger.
                    if let Some(signal) = &self.signal {
                        signal.set_most_attempts(0);
                    }
                }
                let part = match (&blocks, place) {
                    (Some(blocks), Some((own, count))) => {
                        let of = model_blocks.map(|all| format!(" of {all}")).unwrap_or_default();
                        format!(" · {}{of} · place {} of {count}", numbered(blocks), own.saturating_add(1))
                    }
                    _ => String::new(),
                };
                let (kind, words) = match view {
                    View::Greeting => ("connecting", "connecting to the host".to_owned()),
                    View::Waiting => ("waiting", "in the room; waiting for work".to_owned()),
                    View::Measuring => ("measuring", "finds out how fast it is".to_owned()),
                    View::Loading(loaded, total) if loaded < total => {
                        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                        ("loading", format!("loading {:.1} of {:.1} MiB{part}", mib(loaded), mib(total)))
                    }
                    View::Loading(..) => ("connecting", format!("waiting for its neighbours{part}")),
                    View::Training => ("training", format!("training · {steps_done} steps done{part}")),
                    View::Idle(state) => match state {
                        RoomState::Running => {
                            ("training", format!("training · {steps_done} steps done{part}"))
                        }
                        RoomState::Paused => ("paused", format!("paused · {steps_done} steps done{part}")),
                        RoomState::Finished => {
                            ("finished", format!("the run is finished · {steps_done} steps done"))
                        }
                        RoomState::Stopped => {
                            ("stopped", format!("the run was stopped · {steps_done} steps done"))
                        }
                    },
                    View::Standby => {
                        ("standby", format!("has its blocks ready and stands by · {steps_done} steps done"))
                    }
                    View::HostSilent => {
                        ("silent", "the host is not heard; what is loaded is kept for it".to_owned())
                    }
                    View::Ended(reason) => {
                        self.last_words = reason;
                        return None;
                    }
                };
                if !leaving {
                    self.visitor.row.show(kind, &words);
                }
                None
            }
            Told::Ended(_) if leaving => Some(Outcome::Left),
            Told::Ended(StageEnd::Over) => Some(Outcome::Over(std::mem::take(&mut self.last_words))),
            Told::Ended(StageEnd::HostLost) => Some(Outcome::Lost(std::mem::take(&mut self.last_words))),
            Told::Broken => {
                let words = "the engine broke off: this is an error in Baton".to_owned();
                Some(Outcome::Refused { words, no_room: false })
            }
        }
    }
}

/// What something that is there says next.
async fn next<T, R>(from: Option<&mut T>, ask: impl AsyncFnOnce(&mut T) -> R) -> R {
    match from {
        Some(from) => ask(from).await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
