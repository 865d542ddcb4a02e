//! A run as a picture: an SVG with a row for each device, what it did when, and where steps end.

use crate::act::JobName;
use crate::outcome::{Outcome, numbered};
use crate::trace::{Doing, Life};
use crate::world::HOST;
use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

/// Pixels.
const LABELS: f64 = 130.0;
const WIDTH: f64 = 1500.0;
const ROW: f64 = 40.0;
const BAR: f64 = 24.0;
const RECEIVED: f64 = 5.0;
const TOP: f64 = 92.0;
/// From the last row of the run to the first one of its part.
const SECOND: f64 = 92.0;
/// Of a name's letter, of a number's and of a title's.
const LETTER: f64 = 8.0;
const DIGIT: f64 = 6.5;
const LETTER_OF_TITLE: f64 = 10.0;

/// Letters of a name at most; the rest stands where the pointer rests.
const LONGEST_NAME: f64 = 36.0;

/// How the number of a micro-batch begins.
const SLICE: &str = "<text class=\"slice\"";

/// What is narrower than this (in pixels) is not drawn for itself.
const NARROW: f64 = 0.15;

/// Classes with what they mean and their colours on light and on dark ground.
const KINDS: [(&str, &str, &str, &str); 10] = [
    ("forward", "forward", "#2f6fde", "#6ea8ff"),
    ("backward", "backward", "#d9730d", "#ffa94d"),
    ("head", "head and loss", "#2b8a3e", "#69db7c"),
    ("update", "norm and update", "#8e44c9", "#cc9bf5"),
    ("load", "load", "#868e96", "#909aa3"),
    ("measure", "measures itself", "#e6a700", "#ffe066"),
    ("check", "spot check", "#7a4f2b", "#c69c6d"),
    ("text", "text", "#c2255c", "#f783ac"),
    ("receives", "receives", "#0b7285", "#3bc9db"),
    ("asleep", "asleep or gone", "#ced4da", "#343a40"),
];

fn class(doing: Doing) -> &'static str {
    match doing {
        Doing::Job(JobName::Forward, _) => "forward",
        Doing::Job(JobName::Backward, _) => "backward",
        Doing::Job(JobName::Head, _) => "head",
        Doing::Job(JobName::Norm | JobName::Apply, _) => "update",
        Doing::Job(JobName::Load, _) => "load",
        Doing::Job(JobName::Measure, _) => "measure",
        Doing::Job(JobName::Check, _) => "check",
        Doing::Job(JobName::Infer, _) => "text",
        Doing::Receives(_) => "receives",
        Doing::Asleep | Doing::Gone => "asleep",
    }
}

/// A window that begins when the run is over.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("the window begins at {:.3} s, and the run ended at {:.3} s: show an earlier one", from.as_secs_f64(), end.as_secs_f64())]
pub struct PastTheEnd {
    /// When the window begins.
    pub from: Duration,
    /// When the last device did something.
    pub end: Duration,
}

/// Draws a run, or the part of it within a time. The same run gives the same bytes. Where the whole run leaves no room for
/// the numbers of micro-batches, one of its steps is drawn below it once more.
///
/// # Errors
///
/// When the window begins after the run's end.
pub fn svg(outcome: &Outcome, title: &str, window: Option<&Range<Duration>>) -> Result<String, PastTheEnd> {
    let lives = &outcome.trace.lives;
    let ends = lives.values().flat_map(|life| life.spans.iter().map(|span| span.time.end));
    let end = ends.max().unwrap_or_default().max(outcome.time.end);
    if let Some(window) = window.filter(|window| window.start >= end) {
        return Err(PastTheEnd { from: window.start, end });
    }
    let names = Names::of(lives.values());
    let shown = window.cloned().unwrap_or(Duration::ZERO..end);
    let whole = Picture { shown, end, left: names.width, top: TOP };
    let mut body = String::new();
    let mut numbered = whole.draw(&mut body, outcome, &names);
    let mut bottom = whole.bottom(lives.len());
    if window.is_none()
        && !numbered
        && let Some((number, shown)) = clear_step(outcome)
    {
        let part = Picture { shown, top: bottom + SECOND, ..whole };
        let mut detail = String::new();
        if part.draw(&mut detail, outcome, &names) {
            numbered = true;
            let y = bottom + SECOND - 40.0;
            let _ = writeln!(body, "<text class=\"name\" x=\"12\" y=\"{y}\">Step {number}, larger</text>");
            body += &detail;
            bottom = part.bottom(lives.len());
        }
    }
    let (width, height) = (names.width + WIDTH + 40.0, bottom + 40.0);
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" aria-labelledby=\"title what\">\n<title id=\"title\">{}</title>\n<desc id=\"what\">{}</desc>\n{}\n",
        escaped(title),
        escaped(&outcome.table()),
        style(),
    );
    let _ = writeln!(out, "<rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>");
    let heading = escaped(&shortened(title, (width - 24.0) / LETTER_OF_TITLE));
    let _ = writeln!(out, "<text class=\"title\" x=\"12\" y=\"26\">{heading}</text>");
    legend(&mut out, numbered);
    out += &body;
    out += "</svg>\n";
    Ok(out)
}

