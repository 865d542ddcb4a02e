//! What a person sees of the stages: a line each that changes in place, or plain lines where there is no terminal.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Without a terminal a line of one kind is printed no more often than this.
const AGAIN: Duration = Duration::from_secs(10);
/// What comes from the network is cut to this many characters.
const LONGEST: usize = 300;

/// The screen of all stages.
#[derive(Clone)]
pub(super) struct Screen {
    /// None: plain lines.
    bars: Option<MultiProgress>,
}

impl Screen {
    /// Standard error.
    pub(super) fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// A place for one stage.
    pub(super) fn row(&self, label: String) -> Row {
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("{spinner} {prefix}{msg}");
            let bar = bars.add(ProgressBar::no_length());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(label.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Row { label, bar, last: None }
    }

    /// A line that stays.
    pub(super) fn say(&self, words: &str) {
        let words = plain(words);
        match &self.bars {
            // A terminal that is gone is no reason to stop.
            Some(bars) => drop(bars.println(words)),
            None => eprintln!("{words}"),
        }
    }
}

/// The place of one stage.
pub(super) struct Row {
    label: String,
    bar: Option<ProgressBar>,
    last: Option<(&'static str, Instant)>,
}

impl Row {
    /// How it stands; `kind` tells news from more of the same.
    pub(super) fn show(&mut self, kind: &'static str, words: &str) {
        let words = plain(words);
        if let Some(bar) = &self.bar {
            return bar.set_message(words);
        }
        let again = self.last.is_some_and(|(last, at)| last == kind && at.elapsed() < AGAIN);
        if !again {
            eprintln!("{}{words}", self.label);
            self.last = Some((kind, Instant::now()));
        }
    }

    /// A line that stays.
    pub(super) fn say(&mut self, words: &str) {
        let line = format!("{}{}", self.label, plain(words));
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
        self.last = None;
    }

    /// The last line.
    pub(super) fn end(&mut self, words: &str) {
        self.say(words);
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A text as it may go to a terminal: what others sent could hold orders to it.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn what_others_say_gives_the_terminal_no_orders() {
        assert_eq!(plain("the \u{1b}[2Jhost\r\n left\u{9b}"), "the [2Jhost left");
        assert_eq!(plain(&"x".repeat(10_000)).len(), 300);
    }
}
