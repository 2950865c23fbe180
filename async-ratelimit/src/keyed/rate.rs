use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_policy::{ConfigError, Name, PolicyKind, Reason, Rejection};

use super::DEFAULT_MAX_KEYS;
use super::shards::{ByHash, Shards};
use crate::event::{Event, emit};
use crate::queue::{Queue, queue_and_name};
use crate::rate::{
    Cells, Desk, Engine, Line, Quota, RateSnapshot, Watch, acquire, refuse, rejection, snapshot,
    warn_if_too_fine,
};
use crate::wake::wake_all;

/// Idle keys are looked for so often, while new ones come: most come again, and to forget them each time costs more than room.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// A [`RateLimit`](crate::RateLimit) for each key: each client, tenant, host.
///
/// # Memory
///
/// Each key that has used cells lately costs 16 bytes and its share of a hash table, whatever the key's own length: only a hash
/// under a random seed is kept. In all at most 64 bytes times [`max_keys`](KeyedRateLimitBuilder::with_max_keys), and 64 KiB.
/// A key that somebody waits for costs up to 400 bytes more so long, and a further waiter some 60, besides their own futures.
/// (Among a million keys the odds that some two share a hash, and so a limit, are one in 37 million.)
///
/// A key whose burst is full again is as good as unknown, and evicted within ten seconds while new keys come. With more busy keys than `max_keys`, the
/// busy ones that have used least are forgotten first, and begin again with a full burst. Keys that somebody waits for are never
/// forgotten: with seven eighths of the room taken by them nobody can wait for a further key ([`Reason::TooManyKeys`]).
///
/// Room is kept per shard, of which there are at least 64, each with a margin: a small `max_keys` is only a rough bound (several
/// hundred keys are kept even where it says 1).
///
/// ```
/// use async_ratelimit::{KeyedRateLimit, Quota};
///
/// let limit = KeyedRateLimit::<str>::builder(Quota::per_minute(60).with_burst(1)).build().unwrap();
/// limit.try_acquire("alice").unwrap();
/// limit.try_acquire("bob").unwrap();
/// assert!(limit.try_acquire("alice").is_err());
/// ```
pub struct KeyedRateLimit<K: ?Sized> {
    shared: Arc<Shared>,
    key: PhantomData<fn(&K)>,
}

struct Shared {
    watch: Watch,
    shards: Shards<Shard>,
    /// The one in force; locked while it is changed in one shard after the other, so that the last change is the last for every key.
    quota: Mutex<Quota>,
    queue: Queue,
    name: Option<Name>,
}

/// Some keys, behind one lock.
#[derive(Debug)]
struct Shard {
    quota: Quota,
    engine: Engine,
    /// The arrival times.
    used: ByHash<u64>,
    /// Only the keys that somebody waits for.
    lines: ByHash<Line>,
    room: usize,
    /// When idle keys are looked for next.
    sweep_at: u64,
}

/// Builds a [`KeyedRateLimit`].
///
/// # Default
///
/// 100,000 keys. No queue: who finds no cell is refused. Unnamed.
///
/// # Configuration
///
/// With the feature `serde`, from these fields; what is invalid is refused with field and value when it is read:
///
/// | field | value |
/// |---|---|
/// | `quota.cells` | cells per period; required |
/// | `quota.period` | as `"1s"`; required |
/// | `quota.burst` | cells at once after a pause; without it as many as `cells` |
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
    serde(try_from = "crate::serde::RawKeyedRateLimit", bound = "")
)]
pub struct KeyedRateLimitBuilder<K: ?Sized> {
    quota: Quota,
    queue: Queue,
    name: Option<Name>,
    max_keys: usize,
    key: PhantomData<fn(&K)>,
}

impl<K: ?Sized> KeyedRateLimitBuilder<K> {
    pub(crate) const fn of(quota: Quota, queue: Queue, name: Option<Name>, max_keys: usize) -> Self {
        Self { quota, queue, name, max_keys, key: PhantomData }
    }

