//! Step 3: the link of the room, and who is in it.

use super::session::{Choice, RoomState, Session, device_label};
use crate::{
    app::Alert,
    browser, format,
    track::{Station, Track},
};
use baton_web_api::{DeviceFacts, DeviceInfo, DeviceState, RunPhase};
use gloo::timers::callback::Timeout;
use leptos::prelude::*;
use qrcode::{EcLevel, QrCode, render::svg};
use wasm_bindgen_futures::spawn_local;

/// What becomes of a device that joins while a run is on.
const LATE: &str = "A device that joins during a run gets its part ready and steps in between two steps, or when another one leaves.";

/// A state as tests and styles know it.
pub(crate) fn state_name(state: &DeviceState) -> &'static str {
    match state {
        DeviceState::Waiting => "waiting",
        DeviceState::Connecting => "connecting",
        DeviceState::Loading { .. } => "loading",
        DeviceState::Measuring => "measuring",
        DeviceState::Training => "training",
        DeviceState::Idle => "idle",
        DeviceState::Standby => "standby",
        DeviceState::Hidden => "hidden",
        DeviceState::Drained => "drained",
        DeviceState::Silent => "silent",
    }
}

/// A state as a person knows it.
pub(crate) fn state_words(state: &DeviceState, paused: bool) -> String {
    match state {
        DeviceState::Waiting => "waiting".into(),
        DeviceState::Connecting => "connecting".into(),
        // What it is to load is not known before the run goes on.
        DeviceState::Loading { total: 0, .. } if paused => "waiting".into(),
        DeviceState::Loading { total: 0, .. } => "getting ready".into(),
        DeviceState::Loading { loaded, total } => {
            format!("loading {} of {}", format::bytes(*loaded), format::bytes(*total))
        }
        DeviceState::Measuring => "measuring itself".into(),
        DeviceState::Training => "training".into(),
        DeviceState::Idle => "ready".into(),
        DeviceState::Standby => "standing by".into(),
        DeviceState::Hidden => "hidden: its page is not looked at".into(),
        DeviceState::Drained => "spared: its battery is nearly empty".into(),
        DeviceState::Silent => "not heard".into(),
    }
}

