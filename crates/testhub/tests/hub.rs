//! A model read from a hub that fails in every way that hubs and networks do.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::time::Duration;

use baton_formats::files::{FilesSource, Patience, Trouble, hex, sha256};
use baton_formats::{Files, FilesError, Manifest, MemoryCache, UrlFiles, VerifiedFiles, read_all};
use baton_testhub::{Busy, Cut, Drip, Place, TestHub};
use futures::executor::block_on;

const REPO: &str = "org/name";
const WEIGHTS: &str = "model.safetensors";
const MIB: u64 = 1 << 20;

fn weights() -> Vec<u8> {
    (0..2 * MIB + 4321).map(|at| (at % 251) as u8).collect()
}

fn hub() -> TestHub {
    let hub = TestHub::start().unwrap();
    hub.push(REPO, "main", [("config.json".to_owned(), b"{}".to_vec()), (WEIGHTS.to_owned(), weights())]);
    hub
}

/// Waits that a test can afford.
fn quick() -> Patience {
    Patience {
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(4),
        seed: Some(1),
        ..Patience::default()
    }
}

fn open(hub: &TestHub) -> UrlFiles {
    UrlFiles::with_patience(&hub.url(REPO, "main"), quick()).unwrap()
}

fn read(files: &impl Files, range: std::ops::Range<u64>) -> Result<Vec<u8>, FilesError> {
    block_on(files.read(WEIGHTS, range))
}

fn part(range: std::ops::Range<u64>) -> Vec<u8> {
    weights()[range.start as usize..range.end as usize].to_vec()
}

/// The ranges of the weights that the hub was asked for and sent.
fn ranges(hub: &TestHub) -> Vec<(u64, u64)> {
    let log = hub.log().into_iter();
    let bytes = log.filter(|request| request.place == Place::Bytes && request.name == WEIGHTS);
    bytes
        .filter(|request| request.status == 206)
        .map(|request| request.range.unwrap())
        .map(|r| (r.start, r.end))
        .collect()
}

#[test]
fn a_model_is_read_by_range_through_redirects() {
    let hub = hub();
    let files = open(&hub);
    assert_eq!(block_on(read_all(&files, "config.json", 100)).unwrap(), b"{}");
    assert_eq!(block_on(files.size(WEIGHTS)), Ok(weights().len() as u64));
    assert_eq!(read(&files, 1000..MIB).unwrap(), part(1000..MIB));
    assert_eq!(read(&files, 5..6).unwrap(), part(5..6));
    assert_eq!(hub.sent(WEIGHTS), 1 + (MIB - 1000) + 1);
    // The hub itself counts requests: it is asked once where the bytes are.
    let redirects = hub.log().iter().filter(|r| r.place == Place::Hub && r.name == WEIGHTS).count();
    assert_eq!(redirects, 1);
    let missing = FilesError::NotFound { name: "none.bin".to_owned() };
    assert_eq!(block_on(files.size("none.bin")), Err(missing));
}

#[test]
fn a_repository_that_is_not_there_is_an_error_at_once() {
    let hub = hub();
    let files = UrlFiles::with_patience(&hub.url("org/secret", "main"), quick()).unwrap();
    let refused = FilesError::Http { name: WEIGHTS.to_owned(), status: 401 };
    assert_eq!(block_on(files.size(WEIGHTS)), Err(refused));
    let files = UrlFiles::with_patience(&hub.url(REPO, "v9"), quick()).unwrap();
    assert_eq!(block_on(files.size(WEIGHTS)), Err(FilesError::NotFound { name: WEIGHTS.to_owned() }));
}

#[test]
fn expired_signatures_are_asked_for_anew() {
    let hub = hub();
    hub.faults(|faults| faults.signature_uses = Some(2));
    let files = open(&hub);
    for at in 0..8 {
        let range = at * 1000..(at + 1) * 1000;
        assert_eq!(read(&files, range.clone()).unwrap(), part(range));
    }
    let log = hub.log();
    let count = |place, status| {
        log.iter().filter(|r| r.name == WEIGHTS && (r.place, r.status) == (place, status)).count()
    };
    assert_eq!([count(Place::Hub, 302), count(Place::Bytes, 206), count(Place::Bytes, 403)], [4, 8, 3]);
    assert_eq!(hub.sent(WEIGHTS), 8000);
}

#[test]
fn signatures_that_never_work_are_an_error_in_words() {
    let hub = hub();
    hub.faults(|faults| faults.signature_age = Some(Duration::ZERO));
    let error = read(&open(&hub), 0..10).unwrap_err();
    assert_eq!(error, FilesError::Http { name: WEIGHTS.to_owned(), status: 403 });
    assert!(hub.log().len() < 10, "{:?}", hub.log());
}

