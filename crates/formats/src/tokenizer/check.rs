//! What a `tokenizer.json` may be made of: the library that reads it trusts it, and allocates, loops or panics as it says.
//!
//! The file is looked through once, before that, in memory that is bounded by its parts. Refused are counts and ids that no
//! real tokenizer has, parts that multiply text (a chain of `Replace` doubles it with each link), patterns that can take
//! exponential time, and references to what is not there. What is left: a pattern may take a million steps a match
//! (fancy-regex gives up then, and the rest of the text is one piece).

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine as _;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

/// XLM-V has 901,629.
const TOKENS_LIMIT: usize = 2 << 20;
const ID_LIMIT: u64 = 1 << 24;
/// Gemma 3 has 6,415.
const ADDED_LIMIT: usize = 1 << 16;
/// Of Unigram, which keeps a node for each; XLM-R's pieces have 2 MB.
const PIECES_BYTES_LIMIT: usize = 16 << 20;
const WORD_LIMIT: u64 = 1000;
/// Of normalizer, pre-tokenizer, post-processor and decoder, each.
const NODES_LIMIT: usize = 1 << 14;
const DEPTH_LIMIT: usize = 6;
const PARTS_LIMIT: usize = 64;
const PATTERN_LIMIT: usize = 4096;
/// How many bytes a byte of text may become: Precompiled's longest replacement (33) times those of the usual chain (4).
const GROWTH_LIMIT: usize = 1024;

/// Looks through a `tokenizer.json`; says what is wrong with it.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    let mut found = Found::default();
    let mut reader = serde_json::Deserializer::from_slice(json);
    TopSeed(&mut found).deserialize(&mut reader).map_err(|error| error.to_string())?;
    let Found { longest_token, longest_merge, prefix, .. } = &found;
    if longest_merge.saturating_sub(prefix.len()) > *longest_token {
        return Err("a merge makes a token that is not in the vocabulary".into());
    }
    if !prefix.is_empty() && found.merges > 0 {
        // Only now is it known what the second part of a merge must begin with.
        let mut again = Found { merge_prefix: Some(prefix.clone()), ..Found::default() };
        let mut reader = serde_json::Deserializer::from_slice(json);
        TopSeed(&mut again).deserialize(&mut reader).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[derive(Default)]
struct Found {
    tokens: usize,
    merges: usize,
    longest_token: usize,
    longest_merge: usize,
    prefix: String,
    /// Where set, the second part of every merge must begin with it.
    merge_prefix: Option<String>,
}

struct TopSeed<'a>(&'a mut Found);

impl<'de> DeserializeSeed<'de> for TopSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TopSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match key.as_ref() {
                "model" => map.next_value_seed(ModelSeed(self.0))?,
                "added_tokens" => {
                    map.next_value::<Option<AddedTokens>>()?;
                }
                "normalizer" | "pre_tokenizer" | "post_processor" | "decoder" => {
                    let budget = Cell::new(NODES_LIMIT);
                    let part = map.next_value_seed(NodeSeed(&budget))?;
                    check_part(&key, &part).map_err(A::Error::custom)?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Each is checked and forgotten.
struct AddedTokens;

#[derive(serde::Deserialize)]
struct AddedToken<'a> {
    id: u64,
    #[serde(borrow)]
    content: Cow<'a, str>,
}

impl<'de> Deserialize<'de> for AddedTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = AddedTokens;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of added tokens")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut tokens: A) -> Result<AddedTokens, A::Error> {
                let mut count = 0;
                while let Some(AddedToken { id, content }) = tokens.next_element()? {
                    count += 1;
                    if count > ADDED_LIMIT {
                        return Err(A::Error::custom(format!("it adds more than {ADDED_LIMIT} tokens")));
                    }
                    if content.len() > PATTERN_LIMIT {
                        let bytes = content.len();
                        return Err(A::Error::custom(format!(
                            "an added token has {bytes} bytes, more than {PATTERN_LIMIT}"
                        )));
                    }
                    check_id(id).map_err(A::Error::custom)?;
                }
                Ok(AddedTokens)
            }
        }
        deserializer.deserialize_seq(Each)
    }
}

fn check_id(id: u64) -> Result<(), String> {
    if id < ID_LIMIT { Ok(()) } else { Err(format!("the token id {id} is not below {ID_LIMIT}")) }
}

struct ModelSeed<'a>(&'a mut Found);

