//! Chat templates: the Jinja in a model's `tokenizer_config.json` that makes one text of a conversation, as transformers'
//! `apply_chat_template` does, and which part of that text the assistant wrote.
//!
//! A template comes from whoever published the model. Its size, the steps that it takes, how deep it recurses and what it
//! writes are bounded; strings that it builds by `~` and `+` without writing them are bounded by its steps alone.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State};
use serde::{Deserialize, Serialize};

/// Gemma 3's has 1.2 MB, nearly all of it added tokens.
const CONFIG_LIMIT: usize = 8 << 20;
/// The largest known template (gpt-oss) has 17 KB.
const TEMPLATE_LIMIT: usize = 256 << 10;
/// Qwen3's takes about 60 steps a message.
const STEPS: u64 = 2_000_000;
/// All that one rendering may write.
const OUTPUT_LIMIT: usize = 64 << 20;
/// What the assistant wrote is found by rendering once or twice for each of its turns.
const MESSAGES_LIMIT: usize = 1024;
const NAME: &str = "chat_template";
/// Noncharacters, which stand in no text, mark what `{% generation %}` wraps and where contents stand.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    /// Whether it is what the model is to learn to write.
    pub fn by_assistant(&self) -> bool {
        self.role == "assistant"
    }
}

/// A piece of text, and whether the model is to learn to write it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Whether the model is to learn to write it.
    pub train: bool,
}

impl Segment {
    /// Text to learn.
    pub fn trained(text: impl Into<String>) -> Self {
        Self { text: text.into(), train: true }
    }

    /// Text that is only read.
    pub fn read(text: impl Into<String>) -> Self {
        Self { text: text.into(), train: false }
    }
}

/// The day that a template is told when it asks for today's (Llama 3.x does), so that the same conversations give the same
/// tokens whenever a run is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Date {
    /// As in 2024.
    pub year: u16,
    /// From 1.
    pub month: u8,
    /// From 1.
    pub day: u8,
}

impl Default for Date {
    /// The day that Llama 3's templates take when they are told none.
    fn default() -> Self {
        Self { year: 2024, month: 7, day: 26 }
    }
}

/// A model's way to write conversations.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special: BTreeMap<String, String>,
    /// Whether it marks what the assistant writes.
    marked: bool,
}

/// Why a conversation could not become text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// Larger than any real one.
    #[error("{what} has {size} bytes, more than the {limit} that it may have")]
    TooLarge {
        /// The file, or the template in it.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The largest size allowed.
        limit: usize,
    },
    /// Not the file that it should be.
    #[error("{what} cannot be read: {reason}; is it the one of a Hugging Face model?")]
    Config {
        /// The file.
        what: &'static str,
        /// What the reader said.
        reason: String,
    },
    /// Several templates, none of them the default one.
    #[error("the model has the chat templates {names:?}; one of them must be named \"default\"")]
    NoDefault {
        /// Their names.
        names: Vec<String>,
    },
    /// Not Jinja, or more than this reader knows of it.
    #[error("the model's chat template cannot be read: {reason}")]
    Syntax {
        /// What the template engine said, with the line.
        reason: String,
    },
    /// The template itself refused the conversation.
    #[error("the model's chat template refuses the conversation: {message}")]
    Refused {
        /// In the template's words.
        message: String,
    },
    /// It went wrong, or on for too long.
    #[error("the model's chat template failed: {reason}")]
    Render {
        /// What the template engine said, with the line.
        reason: String,
    },
    /// More text than a conversation can have.
    #[error("the model's chat template writes more than {limit} bytes for one conversation")]
    Output {
        /// The most allowed.
        limit: usize,
    },
    /// More messages than a conversation can have.
    #[error("a conversation has {messages} messages, more than the {limit} that one may have; split it")]
    TooLong {
        /// How many it has.
        messages: usize,
        /// The most allowed.
        limit: usize,
    },
    /// A message has one of the two characters that mark places.
    #[error(
        "message {message} of a conversation has the character U+FDD0 or U+FDD1, which no text has; remove it"
    )]
    Reserved {
        /// Its number, from 1.
        message: usize,
    },
    /// The answer is not to be found in the text.
    #[error(
        "the model's chat template changes message {message} of a conversation so that it cannot be told which part of \
         the text the assistant wrote; leave the conversation out, or bring it to the form that the model expects"
    )]
    Untold {
        /// Its number, from 1.
        message: usize,
    },
}

