//! Data sets: the first byte says which file name it has; inspected, read as suggested and in every other way that is
//! offered, and split.

#![no_main]

use baton_formats::Validation;
use baton_formats::dataset::{inspect, parse, parse_with};
use baton_fuzz::seed;
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 7] = ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.ndjson", "a"];

fn seeds() -> Vec<Vec<u8>> {
    [
        "0One day, a cat sat.\r\n\nTwo||parts\nname[x]||it is x",
        "1{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Hello\"}]}\n",
        "1{\"conversations\":[{\"from\":\"human\",\"value\":\"Hi\"},{\"from\":\"gpt\",\"value\":\"Hello\"}],\"system\":\"s\"}\n{\"text\":1}",
        "2[{\"instruction\":\"Add\",\"input\":\"1 2\",\"output\":\"3\"},{\"instruction\":\"Say\",\"input\":\"\",\"output\":\"x\"}]",
        "2{\"data\":[{\"prompt\":\"a\",\"completion\":\"b\"},{\"prompt\":\"c\",\"completion\":\"d\"}]}",
        "3sentence,label\n\"a \"\"film\"\", good\",1\nbad,0\n",
        "4sentence1\tsentence2\tlabel\na\tb\tentailment\nc\td\t0.5\n",
        "4it's good\t1\nit's bad\t0\n",
        "5{\"text\":\"a\",\"label\":-1.5}\n{\"text\":\"b\",\"label\":null}\n",
        "6no ending\u{feff}\n",
    ]
    .map(|seed| seed.as_bytes().to_vec())
    .into()
}

fuzz_target!(init: seed("dataset", seeds()), |bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let name = NAMES[usize::from(first.wrapping_sub(b'0')) % NAMES.len()];
    let Ok(inspection) = inspect(name, bytes) else { return };
    assert_eq!(inspection.columns.len(), inspection.mapping.columns.len());
    for mapping in &inspection.alternatives {
        let _ = parse_with(name, bytes, mapping);
    }
    let Ok(data) = parse(name, bytes) else { return };
    assert!(inspection.form.is_some() && inspection.bad_records == 0, "what is read is what was found to be readable");
    let samples = data.samples.len();
    if let Ok((train, validation)) = data.split(Validation::Share(0.2), 7) {
        assert_eq!(train.samples.len() + validation.samples.len(), samples);
    }
});
