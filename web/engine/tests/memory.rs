//! A browser's memory is tried out, and what was found is there for the next visit.
#![cfg(target_arch = "wasm32")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use baton_worker::memory::Memory;
use std::cell::Cell;
use std::time::Duration;
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};

wasm_bindgen_test_configure!(run_in_dedicated_worker);

const MIB: u64 = 1 << 20;

/// What is spared, and in how many pieces it was tried.
async fn spare(memory: &Memory, most: u64, held: u64) -> (u64, u32) {
    let pieces = Cell::new(0);
    let breathe = async || pieces.set(pieces.get() + 1);
    (memory.spare(most, held, || Duration::ZERO, breathe).await, pieces.get())
}

#[wasm_bindgen_test]
async fn what_was_tried_is_remembered_and_what_broke_off_is_not_repeated() {
    // The disk outlives a test.
    let folder = format!("memory-{}", js_sys::Date::now());
    let open = async |visit: u64, left: &[u64]| Memory::open_in(&folder, visit, left).await;
    let first = open(1, &[]).await;
    assert_eq!(spare(&first, 70 * MIB + 5, 0).await, (70 * MIB + 5, 2));
    assert_eq!(spare(&first, 70 * MIB + 5, 0).await, (70 * MIB + 5, 0));
    assert_eq!(spare(&first, 3, 0).await, (3, 0));
    // Another tab of the same time has a note of its own.
    let beside = open(2, &[]).await;
    assert_eq!(spare(&beside, 10 * MIB, 0).await, (10 * MIB, 1));
    // What is held already is not taken again.
    assert_eq!(spare(&beside, 20 * MIB, 15 * MIB).await, (20 * MIB, 1));
    drop(beside);
    first.holding(60 * MIB);
    drop(first);
    // A person closed it.
    let second = open(3, &[1]).await;
    assert_eq!(spare(&second, 70 * MIB, 0).await, (70 * MIB, 0));
    second.holding(200 * MIB);
    drop(second);
    // Nobody did.
    let third = open(4, &[1]).await;
    assert_eq!(spare(&third, 300 * MIB, 0).await, (150 * MIB, 3));
    third.holding(140 * MIB);
    third.holding(0);
    drop(third);
    let fourth = open(5, &[]).await;
    assert_eq!(spare(&fourth, 300 * MIB, 0).await, (150 * MIB, 0));
    // Its own page ended the worker before this one.
    fourth.holding(150 * MIB);
    drop(fourth);
    assert_eq!(spare(&open(5, &[]).await, 300 * MIB, 0).await, (150 * MIB, 0));
}
