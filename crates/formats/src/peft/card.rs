//! The README.md beside an adapter: what it is of, and how PEFT and Baton read it.

use std::fmt::Write;

use serde_json::json;

use super::Adapter;
use crate::config::ModelConfig;

/// The file of the card.
pub const CARD_FILE: &str = "README.md";

/// What stands where the model has no name that others know it by.
const UNKNOWN: &str = "path/to/the/model";

impl Adapter {
    /// A model card in the hub's form for this adapter of a model with this head: front matter, then how to load it.
    pub fn card(&self, model: &ModelConfig) -> String {
        let config = &self.config;
        let base = config.base_model_name_or_path.as_deref();
        // A JSON string is one in YAML and in Python too, whatever an address has in it.
        let quoted = json!(base.unwrap_or(UNKNOWN)).to_string();
        let front = base.map(|_| format!("base_model: {quoted}\n")).unwrap_or_default();
        let of = match base {
            Some(_) => format!("of {quoted}"),
            None => {
                "of a model that was given as files; put their folder in the place of its name below".into()
            }
        };
        let family = model.architecture.name();
        let (class, labels) = match model.classifier() {
            Some(head) => ("AutoModelForSequenceClassification", format!(", num_labels={}", head.outputs)),
            None => ("AutoModelForCausalLM", String::new()),
        };
        let projections: Vec<_> = config.projections(model).unwrap_or_default();
        let targets = model.target_names(&projections).join(", ");
        let mut card = format!(
            "---\nlibrary_name: peft\n{front}tags:\n- lora\n- baton\n---\n\n# A LoRA adapter {of}\n\n\
             Trained with Baton. Family {family}; rank {}, alpha {}, on {targets}.\n\n\
             ## With PEFT\n\n\
             ```python\n\
             from peft import PeftModel\n\
             from transformers import AutoTokenizer, {class}\n\n\
             base = {quoted}\n\
             tokenizer = AutoTokenizer.from_pretrained(base)\n\
             model = {class}.from_pretrained(base{labels})\n\
             model = PeftModel.from_pretrained(model, \"adapter\")  # this folder\n\
             ```\n\n\
             `base` is a name on the hub or a folder. Where the model was read from another web address, download it first.\n\n\
             ## With Baton\n\n```sh\n",
            config.r, config.lora_alpha,
        );
        let base = base.unwrap_or(UNKNOWN);
        let base = format!("'{}'", base.replace('\'', r"'\''"));
        // Writing to a String cannot fail.
        let _ = match model.is_encoder() {
            true => writeln!(card, "baton classify --model {base} --adapter adapter --text 'a text'"),
            false => writeln!(card, "baton generate --model {base} --adapter adapter --prompt 'Once'"),
        };
        let _ = writeln!(card, "baton merge {base} adapter --out merged             # a full model");
        if !model.is_encoder() {
            let _ = writeln!(
                card,
                "baton export-gguf adapter --model {base} --out adapter.gguf   # for llama.cpp"
            );
        }
        card.push_str("```\n");
        card
    }
}
