//! Conversations become the text of transformers (`scripts/golden_chat.py`), and only the assistant's words are learned.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic)] // clippy does not see that the helpers are of tests

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use baton_formats::{ChatError, ChatMessage, ChatTemplate, Date, Segment};
use serde_json::{Value, json};

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat").join(file)
}

fn templates() -> Vec<(String, ChatTemplate, Value)> {
    let golden_file: Value =
        serde_json::from_slice(&std::fs::read(golden("rendered.json")).unwrap()).unwrap();
    let templates = golden_file["templates"].as_object().unwrap();
    assert_eq!(templates.len(), 12);
    let read = |(name, golden_text): (&String, &Value)| {
        let mut config = golden_text["special"].clone();
        let source = std::fs::read_to_string(golden(&format!("{name}.jinja"))).unwrap();
        config["chat_template"] = source.into();
        let config = serde_json::to_vec(&config).unwrap();
        let template = ChatTemplate::from_files(&config, None).unwrap().unwrap();
        (name.clone(), template, golden_text["cases"].clone())
    };
    templates.iter().map(read).collect()
}

fn template(name: &str) -> ChatTemplate {
    templates().into_iter().find(|(known, ..)| known == name).unwrap().1
}

fn bare(source: &str) -> Result<ChatTemplate, ChatError> {
    ChatTemplate::new(source.to_owned(), BTreeMap::new())
}

fn messages(said: &[(&str, &str)]) -> Vec<ChatMessage> {
    said.iter().map(|(role, content)| ChatMessage::new(*role, *content)).collect()
}

/// What is learned of each turn.
fn learned(segments: &[Segment]) -> Vec<&str> {
    segments.iter().filter(|segment| segment.train).map(|segment| segment.text.as_str()).collect()
}

#[test]
fn conversations_become_the_text_of_transformers() {
    for (name, template, cases) in templates() {
        for case in cases.as_array().unwrap() {
            let said: Vec<ChatMessage> = serde_json::from_value(case["messages"].clone()).unwrap();
            let found = template.render(&said, case["add_generation_prompt"].as_bool().unwrap());
            match (case["text"].as_str(), case["error"].as_str()) {
                (Some(text), None) => assert_eq!(found.unwrap(), text, "{name}"),
                (_, Some(error)) => {
                    assert_eq!(found, Err(ChatError::Refused { message: error.to_owned() }), "{name}");
                }
                _ => panic!("{name}: a case without an outcome"),
            }
        }
    }
}

#[test]
fn what_generation_marks_is_what_transformers_masks() {
    let mut marked = 0;
    for (name, template, cases) in templates() {
        for case in cases.as_array().unwrap().iter().filter(|case| !case["generated"].is_null()) {
            let said: Vec<ChatMessage> = serde_json::from_value(case["messages"].clone()).unwrap();
            let generated: Vec<String> = serde_json::from_value(case["generated"].clone()).unwrap();
            assert_eq!(learned(&template.segments(&said).unwrap()), generated, "{name}");
            marked += generated.len();
        }
    }
    assert!(marked > 10);
}

#[test]
fn segments_make_up_the_text_and_every_answer_is_learned_with_its_end() {
    let ends = [
        ("llama-3.1", "<|eot_id|>"),
        ("llama-3.2", "<|eot_id|>"),
        ("qwen2.5", "<|im_end|>"),
        ("qwen3", "<|im_end|>"),
        ("smollm2", "<|im_end|>"),
        ("zephyr", "</s>"),
        ("mistral-7b-v0.1", "</s>"),
        ("mistral-nemo", "</s>"),
        ("gemma", "<end_of_turn>"),
        ("gemma-3", "<end_of_turn>"),
    ];
    for (name, template, cases) in templates() {
        let Some((_, end)) = ends.iter().find(|(known, _)| *known == name) else { continue };
        assert_eq!(template.turn_end().as_deref(), Some(*end), "{name}");
        for case in cases.as_array().unwrap().iter().filter(|case| case["add_generation_prompt"] == false) {
            let Some(text) = case["text"].as_str() else { continue };
            let said: Vec<ChatMessage> = serde_json::from_value(case["messages"].clone()).unwrap();
            let segments = template.segments(&said).unwrap();
            let joined: String = segments.iter().map(|segment| segment.text.as_str()).collect();
            assert_eq!(joined, text, "{name}");
            let learned = learned(&segments);
            let answers: Vec<&ChatMessage> = said.iter().filter(|message| message.by_assistant()).collect();
            assert_eq!(learned.len(), answers.len(), "{name}");
            for (learned, answer) in learned.into_iter().zip(answers) {
                let content = answer.content.rsplit("</think>").next().unwrap().trim();
                let found = learned.strip_suffix(end).unwrap_or_else(|| panic!("{name}: {learned:?}"));
                assert!(found.trim_end().ends_with(content), "{name}: {learned:?} for {content:?}");
                assert!(!found.contains("2 < 3") && !found.contains("<|"), "{name}: {learned:?}");
            }
        }
    }
}

#[test]
fn thoughts_that_qwen3_strips_from_earlier_turns_do_not_hide_the_answers() {
    let said = messages(&[
        ("user", "a"),
        ("assistant", "<think>\nhm\n</think>\n\na"),
        ("user", "a"),
        ("assistant", "a"),
    ]);
    let segments = template("qwen3").segments(&said).unwrap();
    assert_eq!(learned(&segments), ["a<|im_end|>", "<think>\n\n</think>\n\na<|im_end|>"]);
}