#[test]
fn a_cut_body_goes_on_where_it_ended() {
    let hub = hub();
    hub.faults(|faults| faults.cut = Some(Cut { after: 300_000, times: 3 }));
    assert_eq!(read(&open(&hub), 0..MIB).unwrap(), part(0..MIB));
    assert_eq!(hub.sent(WEIGHTS), MIB);
    assert_eq!(ranges(&hub), [(0, MIB), (300_000, MIB), (600_000, MIB), (900_000, MIB)]);
}

#[test]
fn a_connection_that_always_breaks_early_is_given_up_with_what_came() {
    let hub = hub();
    hub.faults(|faults| faults.cut = Some(Cut { after: 10, times: u32::MAX }));
    let error = read(&open(&hub), 0..MIB).unwrap_err();
    let FilesError::GaveUp { attempts: 6, trouble: Trouble::Cut { got: 60, wanted: MIB, .. }, .. } = &error
    else {
        panic!("{error}");
    };
    assert!(error.to_string().contains("60 of 1048576 bytes came"), "{error}");
}

#[test]
fn a_long_file_over_a_short_lived_connection_arrives() {
    let hub = hub();
    // More cuts than attempts: each brought enough to count as progress.
    hub.faults(|faults| faults.cut = Some(Cut { after: 80_000, times: u32::MAX }));
    assert_eq!(read(&open(&hub), 0..MIB).unwrap(), part(0..MIB));
    assert_eq!(hub.sent(WEIGHTS), MIB);
}

#[test]
fn a_server_with_too_much_to_do_is_waited_for() {
    for (status, retry_after) in [(429, Some(0)), (503, None), (500, None)] {
        let hub = hub();
        let files = open(&hub);
        assert!(block_on(files.pin()).unwrap().is_some());
        hub.faults(|faults| faults.busy = Some(Busy { status, retry_after, times: 5 }));
        assert_eq!(read(&files, 0..100).unwrap(), part(0..100));
    }
}

#[test]
fn a_server_that_stays_busy_or_asks_for_hours_is_given_up() {
    for (retry_after, attempts) in [(None, 6), (Some(7200), 1)] {
        let hub = hub();
        let files = open(&hub);
        assert!(block_on(files.pin()).unwrap().is_some());
        hub.faults(|faults| faults.busy = Some(Busy { status: 429, retry_after, times: u32::MAX }));
        let name = WEIGHTS.to_owned();
        let trouble = Trouble::Busy { status: 429 };
        assert_eq!(read(&files, 0..100), Err(FilesError::GaveUp { name, attempts, trouble }));
    }
}

#[test]
fn a_trickle_is_given_up_in_words_and_a_slow_stream_is_not() {
    let slow = |bytes, size: u64| {
        let hub = hub();
        let every = Duration::from_millis(20);
        hub.faults(|faults| faults.drip = Some(Drip { bytes, every, times: u32::MAX }));
        let patience = Patience { answer: Duration::from_millis(250), ..quick() };
        let files = UrlFiles::with_patience(&hub.url(REPO, "main"), patience).unwrap();
        read(&files, 0..size)
    };
    let error = slow(1, 100_000).unwrap_err();
    assert!(matches!(error, FilesError::GaveUp { trouble: Trouble::Cut { got: 1.., .. }, .. }), "{error}");
    assert!(error.to_string().contains("after 0.25 seconds"), "{error}");
    // Not all there in one answer's time, but there in several.
    assert_eq!(slow(60_000, 2 * MIB).unwrap(), part(0..2 * MIB));
}

#[test]
fn another_range_and_too_many_bytes_are_refused() {
    let hub = hub();
    let files = open(&hub);
    hub.faults(|faults| faults.shifted_ranges = 1);
    let wrong = read(&files, 10..20).unwrap_err();
    let FilesError::WrongRange { wanted, got, .. } = wrong else { panic!("{wrong}") };
    assert_eq!((wanted.as_str(), got.as_str()), ("10-19", "bytes 11-20/2101473"));
    hub.faults(|faults| faults.too_long = 1);
    let excess = FilesError::Excess { name: WEIGHTS.to_owned(), wanted: 10 };
    assert_eq!(read(&files, 10..20), Err(excess));
    assert_eq!(read(&files, 10..20).unwrap(), part(10..20));
}

#[test]
fn a_redirect_in_a_circle_ends() {
    let hub = hub();
    hub.faults(|faults| faults.redirect_loop = true);
    let error = read(&open(&hub), 0..10).unwrap_err();
    assert!(error.to_string().contains("redirected in a circle"), "{error}");
}

