//! A joiner's page: it joins at once, shows the stage that this device carries, and lets it go again.

use crate::{
    app::{Alert, InsecureNote, Masthead},
    browser::{self, PulseWatch, WakeLock},
    engine::{Beside, Engine, EngineEvent},
    format,
    storage::StoragePanel,
    track::{Station, Track},
};
use baton_protocol::{
    PeerId,
    link::Lane,
    room::RoomSecret,
    signal::{ErrorCode, IceServer, Role},
};
use baton_transport::browser::{Mesh, MeshConfig, MeshEvent, SignalClient, SignalError, SignalEvent};
use baton_web_api::{CacheInfo, DeviceState, ErrorAbout, FromWorker, StageInfo, ToWorker};
use gloo::timers::callback::Timeout;
use leptos::prelude::*;

/// Attempts to reach the server before a person is asked.
const MOST_ATTEMPTS: u32 = 4;
/// A host whose page is closed is missed by the server well within this, one that lost its network when it was silent.
const STILL_THERE_MS: u32 = 35_000;
const HOST_LEFT: &str = "The host has left, and the room is closed. Thank you for lending this device.";
const MAX_NAME_LEN: usize = 40;

/// How far this device is.
#[derive(Clone, Debug, PartialEq)]
enum Stand {
    Starting { loaded: u64 },
    Joining,
    Connecting,
    InRoom(StageInfo),
    Ended { words: String, error: bool },
    Left,
}

impl Stand {
    fn name(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Joining => "joining",
            Self::Connecting => "connecting",
            Self::InRoom(view) => match view.state {
                DeviceState::Waiting | DeviceState::Connecting => "waiting",
                DeviceState::Loading { .. } => "loading",
                DeviceState::Measuring => "measuring",
                DeviceState::Training => "training",
                DeviceState::Idle => "idle",
                DeviceState::Standby => "standby",
                DeviceState::Hidden => "hidden",
                DeviceState::Drained => "drained",
                DeviceState::Silent => "silent",
            },
            Self::Ended { .. } => "ended",
            Self::Left => "left",
        }
    }

    fn is_over(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::Left)
    }
}

/// The state of the page; copies are handles to the same.
#[derive(Clone, Copy)]
struct Visit {
    stand: RwSignal<Stand>,
    backend: RwSignal<Option<String>>,
    error: RwSignal<Option<String>>,
    name: RwSignal<String>,
    cache: RwSignal<Option<CacheInfo>>,
    cache_error: RwSignal<Option<String>>,
    secret: StoredValue<RoomSecret>,
    held: StoredValue<Held, LocalStorage>,
}

#[derive(Default)]
struct Held {
    /// Tells a visit's late events from those of the visit that replaced it.
    number: u32,
    engine: Option<Engine>,
    signal: Option<SignalClient>,
    mesh: Option<Mesh>,
    wake: Option<WakeLock>,
    pulse: Option<PulseWatch>,
    /// The server has closed the room.
    is_over: bool,
    /// The server cannot be heard any more: nobody would say that the host is back.
    is_cut_off: bool,
    /// The server has lost the host too.
    host_away: bool,
    /// The host's number since it came back to the room, until it makes an offer.
    returned: Option<PeerId>,
    me: Option<PeerId>,
    ice_servers: Vec<IceServer>,
}

impl Visit {
    fn with<T>(&self, change: impl FnOnce(&mut Held) -> T) -> Option<T> {
        self.held.try_update_value(change)
    }

    /// Joins from the start, leaving whatever there was.
    fn begin(&self) {
        let number = self.let_go();
        let visit = *self;
        self.error.set(None);
        self.backend.set(None);
        self.stand.set(Stand::Starting { loaded: 0 });
        let engine = Engine::start(move |event| {
            if visit.is(number) {
                visit.on_engine(event);
            }
        });
        self.with(|held| {
            held.engine = Some(engine);
            held.wake = Some(WakeLock::hold());
        });
    }

