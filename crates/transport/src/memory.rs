//! Channels within one process, for tests: what one end sends, the other end's handler is given in order.

use crate::ports::Channel;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

type Handler = Rc<dyn Fn(Arrived)>;

/// What a handler is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrived {
    /// A frame.
    Frame(Vec<u8>),
    /// The other end closed.
    Closed,
}

#[derive(Default)]
struct End {
    handler: Option<Handler>,
    /// As a browser's channel would lose it; kept here, because tests attach both ends before they send.
    early: VecDeque<Arrived>,
    closed: bool,
}

/// One end of a pair.
pub struct MemoryChannel {
    mine: Rc<RefCell<End>>,
    other: Weak<RefCell<End>>,
}

impl MemoryChannel {
    /// Two ends of one channel.
    pub fn pair() -> (Self, Self) {
        let (a, b) = (Rc::<RefCell<End>>::default(), Rc::<RefCell<End>>::default());
        let (to_a, to_b) = (Rc::downgrade(&a), Rc::downgrade(&b));
        (Self { mine: a, other: to_b }, Self { mine: b, other: to_a })
    }

    /// Gives what arrives to `handler`, beginning with what has arrived.
    pub fn attach(&self, handler: impl Fn(Arrived) + 'static) {
        let handler: Handler = Rc::new(handler);
        let early = {
            let mut mine = self.mine.borrow_mut();
            mine.handler = Some(handler.clone());
            std::mem::take(&mut mine.early)
        };
        early.into_iter().for_each(|arrived| handler(arrived));
    }

    fn deliver(&self, arrived: Arrived) {
        let Some(other) = self.other.upgrade() else { return };
        let handler = other.borrow().handler.clone();
        match handler {
            Some(handler) => handler(arrived),
            None => other.borrow_mut().early.push_back(arrived),
        }
    }
}

impl Channel for MemoryChannel {
    fn send(&self, frame: &[u8]) -> Result<(), String> {
        let open = self.other.upgrade().is_some_and(|other| !other.borrow().closed);
        if !open || self.mine.borrow().closed {
            return Err("the other end is gone".into());
        }
        self.deliver(Arrived::Frame(frame.to_vec()));
        Ok(())
    }

    fn buffered(&self) -> usize {
        0
    }

    fn close(&self) {
        if !std::mem::replace(&mut self.mine.borrow_mut().closed, true) {
            self.deliver(Arrived::Closed);
        }
    }
}

impl Drop for MemoryChannel {
    fn drop(&mut self) {
        self.close();
    }
}
