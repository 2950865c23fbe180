//! What a loader may answer, and what a batcher makes of a caller's deadline.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_batch::{Batcher, LoadError};
use async_policy::testing::drop_at_every_await;
use async_policy::{Deadline, PolicyError, Reason};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test(start_paused = true)]
async fn rows_in_any_order_answer_each_key_and_a_key_without_one_is_missing() {
    let batcher = Batcher::builder().build(async |ids: Vec<u32>| {
        let rows = ids.into_iter().rev().filter(|id| *id != 404).map(|id| (id, format!("row {id}")));
        Ok::<_, String>(HashMap::<_, _>::from_iter(rows))
    });
    let (a, b, none, same) =
        tokio::join!(batcher.load(1), batcher.load(2), batcher.load(404), batcher.load(1));
    assert_eq!((a, b, same), (Ok("row 1".into()), Ok("row 2".into()), Ok("row 1".into())));
    let none = none.unwrap_err();
    assert_eq!(
        (&none, none.to_string().as_str()),
        (&LoadError::Missing, "the loader has no value for this key")
    );

    let points = drop_at_every_await(|| async { drop(batcher.load(3).await) }, async |_| {}).await;
    assert!(points > 0);
    let down = Batcher::builder().build(async |_: Vec<u32>| Err::<HashMap<u32, ()>, _>("down"));
    assert_eq!(down.load(1).await, Err(LoadError::Operation("down")));
}

#[tokio::test(start_paused = true)]
async fn an_error_that_cannot_be_cloned_goes_into_an_arc() {
    let batcher = Batcher::builder().build(async |_: Vec<u32>| {
        let read: io::Result<Vec<u32>> = Err(io::Error::other("disk"));
        read.map_err(Arc::new)
    });
    let (a, b) = tokio::join!(batcher.load(1), batcher.load(2));
    assert_eq!(a.unwrap_err().to_string(), "disk");
    assert!(matches!(b, Err(LoadError::Operation(error)) if error.kind() == io::ErrorKind::Other));
}

#[test]
fn counts_are_told_in_good_english() {
    let wrong = |keys, results| LoadError::<String>::WrongCount { keys, results }.to_string();
    assert_eq!(wrong(1, 0), "the loader returned 0 results for 1 key");
    assert_eq!(wrong(2, 1), "the loader returned 1 result for 2 keys");
}

type Log = Arc<Mutex<Vec<Vec<u32>>>>;

/// So many keys a batch, one bulk call of 100 ms at a time.
fn slow(max_items: usize, delay: Duration) -> (Batcher<u32, u32, String>, Log) {
    let log = Log::default();
    let shared = Arc::clone(&log);
    let builder = Batcher::builder().with_max_items(max_items.try_into().unwrap()).with_max_delay(delay);
    let batcher = builder.build(move |keys: Vec<u32>| {
        shared.lock().unwrap().push(keys.clone());
        async move {
            sleep(ms(100)).await;
            Ok::<_, String>(keys)
        }
    });
    (batcher, log)
}

fn within(batcher: &Batcher<u32, u32, String>, limit: Duration, key: u32) -> JoinHandle<Result<u32, Reason>> {
    let batcher = batcher.clone();
    let load = async move { batcher.load(key).await.map_err(|error| error.rejection().unwrap().reason()) };
    tokio::spawn(Deadline::after(limit).unwrap().scope(load))
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_room_beyond_the_deadline_is_refused_and_takes_none() {
    let (batcher, log) = slow(1, ms(1));
    let loads: Vec<_> = (0..5).map(|key| within(&batcher, ms(150), key)).collect();
    let mut refused = BTreeMap::new();
    for (key, load) in loads.into_iter().enumerate() {
        if let Err(reason) = load.await.unwrap() {
            refused.insert(key, reason);
        }
    }
    let late = Reason::DeadlineTooClose;
    // One at a time: room for the third at 100 ms, for the others once the second has ended, at 200.
    assert_eq!(refused, BTreeMap::from([(3, late), (4, late)]));
    assert_eq!(*log.lock().unwrap(), [[0], [1], [2]]);
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_ends_after_the_deadline_is_refused_at_once() {
    let (batcher, log) = slow(2, ms(50));
    let started = Instant::now();
    assert_eq!(within(&batcher, ms(20), 1).await.unwrap(), Err(Reason::DeadlineTooClose));
    assert_eq!(started.elapsed(), Duration::ZERO);
    sleep(ms(200)).await;
    assert!(log.lock().unwrap().is_empty(), "its key is not loaded");

    // It fits where the batch is handed over before: with this key it is full, or its delay is nearly over.
    let first = within(&batcher, ms(500), 1);
    assert_eq!(within(&batcher, ms(20), 2).await.unwrap(), Ok(2));
    assert_eq!(first.await.unwrap(), Ok(1));
    let first = within(&batcher, ms(500), 3);
    sleep(ms(40)).await;
    assert_eq!(within(&batcher, ms(20), 3).await.unwrap(), Ok(3));
    assert_eq!(first.await.unwrap(), Ok(3));
}

#[tokio::test(start_paused = true)]
async fn no_caller_s_deadline_reaches_the_loader_its_own_time_out_does() {
    let builder = Batcher::builder::<u32>;
    for (builder, expected) in [(builder(), None), (builder().with_load_timeout(ms(70)), Some(ms(70)))] {
        let batcher = builder.build(async |keys: Vec<u32>| {
            let left = Deadline::current().map(|deadline| deadline.instant() - Instant::now());
            keys.iter().map(|_| Ok::<_, ()>(left)).collect::<Vec<_>>()
        });
        let left = Deadline::after(ms(500)).unwrap().scope(batcher.load(1)).await;
        assert_eq!(left, Ok(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_room_for_the_keys_of_all_calls_and_one_batch_more_however_full_the_calls_are() {
    let (batcher, log) = slow(2, ms(1));
    let mut loads = vec![within(&batcher, ms(9_999), 0)];
    sleep(ms(10)).await; // one key is being loaded, in a call that might have had two
    loads.extend((1..6).map(|key| within(&batcher, ms(9_999), key)));
    sleep(ms(10)).await;
    assert_eq!(*log.lock().unwrap(), [vec![0]]);
    // Four have room; the fifth and the sixth wait for it, so that a deadline which comes first ends their wait.
    let late = within(&batcher, ms(50), 6);
    for load in loads {
        load.await.unwrap().unwrap();
    }
    assert_eq!(late.await.unwrap(), Err(Reason::DeadlineTooClose));
    assert_eq!(*log.lock().unwrap(), [vec![0], vec![1, 2], vec![3, 4], vec![5]]);
}
