use std::collections::VecDeque;

/// Puts what completes in any order back into the order of its index.
///
/// It holds what is ahead of the first one missing, and nothing where all arrive in order.
#[derive(Debug)]
pub(crate) struct Order<T> {
    /// The first index that has not been passed on.
    next: usize,
    /// `ahead[i]` is index `next + i`.
    ahead: VecDeque<Option<T>>,
}

impl<T> Order<T> {
    pub(crate) const fn new() -> Self {
        Self { next: 0, ahead: VecDeque::new() }
    }

    /// Takes one in, and passes on what is now complete.
    #[inline(always)]
    pub(crate) fn push(&mut self, index: usize, item: T, mut pass: impl FnMut(T)) {
        if index == self.next && self.ahead.is_empty() {
            pass(item);
            self.next += 1;
        } else {
            self.push_ahead(index, item, pass);
        }
    }

    #[inline(never)]
    fn push_ahead(&mut self, index: usize, item: T, mut pass: impl FnMut(T)) {
        let at = index - self.next;
        if at >= self.ahead.len() {
            self.ahead.resize_with(at + 1, || None);
        }
        self.ahead[at] = Some(item);
        while let Some(item) = self.pop() {
            pass(item);
        }
    }

    fn pop(&mut self) -> Option<T> {
        let item = self.ahead.front_mut()?.take()?;
        self.ahead.pop_front();
        self.next += 1;
        Some(item)
    }
}
