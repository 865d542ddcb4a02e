//! Chunks on the browser's own disk (OPFS), each in a file named by its sha256.

use std::cell::{Cell, RefCell};

use js_sys::{Date, Reflect, Uint8Array};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    File, FileSystemDirectoryHandle, FileSystemFileHandle, FileSystemGetDirectoryOptions,
    FileSystemGetFileOptions, FileSystemReadWriteOptions, FileSystemSyncAccessHandle, StorageEstimate,
    StorageManager,
};

use super::FilesError;
use super::cache::{ChunkCache, Entry, Hash, Kept, to_evict};
use super::http::describe;

/// How often a file is read that others touch at the same time.
const ATTEMPTS: u32 = 8;

/// No file is touched more often than once in so many milliseconds.
const TOUCH_MS: f64 = 60_000.0;

/// The folder of the chunks.
const FOLDER: &str = "baton-chunks";

/// What the cache may hold unless it is told otherwise: 2 GiB, and never more than half of what the browser gives the site.
const STANDARD_LIMIT: u64 = 2 << 30;

/// No chunk is larger (a manifest's are 4 MiB at most): a file that is was not written here.
const LONGEST: u64 = 16 << 20;

/// After so many chunks all files are counted anew, for other tabs write too.
const RECOUNT: u32 = 128;

/// Chunks on the browser's own disk; the least recently used go first. Several tabs of one site share it.
///
/// Writing needs a dedicated worker (`createSyncAccessHandle`; Safari has no other way, and none on the page). Reading,
/// counting and clearing work on the page too. Where there is no such disk (an insecure page, some private windows) it is
/// quietly no cache. When a file was last used is its date of change, so there is no index that could be torn or fought
/// over.
#[derive(Debug)]
pub struct OpfsCache {
    folder: Option<FileSystemDirectoryHandle>,
    /// Whether files can be written here, and not on the page.
    writable: bool,
    limit: Cell<u64>,
    /// The bytes held, as far as this tab knows; `None` until they are counted.
    held: Cell<Option<u64>>,
    /// Chunks written since they were.
    written: Cell<u32>,
    /// What is being written: a second writer of the same bytes need not wait.
    busy: RefCell<Vec<Kept>>,
    /// What was touched since when, in milliseconds: who reads a file while it is touched has to read it again.
    touched: RefCell<(f64, Vec<Kept>)>,
}

impl OpfsCache {
    /// The cache of this site, of at most `limit` bytes (2 GiB if `None`) and at most half of the site's quota.
    pub async fn open(limit: Option<u64>) -> Self {
        Self::open_in(FOLDER, limit).await
    }

    /// The same in a folder of another name.
    pub async fn open_in(folder: &str, limit: Option<u64>) -> Self {
        let storage = storage();
        let quota = match &storage {
            Some(storage) => quota(storage).await,
            None => None,
        };
        let limit = limit.unwrap_or(STANDARD_LIMIT).min(quota.map_or(u64::MAX, |quota| quota / 2));
        let folder = match storage {
            Some(storage) => directory(&storage, folder).await.ok(),
            None => None,
        };
        Self {
            folder,
            writable: can_write(),
            limit: Cell::new(limit),
            held: Cell::new(None),
            written: Cell::new(0),
            busy: RefCell::default(),
            touched: RefCell::default(),
        }
    }

    /// Whether there is a disk to keep anything on.
    pub fn is_there(&self) -> bool {
        self.folder.is_some()
    }

    /// The most bytes that it holds.
    pub fn limit(&self) -> u64 {
        self.limit.get()
    }

    /// The bytes of all that is kept.
    pub async fn usage(&self) -> u64 {
        self.entries().await.iter().map(|entry| entry.size).sum()
    }

