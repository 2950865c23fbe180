use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tokio::time::Instant;

use super::{Children, Key};

/// When something is due by time. An entry is dead when its child no longer waits for that instant in that run; the
/// dead ones are cleared out when they are the larger part.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Key, u64)>>,
}

const SLACK: usize = 64;

impl Timers {
    fn lives(children: &Children, &Reverse((at, key, epoch)): &Reverse<(Instant, Key, u64)>) -> bool {
        children.get(key).is_some_and(|child| child.due == Some(at) && child.epoch == epoch)
    }

    /// Notes that `key` is due; its `due` is set already.
    pub(crate) fn push(&mut self, children: &Children, at: Instant, key: Key, epoch: u64) {
        if self.heap.len() > 2 * children.len() + SLACK {
            self.heap.retain(|entry| Self::lives(children, entry));
        }
        self.heap.push(Reverse((at, key, epoch)));
    }

    /// As [`next`](Self::next), but it may be the instant of a dead one: it takes nothing out.
    pub(crate) fn peek(&self) -> Option<Instant> {
        self.heap.peek().map(|entry| entry.0.0)
    }

    /// The next instant at which a child is due.
    pub(crate) fn next(&mut self, children: &Children) -> Option<Instant> {
        while let Some(entry) = self.heap.peek() {
            if Self::lives(children, entry) {
                return Some(entry.0.0);
            }
            self.heap.pop();
        }
        None
    }

    /// A child that is due by `now`.
    pub(crate) fn pop(&mut self, children: &Children, now: Instant) -> Option<Key> {
        if self.next(children)? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, key, _))| key)
    }
}
