//! A stored zip of a few files, so that a page can offer an adapter as one download.

use std::io::{Cursor, Write};

use zip::{CompressionMethod, DateTime, ZipWriter, write::SimpleFileOptions};

/// Why an archive could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// The zip format cannot hold this entry (a name given twice, or a name of more than 64 KiB).
    #[error("{name} cannot go into the zip: {reason}")]
    Entry {
        /// The entry's name.
        name: String,
        /// What the zip writer said.
        reason: String,
    },
}

/// Packs `files` (name, content) uncompressed, in the order given.
///
/// The same files give the same bytes: every entry carries 1980-01-01, the first date that zip knows.
pub fn zip(files: &[(&str, &[u8])]) -> Result<Vec<u8>, ArchiveError> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        let refused = |reason: String| ArchiveError::Entry { name: (*name).to_owned(), reason };
        let large = u32::try_from(content.len()).is_err();
        writer.start_file(*name, options.large_file(large)).map_err(|error| refused(error.to_string()))?;
        writer.write_all(content).map_err(|error| refused(error.to_string()))?;
    }
    let archive = writer.finish().map_err(|error| ArchiveError::Entry {
        name: "the directory".to_owned(),
        reason: error.to_string(),
    })?;
    Ok(archive.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_files_come_out_as_they_went_in() {
        let files: [(&str, &[u8]); 2] = [("adapter_config.json", b"{}"), ("weights", &[0, 255, 7])];
        let mut archive = zip::ZipArchive::new(Cursor::new(zip(&files).unwrap())).unwrap();
        assert_eq!(archive.len(), 2);
        for (name, content) in files {
            let mut found = Vec::new();
            archive.by_name(name).unwrap().read_to_end(&mut found).unwrap();
            assert_eq!(found, content);
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let files: [(&str, &[u8]); 1] = [("a", b"content")];
        assert_eq!(zip(&files).unwrap(), zip(&files).unwrap());
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        let error = zip(&[("a", b"1"), ("a", b"2")]).unwrap_err();
        assert!(matches!(error, ArchiveError::Entry { name, .. } if name == "a"));
    }
}
