//! The records of a file, one at a time: lines, JSON records, rows of a table.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{DatasetError, Format};

/// A text is held whole, a few times over: as bytes, as samples, as tokens.
const SIZE_LIMIT: usize = 256 << 20;
/// Tables of text have a handful.
pub(super) const COLUMNS_LIMIT: usize = 256;
/// Where a JSON file keeps its list of records, if it is not a list itself.
const LISTS: [&str; 6] = ["data", "train", "rows", "records", "examples", "instances"];

/// Where in a file something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// A line, from 1.
    Line(usize),
    /// A record of a list, from 1.
    Record(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(formatter, "line {line}"),
            Self::Record(record) => write!(formatter, "record {record}"),
        }
    }
}

/// A record as it stands in the file.
pub(super) enum Record<'a> {
    /// Nothing.
    Blank,
    /// The cells of a row, or the pieces of a line, in the order of the columns.
    Row(&'a [&'a str]),
    /// A JSON record.
    Object(&'a Map<String, Value>),
}

/// What takes records, one after the other, until it says that it is enough with an error.
pub(super) type Take<'a> =
    dyn FnMut(Place, Result<Record<'_>, DatasetError>) -> Result<(), DatasetError> + 'a;

/// Checks a file's size and encoding, and takes the byte order mark away.
pub(super) fn text<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, DatasetError> {
    if bytes.len() > SIZE_LIMIT {
        return Err(DatasetError::TooLarge { name: name.to_owned(), size: bytes.len(), limit: SIZE_LIMIT });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.iter().take(error.valid_up_to());
        DatasetError::NotUtf8 {
            name: name.to_owned(),
            line: 1 + before.filter(|byte| **byte == b'\n').count(),
        }
    })?;
    // Windows editors begin a UTF-8 file with this mark; it is not text.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Gives `take` every record of a text. An error of a single record goes to `take` too, which decides whether it ends the
/// reading; where the rest cannot be read, that error ends it.
pub(super) fn each(name: &str, text: &str, format: &Format, take: &mut Take<'_>) -> Result<(), DatasetError> {
    match format {
        Format::Lines => lines(text, |place, line| take(place, Ok(Record::Row(&[line])))),
        Format::SplitLines { separator } => lines(text, |place, line| {
            if line.trim().is_empty() {
                return take(place, Ok(Record::Blank));
            }
            match line.find(separator.as_str()) {
                Some(at) => {
                    // The separator stays with what is before it, so that the pieces make the line.
                    let (before, after) = line.split_at(at + separator.len());
                    take(place, Ok(Record::Row(&[before, after])))
                }
                None => {
                    let error = DatasetError::Ragged { name: name.to_owned(), place, found: 1, expected: 2 };
                    take(place, Err(error))
                }
            }
        }),
        Format::JsonLines => lines(text, |place, line| {
            if line.trim().is_empty() {
                return take(place, Ok(Record::Blank));
            }
            match serde_json::from_str::<Map<String, Value>>(line) {
                Ok(object) => take(place, Ok(Record::Object(&object))),
                Err(error) => take(place, Err(json_error(name, place, &error))),
            }
        }),
        Format::JsonList => list(name, text, take),
        Format::Table { delimiter, quotes, header } => {
            table(name, text, Dialect { delimiter: *delimiter, quotes: *quotes }, *header, take)
        }
    }
}

/// The names of a table's columns, made up where its first row does not give them.
pub(super) fn table_columns(
    name: &str,
    text: &str,
    dialect: Dialect,
    header: bool,
) -> Result<Vec<String>, DatasetError> {
    let first = sample_rows(text, dialect, 1).into_iter().next().unwrap_or_default();
    if first.len() > COLUMNS_LIMIT {
        return Err(DatasetError::Columns { name: name.to_owned(), limit: COLUMNS_LIMIT });
    }
    let mut names: Vec<String> = Vec::new();
    for (place, cell) in first.iter().enumerate() {
        let made_up = || format!("column {}", place + 1);
        let given = cell.trim();
        let fresh = header && !given.is_empty() && !names.iter().any(|known| known == given);
        names.push(if fresh { given.to_owned() } else { made_up() });
    }
    Ok(names)
}

/// How the cells of a table are told apart.
#[derive(Clone, Copy)]
pub(super) struct Dialect {
    pub(super) delimiter: char,
    pub(super) quotes: bool,
}

/// The first rows of a table.
pub(super) fn sample_rows(text: &str, dialect: Dialect, rows: usize) -> Vec<Vec<String>> {
    let mut reader = reader(text, dialect);
    let rows = reader.records().take(rows).map_while(Result::ok);
    rows.map(|row| row.iter().take(COLUMNS_LIMIT + 1).map(str::to_owned).collect()).collect()
}

/// Whether a text that is one JSON value is a list of records, or holds one.
pub(super) fn is_list(text: &str) -> bool {
    let text = text.trim_start();
    if text.starts_with('[') {
        return true;
    }
    /// Whether a list is among the fields.
    struct Holder;
    impl<'de> Visitor<'de> for Holder {
        type Value = bool;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            let mut found = false;
            while let Some(key) = map.next_key::<String>()? {
                if LISTS.contains(&key.as_str()) {
                    found |= matches!(map.next_value::<ListOrNot>()?, ListOrNot(true));
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let holds = (&mut json).deserialize_map(Holder).unwrap_or(false);
    holds && json.end().is_ok()
}

/// Whether a JSON value is a list of objects.
struct ListOrNot(bool);

impl<'de> Deserialize<'de> for ListOrNot {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = ListOrNot;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("any value")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<ListOrNot, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(ListOrNot(true))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ListOrNot, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(ListOrNot(false))
            }

            fn visit_str<E>(self, _: &str) -> Result<ListOrNot, E> {
                Ok(ListOrNot(false))
            }

            fn visit_bool<E>(self, _: bool) -> Result<ListOrNot, E> {
                Ok(ListOrNot(false))
            }

            fn visit_u64<E>(self, _: u64) -> Result<ListOrNot, E> {
                Ok(ListOrNot(false))
            }

            fn visit_i64<E>(self, _: i64) -> Result<ListOrNot, E> {
                Ok(ListOrNot(false))
            }

            fn visit_f64<E>(self, _: f64) -> Result<ListOrNot, E> {
                Ok(ListOrNot(false))
            }

            fn visit_unit<E>(self) -> Result<ListOrNot, E> {
                Ok(ListOrNot(false))
            }
        }
        deserializer.deserialize_any(Shape)
    }
}

fn lines(
    text: &str,
    mut take: impl FnMut(Place, &str) -> Result<(), DatasetError>,
) -> Result<(), DatasetError> {
    text.lines().enumerate().try_for_each(|(index, line)| take(Place::Line(index + 1), line))
}

fn json_error(name: &str, place: Place, error: &serde_json::Error) -> DatasetError {
    let said = error.to_string();
    let reason = match (place, said.rsplit_once(" at line ")) {
        // To the JSON reader every record is of one line, its first.
        (Place::Line(_), Some((reason, _))) => format!("{reason} at column {}", error.column()),
        _ => said,
    };
    DatasetError::Json { name: name.to_owned(), place, reason }
}

fn reader(text: &str, dialect: Dialect) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new()
        .delimiter(u8::try_from(dialect.delimiter).unwrap_or(b','))
        .quoting(dialect.quotes)
        .has_headers(false)
        // Rows of another length are told of in words of our own.
        .flexible(true)
        .from_reader(text.as_bytes())
}

