//! What is what in a file of records: each column with a value of it and the role that it has, for a person to change.

use super::session::{Choice, Session};
use crate::format;
use baton_web_api::{ColumnView, Form, Format, Inspection, LabelKind, Mapping, Role};
use leptos::prelude::*;

/// Every role: its name for tests, and its name for a person.
const ROLES: [(Role, &str, &str); 11] = [
    (Role::Text, "text", "Text"),
    (Role::Prompt, "prompt", "Prompt"),
    (Role::Completion, "completion", "Completion"),
    (Role::Messages, "messages", "Conversation"),
    (Role::Label, "label", "Label"),
    (Role::TextB, "text_b", "Second text"),
    (Role::System, "system", "System message"),
    (Role::Instruction, "instruction", "Instruction (Alpaca)"),
    (Role::Input, "input", "Input (Alpaca)"),
    (Role::Output, "output", "Output (Alpaca)"),
    (Role::Ignore, "ignore", "Ignore"),
];

const LABEL_KINDS: [(LabelKind, &str, &str); 3] = [
    (LabelKind::Auto, "auto", "As they look"),
    (LabelKind::Classes, "classes", "Classes"),
    (LabelKind::Values, "values", "Values"),
];

fn role_name(role: Role) -> &'static str {
    ROLES.iter().find(|(known, ..)| *known == role).map_or("ignore", |(_, name, _)| name)
}

/// What samples a mapping makes, as a person calls them.
fn form_words(mapping: &Mapping) -> Option<&'static str> {
    let labelled = mapping.columns.iter().any(|column| column.role == Role::Label);
    Some(match (mapping.form().ok()?, labelled) {
        (Form::Chat, _) => "Conversations",
        (Form::Task, _) => "Alpaca instructions",
        (Form::Completion, _) => "Prompts and completions",
        (Form::Pair, true) => "Labelled pairs of texts",
        (Form::Pair, false) => "Pairs of texts",
        (Form::Text, true) => "Labelled texts",
        (Form::Text, false) => "Plain text",
    })
}

/// Columns that hold more than numbers and are left out: a person may have meant them to be read.
fn left_out(inspection: &Inspection, mapping: &Mapping) -> Vec<String> {
    let ignored = |name: &str| mapping.columns.iter().any(|c| c.name == name && c.role == Role::Ignore);
    let says_something =
        |view: &ColumnView| view.samples.iter().any(|value| value.trim().parse::<f64>().is_err());
    let views = inspection.columns.iter().filter(|view| ignored(&view.name) && says_something(view));
    views.map(|view| view.name.clone()).collect()
}

/// Names in quotes, the last ones as a number if there are many.
fn listed(names: &[String]) -> String {
    let quoted =
        |names: &[String]| names.iter().map(|name| format!("“{name}”")).collect::<Vec<_>>().join(", ");
    match names.split_at_checked(3) {
        Some((first, rest)) if !rest.is_empty() => format!("{} and {} more", quoted(first), rest.len()),
        _ => quoted(names),
    }
}

/// How a file is cut into records, as a person calls it.
fn format_words(format: &Format) -> String {
    match format {
        Format::Lines => "A sample a line".into(),
        Format::SplitLines { separator } if separator == "\t" => {
            "Two parts a line, with a tab between".into()
        }
        Format::SplitLines { separator } => format!("Two parts a line, with {separator} between"),
        Format::JsonLines => "A JSON record a line".into(),
        Format::JsonList => "A list of JSON records".into(),
        Format::Table { delimiter: '\t', .. } => "A table, with tabs between cells".into(),
        Format::Table { delimiter, .. } => format!("A table, with {delimiter} between cells"),
    }
}

/// Gives a column a role; a role that only one can have is taken from the one that had it.
fn give(mapping: &mut Mapping, place: usize, role: Role) {
    for (other, column) in mapping.columns.iter_mut().enumerate() {
        if other == place {
            column.role = role;
        } else if column.role == role {
            column.role = Role::Ignore;
        }
    }
}

