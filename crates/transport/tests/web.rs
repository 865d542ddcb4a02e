//! Two ends in one page, wired by an in-memory relay: what the signaling server would carry.
#![cfg(target_arch = "wasm32")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use baton_protocol::{PeerId, link::Lane, room::RoomSecret};
use baton_transport::browser::{Gone, Mesh, MeshConfig, MeshEvent};
use baton_transport::negotiation::{Candidate, Negotiation};
use gloo::{
    events::EventListener,
    timers::future::{TimeoutFuture, sleep},
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};
use wasm_bindgen::JsCast;
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};
use web_sys::{MessageEvent, RtcDataChannel, RtcDataChannelState};

wasm_bindgen_test_configure!(run_in_browser);

const HOST: PeerId = PeerId(1);
const PHONE: PeerId = PeerId(2);

/// One end, and everything that happened at it.
struct End {
    mesh: Mesh,
    seen: Rc<Seen>,
}

#[derive(Default)]
struct Seen {
    channels: RefCell<BTreeMap<Lane, RtcDataChannel>>,
    heard: Rc<RefCell<Vec<(Lane, String)>>>,
    made: Cell<usize>,
    gone: RefCell<Vec<Gone>>,
    listeners: RefCell<Vec<EventListener>>,
}

type Wire = Rc<RefCell<Vec<(PeerId, PeerId, String)>>>;

fn secret() -> RoomSecret {
    RoomSecret::from_bytes(*b"sixteen bytes ok")
}

fn end(me: PeerId, secret: RoomSecret, wire: &Wire) -> End {
    let seen = Rc::new(Seen::default());
    let (wire, sink) = (Rc::clone(wire), Rc::clone(&seen));
    let mesh = Mesh::new(
        MeshConfig { me, host: HOST, secret, ice_servers: Vec::new() },
        move |to, sealed| wire.borrow_mut().push((me, to, sealed)),
        move |event| match event {
            MeshEvent::Channel { lane, channel, .. } => {
                let heard = Rc::clone(&sink.heard);
                let listener = EventListener::new(&channel, "message", move |event| {
                    let data = event.dyn_ref::<MessageEvent>().unwrap().data();
                    heard.borrow_mut().push((lane, data.as_string().unwrap()));
                });
                sink.listeners.borrow_mut().push(listener);
                sink.made.set(sink.made.get() + 1);
                sink.channels.borrow_mut().insert(lane, channel);
            }
            MeshEvent::Gone { reason, .. } => sink.gone.borrow_mut().push(reason),
            // Pulses have tests of their own.
            MeshEvent::Presence { .. } => {}
        },
    );
    End { mesh, seen }
}