impl ChatTemplate {
    /// The template of a model, from its `tokenizer_config.json` and the `chat_template.jinja` beside it, which goes first;
    /// `None` where it has none.
    ///
    /// # Errors
    ///
    /// [`ChatError`] when a file is too large or broken, or the template is not to be read.
    pub fn from_files(tokenizer_config: &[u8], jinja: Option<&[u8]>) -> Result<Option<Self>, ChatError> {
        let what = "tokenizer_config.json";
        if tokenizer_config.len() > CONFIG_LIMIT {
            return Err(ChatError::TooLarge { what, size: tokenizer_config.len(), limit: CONFIG_LIMIT });
        }
        let mut config: Config = serde_json::from_slice(tokenizer_config)
            .map_err(|error| ChatError::Config { what, reason: error.to_string() })?;
        let chat_template = config.chat_template.take();
        let special = config.special();
        let beside = jinja.map(|bytes| {
            std::str::from_utf8(bytes)
                .map(str::to_owned)
                .map_err(|error| ChatError::Config { what: "chat_template.jinja", reason: error.to_string() })
        });
        let source = match (beside.transpose()?, chat_template) {
            (Some(source), _) | (None, Some(Templates::One(source))) => source,
            (None, Some(Templates::Named(mut named))) => {
                match named.iter().position(|template| template.name == "default") {
                    Some(place) => named.swap_remove(place).template,
                    None if named.len() == 1 => named.swap_remove(0).template,
                    None if named.is_empty() => return Ok(None),
                    None => {
                        let names = named.into_iter().take(20).map(|template| template.name).collect();
                        return Err(ChatError::NoDefault { names });
                    }
                }
            }
            (None, None) => return Ok(None),
        };
        Self::new(source, special).map(Some)
    }

    /// A template, and the special tokens that it may name (`bos_token`, `eos_token`, …).
    ///
    /// # Errors
    ///
    /// [`ChatError`] when it is too large, or not to be read.
    pub fn new(source: String, special: BTreeMap<String, String>) -> Result<Self, ChatError> {
        if source.len() > TEMPLATE_LIMIT {
            let what = "the model's chat template";
            return Err(ChatError::TooLarge { what, size: source.len(), limit: TEMPLATE_LIMIT });
        }
        let (jinja, marked) = without_generation_tags(&source);
        let mut environment = environment();
        environment
            .add_template_owned(NAME, jinja)
            .map_err(|error| ChatError::Syntax { reason: error.to_string() })?;
        Ok(Self { environment, source, special, marked }.with_date(Date::default()))
    }

    /// The same, told another day.
    pub fn with_date(mut self, date: Date) -> Self {
        self.environment.add_function("strftime_now", move |format: String| date.format(&format));
        self
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the assistant is to go on.
    ///
    /// It has the model's special tokens as text, the first one too: encode it with none added.
    ///
    /// # Errors
    ///
    /// [`ChatError`] when the template refuses the conversation, fails, or writes too much.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, ChatError> {
        let text = self.render_marked(messages, add_generation_prompt)?;
        Ok(if self.marked { text.replace([OPEN, CLOSE], "") } else { text })
    }

