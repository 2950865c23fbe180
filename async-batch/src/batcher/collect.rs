use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroUsize;

/// How much one bulk call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) items: NonZeroUsize,
    pub(crate) weight: usize,
}

/// The keys of one batch as they come in, and who still waits for them. It knows no clock and no task.
///
/// Invariants: (1) a key is in it once. (2) Places are given out in order of arrival, from 0. (3) Neither bound is
/// exceeded.
#[derive(Debug)]
pub(crate) struct Collect<K> {
    bounds: Bounds,
    places: HashMap<K, usize>,
    /// Callers that wait, of each place.
    waiting: Vec<usize>,
    weight: usize,
}

/// What became of a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined<K> {
    /// It has a place of its own now.
    New(usize),
    /// It was there; the second one is given back.
    Same(usize, K),
    /// It does not fit beside the others.
    NoRoom(K),
}

impl<K: Eq + Hash> Collect<K> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, places: HashMap::new(), waiting: Vec::new(), weight: 0 }
    }

    /// A caller wants `key`, but not at a place of its own.
    pub(crate) fn join_same(&mut self, key: K) -> Joined<K> {
        match self.places.get(&key) {
            Some(&place) => {
                self.waiting[place] += 1;
                Joined::Same(place, key)
            }
            None => Joined::NoRoom(key),
        }
    }

    /// A caller wants `key`, which weighs `weight`.
    pub(crate) fn join(&mut self, key: K, weight: usize) -> Joined<K> {
        let key = match self.join_same(key) {
            Joined::NoRoom(key) => key,
            same => return same,
        };
        let total = self.weight.saturating_add(weight);
        if self.is_full() || (total > self.bounds.weight && !self.waiting.is_empty()) {
            return Joined::NoRoom(key);
        }
        let place = self.waiting.len();
        self.places.insert(key, place);
        self.waiting.push(1);
        self.weight = total;
        Joined::New(place)
    }

    /// Whether nothing more can join, whatever it weighs.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= self.bounds.items.get() || self.weight >= self.bounds.weight
    }

    /// A caller no longer waits.
    pub(crate) fn leave(&mut self, place: usize) {
        self.waiting[place] -= 1;
    }

    /// How many places there are.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The keys somebody waits for, each with its place, in order of arrival, and those nobody waits for.
    pub(crate) fn into_keys(self) -> (Vec<(usize, K)>, Vec<K>) {
        let mut wanted = Vec::with_capacity(self.places.len());
        let mut unwanted = Vec::new();
        for (key, place) in self.places {
            if self.waiting[place] > 0 {
                wanted.push((place, key));
            } else {
                unwanted.push(key);
            }
        }
        wanted.sort_unstable_by_key(|(place, _)| *place);
        (wanted, unwanted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Join(u8, usize),
        Leave(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..12_u8, 0..6_usize).prop_map(|(key, weight)| Step::Join(key, weight)),
            1 => any::<prop::sample::Index>().prop_map(Step::Leave)
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn as_a_plain_list(steps in steps(), items in 1..8_usize, weight in 1..20_usize) {
            let items = NonZeroUsize::new(items).unwrap();
            let mut collect = Collect::new(Bounds { items, weight });
            // Key, weight, callers.
            let mut model: Vec<(u8, usize, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Join(key, heavy) => {
                        let sum: usize = model.iter().map(|(_, weight, _)| weight).sum();
                        let there = model.iter().position(|(known, ..)| *known == key);
                        let fits = model.len() < items.get() && sum < weight && (sum + heavy <= weight || model.is_empty());
                        let expected = match there {
                            Some(place) => Joined::Same(place, key),
                            None if fits => Joined::New(model.len()),
                            None => Joined::NoRoom(key),
                        };
                        prop_assert_eq!(collect.join(key, heavy), expected);
                        match there {
                            Some(place) => model[place].2 += 1,
                            None if fits => model.push((key, heavy, 1)),
                            None => {}
                        }
                    }
                    Step::Leave(who) => {
                        let waiting: Vec<usize> = (0..model.len()).filter(|place| model[*place].2 > 0).collect();
                        if !waiting.is_empty() {
                            let place = waiting[who.index(waiting.len())];
                            model[place].2 -= 1;
                            collect.leave(place);
                        }
                    }
                }
                prop_assert_eq!(collect.len(), model.len());
            }
            let (wanted, unwanted) = collect.into_keys();
            let expected: Vec<_> = model.iter().enumerate().filter(|(_, (_, _, callers))| *callers > 0).map(|(place, (key, ..))| (place, *key)).collect();
            prop_assert_eq!(&wanted, &expected);
            prop_assert_eq!(unwanted.len(), model.len() - expected.len());
        }
    }
}
