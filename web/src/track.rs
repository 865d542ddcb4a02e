//! A run as a relay: the host at the line, the stages round the track, the baton on its way.

use gloo::timers::callback::Interval;
use leptos::prelude::*;

/// A stop on the track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Station {
    /// What stands beside it: short.
    pub(crate) label: String,
    /// This very device.
    pub(crate) mine: bool,
    /// Takes part now.
    pub(crate) lit: bool,
}

/// Half the straight, and the radius of the bends, of the middle lane.
const STRAIGHT: f64 = 92.0;
const RADIUS: f64 = 52.0;
const CENTRE: (f64, f64) = (170.0, 88.0);

/// The point at a share of the way round, from the middle of the lower straight, anticlockwise as runners go.
fn point(share: f64) -> (f64, f64) {
    let (bend, length) = (std::f64::consts::PI * RADIUS, 2.0 * STRAIGHT);
    let mut way = share.rem_euclid(1.0) * (2.0 * bend + 2.0 * length);
    let (x, y) = CENTRE;
    if way < STRAIGHT {
        return (x + way, y + RADIUS);
    }
    way -= STRAIGHT;
    if way < bend {
        let angle = way / RADIUS;
        return (x + STRAIGHT + RADIUS * angle.sin(), y + RADIUS * angle.cos());
    }
    way -= bend;
    if way < length {
        return (x + STRAIGHT - way, y - RADIUS);
    }
    way -= length;
    if way < bend {
        let angle = way / RADIUS;
        return (x - STRAIGHT - RADIUS * angle.sin(), y - RADIUS * angle.cos());
    }
    (x - STRAIGHT + (way - bend), y + RADIUS)
}

/// A lap in jumps, and milliseconds from one to the next. By a timer, not an animation of the style sheet: a browser makes
/// every frame of that anew, in jumps or not, which took a tenth of a core from a stage that computes on the CPU
/// (`docs/measurements.md`).
const JUMPS: u32 = 9;
const JUMP_MS: u32 = 500;

/// The track with its stations; `moving` sends the baton round, unless the person prefers things still.
#[component]
pub(crate) fn Track(
    #[prop(into)] stations: Signal<Vec<Station>>,
    #[prop(into)] moving: Signal<bool>,
) -> impl IntoView {
    let jumps = RwSignal::new(0_u32);
    Effect::new(move |_| {
        let jump = move || {
            jumps.try_update(|jumps| *jumps = (*jumps + 1) % JUMPS);
        };
        moving.get().then(|| Interval::new(JUMP_MS, jump))
    });
    let offset = move || format!("-{}", f64::from(jumps.get()) * 100.0 / f64::from(JUMPS));
    let (x, y) = CENTRE;
    let lane = format!(
        "M{x} {} H{} A{RADIUS} {RADIUS} 0 0 0 {} {} H{} A{RADIUS} {RADIUS} 0 0 0 {} {} Z",
        y + RADIUS,
        x + STRAIGHT,
        x + STRAIGHT,
        y - RADIUS,
        x - STRAIGHT,
        x - STRAIGHT,
        y + RADIUS
    );
    let marks = move || {
        let stations = stations.get();
        #[allow(clippy::cast_precision_loss)] // a few stations
        let count = stations.len().max(1) as f64;
        stations
            .into_iter()
            .enumerate()
            .map(|(i, station)| {
                #[allow(clippy::cast_precision_loss)] // a few stations
                let (px, py) = point(i as f64 / count);
                let class = match (station.mine, station.lit) {
                    (true, _) => "station mine",
                    (false, true) => "station lit",
                    (false, false) => "station",
                };
                let word = station.label.len() > 2;
                let (r, label) = (if station.mine || word { 18.0 } else { 13.0 }, station.label);
                view! {
                    <g class=class>
                        <circle cx=px cy=py r=r />
                        <text x=px y=py text-anchor="middle" dominant-baseline="central">{label}</text>
                    </g>
                }
            })
            .collect_view()
    };
    view! {
        <svg class="track" class:moving=moving viewBox="0 0 340 176" aria-hidden="true">
            <path class="ground" d=lane.clone() />
            <path class="line" d=lane.clone() />
            <path class="baton" d=lane pathLength="100" stroke-dashoffset=offset />
            {marks}
        </svg>
    }
}
