//! What the host's list of devices calls this machine.

use std::fmt;
use std::str::FromStr;

/// A host cuts what is longer (`baton_protocol::message::Device::checked`).
const LONGEST: usize = 40;

/// 1 to 40 characters that can be printed, without spaces around them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name(String);

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NameError {
    #[error(
        "a name has 1 to {LONGEST} characters, and this one has none: leave --name out for the host name"
    )]
    Empty,
    #[error("a name has 1 to {LONGEST} characters, and this one has {0}")]
    TooLong(usize),
    #[error("a name is letters, digits, signs and spaces, and this one has the control character {0:?}")]
    Control(char),
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let text = text.trim();
        if let Some(control) = text.chars().find(|c| c.is_control()) {
            return Err(NameError::Control(control));
        }
        match text.chars().count() {
            0 => Err(NameError::Empty),
            1..=LONGEST => Ok(Self(text.to_owned())),
            count => Err(NameError::TooLong(count)),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Name {
    /// What can be used of a text that nobody typed.
    pub(super) fn cut(text: &str) -> Self {
        let usable: String = text.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
        usable.parse().unwrap_or_else(|_| Self("native".to_owned()))
    }

    /// That of one of several stages, its number whole however long the name is.
    pub(super) fn of_stage(&self, stage: u16) -> String {
        let number = format!(" ({stage})");
        let name: String = self.0.chars().take(LONGEST.saturating_sub(number.len())).collect();
        name + &number
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test a panic is the verdict")]

    use super::*;
    use baton_protocol::message::Device;

    #[test]
    fn a_name_is_what_the_host_will_show() {
        for text in [" Ada's laptop\n", "x", &"é".repeat(40)] {
            let name: Name = text.parse().unwrap();
            let shown = |name: String| Device { name, backend: String::new() }.checked().name;
            assert_eq!(shown(name.to_string()), text.trim());
            let (one, last) = (name.of_stage(1), name.of_stage(16));
            assert!(one.ends_with(" (1)") && last.ends_with(" (16)"));
            assert_eq!((shown(one.clone()), shown(last.clone())), (one, last), "none is cut");
        }
    }

    #[test]
    fn a_host_name_is_taken_as_far_as_it_goes() {
        for (text, name) in
            [("box", "box"), (&*"y".repeat(64), &*"y".repeat(40)), ("\0", "native"), ("", "native")]
        {
            assert_eq!(Name::cut(text).to_string(), name);
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_what_is() {
        for (text, said) in [
            ("", "has none"),
            ("  \t", "has none"),
            (&*"x".repeat(41), "1 to 40 characters, and this one has 41"),
            ("a\u{1b}[2Jb", "control character"),
        ] {
            let error = text.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains(said), "{text:?}: {error}");
        }
    }
}
