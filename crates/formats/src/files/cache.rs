//! Chunks kept by their sha256, so that what was fetched once is not fetched again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// A sha256.
pub type Hash = [u8; 32];

/// The sha256 of some bytes.
pub fn sha256(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// A hash as 64 small hexadecimal digits.
pub fn hex(hash: &Hash) -> String {
    hash.iter().fold(String::with_capacity(64), |text, byte| text + &format!("{byte:02x}"))
}

/// Where chunks are kept. It may forget any of them at any time, and never fails: what it cannot keep is fetched again.
#[allow(async_fn_in_trait)]
pub trait ChunkCache {
    /// The bytes whose sha256 is `hash`, checked, or nothing.
    async fn get(&self, hash: &Hash) -> Option<Vec<u8>>;

    /// Keeps bytes whose sha256 is `hash`, if it can.
    async fn put(&self, hash: &Hash, bytes: &[u8]);

    /// What was remembered under `key`, which is anyone's choice.
    async fn recall(&self, _key: &Hash) -> Option<Vec<u8>> {
        None
    }

    /// Remembers a note of at most a few MiB beside the chunks: which chunks a model has.
    async fn remember(&self, _key: &Hash, _note: &[u8]) {}
}

/// No cache.
impl ChunkCache for () {
    async fn get(&self, _: &Hash) -> Option<Vec<u8>> {
        None
    }

    async fn put(&self, _: &Hash, _: &[u8]) {}
}

impl<C: ChunkCache> ChunkCache for &C {
    async fn get(&self, hash: &Hash) -> Option<Vec<u8>> {
        (**self).get(hash).await
    }

    async fn put(&self, hash: &Hash, bytes: &[u8]) {
        (**self).put(hash, bytes).await;
    }

    async fn recall(&self, key: &Hash) -> Option<Vec<u8>> {
        (**self).recall(key).await
    }

    async fn remember(&self, key: &Hash, note: &[u8]) {
        (**self).remember(key, note).await;
    }
}

impl<C: ChunkCache> ChunkCache for Rc<C> {
    async fn get(&self, hash: &Hash) -> Option<Vec<u8>> {
        (**self).get(hash).await
    }

    async fn put(&self, hash: &Hash, bytes: &[u8]) {
        (**self).put(hash, bytes).await;
    }

    async fn recall(&self, key: &Hash) -> Option<Vec<u8>> {
        (**self).recall(key).await
    }

    async fn remember(&self, key: &Hash, note: &[u8]) {
        (**self).remember(key, note).await;
    }
}

/// A few chunks in memory; the least recently used go first.
#[derive(Debug)]
pub struct MemoryCache {
    limit: u64,
    chunks: Mutex<Chunks>,
}

#[derive(Debug, Default)]
struct Chunks {
    /// Counts uses, and so tells which was last.
    uses: u64,
    by_hash: BTreeMap<Hash, (u64, Arc<Vec<u8>>)>,
}

impl MemoryCache {
    /// A cache that never holds more than `limit` bytes of chunks.
    pub fn new(limit: u64) -> Self {
        Self { limit, chunks: Mutex::default() }
    }
}

impl ChunkCache for MemoryCache {
    async fn get(&self, hash: &Hash) -> Option<Vec<u8>> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.uses += 1;
        let now = chunks.uses;
        let (used, bytes) = chunks.by_hash.get_mut(hash)?;
        *used = now;
        Some(bytes.to_vec())
    }

    async fn put(&self, hash: &Hash, bytes: &[u8]) {
        let wanted = bytes.len() as u64;
        if wanted > self.limit || sha256(bytes) != *hash {
            return;
        }
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.uses += 1;
        let now = chunks.uses;
        if let Some((used, _)) = chunks.by_hash.get_mut(hash) {
            *used = now;
            return;
        }
        let entries = chunks.by_hash.iter().map(|(key, (used, bytes))| Entry {
            key: *key,
            size: bytes.len() as u64,
            used: *used,
        });
        for old in to_evict(entries.collect(), wanted, self.limit) {
            chunks.by_hash.remove(&old);
        }
        chunks.by_hash.insert(*hash, (now, Arc::new(bytes.to_vec())));
    }
}

/// Something kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry<K> {
    pub(super) key: K,
    /// In bytes.
    pub(super) size: u64,
    /// When it was last used, on any clock.
    pub(super) used: u64,
}

