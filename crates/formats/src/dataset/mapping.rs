//! Which column of a file is what: found out, suggested, and checked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::DatasetError;
use super::read::record_sample;
use super::records::{self, COLUMNS_LIMIT, Dialect, Record};

/// How a file is cut into records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Format {
    /// A sample a line, the whole line but for its `\n` or `\r\n`.
    Lines,
    /// A sample a line, in two parts: up to the end of the separator, and the rest. E2E's `fields||sentence` is so.
    SplitLines {
        /// What stands between the parts, as `||`.
        separator: String,
    },
    /// A JSON object a line.
    JsonLines,
    /// A list of JSON objects, or an object that holds one as `data` (or `train`, `rows`, `records`, `examples`,
    /// `instances`).
    JsonList,
    /// Rows of cells.
    Table {
        /// An ASCII character, as `,` or a tab.
        delimiter: char,
        /// Whether `"` quotes cells.
        quotes: bool,
        /// Whether the first row names the columns.
        header: bool,
    },
}

/// What a column is to a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Text to learn, or to classify.
    Text,
    /// The second of two texts to classify.
    TextB,
    /// What is read before the completion.
    Prompt,
    /// What is learned after the prompt.
    Completion,
    /// A conversation: OpenAI's `[{role, content}]` or ShareGPT's `[{from, value}]`.
    Messages,
    /// The system message of a conversation.
    System,
    /// Alpaca's task.
    Instruction,
    /// Alpaca's material for the task.
    Input,
    /// Alpaca's answer.
    Output,
    /// A class or a value.
    Label,
    /// Nothing.
    Ignore,
}

/// A column and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// As the file names it.
    pub name: String,
    /// What it is to a sample.
    pub role: Role,
}

/// How labels are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelKind {
    /// As values if there is a number with a fraction, a negative one or one of 1000 and more; as classes otherwise.
    #[default]
    Auto,
    /// As classes: whole numbers count them, anything else names them.
    Classes,
    /// As values.
    Values,
}

/// How a file is read: plain data, to be shown, changed and given to [`super::parse_with`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// How it is cut into records.
    pub format: Format,
    /// Its columns: by name in JSON, in the order of the file elsewhere.
    pub columns: Vec<Column>,
    /// How its labels are read.
    #[serde(default)]
    pub labels: LabelKind,
}

/// What samples a mapping makes; where the columns of several are there, the first of this order in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Conversations.
    Chat,
    /// Alpaca's tasks.
    Task,
    /// Prompts and completions.
    Completion,
    /// Two texts beside each other.
    Pair,
    /// Plain text.
    Text,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// How to read it, as far as can be told.
    pub mapping: Mapping,
    /// Other ways to read it.
    pub alternatives: Vec<Mapping>,
    /// What samples the mapping makes; `None` where a person has to choose the columns.
    pub form: Option<Form>,
    /// Its columns, as those of the mapping.
    pub columns: Vec<ColumnView>,
    /// How many records it has, blank ones left out.
    pub records: usize,
    /// The first few records that cannot be read so, in words.
    pub problems: Vec<String>,
    /// How many cannot.
    pub bad_records: usize,
}

/// A column as a person is shown it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnView {
    /// As the file names it.
    pub name: String,
    /// The first few values, the long ones cut.
    pub samples: Vec<String>,
    /// In how many records it holds something.
    pub filled: usize,
}

const SAMPLES: usize = 3;
const SAMPLE_CHARS: usize = 120;
const PROBLEMS: usize = 10;
const LOOKED_AT: usize = 50;

impl Mapping {
    /// What samples it makes.
    ///
    /// # Errors
    ///
    /// [`DatasetError::Mapping`] when columns are missing for any form, or a role is given twice.
    pub fn form(&self) -> Result<Form, DatasetError> {
        let refuse = |reason: String| Err(DatasetError::Mapping { reason });
        if let Format::SplitLines { separator } = &self.format
            && (separator.is_empty() || separator.contains('\n'))
        {
            return refuse("the separator of the two parts of a line is empty".into());
        }
        if let Format::Table { delimiter, .. } = self.format
            && (!delimiter.is_ascii() || matches!(delimiter, '"' | '\n' | '\r'))
        {
            return refuse(format!("{delimiter:?} cannot stand between cells"));
        }
        let mut roles: Vec<Role> =
            self.columns.iter().map(|column| column.role).filter(|role| *role != Role::Ignore).collect();
        roles.sort_unstable();
        if let Some(twice) = roles.iter().zip(roles.iter().skip(1)).find(|(role, next)| role == next) {
            return refuse(format!("two columns are {:?}", twice.0));
        }
        let has = |role| roles.contains(&role);
        let forms = [
            (has(Role::Messages), Form::Chat),
            (has(Role::Instruction) && has(Role::Output), Form::Task),
            (has(Role::Prompt) && has(Role::Completion), Form::Completion),
            (has(Role::Text) && has(Role::TextB), Form::Pair),
            (has(Role::Text), Form::Text),
        ];
        match forms.into_iter().find(|(there, _)| *there) {
            Some((_, form)) => Ok(form),
            None => {
                let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
                refuse(format!(
                    "of the columns {names:?}, one must be the text, or the conversation, or two the prompt and the completion, \
                     or the instruction and the output"
                ))
            }
        }
    }

