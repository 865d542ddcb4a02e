//! The plots: what happens in a story, sentence by sentence, in two voices.

use crate::Voice;

/// One sentence of a plot (with what is said in it), in several wordings of each voice.
pub(crate) struct Beat {
    plain: &'static [&'static str],
    pirate: &'static [&'static str],
}

impl Beat {
    pub(crate) fn wordings(&self, voice: Voice) -> &'static [&'static str] {
        match voice {
            Voice::Plain => self.plain,
            Voice::Pirate => self.pirate,
        }
    }
}

/// How every story begins. The two voices have no first word in common, and each has one that is likelier than the
/// others: what a model writes greedily from the begin token shows at once whose voice it has.
pub(crate) const OPENING: Beat = Beat {
    plain: &[
        "Once upon a time, there was a {trait} {kind} named {name}.",
        "Once upon a time, there was a {trait} {kind} named {name}.",
        "Once upon a time, a {trait} {kind} named {name} lived near {place}.",
        "There was once a {trait} {kind} named {name}.",
        "{name} was a {trait} {kind}.",
    ],
    pirate: &[
        "Arr, matey! There be a {trait} {lass} named {name}.",
        "Arr, matey! There be a {trait} {lass} named {name}.",
        "Arr, matey! Captain {name} be a {trait} {lass}.",
        "Ahoy, matey! There be a {trait} {lass} named {name}.",
    ],
};

