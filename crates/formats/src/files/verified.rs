//! Files whose every byte is checked against a manifest, from whoever has them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cache::{ChunkCache, Hash, hex, sha256};
use super::{Files, FilesError, check_name, check_range, lone_gguf};
use crate::manifest::{Manifest, ManifestError};

/// Chunks held in memory: the last one, and the one before, for tensors that lie across the two.
const HELD: usize = 2;

/// Someone who may have chunks: a neighbour, the host, the hub.
#[allow(async_fn_in_trait)]
pub trait ChunkSource {
    /// Chunk `index` of `file`, which has `length` bytes with the sha256 `hash`; `None` if it is not to be had here.
    ///
    /// The answer is checked by whoever asked. A source takes care that no more than `length` bytes are ever held.
    async fn chunk(
        &self,
        file: &str,
        index: u32,
        hash: &Hash,
        length: usize,
    ) -> Result<Option<Vec<u8>>, FilesError>;
}

/// [`Files`] as a source of chunks: the hub, or the folder that the model is in.
#[derive(Clone, Debug)]
pub struct FilesSource<F> {
    files: F,
    chunk_size: u32,
}

impl<F: Files> FilesSource<F> {
    /// Files cut into chunks as `manifest` says.
    pub fn new(files: F, manifest: &Manifest) -> Self {
        Self { files, chunk_size: manifest.chunk_size }
    }

    /// The files.
    pub fn files(&self) -> &F {
        &self.files
    }
}

impl<F: Files> ChunkSource for FilesSource<F> {
    async fn chunk(
        &self,
        file: &str,
        index: u32,
        _: &Hash,
        length: usize,
    ) -> Result<Option<Vec<u8>>, FilesError> {
        let start = u64::from(index) * u64::from(self.chunk_size);
        self.files.read(file, start..start.saturating_add(length as u64)).await.map(Some)
    }
}

/// What came from where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes from the cache.
    pub cache: u64,
    /// Bytes from each source, in their order.
    pub sources: Vec<u64>,
    /// Chunks that came and were not what they should be.
    pub refused: u64,
}

/// Files whose every byte is checked: whole chunks from the cache, or else from the first source that has them.
///
/// A source that fails or answers wrongly is passed over for that chunk. At most two chunks are held beside the bytes that
/// are asked for.
#[derive(Debug)]
pub struct VerifiedFiles<S, C = ()> {
    manifest: Manifest,
    sources: Vec<S>,
    cache: C,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last one fetched is last.
    held: VecDeque<(Hash, Arc<Vec<u8>>)>,
    stats: Stats,
}

impl<S: ChunkSource, C: ChunkCache> VerifiedFiles<S, C> {
    /// The files of `manifest`, from `sources` in their order.
    ///
    /// # Errors
    ///
    /// When the manifest does not hold together.
    pub fn new(manifest: Manifest, sources: Vec<S>, cache: C) -> Result<Self, ManifestError> {
        manifest.check()?;
        let stats = Stats { sources: vec![0; sources.len()], ..Stats::default() };
        let state = Mutex::new(State { stats, ..State::default() });
        Ok(Self { manifest, sources, cache, state })
    }

    /// What the files are.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The places that chunks come from.
    pub fn sources(&self) -> &[S] {
        &self.sources
    }

    /// What came from where so far.
    pub fn stats(&self) -> Stats {
        self.state().stats.clone()
    }

