//! Runtimes that end, keys, items and loaders that panic where nobody expects it, callers who go away.

use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_batch::{
    Batcher, Gather, Limit, LoadError, Progress, Stopped, WhenFull, first_success, first_to_finish, quorum,
};
use futures_util::FutureExt;
use tokio::join;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::task::yield_now;
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
    let batcher = Batcher::builder().with_max_items(n(3)).build(values);
    let boom = AssertUnwindSafe(batcher.load(Touchy(2, true))).catch_unwind();
    let (x, y, z) = join!(batcher.load(Touchy(1, false)), boom, batcher.load(Touchy(3, false)));
    assert_eq!((x, z), (Ok(1), Ok(3)));
    assert!(y.is_err());
    for key in 0..3 {
        assert_eq!(timeout(SECOND, batcher.load(Touchy(key, false))).await, Ok(Ok(key)));
    }
}

/// At most two keys a batch, one bulk call, no waiting for room.
fn pairs(took: Duration) -> Batcher<u32, u32, String> {
    let builder = Batcher::builder().with_max_items(n(2)).with_when_full(WhenFull::Refuse);
    builder.build(move |keys: Vec<u32>| async move {
        sleep(took).await;
        Ok::<_, String>(keys)
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
    let batcher = Batcher::builder().with_max_delay(Duration::MAX).build(move |keys: Vec<u32>| {
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
    let batcher = Batcher::builder().with_load_timeout(ms(5)).build(async |keys: Vec<u32>| {
        let _bomb = Bomb(true);
        sleep(SECOND).await;
        Ok::<_, ()>(keys)
    });
    assert!(matches!(batcher.load(1).await, Err(LoadError::TimedOut(_))));
    assert_eq!(timeout(SECOND, batcher.shutdown()).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_list_of_failures_says_why_a_policy_refused() {
    let batcher = pairs(ms(1));
    let all = Gather::up_to::<20>().run(0..9, |key| batcher.load(key)).await;
    assert!(all.to_string().contains("full"), "{all}");
    let (_, error) = &all.failures()[0];
    assert_eq!(error.to_string(), "not loaded", "the rest is in its source");
}

/// Two items under a limit of one; the first raises it, and waits for the second.
async fn raised(ordered: bool) -> bool {
    let limit = Limit::new(n(1));
    let started = Notify::new();
    let run = Gather::new(n(1)).with_limit(&limit).run(0..2, async |item| {
        if item == 0 {
            limit.set(n(2));
            started.notified().await;
        } else {
            started.notify_one();
        }
        Ok::<_, ()>(item)
    });
    let began = tokio::time::Instant::now();
    let all = async {
        if ordered {
            let mut items = run.ordered(0);
            while items.next().await.is_some() {}
        } else {
            run.for_each(async |_| {}).await;
        }
    };
    // A time-out polls what is inside once more, which would hide that it hangs.
    timeout(SECOND, all).await.is_ok() && began.elapsed() < SECOND
}

#[tokio::test(start_paused = true)]
async fn a_limit_raised_by_an_item_counts_in_for_each() {
    assert!(raised(false).await);
}

#[tokio::test(start_paused = true)]
async fn a_limit_raised_by_an_item_counts_in_ordered() {
    assert!(raised(true).await);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_seen_between_items_that_compute() {
    // What an item computes passes time, as far as the clock can tell.
    let compute = async |item: u32| {
        tokio::time::advance(ms(1)).now_or_never();
        Ok::<_, ()>(item)
    };
    let outcomes = Gather::up_to::<4>().with_deadline(ms(20)).run(0..3000, compute).await;
    assert_eq!((outcomes.len(), outcomes.stopped()), (20, Some(Stopped::Deadline)));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_seen_between_polls_that_compute() {
    let compute = async |item: u32| {
        for _ in 0..1000 {
            tokio::time::advance(ms(1)).now_or_never();
            yield_now().await;
        }
        Ok::<_, ()>(item)
    };
    let began = tokio::time::Instant::now();
    let outcomes = Gather::up_to::<400>().with_deadline(ms(20)).run(0..400, compute).await;
    assert_eq!(outcomes.stopped(), Some(Stopped::Deadline));
    assert!(began.elapsed() <= ms(21), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_deadline_is_seen_without_a_cooperative_budget() {
    let ends = Instant::now() + Duration::from_secs(5);
    let items = (0_u64..).take_while(|_| Instant::now() < ends);
    let run = Gather::up_to::<4>().with_deadline(ms(20)).run(items, async |item| Ok::<_, ()>(item));
    assert_eq!(tokio::task::unconstrained(run).await.stopped(), Some(Stopped::Deadline));
}

#[tokio::test(start_paused = true)]
async fn the_consumer_of_for_each_is_handed_what_had_ended_by_the_deadline() {
    let gather = Gather::up_to::<2>().with_deadline(ms(50));
    let mut handed = 0;
    let run = gather.run(0..100, async |item| Ok::<_, ()>(item));
    let summary = run
        .for_each(|_| {
            handed += 1;
            sleep(SECOND)
        })
        .await;
    assert_eq!((handed, summary.succeeded, summary.stopped), (2, 2, Some(Stopped::Deadline)));
}

#[tokio::test(start_paused = true)]
async fn an_endless_pause_is_not_a_deadline() {
    let gather = Gather::up_to::<2>().in_chunks(n(2), Duration::MAX);
    assert!(timeout(SECOND, gather.run(0..4, async |item| Ok::<_, ()>(item))).await.is_err());
}

/// An iterator with a hint of its own.
struct Lies(std::ops::Range<u32>, (usize, Option<usize>));

impl Iterator for Lies {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.1
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_size_hint_loses_nothing() {
    let most = usize::MAX;
    for hint in [
        (0, Some(0)),
        (most, None),
        (most, Some(0)),
        (5, Some(3)),
        (0, None),
        (most, Some(most)),
        (9, Some(9)),
    ] {
        for chunks in [false, true] {
            let gather = Gather::up_to::<3>().with_progress(&Progress::new());
            let gather = if chunks { gather.in_chunks(n(2), ms(1)) } else { gather };
            let outcomes = gather.run(Lies(0..9, hint), async |item| Ok::<_, ()>(item)).await;
            assert_eq!(outcomes.len(), 9, "{hint:?}, chunks {chunks}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_progress_of_two_huge_gathers() {
    let progress = Progress::new();
    let gather = Gather::up_to::<4>().with_progress(&progress).with_deadline(ms(5));
    for _ in 0..2 {
        let wait = async |item| {
            sleep(ms(1)).await;
            Ok::<_, ()>(item)
        };
        assert_eq!(gather.run(0..usize::MAX, wait).await.stopped(), Some(Stopped::Deadline));
    }
    assert_eq!(progress.snapshot().total, Some(usize::MAX));
}

/// The first succeeds; the others never end, and panic when dropped.
async fn race(item: u32) -> Result<u32, ()> {
    let _bomb = Bomb(item > 0);
    if item > 0 {
        std::future::pending::<()>().await;
    }
    sleep(ms(1)).await;
    Ok(item)
}

#[tokio::test(start_paused = true)]
async fn losers_that_panic_in_their_drop_do_not_cost_the_win() {
    assert!(matches!(first_success((0..3).map(race)).await, Ok((0, 0))));
    assert!(matches!(first_to_finish((0..3).map(race)).await, Some((0, Ok(0)))));
    assert_eq!(quorum(n(1), (0..3).map(race)).await, Ok(vec![(0, 0)]));
}

#[tokio::test(start_paused = true)]
async fn items_that_panic_in_their_drop_with_a_dropped_gather_harm_nobody() {
    assert!(timeout(ms(1), Gather::up_to::<8>().run(1..4, race)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_panic_whose_payload_panics_when_dropped_is_that_item_s_error() {
    let boom = async |item: u32| {
        if item % 2 == 1 {
            sleep(ms(u64::from(item / 2))).await;
            std::panic::panic_any(Bomb(true));
        }
        Ok::<_, ()>(item)
    };
    assert_eq!(Gather::up_to::<2>().run(0..4, boom).await.into_values(), [0, 2]);
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_quorum_that_cannot_be_is_not_ok() {
    let too_few = quorum(n(3), (0..2).map(async |item| Ok::<u32, &str>(item))).await.unwrap_err();
    let none = first_success(Vec::<std::future::Ready<Result<u32, &str>>>::new()).await.unwrap_err();
    let of_two = "a quorum of 3 was asked of 2 futures; none was started";
    let of_none = "a quorum of 1 was asked of 0 futures; none was started";
    for (error, asked, futures, text) in [(too_few, 3, 2, of_two), (none, 1, 0, of_none)] {
        assert!(!error.is_ok());
        assert_eq!(error.to_string(), text);
        assert_eq!(error.into_result().unwrap_err().stopped(), Some(Stopped::TooFew { asked, futures }));
    }
}