/// What has to go, the least recently used first, so that `wanted` more bytes and the rest stay within `limit`.
pub(super) fn to_evict<K>(mut entries: Vec<Entry<K>>, wanted: u64, limit: u64) -> Vec<K> {
    let mut held = entries.iter().fold(wanted, |sum, entry| sum.saturating_add(entry.size));
    entries.sort_by_key(|entry| entry.used);
    let mut gone = Vec::new();
    for entry in entries {
        if held <= limit {
            break;
        }
        held = held.saturating_sub(entry.size);
        gone.push(entry.key);
    }
    gone
}

/// What a cache on disk keeps in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// A chunk by its hash.
    Chunk(Hash),
    /// A note by its key; the file begins with the sha256 of the note.
    Note(Hash),
}

impl Kept {
    /// The file's name.
    pub(super) fn name(self) -> String {
        match self {
            Self::Chunk(hash) => hex(&hash),
            Self::Note(key) => hex(&key) + NOTE,
        }
    }

    /// What a file of this name holds; `None` for anything else, which is left alone.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name.strip_suffix(NOTE) {
            Some(name) => from_hex(name).map(Self::Note),
            None => from_hex(name).map(Self::Chunk),
        }
    }

    /// What a file has to hold to keep these bytes.
    pub(super) fn wrap(self, bytes: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Self::Chunk(_) => Cow::Borrowed(bytes),
            Self::Note(_) => Cow::Owned([&sha256(bytes), bytes].concat()),
        }
    }

    /// The bytes that a file keeps; `None` if it is damaged.
    pub(super) fn open(self, mut file: Vec<u8>) -> Option<Vec<u8>> {
        match self {
            Self::Chunk(hash) => (sha256(&file) == hash).then_some(file),
            Self::Note(_) => {
                let hash: Hash = file.get(..32)?.try_into().ok()?;
                file.drain(..32);
                (sha256(&file) == hash).then_some(file)
            }
        }
    }
}

/// How a note's file is told from a chunk's.
const NOTE: &str = ".note";

/// The hash that is written as these digits.
fn from_hex(name: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(name.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
#[cfg(not(target_arch = "wasm32"))]
mod tests {
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn the_least_recently_used_go_first_and_no_more_than_must() {
        let entry = |key, size, used| Entry { key, size, used };
        let entries = vec![entry('a', 10, 3), entry('b', 10, 1), entry('c', 10, 2)];
        assert_eq!(to_evict(entries.clone(), 0, 30), []);
        assert_eq!(to_evict(entries.clone(), 1, 30), ['b']);
        assert_eq!(to_evict(entries.clone(), 11, 30), ['b', 'c']);
        assert_eq!(to_evict(entries, u64::MAX, 30), ['b', 'c', 'a']);
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let cache = MemoryCache::new(25);
        let chunk = |byte| (sha256(&[byte; 10]), [byte; 10]);
        let [a, b, c] = [chunk(1), chunk(2), chunk(3)];
        block_on(cache.put(&a.0, &a.1));
        block_on(cache.put(&b.0, &b.1));
        assert_eq!(block_on(cache.get(&a.0)).unwrap(), a.1);
        block_on(cache.put(&c.0, &c.1));
        assert_eq!(block_on(cache.get(&b.0)), None);
        assert!(block_on(cache.get(&a.0)).is_some() && block_on(cache.get(&c.0)).is_some());
        block_on(cache.put(&sha256(&[0; 26]), &[0; 26]));
        assert!(block_on(cache.get(&a.0)).is_some());
        // Under a hash that is not theirs, bytes are not kept.
        block_on(cache.put(&[0; 32], b"x"));
        assert_eq!(block_on(cache.get(&[0; 32])), None);
    }

    #[test]
    fn a_file_is_known_by_its_name_and_no_other_is() {
        let hash = sha256(b"x");
        for kept in [Kept::Chunk(hash), Kept::Note(hash)] {
            assert_eq!(Kept::from_name(&kept.name()), Some(kept));
        }
        let upper = hex(&hash).to_uppercase();
        let part = format!("{}.7.part", hex(&hash));
        for other in ["", ".note", "notes.txt", &hex(&hash)[1..], &upper, &part] {
            assert_eq!(Kept::from_name(other), None, "{other}");
        }
    }

    #[test]
    fn a_damaged_note_is_not_read() {
        let note = Kept::Note([0; 32]);
        let file = note.wrap(b"a note").into_owned();
        assert_eq!(note.open(file.clone()).unwrap(), b"a note");
        for at in [0, 31, 32, file.len() - 1] {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert_eq!(note.open(damaged), None);
            assert_eq!(note.open(file[..at].to_vec()), None);
        }
    }
}
