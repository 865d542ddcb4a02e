//! What a text frame from the network is worth: a message of the protocol, or a refusal.

use crate::refusal::Refusal;
use baton_protocol::{PROTOCOL_VERSION, room::MAX_SEALED_LEN, signal::ClientMessage};
use serde::Deserialize;

/// What a frame needs around the longest envelope.
pub const FRAME_MARGIN: usize = 1024;

/// The longest message of the protocol, in bytes.
pub const MAX_MESSAGE_LEN: usize = MAX_SEALED_LEN + FRAME_MARGIN;

/// A parser quotes what it stumbled over; the client hears no more of it than this many characters.
const MAX_REASON: usize = 160;

/// Reads one text frame, of at most `limit` bytes.
///
/// # Errors
/// [`Refusal::TooLarge`], [`Refusal::Malformed`], or [`Refusal::Version`] for what does not read because it
/// is the `join` of another version.
pub fn parse(text: &str, limit: usize) -> Result<ClientMessage, Refusal> {
    if text.len() > limit {
        return Err(Refusal::TooLarge { limit });
    }
    match serde_json::from_str(text) {
        Ok(ClientMessage::Relay { sealed, .. }) if sealed.len() > MAX_SEALED_LEN => {
            Err(Refusal::TooLarge { limit: MAX_SEALED_LEN })
        }
        Ok(message) => Ok(message),
        Err(error) => Err(foreign_version(text).unwrap_or_else(|| Refusal::Malformed {
            reason: error.to_string().chars().take(MAX_REASON).collect(),
        })),
    }
}

/// A later protocol may say more in its `join` than this one reads, but it will say its version.
fn foreign_version(text: &str) -> Option<Refusal> {
    #[derive(Deserialize)]
    #[serde(tag = "type", rename_all = "snake_case")]
    enum Greeting {
        Join { version: u64 },
    }
    let Greeting::Join { version } = serde_json::from_str(text).ok()?;
    (version != u64::from(PROTOCOL_VERSION)).then_some(Refusal::Version { theirs: version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_that_does_not_read_is_a_matter_of_version_if_it_says_another() {
        for text in [
            r#"{"type":"join","version":0,"room":"not a digest","role":"host"}"#,
            r#"{"type":"join","version":70000,"lobby":[1,2]}"#,
        ] {
            assert!(matches!(parse(text, 1000), Err(Refusal::Version { .. })), "{text}");
        }
        let ours = format!(r#"{{"type":"join","version":{PROTOCOL_VERSION},"room":"short","role":"host"}}"#);
        assert!(matches!(parse(&ours, 1000), Err(Refusal::Malformed { .. })));
    }

    #[test]
    fn what_is_no_message_is_refused_in_few_words() {
        let long_tag = format!(r#"{{"type":"{}"}}"#, "x".repeat(5000));
        for text in ["", "{", "null", "[]", "\u{0}", r#"{"type":"relay","to":-1,"sealed":""}"#, &long_tag] {
            match parse(text, 10_000) {
                Err(Refusal::Malformed { reason }) => assert!(reason.chars().count() <= MAX_REASON),
                other => panic!("{text:.40}: {other:?}"),
            }
        }
        // A bomb of brackets ends in the parser's depth limit, not in the stack's.
        assert!(parse(&"[".repeat(50_000), 60_000).is_err());
    }

    #[test]
    fn lengths_are_checked_before_anything_is_parsed() {
        assert_eq!(parse("{{{{{", 4), Err(Refusal::TooLarge { limit: 4 }));
        let relay = |len: usize| format!(r#"{{"type":"relay","to":1,"sealed":"{}"}}"#, "A".repeat(len));
        assert!(parse(&relay(MAX_SEALED_LEN), MAX_MESSAGE_LEN).is_ok());
        assert_eq!(
            parse(&relay(MAX_SEALED_LEN + 1), MAX_MESSAGE_LEN),
            Err(Refusal::TooLarge { limit: MAX_SEALED_LEN })
        );
    }
}