    /// The text of a conversation, cut where the assistant's words begin and end, each with the mark that ends its turn.
    ///
    /// They are what `{% generation %}` wraps, where the template has it. Otherwise they are what the template writes for a
    /// turn after the prompt for it, or, where it changes earlier turns later, where the content of the message stands.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::render`]; [`ChatError::Untold`] when neither way finds them.
    pub fn segments(&self, messages: &[ChatMessage]) -> Result<Vec<Segment>, ChatError> {
        let text = self.render_marked(messages, false)?;
        if self.marked && text.contains(OPEN) {
            return Ok(marked_segments(&text));
        }
        let mut skeleton = None;
        let mut trained = Vec::new();
        let mut reached = 0;
        for turn in
            messages.iter().enumerate().filter(|(_, message)| message.by_assistant()).map(|(turn, _)| turn)
        {
            let range = match self.by_prefix(messages, turn, &text) {
                Some(range) => Some(range),
                None => {
                    let skeleton = match &skeleton {
                        Some(skeleton) => skeleton,
                        None => skeleton.insert(self.skeleton(messages, &text)),
                    };
                    skeleton.as_ref().and_then(|turns| turns.get(&turn).cloned())
                }
            };
            match range {
                Some(range) if range.start >= reached && text.get(range.clone()).is_some() => {
                    reached = range.end;
                    trained.push(range);
                }
                _ => return Err(ChatError::Untold { message: turn + 1 }),
            }
        }
        Ok(cut(&text, &trained))
    }

    /// What ends a turn of the assistant, as `<|im_end|>` does; `None` where nothing but space does.
    pub fn turn_end(&self) -> Option<String> {
        let messages = [ChatMessage::new("user", "Hi"), ChatMessage::new("assistant", OPEN.to_string())];
        let text = self.render_unchecked(&messages, false).ok()?;
        let end = text.rsplit(OPEN).next()?.trim_matches(|char: char| char == CLOSE || char.is_whitespace());
        (!end.is_empty() && end.len() <= 64).then(|| end.to_owned())
    }

    fn render_marked(&self, messages: &[ChatMessage], prompt: bool) -> Result<String, ChatError> {
        if messages.len() > MESSAGES_LIMIT {
            return Err(ChatError::TooLong { messages: messages.len(), limit: MESSAGES_LIMIT });
        }
        let reserved = |message: &ChatMessage| message.content.contains([OPEN, CLOSE]);
        if let Some(place) = messages.iter().position(reserved) {
            return Err(ChatError::Reserved { message: place + 1 });
        }
        self.render_unchecked(messages, prompt)
    }

