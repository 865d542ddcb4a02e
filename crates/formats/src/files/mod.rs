//! Where bytes come from: named files that are read by byte range.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::weights::FETCH_LIMIT;

mod address;
#[cfg(target_arch = "wasm32")]
mod blob;
mod cache;
#[cfg(not(target_arch = "wasm32"))]
mod dir;
#[cfg(not(target_arch = "wasm32"))]
mod dir_cache;
mod http;
#[cfg(target_arch = "wasm32")]
mod opfs;
mod patience;
mod url;
mod verified;

#[cfg(target_arch = "wasm32")]
pub use blob::BlobFiles;
pub use cache::{ChunkCache, Hash, MemoryCache, hex, sha256};
#[cfg(not(target_arch = "wasm32"))]
pub use dir::DirFiles;
#[cfg(not(target_arch = "wasm32"))]
pub use dir_cache::DirCache;
pub use http::ContentRange;
#[cfg(target_arch = "wasm32")]
pub use opfs::OpfsCache;
pub use patience::{Patience, Trouble};
pub use url::UrlFiles;
pub use verified::{ChunkSource, FilesSource, Stats, VerifiedFiles};

/// Named files read by byte range: a directory, a URL, a browser's File list, memory, or a peer.
///
/// Futures need not be `Send`: in a browser they hold JavaScript values.
#[allow(async_fn_in_trait)]
pub trait Files {
    /// The size of a file in bytes.
    async fn size(&self, name: &str) -> Result<u64, FilesError>;

    /// The bytes of `range`: exactly as many as it is long, or an error.
    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError>;

    /// The bytes that are worth asking for at once: what asks holds them all, and every question has its price.
    fn span(&self) -> u64 {
        FETCH_LIMIT
    }

    /// The one file of weights, where it has no fixed name: a GGUF file. `None` means Hugging Face's names.
    fn weights_file(&self) -> Option<String> {
        None
    }
}

/// The one GGUF file among `names`, unless the weights are there by Hugging Face's names too.
fn lone_gguf<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut found = None;
    for name in names {
        let weights = ["model.safetensors", "model.safetensors.index.json"].contains(&name);
        let gguf = name.ends_with(".gguf");
        if weights || gguf && found.is_some() {
            return None;
        }
        if gguf {
            found = Some(name.to_owned());
        }
    }
    found
}

impl<F: Files> Files for &F {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        (**self).size(name).await
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        (**self).read(name, range).await
    }

    fn span(&self) -> u64 {
        (**self).span()
    }

    fn weights_file(&self) -> Option<String> {
        (**self).weights_file()
    }
}

/// A whole file; one of more than `limit` bytes is refused before a byte of it is read.
pub async fn read_all(files: &impl Files, name: &str, limit: u64) -> Result<Vec<u8>, FilesError> {
    let size = files.size(name).await?;
    if size > limit {
        return Err(FilesError::TooLarge { name: name.to_owned(), size, limit });
    }
    files.read(name, 0..size).await
}

