//! Tensors as f32 in small pieces: few fetches, and never a whole tensor beside the one that the caller builds.

use std::ops::Range;

use super::{TensorEntry, Undo, WeightsError, elements};
use crate::files::{Files, FilesError};

/// The most bytes fetched at once, wherever from ([`Files::span`] may be less): what a phone holds beside the tensors it
/// keeps.
pub const FETCH_LIMIT: u64 = 8 << 20;
/// A hole up to this size is fetched along with its neighbours: a request costs more than the bytes do.
const GAP_LIMIT: u64 = 64 << 10;
/// The most bytes of f32 that are handed over at once.
pub const PIECE_LIMIT: usize = 1 << 20;

/// What takes the pieces of several tensors.
pub type Sink<'a, E> = dyn FnMut(&TensorEntry, &[f32]) -> Result<(), E> + 'a;

/// Hands the numbers of `entries` to `sink`, tensor by tensor in the order of their places in the files, each in
/// row-major order and in pieces of at most [`PIECE_LIMIT`] bytes.
///
/// Neighbours are fetched together, at most [`Files::span`] bytes at once, and what lies between them is skipped unless
/// it is less than 64 KiB. An empty tensor brings no piece.
pub(super) async fn stream<E: From<WeightsError>>(
    files: &impl Files,
    mut entries: Vec<&TensorEntry>,
    on_bytes: &mut dyn FnMut(u64),
    sink: &mut Sink<'_, E>,
) -> Result<(), E> {
    entries.sort_by(|a, b| (&a.file, a.range.start, &a.name).cmp(&(&b.file, b.range.start, &b.name)));
    entries.dedup_by_key(|entry| &entry.name);
    let mut pieces = Pieces { values: Vec::new(), turned: None };
    for read in plan(&entries, files.span().clamp(1, FETCH_LIMIT))? {
        let bytes = files.read(read.file, read.range.clone()).await.map_err(WeightsError::from)?;
        on_bytes(bytes.len() as u64);
        for part in read.parts {
            let from = usize::try_from(part.range.start - read.range.start).ok();
            let to = usize::try_from(part.range.end - read.range.start).ok();
            let part_bytes = from.zip(to).and_then(|(from, to)| bytes.get(from..to)).ok_or_else(|| {
                WeightsError::from(FilesError::Truncated {
                    name: read.file.to_owned(),
                    wanted: read.range.end - read.range.start,
                    got: bytes.len() as u64,
                })
            })?;
            pieces.hand_over(part.entry, part_bytes, sink)?;
        }
    }
    Ok(())
}

/// One fetch, and the tensors' parts in it.
struct Read<'a> {
    file: &'a str,
    range: Range<u64>,
    parts: Vec<Part<'a>>,
}

/// A run of whole units of one tensor.
struct Part<'a> {
    entry: &'a TensorEntry,
    range: Range<u64>,
}

/// Covers the tensors, which are sorted by where they are, with as few fetches as the limits allow: of `span` bytes, or of
/// one unit where that is more.
fn plan<'a>(entries: &[&'a TensorEntry], span: u64) -> Result<Vec<Read<'a>>, WeightsError> {
    let mut reads: Vec<Read<'a>> = Vec::new();
    for entry in entries {
        // Cut from the tensor's own start by a multiple of its unit: no block and no head is torn.
        let unit = unit(entry)?;
        let step = (span / unit).max(1) * unit;
        let mut start = entry.range.start;
        while start < entry.range.end {
            let range = start..entry.range.end.min(start + step);
            start = range.end;
            let part = Part { entry, range: range.clone() };
            match reads.last_mut() {
                // Two tensors may share bytes only under two names of one file, which the readers refuse or made.
                Some(read)
                    if read.file == entry.file
                        && range.start >= read.range.start
                        && range.start.saturating_sub(read.range.end) <= GAP_LIMIT
                        && range.end.max(read.range.end) - read.range.start <= span =>
                {
                    read.range.end = read.range.end.max(range.end);
                    read.parts.push(part);
                }
                _ => reads.push(Read { file: &entry.file, range, parts: vec![part] }),
            }
        }
    }
    Ok(reads)
}

