//! Where things lie: the workspace, its build outputs, the tools; and what its lock file pins.

use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The directories that every command needs, all absolute.
pub(crate) struct Workspace {
    /// The root of the repository.
    pub(crate) root: PathBuf,
    /// Cargo's target directory: the one that this very program was built into.
    pub(crate) target: PathBuf,
    /// Where wasm-bindgen, trunk and the like are installed; shared by all clones.
    pub(crate) tools: PathBuf,
}

impl Workspace {
    /// Finds the workspace around the working directory.
    pub(crate) fn find() -> Result<Self> {
        let here = env::current_dir().context("the working directory is gone")?;
        let Some(root) = here.ancestors().find(|dir| dir.join("crates/xtask/Cargo.toml").is_file()) else {
            bail!("{} is not inside Baton's repository: change into it and run this again", here.display());
        };
        // <target>/release/xtask
        let program = env::current_exe().context("cannot tell where xtask itself lies")?;
        let Some(target) = program.parent().and_then(Path::parent) else {
            bail!("xtask runs from {}: run it as `cargo xtask`", program.display());
        };
        let tools = match env::var_os("BATON_TOOLS") {
            Some(dir) => here.join(dir),
            None => env::home_dir().context("no home directory: set BATON_TOOLS")?.join(".baton/tools"),
        };
        Ok(Self { root: root.to_owned(), target: target.to_owned(), tools })
    }

    /// The built page.
    pub(crate) fn dist(&self) -> PathBuf {
        self.root.join("dist")
    }

    /// A native binary of this workspace, as cargo names it.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.target.join("release").join(format!("{name}{}", env::consts::EXE_SUFFIX))
    }

    /// An installed tool.
    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        self.tools.join("bin").join(format!("{name}{}", env::consts::EXE_SUFFIX))
    }

    /// A directory for what xtask itself keeps between runs.
    pub(crate) fn cache(&self, name: &str) -> Result<PathBuf> {
        let dir = self.target.join("xtask").join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// The version of wasm-bindgen in Cargo.lock, which the command-line tool has to equal.
    pub(crate) fn wasm_bindgen_version(&self) -> Result<String> {
        let lock = self.read("Cargo.lock")?;
        let Some(locked) = locked_version(&lock, "wasm-bindgen") else {
            bail!("Cargo.lock has no package wasm-bindgen");
        };
        let trunk = self.read("Trunk.toml")?;
        match trunk_tool_version(&trunk, "wasm_bindgen") {
            Some(wanted) if wanted == locked => Ok(locked.to_owned()),
            wanted => bail!(
                "Cargo.lock has wasm-bindgen {locked}, Trunk.toml asks for {}: write {locked} into Trunk.toml",
                wanted.unwrap_or("none")
            ),
        }
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.root.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// The version of a package in a Cargo.lock; the first, where several are locked.
fn locked_version<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let mut lines = lock.lines();
    while let Some(line) = lines.next() {
        if quoted(line, "name") == Some(package) {
            return quoted(lines.next()?, "version");
        }
    }
    None
}

/// The version that a Trunk.toml asks of a tool.
fn trunk_tool_version<'a>(trunk: &'a str, tool: &str) -> Option<&'a str> {
    trunk
        .lines()
        .skip_while(|line| line.trim() != "[tools]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .find_map(|line| quoted(line, tool))
}

/// `value` of a line `key = "value"`.
fn quoted<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let rest = line.trim().strip_prefix(key)?.trim_start().strip_prefix('=')?;
    rest.trim_start().strip_prefix('"')?.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_gives_the_version_of_exactly_that_package() {
        let lock = "[[package]]\nname = \"wasm-bindgen-backend\"\nversion = \"0.1.0\"\n\n\
                    [[package]]\nname = \"wasm-bindgen\"\nversion = \"0.2.130\"\nsource = \"x\"\n";
        assert_eq!(locked_version(lock, "wasm-bindgen"), Some("0.2.130"));
        assert_eq!(locked_version(lock, "wasm"), None);
        assert_eq!(locked_version("name = \"wasm-bindgen\"", "wasm-bindgen"), None);
    }

    #[test]
    fn the_tools_of_trunk_are_read_from_their_own_table() {
        let trunk = "[build]\nwasm_bindgen = \"1\"\n[tools]\n# pinned\nwasm_bindgen = \"0.2.130\"\n[watch]\nsass = \"2\"\n";
        assert_eq!(trunk_tool_version(trunk, "wasm_bindgen"), Some("0.2.130"));
        assert_eq!(trunk_tool_version(trunk, "sass"), None);
        assert_eq!(trunk_tool_version("[build]\n", "wasm_bindgen"), None);
    }

    #[test]
    fn trunk_is_asked_for_the_wasm_bindgen_that_is_locked() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let workspace = Workspace { root, target: PathBuf::new(), tools: PathBuf::new() };
        workspace.wasm_bindgen_version().unwrap();
    }
}
