//! Cargo as a child of cargo: the same builds as one would start by hand.

use crate::workspace::Workspace;
use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::Command;

/// The target of the page.
pub(crate) const WASM: &str = "wasm32-unknown-unknown";

/// `cargo`, in the workspace's root.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let mut command = child(workspace, "cargo");
    // Cargo's output passes through us on its way to the terminal.
    if io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    command
}

/// Any program, in the workspace's root, with our tools first on its PATH.
pub(crate) fn child(workspace: &Workspace, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.current_dir(&workspace.root).env("CARGO_TARGET_DIR", &workspace.target);
    command.env("PATH", path_with_tools(workspace));
    // `cargo run` describes xtask to us. Build scripts that watch these variables (ring's does) would run again.
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&key);
        }
    }
    command
}

fn path_with_tools(workspace: &Workspace) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(workspace.tools.join("bin")).chain(env::split_paths(&path));
    env::join_paths(dirs).unwrap_or(path)
}

/// A test program of a package, built for the browser.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TestModule {
    /// The package's Cargo.toml.
    pub(crate) manifest: String,
    /// The wasm file.
    pub(crate) file: String,
}

/// The test program that a line of `--message-format=json` speaks of, if it speaks of one.
pub(crate) fn test_module(message: &str) -> Option<TestModule> {
    if !message.contains(r#""reason":"compiler-artifact""#) {
        return None;
    }
    // "test" alone says little: a target has a field of that name too.
    let profile = between(message, r#""profile":{"#, "}")?;
    if !profile.contains(r#""test":true"#) {
        return None;
    }
    let file = between(message, r#""executable":""#, "\"")?;
    let manifest = between(message, r#""manifest_path":""#, "\"")?;
    let unescape = |text: &str| text.replace(r"\\", r"\");
    Some(TestModule { manifest: unescape(manifest), file: unescape(file) })
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(found, _)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_libraries_and_binaries() {
        let message = |test: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/crates/formats/Cargo.toml","target":{{"kind":["lib"],"test":true}},"profile":{{"opt_level":"s","test":{test}}},"executable":{executable},"fresh":false}}"#
            )
        };
        let found =
            TestModule { manifest: "/w/crates/formats/Cargo.toml".into(), file: "/t/formats-1.wasm".into() };
        assert_eq!(test_module(&message("true", r#""/t/formats-1.wasm""#)), Some(found));
        assert_eq!(test_module(&message("true", "null")), None);
        assert_eq!(test_module(&message("false", r#""/t/baton.wasm""#)), None);
        assert_eq!(test_module(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
