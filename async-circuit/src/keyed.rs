use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_policy::Name;
use hashbrown::HashTable;

use crate::config::Config;
use crate::{CircuitBreaker, Event};

/// More shards than this do not make reading faster.
const MOST_SHARDS: usize = 64;
/// A shard for fewer keys than this is not worth its lock.
const KEYS_IN_A_SHARD: usize = 32;
/// How many held breakers are looked at to find one to evict, in the new key's shard and in all others together.
const LOOKS: usize = 64;

/// Circuit breakers by key (host, tenant, …), made on demand, all alike:
/// [`build_keyed`](crate::CircuitBreakerBuilder::build_keyed).
///
/// At most a set number is held. When a new key comes and there is no room, one that was not used for the longest time, or
/// nearly so, is evicted: never one that is in use (someone holds a clone of it), whose mode was changed by hand, or
/// whose circuit is not closed. (A circuit that nobody calls stays open: it can be evicted once its open time has been over for
/// four times as long as it was.) If none of those looked at can be, the new key gets a breaker that is not held: it lets
/// the call through and is forgotten after it, which the listener hears as [`Event::NotHeld`]. What is set on such a
/// breaker is forgotten with it: to set a mode or restore a state, use [`hold`](Self::hold).
///
/// Reading takes the read lock of one of several shards (one for about every 32 breakers there is room for, 64 at most), which
/// those who read do not wait for. The room is that of all shards together.
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
    /// How many are held or about to be: at most `max`.
    held: AtomicUsize,
    /// How many were made so far.
    made: AtomicU64,
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
}