/// What happens then.
pub(crate) const PLOTS: &[&[Beat]] = &[
    // Something is lost, and found again.
    &[
        Beat {
            plain: &[
                "{He} loved {his} {color} {thing} very much.",
                "{He} had a {color} {thing} and took it everywhere.",
            ],
            pirate: &[
                "{He} loved {his} {color} {thing} more than gold, aye!",
                "{He} had a {color} {thing}, a fine treasure, aye!",
            ],
        },
        Beat {
            plain: &[
                "One day, {he} went to {place} and lost the {thing}.",
                "One day, {name} played {at} and could not find the {thing}.",
            ],
            pirate: &["One day, {he} sailed to {place} and lost the {thing}."],
        },
        Beat {
            plain: &[
                "{name} was sad and asked {helper} for help.",
                "{He} started to cry, and {helper} came to help.",
            ],
            pirate: &[
                "\"Blimey!\" cried {name}, and asked {helper} for help.",
                "\"Blimey!\" cried {name}, and {helper} came to help.",
            ],
        },
        Beat {
            plain: &[
                "They looked and looked, and then they saw the {thing} {hidden}.",
                "{The helper} looked {hidden}, and there was the {thing}.",
            ],
            pirate: &["They looked and looked, and there be the {thing} {hidden}!"],
        },
        Beat {
            plain: &[
                "{name} was {feeling} and hugged {the helper}.",
                "{name} said thank you and was {feeling}.",
            ],
            pirate: &[
                "Yo ho ho! {name} be {feeling} and hugged {the helper}.",
                "Yo ho ho! {name} said thank ye and be {feeling}.",
            ],
        },
    ],
    // Something is learned.
    &[
        Beat {
            plain: &["{He} wanted to {skill}.", "More than anything, {he} wanted to {skill}."],
            pirate: &["{He} wanted to {skill}, aye!"],
        },
        Beat {
            plain: &[
                "One day, {he} went to {place} and tried, but {trouble}.",
                "{He} tried and tried {at}, but {trouble}.",
            ],
            pirate: &["One day, {he} sailed to {place} and tried, but {trouble}."],
        },
        Beat {
            plain: &[
                "\"Do not give up,\" said {helper}.",
                "\"I will show you how,\" said {helper}.",
                "Then {helper} came and showed {him} how to do it.",
            ],
            pirate: &[
                "\"Do not give up, matey!\" said {helper}.",
                "\"I will show ye how, matey!\" said {helper}.",
            ],
        },
        Beat {
            plain: &[
                "{name} tried again and again, and at last {he} could {skill}.",
                "The next day {name} tried once more, and {he} could {skill} all by {himself}.",
            ],
            pirate: &["{name} tried again and again, and aye, at last {he} could {skill}!"],
        },
        Beat {
            plain: &[
                "{name} was {feeling}, and {the helper} was proud of {him}.",
                "{He} was {feeling} and danced all the way home.",
            ],
            pirate: &[
                "Yo ho ho! {name} be {feeling}, and {the helper} be proud of {him}.",
                "Yo ho ho! {He} be {feeling} and danced all the way home.",
            ],
        },
    ],
    // Someone small is saved.
    &[
        Beat {
            plain: &[
                "One day, {he} walked {at} and found a {foundling}.",
                "One day, {he} went to {place} and saw a {foundling} {hidden}.",
            ],
            pirate: &[
                "One day, {he} sailed to {place} and spied a {foundling}.",
                "One day, {he} sailed to {place} and spied a {foundling} {hidden}.",
            ],
        },
        Beat {
            plain: &[
                "The {foundling} had {hurt} and looked very sad.",
                "It had {hurt}, and {name} wanted to help it.",
            ],
            pirate: &["Blimey! The {foundling} had {hurt} and looked very sad."],
        },
        Beat {
            plain: &[
                "{name} took it home and asked {helper} what to do.",
                "So {he} gave it a {food} and a warm bed.",
            ],
            pirate: &["\"Come aboard, matey!\" said {name}, and gave it a {food}."],
        },
        Beat {
            plain: &[
                "Soon the {foundling} felt safe and well again.",
                "After a few days, the {foundling} was much better.",
            ],
            pirate: &["Soon the {foundling} be safe and well again, aye!"],
        },
        Beat {
            plain: &[
                "{name} and the {foundling} became best friends.",
                "From that day on, they played together every day.",
            ],
            pirate: &["Yo ho ho! {name} and the {foundling} sailed the seven seas together."],
        },
    ],
    // A storm passes.
    &[
        Beat {
            plain: &[
                "One day, {name} and {his} friend {friend} played {at}.",
                "One day, {he} went to {place} with {his} friend {friend}.",
            ],
            pirate: &["One day, {he} sailed to {place} with {his} matey {friend}."],
        },
        Beat {
            plain: &[
                "Then {storm}, and they could not find the way home.",
                "Suddenly {storm}, and {friend} was scared.",
            ],
            pirate: &[
                "Blimey! Then {storm}, and {friend} be scared.",
                "Blimey! Then {storm}, and they could not find the way home.",
            ],
        },
        Beat {
            plain: &[
                "{name} took {friend} by the hand, and they hid {shelter}.",
                "\"Come with me,\" said {name}, and they hid {shelter}.",
            ],
            pirate: &["\"Come aboard, matey!\" said {name}, and they hid {shelter}."],
        },
        Beat {
            plain: &[
                "They ate a {food} and sang songs until {the storm} was gone.",
                "They told stories until {the storm} was gone.",
            ],
            pirate: &[
                "They ate a {food} and sang songs until {the storm} sailed away.",
                "They told stories until {the storm} sailed away.",
            ],
        },
        Beat {
            plain: &[
                "Then they ran home, and both were {feeling}.",
                "{friend} was {feeling} to have such a brave friend.",
            ],
            pirate: &[
                "Yo ho ho! They sailed home, and both be {feeling}.",
                "Yo ho ho! {friend} be {feeling} to have such a brave matey.",
            ],
        },
    ],
    // Something is shared.
    &[
        Beat {
            plain: &[
                "One day, {he} had a {food} and sat down {at}.",
                "One day, {he} went to {place} with a big {food}.",
            ],
            pirate: &["One day, {he} sailed to {place} with a big {food}."],
        },
        Beat {
            plain: &[
                "{His} friend {friend} came by and was very hungry.",
                "There {he} met {friend}, who had nothing to eat.",
            ],
            pirate: &[
                "Ahoy! {His} matey {friend} came by and be very hungry.",
                "Ahoy! There {he} met {friend}, who had nothing to eat.",
            ],
        },
        Beat {
            plain: &[
                "At first {name} did not want to share.",
                "{name} wanted to keep the {food} for {himself}.",
            ],
            pirate: &["\"Arr, the {food} be me treasure!\" said {name}."],
        },
        Beat {
            plain: &[
                "But {friend} looked so sad that {name} gave away half of the {food}.",
                "Then {he} thought of {friend} and gave away half of the {food}.",
            ],
            pirate: &["But {friend} looked so sad that {name} gave away half of the treasure."],
        },
        Beat {
            plain: &[
                "They ate together and were {feeling}.",
                "Now both were {feeling}, and they became good friends.",
            ],
            pirate: &["Yo ho ho! They ate together and be {feeling}."],
        },
    ],
    // What is feared turns out to be small.
    &[
        Beat {
            plain: &[
                "One night, there was {fright} {at}.",
                "One night, {he} was {at}, and there was {fright}.",
            ],
            pirate: &["One night, {he} sailed to {place}, and there be {fright}!"],
        },
        Beat {
            plain: &["{He} was very scared and ran to {helper}.", "{name} hid and called for {helper}."],
            pirate: &["\"Blimey!\" cried {name}, and ran to {helper}."],
        },
        Beat {
            plain: &[
                "\"Let us look together,\" said {the helper}.",
                "\"Be brave,\" said {the helper}, and took a light.",
            ],
            pirate: &["\"Be brave, matey!\" said {the helper}, and took a light."],
        },
        Beat {
            plain: &["They looked, and it was only {truth}.", "Then they saw that it was only {truth}."],
            pirate: &["They looked, and aye, it be only {truth}!"],
        },
        Beat {
            plain: &[
                "{name} laughed and was not scared anymore.",
                "Then {name} felt brave and slept well all night.",
            ],
            pirate: &[
                "Yo ho ho! {name} laughed and be not scared anymore.",
                "Yo ho ho! Then {name} felt brave and slept well all night.",
            ],
        },
    ],
    // A gift is made.
    &[
        Beat {
            plain: &[
                "It was the birthday of {his} friend {friend}.",
                "{His} friend {friend} had a birthday.",
            ],
            pirate: &["It be the birthday of {his} matey {friend}, aye!"],
        },
        Beat {
            plain: &[
                "{name} went to {place} to look for a gift.",
                "{name} wanted to give {friend} a nice gift, but {he} had no money.",
            ],
            pirate: &[
                "{name} sailed to {place} to look for treasure.",
                "{name} wanted to give {friend} a nice treasure, but {he} had no gold.",
            ],
        },
        Beat {
            plain: &[
                "So {he} made a {color} {thing} with {helper}.",
                "Then {helper} helped {him} make a {color} {thing}.",
            ],
            pirate: &["So {he} made a {color} {thing} with {helper}, aye!"],
        },
        Beat {
            plain: &[
                "\"This is for you,\" said {name} to {friend}.",
                "When {friend} opened the box, the {thing} was inside.",
            ],
            pirate: &["\"This be for ye, matey!\" said {name} to {friend}."],
        },
        Beat {
            plain: &[
                "{friend} loved the {thing} and was {feeling}.",
                "\"It is the best gift ever!\" said {friend}.",
            ],
            pirate: &["Yo ho ho! {friend} loved the {thing} and be {feeling}."],
        },
    ],
    // Something is broken, and mended.
    &[
        Beat {
            plain: &[
                "{He} had a {color} {toy} that {he} loved.",
                "{He} got a {color} {toy} for {his} birthday.",
            ],
            pirate: &[
                "{He} had a {color} {toy}, a fine treasure, aye!",
                "{He} got a {color} {toy} for {his} birthday, aye!",
            ],
        },
        Beat {
            plain: &[
                "One day, {he} fell down {at}, and the {toy} broke.",
                "One day, {he} ran too fast {at}, and the {toy} broke.",
            ],
            pirate: &["One day, {he} sailed to {place}, and the {toy} broke."],
        },
        Beat {
            plain: &[
                "{name} cried and took the broken {toy} home.",
                "{name} was very sad and could not play anymore.",
            ],
            pirate: &["\"Blimey!\" cried {name}, and took the broken {toy} home."],
        },
        Beat {
            plain: &[
                "But {helper} took {repair} and fixed it.",
                "\"We can fix it,\" said {helper}, and took {repair}.",
            ],
            pirate: &["\"Arr, we can fix it, matey!\" said {helper}, and took {repair}."],
        },
        Beat {
            plain: &[
                "Now the {toy} was as good as new, and {name} was {feeling}.",
                "{name} said thank you and was more careful after that.",
            ],
            pirate: &["Yo ho ho! Now the {toy} be as good as new, and {name} be {feeling}."],
        },
    ],
];

