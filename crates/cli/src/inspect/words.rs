//! What is known of a model, for people.

use std::fmt::Write;

use baton_formats::config::ALL_LINEAR;
use baton_model::{StageMemory, Storage};

use super::facts::{ByStorage, Facts, Spread};
use crate::words::{are, grouped, plural};

/// Of a list that may be long, so many are said.
const SAID: usize = 20;

/// The whole text.
pub(super) fn of(facts: &Facts) -> String {
    let mut text = Text(String::new());
    let sizes = &facts.sizes;
    text.line(&format!("{}: {}, {}", facts.model, facts.family, facts.head));
    text.line("");
    let keys = match sizes.kv_heads {
        same if same == sizes.heads => String::new(),
        fewer => format!(" ({fewer} of keys and values)"),
    };
    let window = sizes.window.map(|window| format!(", of which some blocks see {}", grouped(window as u64)));
    text.item(
        "Sizes",
        &format!(
            "{} of width {}, {} heads of {}{keys}, MLP {}",
            plural(sizes.blocks, "block"),
            grouped(sizes.hidden as u64),
            sizes.heads,
            sizes.head_dim,
            grouped(sizes.mlp as u64),
        ),
    );
    text.more(&format!(
        "{} tokens, {} positions{}",
        grouped(sizes.vocabulary as u64),
        grouped(sizes.positions as u64),
        window.unwrap_or_default()
    ));
    text.item(
        "Parameters",
        &format!("{}, {} in a block", count(sizes.parameters), count(sizes.block_parameters)),
    );
    files(&mut text, facts);
    tensors(&mut text, facts);
    tokenizer(&mut text, facts);
    memory(&mut text, facts);
    for note in &facts.notes {
        text.line("");
        text.line(&format!("Note: {note}"));
    }
    if !facts.problems.is_empty() {
        text.line("");
        text.line("Problems:");
        text.list(&facts.problems, "problems");
    }
    if let Some(list) = &facts.tensors.list {
        text.line("");
        text.line("Tensors:");
        for tensor in list {
            let (shape, size) = (format!("{:?}", tensor.shape), size(tensor.bytes));
            text.line(&format!("  {} {} {shape}, {size}, in {}", tensor.name, tensor.format, tensor.file));
        }
    }
    text.0
}

fn files(text: &mut Text, facts: &Facts) {
    let total: u64 = facts.files.iter().map(|file| file.bytes).sum();
    match &*facts.files {
        [file] => text.item("Weights", &format!("{}, {}", file.name, size(file.bytes))),
        files => text.item("Weights", &format!("{} files, {}", files.len(), size(total))),
    }
}

fn tensors(text: &mut Text, facts: &Facts) {
    let tensors = &facts.tensors;
    let formats = tensors.formats.iter();
    let formats =
        formats.map(|(name, format)| format!("{} in {name} ({})", format.tensors, size(format.bytes)));
    text.item("Tensors", &format!("{}: {}", tensors.count, formats.collect::<Vec<_>>().join(", ")));
    text.more(&match tensors.missing.len() {
        0 => format!("all {} that the model needs are there", tensors.needed),
        missing => {
            format!("{missing} of the {} that the model needs {} missing", tensors.needed, are(missing))
        }
    });
    if !tensors.unused.is_empty() {
        let few: Vec<&str> = tensors.unused.iter().take(3).map(String::as_str).collect();
        let dots = if tensors.unused.len() > few.len() { ", …" } else { "" };
        let unused = tensors.unused.len();
        text.more(&format!("{unused} {} not used: {}{dots}", are(unused), few.join(", ")));
    }
    if tensors.fresh_head {
        text.more("the trained head is not among them, and begins afresh");
    }
}

fn tokenizer(text: &mut Text, facts: &Facts) {
    let tokenizer = &facts.tokenizer;
    let kind = tokenizer.kind.as_deref().unwrap_or("of an unknown kind");
    let id = |id: &u32| id.to_string();
    let begin = tokenizer
        .begin
        .as_ref()
        .map_or_else(|| "no begin token".to_owned(), |id| format!("begins with {id}"));
    let ends: Vec<String> = tokenizer.end.iter().map(id).collect();
    let end =
        if ends.is_empty() { "no end token".to_owned() } else { format!("ends with {}", ends.join(", ")) };
    text.item(
        "Tokenizer",
        &match tokenizer.tokens {
            Some(tokens) => format!("{kind}, {} tokens; {begin}, {end}", grouped(tokens as u64)),
            None => "none that can be used".to_owned(),
        },
    );
    text.more(if tokenizer.chat_template { "with a chat template" } else { "without a chat template" });
}

