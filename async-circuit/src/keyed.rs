use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_policy::Name;
use hashbrown::HashTable;

use crate::CircuitBreaker;
use crate::config::Config;

/// More shards than this do not make reading faster.
const MOST_SHARDS: usize = 64;
/// A shard for fewer keys than this is not worth its lock.
const KEYS_IN_A_SHARD: usize = 32;
/// How many held breakers are looked at to find one to evict.
const LOOKS: usize = 64;

/// Circuit breakers by key (host, tenant, …), made on demand, all alike:
/// [`build_keyed`](crate::CircuitBreakerBuilder::build_keyed).
///
/// At most a set number is held. When a new key comes and there is no room, one that was not used for the longest time, or
/// nearly so, is evicted: never one whose circuit refuses calls, that is in use (someone holds a clone of it), or whose mode was
/// changed by hand. If none can be, the new key gets a breaker that is not held: it lets the call through and is
/// forgotten after it.
///
/// Reading takes the read lock of one of several shards, which those who read do not wait for. Each shard has its part of
/// the room, and some fill up before others: allow for a fifth more than the keys you expect.
///
/// ```
/// use async_circuit::{CircuitBreaker, Policy};
/// use std::num::NonZeroUsize;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let hosts = CircuitBreaker::builder()
///     .build_keyed::<String>(NonZeroUsize::new(10_000).unwrap())?
///     .with_names(|host| host.as_str().into());
/// let quote = hosts.get("quotes").call(async || Ok::<_, std::io::Error>(42)).await?;
/// # assert_eq!((quote, hosts.len()), (42, 1));
/// # Ok(()) }
/// ```
pub struct CircuitBreakers<K, S = RandomState> {
    shards: Box<[Padded<RwLock<Shard<K>>>]>,
    hasher: S,
    name: Option<Name>,
    name_of: Option<Box<NameOf<K>>>,
    config: Arc<Config>,
    max: NonZeroUsize,
}

type NameOf<K> = dyn Fn(&K) -> Name + Send + Sync;

/// A lock with its cache lines to itself.
#[repr(align(128))]
struct Padded<T>(T);

/// A map into a vector that a clock hand goes round.
struct Shard<K> {
    index: HashTable<usize>,
    slots: Vec<Slot<K>>,
    hand: usize,
    max: usize,
}

struct Slot<K> {
    hash: u64,
    key: K,
    breaker: CircuitBreaker,
    /// `IDLE`, `NEW` or `USED`. Readers write it only when it is not `USED` yet.
    use_of: AtomicU8,
}

/// Not used since the hand last came by.
const IDLE: u8 = 0;
/// Made, and not used again since: goes before those that were.
const NEW: u8 = 1;
const USED: u8 = 2;

impl<K: Hash + Eq> CircuitBreakers<K> {
    pub(crate) fn from_parts(name: Option<Name>, config: Arc<Config>, max: NonZeroUsize) -> Self {
        let count = (max.get() / KEYS_IN_A_SHARD).clamp(1, MOST_SHARDS).next_power_of_two();
        let shard = |i: usize| {
            let max = max.get() / count + usize::from(i < max.get() % count);
            Padded(RwLock::new(Shard { index: HashTable::new(), slots: Vec::new(), hand: 0, max }))
        };
        let shards = (0..count).map(shard).collect();
        Self { shards, hasher: RandomState::new(), name, name_of: None, config, max }
    }
}

impl<K: Hash + Eq, S: BuildHasher> CircuitBreakers<K, S> {
    /// Names each breaker by its key. Otherwise all have the builder's name.
    #[must_use]
    pub fn with_names(mut self, name_of: impl Fn(&K) -> Name + Send + Sync + 'static) -> Self {
        self.name_of = Some(Box::new(name_of));
        self
    }

    /// Hashes keys by `hasher`. What was held is forgotten.
    #[must_use]
    pub fn with_hasher<H: BuildHasher>(self, hasher: H) -> CircuitBreakers<K, H> {
        let Self { name, name_of, config, max, .. } = self;
        let shards = CircuitBreakers::<K>::from_parts(None, Arc::clone(&config), max).shards;
        CircuitBreakers { shards, hasher, name, name_of, config, max }
    }

