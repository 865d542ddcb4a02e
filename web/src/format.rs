//! Numbers, durations and names as a person reads them.

/// `1234567` as `1.2 M`.
pub(crate) fn count(n: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // three digits are shown
    let x = n as f64;
    match n {
        0..10_000 => grouped(n),
        10_000..1_000_000 => format!("{:.0} k", x / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", x / 1e6),
        _ => format!("{:.1} G", x / 1e9),
    }
}

/// Thousands apart.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// One sample, two samples.
pub(crate) fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(n), if n == 1 { one } else { many })
}

/// Bytes as kB, MB or GB.
pub(crate) fn bytes(n: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // three digits are shown
    let x = n as f64;
    match n {
        0..1_000_000 => format!("{:.0} kB", x / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", x / 1e6),
        _ => format!("{:.1} GB", x / 1e9),
    }
}

/// A share as `12.3%`.
pub(crate) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1}%", share * 100.0) } else { "–".into() }
}

/// Seconds as `2 min 5 s`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".into();
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a cast saturates
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

/// Seconds of something short, as `12 ms`.
pub(crate) fn short_time(seconds: f64) -> String {
    match seconds {
        seconds if !seconds.is_finite() => "–".into(),
        seconds if seconds >= 1.0 => format!("{seconds:.1} s"),
        seconds if seconds >= 0.01 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{:.1} ms", seconds * 1e3),
    }
}

/// A number with three to four significant digits.
pub(crate) fn number(x: f64) -> String {
    let size = x.abs();
    if !x.is_finite() {
        "not a number".into()
    } else if (1000.0..1e15).contains(&size) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // in range
        let whole = grouped(size.round() as u64);
        format!("{}{whole}", if x < 0.0 { "-" } else { "" })
    } else if size >= 100.0 {
        format!("{x:.0}")
    } else if size >= 10.0 {
        format!("{x:.1}")
    } else if size >= 0.1 || x == 0.0 {
        format!("{x:.3}")
    } else {
        format!("{x:.1e}")
    }
}

/// Blocks as a person counts them: `(0, 2)` is "blocks 1–2".
pub(crate) fn blocks((first, end): (u16, u16)) -> String {
    if end == first + 1 { format!("block {end}") } else { format!("blocks {}–{end}", first + 1) }
}

/// A first guess at a device's name from `navigator.userAgent`.
pub(crate) fn device_name(agent: &str) -> &'static str {
    let has = |what| agent.contains(what);
    match () {
        () if has("iPhone") => "iPhone",
        () if has("iPad") => "iPad",
        () if has("Android") && has("Mobile") => "Android phone",
        () if has("Android") => "Android tablet",
        () if has("CrOS") => "Chromebook",
        () if has("Macintosh") => "Mac",
        () if has("Windows") => "Windows computer",
        () if has("Linux") => "Linux computer",
        () => "Browser",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn numbers_read_well() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(123), "123");
        assert_eq!(count(259_000), "259 k");
        assert_eq!(bytes(1_500_000_000), "1.5 GB");
        assert_eq!(percent(0.8524), "85.2%");
        assert_eq!(duration(125.2), "2 min 5 s");
        assert_eq!(duration(f64::NAN), "–");
        assert_eq!(blocks((0, 1)), "block 1");
        assert_eq!(blocks((2, 4)), "blocks 3–4");
        assert_eq!(number(2.34567), "2.346");
        assert_eq!(number(1462.4), "1,462");
        assert_eq!(device_name("Mozilla/5.0 (Linux; Android 14; Pixel 8) Mobile Safari"), "Android phone");
    }
}