    /// How many busy keys are kept at least before any is forgotten; it bounds the memory. Some more may be kept, and of a small number
    /// many more: see [Memory](KeyedRateLimit#memory).
    pub const fn with_max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = max_keys;
        self
    }

    queue_and_name!(
        "Lets up to `max_len` callers wait for each key, first come, first served, each for at most `max_wait`; `None` for as long as it takes."
    );

    /// Builds the limit, with a full burst for every key.
    ///
    /// # Errors
    ///
    /// - As [`RateLimitBuilder::build`](crate::RateLimitBuilder::build).
    /// - `max_keys`: zero, or more than 2^32.
    pub fn build(self) -> Result<KeyedRateLimit<K>, ConfigError> {
        let Self { quota, queue, name, max_keys, .. } = self;
        let engine = Engine::new(quota)?;
        let shards = Shards::new(max_keys, |room| Shard {
            quota,
            engine,
            used: ByHash::default(),
            lines: ByHash::default(),
            room,
            sweep_at: SWEEP_EVERY.as_nanos() as u64,
        })?;
        warn_if_too_fine(quota, queue, name.as_ref());
        let shared = Shared { watch: Watch::new(), shards, quota: Mutex::new(quota), queue, name };
        Ok(KeyedRateLimit { shared: Arc::new(shared), key: PhantomData })
    }
}

/// As the limit that it is of.
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut limit = f.debug_struct("KeyedRateLimit");
        limit.field("name", &self.name.as_deref()).field("quota", &*self.quota()).finish_non_exhaustive()
    }
}

impl Shared {
    fn quota(&self) -> MutexGuard<'_, Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    /// The arrival time of a key, which makes room for it where it is new.
    fn state(&mut self, hash: u64, now: u64) -> &mut u64 {
        if !self.used.contains_key(&hash) {
            self.sweep(now);
        }
        self.used.entry(hash).or_default()
    }

    /// Whether nobody waits for the key and there are `n` cells.
    #[inline]
    fn take(&mut self, hash: u64, n: NonZeroU32, now: u64) -> bool {
        if !self.lines.is_empty() && self.lines.contains_key(&hash) {
            return false;
        }
        let engine = self.engine;
        let arrival = match self.used.get_mut(&hash) {
            Some(arrival) => arrival,
            // To no key but a new one this makes a difference: what it can never have must not cost another its state.
            None if n > engine.burst => return false,
            None => self.state(hash, now),
        };
        let taken = engine.take(*arrival, now, n);
        *arrival = taken.unwrap_or(*arrival);
        taken.is_some()
    }

    /// Whether as many other keys are waited for as may be: they cannot be forgotten, and some must be.
    fn is_crowded(&self, hash: u64) -> bool {
        self.lines.len() >= self.room - self.room / 8 && !self.lines.contains_key(&hash)
    }

    /// What a key has, without a state of its own where it is new.
    fn look(&self, hash: u64, now: u64) -> Cells {
        Cells { engine: self.engine, arrival: self.used.get(&hash).copied().unwrap_or(0), now }
    }

    fn at_line<R>(&mut self, hash: u64, now: u64, work: impl FnOnce(&mut Line, &mut Cells) -> R) -> R {
        let mut line = self.lines.remove(&hash).unwrap_or_else(Line::new);
        let mut cells = self.look(hash, now);
        let before = cells.arrival;
        let result = work(&mut line, &mut cells);
        if cells.arrival != before || !line.is_empty() {
            *self.state(hash, now) = cells.arrival;
        }
        if !line.is_empty() {
            self.lines.insert(hash, line);
        } else if self.lines.capacity() > 64 && self.lines.len() < self.lines.capacity() / 8 {
            self.lines.shrink_to(64);
        }
        result
    }

