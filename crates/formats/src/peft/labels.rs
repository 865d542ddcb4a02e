//! The names of a classifier's classes, in a file of their own beside its adapter: PEFT has no place for them, and passes
//! over files that it does not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PeftError;
use crate::config::{Classifier, Head, ModelConfig};
use crate::files::{Files, FilesError, read_all};

/// The file of the classes' names: `id2label` and `label2id`, as `config.json` has them.
pub const LABELS_FILE: &str = "labels.json";

/// A thousand long names are not near this size.
const LIMIT: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Labels {
    id2label: BTreeMap<String, String>,
    #[serde(default)]
    label2id: BTreeMap<String, usize>,
}

/// What [`LABELS_FILE`] says of the model's classes; none where there are no classes, or only numbers for names.
pub fn labels_json(model: &ModelConfig) -> Option<String> {
    let labels = &model.classifier().filter(|head| !head.regression)?.labels;
    let told = |(at, label): (usize, &String)| *label != at.to_string();
    if !labels.iter().enumerate().any(told) {
        return None;
    }
    let by_id = labels.iter().enumerate().map(|(at, label)| (at.to_string(), label.clone()));
    let by_label = labels.iter().enumerate().map(|(at, label)| (label.clone(), at));
    let file = Labels { id2label: by_id.collect(), label2id: by_label.collect() };
    serde_json::to_string_pretty(&file).ok()
}

/// The model with the names of its classes as [`LABELS_FILE`] beside an adapter has them; unchanged where there is none.
///
/// # Errors
///
/// When the file is there and does not name each of the head's classes once.
pub(super) async fn named(files: &impl Files, mut model: ModelConfig) -> Result<ModelConfig, PeftError> {
    let Head::Classifier(Classifier { outputs, regression: false, labels, .. }) = &mut model.ends.head else {
        return Ok(model);
    };
    let json = match read_all(files, LABELS_FILE, LIMIT).await {
        Ok(json) => json,
        Err(FilesError::NotFound { .. } | FilesError::Http { .. }) => return Ok(model),
        Err(error) => return Err(error.into()),
    };
    let refused = |reason: String| PeftError::Labels { reason };
    let read: Labels = serde_json::from_slice(&json).map_err(|error| refused(error.to_string()))?;
    let found = read.id2label.len();
    if found != *outputs {
        return Err(refused(format!("of the {outputs} classes that the head has it names {found}")));
    }
    let name = |at: usize| {
        let name = read.id2label.get(&at.to_string()).filter(|name| !name.trim().is_empty());
        name.cloned().ok_or_else(|| refused(format!("it has no name for class {at}")))
    };
    let names = (0..found).map(name).collect::<Result<Vec<_>, _>>()?;
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort_unstable();
    if let Some((twice, _)) = sorted.iter().zip(sorted.iter().skip(1)).find(|(name, next)| name == next) {
        return Err(refused(format!("two classes are called {:?}", super::cut(twice))));
    }
    *labels = names;
    Ok(model)
}
