//! What a model's files are to every reader of a run: their sizes, and the sha256 of each of their chunks.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::files::{ChunkCache, Files, FilesError, Hash, check_name, sha256};

/// The chunk size of the manifests made here: 1 MiB, so that a model of 2 GB is 2,000 requests and 64 KB of hashes.
pub const CHUNK_SIZE: u32 = 1 << 20;

/// How much is read at a time to make a manifest, in whole chunks: each read of a hub costs a round trip.
const SPAN: u64 = 4 * CHUNK_SIZE as u64;

/// The chunk sizes that a reader takes: it holds one or two chunks in memory, whoever chose their size.
const CHUNK_SIZES: std::ops::RangeInclusive<u32> = 64 << 10..=4 << 20;

/// The most files, and the most chunks of all of them (64 GiB in chunks of 1 MiB, 2 MiB of hashes).
const MOST_FILES: usize = 1024;
const MOST_CHUNKS: u64 = 1 << 16;

/// What a model's files are. The host makes it, and every reader checks each byte against it, wherever it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Bytes of a chunk; the last one of a file may be shorter.
    pub chunk_size: u32,
    /// The files.
    pub files: Vec<ManifestFile>,
}

/// One file of a [`Manifest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The sha256 of each chunk, in order. Postcard writes them as they are, 32 bytes each.
    pub chunks: Vec<Hash>,
}

/// Why a manifest cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Chunks too small to be worth a request, or too large to be held.
    #[error("the manifest's chunks have {found} bytes; between 65536 and 4194304 are taken")]
    ChunkSize {
        /// The chunk size.
        found: u32,
    },
    /// More files than any model has.
    #[error("the manifest names {found} files, more than the {limit} that a model may have", limit = MOST_FILES)]
    Files {
        /// How many.
        found: usize,
    },
    /// A name that is none, or could reach elsewhere.
    #[error("the manifest names a file \"{name}\", which is not the name of a file")]
    BadName {
        /// The name.
        name: String,
    },
    /// The same name twice.
    #[error("the manifest names {name} twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// The hashes do not fit the size.
    #[error("the manifest gives {name} {size} bytes, which are {expected} chunks, and {found} hashes")]
    Chunks {
        /// The file's name.
        name: String,
        /// Its size in bytes.
        size: u64,
        /// The chunks that so many bytes are.
        expected: u64,
        /// The hashes given.
        found: u64,
    },
    /// More bytes than a run can have.
    #[error("the manifest has more than {limit} chunks, the most that is taken; the model is too large", limit = MOST_CHUNKS)]
    TooLarge,
}

impl Manifest {
    /// Reads every byte of the files once and writes their hashes down.
    ///
    /// `cache` gets the chunks on the way (`&()` keeps none): what was read here need not be fetched again to be trained
    /// or served. `on_bytes` hears how many bytes were read since it was last called.
    ///
    /// # Errors
    ///
    /// What `files` says; [`FilesError::TooLarge`] for a model that no manifest can hold.
    pub async fn make(
        files: &impl Files,
        names: &[String],
        cache: &impl ChunkCache,
        mut on_bytes: impl FnMut(u64),
    ) -> Result<Self, FilesError> {
        let mut manifest = Self { chunk_size: CHUNK_SIZE, files: Vec::with_capacity(names.len()) };
        let mut most = MOST_CHUNKS;
        for name in names {
            let size = files.size(name).await?;
            let count = size.div_ceil(u64::from(CHUNK_SIZE));
            most = most.checked_sub(count).ok_or_else(|| FilesError::TooLarge {
                name: name.clone(),
                size,
                limit: MOST_CHUNKS * u64::from(CHUNK_SIZE),
            })?;
            let mut chunks = Vec::new();
            let mut at = 0;
            while at < size {
                let end = size.min(at.saturating_add(SPAN));
                let bytes = files.read(name, at..end).await?;
                on_bytes(bytes.len() as u64);
                for chunk in bytes.chunks(CHUNK_SIZE as usize) {
                    let hash = sha256(chunk);
                    cache.put(&hash, chunk).await;
                    chunks.push(hash);
                }
                at = end;
            }
            manifest.files.push(ManifestFile { name: name.clone(), size, chunks });
        }
        Ok(manifest)
    }

