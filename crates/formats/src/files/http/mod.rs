//! One HTTP request and what came back, natively and in a browser.

use std::ops::Range;

#[cfg(target_arch = "wasm32")]
mod browser;
#[cfg(not(target_arch = "wasm32"))]
mod native;

#[cfg(target_arch = "wasm32")]
pub(super) use browser::{describe, fetch, sleep};
#[cfg(not(target_arch = "wasm32"))]
pub(super) use native::{fetch, sleep};

/// A server that knows no ranges may send a file of at most this size as a whole.
pub(super) const WHOLE_FILE_LIMIT: u64 = 16 << 20;

/// What to ask for.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    /// A part of a file.
    Bytes(Range<u64>),
    /// Only the headers.
    Head,
    /// Only the headers of the first answer, wherever it points to; a browser follows it all the same.
    Unfollowed,
    /// A document of at most so many bytes.
    Document(u64),
}

impl Ask {
    /// The value of the `Range` header (RFC 9110, 14.2).
    fn range_header(&self) -> Option<String> {
        match self {
            Self::Bytes(range) => Some(format!("bytes={}-{}", range.start, range.end.saturating_sub(1))),
            Self::Unfollowed => Some("bytes=0-0".to_owned()),
            Self::Head | Self::Document(_) => None,
        }
    }

    /// How long a body may be, given the status it comes with.
    fn body_limit(&self, status: u16) -> u64 {
        match (self, status) {
            (Self::Bytes(range), 206) => range.end.saturating_sub(range.start),
            (Self::Bytes(_), 200) => WHOLE_FILE_LIMIT,
            (Self::Document(limit), 200) => *limit,
            _ => 0,
        }
    }
}

/// What a server answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Where redirects led, if there were any.
    pub(super) target: Option<String>,
    pub(super) content_range: Option<String>,
    pub(super) content_length: Option<u64>,
    /// `ETag`, or else `Last-Modified`: another one means another file.
    pub(super) version: Option<String>,
    pub(super) retry_after: Option<String>,
    /// The hub's `X-Repo-Commit`.
    pub(super) commit: Option<String>,
    pub(super) body: Vec<u8>,
    pub(super) end: End,
}

impl Answer {
    /// An answer by its headers, without a body yet.
    fn new(status: u16, header: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            status,
            target: None,
            content_range: header("content-range"),
            content_length: header("content-length").and_then(|text| text.parse().ok()),
            // Weak or strong, it names the same version.
            version: header("etag")
                .map(|tag| tag.trim_start_matches("W/").to_owned())
                .or_else(|| header("last-modified")),
            retry_after: header("retry-after"),
            commit: header("x-repo-commit"),
            body: Vec::new(),
            end: End::Whole,
        }
    }
}

/// How a body ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As it should, as far as the connection can tell.
    Whole,
    /// It is longer than it may be, and the rest was not read.
    Excess,
    /// The connection broke, or the time was up; with what the system says.
    Cut(String),
}

/// `Content-Range: bytes start-last/size` (RFC 9110, 14.4), where the size may be unknown (`*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The first byte.
    pub start: u64,
    /// The last byte, which belongs to it.
    pub last: u64,
    /// The size of the whole file in bytes.
    pub size: Option<u64>,
}

impl ContentRange {
    /// Reads the header; `None` if it is anything else, or says what cannot be.
    pub fn parse(text: &str) -> Option<Self> {
        let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (start, last) = range.split_once('-')?;
        let size = match size {
            "*" => None,
            size => Some(number(size)?),
        };
        let (start, last) = (number(start)?, number(last)?);
        // u64::MAX as a last byte would have no byte after it.
        let possible = start <= last && size.unwrap_or(u64::MAX) > last;
        possible.then_some(Self { start, last, size })
    }

    /// The size in `bytes */size`, which comes with 416.
    pub fn unsatisfied(text: &str) -> Option<u64> {
        number(text.trim().strip_prefix("bytes */")?)
    }
}

/// Digits alone: `parse` would take a plus sign too.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read_or_refused() {
        let parse = ContentRange::parse;
        assert_eq!(parse("bytes 0-0/1000"), Some(ContentRange { start: 0, last: 0, size: Some(1000) }));
        assert_eq!(parse("bytes 5-9/*"), Some(ContentRange { start: 5, last: 9, size: None }));
        let most = u64::MAX;
        for bad in [
            "",
            "bytes",
            "bytes 0-0",
            "bytes */7",
            "bytes a-b/c",
            "bytes 0-0/-1",
            "items 0-1/2",
            "bytes 5-4/9",
            "bytes 0-9/9",
            "bytes +0-1/2",
            "bytes -1-1/2",
            "bytes 0-/2",
            &format!("bytes 0-{most}/{most}"),
            &format!("bytes 0-{most}/*"),
            "bytes 0-99999999999999999999999/*",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(ContentRange::unsatisfied("bytes */0"), Some(0));
        assert_eq!(ContentRange::unsatisfied("bytes */*"), None);
    }
}
