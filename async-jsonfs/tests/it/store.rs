use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use async_jsonfs::{ErrorKind, Outcome, Store, UpdateError, load, merge, update};
use async_policy::testing::drop_at_every_await;
use async_policy::{Deadline, PolicyError, Reason};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

type Map = BTreeMap<String, u64>;

async fn open() -> (TempDir, Store<Map>) {
    let dir = TempDir::new().unwrap();
    let store = Store::open_or_default(dir.path().join("s.json")).await.unwrap();
    (dir, store)
}

fn set(key: &str, value: u64) -> impl FnOnce(&mut Map) + Send + 'static {
    let key = key.to_owned();
    move |map| {
        map.insert(key, value);
    }
}

/// Holds the next commit up inside a closure until told to go on.
fn hold_up(store: &Store<Map>) -> (tokio::task::JoinHandle<()>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (began, has_begun) = mpsc::channel();
    let (go, wait) = mpsc::channel();
    let store = store.clone();
    let task = tokio::spawn(async move {
        let change = move |_: &mut Map| {
            began.send(()).unwrap();
            wait.recv().unwrap();
        };
        store.update(change).await.unwrap();
    });
    (task, has_begun, go)
}

async fn begun(receiver: mpsc::Receiver<()>) {
    tokio::task::spawn_blocking(move || receiver.recv().unwrap()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_told_done_is_in_the_file_and_in_the_snapshot() {
    let (dir, store) = open().await;
    let path = dir.path().join("s.json");
    assert!(!path.exists());
    for n in 0..5 {
        assert_eq!(store.update(move |map| map.insert("a".to_owned(), n)).await.unwrap(), n.checked_sub(1));
        assert_eq!(store.snapshot()["a"], n);
        assert_eq!(load::<Map>(&path).await.unwrap(), *store.snapshot());
    }
    assert!(Store::<Map>::open(dir.path().join("none.json")).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn those_that_come_during_a_commit_are_one_commit() {
    let (dir, store) = open().await;
    let path = dir.path().join("s.json");
    let (task, has_begun, go) = hold_up(&store);
    begun(has_begun).await;
    let callers: Vec<_> = (0..50)
        .map(|n| {
            let (store, path) = (store.clone(), path.clone());
            tokio::spawn(async move {
                store.update(set(&format!("{n:02}"), n)).await.unwrap();
                (fs::metadata(path).unwrap().ino(), store.snapshot().len())
            })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(store.snapshot().is_empty());
    go.send(()).unwrap();
    task.await.unwrap();
    let mut inodes = Vec::new();
    for caller in callers {
        let (inode, _) = caller.await.unwrap();
        inodes.push(inode);
    }
    inodes.dedup();
    assert_eq!(inodes.len(), 1, "one file was written for all");
    assert_eq!(store.snapshot().len(), 50);
}

#[tokio::test]
async fn a_closure_that_says_no_or_panics_harms_no_other() {
    let (dir, store) = open().await;
    let (task, has_begun, go) = hold_up(&store);
    begun(has_begun).await;
    let spawn = |n: u64| {
        let store = store.clone();
        tokio::spawn(async move {
            store
                .try_update(move |map| {
                    map.insert(n.to_string(), n);
                    match n % 3 {
                        0 => Ok(n),
                        1 => Err(n),
                        _ => panic!("boom {n}"),
                    }
                })
                .await
        })
    };
    let callers: Vec<_> = (0..9).map(spawn).collect();
    tokio::task::yield_now().await;
    go.send(()).unwrap();
    task.await.unwrap();
    for (n, caller) in (0..).zip(callers) {
        match (n % 3, caller.await) {
            (0, Ok(Ok(got))) => assert_eq!(got, n),
            (1, Ok(Err(UpdateError::Closure(got)))) => assert_eq!(got, n),
            (2, Err(error)) => assert!(error.is_panic()),
            other => panic!("{other:?}"),
        }
    }
    let expected: Map = [0, 3, 6].into_iter().map(|n: u64| (n.to_string(), n)).collect();
    assert_eq!(*store.snapshot(), expected);
    assert_eq!(load::<Map>(dir.path().join("s.json")).await.unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_is_told_to_its_callers_and_the_store_goes_on() {
    let (dir, store) = open().await;
    let (away, here) = (dir.path().join("away"), dir.path().join("s"));
    fs::create_dir(&here).unwrap();
    let store2 = Store::<Map>::open_or_default(here.join("s.json")).await.unwrap();
    store2.update(set("a", 1)).await.unwrap();
    fs::rename(&here, &away).unwrap();
    let error = store2.update(set("b", 2)).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert!(error.is_not_found(), "{error}");
    assert_eq!(store2.snapshot().len(), 1);
    fs::rename(&away, &here).unwrap();
    store2.update(set("c", 3)).await.unwrap();
    assert_eq!(store2.snapshot().keys().collect::<Vec<_>>(), ["a", "c"]);
    drop(store);
}

#[tokio::test(start_paused = true)]
async fn what_others_write_is_seen_with_the_next_commit() {
    let (dir, store) = open().await;
    let path = dir.path().join("s.json");
    store.update(set("a", 1)).await.unwrap();
    update(&path, |map: &mut Map| map.insert("b".to_owned(), 2)).await.unwrap();
    assert_eq!(store.snapshot().len(), 1, "the last committed by us");
    store.update(set("c", 3)).await.unwrap();
    assert_eq!(store.snapshot().keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    // In place, by an editor.
    fs::write(&path, "{\"z\": 1.0e1}").unwrap();
    let error = store.update(set("d", 4)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Mismatch(_)), "{error}");
    assert_eq!(store.snapshot().len(), 3);
    fs::write(&path, "{\"z\": 10}").unwrap();
    store.update(set("d", 4)).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"z\": 10, \"d\": 4}");
    fs::remove_file(&path).unwrap();
    store.update(set("e", 5)).await.unwrap();
    assert_eq!(load::<Map>(&path).await.unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_the_type_does_not_know_is_kept() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Port {
        port: u16,
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.json");
    fs::write(&path, "{ \"host\": \"h\", \"port\": 1 }").unwrap();
    let store = Store::<Port>::open(&path).await.unwrap();
    for port in 2..5 {
        store.update(move |state| state.port = port).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{{ \"host\": \"h\", \"port\": {port} }}"));
    }
    merge(&path, serde_json::json!({"host": null})).await.unwrap();
    store.update(|state| state.port = 9).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{ \"port\": 9 }");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_changes_nothing_writes_nothing() {
    let (dir, store) = open().await;
    let path = dir.path().join("s.json");
    store.update(set("a", 1)).await.unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    store.update(set("a", 1)).await.unwrap();
    store.flush().await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
}

#[tokio::test(start_paused = true)]
async fn closed_it_refuses_and_what_was_queued_is_done() {
    let (dir, store) = open().await;
    let queued = store.update(set("a", 1));
    let (queued, closed) = tokio::join!(queued, store.close());
    queued.unwrap();
    closed.unwrap();
    let error = store.update(set("b", 2)).await.unwrap_err();
    assert_eq!(error.rejection().unwrap().reason(), Reason::ShutDown);
    assert!(store.flush().await.is_err());
    store.close().await.unwrap();
    assert_eq!(*store.snapshot(), load::<Map>(dir.path().join("s.json")).await.unwrap());
}

#[tokio::test]
async fn a_caller_that_is_gone_before_its_turn_changes_nothing() {
    let (_dir, store) = open().await;
    let (task, has_begun, go) = hold_up(&store);
    begun(has_begun).await;
    let gone = store.clone();
    let gone = tokio::spawn(async move { gone.update(set("gone", 1)).await });
    let deadline = Deadline::after(Duration::from_millis(1)).unwrap();
    let late = deadline.scope(store.update(set("late", 1))).await.unwrap_err();
    assert_eq!(late.rejection().unwrap().reason(), Reason::DeadlineTooClose);
    assert_eq!(late.outcome(), Outcome::NotWritten);
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    go.send(()).unwrap();
    task.await.unwrap();
    store.update(set("a", 1)).await.unwrap();
    assert_eq!(store.snapshot().keys().collect::<Vec<_>>(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_comes_during_its_commit_is_a_time_out() {
    let (_dir, store) = open().await;
    let (go, wait) = mpsc::channel::<()>();
    let (began, has_begun) = mpsc::channel();
    let deadline = Deadline::after(Duration::from_millis(20)).unwrap();
    let changing = deadline.scope(store.update(move |map| {
        began.send(()).unwrap();
        wait.recv().unwrap();
        map.insert("a".to_owned(), 1);
    }));
    let late = async {
        begun(has_begun).await;
        tokio::time::advance(Duration::from_millis(30)).await;
    };
    let (error, ()) = tokio::join!(changing, late);
    let error = error.unwrap_err();
    assert!(error.timed_out().is_some(), "{error}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    go.send(()).unwrap();
    store.flush().await.unwrap();
    assert_eq!(store.snapshot()["a"], 1, "it may have been committed, and was");
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_the_store_is_whole() {
    let (dir, store) = open().await;
    let path = dir.path().join("s.json");
    let mut n = 0;
    let points = drop_at_every_await(
        || {
            n += 1;
            store.update(set("n", n))
        },
        async |_| {
            store.flush().await.unwrap();
            assert_eq!(load::<Map>(&path).await.unwrap_or_default(), *store.snapshot());
        },
    )
    .await;
    assert_eq!(points, 1);
    for _ in 0..2 {
        drop_at_every_await(|| store.flush(), async |_| store.flush().await.unwrap()).await;
    }
    drop_at_every_await(|| store.close(), async |_| store.close().await.unwrap()).await;
}

#[test]
fn a_runtime_that_shuts_down_leaves_the_old_or_the_new_and_nobody_waiting() {
    for _ in 0..20 {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s.json");
        let one = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store: Store<Map> = one.block_on(Store::open_or_default(&path)).unwrap();
        one.block_on(store.update(set("first", 0))).unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        for n in 0..50 {
            let (store, done) = (store.clone(), Arc::clone(&done));
            one.spawn(async move {
                // Refused, if the runtime ends first.
                if store.update(set(&n.to_string(), n)).await.is_ok() {
                    done.fetch_add(1, Relaxed);
                }
            });
        }
        one.shutdown_background();
        // A driver of the other runtime takes over.
        other.block_on(async {
            let mut tries = 0;
            while let Err(error) = store.update(set("last", 1)).await {
                assert_eq!(error.rejection().unwrap().reason(), Reason::ShutDown, "{error}");
                tries += 1;
                assert!(tries < 100);
            }
            // The runtime's last task may still be at it.
            while Arc::strong_count(&done) > 1 {
                std::thread::yield_now();
            }
            store.flush().await.unwrap();
            assert_eq!(load::<Map>(&path).await.unwrap(), *store.snapshot());
            assert!(store.snapshot().len() >= done.load(Relaxed) + 2);
        });
        // A job that the runtime left behind may still be at it.
        let names = || fs::read_dir(&dir).unwrap().count();
        for _ in 0..1_000_000 {
            if names() == 2 {
                break;
            }
            std::thread::yield_now();
        }
        assert_eq!(names(), 2, "the file and its lock");
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_that_cannot_be_written_is_told_and_forgotten() {
    #[derive(Clone, Default, Debug, Deserialize)]
    struct Picky(u32);
    impl Serialize for Picky {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self.0 {
                7 => Err(serde::ser::Error::custom("not seven")),
                8 => panic!("not eight"),
                n => serializer.serialize_u32(n),
            }
        }
    }
    let dir = TempDir::new().unwrap();
    let store = Store::<Picky>::open_or_default(dir.path().join("s.json")).await.unwrap();
    store.update(|n| n.0 = 6).await.unwrap();
    for bad in [7, 8] {
        let error = store.update(move |n| n.0 = bad).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Serialize(_) | ErrorKind::Panicked), "{error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
        assert_eq!(store.snapshot().0, 6);
    }
    store.update(|n| n.0 = 9).await.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("s.json")).unwrap(), "9\n");
}

/// What a closure holds is dropped with it: where that uses the store again, no lock must be held.
#[tokio::test(start_paused = true)]
async fn what_is_dropped_may_use_the_store() {
    struct Uses(Store<Map>);
    impl Drop for Uses {
        fn drop(&mut self) {
            let _ = self.0.snapshot();
            let waker = std::task::Waker::noop();
            let mut update = Box::pin(self.0.update(|_| ()));
            if tokio::runtime::Handle::try_current().is_ok() {
                let _ = update.as_mut().poll(&mut std::task::Context::from_waker(waker));
            }
        }
    }
    let dir = TempDir::new().unwrap();
    let (here, away) = (dir.path().join("here"), dir.path().join("away"));
    fs::create_dir(&here).unwrap();
    let store = Store::<Map>::open_or_default(here.join("s.json")).await.unwrap();
    for there in [true, false] {
        if !there {
            // What was queued by the drop is on its way: it has the directory open.
            store.flush().await.unwrap();
            fs::rename(&here, &away).unwrap();
        }
        let uses = Uses(store.clone());
        let change = move |_: &mut Map| {
            let _uses = &uses;
        };
        assert_eq!(store.update(change).await.is_ok(), there);
    }
    // What this drop has queued fails now, not with the flush of the close.
    assert!(store.flush().await.is_err());
    fs::rename(&away, &here).unwrap();
    store.close().await.unwrap();
    let uses = Uses(store.clone());
    assert!(store.update(move |_| drop(uses)).await.is_err());
}