    fn is(&self, number: u32) -> bool {
        self.with(|held| held.number == number) == Some(true)
    }

    /// Asks for a place in the room. Not before the engine is there: who has a place is made offers, and has to answer.
    fn ask_in(&self) {
        let Some(number) = self.with(|held| held.number) else { return };
        let (visit, room) = (*self, self.secret.with_value(RoomSecret::room_id));
        let signal = SignalClient::connect(
            browser::server_url(),
            room,
            Role::Peer,
            None,
            MOST_ATTEMPTS,
            move |event| {
                if visit.is(number) {
                    visit.on_signal(event);
                }
            },
        );
        self.with(|held| held.signal = Some(signal));
    }

    /// Lets room, connections and engine go; what they still say is not heard.
    fn let_go(&self) -> u32 {
        let old = self.with(|held| {
            let number = held.number.wrapping_add(1);
            std::mem::replace(held, Held { number, ..Held::default() })
        });
        if let Some(signal) = old.and_then(|old| old.signal) {
            signal.leave();
        }
        self.with(|held| held.number).unwrap_or_default()
    }

    fn leave(&self) {
        self.let_go();
        self.stand.set(Stand::Left);
    }

    fn end(&self, words: String, error: bool) {
        self.let_go();
        if error {
            self.error.set(Some(words.clone()));
        }
        self.stand.set(Stand::Ended { words, error });
    }

    fn say(&self, message: &ToWorker, beside: Beside) {
        if let Some(engine) = self.with(|held| held.engine.clone()).flatten() {
            engine.post(message, beside);
        }
    }

    fn mesh(&self) -> Option<Mesh> {
        self.with(|held| held.mesh.clone()).flatten()
    }

    fn on_engine(&self, event: EngineEvent) {
        match event {
            EngineEvent::Loading(loaded) => self.stand.update(|stand| {
                if matches!(stand, Stand::Starting { .. }) {
                    *stand = Stand::Starting { loaded };
                }
            }),
            EngineEvent::FellBack(why) => self
                .error
                .set(Some(format!("WebGPU did not start ({why}), so this device computes on its CPU."))),
            EngineEvent::Failed(words) => self.end(words, true),
            EngineEvent::Message(message, _) => self.on_message(message),
        }
    }

    fn on_message(&self, message: FromWorker) {
        match message {
            FromWorker::Ready { backend } => {
                self.backend.set(Some(backend));
                self.stand.set(Stand::Joining);
                self.ask_in();
            }
            FromWorker::Connect { peer } => {
                if let Some(mesh) = self.mesh() {
                    mesh.connect(peer, Lane::Bulk);
                }
            }
            FromWorker::Disconnect { peer } => {
                if let Some(mesh) = self.mesh() {
                    mesh.close(peer);
                }
            }
            FromWorker::Stage { view } => match view.ended {
                Some(words) => self.end(words, false),
                None => {
                    // From here on the connections carry everything; a lost socket would only make it a stranger.
                    if let Some(signal) = self.with(|held| held.signal.clone()).flatten() {
                        signal.set_most_attempts(0);
                    }
                    self.stand.set(Stand::InRoom(view));
                }
            },
            FromWorker::Cache { cache } => self.cache.set(Some(cache)),
            FromWorker::Error { about: ErrorAbout::Cache, message } => self.cache_error.set(Some(message)),
            FromWorker::Error { about: ErrorAbout::Engine, message } => self.end(message, true),
            FromWorker::Error { message, .. } => self.error.set(Some(message)),
            // What only a host's engine says.
            FromWorker::Model { .. }
            | FromWorker::Inspected { .. }
            | FromWorker::Text { .. }
            | FromWorker::Devices { .. }
            | FromWorker::Left { .. }
            | FromWorker::Kept { .. }
            | FromWorker::Checking { .. }
            | FromWorker::Phase { .. }
            | FromWorker::Step { .. }
            | FromWorker::Judged { .. }
            | FromWorker::Sample { .. }
            | FromWorker::Generated { .. }
            | FromWorker::Adapter { .. } => {}
        }
    }

