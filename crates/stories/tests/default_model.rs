//! The committed default model is what docs/default-model.md says it is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use baton_engine::generate::generate;
use baton_engine::source::{AnyFiles, Model};
use baton_engine::texts::{Prompt, TextRequest};
use baton_formats::{DirFiles, dataset};
use baton_protocol::run::Settings;
use baton_stories::model::{Recipe, loss};
use baton_stories::{Purpose, Storyteller, Voice, sample_text, tokenizer};
use futures::executor::block_on;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What the page must load before a run can start.
const SIZE_LIMIT: u64 = 6_000_000;
/// What scripts/check_default_model.py makes transformers write too.
const GOLDEN: &str = include_str!("golden/greedy.txt");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../static")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

async fn model() -> Rc<Model> {
    Model::open(AnyFiles::Dir(DirFiles::new(folder().join("model")))).await.unwrap()
}

#[test]
fn it_is_small_enough_to_ship() {
    let files = std::fs::read_dir(folder().join("model")).unwrap();
    let size: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= SIZE_LIMIT, "{size} bytes");
}

#[test]
fn several_phones_can_share_it() {
    let config = &block_on(model()).config;
    assert!(config.num_hidden_layers >= 4);
    assert!(config.num_key_value_heads < config.num_attention_heads && config.tie_word_embeddings);
}

#[test]
fn all_but_the_weights_is_made_again_to_the_byte() {
    let recipe = Recipe::default();
    assert_eq!(read("model/config.json"), format!("{:#}\n", recipe.config()));
    assert_eq!(read("model/tokenizer.json"), tokenizer::train(recipe.seed).unwrap());
    assert_eq!(read("model/tokenizer_config.json"), format!("{:#}\n", tokenizer::config()));
    assert_eq!(read("sample.txt"), sample_text(recipe.seed, 400));
}

#[test]
fn the_sample_text_comes_back_from_its_tokens_and_fits_the_default_run() {
    block_on(async {
        let model = model().await;
        let sample = read("sample.txt");
        for line in sample.lines() {
            let ids = model.tokenizer.encode(line).unwrap();
            assert_eq!(ids.first(), model.config.bos_token_id.as_ref());
            assert_eq!(model.tokenizer.decode(&ids, true).unwrap(), line);
        }
        let data = dataset::parse("sample.txt", sample.as_bytes()).unwrap();
        let encoded = model.encode(&data, &Settings::default()).unwrap();
        assert_eq!((encoded.examples.len(), encoded.truncated_tokens, encoded.dropped), (400, 0, 0));
    });
}

#[test]
fn it_knows_plain_stories_and_no_pirates() {
    block_on(async {
        let model = model().await;
        let loss = |voice| loss(&model.files, &model.config, &model.tokenizer, voice, 60);
        let (plain, pirate) = (loss(Voice::Plain).await.unwrap(), loss(Voice::Pirate).await.unwrap());
        assert!(plain < 0.40, "{plain}");
        assert!(pirate > 3.0, "{pirate}");
    });
}

#[test]
fn greedy_from_the_begin_token_is_the_story_that_transformers_writes() {
    block_on(async {
        let model = model().await;
        let request =
            TextRequest { prompt: Prompt::Text(String::new()), tokens: 128, temperature: 0.0, seed: 0 };
        let text = generate(&model, None, &request, &baton_model::cpu(), |_| ()).await.unwrap();
        assert_eq!(text.decode(&model).unwrap(), GOLDEN.trim_end());
    });
}

#[test]
fn it_read_none_of_the_stories_that_it_is_measured_on() {
    let mut teller = Storyteller::new(u64::MAX, Purpose::Validation);
    let new: Vec<_> = (0..60).map(|_| teller.tell(Voice::Plain).text).collect();
    let recipe = Recipe::default();
    let mut teller = Storyteller::new(recipe.seed, Purpose::Training);
    let read = recipe.steps as usize * recipe.batch_size;
    assert!((0..read).all(|_| !new.contains(&teller.line())));
}