/// Whether there is anything for a person to choose or to see.
fn has_choice(inspection: &Inspection) -> bool {
    inspection.columns.len() > 1
        || !inspection.alternatives.is_empty()
        || inspection.form.is_none()
        || inspection.bad_records > 0
}

/// The columns of the chosen text; nothing where there is nothing to choose.
#[component]
pub(crate) fn MappingTable() -> impl IntoView {
    let session = expect_context::<Session>();
    let (inspection, mapping) = (session.inspection, session.mapping);
    let shown = Memo::new(move |_| inspection.with(|found| found.as_ref().is_some_and(has_choice)));
    let form = move || mapping.with(|mapping| mapping.as_ref().and_then(form_words));
    let records = move || inspection.with(|found| found.as_ref().map_or(0, |found| found.records as u64));
    let brief = move || {
        let form = form().unwrap_or("Say which column is what");
        format!("{form}, {}", format::plural(records(), "record", "records"))
    };
    let ignored = Memo::new(move |_| {
        let (inspection, mapping) = (inspection.get()?, mapping.get()?);
        let names = left_out(&inspection, &mapping);
        (!names.is_empty())
            .then(|| format!("{} {} not read", listed(&names), if names.len() == 1 { "is" } else { "are" }))
    });
    let labels_unused = move || {
        let labelled = mapping.with(|mapping| {
            mapping.as_ref().is_some_and(|m| m.columns.iter().any(|column| column.role == Role::Label))
        });
        labelled && session.model.with(|model| matches!(model, Choice::Ready(model) if model.writes))
    };
    let bad = move || inspection.with(|found| found.as_ref().map_or(0, |found| found.bad_records as u64));
    let problems = move || {
        let problems = inspection.with(|found| found.as_ref().map(|found| found.problems.clone()));
        problems.unwrap_or_default().into_iter().map(|words| view! { <li>{words}</li> }).collect_view()
    };
    let count = Memo::new(move |_| mapping.with(|mapping| mapping.as_ref().map_or(0, |m| m.columns.len())));
    // Folded out when a text comes that needs a person, and then left to that person.
    let open = RwSignal::new(false);
    Effect::new(move |_| {
        open.set(inspection.with(|found| {
            found.as_ref().is_some_and(|found| {
                let guessed = matches!(found.mapping.format, Format::Table { header: false, .. });
                found.form.is_none()
                    || found.bad_records > 0
                    || guessed
                    || !left_out(found, &found.mapping).is_empty()
            })
        }));
    });
    let change = move |change: &dyn Fn(&mut Mapping)| {
        if let Some(mut now) = mapping.get_untracked() {
            change(&mut now);
            session.map_text(now);
        }
    };
    view! {
        <details class="fold" id="text-mapping" hidden=move || !shown.get() prop:open=open>
            <summary>
                <span id="text-form">{brief}</span>
                <span class="summary-brief" id="text-ignored">{ignored}</span>
            </summary>
            <FormatSelect />
            <table class="mapping">
                <caption class="visually-hidden">"What is what"</caption>
                <thead><tr><th scope="col">"Column"</th><th scope="col">"What it is"</th></tr></thead>
                <tbody>
                    <For
                        each=move || 0..count.get()
                        key=|place| *place
                        children=move |place| view! { <Row place=place change=move |role| change(&|mapping| give(mapping, place, role)) /> }
                    />
                </tbody>
            </table>
            <LabelsSelect />
            <p class="hint" hidden=move || bad() == 0>
                {move || format!(
                    "{} cannot be read so{}:",
                    if bad() == 1 { "1 record".into() } else { format!("{} records", format::grouped(bad())) },
                    if bad() > 10 { "; the first of them" } else { "" },
                )}
            </p>
            <ul class="problems" id="text-problems" hidden=move || bad() == 0>{problems}</ul>
        </details>
        <p class="hint" id="text-labels-unused" hidden=move || !labels_unused()>
            "This model writes texts: it learns the texts, and the labels are not used. A model that labels texts (BERT, MiniLM, RoBERTa) learns them."
        </p>
    }
}

