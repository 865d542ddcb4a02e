//! `/metrics`: the census in Prometheus' text format.

use crate::{hub::Hub, rooms::Census};
use axum::{extract::State, http::header, response::IntoResponse};
use baton_protocol::signal::ErrorCode;
use std::{
    fmt::{Display, Write as _},
    sync::Arc,
};

/// Every code with its label: a series that is there from the start can be seen to grow.
const CODES: [(ErrorCode, &str); 11] = [
    (ErrorCode::NoSuchRoom, "no_such_room"),
    (ErrorCode::RoomFull, "room_full"),
    (ErrorCode::RoomTaken, "room_taken"),
    (ErrorCode::ServerFull, "server_full"),
    (ErrorCode::Version, "version"),
    (ErrorCode::BadMessage, "bad_message"),
    (ErrorCode::TooLarge, "too_large"),
    (ErrorCode::TooFast, "too_fast"),
    (ErrorCode::NoSuchPeer, "no_such_peer"),
    (ErrorCode::HostLeft, "host_left"),
    (ErrorCode::ShuttingDown, "shutting_down"),
];

/// `GET /metrics`.
pub(crate) async fn metrics(State(hub): State<Arc<Hub>>) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, render(&hub.census()))
}

fn render(census: &Census) -> String {
    let totals = &census.totals;
    let mut text = String::new();
    for (name, kind, help, value) in [
        ("sockets", "gauge", "Open WebSockets.", census.sockets as u64),
        ("rooms", "gauge", "Rooms.", census.rooms as u64),
        ("members", "gauge", "Members of all rooms.", census.members as u64),
        ("sockets_total", "counter", "WebSockets opened.", totals.sockets),
        ("rooms_total", "counter", "Rooms made.", totals.rooms),
        ("joins_total", "counter", "Joins granted.", totals.joins),
        ("relayed_messages_total", "counter", "Envelopes passed on.", totals.relayed),
        ("relayed_bytes_total", "counter", "Characters of the envelopes passed on.", totals.relayed_bytes),
    ] {
        family(&mut text, name, kind, help, [("", value)]);
    }
    let dropped = [(r#"{reason="silent"}"#, totals.silent), (r#"{reason="stuck"}"#, totals.stuck)];
    family(&mut text, "dropped_total", "counter", "Clients dropped without an error, by reason.", dropped);
    let refusals = CODES.map(|(code, label)| {
        (format!(r#"{{code="{label}"}}"#), totals.refusals.get(&code).copied().unwrap_or_default())
    });
    family(&mut text, "refusals_total", "counter", "Errors told to clients, by code.", refusals);
    text
}

fn family(
    text: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    samples: impl IntoIterator<Item = (impl Display, u64)>,
) {
    let mut line = |line: std::fmt::Arguments<'_>| {
        text.write_fmt(line).expect("a String can be written to");
        text.push('\n');
    };
    line(format_args!("# HELP baton_{name} {help}"));
    line(format_args!("# TYPE baton_{name} {kind}"));
    for (labels, value) in samples {
        line(format_args!("baton_{name}{labels} {value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_what_the_wire_calls_the_code() {
        for (code, label) in CODES {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{label}\""));
        }
    }

    #[test]
    fn every_sample_follows_its_help_and_type() {
        let mut census = Census { sockets: 3, ..Census::default() };
        census.totals.refusals.insert(ErrorCode::TooFast, 2);
        let text = render(&census);
        assert!(text.contains("# TYPE baton_sockets gauge\nbaton_sockets 3\n"));
        assert!(text.contains("baton_refusals_total{code=\"too_fast\"} 2\n"));
        let mut family = "";
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split(' ').next().unwrap();
            } else {
                let name = line.strip_prefix("# TYPE ").unwrap_or(line).split([' ', '{']).next().unwrap();
                assert_eq!(name, family);
            }
        }
    }
}
