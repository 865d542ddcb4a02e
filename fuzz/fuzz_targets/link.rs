//! The frames of a link, one after another: each part of the input is a frame, led by its length in two bytes.

#![no_main]

use baton_fuzz::seed;
use baton_protocol::link::{Link, WINDOW};
use baton_protocol::message::Message;
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    let mut sender = Link::new();
    let mut other = Link::new();
    let mut wire = Vec::new();
    let mut put = |frame: &[u8]| {
        wire.extend(u16::try_from(frame.len()).expect("a short frame").to_le_bytes());
        wire.extend(frame);
    };
    put(&other.poll_frame().expect("READY"));
    let ready = sender.poll_frame().expect("READY");
    other.receive(&ready).expect("READY");
    sender.receive(&ready).expect("READY");
    sender.send(&Message::Goodbye { reason: "x".repeat(300) });
    sender.send(&Message::Heartbeat);
    while let Some(frame) = sender.poll_frame() {
        put(&frame);
    }
    // In two frames, which a message this short would not be, and a grant.
    let bytes = Message::Goodbye { reason: "in two".into() }.to_bytes();
    let (first, next) = bytes.split_at(3);
    let length = u32::try_from(bytes.len()).expect("short").to_le_bytes();
    put(&[&[1], &length[..], first].concat());
    put(&[&[2], next].concat());
    put(&[3, 0, 0, 0, 0]);
    vec![wire]
}

fuzz_target!(init: seed("link", seeds()), |bytes: &[u8]| {
    let mut link = Link::new();
    // Something to send, so that credit matters.
    link.send(&Message::Goodbye { reason: "y".repeat(70_000) });
    let mut rest = bytes;
    let mut sent = 0;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (frame, after) = after.split_at(length);
        rest = after;
        if link.receive(frame).is_err() {
            return;
        }
        while let Some(frame) = link.poll_frame() {
            sent += frame.len();
        }
    }
    assert!(sent <= 2 * WINDOW && link.queued() <= 70_100);
});
