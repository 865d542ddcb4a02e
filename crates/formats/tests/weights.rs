//! Safetensors: true files read by range, and files that lie refused.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic)] // clippy does not see that the helpers are of tests

mod common;

use std::collections::BTreeMap;
use std::ops::Range;

use baton_formats::{
    DirFiles, Files, FilesError, MemoryFiles, ModelConfig, NumberFormat, SafetensorsWriter, TensorIndex,
    TensorSpec, WeightsError, block_tensors, end_tensors, read_all, write_safetensors,
};
use common::Counting;
use futures::executor::block_on;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FILE: &str = "model.safetensors";

/// A file with this header, and as many zero bytes after it.
fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn files(bytes: Vec<u8>) -> MemoryFiles {
    let mut files = MemoryFiles::new();
    files.insert(FILE, bytes);
    files
}

fn open(bytes: Vec<u8>) -> Result<TensorIndex, WeightsError> {
    block_on(TensorIndex::open(&files(bytes), FILE))
}

fn stories() -> Option<(Counting<DirFiles>, ModelConfig)> {
    let files = Counting::new(DirFiles::new(common::shared("models/stories260k")?));
    let config = ModelConfig::parse(&block_on(read_all(&files, "config.json", 1 << 20)).unwrap()).unwrap();
    files.take();
    Some((files, config))
}

#[test]
fn every_tensor_of_a_real_model_is_read_as_the_library_reads_it() {
    let Some((files, config)) = stories() else { return };
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    let mut wanted = named(&end_tensors(&config));
    wanted.extend((0..config.num_hidden_layers).flat_map(|block| named(&block_tensors(&config, block))));
    assert_eq!(index.names().count(), wanted.len());
    let size = block_on(files.size(FILE)).unwrap();
    let header_end = files.take().last().unwrap().end;
    let mut heard = 0;
    let tensors = block_on(index.read_many_f32(&files, &wanted, |bytes| heard += bytes)).unwrap();
    assert_eq!(heard, size - header_end);
    assert_eq!(files.take(), [Range { start: header_end, end: size }], "neighbours are fetched together");

    let values: usize = tensors.values().map(Vec::len).sum();
    assert_eq!(values as u64, config.parameters());
    let bytes = std::fs::read(common::shared("models/stories260k/model.safetensors").unwrap()).unwrap();
    let library = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, _) in &wanted {
        let expected: Vec<f32> = library
            .tensor(name)
            .unwrap()
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        assert_eq!(tensors[name], expected, "{name}");
    }
}

/// Names and shapes in the file.
fn named<Part>(tensors: &[TensorSpec<Part>]) -> Vec<(String, Vec<usize>)> {
    tensors.iter().map(|tensor| (tensor.name().to_owned(), tensor.file_shape())).collect()
}

#[test]
fn a_block_is_loaded_without_a_byte_of_another() {
    let Some((files, config)) = stories() else { return };
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    files.take();
    for block in 0..config.num_hidden_layers {
        let wanted = named(&block_tensors(&config, block));
        let tensors = block_on(index.read_many_f32(&files, &wanted, |_| ())).unwrap();
        assert_eq!(tensors.len(), wanted.len());
        let reads = files.take();
        let read: u64 = reads.iter().map(|range| range.end - range.start).sum();
        assert_eq!(read, 4 * config.block_parameters());
        for name in index.names().filter(|name| !tensors.contains_key(*name)) {
            let other = &index.get(name).unwrap().range;
            assert!(reads.iter().all(|read| read.end <= other.start || other.end <= read.start), "{name}");
        }
    }
}

#[test]
fn a_file_larger_than_a_browser_can_address_is_read_by_range() {
    // 5 GB of f16, as the parts of large models have, and a small tensor at the very end.
    let header = r#"{"large":{"dtype":"F16","shape":[2500000000],"data_offsets":[0,5000000000]},"small":{"dtype":"F32","shape":[2],"data_offsets":[5000000000,5000000008]}}"#;
    let head = file(header, 0);
    let size = head.len() as u64 + 5_000_000_008;
    let files = Vast { head, size };
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    assert_eq!(index.get("small").unwrap().range, size - 8..size);
    assert_eq!(block_on(index.read_f32(&files, "small", &[2])).unwrap(), [0.0, 0.0]);
}

/// Zeros of any size that take no memory, behind a true header.
struct Vast {
    head: Vec<u8>,
    size: u64,
}

impl Files for Vast {
    async fn size(&self, _: &str) -> Result<u64, FilesError> {
        Ok(self.size)
    }