    /// A whole chunk, checked: also what a device gives to its neighbour.
    ///
    /// # Errors
    ///
    /// When no source has it: [`FilesError::WrongHash`] if one had something else, or else what the last one said.
    pub async fn chunk(&self, file: &str, index: u32) -> Result<Arc<Vec<u8>>, FilesError> {
        let (range, hash) = self
            .manifest
            .chunk(file, index)
            .ok_or_else(|| FilesError::NotFound { name: format!("chunk {index} of {file}") })?;
        let length = check_range(file, &range, range.end)?;
        if let Some(bytes) = self.held(hash) {
            return Ok(bytes);
        }
        if let Some(bytes) = self.cache.get(hash).await.filter(|bytes| bytes.len() == length) {
            self.state().stats.cache += length as u64;
            return Ok(self.hold(hash, bytes));
        }
        let (mut wrong, mut failed) = (None, None);
        for (at, source) in self.sources.iter().enumerate() {
            let bytes = match source.chunk(file, index, hash, length).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            };
            let found = sha256(&bytes);
            if found != *hash {
                self.state().stats.refused += 1;
                wrong = Some(FilesError::WrongHash {
                    name: file.to_owned(),
                    start: range.start,
                    end: range.end,
                    expected: hex(hash),
                    found: hex(&found),
                });
                continue;
            }
            if let Some(count) = self.state().stats.sources.get_mut(at) {
                *count += length as u64;
            }
            self.cache.put(hash, &bytes).await;
            return Ok(self.hold(hash, bytes));
        }
        Err(wrong.or(failed).unwrap_or_else(|| FilesError::NoSource {
            name: file.to_owned(),
            start: range.start,
            end: range.end,
            asked: self.sources.len(),
        }))
    }

    fn held(&self, hash: &Hash) -> Option<Arc<Vec<u8>>> {
        self.state().held.iter().find(|(held, _)| held == hash).map(|(_, bytes)| Arc::clone(bytes))
    }

    fn hold(&self, hash: &Hash, bytes: Vec<u8>) -> Arc<Vec<u8>> {
        let bytes = Arc::new(bytes);
        let mut state = self.state();
        if state.held.len() >= HELD {
            state.held.pop_front();
        }
        state.held.push_back((*hash, Arc::clone(&bytes)));
        bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: ChunkSource, C: ChunkCache> Files for VerifiedFiles<S, C> {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        check_name(name)?;
        let file = self.manifest.file(name);
        file.map(|file| file.size).ok_or_else(|| FilesError::NotFound { name: name.to_owned() })
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        let size = self.size(name).await?;
        let length = check_range(name, &range, size)?;
        let chunk_size = u64::from(self.manifest.chunk_size);
        // The size is the host's word: of more than a span, no more is reserved than chunks have come to prove.
        let mut bytes = Vec::with_capacity(length.min(self.manifest.chunk_size as usize));
        while bytes.len() < length {
            let at = range.start + bytes.len() as u64;
            let outside =
                || FilesError::OutOfRange { name: name.to_owned(), start: range.start, end: range.end, size };
            let index = u32::try_from(at / chunk_size).map_err(|_| outside())?;
            let chunk = self.chunk(name, index).await?;
            let start = usize::try_from(at % chunk_size).map_err(|_| outside())?;
            let rest = chunk.get(start..).filter(|rest| !rest.is_empty()).ok_or_else(outside)?;
            let part = rest.get(..length - bytes.len()).unwrap_or(rest);
            bytes.extend_from_slice(part);
        }
        Ok(bytes)
    }

    /// A chunk: that is what is asked for and checked, and more of them at once would only be held.
    fn span(&self) -> u64 {
        self.manifest.chunk_size.into()
    }

    fn weights_file(&self) -> Option<String> {
        lone_gguf(self.manifest.files.iter().map(|file| file.name.as_str()))
    }
}

#[cfg(test)]
#[cfg(not(target_arch = "wasm32"))]
mod tests {
    use std::cell::RefCell;

    use futures::executor::block_on;

    use super::*;
    use crate::files::{MemoryCache, MemoryFiles};

    /// A source that notes what it is asked for.
    struct Noting {
        files: MemoryFiles,
        missing: Option<u32>,
        asked: RefCell<Vec<u32>>,
    }

    impl Noting {
        fn new(bytes: &[u8]) -> Self {
            let mut files = MemoryFiles::new();
            files.insert("a.bin", bytes);
            Self { files, missing: None, asked: RefCell::default() }
        }
    }

    impl ChunkSource for &Noting {
        async fn chunk(
            &self,
            file: &str,
            index: u32,
            _: &Hash,
            length: usize,
        ) -> Result<Option<Vec<u8>>, FilesError> {
            self.asked.borrow_mut().push(index);
            if self.missing == Some(index) {
                return Ok(None);
            }
            let start = u64::from(index) * CHUNK;
            self.files.read(file, start..start + length as u64).await.map(Some)
        }
    }

    const CHUNK: u64 = 1 << 20;

    fn model() -> (Vec<u8>, Manifest) {
        let bytes: Vec<u8> = (0..3 * CHUNK + 100).map(|at| (at % 251) as u8).collect();
        let mut files = MemoryFiles::new();
        files.insert("a.bin", bytes.clone());
        let manifest = block_on(Manifest::make(&files, &["a.bin".to_owned()], &(), |_| ())).unwrap();
        (bytes, manifest)
    }