    /// Begins to connect from the place in the room.
    fn enter(&self, me: PeerId, host: PeerId, ice_servers: Vec<IceServer>) {
        self.stand.set(Stand::Connecting);
        let (name, visit) = (self.name.get_untracked(), browser::visit());
        self.say(&ToWorker::Join { name, host, me, visit }, Beside::Nothing);
        self.with(|held| (held.me, held.ice_servers) = (Some(me), ice_servers));
        self.connect(host);
    }

    /// The host's page was loaded again: it knows nobody, and this device has its blocks still. What stands is given up
    /// only for an offer that opens with the room's secret.
    fn meet_again(&self, host: PeerId, sealed: &str) {
        let Some(mesh) = self.mesh_for(host) else { return };
        mesh.receive(host, sealed);
        if mesh.refused() > 0 {
            return;
        }
        self.error.set(None);
        self.with(|held| (held.returned, held.host_away) = (None, false));
        self.say(&ToWorker::HostReturned { host }, Beside::Nothing);
        self.adopt(mesh);
    }

    fn connect(&self, host: PeerId) {
        if let Some(mesh) = self.mesh_for(host) {
            self.adopt(mesh);
        }
    }

    fn mesh_for(&self, host: PeerId) -> Option<Mesh> {
        let (me, ice_servers) = self.with(|held| (held.me, held.ice_servers.clone()))?;
        let me = me?;
        let config = MeshConfig { me, host, secret: self.secret.get_value(), ice_servers };
        let visit = *self;
        let mesh = Mesh::new(
            config,
            move |to, sealed| {
                if let Some(signal) = visit.with(|held| held.signal.clone()).flatten() {
                    signal.relay(to, sealed);
                }
            },
            move |event| visit.on_mesh(host, event),
        );
        Some(mesh)
    }

    fn adopt(&self, mesh: Mesh) {
        let watch = browser::watch_pulse({
            let mesh = mesh.clone();
            move |pulse| mesh.set_pulse(pulse)
        });
        self.with(|held| {
            held.mesh = Some(mesh);
            held.pulse = Some(watch);
        });
    }

    fn on_signal(&self, event: SignalEvent) {
        match event {
            SignalEvent::Joined { me, host, ice_servers, .. } => {
                self.error.set(None);
                if self.is_in_room() {
                    // The connections stand from the first place; this one is a stranger's.
                    if let Some(signal) = self.with(|held| held.signal.take()).flatten() {
                        signal.leave();
                    }
                } else if self.mesh().is_some() {
                    // The engine is bound to the first place, which is lost.
                    self.begin();
                } else {
                    self.enter(me, host, ice_servers);
                }
            }
            SignalEvent::PeerJoined(_) => {}
            // Whether it is a new page, or the old one behind a new socket, shows when it makes an offer.
            SignalEvent::HostReturned(host) => drop(self.with(|held| held.returned = Some(host))),
            // Its page may be closed, loaded again, or only out of the server's sight. The server says when the room is
            // over; until then what is loaded is kept.
            SignalEvent::PeerLeft(peer) if self.host() == Some(peer) => {
                self.with(|held| held.host_away = true);
                if let Some(mesh) = self.mesh() {
                    mesh.doubt(peer);
                }
            }
            SignalEvent::PeerLeft(peer) => {
                if let Some(mesh) = self.mesh() {
                    mesh.left(peer);
                }
            }
            SignalEvent::Relay { from, sealed } => {
                if self.with(|held| held.returned) == Some(Some(from)) {
                    return self.meet_again(from, &sealed);
                }
                if let Some(mesh) = self.mesh() {
                    mesh.receive(from, &sealed);
                }
            }
            SignalEvent::Trouble(SignalError::Refused { code: ErrorCode::NoSuchPeer, .. }) => {}
            SignalEvent::Trouble(error) => self.error.set(Some(error.to_string())),
            SignalEvent::Lost { retry_in } => self.error.set(Some(format!(
                "The server cannot be reached; trying again in {}. Is this device on the same Wi-Fi as the host?",
                format::duration(retry_in.ceil())
            ))),
            SignalEvent::Ended(error) => self.on_socket_end(&error),
        }
    }

