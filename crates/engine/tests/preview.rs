//! What a host says of a text before a run: cut, split and counted as the settings, the columns and the model have it.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use baton_engine::cache::AnyCache;
use baton_engine::kept::RunStore;
use baton_engine::node::{About, Environment, HostCommand, HostEvent, Input, ModelChoice, queue, run_host};
use baton_engine::source::AnyFiles;
use baton_formats::MemoryFiles;
use baton_formats::dataset::{Mapping, Role};
use baton_protocol::message::Device;
use baton_protocol::run::{ModelSource, Settings};
use baton_transport::memory::MemoryChannel;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

#[derive(Clone)]
struct AtOnce;

impl Environment for AtOnce {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    async fn breathe(&self) {}

    async fn memory(&self, most: u64, _held: u64) -> u64 {
        most
    }
}

/// A golden family's model with a tokenizer of three words.
fn model(family: &str) -> HostCommand {
    let mut files = MemoryFiles::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families").join(family);
    for name in ["config.json", "model.safetensors"] {
        files.insert(name, std::fs::read(folder.join(name)).unwrap());
    }
    let tokenizer = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"[UNK]":7,"red":8,"green":9,"blue":10},"unk_token":"[UNK]"}}"#;
    files.insert("tokenizer.json", tokenizer);
    let (files, source) = (AnyFiles::Memory(files), ModelSource::Host);
    HostCommand::SetModel(Box::new(ModelChoice { files, source, name: family.into(), base: None }))
}

fn text(name: &str, text: &str) -> HostCommand {
    HostCommand::SetText(name.into(), text.as_bytes().to_vec())
}

fn preview(settings: Settings) -> HostCommand {
    HostCommand::Preview(Box::new(settings))
}

/// What a host says to these commands.
fn said(commands: Vec<HostCommand>) -> Vec<HostEvent> {
    let events = Rc::new(RefCell::new(Vec::new()));
    let mut pool = LocalPool::new();
    let (inputs, commands_in) = queue::<MemoryChannel, HostCommand>();
    let introduction = Device { name: "host".into(), backend: "CPU".into() };
    let tell = {
        let events = events.clone();
        move |event| events.borrow_mut().push(event)
    };
    let device = baton_model::cpu();
    let run = run_host(
        introduction,
        device,
        AnyCache::None,
        RunStore::new(AnyCache::None),
        AtOnce,
        inputs.clone(),
        commands_in,
        tell,
    );
    pool.spawner().spawn_local(run).unwrap();
    for command in commands {
        inputs.unbounded_send(Input::Command(command)).unwrap();
        pool.run_until_stalled();
    }
    events.take()
}

/// Of every text event: samples, tokens, tokens cut off, and samples kept aside.
fn counts(events: &[HostEvent]) -> Vec<[u64; 4]> {
    let counts = |event: &HostEvent| match event {
        HostEvent::Text { samples, tokens, truncated, validation, .. } => {
            Some([*samples as u64, *tokens, *truncated as u64, *validation as u64])
        }
        _ => None,
    };
    events.iter().filter_map(counts).collect()
}

fn settings(seq_len: u32, validation: f64) -> Settings {
    Settings { seq_len, validation, append_eos: false, ..Settings::default() }
}

#[test]
fn other_settings_count_the_text_anew() {
    let lines = "red green\nblue red\ngreen green blue\nblue blue red red\n";
    let commands = vec![
        preview(settings(16, 0.0)),
        text("lines.txt", lines),
        // Not before there is a model.
        model("llama2"),
        preview(settings(2, 0.0)),
        preview(settings(16, 0.5)),
    ];
    let counts = counts(&said(commands));
    assert_eq!(counts[..2], [[4, 11, 0, 0], [4, 8, 3, 0]]);
    assert_eq!((counts[2][0], counts[2][3], counts.len()), (2, 2, 3));
}

#[test]
fn labels_are_counted_and_other_columns_read_without_another_file() {
    let table =
        "sentence\tother\tlabel\nred\tblue blue\tgood\nblue\tred red red\tbad\ngreen\tred green\tgood\n";
    let columns = |events: &[HostEvent]| {
        let inspected = events.iter().find_map(|event| match event {
            HostEvent::Inspected(inspection) => Some(inspection.mapping.clone()),
            _ => None,
        });
        inspected.unwrap()
    };
    let first = || vec![preview(settings(16, 0.0)), model("bert"), text("labels.tsv", table)];
    let events = said(first());
    let Some(HostEvent::Text { labels, .. }) = events.iter().find(|e| matches!(e, HostEvent::Text { .. }))
    else {
        panic!("no text");
    };
    let names: Vec<(&str, usize)> = labels.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(names, [("bad", 1), ("good", 2)]);
    assert_eq!(counts(&events), [[3, 3, 0, 0]]);
    let change = |roles: [Role; 3]| {
        let mut mapping: Mapping = columns(&events);
        mapping.columns.iter_mut().zip(roles).for_each(|(column, role)| column.role = role);
        HostCommand::MapText(mapping)
    };
    let mut commands = first();
    commands.push(change([Role::Ignore, Role::Text, Role::Label]));
    commands.push(change([Role::Ignore, Role::Ignore, Role::Label]));
    let events = said(commands);
    assert_eq!(counts(&events), [[3, 3, 0, 0], [3, 7, 0, 0]]);
    // The last columns make no samples.
    let error = |event: &HostEvent| matches!(event, HostEvent::Error { about: About::Text, .. });
    assert_eq!(events.iter().filter(|event| error(event)).count(), 1);
}
