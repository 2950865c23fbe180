use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use async_policy::{ConfigError, Name, PolicyKind, Reason, Rejection};

use super::DEFAULT_MAX_KEYS;
use super::shards::{ByHash, Shards};
use crate::concurrency::{ConcurrencySnapshot, Semaphore, Shared as One, check_limit};
use crate::event::{Event, emit};
use crate::queue::{Queue, queue_and_name};
use crate::wake::wake_all;

/// A [`ConcurrencyLimit`](crate::ConcurrencyLimit) for each key: each client, tenant, host.
///
/// A key is kept while it has operations in flight or waiting, and evicted with the last of them. Only a hash of it is kept,
/// under a random seed. With [`max_keys`](KeyedConcurrencyLimitBuilder::with_max_keys) of them busy, further keys are refused
/// ([`Reason::TooManyKeys`]), though they themselves have nothing in flight.
///
/// Room is kept per shard, of which there are at least 64, each with a margin: at least `max_keys` keys may be busy, some more where it is
/// large, and where it is small many more (several hundred even where it says 1).
///
/// ```
/// use async_ratelimit::KeyedConcurrencyLimit;
///
/// let limit = KeyedConcurrencyLimit::<str>::builder(1).build().unwrap();
/// let permit = limit.try_acquire("alice").unwrap();
/// assert!(limit.try_acquire("alice").is_err());
/// assert!(limit.try_acquire("bob").is_ok());
/// drop(permit);
/// assert!(limit.is_empty());
/// ```
pub struct KeyedConcurrencyLimit<K: ?Sized> {
    shared: Arc<Shared>,
    key: PhantomData<fn(&K)>,
}

struct Shared {
    shards: Shards<Shard>,
    /// Held while the limit is changed in one shard after the other, so that the last change is the last for every key.
    change: Mutex<()>,
    queue: Queue,
    name: Option<Name>,
}

#[derive(Debug)]
struct Shard {
    limit: u32,
    room: usize,
    busy: ByHash<Busy>,
}

/// The limit of a key, while it is used.
#[derive(Debug)]
struct Busy {
    one: Arc<One>,
    /// How many use it.
    claims: usize,
}

/// Builds a [`KeyedConcurrencyLimit`].
///
/// # Default
///
/// 100,000 busy keys. No queue: who finds no room is refused. Unnamed.
///
/// # Configuration
///
/// With the feature `serde`, from these fields; what is invalid is refused with field and value when it is read:
///
/// | field | value |
/// |---|---|
/// | `limit` | at least 1; required |
/// | `max_keys` | without it 100,000 |
/// | `queue` | without it nobody waits |
/// | `queue.max_len` | how many may wait; required in a `queue` |
/// | `queue.max_wait` | the longest wait, as `"1s 500ms"`; without it as long as it takes |
/// | `name` | the name that refusals carry |
#[must_use = "a builder does nothing until built"]
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Deserialize),
    serde(try_from = "crate::serde::RawKeyedConcurrencyLimit", bound = "")
)]
pub struct KeyedConcurrencyLimitBuilder<K: ?Sized> {
    limit: u32,
    queue: Queue,
    name: Option<Name>,
    max_keys: usize,
    key: PhantomData<fn(&K)>,
}

impl<K: ?Sized> KeyedConcurrencyLimitBuilder<K> {
    pub(crate) const fn of(limit: u32, queue: Queue, name: Option<Name>, max_keys: usize) -> Self {
        Self { limit, queue, name, max_keys, key: PhantomData }
    }

    /// How many keys may be busy at least before further ones are refused; it bounds the memory. It is a rough bound: see
    /// [`KeyedConcurrencyLimit`].
    pub const fn with_max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = max_keys;
        self
    }

    queue_and_name!(
        "Lets up to `max_len` callers wait for each key, first come, first served, each for at most `max_wait`; `None` for as long as it takes."
    );

    /// Builds the limit, with nothing in flight.
    ///
    /// # Errors
    ///
    /// - `limit`: zero.
    /// - `max_keys`: zero, or more than 2^32.
    pub fn build(self) -> Result<KeyedConcurrencyLimit<K>, ConfigError> {
        check_limit(self.limit)?;
        let shards =
            Shards::new(self.max_keys, |room| Shard { limit: self.limit, room, busy: ByHash::default() })?;
        let shared = Shared { shards, change: Mutex::new(()), queue: self.queue, name: self.name };
        Ok(KeyedConcurrencyLimit { shared: Arc::new(shared), key: PhantomData })
    }
}

