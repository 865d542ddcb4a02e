//! `baton simulate`: tables, timelines and campaigns from the command line.

use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_baton")).arg("simulate").args(arguments).output().expect("baton runs")
}

fn scenario(name: &str) -> String {
    format!("{}/../sim/scenarios/{name}.toml", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_scenario_gives_a_table_and_a_picture() {
    let folder = tempfile::tempdir().expect("a folder");
    let picture = folder.path().join("room.svg");
    let picture = picture.to_str().expect("a path");
    let done = simulate(&[&scenario("even"), "--timeline", picture, "--window", "10..30"]);
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}{}", String::from_utf8_lossy(&done.stderr));
    assert!(told.contains("6 of 6 steps") && told.contains("phone 4") && told.contains("bound of the plan"));
    assert!(std::fs::read_to_string(picture).expect("written").starts_with("<svg"));
}

#[test]
fn many_seeds_and_campaigns_are_summed_up() {
    let done = simulate(&[&scenario("faults"), "--runs", "5", "--seed", "3"]);
    assert!(done.status.success());
    assert!(String::from_utf8_lossy(&done.stdout).contains("5 runs from seed 3: 60 steps"));
    let done = simulate(&["--campaign", "--runs", "20", "--threads", "1"]);
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}");
    assert!(told.contains("20 runs, 100 steps") && told.contains("faults: "));
}

#[test]
fn what_is_wrong_is_told_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "[model]\nkind = \"toy\"\nblocks = \"many\"\nmflop = 1\n").expect("written");
    let done = simulate(&[file.to_str().expect("a path")]);
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(
        !done.status.success() && told.contains("is not a scenario") && told.contains("line 3"),
        "{told}"
    );
    assert!(!simulate(&[]).status.success());
    assert!(!simulate(&[&scenario("even"), "--timeline", "a.svg", "--window", "3..1"]).status.success());
}
