//! GGUF files written: what an adapter for llama.cpp needs.

use super::super::{WeightsError, elements};
use super::{ALIGNMENT, GgufValue, MAGIC};

/// A GGUF file (version 3) of f32 tensors `(name, shape, values)`, the shape outermost first.
///
/// Metadata and tensors stand in the file in the order given.
///
/// # Errors
///
/// When a tensor's values do not fill its shape, or it has more than 4 dimensions, or a name occurs twice.
pub fn write_gguf(
    metadata: &[(String, GgufValue)],
    tensors: &[(String, Vec<usize>, &[f32])],
) -> Result<Vec<u8>, WeightsError> {
    let mut file = Vec::new();
    file.extend(MAGIC);
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    for (at, (key, value)) in metadata.iter().enumerate() {
        if metadata.iter().take(at).any(|(other, _)| other == key) {
            return Err(WeightsError::Write { reason: format!("{key} was given twice") });
        }
        text(&mut file, key);
        put(&mut file, value);
    }
    let mut offset: u64 = 0;
    for (at, (name, shape, values)) in tensors.iter().enumerate() {
        if elements(shape) != Some(values.len()) || shape.len() > 4 {
            let (tensor, shape) = (name.clone(), shape.clone());
            return Err(WeightsError::WrongLength { tensor, shape, values: values.len() });
        }
        if tensors.iter().take(at).any(|(other, ..)| other == name) {
            return Err(WeightsError::Write { reason: format!("{name} was given twice") });
        }
        text(&mut file, name);
        // At most 4, as was just seen.
        file.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|dimension| file.extend((*dimension as u64).to_le_bytes()));
        file.extend(0u32.to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset = (offset + size_of_val(*values) as u64).next_multiple_of(ALIGNMENT);
    }
    align(&mut file);
    for (_, _, values) in tensors {
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        align(&mut file);
    }
    Ok(file)
}

/// Fills up with zeros to where a tensor may begin.
fn align(file: &mut Vec<u8>) {
    file.resize(file.len().next_multiple_of(32), 0);
}

fn text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

/// A value after its kind (`enum gguf_metadata_value_type`).
fn put(file: &mut Vec<u8>, value: &GgufValue) {
    let kind = |file: &mut Vec<u8>, kind: u32| file.extend(kind.to_le_bytes());
    let list = |file: &mut Vec<u8>, of: u32, length: usize| {
        kind(file, 9);
        kind(file, of);
        file.extend((length as u64).to_le_bytes());
    };
    match value {
        GgufValue::U32(number) => {
            kind(file, 4);
            file.extend(number.to_le_bytes());
        }
        GgufValue::I32(number) => {
            kind(file, 5);
            file.extend(number.to_le_bytes());
        }
        GgufValue::F32(number) => {
            kind(file, 6);
            file.extend(number.to_le_bytes());
        }
        GgufValue::Bool(flag) => {
            kind(file, 7);
            file.push((*flag).into());
        }
        GgufValue::String(string) => {
            kind(file, 8);
            text(file, string);
        }
        GgufValue::U64(number) => {
            kind(file, 10);
            file.extend(number.to_le_bytes());
        }
        GgufValue::I64(number) => {
            kind(file, 11);
            file.extend(number.to_le_bytes());
        }
        GgufValue::F64(number) => {
            kind(file, 12);
            file.extend(number.to_le_bytes());
        }
        GgufValue::Integers(numbers) => {
            list(file, 5, numbers.len());
            file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        GgufValue::Floats(numbers) => {
            list(file, 6, numbers.len());
            file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        GgufValue::Strings(strings) => {
            list(file, 8, strings.len());
            strings.iter().for_each(|string| text(file, string));
        }
    }
}
