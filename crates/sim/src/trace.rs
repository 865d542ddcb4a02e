//! What every device did, and when: for tables and timelines.

use crate::act::JobName;
use baton_protocol::{MicroBatch, PeerId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// What a device did for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Doing {
    /// Its engine worked.
    Job(JobName, Option<MicroBatch>),
    /// A message was on its way to it.
    Receives(PeerId),
    /// It was frozen.
    Asleep,
    /// It was gone.
    Gone,
}

/// A stretch of a device's time.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What.
    pub doing: Doing,
    /// When.
    pub time: Range<Duration>,
}

/// A device's life.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Life {
    /// What its owner calls it.
    pub name: String,
    /// When it joined.
    pub joined: Duration,
    /// When it was gone, if it is.
    pub gone: Option<Duration>,
    /// Its blocks, last.
    pub blocks: Range<u16>,
    /// The most bytes that it held.
    pub peak_memory: f64,
    /// What it did, in no order.
    pub spans: Vec<Span>,
}

impl Life {
    fn total<'a>(&'a self, within: &'a Range<Duration>, of: impl Fn(Doing) -> bool + 'a) -> Duration {
        // What was on its way to a device that is gone reached nobody.
        let end = self.gone.unwrap_or(within.end).min(within.end);
        let mut spans: Vec<Range<Duration>> = (self.spans.iter())
            .filter(|span| of(span.doing))
            .map(|span| span.time.start.max(within.start)..span.time.end.min(end))
            .filter(|time| time.start < time.end)
            .collect();
        spans.sort_by_key(|time| time.start);
        // What overlaps counts once.
        let (mut total, mut until) = (Duration::ZERO, Duration::ZERO);
        for time in spans {
            total += time.end.saturating_sub(time.start.max(until));
            until = until.max(time.end);
        }
        total
    }

    /// How long its engine worked within a time.
    pub fn busy(&self, within: &Range<Duration>) -> Duration {
        self.total(within, |doing| matches!(doing, Doing::Job(..)))
    }

    /// How long it had nothing to do but to wait for what was on its way to it.
    pub fn receiving(&self, within: &Range<Duration>) -> Duration {
        let either = self.total(within, |doing| matches!(doing, Doing::Job(..) | Doing::Receives(_)));
        either.saturating_sub(self.busy(within))
    }

    /// How many jobs of a kind it began.
    pub fn jobs(&self, name: JobName) -> usize {
        self.spans.iter().filter(|span| matches!(span.doing, Doing::Job(job, _) if job == name)).count()
    }

    /// How long it was in the room within a time.
    pub fn present(&self, within: &Range<Duration>) -> Duration {
        let gone = self.gone.unwrap_or(within.end).min(within.end);
        gone.saturating_sub(self.joined.max(within.start))
    }
}

/// Everybody's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// By device, the host among them.
    pub lives: BTreeMap<PeerId, Life>,
}

impl Trace {
    pub(crate) fn add(&mut self, who: PeerId, doing: Doing, time: Range<Duration>) {
        if time.start < time.end
            && let Some(life) = self.lives.get_mut(&who)
        {
            life.spans.push(Span { doing, time });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_counts_once_and_only_within() {
        let at = Duration::from_secs;
        let job = Doing::Job(JobName::Forward, None);
        let span = |doing, from, to| Span { doing, time: at(from)..at(to) };
        let spans = vec![
            span(Doing::Receives(PeerId(3)), 5, 9),
            span(job, 0, 4),
            span(job, 6, 8),
            span(Doing::Receives(PeerId(1)), 7, 12),
        ];
        let life = Life { spans, joined: at(1), gone: Some(at(11)), ..Life::default() };
        let within = at(2)..at(10);
        assert_eq!((life.busy(&within), life.receiving(&within)), (at(4), at(3)));
        let gone = Life { gone: Some(at(7)), ..life.clone() };
        assert_eq!((gone.busy(&within), gone.receiving(&within)), (at(3), at(1)));
        assert_eq!(life.present(&within), at(8));
        assert_eq!(life.present(&(at(0)..at(20))), at(10));
    }
}