    /// Whether the host has greeted this device.
    fn is_in_room(&self) -> bool {
        self.stand.with_untracked(|stand| matches!(stand, Stand::InRoom(_)))
    }

    /// Without a socket a device that is connected goes on.
    fn on_socket_end(&self, error: &SignalError) {
        let connected = self.is_in_room();
        match error {
            SignalError::Refused { code: ErrorCode::HostLeft, .. } if connected => {
                // A host that the server lost may be there still.
                let stands = self.mesh().is_some_and(|mesh| mesh.stands(mesh.host()));
                if stands {
                    self.with(|held| held.is_over = true);
                } else {
                    self.end(HOST_LEFT.into(), false);
                }
            }
            _ if connected => {
                self.with(|held| held.is_cut_off = true);
                if !self.mesh().is_some_and(|mesh| mesh.has(mesh.host())) {
                    self.end(error.to_string(), true);
                }
            }
            error => self.end(error.to_string(), true),
        }
    }

    /// The engine keeps what it has, and the host is met again when it comes back. One that never left the room has let
    /// this device go: it asks for a place again.
    fn wait_for_host(&self, host: PeerId) {
        let (visit, number) = (*self, self.with(|held| held.number));
        Timeout::new(STILL_THERE_MS, move || {
            let waits = visit.with(|held| Some(held.number) == number && !held.host_away) == Some(true);
            let met = visit.mesh().is_some_and(|mesh| mesh.host() != host || mesh.has(host));
            if waits && !met {
                visit.begin();
            }
        })
        .forget();
    }

    fn host(&self) -> Option<PeerId> {
        self.mesh().map(|mesh| mesh.host())
    }

    fn on_mesh(&self, host: PeerId, event: MeshEvent) {
        match event {
            MeshEvent::Channel { peer, lane, channel } => {
                self.say(&ToWorker::Channel { peer, lane }, Beside::Channel(channel));
            }
            MeshEvent::Presence { peer, presence } => {
                self.say(&ToWorker::Presence { peer, presence }, Beside::Nothing);
            }
            MeshEvent::Gone { peer, reason } => {
                self.say(&ToWorker::PeerGone { peer }, Beside::Nothing);
                if peer != host {
                    return;
                }
                let (is_over, is_cut_off) =
                    self.with(|held| (held.is_over, held.is_cut_off)).unwrap_or_default();
                if is_over {
                    self.end(HOST_LEFT.into(), false);
                } else if is_cut_off || !self.is_in_room() {
                    self.end(format!("The host {reason}."), true);
                } else {
                    self.wait_for_host(host);
                }
            }
        }
    }
}

/// The page of a link whose code is none.
#[component]
pub(crate) fn BadLink(error: String) -> impl IntoView {
    view! {
        <Masthead>""</Masthead>
        <main class="join">
            <section class="card" id="stage" data-state="ended">
                <h1>"This link is not complete"</h1>
                <p id="join-error" class="alert" role="alert">{error}</p>
                <p>"Scan the code again, or ask for the link to be sent once more. It may have been cut in two."</p>
            </section>
        </main>
    }
}

