use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_batch::{Batcher, BatcherBuilder, LoadError, WhenFull};
use async_policy::testing::drop_at_every_await;
use async_policy::{Failure, Guard, PolicyError, Reason, Timeout};
use tokio::task::{JoinHandle, JoinSet, yield_now};
use tokio::time::{Instant, sleep, timeout};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn n(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

/// The batches the loader saw, and when.
type Log = Arc<Mutex<Vec<(Vec<u64>, u128)>>>;
type Doubler = Batcher<u64, u64, String>;

/// Doubles each key in `took`; keys that end in 9 fail.
fn doubler(builder: BatcherBuilder<u64>, took: Duration) -> (Doubler, Log) {
    let log = Log::default();
    let epoch = Instant::now();
    let shared = Arc::clone(&log);
    let batcher = builder.build(move |keys: Vec<u64>| {
        shared.lock().unwrap().push((keys.clone(), epoch.elapsed().as_millis()));
        async move {
            sleep(took).await;
            let double = |key: u64| if key % 10 == 9 { Err(format!("no {key}")) } else { Ok(key * 2) };
            keys.into_iter().map(double).collect::<Vec<_>>()
        }
    });
    (batcher, log)
}

fn batches(log: &Log) -> Vec<Vec<u64>> {
    log.lock().unwrap().iter().map(|(keys, _)| keys.clone()).collect()
}

fn load(batcher: &Doubler, key: u64) -> JoinHandle<Result<u64, LoadError<String>>> {
    let batcher = batcher.clone();
    tokio::spawn(async move { batcher.load(key).await })
}

/// Lets every task that can run do so, without any time passing.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_calls_become_one_with_an_answer_and_an_error_for_each() {
    let (batcher, log) = doubler(Batcher::builder().with_max_delay(ms(5)), ms(10));
    let (a, b, c, d) = tokio::join!(batcher.load(1), batcher.load(9), batcher.load(1), batcher.load(3));
    assert_eq!((a, c, d), (Ok(2), Ok(2), Ok(6)));
    assert_eq!(b, Err(LoadError::Operation(String::from("no 9"))));
    assert_eq!(batches(&log), [vec![1, 9, 3]]);
}

