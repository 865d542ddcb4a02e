//! What a text goes on from: a beginning, or a conversation as the model's chat template writes it.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use baton_engine::source::{AnyFiles, Model};
use baton_engine::texts::{Prompt, Text, TextRequest};
use baton_formats::{ChatMessage, MemoryFiles};
use futures::executor::block_on;
use std::path::Path;
use std::rc::Rc;

const BOS: u32 = 1;
/// The first word's token.
const FIRST: u32 = 8;
const WORDS: [&str; 6] = ["user", "assistant", "says", "hello", "cat", "dog"];

/// A template that writes the begin token itself, as Llama 3's does.
const TEMPLATE: &str = "{{ bos_token }} {% for message in messages %}{{ message.role }} says {{ message.content }} \
                        {% endfor %}{% if add_generation_prompt %}assistant says{% endif %}";

/// A golden model with a tokenizer of a few words that begins every text with its begin token.
fn model(template: Option<&str>) -> Rc<Model> {
    let mut files = MemoryFiles::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families/llama2");
    for name in ["config.json", "model.safetensors"] {
        files.insert(name, std::fs::read(folder.join(name)).unwrap());
    }
    let vocab: Vec<String> = (FIRST..).zip(WORDS).map(|(id, word)| format!("\"{word}\":{id}")).collect();
    let tokenizer = format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,
        "added_tokens":[{{"id":{BOS},"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}],
        "normalizer":null,"pre_tokenizer":{{"type":"Whitespace"}},"decoder":null,
        "post_processor":{{"type":"TemplateProcessing",
          "single":[{{"SpecialToken":{{"id":"<s>","type_id":0}}}},{{"Sequence":{{"id":"A","type_id":0}}}}],
          "pair":[{{"Sequence":{{"id":"A","type_id":0}}}},{{"Sequence":{{"id":"B","type_id":1}}}}],
          "special_tokens":{{"<s>":{{"id":"<s>","ids":[{BOS}],"tokens":["<s>"]}}}}}},
        "model":{{"type":"WordLevel","vocab":{{"<s>":{BOS},"[UNK]":7,{}}},"unk_token":"[UNK]"}}}}"#,
        vocab.join(",")
    );
    files.insert("tokenizer.json", tokenizer);
    if let Some(template) = template {
        let config = format!(r#"{{"bos_token":"<s>","chat_template":"{template}"}}"#);
        files.insert("tokenizer_config.json", config);
    }
    block_on(Model::open(AnyFiles::Memory(files))).unwrap()
}

fn begin(model: &Model, prompt: Prompt) -> Text {
    Text::begin(model, &TextRequest { prompt, tokens: 4, temperature: 0.0, seed: 0 }).unwrap()
}

fn ids(words: &[&str]) -> Vec<u32> {
    let id = |word: &&str| (FIRST..).zip(WORDS).find(|(_, known)| known == word).unwrap().0;
    std::iter::once(BOS).chain(words.iter().map(id)).collect()
}

/// The logits of a vocabulary in which one token is likely.
fn likely(model: &Model, word: &str) -> Vec<f32> {
    let id = ids(&[word])[1];
    (0..model.config.vocab_size).map(|token| if token == id as usize { 9.0 } else { 0.0 }).collect()
}

#[test]
fn a_conversation_is_written_by_the_template_with_its_special_tokens_and_no_others() {
    let model = model(Some(TEMPLATE));
    let text = begin(&model, Prompt::Chat(vec![ChatMessage::new("user", "hello")]));
    assert_eq!(text.ids(), ids(&["user", "says", "hello", "assistant", "says"]));
    let templated = begin(&model, Prompt::Templated("<s> user says hello".into()));
    assert_eq!(templated.ids(), ids(&["user", "says", "hello"]));
}

#[test]
fn of_a_conversation_only_the_answer_is_read() {
    let model = model(Some(TEMPLATE));
    let mut text = begin(&model, Prompt::Chat(vec![ChatMessage::new("user", "hello")]));
    assert_eq!(text.decode(&model).unwrap(), "");
    text.push(&likely(&model, "cat"));
    assert_eq!(text.decode(&model).unwrap(), "cat");
    assert_eq!(text.decode_prompt(&model).unwrap(), "user says hello assistant says");
}

#[test]
fn a_beginning_is_read_with_what_follows() {
    let model = model(None);
    let mut text = begin(&model, Prompt::Text("hello cat".into()));
    assert_eq!(text.ids(), ids(&["hello", "cat"]));
    text.push(&likely(&model, "dog"));
    assert_eq!(text.decode(&model).unwrap(), "hello cat dog");
}

#[test]
fn without_a_template_the_last_message_is_the_beginning() {
    let talk = ["dog", "hello"].map(|words| ChatMessage::new("user", words));
    assert_eq!(begin(&model(None), Prompt::Chat(talk.into())).ids(), ids(&["hello"]));
}

#[test]
fn a_conversation_that_the_template_refuses_is_an_error_in_its_words() {
    let model = model(Some("{{ raise_exception('only cats may talk') }}"));
    let prompt = Prompt::Chat(vec![ChatMessage::new("dog", "hello")]);
    let request = TextRequest { prompt, tokens: 4, temperature: 0.0, seed: 0 };
    let Err(error) = Text::begin(&model, &request) else { panic!("the conversation was taken") };
    assert!(error.to_string().contains("only cats may talk"), "{error}");
}
