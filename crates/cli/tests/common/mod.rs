//! Running the binary.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::{Command, Output};

/// The shared models and data, beside the repository; none where they are not there.
#[allow(dead_code, reason = "not every test file needs them")]
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("NOTICE: {} is not there, so this test checks nothing", path.display());
    None
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_baton")).args(arguments).output().expect("the binary runs")
}

/// Runs `baton` and gives its standard output.
pub(crate) fn baton(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "baton {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs `baton`, which must fail in words and without a panic, and gives what it says.
#[allow(dead_code, reason = "not every test file has failures")]
pub(crate) fn fails(arguments: &[&str]) -> String {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "baton {arguments:?}: {said}");
    assert!(output.stdout.is_empty() && !said.contains("panicked"), "{said}");
    said
}
