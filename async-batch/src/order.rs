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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_order_in_is_the_one_order_out(keys in prop::collection::vec(any::<u32>(), 0..100)) {
            let mut arrivals: Vec<usize> = (0..keys.len()).collect();
            arrivals.sort_by_key(|index| keys[*index]);
            let mut order = Order::new();
            let mut out = Vec::new();
            for (n, index) in arrivals.iter().enumerate() {
                order.push(*index, *index, |item| out.push(item));
                // As many as there are without a gap from the first one.
                let complete = (0..).take_while(|index| arrivals[..=n].contains(index)).count();
                prop_assert_eq!(out.len(), complete);
            }
            prop_assert!(out.into_iter().eq(0..keys.len()));
            prop_assert!(order.ahead.is_empty());
        }
    }
}