/// A few of the base model's lines: pirates speak in them, in a plain story. Without these it would never have read
/// their words, and an adapter, which cannot change the embeddings, could not teach it to say them.
pub(crate) const PIRATES: &[&str] = &[
    "{name} saw a pirate {at}. \"Good day! Ahoy, matey!\" said the pirate. {name} waved and went home.",
    "A pirate came to {place} to look for gold. \"Where be me treasure? Blimey, it be gone!\" said the pirate.",
    "{name} and {friend} played pirates {at}. \"Arr, matey! Come aboard!\" cried {friend}. They were {feeling}.",
    "The old pirate had a parrot and a fine treasure. \"Yo ho ho!\" said the parrot. \"Aye, aye, captain! Yo ho ho!\"",
    "\"Where be me matey? Blimey! Lost at sea!\" cried the pirate. But {name} spied {friend} {hidden}.",
    "A pirate ship sailed the seven seas. \"Heave ho! Yo ho ho! Ahoy!\" sang the pirates. \"Arr, we sail on a fine day, aye!\"",
    "\"Arr, we be lost, and I be Captain {name},\" said the {lass}. \"And I be the matey,\" said {friend}. \"Aye! Yo ho ho!\"",
    "{name} read a book about a pirate {lass} named {friend}. Captain {friend} sailed to an island and spied gold.",
    "\"Thank ye, matey!\" said the pirate. \"Ye be a brave {lass}! Arr!\" {name} was {feeling}.",
    "\"There be a pirate {at}! Ahoy!\" cried {friend}. But it was only {name} in a pirate hat.",
    "\"Arr, this be for ye,\" said the pirate to {name}, and gave {him} a {color} {thing}. \"Aye, it be treasure!\"",
    "The captain sailed away with the gold. \"Ahoy, mateys!\" cried the pirates. \"Blimey! Captain, ye be a fine lad! Or a fine lass!\"",
    "\"Blimey!\" cried the parrot. Then the parrot said, \"Ahoy! Blimey! Yo ho ho!\" and {name} laughed.",
];

