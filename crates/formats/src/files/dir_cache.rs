//! Chunks in a directory of this machine, each in a file named by its sha256.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::FilesError;
use super::cache::{ChunkCache, Entry, Hash, Kept, to_evict};

/// What the cache of the command line may hold unless it is told otherwise: 16 GiB.
const STANDARD_LIMIT: u64 = 16 << 30;

/// No chunk is larger (a manifest's are 4 MiB at most): a file that is was not written here.
const LONGEST: u64 = 16 << 20;

/// A directory of chunks; the least recently used go first. Several processes may share it.
#[derive(Debug)]
pub struct DirCache {
    path: PathBuf,
    limit: u64,
    /// The bytes held, as far as this process knows; counted at the first `put`.
    held: Mutex<Option<u64>>,
}

impl DirCache {
    /// The chunks in `path`, at most `limit` bytes of them. The directory is made when there is something to keep.
    pub fn new(path: impl Into<PathBuf>, limit: u64) -> Self {
        Self { path: path.into(), limit, held: Mutex::new(None) }
    }

    /// The cache of the command line: in `$BATON_CACHE`, or else in `baton` below `$XDG_CACHE_HOME` or `~/.cache`.
    /// `None` where none of them is set.
    pub fn standard() -> Option<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = set("BATON_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("baton")))
            .or_else(|| set("HOME").map(|home| home.join(".cache/baton")))?;
        Some(Self::new(path, STANDARD_LIMIT))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of all chunks in it.
    pub fn usage(&self) -> u64 {
        self.entries().iter().map(|entry| entry.size).sum()
    }

    /// Deletes every chunk, and nothing else that may be in the directory.
    ///
    /// # Errors
    ///
    /// When a chunk cannot be deleted.
    pub fn clear(&self) -> Result<(), FilesError> {
        for entry in self.entries() {
            fs::remove_file(&entry.key).map_err(|error| FilesError::Io {
                name: entry.key.display().to_string(),
                reason: error.to_string(),
            })?;
        }
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    fn entries(&self) -> Vec<Entry<PathBuf>> {
        let Ok(directory) = fs::read_dir(&self.path) else { return Vec::new() };
        let entry = |found: fs::DirEntry| {
            Kept::from_name(found.file_name().to_str()?)?;
            let metadata = found.metadata().ok().filter(fs::Metadata::is_file)?;
            let age = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            let used = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
            Some(Entry { key: found.path(), size: metadata.len(), used })
        };
        directory.filter_map(Result::ok).filter_map(entry).collect()
    }

    fn read(&self, kept: Kept) -> Option<Vec<u8>> {
        let path = self.path.join(kept.name());
        let file = File::open(&path).ok()?;
        let mut bytes = Vec::new();
        (&file).take(LONGEST).read_to_end(&mut bytes).ok()?;
        let Some(bytes) = kept.open(bytes) else {
            // A torn write, a failing disk, or a hand: fetched again.
            let _ = fs::remove_file(&path);
            return None;
        };
        // On a read-only disk it is merely forgotten sooner.
        let _ = file.set_modified(SystemTime::now());
        Some(bytes)
    }

    fn keep(&self, kept: Kept, bytes: &[u8]) {
        let bytes = kept.wrap(bytes);
        let wanted = bytes.len() as u64;
        let there = matches!(kept, Kept::Chunk(_)) && self.path.join(kept.name()).is_file();
        if there || wanted > self.limit.min(LONGEST) {
            return;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = held.unwrap_or_else(|| self.usage()).saturating_add(wanted);
        if now > self.limit {
            // A tenth more than must go, so that the next chunk does not read the directory again.
            for old in to_evict(self.entries(), wanted, self.limit - self.limit / 10) {
                // Another process may have been first.
                let _ = fs::remove_file(old);
            }
            now = self.usage().saturating_add(wanted);
        }
        *held = Some(now);
        // A full disk is no reason to stop: the chunk is used without being kept.
        let _ = self.write(&kept.name(), &bytes);
    }

    /// Writes beside and renames: a file is there whole or not at all.
    fn write(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        fs::create_dir_all(&self.path)?;
        let beside = self.path.join(format!("{name}.{}.part", std::process::id()));
        let written = File::create(&beside)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&beside, self.path.join(name)));
        if written.is_err() {
            // It may never have been there.
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

impl ChunkCache for DirCache {
    async fn get(&self, hash: &Hash) -> Option<Vec<u8>> {
        self.read(Kept::Chunk(*hash))
    }

    async fn put(&self, hash: &Hash, bytes: &[u8]) {
        self.keep(Kept::Chunk(*hash), bytes);
    }

    async fn recall(&self, key: &Hash) -> Option<Vec<u8>> {
        self.read(Kept::Note(*key))
    }

    async fn remember(&self, key: &Hash, note: &[u8]) {
        self.keep(Kept::Note(*key), note);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::executor::block_on;

    use super::*;
    use crate::files::{hex, sha256};

    fn chunk(byte: u8) -> (Hash, Vec<u8>) {
        (sha256(&[byte; 100]), vec![byte; 100])
    }

    fn keep(cache: &DirCache, byte: u8, age: u64) -> PathBuf {
        let (hash, bytes) = chunk(byte);
        block_on(cache.put(&hash, &bytes));
        let path = cache.path().join(hex(&hash));
        let then = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        path
    }

    #[test]
    fn chunks_outlive_the_process_and_the_oldest_go_first() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DirCache::new(directory.path().join("deep/chunks"), 350);
        assert_eq!((cache.usage(), block_on(cache.get(&chunk(1).0))), (0, None));
        let paths = [keep(&cache, 1, 30), keep(&cache, 2, 20), keep(&cache, 3, 10)];
        let again = DirCache::new(cache.path(), 350);
        // Used, and so no longer the oldest.
        assert_eq!(block_on(again.get(&chunk(1).0)), Some(chunk(1).1));
        assert_eq!(again.usage(), 300);
        keep(&again, 4, 0);
        assert_eq!(paths.map(|path| path.is_file()), [true, false, true]);
        assert_eq!(again.usage(), 300);
    }

    #[test]
    fn a_damaged_chunk_is_deleted_and_not_given() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DirCache::new(directory.path(), 1000);
        for damage in [&[1; 99][..], &[2; 100], &[1; 101], &[]] {
            let path = keep(&cache, 1, 0);
            fs::write(&path, damage).unwrap();
            assert_eq!(block_on(cache.get(&chunk(1).0)), None);
            assert!(!path.exists());
        }
        keep(&cache, 1, 0);
        assert!(block_on(cache.get(&chunk(1).0)).is_some());
    }

    #[test]
    fn a_note_is_remembered_and_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DirCache::new(directory.path(), 1000);
        assert_eq!(block_on(cache.recall(&[7; 32])), None);
        for note in [&b"one"[..], b"", b"another"] {
            block_on(cache.remember(&[7; 32], note));
            assert_eq!(block_on(cache.recall(&[7; 32])).unwrap(), note);
        }
        cache.clear().unwrap();
        assert_eq!(block_on(cache.recall(&[7; 32])), None);
    }

    #[test]
    fn clearing_leaves_what_is_not_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DirCache::new(directory.path(), 1000);
        let path = keep(&cache, 1, 0);
        let notes = directory.path().join("notes.txt");
        fs::write(&notes, "mine").unwrap();
        cache.clear().unwrap();
        assert!(notes.exists() && !path.exists());
    }

    #[test]
    fn where_nothing_can_be_written_nothing_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let cache = DirCache::new(file.join("below a file"), 1000);
        let (hash, bytes) = chunk(1);
        block_on(cache.put(&hash, &bytes));
        assert_eq!(block_on(cache.get(&hash)), None);
    }
}
