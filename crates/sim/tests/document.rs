//! `docs/simulator.md` says what a scenario may: every key, every word and every fault, and nothing else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use baton_sim::outcome::End;
use baton_sim::scenario::Scenario;
use std::collections::BTreeSet;

fn document() -> String {
    std::fs::read_to_string(format!("{}/../../docs/simulator.md", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// What stands between backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(String::from).collect()
}

/// First entries of a section's tables, until the next heading.
fn rows(section: &str) -> Vec<(String, String)> {
    let text = document();
    let (_, rest) = text.split_once(&format!("\n{section}\n")).unwrap_or_else(|| panic!("no {section}"));
    let rest = rest.lines().take_while(|line| !line.starts_with('#'));
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.splitn(2, "` | ");
        Some((cells.next()?.to_string(), cells.next()?.to_string()))
    };
    rest.filter_map(row).collect()
}

fn keys(section: &str) -> BTreeSet<String> {
    rows(section).into_iter().map(|(key, _)| key).collect()
}

/// What the reader of scenarios says that it expects in the place of a word that it does not know.
fn expected(scenario: &str) -> BTreeSet<String> {
    let error = Scenario::parse(scenario).unwrap_err().to_string();
    let (_, words) = error.split_once("expected ").unwrap_or_else(|| panic!("{error}"));
    quoted(words)
}

const MODEL: &str = "[model]\nkind = \"toy\"\nblocks = 2\nmflop = 5\n";

#[test]
fn every_key_is_documented_and_every_documented_key_is_one() {
    for (section, scenario) in [
        ("## The file", "zzz = 1".into()),
        ("## `[model]`", "[model]\nzzz = 1".into()),
        ("## `[settings]`", format!("{MODEL}[settings]\nzzz = 1")),
        ("## `[host]` and `[[devices]]`", format!("{MODEL}[host]\nzzz = 1")),
        ("## `[host]` and `[[devices]]`", format!("{MODEL}[[devices]]\nzzz = 1")),
        ("### `thermal`", format!("{MODEL}[[devices]]\nthermal = {{ zzz = 1 }}")),
        ("### `sleeps`", format!("{MODEL}[[devices]]\nsleeps = [{{ zzz = 1 }}]")),
        ("## `[[links]]`", format!("{MODEL}[[links]]\nzzz = 1")),
    ] {
        assert_eq!(keys(section), expected(&scenario), "{section}");
    }
    let both = [format!("{MODEL}[[faults]]\nzzz = 1"), format!("{MODEL}[[faults]]\nwhat = \"zzz\"")];
    let both: BTreeSet<String> = both.iter().flat_map(|scenario| expected(scenario)).collect();
    assert_eq!(keys("## `[[faults]]`"), both);
}

#[test]
fn every_word_that_a_key_takes_is_documented() {
    for (section, key, scenario) in [
        ("## `[model]`", "kind", "[model]\nkind = \"zzz\"".into()),
        ("## `[settings]`", "boundary", format!("{MODEL}[settings]\nboundary = \"zzz\"")),
        ("## `[settings]`", "backbone", format!("{MODEL}[settings]\nbackbone = \"zzz\"")),
        ("## `[settings]`", "free", format!("{MODEL}[settings]\nfree = [\"zzz\"]")),
        ("## `[settings]`", "aim", format!("{MODEL}[settings]\naim = \"zzz\"")),
        ("## `[[faults]]`", "job", format!("{MODEL}[[faults]]\njob = \"zzz\"")),
    ] {
        let row = rows(section).into_iter().find(|(name, _)| name == key).unwrap().1;
        let missing: Vec<String> = expected(&scenario).difference(&quoted(&row)).cloned().collect();
        assert_eq!(missing, Vec::<String>::new(), "{key}: {row}");
    }
    let targets = rows("## `[settings]`").into_iter().find(|(name, _)| name == "targets").unwrap().1;
    let names: BTreeSet<String> = baton_sim::cost::PROJECTIONS.map(String::from).into();
    assert_eq!(quoted(&targets), names);
}

#[test]
fn the_example_is_a_scenario_and_its_faults_come() {
    let text = document();
    let example = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let scenario = Scenario::parse(example).unwrap();
    assert_eq!(scenario.seed, 7);
    let outcome = scenario.run(scenario.seed).unwrap();
    assert_eq!((&outcome.end, outcome.missed.len()), (&End::Done, 0), "{}", outcome.table());
    assert_eq!(outcome.incidents.len(), 3, "{}", outcome.table());
}

#[test]
fn what_a_fault_needs_is_what_is_asked_for() {
    let devices = "[[devices]]\ncount = 2\n";
    let value = |key: &str| match key {
        "device" => "device = \"phone 1\"",
        "from" => "from = \"phone 2\"",
        "seconds" => "seconds = 2",
        "by_ms" => "by_ms = 2",
        "factor" => "factor = 2",
        key => panic!("{key}"),
    };
    let faults: Vec<_> =
        rows("## `[[faults]]`").into_iter().filter(|(_, row)| row.matches(" | ").count() == 1).collect();
    assert_eq!(faults.len(), 16, "{faults:?}");
    for (fault, row) in faults {
        let needs: Vec<String> = quoted(row.split(" | ").nth(1).unwrap_or_default()).into_iter().collect();
        let with = |keys: &[String]| {
            let keys: Vec<&str> = keys.iter().map(|key| value(key)).collect();
            let fault = format!("[[faults]]\nwhat = \"{fault}\"\nat = 3\n{}\n", keys.join("\n"));
            Scenario::parse(&format!("{MODEL}{devices}{fault}"))
        };
        with(&needs).unwrap_or_else(|error| panic!("{fault}: {error}"));
        for left_out in &needs {
            let fewer: Vec<String> = needs.iter().filter(|key| *key != left_out).cloned().collect();
            assert!(with(&fewer).is_err(), "{fault} without {left_out}");
        }
    }
}
