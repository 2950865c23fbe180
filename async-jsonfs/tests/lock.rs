//! Waiting for other processes. `flock` locks belong to the open file, so a second descriptor here is as good as a process.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use async_jsonfs::{JsonFile, Outcome, Saved, Store, load, save, update};
use async_policy::testing::drop_at_every_await;
use async_policy::{Deadline, Guard, PolicyError, Reason, Timeout};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

/// What another process does while it changes the file.
fn hold(dir: &TempDir) -> File {
    let lock = File::create(dir.path().join(".a.json.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    lock
}

/// The threads that wait are counted for the whole process, so one test at a time, and in a program of their own.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn waiting() -> Vec<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let name = |task: &PathBuf| fs::read_to_string(task.join("comm")).unwrap_or_default();
    tasks.filter(|task| name(task).trim() == "jsonfs-lock").collect()
}

fn threads_waiting() -> usize {
    waiting().len()
}

#[tokio::test]
async fn a_change_waits_and_reads_and_others_do_not() {
    let _alone = ALONE.lock().await;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    save(&path, 1).await.unwrap();
    let held = hold(&dir);
    let change = tokio::spawn(update(path.clone(), |n: &mut u8| *n += 1));
    // On its way, or waiting: reads and unlocked writers go past it.
    assert_eq!(load::<u8>(&path).await.unwrap(), 1);
    save(dir.path().join("b.json"), 1).await.unwrap();
    assert!(!change.is_finished());
    assert_eq!(load::<u8>(&path).await.unwrap(), 1);
    drop(held);
    change.await.unwrap().unwrap();
    assert_eq!(load::<u8>(&path).await.unwrap(), 2);
    let _held = hold(&dir);
    JsonFile::new(&path).without_process_lock().save(3).await.unwrap();
}

#[tokio::test]
async fn the_deadline_bounds_the_wait() {
    let _alone = ALONE.lock().await;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let held = hold(&dir);
    let timeout = Timeout::from_millis(30);
    let error = timeout.run(save(&path, 1)).await.unwrap_err();
    assert_eq!(error.rejection().unwrap().reason(), Reason::DeadlineTooClose, "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
    let passed = Deadline::after(Duration::ZERO).unwrap();
    assert!(passed.scope(save(&path, 1)).await.unwrap_err().rejection().is_some());
    // Behind one of this process that waits.
    let first = tokio::spawn(save(path.clone(), 2));
    tokio::task::yield_now().await;
    let error = timeout.run(save(&path, 3)).await.unwrap_err();
    assert_eq!(error.rejection().unwrap().reason(), Reason::DeadlineTooClose, "{error}");
    drop(held);
    first.await.unwrap().unwrap();
    assert_eq!(load::<u8>(&path).await.unwrap(), 2);
}

#[tokio::test]
async fn however_many_give_up_one_thread_waits_and_the_lock_is_let_go_of() {
    let _alone = ALONE.lock().await;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let held = hold(&dir);
    let give_up = async || {
        Timeout::from_millis(10).run(save(&path, 1)).await.unwrap_err();
    };
    // On a busy machine some give up before they get as far as the lock.
    while threads_waiting() == 0 {
        give_up().await;
    }
    for _ in 0..10 {
        give_up().await;
    }
    assert_eq!(threads_waiting(), 1);
    // It serves the next caller.
    let next = tokio::spawn(save(path.clone(), 2));
    drop(held);
    next.await.unwrap().unwrap();
    // And where nobody waits any more, it lets go.
    let held = hold(&dir);
    Timeout::from_millis(10).run(save(&path, 3)).await.unwrap_err();
    drop(held);
    assert_eq!(save(&path, 4).await.unwrap(), Saved::Written);
    assert_eq!(load::<u8>(&path).await.unwrap(), 4);
}

#[test]
fn a_runtime_shuts_down_while_one_waits() {
    let _alone = ALONE.blocking_lock();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let held = hold(&dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let change = runtime.spawn(save(path.clone(), 1));
    runtime.block_on(async {
        while threads_waiting() == 0 {
            tokio::task::yield_now().await;
        }
    });
    // This waits for blocking jobs, without a limit.
    drop(runtime);
    assert!(change.is_finished());
    assert!(!path.exists());
    drop(held);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(save(&path, 2)).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "2\n");
}

#[tokio::test]
async fn a_store_waits_with_its_callers_bounded() {
    let _alone = ALONE.lock().await;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let store = Store::<Vec<u8>>::open_or_default(&path).await.unwrap();
    let held = hold(&dir);
    let error = Timeout::from_millis(20).run(store.update(|list| list.push(1))).await.unwrap_err();
    assert_eq!(error.rejection().unwrap().reason(), Reason::DeadlineTooClose, "{error}");
    let patient = {
        let store = store.clone();
        tokio::spawn(async move { store.update(|list| list.push(2)).await })
    };
    tokio::task::yield_now().await;
    drop(held);
    patient.await.unwrap().unwrap();
    assert_eq!(*store.snapshot(), [2]);
    let _held = hold(&dir);
    // To open is to read.
    Store::<Vec<u8>>::open(&path).await.unwrap();
}

#[tokio::test]
async fn dropped_at_every_await_nothing_is_held_and_the_file_is_the_old_or_the_new() {
    let _alone = ALONE.lock().await;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    save(&path, 0).await.unwrap();
    let file = JsonFile::new(&path);
    let mut next = 1_u32;
    let mut points = 0;
    for _ in 0..5 {
        let mut held = Some(hold(&dir));
        points += drop_at_every_await(
            || {
                next += 1;
                let (file, next) = (file.clone(), next);
                let freed = held.take();
                async move {
                    let change = file.update(move |n: &mut u32| *n = next);
                    let free = async {
                        tokio::task::yield_now().await;
                        drop(freed);
                    };
                    tokio::join!(change, free).0.unwrap();
                }
            },
            async |_| {
                // Behind whatever goes on in the background.
                file.update(|_: &mut u32| ()).await.unwrap();
                let now = file.load::<u32>().await.unwrap();
                assert!(now <= 1000);
            },
        )
        .await;
    }
    assert!(points >= 5, "{points}");
    // A job may be done before it is asked for: then there is no await point.
    drop_at_every_await(|| file.load::<u32>(), async |_| ()).await;
    let names: Vec<_> = fs::read_dir(&dir).unwrap().collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[tokio::test]
async fn a_lock_file_that_somebody_removes_protects_nobody_and_is_not_relied_on() {
    let _alone = ALONE.lock().await;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    save(&path, 1).await.unwrap();
    let first = hold(&dir);
    let change = tokio::spawn(update(path.clone(), |n: &mut u8| *n += 1));
    while threads_waiting() == 0 {
        tokio::task::yield_now().await;
    }
    let before = waiting();
    // A cleaner, and then a writer that makes it anew.
    fs::remove_file(dir.path().join(".a.json.lock")).unwrap();
    let second = hold(&dir);
    drop(first);
    // What the change waited for is not the lock any more: it waits for the new one, in another thread.
    while waiting().iter().all(|thread| before.contains(thread)) {
        tokio::task::yield_now().await;
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    drop(second);
    change.await.unwrap().unwrap();
    assert_eq!(load::<u8>(&path).await.unwrap(), 2);
}

#[tokio::test]
async fn whoever_is_told_finds_the_lock_free() {
    let _alone = ALONE.lock().await;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let free = || {
        let lock = File::open(dir.path().join(".a.json.lock")).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    };
    let store = Store::<u32>::open_or_default(&path).await.unwrap();
    for _ in 0..50 {
        store.update(|n| *n += 1).await.unwrap();
        free();
        update(&path, |n: &mut u32| *n += 1).await.unwrap();
        free();
    }
    store.close().await.unwrap();
    free();
    assert_eq!(load::<u32>(&path).await.unwrap(), 100);
}
