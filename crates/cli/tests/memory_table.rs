//! `baton memory`: what is said of a room is labelled with what was computed, and what cannot be is refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{baton, fails, refuses};
use serde_json::Value;

#[test]
fn rooms_of_no_device_and_what_is_no_number_are_refused_with_what_is_wanted() {
    for devices in ["0", "1,0", "x", "-1", "10001"] {
        let error = refuses(&["memory", "gpt2", &format!("--devices={devices}")]);
        let wanted = "whole numbers from 1 to 10,000, separated by commas";
        assert!(error.contains("--devices") && error.contains(wanted), "{devices}: {error}");
    }
    let error = refuses(&["inspect", "none", "--phones", "two"]);
    assert!(error.contains("--phones") && error.contains("separated by commas"), "{error}");
    assert!(baton(&["memory", "--help"]).contains("[default: 1,2,3,4]"));
    assert!(baton(&["inspect", "--help"]).contains("[default: 1,2,4]"));
}

#[test]
fn samples_longer_than_a_model_has_positions_are_labelled_as_they_were_counted() {
    let long = baton(&["memory", "bert-base", "gpt2", "smollm2-135m", "--seq-len", "4096", "--devices", "2"]);
    for part in [
        "at most 4,096 tokens each",
        "| bert-base, 512 tokens | 2 |",
        "| gpt2, 1,024 tokens | 2 |",
        "| smollm2-135m | 2 |",
        "Note: bert-base has 512 positions and no more",
        "Note: gpt2 has 1,024 positions and no more",
    ] {
        assert!(long.contains(part), "no \"{part}\" in:\n{long}");
    }
    assert_eq!(long.matches("Note:").count(), 2, "{long}");
    // What was counted is what is counted for a sample of that length.
    let tokens = |length: &str| -> Value {
        serde_json::from_str(&baton(&["memory", "gpt2", "--seq-len", length, "--json"])).unwrap()
    };
    assert_eq!(tokens("100000"), tokens("1024"));
    assert_eq!(tokens("100000")[0]["tokens"], 1024);
    let short = baton(&["memory", "gpt2", "--seq-len", "1024"]);
    assert!(!short.contains("Note:") && short.contains(", 1,024 tokens each"), "{short}");
}

#[test]
fn blocks_that_the_host_cannot_have_are_refused() {
    let error = fails(&["memory", "bert-base", "--host-blocks", "12"]);
    assert!(error.contains("bert-base has 12 blocks") && error.contains("give 0 to 11"), "{error}");
    let room: Value = serde_json::from_str(&baton(&[
        "memory",
        "bert-base",
        "--host-blocks",
        "11",
        "--devices",
        "2",
        "--json",
    ]))
    .unwrap();
    assert_eq!(room[0]["rooms"][0]["loads"][0]["blocks"], serde_json::json!([0, 11]));
}

#[test]
fn devices_that_would_hold_nothing_are_told() {
    let table = baton(&["memory", "bert-base", "--host-blocks", "0", "--devices", "13,14,1000"]);
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| bert-base")).collect();
    assert!(!rows[0].contains("no block"), "{table}");
    assert!(rows[1].contains("(1), one more has no block |"), "{table}");
    assert!(rows[2].contains("(1), 987 more have no block |"), "{table}");
}

#[test]
fn storage_is_named_as_its_flag_names_it() {
    for name in ["f32", "bf16", "int8", "nf4"] {
        let table = baton(&["memory", "gpt2", "--devices", "1", "--backbone", name]);
        assert!(table.contains(&format!("weights in {name},")), "{table}");
    }
}