    async fn read(&self, _: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        let byte = |at| usize::try_from(at).ok().and_then(|at| self.head.get(at)).copied().unwrap_or(0);
        Ok(range.map(byte).collect())
    }
}

#[test]
fn reads_stay_within_their_limits_whatever_the_layout() {
    const MIB: u64 = 1 << 20;
    for seed in 0..20 {
        println!("seed {seed}");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // Sizes around the two limits, and odd ones, in f16 so that an element can be torn.
        let sizes =
            [1, 3, 1000, (32 << 10) - 1, 32 << 10, (32 << 10) + 1, MIB, 4 * MIB - 1, 4 * MIB, 5 * MIB];
        let lengths: Vec<u64> = (0..12).map(|_| sizes[random.random_range(0..sizes.len())]).collect();
        let mut end = 0;
        let members = lengths.iter().enumerate().map(|(at, length)| {
            let start = end;
            end += 2 * length;
            format!(r#""t{at}":{{"dtype":"F16","shape":[{length}],"data_offsets":[{start},{end}]}}"#)
        });
        let head = file(&format!("{{{}}}", members.collect::<Vec<_>>().join(",")), 0);
        let size = head.len() as u64 + end;
        let files = Counting::new(Vast { head, size });
        let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
        files.take();

        let mut wanted: Vec<_> = lengths.iter().enumerate().collect();
        wanted.shuffle(&mut random);
        wanted.truncate(random.random_range(1..=wanted.len()));
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(at, length)| (format!("t{at}"), vec![usize::try_from(**length).unwrap()]))
            .collect();
        let tensors = block_on(index.read_many_f32(&files, &wanted, |_| ())).unwrap();
        for (name, shape) in &wanted {
            assert_eq!(tensors[name].len(), shape[0], "{name}");
        }
        let reads = files.take();
        assert!(reads.iter().all(|read| read.end - read.start <= 8 * MIB), "{reads:?}");
        assert!(reads.windows(2).all(|pair| pair[0].end <= pair[1].start), "nothing twice: {reads:?}");
        // Of what was not asked for, no more than the small holes between neighbours.
        for name in index.names().filter(|name| !tensors.contains_key(*name)) {
            let hole = &index.get(name).unwrap().range;
            let touched = reads.iter().any(|read| read.start < hole.end && hole.start < read.end);
            assert!(!touched || hole.end - hole.start <= 64 << 10, "{name}");
        }
    }
}

#[test]
fn halves_become_the_floats_that_they_stand_for() {
    let header = r#"{"h":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[12,20]}}"#;
    let mut bytes = file(header, 0);
    // IEEE 754 binary16: 1, -2, the largest, the least subnormal, ∞, -0.
    bytes.extend(
        [0x3c00u16, 0xc000, 0x7bff, 0x0001, 0x7c00, 0x8000].iter().flat_map(|half| half.to_le_bytes()),
    );
    // bfloat16 is the upper half of a float.
    let floats = [1.0f32, -3.140625, 1e38, f32::NEG_INFINITY];
    bytes.extend(floats.iter().flat_map(|float| ((float.to_bits() >> 16) as u16).to_le_bytes()));
    let files = files(bytes);
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    assert_eq!(index.get("h").unwrap().format, NumberFormat::F16);
    let halves = block_on(index.read_f32(&files, "h", &[2, 3])).unwrap();
    assert_eq!(halves, [1.0, -2.0, 65504.0, 2.0f32.powi(-24), f32::INFINITY, -0.0]);
    assert!(halves[5].is_sign_negative());
    let brains = block_on(index.read_f32(&files, "b", &[4])).unwrap();
    assert_eq!(brains, floats.map(|float| f32::from_bits(float.to_bits() & 0xffff_0000)));
}