impl<K: Hash + ?Sized> KeyedConcurrencyLimit<K> {
    /// Begins a limit of `limit` operations in flight for each key.
    pub const fn builder(limit: u32) -> KeyedConcurrencyLimitBuilder<K> {
        KeyedConcurrencyLimitBuilder::of(limit, Queue::NONE, None, DEFAULT_MAX_KEYS)
    }

    /// The limit of one key: a policy of its own.
    pub fn key(&self, key: &K) -> ConcurrencyLimitKey<'_> {
        ConcurrencyLimitKey { shared: &self.shared, hash: self.shared.shards.hash(key) }
    }

    /// Takes a permit of `key` if one is free and nobody waits for it.
    ///
    /// # Errors
    ///
    /// As [`ConcurrencyLimit::try_acquire`](crate::ConcurrencyLimit::try_acquire), and [`Reason::TooManyKeys`] where as many
    /// keys are busy as may be.
    pub fn try_acquire(&self, key: &K) -> Result<KeyedPermit, Rejection> {
        self.key(key).try_acquire_many(1)
    }

    /// Takes a permit of `key`, waiting for one where the queue allows.
    ///
    /// # Errors
    ///
    /// As [`ConcurrencyLimit::acquire_many`](crate::ConcurrencyLimit::acquire_many), and [`Reason::TooManyKeys`] where as many
    /// keys are busy as may be.
    ///
    /// # Cancel safety
    ///
    /// As [`ConcurrencyLimit::acquire_many`](crate::ConcurrencyLimit::acquire_many).
    pub async fn acquire(&self, key: &K) -> Result<KeyedPermit, Rejection> {
        let key = self.key(key);
        key.acquire_many(1).await
    }

    /// Changes the limit of every key at once, without losing anybody who waits: see
    /// [`ConcurrencyLimit::set_limit`](crate::ConcurrencyLimit::set_limit).
    ///
    /// # Errors
    ///
    /// `limit`: zero.
    pub fn set_limit(&self, limit: u32) -> Result<(), ConfigError> {
        check_limit(limit)?;
        let (mut from, mut changed) = (limit, Vec::new());
        let change = self.shared.change.lock().unwrap_or_else(PoisonError::into_inner);
        for mut shard in self.shared.shards.each() {
            from = std::mem::replace(&mut shard.limit, limit);
            for busy in shard.busy.values() {
                busy.one.semaphore.set_limit_only(limit);
                changed.push(Arc::clone(&busy.one));
            }
        }
        drop(change);
        // Without a lock, because it wakes.
        wake_all(changed.iter().flat_map(|one| one.semaphore.let_in()));
        let event = Event::LimitChanged { from, to: limit };
        emit(PolicyKind::ConcurrencyLimit, self.shared.name.as_ref(), &event);
        Ok(())
    }

    /// How many keys have operations in flight or waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.shards.each().map(|shard| shard.busy.len()).sum()
    }

    /// Whether nothing is in flight or waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name that refusals carry.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }
}

/// As the limit that it is of.
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedConcurrencyLimit").field("name", &self.name.as_deref()).finish_non_exhaustive()
    }
}

impl<K: ?Sized> Clone for KeyedConcurrencyLimit<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), key: PhantomData }
    }
}

impl<K: ?Sized> fmt::Debug for KeyedConcurrencyLimit<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// The concurrency limit of one key: see [`KeyedConcurrencyLimit::key`].
#[derive(Clone, Copy, Debug)]
pub struct ConcurrencyLimitKey<'a> {
    shared: &'a Arc<Shared>,
    hash: u64,
}