/// Why bytes could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// There is no such file.
    #[error(
        "there is no {name} here; check that the folder or address is that of a model in the Hugging Face layout"
    )]
    NotFound {
        /// The file's name.
        name: String,
    },
    /// The server refused.
    #[error(
        "the server answered {status} when asked for {name}; check the address, and that the model is public"
    )]
    Http {
        /// The file's name.
        name: String,
        /// The HTTP status.
        status: u16,
    },
    /// The answer had another length than asked for.
    #[error(
        "asked for {wanted} bytes of {name}, got {got}: the file or the connection was cut short; try again"
    )]
    Truncated {
        /// The file's name.
        name: String,
        /// How many bytes were asked for.
        wanted: u64,
        /// How many came.
        got: u64,
    },
    /// The range reaches past the end of the file.
    #[error(
        "{name} has {size} bytes, and bytes {start} to {end} were asked for: the file is shorter than it should be"
    )]
    OutOfRange {
        /// The file's name.
        name: String,
        /// The first byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// The size of the file.
        size: u64,
    },
    /// The server answered another range than asked for.
    #[error(
        "the server was asked for bytes {wanted} of {name} and answered \"{got}\"; it cannot be read by range"
    )]
    WrongRange {
        /// The file's name.
        name: String,
        /// The range asked for, as `start-end`.
        wanted: String,
        /// The `Content-Range` header of the answer.
        got: String,
    },
    /// The file is larger than what it is for allows.
    #[error("{name} has {size} bytes, more than the {limit} allowed for such a file")]
    TooLarge {
        /// The file's name.
        name: String,
        /// Its size in bytes.
        size: u64,
        /// The largest size allowed.
        limit: u64,
    },
    /// The server sends whole files only, and this one is too large for that.
    #[error(
        "the server sends {name} only as a whole, and it has more than {limit} bytes; \
         use a server that answers Range requests (Hugging Face does), or open the model as a local folder"
    )]
    NoRanges {
        /// The file's name.
        name: String,
        /// The largest file taken as a whole, in bytes.
        limit: u64,
    },
    /// The name could reach outside of where the files are.
    #[error("\"{name}\" is not the name of a file: it must have no slashes, no .. and no special characters")]
    BadName {
        /// The name.
        name: String,
    },
    /// The address is not one that files can be fetched from.
    #[error(
        "\"{url}\" is not an address of a model; give https://huggingface.co/org/name, org/name, or a web folder"
    )]
    BadUrl {
        /// The address.
        url: String,
    },
    /// The server sent more than was asked for.
    #[error(
        "the server sent more than the {wanted} bytes of {name} that it was asked for; it cannot be read by range"
    )]
    Excess {
        /// The file's name.
        name: String,
        /// How many bytes were asked for.
        wanted: u64,
    },
    /// Attempt after attempt failed.
    #[error(
        "{name} could not be fetched in {attempts} attempts: {trouble}; check the connection and the address, and try again"
    )]
    GaveUp {
        /// The file's name.
        name: String,
        /// The attempts in a row that brought nothing.
        attempts: u32,
        /// What the last one met.
        trouble: Trouble,
    },
    /// The file behind the address is no longer the one whose other parts were read.
    #[error(
        "{name} changed while it was read: it was {was} and is now {now}; start again with a version that stays"
    )]
    Changed {
        /// The file's name.
        name: String,
        /// Its size or version at first.
        was: String,
        /// Its size or version now.
        now: String,
    },
    /// The bytes are not those that the manifest says.
    #[error(
        "bytes {start} to {end} of {name} are not those of this run's model: their sha256 should be {expected} and is \
         {found}; the copy is damaged, or is another model"
    )]
    WrongHash {
        /// The file's name.
        name: String,
        /// The first byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// The sha256 in the manifest, in hexadecimal.
        expected: String,
        /// The sha256 of what came.
        found: String,
    },
    /// None of the places that were asked has the bytes.
    #[error(
        "nobody has bytes {start} to {end} of {name}: neither the cache nor any of the {asked} places that were asked"
    )]
    NoSource {
        /// The file's name.
        name: String,
        /// The first byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// How many places were asked.
        asked: usize,
    },
    /// The operating system, the browser or the network failed.
    #[error("{name} cannot be read: {reason}")]
    Io {
        /// The file's name, or the folder's.
        name: String,
        /// What the system said.
        reason: String,
    },
}

/// Files held in memory: an embedded model, or a test.
#[derive(Clone, Debug, Default)]
pub struct MemoryFiles(BTreeMap<String, Vec<u8>>);

impl MemoryFiles {
    /// No files yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file, or replaces the one of that name.
    pub fn insert(&mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.insert(name.into(), bytes.into());
    }

    fn get(&self, name: &str) -> Result<&[u8], FilesError> {
        check_name(name)?;
        self.0.get(name).map(Vec::as_slice).ok_or_else(|| FilesError::NotFound { name: name.to_owned() })
    }
}

impl Files for MemoryFiles {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        Ok(self.get(name)?.len() as u64)
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        slice(name, self.get(name)?, &range).map(<[u8]>::to_vec)
    }

    fn weights_file(&self) -> Option<String> {
        lone_gguf(self.0.keys().map(String::as_str))
    }
}

