//! The host's files, read by a stage over their data channel, and the host's side of it.

use super::Input;
use crate::source::{AnyFiles, WEIGHTS_FILE};
use baton_formats::{Files, FilesError};
use baton_protocol::message::{FileAnswer, MAX_FILE_READ, Message};
use futures::channel::mpsc::UnboundedSender;
use futures::channel::oneshot;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// Questions that wait for the host's answer.
#[derive(Default)]
pub(super) struct Questions {
    next: u32,
    waiting: HashMap<u32, oneshot::Sender<FileAnswer>>,
}

impl Questions {
    /// Hands an answer to who asked.
    pub(super) fn answer(&mut self, id: u32, answer: FileAnswer) {
        if let Some(waiting) = self.waiting.remove(&id) {
            // Whoever asked may have given up.
            let _ = waiting.send(answer);
        }
    }

    /// The host is gone: everybody who waits is told.
    pub(super) fn give_up(&mut self) {
        self.waiting.clear();
    }
}

/// The host's files.
pub(super) struct HostFiles<C, T> {
    pub(super) inputs: UnboundedSender<Input<C, T>>,
    pub(super) questions: Rc<RefCell<Questions>>,
}

impl<C, T> HostFiles<C, T> {
    async fn ask(&self, name: &str, question: impl FnOnce(u32) -> Message) -> Result<FileAnswer, FilesError> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut questions = self.questions.borrow_mut();
            questions.next = questions.next.wrapping_add(1);
            let id = questions.next;
            questions.waiting.insert(id, sender);
            id
        };
        let lost =
            || FilesError::Io { name: name.into(), reason: "the connection to the host was lost".into() };
        self.inputs.unbounded_send(Input::Ask(question(id))).map_err(|_| lost())?;
        match receiver.await.map_err(|_| lost())? {
            FileAnswer::Error(reason) => Err(FilesError::Io { name: name.into(), reason }),
            answer => Ok(answer),
        }
    }
}

impl<C, T> Files for HostFiles<C, T> {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        match self.ask(name, |id| Message::FileSize { id, name: name.into() }).await? {
            FileAnswer::Size(size) => Ok(size),
            _ => {
                Err(FilesError::Io { name: name.into(), reason: "the host answered another question".into() })
            }
        }
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        let mut bytes = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + MAX_FILE_READ);
            let answer = self.ask(name, |id| Message::FileRead { id, name: name.into(), start, end }).await?;
            let FileAnswer::Bytes(part) = answer else {
                return Err(FilesError::Io {
                    name: name.into(),
                    reason: "the host answered another question".into(),
                });
            };
            let wanted = end - start;
            if part.len() as u64 != wanted {
                return Err(FilesError::Truncated { name: name.into(), wanted, got: part.len() as u64 });
            }
            bytes.extend(part);
            start = end;
        }
        Ok(bytes)
    }
}

/// Answers a question about the model's weights; nothing else of the host's is given away.
pub(super) async fn answer(files: &AnyFiles, question: &Message) -> FileAnswer {
    let only_weights = |name: &str| {
        if name == WEIGHTS_FILE {
            Ok(())
        } else {
            Err(format!("the host gives its {WEIGHTS_FILE}, and not {name}"))
        }
    };
    let answer = async {
        match question {
            Message::FileSize { name, .. } => {
                only_weights(name)?;
                files.size(name).await.map(FileAnswer::Size).map_err(|error| error.to_string())
            }
            Message::FileRead { name, start, end, .. } => {
                only_weights(name)?;
                if start > end || end - start > MAX_FILE_READ {
                    return Err(format!("a range of bytes {start} to {end} is not one that can be read"));
                }
                files.read(name, *start..*end).await.map(FileAnswer::Bytes).map_err(|error| error.to_string())
            }
            _ => Err("this is no question about a file".into()),
        }
    };
    answer.await.unwrap_or_else(FileAnswer::Error)
}