#[test]
fn headers_that_lie_are_refused() {
    let tensor = |name: &str, dtype: &str, shape: &str, start: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let object = |members: &[String]| format!("{{{}}}", members.join(","));
    let a = tensor("a", "F32", "[2]", 0, 8);
    for (lie, header) in [
        ("overlap", object(&[a.clone(), tensor("b", "F32", "[2]", 4, 12)])),
        ("hole", object(&[a.clone(), tensor("b", "F32", "[1]", 12, 16)])),
        ("twice", object(&[a.clone(), tensor("a", "F32", "[2]", 8, 16)])),
        ("the same bytes twice", object(&[a, tensor("b", "F32", "[2]", 0, 8)])),
        ("shape against bytes", object(&[tensor("a", "F32", "[3]", 0, 8)])),
        ("dtype against bytes", object(&[tensor("a", "F16", "[2]", 0, 8)])),
        ("backwards", object(&[tensor("a", "F32", "[2]", 8, 0)])),
        ("overflow", object(&[tensor("a", "F32", "[4294967296,4294967296,4294967296]", 0, 8)])),
        ("overflow in bits", object(&[tensor("a", "F32", "[2305843009213693952]", 0, 8)])),
        ("huge offset", object(&[tensor("a", "F32", "[2]", 0, u64::MAX)])),
        ("negative", r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#.to_owned()),
        ("no such dtype", object(&[tensor("a", "F31", "[2]", 0, 8)])),
        ("half a byte", object(&[tensor("a", "F4", "[1]", 0, 0)])),
        ("metadata that are none", r#"{"__metadata__":{"a":1}}"#.to_owned()),
        ("no object", "[]".to_owned()),
        ("no JSON", "{".to_owned()),
        ("empty", String::new()),
    ] {
        match open(file(&header, 16)) {
            Err(WeightsError::Header { .. }) => {}
            other => panic!("{lie}: {other:?}"),
        }
    }
    let not_utf8 = [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat();
    assert!(matches!(open(not_utf8), Err(WeightsError::Header { .. })));
}

#[test]
fn a_header_longer_than_its_file_or_the_limit_is_not_read() {
    let name = || FILE.to_owned();
    assert_eq!(open(vec![0; 7]).unwrap_err(), WeightsError::TooShort { name: name(), size: 7 });
    for header in [9, 1 << 40, u64::MAX] {
        let bytes = [&header.to_le_bytes()[..], &[b' '; 8]].concat();
        assert_eq!(open(bytes).unwrap_err(), WeightsError::HeaderLength { name: name(), header, limit: 8 });
    }
    // A vast file whose header fits the file, but not the limit: only the eight bytes of its length are read.
    let header = (32u64 << 20) + 1;
    let files = Counting::new(Vast { head: header.to_le_bytes().to_vec(), size: 1 << 40 });
    assert_eq!(
        block_on(TensorIndex::open(&files, FILE)).unwrap_err(),
        WeightsError::HeaderLength { name: name(), header, limit: 32 << 20 }
    );
    assert_eq!(files.take(), vec![Range { start: 0, end: 8 }]);
}

#[test]
fn a_file_of_another_size_than_it_promises_is_refused_with_both_sizes() {
    let header = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    let expected = 8 + header.len() as u64 + 16;
    let name = || FILE.to_owned();
    assert!(open(file(header, 16)).is_ok());
    assert_eq!(
        open(file(header, 12)).unwrap_err(),
        WeightsError::Truncated { name: name(), expected, found: expected - 4 }
    );
    assert_eq!(
        open(file(header, 17)).unwrap_err(),
        WeightsError::TooLong { name: name(), expected, found: expected + 1 }
    );
}

#[test]
fn a_tensor_that_is_not_what_the_model_needs_is_refused() {
    let header = r#"{"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]}}"#;
    let files = files(file(header, 16));
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    let read = |name, shape: &[usize]| block_on(index.read_f32(&files, name, shape)).unwrap_err();
    assert_eq!(read("c", &[2]), WeightsError::Missing { file: FILE.to_owned(), tensor: "c".to_owned() });
    assert_eq!(
        read("b", &[1, 2]),
        WeightsError::WrongShape { tensor: "b".to_owned(), expected: vec![1, 2], found: vec![2, 1] }
    );
    assert_eq!(read("a", &[2]), WeightsError::UnsupportedFormat { tensor: "a".to_owned(), format: "I32" });
}

#[test]
fn random_damage_is_an_error_or_harmless_and_never_a_panic() {
    let tensors = [("a".to_owned(), vec![2, 3], vec![1.0f32; 6]), ("b".to_owned(), vec![0], vec![])];
    let good = write_safetensors(&tensors, &BTreeMap::new()).unwrap();
    for seed in 0..2000 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = good.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        bytes.truncate(random.random_range(0..=2 * bytes.len()).min(good.len()));
        let files = files(bytes);
        if let Ok(index) = block_on(TensorIndex::open(&files, FILE)) {
            for name in index.names() {
                let entry = index.get(name).unwrap();
                let values = block_on(index.read_f32(&files, name, &entry.shape));
                let expected: usize = entry.shape.iter().product();
                assert!(
                    values.is_err() || values.is_ok_and(|values| values.len() == expected),
                    "seed {seed}"
                );
            }
        }
    }
}

#[test]
fn what_is_written_is_read_back_by_us_and_by_the_library() {
    let tensors = [
        ("model.b".to_owned(), vec![2, 3], vec![1.0f32, -2.0, 3.5, f32::MIN_POSITIVE, 0.0, -0.0]),
        ("a \"quoted\" näme".to_owned(), vec![], vec![7.0]),
        ("empty".to_owned(), vec![0, 4], vec![]),
    ];
    let metadata: BTreeMap<_, _> =
        [("format", "pt"), ("by", "baton")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let bytes = write_safetensors(&tensors, &metadata).unwrap();
    assert_eq!(bytes, write_safetensors(&tensors, &metadata).unwrap());
    let library = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(library.len(), 3);
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["by"], "baton");
    let files = files(bytes);
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    for (name, shape, values) in &tensors {
        let read = block_on(index.read_f32(&files, name, shape)).unwrap();
        assert_eq!(
            read.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        );
    }
    let wrong = [("a".to_owned(), vec![2, 3], vec![0.0f32; 5])];
    assert_eq!(
        write_safetensors(&wrong, &metadata),
        Err(WeightsError::WrongLength { tensor: "a".to_owned(), shape: vec![2, 3], values: 5 })
    );
}

/// A model in two parts, and its index.
fn sharded() -> MemoryFiles {
    let part =
        |tensors: &[(String, Vec<usize>, Vec<f32>)]| write_safetensors(tensors, &BTreeMap::new()).unwrap();
    let mut files = MemoryFiles::new();
    files.insert(
        "model-00001-of-00002.safetensors",
        part(&[
            ("a".to_owned(), vec![2], vec![1.0, 2.0]),
            ("unlisted".to_owned(), vec![1], vec![0.0]),
            ("z".to_owned(), vec![1], vec![26.0]),
        ]),
    );
    files.insert("model-00002-of-00002.safetensors", part(&[("b".to_owned(), vec![1, 2], vec![3.0, 4.0])]));
    files.insert(INDEX, INDEX_JSON);
    files
}

const INDEX: &str = "model.safetensors.index.json";
const INDEX_JSON: &str = r#"{"metadata": {"total_size": 20}, "weight_map": {
    "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
    "z": "model-00001-of-00002.safetensors"}}"#;

