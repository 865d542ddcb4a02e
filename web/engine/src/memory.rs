//! How much memory this browser can spare: tried out in pieces, and noted down on its own disk before each of them.
//!
//! What the notes mean is in [`baton_engine::memory`]; here is what it takes to write them and to try.

use baton_engine::memory::{Note, PIECE, UNTRIED};
use js_sys::{Array, ArrayBuffer, Function, Reflect, Uint8Array};
use std::cell::{Cell, RefCell};
use std::time::Duration;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    FileSystemDirectoryHandle, FileSystemFileHandle, FileSystemGetDirectoryOptions, FileSystemGetFileOptions,
    FileSystemReadWriteOptions, FileSystemSyncAccessHandle, StorageManager,
};

/// Where the notes are.
const FOLDER: &str = "baton-memory";
/// Each worker that lives holds a note of its own; so many may live at once.
const NOTES: usize = 8;
/// What a wasm module can address.
const ADDRESSABLE: u64 = 4 << 30;
/// A piece that takes longer is swapped out already.
const SLOW: Duration = Duration::from_secs(1);
/// Random bytes, so that a system that compresses memory gains nothing.
const PATTERN: usize = 1 << 20;
/// `crypto.getRandomValues` gives no more at once.
const RANDOM: usize = 1 << 16;
const DAY: f64 = 86_400_000.0;

/// What a phone's browser may be asked for without it being a trial of its owner's patience: iOS kills a tab at about
/// 1.5 GB, the page and the engine included.
const PHONE: u64 = 1 << 30;

/// How far memory is tried on a device of this kind.
fn carefully() -> u64 {
    let agent =
        property(&property(&js_sys::global(), "navigator"), "userAgent").as_string().unwrap_or_default();
    // An iPad says that it is a Mac; so every Safari is taken for a phone's.
    let phone = ["Android", "iPhone", "iPad", "Mobile"].iter().any(|word| agent.contains(word));
    let safari = agent.contains("Safari") && !agent.contains("Chrom");
    if phone || safari { PHONE } else { u64::MAX }
}

/// This browser's memory, and the note on it.
pub struct Memory {
    /// Where there is none, nothing is tried.
    disk: Option<FileSystemSyncAccessHandle>,
    note: RefCell<Note>,
    visit: u64,
    /// Bytes of what is trained.
    holding: Cell<u64>,
}

impl Memory {
    /// Reads what earlier visits left. `visit` is this one's number, `left` are those that a person ended or had out of
    /// sight at the end.
    pub async fn open(visit: u64, left: &[u64]) -> Self {
        Self::open_in(FOLDER, visit, left).await
    }

    /// The same in a folder of another name.
    pub async fn open_in(folder: &str, visit: u64, left: &[u64]) -> Self {
        let disk = disk(folder).await;
        let mut note = Note::default();
        if let Some(disk) = &disk {
            let mut bytes = vec![0; Note::LENGTH];
            let read = disk.read_with_u8_array_and_options(&mut bytes, &start());
            bytes.truncate(read.unwrap_or(0.0) as usize);
            note = Note::read(&bytes);
        }
        let day = (js_sys::Date::now() / DAY) as u64;
        // A worker that its page has ended, and not the browser, was of this visit.
        note.begin(day, |other| other == visit || left.contains(&other));
        let memory = Self { disk, note: RefCell::new(note), visit, holding: Cell::new(0) };
        memory.keep();
        memory
    }

    /// Bytes that can be spared for what is trained, no more than `most`; `held` of them are taken already. `breathe`
    /// lets other work run between the pieces, `now` is a clock.
    pub async fn spare(
        &self,
        most: u64,
        held: u64,
        now: impl Fn() -> Duration,
        breathe: impl AsyncFn(),
    ) -> u64 {
        let used = core::arch::wasm32::memory_size::<0>() as u64 * 65_536;
        let most = most.min(ADDRESSABLE.saturating_sub(used).saturating_add(held)).min(carefully());
        if self.disk.is_none() {
            // A trial that kills the tab would be made again at every visit. `deviceMemory` is a hint of few steps that
            // Chromium alone gives: it can only lower what is taken.
            let hint = property(&property(&js_sys::global(), "navigator"), "deviceMemory").as_f64();
            let hint = hint.map_or(u64::MAX, |gibibytes| (gibibytes * f64::from(1 << 28)) as u64);
            return most.min(UNTRIED).min(hint);
        }
        let (mut tried, mut refused) = (held, false);
        let mut pieces = Vec::new();
        let mut pattern = None;
        loop {
            let Some(bytes) = self.note.borrow().next(most, tried) else { break };
            self.change(|note| note.trying(self.visit, bytes));
            breathe().await;
            let began = now();
            let pattern = pattern.get_or_insert_with(random);
            let Some(piece) = taken(bytes - tried, pattern) else {
                refused = true;
                break;
            };
            pieces.push(piece);
            tried = bytes;
            if now().saturating_sub(began) > SLOW {
                refused = true;
                break;
            }
        }
        pieces.iter().for_each(release);
        drop(pieces);
        self.change(|note| {
            note.tried(tried, refused);
            note.holding(self.visit, self.holding.get());
        });
        self.note.borrow().usable(most)
    }

