//! Records to samples, as a mapping says.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::mapping::{LabelKind, Mapping, Role, inspect};
use super::records::{self, Place, Record, kind_of};
use super::{Dataset, DatasetError, Label, Sample, SampleBody};
use crate::chat::{ChatMessage, Segment};

/// More classes than that are no classes.
const CLASSES_LIMIT: usize = 1000;

/// Reads a text file as [`inspect`] suggests.
///
/// # Errors
///
/// The first record that cannot be read, with its line and column; or that none has anything to train on.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Dataset, DatasetError> {
    parse_with(name, bytes, &inspect(name, bytes)?.mapping)
}

/// Reads a text file as the mapping says.
///
/// # Errors
///
/// The first record that cannot be read, with its line and column; or that the mapping makes no samples, or none that has
/// anything to train on.
pub fn parse_with(name: &str, bytes: &[u8], mapping: &Mapping) -> Result<Dataset, DatasetError> {
    let text = records::text(name, bytes)?;
    let form = mapping.form();
    let mut samples = Vec::new();
    let mut labels = Vec::new();
    let mut skipped = 0;
    records::each(name, text, &mapping.format, &mut |place, record| {
        let record = record?;
        if matches!(record, Record::Blank) {
            skipped += 1;
            return Ok(());
        }
        if form.is_err() {
            // What the record has says more than what the mapping lacks.
            return Err(unknown(name, place, &record, mapping));
        }
        match record_sample(name, place, &record, mapping)? {
            (Some(body), label) => {
                samples.push(Sample { body, label: None });
                labels.push(label);
            }
            (None, _) => skipped += 1,
        }
        Ok(())
    })?;
    if samples.is_empty() {
        return Err(DatasetError::Empty { name: name.to_owned() });
    }
    let names = resolve(name, &mut samples, &labels, mapping.labels)?;
    Ok(Dataset { samples, labels: names, skipped })
}

/// A label as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RawLabel {
    Whole(i64),
    Number(f64),
    Name(String),
}

/// The text and the label of a record; no text where there is nothing to learn in it.
pub(super) fn record_sample(
    name: &str,
    place: Place,
    record: &Record<'_>,
    mapping: &Mapping,
) -> Result<(Option<SampleBody>, Option<RawLabel>), DatasetError> {
    let reader = Reader { name, place, record, mapping };
    let body = match reader.body()? {
        Some(body) => body,
        None => return Err(unknown(name, place, record, mapping)),
    };
    let sample = Sample { body, label: None };
    if !sample.useful() {
        return Ok((None, None));
    }
    let label = reader.label()?;
    Ok((Some(sample.body), label))
}

fn unknown(name: &str, place: Place, record: &Record<'_>, mapping: &Mapping) -> DatasetError {
    let fields = match record {
        Record::Object(object) => object.keys().take(20).cloned().collect(),
        _ => mapping.columns.iter().take(20).map(|column| column.name.clone()).collect(),
    };
    DatasetError::Record { name: name.to_owned(), place, fields }
}

/// What stands in a column.
#[derive(Clone, Copy)]
enum Cell<'a> {
    Text(&'a str),
    Json(&'a Value),
}

struct Reader<'a> {
    name: &'a str,
    place: Place,
    record: &'a Record<'a>,
    mapping: &'a Mapping,
}

impl<'a> Reader<'a> {
    fn body(&self) -> Result<Option<SampleBody>, DatasetError> {
        if let Some((column, cell)) = self.cell(Role::Messages) {
            let mut messages = self.messages(column, cell)?;
            if let Some(system) = self.text(Role::System)?.filter(|system| !system.trim().is_empty())
                && messages.first().is_none_or(|first| first.role != "system")
            {
                messages.insert(0, ChatMessage::new("system", system));
            }
            return Ok(Some(SampleBody::Chat(messages)));
        }
        if let (Some(instruction), Some(output)) = (self.text(Role::Instruction)?, self.text(Role::Output)?) {
            let input = self.text(Role::Input)?.unwrap_or_default().to_owned();
            let (instruction, output) = (instruction.to_owned(), output.to_owned());
            return Ok(Some(SampleBody::Task { instruction, input, output }));
        }
        if let (Some((asked, prompt)), Some((told, completion))) =
            (self.cell(Role::Prompt), self.cell(Role::Completion))
        {
            // Conversations, cut where the answer begins.
            if let (Cell::Json(Value::Array(_)), Cell::Json(Value::Array(_))) = (prompt, completion) {
                let mut messages = self.messages(asked, prompt)?;
                messages.append(&mut self.messages(told, completion)?);
                return Ok(Some(SampleBody::Chat(messages)));
            }
            let prompt = self.as_text(asked, prompt)?;
            let completion = self.as_text(told, completion)?;
            return Ok(Some(SampleBody::Segments(vec![Segment::read(prompt), Segment::trained(completion)])));
        }
        let Some(text) = self.text(Role::Text)? else { return Ok(None) };
        Ok(Some(match self.text(Role::TextB)? {
            Some(second) => SampleBody::Pair(text.to_owned(), second.to_owned()),
            None => SampleBody::Segments(vec![Segment::trained(text)]),
        }))
    }