/// Refuses a name that could mean anything but one file in one place: it may come from a peer or a config.
pub(crate) fn check_name(name: &str) -> Result<(), FilesError> {
    // `?`, `#` and `%` would change the meaning of a URL, `:` that of a Windows path.
    let odd = |c: char| c.is_control() || "/\\?#%:*\"<>|".contains(c);
    if name.is_empty() || name.len() > 255 || name == "." || name.contains("..") || name.contains(odd) {
        return Err(FilesError::BadName { name: name.chars().take(255).collect() });
    }
    Ok(())
}

/// The length of a range that lies within a file of `size` bytes.
fn check_range(name: &str, range: &Range<u64>, size: u64) -> Result<usize, FilesError> {
    let outside =
        || FilesError::OutOfRange { name: name.to_owned(), start: range.start, end: range.end, size };
    if range.end > size {
        return Err(outside());
    }
    let length = range.end.checked_sub(range.start).ok_or_else(outside)?;
    usize::try_from(length).map_err(|_| outside())
}

/// The part of a file held in memory.
fn slice<'a>(name: &str, bytes: &'a [u8], range: &Range<u64>) -> Result<&'a [u8], FilesError> {
    let size = bytes.len() as u64;
    let length = check_range(name, range, size)?;
    let rest = usize::try_from(range.start).ok().and_then(|start| bytes.get(start..));
    rest.and_then(|rest| rest.get(..length)).ok_or_else(|| FilesError::OutOfRange {
        name: name.to_owned(),
        start: range.start,
        end: range.end,
        size,
    })
}

#[cfg(test)]
#[cfg(not(target_arch = "wasm32"))]
mod tests {
    use futures::executor::block_on;

    use super::*;

    fn one_file() -> MemoryFiles {
        let mut files = MemoryFiles::new();
        files.insert("a.txt", *b"0123456789");
        files
    }

    #[test]
    fn a_range_gives_its_bytes_and_no_others() {
        let files = one_file();
        assert_eq!(block_on(files.size("a.txt")), Ok(10));
        assert_eq!(block_on(files.read("a.txt", 3..7)).unwrap(), b"3456");
        assert_eq!(block_on(files.read("a.txt", 10..10)).unwrap(), b"");
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)]
    fn a_range_past_the_end_or_backwards_is_refused() {
        let files = one_file();
        for range in [5..11, 11..12, 0..u64::MAX, 7..3] {
            let error = block_on(files.read("a.txt", range.clone())).unwrap_err();
            let (start, end) = (range.start, range.end);
            assert_eq!(error, FilesError::OutOfRange { name: "a.txt".to_owned(), start, end, size: 10 });
        }
    }

    #[test]
    fn a_file_over_the_limit_is_refused_before_it_is_read() {
        struct Unreadable;
        impl Files for Unreadable {
            async fn size(&self, _: &str) -> Result<u64, FilesError> {
                Ok(u64::MAX)
            }
            async fn read(&self, _: &str, _: Range<u64>) -> Result<Vec<u8>, FilesError> {
                panic!("the size was known to be too large")
            }
        }
        let error = block_on(read_all(&Unreadable, "config.json", 100)).unwrap_err();
        assert_eq!(
            error,
            FilesError::TooLarge { name: "config.json".to_owned(), size: u64::MAX, limit: 100 }
        );
        assert_eq!(block_on(read_all(&one_file(), "a.txt", 10)).unwrap().len(), 10);
    }

    #[test]
    fn a_single_gguf_is_the_weights_unless_there_are_others() {
        let found = |names: &[&str]| lone_gguf(names.iter().copied());
        assert_eq!(found(&["README.md", "tiny.gguf"]).as_deref(), Some("tiny.gguf"));
        assert_eq!(found(&["a.gguf", "b.gguf"]), None);
        assert_eq!(found(&["a.gguf", "model.safetensors"]), None);
        assert_eq!(found(&["model.safetensors.index.json", "a.gguf"]), None);
        assert_eq!(found(&["config.json"]), None);
    }

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for name in ["", ".", "..", "../a", "a/b", "/etc/passwd", "a\\b", "a%2fb", "a?b", "c:a", "a\0", "a\n"]
        {
            let error = block_on(one_file().size(name)).unwrap_err();
            assert_eq!(error, FilesError::BadName { name: name.to_owned() });
        }
        assert_eq!(block_on(one_file().size("b")), Err(FilesError::NotFound { name: "b".to_owned() }));
    }
}