    /// Forgets the idle keys, now and then; and some busy ones, if there is no other room.
    fn sweep(&mut self, now: u64) {
        if self.used.len() < self.room && now < self.sweep_at {
            return;
        }
        let Self { used, lines, .. } = self;
        used.retain(|hash, arrival| *arrival > now || lines.contains_key(hash));
        if used.len() >= self.room {
            // The eighth that has used least, by the measure of a sample.
            let kept = self.room - self.room / 8;
            let mut sample: Vec<u64> = used.values().take(64).copied().collect();
            sample.sort_unstable();
            let least = sample[sample.len() / 8];
            let mut surplus = used.len() - kept;
            used.retain(|hash, arrival| {
                let goes = surplus > 0 && *arrival <= least && !lines.contains_key(hash);
                surplus -= usize::from(goes);
                !goes
            });
        }
        if used.len() < used.capacity() / 4 {
            used.shrink_to(used.len() * 2);
        }
        if used.len() >= self.room {
            // Nobody could be forgotten by the sample: then whoever comes first.
            let first = used.keys().find(|hash| !lines.contains_key(*hash)).copied();
            if let Some(hash) = first {
                used.remove(&hash);
            }
        }
        self.sweep_at = now.saturating_add(SWEEP_EVERY.as_nanos() as u64);
    }
}

impl<K: Hash + ?Sized> KeyedRateLimit<K> {
    /// Begins a limit of `quota` for each key.
    pub const fn builder(quota: Quota) -> KeyedRateLimitBuilder<K> {
        KeyedRateLimitBuilder::of(quota, Queue::NONE, None, DEFAULT_MAX_KEYS)
    }

    /// The limit of one key: a policy of its own.
    pub fn key(&self, key: &K) -> RateLimitKey<'_> {
        RateLimitKey { shared: &self.shared, hash: self.shared.shards.hash(key) }
    }

    /// Takes a cell of `key` if there is one and nobody waits for it.
    ///
    /// # Errors
    ///
    /// As [`RateLimit::try_acquire`](crate::RateLimit::try_acquire).
    pub fn try_acquire(&self, key: &K) -> Result<(), Rejection> {
        self.key(key).try_acquire_many(1)
    }

    /// Takes a cell of `key`, waiting for it where the queue allows.
    ///
    /// # Errors
    ///
    /// As [`RateLimit::acquire_many`](crate::RateLimit::acquire_many), and [`Reason::TooManyKeys`] where as many keys are waited for as
    /// may be.
    ///
    /// # Cancel safety
    ///
    /// As [`RateLimit::acquire_many`](crate::RateLimit::acquire_many).
    pub async fn acquire(&self, key: &K) -> Result<(), Rejection> {
        let key = self.key(key);
        key.acquire_many(1).await
    }

    /// Changes the quota of every key at once, without losing anybody who waits. Cells already used stay used, up to a full burst. The
    /// burst changes with it: see [`RateLimit::set_quota`](crate::RateLimit::set_quota).
    ///
    /// Costs time in proportion to the keys, one shard after the other.
    ///
    /// # Errors
    ///
    /// As [`KeyedRateLimitBuilder::build`]; nothing is changed then.
    pub fn set_quota(&self, quota: Quota) -> Result<(), ConfigError> {
        let engine = Engine::new(quota)?;
        let mut wakers = Vec::new();
        let mut in_force = self.shared.quota();
        let from = std::mem::replace(&mut *in_force, quota);
        for mut shard in self.shared.shards.each() {
            let (shard, now) = (&mut *shard, self.shared.watch.now());
            let change = |arrival: &mut u64| {
                let mut cells = Cells { engine: shard.engine, arrival: *arrival, now };
                cells.change(engine);
                *arrival = cells.arrival;
                cells
            };
            shard.used.values_mut().for_each(|arrival| _ = change(arrival));
            (shard.quota, shard.engine, shard.sweep_at) = (quota, engine, 0);
            for (hash, line) in &mut shard.lines {
                let arrival = shard.used.get(hash).copied().unwrap_or(0);
                line.reckon(&Cells { engine, arrival, now }, &mut wakers);
            }
        }
        drop(in_force);
        wake_all(wakers.into_iter());
        let name = self.shared.name.as_ref();
        emit(PolicyKind::RateLimit, name, &Event::QuotaChanged { from, to: quota });
        warn_if_too_fine(quota, self.shared.queue, name);
        Ok(())
    }

    /// The quota in force for each key.
    pub fn quota(&self) -> Quota {
        *self.shared.quota()
    }

    /// How many keys are kept: the busy ones, and idle ones not yet evicted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.shards.each().map(|shard| shard.used.len()).sum()
    }

    /// Whether no key is kept.
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

