//! A model of a given shape that is in no file.

use std::ops::Range;

use baton_formats::{Files, FilesError, ModelConfig, block_tensors, end_tensors};
use serde_json::json;

/// A safetensors file of a model that is nowhere: its numbers follow from their places.
pub struct Made {
    header: Vec<u8>,
    size: u64,
}

impl Made {
    pub fn new(config: &ModelConfig) -> Self {
        let blocks = (0..config.num_hidden_layers).flat_map(|block| block_tensors(config, block));
        let blocks = blocks.map(|spec| (spec.name().to_owned(), spec.file_shape()));
        let ends = end_tensors(config).into_iter().map(|spec| (spec.name().to_owned(), spec.file_shape()));
        let mut entries = serde_json::Map::new();
        let mut end = 0;
        for (name, shape) in ends.chain(blocks) {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            entries.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
        }
        let mut json = serde_json::to_string(&entries).unwrap();
        json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend(json.bytes());
        let size = (header.len() + end) as u64;
        Self { header, size }
    }
}

impl Files for Made {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        match name {
            "model.safetensors" => Ok(self.size),
            other => panic!("nobody asks for {other}"),
        }
    }

    async fn read(&self, _: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        let byte = |place: u64| match self.header.get(place as usize) {
            Some(byte) => *byte,
            // The four bytes of a number come from one place.
            None => ((place / 4) as f32 * 0.001).sin().to_le_bytes()[(place % 4) as usize],
        };
        Ok(range.map(byte).collect())
    }
}
