//! A model hub for tests: it speaks the Hugging Face hub's URL layout, fails as it is told to, and notes what it was
//! asked.
//!
//! `/org/name/resolve/REVISION/FILE` answers as the hub does: with the commit in `X-Repo-Commit`, and a redirect to where
//! the bytes are. That is `/api/resolve-cache/…` for small files (`*.json`, `*.txt`), and for all others an address under
//! `/cdn/` whose signature expires. `/api/models/org/name/revision/REVISION` says which commit a revision is, and `/log`
//! what was asked (JSON).

mod faults;
mod server;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use axum::body::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

pub use faults::{Busy, Cut, Drip, Faults};

/// The files of a commit.
pub type Snapshot = BTreeMap<String, Bytes>;

/// A hub that runs on a thread of its own until it is dropped.
#[derive(Debug)]
pub struct TestHub {
    address: SocketAddr,
    hub: Arc<Mutex<Hub>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Something that the hub was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Request {
    /// `GET` or `HEAD`.
    pub method: String,
    /// Which part of the hub was asked.
    pub place: Place,
    /// The file, or the repository.
    pub name: String,
    /// The revision or the commit, where the address names one.
    pub revision: String,
    /// The bytes that were asked for.
    pub range: Option<Range<u64>>,
    /// The HTTP status of the answer.
    pub status: u16,
    /// The bytes of the body that were handed to the connection.
    pub sent: u64,
}

/// A part of the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// `/org/name/resolve/…`
    Hub,
    /// `/api/models/…`
    Api,
    /// Where the bytes are.
    Bytes,
}

/// What the hub has, and how it is to behave.
#[derive(Debug, Default)]
struct Hub {
    /// By `org/name`.
    repositories: BTreeMap<String, Repository>,
    signatures: Vec<Signature>,
    faults: Faults,
    log: Vec<Request>,
}

#[derive(Debug, Default)]
struct Repository {
    branches: BTreeMap<String, String>,
    commits: BTreeMap<String, Snapshot>,
}

/// The right to read one file for a while; its number is its place in the list.
#[derive(Debug)]
struct Signature {
    repository: String,
    commit: String,
    file: String,
    made: Instant,
    uses: u32,
}

impl TestHub {
    /// Starts a hub without repositories on a free port of this machine.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn start() -> io::Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts a hub at an address.
    ///
    /// # Errors
    ///
    /// When it is taken.
    pub fn start_at(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let hub = Arc::default();
        let router = server::router(Arc::clone(&hub), address);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                // Connections that are kept open would keep it from ending: it ends at once.
                tokio::select! {
                    _ = async { axum::serve(listener, router).await } => (),
                    _ = stopped => (),
                }
            });
        });
        Ok(Self { address, hub, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it is: `http://127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address of a repository's branch, as a person would give it.
    pub fn url(&self, repository: &str, branch: &str) -> String {
        format!("{}/{repository}/tree/{branch}", self.address())
    }

    /// Moves a branch to new files; gives the commit.
    pub fn push(
        &self,
        repository: &str,
        branch: &str,
        files: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> String {
        let files: Snapshot = files.into_iter().map(|(name, bytes)| (name, Bytes::from(bytes))).collect();
        let mut hasher = Sha256::new();
        for (name, bytes) in &files {
            hasher.update(name);
            hasher.update(Sha256::digest(bytes));
        }
        // As git's, 40 digits.
        let commit: String = hasher.finalize().iter().take(20).map(|byte| format!("{byte:02x}")).collect();
        let mut hub = lock(&self.hub);
        let repository = hub.repositories.entry(repository.to_owned()).or_default();
        repository.branches.insert(branch.to_owned(), commit.clone());
        repository.commits.insert(commit.clone(), files);
        commit
    }

    /// Puts other bytes in place of a file at a commit, which no honest hub does.
    pub fn replace(&self, repository: &str, commit: &str, file: &str, bytes: Vec<u8>) {
        let mut hub = lock(&self.hub);
        let repository = hub.repositories.get_mut(repository);
        if let Some(snapshot) = repository.and_then(|found| found.commits.get_mut(commit)) {
            snapshot.insert(file.to_owned(), Bytes::from(bytes));
        }
    }

    /// Changes how it fails.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.hub).faults);
    }

    /// What it was asked so far, in order.
    pub fn log(&self) -> Vec<Request> {
        lock(&self.hub).log.clone()
    }

    /// Forgets what it was asked.
    pub fn clear_log(&self) {
        lock(&self.hub).log.clear();
    }

    /// The bytes of a file that it handed out so far.
    pub fn sent(&self, file: &str) -> u64 {
        let bytes = |request: &&Request| request.place == Place::Bytes && request.name == file;
        lock(&self.hub).log.iter().filter(bytes).map(|request| request.sent).sum()
    }
}

impl Drop for TestHub {
    fn drop(&mut self) {
        // Whoever has stopped already needs no telling.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}
