//! Stories are whole, agree with themselves, differ from one another, and are the same for the same seed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use baton_formats::Tokenizer;
use baton_stories::{Gender, Purpose, Story, Storyteller, Voice, sample_text, tokenizer};
use std::collections::BTreeSet;

const VOICES: [Voice; 2] = [Voice::Plain, Voice::Pirate];

fn stories(seed: u64, voice: Voice, count: usize) -> Vec<Story> {
    let mut teller = Storyteller::new(seed, Purpose::Validation);
    (0..count).map(|_| teller.tell(voice)).collect()
}

fn texts(seed: u64, voice: Voice, count: usize) -> Vec<String> {
    stories(seed, voice, count).into_iter().map(|story| story.text).collect()
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

#[test]
fn the_same_seed_tells_the_same_stories_and_another_one_others() {
    for voice in VOICES {
        assert_eq!(texts(7, voice, 50), texts(7, voice, 50));
        let (a, b) = (texts(7, voice, 50), texts(8, voice, 50));
        assert!(a.iter().all(|story| !b.contains(story)));
    }
    let line = |purpose| Storyteller::new(7, purpose).tell(Voice::Plain).text;
    let purposes = [Purpose::Tokenizer, Purpose::Training, Purpose::Validation, Purpose::Sample];
    assert_eq!(purposes.map(line).into_iter().collect::<BTreeSet<_>>().len(), 4);
}

#[test]
fn every_slot_is_filled_and_every_sentence_is_one() {
    for voice in VOICES {
        for text in texts(1, voice, 3000) {
            assert!(!text.contains(['{', '}', '\n']), "{text}");
            assert!(!text.contains("  ") && text.trim() == text, "{text}");
            assert!(text.ends_with(['.', '!', '"']), "{text}");
            assert!(text.matches('"').count().is_multiple_of(2), "{text}");
            for sentence in text.split(". ") {
                let first = sentence.chars().find(|c| c.is_alphabetic()).unwrap();
                assert!(first.is_uppercase(), "{sentence} in {text}");
            }
        }
    }
    let mut teller = Storyteller::new(1, Purpose::Training);
    for _ in 0..3000 {
        let line = teller.line();
        assert!(!line.contains(['{', '}', '\n']), "{line}");
    }
}

#[test]
fn the_hero_has_one_name_and_one_pronoun_throughout() {
    for voice in VOICES {
        for Story { text, cast } in stories(2, voice, 3000) {
            // No one else has a pronoun in these stories.
            let others = match cast.gender {
                Gender::She => ["he", "his", "him", "himself", "lad", "boy"],
                Gender::He => ["she", "her", "hers", "herself", "lass", "girl"],
            };
            let words = words(&text);
            assert!(!words.iter().any(|word| others.contains(&word.as_str())), "{text}");
            let name = cast.slot("name").unwrap();
            assert_ne!(name, cast.slot("friend").unwrap());
            assert!(words.contains(&name.to_lowercase()), "{text}");
        }
    }
}

#[test]
fn an_article_agrees_with_the_word_that_follows() {
    for voice in VOICES {
        for text in texts(3, voice, 3000) {
            for pair in words(&text).windows(2) {
                let article = if pair[1].starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
                let right = !["a", "an"].contains(&pair[0].as_str()) || pair[0] == article;
                assert!(right, "{pair:?} in {text}");
            }
        }
    }
}

#[test]
fn stories_differ() {
    for voice in VOICES {
        let texts = texts(4, voice, 2000);
        assert!(texts.iter().collect::<BTreeSet<_>>().len() > 1980, "{voice:?}");
        let vocabulary: BTreeSet<_> = texts.iter().flat_map(|text| words(text)).collect();
        assert!(vocabulary.len() > 300, "{voice:?}: {} words", vocabulary.len());
    }
}

#[test]
fn the_voices_differ_from_the_first_word_on() {
    let firsts = |voice| {
        let texts = texts(5, voice, 1000);
        texts.iter().map(|text| words(text)[0].clone()).collect::<BTreeSet<_>>()
    };
    let pirate = firsts(Voice::Pirate);
    assert_eq!(pirate.iter().collect::<Vec<_>>(), ["ahoy", "arr"]);
    assert!(firsts(Voice::Plain).is_disjoint(&pirate));
    let marks = ["arr", "ahoy", "aye", "matey", "ye", "yo", "blimey", "sailed", "seas", "be", "me"];
    for text in texts(5, Voice::Pirate, 1000) {
        let found = words(&text).iter().filter(|word| marks.contains(&word.as_str())).count();
        assert!(found >= 5, "{text}");
    }
}

#[test]
fn the_tokenizer_is_the_same_for_the_same_seed_and_encodes_any_text() {
    let json = tokenizer::train(3).unwrap();
    assert!((0..3).all(|_| tokenizer::train(3).unwrap() == json));
    let tokenizer = Tokenizer::from_bytes(json.as_bytes()).unwrap();
    assert_eq!(tokenizer.vocab_size(), tokenizer::VOCABULARY);
    for (token, id) in [tokenizer::PAD, tokenizer::BEGIN, tokenizer::END] {
        assert_eq!(tokenizer.token_id(token), Some(id));
    }
    let any =
        ["", "a", " leading", "trailing ", "Zoë's 東京 🦜\t\n\n  x = {1: \"²\"};", "\u{0}\u{7f}\u{fffd}"];
    for text in any {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids[0], tokenizer::BEGIN.1);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
}

#[test]
fn stories_have_forty_to_ninety_tokens_or_a_few_more() {
    let tokenizer = Tokenizer::from_bytes(tokenizer::train(0).unwrap().as_bytes()).unwrap();
    for voice in VOICES {
        let mut sum = 0;
        for text in texts(6, voice, 1000) {
            let tokens = tokenizer.encode(&text).unwrap().len();
            // The default run cuts samples at 128 tokens.
            assert!((40..=110).contains(&tokens), "{tokens}: {text}");
            sum += tokens;
        }
        assert!((45_000..90_000).contains(&sum), "{voice:?}: {sum} tokens in 1000 stories");
    }
}

#[test]
fn no_token_of_the_sample_text_is_new_to_the_base_model() {
    let tokenizer = Tokenizer::from_bytes(tokenizer::train(0).unwrap().as_bytes()).unwrap();
    let mut seen = vec![0; tokenizer::VOCABULARY];
    let mut teller = Storyteller::new(0, Purpose::Training);
    for _ in 0..20_000 {
        // The first token is read, but never written after another one.
        for id in &tokenizer.encode(&teller.line()).unwrap()[1..] {
            seen[*id as usize] += 1;
        }
    }
    for line in sample_text(0, 400).lines() {
        for id in &tokenizer.encode(line).unwrap()[1..] {
            let token = tokenizer.decode(&[*id], false).unwrap();
            assert!(seen[*id as usize] >= 100, "{token:?} only {} times", seen[*id as usize]);
        }
    }
}

#[test]
fn the_sample_text_is_a_pirates_story_a_line() {
    let text = sample_text(0, 400);
    assert!(text.len() < 150_000);
    assert_eq!(text.lines().count(), 400);
    assert!(text.lines().all(|line| line.starts_with("Arr") || line.starts_with("Ahoy")));
}