fn table(
    name: &str,
    text: &str,
    dialect: Dialect,
    header: bool,
    take: &mut Take<'_>,
) -> Result<(), DatasetError> {
    let mut reader = reader(text, dialect);
    let mut row = csv::StringRecord::new();
    let mut expected = None;
    loop {
        let read = reader.read_record(&mut row);
        let line = row.position().map_or(0, csv::Position::line);
        let place = Place::Line(usize::try_from(line).unwrap_or(usize::MAX));
        match read {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(error) => {
                return Err(DatasetError::Row { name: name.to_owned(), place, reason: error.to_string() });
            }
        }
        let cells: Vec<&str> = row.iter().take(COLUMNS_LIMIT + 1).collect();
        let first = expected.is_none();
        let width = *expected.get_or_insert(cells.len());
        if first && header {
            continue;
        }
        if cells.iter().all(|cell| cell.trim().is_empty()) {
            take(place, Ok(Record::Blank))?;
        } else if cells.len() == width {
            take(place, Ok(Record::Row(&cells)))?;
        } else {
            let error =
                DatasetError::Ragged { name: name.to_owned(), place, found: row.len(), expected: width };
            take(place, Err(error))?;
        }
    }
}

/// The records of a JSON list, or of the list that an object holds, read one by one.
fn list(name: &str, text: &str, take: &mut Take<'_>) -> Result<(), DatasetError> {
    /// Both a list and an object that holds one.
    struct Items<'a> {
        name: &'a str,
        count: &'a mut usize,
        take: &'a mut Take<'a>,
        stopped: &'a mut Option<DatasetError>,
    }
    impl<'de> DeserializeSeed<'de> for &mut Items<'_> {
        type Value = ();

        fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            deserializer.deserialize_any(self)
        }
    }
    impl<'de> Visitor<'de> for &mut Items<'_> {
        type Value = ();

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of records")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
            while let Some(item) = items.next_element::<Value>()? {
                *self.count += 1;
                let place = Place::Record(*self.count);
                let taken = match &item {
                    Value::Object(object) => (self.take)(place, Ok(Record::Object(object))),
                    other => {
                        let reason = format!("it is {}, not an object", kind_of(other));
                        let error = DatasetError::Json { name: self.name.to_owned(), place, reason };
                        (self.take)(place, Err(error))
                    }
                };
                if let Err(error) = taken {
                    *self.stopped = Some(error);
                    return Err(serde::de::Error::custom("stopped"));
                }
            }
            Ok(())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key::<String>()? {
                if LISTS.contains(&key.as_str()) {
                    map.next_value_seed(&mut *self)?;
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(())
        }
    }
    let (mut count, mut stopped) = (0, None);
    let mut json = serde_json::Deserializer::from_str(text);
    let mut items = Items { name, count: &mut count, take, stopped: &mut stopped };
    let read = items.deserialize(&mut json).and_then(|()| json.end());
    match (read, stopped) {
        (_, Some(error)) => Err(error),
        (Err(error), None) => Err(json_error(name, Place::Record(count + 1), &error)),
        (Ok(()), None) => Ok(()),
    }
}

/// A JSON value in a word.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