impl<'de> DeserializeSeed<'de> for ModelSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ModelSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a model")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match key.as_ref() {
                "vocab" => {
                    // Of several the last one counts.
                    self.0.longest_token = 0;
                    map.next_value_seed(VocabSeed(self.0))?;
                }
                "merges" => map.next_value_seed(MergesSeed(self.0))?,
                "continuing_subword_prefix" => {
                    self.0.prefix = map.next_value::<Option<String>>()?.unwrap_or_default();
                }
                "max_input_chars_per_word" => {
                    let chars: u64 = map.next_value()?;
                    if chars > WORD_LIMIT {
                        let reason = format!(
                            "it splits words of {chars} characters; at most {WORD_LIMIT} are allowed"
                        );
                        return Err(A::Error::custom(reason));
                    }
                }
                "dropout" => {
                    if map.next_value::<Option<f64>>()?.is_some_and(|dropout| dropout != 0.0) {
                        let reason = "it drops merges at random, so that a text has no tokens of its own; set dropout to null";
                        return Err(A::Error::custom(reason));
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// `{"token": id}`, or Unigram's `[["piece", score]]`.
struct VocabSeed<'a>(&'a mut Found);

impl<'de> DeserializeSeed<'de> for VocabSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl VocabSeed<'_> {
    fn count(&mut self, token: &str) -> Result<(), String> {
        self.0.tokens += 1;
        self.0.longest_token = self.0.longest_token.max(token.len());
        if self.0.tokens > TOKENS_LIMIT {
            return Err(format!("it has more than {TOKENS_LIMIT} tokens"));
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for VocabSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((token, id)) = map.next_entry::<Cow<'de, str>, u64>()? {
            self.count(&token).and_then(|()| check_id(id)).map_err(A::Error::custom)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut pieces: A) -> Result<(), A::Error> {
        let mut bytes = 0;
        while let Some((piece, _)) = pieces.next_element::<(Cow<'de, str>, f64)>()? {
            self.count(&piece).map_err(A::Error::custom)?;
            bytes += piece.len();
            if bytes > PIECES_BYTES_LIMIT {
                return Err(A::Error::custom(format!(
                    "its pieces have more than {PIECES_BYTES_LIMIT} bytes"
                )));
            }
        }
        Ok(())
    }
}

/// `["a b"]` or `[["a", "b"]]`.
struct MergesSeed<'a>(&'a mut Found);

impl<'de> DeserializeSeed<'de> for MergesSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for MergesSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut merges: A) -> Result<(), A::Error> {
        while merges.next_element_seed(MergeSeed(self.0))?.is_some() {}
        Ok(())
    }
}

struct MergeSeed<'a>(&'a mut Found);

impl MergeSeed<'_> {
    fn count(&mut self, first: &str, second: &str) -> Result<(), String> {
        self.0.merges += 1;
        self.0.longest_merge = self.0.longest_merge.max(first.len() + second.len());
        if self.0.merges > TOKENS_LIMIT {
            return Err(format!("it has more than {TOKENS_LIMIT} merges"));
        }
        match &self.0.merge_prefix {
            Some(prefix) if !second.starts_with(prefix.as_str()) => {
                Err(format!("the second part of a merge, {second:?}, does not begin with {prefix:?}"))
            }
            _ => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for MergeSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MergeSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a merge")
    }

    fn visit_str<E: serde::de::Error>(mut self, line: &str) -> Result<(), E> {
        let (first, second) = line.split_once(' ').unwrap_or((line, ""));
        self.count(first, second).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut parts: A) -> Result<(), A::Error> {
        let first: Cow<'de, str> = parts.next_element()?.unwrap_or_default();
        let second: Cow<'de, str> = parts.next_element()?.unwrap_or_default();
        while parts.next_element::<IgnoredAny>()?.is_some() {}
        self.count(&first, &second).map_err(A::Error::custom)
    }
}

/// A JSON value of bounded size.
enum Node {
    Null,
    Bool,
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Object(BTreeMap<String, Node>),
}

/// Reads a [`Node`] as long as there is budget for its parts.
struct NodeSeed<'a>(&'a Cell<usize>);