/// The page of a device that lends itself.
#[component]
pub(crate) fn Join(secret: RoomSecret) -> impl IntoView {
    let visit = Visit {
        stand: RwSignal::new(Stand::Starting { loaded: 0 }),
        backend: RwSignal::new(None),
        error: RwSignal::new(None),
        name: RwSignal::new(browser::device_name()),
        cache: RwSignal::new(None),
        cache_error: RwSignal::new(None),
        secret: StoredValue::new(secret),
        held: StoredValue::new_local(Held::default()),
    };
    visit.begin();
    on_cleanup(move || {
        visit.let_go();
    });
    let stand = visit.stand;
    let name = Memo::new(move |_| stand.with(Stand::name));
    let over = Memo::new(move |_| stand.with(Stand::is_over));
    Effect::new(move |_| {
        over.track();
        browser::hand_focus_on(&["join-leave", "join-retry"], &["join-leave", "join-retry", "stage-title"]);
    });
    let view_of = move || match stand.get() {
        Stand::InRoom(view) => Some(view),
        _ => None,
    };
    let blocks = move || view_of().and_then(|view| view.blocks);
    let rename = move |event| {
        let typed: String = event_target_value(&event).trim().chars().take(MAX_NAME_LEN).collect();
        if typed.is_empty() || typed == visit.name.get_untracked() {
            return;
        }
        browser::store("baton.name", &typed);
        visit.name.set(typed);
        // A device without a part comes back under its new name; one that works keeps the old one for this run.
        let free = stand.with_untracked(|stand| {
            stand.name() == "waiting"
                || matches!(stand, Stand::Starting { .. } | Stand::Joining | Stand::Connecting)
        });
        if free {
            visit.begin();
        }
    };
    let title = move || match stand.get() {
        Stand::Starting { .. } => "Getting this device ready",
        Stand::Joining => "Joining the room",
        Stand::Connecting => "Connecting to the host",
        Stand::InRoom(view) => match view.state {
            DeviceState::Waiting | DeviceState::Connecting => "You are in",
            DeviceState::Loading { .. } => "Fetching its part of the model",
            DeviceState::Measuring => "Measuring this device",
            DeviceState::Training => "This device is training",
            DeviceState::Idle => "Ready",
            DeviceState::Standby => "Standing by",
            DeviceState::Hidden | DeviceState::Drained | DeviceState::Silent => "The host is not heard",
        },
        Stand::Ended { error: true, .. } => "That did not work",
        Stand::Ended { .. } => "Thank you",
        Stand::Left => "You have left the room",
    };
    let words = move || match stand.get() {
        Stand::Starting { loaded: 0 } => "Loading the engine…".into(),
        Stand::Starting { loaded } => format!("Loading the engine… {}", format::bytes(loaded)),
        Stand::Joining => "Asking the server for a place…".into(),
        Stand::Connecting => "A direct connection, from device to device…".into(),
        Stand::InRoom(view) => match (&view.state, view.blocks) {
            (DeviceState::Loading { loaded, total }, _) => {
                format!("{} of {}", format::bytes(*loaded), format::bytes(*total))
            }
            (DeviceState::Measuring, _) => {
                "A few seconds of the work that it will do, to find out what part suits it.".into()
            }
            (DeviceState::Idle, None) => "The run stands still at the moment.".into(),
            (DeviceState::Standby, _) => {
                "Its blocks are loaded: this device steps in between two steps, or when another one leaves."
                    .into()
            }
            (DeviceState::Silent, _) => {
                "What is loaded is kept for it. Is its page open, and on the same Wi-Fi?".into()
            }
            (state, Some(blocks)) => {
                let blocks = format::blocks(blocks);
                let part = match view.model_blocks {
                    Some(total) => format!("It carries {blocks} of {total}."),
                    None => format!("It carries {blocks}."),
                };
                match state {
                    DeviceState::Idle => format!("{part} The run stands still at the moment."),
                    _ => part,
                }
            }
            (_, None) => {
                "Waiting for a part: it comes with the next run, or when another device leaves.".into()
            }
        },
        Stand::Ended { error: true, .. } => "Nothing on this device was changed.".into(),
        Stand::Ended { words, .. } => words,
        Stand::Left => "Thank you for lending this device.".into(),
    };
    let stations = Memo::new(move |_| {
        let place = view_of().and_then(|view| view.place);
        let (own, count) = place.map_or((0, 1), |(own, count)| (own, count.clamp(1, 24)));
        let stages = (0..count).map(|i| Station {
            label: (i + 1).to_string(),
            mine: i == own && place.is_some(),
            lit: false,
        });
        std::iter::once(Station { label: "host".into(), mine: false, lit: place.is_some() })
            .chain(stages.take(if place.is_some() { usize::from(count) } else { 0 }))
            .collect::<Vec<_>>()
    });
    let loading = move || match view_of().map(|view| view.state) {
        #[allow(clippy::cast_precision_loss)] // a bar of a hundred steps
        Some(DeviceState::Loading { loaded, total }) if total > 0 => Some(loaded as f64 / total as f64),
        _ => None,
    };
    view! {
        <Masthead>""</Masthead>
        <main class="join">
            <section
                class="card stage"
                id="stage"
                aria-labelledby="stage-title"
                data-state=name
                data-backend=visit.backend
                data-blocks=move || blocks().map(|(first, end)| format!("{first}-{end}"))
            >
                <div hidden=over>
                <Track
                    stations=Signal::derive(move || stations.get())
                    moving=Signal::derive(move || name.get() == "training")
                />
                </div>
                <div role="status">
                    <h1 id="stage-title" tabindex="-1">{title}</h1>
                    <p class="lead">{words}</p>
                </div>
                {move || loading().map(|share| view! { <progress max="1" prop:value=share aria-label="Loading"></progress> })}
                <Alert id="join-error" error=visit.error />
                <dl class="figures" hidden=move || view_of().is_none()>
                    <div>
                        <dt>"Place"</dt>
                        <dd>
                            {move || view_of().and_then(|view| view.place).map_or_else(
                                || "–".into_any(),
                                |(own, count)| view! { {own + 1}<small>{format!(" of {count}")}</small> }.into_any(),
                            )}
                        </dd>
                    </div>
                    <div>
                        <dt>"Blocks"</dt>
                        <dd>{move || blocks().map_or_else(|| "–".into(), |(first, end)| {
                            if end == first + 1 { end.to_string() } else { format!("{}–{end}", first + 1) }
                        })}</dd>
                    </div>
                    <div>
                        <dt>"Steps"</dt>
                        <dd>{move || view_of().map(|view| view.steps_done)}</dd>
                    </div>
                    <div>
                        <dt>"Engine"</dt>
                        <dd>{move || visit.backend.get()}</dd>
                    </div>
                </dl>
                <div class="buttons">
                    <button id="join-leave" type="button" hidden=over on:click=move |_| visit.leave()>"Leave"</button>
                    <button id="join-retry" type="button" class="primary" hidden=move || !over.get() on:click=move |_| visit.begin()>
                        {move || if stand.with(|stand| matches!(stand, Stand::Ended { error: true, .. })) { "Try again" } else { "Join again" }}
                    </button>
                </div>
            </section>
            <p class="keep" hidden=over>
                <b>"Keep this page open and visible."</b>
                " A hidden tab is put to sleep, and the others would wait for it."
            </p>
            <InsecureNote />
            <section class="card name">
                <label class="field" for="join-name">"What the host sees as this device’s name"</label>
                <input
                    id="join-name"
                    type="text"
                    maxlength=MAX_NAME_LEN
                    autocomplete="off"
                    prop:value=visit.name
                    on:change=rename
                />
            </section>
            <div hidden=over>
                <StoragePanel
                    cache=visit.cache
                    error=visit.cache_error
                    say=move |message| {
                        visit.cache_error.set(None);
                        visit.say(message, Beside::Nothing);
                    }
                />
            </div>
        </main>
    }
}