    /// So many bytes are about to be taken for what is trained; 0 when they are let go.
    pub fn holding(&self, bytes: u64) {
        self.holding.set(bytes);
        self.change(|note| note.holding(self.visit, bytes));
    }

    fn change(&self, change: impl FnOnce(&mut Note)) {
        change(&mut self.note.borrow_mut());
        self.keep();
    }

    /// Writes the note over the one before, and waits until it is there.
    fn keep(&self) {
        let Some(disk) = &self.disk else { return };
        let bytes = self.note.borrow().write();
        // A disk that is full keeps an older note: it errs on the side of the next visit's care or its patience.
        if disk.write_with_u8_array_and_options(&bytes, &start()).is_ok() {
            drop(disk.flush());
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(disk) = &self.disk {
            disk.close();
        }
    }
}

/// The first note that no living worker holds: the lock on it ends with the worker, however that ends.
async fn disk(folder: &str) -> Option<FileSystemSyncAccessHandle> {
    let storage = property(&property(&js_sys::global(), "navigator"), "storage");
    // What is missing is `undefined`, and must not be called.
    property(&storage, "getDirectory").is_function().then_some(())?;
    let storage: StorageManager = storage.unchecked_into();
    let root: FileSystemDirectoryHandle =
        JsFuture::from(storage.get_directory()).await.ok()?.dyn_into().ok()?;
    let options = FileSystemGetDirectoryOptions::new();
    options.set_create(true);
    let folder = JsFuture::from(root.get_directory_handle_with_options(folder, &options)).await.ok()?;
    let folder: FileSystemDirectoryHandle = folder.dyn_into().ok()?;
    for number in 0..NOTES {
        let options = FileSystemGetFileOptions::new();
        options.set_create(true);
        let file = JsFuture::from(folder.get_file_handle_with_options(&number.to_string(), &options)).await;
        let file: FileSystemFileHandle = file.ok()?.dyn_into().ok()?;
        property(&file, "createSyncAccessHandle").is_function().then_some(())?;
        if let Ok(handle) = JsFuture::from(file.create_sync_access_handle()).await {
            return handle.dyn_into().ok();
        }
    }
    None
}

fn start() -> FileSystemReadWriteOptions {
    let options = FileSystemReadWriteOptions::new();
    options.set_at(0.0);
    options
}

fn property(of: &JsValue, name: &str) -> JsValue {
    Reflect::get(of, &JsValue::from_str(name)).unwrap_or(JsValue::UNDEFINED)
}

/// A random number, if the browser gives one.
pub fn secret() -> u64 {
    let bytes = Uint8Array::new_with_length(8);
    let crypto = property(&js_sys::global(), "crypto");
    if let Ok(random) = property(&crypto, "getRandomValues").dyn_into::<Function>() {
        // Without it the checks of other devices can be foretold; they are made all the same.
        let _ = random.call1(&crypto, &bytes);
    }
    let mut number = [0; 8];
    bytes.copy_to(&mut number);
    u64::from_le_bytes(number)
}

/// Random bytes, or where there are none some that are as good to fill memory with.
fn random() -> Uint8Array {
    let pattern = Uint8Array::new_with_length(PATTERN as u32);
    let crypto = property(&js_sys::global(), "crypto");
    let random = property(&crypto, "getRandomValues").dyn_into::<Function>();
    for from in (0..PATTERN).step_by(RANDOM) {
        let part = pattern.subarray(from as u32, (from + RANDOM) as u32);
        let filled = random.as_ref().is_ok_and(|random| random.call1(&crypto, &part).is_ok());
        if !filled {
            part.fill((from / RANDOM) as u8 + 1, 0, RANDOM as u32);
        }
    }
    pattern
}

/// So many bytes beside wasm's own memory, every page of them written; none if the browser refuses.
fn taken(bytes: u64, pattern: &Uint8Array) -> Option<Uint8Array> {
    // One that throws has to be called so that it may.
    let class: Function = property(&js_sys::global(), "Uint8Array").dyn_into().ok()?;
    let length = bytes.min(PIECE) as f64;
    let piece = Reflect::construct(&class, &Array::of1(&length.into())).ok()?;
    let piece: Uint8Array = piece.dyn_into().ok()?;
    for from in (0..piece.length()).step_by(PATTERN) {
        let part = pattern.subarray(0, (piece.length() - from).min(PATTERN as u32));
        piece.set(&part, from);
    }
    Some(piece)
}

/// Gives the memory back at once where the browser can; elsewhere when it collects garbage.
fn release(piece: &Uint8Array) {
    let buffer: ArrayBuffer = piece.buffer();
    if let Ok(transfer) = property(&buffer, "transfer").dyn_into::<Function>() {
        // What it gives is empty.
        drop(transfer.call1(&buffer, &0.into()));
    }
}