    fn label(&self) -> Result<Option<RawLabel>, DatasetError> {
        let Some((column, cell)) = self.cell(Role::Label) else {
            // A label that only some records have is missing in the others.
            return match self.mapping.column(Role::Label) {
                Some((_, column)) => Err(self.field(column, "a label", "missing".to_owned())),
                None => Ok(None),
            };
        };
        let number = |number: f64| match number {
            _ if number.is_finite() => Ok(RawLabel::Number(number)),
            _ => Err(self.field(column, "a label", number.to_string())),
        };
        let label = match cell {
            Cell::Json(Value::Bool(label)) => RawLabel::Whole(i64::from(*label)),
            Cell::Json(Value::Number(label)) => match (label.as_i64(), label.as_f64()) {
                (Some(whole), _) => RawLabel::Whole(whole),
                (None, Some(value)) => number(value)?,
                (None, None) => return Err(self.field(column, "a label", label.to_string())),
            },
            cell => {
                let text = self.as_text(column, cell)?.trim();
                if text.is_empty() {
                    return Err(self.field(column, "a label", "empty".to_owned()));
                }
                match (text.parse(), text.parse::<f64>()) {
                    (Ok(whole), _) => RawLabel::Whole(whole),
                    // "nan" and "inf" are names here.
                    (Err(_), Ok(value)) if value.is_finite() => RawLabel::Number(value),
                    _ => RawLabel::Name(text.to_owned()),
                }
            }
        };
        Ok(Some(label))
    }

    /// What stands in the column with this role, if the record has it.
    fn cell(&self, role: Role) -> Option<(&'a str, Cell<'a>)> {
        let (place, column) = self.mapping.column(role)?;
        let cell = match self.record {
            Record::Blank => return None,
            Record::Row(cells) => Cell::Text(cells.get(place)?),
            Record::Object(object) => Cell::Json(object.get(column).filter(|value| !value.is_null())?),
        };
        Some((column, cell))
    }

    fn text(&self, role: Role) -> Result<Option<&'a str>, DatasetError> {
        self.cell(role).map(|(column, cell)| self.as_text(column, cell)).transpose()
    }

    fn as_text(&self, column: &str, cell: Cell<'a>) -> Result<&'a str, DatasetError> {
        match cell {
            Cell::Text(text) => Ok(text),
            Cell::Json(Value::String(text)) => Ok(text),
            Cell::Json(other) => Err(self.field(column, "a text", kind_of(other).to_owned())),
        }
    }

    /// A conversation in OpenAI's or ShareGPT's form.
    fn messages(&self, column: &str, cell: Cell<'_>) -> Result<Vec<ChatMessage>, DatasetError> {
        let expected = "a list of messages, each with \"role\" and \"content\" (or \"from\" and \"value\")";
        let Cell::Json(Value::Array(items)) = cell else {
            let found = match cell {
                Cell::Text(_) => "a text".to_owned(),
                Cell::Json(other) => kind_of(other).to_owned(),
            };
            return Err(self.field(column, expected, found));
        };
        let message = |(number, item): (usize, &Value)| {
            let wrong =
                |found: &str| self.field(column, expected, format!("{found} in message {}", number + 1));
            let Value::Object(fields) = item else { return Err(wrong(kind_of(item))) };
            let (role, content) = message_fields(fields);
            let Some(role) = role.and_then(Value::as_str) else { return Err(wrong("no role")) };
            let content = match content {
                Some(Value::String(text)) => text.clone(),
                // What an assistant says that only calls a tool.
                Some(Value::Null) => String::new(),
                Some(Value::Array(parts)) => parts
                    .iter()
                    .map(|part| part.as_str().or_else(|| part.get("text").and_then(Value::as_str)))
                    .collect::<Option<String>>()
                    .ok_or_else(|| wrong("a part that is no text"))?,
                Some(other) => return Err(wrong(kind_of(other))),
                None => return Err(wrong("no content")),
            };
            Ok(ChatMessage::new(known_role(role), content))
        };
        items.iter().enumerate().map(message).collect()
    }

    fn field(&self, column: &str, expected: &'static str, found: String) -> DatasetError {
        let (name, column) = (self.name.to_owned(), column.to_owned());
        DatasetError::Field { name, place: self.place, column, expected, found }
    }
}