#[tokio::test(start_paused = true)]
async fn the_delay_counts_from_the_first_item_however_many_follow() {
    // A batcher that counts from the last one loads this stream after two seconds.
    let (batcher, log) = doubler(Batcher::builder().with_max_items(n(1000)).with_max_delay(ms(50)), ms(0));
    let started = Instant::now();
    let first = load(&batcher, 0);
    let mut rest = JoinSet::new();
    for key in 1..40 {
        sleep(ms(10)).await;
        let batcher = batcher.clone();
        rest.spawn(async move { batcher.load(key).await });
        if first.is_finished() {
            break;
        }
    }
    let took = started.elapsed();
    assert!((50..=70).contains(&took.as_millis()), "{took:?}");
    rest.join_all().await;
    assert!((50..=52).contains(&log.lock().unwrap()[0].1));
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_does_not_wait() {
    let (batcher, log) = doubler(
        Batcher::builder().with_max_items(n(3)).with_max_delay(ms(1000)).with_in_flight(n(8)),
        ms(10),
    );
    let started = Instant::now();
    let loads: Vec<_> = (0..6).map(|key| load(&batcher, key)).collect();
    for load in loads {
        load.await.unwrap().unwrap();
    }
    assert!(started.elapsed() < ms(15));
    assert_eq!(batches(&log), [vec![0, 1, 2], vec![3, 4, 5]]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_closes_before_it_is_too_heavy() {
    let weigh = |key: &u64| *key as usize;
    let builder =
        Batcher::builder().with_max_weight(n(100), weigh).with_max_delay(ms(20)).with_in_flight(n(8));
    let (batcher, log) = doubler(builder, ms(1));
    let loads: Vec<_> = [60, 30, 20, 80, 100, 1].map(|key| load(&batcher, key)).into_iter().collect();
    let too_heavy = batcher.load(101).await.unwrap_err();
    assert_eq!(too_heavy.rejection().unwrap().reason(), Reason::ExceedsCapacity);
    for load in loads {
        load.await.unwrap().unwrap();
    }
    let mut seen = batches(&log);
    seen.sort();
    assert_eq!(seen, [vec![1], vec![20, 80], vec![60, 30], vec![100]]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_one_did_not_fit_in_does_not_wait_for_its_delay() {
    let weigh = |key: &u64| *key as usize;
    let builder = Batcher::builder().with_max_weight(n(100), weigh).with_max_delay(ms(1000));
    let (batcher, log) = doubler(builder, ms(10));
    let (first, did_not_fit) = (load(&batcher, 60), load(&batcher, 50));
    let started = Instant::now();
    first.await.unwrap().unwrap();
    assert!(started.elapsed() < ms(15));
    did_not_fit.await.unwrap().unwrap();
    assert_eq!(batches(&log), [[60], [50]]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_one_did_not_fit_in_takes_keys_again_when_somebody_leaves() {
    let weigh = |key: &u64| *key as usize;
    let (batcher, log) = doubler(Batcher::builder().with_max_weight(n(100), weigh), ms(100));
    let under_way = load(&batcher, 1);
    sleep(ms(10)).await;
    let (stays, leaves) = (load(&batcher, 60), load(&batcher, 31));
    settle().await;
    let does_not_fit = load(&batcher, 20);
    settle().await;
    leaves.abort();
    settle().await;
    let fits = load(&batcher, 40);
    for load in [under_way, stays, does_not_fit, fits] {
        load.await.unwrap().unwrap();
    }
    assert_eq!(batches(&log), [vec![1], vec![60, 40], vec![20]]);
}

#[tokio::test(start_paused = true)]
async fn at_most_so_many_calls_are_under_way_and_a_batch_that_waits_goes_on_collecting() {
    let (batcher, log) =
        doubler(Batcher::builder().with_max_items(n(10)).with_max_delay(ms(1)).with_in_flight(n(1)), ms(100));
    let mut loads = vec![load(&batcher, 1)];
    sleep(ms(10)).await;
    for key in 2..6 {
        loads.push(load(&batcher, key));
        sleep(ms(10)).await;
    }
    for load in loads {
        load.await.unwrap().unwrap();
    }
    assert_eq!(batches(&log), [vec![1], vec![2, 3, 4, 5]]);
    assert!(log.lock().unwrap()[1].1 >= 101);
}

#[tokio::test(start_paused = true)]
async fn when_full_a_caller_waits_in_order_or_is_refused() {
    let builder = || Batcher::builder().with_max_items(n(2)).with_max_delay(ms(1)).with_in_flight(n(1));
    let (batcher, log) = doubler(builder(), ms(100));
    let loads: Vec<_> = (0..8).map(|key| load(&batcher, key)).collect();
    for load in loads {
        load.await.unwrap().unwrap();
    }
    assert_eq!(batches(&log), [[0, 1], [2, 3], [4, 5], [6, 7]]);

    let (batcher, _) = doubler(builder().with_when_full(WhenFull::Refuse), ms(100));
    let loads: Vec<_> = (0..5).map(|key| load(&batcher, key)).collect();
    let mut refused = 0;
    for load in loads {
        match load.await.unwrap() {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.rejection().unwrap().reason(), Reason::QueueFull);
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 1, "two under way, two wait, one has no room");
    assert_eq!(batcher.load(7).await, Ok(14), "room again");
}

#[tokio::test(start_paused = true)]
async fn the_same_key_needs_no_room() {
    let builder = Batcher::builder()
        .with_max_items(n(2))
        .with_max_delay(ms(50))
        .with_in_flight(n(1))
        .with_when_full(WhenFull::Refuse);
    let (batcher, log) = doubler(builder, ms(100));
    let under_way = [load(&batcher, 1), load(&batcher, 2)];
    settle().await;
    let waiting = load(&batcher, 3);
    settle().await;
    let same = [load(&batcher, 3), load(&batcher, 3)];
    for load in under_way.into_iter().chain([waiting]).chain(same) {
        load.await.unwrap().unwrap();
    }
    assert_eq!(batches(&log), [vec![1, 2], vec![3]]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_harms_no_batch_mate() {
    let (batcher, log) = doubler(Batcher::builder().with_max_delay(ms(20)), ms(50));
    // The one who opened the batch gives up while it collects, another while it loads.
    let (first, second, third) =
        tokio::join!(timeout(ms(10), batcher.load(1)), timeout(ms(40), batcher.load(2)), batcher.load(3));
    assert!(first.is_err() && second.is_err());
    assert_eq!(third, Ok(6));
    assert_eq!(batches(&log), [[2, 3]], "nobody waited for the first one any more");

    // Nobody at all.
    assert!(timeout(ms(10), batcher.load(5)).await.is_err());
    sleep(ms(100)).await;
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_nothing_is_lost() {
    let builder = || Batcher::builder().with_max_items(n(1)).with_max_delay(ms(1)).with_in_flight(n(1));
    let (batcher, _) = doubler(builder(), ms(10));
    let points = drop_at_every_await(
        || async {
            let _ = batcher.load(1).await;
        },
        async |_| {
            sleep(ms(50)).await;
            // All the room is there again.
            let loads: Vec<_> = (0..2).map(|key| load(&batcher, key)).collect();
            for load in loads {
                assert!(load.await.unwrap().is_ok());
            }
        },
    )
    .await;
    assert!(points >= 1);

    // The same while it waits for room.
    let (batcher, _) = doubler(builder(), ms(10));
    let points = drop_at_every_await(
        || async {
            let crowd: Vec<_> = (10..14).map(|key| load(&batcher, key)).collect();
            settle().await;
            assert_eq!(batcher.load(1).await, Ok(2));
            for load in crowd {
                load.await.unwrap().unwrap();
            }
        },
        async |_| {
            sleep(ms(100)).await;
            assert_eq!(batcher.load(2).await, Ok(4));
        },
    )
    .await;
    assert!(points > 50, "{points}");
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_panics_gives_each_caller_a_typed_error_and_the_next_batch_works() {
    let panics = Batcher::builder().with_max_delay(ms(1)).build(|keys: Vec<u64>| {
        assert!(!keys.contains(&0), "cannot start with {keys:?}");
        async move {
            sleep(ms(1)).await;
            assert!(!keys.contains(&1), "cannot load {keys:?}");
            keys.into_iter().map(Ok::<_, String>).collect::<Vec<_>>()
        }
    });
    for key in [0, 1] {
        let (a, b) = tokio::join!(panics.load(key), panics.load(5));
        assert_eq!(a, b);
        assert!(a.unwrap_err().to_string().starts_with("the loader panicked: cannot "));
    }
    assert_eq!(panics.load(2).await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn too_few_or_too_many_results_are_a_typed_error() {
    let wrong = Batcher::builder()
        .with_max_delay(ms(1))
        .build(async |keys: Vec<u64>| Ok::<_, String>(vec![7_u64; if keys.len() == 2 { 1 } else { 4 }]));
    let (a, b) = tokio::join!(wrong.load(1), wrong.load(2));
    assert_eq!((a.clone(), b), (a, Err(LoadError::WrongCount { keys: 2, results: 1 })));
    assert_eq!(wrong.load(1).await, Err(LoadError::WrongCount { keys: 1, results: 4 }));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_whole_call_is_everybodys() {
    let down = Batcher::builder().with_max_delay(ms(1)).build(async |_: Vec<u64>| Err::<Vec<()>, _>("down"));
    let (a, b) = tokio::join!(down.load(1), down.load(2));
    assert_eq!((a, b), (Err(LoadError::Operation("down")), Err(LoadError::Operation("down"))));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_times_out_for_each_and_frees_its_place() {
    let (batcher, _) = doubler(Batcher::builder().with_max_delay(ms(1)).with_load_timeout(ms(30)), ms(1000));
    let (a, b) = tokio::join!(batcher.load(1), batcher.load(2));
    assert_eq!(a, b);
    assert_eq!(a.unwrap_err().timed_out().unwrap().limit(), ms(30));
    assert!(batcher.load(3).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn shutdown_drains_and_refuses() {
    let builder = Batcher::builder()
        .with_max_items(n(2))
        .with_max_delay(Duration::from_secs(3600))
        .with_in_flight(n(1));
    let (batcher, log) = doubler(builder, ms(100));
    // Two under way, one collected, and two more who wait for room after it is full.
    let mut loads: Vec<_> = (0..3).map(|key| load(&batcher, key)).collect();
    settle().await;
    let started = Instant::now();
    batcher.shutdown().await;
    assert!(started.elapsed() < ms(210));
    for load in loads.drain(..) {
        load.await.unwrap().unwrap();
    }
    assert_eq!(batches(&log), [vec![0, 1], vec![2]]);
    let late = batcher.load(5).await.unwrap_err();
    assert_eq!(late.rejection().unwrap().reason(), Reason::ShutDown);
    batcher.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_refuses_who_waits_for_room_and_can_be_dropped() {
    let builder = Batcher::builder().with_max_items(n(1)).with_max_delay(ms(1)).with_in_flight(n(1));
    let (batcher, _) = doubler(builder, ms(100));
    let loads: Vec<_> = (0..4).map(|key| load(&batcher, key)).collect();
    settle().await;
    let points = drop_at_every_await(
        || batcher.shutdown(),
        async |point| {
            if point.is_none() {
                assert_eq!(loads.iter().filter(|load| load.is_finished()).count(), 4);
            } else {
                sleep(ms(1)).await;
            }
        },
    )
    .await;
    assert!(points > 0);
    let mut refused = 0;
    for load in loads {
        refused += usize::from(load.await.unwrap().is_err());
    }
    assert_eq!(refused, 2);
}

#[tokio::test(start_paused = true)]
async fn a_passed_deadline_is_refused_at_once_and_refusals_are_seen_by_policies() {
    let (batcher, log) = doubler(Batcher::builder(), ms(1));
    let failure = Timeout::new(Duration::ZERO).run(batcher.load(1)).await.unwrap_err();
    assert_eq!(failure.rejection().unwrap().reason(), Reason::DeadlineTooClose);
    assert!(log.lock().unwrap().is_empty());
    let lifted =
        Timeout::from_millis(100).run(async { batcher.load(1).await.map_err(Failure::Operation) }).await;
    assert_eq!(lifted, Ok(2));
}

#[test]
fn a_runtime_that_shuts_down_leaves_nobody_waiting() {
    let first = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let second = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let batcher = {
        let _first = first.enter();
        Batcher::builder().with_max_delay(Duration::ZERO).build(async |_: Vec<u64>| {
            std::future::pending::<()>().await;
            Ok::<Vec<u64>, ()>(Vec::new())
        })
    };
    let loader = batcher.clone();
    let mut waiting = Box::pin(async move { loader.load(1).await });
    let waited = first.block_on(async { timeout(ms(1), &mut waiting).await });
    assert!(waited.is_err());
    drop(first);
    assert_eq!(second.block_on(waiting), Err(LoadError::Aborted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_caller_gets_its_own_answer_under_load() {
    let (batcher, log) =
        doubler(Batcher::builder().with_max_items(n(32)).with_max_delay(ms(1)).with_in_flight(n(4)), ms(0));
    let mut tasks = JoinSet::new();
    for task in 0..50_u64 {
        let batcher = batcher.clone();
        tasks.spawn(async move {
            for round in 0..40 {
                let key = task * 7 + round * 3;
                let expected =
                    if key % 10 == 9 { Err(LoadError::Operation(format!("no {key}"))) } else { Ok(key * 2) };
                assert_eq!(batcher.load(key).await, expected);
            }
        });
    }
    tasks.join_all().await;
    for batch in batches(&log) {
        assert!(batch.len() <= 32);
        assert_eq!(batch.iter().collect::<HashSet<_>>().len(), batch.len());
    }
}

#[tokio::test(start_paused = true)]
async fn no_load_takes_longer_than_the_delay_and_one_bulk_call() {
    let (batcher, log) = doubler(
        Batcher::builder().with_max_items(n(100)).with_max_delay(ms(5)).with_in_flight(n(16)),
        ms(20),
    );
    let mut tasks = JoinSet::new();
    for task in 0..1000_u64 {
        let batcher = batcher.clone();
        tasks.spawn(async move {
            sleep(ms(task % 37)).await;
            let mut longest = Duration::ZERO;
            for round in 0..20 {
                let started = Instant::now();
                let _ = batcher.load(task + round * 1000).await;
                longest = longest.max(started.elapsed());
            }
            longest
        });
    }
    let longest = tasks.join_all().await.into_iter().max().unwrap();
    // Each of the two sleeps rounds up to the timer's next millisecond.
    assert!(longest <= ms(5 + 20 + 2), "{longest:?}");
    assert!(log.lock().unwrap().len() < 20_000 / 20);
}