/// What was measured of a device, in words.
fn facts(facts: &DeviceFacts) -> String {
    let parts = [
        facts.pace.map(|seconds| format!("{} a block", format::short_time(seconds))),
        facts.memory.map(|bytes| format!("{} free", format::bytes(bytes))),
        facts.link.map(|(bytes, round_trip)| {
            format!("{}/s, {} away", format::bytes(bytes as u64), format::short_time(round_trip))
        }),
        facts.checked.map(|step| format!("checked at step {}", step + 1)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// The code as dark squares on its own light ground, which every reader wants.
fn qr(link: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(link, EcLevel::M).ok()?;
    let svg = code
        .render::<svg::Color<'_>>()
        .min_dimensions(180, 180)
        .quiet_zone(true)
        .dark_color(svg::Color("#1d1a17"))
        .light_color(svg::Color("#ffffff"))
        .build();
    svg.find("<svg").map(|start| svg[start..].to_owned())
}

/// The link, its code, and the list of devices.
#[component]
pub(crate) fn DevicesStep() -> impl IntoView {
    let session = expect_context::<Session>();
    let copied = RwSignal::new(false);
    let link_input = NodeRef::<leptos::html::Input>::new();
    let copy = move |_| {
        let Some(link) = session.link.get_untracked() else { return };
        spawn_local(async move {
            if browser::copy(&link).await {
                copied.set(true);
                Timeout::new(2000, move || {
                    copied.try_set(false);
                })
                .forget();
            } else if let Some(input) = link_input.get_untracked() {
                // Without a clipboard the person copies what is marked.
                input.focus().ok();
                input.select();
            }
        });
    };
    let room_name = move || match session.room.get() {
        RoomState::Opening => "opening",
        RoomState::Open => "open",
        RoomState::Retrying => "retrying",
        RoomState::Failed => "failed",
    };
    let in_lobby = move || session.phase.with(|phase| *phase == RunPhase::Lobby);
    let stations = Memo::new(move |_| {
        let mut stages: Vec<(Option<(u16, u16)>, Station)> = session.devices.with(|devices| {
            devices
                .iter()
                .filter(|device| device.peer.is_some() && device.blocks.is_some())
                .map(|device| {
                    let lit = device.state == DeviceState::Training;
                    (device.blocks, Station { label: String::new(), mine: false, lit })
                })
                .collect()
        });
        stages.sort_by_key(|(blocks, _)| *blocks);
        let numbered =
            stages.into_iter().zip(1..).map(|((_, station), i)| Station { label: i.to_string(), ..station });
        std::iter::once(Station { label: "you".into(), mine: true, lit: true })
            .chain(numbered)
            .collect::<Vec<_>>()
    });
    // A run that stands still because nobody is left says so itself.
    let left = move || {
        let (device, reason) = session.left.get()?;
        let goes_on = session.phase.with(|phase| {
            matches!(phase, RunPhase::Loading | RunPhase::Sampling | RunPhase::Running)
                || matches!(phase, RunPhase::Paused { reason: None })
        });
        let rest =
            if session.helpers() > 0 { "The others go on without it." } else { "This device goes on." };
        goes_on.then(|| format!("{device} is out: {reason}. {rest}"))
    };
    let running = move || session.phase.with(|phase| *phase == RunPhase::Running);
    view! {
        <section class="card devices" id="room" aria-labelledby="devices-title" data-state=room_name>
            <h2 id="devices-title">
                <span class="number" hidden=move || !in_lobby()>"3"</span>
                "Devices"
            </h2>
            <div hidden=move || in_lobby() || stations.with(|stations| stations.len() < 2)>
                <Track stations=Signal::derive(move || stations.get()) moving=Signal::derive(running) />
            </div>
            <div class="invite" class:small=move || !in_lobby()>
                <div
                    id="join-qr"
                    class="qr"
                    role="img"
                    aria-label="QR code of the join link"
                    inner_html=move || session.link.get().and_then(|link| qr(&link)).unwrap_or_default()
                ></div>
                <div class="invite-words">
                    <p>"Scan it with a phone on the same Wi-Fi, or send the link."</p>
                    <label class="visually-hidden" for="join-link">"Join link"</label>
                    <div class="inline">
                        <input
                            id="join-link"
                            node_ref=link_input
                            type="text"
                            readonly
                            prop:value=move || session.link.get().unwrap_or_default()
                            on:focus=move |_| {
                                if let Some(input) = link_input.get_untracked() {
                                    input.select();
                                }
                            }
                        />
                        <button id="join-copy" type="button" on:click=copy>
                            {move || if copied.get() { "Copied" } else { "Copy" }}
                        </button>
                    </div>
                    <p class="visually-hidden" role="status">{move || copied.get().then_some("The link is copied.")}</p>
                    <p class="hint" hidden=move || !browser::only_reachable_here() || !in_lobby()>
                        {move || session.lan.get().map_or_else(
                            || "Phones cannot open this address. Open this page at the computer’s address on the Wi-Fi, which the server printed when it started.".into(),
                            |address| format!("Phones cannot open this address, so the link and the code use this computer’s address on the network: {address}"),
                        )}
                    </p>
                </div>
            </div>
            <Alert id="error-room" error=session.errors.room />
            <button
                type="button"
                hidden=move || session.room.get() != RoomState::Failed
                on:click=move |_| session.retry_room()
            >
                "Try again"
            </button>
            <Alert id="error-peer" error=session.errors.peer />
            <p class="note" id="left" role="status" hidden=move || left().is_none()>{left}</p>
            <ul id="devices" class="device-list" aria-label="Devices in the room" aria-live="polite">
                <For
                    each=move || session.devices.get()
                    key=|device| device.peer
                    children=move |device| {
                        let peer = device.peer;
                        let first = device;
                        let now = Memo::new(move |_| {
                            session
                                .devices
                                .with(|devices| devices.iter().find(|other| other.peer == peer).cloned())
                                .unwrap_or_else(|| first.clone())
                        });
                        view! { <Device now=now /> }
                    }
                />
            </ul>
            <p class="hint empty" hidden=move || { session.helpers() > 0 || !in_lobby() }>
                "No other device yet. You can start alone. "
                {LATE}
            </p>
            <p class="hint" hidden=move || !session.is_busy()>{LATE}</p>
        </section>
    }
}

#[component]
fn Device(now: Memo<DeviceInfo>) -> impl IntoView {
    let session = expect_context::<Session>();
    let peer = move || now.with(|device| device.peer);
    let label = Memo::new(move |_| {
        let peer = now.with(|device| device.peer);
        let label = session.devices.with(|devices| device_label(devices, peer));
        label.unwrap_or_else(|| now.with(|device| device.name.clone()))
    });
    let cells = move || {
        let total = session.model.with(|model| match model {
            Choice::Ready(model) => model.blocks,
            _ => 0,
        });
        let own = now.with(|device| device.blocks);
        if own.is_none() || total > 48 {
            return Vec::new();
        }
        (0..total)
            .map(|block| {
                let held =
                    own.is_some_and(|(first, end)| (u32::from(first)..u32::from(end)).contains(&block));
                view! { <i class:held=held></i> }
            })
            .collect()
    };
    let detail = move || {
        now.with(|device| {
            let part = match (device.blocks, device.peer) {
                (Some(blocks), None) => format!("ends and {}", format::blocks(blocks)),
                (Some(blocks), Some(_)) => format::blocks(blocks),
                (None, None) => "ends".into(),
                (None, Some(_)) => "no part yet".into(),
            };
            format!("{} · {part}", device.backend)
        })
    };
    let facts = move || now.with(|device| facts(&device.facts));
    let paused = Memo::new(move |_| session.phase.with(|phase| matches!(phase, RunPhase::Paused { .. })));
    let progress = move || {
        now.with(|device| match device.state {
            #[allow(clippy::cast_precision_loss)] // a bar of a hundred steps
            DeviceState::Loading { loaded, total } if total > 0 => Some(loaded as f64 / total as f64),
            _ => None,
        })
    };
    view! {
        <li
            class="device"
            data-peer=move || peer().map_or_else(|| "host".to_owned(), |peer| peer.to_string())
            data-state=move || now.with(|device| state_name(&device.state))
            data-backend=move || now.with(|device| device.backend.clone())
            data-blocks=move || now.with(|device| device.blocks.map(|(first, end)| format!("{first}-{end}")))
        >
            <i class="dot"></i>
            <div class="device-words">
                <p class="device-name">
                    {label}
                    <span class="tag" hidden=move || peer().is_some()>"this device"</span>
                </p>
                <p class="device-detail">{detail}</p>
                <p class="device-detail device-facts" hidden=move || facts().is_empty()>{facts}</p>
                <div class="cells" aria-hidden="true">{cells}</div>
                {move || progress().map(|share| view! {
                    <progress max="1" prop:value=share aria-label="Loading"></progress>
                })}
            </div>
            <p class="device-state">{move || now.with(|device| state_words(&device.state, paused.get()))}</p>
            <button
                type="button"
                class="icon"
                hidden=move || peer().is_none()
                aria-label=move || format!("Remove {} from the room", label.get())
                on:click=move |_| {
                    if let Some(peer) = now.with_untracked(|device| device.peer) {
                        session.remove(peer);
                    }
                }
            >
                <svg viewBox="0 0 20 20" aria-hidden="true"><path d="M5 5l10 10M15 5L5 15" /></svg>
            </button>
        </li>
    }
}
