//! Who is there: pulses that a device sends while its engine computes, and what their absence means.
//!
//! A machine whose engine runs on its own thread cannot speak while it computes, and a browser needs 5 to 16 s to notice
//! a connection that is gone. So every device sends a [`Pulse`] four times a second from a thread that does nothing else
//! (in a tab the page's own, beside the worker), over a channel that nothing else uses. A device that was not heard for
//! [`SUSPECT`] is planned around at once, and only that: it is a member still, and comes back when it is heard again.

use crate::ids::PeerId;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How often a device says that it is there.
pub const PULSE: Duration = Duration::from_millis(250);
/// How long it may be silent before the others go on without it: six pulses.
pub const SUSPECT: Duration = Duration::from_millis(1500);

/// How long a device may be silent of which the server says that it is gone: two pulses, and what they are late.
pub const DOUBT: Duration = Duration::from_millis(600);

/// A timer that is later than this was not late: this side slept. The timers of a hidden page run once a second.
const SLEPT: Duration = Duration::from_millis(1200);

/// Tells a pulse from anything else, and its layout from later ones.
const FORM: u8 = 0xb1;
const HIDDEN: u8 = 1;
const CHARGING: u8 = 2;
const UNKNOWN: u8 = 255;

/// What a device says of itself, in three bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Its page is in the background or its screen is locked: it is about to be slowed down or frozen.
    pub hidden: bool,
    /// What its battery holds, in percent, where that can be told.
    pub battery: Option<u8>,
    /// Whether it is plugged in; only with `battery`.
    pub charging: bool,
}

impl Pulse {
    /// Encodes it.
    pub fn to_bytes(self) -> [u8; 3] {
        let flags = u8::from(self.hidden) * HIDDEN + u8::from(self.charging) * CHARGING;
        [FORM, flags, self.battery.map_or(UNKNOWN, |percent| percent.min(100))]
    }

    /// Decodes what [`to_bytes`](Self::to_bytes) made; none if it is something else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let [FORM, flags, battery] = *bytes else { return None };
        (flags <= HIDDEN + CHARGING && (battery <= 100 || battery == UNKNOWN)).then_some(Self {
            hidden: flags & HIDDEN != 0,
            battery: (battery != UNKNOWN).then_some(battery),
            charging: flags & CHARGING != 0,
        })
    }
}

/// How a device stands towards another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Heard, and awake.
    Present,
    /// Heard, and about to be slowed down or frozen: it said so.
    Hidden,
    /// Heard, and its battery is nearly empty: its owner needs what is left.
    Drained,
    /// Not heard for [`SUSPECT`], or for [`DOUBT`] if the server says that it is gone.
    Silent,
}

/// A battery that holds no more than this share, in percent, and is not charging, is spared...
const EMPTY: u8 = 10;
/// ... until it holds as much as this, or is charging.
const ENOUGH: u8 = 15;

impl Presence {
    /// Whether it can be relied on.
    pub fn is_present(self) -> bool {
        self == Self::Present
    }
}

/// What the shell is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this device's own pulse to everybody who is watched.
    Pulse,
    /// A device stands otherwise than before; the first time it is heard it is present without a word.
    Presence {
        /// Who.
        peer: PeerId,
        /// How.
        presence: Presence,
    },
}

/// Watches the devices that this one has a pulse channel to.
#[derive(Debug)]
pub struct Monitor {
    peers: BTreeMap<PeerId, Watch>,
    due: Duration,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Watch {
    heard: Duration,
    presence: Presence,
    drained: bool,
    last: Pulse,
    /// Since when the server says that it is gone.
    doubted: Option<Duration>,
}

impl Watch {
    fn patience(&self) -> Duration {
        if self.doubted.is_some() { DOUBT } else { SUSPECT }
    }
}

impl Monitor {
    /// A monitor that watches nobody, at time `now` of any clock.
    pub fn new(now: Duration) -> Self {
        Self { peers: BTreeMap::new(), due: now, outputs: VecDeque::new() }
    }

