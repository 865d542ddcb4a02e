//! The cache on the browser's own disk, in a worker, where a run keeps its chunks.
#![cfg(target_arch = "wasm32")]
#![allow(clippy::unwrap_used)] // clippy does not see that these are tests

use baton_formats::files::{FilesSource, Hash, OpfsCache, hex, sha256};
use baton_formats::{ChunkCache, Files, Manifest, MemoryFiles, VerifiedFiles};
use js_sys::{Function, Promise};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};

wasm_bindgen_test_configure!(run_in_dedicated_worker);

fn chunk(byte: u8) -> (Hash, Vec<u8>) {
    (sha256(&[byte; 1000]), vec![byte; 1000])
}

/// An empty cache in a folder of its own: the disk outlives a test.
async fn fresh(folder: &str, limit: u64) -> OpfsCache {
    let cache = OpfsCache::open_in(folder, Some(limit)).await;
    assert!(cache.is_there());
    cache.clear().await.unwrap();
    cache
}

/// Runs an async JavaScript function's body with `folder` (its handle) and `name`.
async fn script(folder: &str, name: &str, body: &str) -> JsValue {
    let open = format!(
        "return (async () => {{ const root = await navigator.storage.getDirectory();
           const folder = await root.getDirectoryHandle('{folder}'); const name = '{name}'; {body} }})()"
    );
    let promise = Function::new_no_args(&open).call0(&JsValue::NULL).unwrap();
    JsFuture::from(promise.unchecked_into::<Promise>()).await.unwrap()
}

/// Makes sure that the next file has a later date.
async fn tick() {
    let later = "return new Promise(resolve => setTimeout(resolve, 5))";
    let promise = Function::new_no_args(later).call0(&JsValue::NULL).unwrap();
    JsFuture::from(promise.unchecked_into::<Promise>()).await.unwrap();
}

#[wasm_bindgen_test]
async fn what_is_put_is_there_for_every_tab_and_the_next_visit() {
    let cache = fresh("put", 10_000).await;
    let (hash, bytes) = chunk(1);
    assert_eq!(cache.get(&hash).await, None);
    cache.put(&hash, &bytes).await;
    cache.put(&hash, &bytes).await;
    let other = OpfsCache::open_in("put", None).await;
    assert_eq!(other.get(&hash).await, Some(bytes));
    assert_eq!(other.usage().await, 1000);
    other.clear().await.unwrap();
    assert_eq!((cache.usage().await, cache.get(&hash).await), (0, None));
}

#[wasm_bindgen_test]
async fn all_get_a_chunk_that_many_read_at_once() {
    let bytes: Vec<u8> = (0..1 << 20).map(|i: u32| i as u8).collect();
    let hash = sha256(&bytes);
    fresh("crowd", 4 << 20).await.put(&hash, &bytes).await;
    // As three tabs, of which a host's reads for itself and for its devices.
    let tabs = [OpfsCache::open_in("crowd", None).await, OpfsCache::open_in("crowd", None).await];
    let host = OpfsCache::open_in("crowd", None).await;
    let readers = tabs.iter().chain(std::iter::repeat_n(&host, 10)).map(|cache| cache.get(&hash));
    let got = futures::future::join_all(readers).await;
    assert_eq!(got.iter().filter(|got| got.as_ref() == Some(&bytes)).count(), 12);
}

#[wasm_bindgen_test]
async fn the_least_recently_used_go_first() {
    let cache = fresh("evict", 3500).await;
    for byte in 1..=3 {
        cache.put(&chunk(byte).0, &chunk(byte).1).await;
        tick().await;
    }
    assert!(cache.get(&chunk(1).0).await.is_some());
    tick().await;
    cache.put(&chunk(4).0, &chunk(4).1).await;
    let mut there = Vec::new();
    for byte in 1..=4 {
        if cache.get(&chunk(byte).0).await.is_some() {
            there.push(byte);
        }
    }
    assert_eq!(there, [1, 3, 4]);
    assert_eq!(cache.usage().await, 3000);
    // More than it may hold at all: not kept, and nothing goes for it.
    cache.put(&sha256(&[9; 3501]), &[9; 3501]).await;
    assert_eq!(cache.usage().await, 3000);
}

#[wasm_bindgen_test]
async fn a_damaged_chunk_is_deleted_and_not_given() {
    let cache = fresh("damage", 10_000).await;
    let (hash, bytes) = chunk(1);
    let open = "const handle = await (await folder.getFileHandle(name)).createSyncAccessHandle();";
    for damage in
        ["handle.truncate(999);", "handle.truncate(0);", "handle.write(new Uint8Array([7]), { at: 500 });"]
    {
        cache.put(&hash, &bytes).await;
        script("damage", &hex(&hash), &format!("{open} {damage} handle.close();")).await;
        assert_eq!(cache.get(&hash).await, None, "{damage}");
        assert_eq!(cache.usage().await, 0);
    }
    cache.put(&hash, &bytes).await;
    assert_eq!(cache.get(&hash).await, Some(bytes));
}