fn message_fields(fields: &Map<String, Value>) -> (Option<&Value>, Option<&Value>) {
    let first = |names: &[&str]| names.iter().find_map(|name| fields.get(*name));
    (first(&["role", "from"]), first(&["content", "value", "text"]))
}

/// ShareGPT's names of roles, as chat templates know them.
fn known_role(role: &str) -> &str {
    match role {
        "human" | "User" | "Human" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" | "model" | "bot" | "Assistant" => "assistant",
        other => other,
    }
}

/// Gives the samples their labels, and says what the classes are called.
fn resolve(
    name: &str,
    samples: &mut [Sample],
    raw: &[Option<RawLabel>],
    kind: LabelKind,
) -> Result<Vec<String>, DatasetError> {
    let present = || raw.iter().flatten();
    if present().next().is_none() {
        return Ok(Vec::new());
    }
    let named = present().any(|label| matches!(label, RawLabel::Name(_)));
    let limit = i64::try_from(CLASSES_LIMIT).unwrap_or(i64::MAX);
    let counts = |label: &RawLabel| matches!(label, RawLabel::Whole(whole) if (0..limit).contains(whole));
    let values = match kind {
        LabelKind::Values => true,
        LabelKind::Classes => false,
        LabelKind::Auto => !named && !present().all(counts),
    };
    if values {
        for (number, (sample, label)) in samples.iter_mut().zip(raw).enumerate() {
            sample.label = match label {
                None => None,
                Some(RawLabel::Whole(value)) => Some(Label::Value(*value as f32)),
                Some(RawLabel::Number(value)) => Some(Label::Value(*value as f32)),
                Some(RawLabel::Name(label)) => {
                    return Err(DatasetError::Field {
                        name: name.to_owned(),
                        place: Place::Record(number + 1),
                        column: "label".to_owned(),
                        expected: "a number",
                        found: format!("{label:?}"),
                    });
                }
            };
        }
        return Ok(Vec::new());
    }
    let too_many = || DatasetError::Classes { name: name.to_owned(), limit: CLASSES_LIMIT };
    if present().all(counts) {
        // Whole numbers keep their value, whatever is missing between them.
        let mut most = 0;
        for (sample, label) in samples.iter_mut().zip(raw) {
            if let Some(RawLabel::Whole(whole)) = label {
                let class = u32::try_from(*whole).map_err(|_| too_many())?;
                most = most.max(class);
                sample.label = Some(Label::Class(class));
            }
        }
        return Ok((0..=most).map(|class| class.to_string()).collect());
    }
    let text = |label: &RawLabel| match label {
        RawLabel::Whole(whole) => whole.to_string(),
        RawLabel::Number(number) => number.to_string(),
        RawLabel::Name(name) => name.clone(),
    };
    let mut names = BTreeSet::new();
    for label in present() {
        names.insert(text(label));
        if names.len() > CLASSES_LIMIT {
            return Err(too_many());
        }
    }
    let names: Vec<String> = names.into_iter().collect();
    for (sample, label) in samples.iter_mut().zip(raw) {
        let class = label.as_ref().and_then(|label| names.binary_search(&text(label)).ok());
        sample.label = class.and_then(|class| u32::try_from(class).ok()).map(Label::Class);
    }
    Ok(names)
}
