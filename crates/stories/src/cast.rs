//! Who and what a story is about: every choice is made once, so that all sentences of a story agree.

use rand::Rng;
use rand::seq::IndexedRandom;

/// The hero of a story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gender {
    /// she, her, herself
    She,
    /// he, his, himself
    He,
}

/// The words that fill the slots of a story's templates.
#[derive(Clone, Debug)]
pub struct Cast {
    /// The hero's pronouns, in every sentence.
    pub gender: Gender,
    slots: Vec<(&'static str, String)>,
}

const GIRLS: &[&str] =
    &["Lily", "Mia", "Anna", "Sue", "Rose", "Lucy", "Emma", "Nora", "Ella", "Jane", "Amy", "Kate"];
const BOYS: &[&str] =
    &["Tom", "Ben", "Sam", "Max", "Tim", "Leo", "Jack", "Finn", "Noah", "Adam", "Luke", "Dan"];
/// Animals, the name that each has, and its gender: a name that always goes with one kind is soon learned.
const ANIMALS: &[(&str, &str, Gender)] = &[
    ("cat", "Luna", Gender::She),
    ("dog", "Rex", Gender::He),
    ("fox", "Rusty", Gender::He),
    ("bear", "Bruno", Gender::He),
    ("rabbit", "Daisy", Gender::She),
    ("mouse", "Pip", Gender::He),
    ("duck", "Dotty", Gender::She),
    ("frog", "Fred", Gender::He),
    ("pig", "Penny", Gender::She),
    ("bird", "Coco", Gender::She),
    ("pony", "Star", Gender::She),
    ("turtle", "Toby", Gender::He),
];
const TRAITS: &[&str] = &["little", "small", "happy", "kind", "brave", "clever", "young", "quiet"];
/// A place, and how one is there.
const PLACES: &[(&str, &str)] = &[
    ("park", "in the park"),
    ("garden", "in the garden"),
    ("forest", "in the forest"),
    ("beach", "on the beach"),
    ("farm", "on the farm"),
    ("lake", "by the lake"),
    ("hill", "on the hill"),
    ("river", "by the river"),
    ("field", "in the field"),
    ("market", "at the market"),
    ("village", "in the village"),
    ("pond", "by the pond"),
    ("barn", "in the barn"),
    ("bridge", "by the bridge"),
];
const COLORS: &[&str] = &["red", "blue", "green", "yellow", "pink", "white", "shiny", "soft", "big", "tiny"];
const THINGS: &[&str] = &[
    "ball", "kite", "doll", "hat", "book", "toy car", "drum", "bell", "boat", "ring", "cup", "scarf",
    "basket", "robot", "flute", "blanket",
];
/// Things that can break.
const TOYS: &[&str] = &["kite", "doll", "toy car", "drum", "bell", "boat", "ring", "cup", "robot", "flute"];
const HIDDEN: &[&str] = &[
    "under a bush",
    "behind a tree",
    "in the tall grass",
    "under an old bench",
    "next to a big rock",
    "behind the gate",
    "under some leaves",
    "in a muddy hole",
];
/// At the first mention, afterwards.
const HELPERS: &[(&str, &str)] = &[
    ("{his} mom", "{his} mom"),
    ("{his} dad", "{his} dad"),
    ("{his} grandma", "{his} grandma"),
    ("{his} grandpa", "{his} grandpa"),
    ("{his} sister", "{his} sister"),
    ("{his} brother", "{his} brother"),
    ("a wise old owl", "the owl"),
    ("a kind old man", "the old man"),
    ("a friendly squirrel", "the squirrel"),
];
/// What one can learn, and what goes wrong at first.
const SKILLS: &[(&str, &str)] = &[
    ("swim", "the water was too cold"),
    ("climb a tree", "the branch was too high"),
    ("ride a bike", "the bike fell over"),
    ("bake a cake", "the cake was too hard"),
    ("sing a song", "the song was too fast"),
    ("paint a picture", "the paint was too wet"),
    ("fly a kite", "the kite fell down"),
    ("build a tower", "the tower fell down"),
    ("plant a flower", "the ground was too dry"),
    ("jump over the log", "the log was too big"),
];
const FOUNDLINGS: &[&str] =
    &["baby bird", "kitten", "puppy", "butterfly", "hedgehog", "lamb", "snail", "baby deer"];
const HURTS: &[&str] =
    &["a hurt leg", "no home", "no mother", "a bad cough", "nothing to eat", "a sore foot"];
const FOODS: &[&str] = &[
    "cookie",
    "berry pie",
    "sandwich",
    "cake",
    "banana",
    "bowl of soup",
    "pear",
    "pancake",
    "muffin",
    "carrot",
];
const WEATHER: &[(&str, &str)] = &[
    ("it started to rain", "the rain"),
    ("a strong wind came", "the wind"),
    ("it started to snow", "the snow"),
    ("a dark storm came", "the storm"),
    ("a thick fog came", "the fog"),
];
const SHELTERS: &[&str] =
    &["under a big tree", "in a small cave", "in an old hut", "under the bridge", "in a hollow log"];
/// What it seems to be, and what it is.
const FRIGHTS: &[(&str, &str)] = &[
    ("a loud noise", "the wind"),
    ("a big shadow", "a tree"),
    ("two bright eyes", "a small cat"),
    ("a strange voice", "a parrot"),
    ("a tall ghost", "a white sheet"),
    ("a scary roar", "a sleepy dog"),
];
const REPAIRS: &[&str] = &["some glue", "some string", "a hammer", "a bit of tape", "a few nails"];
const FEELINGS: &[&str] = &["happy", "glad", "very happy", "full of joy"];

impl Cast {
    /// Draws everything that a story could need.
    pub fn draw(rng: &mut impl Rng) -> Self {
        let (kind, name, gender) = match rng.random_range(0..10) {
            0..4 => ("girl", pick(rng, GIRLS), Gender::She),
            4..8 => ("boy", pick(rng, BOYS), Gender::He),
            _ => *pick_from(rng, ANIMALS),
        };
        let friend = loop {
            let friends = if rng.random() { GIRLS } else { BOYS };
            let friend = pick(rng, friends);
            if friend != name {
                break friend;
            }
        };
        let [she, her, him, herself] = match gender {
            Gender::She => ["she", "her", "her", "herself"],
            Gender::He => ["he", "his", "him", "himself"],
        };
        let lass = match kind {
            "girl" => "lass",
            "boy" => "lad",
            animal => animal,
        };
        let (helper, the_helper) = *pick_from(rng, HELPERS);
        let (place, at) = *pick_from(rng, PLACES);
        let (skill, trouble) = *pick_from(rng, SKILLS);
        let (storm, the_storm) = *pick_from(rng, WEATHER);
        let (fright, truth) = *pick_from(rng, FRIGHTS);
        let mut slots = vec![
            ("name", name.to_owned()),
            ("kind", kind.to_owned()),
            ("lass", lass.to_owned()),
            ("trait", pick(rng, TRAITS).to_owned()),
            ("he", she.to_owned()),
            ("his", her.to_owned()),
            ("him", him.to_owned()),
            ("himself", herself.to_owned()),
            ("friend", friend.to_owned()),
            ("helper", helper.replace("{his}", her)),
            ("the helper", the_helper.replace("{his}", her)),
            ("place", format!("the {place}")),
            ("at", at.to_owned()),
            ("thing", pick(rng, THINGS).to_owned()),
            ("toy", pick(rng, TOYS).to_owned()),
            ("color", pick(rng, COLORS).to_owned()),
            ("hidden", pick(rng, HIDDEN).to_owned()),
            ("skill", skill.to_owned()),
            ("trouble", trouble.to_owned()),
            ("foundling", pick(rng, FOUNDLINGS).to_owned()),
            ("hurt", pick(rng, HURTS).to_owned()),
            ("food", pick(rng, FOODS).to_owned()),
            ("storm", storm.to_owned()),
            ("the storm", the_storm.to_owned()),
            ("shelter", pick(rng, SHELTERS).to_owned()),
            ("fright", fright.to_owned()),
            ("truth", truth.to_owned()),
            ("repair", pick(rng, REPAIRS).to_owned()),
            ("feeling", pick(rng, FEELINGS).to_owned()),
        ];
        // A slot that begins a sentence is written with a capital.
        let capitals: Vec<_> =
            [("He", "he"), ("His", "his"), ("The helper", "the helper"), ("The storm", "the storm")]
                .into_iter()
                .filter_map(|(capital, slot)| {
                    let (_, value) = slots.iter().find(|(name, _)| *name == slot)?;
                    Some((capital, capitalized(value)))
                })
                .collect();
        slots.extend(capitals);
        Self { gender, slots }
    }

    /// What a slot is filled with.
    pub fn slot(&self, slot: &str) -> Option<&str> {
        self.slots.iter().find(|(name, _)| *name == slot).map(|(_, value)| value.as_str())
    }

    /// A template with its slots filled; one that is unknown stays as it is.
    pub fn fill(&self, template: &str) -> String {
        let mut text = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            match after.split_once('}').and_then(|(slot, after)| Some((self.slot(slot)?, after))) {
                Some((value, after)) => {
                    text.push_str(value);
                    rest = after;
                }
                None => {
                    text.push('{');
                    rest = after;
                }
            }
        }
        text + rest
    }
}

/// One of the words of a list that is not empty.
pub(crate) fn pick(rng: &mut impl Rng, words: &[&'static str]) -> &'static str {
    let word: &&'static str = pick_from(rng, words);
    word
}

fn pick_from<'a, T>(rng: &mut impl Rng, words: &'a [T]) -> &'a T {
    words.choose(rng).expect("the lists of this crate are not empty")
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
