//! A store whose callers are of several runtimes, some of which are idle or gone.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::task::{Context, Waker};

use async_jsonfs::{Store, load, save};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

type Map = BTreeMap<String, u64>;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn set(key: &str, value: u64) -> impl FnOnce(&mut Map) + Send + 'static {
    let key = key.to_owned();
    move |map| {
        map.insert(key, value);
    }
}

/// A closure that says that it has begun, and waits to be let go on.
fn held_up() -> (impl FnOnce(&mut Map) + Send + 'static, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (began, has_begun) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let change = move |_: &mut Map| {
        began.send(()).unwrap();
        let _ = wait.recv();
    };
    (change, has_begun, go)
}

#[test]
fn a_runtime_that_is_idle_holds_nobody_up() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (runtime(), runtime());
    let store = a.block_on(Store::<Map>::open_or_default(dir.path().join("s.json"))).unwrap();
    for n in 0..50 {
        a.block_on(store.update(set("a", n))).unwrap();
        b.block_on(store.update(set("b", n))).unwrap();
    }
    // Not even with a change of its own under way, or in the queue.
    let (change, has_begun, go) = held_up();
    let mut cx = Context::from_waker(Waker::noop());
    let mut first = Box::pin(store.update(change));
    let mut second = Box::pin(store.update(set("second", 1)));
    {
        let _a = a.enter();
        assert!(first.as_mut().poll(&mut cx).is_pending());
        has_begun.recv().unwrap();
        assert!(second.as_mut().poll(&mut cx).is_pending());
    }
    go.send(()).unwrap();
    b.block_on(store.update(set("b", 100))).unwrap();
    assert_eq!(store.snapshot().keys().collect::<Vec<_>>(), ["a", "b", "second"]);
    a.block_on(async { tokio::join!(first, second) }).0.unwrap();
}

#[test]
fn a_runtime_that_ends_takes_no_callers_of_another_with_it() {
    for _ in 0..20 {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s.json");
        let (a, b) = (runtime(), runtime());
        let store = b.block_on(Store::<Map>::open_or_default(&path)).unwrap();
        let (change, has_begun, go) = held_up();
        let of_a = store.clone();
        a.spawn(async move { of_a.update(change).await });
        a.block_on(tokio::task::yield_now());
        has_begun.recv().unwrap();
        let of_b = store.clone();
        let second = b.spawn(async move { of_b.update(set("b", 1)).await });
        b.block_on(tokio::task::yield_now());
        a.shutdown_background();
        go.send(()).unwrap();
        b.block_on(second).unwrap().unwrap();
        assert_eq!(b.block_on(load::<Map>(&path)).unwrap()["b"], 1);
    }
}

#[test]
fn a_runtime_shuts_down_while_others_go_on_with_the_store() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (runtime(), Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());
    let store = a.block_on(Store::<Map>::open_or_default(dir.path().join("s.json"))).unwrap();
    let (change, has_begun, go) = held_up();
    let of_a = store.clone();
    a.spawn(async move { of_a.update(change).await });
    a.block_on(tokio::task::yield_now());
    has_begun.recv().unwrap();
    // It never runs out of changes.
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let store = store.clone();
            b.spawn(async move { while store.update(set(&n.to_string(), n)).await.is_ok() {} })
        })
        .collect();
    go.send(()).unwrap();
    // This waits for the jobs that run in it.
    drop(a);
    b.block_on(async {
        store.close().await.unwrap();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[tokio::test]
async fn a_commit_waits_for_the_calls_before_it_on_the_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.json");
    std::os::unix::fs::symlink("s.json", dir.path().join("link")).unwrap();
    let store = Store::<Vec<u32>>::open_or_default(&path).await.unwrap();
    for n in 0..20 {
        let by = if n % 2 == 0 { path.clone() } else { dir.path().join("link") };
        let (saved, updated) = tokio::join!(save(by, [n]), store.update(|list| list.push(7)));
        saved.unwrap();
        updated.unwrap();
        let now = load::<Vec<u32>>(&path).await.unwrap();
        assert!(now == [n] || now == [n, 7], "{now:?}");
    }
    store.update(|list| list.push(8)).await.unwrap();
    assert_eq!(*store.snapshot(), load::<Vec<u32>>(&path).await.unwrap());
}
