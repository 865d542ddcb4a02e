//! What waits for a client to read it: a queue that is bounded in bytes, and says when it is over.

use crate::rooms::Closing;
use axum::extract::ws::Utf8Bytes;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, watch};

/// What a queued message costs beyond its text.
const OVERHEAD: usize = 64;

/// The queue would be over its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// How a queue ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// After what is in it.
    Close(Closing),
    /// At once: nobody reads it.
    Abort,
}

/// What the writer of a socket does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Text(Utf8Bytes),
    End(End),
}

/// The queue of one client.
#[derive(Debug)]
pub(crate) struct Outbox {
    limit: usize,
    queue: Mutex<Queue>,
    filled: Notify,
    end: watch::Sender<Option<End>>,
}

#[derive(Debug, Default)]
struct Queue {
    texts: VecDeque<Utf8Bytes>,
    bytes: usize,
}

impl Outbox {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, queue: Mutex::default(), filled: Notify::new(), end: watch::Sender::new(None) }
    }

    pub(crate) fn push(&self, text: Utf8Bytes) -> Result<(), Full> {
        let mut queue = self.queue();
        let bytes = queue.bytes + text.len() + OVERHEAD;
        if bytes > self.limit {
            return Err(Full);
        }
        queue.bytes = bytes;
        queue.texts.push_back(text);
        drop(queue);
        self.filled.notify_one();
        Ok(())
    }

    /// Ends the queue. An abort overrules a close, and nothing an abort.
    pub(crate) fn end(&self, end: End) {
        self.end.send_if_modified(|current| {
            let changes = current.is_none() || (end == End::Abort && *current != Some(End::Abort));
            if changes {
                *current = Some(end);
            }
            changes
        });
        self.filled.notify_one();
    }

    /// Waits for what is to be written. There is one writer.
    pub(crate) async fn next(&self) -> Next {
        loop {
            let end = *self.end.borrow();
            if end == Some(End::Abort) {
                return Next::End(End::Abort);
            }
            if let Some(text) = self.pop() {
                return Next::Text(text);
            }
            if let Some(end) = end {
                return Next::End(end);
            }
            self.filled.notified().await;
        }
    }

    /// Waits for the end, whatever is still queued.
    pub(crate) async fn ended(&self) -> End {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await.map(|end| *end) {
            Ok(Some(end)) => end,
            // The sender is a field of `self`.
            Ok(None) | Err(_) => End::Abort,
        }
    }

    fn pop(&self) -> Option<Utf8Bytes> {
        let mut queue = self.queue();
        let text = queue.texts.pop_front()?;
        queue.bytes -= text.len() + OVERHEAD;
        Some(text)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_queued_is_written_before_a_close_and_not_before_an_abort() {
        let outbox = Outbox::new(1000);
        outbox.push("a".into()).unwrap();
        outbox.push("b".into()).unwrap();
        outbox.end(End::Close(Closing::Left));
        assert_eq!(outbox.next().await, Next::Text("a".into()));
        assert_eq!(outbox.ended().await, End::Close(Closing::Left));
        outbox.end(End::Abort);
        outbox.end(End::Close(Closing::Left));
        assert_eq!(outbox.next().await, Next::End(End::Abort));
    }

    #[tokio::test]
    async fn a_queue_is_bounded_and_has_room_again_once_read() {
        let outbox = Outbox::new(2 * (OVERHEAD + 10));
        let text = || Utf8Bytes::from_static("0123456789");
        assert_eq!((outbox.push(text()), outbox.push(text())), (Ok(()), Ok(())));
        assert_eq!(outbox.push("".into()), Err(Full));
        outbox.next().await;
        assert_eq!(outbox.push(text()), Ok(()));
    }
}