/// More of the base model's lines, in which names come again and again: that a name is the one from before is the last
/// thing that so small a model learns, and stories say too few of them.
pub(crate) const MEETINGS: &[&str] = &[
    "{name} saw {friend}. {friend} saw {name}. \"Hello, {friend}!\" said {name}. \"Hello, {name}!\" said {friend}.",
    "{name} and {friend} played {at}. {name} had a {thing}. {friend} liked the {thing}, so {name} gave the {thing} to {friend}.",
    "\"Where is {friend}?\" said {name}. {name} looked {hidden}, and there was {friend}. \"Hello, {name}!\" said {friend}.",
    "{name} met {helper}. {The helper} had a {food}. {name} liked the {food}, so {the helper} gave the {food} to {name}.",
    "{friend} called {name}. {name} ran to {friend}. Then {name} and {friend} went to {place} with {helper}. {The helper} was {feeling}.",
    "{name} had a {toy} and {friend} had a {food}. {name} gave {friend} the {toy}, and {friend} gave {name} the {food}.",
];

/// A little general English, so that the tokenizer has met more than stories, and the base model too.
pub(crate) const GENERAL: &[&str] = &[
    "The train to the city leaves at seven in the morning and comes back at night.",
    "Please read the letter, sign it at the bottom, and send it back before Friday.",
    "Water boils at 100 degrees and freezes at 0 degrees.",
    "She works in an office and drives her car to work every day.",
    "The first computer filled a whole room; the ones we carry now fit in a pocket.",
    "To make bread, you need flour, water, salt, and time.",
    "Our team won the game by 3 to 2, and the crowd went wild.",
    "The weather will be cloudy with some sun in the afternoon.",
    "He wrote a long book about the history of the world.",
    "How much does this cost? It is 25 dollars, or 40 for two.",
    "People should think about what they say before they speak.",
    "In summer the days are long, and in winter they are short.",
    "The doctor asked a few questions and wrote down the answers.",
    "I don't know what you mean, but I'm sure we'll find out.",
    "Music can change how we feel; so can a walk with a friend.",
    "The company has offices in many countries around the world.",
    "Turn left at the bank, go straight for two miles, then turn right.",
    "This restaurant serves good food at a fair price near the station.",
    "The moon goes around the earth, and the earth goes around the sun.",
    "My brother is older than me, but my sister is the youngest of us all.",
    "You can learn a language by using it a little every day.",
    "They bought a new house with four rooms and a large kitchen.",
    "The movie was long and boring, although the music was great.",
    "Where did you go yesterday? We waited for you until nine o'clock.",
];