#[cfg(feature = "http")]
impl<K: ?Sized> KeyedRateLimit<K> {
    pub(crate) fn seed(&self) -> &std::collections::hash_map::RandomState {
        self.shared.shards.seed()
    }
}

impl<K: ?Sized> Clone for KeyedRateLimit<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), key: PhantomData }
    }
}

impl<K: ?Sized> fmt::Debug for KeyedRateLimit<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// The rate limit of one key: see [`KeyedRateLimit::key`].
#[derive(Clone, Copy, Debug)]
pub struct RateLimitKey<'a> {
    shared: &'a Shared,
    hash: u64,
}

impl RateLimitKey<'_> {
    /// Takes a cell if there is one and nobody waits for this key.
    ///
    /// # Errors
    ///
    /// As [`RateLimit::try_acquire`](crate::RateLimit::try_acquire).
    pub fn try_acquire(&self) -> Result<(), Rejection> {
        self.try_acquire_many(1)
    }

    /// Takes `n` cells, if there are so many and nobody waits for this key; else none.
    ///
    /// # Errors
    ///
    /// As [`RateLimit::try_acquire_many`](crate::RateLimit::try_acquire_many).
    pub fn try_acquire_many(&self, n: u32) -> Result<(), Rejection> {
        let Some(cells) = NonZeroU32::new(n) else { return Ok(()) };
        let now = self.shared.watch.now();
        let mut shard = self.shared.shards.lock(self.hash);
        if shard.take(self.hash, cells, now) {
            return Ok(());
        }
        let ahead = shard.lines.get(&self.hash).map_or(0, Line::cells);
        let refusal = refuse(Reason::LimitReached, n, ahead, &shard.look(self.hash, now));
        drop(shard);
        Err(rejection(refusal, self.shared.name.as_ref()))
    }

    /// Takes a cell, waiting for it where the queue allows.
    ///
    /// # Errors
    ///
    /// As [`RateLimit::acquire_many`](crate::RateLimit::acquire_many), and [`Reason::TooManyKeys`] where as many keys are waited for as
    /// may be.
    ///
    /// # Cancel safety
    ///
    /// As [`RateLimit::acquire_many`](crate::RateLimit::acquire_many).
    pub async fn acquire(&self) -> Result<(), Rejection> {
        self.acquire_many(1).await
    }

    /// Takes `n` cells, waiting for them where the queue allows.
    ///
    /// # Errors
    ///
    /// As [`RateLimit::acquire_many`](crate::RateLimit::acquire_many), and [`Reason::TooManyKeys`] where as many keys are waited for as
    /// may be.
    ///
    /// # Cancel safety
    ///
    /// As [`RateLimit::acquire_many`](crate::RateLimit::acquire_many).
    pub async fn acquire_many(&self, n: u32) -> Result<(), Rejection> {
        acquire(*self, n).await
    }

    /// What the limit of this key looks like now.
    #[must_use]
    pub fn snapshot(&self) -> RateSnapshot {
        let now = self.shared.watch.now();
        let shard = self.shared.shards.lock(self.hash);
        let (nobody, cells) = (Line::new(), shard.look(self.hash, now));
        snapshot(shard.quota, shard.lines.get(&self.hash).unwrap_or(&nobody), &cells)
    }
}

impl Desk for RateLimitKey<'_> {
    fn take_now(&self, n: u32) -> bool {
        let now = self.shared.watch.now();
        NonZeroU32::new(n).is_none_or(|n| self.shared.shards.lock(self.hash).take(self.hash, n, now))
    }

    fn try_now(&self, n: u32) -> Result<(), Rejection> {
        self.try_acquire_many(n)
    }

    fn is_crowded(&self) -> bool {
        self.shared.shards.lock(self.hash).is_crowded(self.hash)
    }

    fn at_line<R>(&self, work: impl FnOnce(&mut Line, &mut Cells) -> R) -> R {
        let mut shard = self.shared.shards.lock(self.hash);
        shard.at_line(self.hash, self.shared.watch.now(), work)
    }

    fn queue(&self) -> Queue {
        self.shared.queue
    }

    fn name(&self) -> Option<&Name> {
        self.shared.name.as_ref()
    }
}
