//! Columns named by hand on a command line, and a mapping told in words.

use std::fmt;
use std::str::FromStr;

use super::mapping::inspect;
use super::records::{self, Dialect};
use super::{Column, DatasetError, Form, Format, Mapping, Role};

/// A column and what it is, as a person writes it: `prompt=question`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnChoice {
    /// What it is to a sample.
    pub role: Role,
    /// As the file names it.
    pub name: String,
}

impl Role {
    /// Every role with its name.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::Text, "text"),
        (Self::TextB, "text_b"),
        (Self::Prompt, "prompt"),
        (Self::Completion, "completion"),
        (Self::Messages, "messages"),
        (Self::System, "system"),
        (Self::Instruction, "instruction"),
        (Self::Input, "input"),
        (Self::Output, "output"),
        (Self::Label, "label"),
        (Self::Ignore, "ignore"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(role, _)| *role == self).map_or("ignore", |(_, name)| name)
    }
}

impl FromStr for ColumnChoice {
    type Err = DatasetError;

    fn from_str(text: &str) -> Result<Self, DatasetError> {
        let choice = text.split_once('=').and_then(|(role, name)| {
            let (role, _) = Role::ALL.iter().find(|(_, known)| *known == role.trim())?;
            (!name.trim().is_empty()).then(|| Self { role: *role, name: name.trim().to_owned() })
        });
        choice.ok_or_else(|| {
            let roles: Vec<&str> = Role::ALL.iter().map(|(_, name)| *name).collect();
            let reason = format!(
                "{text:?} is not ROLE=COLUMN, as in prompt=question; the roles are {}",
                roles.join(", ")
            );
            DatasetError::Mapping { reason }
        })
    }
}

impl fmt::Display for ColumnChoice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}={}", self.role.name(), self.name)
    }
}

/// How a file is read when a person names columns of it; the others are nothing. The first row of a table names its
/// columns if the chosen ones are among its cells, whatever it looks like.
///
/// # Errors
///
/// When there is no such column (the error names those that there are), when a role is given twice, or when the columns
/// make no samples; and as [`inspect`].
pub fn choose(name: &str, bytes: &[u8], choices: &[ColumnChoice]) -> Result<Mapping, DatasetError> {
    let inspection = inspect(name, bytes)?;
    let text = records::text(name, bytes)?;
    let mut ways = vec![inspection.mapping];
    if let Some(Mapping { format: Format::Table { delimiter, quotes, header }, labels, .. }) = ways.first() {
        let format = Format::Table { delimiter: *delimiter, quotes: *quotes, header: !header };
        let names =
            records::table_columns(name, text, Dialect { delimiter: *delimiter, quotes: *quotes }, !header)?;
        let columns = names.into_iter().map(|name| Column { name, role: Role::Ignore }).collect();
        ways.push(Mapping { format, columns, labels: *labels });
    }
    ways.extend(inspection.alternatives);
    let missing = |way: &Mapping| {
        let there = |choice: &&ColumnChoice| way.columns.iter().any(|column| column.name == choice.name);
        choices.iter().find(|choice| !there(choice)).map(|choice| choice.name.clone())
    };
    let Some(mut mapping) = ways.iter().find(|way| missing(way).is_none()).cloned() else {
        let quoted = |way: &Mapping| {
            let names: Vec<String> =
                way.columns.iter().take(20).map(|column| format!("{:?}", column.name)).collect();
            names.join(", ")
        };
        let lists: Vec<String> = ways.iter().map(quoted).collect();
        let lacking = ways.first().and_then(missing).unwrap_or_default();
        let reason =
            format!("{name} has no column {lacking:?}; it has {}", lists.join(", or read otherwise "));
        return Err(DatasetError::Mapping { reason });
    };
    mapping.columns.iter_mut().for_each(|column| column.role = Role::Ignore);
    for choice in choices {
        let Some(column) = mapping.columns.iter_mut().find(|column| column.name == choice.name) else {
            continue;
        };
        if column.role != Role::Ignore {
            let reason = format!("the column {:?} is given two roles", choice.name);
            return Err(DatasetError::Mapping { reason });
        }
        column.role = choice.role;
    }
    mapping.form()?;
    Ok(mapping)
}

impl Mapping {
    /// A line for a person: which columns are read as what, and which are not used. `labels` is whether the model learns
    /// labels, and not to write.
    pub fn in_words(&self, labels: bool) -> String {
        let Ok(form) = self.form() else { return "no samples can be made of these columns".to_owned() };
        let quoted = |role: Role| self.column(role).map(|(_, name)| format!("{name:?}"));
        let named = |role: Role| quoted(role).unwrap_or_default();
        let and =
            |words: &str, role: Role| quoted(role).map_or_else(String::new, |name| format!("{words} {name}"));
        let labelled = if labels { and(" with the labels in", Role::Label) } else { String::new() };
        let (what, used): (String, &[Role]) = match (form, &self.format) {
            (Form::Text, Format::Lines) => ("plain text, a sample a line".to_owned(), &[Role::Text]),
            (Form::Completion, Format::SplitLines { separator }) => (
                format!("prompt up to the first {separator:?} of a line and completion after it"),
                &[Role::Prompt, Role::Completion],
            ),
            (Form::Text, _) => {
                let kind = if labelled.is_empty() { "plain text" } else { "texts" };
                (format!("{kind} from {}", named(Role::Text)), &[Role::Text])
            }
            (Form::Pair, _) => (
                format!("two texts from {} and {}", named(Role::Text), named(Role::TextB)),
                &[Role::Text, Role::TextB],
            ),
            (Form::Completion, _) => (
                format!("prompt {} and completion {}", named(Role::Prompt), named(Role::Completion)),
                &[Role::Prompt, Role::Completion],
            ),
            (Form::Task, _) => (
                format!(
                    "instruction {}{} and output {}",
                    named(Role::Instruction),
                    and(", input", Role::Input),
                    named(Role::Output)
                ),
                &[Role::Instruction, Role::Input, Role::Output],
            ),
            (Form::Chat, _) => {
                let system = and(" with the system message", Role::System);
                (
                    format!("conversations from {}{system}", named(Role::Messages)),
                    &[Role::Messages, Role::System],
                )
            }
        };
        let mut words = format!("read as {what}{labelled}");
        if let (false, Some(name)) = (labels, quoted(Role::Label)) {
            words += &format!("; the labels in {name} are not used, as this model writes text");
        }
        let spare = |column: &&Column| !used.contains(&column.role) && column.role != Role::Label;
        let list = |wanted: &dyn Fn(&Column) -> bool| -> Vec<String> {
            let columns = self.columns.iter().filter(spare).filter(|column| wanted(column));
            columns.map(|column| format!("{:?}", column.name)).collect()
        };
        let by_record = matches!(self.format, Format::JsonLines | Format::JsonList);
        let ignored = list(&|column| column.role == Role::Ignore || !by_record);
        // Each record is read by itself: one may have what another has not.
        let otherwise = list(&|column| column.role != Role::Ignore && by_record);
        if !otherwise.is_empty() {
            words += &format!("; {} only in records without these", otherwise.join(", "));
        }
        match ignored.len() {
            0 => {}
            1 => words += &format!("; {} is ignored", ignored.concat()),
            count if count <= MOST_NAMED => words += &format!("; {} are ignored", ignored.join(", ")),
            count => words += &format!("; {count} other columns are ignored"),
        }
        words
    }
}

/// More columns than that are only counted.
const MOST_NAMED: usize = 8;