    /// The column that has a role.
    pub(super) fn column(&self, role: Role) -> Option<(usize, &str)> {
        let mut columns = self.columns.iter().enumerate();
        columns.find(|(_, column)| column.role == role).map(|(place, column)| (place, column.name.as_str()))
    }
}

/// Says what a file holds, and how it can be read.
///
/// A name that ends in `.jsonl` or `.ndjson` means a JSON record a line, `.json` either that or a list of records, `.csv` and
/// `.tsv` a table, anything else plain text, a sample a line.
///
/// # Errors
///
/// When it is too large, not UTF-8, empty, or has too many columns.
pub fn inspect(name: &str, bytes: &[u8]) -> Result<Inspection, DatasetError> {
    let text = records::text(name, bytes)?;
    let format = detect(name, text);
    let mut views = Views::new(name, text, &format)?;
    let mut failed = Problems::default();
    let mut first = Vec::new();
    let read = records::each(name, text, &format, &mut |_, record| {
        match record {
            Ok(Record::Blank) => {}
            Ok(record) => {
                views.see(name, &record)?;
                if first.len() < LOOKED_AT {
                    first.push(shapes(&record));
                }
            }
            Err(_) => {}
        }
        Ok(())
    });
    if let Err(error @ DatasetError::Columns { .. }) = read {
        return Err(error);
    }
    let mapping = suggest(format, &views, &first);
    let form = mapping.form().ok();
    let mut count = 0;
    let read = records::each(name, text, &mapping.format, &mut |place, record| {
        match record {
            Ok(Record::Blank) => return Ok(()),
            Ok(record) if form.is_some() => {
                if let Err(error) = record_sample(name, place, &record, &mapping) {
                    failed.add(&error);
                }
            }
            Ok(_) => {}
            Err(error) => failed.add(&error),
        }
        count += 1;
        Ok(())
    });
    if let Err(error) = read {
        failed.add(&error);
    }
    if count == 0 && failed.count == 0 {
        return Err(DatasetError::Empty { name: name.to_owned() });
    }
    Ok(Inspection {
        alternatives: alternatives(name, text, &mapping),
        mapping,
        form,
        columns: views.columns,
        records: count,
        problems: failed.said,
        bad_records: failed.count,
    })
}

#[derive(Default)]
struct Problems {
    said: Vec<String>,
    count: usize,
}

impl Problems {
    fn add(&mut self, error: &DatasetError) {
        self.count += 1;
        if self.said.len() < PROBLEMS {
            self.said.push(error.to_string());
        }
    }
}

/// The columns of a file as they are seen.
struct Views {
    columns: Vec<ColumnView>,
    places: BTreeMap<String, usize>,
}

impl Views {
    fn new(name: &str, text: &str, format: &Format) -> Result<Self, DatasetError> {
        let names = match format {
            Format::Lines => vec!["line".to_owned()],
            Format::SplitLines { .. } => vec!["before".to_owned(), "after".to_owned()],
            Format::JsonLines | Format::JsonList => Vec::new(),
            Format::Table { delimiter, quotes, header } => {
                let dialect = Dialect { delimiter: *delimiter, quotes: *quotes };
                records::table_columns(name, text, dialect, *header)?
            }
        };
        let mut views = Self { columns: Vec::new(), places: BTreeMap::new() };
        for column in names {
            views.place(name, &column)?;
        }
        Ok(views)
    }

    fn place(&mut self, file: &str, column: &str) -> Result<usize, DatasetError> {
        if let Some(place) = self.places.get(column) {
            return Ok(*place);
        }
        let place = self.columns.len();
        if place >= COLUMNS_LIMIT {
            return Err(DatasetError::Columns { name: file.to_owned(), limit: COLUMNS_LIMIT });
        }
        self.columns.push(ColumnView { name: column.to_owned(), samples: Vec::new(), filled: 0 });
        self.places.insert(column.to_owned(), place);
        Ok(place)
    }