impl ConcurrencyLimitKey<'_> {
    /// The key's own limit, kept for as long as the claim is.
    fn claim(&self) -> Result<Claim, Rejection> {
        let mut shard = self.shared.shards.lock(self.hash);
        let Shard { limit, room, busy } = &mut *shard;
        if busy.len() >= *room && !busy.contains_key(&self.hash) {
            drop(shard);
            return Err(One::rejection(self.shared.name.as_ref(), Reason::TooManyKeys));
        }
        let busy = busy.entry(self.hash).or_insert_with(|| {
            let (queue, name) = (self.shared.queue, self.shared.name.clone());
            Busy { one: Arc::new(One { semaphore: Semaphore::new(*limit), queue, name }), claims: 0 }
        });
        busy.claims += 1;
        let one = Arc::clone(&busy.one);
        drop(shard);
        Ok(Claim { one, home: Arc::clone(self.shared), hash: self.hash })
    }

    /// Takes a permit if one is free and nobody waits for this key.
    ///
    /// # Errors
    ///
    /// As [`KeyedConcurrencyLimit::try_acquire`].
    pub fn try_acquire(&self) -> Result<KeyedPermit, Rejection> {
        self.try_acquire_many(1)
    }

    /// Takes a permit that counts as `weight`, if so much is free and nobody waits for this key.
    ///
    /// # Errors
    ///
    /// As [`KeyedConcurrencyLimit::try_acquire`], and [`Reason::ExceedsCapacity`] if `weight` is above the limit itself.
    pub fn try_acquire_many(&self, weight: u32) -> Result<KeyedPermit, Rejection> {
        let claim = self.claim()?;
        claim.one.try_acquire(weight)?;
        Ok(KeyedPermit { claim, weight })
    }

    /// Takes a permit, waiting for one where the queue allows.
    ///
    /// # Errors
    ///
    /// As [`KeyedConcurrencyLimit::acquire`].
    ///
    /// # Cancel safety
    ///
    /// As [`ConcurrencyLimit::acquire_many`](crate::ConcurrencyLimit::acquire_many).
    pub async fn acquire(&self) -> Result<KeyedPermit, Rejection> {
        self.acquire_many(1).await
    }

    /// Takes a permit that counts as `weight`, waiting for it where the queue allows.
    ///
    /// # Errors
    ///
    /// As [`KeyedConcurrencyLimit::acquire`].
    ///
    /// # Cancel safety
    ///
    /// As [`ConcurrencyLimit::acquire_many`](crate::ConcurrencyLimit::acquire_many).
    pub async fn acquire_many(&self, weight: u32) -> Result<KeyedPermit, Rejection> {
        let claim = self.claim()?;
        let since = claim.one.acquire(weight).await?;
        let permit = KeyedPermit { claim, weight };
        permit.claim.one.waited(since);
        Ok(permit)
    }

    /// What the limit of this key looks like now.
    #[must_use]
    pub fn snapshot(&self) -> ConcurrencySnapshot {
        let shard = self.shared.shards.lock(self.hash);
        let idle = ConcurrencySnapshot { limit: shard.limit, in_flight: 0, waiting: 0 };
        shard.busy.get(&self.hash).map_or(idle, |busy| busy.one.snapshot())
    }
}

/// Keeps a key's limit while it is used; the last to go evicts it.
#[derive(Debug)]
struct Claim {
    one: Arc<One>,
    home: Arc<Shared>,
    hash: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut shard = self.home.shards.lock(self.hash);
        let Some(busy) = shard.busy.get_mut(&self.hash) else { return };
        busy.claims -= 1;
        if busy.claims == 0 {
            shard.busy.remove(&self.hash);
            let few = shard.busy.len() < shard.busy.capacity() / 8;
            if few && shard.busy.capacity() > 64 {
                shard.busy.shrink_to(64);
            }
        }
    }
}

/// Room for one operation of one key; dropped, it is given back.
#[must_use = "a permit dropped at once limits nothing"]
#[derive(Debug)]
pub struct KeyedPermit {
    claim: Claim,
    weight: u32,
}

impl KeyedPermit {
    /// What it counts as.
    #[must_use]
    pub const fn weight(&self) -> u32 {
        self.weight
    }
}

impl Drop for KeyedPermit {
    fn drop(&mut self) {
        self.claim.one.semaphore.release(self.weight);
    }
}