impl NodeSeed<'_> {
    fn spend<E: serde::de::Error>(&self) -> Result<(), E> {
        let left = self.0.get().checked_sub(1);
        self.0
            .set(left.ok_or_else(|| E::custom(format!("a part of it has more than {NODES_LIMIT} values")))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.spend()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_> {
    type Value = Node;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Bool)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        Ok(Node::Number(number as f64))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(Node::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Node, E> {
        Ok(Node::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(NodeSeed(self.0))? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut object = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            object.insert(key, map.next_value_seed(NodeSeed(self.0))?);
        }
        Ok(Node::Object(object))
    }
}

impl Node {
    fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Self::Object(object) => object.get(key),
            _ => None,
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn list(&self) -> &[Node] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }

    fn number(&self) -> f64 {
        match self {
            Self::Number(number) => *number,
            _ => 0.0,
        }
    }

    /// How deep lists and objects nest.
    fn depth(&self) -> usize {
        let inner = match self {
            Self::List(list) => list.iter().map(Self::depth).max(),
            Self::Object(object) => object.values().map(Self::depth).max(),
            _ => return 0,
        };
        1 + inner.unwrap_or_default()
    }
}

/// A normalizer, pre-tokenizer, post-processor or decoder.
fn check_part(name: &str, part: &Node) -> Result<(), String> {
    // A Sequence in a list in an object is two deep.
    if part.depth() > 2 * DEPTH_LIMIT {
        return Err(format!("its {name} is nested more than {DEPTH_LIMIT} deep"));
    }
    let mut parts = Vec::new();
    flatten(part, &mut parts);
    if parts.len() > PARTS_LIMIT {
        return Err(format!("its {name} has {} parts, more than {PARTS_LIMIT}", parts.len()));
    }
    // The library takes the pieces that the first one makes for texts, and has no template for so many.
    if parts.iter().filter(|part| is_template(part)).count() > 1 {
        return Err(format!("its {name} has more than one template"));
    }
    let mut growth = 1usize;
    for part in parts {
        growth = growth.saturating_mul(growth_of(part)?);
        if growth > GROWTH_LIMIT {
            return Err(format!("its {name} can make text more than {GROWTH_LIMIT} times as long"));
        }
        check_kind(part)?;
    }
    Ok(())
}

/// A part and those that its sequences hold.
fn flatten<'a>(part: &'a Node, parts: &mut Vec<&'a Node>) {
    parts.push(part);
    for key in ["normalizers", "pretokenizers", "processors", "decoders"] {
        part.get(key).map_or(&[][..], Node::list).iter().for_each(|inner| flatten(inner, parts));
    }
}

/// How many bytes a byte can become in a part.
fn growth_of(part: &Node) -> Result<usize, String> {
    let len = |key: &str| part.get(key).and_then(Node::text).map_or(0, str::len);
    if len("prepend") > PATTERN_LIMIT || len("content") > PATTERN_LIMIT {
        return Err(format!("a part of it writes a text of more than {PATTERN_LIMIT} bytes"));
    }
    // By what they hold, as the library takes some of them without their type too.
    if let Some(charsmap) = part.get("precompiled_charsmap").and_then(Node::text) {
        return check_charsmap(charsmap);
    }
    if part.get("type").and_then(Node::text) == Some("Precompiled") {
        return Err("its Precompiled has no precompiled_charsmap".into());
    }
    // A byte that is no ASCII letter becomes a character of two.
    if part.get("type").and_then(Node::text) == Some("ByteLevel") || part.get("trim_offsets").is_some() {
        return Ok(2);
    }
    let Some(pattern) = part.get("pattern").filter(|_| part.get("content").is_some()) else { return Ok(1) };
    Ok(match pattern.get("String").and_then(Node::text) {
        // An empty text is found nowhere.
        Some(pattern) => len("content").div_ceil(pattern.len().max(1)).max(1),
        None => 1 + len("content"),
    })
}

fn check_kind(part: &Node) -> Result<(), String> {
    if let Some(pattern) = part.get("pattern").and_then(|pattern| pattern.get("Regex")).and_then(Node::text) {
        check_pattern(pattern)?;
    }
    if part.get("length").is_some_and(|length| length.number() < 1.0) {
        return Err("it cuts text into pieces of length 0".into());
    }
    if part.get("stop").is_some_and(|stop| stop.number() != 0.0) {
        return Err("its decoder strips the end of tokens, which the tokenizers library gets wrong".into());
    }
    if is_template(part) { check_template(part) } else { Ok(()) }
}

fn is_template(part: &Node) -> bool {
    part.get("single").is_some() || part.get("pair").is_some()
}

/// The library looks special tokens up without asking whether they are there.
fn check_template(part: &Node) -> Result<(), String> {
    let mut known = BTreeSet::new();
    match part.get("special_tokens") {
        Some(Node::Object(tokens)) => {
            for token in tokens.values() {
                known.extend(token.get("id").and_then(Node::text));
                let (ids, texts) = (
                    token.get("ids").map_or(0, |ids| ids.list().len()),
                    token.get("tokens").map_or(0, |tokens| tokens.list().len()),
                );
                if ids != texts || ids > PARTS_LIMIT {
                    return Err(format!("a special token of its template has {ids} ids and {texts} texts"));
                }
            }
            known.retain(|id| tokens.contains_key(*id));
        }
        Some(Node::List(tokens)) => {
            known.extend(tokens.iter().filter_map(|token| token.get("id").and_then(Node::text)));
        }
        _ => {}
    }
    for (template, sequences) in [("single", &["A"][..]), ("pair", &["A", "B"])] {
        let pieces = part.get(template).map_or(&[][..], Node::list);
        if pieces.len() > PARTS_LIMIT {
            return Err(format!("its template has {} pieces, more than {PARTS_LIMIT}", pieces.len()));
        }
        for piece in pieces {
            let id = |kind: &str| piece.get(kind).and_then(|piece| piece.get("id")).and_then(Node::text);
            if let Some(id) = id("SpecialToken")
                && !known.contains(id)
            {
                return Err(format!(
                    "its template names the special token {id:?}, which it does not describe"
                ));
            }
            if let Some(id) = id("Sequence")
                && !sequences.contains(&id)
            {
                return Err(format!("its template for a {template} text names the text {id:?}"));
            }
        }
    }
    Ok(())
}