    fn render_unchecked(&self, messages: &[ChatMessage], prompt: bool) -> Result<String, ChatError> {
        let failed = |error: &minijinja::Error| ChatError::Render { reason: error.to_string() };
        let template = self.environment.get_template(NAME).map_err(|error| failed(&error))?;
        let message = |message: &ChatMessage| {
            let ChatMessage { role, content } = message;
            Value::from_pairs([
                ("role", Value::from(role.as_str())),
                ("content", Value::from(content.as_str())),
            ])
        };
        // transformers gives tools and documents too, even where there are none.
        let given = [
            ("messages", messages.iter().map(message).collect()),
            ("add_generation_prompt", Value::from(prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        let special = self.special.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        let context = Value::from_pairs(special.chain(given));
        let mut output = Capped { bytes: Vec::new(), full: false };
        let rendered = template.render_captured_to(context, &mut output).map(|_| ());
        match rendered {
            Ok(()) => String::from_utf8(output.bytes)
                .map_err(|error| ChatError::Render { reason: error.to_string() }),
            Err(_) if output.full => Err(ChatError::Output { limit: OUTPUT_LIMIT }),
            Err(error) => match std::error::Error::source(&error).and_then(|source| source.downcast_ref()) {
                Some(Said::Refused(message)) => Err(ChatError::Refused { message: message.clone() }),
                Some(Said::TooMuch) => Err(ChatError::Output { limit: OUTPUT_LIMIT }),
                None => Err(failed(&error)),
            },
        }
    }

    /// Where the answer of a turn stands, if the text up to it is the prompt for it, and the text after it goes on.
    fn by_prefix(&self, messages: &[ChatMessage], turn: usize, text: &str) -> Option<Range<usize>> {
        if turn == 0 {
            // Before a conversation some templates write no prompt.
            return None;
        }
        let (before, through) = (messages.get(..turn)?, messages.get(..=turn)?);
        let content = messages.get(turn)?.content.trim();
        // A template may refuse a conversation that it would not refuse in full.
        let (before, through) = (self.render(before, true).ok()?, self.render(through, false).ok()?);
        let grows = through.starts_with(&before) && text.starts_with(&through);
        let answer = through.get(before.len()..).filter(|answer| grows && answer.contains(content))?;
        // The space that follows the mark of the turn's end is the next turn's, unless nothing else ends the turn.
        let ended = answer.trim_end();
        let end = if ended.ends_with(content) { answer.len() } else { ended.len() };
        Some(before.len()..before.len() + end)
    }

    /// Where the contents of all of the assistant's turns stand: the conversation is rendered with marks instead of them,
    /// and what stands around the marks has to be what stands around the contents.
    fn skeleton(&self, messages: &[ChatMessage], text: &str) -> Option<BTreeMap<usize, Range<usize>>> {
        let turns: Vec<usize> = messages
            .iter()
            .enumerate()
            .filter(|(_, message)| message.by_assistant())
            .map(|(turn, _)| turn)
            .collect();
        let mut emptied = messages.to_vec();
        for message in emptied.iter_mut().filter(|message| message.by_assistant()) {
            // Thoughts and the space around stay, so that the template does with them what it does.
            let core = core(&message.content);
            message.content.replace_range(core, &OPEN.to_string());
        }
        let skeleton = self.render_unchecked(&emptied, false).ok()?;
        let skeleton = if self.marked { skeleton.replace(CLOSE, "") } else { skeleton };
        let around: Vec<&str> = skeleton.split(OPEN).collect();
        if around.len() != turns.len() + 1 {
            return None;
        }
        let end = self.turn_end().unwrap_or_default();
        let mut found = BTreeMap::new();
        let mut rest = 0;
        for (place, turn) in turns.iter().enumerate() {
            let (before, after) = (around.get(place)?, around.get(place + 1)?);
            let content = &messages.get(*turn)?.content;
            if !text.get(rest..).is_some_and(|rest| rest.starts_with(before)) {
                return None;
            }
            let start = rest + before.len();
            let said = content.get(core(content)).unwrap_or_default();
            let stands = text.get(start..).and_then(|rest| rest.strip_prefix(said)).is_some_and(|rest| {
                if place + 1 == turns.len() { rest == *after } else { rest.starts_with(after) }
            });
            if !stands {
                return None;
            }
            let stop = start + said.len();
            let closed = if after.starts_with(&end) { end.len() } else { 0 };
            found.insert(*turn, start..stop + closed);
            rest = stop;
        }
        Some(found)
    }
}

/// What an answer is without the thoughts before it and the space around it.
fn core(content: &str) -> Range<usize> {
    let start = content.rfind("</think>").map_or(0, |at| at + "</think>".len());
    let said = content.get(start..).unwrap_or_default();
    let start = start + said.len() - said.trim_start().len();
    start..start + said.trim().len()
}

/// Segments of what stands outside and inside of the marks.
fn marked_segments(text: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    for (place, piece) in text.split(OPEN).enumerate() {
        let (inside, outside) = match piece.split_once(CLOSE) {
            Some((inside, outside)) if place > 0 => (inside, outside),
            _ => ("", piece),
        };
        segments.push(Segment::trained(inside));
        segments.push(Segment::read(outside.replace(CLOSE, "")));
    }
    segments.retain(|segment| !segment.text.is_empty());
    segments
}

/// `text` cut at the ends of ranges that are in order and inside of it.
fn cut(text: &str, trained: &[Range<usize>]) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut reached = 0;
    for range in trained {
        segments.push(Segment::read(text.get(reached..range.start).unwrap_or_default()));
        segments.push(Segment::trained(text.get(range.clone()).unwrap_or_default()));
        reached = range.end;
    }
    segments.push(Segment::read(text.get(reached..).unwrap_or_default()));
    segments.retain(|segment| !segment.text.is_empty());
    segments
}

/// transformers' own tag, which no other Jinja knows, as a call that does the same.
fn without_generation_tags(source: &str) -> (String, bool) {
    let mut jinja = String::with_capacity(source.len());
    let mut marked = false;
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        jinja.push_str(before);
        let Some(end) = tag.find("%}") else { break };
        let (tag, after) = tag.split_at(end + 2);
        let inner = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match inner {
            "generation" => {
                marked = true;
                jinja.push_str(&tag.replacen("generation", "call __generation()", 1));
            }
            "endgeneration" => jinja.push_str(&tag.replacen("endgeneration", "endcall", 1)),
            _ => jinja.push_str(tag),
        }
        rest = after;
    }
    jinja.push_str(rest);
    (jinja, marked)
}

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(STEPS));
    environment.set_recursion_limit(100);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(write_value);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(said(Said::Refused(message)))
    });
    environment.add_function("__generation", |state: &mut State<'_, '_>, kwargs: Kwargs| {
        let caller: Value = kwargs.get("caller")?;
        let inner = caller.call(state, &[])?;
        Ok::<_, minijinja::Error>(format!("{OPEN}{inner}{CLOSE}"))
    });
    environment.add_filter("tojson", tojson);
    environment
}

