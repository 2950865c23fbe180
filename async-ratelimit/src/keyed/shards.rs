use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_policy::ConfigError;

/// A map by hashes, which need no hashing again.
pub(super) type ByHash<V> = HashMap<u64, V, BuildHasherDefault<AsIs>>;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

const LEAST_SHARDS: usize = 64;
const MOST_SHARDS: usize = 1024;
/// So many keys a shard makes the spread between shards small, and what is done under one lock short.
const KEYS_PER_SHARD: usize = 8192;

pub(crate) fn check_max_keys(max_keys: usize) -> Result<(), ConfigError> {
    if !(1..=1 << 32).contains(&max_keys) {
        return Err(ConfigError::new("max_keys", max_keys, "1 to 2^32"));
    }
    Ok(())
}

/// State by key behind many locks. Keys themselves are not kept, only their hashes under a random seed: a key of any length
/// costs the same memory, and nobody outside can find two that collide.
#[derive(Debug)]
pub(super) struct Shards<S> {
    seed: RandomState,
    shards: Box<[Mutex<S>]>,
}

impl<S> Shards<S> {
    /// Room for `max_keys` in all; `make` is told how many a shard has to hold.
    pub(super) fn new(max_keys: usize, make: impl Fn(usize) -> S) -> Result<Self, ConfigError> {
        check_max_keys(max_keys)?;
        let count = (max_keys / KEYS_PER_SHARD).next_power_of_two().clamp(LEAST_SHARDS, MOST_SHARDS);
        let mean = max_keys.div_ceil(count);
        // Hashes spread like a Poisson process: six deviations above the mean no shard is ever full before the whole is.
        let room = mean.saturating_add(6 * mean.isqrt()).saturating_add(8);
        let shards = (0..count).map(|_| Mutex::new(make(room))).collect();
        Ok(Self { seed: RandomState::new(), shards })
    }

    #[cfg(feature = "http")]
    pub(super) const fn seed(&self) -> &RandomState {
        &self.seed
    }

    pub(super) fn hash<K: Hash + ?Sized>(&self, key: &K) -> u64 {
        self.seed.hash_one(key)
    }

    /// The shard of a hash. Maps go by its low bits and its top seven, so the choice is by those between.
    pub(super) fn lock(&self, hash: u64) -> MutexGuard<'_, S> {
        let at = (hash >> 40) as usize & (self.shards.len() - 1);
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every shard, one after the other.
    pub(super) fn each(&self) -> impl Iterator<Item = MutexGuard<'_, S>> {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