    /// The breaker of `key`, made if there is none yet.
    ///
    /// Hold it for a call, not for ever: what someone holds is not evicted.
    pub fn get<Q>(&self, key: &Q) -> CircuitBreaker
    where
        K: Borrow<Q> + From<Q::Owned>,
        Q: Hash + Eq + ToOwned + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let found = self.read(hash).find(hash, key).map(Slot::touch);
        found.unwrap_or_else(|| self.make(hash, key.to_owned().into()))
    }

    /// The breaker of `key`, if it is held.
    pub fn find<Q>(&self, key: &Q) -> Option<CircuitBreaker>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        self.read(hash).find(hash, key).map(Slot::touch)
    }

    /// [`get`](Self::get) for a key that is at hand as a whole.
    #[cfg(feature = "tower")]
    pub(crate) fn get_owned(&self, key: K) -> CircuitBreaker {
        let hash = self.hasher.hash_one(&key);
        let found = self.read(hash).find(hash, &key).map(Slot::touch);
        found.unwrap_or_else(|| self.make(hash, key))
    }

    /// Forgets the breaker of `key`, whatever its state, and returns it.
    pub fn remove<Q>(&self, key: &Q) -> Option<CircuitBreaker>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let removed = {
            let mut shard = self.write(hash);
            let at = shard.position(hash, key)?;
            shard.remove(at)
        };
        Some(removed.breaker)
    }

    /// Evicts those that were not used since this was last called (or since they had to make room), and says how many.
    /// Never one that may not be evicted. Call it now and then if keys come and go.
    pub fn evict_idle(&self) -> usize {
        let mut count = 0;
        for shard in &self.shards {
            let mut idle = Vec::new();
            {
                let mut shard = shard.0.write().unwrap_or_else(PoisonError::into_inner);
                for at in (0..shard.slots.len()).rev() {
                    let slot = &shard.slots[at];
                    if slot.use_of.swap(IDLE, Relaxed) == IDLE && slot.breaker.is_evictable() {
                        idle.push(shard.remove(at));
                    }
                }
            }
            count += idle.len();
        }
        count
    }

    /// How many are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.0.read().unwrap_or_else(PoisonError::into_inner).slots.len())
            .sum()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys and breakers that are held, in no order. Those of one shard are of one moment.
    #[must_use]
    pub fn to_vec(&self) -> Vec<(K, CircuitBreaker)>
    where
        K: Clone,
    {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.0.read().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.slots.iter().map(|slot| (slot.key.clone(), slot.breaker.clone())));
        }
        all
    }

    #[cold]
    fn make(&self, hash: u64, key: K) -> CircuitBreaker {
        let name = self.name_of.as_ref().map(|name_of| name_of(&key)).or_else(|| self.name.clone());
        let breaker = CircuitBreaker::from_parts(name, Arc::clone(&self.config));
        // Dropped after the lock.
        let _evicted;
        let mut shard = self.write(hash);
        // Someone may have made it meanwhile.
        if let Some(slot) = shard.find(hash, &key) {
            return slot.touch();
        }
        if shard.slots.len() >= shard.max {
            _evicted = match shard.candidate() {
                Some(at) => shard.remove(at),
                None => return breaker,
            };
        }
        shard.insert(Slot { hash, key, breaker: breaker.clone(), use_of: AtomicU8::new(NEW) });
        breaker
    }

    // Keys do not change their shard for having the same lowest or highest bits, which the table uses.
    fn shard(&self, hash: u64) -> &RwLock<Shard<K>> {
        &self.shards[(hash >> 32) as usize & (self.shards.len() - 1)].0
    }

    // A poisoned lock: `Eq` of a key panicked, before anything was changed.
    fn read(&self, hash: u64) -> RwLockReadGuard<'_, Shard<K>> {
        self.shard(hash).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, hash: u64) -> RwLockWriteGuard<'_, Shard<K>> {
        self.shard(hash).write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Slot<K> {
    fn touch(&self) -> CircuitBreaker {
        if self.use_of.load(Relaxed) != USED {
            self.use_of.store(USED, Relaxed);
        }
        self.breaker.clone()
    }
}

impl<K> Shard<K> {
    fn position<Q: Eq + ?Sized>(&self, hash: u64, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        self.index.find(hash, |at| self.slots[*at].key.borrow() == key).copied()
    }

    fn find<Q: Eq + ?Sized>(&self, hash: u64, key: &Q) -> Option<&Slot<K>>
    where
        K: Borrow<Q>,
    {
        self.position(hash, key).map(|at| &self.slots[at])
    }

    fn insert(&mut self, slot: Slot<K>) {
        let slots = &self.slots;
        self.index.insert_unique(slot.hash, slots.len(), |at| slots[*at].hash);
        self.slots.push(slot);
    }

    fn remove(&mut self, at: usize) -> Slot<K> {
        let last = self.slots.len() - 1;
        for (hash, was, is) in [(self.slots[at].hash, at, None), (self.slots[last].hash, last, Some(at))] {
            match self.index.find_entry(hash, |entry| *entry == was) {
                Ok(mut entry) => match is {
                    Some(at) => *entry.get_mut() = at,
                    None => drop(entry.remove()),
                },
                Err(_) => debug_assert_eq!(at, last, "every slot has its entry"),
            }
        }
        self.slots.swap_remove(at)
    }

    /// Which one to evict: the next that was not used again since it was made or the hand last came by, or the first that was.
    fn candidate(&mut self) -> Option<usize> {
        let mut second_best = None;
        for _ in 0..LOOKS.min(self.slots.len() * 2) {
            let at = self.hand % self.slots.len();
            self.hand = at + 1;
            let slot = &self.slots[at];
            if !slot.breaker.is_evictable() {
                continue;
            }
            if slot.use_of.swap(IDLE, Relaxed) != USED {
                return Some(at);
            }
            second_best = second_best.or(Some(at));
        }
        second_best
    }
}

impl<K, S> fmt::Debug for CircuitBreakers<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakers")
            .field("name", &self.name)
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}
