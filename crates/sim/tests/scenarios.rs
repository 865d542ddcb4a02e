//! Scenarios as files: those that come with the crate run, what is wrong is told with its line, and a seed repeats a run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use baton_sim::outcome::Outcome;
use baton_sim::scenario::Scenario;
use baton_sim::{HOST, Violation, timeline};
use std::time::Duration;

fn scenario(name: &str) -> Scenario {
    let path = format!("{}/scenarios/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    Scenario::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn run(name: &str) -> Outcome {
    let scenario = scenario(name);
    let outcome = scenario.run(scenario.seed).unwrap();
    assert_eq!(outcome.violation, None);
    assert_eq!(outcome.steps.len(), usize::try_from(outcome.wanted).unwrap());
    outcome
}

#[test]
fn an_even_room_is_as_fast_as_its_plan_allows() {
    let outcome = run("even");
    let efficiency = outcome.efficiency().unwrap();
    assert!((0.95..=1.0 + 1e-6).contains(&efficiency), "{efficiency}");
    // The planner was told of the same devices and links: it knows how long a step takes.
    let (predicted, took) =
        (outcome.prediction.as_ref().unwrap().step, outcome.step_time().unwrap().as_secs_f64());
    assert!((predicted / took - 1.0).abs() < 0.05, "{predicted} {took}");
    // 3 / 11 is the bubble of four equal stages and eight micro-batches; the head and the wires add to it.
    assert!((0.27..0.33).contains(&outcome.bubble().unwrap()), "{:?}", outcome.bubble());
    assert_eq!(outcome.plan.as_ref().unwrap().stages.len(), 4);
}

#[test]
fn with_ideal_links_no_time_is_lost_beyond_the_plan() {
    let text =
        std::fs::read_to_string(format!("{}/scenarios/even.toml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let gone = ["latency_ms = 1.5", "up_mbit = 200", "down_mbit = 200"];
    let ideal = gone.iter().fold(text, |text, link| text.replace(link, ""));
    // The head's share of a small room's step is in no bound of the planner's.
    let ideal = ideal.replace("gflops = 200", "gflops = 2000");
    for (from, to) in
        [("count = 4", "count = 4"), ("count = 4", "count = 7"), ("micro_batches = 8", "micro_batches = 4")]
    {
        let outcome = Scenario::parse(&ideal.replace(from, to)).unwrap().run(0).unwrap();
        let efficiency = outcome.efficiency().unwrap();
        assert!((0.95..=1.0 + 1e-6).contains(&efficiency), "{to}: {efficiency}");
        let (predicted, took) = (outcome.prediction.unwrap().step, outcome.steps[3].took.as_secs_f64());
        // Where much happens at the same instant, it is the order of what does that the two see differently.
        assert!((predicted / took - 1.0).abs() < 0.03, "{to}: {predicted} {took}");
    }
}

#[test]
fn a_mixed_room_survives_a_locked_screen_and_ends() {
    let outcome = run("mixed");
    let of = |name: &str| outcome.trace.lives.values().find(|life| life.name == name).unwrap();
    assert!(of("old").peak_memory > 1e7 && of("hot").busy(&outcome.time) > Duration::from_secs(10));
    // The first plan knows what the devices measured; later ones what they came to.
    let undisturbed: Vec<Duration> =
        outcome.steps.iter().filter(|step| step.bound.is_some()).map(|step| step.took).collect();
    let (first, last) = (undisturbed[0], undisturbed[undisturbed.len() - 1]);
    assert!(last < first.mul_f64(1.1), "{first:?} {last:?}");
    assert!(of("old").blocks.len() < of("fast").blocks.len());
    // What the locked screen had goes to whom it is soonest at: half of it was a minute on the line of the oldest.
    let on: Vec<_> = outcome.recoveries.iter().map(|recovery| recovery.recovered).collect();
    assert!(on[0].unwrap() < Duration::from_secs(25), "{on:?}");
}

#[test]
fn a_crowd_takes_its_steps() {
    let outcome = run("crowd");
    assert_eq!(outcome.plan.as_ref().unwrap().stages.len(), 64);
    assert!(outcome.efficiency().unwrap() > 0.8, "{:?}", outcome.efficiency());
}

#[test]
fn faults_at_every_point_leave_the_numbers_alone() {
    let scenario = scenario("faults");
    for seed in 0..40 {
        let outcome = scenario.run(seed).unwrap();
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

#[test]
fn a_seed_repeats_a_run_to_the_last_byte_of_its_picture() {
    let scenario = scenario("faults");
    let picture = |seed| timeline::svg(&scenario.run(seed).unwrap(), "faults", None);
    let first = picture(7);
    assert_eq!(first, picture(7));
    assert_ne!(first, picture(8));
    for needed in ["role=\"img\"", "<title", "<desc", "prefers-color-scheme:dark", ">phone 5<", ">step 1<"] {
        assert!(first.contains(needed), "{needed}");
    }
    assert_eq!(first.matches("<g>").count(), first.matches("</g>").count());
}

#[test]
fn names_from_a_scenario_are_text_in_the_picture() {
    let text = "title = \"<script>&\"\n[model]\nkind = \"toy\"\nblocks = 2\nmflop = 5\n[settings]\nsteps = 5\n[[devices]]\nname = \"<b>\"\n";
    let scenario = Scenario::parse(text).unwrap();
    let picture = timeline::svg(&scenario.run(0).unwrap(), &scenario.title, None);
    assert!(picture.contains("&lt;script&gt;&amp;") && picture.contains("&lt;b&gt;"));
    assert!(!picture.contains("<script") && !picture.contains("<b>"));
}

#[test]
fn a_device_is_given_no_more_than_it_has_the_memory_for() {
    let text =
        std::fs::read_to_string(format!("{}/scenarios/even.toml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let text = format!("{text}\n[[devices]]\nname = \"small\"\ngflops = 20\nmemory_mb = 50\n");
    let outcome = Scenario::parse(&text).unwrap().run(0).unwrap();
    assert_eq!(outcome.violation, None);
    let small = outcome.trace.lives.values().find(|life| life.name == "small").unwrap();
    assert!(small.gone.is_none() && small.peak_memory < 470e6);
    assert!(outcome.recoveries.is_empty());
}

#[test]
fn a_host_that_sleeps_holds_everybody_up_and_loses_nobody() {
    let text =
        std::fs::read_to_string(format!("{}/scenarios/even.toml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let text = text.replace("gflops = 200", "gflops = 200\nsleeps = [{ at = 20, seconds = 20 }]");
    let outcome = Scenario::parse(&text).unwrap().run(0).unwrap();
    assert_eq!(outcome.violation, None);
    assert!(outcome.trace.lives.values().all(|life| life.gone.is_none()));
    let longest = outcome.steps.iter().map(|step| step.took).max().unwrap();
    assert!(longest > Duration::from_secs(20));
    assert!(outcome.trace.lives.contains_key(&HOST));
}

#[test]
fn a_host_that_loads_its_page_anew_finds_its_devices_and_goes_on_from_its_checkpoint() {
    let text =
        std::fs::read_to_string(format!("{}/scenarios/even.toml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let reload = "[[faults]]\nwhat = \"reload_host\"\njob = \"backward\"\nnth = 20\ndevice = \"phone 2\"\n";
    let outcome = Scenario::parse(&format!("{text}\n{reload}")).unwrap().run(0).unwrap();
    assert_eq!(outcome.violation, None);
    assert_eq!(outcome.steps.len(), 6);
    // The same devices, which have their blocks still: nobody joined.
    assert_eq!(outcome.trace.lives.len(), 5);
    // Who is back first makes a step with what it has, and the last ones are made by all four again.
    let last = outcome.steps.last().unwrap().took;
    assert!(last < Duration::from_secs(9), "{last:?}");
    assert_eq!(outcome.plan.unwrap().stages.len(), 4);
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let good = "[model]\nkind = \"toy\"\nblocks = 2\nmflop = 5\n";
    assert!(Scenario::parse(good).is_ok());
    for (bad, line, words) in [
        ("[[devices]]\nname = \"a\"\nspeed = 3\n", 7, "unknown field `speed`"),
        ("[[devices]]\ngflops = -1\n", 6, "must be a number above 0"),
        ("[[devices]]\nloss = 1.0\n", 6, "less than 1"),
        ("[[devices]]\njoins_at = 5\nleaves_at = 4\n", 5, "leaves before it joins"),
        ("[[devices]]\nname = \"a\"\n[[devices]]\nname = \"a\"\n", 7, "two devices named \"a\""),
        ("[[devices]]\ncount = 2000\n", 5, "at most 1024 devices"),
        ("[[faults]]\nwhat = \"kill\"\ndevice = \"b\"\nat = 3\n", 5, "no device named \"b\""),
        ("[[faults]]\nwhat = \"kill\"\ndevice = \"host\"\nat = 3\n", 5, "cannot happen to the host"),
        ("[[faults]]\nwhat = \"pause\"\n", 5, "either the second"),
        ("[[faults]]\nwhat = \"burn\"\nat = 1\n", 6, "unknown variant `burn`"),
        ("[[links]]\nbetween = [\"host\", \"host\"]\n", 5, "between two devices"),
        ("[settings]\nsteps = \"many\"\n", 6, "expected u32"),
    ] {
        let error = Scenario::parse(&format!("{good}{bad}")).unwrap_err().to_string();
        assert!(error.contains(&format!("line {line}")) && error.contains(words), "{bad}{error}");
    }
    for (bad, words) in [
        ("[model]\nkind = \"toy\"\nblocks = 2\n", "line 1: a model of this kind needs `mflop`"),
        ("[model]\nkind = \"toy\"\nblocks = \"many\"\nmflop = 1\n", "line 3"),
        ("random_faults = 1000000000\n[model]\nkind = \"toy\"\nblocks = 2\nmflop = 1\n", "at most 1000"),
    ] {
        let error = Scenario::parse(bad).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = Scenario::parse(&format!("{good}[settings]\nsteps = 0\n")).unwrap_err().to_string();
    assert!(error.contains("steps is 0"), "{error}");
}

/// `even.toml` with other devices.
fn room(devices: &str) -> Scenario {
    // Enough for the ends.
    room_of(135, devices)
}

fn room_of(host_mb: u32, devices: &str) -> Scenario {
    Scenario::parse(&room_text(host_mb, devices)).unwrap()
}

fn room_text(host_mb: u32, devices: &str) -> String {
    let text =
        std::fs::read_to_string(format!("{}/scenarios/even.toml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (head, _) = text.split_once("[[devices]]").unwrap();
    format!("{head}memory_mb = {host_mb}\n{devices}")
}

#[test]
fn a_model_that_fits_nobody_is_refused_before_anything_is_fetched() {
    let outcome = room("[[devices]]\nname = \"phone\"\ncount = 2\nmemory_mb = 300\n").run(0).unwrap();
    let Some(Violation::Unfinished { phase, committed: 0, .. }) = &outcome.violation else {
        panic!("{:?}", outcome.violation)
    };
    for words in [
        "does not fit this room",
        "32-bit weights",
        "phone 1 would need",
        "and has 300 MB",
        "It would fit with",
    ] {
        assert!(phase.contains(words), "{words}: {phase}");
    }
    assert!(outcome.plan.is_none(), "nobody was told to fetch anything");
}

#[test]
fn who_is_left_without_the_memory_waits_and_is_not_overloaded() {
    let phones = "[[devices]]\nname = \"phone\"\ncount = 3\ngflops = 20\nmemory_mb = 470\n";
    let late = "[[devices]]\nname = \"late\"\ngflops = 20\nmemory_mb = 470\njoins_at = 60\n";
    let kill = "[[faults]]\nwhat = \"kill\"\ndevice = \"phone 2\"\nat = 20\n";
    let outcome = room(&format!("{phones}{late}{kill}")).run(0).unwrap();
    assert_eq!(outcome.violation, None);
    let (waited, asked_again) = outcome.pauses.split_first().unwrap();
    assert!(waited.contains("does not fit") && waited.contains("another device"), "{waited}");
    assert!(asked_again.iter().all(|words| words.contains("cannot go on alone")), "{asked_again:?}");
    assert!(outcome.trace.lives.values().all(|life| life.name == "host" || life.peak_memory < 470e6));
}

#[test]
fn a_host_that_cannot_hold_the_model_does_not_go_on_alone() {
    let phones = "[[devices]]\nname = \"phone\"\ncount = 3\ngflops = 20\nmemory_mb = 470\n";
    let kill = "[[faults]]\nwhat = \"kill\"\ndevice = \"phone 2\"\nat = 20\n";
    let outcome = room_of(150, &format!("{phones}{kill}")).run(0).unwrap();
    let words = outcome.pauses.join("\n");
    assert!(words.contains("cannot go on alone") && words.contains("and it has 150 MB"), "{words}");
    assert!(outcome.trace.lives[&HOST].peak_memory < 150e6, "{}", outcome.trace.lives[&HOST].peak_memory);
}

/// Three equal phones of which two have a bad way to each other.
fn with_a_bad_link(between: &str) -> f64 {
    let phones = "[[devices]]\nname = \"phone\"\ncount = 3\ngflops = 20\nlatency_ms = 3\nup_mbit = 50\ndown_mbit = 50\n";
    let link = format!("[[links]]\nbetween = {between}\nmbit = 0.1\n");
    let outcome = room_of(2000, &format!("{phones}{link}")).run(0).unwrap();
    assert_eq!(outcome.violation, None);
    outcome.steps.last().unwrap().took.as_secs_f64()
}

#[test]
fn a_slow_link_between_two_stages_is_found_and_planned_around() {
    let (beside, apart) =
        (with_a_bad_link("[\"phone 1\", \"phone 2\"]"), with_a_bad_link("[\"phone 1\", \"phone 3\"]"));
    assert!(beside < 1.1 * apart, "{beside} {apart}");
}

#[test]
fn a_device_whose_way_becomes_long_is_timed_again_and_planned_for() {
    let phones = "[[devices]]\nname = \"phone\"\ncount = 3\ngflops = 20\nlatency_ms = 3\nup_mbit = 50\ndown_mbit = 50\n";
    let lag = "[[faults]]\nwhat = \"lag\"\ndevice = \"phone 2\"\nat = 40\nby_ms = 700\n";
    let text = room_text(2000, &format!("{phones}{lag}")).replace("steps = 6", "steps = 20");
    let outcome = Scenario::parse(&text).unwrap().run(0).unwrap();
    assert_eq!(outcome.violation, None);
    let took: Vec<f64> = outcome.steps.iter().map(|step| step.took.as_secs_f64()).collect();
    // Without it two phones need 12.5 s, with it three need 15.7.
    assert!(took[5] > 15.0 && took[19] < 13.0, "{took:?}");
}

#[test]
fn a_host_takes_the_blocks_that_the_others_have_no_memory_for() {
    let phones = "[[devices]]\nname = \"phone\"\ncount = 2\nmemory_mb = 300\ngflops = 20\n";
    let outcome = room_of(700, phones).run(0).unwrap();
    assert_eq!(outcome.violation, None);
    let plan = outcome.plan.unwrap();
    let blocks: Vec<u16> = plan.stages.iter().flat_map(|(_, blocks)| blocks.clone()).collect();
    let own = blocks[0];
    assert!(own > 0 && plan.stages.len() == 2 && blocks == (own..28).collect::<Vec<_>>(), "{plan:?}");
    assert!(
        outcome
            .trace
            .lives
            .values()
            .all(|life| life.peak_memory < if life.name == "host" { 700e6 } else { 300e6 })
    );
}

/// Scenario text with lines replaced.
fn even_with(changes: &[(&str, &str)]) -> Outcome {
    let text =
        std::fs::read_to_string(format!("{}/scenarios/even.toml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let text = changes.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    let outcome = Scenario::parse(&text).unwrap().run(0).unwrap();
    assert_eq!(outcome.violation, None);
    outcome
}

fn step(outcome: &Outcome) -> f64 {
    outcome.step_time().unwrap().as_secs_f64()
}

#[test]
fn a_host_has_blocks_of_its_own_where_that_makes_steps_shorter() {
    const TARGETS: &str = "targets = [\"q_proj\", \"v_proj\"]";
    const FREE: &str = "targets = [\"q_proj\", \"v_proj\"]\nfree = [\"host_blocks\"]";
    let own = |outcome: &Outcome| outcome.plan.as_ref().unwrap().stages[0].1.start;
    for (gflops, phones) in [("gflops = 200", "count = 4"), ("gflops = 40", "count = 1")] {
        let room = [("gflops = 200", gflops), ("count = 4", phones)];
        let without = even_with(&room);
        let with = even_with(&[room[0], room[1], (TARGETS, FREE)]);
        assert_eq!(own(&without), 0);
        assert!(own(&with) > 0, "{gflops}");
        assert!(step(&with) < 0.9 * step(&without), "{} {}", step(&with), step(&without));
        // Whoever came takes part all the same, and the planner knew how long it takes.
        assert_eq!(with.plan.as_ref().unwrap().stages.len(), without.plan.as_ref().unwrap().stages.len());
        let predicted = with.prediction.as_ref().unwrap().step;
        assert!((predicted / step(&with) - 1.0).abs() < 0.1, "{predicted} {}", step(&with));
    }
    // A host that has enough to do with the ends has none.
    assert_eq!(own(&even_with(&[("gflops = 200", "gflops = 12"), (TARGETS, FREE)])), 0);
}

#[test]
fn a_step_is_cut_as_the_devices_and_their_links_ask_for() {
    const CUT: &str = "micro_batches = 8";
    const FREE: &str = "free = [\"micro_batches\"]";
    let cut = |outcome: &Outcome| outcome.plan.as_ref().unwrap().micro_batches;
    let with = |count: &str, more: &[(&str, &str)]| {
        let changes: Vec<_> = std::iter::once((CUT, count)).chain(more.iter().copied()).collect();
        even_with(&changes)
    };
    // What holds until the devices are known is 4.
    for link in ["latency_ms = 1.5", "latency_ms = 20"] {
        let link = [("latency_ms = 1.5", link)];
        let free = with(FREE, &link);
        let fixed = [1, 2, 4, 8].map(|count| step(&with(&format!("micro_batches = {count}"), &link)));
        let fastest = fixed.into_iter().fold(f64::INFINITY, f64::min);
        assert!(cut(&free) == 8 && step(&free) < 1.02 * fastest, "{} {fixed:?}", step(&free));
    }
    // A device that would not have the memory for four samples at once has it for one.
    let small = [("count = 4", "count = 1\nmemory_mb = 600")];
    let tight = with("micro_batches = 1\nfree = [\"micro_batches\"]", &small);
    assert!(cut(&tight) > 1 && tight.recoveries.is_empty(), "{:?}", tight.plan);
}

#[test]
fn more_micro_batches_are_in_flight_where_the_way_is_long_and_there_is_memory() {
    const CUT: &str = "micro_batches = 8";
    const FREE: &str = "micro_batches = 8\nfree = [\"ahead\"]";
    let ahead = |outcome: &Outcome| outcome.plan.as_ref().unwrap().ahead;
    let link = ("latency_ms = 1.5", "latency_ms = 20");
    let (without, with) = (even_with(&[link]), even_with(&[link, (CUT, FREE)]));
    assert_eq!(ahead(&without), 0);
    assert!(ahead(&with) > 0 && step(&with) < 0.96 * step(&without), "{} {}", step(&with), step(&without));
    // On a short way a few are enough; what they take of memory that is not there is not taken.
    let near = [("latency_ms = 1.5", ""), ("up_mbit = 200", ""), ("down_mbit = 200", ""), (CUT, FREE)];
    assert!(ahead(&even_with(&near)) <= 2 && ahead(&with) > 2, "{}", ahead(&with));
    let most = without.trace.lives.values().filter(|life| life.name != "host").map(|life| life.peak_memory);
    let memory = format!("count = 4\nmemory_mb = {}", most.fold(0.0, f64::max) / 1e6 + 5.0);
    let tight = even_with(&[link, (CUT, FREE), ("count = 4", &memory)]);
    assert_eq!(ahead(&tight), 0);
}

#[test]
fn who_lacks_the_memory_computes_activations_again_and_nobody_else() {
    const CUT: &str = "micro_batches = 8";
    const FREE: &str = "micro_batches = 8\nfree = [\"recompute\"]";
    let small = ("count = 4", "count = 3");
    let roomy = even_with(&[(CUT, FREE), small]);
    assert_eq!(roomy.plan.as_ref().unwrap().recompute, (false, vec![false; 3]));
    // All of the memory that the second of three has when it keeps everything.
    let most = roomy.trace.lives.values().filter(|life| life.name != "host").map(|life| life.peak_memory);
    let least = format!("count = 3\nmemory_mb = {}", most.fold(f64::INFINITY, f64::min) / 1e6 + 40.0);
    let tight = even_with(&[(CUT, FREE), ("count = 4", &least)]);
    let plan = tight.plan.as_ref().unwrap();
    assert!(plan.recompute.1.contains(&true) && plan.recompute.1.contains(&false), "{plan:?}");
    assert!(tight.recoveries.is_empty() && tight.trace.lives.values().all(|life| life.gone.is_none()));
}
