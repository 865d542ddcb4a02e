//! `tokenizer_config.json` and `chat_template.jinja`: rendered, and cut into what is learned and what is read.

#![no_main]

use baton_formats::{ChatMessage, ChatTemplate};
use baton_fuzz::{contents, join, seed, split};
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    let config = br#"{"bos_token":"<s>","eos_token":{"content":"</s>"},"chat_template":"{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"}"#;
    let several = br#"{"chat_template":[{"name":"default","template":"{{ messages[0].content }}"},{"name":"tool_use","template":"x"}]}"#;
    let mut seeds = vec![config.to_vec(), several.to_vec()];
    let templates = contents("crates/formats/tests/golden/chat", ".jinja");
    seeds.extend(
        templates.iter().map(|template| join(&[br#"{"bos_token":"<s>","eos_token":"</s>"}"#, template])),
    );
    seeds
}

fuzz_target!(init: seed("chat", seeds()), |bytes: &[u8]| {
    let [config, jinja] = split::<2>(bytes);
    let jinja = (!jinja.is_empty()).then_some(jinja);
    let Ok(Some(template)) = ChatTemplate::from_files(config, jinja) else { return };
    let messages = [
        ChatMessage::new("system", "Be brief."),
        ChatMessage::new("user", "Hi {{ x }} there"),
        ChatMessage::new("assistant", " Hello. "),
        ChatMessage::new("user", "Bye"),
        ChatMessage::new("assistant", "Bye"),
    ];
    let _ = template.render(&messages[..4], true);
    if let Ok(whole) = template.render(&messages, false)
        && let Ok(segments) = template.segments(&messages)
    {
        let text: String = segments.iter().map(|segment| segment.text.as_str()).collect();
        assert_eq!(text, whole, "the segments are the text");
    }
    let _ = template.turn_end();
});
