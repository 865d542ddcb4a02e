//! A few hundred rooms drawn from seeds with faults at every point of a step; `baton simulate --campaign` runs thousands.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use baton_sim::campaign::{self, CampaignError, Tally};
use baton_sim::{Entry, JobName, Point, Seeds};

#[test]
fn rooms_with_faults_at_every_point_of_a_step_lose_none_and_make_none_twice() {
    let tally = campaign::campaign(Seeds::new(0, 400).unwrap(), 1).unwrap();
    assert_eq!(tally.broken, [], "repeat one with `baton simulate --campaign --seed SEED --runs 1`");
    assert_eq!((tally.runs, tally.steps), (400, 2000));
    use Entry::{Connecting, Greeting, Measuring, Timing};
    use JobName::{Apply, Backward, Forward, Load, Norm};
    let entries = [Connecting, Greeting, Timing, Measuring].map(Point::Handshake);
    let steps = [Forward, Backward, Norm, Apply].map(|job| Point::Step(Some(job)));
    let plans = [Point::Start(Some(Load)), Point::Recovery(Some(Load)), Point::Recovery(None)];
    for point in entries.into_iter().chain(steps).chain([Point::Replication(None)]).chain(plans) {
        assert!(tally.during.get(&point).is_some_and(|count| *count > 5), "{point}: {tally}");
    }
    assert_eq!(tally.faults.values().sum::<u64>(), tally.during.values().sum(), "{tally}");
    for fault in [
        "kill",
        "vanish",
        "leave",
        "remove",
        "failed job",
        "late join",
        "freeze",
        "freeze all",
        "isolate",
        "part",
        "cut",
        "slow link",
        "slow device",
        "replay",
        "linked again",
        "pause",
        "host reload",
        "hide",
        "stall",
    ] {
        assert!(tally.faults.get(fault).is_some_and(|count| *count > 10), "{fault}: {tally}");
    }
}

#[test]
fn a_campaign_is_the_same_on_any_number_of_threads() {
    let of = |threads| campaign::campaign(Seeds::new(1000, 20).unwrap(), threads).unwrap();
    assert_eq!(of(1), of(3));
    assert_ne!(of(1), Tally::default());
}

#[test]
fn a_campaign_ends_at_the_last_seed_there_is() {
    let tally = campaign::campaign(Seeds::new(u64::MAX - 1, 2).unwrap(), 2).unwrap();
    assert_eq!((tally.runs, tally.broken), (2, Vec::new()));
}

#[test]
fn a_campaign_on_no_threads_or_on_a_hundred_thousand_is_refused_in_words() {
    for found in [0, 100_000] {
        let refused = campaign::campaign(Seeds::new(0, 1).unwrap(), found).unwrap_err();
        assert_eq!(refused, CampaignError::Threads { found });
        assert!(refused.to_string().contains("1 to 256 threads"), "{refused}");
    }
}
