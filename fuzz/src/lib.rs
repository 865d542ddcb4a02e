//! What the fuzz targets share: inputs of several files, seeds out of the repository's own test files, and a model whose
//! every tensor is read.

use std::fs;
use std::path::{Path, PathBuf};

use baton_formats::{MemoryFiles, TensorIndex, WeightsError};
use futures::executor::block_on;

/// What stands between the files of an input that is several.
pub const MARK: &[u8] = b"\n%%\n";

/// The most bytes of one tensor that a target reads: beyond that it only says again what the smaller ones said.
const TENSOR_LIMIT: u64 = 1 << 20;

/// The files of an input: its parts between the marks, as many as there are, at most `N`; the rest are empty.
pub fn split<const N: usize>(mut input: &[u8]) -> [&[u8]; N] {
    let mut parts = [&[][..]; N];
    for part in &mut parts {
        match input.windows(MARK.len()).position(|window| window == MARK) {
            Some(at) => (*part, input) = (&input[..at], &input[at + MARK.len()..]),
            None => (*part, input) = (input, &[]),
        }
    }
    parts
}

/// An input out of several files.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(MARK)
}

/// Puts seeds into a target's corpus, where a run starts from. A run that is started again finds them there.
pub fn seed(target: &str, seeds: impl IntoIterator<Item = Vec<u8>>) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&corpus).expect("the corpus can be written");
    for (number, seed) in seeds.into_iter().enumerate() {
        fs::write(corpus.join(format!("seed-{number}")), seed).expect("the corpus can be written");
    }
}

/// The files in a folder of the repository, sorted; those below it in folders too.
pub fn files(folder: &str, ends: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![repository().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository") {
            let path = entry.expect("a folder of the repository").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ends) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The contents of [`files`].
pub fn contents(folder: &str, ends: &str) -> Vec<Vec<u8>> {
    files(folder, ends).iter().map(|path| read(path)).collect()
}

/// A file of the repository.
pub fn file(path: &str) -> Vec<u8> {
    read(&repository().join(path))
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("fuzz/ is in the repository").to_owned()
}

/// Opens the weights, and reads every tensor of a size that is worth it, as the header says its shape is: as many numbers
/// come as the shape has, or an error.
pub fn read_weights(files: &MemoryFiles) -> Option<TensorIndex> {
    let index = block_on(TensorIndex::open_model(files)).ok()?;
    for entry in index.entries().filter(|entry| entry.bytes() <= TENSOR_LIMIT) {
        let mut count = 0;
        let read = block_on(index.stream_f32::<WeightsError>(
            files,
            entry,
            &entry.shape,
            &mut |_| (),
            &mut |piece| {
                count += piece.len();
                Ok(())
            },
        ));
        if read.is_ok() {
            assert_eq!(count, entry.shape.iter().product::<usize>(), "{entry:?}");
        }
    }
    Some(index)
}
