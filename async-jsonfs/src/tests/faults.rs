//! Each operation of a change fails once, in every way; the promised outcome each time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use tempfile::TempDir;

use super::hooked::{Fault, Hooked, Sweeper};
use crate::{Durability, Error, JsonFile, Outcome, Saved, Store};

const OLD: &str = "{ \"old\": 1 }";

type Map = BTreeMap<String, u64>;

fn set(key: &str, value: u64) -> impl FnOnce(&mut Map) + Send + 'static {
    let key = key.to_owned();
    move |map| {
        map.insert(key, value);
    }
}

fn temporaries(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| crate::target::is_temporary(name)).count()
}

/// What a call did to the file, against what it says it did.
fn check(case: &str, path: &Path, told: Result<(), Error>, new: &str) {
    let now = fs::read_to_string(path).unwrap();
    match told {
        Ok(()) => assert_eq!(now, new, "{case}"),
        Err(error) => match error.outcome() {
            Outcome::NotWritten => assert_eq!(now, OLD, "{case}: {error}"),
            Outcome::Visible => assert_eq!(now, new, "{case}: {error}"),
            other => panic!("{case}: {other:?}"),
        },
    }
}

/// Runs `call` with a fault at its n-th operation, for each n, until none is left.
async fn each_operation<F: Future<Output = Result<(), Error>>>(
    new: &str,
    durability: Durability,
    call: impl Fn(JsonFile) -> F,
) -> Vec<&'static str> {
    let faults: [fn(usize) -> Fault; 5] = [
        |n| Fault::Once(n, Errno::IO),
        |n| Fault::Once(n, Errno::NOSPC),
        |n| Fault::Once(n, Errno::ACCESS),
        |n| Fault::From(n, Errno::IO),
        Fault::Done,
    ];
    let mut calls = Vec::new();
    for fault in faults {
        for n in 0.. {
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("a.json");
            fs::write(&path, OLD).unwrap();
            let ops = Hooked::with(fault(n), n % 2 == 0);
            let file = JsonFile::new(&path).with_durability(durability).with_ops(Arc::clone(&ops) as _);
            let told = call(file.clone()).await;
            let made = ops.calls();
            let case = format!("{:?} at {:?} of {made:?}", fault(n), made.get(n));
            let failed = told.is_err();
            check(&case, &path, told, new);
            // The disk that has died cannot be tidied up; it is once it lives again.
            if !matches!(fault(n), Fault::From(..)) {
                assert_eq!(temporaries(dir.path()), 0, "{case}");
            }
            ops.set(Fault::None);
            file.merge(BTreeMap::from([("after", 2)]))
                .await
                .unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(temporaries(dir.path()), 0, "{case}");
            file.load::<Map>().await.unwrap();
            if n >= made.len() {
                assert!(!failed, "{case}");
                calls = made;
                break;
            }
        }
    }
    calls
}

#[tokio::test(start_paused = true)]
async fn of_a_save() {
    let calls = each_operation("1\n", Durability::Durable, async |file| file.save(1).await.map(drop)).await;
    let order: Vec<_> = calls
        .into_iter()
        .filter(|call| matches!(*call, "create" | "write" | "set_mode" | "sync" | "rename" | "sync_dir"))
        .collect();
    let mut once = order.clone();
    once.dedup();
    assert_eq!(once, ["create", "write", "set_mode", "sync", "rename", "sync_dir"]);
}

#[tokio::test(start_paused = true)]
async fn of_a_visible_save() {
    let calls = each_operation("1\n", Durability::Visible, async |file| file.save(1).await.map(drop)).await;
    assert!(!calls.contains(&"sync") && !calls.contains(&"sync_dir"), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_read_can_be_replaced() {
    for call in ["open", "read_again"] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, "1\n").unwrap();
        let ops = Hooked::new(Fault::None);
        let file = JsonFile::new(&path).with_ops(Arc::clone(&ops) as _);
        ops.set(Fault::Named(call, 0, Errno::ACCESS));
        assert_eq!(file.save(4).await.unwrap(), Saved::Written, "{call}");
        assert!(ops.calls().contains(&call));
        assert_eq!(fs::read_to_string(&path).unwrap(), "4\n");
    }
}

#[tokio::test(start_paused = true)]
async fn of_an_update() {
    let new = "{ \"old\": 1, \"new\": 2 }";
    each_operation(new, Durability::Durable, async |file| file.update(set("new", 2)).await).await;
}

#[tokio::test(start_paused = true)]
async fn of_a_change_that_changes_nothing() {
    each_operation(OLD, Durability::Durable, async |file| file.update(|_: &mut Map| ()).await).await;
}