fn memory(text: &mut Text, facts: &Facts) {
    let row = |name: &str, cells: [String; 4]| {
        let [a, b, c, d] = cells;
        format!("  {name:<34} {a:>9} {b:>9} {c:>9} {d:>9}")
    };
    let sizes =
        |bytes: &ByStorage| Storage::ALL.map(|storage| size(bytes.get(&storage).copied().unwrap_or(0)));
    text.line("");
    text.line(&row("Frozen weights, kept as", Storage::ALL.map(|storage| storage.name().to_owned())));
    text.line(&row("a block", sizes(&facts.bytes.block)));
    text.line(&row("the host (both ends)", sizes(&facts.bytes.ends)));
    for spread in &facts.bytes.spread {
        let largest = Storage::ALL.map(|storage| size(largest(spread, storage, |memory| memory.frozen)));
        text.line(&row(&phones(spread), largest));
    }
    let estimate = &facts.estimate;
    text.line("");
    text.line(&row(
        "With all that a run needs, about",
        Storage::ALL.map(|storage| storage.name().to_owned()),
    ));
    let host = Storage::ALL.map(|storage| {
        let ends = facts.bytes.ends.get(&storage).copied().unwrap_or(0);
        size(ends.saturating_add(estimate.host_activations))
    });
    text.line(&row("the host", host));
    for spread in &facts.bytes.spread {
        let largest = Storage::ALL.map(|storage| size(largest(spread, storage, StageMemory::total)));
        text.line(&row(&phones(spread), largest));
    }
    text.line(&format!(
        "  An estimate: adapters of rank {} on {}, their moments and gradients, and the activations of\n  \
         up to {} in flight, {} of {} tokens each; not the program, nor what the graphics driver keeps.",
        estimate.lora_rank,
        if estimate.targets == [ALL_LINEAR] { "every map".to_owned() } else { estimate.targets.join(", ") },
        plural(usize::from(estimate.micro_batches), "micro-batch"),
        plural(usize::try_from(estimate.samples).unwrap_or(usize::MAX), "sample"),
        grouped(estimate.seq_len.into()),
    ));
}

/// The most that one of the phones holds.
fn largest(spread: &Spread, storage: Storage, part: impl Fn(&StageMemory) -> u64) -> u64 {
    spread.stages.iter().filter_map(|stage| stage.memory.get(&storage)).map(part).max().unwrap_or(0)
}

/// As in "each of 4 phones (7 or 8 blocks)".
fn phones(spread: &Spread) -> String {
    let lengths = spread.stages.iter().map(|stage| stage.blocks[1] - stage.blocks[0]);
    let (least, most) = (lengths.clone().min().unwrap_or(0), lengths.max().unwrap_or(0));
    let blocks = plural(usize::from(most), "block");
    let blocks = if least == most { blocks } else { format!("{least} or {blocks}") };
    match (spread.phones, spread.stages.len()) {
        (1, _) => format!("1 phone ({blocks})"),
        (phones, stages) if stages < phones => format!("each of {phones} phones (only {stages} used)"),
        (phones, _) => format!("each of {phones} phones ({blocks})"),
    }
}

/// Lines with a word before them.
struct Text(String);

impl Text {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn item(&mut self, name: &str, value: &str) {
        // Writing into a string does not fail.
        let _ = writeln!(self.0, "{name:<12}{value}");
    }

    fn more(&mut self, value: &str) {
        self.item("", value);
    }

    fn list(&mut self, items: &[String], what: &str) {
        for item in items.iter().take(SAID) {
            self.line(&format!("  {item}"));
        }
        if let Some(more) = items.len().checked_sub(SAID).filter(|more| *more > 0) {
            self.line(&format!("  and {more} more {what}: --json lists them all"));
        }
    }
}

/// `134.5 million`
fn count(number: u64) -> String {
    match number {
        0..10_000 => grouped(number),
        10_000..1_000_000 => format!("{:.0} thousand", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} million", number as f64 / 1e6),
        _ => format!("{:.2} billion", number as f64 / 1e9),
    }
}

/// `1.5 MB`; a megabyte is a million bytes.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        1_000_000_000..1_000_000_000_000 => format!("{:.2} GB", bytes as f64 / 1e9),
        _ => format!("{:.2} TB", bytes as f64 / 1e12),
    }
}