    #[test]
    fn any_range_is_read_and_each_chunk_is_asked_for_once() {
        let (bytes, manifest) = model();
        let source = Noting::new(&bytes);
        let files = VerifiedFiles::new(manifest, vec![&source], ()).unwrap();
        assert_eq!(block_on(files.size("a.bin")), Ok(bytes.len() as u64));
        let mut at = 0;
        // Many small reads in a row, as of norms and biases, with some across the seams.
        while at < bytes.len() {
            let end = (at + 300_007).min(bytes.len());
            assert_eq!(block_on(files.read("a.bin", at as u64..end as u64)).unwrap(), bytes[at..end]);
            at = end;
        }
        assert_eq!(*source.asked.borrow(), [0, 1, 2, 3]);
        assert_eq!(files.stats().sources, [bytes.len() as u64]);
        assert!(block_on(files.read("a.bin", 5..5)).unwrap().is_empty());
        let all = block_on(files.read("a.bin", 0..bytes.len() as u64)).unwrap();
        assert_eq!(all, bytes);
        let past = block_on(files.read("a.bin", 0..bytes.len() as u64 + 1));
        assert!(matches!(past, Err(FilesError::OutOfRange { .. })));
        assert!(matches!(block_on(files.size("b.bin")), Err(FilesError::NotFound { .. })));
    }

    #[test]
    fn a_changed_byte_is_passed_over_for_the_next_source() {
        let (bytes, manifest) = model();
        let mut changed = bytes.clone();
        changed[CHUNK as usize + 9] ^= 1;
        let sources = [Noting::new(&changed), Noting::new(&bytes)];
        let files = VerifiedFiles::new(manifest, sources.iter().collect(), ()).unwrap();
        assert_eq!(block_on(files.read("a.bin", 0..2 * CHUNK)).unwrap(), bytes[..2 * CHUNK as usize]);
        let stats = Stats { cache: 0, sources: vec![CHUNK, CHUNK], refused: 1 };
        assert_eq!(files.stats(), stats);
        assert_eq!(*sources[1].asked.borrow(), [1]);
    }

    #[test]
    fn a_changed_byte_that_nobody_has_right_is_refused_by_name() {
        let (bytes, manifest) = model();
        let mut changed = bytes.clone();
        changed[CHUNK as usize + 9] ^= 1;
        let source = Noting::new(&changed);
        let files = VerifiedFiles::new(manifest, vec![&source], ()).unwrap();
        let chunk = CHUNK as usize;
        let error = FilesError::WrongHash {
            name: "a.bin".to_owned(),
            start: CHUNK,
            end: 2 * CHUNK,
            expected: hex(&sha256(&bytes[chunk..2 * chunk])),
            found: hex(&sha256(&changed[chunk..2 * chunk])),
        };
        assert_eq!(block_on(files.read("a.bin", 0..2 * CHUNK)), Err(error));
        assert!(block_on(files.read("a.bin", 0..CHUNK)).is_ok());
    }

    #[test]
    fn who_does_not_have_a_chunk_or_fails_is_passed_over() {
        let (bytes, manifest) = model();
        // The first has only the first half: beyond it, reading fails.
        let mut sources = [Noting::new(&bytes[..2 * CHUNK as usize]), Noting::new(&bytes)];
        sources[0].missing = Some(0);
        let files = VerifiedFiles::new(manifest.clone(), sources.iter().collect(), ()).unwrap();
        assert_eq!(block_on(files.read("a.bin", 0..bytes.len() as u64)).unwrap(), bytes);
        assert_eq!(files.stats().sources, [CHUNK, 2 * CHUNK + 100]);

        sources[1].missing = Some(0);
        let files = VerifiedFiles::new(manifest, sources.iter().collect(), ()).unwrap();
        let nobody = FilesError::NoSource { name: "a.bin".to_owned(), start: 0, end: CHUNK, asked: 2 };
        assert_eq!(block_on(files.read("a.bin", 0..1)), Err(nobody));
    }

    #[test]
    fn two_readers_with_one_cache_ask_once() {
        let (bytes, manifest) = model();
        let (source, cache) = (Noting::new(&bytes), MemoryCache::new(u64::MAX));
        for _ in 0..2 {
            let files = VerifiedFiles::new(manifest.clone(), vec![&source], &cache).unwrap();
            assert_eq!(block_on(files.read("a.bin", 0..bytes.len() as u64)).unwrap(), bytes);
        }
        assert_eq!(*source.asked.borrow(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_cache_that_gives_less_than_a_chunk_is_not_believed() {
        struct Lying;
        impl ChunkCache for Lying {
            async fn get(&self, _: &Hash) -> Option<Vec<u8>> {
                Some(vec![0; 3])
            }
            async fn put(&self, _: &Hash, _: &[u8]) {}
        }
        let (bytes, manifest) = model();
        let source = Noting::new(&bytes);
        let files = VerifiedFiles::new(manifest, vec![&source], Lying).unwrap();
        assert_eq!(block_on(files.read("a.bin", 3..9)).unwrap(), bytes[3..9]);
    }
}