    /// A pulse channel to a device is open.
    pub fn watch(&mut self, peer: PeerId, now: Duration) {
        let last = Pulse::default();
        let watch = Watch { heard: now, presence: Presence::Present, drained: false, last, doubted: None };
        let watch = self.peers.entry(peer).or_insert(watch);
        (watch.heard, watch.doubted) = (now, None);
        // It is told at once, so that a page that was hidden when it joined is known to be.
        self.outputs.push_back(Output::Pulse);
    }

    /// The server says that a device is gone. Its page may be closed, or only its connection to the server: its pulses tell.
    pub fn doubt(&mut self, peer: PeerId, now: Duration) {
        if let Some(watch) = self.peers.get_mut(&peer) {
            watch.doubted.get_or_insert(now);
        }
    }

    /// A device is gone for good; others say so.
    pub fn forget(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
    }

    /// What came on a pulse channel. What is no pulse says nothing, not even that the device is there.
    pub fn receive(&mut self, from: PeerId, bytes: &[u8], now: Duration) {
        let (Some(watch), Some(pulse)) = (self.peers.get_mut(&from), Pulse::from_bytes(bytes)) else {
            return;
        };
        (watch.heard, watch.last) = (now, pulse);
        // One that was on its way when the server spoke says nothing against it.
        watch.doubted.take_if(|since| now >= *since + PULSE);
        let least = if watch.drained { ENOUGH } else { EMPTY };
        watch.drained = !pulse.charging && pulse.battery.is_some_and(|percent| percent <= least);
        let presence = match pulse.hidden {
            true => Presence::Hidden,
            false if watch.drained => Presence::Drained,
            false => Presence::Present,
        };
        if std::mem::replace(&mut watch.presence, presence) != presence {
            self.outputs.push_back(Output::Presence { peer: from, presence });
        }
    }

    /// To be called at [`poll_timeout`](Self::poll_timeout) or later.
    pub fn handle_timeout(&mut self, now: Duration) {
        if now < self.due {
            return;
        }
        // What came while this side slept may still wait to be read: its own lateness is not held against the others. That
        // of a timer is no sleep.
        let late = Some(now.saturating_sub(self.due)).filter(|late| *late > SLEPT).unwrap_or_default();
        for (&peer, watch) in &mut self.peers {
            watch.heard = (watch.heard + late).min(now);
            if now >= watch.heard + watch.patience() && watch.presence != Presence::Silent {
                watch.presence = Presence::Silent;
                self.outputs.push_back(Output::Presence { peer, presence: Presence::Silent });
            }
        }
        self.due += PULSE;
        if self.due <= now {
            self.due = now + PULSE;
        }
        self.outputs.push_back(Output::Pulse);
    }