/// Delivers what is on the wire, as long as `until` is false; the bound is only there to end a broken test.
async fn deliver(wire: &Wire, ends: &[(&PeerId, &End)], until: impl Fn() -> bool) {
    for _ in 0..2000 {
        let envelopes = std::mem::take(&mut *wire.borrow_mut());
        for (from, to, sealed) in envelopes {
            for (_, end) in ends.iter().filter(|(id, _)| **id == to) {
                end.mesh.receive(from, &sealed);
            }
        }
        if until() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("what the test waits for did not happen in 20 s");
}

fn open(end: &End) -> usize {
    let channels = end.seen.channels.borrow();
    channels.values().filter(|channel| channel.ready_state() == RtcDataChannelState::Open).count()
}

async fn connected(wire: &Wire) -> (End, End) {
    let (host, phone) = (end(HOST, secret(), wire), end(PHONE, secret(), wire));
    host.mesh.connect(PHONE, Lane::Control);
    host.mesh.connect(PHONE, Lane::Bulk);
    deliver(wire, &[(&HOST, &host), (&PHONE, &phone)], || open(&host) + open(&phone) == 4).await;
    (host, phone)
}

#[wasm_bindgen_test]
async fn two_ends_talk_over_both_lanes() {
    let wire = Wire::default();
    let (host, phone) = connected(&wire).await;
    for (lane, channel) in &*host.seen.channels.borrow() {
        channel.send_with_str(&format!("to the phone by {lane:?}")).unwrap();
    }
    for (lane, channel) in &*phone.seen.channels.borrow() {
        channel.send_with_str(&format!("to the host by {lane:?}")).unwrap();
    }
    let both = || host.seen.heard.borrow().len() + phone.seen.heard.borrow().len() == 4;
    deliver(&wire, &[(&HOST, &host), (&PHONE, &phone)], both).await;
    let mut heard = phone.seen.heard.take();
    heard.sort();
    assert_eq!(
        heard,
        [
            (Lane::Control, "to the phone by Control".to_owned()),
            (Lane::Bulk, "to the phone by Bulk".to_owned())
        ]
    );
    assert!(host.mesh.stands(PHONE) && phone.mesh.stands(HOST));
    assert!(host.seen.gone.borrow().is_empty() && phone.seen.gone.borrow().is_empty());
    assert_eq!((host.mesh.refused(), phone.mesh.refused()), (0, 0));
}

#[wasm_bindgen_test]
async fn a_forged_envelope_is_counted_and_changes_nothing() {
    let wire = Wire::default();
    let phone = end(PHONE, secret(), &wire);
    let sdp = "v=0".to_owned();
    let offer = |lane| Negotiation::Offer { lane, attempt: 0, sdp: sdp.clone() }.to_bytes();
    let stranger = RoomSecret::from_bytes([0; 16]).sealer();
    let member = secret().sealer();
    let forged = [
        stranger.seal(HOST, PHONE, [1; 24], &offer(Lane::Control)),
        member.seal(HOST, PeerId(3), [2; 24], &offer(Lane::Control)),
        member.seal(HOST, PHONE, [3; 24], b"not JSON"),
        member.seal(
            HOST,
            PHONE,
            [4; 24],
            &Negotiation::Offer { lane: Lane::Bulk, attempt: 0, sdp: "v".repeat(40_000) }.to_bytes(),
        ),
        "A".repeat(70_000),
        String::new(),
    ];
    for sealed in &forged {
        phone.mesh.receive(HOST, sealed);
    }
    // A member may not say what only the host may, nor speak of a connection that there is not.
    phone.mesh.receive(PeerId(3), &member.seal(PeerId(3), PHONE, [5; 24], &offer(Lane::Control)));
    let answer = Negotiation::Answer { lane: Lane::Bulk, attempt: 0, sdp: sdp.clone() }.to_bytes();
    phone.mesh.receive(HOST, &member.seal(HOST, PHONE, [6; 24], &answer));
    let candidate = Candidate { candidate: "candidate:1".into(), mid: None, line: None };
    let (lane, attempt, from_offerer) = (Lane::Bulk, 0, true);
    let candidate = Negotiation::Candidate { lane, attempt, from_offerer, candidate }.to_bytes();
    phone.mesh.receive(HOST, &member.seal(HOST, PHONE, [7; 24], &candidate));
    assert_eq!(phone.mesh.refused(), 9);
    assert!(!phone.mesh.has(HOST) && !phone.mesh.has(PeerId(3)));
    assert!(wire.borrow().is_empty());
}

#[wasm_bindgen_test]
async fn a_description_that_the_browser_refuses_ends_the_connection_in_words() {
    let wire = Wire::default();
    let phone = end(PHONE, secret(), &wire);
    let offer = Negotiation::Offer { lane: Lane::Bulk, attempt: 0, sdp: "nonsense".into() };
    phone.mesh.receive(HOST, &secret().sealer().seal(HOST, PHONE, [1; 24], &offer.to_bytes()));
    deliver(&wire, &[], || !phone.seen.gone.borrow().is_empty()).await;
    assert!(matches!(&phone.seen.gone.borrow()[..], [Gone::Browser(_)]));
    assert!(!phone.mesh.has(HOST));
}

#[wasm_bindgen_test]
async fn a_second_offer_replaces_the_connection() {
    let wire = Wire::default();
    let (host, phone) = connected(&wire).await;
    let first = phone.seen.channels.borrow()[&Lane::Bulk].clone();
    // Channels open a moment before the connection says that it stands; until then an offer is not repeated.
    deliver(&wire, &[(&HOST, &host), (&PHONE, &phone)], || host.mesh.stands(PHONE)).await;
    host.mesh.connect(PHONE, Lane::Bulk);
    let again = || {
        let now = phone.seen.channels.borrow()[&Lane::Bulk].clone();
        now != first && now.ready_state() == RtcDataChannelState::Open && open(&host) == 2
    };
    deliver(&wire, &[(&HOST, &host), (&PHONE, &phone)], again).await;
    assert!(host.seen.gone.borrow().is_empty() && phone.seen.gone.borrow().is_empty());
    assert_ne!(first.ready_state(), RtcDataChannelState::Open);
}

#[wasm_bindgen_test]
async fn who_asks_twice_for_a_connection_does_not_begin_it_again() {
    let wire = Wire::default();
    let (host, phone) = (end(HOST, secret(), &wire), end(PHONE, secret(), &wire));
    let ends = [(&HOST, &host), (&PHONE, &phone)];
    host.mesh.connect(PHONE, Lane::Bulk);
    host.mesh.connect(PHONE, Lane::Bulk);
    // The other end has the offer, and its answer is not delivered yet.
    deliver(&wire, &ends, || phone.mesh.has(HOST)).await;
    host.mesh.connect(PHONE, Lane::Bulk);
    deliver(&wire, &ends, || open(&host) + open(&phone) == 2).await;
    assert_eq!((host.seen.made.get(), phone.seen.made.get()), (1, 1));
    assert_eq!((host.mesh.refused(), phone.mesh.refused()), (0, 0));
}

/// As names for addresses that nobody could look up.
#[wasm_bindgen_test]
async fn a_connection_whose_candidates_were_of_no_use_is_tried_again() {
    let (said, wire) = (Wire::default(), Wire::default());
    let (host, phone) = (end(HOST, secret(), &said), end(PHONE, secret(), &said));
    let ends = [(&HOST, &host), (&PHONE, &phone)];
    let offers = Cell::new(0);
    // No candidate passes before the second offer.
    let carry = || {
        for (from, to, sealed) in said.take() {
            let plain = secret().sealer().open(from, to, &sealed).unwrap();
            let message = Negotiation::from_bytes(&plain).unwrap();
            offers.set(offers.get() + usize::from(matches!(message, Negotiation::Offer { .. })));
            if offers.get() == 2 || !matches!(message, Negotiation::Candidate { .. }) {
                wire.borrow_mut().push((from, to, sealed));
            }
        }
    };
    host.mesh.connect(PHONE, Lane::Bulk);
    let both_open = || {
        carry();
        open(&host) + open(&phone) == 2
    };
    deliver(&wire, &ends, both_open).await;
    assert_eq!(offers.get(), 2);
    assert_eq!((host.seen.made.get(), phone.seen.made.get()), (1, 1));
    assert!(host.seen.gone.borrow().is_empty() && phone.seen.gone.borrow().is_empty());
    assert_eq!((host.mesh.refused(), phone.mesh.refused()), (0, 0));
}

#[wasm_bindgen_test]
async fn a_peer_that_left_is_closed_at_once_and_told_once() {
    let wire = Wire::default();
    let (host, phone) = connected(&wire).await;
    host.mesh.left(PHONE);
    host.mesh.left(PHONE);
    assert_eq!(*host.seen.gone.borrow(), [Gone::Left]);
    assert!(!host.mesh.has(PHONE));
    TimeoutFuture::new(0).await;
    assert_eq!(open(&host), 0);
    drop(phone);
}
