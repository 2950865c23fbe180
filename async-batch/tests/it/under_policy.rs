//! What a policy makes of an answer, and what the gather or the batcher does: they may differ.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_batch::{Batcher, Gather, ItemError, LoadError, Progress, Stopped, Summary};
use async_policy::{Failure, Policy, PolicyError, Reason, Timeout, Verdict};
use tokio::time::sleep;

use crate::plan::Thrice;

const fn transient_503(answer: Result<&u16, &u16>) -> Verdict {
    match answer {
        Ok(503) | Err(_) => Verdict::Transient,
        Ok(_) => Verdict::Success,
    }
}

/// A hundred items that all answer so.
async fn gathered(answer: Result<u16, u16>) -> (Summary, usize, Progress) {
    let (runs, progress) = (AtomicUsize::new(0), Progress::new());
    let gather = Gather::up_to::<1>().stop_above(0.1, 10.try_into().unwrap()).unwrap();
    let gather = gather.with_progress(&progress).with_policy(Thrice).classify_with(transient_503);
    let item = async |_| {
        runs.fetch_add(1, SeqCst);
        answer
    };
    let outcomes = gather.run(0..100, item).await;
    (outcomes.summary(), runs.load(SeqCst), progress)
}

#[tokio::test(start_paused = true)]
async fn an_ok_is_a_success_to_the_gather_whatever_its_verdict() {
    let (summary, runs, progress) = gathered(Ok(503)).await;
    assert_eq!((summary.succeeded, summary.failed, summary.stopped), (100, 0, None));
    assert_eq!(runs, 300, "each was retried");
    assert_eq!(progress.snapshot().succeeded, 100);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_item_makes_an_error_is_retried_and_spends_the_budget() {
    let (summary, runs, progress) = gathered(Err(503)).await;
    assert_eq!((summary.succeeded, summary.failed, summary.stopped), (0, 10, Some(Stopped::Failures)));
    assert_eq!(runs, 30);
    assert_eq!(progress.snapshot().failed, 10);
}

#[tokio::test(start_paused = true)]
async fn an_item_may_call_a_policy_of_its_own() {
    let patience = |host: &str| Timeout::from_millis(if host == "slow" { 100 } else { 10 });
    let fetch = async |host: &str| {
        sleep(Duration::from_millis(50)).await;
        Ok::<_, ()>(host.len())
    };
    let one = async |host| patience(host).call(|| fetch(host)).await;
    let outcomes = Gather::up_to::<2>().run(["slow", "fast"], one).detailed().await;
    assert_eq!(outcomes.values(), [4]);
    assert!(matches!(outcomes.failures(), [(1, ItemError::Operation(Failure::TimedOut(_)))]));
    assert_eq!(outcomes.detail(0).unwrap().attempts, 1);

    // In a task each, too: what it calls goes with it.
    let spawned = Gather::up_to::<2>().spawn(["slow", "fast"], move |host: &str| {
        let policy = patience(host);
        async move { policy.call(|| fetch(host)).await }
    });
    assert_eq!(tokio::spawn(spawned).await.unwrap().values(), [4]);
}

#[tokio::test(start_paused = true)]
async fn a_load_is_executed_by_a_policy_and_its_refusal_not_tried_again() {
    let batcher = Batcher::builder().build(async |ids: Vec<u32>| Ok::<_, String>(ids));
    batcher.shutdown().await;
    let tries = AtomicUsize::new(0);
    let load = || {
        tries.fetch_add(1, SeqCst);
        batcher.load(1)
    };
    let error = Thrice.execute(load).await.unwrap_err();
    assert_eq!((error.rejection().unwrap().reason(), tries.swap(0, SeqCst)), (Reason::ShutDown, 1));
    // As the docs warn: lifted twice, it is the operation's failure.
    let error = Thrice.call(load).await.unwrap_err();
    assert!(error.rejection().is_none() && matches!(error, Failure::Operation(LoadError::Rejected(_))));
    assert_eq!(tries.load(SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_key_without_a_value_is_not_loaded_again_and_a_failed_load_is() {
    let loads = std::sync::Arc::new(AtomicUsize::new(0));
    let count = loads.clone();
    let batcher = Batcher::builder().build(move |ids: Vec<u32>| {
        count.fetch_add(1, SeqCst);
        let failed = ids.contains(&9);
        async move { if failed { Err("down") } else { Ok(std::collections::HashMap::<u32, u32>::new()) } }
    });
    assert_eq!(Thrice.execute(|| batcher.load(1)).await, Err(LoadError::Missing));
    assert_eq!(loads.swap(0, SeqCst), 1);
    assert_eq!(Thrice.execute(|| batcher.load(9)).await, Err(LoadError::Operation("down")));
    assert_eq!(loads.load(SeqCst), 3);
}
