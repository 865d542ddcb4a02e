//! The embedded default model, made from nothing but a seed: a teller of simple stories, a tokenizer that is trained on
//! them, and a small Llama that is trained to write them.
//!
//! The same stories can be told in a pirate's voice. The model never learns that; the sample text is all pirate, so a
//! first run of fine-tuning changes what the model writes from the first word on.

mod cast;
pub mod model;
mod plots;
pub mod tokenizer;

pub use cast::{Cast, Gender};

use plots::{GENERAL, MEETINGS, OPENING, PIRATES, PLOTS};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Who tells a story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// A children's book.
    Plain,
    /// A pirate.
    Pirate,
}

/// A line of text, and who it is about.
#[derive(Clone, Debug)]
pub struct Story {
    /// All on one line.
    pub text: String,
    /// Its persons and things.
    pub cast: Cast,
}

/// Tells one story after another, the same ones for the same seed.
pub struct Storyteller {
    rng: ChaCha8Rng,
}

/// Which lines are told for what: streams of one seed, that have no number in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The tokenizer is trained on these.
    Tokenizer,
    /// The base model is trained on these.
    Training,
    /// The base model is measured on these.
    Validation,
    /// These are `static/sample.txt`.
    Sample,
}

impl Storyteller {
    /// A teller of the lines for one purpose.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(match purpose {
            Purpose::Tokenizer => 1,
            Purpose::Training => 2,
            Purpose::Validation => 3,
            Purpose::Sample => 4,
        });
        Self { rng }
    }

    /// The next story.
    pub fn tell(&mut self, voice: Voice) -> Story {
        let cast = Cast::draw(&mut self.rng);
        let plot = PLOTS[self.rng.random_range(0..PLOTS.len())];
        let mut sentences = Vec::with_capacity(plot.len() + 1);
        for beat in std::iter::once(&OPENING).chain(plot) {
            sentences.push(cast.fill(cast::pick(&mut self.rng, beat.wordings(voice))));
        }
        Story { text: sentences.join(" "), cast }
    }

    /// The next line that the base model reads: mostly a plain story; now and then some meeting, a pirate seen from
    /// outside, or a sentence of general English, so that no token is new to it.
    pub fn line(&mut self) -> String {
        let templates = match self.rng.random_range(0..100) {
            0..10 => PIRATES,
            10..16 => MEETINGS,
            16..18 => GENERAL,
            _ => return self.tell(Voice::Plain).text,
        };
        let cast = Cast::draw(&mut self.rng);
        cast.fill(cast::pick(&mut self.rng, templates))
    }
}

/// `static/sample.txt`: pirate's stories, one a line.
pub fn sample_text(seed: u64, lines: usize) -> String {
    let mut teller = Storyteller::new(seed, Purpose::Sample);
    (0..lines).map(|_| teller.tell(Voice::Pirate).text + "\n").collect()
}