    /// This device's own state has changed: everybody is told before the next pulse is due.
    pub fn tell(&mut self) {
        self.outputs.push_back(Output::Pulse);
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Duration {
        self.due
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What a device said last of itself.
    pub fn last(&self, peer: PeerId) -> Option<Pulse> {
        self.peers.get(&peer).map(|watch| watch.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId(7);

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn presences(monitor: &mut Monitor) -> Vec<Presence> {
        std::iter::from_fn(|| monitor.poll())
            .filter_map(|output| match output {
                Output::Presence { peer: PEER, presence } => Some(presence),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn pulses_read_back_and_nothing_else_is_one() {
        for pulse in [
            Pulse::default(),
            Pulse { hidden: true, battery: Some(0), charging: false },
            Pulse { hidden: false, battery: Some(100), charging: true },
        ] {
            assert_eq!(Pulse::from_bytes(&pulse.to_bytes()), Some(pulse));
        }
        for bytes in [&[][..], &[FORM, 0], &[FORM, 4, 0], &[FORM, 0, 101], &[0, 0, 0], &[FORM, 0, 0, 0]] {
            assert_eq!(Pulse::from_bytes(bytes), None);
        }
    }

    #[test]
    fn who_the_server_says_is_gone_is_silent_after_two_pulses_and_who_goes_on_is_not() {
        for goes_on in [false, true] {
            let mut monitor = Monitor::new(at(0));
            monitor.watch(PEER, at(0));
            for now in (0..5000).step_by(50).map(at) {
                monitor.handle_timeout(now);
                // A pulse was on its way when the server spoke.
                if now.as_millis() % 250 == 0 && (goes_on || now <= at(1000)) {
                    monitor.receive(PEER, &Pulse::default().to_bytes(), now);
                }
                if now == at(950) {
                    monitor.doubt(PEER, now);
                }
                if !goes_on && now == at(1750) {
                    assert_eq!(presences(&mut monitor), [Presence::Silent]);
                }
            }
            assert_eq!(presences(&mut monitor), []);
        }
    }

    #[test]
    fn silence_is_noticed_within_two_seconds_and_ends_with_the_next_pulse() {
        let mut monitor = Monitor::new(at(0));
        monitor.watch(PEER, at(0));
        let mut now = at(0);
        while now < at(2000) {
            monitor.handle_timeout(now);
            now = monitor.poll_timeout();
        }
        assert_eq!(presences(&mut monitor), [Presence::Silent]);
        monitor.receive(PEER, &[1, 2, 3], now);
        assert_eq!(presences(&mut monitor), []);
        monitor.receive(PEER, &Pulse::default().to_bytes(), now);
        assert_eq!(presences(&mut monitor), [Presence::Present]);
        monitor.receive(PEER, &Pulse { hidden: true, ..Pulse::default() }.to_bytes(), now);
        assert_eq!(presences(&mut monitor), [Presence::Hidden]);
        assert!(monitor.last(PEER).is_some_and(|pulse| pulse.hidden));
    }

    #[test]
    fn a_timer_that_is_always_a_little_late_sends_every_pulse_and_notices_silence_as_soon() {
        let mut monitor = Monitor::new(at(0));
        monitor.watch(PEER, at(0));
        let mut pulses = 0;
        for tick in 0..8 {
            // Aligned to 250 ms, and later or sooner by chance.
            monitor.handle_timeout(at(250 * tick + [3, 1, 4, 0][tick as usize % 4]));
            while let Some(output) = monitor.poll() {
                pulses += usize::from(output == Output::Pulse);
                assert!(!matches!(output, Output::Presence { .. }) || tick >= 6, "{tick}");
            }
        }
        assert!(pulses >= 8, "{pulses}");
        assert_eq!(monitor.peers[&PEER].presence, Presence::Silent);
    }

    #[test]
    fn who_slept_does_not_take_the_others_for_silent() {
        let mut monitor = Monitor::new(at(0));
        monitor.watch(PEER, at(0));
        monitor.handle_timeout(at(0));
        monitor.handle_timeout(at(60_000));
        monitor.receive(PEER, &Pulse::default().to_bytes(), at(60_001));
        monitor.handle_timeout(at(60_250));
        assert_eq!(presences(&mut monitor), []);
    }

    #[test]
    fn a_nearly_empty_battery_is_spared_until_it_is_charged() {
        let mut monitor = Monitor::new(Duration::ZERO);
        monitor.watch(PeerId(1), Duration::ZERO);
        let mut told = Vec::new();
        for (battery, charging) in [
            (Some(40), false),
            (Some(10), false),
            (Some(14), false),
            (Some(9), true),
            (Some(12), false),
            (None, false),
        ] {
            monitor.receive(
                PeerId(1),
                &Pulse { hidden: false, battery, charging }.to_bytes(),
                Duration::ZERO,
            );
            while let Some(output) = monitor.poll() {
                if let Output::Presence { presence, .. } = output {
                    told.push((battery, presence));
                }
            }
        }
        // Charging lifts it, and 12 % is enough for one that was not spared before.
        assert_eq!(told, [(Some(10), Presence::Drained), (Some(9), Presence::Present)]);
    }
}