/// The last step that nothing disturbed, by its number from 1, and when it was made.
fn clear_step(outcome: &Outcome) -> Option<(usize, Range<Duration>)> {
    let (number, step) = (1..).zip(&outcome.steps).filter(|(_, step)| step.bound.is_some()).last()?;
    Some((number, step.at.saturating_sub(step.took)..step.at))
}

/// What devices are called beside their rows, and how wide that is.
struct Names {
    width: f64,
    letters: f64,
}

impl Names {
    fn of<'a>(lives: impl Iterator<Item = &'a Life>) -> Self {
        let longest = lives.map(|life| breadth(&life.name)).fold(0.0, f64::max).min(LONGEST_NAME);
        Self { width: (24.0 + longest * LETTER).max(LABELS), letters: longest }
    }
}

/// About how many Latin letters wide a text is.
fn breadth(text: &str) -> f64 {
    text.chars().map(|c| if u32::from(c) < 0x1100 { 1.0 } else { 2.0 }).sum()
}

/// A text of no more than so many letters: what is too long loses its middle, for ends often differ by a number.
fn shortened(text: &str, letters: f64) -> String {
    if breadth(text) <= letters {
        return text.into();
    }
    let half = (letters - 1.0) / 2.0;
    let take = |chars: &mut dyn Iterator<Item = char>| {
        let (mut taken, mut wide) = (Vec::new(), 0.0);
        for c in chars {
            wide += if u32::from(c) < 0x1100 { 1.0 } else { 2.0 };
            if wide > half {
                break;
            }
            taken.push(c);
        }
        taken
    };
    let (head, tail) = (take(&mut text.chars()), take(&mut text.chars().rev()));
    head.into_iter().chain(['…']).chain(tail.into_iter().rev()).collect()
}

struct Picture {
    shown: Range<Duration>,
    /// Of the run.
    end: Duration,
    /// Where time begins, in pixels.
    left: f64,
    /// Where the first row is.
    top: f64,
}

impl Picture {
    fn bottom(&self, rows: usize) -> f64 {
        self.top + rows as f64 * ROW
    }

    /// Draws everything; whether most passes have the numbers of their micro-batches.
    fn draw(&self, out: &mut String, outcome: &Outcome, names: &Names) -> bool {
        let bottom = self.bottom(outcome.trace.lives.len());
        let begun = out.len();
        self.axis(out, bottom);
        for (row, (who, life)) in outcome.trace.lives.iter().enumerate() {
            self.row(out, *who == HOST, life, self.top + row as f64 * ROW, names);
        }
        self.steps(out, outcome, bottom);
        if self.end < self.shown.end {
            let x = self.x(self.end);
            let _ = writeln!(
                out,
                "<text class=\"small\" x=\"{:.2}\" y=\"{}\">the run ended at {:.2} s</text>",
                x + 6.0,
                self.top + 15.0,
                self.end.as_secs_f64()
            );
        }
        let drawn = |what: &str| out[begun..].matches(what).count();
        2 * drawn(SLICE) > drawn("<rect class=\"forward\"") + drawn("<rect class=\"backward\"")
    }

