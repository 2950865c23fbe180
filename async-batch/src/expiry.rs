use tokio::time::Instant;

/// The slots under a time limit, the first to expire first.
///
/// All have the same limit, so they expire in the order they start in: a list threaded through the slots, as long as
/// there are slots, and nothing is searched.
#[derive(Debug)]
pub(crate) struct Expiry {
    /// The last one is the ends of the list: its `next` the first slot, its `before` the last one.
    nodes: Vec<Node>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    at: Option<Instant>,
    before: usize,
    next: usize,
}

/// The node of the ends; slot `n` has node `n + 1`.
const ENDS: usize = 0;

impl Expiry {
    pub(crate) fn new() -> Self {
        Self { nodes: vec![Node { at: None, before: ENDS, next: ENDS }] }
    }

    /// Adds a slot, which expires no earlier than those there are.
    pub(crate) fn push(&mut self, slot: usize, at: Instant) {
        let node = slot + 1;
        if node >= self.nodes.len() {
            self.nodes.resize(node + 1, Node { at: None, before: ENDS, next: ENDS });
        }
        let last = self.nodes[ENDS].before;
        self.nodes[node] = Node { at: Some(at), before: last, next: ENDS };
        self.nodes[last].next = node;
        self.nodes[ENDS].before = node;
    }

    /// Takes a slot out, if it is there.
    pub(crate) fn remove(&mut self, slot: usize) {
        let Some(node) = self.nodes.get_mut(slot + 1) else { return };
        if node.at.take().is_some() {
            let Node { before, next, .. } = *node;
            self.nodes[before].next = next;
            self.nodes[next].before = before;
        }
    }

    /// The slot that expires first.
    pub(crate) fn first(&self) -> Option<(usize, Instant)> {
        let first = self.nodes[ENDS].next;
        Some((first.checked_sub(1)?, self.nodes[first].at?))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_a_plain_queue(steps in prop::collection::vec((any::<bool>(), 0..8_usize), 0..200)) {
            let epoch = Instant::now();
            let mut expiry = Expiry::new();
            let mut model: Vec<(usize, Instant)> = Vec::new();
            for (n, (push, slot)) in steps.into_iter().enumerate() {
                if push && !model.iter().any(|(known, _)| *known == slot) {
                    let at = epoch + Duration::from_millis(n as u64);
                    expiry.push(slot, at);
                    model.push((slot, at));
                } else {
                    expiry.remove(slot);
                    model.retain(|(known, _)| *known != slot);
                }
                prop_assert_eq!(expiry.first(), model.first().copied());
            }
        }
    }
}
