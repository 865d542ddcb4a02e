//! The pieces of a model's files that devices of a room give each other, by their hashes.

use super::Input;
use crate::cache::AnyCache;
use crate::error::EngineError;
use crate::source::Model;
use baton_formats::files::{ChunkSource, FilesSource, Hash};
use baton_formats::{ChunkCache, Files, FilesError, Manifest, UrlFiles};
use baton_protocol::PeerId;
use baton_protocol::message::{Assign, FileAnswer, Message};
use futures::channel::mpsc::UnboundedSender;
use futures::channel::oneshot;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

/// Questions a peer may have open at once: what is answered and not yet read is bounded by as many pieces.
pub(super) const MOST_QUESTIONS: usize = 2;

/// Ticks (half seconds) that a neighbour has for an answer; the host, which may be reading the piece from a hub, has more.
const PATIENCE: u32 = 20;
const PATIENCE_WITH_HOST: u32 = 240;

/// A manifest as it travels.
pub(super) fn manifest_bytes(manifest: &Manifest) -> Vec<u8> {
    postcard::to_allocvec(manifest).unwrap_or_default()
}

/// A manifest that came from the host; it is checked where it is used.
pub(super) fn manifest(bytes: &[u8]) -> Result<Manifest, EngineError> {
    postcard::from_bytes(bytes).map_err(|_| EngineError::ManifestBytes { length: bytes.len() })
}

/// Questions that wait for an answer, and whom they can be put to.
#[derive(Default)]
pub(super) struct Questions {
    next: u32,
    /// Who was asked, how many ticks ago, and who waits.
    waiting: HashMap<u32, (PeerId, u32, oneshot::Sender<FileAnswer>)>,
    reachable: BTreeSet<PeerId>,
}

impl Questions {
    /// A peer can be asked. What it was asked over an older channel is lost with that.
    pub(super) fn linked(&mut self, peer: PeerId) {
        self.lost(peer);
        self.reachable.insert(peer);
    }

    /// Time passes: who waits too long for one peer goes on to the next.
    pub(super) fn tick(&mut self, host: PeerId) {
        self.waiting.retain(|_, (asked, age, _)| {
            *age += 1;
            *age <= if *asked == host { PATIENCE_WITH_HOST } else { PATIENCE }
        });
    }

    /// Hands an answer to who asked.
    pub(super) fn answer(&mut self, from: PeerId, id: u32, answer: FileAnswer) {
        // An answer to another's question is nobody's.
        if self.waiting.get(&id).is_some_and(|(asked, ..)| *asked == from)
            && let Some((.., waiting)) = self.waiting.remove(&id)
        {
            // Whoever asked may have given up.
            let _ = waiting.send(answer);
        }
    }

    /// A peer is gone: everybody who waits for it is told.
    pub(super) fn lost(&mut self, peer: PeerId) {
        self.reachable.remove(&peer);
        self.waiting.retain(|_, (asked, ..)| *asked != peer);
    }
}

/// Where a stage has the pieces of its blocks from.
pub(super) enum StageSource<C, T> {
    /// Another device of the room.
    Peer { peer: PeerId, inputs: UnboundedSender<Input<C, T>>, questions: Rc<RefCell<Questions>> },
    /// The hub, or the server that the page came from.
    Url(Box<FilesSource<UrlFiles>>),
}

impl<C, T> ChunkSource for StageSource<C, T> {
    async fn chunk(
        &self,
        file: &str,
        index: u32,
        hash: &Hash,
        length: usize,
    ) -> Result<Option<Vec<u8>>, FilesError> {
        let (peer, inputs, questions) = match self {
            Self::Url(files) => return files.chunk(file, index, hash, length).await,
            Self::Peer { peer, inputs, questions } => (*peer, inputs, questions),
        };
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut questions = questions.borrow_mut();
            if !questions.reachable.contains(&peer) {
                return Ok(None);
            }
            questions.next = questions.next.wrapping_add(1);
            let id = questions.next;
            questions.waiting.insert(id, (peer, 0, sender));
            id
        };
        let failed = |reason: String| FilesError::Io { name: file.into(), reason };
        let lost = || failed(format!("device {peer} was lost or gave no answer"));
        inputs
            .unbounded_send(Input::Ask(peer, Message::ChunkRead { id, hash: *hash }))
            .map_err(|_| lost())?;
        match receiver.await.map_err(|_| lost())? {
            FileAnswer::Bytes(bytes) if bytes.len() == length => Ok(Some(bytes)),
            FileAnswer::Bytes(bytes) => {
                let (wanted, got) = (length as u64, bytes.len() as u64);
                Err(FilesError::Truncated { name: file.into(), wanted, got })
            }
            FileAnswer::Absent => Ok(None),
            FileAnswer::Error(reason) => Err(failed(reason.chars().take(300).collect())),
        }
    }
}

/// The files of a model that is shared.
#[derive(Clone)]
pub struct ModelFiles(pub Rc<Model>);

impl Files for ModelFiles {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        self.0.files.size(name).await
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        self.0.files.read(name, range).await
    }

    fn span(&self) -> u64 {
        self.0.files.span()
    }

    fn weights_file(&self) -> Option<String> {
        self.0.files.weights_file()
    }
}

/// What a stage gives away: the pieces of the room's model. Its cache may hold those of other rooms, which are nobody's
/// business here.
#[derive(Default)]
pub(super) struct Offer {
    /// As it came; all stages of a room have the same.
    manifest: Vec<u8>,
    pieces: HashSet<Hash>,
}

impl Offer {
    /// Whether a piece is one of the model's that the assignment in force is of.
    pub(super) fn has(&mut self, assign: Option<&Assign>, piece: &Hash) -> bool {
        let bytes = assign.map_or(&[][..], |assign| &assign.manifest);
        if self.manifest != bytes {
            let files = manifest(bytes).map(|manifest| manifest.files).unwrap_or_default();
            self.pieces = files.into_iter().flat_map(|file| file.chunks).collect();
            self.manifest = bytes.to_vec();
        }
        self.pieces.contains(piece)
    }
}

/// What a host gives away: the pieces of its model's weights, and nothing else that it has.
pub(super) struct Shelf {
    model: Rc<Model>,
    manifest: Manifest,
    /// Where a piece is: the number of its file, and its own.
    places: HashMap<Hash, (usize, u32)>,
    cache: AnyCache,
}

impl Shelf {
    pub(super) fn new(model: Rc<Model>, manifest: Manifest, cache: AnyCache) -> Self {
        let files = manifest.files.iter().enumerate();
        let places =
            files.flat_map(|(at, file)| (0..).zip(&file.chunks).map(move |(i, hash)| (*hash, (at, i))));
        Self { places: places.collect(), model, manifest, cache }
    }

    /// Answers a question for a piece.
    pub(super) async fn answer(&self, hash: &Hash) -> FileAnswer {
        let Some((file, index)) = self.places.get(hash) else { return FileAnswer::Absent };
        if let Some(bytes) = self.cache.get(hash).await {
            return FileAnswer::Bytes(bytes);
        }
        let Some(file) = self.manifest.files.get(*file) else { return FileAnswer::Absent };
        let Some((range, _)) = self.manifest.chunk(&file.name, *index) else { return FileAnswer::Absent };
        match self.model.files.read(&file.name, range).await {
            Ok(bytes) => FileAnswer::Bytes(bytes),
            Err(error) => FileAnswer::Error(error.to_string()),
        }
    }
}
