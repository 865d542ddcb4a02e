//! Files that a person picked in the browser, read slice by slice.

use std::collections::BTreeMap;
use std::ops::Range;

use js_sys::Uint8Array;
use wasm_bindgen_futures::JsFuture;
use web_sys::File;

use super::http::describe;
use super::{Files, FilesError, check_name, check_range, lone_gguf};

/// The files of a folder picker or an `<input type=file>`: only what is asked for is read from the disk.
#[derive(Clone, Debug, Default)]
pub struct BlobFiles {
    files: BTreeMap<String, File>,
}

impl BlobFiles {
    /// Files by the name that they are to be read by (a folder picker's `webkitRelativePath` without the folder).
    pub fn new(files: Vec<(String, File)>) -> Self {
        Self { files: files.into_iter().collect() }
    }

    fn get(&self, name: &str) -> Result<(&File, u64), FilesError> {
        check_name(name)?;
        let file = self.files.get(name).ok_or_else(|| FilesError::NotFound { name: name.to_owned() })?;
        // A File's size is a whole number below 2^53, for JavaScript's numbers hold no larger one.
        Ok((file, file.size() as u64))
    }
}

impl Files for BlobFiles {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        self.get(name).map(|(_, size)| size)
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        let (file, size) = self.get(name)?;
        let wanted = check_range(name, &range, size)?;
        let failed = |error| FilesError::Io { name: name.to_owned(), reason: describe(&error) };
        let part = file.slice_with_f64_and_f64(range.start as f64, range.end as f64).map_err(failed)?;
        let bytes = Uint8Array::new(&JsFuture::from(part.array_buffer()).await.map_err(failed)?).to_vec();
        if bytes.len() != wanted {
            return Err(FilesError::Truncated {
                name: name.to_owned(),
                wanted: wanted as u64,
                got: bytes.len() as u64,
            });
        }
        Ok(bytes)
    }

    fn weights_file(&self) -> Option<String> {
        lone_gguf(self.files.keys().map(String::as_str))
    }
}