#[wasm_bindgen_test]
async fn a_chunk_that_another_tab_holds_is_read_and_not_written() {
    let cache = fresh("locked", 10_000).await;
    let (hash, bytes) = chunk(1);
    cache.put(&hash, &bytes).await;
    let lock = "globalThis.held = await (await folder.getFileHandle(name, { create: true })).createSyncAccessHandle();";
    script("locked", &hex(&hash), lock).await;
    assert_eq!(cache.get(&hash).await.as_ref(), Some(&bytes));
    assert!(cache.clear().await.is_err());
    script("locked", "", "globalThis.held.close();").await;

    // As if the other tab had only begun to write.
    let (unwritten, bytes) = chunk(2);
    script("locked", &hex(&unwritten), lock).await;
    assert_eq!(cache.get(&unwritten).await, None);
    cache.put(&unwritten, &bytes).await;
    script("locked", "", "globalThis.held.close();").await;
    assert_eq!(cache.get(&unwritten).await, None);
    cache.put(&unwritten, &bytes).await;
    assert_eq!(cache.get(&unwritten).await, Some(bytes));
}

#[wasm_bindgen_test]
async fn a_full_disk_ends_the_growth_and_nothing_else() {
    let cache = fresh("full", 10_000).await;
    for byte in 1..=2 {
        cache.put(&chunk(byte).0, &chunk(byte).1).await;
        tick().await;
    }
    let full = "const proto = FileSystemSyncAccessHandle.prototype; globalThis.realWrite = proto.write;
                proto.write = () => { throw new DOMException('full', 'QuotaExceededError'); };";
    script("full", "", full).await;
    cache.put(&chunk(3).0, &chunk(3).1).await;
    let short = "FileSystemSyncAccessHandle.prototype.write = () => 10;";
    script("full", "", short).await;
    cache.put(&chunk(4).0, &chunk(4).1).await;
    script("full", "", "FileSystemSyncAccessHandle.prototype.write = globalThis.realWrite;").await;
    // Nothing torn was left, and what was there before the failures still is, or has made room.
    assert!(cache.usage().await <= 2000);
    assert_eq!(cache.get(&chunk(3).0).await, None);
    assert_eq!(cache.get(&chunk(4).0).await, None);
    // From now on the new takes the place of the old.
    cache.put(&chunk(5).0, &chunk(5).1).await;
    assert_eq!(cache.get(&chunk(5).0).await, Some(chunk(5).1));
    assert!(cache.usage().await <= 2000);
}

#[wasm_bindgen_test]
async fn half_of_a_small_quota_is_the_limit() {
    let set = "globalThis.realEstimate = StorageManager.prototype.estimate;
               StorageManager.prototype.estimate = async () => ({ quota: 5000, usage: 0 });";
    Function::new_no_args(set).call0(&JsValue::NULL).unwrap();
    let cache = OpfsCache::open_in("quota", None).await;
    let reset = "StorageManager.prototype.estimate = globalThis.realEstimate;";
    Function::new_no_args(reset).call0(&JsValue::NULL).unwrap();
    assert_eq!(cache.limit(), 2500);
    cache.clear().await.unwrap();
    for byte in 1..=5 {
        cache.put(&chunk(byte).0, &chunk(byte).1).await;
    }
    let used = cache.usage().await;
    assert!((1000..=2500).contains(&used), "{used}");
}

#[wasm_bindgen_test]
async fn without_a_disk_it_is_no_cache() {
    for missing in ["undefined", "() => Promise.reject(new DOMException('no', 'SecurityError'))"] {
        let set = format!(
            "globalThis.realDirectory = StorageManager.prototype.getDirectory;
             StorageManager.prototype.getDirectory = {missing};"
        );
        Function::new_no_args(&set).call0(&JsValue::NULL).unwrap();
        let cache = OpfsCache::open(None).await;
        let reset = "StorageManager.prototype.getDirectory = globalThis.realDirectory;";
        Function::new_no_args(reset).call0(&JsValue::NULL).unwrap();
        assert!(!cache.is_there());
        cache.put(&chunk(1).0, &chunk(1).1).await;
        assert_eq!((cache.get(&chunk(1).0).await, cache.usage().await), (None, 0));
        cache.clear().await.unwrap();
    }
}

#[wasm_bindgen_test]
async fn a_second_visit_reads_no_byte_of_the_model() {
    let cache = fresh("visit", 100 << 20).await;
    let bytes: Vec<u8> = (0..(2u32 << 20) + 77).map(|at| (at % 251) as u8).collect();
    let mut files = MemoryFiles::new();
    files.insert("model.safetensors", bytes.clone());
    let names = ["model.safetensors".to_owned()];
    let key = sha256(b"this model");
    let mut heard = 0;
    let first =
        Manifest::make_once(&files, &names, &cache, Some(&key), |bytes| heard += bytes).await.unwrap();
    assert_eq!(heard, bytes.len() as u64);

    let nothing = MemoryFiles::new();
    let again = OpfsCache::open_in("visit", None).await;
    let second = Manifest::make_once(&nothing, &names, &again, Some(&key), |_| ()).await.unwrap();
    assert_eq!(second, first);
    let source = FilesSource::new(nothing, &second);
    let verified = VerifiedFiles::new(second, vec![source], &again).unwrap();
    assert_eq!(verified.read("model.safetensors", 0..bytes.len() as u64).await.unwrap(), bytes);
    assert_eq!(verified.stats().cache, bytes.len() as u64);
}
