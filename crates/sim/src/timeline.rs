//! A run as a picture: an SVG with a row for each device, what it did when, and where steps end.

use crate::act::JobName;
use crate::outcome::Outcome;
use crate::trace::{Doing, Life};
use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

/// Pixels.
const LABELS: f64 = 150.0;
const WIDTH: f64 = 1500.0;
const ROW: f64 = 40.0;
const BAR: f64 = 24.0;
const RECEIVED: f64 = 5.0;
const TOP: f64 = 92.0;

/// What is narrower than this (in pixels) is not drawn for itself.
const NARROW: f64 = 0.15;

/// Classes with what they mean and their colours on light and on dark ground.
const KINDS: [(&str, &str, &str, &str); 8] = [
    ("forward", "forward", "#2f6fde", "#6ea8ff"),
    ("backward", "backward", "#d9730d", "#ffa94d"),
    ("head", "head and loss", "#2b8a3e", "#69db7c"),
    ("update", "norm and update", "#8e44c9", "#cc9bf5"),
    ("load", "load", "#868e96", "#909aa3"),
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
        Doing::Job(JobName::Load | JobName::Measure, _) => "load",
        Doing::Job(JobName::Infer | JobName::Check, _) => "text",
        Doing::Receives(_) => "receives",
        Doing::Asleep | Doing::Gone => "asleep",
    }
}

/// Draws a run, or the part of it within a time. The same run gives the same bytes.
pub fn svg(outcome: &Outcome, title: &str, window: Option<Range<Duration>>) -> String {
    let lives = outcome.trace.lives.values();
    let ends = lives.clone().flat_map(|life| life.spans.iter().map(|span| span.time.end));
    let end = ends.max().unwrap_or_default().max(outcome.time.end);
    let window = window.unwrap_or(Duration::ZERO..end);
    let picture = Picture { start: window.start.as_secs_f64(), end: window.end.as_secs_f64() };
    let rows = outcome.trace.lives.len();
    let bottom = TOP + rows as f64 * ROW;
    let (width, height) = (LABELS + WIDTH + 40.0, bottom + 40.0);
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
    let _ = writeln!(out, "<text class=\"title\" x=\"12\" y=\"26\">{}</text>", escaped(title));
    legend(&mut out);
    picture.axis(&mut out, bottom);
    for (row, life) in outcome.trace.lives.values().enumerate() {
        picture.row(&mut out, life, TOP + row as f64 * ROW);
    }
    picture.steps(&mut out, outcome, bottom);
    out += "</svg>\n";
    out
}

struct Picture {
    start: f64,
    end: f64,
}

impl Picture {
    fn x(&self, time: Duration) -> f64 {
        let share = (time.as_secs_f64() - self.start) / (self.end - self.start).max(1e-9);
        LABELS + WIDTH * share.clamp(0.0, 1.0)
    }

    fn row(&self, out: &mut String, life: &Life, y: f64) {
        let Range { start, end } = life.blocks;
        let blocks = if start < end { format!("blocks {start}–{}", end - 1) } else { String::new() };
        let _ = writeln!(
            out,
            "<g><text class=\"name\" x=\"12\" y=\"{}\">{}</text><text class=\"small\" x=\"12\" y=\"{}\">{blocks}</text>",
            y + 13.0,
            escaped(&life.name.chars().take(20).collect::<String>()),
            y + 27.0,
        );
        let gone = life.gone.map(|at| (at, Duration::from_secs_f64(self.end.max(0.0))));
        let here = self.x(life.joined)..self.x(life.gone.unwrap_or(Duration::MAX / 2));
        let _ = writeln!(
            out,
            "<rect class=\"idle\" x=\"{:.2}\" y=\"{y}\" width=\"{:.2}\" height=\"{BAR}\"/>",
            here.start,
            (here.end - here.start).max(0.0)
        );
        if let Some((from, to)) = gone {
            self.bar(out, Doing::Gone, from..to, y, BAR);
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
        if let Doing::Job(JobName::Forward | JobName::Backward, Some(micro_batch)) = doing
            && width >= 12.0
        {
            let _ = write!(
                out,
                "<text class=\"slice\" x=\"{:.2}\" y=\"{}\">{micro_batch}</text>",
                x + width / 2.0,
                y + 16.5
            );
        }
        *out += "\n";
    }

    /// Seconds, at a round distance.
    fn axis(&self, out: &mut String, bottom: f64) {
        let span = (self.end - self.start).max(1e-3);
        let power = 10_f64.powf((span / 12.0).log10().floor());
        let tick =
            [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|tick| span / tick <= 15.0);
        let tick = tick.unwrap_or(span);
        let digits = if tick < 0.1 { 2 } else { usize::from(tick < 1.0) };
        let mut at = (self.start / tick).ceil() * tick;
        while at <= self.end {
            let x = LABELS + WIDTH * (at - self.start) / span;
            let _ = writeln!(
                out,
                "<line class=\"tick\" x1=\"{x:.2}\" x2=\"{x:.2}\" y1=\"{}\" y2=\"{bottom}\"/>\
                 <text class=\"small middle\" x=\"{x:.2}\" y=\"{}\">{at:.digits$} s</text>",
                TOP - 6.0,
                bottom + 20.0,
            );
            at += tick;
        }
    }

    /// A line at the end of every step, with its number where there is room.
    fn steps(&self, out: &mut String, outcome: &Outcome, bottom: f64) {
        let mut labelled = 0.0;
        for (number, step) in outcome.steps.iter().enumerate() {
            let x = self.x(step.at);
            if x <= LABELS || x >= LABELS + WIDTH && step.at.as_secs_f64() > self.end {
                continue;
            }
            let _ = write!(
                out,
                "<line class=\"step\" x1=\"{x:.2}\" x2=\"{x:.2}\" y1=\"{}\" y2=\"{bottom}\"/>",
                TOP - 10.0
            );
            if x - labelled > 52.0 {
                labelled = x;
                let _ = write!(
                    out,
                    "<text class=\"small middle\" x=\"{x:.2}\" y=\"{}\">step {}</text>",
                    TOP - 14.0,
                    number + 1
                );
            }
            *out += "\n";
        }
    }
}

fn legend(out: &mut String) {
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
         <text class=\"small\" x=\"{}\" y=\"53\">Numbers are micro-batches.</text>",
        x + 20.0,
        x + 70.0
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