    /// Deletes all that is kept.
    ///
    /// # Errors
    ///
    /// When something stays, because another tab is writing it; a second try deletes it.
    pub async fn clear(&self) -> Result<(), FilesError> {
        self.held.set(None);
        let mut failed = None;
        for entry in self.entries().await {
            if let Err(error) = self.remove(&entry.key).await {
                let reason = format!("{}; close Baton's other tabs and try again", describe(&error));
                failed = Some(FilesError::Io { name: entry.key, reason });
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn entries(&self) -> Vec<Entry<String>> {
        let mut entries = Vec::new();
        let Some(folder) = &self.folder else { return entries };
        let values = folder.values();
        while let Ok(next) = values.next() {
            // A file that another tab has just deleted is none.
            let Ok(next) = JsFuture::from(next).await else { break };
            if Reflect::get(&next, &JsValue::from_str("done")).is_ok_and(|done| done.is_truthy()) {
                break;
            }
            let Ok(value) = Reflect::get(&next, &JsValue::from_str("value")) else { break };
            let Ok(handle) = value.dyn_into::<FileSystemFileHandle>() else { continue };
            let name = handle.name();
            if Kept::from_name(&name).is_none() {
                continue;
            }
            if let Ok(file) = file(&handle).await {
                entries.push(Entry {
                    key: name,
                    size: file.size() as u64,
                    used: file.last_modified() as u64,
                });
            }
        }
        entries
    }

    async fn remove(&self, name: &str) -> Result<(), JsValue> {
        match &self.folder {
            Some(folder) => JsFuture::from(folder.remove_entry(name)).await.map(drop),
            None => Ok(()),
        }
    }

    async fn handle(&self, kept: Kept, create: bool) -> Result<FileSystemFileHandle, JsValue> {
        let folder = self.folder.as_ref().ok_or(JsValue::UNDEFINED)?;
        let options = FileSystemGetFileOptions::new();
        options.set_create(create);
        JsFuture::from(folder.get_file_handle_with_options(&kept.name(), &options)).await?.dyn_into()
    }

    async fn read(&self, kept: Kept) -> Option<Vec<u8>> {
        let handle = self.handle(kept, false).await.ok()?;
        // Without a lock, so that several may read; a file that is touched meanwhile is read once more. As often as other tabs
        // may touch it: a host whose devices all ask for one chunk must not go to the hub for it.
        let mut read = contents(&handle).await;
        for _ in 1..ATTEMPTS {
            if read.is_ok() {
                break;
            }
            read = contents(&handle).await;
        }
        let Some(bytes) = read.ok()?.and_then(|bytes| kept.open(bytes)) else {
            // A torn write. Not deleted where another tab is writing it right now.
            drop(self.remove(&kept.name()).await);
            self.held.set(None);
            return None;
        };
        if self.writable && self.is_stale(kept) {
            // It is merely forgotten sooner if this fails.
            drop(touch(&handle).await);
        }
        Some(bytes)
    }

    /// Whether this tab did not touch a file in the last minute, and is to do it now.
    fn is_stale(&self, kept: Kept) -> bool {
        let (now, mut touched) = (Date::now(), self.touched.borrow_mut());
        if !(0.0..TOUCH_MS).contains(&(now - touched.0)) {
            *touched = (now, Vec::new());
        }
        let is_stale = !touched.1.contains(&kept);
        if is_stale {
            touched.1.push(kept);
        }
        is_stale
    }

    async fn keep(&self, kept: Kept, bytes: &[u8]) {
        let bytes = kept.wrap(bytes);
        let wanted = bytes.len() as u64;
        if !self.writable || wanted > self.limit.get().min(LONGEST) || self.busy.borrow().contains(&kept) {
            return;
        }
        self.busy.borrow_mut().push(kept);
        if !self.has(kept, wanted).await {
            self.make_room(wanted).await;
            if matches!(self.write(kept, &bytes).await, Written::Full) {
                // Before the limit: what is there now is as much as fits.
                let used = self.usage().await;
                self.held.set(Some(used));
                if used > 0 {
                    self.limit.set(used.min(self.limit.get()));
                }
            }
        }
        self.busy.borrow_mut().retain(|other| *other != kept);
    }

    /// Whether the chunk is there already, as far as its length tells.
    async fn has(&self, kept: Kept, size: u64) -> bool {
        if matches!(kept, Kept::Note(_)) {
            return false;
        }
        let Ok(handle) = self.handle(kept, false).await else { return false };
        file(&handle).await.is_ok_and(|file| file.size() as u64 == size)
    }

    async fn make_room(&self, wanted: u64) {
        let known = self.held.get().filter(|_| self.written.get() < RECOUNT);
        let held = match known {
            Some(held) => held,
            None => {
                self.written.set(0);
                self.usage().await
            }
        };
        let mut held = held.saturating_add(wanted);
        let limit = self.limit.get();
        if held > limit {
            // A tenth more than must go, so that the next chunk does not look through all files again.
            for old in to_evict(self.entries().await, wanted, limit - limit / 10) {
                drop(self.remove(&old).await);
            }
            held = self.usage().await.saturating_add(wanted);
        }
        self.held.set(Some(held));
        self.written.set(self.written.get() + 1);
    }

    /// Writes a file, or leaves none.
    async fn write(&self, kept: Kept, bytes: &[u8]) -> Written {
        let access = match self.handle(kept, true).await {
            Ok(handle) => access(&handle).await,
            Err(error) => Err(error),
        };
        // Another tab is writing it.
        let Ok(access) = access else { return Written::Not };
        let written = access
            .truncate_with_u32(0)
            .and_then(|()| access.write_with_u8_array(bytes))
            .and_then(|count| access.flush().map(|()| count));
        access.close();
        match written {
            Ok(count) if count as usize == bytes.len() => Written::Whole,
            // A full disk may also show as fewer bytes.
            failed => {
                drop(self.remove(&kept.name()).await);
                match failed {
                    Err(error) if !is_full(&error) => Written::Not,
                    _ => Written::Full,
                }
            }
        }
    }
}

/// How writing ended.
enum Written {
    Whole,
    /// There is no room left.
    Full,
    /// For another reason, which may pass.
    Not,
}

fn is_full(error: &JsValue) -> bool {
    Reflect::get(error, &JsValue::from_str("name")).is_ok_and(|name| name == "QuotaExceededError")
}

impl ChunkCache for OpfsCache {
    async fn get(&self, hash: &Hash) -> Option<Vec<u8>> {
        self.read(Kept::Chunk(*hash)).await
    }

    async fn put(&self, hash: &Hash, bytes: &[u8]) {
        self.keep(Kept::Chunk(*hash), bytes).await;
    }

    async fn recall(&self, key: &Hash) -> Option<Vec<u8>> {
        self.read(Kept::Note(*key)).await
    }

    async fn remember(&self, key: &Hash, note: &[u8]) {
        self.keep(Kept::Note(*key), note).await;
    }
}

/// `navigator.storage`, if it can give a directory: what is missing is `undefined`, and must not be called.
fn storage() -> Option<StorageManager> {
    let get = |from: &JsValue, name: &str| Reflect::get(from, &JsValue::from_str(name)).ok();
    let storage = get(&get(&js_sys::global(), "navigator")?, "storage")?;
    get(&storage, "getDirectory")?.is_function().then(|| storage.unchecked_into())
}

/// The bytes that the browser gives to this site, if it says.
async fn quota(storage: &StorageManager) -> Option<u64> {
    let estimate = JsFuture::from(storage.estimate().ok()?).await.ok()?;
    let quota = estimate.unchecked_into::<StorageEstimate>().get_quota()?;
    // A float as large as that is no less whole.
    (quota.is_finite() && quota >= 0.0).then_some(quota as u64)
}

async fn directory(storage: &StorageManager, name: &str) -> Result<FileSystemDirectoryHandle, JsValue> {
    let root: FileSystemDirectoryHandle = JsFuture::from(storage.get_directory()).await?.dyn_into()?;
    let options = FileSystemGetDirectoryOptions::new();
    options.set_create(true);
    JsFuture::from(root.get_directory_handle_with_options(name, &options)).await?.dyn_into()
}

async fn file(handle: &FileSystemFileHandle) -> Result<File, JsValue> {
    JsFuture::from(handle.get_file()).await?.dyn_into()
}

/// All of a file; `None` if it is longer than anything that is written here.
async fn contents(handle: &FileSystemFileHandle) -> Result<Option<Vec<u8>>, JsValue> {
    let file = file(handle).await?;
    if file.size() as u64 > LONGEST {
        return Ok(None);
    }
    let buffer = JsFuture::from(file.array_buffer()).await?;
    Ok(Some(Uint8Array::new(&buffer).to_vec()))
}

/// Whether there is `createSyncAccessHandle`: a function that is not there must not be called.
fn can_write() -> bool {
    let get = |from: &JsValue, name: &str| Reflect::get(from, &JsValue::from_str(name)).ok();
    get(&js_sys::global(), "FileSystemFileHandle")
        .and_then(|class| get(&class, "prototype"))
        .and_then(|prototype| get(&prototype, "createSyncAccessHandle"))
        .is_some_and(|make| make.is_function())
}

/// The one writer of a file; an error where there is one already.
async fn access(handle: &FileSystemFileHandle) -> Result<FileSystemSyncAccessHandle, JsValue> {
    JsFuture::from(handle.create_sync_access_handle()).await?.dyn_into()
}

/// Sets a file's date to now: its first byte is written again.
async fn touch(handle: &FileSystemFileHandle) -> Result<(), JsValue> {
    let access = access(handle).await?;
    let mut first = [0];
    let options = FileSystemReadWriteOptions::new();
    options.set_at(0.0);
    let touched = access.read_with_u8_array_and_options(&mut first, &options).and_then(|count| match count {
        1.0 => access.write_with_u8_array_and_options(&first, &options).map(drop),
        _ => Ok(()),
    });
    access.close();
    touched
}
