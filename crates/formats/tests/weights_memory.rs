//! What reading a large tensor holds in memory, watched by an allocator that counts.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, reason = "clippy does not see that the helpers are of tests")]

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use baton_formats::files::FilesSource;
use baton_formats::weights::{FETCH_LIMIT, PIECE_LIMIT};
use baton_formats::{
    Files, FilesError, Manifest, NumberFormat, SafetensorsWriter, TensorIndex, VerifiedFiles, WeightsError,
};
use futures::executor::block_on;
use peak_alloc::PeakAlloc;

const MIB: usize = 1 << 20;
const FILE: &str = "model.safetensors";

#[global_allocator]
static WATCH: PeakAlloc = PeakAlloc;

/// The most bytes held at once while `work` runs, beyond those that were held before.
fn most_held(work: impl FnOnce()) -> usize {
    WATCH.reset_peak_usage();
    let before = WATCH.current_usage();
    work();
    WATCH.peak_usage() - before
}

/// A tensor whose bytes are made when they are asked for: every f16 of it is its place modulo 1000.
struct Made {
    head: Vec<u8>,
    numbers: u64,
}

impl Made {
    fn new(numbers: u64) -> Self {
        let header = format!(
            r#"{{"large":{{"dtype":"F16","shape":[{numbers}],"data_offsets":[0,{}]}}}}"#,
            2 * numbers
        );
        let head = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        Self { head, numbers }
    }
}

fn number(place: u64) -> f32 {
    f32::from(u16::try_from(place % 1000).unwrap())
}

impl Files for Made {
    async fn size(&self, _: &str) -> Result<u64, FilesError> {
        Ok(self.head.len() as u64 + 2 * self.numbers)
    }

    async fn read(&self, _: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        let mut bytes = Vec::with_capacity(usize::try_from(range.end - range.start).unwrap());
        bytes.extend(range.map(|at| match at.checked_sub(self.head.len() as u64) {
            None => self.head[usize::try_from(at).unwrap()],
            Some(at) => half::f16::from_f32(number(at / 2)).to_le_bytes()[usize::try_from(at % 2).unwrap()],
        }));
        Ok(bytes)
    }
}

/// One test at a time: another one beside it would be counted too.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_tensor_of_64_mb_passes_through_in_pieces_and_is_never_held() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let numbers = 32 * MIB as u64;
    let files = Made::new(numbers);
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    let entry = index.get("large").unwrap();
    assert_eq!(entry.bytes(), 64 * MIB as u64);
    let shape = entry.shape.clone();

    let (mut seen, mut fetched) = (0, 0);
    let most = most_held(|| {
        let done: Result<(), WeightsError> =
            block_on(index.stream_f32(&files, entry, &shape, &mut |bytes| fetched += bytes, &mut |piece| {
                assert!(size_of_val(piece) <= PIECE_LIMIT);
                for value in piece {
                    assert_eq!(*value, number(seen));
                    seen += 1;
                }
                Ok(())
            }));
        done.unwrap();
    });
    assert_eq!((seen, fetched), (numbers, 2 * numbers));
    let fetch = usize::try_from(FETCH_LIMIT).unwrap();
    assert!(most >= fetch, "the watch sees the fetches: {most}");
    assert!(most <= fetch + PIECE_LIMIT + MIB / 4, "held {most} bytes");

    // From a file into another one, with nothing in between either.
    let parts = vec![("large".to_owned(), NumberFormat::Bf16, shape.clone())];
    let mut written = 0;
    let most = most_held(|| {
        let mut writer = SafetensorsWriter::new(std::io::sink(), parts, &Default::default()).unwrap();
        block_on(index.stream_f32(&files, entry, &shape, &mut |_| (), &mut |piece| {
            written += piece.len();
            writer.write("large", piece)
        }))
        .unwrap();
        writer.finish().unwrap();
    });
    assert_eq!(written as u64, numbers);
    assert!(most <= fetch + PIECE_LIMIT + MIB / 4, "held {most} bytes");
}

#[test]
fn a_tensor_that_comes_in_checked_chunks_is_held_by_the_chunk() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let files = Made::new(8 * MIB as u64);
    let manifest = block_on(Manifest::make(&files, &[FILE.to_owned()], &(), |_| ())).unwrap();
    let chunk = manifest.chunk_size as usize;
    let checked = VerifiedFiles::new(manifest.clone(), vec![FilesSource::new(files, &manifest)], ()).unwrap();
    let index = block_on(TensorIndex::open(&checked, FILE)).unwrap();
    let entry = index.get("large").unwrap();
    let mut seen = 0;
    let most = most_held(|| {
        let done: Result<(), WeightsError> =
            block_on(index.stream_f32(&checked, entry, &entry.shape.clone(), &mut |_| (), &mut |piece| {
                for value in piece {
                    assert_eq!(*value, number(seen));
                    seen += 1;
                }
                Ok(())
            }));
        done.unwrap();
    });
    assert_eq!(seen, 8 * MIB as u64);
    assert_eq!(checked.stats().sources, [manifest.files[0].size], "each chunk is fetched once");
    // The last two chunks, the one that comes, and what is read of them.
    assert!(most <= 4 * chunk + PIECE_LIMIT + MIB / 4, "held {most} bytes");
}

/// A GGUF header of lists without end: each key is one list of 32 thousand bytes, of which each becomes a number.
struct Lists;

/// A key's length, its name of eight digits, and what a list of bytes begins with.
const LIST: usize = 8 + 8 + 4 + 4 + 8;
const BYTES: usize = 32 << 10;
const START: usize = 24;

impl Files for Lists {
    async fn size(&self, _: &str) -> Result<u64, FilesError> {
        Ok(1 << 40)
    }

    async fn read(&self, _: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        let mut start = b"GGUF".to_vec();
        start.extend(3u32.to_le_bytes());
        start.extend(0u64.to_le_bytes());
        start.extend(4096u64.to_le_bytes());
        let byte = |at: usize| {
            let Some(at) = at.checked_sub(START) else { return start[at] };
            let (list, within) = (at / (LIST + BYTES), at % (LIST + BYTES));
            let mut key = 8u64.to_le_bytes().to_vec();
            key.extend(format!("{list:08}").bytes());
            key.extend([9u32.to_le_bytes(), 0u32.to_le_bytes()].concat());
            key.extend((BYTES as u64).to_le_bytes());
            key.get(within).copied().unwrap_or(1)
        };
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let mut bytes = Vec::with_capacity(range.len());
        bytes.extend(range.map(byte));
        Ok(bytes)
    }
}

#[test]
fn a_header_without_end_is_given_up_before_it_fills_the_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let most = most_held(|| {
        let error = block_on(TensorIndex::open(&Lists, "model.gguf")).unwrap_err();
        assert!(matches!(error, WeightsError::TooMany { what: "values in lists", .. }), "{error}");
    });
    assert!(most <= 48 * MIB, "held {most} bytes");
}