/// The bytes that have to be seen at once to put the tensor's numbers in order.
fn unit(entry: &TensorEntry) -> Result<u64, WeightsError> {
    let block = entry.block()?.1 as u64;
    let unit = match entry.undo {
        Undo::Rotary { head } => row_bytes(entry)?.checked_mul(head),
        _ => usize::try_from(block).ok(),
    };
    let unit = unit.map(|unit| unit as u64).filter(|unit| (1..=FETCH_LIMIT).contains(unit));
    unit.ok_or_else(|| entry.out_of_memory())
}

/// The bytes of a row of the tensor: the numbers of all dimensions but the outermost.
fn row_bytes(entry: &TensorEntry) -> Result<usize, WeightsError> {
    let (numbers, bytes) = entry.block()?;
    let columns = entry.shape.get(1..).and_then(elements).unwrap_or(0);
    (columns / numbers).checked_mul(bytes).filter(|bytes| *bytes > 0).ok_or_else(|| entry.out_of_memory())
}

/// What turns a part's bytes into pieces.
struct Pieces {
    values: Vec<f32>,
    /// A tensor that is stored the other way round, as far as it has come.
    turned: Option<Turned>,
}

struct Turned {
    name: String,
    values: Vec<f32>,
    /// How many numbers have come.
    reached: usize,
}

impl Pieces {
    fn hand_over<E: From<WeightsError>>(
        &mut self,
        entry: &TensorEntry,
        bytes: &[u8],
        sink: &mut Sink<'_, E>,
    ) -> Result<(), E> {
        match entry.undo {
            Undo::Nothing => self.decode(entry, bytes, &mut |values| sink(entry, values)),
            Undo::PlusOne => self.decode(entry, bytes, &mut |values| {
                values.iter_mut().for_each(|value| *value -= 1.0);
                sink(entry, values)
            }),
            Undo::Rotary { head } => {
                let row = row_bytes(entry)?;
                for bytes in bytes.chunks_exact(row * head) {
                    // Where the converter interleaved the two halves of a head, row by row.
                    let rows = (0..head).map(|at| 2 * (at % (head / 2)) + at / (head / 2));
                    for from in rows {
                        let Some(bytes) = bytes.chunks_exact(row).nth(from) else { continue };
                        self.decode(entry, bytes, &mut |values| sink(entry, values))?;
                    }
                }
                Ok(())
            }
            Undo::Transpose => self.turn(entry, bytes, sink),
        }
    }

    fn decode<E: From<WeightsError>>(
        &mut self,
        entry: &TensorEntry,
        bytes: &[u8],
        sink: &mut dyn FnMut(&mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (numbers, block) = entry.block()?;
        for bytes in bytes.chunks(PIECE_LIMIT / size_of::<f32>() / numbers * block) {
            self.values.clear();
            entry.format.decode(bytes, &mut self.values);
            sink(&mut self.values)?;
        }
        Ok(())
    }

    /// A matrix that is stored transposed can be handed over only when all of it is there.
    fn turn<E: From<WeightsError>>(
        &mut self,
        entry: &TensorEntry,
        bytes: &[u8],
        sink: &mut Sink<'_, E>,
    ) -> Result<(), E> {
        let &[rows, columns] = entry.shape.as_slice() else { return Ok(()) };
        let mut turned = match self.turned.take().filter(|turned| turned.name == entry.name) {
            Some(turned) => turned,
            None => {
                let mut values = entry.allocate()?;
                values.resize(rows * columns, 0.0);
                Turned { name: entry.name.clone(), values, reached: 0 }
            }
        };
        self.decode::<E>(entry, bytes, &mut |values| {
            for value in values {
                let to = turned.reached % rows * columns + turned.reached / rows;
                if let Some(place) = turned.values.get_mut(to) {
                    *place = *value;
                }
                turned.reached += 1;
            }
            Ok(())
        })?;
        if turned.reached < turned.values.len() {
            self.turned = Some(turned);
            return Ok(());
        }
        turned.values.chunks(PIECE_LIMIT / size_of::<f32>()).try_for_each(|piece| sink(entry, piece))
    }
}
