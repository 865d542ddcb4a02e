//! Files in a directory of this machine.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Files, FilesError, check_name, check_range, lone_gguf};

/// The files of one directory; names cannot escape it. Its futures are ready at once: the reads block.
#[derive(Clone, Debug)]
pub struct DirFiles {
    path: PathBuf,
    /// The GGUF file that was pointed at.
    gguf: Option<String>,
}

impl DirFiles {
    /// The files in `path`, which need not exist yet: a missing directory shows as missing files. The path of a GGUF
    /// file means the directory that it is in, with that file for the weights.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path: PathBuf = path.into();
        let gguf = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".gguf"));
        match (gguf, path.parent()) {
            (Some(name), Some(parent)) if path.is_file() => {
                Self { path: parent.to_owned(), gguf: Some(name.to_owned()) }
            }
            _ => Self { path, gguf: None },
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, name: &str) -> Result<(File, u64), FilesError> {
        check_name(name)?;
        let path = self.path.join(name);
        let file = File::open(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => FilesError::NotFound { name: path.display().to_string() },
            _ => FilesError::Io { name: path.display().to_string(), reason: error.to_string() },
        })?;
        let metadata = file.metadata().map_err(|error| FilesError::Io {
            name: path.display().to_string(),
            reason: error.to_string(),
        })?;
        if !metadata.is_file() {
            return Err(FilesError::Io {
                name: path.display().to_string(),
                reason: "it is not a file".to_owned(),
            });
        }
        Ok((file, metadata.len()))
    }
}

impl Files for DirFiles {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        self.open(name).map(|(_, size)| size)
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        let (mut file, size) = self.open(name)?;
        let mut bytes = vec![0; check_range(name, &range, size)?];
        file.seek(SeekFrom::Start(range.start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| FilesError::Io { name: name.to_owned(), reason: error.to_string() })?;
        Ok(bytes)
    }

    fn weights_file(&self) -> Option<String> {
        if self.gguf.is_some() {
            return self.gguf.clone();
        }
        let entries = std::fs::read_dir(&self.path).ok()?;
        let names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        lone_gguf(names.iter().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn a_directory_is_read_by_range_and_not_left() {
        let files = DirFiles::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let this = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
        assert_eq!(block_on(files.size("lib.rs")), Ok(this.len() as u64));
        assert_eq!(block_on(files.read("lib.rs", 5..50)).unwrap(), this[5..50]);
        let past = this.len() as u64 + 1;
        assert!(matches!(block_on(files.read("lib.rs", 0..past)), Err(FilesError::OutOfRange { .. })));
        assert!(matches!(block_on(files.size("none.rs")), Err(FilesError::NotFound { .. })));
        assert!(matches!(block_on(files.size("../Cargo.toml")), Err(FilesError::BadName { .. })));
        assert!(matches!(block_on(files.size("files")), Err(FilesError::Io { .. })));
    }
}
