//! Where a node keeps the pieces of models that it has fetched.

use baton_formats::files::Hash;
use baton_formats::{ChunkCache, MemoryCache};
use std::rc::Rc;

#[cfg(not(target_arch = "wasm32"))]
use baton_formats::files::DirCache;
#[cfg(target_arch = "wasm32")]
use baton_formats::files::OpfsCache;

/// Any of the places.
#[derive(Clone, Debug, Default)]
pub enum AnyCache {
    /// None: everything is fetched again.
    #[default]
    None,
    /// This process's memory.
    Memory(Rc<MemoryCache>),
    /// A folder.
    #[cfg(not(target_arch = "wasm32"))]
    Dir(Rc<DirCache>),
    /// The browser's own disk.
    #[cfg(target_arch = "wasm32")]
    Opfs(Rc<OpfsCache>),
}

impl ChunkCache for AnyCache {
    async fn get(&self, hash: &Hash) -> Option<Vec<u8>> {
        match self {
            Self::None => None,
            Self::Memory(cache) => cache.get(hash).await,
            #[cfg(not(target_arch = "wasm32"))]
            Self::Dir(cache) => {
                // A disk is read at once: without this, whoever loads a model from it would hear nobody meanwhile.
                yield_now().await;
                cache.get(hash).await
            }
            #[cfg(target_arch = "wasm32")]
            Self::Opfs(cache) => cache.get(hash).await,
        }
    }

    async fn put(&self, hash: &Hash, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Memory(cache) => cache.put(hash, bytes).await,
            #[cfg(not(target_arch = "wasm32"))]
            Self::Dir(cache) => cache.put(hash, bytes).await,
            #[cfg(target_arch = "wasm32")]
            Self::Opfs(cache) => cache.put(hash, bytes).await,
        }
    }

    async fn recall(&self, key: &Hash) -> Option<Vec<u8>> {
        match self {
            Self::None => None,
            Self::Memory(cache) => cache.recall(key).await,
            #[cfg(not(target_arch = "wasm32"))]
            Self::Dir(cache) => cache.recall(key).await,
            #[cfg(target_arch = "wasm32")]
            Self::Opfs(cache) => cache.recall(key).await,
        }
    }

    async fn remember(&self, key: &Hash, note: &[u8]) {
        match self {
            Self::None => {}
            Self::Memory(cache) => cache.remember(key, note).await,
            #[cfg(not(target_arch = "wasm32"))]
            Self::Dir(cache) => cache.remember(key, note).await,
            #[cfg(target_arch = "wasm32")]
            Self::Opfs(cache) => cache.remember(key, note).await,
        }
    }
}

/// Lets the others of this thread run.
#[cfg(not(target_arch = "wasm32"))]
async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
