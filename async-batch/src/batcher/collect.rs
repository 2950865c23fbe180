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
/// Invariants: (1) a key is in it once. (2) Neither bound is exceeded by the keys somebody waits for. (3) A place stays
/// that of its key as long as somebody waits for it.
#[derive(Debug)]
pub(crate) struct Collect<K> {
    bounds: Bounds,
    keys: HashMap<K, usize>,
    places: Vec<Place>,
    /// Places without a key.
    free: Vec<usize>,
    /// Keys that somebody waits for.
    wanted: usize,
    /// Theirs.
    weight: usize,
    arrivals: usize,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    /// Who wait for its key. With none left, the key stays until it is wanted again or swept out.
    callers: usize,
    weight: usize,
    arrival: usize,
}

/// What became of a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined<K> {
    /// It takes up room now. If it was still there, though nobody waited for it, the second one is given back.
    New(usize, Option<K>),
    /// It was there; the second one is given back.
    Same(usize, K),
    /// It does not fit beside the others.
    NoRoom(K),
}

impl<K: Eq + Hash> Collect<K> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            keys: HashMap::new(),
            places: Vec::new(),
            free: Vec::new(),
            wanted: 0,
            weight: 0,
            arrivals: 0,
        }
    }

    /// A caller wants `key`, if somebody waits for it already: its place.
    pub(crate) fn join_same(&mut self, key: &K) -> Option<usize> {
        let at = *self.keys.get(key)?;
        let place = &mut self.places[at];
        if place.callers == 0 {
            return None;
        }
        place.callers += 1;
        Some(at)
    }

    /// A caller wants `key`, which weighs `weight`.
    pub(crate) fn join(&mut self, key: K, weight: usize) -> Joined<K> {
        let there = self.keys.get(&key).copied();
        if let Some(at) = there
            && self.places[at].callers > 0
        {
            self.places[at].callers += 1;
            return Joined::Same(at, key);
        }
        let total = self.weight.saturating_add(weight);
        if self.is_full() || (total > self.bounds.weight && self.wanted > 0) {
            return Joined::NoRoom(key);
        }
        let place = Place { callers: 1, weight, arrival: self.arrivals };
        let (at, second) = match (there, self.free.last()) {
            (Some(at), _) => (at, Some(key)),
            (None, Some(&at)) => {
                self.keys.insert(key, at);
                self.free.pop();
                (at, None)
            }
            (None, None) => {
                self.keys.insert(key, self.places.len());
                self.places.push(place);
                (self.places.len() - 1, None)
            }
        };
        self.places[at] = place;
        self.arrivals += 1;
        self.wanted += 1;
        self.weight = total;
        Joined::New(at, second)
    }

    /// Whether nothing more can join, whatever it weighs.
    pub(crate) fn is_full(&self) -> bool {
        self.wanted >= self.bounds.items.get() || self.weight >= self.bounds.weight
    }

    /// A caller no longer waits. If it was the last one at its place, that takes up no room any more; the keys swept
    /// out then are given back.
    pub(crate) fn leave(&mut self, at: usize) -> Option<Vec<K>> {
        let place = &mut self.places[at];
        place.callers -= 1;
        if place.callers > 0 {
            return None;
        }
        self.wanted -= 1;
        self.weight -= place.weight;
        // To find a key by its place takes a look at all of them, so that is done for many at once.
        let unwanted = self.keys.len() - self.wanted;
        if unwanted * 4 < self.keys.capacity() {
            return Some(Vec::new());
        }
        let places = &self.places;
        let swept = self.keys.extract_if(|_, at| places[*at].callers == 0);
        let (keys, places): (Vec<K>, Vec<usize>) = swept.unzip();
        self.free.extend(places);
        Some(keys)
    }

    /// How many places there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The keys somebody waits for, each with its place, in order of arrival, and those nobody waits for.
    pub(crate) fn into_keys(self) -> (Vec<(usize, K)>, Vec<K>) {
        let mut wanted = Vec::with_capacity(self.wanted);
        let mut unwanted = Vec::new();
        for (key, at) in self.keys {
            if self.places[at].callers > 0 {
                wanted.push((at, key));
            } else {
                unwanted.push(key);
            }
        }
        wanted.sort_unstable_by_key(|(at, _)| self.places[*at].arrival);
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
            // Key, weight, place, callers, in order of arrival.
            let mut model: Vec<(u8, usize, usize, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Join(key, heavy) => {
                        let sum: usize = model.iter().map(|(_, weight, ..)| weight).sum();
                        let there = model.iter().position(|(known, ..)| *known == key);
                        let fits = model.len() < items.get() && sum < weight && (sum + heavy <= weight || model.is_empty());
                        if let Some(at) = there {
                            model[at].3 += 1;
                            prop_assert_eq!(collect.join(key, heavy), Joined::Same(model[at].2, key));
                        } else if fits {
                            let Joined::New(place, _) = collect.join(key, heavy) else {
                                return Err(TestCaseError::fail("it fits"));
                            };
                            prop_assert!(model.iter().all(|(.., taken, _)| *taken != place));
                            model.push((key, heavy, place, 1));
                        } else {
                            prop_assert_eq!(collect.join(key, heavy), Joined::NoRoom(key));
                        }
                    }
                    Step::Leave(who) if !model.is_empty() => {
                        let at = who.index(model.len());
                        model[at].3 -= 1;
                        let last = model[at].3 == 0;
                        prop_assert_eq!(collect.leave(model[at].2).is_some(), last);
                        if last {
                            model.remove(at);
                        }
                    }
                    Step::Leave(_) => {}
                }
                prop_assert_eq!(collect.wanted, model.len());
                prop_assert!(collect.len() <= 2 * items.get() + 1, "places are used again");
            }
            let (wanted, unwanted) = collect.into_keys();
            let expected: Vec<_> = model.iter().map(|(key, _, place, _)| (*place, *key)).collect();
            prop_assert_eq!(&wanted, &expected);
            prop_assert!(unwanted.iter().all(|key| model.iter().all(|(known, ..)| known != key)));
        }
    }
}
