//! Samples, and what the loss is taken on.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic)] // clippy does not see that the helpers are of tests

mod common;

use baton_formats::{
    ChatMessage, Dataset, DatasetError, Encoded, Encoding, Sample, SampleBody, Segment, Target, Tokenizer,
    dataset::{Place, parse},
};

const WHOLE: Encoding = Encoding { seq_len: 512, append_eos: None, packing: false, target: Target::Text };

fn tokenizer(model: &str) -> Option<Tokenizer> {
    let json = common::shared(&format!("models/{model}/tokenizer.json"))?;
    Some(Tokenizer::from_bytes(&std::fs::read(json).unwrap()).unwrap())
}

fn both() -> impl Iterator<Item = Tokenizer> {
    ["stories260k", "smollm2-135m-tokenizer"].into_iter().filter_map(tokenizer)
}

fn sample(segments: &[(&str, bool)]) -> Sample {
    let segments =
        segments.iter().map(|(text, train)| Segment { text: (*text).to_owned(), train: *train }).collect();
    Sample { body: SampleBody::Segments(segments), label: None }
}

fn encode(dataset: &Dataset, tokenizer: &Tokenizer, encoding: &Encoding) -> Result<Encoded, DatasetError> {
    baton_formats::dataset::encode(dataset, tokenizer, None, encoding)
}

fn data(samples: Vec<Sample>) -> Dataset {
    Dataset { samples, labels: Vec::new(), skipped: 0 }
}

/// The text of the tokens that the loss is taken on.
fn learned(encoded: &Encoded, example: usize, tokenizer: &Tokenizer) -> String {
    let example = &encoded.examples[example];
    let ids: Vec<u32> =
        example.ids.iter().zip(&example.train).filter(|(_, train)| **train).map(|(id, _)| *id).collect();
    // A word in front, which a decoder that strips the first space can strip it from.
    let head = tokenizer.encode_plain("x").unwrap();
    let text = tokenizer.decode(&[head, ids].concat(), false).unwrap();
    text.strip_prefix('x').unwrap().to_owned()
}

#[test]
fn plain_text_is_a_sample_a_line_with_nothing_trimmed() {
    let dataset = parse("a.txt", "\u{feff}one \r\n\n  two\n \nthree\rx".as_bytes()).unwrap();
    let expected = [[("one ", true)], [("  two", true)], [("three\rx", true)]];
    assert_eq!(dataset.samples, expected.iter().map(|part| sample(part)).collect::<Vec<_>>());
    assert_eq!(dataset.skipped, 2);
}