#[test]
fn a_model_in_parts_is_read_as_one() {
    let files = Counting::new(sharded());
    let index = block_on(TensorIndex::open_model(&files)).unwrap();
    assert_eq!(index.names().collect::<Vec<_>>(), ["a", "b", "z"]);
    assert_eq!(index.files().len(), 2);
    assert_eq!(index.get("b").unwrap().file, "model-00002-of-00002.safetensors");
    assert_eq!(index.find(&["x.z", "z", "a"]).unwrap().name, "z");
    assert_eq!(index.find(&["x"]), None);
    files.take();
    let wanted =
        [("z", vec![1]), ("b", vec![1, 2]), ("a", vec![2])].map(|(name, shape)| (name.to_owned(), shape));
    let tensors = block_on(index.read_many_f32(&files, &wanted, |_| ())).unwrap();
    assert_eq!(tensors["a"], [1.0, 2.0]);
    assert_eq!(tensors["b"], [3.0, 4.0]);
    assert_eq!(tensors["z"], [26.0]);
    assert_eq!(files.take().len(), 2, "one fetch for each part");
    let missing = block_on(index.read_f32(&files, "q", &[1])).unwrap_err();
    assert_eq!(missing, WeightsError::Missing { file: INDEX.to_owned(), tensor: "q".to_owned() });
}