#[tokio::test(start_paused = true)]
async fn of_a_group_commit() {
    let faults: [fn(usize) -> Fault; 3] =
        [|n| Fault::Once(n, Errno::IO), |n| Fault::From(n, Errno::NOSPC), Fault::Done];
    for fault in faults {
        for n in 0.. {
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("a.json");
            fs::write(&path, OLD).unwrap();
            let ops = Hooked::new(Fault::None);
            let file = JsonFile::new(&path).with_ops(Arc::clone(&ops) as _);
            let store = Store::<Map>::open(file.clone()).await.unwrap();
            ops.set(fault(n));
            let told = store.update(set("new", 2)).await;
            let made = ops.calls();
            let case = format!("{:?} at {:?} of {made:?}", fault(n), made.get(n));
            // Memory is what the disk holds, whatever was told.
            ops.set(Fault::None);
            assert_eq!(file.load::<Map>().await.unwrap(), *store.snapshot(), "{case}");
            check(&case, &path, told, "{ \"old\": 1, \"new\": 2 }");
            // And it goes on: what was visible only is durable after this.
            store.flush().await.unwrap_or_else(|error| panic!("{case}: {error}"));
            store.update(set("next", 3)).await.unwrap();
            assert_eq!(file.load::<Map>().await.unwrap(), *store.snapshot(), "{case}");
            assert_eq!(temporaries(dir.path()), 0, "{case}");
            if n >= made.len() {
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_not_tried_again_on_the_same_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, OLD).unwrap();
    let ops = Hooked::new(Fault::None);
    let store = Store::<Map>::open(JsonFile::new(&path).with_ops(Arc::clone(&ops) as _)).await.unwrap();
    store.update(set("new", 2)).await.unwrap();
    ops.set(Fault::Named("sync_dir", 0, Errno::IO));
    let error = store.update(set("new", 3)).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Visible);
    assert_eq!(store.snapshot()["new"], 3);
    // Nothing changes any more, and still it is written: whether it was on disk is not known.
    ops.set(Fault::None);
    store.flush().await.unwrap();
    let calls = ops.calls();
    assert!(calls.contains(&"create") && calls.contains(&"rename"), "{calls:?}");
    ops.set(Fault::None);
    store.flush().await.unwrap();
    assert!(!ops.calls().contains(&"create"));
}

#[tokio::test(start_paused = true)]
async fn after_a_commit_that_fails_memory_is_what_others_have_written() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, OLD).unwrap();
    let ops = Hooked::new(Fault::None);
    let store = Store::<Map>::open(JsonFile::new(&path).with_ops(Arc::clone(&ops) as _)).await.unwrap();
    fs::write(&path, "{\"theirs\": 3}").unwrap();
    ops.set(Fault::Named("create", 0, Errno::NOSPC));
    let error = store.update(set("new", 2)).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert_eq!(*store.snapshot(), Map::from([("theirs".to_owned(), 3)]));
}

#[tokio::test(start_paused = true)]
async fn an_edit_in_the_same_tick_of_the_clock_is_seen() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let file = JsonFile::new(&path).with_ops(Hooked::frozen() as _);
    let store = Store::<Map>::open_or_default(file).await.unwrap();
    store.update(set("a", 1)).await.unwrap();
    // In place, of one length, at the same time: the file looks as it did.
    let edited = fs::read_to_string(&path).unwrap().replace('1', "7");
    fs::write(&path, edited).unwrap();
    store.update(set("b", 2)).await.unwrap();
    assert_eq!(*store.snapshot(), Map::from([("a".to_owned(), 7), ("b".to_owned(), 2)]));
    // And one that was not edited is not parsed again.
    store.update(set("c", 3)).await.unwrap();
    assert_eq!(store.snapshot().len(), 3);
    // Nor is a change of its permissions undone.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    store.update(set("d", 4)).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o604);
}

#[tokio::test(start_paused = true)]
async fn directories_that_are_made_are_durable_before_what_is_in_them() {
    for (call, nth) in [("sync_dir", 0), ("sync_dir", 1), ("make_dir", 0), ("make_dir", 1)] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a/b/c.json");
        let ops = Hooked::new(Fault::None);
        let file = JsonFile::new(&path).with_create_parents().with_ops(Arc::clone(&ops) as _);
        file.save(1).await.unwrap();
        let calls = ops.calls();
        let order: Vec<_> = calls
            .iter()
            .copied()
            .filter(|call| matches!(*call, "make_dir" | "sync_dir" | "create"))
            .collect();
        assert_eq!(order, ["make_dir", "sync_dir", "make_dir", "sync_dir", "create", "sync_dir"]);
        // Where one is not, nothing is told to be.
        fs::remove_dir_all(dir.path().join("a")).unwrap();
        ops.set(Fault::Named(call, nth, Errno::IO));
        let error = file.save(1).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotWritten);
        assert!(!path.exists());
        ops.set(Fault::None);
        file.save(1).await.unwrap();
        let calls = ops.calls();
        // Whatever is there by now is durable, or is made durable.
        let (made, synced) = (
            calls.iter().filter(|call| **call == "make_dir").count(),
            calls.iter().filter(|call| **call == "sync_dir").count(),
        );
        let expected = if nth == 0 { 2 } else { 1 };
        assert_eq!((made, synced), (expected, expected + 1), "{call} {nth}: {calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sweeper_that_is_faster_than_the_writers_lock_takes_nothing_from_it() {
    for sweeper in [Sweeper::HasLocked, Sweeper::HasRemoved] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, OLD).unwrap();
        let ops = Hooked::new(Fault::None);
        let file = JsonFile::new(&path).with_ops(Arc::clone(&ops) as _);
        ops.set(Fault::Swept(sweeper));
        assert_eq!(file.save(1).await.unwrap(), Saved::Written);
        assert_eq!(ops.calls().iter().filter(|call| **call == "create").count(), 2, "{sweeper:?}");
        ops.sweeper_ends();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        assert_eq!(temporaries(dir.path()), 0, "{sweeper:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_something_is_mounted_on_is_refused_and_nothing_stays() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, OLD).unwrap();
    let ops = Hooked::new(Fault::None);
    let file = JsonFile::new(&path).with_ops(Arc::clone(&ops) as _);
    ops.set(Fault::Named("rename", 0, Errno::BUSY));
    let error = file.save(1).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert!(error.to_string().contains("cannot replace a file that something is mounted on: "), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), OLD);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}