    /// [`make`](Self::make), unless `cache` remembers what it made for the same `key` and names: then not a byte is read.
    ///
    /// A key has to mean the same bytes for ever, as that of a commit does
    /// ([`UrlFiles::identity`](crate::UrlFiles::identity)); without one it is always made.
    ///
    /// # Errors
    ///
    /// As `make`.
    pub async fn make_once(
        files: &impl Files,
        names: &[String],
        cache: &impl ChunkCache,
        key: Option<&Hash>,
        on_bytes: impl FnMut(u64),
    ) -> Result<Self, FilesError> {
        let same = |known: &Self| {
            known.check().is_ok() && known.files.iter().map(|file| &file.name).eq(names.iter())
        };
        if let Some(key) = key
            && let Some(note) = cache.recall(key).await
            && let Some(known) = serde_json::from_slice(&note).ok().filter(same)
        {
            return Ok(known);
        }
        let manifest = Self::make(files, names, cache, on_bytes).await?;
        if let Some(key) = key
            && let Ok(note) = serde_json::to_vec(&manifest)
        {
            cache.remember(key, &note).await;
        }
        Ok(manifest)
    }

    /// Checks a manifest that came from someone else: afterwards every chunk of every file has exactly one hash, and no
    /// name or size can do harm.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn check(&self) -> Result<(), ManifestError> {
        if !CHUNK_SIZES.contains(&self.chunk_size) {
            return Err(ManifestError::ChunkSize { found: self.chunk_size });
        }
        if self.files.len() > MOST_FILES {
            return Err(ManifestError::Files { found: self.files.len() });
        }
        let mut names = BTreeSet::new();
        let mut most = MOST_CHUNKS;
        for ManifestFile { name, size, chunks } in &self.files {
            check_name(name)
                .map_err(|_| ManifestError::BadName { name: name.chars().take(255).collect() })?;
            if !names.insert(name) {
                return Err(ManifestError::Twice { name: name.clone() });
            }
            let (expected, found) = (size.div_ceil(u64::from(self.chunk_size)), chunks.len() as u64);
            if expected != found {
                return Err(ManifestError::Chunks { name: name.clone(), size: *size, expected, found });
            }
            most = most.checked_sub(expected).ok_or(ManifestError::TooLarge)?;
        }
        Ok(())
    }

    /// What tells this manifest from every other: a sha256 of all that it says.
    pub fn id(&self) -> Hash {
        let mut hasher = Sha256::new();
        hasher.update(b"baton manifest 1\0");
        hasher.update(self.chunk_size.to_le_bytes());
        for file in &self.files {
            hasher.update((file.name.len() as u64).to_le_bytes());
            hasher.update(&file.name);
            hasher.update(file.size.to_le_bytes());
            hasher.update((file.chunks.len() as u64).to_le_bytes());
            for chunk in &file.chunks {
                hasher.update(chunk);
            }
        }
        hasher.finalize().into()
    }

    /// A file by its name.
    pub fn file(&self, name: &str) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// The bytes of all files together.
    pub fn size(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }

    /// The bytes of a chunk within its file, and their hash; `None` if there is no such file or chunk.
    pub fn chunk(&self, name: &str, index: u32) -> Option<(Range<u64>, &Hash)> {
        let file = self.file(name)?;
        let hash = file.chunks.get(usize::try_from(index).ok()?)?;
        Some((chunk_range(index.into(), self.chunk_size, file.size), hash))
    }
}

/// Where chunk `index` lies in a file of `size` bytes; empty past its end.
fn chunk_range(index: u64, chunk_size: u32, size: u64) -> Range<u64> {
    let start = index.saturating_mul(chunk_size.into()).min(size);
    start..start.saturating_add(chunk_size.into()).min(size)
}