#[test]
fn an_index_that_lies_is_refused_in_words() {
    let open = |edit: &dyn Fn(&mut MemoryFiles)| {
        let mut files = sharded();
        edit(&mut files);
        block_on(TensorIndex::open_model(&files)).map(|_| ())
    };
    let index = || INDEX.to_owned();
    assert_eq!(open(&|_| ()), Ok(()));
    let edited = |from: &str, to: &str| {
        let json = INDEX_JSON.replace(from, to);
        assert_ne!(json, INDEX_JSON);
        open(&|files| files.insert(INDEX, json.clone()))
    };

    for shard in ["../model-00002-of-00002.safetensors", "/etc/passwd", "weights.bin", "", "a/b.safetensors"]
    {
        let found = edited("model-00002-of-00002.safetensors", shard);
        assert_eq!(found, Err(WeightsError::ShardName { index: index(), shard: shard.to_owned() }));
    }
    let shard = "model-00003-of-00002.safetensors".to_owned();
    let found = edited("model-00002-of-00002.safetensors", &shard);
    assert_eq!(found, Err(WeightsError::MissingShard { index: index(), shard }));
    let shard = "model-00001-of-00002.safetensors".to_owned();
    let found = edited(r#""z""#, r#""y""#);
    assert_eq!(
        found,
        Err(WeightsError::NotInShard { index: index(), tensor: "y".to_owned(), shard: shard.clone() })
    );
    let found = edited(r#""b": "model-00002"#, r#""a": "model-00002"#);
    assert!(matches!(found, Err(WeightsError::Header { reason, .. }) if reason.contains("twice")));
    for broken in ["", "[]", "{}", r#"{"weight_map": 3}"#, r#"{"weight_map": {"a": 3}}"#] {
        let found = open(&|files| files.insert(INDEX, broken));
        assert!(matches!(found, Err(WeightsError::Header { .. })), "{broken}: {found:?}");
    }

    // The same tensor in both parts.
    let found = open(&|files| {
        let tensors = [("a".to_owned(), vec![1], vec![9.0]), ("b".to_owned(), vec![1, 2], vec![3.0, 4.0])];
        files.insert(
            "model-00002-of-00002.safetensors",
            write_safetensors(&tensors, &BTreeMap::new()).unwrap(),
        );
    });
    let second = "model-00002-of-00002.safetensors".to_owned();
    assert_eq!(found, Err(WeightsError::Twice { tensor: "a".to_owned(), first: shard, second }));

    let places: Vec<_> = (0..2000).map(|at| format!(r#""t{at}": "p{at}.safetensors""#)).collect();
    let many = format!(r#"{{"weight_map": {{{}}}}}"#, places.join(","));
    let found = open(&|files| files.insert(INDEX, many.clone()));
    let name = index();
    assert_eq!(found, Err(WeightsError::TooMany { name, what: "parts", found: 2000, limit: 1024 }));
}

#[test]
fn where_there_are_no_weights_the_error_says_what_was_looked_for() {
    let error = block_on(TensorIndex::open_model(&MemoryFiles::new())).unwrap_err();
    assert_eq!(error, WeightsError::NoWeights);
    assert!(error.to_string().contains(".gguf"));
}

#[test]
fn a_file_written_piece_by_piece_is_what_was_promised() {
    let parts = vec![
        ("half".to_owned(), NumberFormat::F16, vec![3]),
        ("empty".to_owned(), NumberFormat::F32, vec![0, 3]),
        ("whole".to_owned(), NumberFormat::F32, vec![2, 2]),
        ("brain".to_owned(), NumberFormat::Bf16, vec![1]),
    ];
    let begin = || SafetensorsWriter::new(Vec::new(), parts.clone(), &BTreeMap::new()).unwrap();
    let mut writer = begin();
    assert_eq!(writer.order().collect::<Vec<_>>(), ["whole", "half", "brain"], "aligned: wide numbers first");
    writer.write("whole", &[1.0, 2.0, 3.0]).unwrap();
    writer.write("whole", &[4.0]).unwrap();
    writer.write("half", &[0.5, 1.0 / 3.0, -2.0]).unwrap();
    writer.write("brain", &[1.5]).unwrap();
    let bytes = writer.finish().unwrap();
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 4);
    let files = files(bytes);
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    let read = |name, shape: &[usize]| block_on(index.read_f32(&files, name, shape)).unwrap();
    assert_eq!(read("whole", &[2, 2]), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(read("half", &[3]), [0.5, 0.333_251_95, -2.0]);
    assert_eq!(read("brain", &[1]), [1.5]);
    assert!(read("empty", &[0, 3]).is_empty());

    let out_of_turn = begin().write("half", &[0.0]).unwrap_err();
    let (expected, found) = ("whole".to_owned(), "half".to_owned());
    assert_eq!(out_of_turn, WeightsError::OutOfTurn { expected, found });
    let whole = |values| WeightsError::WrongLength { tensor: "whole".to_owned(), shape: vec![2, 2], values };
    assert_eq!(begin().write("whole", &[0.0; 5]).unwrap_err(), whole(5));
    let mut short = begin();
    short.write("whole", &[0.0; 3]).unwrap();
    assert_eq!(short.finish().unwrap_err(), whole(3));
    for (format, name) in [(NumberFormat::Q4_0, "Q4_0"), (NumberFormat::Other("I8"), "I8")] {
        let parts = vec![("a".to_owned(), format, vec![32])];
        let error = SafetensorsWriter::new(Vec::new(), parts, &BTreeMap::new()).unwrap_err();
        assert_eq!(error, WeightsError::UnsupportedFormat { tensor: "a".to_owned(), format: name });
    }
}