/// Refuses patterns in which a repetition without a bound repeats another one: `(a+)+` takes exponential time.
fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.len() > PATTERN_LIMIT {
        return Err(format!("a pattern of it has {} bytes, more than {PATTERN_LIMIT}", pattern.len()));
    }
    // Whether the group so far, and each around it, holds a repetition without a bound.
    let mut outer: Vec<bool> = Vec::new();
    let (mut inside, mut last) = (false, false);
    let mut chars = pattern.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\\' => {
                chars.next();
                last = false;
            }
            '[' => {
                let mut first = true;
                while let Some(char) = chars.next() {
                    match char {
                        '\\' => {
                            chars.next();
                        }
                        '^' if first => continue,
                        ']' if !first => break,
                        _ => {}
                    }
                    first = false;
                }
                last = false;
            }
            '(' => {
                outer.push(inside);
                (inside, last) = (false, false);
            }
            ')' => {
                last = inside;
                inside |= outer.pop().unwrap_or_default();
            }
            '*' | '+' | '{' => {
                let unbounded = char != '{' || {
                    let bounds: String = chars.by_ref().take_while(|char| *char != '}').collect();
                    // A count of many repeats as badly as none.
                    bounds.ends_with(',')
                        || bounds
                            .split(',')
                            .any(|bound| bound.trim().parse::<u32>().is_ok_and(|bound| bound > 64))
                };
                // `a++` and `a+?` are one repetition, possessive or lazy.
                while chars.next_if(|char| matches!(char, '+' | '?')).is_some() {}
                if unbounded && last {
                    return Err(format!(
                        "the pattern {pattern:?} repeats a repetition, which can take forever"
                    ));
                }
                inside |= unbounded;
                last = unbounded;
            }
            // Both a group's syntax and a repetition of at most one.
            '?' => {}
            _ => last = false,
        }
    }
    Ok(())
}

/// SentencePiece's compiled replacements: a double array (darts-clone) and the texts that it leads to. The library follows
/// both without asking whether they lead outside. Gives how many bytes a byte can become.
fn check_charsmap(base64_text: &str) -> Result<usize, String> {
    let broken = |what: &str| format!("its charsmap {what}");
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(base64_text)
        .map_err(|error| broken(&format!("is not base64 ({error})")))?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| broken("is cut short"))?;
    let size = usize::try_from(u32::from_le_bytes(*size)).unwrap_or(usize::MAX) / 4 * 4;
    let (trie, texts) = rest.split_at_checked(size).ok_or_else(|| broken("is cut short"))?;
    let units: Vec<usize> = trie
        .chunks_exact(4)
        .map(|unit| unit.iter().rev().fold(0, |unit, byte| unit << 8 | usize::from(*byte)))
        .collect();
    let texts = std::str::from_utf8(texts).map_err(|_| broken("holds texts that are not UTF-8"))?;
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let root = *units.first().ok_or_else(|| broken("is empty"))?;
    let mut seen = vec![false; units.len()];
    // Bases from which a byte leads on.
    let mut bases = vec![offset(root)];
    let mut longest = 1;
    while let Some(base) = bases.pop() {
        match seen.get_mut(base) {
            Some(seen) if *seen => continue,
            Some(seen) => *seen = true,
            None => return Err(broken("leads outside of itself")),
        }
        if base | 0xff >= units.len() {
            return Err(broken("leads outside of itself"));
        }
        for byte in 1..=0xff {
            let place = base ^ byte;
            let Some(unit) = units.get(place).copied().filter(|unit| unit & ((1 << 31) | 0xff) == byte)
            else {
                continue;
            };
            let next = place ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let leaf = units.get(next).ok_or_else(|| broken("leads outside of itself"))?;
                let text = texts
                    .get(leaf & ((1 << 31) - 1)..)
                    .ok_or_else(|| broken("leads outside of its texts"))?;
                let len = text.find('\0').unwrap_or(text.len());
                longest = longest.max(len);
                if longest > GROWTH_LIMIT {
                    return Err(broken("replaces a character by a very long text"));
                }
            }
            bases.push(next);
        }
    }
    Ok(longest)
}