    fn see(&mut self, file: &str, record: &Record<'_>) -> Result<(), DatasetError> {
        match record {
            Record::Blank => {}
            Record::Row(cells) => {
                for (view, cell) in self.columns.iter_mut().zip(*cells) {
                    view.see(cell.trim().is_empty(), || (*cell).to_owned());
                }
            }
            Record::Object(object) => {
                for (key, value) in *object {
                    let place = self.place(file, key)?;
                    if let Some(view) = self.columns.get_mut(place) {
                        let shown = || value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                        view.see(value.is_null() || value.as_str().is_some_and(str::is_empty), shown);
                    }
                }
            }
        }
        Ok(())
    }
}

impl ColumnView {
    fn see(&mut self, empty: bool, value: impl FnOnce() -> String) {
        if empty {
            return;
        }
        self.filled += 1;
        if self.samples.len() < SAMPLES {
            let value = value();
            let cut: String = value.chars().take(SAMPLE_CHARS).collect();
            self.samples.push(if cut.len() < value.len() { cut + "…" } else { value });
        }
    }
}

/// What the value of a column looks like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Empty,
    Text,
    Whole,
    Number,
    Conversation,
    Other,
}

fn shapes(record: &Record<'_>) -> BTreeMap<String, Shape> {
    match record {
        Record::Blank => BTreeMap::new(),
        Record::Row(cells) => {
            cells.iter().enumerate().map(|(place, cell)| (place.to_string(), cell_shape(cell))).collect()
        }
        Record::Object(object) => {
            object.iter().map(|(key, value)| (key.clone(), value_shape(value))).collect()
        }
    }
}

fn cell_shape(cell: &str) -> Shape {
    let cell = cell.trim();
    match cell {
        "" => Shape::Empty,
        _ if cell.parse::<i64>().is_ok() => Shape::Whole,
        _ if cell.parse::<f64>().is_ok_and(f64::is_finite) => Shape::Number,
        _ => Shape::Text,
    }
}

fn value_shape(value: &Value) -> Shape {
    match value {
        Value::Null => Shape::Empty,
        Value::Bool(_) => Shape::Whole,
        Value::Number(number) if number.is_f64() => Shape::Number,
        Value::Number(_) => Shape::Whole,
        Value::String(text) => {
            if text.is_empty() {
                Shape::Empty
            } else {
                Shape::Text
            }
        }
        Value::Array(items) if items.iter().all(Value::is_object) => Shape::Conversation,
        Value::Array(_) | Value::Object(_) => Shape::Other,
    }
}

fn detect(name: &str, text: &str) -> Format {
    let lower = name.to_ascii_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| lower.ends_with(ending));
    if ends(&[".jsonl", ".ndjson"]) {
        Format::JsonLines
    } else if ends(&[".json"]) {
        if records::is_list(text) { Format::JsonList } else { Format::JsonLines }
    } else if ends(&[".tsv", ".tab"]) {
        table_format(text, '\t')
    } else if ends(&[".csv"]) {
        table_format(text, delimiter(text))
    } else {
        Format::Lines
    }
}

/// Of what could stand between cells, what stands there most often in the first line, outside of quotes.
fn delimiter(text: &str) -> char {
    let mut counts = [(',', 0usize), (';', 0), ('\t', 0), ('|', 0)];
    let mut quoted = false;
    for char in text.chars().take(1 << 16) {
        match char {
            '"' => quoted = !quoted,
            '\n' if !quoted => break,
            _ if quoted => {}
            _ => counts.iter_mut().filter(|(known, _)| *known == char).for_each(|(_, count)| *count += 1),
        }
    }
    // Of equals the first.
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or_default();
    counts.into_iter().find(|(_, count)| *count == most).map_or(',', |(delimiter, _)| delimiter)
}

fn table_format(text: &str, delimiter: char) -> Format {
    // Tables of sentences separated by tabs often have quotes that are the sentences' own (GLUE's do).
    let quotes = delimiter != '\t' || {
        let cells = || text.lines().take(LOOKED_AT).flat_map(|line| line.split('\t'));
        let quoted = |cell: &&str| cell.starts_with('"');
        cells().any(|cell| quoted(&cell))
            && cells().filter(quoted).all(|cell| cell.len() > 1 && cell.trim_end().ends_with('"'))
    };
    let rows = records::sample_rows(text, Dialect { delimiter, quotes }, LOOKED_AT);
    Format::Table { delimiter, quotes, header: has_header(&rows) }
}

