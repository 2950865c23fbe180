//! The store's queue: who is in the next commit, and whether somebody drives the commits.

/// Invariants:
///
/// 1. Something waits => somebody drives, or [`push`](Self::push) has just told its caller to.
/// 2. At most one drives.
/// 3. Once closed, nothing is added; what waits is still served.
#[derive(Debug)]
pub(crate) struct Queue<C> {
    waiting: Vec<C>,
    driven: bool,
    closed: bool,
}

impl<C> Default for Queue<C> {
    fn default() -> Self {
        Self { waiting: Vec::new(), driven: false, closed: false }
    }
}

/// What whoever has added a change has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing: the driver will come to it.
    Wait,
    /// Start a driver.
    Drive,
}

impl<C> Queue<C> {
    /// Adds a change, or hands it back after [`close`](Self::close).
    pub(crate) fn push(&mut self, change: C) -> Result<Next, C> {
        if self.closed {
            return Err(change);
        }
        self.waiting.push(change);
        Ok(if std::mem::replace(&mut self.driven, true) { Next::Wait } else { Next::Drive })
    }

    /// Adds a last change and no more after it. (After [`close`](Self::close) too: then it only waits for what is left.)
    pub(crate) fn close(&mut self, last: C) -> Next {
        self.closed = true;
        self.waiting.push(last);
        if std::mem::replace(&mut self.driven, true) { Next::Wait } else { Next::Drive }
    }

    /// Everything that waits, in order: one commit.
    pub(crate) fn take(&mut self) -> Vec<C> {
        std::mem::take(&mut self.waiting)
    }

    /// After a commit: whether there is another to do. If not, the driver has ended.
    pub(crate) fn more(&mut self) -> bool {
        self.driven = !self.waiting.is_empty();
        self.driven
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Next, Queue};

    #[test]
    fn the_first_drives_and_those_in_between_are_one_commit() {
        let mut queue = Queue::default();
        assert_eq!(queue.push(1), Ok(Next::Drive));
        assert_eq!(queue.take(), [1]);
        assert_eq!(queue.push(2), Ok(Next::Wait));
        assert_eq!(queue.push(3), Ok(Next::Wait));
        assert!(queue.more());
        assert_eq!(queue.take(), [2, 3]);
        assert!(!queue.more());
        assert_eq!(queue.push(4), Ok(Next::Drive));
        assert_eq!(queue.close(5), Next::Wait);
        assert_eq!(queue.push(6), Err(6));
        assert_eq!(queue.close(7), Next::Wait);
        assert_eq!(queue.take(), [4, 5, 7]);
        assert!(!queue.more());
    }

    proptest! {
        /// Whatever comes in between: all are served once, in order, by one driver at a time.
        #[test]
        fn nothing_is_lost_or_served_twice(steps in prop::collection::vec(0_u8..4, 0..60)) {
            let mut queue = Queue::default();
            let (mut drivers, mut added, mut served) = (0, Vec::new(), Vec::new());
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => {
                        added.push(n);
                        drivers += usize::from(queue.push(n) == Ok(Next::Drive));
                    }
                    2 if drivers == 1 => served.append(&mut queue.take()),
                    3 if drivers == 1 && !queue.more() => drivers = 0,
                    _ => {}
                }
                prop_assert!(drivers <= 1);
                prop_assert!(drivers == 1 || served == added);
            }
            served.append(&mut queue.take());
            prop_assert_eq!(served, added);
        }
    }
}