#[test]
fn a_server_without_ranges_sends_small_files_only() {
    let hub = hub();
    hub.push(REPO, "large", [(WEIGHTS.to_owned(), vec![0; 17 << 20])]);
    hub.faults(|faults| faults.whole_files = true);
    let files = open(&hub);
    assert_eq!(read(&files, 10..20).unwrap(), part(10..20));
    assert_eq!(read(&files, 100..200).unwrap(), part(100..200));
    assert_eq!(hub.sent(WEIGHTS), weights().len() as u64);
    let files = UrlFiles::with_patience(&hub.url(REPO, "large"), quick()).unwrap();
    let limit = 16 << 20;
    assert_eq!(read(&files, 10..20), Err(FilesError::NoRanges { name: WEIGHTS.to_owned(), limit }));
}

#[test]
fn a_pinned_revision_stays_when_the_branch_moves() {
    for hide_commit in [false, true] {
        let hub = hub();
        hub.faults(|faults| faults.hide_commit = hide_commit);
        let before = hub.push(REPO, "main", [(WEIGHTS.to_owned(), vec![1; 500])]);
        let files = open(&hub);
        assert_eq!(files.pinned(), None);
        assert_eq!(read(&files, 0..5).unwrap(), [1; 5]);
        assert_eq!(files.pinned(), Some(before.as_str()));
        let after = hub.push(REPO, "main", [(WEIGHTS.to_owned(), vec![2; 400])]);
        assert_ne!(before, after);
        assert_eq!(read(&files, 5..500).unwrap(), [1; 495]);
        // Another device, told by the address.
        let base = files.pinned_base();
        assert_eq!(base, format!("{}/{REPO}/resolve/{before}/", hub.address()));
        let other = UrlFiles::with_patience(&base, quick()).unwrap();
        assert_eq!(block_on(other.size(WEIGHTS)), Ok(500));
        assert_eq!(read(&open(&hub), 0..5).unwrap(), [2; 5]);
    }
}

#[test]
fn a_plain_file_that_changes_while_it_is_read_is_told() {
    let hub = hub();
    // The bytes' own address, as a web folder.
    let folder = |commit: &str| format!("{}/api/resolve-cache/models/{REPO}/{commit}", hub.address());
    let commit = hub.push(REPO, "main", [("a.json".to_owned(), vec![1; 50])]);
    let files = UrlFiles::with_patience(&folder(&commit), quick()).unwrap();
    assert!(block_on(files.read("a.json", 0..5)).is_ok());
    assert_eq!((block_on(files.pin()), files.pinned()), (Ok(None), None));
    hub.replace(REPO, &commit, "a.json", vec![2; 50]);
    let error = block_on(files.read("a.json", 5..9)).unwrap_err();
    assert!(matches!(error, FilesError::Changed { .. }), "{error}");
    hub.replace(REPO, &commit, "a.json", vec![1; 60]);
    let error = block_on(files.read("a.json", 5..9)).unwrap_err();
    assert!(
        matches!(&error, FilesError::Changed { was, now, .. } if was == "50 bytes" && now == "60 bytes"),
        "{error}"
    );
}

#[test]
fn a_changed_byte_is_refused_by_its_hash() {
    let hub = hub();
    let names = ["config.json", WEIGHTS].map(str::to_owned);
    let manifest = block_on(Manifest::make(&open(&hub), &names, &(), |_| ())).unwrap();
    hub.faults(|faults| faults.changed_byte = Some((WEIGHTS.to_owned(), MIB + 7)));
    let source = FilesSource::new(open(&hub), &manifest);
    let files = VerifiedFiles::new(manifest, vec![source], ()).unwrap();
    assert_eq!(read(&files, 0..1000).unwrap(), part(0..1000));
    let error = read(&files, MIB - 10..MIB + 1).unwrap_err();
    let mut changed = part(MIB..2 * MIB);
    changed[7] ^= 1;
    let wrong = FilesError::WrongHash {
        name: WEIGHTS.to_owned(),
        start: MIB,
        end: 2 * MIB,
        expected: hex(&sha256(&part(MIB..2 * MIB))),
        found: hex(&sha256(&changed)),
    };
    assert_eq!(error, wrong);
    assert_eq!(files.stats().refused, 1);
}

#[test]
fn the_hub_is_asked_once_for_all_readers_of_a_cache() {
    let hub = hub();
    let names = ["config.json", WEIGHTS].map(str::to_owned);
    let cache = MemoryCache::new(u64::MAX);
    let manifest = block_on(Manifest::make(&open(&hub), &names, &cache, |_| ())).unwrap();
    let size = weights().len() as u64;
    // One byte to learn the size.
    assert_eq!(hub.sent(WEIGHTS), size + 1);
    for _ in 0..2 {
        let source = FilesSource::new(open(&hub), &manifest);
        let files = VerifiedFiles::new(manifest.clone(), vec![source], &cache).unwrap();
        assert_eq!(read(&files, 0..size).unwrap(), weights());
        assert_eq!(files.stats().sources, [0]);
    }
    assert_eq!(hub.sent(WEIGHTS), size + 1);
}