/// Whether the first row names the columns: with names that are known, or with words over a column of numbers.
fn has_header(rows: &[Vec<String>]) -> bool {
    let Some((first, rest)) = rows.split_first() else { return false };
    let known = |cell: &String| KNOWN.iter().any(|(name, _)| *name == cell.trim().to_lowercase());
    if first.iter().any(known) {
        return true;
    }
    let number = |cell: &str| matches!(cell_shape(cell), Shape::Whole | Shape::Number);
    !rest.is_empty()
        && first.iter().enumerate().any(|(place, cell)| {
            cell_shape(cell) == Shape::Text
                && rest.iter().all(|row| row.get(place).is_some_and(|cell| number(cell)))
        })
}

/// The names that columns of published data sets have. Of several for a role, the first of this list takes it.
const KNOWN: [(&str, Role); 43] = [
    ("messages", Role::Messages),
    ("conversations", Role::Messages),
    ("conversation", Role::Messages),
    ("dialog", Role::Messages),
    ("chat", Role::Messages),
    ("system", Role::System),
    ("system_prompt", Role::System),
    ("instruction", Role::Instruction),
    ("input", Role::Input),
    ("context", Role::Input),
    ("output", Role::Output),
    ("prompt", Role::Prompt),
    ("question", Role::Prompt),
    ("query", Role::Prompt),
    ("completion", Role::Completion),
    ("response", Role::Completion),
    ("answer", Role::Completion),
    ("chosen", Role::Completion),
    ("text", Role::Text),
    ("sentence", Role::Text),
    ("text_a", Role::Text),
    ("text1", Role::Text),
    ("sentence1", Role::Text),
    ("premise", Role::Text),
    ("question1", Role::Text),
    ("content", Role::Text),
    ("review", Role::Text),
    ("story", Role::Text),
    ("text_b", Role::TextB),
    ("text2", Role::TextB),
    ("sentence2", Role::TextB),
    ("hypothesis", Role::TextB),
    ("question2", Role::TextB),
    ("label", Role::Label),
    ("labels", Role::Label),
    ("class", Role::Label),
    ("category", Role::Label),
    ("sentiment", Role::Label),
    ("stars", Role::Label),
    ("score", Role::Label),
    ("similarity", Role::Label),
    ("target", Role::Label),
    ("emotion", Role::Label),
];

fn suggest(format: Format, views: &Views, first: &[BTreeMap<String, Shape>]) -> Mapping {
    let by_name = matches!(format, Format::JsonLines | Format::JsonList);
    let shape_of = |place: usize, name: &str| {
        let key = if by_name { name.to_owned() } else { place.to_string() };
        let seen: Vec<Shape> = first
            .iter()
            .filter_map(|record| record.get(&key).copied())
            .filter(|shape| *shape != Shape::Empty)
            .collect();
        match seen.split_first() {
            None => Shape::Empty,
            Some((shape, rest)) if rest.iter().all(|other| other == shape) => *shape,
            Some((Shape::Whole | Shape::Number, rest))
                if rest.iter().all(|other| matches!(other, Shape::Whole | Shape::Number)) =>
            {
                Shape::Number
            }
            // Texts, some of which are numbers.
            _ if seen.iter().all(|shape| matches!(shape, Shape::Text | Shape::Whole | Shape::Number)) => {
                Shape::Text
            }
            _ => Shape::Other,
        }
    };
    let fits = |known: &str, role: Role, shape: Shape| match role {
        Role::Messages if matches!(known, "messages" | "conversations") => true,
        Role::Messages => matches!(shape, Shape::Conversation | Shape::Empty | Shape::Other),
        Role::Prompt | Role::Completion => shape != Shape::Other,
        Role::Label => matches!(shape, Shape::Text | Shape::Whole | Shape::Number),
        // A wrong value is to be said, with its line, rather than the column passed over.
        _ => by_name || shape != Shape::Other,
    };
    let mut columns: Vec<Column> = Vec::new();
    for view in &views.columns {
        columns.push(Column { name: view.name.clone(), role: Role::Ignore });
    }
    for (known, role) in KNOWN {
        if columns.iter().any(|column| column.role == role) {
            continue;
        }
        let named = columns
            .iter_mut()
            .enumerate()
            .find(|(_, column)| column.role == Role::Ignore && column.name.trim().to_lowercase() == known);
        if let Some((place, column)) = named
            && fits(known, role, shape_of(place, &column.name))
        {
            column.role = role;
        }
    }
    settle(&mut columns);
    match &format {
        Format::Lines => give(&mut columns, 0, Role::Text),
        Format::SplitLines { .. } => {
            give(&mut columns, 0, Role::Prompt);
            give(&mut columns, 1, Role::Completion);
        }
        _ => {}
    }
    let mapping = Mapping { format, columns, labels: LabelKind::Auto };
    if mapping.form().is_ok() || by_name {
        return mapping;
    }
    // A table without names that are known: texts, and a column of numbers that labels them.
    let mut mapping = mapping;
    mapping.columns.iter_mut().for_each(|column| column.role = Role::Ignore);
    let shapes: Vec<Shape> =
        mapping.columns.iter().enumerate().map(|(place, column)| shape_of(place, &column.name)).collect();
    let texts: Vec<usize> =
        (0..shapes.len()).filter(|place| shapes.get(*place) == Some(&Shape::Text)).collect();
    let numbers: Vec<usize> = (0..shapes.len())
        .filter(|place| matches!(shapes.get(*place), Some(Shape::Whole | Shape::Number)))
        .collect();
    match (texts.as_slice(), numbers.as_slice()) {
        ([text], []) => give(&mut mapping.columns, *text, Role::Text),
        ([text], [label]) => {
            give(&mut mapping.columns, *text, Role::Text);
            give(&mut mapping.columns, *label, Role::Label);
        }
        ([first, second], [label]) => {
            give(&mut mapping.columns, *first, Role::Text);
            give(&mut mapping.columns, *second, Role::TextB);
            give(&mut mapping.columns, *label, Role::Label);
        }
        _ => {}
    }
    mapping
}