#[test]
fn a_system_message_that_moves_to_the_last_question_does_not_hide_earlier_answers() {
    let said = messages(&[
        ("system", "s"),
        ("user", "one"),
        ("assistant", "1"),
        ("user", "two"),
        ("assistant", "2"),
    ]);
    assert_eq!(learned(&template("mistral-nemo").segments(&said).unwrap()), ["1</s>", "2</s>"]);
}

#[test]
fn an_answer_that_the_template_rewrites_is_an_error_in_words() {
    let shouting = bare("{% for m in messages %}{{ loop.length ~ m.content | upper }}{% endfor %}").unwrap();
    let said = messages(&[("user", "a"), ("assistant", "b")]);
    let error = shouting.segments(&said).unwrap_err();
    assert_eq!(error, ChatError::Untold { message: 2 });
    assert!(error.to_string().contains("message 2 of a conversation"));
}

#[test]
fn templates_are_found_in_every_place_that_models_put_them() {
    let from = |config: Value, jinja: Option<&str>| {
        ChatTemplate::from_files(&serde_json::to_vec(&config).unwrap(), jinja.map(str::as_bytes)).map(
            |template| template.map(|template| template.render(&messages(&[("user", "x")]), false).unwrap()),
        )
    };
    let named = |names: &[&str]| -> Value {
        names.iter().map(|name| json!({"name": name, "template": format!("{name}!")})).collect()
    };
    assert_eq!(from(json!({}), None), Ok(None));
    assert_eq!(from(json!({"chat_template": null}), None), Ok(None));
    assert_eq!(from(json!({"chat_template": []}), None), Ok(None));
    assert_eq!(from(json!({"chat_template": "one"}), None), Ok(Some("one".into())));
    assert_eq!(from(json!({"chat_template": "one"}), Some("two\n")), Ok(Some("two".into())));
    assert_eq!(
        from(json!({"chat_template": named(&["tool_use", "default"])}), None),
        Ok(Some("default!".into()))
    );
    assert_eq!(from(json!({"chat_template": named(&["only"])}), None), Ok(Some("only!".into())));
    let names = vec!["rag".to_owned(), "tool_use".to_owned()];
    assert_eq!(
        from(json!({"chat_template": named(&["rag", "tool_use"])}), None),
        Err(ChatError::NoDefault { names })
    );
    let token = json!({"chat_template": "{{ bos_token }}", "bos_token": {"content": "<b>", "lstrip": false}});
    assert_eq!(from(token, None), Ok(Some("<b>".into())));
    assert!(matches!(from(json!({"chat_template": 7}), None), Err(ChatError::Config { .. })));
    assert!(matches!(from(json!({"chat_template": "{% for %}"}), None), Err(ChatError::Syntax { .. })));
}

#[test]
fn values_are_written_as_python_writes_them() {
    let source = "{{ none }} {{ true }} {{ undefined_thing }}|{{ {'a': [1, 'é<'], 'b': none} | tojson }}|\
                  {{ {'a': [1, {}], 'b': {}} | tojson(indent=2) }}|{{ strftime_now('%d %b %Y, %A %-d') }}";
    let text = bare(source).unwrap().with_date(Date { year: 2025, month: 3, day: 4 }).render(&[], false);
    // json.dumps({"a": [1, {}], "b": {}}, indent=2)
    let pretty = "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": {}\n}";
    let expected = format!("None True |{{\"a\": [1, \"é<\"], \"b\": null}}|{pretty}|04 Mar 2025, Tuesday 4");
    assert_eq!(text.unwrap(), expected);
}

#[test]
fn hostile_templates_end_with_an_error() {
    let one = messages(&[("user", "hi")]);
    let endless =
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = 1 %}{% endfor %}{% endfor %}";
    assert!(matches!(bare(endless).unwrap().render(&one, false), Err(ChatError::Render { .. })));
    let deep = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
    assert!(matches!(bare(deep).unwrap().render(&one, false), Err(ChatError::Render { .. })));
    let wide = "{% for a in range(9999) %}{{ 'x' * 99999 }}{% endfor %}";
    assert!(matches!(bare(wide).unwrap().render(&one, false), Err(ChatError::Output { .. })));
    let doubling = "{% set ns = namespace(x='xxxxxxxx') %}{% for a in range(60) %}\
                    {% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}";
    assert!(matches!(bare(doubling).unwrap().render(&one, false), Err(ChatError::Output { .. })));
    let nested = format!("{}{}", "{% if 1 %}".repeat(9999), "{% endif %}".repeat(9999));
    assert!(matches!(bare(&nested), Err(ChatError::Syntax { .. })));
    let parens = format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000));
    assert!(matches!(bare(&parens), Err(ChatError::Syntax { .. })));
    assert!(matches!(bare(&"x".repeat(1 << 20)), Err(ChatError::TooLarge { .. })));
    assert!(matches!(bare("{% include 'a' %}").unwrap().render(&one, false), Err(ChatError::Render { .. })));
    let many = messages(&vec![("user", "x"); 2000]);
    let limit = ChatError::TooLong { messages: 2000, limit: 1024 };
    assert_eq!(bare("x").unwrap().render(&many, false), Err(limit));
    let reserved = messages(&[("user", "a\u{fdd0}b")]);
    assert_eq!(bare("x").unwrap().render(&reserved, false), Err(ChatError::Reserved { message: 1 }));
}