#[cfg(test)]
#[cfg(not(target_arch = "wasm32"))]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::files::MemoryFiles;

    fn files() -> (MemoryFiles, Vec<String>) {
        let mut files = MemoryFiles::new();
        files.insert("config.json", *b"{}");
        files.insert("model.safetensors", vec![7; 6 * CHUNK_SIZE as usize + 5]);
        files.insert("empty", Vec::new());
        (files, ["config.json", "model.safetensors", "empty"].map(str::to_owned).to_vec())
    }

    fn manifest() -> Manifest {
        let (files, names) = files();
        block_on(Manifest::make(&files, &names, &(), |_| ())).unwrap()
    }

    #[test]
    fn every_chunk_of_every_file_is_in_it() {
        let (files, names) = files();
        let mut heard = 0;
        let manifest = block_on(Manifest::make(&files, &names, &(), |bytes| heard += bytes)).unwrap();
        assert_eq!(manifest.check(), Ok(()));
        assert_eq!(heard, manifest.size());
        assert_eq!(manifest.file("config.json").unwrap().chunks, [sha256(b"{}")]);
        assert_eq!(manifest.file("model.safetensors").unwrap().chunks[..6], [sha256(&[7; 1 << 20]); 6]);
        assert_eq!(manifest.file("empty").unwrap().chunks, [[0; 32]; 0]);
        let chunk = u64::from(CHUNK_SIZE);
        let (range, hash) = manifest.chunk("model.safetensors", 6).unwrap();
        assert_eq!((range, *hash), (6 * chunk..6 * chunk + 5, sha256(&[7; 5])));
        assert_eq!(manifest.chunk("model.safetensors", 7), None);
        assert_eq!(manifest.chunk("none", 0), None);
    }

    #[test]
    fn a_manifest_is_made_once_for_a_key_and_the_same_names() {
        let directory = tempfile::tempdir().unwrap();
        let cache = crate::files::DirCache::new(directory.path(), 1 << 30);
        let (files, names) = files();
        let once = |names: &[String], key: Option<&Hash>| {
            let mut heard = 0;
            let made = block_on(Manifest::make_once(&files, names, &cache, key, |bytes| heard += bytes));
            (made.unwrap(), heard > 0)
        };
        assert_eq!(once(&names, None), (manifest(), true));
        assert_eq!(once(&names, Some(&[1; 32])), (manifest(), true));
        assert_eq!(once(&names, Some(&[1; 32])), (manifest(), false));
        assert!(once(&names, Some(&[2; 32])).1);
        assert!(once(&names[..2], Some(&[1; 32])).1);
    }

    #[test]
    fn any_change_changes_its_id() {
        let same = manifest();
        assert_eq!(same.id(), manifest().id());
        let mut ids = BTreeSet::from([same.id()]);
        let mut changed: [Manifest; 4] = std::array::from_fn(|_| manifest());
        changed[0].files[1].chunks[1][31] ^= 1;
        changed[1].files[0].size += 1;
        changed[2].files[0].name.push('x');
        changed[3].chunk_size *= 2;
        for manifest in changed {
            assert!(ids.insert(manifest.id()));
        }
    }

    #[test]
    fn a_manifest_that_lies_is_refused() {
        let with = |change: fn(&mut Manifest)| {
            let mut manifest = manifest();
            change(&mut manifest);
            manifest.check().unwrap_err()
        };
        assert_eq!(with(|m| m.chunk_size = 0), ManifestError::ChunkSize { found: 0 });
        assert_eq!(with(|m| m.chunk_size = u32::MAX), ManifestError::ChunkSize { found: u32::MAX });
        assert!(matches!(with(|m| m.files[0].size = u64::MAX), ManifestError::Chunks { found: 1, .. }));
        assert!(matches!(with(|m| m.files[1].chunks.truncate(2)), ManifestError::Chunks { expected: 7, .. }));
        assert!(matches!(with(|m| m.files[0].name = "../x".into()), ManifestError::BadName { .. }));
        assert!(matches!(with(|m| m.files[0].name = "empty".into()), ManifestError::Twice { .. }));
        assert_eq!(with(|m| m.files = vec![m.files[2].clone(); 1025]), ManifestError::Files { found: 1025 });
        let too_large = with(|m| {
            m.files[1].size = 65536 * u64::from(CHUNK_SIZE);
            m.files[1].chunks = vec![[0; 32]; 65536];
        });
        assert_eq!(too_large, ManifestError::TooLarge);
    }
}
