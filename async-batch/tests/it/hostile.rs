//! Runtimes that end, keys, items and loaders that panic where nobody expects it, callers who go away.

use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_batch::{Batcher, LoadError, WhenFull};
use futures_util::FutureExt;
use tokio::join;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

const fn n(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const SECOND: Duration = Duration::from_secs(1);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// Panics when dropped.
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.0 || std::thread::panicking(), "dropped");
    }
}

/// A batcher whose first batch was opened on a runtime that ended before its task was polled.
fn orphaned() -> Batcher<u32, u32, ()> {
    let batcher = Batcher::builder().build(async |keys: Vec<u32>| Ok::<_, ()>(keys));
    runtime().block_on(async { assert!(batcher.load(1).now_or_never().is_none()) });
    batcher
}

#[test]
fn a_batcher_outlives_the_runtime_its_batch_was_opened_on() {
    let batcher = orphaned();
    assert_eq!(runtime().block_on(async { timeout(SECOND, batcher.load(2)).await }), Ok(Ok(2)));
}

#[test]
fn a_batch_whose_runtime_has_ended_does_not_hold_up_the_shutdown() {
    let batcher = orphaned();
    assert_eq!(runtime().block_on(async { timeout(SECOND, batcher.shutdown()).await }), Ok(()));
}

#[test]
fn who_waits_for_a_batch_whose_runtime_ends_is_told() {
    let batcher = Batcher::builder().build(async |keys: Vec<u32>| Ok::<_, ()>(keys));
    let ends = runtime();
    let mut waits = Box::pin(batcher.load(1));
    ends.block_on(async { assert!((&mut waits).now_or_never().is_none()) });
    drop(ends);
    assert_eq!(runtime().block_on(async { timeout(SECOND, waits).await }), Ok(Err(LoadError::Aborted)));
}

static BOOM: AtomicBool = AtomicBool::new(false);

#[derive(PartialEq, Eq)]
struct Fragile(u32);

impl Hash for Fragile {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        assert!(!BOOM.swap(false, Ordering::SeqCst), "boom");
        self.0.hash(hasher);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_panics_as_it_opens_a_batch_harms_no_later_one() {
    let values = async |keys: Vec<Fragile>| Ok::<Vec<u32>, ()>(keys.into_iter().map(|key| key.0).collect());
    let batcher = Batcher::builder().build(values);
    BOOM.store(true, Ordering::SeqCst);
    assert!(AssertUnwindSafe(batcher.load(Fragile(1))).catch_unwind().await.is_err());
    assert_eq!(timeout(SECOND, batcher.load(Fragile(2))).await, Ok(Ok(2)));
    assert_eq!(timeout(SECOND, batcher.shutdown()).await, Ok(()));
}

/// Unequal to nothing: it panics when it is compared.
struct Touchy(u32, bool);

impl PartialEq for Touchy {
    fn eq(&self, other: &Self) -> bool {
        assert!(!self.1 && !other.1, "compared");
        self.0 == other.0
    }
}

impl Eq for Touchy {}

impl Hash for Touchy {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        0.hash(hasher);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_panics_in_an_open_batch_harms_no_other() {
    let values = async |keys: Vec<Touchy>| Ok::<Vec<u32>, ()>(keys.into_iter().map(|key| key.0).collect());
    let batcher = Batcher::builder().max_items(n(3)).build(values);
    let boom = AssertUnwindSafe(batcher.load(Touchy(2, true))).catch_unwind();
    let (x, y, z) = join!(batcher.load(Touchy(1, false)), boom, batcher.load(Touchy(3, false)));
    assert_eq!((x, z), (Ok(1), Ok(3)));
    assert!(y.is_err());
    for key in 0..3 {
        assert_eq!(timeout(SECOND, batcher.load(Touchy(key, false))).await, Ok(Ok(key)));
    }
}

/// At most two keys a batch, one bulk call, no waiting for room.
fn pairs(took: Duration) -> Batcher<u32, u32, ()> {
    let builder = Batcher::builder().max_items(n(2)).when_full(WhenFull::Refuse);
    builder.build(move |keys: Vec<u32>| async move {
        sleep(took).await;
        Ok::<_, ()>(keys)
    })
}

#[tokio::test(start_paused = true)]
async fn a_key_that_waits_in_a_full_batch_can_be_joined() {
    let batcher = pairs(ms(100));
    let late = |key, after| {
        let batcher = &batcher;
        async move {
            sleep(after).await;
            batcher.load(key).await
        }
    };
    let all = join!(
        batcher.load(1),
        batcher.load(2),
        late(3, ms(10)),
        late(4, ms(11)),
        late(3, ms(20)),
        late(5, ms(20))
    );
    assert_eq!((all.2, all.3, all.4), (Ok(3), Ok(4), Ok(3)));
    assert!(all.5.is_err(), "for another key there is no room");
}

#[tokio::test(start_paused = true)]
async fn callers_who_went_away_keep_nobody_out() {
    let batcher = pairs(SECOND);
    let rest = async {
        for round in 0..20 {
            sleep(ms(10)).await;
            let gone = async { join!(batcher.load(3 + 2 * round), batcher.load(4 + 2 * round)) };
            assert!(timeout(ms(1), gone).await.is_err(), "the loader is busy");
        }
        join!(batcher.load(5), batcher.load(99))
    };
    let (first, rest) = join!(async { join!(batcher.load(1), batcher.load(2)) }, rest);
    assert_eq!((first, rest), ((Ok(1), Ok(2)), (Ok(5), Ok(99))));
}

#[tokio::test(start_paused = true)]
async fn a_batcher_nobody_has_any_more_is_gone() {
    let held = Arc::new(());
    let loaders = Arc::clone(&held);
    let batcher = Batcher::builder().max_delay(Duration::MAX).build(move |keys: Vec<u32>| {
        let _loader = Arc::clone(&loaders);
        async move { Ok::<_, ()>(keys) }
    });
    assert!(timeout(ms(1), batcher.load(1)).await.is_err());
    drop(batcher.clone());
    sleep(ms(1)).await;
    assert_eq!(Arc::strong_count(&held), 2);
    drop(batcher);
    sleep(ms(1)).await;
    assert_eq!(Arc::strong_count(&held), 1);
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_panics_in_its_drop_has_timed_out_all_the_same() {
    let batcher = Batcher::builder().load_timeout(ms(5)).build(async |keys: Vec<u32>| {
        let _bomb = Bomb(true);
        sleep(SECOND).await;
        Ok::<_, ()>(keys)
    });
    assert!(matches!(batcher.load(1).await, Err(LoadError::TimedOut(_))));
    assert_eq!(timeout(SECOND, batcher.shutdown()).await, Ok(()));
}
