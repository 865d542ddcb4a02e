//! Many runs of one scenario, seed after seed: what they took together, and how those ended that did not end well.

use crate::outcome::{End, Outcome};
use crate::seeds::Seeds;
use std::fmt;
use std::time::Duration;

/// Runs whose end is told one by one; of the others only their number.
const TOLD: usize = 20;

/// What came of some runs.
#[derive(Clone, Debug)]
pub struct Series {
    seeds: Seeds,
    steps: usize,
    time: Duration,
    efficiency: Vec<f64>,
    host_time: Option<Duration>,
    /// Of each run that did not make all of its steps.
    ends: Vec<(u64, End)>,
}

/// Not all runs made all of their steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeriesError {
    /// The protocol is wrong, or the simulator is.
    #[error("{broken} of {runs} runs broke a promise")]
    Broken {
        /// Runs that broke a promise.
        broken: usize,
        /// All runs.
        runs: u64,
    },
    /// The room cannot do what was asked for, and said so.
    #[error("{unfinished} of {runs} runs did not make all of their steps: why is told above")]
    Unfinished {
        /// Runs that ended before.
        unfinished: usize,
        /// All runs.
        runs: u64,
    },
}

impl Series {
    /// None yet.
    pub fn new(seeds: Seeds) -> Self {
        let (efficiency, ends) = (Vec::new(), Vec::new());
        Self { seeds, steps: 0, time: Duration::ZERO, efficiency, host_time: None, ends }
    }

    /// One more.
    pub fn add(&mut self, outcome: &Outcome) {
        self.steps += outcome.steps.len();
        self.time += outcome.time.end.saturating_sub(outcome.time.start);
        self.efficiency.extend(outcome.efficiency());
        if let Some(time) = outcome.host_time() {
            *self.host_time.get_or_insert_default() += time;
        }
        if outcome.end != End::Done {
            self.ends.push((outcome.seed, outcome.end.clone()));
        }
    }

    fn broken(&self) -> impl Iterator<Item = u64> {
        self.ends.iter().filter(|(_, end)| matches!(end, End::Broken(_))).map(|(seed, _)| *seed)
    }

    /// The first seed that broke a promise.
    pub fn first_broken(&self) -> Option<u64> {
        self.broken().next()
    }

    /// Whether all of them made all of their steps.
    ///
    /// # Errors
    ///
    /// When one did not.
    pub fn verdict(&self) -> Result<(), SeriesError> {
        let (broken, unfinished, runs) = (self.broken().count(), self.ends.len(), self.seeds.runs());
        match (broken, unfinished) {
            (0, 0) => Ok(()),
            (0, _) => Err(SeriesError::Unfinished { unfinished, runs }),
            _ => Err(SeriesError::Broken { broken, runs }),
        }
    }
}

/// Of more than one run: of a single one its own table tells everything.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.seeds.runs();
        if runs == 1 {
            return Ok(());
        }
        for (seed, end) in self.ends.iter().take(TOLD) {
            writeln!(f, "seed {seed}: {end}")?;
        }
        if self.ends.len() > TOLD {
            writeln!(f, "and {} more", self.ends.len() - TOLD)?;
        }
        let (first, steps) = (self.seeds.first(), self.steps);
        write!(
            f,
            "{runs} runs from seed {first}: {steps} steps in {:.1} s of virtual time",
            self.time.as_secs_f64()
        )?;
        if !self.efficiency.is_empty() {
            let mean = self.efficiency.iter().sum::<f64>() / self.efficiency.len() as f64;
            write!(f, ", {:.1} % of their plans' bounds", 100.0 * mean)?;
        }
        match (self.broken().count(), self.ends.len()) {
            (0, 0) => writeln!(f, "; each made all of its steps")?,
            (broken, unfinished) => {
                writeln!(f, "; {unfinished} did not make all of their steps, {broken} broke a promise")?;
            }
        }
        if let Some(time) = self.host_time {
            let each = time.as_secs_f64() * 1e3 / (steps.max(1) as f64);
            writeln!(f, "the hosts' machines took {each:.3} ms of a processor a step")?;
        }
        Ok(())
    }
}