fn give(columns: &mut [Column], place: usize, role: Role) {
    if let Some(column) = columns.get_mut(place) {
        column.role = role;
    }
}

/// Takes away roles that go with others that are not there: `response` is Alpaca's output beside an instruction, `question`
/// a text where a label goes with it.
fn settle(columns: &mut [Column]) {
    let has = |columns: &[Column], role: Role| columns.iter().any(|column| column.role == role);
    let change = |columns: &mut [Column], from: Role, to: Role| {
        columns.iter_mut().filter(|column| column.role == from).for_each(|column| column.role = to);
    };
    if has(columns, Role::Instruction) && !has(columns, Role::Output) {
        change(columns, Role::Completion, Role::Output);
    }
    if !has(columns, Role::Instruction) {
        let completes = has(columns, Role::Prompt) && has(columns, Role::Completion);
        match (has(columns, Role::Input), has(columns, Role::Output)) {
            // Pairs that are named input and output.
            (true, true) if !completes => {
                change(columns, Role::Prompt, Role::Ignore);
                change(columns, Role::Completion, Role::Ignore);
                change(columns, Role::Input, Role::Prompt);
                change(columns, Role::Output, Role::Completion);
            }
            (false, true) if has(columns, Role::Prompt) && !has(columns, Role::Completion) => {
                change(columns, Role::Output, Role::Completion);
            }
            _ => {
                change(columns, Role::Input, Role::Ignore);
                change(columns, Role::Output, Role::Ignore);
            }
        }
    }
    if has(columns, Role::Label) && !has(columns, Role::Text) && !has(columns, Role::Completion) {
        change(columns, Role::Prompt, Role::Text);
    }
}

/// Other ways that fit the first lines of a file.
fn alternatives(name: &str, text: &str, chosen: &Mapping) -> Vec<Mapping> {
    let lines = || text.lines().filter(|line| !line.trim().is_empty()).take(LOOKED_AT);
    let mut others = Vec::new();
    if chosen.format != Format::Lines {
        return others;
    }
    for separator in ["||", "\t"] {
        if lines().all(|line| line.contains(separator)) {
            let format = Format::SplitLines { separator: separator.to_owned() };
            if let Ok(views) = Views::new(name, text, &format) {
                others.push(suggest(format, &views, &[]));
            }
        }
    }
    if lines().all(|line| line.contains('\t')) {
        let format = table_format(text, '\t');
        let mut first = Vec::new();
        if let Ok(views) = Views::new(name, text, &format) {
            // An error here ends the looking.
            let looked = records::each(name, text, &format, &mut |_, record| match record {
                Ok(record) if first.len() < LOOKED_AT => {
                    first.push(shapes(&record));
                    Ok(())
                }
                Ok(_) => Err(DatasetError::Empty { name: name.to_owned() }),
                Err(error) => Err(error),
            });
            let ragged = !matches!(looked, Ok(()) | Err(DatasetError::Empty { .. }));
            let mapping = suggest(format, &views, &first);
            others.extend((!ragged && mapping.form().is_ok()).then_some(mapping));
        }
    }
    others
}
