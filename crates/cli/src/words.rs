//! Numbers with their nouns.

use std::ops::Range;

/// `1 block`, `2 blocks`, `4 micro-batches`, `2 classes`.
pub(crate) fn plural(count: usize, what: &str) -> String {
    let ending = match count {
        1 => "",
        _ if what.ends_with("ch") || what.ends_with('s') => "es",
        _ => "s",
    };
    format!("{} {what}{ending}", grouped(count as u64))
}

/// Blocks as a person counts them, and as the page numbers them: `0..2` is "blocks 1–2".
pub(crate) fn numbered(blocks: &Range<u16>) -> String {
    match blocks.len() {
        1 => format!("block {}", blocks.end),
        _ => format!("blocks {}–{}", blocks.start.saturating_add(1), blocks.end),
    }
}

/// `is` or `are`.
pub(crate) fn are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// `1,234,567`
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn blocks_are_numbered_as_on_the_page() {
        // The same as in web/src/format.rs.
        assert_eq!(numbered(&(0..1)), "block 1");
        assert_eq!(numbered(&(2..4)), "blocks 3–4");
    }
}