    fn x(&self, time: Duration) -> f64 {
        let Range { start, end } = self.shown;
        let share = (time.as_secs_f64() - start.as_secs_f64()) / (end - start).as_secs_f64().max(1e-9);
        self.left + WIDTH * share.clamp(0.0, 1.0)
    }

    fn row(&self, out: &mut String, is_host: bool, life: &Life, y: f64, names: &Names) {
        let Range { start, end } = life.blocks;
        let blocks = match (is_host, start < end) {
            (true, true) => format!("ends, blocks {}", numbered(&life.blocks)),
            (true, false) => "ends".into(),
            (false, true) => format!("blocks {}", numbered(&life.blocks)),
            (false, false) => String::new(),
        };
        let _ = writeln!(
            out,
            "<g><title>{}</title><text class=\"name\" x=\"12\" y=\"{}\">{}</text>\
             <text class=\"small\" x=\"12\" y=\"{}\">{blocks}</text>",
            escaped(&life.name),
            y + 13.0,
            escaped(&shortened(&life.name, names.letters)),
            y + 27.0,
        );
        let here = self.x(life.joined)..self.x(life.gone.unwrap_or(self.end).min(self.end));
        let _ = writeln!(
            out,
            "<rect class=\"idle\" x=\"{:.2}\" y=\"{y}\" width=\"{:.2}\" height=\"{BAR}\"/>",
            here.start,
            (here.end - here.start).max(0.0)
        );
        if let Some(gone) = life.gone {
            self.bar(out, Doing::Gone, gone..self.end.max(gone), y, BAR);
        }
        // Sleep lies over the work that it interrupts; of what is received, stretches that touch are one.
        let of = |wanted: fn(Doing) -> bool| {
            let mut spans: Vec<_> = life.spans.iter().filter(|span| wanted(span.doing)).collect();
            spans.sort_by_key(|span| (span.time.start, span.time.end));
            spans
        };
        for span in of(|doing| matches!(doing, Doing::Job(..))) {
            self.bar(out, span.doing, span.time.clone(), y, BAR);
        }
        for span in of(|doing| matches!(doing, Doing::Asleep)) {
            self.bar(out, span.doing, span.time.clone(), y, BAR);
        }
        let mut open: Option<(Doing, Range<Duration>)> = None;
        for span in of(|doing| matches!(doing, Doing::Receives(_))) {
            match &mut open {
                Some((_, time)) if span.time.start <= time.end => time.end = time.end.max(span.time.end),
                _ => {
                    if let Some((doing, time)) = open.replace((span.doing, span.time.clone())) {
                        self.bar(out, doing, time, y + BAR + 2.0, RECEIVED);
                    }
                }
            }
        }
        if let Some((doing, time)) = open {
            self.bar(out, doing, time, y + BAR + 2.0, RECEIVED);
        }
        *out += "</g>\n";
    }

    fn bar(&self, out: &mut String, doing: Doing, time: Range<Duration>, y: f64, height: f64) {
        let (x, end) = (self.x(time.start), self.x(time.end));
        let width = end - x;
        if width < NARROW {
            return;
        }
        let _ = write!(
            out,
            "<rect class=\"{}\" x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{height}\"/>",
            class(doing)
        );
        if let Doing::Job(JobName::Forward | JobName::Backward, Some(micro_batch)) = doing {
            let number = micro_batch.to_string();
            if width >= DIGIT * (number.len() as f64 + 0.5) {
                let (x, y) = (x + width / 2.0, y + 16.5);
                let _ = write!(out, "{SLICE} x=\"{x:.2}\" y=\"{y}\">{number}</text>");
            }
        }
        *out += "\n";
    }

