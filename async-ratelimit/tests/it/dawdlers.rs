//! Waiters that are not polled, and wakers that panic: what they cost the others.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use async_policy::{Deadline, Timeout};
use async_ratelimit::{
    ConcurrencyLimit, Failure, Guard, KeyedConcurrencyLimit, KeyedRateLimit, Policy, Quota, RateLimit,
    Reason, Rejection,
};
use tokio::time::{Instant, sleep};

use crate::{ms, settle};

fn poll_once<F: Future + ?Sized>(wait: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    wait.poll(&mut Context::from_waker(waker))
}

/// One cell per 100 ms; and 20 per tick of a timer, where those behind the front are parked.
const SPARSE: Quota = Quota::per_second(10).with_burst(1);
const DENSE: Quota = Quota::per_second(20_000).with_burst(20);

#[tokio::test(start_paused = true)]
async fn behind_a_front_that_is_not_polled_a_wait_ends_with_its_longest_wait() {
    for quota in [SPARSE, DENSE] {
        let limit = RateLimit::builder(quota).with_queue(10, ms(500)).build().unwrap();
        limit.try_acquire_many(quota.burst()).unwrap();
        let mut front = pin!(limit.acquire());
        assert!(poll_once(front.as_mut(), Waker::noop()).is_pending());
        let started = Instant::now();
        let refused = limit.acquire().await.unwrap_err();
        assert_eq!(refused.reason(), Reason::WaitTooLong);
        // The front could take its cell now, and so could twenty of the dense ones.
        let expected = if quota == SPARSE { ms(100) } else { Duration::from_nanos(1) };
        assert_eq!(refused.retry_after(), Some(expected));
        assert!((500..=502).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
        assert_eq!(limit.snapshot().waiting, 1);
        front.await.unwrap();
        assert_eq!(limit.snapshot().waiting, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn behind_a_front_that_is_not_polled_a_wait_ends_with_the_deadline() {
    for quota in [SPARSE, DENSE] {
        let limit = RateLimit::builder(quota).with_queue(10, None).build().unwrap();
        limit.try_acquire_many(quota.burst()).unwrap();
        let mut front = pin!(limit.acquire());
        assert!(poll_once(front.as_mut(), Waker::noop()).is_pending());
        let started = Instant::now();
        let failure = Timeout::from_millis(300).run(limit.call(async || Ok::<_, ()>(()))).await.unwrap_err();
        let Failure::Rejected(rejection) = failure else { panic!("{failure:?}") };
        assert_eq!(rejection.reason(), Reason::DeadlineTooClose);
        assert!((300..=301).contains(&started.elapsed().as_millis()));
        let scoped = Deadline::after(ms(300)).unwrap().scope(limit.acquire()).await;
        assert_eq!(scoped.unwrap_err().reason(), Reason::DeadlineTooClose);
        assert_eq!(limit.snapshot().waiting, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_exactly_as_long_as_allowed_is_served() {
    let limit = RateLimit::builder(SPARSE).with_queue(10, ms(500)).build().unwrap();
    let started = Instant::now();
    let waits: Vec<_> = (0..7)
        .map(|_| {
            let limit = limit.clone();
            tokio::spawn(async move { limit.acquire().await.is_ok() })
        })
        .collect();
    let mut served = Vec::new();
    for wait in waits {
        served.push(wait.await.unwrap());
    }
    // The first at once, the sixth after half a second.
    assert_eq!(served, [true, true, true, true, true, true, false]);
    assert_eq!(started.elapsed(), ms(500));
}

#[tokio::test(start_paused = true)]
async fn a_quota_made_slower_makes_nobody_wait_beyond_its_longest_wait() {
    let limit = RateLimit::builder(SPARSE).with_queue(10, ms(500)).build().unwrap();
    limit.try_acquire().unwrap();
    let started = Instant::now();
    let (waited, ()) = tokio::join!(limit.acquire(), async {
        sleep(ms(50)).await;
        limit.set_quota(Quota::per_minute(1).with_burst(1)).unwrap();
    });
    let refused = waited.unwrap_err();
    assert_eq!(refused.reason(), Reason::WaitTooLong);
    assert!(started.elapsed() < ms(503));
    // Half a cell was missing when a cell became a minute's worth.
    assert!(refused.retry_after() > Some(Duration::from_secs(29)), "{refused}");
}

/// A task that counts how often it is woken.
#[derive(Default)]
struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_is_woken_once_and_once_more_for_one_who_gives_up_before_it() {
    let limit = RateLimit::builder(SPARSE).with_queue(100, None).build().unwrap();
    limit.try_acquire().unwrap();
    let counts: Vec<Arc<Count>> = (0..20).map(|_| Arc::default()).collect();
    type Wait<'a> = Option<Pin<Box<dyn Future<Output = Result<(), Rejection>> + 'a>>>;
    let mut waits: Vec<Wait<'_>> = counts.iter().map(|_| Some(Box::pin(limit.acquire()) as _)).collect();
    let poll = |waits: &mut Vec<Wait<'_>>, at: usize| {
        let waker = Waker::from(counts[at].clone());
        let ready = waits[at].as_mut().is_some_and(|wait| poll_once(wait.as_mut(), &waker).is_ready());
        if ready {
            waits[at] = None;
        }
        ready
    };
    for at in 0..20 {
        assert!(!poll(&mut waits, at));
    }
    waits[10] = None;
    let mut polled = [0; 20];
    let mut order = Vec::new();
    for _ in 0..25 {
        sleep(ms(100)).await;
        for at in 0..20 {
            while counts[at].0.load(Relaxed) > polled[at] {
                polled[at] += 1;
                if poll(&mut waits, at) {
                    order.push(at);
                }
            }
        }
    }
    assert_eq!(order, (0..20).filter(|at| *at != 10).collect::<Vec<_>>());
    let woken: Vec<u32> = counts.iter().map(|count| count.0.load(Relaxed)).collect();
    assert!(woken[..10].iter().all(|woken| *woken == 1), "{woken:?}");
    assert!(woken[11..].iter().all(|woken| (1..=2).contains(woken)), "{woken:?}");
}

/// The waker of a task of somebody who has not thought of everything.
struct Boom;

impl Wake for Boom {
    fn wake(self: Arc<Self>) {
        panic!("boom");
    }
}

/// Lets a waiter with a panicking waker wait before another one, changes things, and expects the other to be served.
async fn the_other_is_served<A, B>(first: A, other: B, change: impl FnOnce())
where
    A: Future,
    B: Future<Output = bool> + Send + 'static,
{
    let mut first = Box::pin(first);
    assert!(poll_once(first.as_mut(), &Arc::new(Boom).into()).is_pending());
    let other = tokio::spawn(other);
    settle().await;
    assert!(!other.is_finished());
    assert!(catch_unwind(AssertUnwindSafe(change)).is_err(), "the panic is told");
    // In its own time, in which the first is gone.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(first)));
    assert!(other.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_costs_nobody_else_its_wake_up() {
    let faster = Quota::per_second(1_000);
    let limit = RateLimit::builder(Quota::per_hour(1)).with_queue(10, None).build().unwrap();
    limit.try_acquire().unwrap();
    let other = limit.clone();
    the_other_is_served(limit.acquire(), async move { other.acquire().await.is_ok() }, || {
        limit.set_quota(faster).unwrap();
    })
    .await;

    let limit = KeyedRateLimit::<u8>::builder(Quota::per_hour(1)).with_queue(10, None).build().unwrap();
    limit.try_acquire(&1).unwrap();
    limit.try_acquire(&2).unwrap();
    let other = limit.clone();
    the_other_is_served(limit.acquire(&1), async move { other.acquire(&2).await.is_ok() }, || {
        limit.set_quota(faster).unwrap();
    })
    .await;

    let limit = ConcurrencyLimit::builder(1).with_queue(10, None).build().unwrap();
    let held = limit.try_acquire_owned().unwrap();
    let other = limit.clone();
    the_other_is_served(limit.acquire(), async move { other.acquire().await.is_ok() }, || {
        limit.set_limit(3).unwrap();
    })
    .await;
    drop(held);
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));

    let limit = ConcurrencyLimit::builder(2).with_queue(10, None).build().unwrap();
    let held = limit.try_acquire_many(2).unwrap();
    let other = limit.clone();
    the_other_is_served(limit.acquire(), async move { other.acquire().await.is_ok() }, move || drop(held))
        .await;
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));

    let limit = KeyedConcurrencyLimit::<u8>::builder(1).with_queue(10, None).build().unwrap();
    let held = [limit.try_acquire(&1).unwrap(), limit.try_acquire(&2).unwrap()];
    let other = limit.clone();
    the_other_is_served(limit.acquire(&1), async move { other.acquire(&2).await.is_ok() }, || {
        limit.set_limit(2).unwrap();
    })
    .await;
    drop(held);
    assert!(limit.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_leaves_the_queue_last_leaves_it_open() {
    let limit = ConcurrencyLimit::builder(2).with_queue(10, ms(50)).build().unwrap();
    let held = limit.try_acquire().unwrap();
    let heavy = limit.acquire_many(2).await;
    assert_eq!(heavy.unwrap_err().reason(), Reason::WaitTooLong);
    drop(limit.try_acquire().unwrap());
    let mut fickle = Box::pin(limit.acquire_many(2));
    assert!(poll_once(fickle.as_mut(), Waker::noop()).is_pending());
    drop(fickle);
    drop(limit.try_acquire().unwrap());
    drop(held);
}