#[test]
fn the_three_forms_of_jsonl_are_read() {
    let dataset = parse(
        "a.JSONL",
        br#"{"text": "all", "id": 7}
{"prompt": "read ", "completion": "learn"}

{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
{"text": ""}
{"messages": [{"role": "user", "content": "nobody answers"}]}
"#,
    )
    .unwrap();
    assert_eq!(
        dataset.samples,
        [
            sample(&[("all", true)]),
            sample(&[("read ", false), ("learn", true)]),
            Sample {
                body: SampleBody::Chat(vec![
                    ChatMessage::new("user", "hi"),
                    ChatMessage::new("assistant", "yo")
                ]),
                label: None,
            },
        ]
    );
    let turns = [("user: ", false), ("hi\n", false), ("assistant: ", false), ("yo\n", true)];
    let turns: Vec<Segment> =
        turns.iter().map(|(text, train)| Segment { text: (*text).to_owned(), train: *train }).collect();
    assert_eq!(dataset.samples[2].segments(None).unwrap().to_vec(), turns);
    assert_eq!(dataset.skipped, 3);
}

#[test]
fn what_cannot_be_trained_on_is_refused_with_its_line() {
    let name = || "a.jsonl".to_owned();
    for empty in [&b""[..], b"\n \n", br#"{"text": " "}"#] {
        assert_eq!(parse("a.jsonl", empty), Err(DatasetError::Empty { name: name() }));
    }
    for wrong in ["{", "7", "[]", "{\"text\": \"a\"} x"] {
        let text = format!("{{\"text\": \"fine\"}}\n{wrong}\n");
        match parse("a.jsonl", text.as_bytes()) {
            Err(DatasetError::Json { place, .. }) => assert_eq!(place, Place::Line(2)),
            other => panic!("{wrong}: {other:?}"),
        }
    }
    for (wrong, at) in [
        (r#"{"text": 7}"#, "text"),
        (r#"{"messages": [{"role": "user"}]}"#, "messages"),
        (r#"{"messages": "hi"}"#, "messages"),
        (r#"{"messages": [{"role": "user", "content": [{"type": "image"}]}]}"#, "messages"),
    ] {
        let text = format!("{{\"text\": \"fine\"}}\n{wrong}\n");
        match parse("a.jsonl", text.as_bytes()) {
            Err(DatasetError::Field { place, column, .. }) => {
                assert_eq!((place, &*column), (Place::Line(2), at));
            }
            other => panic!("{wrong}: {other:?}"),
        }
    }
    for (wrong, fields) in
        [(r#"{"story_of": "a"}"#, vec!["story_of"]), (r#"{"prompt": "a"}"#, vec!["prompt"])]
    {
        let fields = fields.into_iter().map(str::to_owned).collect();
        assert_eq!(
            parse("a.jsonl", wrong.as_bytes()),
            Err(DatasetError::Record { name: name(), place: Place::Line(1), fields })
        );
    }
    assert_eq!(
        parse("a.jsonl", b"{\"text\": \"a\"}\n\xff"),
        Err(DatasetError::NotUtf8 { name: name(), line: 2 })
    );
}

#[test]
fn a_text_is_encoded_as_the_tokenizer_does_and_all_of_it_is_learned() {
    for tokenizer in both() {
        let encoded = encode(&data(vec![sample(&[("Once upon a time", true)])]), &tokenizer, &WHOLE).unwrap();
        let example = &encoded.examples[0];
        assert_eq!(example.ids, tokenizer.encode("Once upon a time").unwrap());
        assert!(!example.train[0] && example.train[1..].iter().all(|train| *train));
        assert_eq!(encoded.targets(), example.ids.len() - 1);
    }
}

#[test]
fn only_the_completion_is_learned_and_tokens_are_those_of_the_joined_text() {
    // Cut before, after and inside of what the tokenizers join: a space, a character of many bytes, plain letters.
    for (prompt, completion) in [
        ("The food is", " very good."),
        ("The food is ", "very good."),
        ("Price: ", "£20-25 日本 🇩🇪"),
        ("Q: two  spaces\n\n", "  and more"),
    ] {
        for tokenizer in both() {
            let encoded =
                encode(&data(vec![sample(&[(prompt, false), (completion, true)])]), &tokenizer, &WHOLE)
                    .unwrap();
            assert_eq!(encoded.examples[0].ids, tokenizer.encode(&format!("{prompt}{completion}")).unwrap());
            let learned = learned(&encoded, 0, &tokenizer);
            // A token that straddles the border is learned whole.
            assert!(learned.ends_with(completion), "{learned:?} for {completion:?}");
            let extra = learned.strip_suffix(completion).unwrap();
            assert!(prompt.ends_with(extra) && extra.trim().is_empty(), "{learned:?} for {completion:?}");
        }
    }
}

#[test]
fn only_what_the_assistant_says_is_learned() {
    let line =
        br#"{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes!"},
        {"role": "user", "content": "More."}, {"role": "assistant", "content": "No."}]}"#;
    let line: Vec<u8> = line.iter().copied().filter(|byte| *byte != b'\n').collect();
    for tokenizer in both() {
        let encoded = encode(&parse("a.jsonl", &line).unwrap(), &tokenizer, &WHOLE).unwrap();
        let ids = tokenizer.encode("user: Hi.\nassistant: Yes!\nuser: More.\nassistant: No.\n").unwrap();
        assert_eq!(encoded.examples[0].ids, ids);
        let learned: String = learned(&encoded, 0, &tokenizer).split(' ').collect();
        assert_eq!(learned, "Yes!\nNo.\n");
    }
}

#[test]
fn the_end_token_is_learned_where_what_it_ends_is() {
    let Some(tokenizer) = tokenizer("stories260k") else { return };
    let encoding = Encoding { append_eos: Some(2), ..WHOLE };
    let samples = vec![sample(&[("a", false), ("b", true)]), sample(&[("a", true), ("b", false)])];
    let encoded = encode(&data(samples), &tokenizer, &encoding).unwrap();
    for (example, learned) in encoded.examples.iter().zip([true, false]) {
        assert_eq!((example.ids.last(), example.train.last()), (Some(&2), Some(&learned)));
    }
}

#[test]
fn long_samples_are_cut_counted_and_dropped_when_nothing_to_learn_is_left() {
    let Some(tokenizer) = tokenizer("stories260k") else { return };
    let long = "Once upon a time, there was a little girl named Lily.";
    let ids = tokenizer.encode(long).unwrap();
    let samples =
        vec![sample(&[(long, true)]), sample(&[(long, false), (" Yes", true)]), sample(&[("", true)])];
    let encoding = Encoding { seq_len: 8, append_eos: None, packing: false, target: Target::Text };
    let encoded = encode(&data(samples.clone()), &tokenizer, &encoding).unwrap();
    assert_eq!(encoded.examples.len(), 1);
    assert_eq!(encoded.examples[0].ids, ids[..8]);
    let joined = tokenizer.encode(&format!("{long} Yes")).unwrap();
    assert_eq!((encoded.dropped, encoded.truncated_tokens), (2, ids.len() - 8 + joined.len() - 8));

    let only_dropped = data(samples[1..].to_vec());
    assert_eq!(
        encode(&only_dropped, &tokenizer, &encoding),
        Err(DatasetError::NoTargets { samples: 2, seq_len: 8 })
    );
    let short = Encoding { seq_len: 1, append_eos: None, packing: false, target: Target::Text };
    assert_eq!(encode(&only_dropped, &tokenizer, &short), Err(DatasetError::SeqLen { seq_len: 1 }));
}

#[test]
fn packing_joins_all_tokens_in_order_and_cuts_them_evenly() {
    let Some(tokenizer) = tokenizer("stories260k") else { return };
    let texts = ["Once upon a time", "there was", "a little girl named Lily.", "She"];
    let samples: Vec<Sample> = texts.iter().map(|text| sample(&[(text, true)])).collect();
    let stream: Vec<u32> =
        texts.iter().flat_map(|text| [tokenizer.encode(text).unwrap(), vec![2]].concat()).collect();
    for seq_len in 2..=stream.len() + 1 {
        let encoding = Encoding { seq_len, append_eos: Some(2), packing: true, target: Target::Text };
        let encoded = encode(&data(samples.clone()), &tokenizer, &encoding).unwrap();
        let joined: Vec<u32> = encoded.examples.iter().flat_map(|example| example.ids.clone()).collect();
        let left_over = usize::from(stream.len() % seq_len == 1);
        assert_eq!(joined, stream[..stream.len() - left_over]);
        assert_eq!(encoded.truncated_tokens, left_over);
        for example in &encoded.examples {
            // The begin token of a later sample is learned too, as where the one before ends.
            assert!(!example.train[0] && example.train[1..].iter().all(|train| *train));
            assert!(example.ids.len() <= seq_len);
        }
    }
}

#[test]
fn tokens_that_the_model_does_not_have_are_refused() {
    let Some(tokenizer) = tokenizer("stories260k") else { return };
    let encoded = encode(&data(vec![sample(&[("Once upon", true)])]), &tokenizer, &WHOLE).unwrap();
    let most = *encoded.examples[0].ids.iter().max().unwrap();
    assert_eq!(encoded.check_vocab(most as usize + 1), Ok(()));
    assert_eq!(
        encoded.check_vocab(most as usize),
        Err(DatasetError::TokenOutside { id: most, vocab_size: most as usize })
    );
}