/// Room for one breaker, given back unless it is used.
struct Room<'h>(&'h AtomicUsize);

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
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
        let shard = || Padded(RwLock::new(Shard { index: HashTable::new(), slots: Vec::new(), hand: 0 }));
        let shards = std::iter::repeat_with(shard).take(count).collect();
        let (held, made) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { shards, held, made, hasher: RandomState::new(), name, name_of: None, config, max }
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
        let (held, made) = (AtomicUsize::new(0), AtomicU64::new(0));
        CircuitBreakers { shards, held, made, hasher, name, name_of, config, max }
    }

    /// The breaker of `key`, made if there is none yet.
    ///
    /// Hold it for a call, not for ever: what someone holds is not evicted.
    pub fn get<Q>(&self, key: &Q) -> CircuitBreaker
    where
        K: Borrow<Q> + From<Q::Owned>,
        Q: Hash + Eq + ToOwned + ?Sized,
    {
        let hash = self.hash(key);
        self.look_up(hash, key).unwrap_or_else(|| held_or_not(self.make(hash, key.to_owned().into())))
    }

    /// The breaker of `key`, if it is held.
    pub fn find<Q>(&self, key: &Q) -> Option<CircuitBreaker>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.look_up(self.hash(key), key)
    }

    /// As [`get`](Self::get), but `None` if there is no room to hold the breaker. Use this to set its
    /// [mode](CircuitBreaker::set_mode) or to [restore](CircuitBreaker::restore) it: on one that is not held, that would be lost
    /// after the call.
    pub fn hold<Q>(&self, key: &Q) -> Option<CircuitBreaker>
    where
        K: Borrow<Q> + From<Q::Owned>,
        Q: Hash + Eq + ToOwned + ?Sized,
    {
        let hash = self.hash(key);
        self.look_up(hash, key).or_else(|| self.make(hash, key.to_owned().into()).ok())
    }

    /// [`get`](Self::get) for a key that is at hand as a whole.
    #[cfg(feature = "tower")]
    pub(crate) fn get_owned(&self, key: K) -> CircuitBreaker {
        let hash = self.hash(&key);
        self.look_up(hash, &key).unwrap_or_else(|| held_or_not(self.make(hash, key)))
    }

    /// Forgets the breaker of `key`, whatever its state, and returns it.
    pub fn remove<Q>(&self, key: &Q) -> Option<CircuitBreaker>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hash(key);
        let removed = {
            let mut shard = self.write(hash);
            let at = shard.position(hash, key)?;
            shard.remove(at)
        };
        drop(Room(&self.held));
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
            self.held.fetch_sub(idle.len(), Relaxed);
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

    fn look_up<Q>(&self, hash: u64, key: &Q) -> Option<CircuitBreaker>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        self.read(hash).find(hash, key).map(Slot::touch)
    }

    /// Makes a breaker; it is the `Err` if there is no room to hold it.
    #[cold]
    fn make(&self, hash: u64, key: K) -> Result<CircuitBreaker, CircuitBreaker> {
        let name = self.name_of.as_ref().map(|name_of| name_of(&key)).or_else(|| self.name.clone());
        let nth = self.made.fetch_add(1, Relaxed);
        let breaker = CircuitBreaker::from_parts(name, Arc::clone(&self.config), nth);
        // These are dropped after the lock.
        let mut room = self.take_room();
        let _evicted;
        let mut shard = self.write(hash);
        // Someone may have made it meanwhile.
        if let Some(slot) = shard.find(hash, &key) {
            return Ok(slot.touch());
        }
        if room.is_none() {
            let mut looks = LOOKS;
            let mut evicted = shard.evict(&mut looks);
            if evicted.is_none() {
                drop(shard);
                evicted = self.evict_elsewhere();
                shard = self.write(hash);
            }
            // Its room is now ours.
            room = evicted.as_ref().map(|_| Room(&self.held));
            _evicted = evicted;
            if let Some(slot) = shard.find(hash, &key) {
                return Ok(slot.touch());
            }
        }
        let Some(room) = room else { return Err(breaker) };
        shard.insert(Slot { hash, key, breaker: breaker.clone(), use_of: AtomicU8::new(NEW) });
        std::mem::forget(room);
        Ok(breaker)
    }

    fn take_room(&self) -> Option<Room<'_>> {
        let more = |held| (held < self.max.get()).then_some(held + 1);
        self.held.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Room(&self.held))
    }

    /// Evicts one of any shard. (The next call begins at another.)
    fn evict_elsewhere(&self) -> Option<Slot<K>> {
        let mut looks = LOOKS;
        let (before, from) = self.shards.split_at(fastrand::usize(..self.shards.len()));
        from.iter().chain(before).find_map(|shard| {
            if looks == 0 {
                return None;
            }
            shard.0.write().unwrap_or_else(PoisonError::into_inner).evict(&mut looks)
        })
    }

    // A hasher may leave most bits of a hash alike (that of an id often is the id), and the table as well as the shards
    // want all of them to differ: the two halves of a wide product do.
    fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        // The golden ratio's fraction: its bits have no pattern.
        const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
        let wide = u128::from(self.hasher.hash_one(key)) * u128::from(FACTOR);
        (wide >> 64) as u64 ^ wide as u64
    }

    // By bits in the middle: the table uses the lowest and the highest.
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

fn held_or_not(made: Result<CircuitBreaker, CircuitBreaker>) -> CircuitBreaker {
    made.unwrap_or_else(|breaker| {
        breaker.emit(|| Event::NotHeld);
        breaker
    })
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
        let removed = self.slots.swap_remove(at);
        if let Ok(entry) = self.index.find_entry(removed.hash, |entry| *entry == at) {
            entry.remove();
        }
        // The last slot has moved into the gap.
        if let Some(moved) = self.slots.get(at) {
            let was = self.slots.len();
            self.index.find_mut(moved.hash, |entry| *entry == was).into_iter().for_each(|entry| *entry = at);
        }
        removed
    }

    /// Takes out the next that was not used again since it was made or the hand last came by, or the first that was, if there is
    /// one within so many looks.
    fn evict(&mut self, looks: &mut usize) -> Option<Slot<K>> {
        let mut second_best = None;
        for _ in 0..self.slots.len() {
            if *looks == 0 {
                break;
            }
            *looks -= 1;
            let at = self.hand % self.slots.len();
            self.hand = at + 1;
            let slot = &self.slots[at];
            if !slot.breaker.is_evictable() {
                continue;
            }
            if slot.use_of.swap(IDLE, Relaxed) != USED {
                return Some(self.remove(at));
            }
            second_best = second_best.or(Some(at));
        }
        second_best.map(|at| self.remove(at))
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