/// What went wrong, carried inside of the engine's error.
#[derive(Debug, thiserror::Error)]
enum Said {
    #[error("{0}")]
    Refused(String),
    #[error("it writes too much")]
    TooMuch,
}

fn said(said: Said) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, said.to_string()).with_source(said)
}

/// How much a rendering has written, into variables too.
#[derive(Default)]
struct Written(usize);

/// Writes a value as Python does, and no more than a rendering may.
fn write_value(
    output: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), minijinja::Error> {
    let text = match value.kind() {
        ValueKind::Undefined => return Ok(()),
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        _ => match value.as_str() {
            Some(text) => std::borrow::Cow::Borrowed(text),
            None => value.to_string().into(),
        },
    };
    let written = state.get_or_insert_extension(Written::default());
    written.0 = written.0.saturating_add(text.len());
    if written.0 > OUTPUT_LIMIT {
        return Err(said(Said::TooMuch));
    }
    output.write_str(&text).map_err(minijinja::Error::from)
}

/// Takes up to [`OUTPUT_LIMIT`] bytes.
struct Capped {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for &mut Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_LIMIT {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `json.dumps(value, ensure_ascii=False, …)`, as transformers has it instead of Jinja's own.
#[allow(clippy::needless_pass_by_value, reason = "the engine calls a filter with its arguments by value")]
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<Value> = kwargs.get("indent")?;
    let indent = indent.filter(|value| !value.is_none());
    let indent = indent.map(usize::try_from).transpose()?.map(|width| width.min(16));
    let mut json = String::new();
    dump(value, indent, 0, &mut json)?;
    Ok(Value::from(json))
}

fn dump(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    json: &mut String,
) -> Result<(), minijinja::Error> {
    let refuse = |what: &str| minijinja::Error::new(ErrorKind::InvalidOperation, what.to_owned());
    if depth > 64 {
        return Err(refuse("tojson: the value is nested too deeply"));
    }
    if json.len() > OUTPUT_LIMIT {
        return Err(said(Said::TooMuch));
    }
    let line = |json: &mut String, depth: usize| {
        if let Some(width) = indent {
            json.push('\n');
            json.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let comma = |json: &mut String, first: bool| match (first, indent) {
        (true, _) => {}
        (false, Some(_)) => json.push(','),
        (false, None) => json.push_str(", "),
    };
    let quoted = |text: &str| serde_json::to_string(text).map_err(|error| refuse(&error.to_string()));
    match value.kind() {
        ValueKind::None => json.push_str("null"),
        ValueKind::Bool => json.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => json.push_str(&value.to_string()),
        ValueKind::String => json.push_str(&quoted(value.as_str().unwrap_or_default())?),
        ValueKind::Map => {
            json.push('{');
            let mut first = true;
            for key in value.try_iter()? {
                comma(json, first);
                line(json, depth + 1);
                json.push_str(&quoted(key.as_str().unwrap_or(&key.to_string()))?);
                json.push_str(": ");
                dump(&value.get_item(&key)?, indent, depth + 1, json)?;
                first = false;
            }
            if !first {
                line(json, depth);
            }
            json.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            json.push('[');
            let mut first = true;
            for item in value.try_iter()? {
                comma(json, first);
                line(json, depth + 1);
                dump(&item, indent, depth + 1, json)?;
                first = false;
            }
            if !first {
                line(json, depth);
            }
            json.push(']');
        }
        _ => return Err(refuse("tojson: the value is not JSON")),
    }
    Ok(())
}

impl Date {
    /// strftime, of what a date alone can tell; a time of day is midnight.
    fn format(self, format: &str) -> Result<String, minijinja::Error> {
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        const DAYS: [&str; 7] =
            ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
        let Self { year, month, day } = self;
        let (month_name, weekday) =
            (MONTHS.get(usize::from(month).wrapping_sub(1)).copied().unwrap_or_default(), self.weekday());
        let day_name = DAYS.get(weekday).copied().unwrap_or_default();
        let short = |name: &str| name.get(..3).unwrap_or_default().to_owned();
        let mut text = String::new();
        let mut chars = format.chars();
        while let Some(char) = chars.next() {
            if char != '%' {
                text.push(char);
                continue;
            }
            let (bare, code) = match chars.next() {
                Some('-') => (true, chars.next()),
                code => (false, code),
            };
            let two = |number: u8| if bare { number.to_string() } else { format!("{number:02}") };
            text.push_str(&match code {
                Some('Y') => year.to_string(),
                Some('y') => format!("{:02}", year % 100),
                Some('m') => two(month),
                Some('d') => two(day),
                Some('e') => format!("{day:2}"),
                Some('B') => month_name.to_owned(),
                Some('b' | 'h') => short(month_name),
                Some('A') => day_name.to_owned(),
                Some('a') => short(day_name),
                Some('F') => format!("{year}-{month:02}-{day:02}"),
                Some('D') => format!("{month:02}/{day:02}/{:02}", year % 100),
                Some('H' | 'M' | 'S') => two(0),
                Some('I') => "12".to_owned(),
                Some('p') => "AM".to_owned(),
                Some('T') => "00:00:00".to_owned(),
                Some('%') => "%".to_owned(),
                other => {
                    let code = other.map(String::from).unwrap_or_default();
                    return Err(minijinja::Error::new(
                        ErrorKind::InvalidOperation,
                        format!("strftime_now: %{code} is not known"),
                    ));
                }
            });
        }
        Ok(text)
    }

    /// From Sunday, 0 (Sakamoto's method).
    fn weekday(self) -> usize {
        const OFFSETS: [usize; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = usize::from(self.year) - usize::from(self.month < 3 && self.year > 0);
        let offset = OFFSETS.get(usize::from(self.month).wrapping_sub(1)).copied().unwrap_or_default();
        (year + year / 4 - year / 100 + year / 400 + offset + usize::from(self.day)) % 7
    }
}

/// The part of `tokenizer_config.json` that a template needs.
#[derive(Deserialize)]
struct Config {
    chat_template: Option<Templates>,
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    unk_token: Option<SpecialToken>,
    sep_token: Option<SpecialToken>,
    pad_token: Option<SpecialToken>,
    cls_token: Option<SpecialToken>,
    mask_token: Option<SpecialToken>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Token { content: String },
}

impl Config {
    fn special(self) -> BTreeMap<String, String> {
        let tokens = [
            ("bos_token", self.bos_token),
            ("eos_token", self.eos_token),
            ("unk_token", self.unk_token),
            ("sep_token", self.sep_token),
            ("pad_token", self.pad_token),
            ("cls_token", self.cls_token),
            ("mask_token", self.mask_token),
        ];
        let text = |token| match token {
            SpecialToken::Text(text) | SpecialToken::Token { content: text } => text,
        };
        tokens.into_iter().filter_map(|(name, token)| Some((name.to_owned(), text(token?)))).collect()
    }
}
