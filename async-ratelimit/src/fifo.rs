/// A place in a [`Fifo`], good until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u32);

const NONE: u32 = u32::MAX;

/// An emptied queue keeps at most this many places for the next crowd.
const KEPT: usize = 64;

#[derive(Debug)]
struct Place<T> {
    value: Option<T>,
    before: u32,
    /// The next in the queue or, for a free place, the next free one.
    after: u32,
    queued: bool,
}

/// A queue whose members can leave from the middle, in constant time: a list linked through a slab.
///
/// Who was taken out of the queue keeps its place, to find there what it was given, until it removes itself.
#[derive(Debug)]
pub(crate) struct Fifo<T> {
    places: Vec<Place<T>>,
    free: u32,
    front: u32,
    back: u32,
    queued: usize,
    held: usize,
}

impl<T> Fifo<T> {
    pub(crate) const fn new() -> Self {
        Self { places: Vec::new(), free: NONE, front: NONE, back: NONE, queued: 0, held: 0 }
    }

    /// How many are in the queue.
    pub(crate) const fn len(&self) -> usize {
        self.queued
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.queued == 0
    }

    pub(crate) fn front(&self) -> Option<Key> {
        (self.front != NONE).then_some(Key(self.front))
    }

    pub(crate) fn push_back(&mut self, value: T) -> Key {
        let place = Place { value: Some(value), before: self.back, after: NONE, queued: true };
        let at = if self.free == NONE {
            self.places.push(place);
            u32::try_from(self.places.len() - 1).expect("fewer than u32::MAX waiters")
        } else {
            let at = self.free;
            let reused = &mut self.places[at as usize];
            self.free = reused.after;
            *reused = place;
            at
        };
        match self.back {
            NONE => self.front = at,
            back => self.places[back as usize].after = at,
        }
        self.back = at;
        self.queued += 1;
        self.held += 1;
        Key(at)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> &mut T {
        self.places[key.0 as usize].value.as_mut().expect("a key is good until removed")
    }

    /// Every value in the queue, front first.
    pub(crate) fn for_each(&mut self, mut f: impl FnMut(&mut T)) {
        let mut at = self.front;
        while at != NONE {
            let place = &mut self.places[at as usize];
            at = place.after;
            f(place.value.as_mut().expect("what is queued has a value"));
        }
    }

    /// Takes `key` out of the queue but leaves it its place.
    pub(crate) fn unlink(&mut self, key: Key) {
        let place = &mut self.places[key.0 as usize];
        if !std::mem::take(&mut place.queued) {
            return;
        }
        let (before, after) = (place.before, place.after);
        match before {
            NONE => self.front = after,
            before => self.places[before as usize].after = after,
        }
        match after {
            NONE => self.back = before,
            after => self.places[after as usize].before = before,
        }
        self.queued -= 1;
    }

    /// Takes `key` out of the queue, if it still is in it, and frees its place.
    pub(crate) fn remove(&mut self, key: Key) -> T {
        self.unlink(key);
        let place = &mut self.places[key.0 as usize];
        let value = place.value.take().expect("a key is good until removed");
        place.after = std::mem::replace(&mut self.free, key.0);
        self.held -= 1;
        if self.held == 0 && self.places.len() > KEPT {
            // A crowd that has gone away must not hold its memory for ever.
            self.places = Vec::new();
            self.free = NONE;
        }
        value
    }
}

#[cfg(all(test, not(family_loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push,
        Unlink(usize),
        Remove(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![3 => Just(Step::Push), 1 => (0..64usize).prop_map(Step::Unlink), 2 => (0..64usize).prop_map(Step::Remove)];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        #[test]
        fn it_is_a_deque_one_can_leave_from_the_middle(steps in steps()) {
            let mut fifo = Fifo::new();
            let mut queue = VecDeque::new();
            let mut held: Vec<(Key, usize)> = Vec::new();
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push => {
                        held.push((fifo.push_back(n), n));
                        queue.push_back(n);
                    }
                    Step::Unlink(i) if !held.is_empty() => {
                        let (key, value) = held[i % held.len()];
                        fifo.unlink(key);
                        queue.retain(|v| *v != value);
                        prop_assert_eq!(*fifo.get_mut(key), value);
                    }
                    Step::Remove(i) if !held.is_empty() => {
                        let (key, value) = held.swap_remove(i % held.len());
                        prop_assert_eq!(fifo.remove(key), value);
                        queue.retain(|v| *v != value);
                    }
                    _ => {}
                }
                prop_assert_eq!(fifo.len(), queue.len());
                prop_assert_eq!(fifo.front().map(|key| *fifo.get_mut(key)), queue.front().copied());
                let mut listed = Vec::new();
                fifo.for_each(|value| listed.push(*value));
                prop_assert_eq!(listed, queue.iter().copied().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_crowd_that_has_gone_leaves_no_memory_behind() {
        let mut fifo = Fifo::new();
        let keys: Vec<_> = (0..10_000).map(|n| fifo.push_back(n)).collect();
        for key in keys {
            fifo.remove(key);
        }
        assert_eq!(fifo.places.capacity(), 0);
        let key = fifo.push_back(7);
        assert_eq!(fifo.front(), Some(key));
    }
}