    /// Seconds, at a round distance.
    fn axis(&self, out: &mut String, bottom: f64) {
        let (start, end) = (self.shown.start.as_secs_f64(), self.shown.end.as_secs_f64());
        let span = (end - start).max(1e-9);
        let power = 10_f64.powf((span / 12.0).log10().floor());
        let tick =
            [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|tick| span / tick <= 15.0);
        let tick = tick.unwrap_or(span);
        let digits = (-tick.log10().floor()).clamp(0.0, 9.0) as usize;
        // Counted, not added up: a window may be so short and so late that a tick adds nothing to its beginning.
        for number in 0..=15 {
            let at = ((start / tick).ceil() + f64::from(number)) * tick;
            if at > end {
                break;
            }
            let x = self.left + WIDTH * (at - start) / span;
            let _ = writeln!(
                out,
                "<line class=\"tick\" x1=\"{x:.2}\" x2=\"{x:.2}\" y1=\"{}\" y2=\"{bottom}\"/>\
                 <text class=\"small middle\" x=\"{x:.2}\" y=\"{}\">{at:.digits$} s</text>",
                self.top - 6.0,
                bottom + 20.0,
            );
        }
    }

    /// A line at the end of every step, with its number where there is room.
    fn steps(&self, out: &mut String, outcome: &Outcome, bottom: f64) {
        let mut labelled = 0.0;
        for (number, step) in outcome.steps.iter().enumerate() {
            let x = self.x(step.at);
            if step.at < self.shown.start || step.at > self.shown.end {
                continue;
            }
            let _ = write!(
                out,
                "<line class=\"step\" x1=\"{x:.2}\" x2=\"{x:.2}\" y1=\"{}\" y2=\"{bottom}\"/>",
                self.top - 10.0
            );
            if x - labelled > 52.0 {
                labelled = x;
                let _ = write!(
                    out,
                    "<text class=\"small middle\" x=\"{x:.2}\" y=\"{}\">step {}</text>",
                    self.top - 14.0,
                    number + 1
                );
            }
            *out += "\n";
        }
    }
}

fn legend(out: &mut String, has_numbers: bool) {
    let mut x = 12.0;
    for (class, words, ..) in KINDS {
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{x}\" y=\"42\" width=\"14\" height=\"14\"/>\
             <text class=\"small\" x=\"{}\" y=\"53\">{words}</text>",
            x + 20.0
        );
        x += 44.0 + 7.0 * words.len() as f64;
    }
    let _ = writeln!(
        out,
        "<rect class=\"idle\" x=\"{x}\" y=\"42\" width=\"14\" height=\"14\"/>\
         <text class=\"small\" x=\"{}\" y=\"53\">idle</text>\
         <text class=\"small\" x=\"{}\" y=\"53\">{}</text>",
        x + 20.0,
        x + 60.0,
        if has_numbers { "Numbers are micro-batches." } else { "A shorter window shows micro-batches." }
    );
}

fn style() -> String {
    let colours = |pick: fn(&(&str, &'static str, &'static str, &'static str)) -> &'static str| {
        KINDS.iter().fold(String::new(), |mut all, kind| {
            let _ = write!(all, ".{}{{fill:{}}}", kind.0, pick(kind));
            all
        })
    };
    format!(
        "<style>text{{font-family:system-ui,sans-serif;fill:#1c1e21}}.title{{font-size:17px;font-weight:600}}\
         .name{{font-size:13px;font-weight:600}}.small{{font-size:12px}}.middle{{text-anchor:middle}}\
         .slice{{font-size:11px;text-anchor:middle;fill:#fff}}.ground{{fill:#fff}}.idle{{fill:#f1f3f5}}\
         .tick{{stroke:#dee2e6}}.step{{stroke:#1c1e21;stroke-dasharray:3 3;stroke-opacity:.6}}{}\
         @media(prefers-color-scheme:dark){{text{{fill:#e9ecef}}.slice{{fill:#0b0d10}}.ground{{fill:#14171a}}\
         .idle{{fill:#212529}}.tick{{stroke:#343a40}}.step{{stroke:#e9ecef}}{}}}</style>",
        colours(|kind| kind.2),
        colours(|kind| kind.3),
    )
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut all, c| {
        match c {
            '&' => all += "&amp;",
            '<' => all += "&lt;",
            '>' => all += "&gt;",
            '"' => all += "&quot;",
            c if c.is_control() && c != '\n' => {}
            c => all.push(c),
        }
        all
    })
}