/// A column: its name, a value of it, and its role.
#[component]
fn Row(place: usize, change: impl Fn(Role) + Send + Sync + 'static) -> impl IntoView {
    let session = expect_context::<Session>();
    let column =
        Memo::new(move |_| session.mapping.with(|mapping| mapping.as_ref()?.columns.get(place).cloned()));
    let name =
        move || column.with(|column| column.as_ref().map(|column| column.name.clone()).unwrap_or_default());
    let role = move || column.with(|column| column.as_ref().map_or(Role::Ignore, |column| column.role));
    let sample = move || {
        session.inspection.with(|found| {
            let view = found.as_ref()?.columns.iter().find(|view| view.name == name())?;
            view.samples.first().cloned()
        })
    };
    let options = ROLES
        .iter()
        .map(|&(value, name, label)| {
            view! { <option value=name selected=move || role() == value>{label}</option> }
        })
        .collect_view();
    view! {
        <tr data-column=name data-role=move || role_name(role())>
            <th scope="row">
                {name}
                <span class="value">{sample}</span>
            </th>
            <td>
                <select
                    id=format!("map-{place}")
                    aria-label=move || format!("What “{}” is", name())
                    prop:value=move || role_name(role())
                    on:change=move |event| {
                        let chosen = event_target_value(&event);
                        if let Some((role, ..)) = ROLES.iter().find(|(_, name, _)| *name == chosen) {
                            change(*role);
                        }
                    }
                >
                    {options}
                </select>
            </td>
        </tr>
    }
}

/// Other ways to cut the file into records, where there are any.
#[component]
fn FormatSelect() -> impl IntoView {
    let session = expect_context::<Session>();
    let ways = Memo::new(move |_| {
        session.inspection.with(|found| {
            found.as_ref().map_or_else(Vec::new, |found| {
                std::iter::once(&found.mapping).chain(&found.alternatives).cloned().collect::<Vec<_>>()
            })
        })
    });
    let chosen = move || {
        let format = session.mapping.with(|mapping| mapping.as_ref().map(|mapping| mapping.format.clone()));
        ways.with(|ways| ways.iter().position(|way| Some(&way.format) == format.as_ref())).unwrap_or_default()
    };
    let options = move || {
        let ways = ways.get().into_iter().enumerate();
        ways.map(|(place, way)| {
            view! { <option value=place.to_string() selected=move || chosen() == place>{format_words(&way.format)}</option> }
        })
        .collect_view()
    };
    view! {
        <div class="cell" hidden=move || ways.with(|ways| ways.len() < 2)>
            <label for="map-format">"Read as"</label>
            <select
                id="map-format"
                on:change=move |event| {
                    let place = event_target_value(&event).parse().unwrap_or(0);
                    if let Some(way) = ways.with_untracked(|ways: &Vec<Mapping>| ways.get::<usize>(place).cloned()) {
                        session.map_text(way);
                    }
                }
            >
                {options}
            </select>
        </div>
    }
}

/// How labels are read, where there are any.
#[component]
fn LabelsSelect() -> impl IntoView {
    let session = expect_context::<Session>();
    let kind = move || session.mapping.with(|mapping| mapping.as_ref().map_or(LabelKind::Auto, |m| m.labels));
    let labelled = move || {
        session.mapping.with(|mapping| {
            mapping
                .as_ref()
                .is_some_and(|mapping| mapping.columns.iter().any(|column| column.role == Role::Label))
        })
    };
    let options = LABEL_KINDS
        .iter()
        .map(|&(value, name, label)| {
            view! { <option value=name selected=move || kind() == value>{label}</option> }
        })
        .collect_view();
    view! {
        <div class="cell" hidden=move || !labelled()>
            <label for="map-labels">"The labels are"</label>
            <select
                id="map-labels"
                on:change=move |event| {
                    let chosen = event_target_value(&event);
                    let kind = LABEL_KINDS.iter().find(|(_, name, _)| *name == chosen);
                    if let (Some((kind, ..)), Some(mut mapping)) = (kind, session.mapping.get_untracked()) {
                        mapping.labels = *kind;
                        session.map_text(mapping);
                    }
                }
            >
                {options}
            </select>
        </div>
    }
}
