//! The page: built by trunk, and compressed once, so that the server does not compress it for every phone.

use crate::cargo::{self, WASM};
use crate::process::{self, spell};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::HashSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

/// What a first build of the page takes on two cores: 13 to 14 minutes with WebGPU, 3 to 4 for the CPU's.
const FIRST_BUILD_MINUTES: u32 = 17;

const COMPRESSED: [&str; 5] = ["wasm", "js", "css", "html", "json"];

/// Builds the page into `dist/`. The tools have to be there.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    if !workspace.root.join("index.html").is_file() {
        bail!("there is no index.html in {}: there is no page to build", workspace.root.display());
    }
    if !workspace.target.join(WASM).join("release/engine-gpu.wasm").is_file() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        println!(
            "   The first build compiles burn with WebGPU and takes about {FIRST_BUILD_MINUTES} minutes on 2 cores \
             (this machine has {cores}). Later ones take seconds."
        );
    }
    let mut trunk = cargo::child(workspace, workspace.tool("trunk"));
    trunk.arg("build").env("TRUNK_SKIP_VERSION_CHECK", "true");
    // trunk reads NO_COLOR as a boolean and refuses the customary `1`.
    if env::var_os("NO_COLOR").is_some() {
        trunk.env_remove("NO_COLOR").env("TRUNK_COLOR", "never");
    }
    process::run(&mut trunk)?;
    compress(&workspace.dist(), &workspace.cache("gzip")?)
}

/// Puts a `.gz` beside every file worth it. Trunk empties `dist` at each build, so what was compressed before is kept in
/// `cache` by its contents.
fn compress(dist: &Path, cache: &Path) -> Result<()> {
    let started = Instant::now();
    let mut files = Vec::new();
    collect(dist, &mut files)?;
    let mut kept = HashSet::new();
    let (mut raw, mut packed, mut fresh) = (0, 0, 0);
    for file in &files {
        let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&content);
        let name = OsString::from(format!("{:016x}-{}.gz", hasher.finish(), content.len()));
        let cached = cache.join(&name);
        if !cached.is_file() {
            // Renamed when it is whole: an interrupted run leaves nothing that looks done.
            let part = cached.with_extension("part");
            fs::write(&part, gzip(&content)?).with_context(|| format!("cannot write {}", part.display()))?;
            fs::rename(&part, &cached).with_context(|| format!("cannot write {}", cached.display()))?;
            fresh += 1;
        }
        let mut beside = file.clone().into_os_string();
        beside.push(".gz");
        packed += fs::copy(&cached, &beside).with_context(|| format!("cannot write {}", beside.display()))?;
        raw += content.len();
        kept.insert(name);
    }
    forget_others(cache, &kept)?;
    println!(
        "   gzip: {} files, {:.1} MB to {:.1} MB, {fresh} of them new, in {}",
        files.len(),
        raw as f64 / 1e6,
        packed as f64 / 1e6,
        spell(started.elapsed())
    );
    Ok(())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|ext| COMPRESSED.iter().any(|known| ext == *known)) {
            files.push(path);
        }
    }
    Ok(())
}

fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).and_then(|()| encoder.finish()).context("cannot compress")
}

fn forget_others(cache: &Path, kept: &HashSet<OsString>) -> Result<()> {
    for entry in fs::read_dir(cache).with_context(|| format!("cannot read {}", cache.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", cache.display()))?;
        if !kept.contains(&entry.file_name()) {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    fn unzip(file: &Path) -> Vec<u8> {
        let mut content = Vec::new();
        GzDecoder::new(fs::File::open(file).unwrap()).read_to_end(&mut content).unwrap();
        content
    }

    #[test]
    fn each_page_file_gets_its_own_content_compressed_and_stale_copies_go() {
        let dir = env::temp_dir().join(format!("baton-xtask-gzip-{}", std::process::id()));
        let (dist, cache) = (dir.join("dist"), dir.join("cache"));
        fs::create_dir_all(dist.join("snippets")).unwrap();
        fs::create_dir_all(&cache).unwrap();
        fs::write(dist.join("a.js"), "one").unwrap();
        fs::write(dist.join("snippets/b.wasm"), "two").unwrap();
        fs::write(dist.join("icon.png"), "png").unwrap();
        compress(&dist, &cache).unwrap();
        assert_eq!(unzip(&dist.join("a.js.gz")), b"one");
        assert_eq!(unzip(&dist.join("snippets/b.wasm.gz")), b"two");
        assert!(!dist.join("icon.png.gz").exists());

        fs::write(dist.join("a.js"), "new").unwrap();
        compress(&dist, &cache).unwrap();
        assert_eq!(unzip(&dist.join("a.js.gz")), b"new");
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 2);
        fs::remove_dir_all(&dir).unwrap();
    }
}
