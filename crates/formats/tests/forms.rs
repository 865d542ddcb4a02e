//! Files of the forms that people have become samples, by themselves or as a mapping says.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic)] // clippy does not see that the helpers are of tests

mod common;

use std::collections::BTreeMap;

use baton_formats::dataset::{
    Column, ColumnChoice, Form, Format, LabelKind, Place, Role, inspect, parse, parse_with,
};
use baton_formats::{
    ChatMessage, ChatTemplate, Dataset, DatasetError, Encoder, Encoding, Label, Mapping, SampleBody, Segment,
    Target, Tokenizer, Validation, dataset,
};

fn read(name: &str, text: &str) -> Dataset {
    parse(name, text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn text(text: &str) -> SampleBody {
    SampleBody::Segments(vec![Segment::trained(text)])
}

fn pair(prompt: &str, completion: &str) -> SampleBody {
    SampleBody::Segments(vec![Segment::read(prompt), Segment::trained(completion)])
}

fn chat(said: &[(&str, &str)]) -> SampleBody {
    SampleBody::Chat(said.iter().map(|(role, content)| ChatMessage::new(*role, *content)).collect())
}

fn bodies(dataset: &Dataset) -> Vec<SampleBody> {
    dataset.samples.iter().map(|sample| sample.body.clone()).collect()
}

fn labels(dataset: &Dataset) -> Vec<Option<Label>> {
    dataset.samples.iter().map(|sample| sample.label).collect()
}

fn roles(mapping: &Mapping) -> Vec<(&str, Role)> {
    mapping.columns.iter().map(|column| (column.name.as_str(), column.role)).collect()
}

fn tokenizer(name: &str) -> Tokenizer {
    let file = format!("{}/tests/golden/tokenizers/{name}.json", env!("CARGO_MANIFEST_DIR"));
    Tokenizer::from_bytes(&std::fs::read(file).unwrap()).unwrap()
}

const WHOLE: Encoding = Encoding { seq_len: 512, append_eos: None, packing: false, target: Target::Text };

#[test]
fn the_same_conversation_is_read_from_every_form_of_it() {
    let expected = chat(&[("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!")]);
    for (name, file) in [
        (
            "openai.jsonl",
            r#"{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}"#,
        ),
        (
            "parts.jsonl",
            r#"{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]}]}"#,
        ),
        (
            "sharegpt.json",
            r#"[{"id": "a", "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}]"#,
        ),
        (
            "system.json",
            "{\"version\": 1,\n \"data\": [\n{\"system\": \"Be kind.\", \"conversations\": [{\"from\": \"human\", \"value\": \"Hi\"}, {\"from\": \"gpt\", \"value\": \"Hello!\"}]}]}",
        ),
        (
            "trl.jsonl",
            r#"{"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello!"}]}"#,
        ),
        (
            "ultrachat.jsonl",
            r#"{"prompt": "Hi", "prompt_id": "7", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}"#,
        ),
    ] {
        assert_eq!(bodies(&read(name, file)), std::slice::from_ref(&expected), "{name}");
    }
}

#[test]
fn alpaca_is_a_prompt_without_a_template_and_a_conversation_with_one() {
    let file = r#"[{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Hi", "input": "", "output": "Yo"}]"#;
    let dataset = read("alpaca.json", file);
    let task = dataset.samples[0].segments(None).unwrap();
    assert!(task[0].text.starts_with("Below is an instruction") && !task[0].train);
    assert!(task[0].text.ends_with("\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"));
    assert_eq!(task[1], Segment::trained("3"));
    assert!(!dataset.samples[1].segments(None).unwrap()[0].text.contains("### Input"));
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}\
                  {% if add_generation_prompt %}<assistant>{% endif %}";
    let template = ChatTemplate::new(source.to_owned(), BTreeMap::new()).unwrap();
    let segments = dataset.samples[0].segments(Some(&template)).unwrap().into_owned();
    let expected =
        [Segment::read("<user>Add.\n\n1 2</>\n<assistant>"), Segment::trained("3</>"), Segment::read("\n")];
    assert_eq!(segments, expected);
    // Dolly's names.
    let dolly = read(
        "dolly.jsonl",
        r#"{"instruction": "Add.", "context": "1 2", "response": "3", "category": "sum"}"#,
    );
    assert_eq!(bodies(&dolly), bodies(&dataset)[..1]);
}

#[test]
fn prompts_and_completions_are_read_under_their_usual_names() {
    for (name, file) in [
        ("a.jsonl", r#"{"prompt": "2+2=", "completion": "4"}"#),
        ("a.csv", "question,answer\n2+2=,4\n"),
        ("a.json", r#"{"train": [{"input": "2+2=", "output": "4"}]}"#),
        ("a.tsv", "prompt\tresponse\n2+2=\t4\n"),
    ] {
        assert_eq!(bodies(&read(name, file)), [pair("2+2=", "4")], "{name}");
    }
}

#[test]
fn tables_are_read_with_quotes_marks_headers_and_other_separators() {
    for (name, file) in [
        ("a.csv", "\u{feff}text,label\r\n\"one, \"\"two\"\"\nthree\",pos\r\nfour,neg\r\n"),
        ("a.csv", "label;text\npos;\"one, \"\"two\"\"\nthree\"\n\nneg;four\n"),
    ] {
        let dataset = read(name, file);
        assert_eq!(bodies(&dataset), [text("one, \"two\"\nthree"), text("four")], "{file:?}");
        assert_eq!(dataset.labels, ["neg", "pos"]);
        assert_eq!(labels(&dataset), [Some(Label::Class(1)), Some(Label::Class(0))]);
    }
    // Quotes are the table's own only where all cells that begin with one end with one.
    let quoted = read("a.tsv", "label\ttext\npos\t\"one, \"\"two\"\"\"\nneg\tfour\n");
    assert_eq!(bodies(&quoted), [text("one, \"two\""), text("four")]);
    let bare = read("a.tsv", "label\ttext\npos\t\"one\" and\nneg\tfour\n");
    assert_eq!(bodies(&bare), [text("\"one\" and"), text("four")]);
}

#[test]
fn a_table_without_a_header_is_told_by_its_columns() {
    let dataset = read("sst2.tsv", "a \"stirring film\t1\ndull\t0\n");
    assert_eq!(bodies(&dataset), [text("a \"stirring film"), text("dull")]);
    assert_eq!(labels(&dataset), [Some(Label::Class(1)), Some(Label::Class(0))]);
    assert_eq!(dataset.labels, ["0", "1"]);
    let pairs = read("mrpc.tsv", "1\tHe left.\tHe went.\n0\tRain.\tSun.\n");
    assert_eq!(pairs.samples[0].body, SampleBody::Pair("He left.".into(), "He went.".into()));
}

#[test]
fn labels_are_classes_names_or_values() {
    let label = |value: &str| format!("{{\"sentence\": \"s\", \"label\": {value}}}\n");
    let file = |values: &[&str]| values.iter().map(|value| label(value)).collect::<String>();
    let ints = read("a.jsonl", &file(&["3", "1"]));
    assert_eq!(labels(&ints), [Some(Label::Class(3)), Some(Label::Class(1))]);
    assert_eq!(ints.labels, ["0", "1", "2", "3"]);
    assert_eq!(labels(&read("a.jsonl", &file(&["true", "false"])))[0], Some(Label::Class(1)));
    for values in [["0.5", "2"], ["-1", "2"], ["1000", "2"]] {
        let dataset = read("a.jsonl", &file(&values));
        let value = values[0].parse().unwrap();
        assert_eq!(labels(&dataset), [Some(Label::Value(value)), Some(Label::Value(2.0))]);
        assert!(dataset.labels.is_empty());
    }
    let named = read("a.jsonl", &file(&["\"zebra\"", "\"ant\"", "\"zebra\""]));
    assert_eq!(named.labels, ["ant", "zebra"]);
    assert_eq!(labels(&named)[0], Some(Label::Class(1)));
    let mut mapping = inspect("a.jsonl", file(&["3", "1"]).as_bytes()).unwrap().mapping;
    mapping.labels = LabelKind::Values;
    let values = parse_with("a.jsonl", file(&["3", "1"]).as_bytes(), &mapping).unwrap();
    assert_eq!(labels(&values), [Some(Label::Value(3.0)), Some(Label::Value(1.0))]);
    let many: Vec<String> = (0..1001).map(|name| format!("\"n{name}\"")).collect();
    let many = file(&many.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(matches!(parse("a.jsonl", many.as_bytes()), Err(DatasetError::Classes { .. })));
}

#[test]
fn a_label_that_is_missing_is_an_error_with_its_line() {
    let file = "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\", \"label\": null}\n";
    match parse("a.jsonl", file.as_bytes()) {
        Err(DatasetError::Field { place, column, .. }) => {
            assert_eq!((place, &*column), (Place::Line(2), "label"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ragged_row_is_an_error_with_its_line_after_a_cell_of_two_lines() {
    let error = parse("a.csv", b"text,label\n\"a\nb\",1\nc\n").unwrap_err();
    let (name, place) = ("a.csv".to_owned(), Place::Line(4));
    assert_eq!(error, DatasetError::Ragged { name, place, found: 1, expected: 2 });
    assert!(error.to_string().starts_with("line 4 of a.csv has 1 columns where the first row has 2"));
    let wide = "x,".repeat(1000);
    assert!(matches!(parse("a.csv", wide.as_bytes()), Err(DatasetError::Columns { .. })));
}

#[test]
fn an_inspection_shows_what_there_is_and_survives_as_json() {
    let file = "{\"id\": 7, \"body\": \"long story\", \"mood\": \"sad\"}\n{\"id\": 8, \"body\": \"short\", \"mood\": \"glad\"}\n{oops\n";
    let seen = inspect("a.jsonl", file.as_bytes()).unwrap();
    assert_eq!((seen.records, seen.bad_records, seen.form), (3, 1, None));
    assert!(seen.problems[0].starts_with("line 3 of a.jsonl is not a JSON record"));
    // A record's own line is always the first to the JSON reader, and no help.
    assert!(seen.problems[0].ends_with("at column 2") && !seen.problems[0].contains("line 1"), "{seen:?}");
    assert_eq!(roles(&seen.mapping), [("body", Role::Ignore), ("id", Role::Ignore), ("mood", Role::Ignore)]);
    assert_eq!(
        (&*seen.columns[2].name, &seen.columns[2].samples[..]),
        ("mood", &["sad".into(), "glad".into()][..])
    );
    assert_eq!(seen.columns[2].filled, 2);
    // What nobody knows is a person's to say.
    let error = parse("a.jsonl", file.as_bytes()).unwrap_err();
    assert!(matches!(&error, DatasetError::Record { fields, .. } if fields == &["body", "id", "mood"]));
    let json = serde_json::to_string(&seen.mapping).unwrap();
    let json = json.replace(r#""name":"body","role":"ignore""#, r#""name":"body","role":"text""#);
    let mapping: Mapping = serde_json::from_str(
        &json.replace(r#""name":"mood","role":"ignore""#, r#""name":"mood","role":"label""#),
    )
    .unwrap();
    assert_eq!(mapping.form(), Ok(Form::Text));
    let fine = file.strip_suffix("{oops\n").unwrap();
    let dataset = parse_with("a.jsonl", fine.as_bytes(), &mapping).unwrap();
    assert_eq!(
        (bodies(&dataset), dataset.labels),
        (vec![text("long story"), text("short")], vec!["glad".into(), "sad".into()])
    );
}

#[test]
fn columns_that_make_no_samples_are_refused_in_words() {
    let column = |name: &str, role| Column { name: name.to_owned(), role };
    let mapping =
        |columns: Vec<Column>| Mapping { format: Format::JsonLines, columns, labels: LabelKind::Auto };
    for (columns, words) in [
        (vec![column("a", Role::Label)], "one must be the text"),
        (vec![column("a", Role::Prompt)], "the prompt and the completion"),
        (vec![column("a", Role::Text), column("b", Role::Text)], "two columns are Text"),
    ] {
        let error = mapping(columns).form().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn lines_with_a_separator_stay_plain_text_and_can_be_split() {
    let file = b"name : A | food : B||There is A .\nname : C||C is there .\n";
    let seen = inspect("valid.txt", file).unwrap();
    assert_eq!((seen.form, seen.records), (Some(Form::Text), 2));
    assert_eq!(seen.mapping.format, Format::Lines);
    let split = &seen.alternatives[0];
    assert_eq!(split.format, Format::SplitLines { separator: "||".into() });
    let dataset = parse_with("valid.txt", file, split).unwrap();
    assert_eq!(dataset.samples[0].body, pair("name : A | food : B||", "There is A ."));
    let error = parse_with("a.txt", b"a||b\nnone\n", split).unwrap_err();
    assert!(matches!(error, DatasetError::Ragged { place: Place::Line(2), .. }));
}

#[test]
fn json_lists_and_lines_are_told_apart_whatever_the_name() {
    let one = r#"{"text": "a"}"#;
    for file in
        [one.to_owned(), format!("[{one}]"), format!("[\n{one}\n]\n"), format!("{{\"rows\": [{one}]}}")]
    {
        assert_eq!(bodies(&read("a.json", &file)), [text("a")], "{file}");
    }
    assert_eq!(read("a.json", &format!("{one}\n{one}\n")).samples.len(), 2);
    let error = parse("a.json", br#"[{"text": "a"}, 7]"#).unwrap_err();
    assert!(matches!(error, DatasetError::Json { place: Place::Record(2), .. }));
    let error = parse("a.json", br#"[{"text": "a"}, {"text": ["#).unwrap_err();
    assert!(matches!(error, DatasetError::Json { place: Place::Record(2), .. }));
    let deep = format!("[{}{}]", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(parse("a.json", deep.as_bytes()), Err(DatasetError::Json { .. })));
}

#[test]
fn a_conversation_in_a_template_gets_no_second_begin_token_and_only_answers_are_learned() {
    let tokenizer = tokenizer("unigram");
    let source = "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let template = ChatTemplate::new(source.to_owned(), BTreeMap::new()).unwrap();
    let dataset = read(
        "a.jsonl",
        r#"{"messages": [{"role": "user", "content": "Once"}, {"role": "assistant", "content": "the end"}]}"#,
    );
    let encoding = Encoding { append_eos: Some(1), ..WHOLE };
    let encoded = dataset::encode(&dataset, &tokenizer, Some(&template), &encoding).unwrap();
    let example = &encoded.examples[0];
    assert_eq!(example.ids, tokenizer.encode_plain("user:Once</s>assistant:the end</s>").unwrap());
    let learned: Vec<u32> =
        example.ids.iter().zip(&example.train).filter(|(_, train)| **train).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&learned, false).unwrap(), "the end</s>");
}

#[test]
fn conversations_that_the_template_refuses_are_left_out_and_told_of() {
    let source = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }}\n{% endfor %}";
    let template = ChatTemplate::new(source.to_owned(), BTreeMap::new()).unwrap();
    let bad = r#"{"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]}"#;
    let good =
        r#"{"messages": [{"role": "user", "content": "Once"}, {"role": "assistant", "content": "upon"}]}"#;
    let tokenizer = tokenizer("byte-level");
    let encode = |file: &str| dataset::encode(&read("a.jsonl", file), &tokenizer, Some(&template), &WHOLE);
    let encoded = encode(&format!("{bad}\n{good}\n{bad}\n")).unwrap();
    assert_eq!((encoded.examples.len(), encoded.refused), (1, 2));
    assert!(encoded.refusal.unwrap().ends_with("no tools"));
    assert!(matches!(encode(bad), Err(DatasetError::Chat(_))));
}

#[test]
fn a_pair_is_framed_cut_at_its_longer_text_and_keeps_its_label() {
    let tokenizer = tokenizer("unigram");
    let plain = |text: &str| tokenizer.encode_plain(text).unwrap();
    let file =
        r#"{"sentence1": "Once upon a time there was a little girl", "sentence2": "The end.", "label": 1}"#;
    let dataset = read("a.jsonl", file);
    let (first, second) = (plain("Once upon a time there was a little girl"), plain("The end."));
    let whole = Encoding { target: Target::Label, ..WHOLE };
    let encoded = dataset::encode(&dataset, &tokenizer, None, &whole).unwrap();
    let example = &encoded.examples[0];
    assert_eq!(example.ids, [&first[..], &[1], &second, &[1]].concat());
    let types = [vec![0; first.len() + 1], vec![1; second.len() + 1]].concat();
    assert_eq!((&example.type_ids, example.label), (&types, Some(Label::Class(1))));
    assert!(!example.train.contains(&true));
    let seq_len = second.len() * 2 + 3;
    assert!(first.len() > second.len() + 1);
    let short = Encoding { seq_len, ..whole };
    let encoded = dataset::encode(&dataset, &tokenizer, None, &short).unwrap();
    assert_eq!(encoded.examples[0].ids, [&first[..second.len() + 1], &[1], &second, &[1]].concat());
    let cut = first.len() - second.len() - 1;
    assert_eq!((encoded.truncated_samples, encoded.truncated_tokens), (1, cut));
    let unlabelled = dataset::encode(&read("a.txt", "x"), &tokenizer, None, &short);
    assert_eq!(unlabelled, Err(DatasetError::NoLabels { samples: 1 }));
}

#[test]
fn a_bert_pair_is_cut_and_typed_as_transformers_does() {
    // python: t = Tokenizer.from_file(MiniLM's); t.no_padding(); t.enable_truncation(L, strategy="longest_first");
    // t.encode("a b c d e f g", "h i j").tokens
    let Some(file) = common::minilm("tokenizer.json") else { return };
    let tokenizer = Tokenizer::from_bytes(&std::fs::read(file).unwrap()).unwrap();
    let word = |word: &str| tokenizer.token_id(word).unwrap();
    for (limit, first, second) in
        [(13, "a b c d e f g", "h i j"), (10, "a b c d", "h i j"), (8, "a b c", "h i"), (7, "a b", "h i")]
    {
        let framed = tokenizer.encode_framed("a b c d e f g", Some("h i j"), limit).unwrap();
        let words = |text: &str| text.split(' ').map(word).collect::<Vec<_>>();
        let sep = vec![word("[SEP]")];
        let expected = [vec![word("[CLS]")], words(first), sep.clone(), words(second), sep].concat();
        assert_eq!(framed.ids, expected, "{limit}");
        assert_eq!(framed.type_ids.iter().filter(|kind| **kind == 1).count(), words(second).len() + 1);
    }
}

#[test]
fn encoding_in_steps_is_encoding_at_once() {
    let tokenizer = tokenizer("byte-level");
    let lines: String =
        (0..25).map(|line| format!("{}\n", "Once upon a time. ".repeat(line % 7 + 1))).collect();
    let dataset = read("a.txt", &lines);
    for packing in [false, true] {
        let encoding = Encoding { seq_len: 16, packing, ..WHOLE };
        let mut encoder = Encoder::new(&dataset, &tokenizer, None, &encoding).unwrap();
        let mut steps = 0;
        while !encoder.step(4).unwrap().finished() {
            steps += 1;
        }
        assert_eq!(steps, 6);
        let encoded = encoder.finish().unwrap();
        assert_eq!(encoded, dataset::encode(&dataset, &tokenizer, None, &encoding).unwrap());
        let lengths = &encoded.lengths;
        let mut lens: Vec<usize> = lines.lines().map(|line| tokenizer.encode(line).unwrap().len()).collect();
        lens.sort_unstable();
        assert_eq!((lengths.samples, lengths.longest, lengths.median), (25, lens[24], lens[12]));
        assert_eq!((lengths.p90, lengths.p99), (lens[22], lens[24]));
        assert_eq!(lengths.histogram.iter().map(|(_, count)| count).sum::<usize>(), 25);
        let within = lens.iter().filter(|len| **len > 8 && **len <= 16).count();
        assert_eq!(lengths.histogram[1], (16, within));
        let cut: usize = if packing { 0 } else { lens.iter().map(|len| len.saturating_sub(16)).sum() };
        assert!(encoded.truncated_tokens.abs_diff(cut) <= 1);
        let (tokens, rows) =
            (encoded.examples.iter().map(|row| row.ids.len()).sum::<usize>(), encoded.examples.len());
        let longest = encoded.examples.iter().map(|row| row.ids.len()).max().unwrap();
        let padding = 1.0 - tokens as f64 / (longest * rows) as f64;
        assert!((encoded.padding(rows) - padding).abs() < 1e-12);
        assert_eq!(encoded.padding(1), 0.0);
    }
}

fn labelled(samples: usize) -> Dataset {
    let file: String = (0..samples)
        .map(|i| {
            format!(
                "text {}\t{}\n",
                i % (samples * 4 / 5),
                u32::from((i % (samples * 4 / 5)).is_multiple_of(5))
            )
        })
        .collect();
    read("a.tsv", &file)
}

#[test]
fn a_split_is_the_same_each_time_keeps_the_shares_of_classes_and_parts_no_duplicates() {
    let dataset = labelled(500);
    let split = |seed| dataset.clone().split(Validation::Share(0.2), seed).unwrap();
    let (train, validation) = split(7);
    assert_eq!(split(7), (train.clone(), validation.clone()));
    assert_ne!(split(8).1, validation);
    assert_eq!(train.samples.len() + validation.samples.len(), 500);
    assert!(validation.samples.len().abs_diff(100) <= 2, "{}", validation.samples.len());
    let ones = |part: &Dataset| labels(part).iter().filter(|label| **label == Some(Label::Class(1))).count();
    assert!(ones(&validation).abs_diff(20) <= 2, "{}", ones(&validation));
    assert!(bodies(&validation).iter().all(|body| !bodies(&train).contains(body)));
    assert_eq!((train.labels.len(), validation.labels.len()), (2, 2));
}

#[test]
fn no_part_is_empty_unless_none_is_asked_for() {
    for wanted in
        [Validation::Count(1), Validation::Count(99), Validation::Share(1e-9), Validation::Share(0.999)]
    {
        for samples in [5, 6, 11] {
            for seed in 0..8 {
                let (train, validation) = labelled(samples).split(wanted, seed).unwrap();
                assert!(
                    !train.samples.is_empty() && !validation.samples.is_empty(),
                    "{wanted:?} of {samples}"
                );
            }
        }
    }
    for none in [Validation::Count(0), Validation::Share(0.0)] {
        let (train, validation) = labelled(5).split(none, 0).unwrap();
        assert_eq!((train.samples.len(), validation.samples.len()), (5, 0));
    }
    for share in [1.0, -0.1, f64::NAN] {
        assert!(matches!(labelled(5).split(Validation::Share(share), 0), Err(DatasetError::Share { .. })));
    }
    let same = read("a.txt", "x\nx\nx\n").split(Validation::Count(1), 0);
    assert_eq!(same, Err(DatasetError::Split { samples: 3, distinct: 1 }));
}

#[test]
fn real_files_are_read_as_what_they_are() {
    let Some(sst2) = common::shared("data/sst2/dev.tsv") else { return };
    let bytes = std::fs::read(sst2).unwrap();
    let seen = inspect("dev.tsv", &bytes).unwrap();
    assert_eq!((seen.form, seen.records, seen.bad_records), (Some(Form::Text), 872, 0));
    let dataset = parse("dev.tsv", &bytes).unwrap();
    assert_eq!((dataset.samples.len(), dataset.labels.len()), (872, 2));
    let ones = labels(&dataset).iter().filter(|label| **label == Some(Label::Class(1))).count();
    assert_eq!(ones, 444);
    let Some(e2e) = common::shared("data/e2e/valid.txt") else { return };
    let seen = inspect("valid.txt", &std::fs::read(e2e).unwrap()).unwrap();
    assert_eq!((seen.form, seen.records), (Some(Form::Text), 4672));
    assert_eq!(seen.alternatives.len(), 1);
}

fn chosen(name: &str, text: &str, choices: &[&str]) -> Result<Mapping, DatasetError> {
    let choices: Vec<ColumnChoice> = choices.iter().map(|choice| choice.parse().unwrap()).collect();
    dataset::choose(name, text.as_bytes(), &choices)
}

#[test]
fn columns_named_by_hand_are_found_in_every_kind_of_file() {
    let both = ["prompt=q", "completion=a"];
    for (name, file) in [
        ("a.jsonl", "{\"q\": \"one\", \"a\": \"two\", \"n\": 1}\n"),
        ("a.json", "[{\"q\": \"one\", \"a\": \"two\", \"n\": 1}]"),
        // Nothing says that the first row names the columns but that they are asked for.
        ("a.csv", "q,a\none,two\n"),
        ("a.tsv", "a\tq\tx\ntwo\tone\tthree\n"),
    ] {
        let mapping = chosen(name, file, &both).unwrap_or_else(|error| panic!("{name}: {error}"));
        let dataset = parse_with(name, file.as_bytes(), &mapping).unwrap();
        assert_eq!(bodies(&dataset), [pair("one", "two")], "{name}");
    }
    // A known name is no longer what it looks like.
    let mapping = chosen("a.csv", "prompt,completion\none,two\n", &["text=completion"]).unwrap();
    assert_eq!(roles(&mapping), [("prompt", Role::Ignore), ("completion", Role::Text)]);
    // Lines in two parts, and columns without names.
    let mapping = chosen("a.txt", "x||y\n", &["prompt=before", "completion=after"]).unwrap();
    assert_eq!(mapping.format, Format::SplitLines { separator: "||".into() });
    let mapping = chosen("a.csv", "sad,7\nglad,8\n", &["text=column 1"]).unwrap();
    assert_eq!(mapping.format, Format::Table { delimiter: ',', quotes: true, header: false });
}

#[test]
fn a_wrong_choice_of_columns_is_told_with_those_that_there_are() {
    let file = "{\"q\": \"one\", \"a\": \"two\"}\n";
    for (choices, words) in [
        (&["text=x"][..], "no column \"x\"; it has \"a\", \"q\""),
        (&["text=q", "text=a"], "two columns are Text"),
        (&["text=q", "label=q"], "\"q\" is given two roles"),
        (&["prompt=q"], "the prompt and the completion"),
    ] {
        let error = chosen("a.jsonl", file, choices).unwrap_err().to_string();
        assert!(error.contains(words), "{choices:?}: {error}");
    }
    for wrong in ["q", "question=q", "text=", "=q", ""] {
        let error = wrong.parse::<ColumnChoice>().unwrap_err().to_string();
        assert!(error.contains("ROLE=COLUMN") && error.contains("messages, system"), "{error}");
    }
    for (role, name) in Role::ALL {
        assert_eq!(serde_json::to_value(role).unwrap(), name, "the names are those of the page");
    }
}

#[test]
fn what_is_read_as_what_is_told_in_a_line() {
    for (name, text, labels, expected) in [
        ("a.txt", "one\n", false, "read as plain text, a sample a line"),
        (
            "a.csv",
            "sentence,facts\none,two\n",
            false,
            "read as plain text from \"sentence\"; \"facts\" is ignored",
        ),
        ("a.csv", "text,label\none,1\n", true, "read as texts from \"text\" with the labels in \"label\""),
        (
            "a.csv",
            "text,label\none,1\n",
            false,
            "read as plain text from \"text\"; the labels in \"label\" are not used, as this model writes text",
        ),
        (
            "a.jsonl",
            "{\"question\": \"one\", \"answer\": \"two\", \"text\": \"three\", \"id\": 4}",
            false,
            "read as prompt \"question\" and completion \"answer\"; \"text\" only in records without these; \"id\" is \
             ignored",
        ),
        (
            "a.json",
            "[{\"instruction\": \"one\", \"input\": \"two\", \"output\": \"three\"}]",
            false,
            "read as instruction \"instruction\", input \"input\" and output \"output\"",
        ),
        (
            "a.jsonl",
            "{\"system\": \"one\", \"messages\": [{\"role\": \"user\", \"content\": \"two\"}], \"a\": 1, \"b\": 2}",
            false,
            "read as conversations from \"messages\" with the system message \"system\"; \"a\", \"b\" are ignored",
        ),
    ] {
        let mapping = inspect(name, text.as_bytes()).unwrap().mapping;
        assert_eq!(mapping.in_words(labels), expected);
    }
}
