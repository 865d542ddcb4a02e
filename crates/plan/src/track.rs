//! A device's times in the run itself: what is noise, and what is a device that has become slower.

use crate::profile::{DeviceProfile, median};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Jobs that an estimate rests on.
const WINDOW: usize = 21;
/// The newest of them, which say where a device has gone that changed.
const ENOUGH: usize = 7;
/// How far, as a ratio, an estimate must be from what was last said.
const LEAST: f64 = 1.15;
/// And how many standard errors.
const ERRORS: f64 = 4.0;
/// Jobs in a row after which it is.
const PATIENCE: u32 = 4;

/// What kind of job was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobKind {
    /// A forward pass.
    Forward,
    /// A backward pass, with recomputation or without.
    Backward {
        /// Whether it computed the activations again.
        recompute: bool,
    },
}

/// A device is not as fast as it was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Its times over those of its profile, until now.
    pub before: f64,
    /// And from now on. Above `before`: it has slowed, as phones do that get hot.
    pub after: f64,
}

impl Change {
    /// Whether the device became slower.
    pub fn is_slower(&self) -> bool {
        self.after > self.before
    }

    /// How many times as slow, or as fast; at least 1.
    fn ratio(&self) -> f64 {
        (self.after / self.before).max(self.before / self.after)
    }
}

/// Follows one device.
///
/// Every job's time is divided by what the profile says. The median of the last 21 of these ratios is the estimate: a
/// page that was hidden for a moment or a garbage collection does not move it. The level in use changes only when the estimate
/// has been away from it, by 15 % and by four standard errors of a median (from the median absolute deviation), for four
/// jobs in a row; so it does not follow noise, and a plan made from it does not either.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracker {
    profile: DeviceProfile,
    forward: Series,
    backward: Series,
}

#[derive(Clone, Debug, PartialEq)]
struct Series {
    ratios: VecDeque<f64>,
    level: f64,
    /// The level when a change was last said.
    said: f64,
    away: u32,
    /// It has changed, on the word of a few jobs: the next ones make the level exact.
    settles: bool,
}

impl Series {
    fn new() -> Self {
        Self { ratios: VecDeque::with_capacity(WINDOW), level: 1.0, said: 1.0, away: 0, settles: false }
    }

    fn observe(&mut self, ratio: f64) -> Option<Change> {
        if !(ratio.is_finite() && ratio > 0.0) {
            return None;
        }
        if self.ratios.len() == WINDOW {
            self.ratios.pop_front();
        }
        self.ratios.push_back(ratio);
        let (estimate, error) = self.estimate()?;
        if self.settles {
            self.level = estimate;
            self.settles = self.ratios.len() < WINDOW;
            // It has gone on changing.
            return (!self.settles).then(|| self.say()).flatten();
        }
        let far = Change { before: self.level, after: estimate }.ratio();
        if far < LEAST || (estimate - self.level).abs() < ERRORS * error {
            self.away = 0;
            return None;
        }
        self.away += 1;
        if self.away < PATIENCE {
            return None;
        }
        // Those before would hold it back for another window.
        let mut newest: Vec<f64> = self.ratios.iter().rev().take(ENOUGH).copied().collect();
        self.level = median(&mut newest);
        (self.away, self.settles) = (0, true);
        self.ratios.drain(..self.ratios.len() - ENOUGH);
        self.say()
    }

    /// That the level is another than was said last.
    fn say(&mut self) -> Option<Change> {
        let change = Change { before: self.said, after: self.level };
        if change.ratio() < LEAST {
            return None;
        }
        self.said = self.level;
        Some(change)
    }

    /// The median and its standard error.
    fn estimate(&self) -> Option<(f64, f64)> {
        if self.ratios.len() < if self.settles { ENOUGH } else { WINDOW } {
            return None;
        }
        let mut values: Vec<f64> = self.ratios.iter().copied().collect();
        let estimate = median(&mut values);
        let mut deviations: Vec<f64> = values.iter().map(|value| (value - estimate).abs()).collect();
        // Of a normal distribution: its deviation is 1.4826 median deviations, its median's error 1.2533 / √n of that.
        let error = 1.4826 * 1.2533 * median(&mut deviations) / (values.len() as f64).sqrt();
        Some((estimate, error))
    }
}

impl Tracker {
    /// Of a device that measured itself so.
    pub fn new(profile: DeviceProfile) -> Self {
        Self { profile, forward: Series::new(), backward: Series::new() }
    }

    /// A job on blocks of `work` in all and so many samples took `seconds`. Says if the device has become slower or faster
    /// than its times were taken to be.
    pub fn observe(&mut self, kind: JobKind, work: f64, samples: u32, seconds: f64) -> Option<Change> {
        let scale = self.profile.slowness * work;
        let (forward, backward) = (self.profile.forward.at(samples), self.profile.backward.at(samples));
        match kind {
            JobKind::Forward => self.forward.observe(seconds / (scale * forward)),
            JobKind::Backward { recompute } => {
                // Both parts slow together.
                let again = if recompute { forward } else { 0.0 };
                self.backward.observe(seconds / (scale * (again + backward)))
            }
        }
    }

    /// The profile as the run's own times have it.
    pub fn profile(&self) -> DeviceProfile {
        DeviceProfile {
            forward: self.profile.forward.scaled(self.forward.level),
            backward: self.profile.backward.scaled(self.backward.level),
            ..self.profile.clone()
        }
    }

    /// Its times over those that it measured itself, the slower of both kinds of jobs.
    pub fn slowness(&self) -> f64 {
        self.forward.level.max(self.backward.level)
    }
}
