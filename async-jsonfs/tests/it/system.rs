//! Real disks that are full, permissions that are missing, and runtimes that go away.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use async_jsonfs::{Error, JsonFile, Outcome, Saved, Store, Version, load, merge, save, update};
use async_policy::testing::drop_at_every_await;
use serde_json::json;
use tempfile::TempDir;

/// A file system of 64 KiB, where this process may mount one.
struct Small(TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(dir.path()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(start_paused = true)]
async fn who_may_write_the_file_may_lock_it() {
    use std::os::unix::fs::{MetadataExt, chown};
    let dir = TempDir::new().unwrap();
    let (path, lock) = (dir.path().join("a.json"), dir.path().join(".a.json.lock"));
    fs::write(&path, "1").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o662)).unwrap();
    // Where this process may give files away.
    let _ = chown(&path, Some(1001), Some(2000));
    save(&path, 2).await.unwrap();
    let (data, lock) = (fs::metadata(&path).unwrap(), fs::metadata(&lock).unwrap());
    assert_eq!(data.mode() & 0o777, 0o662);
    assert_eq!(lock.mode() & 0o662, 0o662, "{:o}", lock.mode());
    assert_eq!((lock.uid(), lock.gid()), (data.uid(), data.gid()));
    JsonFile::new(dir.path().join("b.json")).with_mode(0o660).save(1).await.unwrap();
    assert_eq!(fs::metadata(dir.path().join(".b.json.lock")).unwrap().mode() & 0o660, 0o660);
}

#[tokio::test]
async fn a_full_disk() {
    let Some(small) = Small::mount() else {
        // Of what this is about, `a_file_size_limit_…` needs no permission.
        eprintln!("SKIPPED: no permission to mount a small file system");
        return;
    };
    let path = small.0.path().join("a.json");
    save(&path, "x".repeat(30_000)).await.unwrap();
    let before = fs::read(&path).unwrap();
    let store = Store::<String>::open(&path).await.unwrap();
    let too_much = || "y".repeat(40_000);
    let errors = [
        save(&path, too_much()).await.unwrap_err(),
        update(&path, move |text: &mut String| *text = too_much()).await.unwrap_err(),
        merge(&path, too_much()).await.unwrap_err(),
        store.update(move |text| *text = too_much()).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.io_error().unwrap().kind(), std::io::ErrorKind::StorageFull, "{error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(files(small.0.path()), [".a.json.lock", "a.json"]);
    }
    // What fits goes in.
    store.update(|text| text.truncate(7)).await.unwrap();
    assert_eq!(load::<String>(&path).await.unwrap(), "x".repeat(7));
}

/// A file that is mounted over another, where this process may do that.
struct Bound(PathBuf);

impl Bound {
    fn mount(source: &Path, path: &Path) -> Option<Self> {
        let mounted = Command::new("mount").arg("--bind").args([source, path]).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_file_that_is_mounted_over_another_is_read_and_not_replaced() {
    let dir = TempDir::new().unwrap();
    let (source, path) = (dir.path().join("source.json"), dir.path().join("a.json"));
    fs::write(&source, "1").unwrap();
    fs::write(&path, "0").unwrap();
    let Some(_bound) = Bound::mount(&source, &path) else {
        // What is said then has a test with an injected fault.
        eprintln!("SKIPPED: no permission to mount a file");
        return;
    };
    assert_eq!(load::<u8>(&path).await.unwrap(), 1);
    let store = Store::<u8>::open(&path).await.unwrap();
    for error in [save(&path, 2).await.unwrap_err(), store.update(|n| *n = 2).await.unwrap_err()] {
        assert_eq!(error.outcome(), Outcome::NotWritten);
        assert!(
            error.to_string().contains("cannot replace a file that something is mounted on: "),
            "{error}"
        );
    }
    assert_eq!((load::<u8>(&path).await.unwrap(), *store.snapshot()), (1, 1));
    let left = files(dir.path());
    assert!(left.iter().all(|name| !name.ends_with("tmp")), "{left:?}");
}

/// Permissions do not bind root, so as root this runs the test once more as somebody else. Whether this one is to run on.
fn is_bound_by_permissions(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    // Copied to where anybody may read it: a target directory may be private.
    let place = TempDir::new().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let as_nobody = |args: &[&str]| {
        let mut run = Command::new("setpriv");
        run.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        run.args(args).current_dir("/").output()
    };
    match as_nobody(&["--list"]) {
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "setpriv: {error}");
            eprintln!("SKIPPED: this is root, and setpriv is not installed");
        }
        Ok(listed) if !listed.status.success() => {
            eprintln!("SKIPPED: this is root, and may not become somebody else who can run tests");
        }
        Ok(_) => {
            let run = as_nobody(&["--exact", test, "--nocapture"]).unwrap();
            let (told, erred) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
            assert!(run.status.success() && told.contains("1 passed"), "{told}{erred}");
        }
    }
    false
}

#[tokio::test]
async fn what_is_not_permitted_is_said_and_changes_nothing() {
    if !is_bound_by_permissions("system::what_is_not_permitted_is_said_and_changes_nothing") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let inside = dir.path().join("inside");
    let path = inside.join("a.json");
    fs::create_dir(&inside).unwrap();
    fs::write(&path, "1").unwrap();
    let store = Store::<u8>::open(&path).await.unwrap();
    let permit = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let denied = |error: &Error| {
        let kind = error.io_error().map(std::io::Error::kind);
        assert_eq!(kind, Some(std::io::ErrorKind::PermissionDenied), "{error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
    };
    let changes = async || {
        let errors = [
            save(&path, 2).await.unwrap_err(),
            update(&path, |n: &mut u8| *n = 2).await.unwrap_err(),
            merge(&path, 2).await.unwrap_err(),
            JsonFile::new(&path).without_process_lock().save(2).await.unwrap_err(),
            store.update(|n| *n = 2).await.unwrap_err(),
        ];
        assert_eq!(*store.snapshot(), 1);
        errors
    };
    // A directory in which nothing can be made.
    permit(&inside, 0o555);
    changes().await.iter().for_each(denied);
    assert_eq!(load::<u8>(&path).await.unwrap(), 1);
    assert_eq!(files(&inside), ["a.json"]);
    let below = inside.join("b/c.json");
    denied(&JsonFile::new(below).with_create_parents().save(1).await.unwrap_err());
    // One that cannot be entered.
    permit(&inside, 0);
    changes().await.iter().for_each(denied);
    denied(&load::<u8>(&path).await.unwrap_err());
    permit(&inside, 0o755);
    // A file that cannot be read can be replaced, but not changed. (`w` is there: it is not read-only.)
    permit(&path, 0o200);
    denied(&load::<u8>(&path).await.unwrap_err());
    denied(&update(&path, |n: &mut u8| *n = 2).await.unwrap_err());
    assert_eq!(files(&inside), ["a.json"]);
    save(&path, 3).await.unwrap();
    permit(&path, 0o600);
    assert_eq!(load::<u8>(&path).await.unwrap(), 3);
    assert_eq!(files(&inside), [".a.json.lock", "a.json"]);
}

#[tokio::test]
async fn room_for_two_copies_is_enough_for_one_save_after_another() {
    let Some(small) = Small::mount() else {
        eprintln!("SKIPPED: no permission to mount a small file system");
        return;
    };
    let path = small.0.path().join("a.json");
    let text = |n: usize| ["x", "y"][n % 2].repeat(26_000);
    for n in 0..200 {
        save(&path, text(n)).await.unwrap();
        update(&path, |text: &mut String| *text += "!").await.unwrap();
    }
    let store = Store::<String>::open(&path).await.unwrap();
    for n in 0..200 {
        store.update(move |now| *now = text(n)).await.unwrap();
    }
}

#[test]
fn a_runtime_shut_down_in_the_middle_of_writes() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    other.block_on(save(&path, (0, String::new()))).unwrap();
    for round in 1..30_u32 {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        for n in 0..4 {
            runtime.spawn(save(path.clone(), (round * 4 + n, "x".repeat(200_000))));
        }
        for _ in 0..round * 20 {
            std::thread::yield_now();
        }
        runtime.shutdown_background();
        // After whatever still runs: that has its turn first.
        let (n, text) = other.block_on(load::<(u32, String)>(&path)).unwrap();
        assert!(text.len() == 200_000 || text.is_empty() && n < 30);
        other.block_on(update(&path, |value: &mut (u32, String)| value.0 += 1)).unwrap();
    }
    assert_eq!(files(dir.path()), [".a.json.lock", "a.json"]);
}

#[test]
fn a_job_that_has_not_begun_never_does_once_its_caller_has_gone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || wait.recv());
        let mut call = Box::pin(save(&path, 1));
        let waker = std::task::Waker::noop();
        assert!(call.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
        drop(call);
        go.send(()).unwrap();
        busy.await.unwrap().unwrap();
        // The only thread comes to this one last.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        assert!(!path.exists());
        save(&path, 2).await.unwrap();
    });
}

#[tokio::test]
async fn a_job_that_runs_goes_on_to_its_end_when_its_caller_has_gone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    save(&path, 1).await.unwrap();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let call = tokio::spawn(update(path.clone(), move |n: &mut u8| {
        begun.send(()).unwrap();
        wait.recv().unwrap();
        *n = 2;
    }));
    begins.await.unwrap();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    // It has the file to itself still, and later calls find what it has made.
    let later = tokio::spawn(update(path.clone(), |n: &mut u8| std::mem::replace(n, 3)));
    tokio::task::yield_now().await;
    assert_eq!(load::<u8>(&path).await.unwrap(), 1);
    go.send(()).unwrap();
    assert_eq!(later.await.unwrap().unwrap(), 2);
    assert_eq!(load::<u8>(&path).await.unwrap(), 3);
}

#[tokio::test]
async fn dropped_at_every_await() {
    let dir = TempDir::new().unwrap();
    let file = JsonFile::new(dir.path().join("a.json"));
    file.save(json!({"n": 0})).await.unwrap();
    let whole = async || {
        // Behind the job that was left alone.
        file.merge(json!({"after": true})).await.unwrap();
        assert!(file.load::<serde_json::Value>().await.unwrap().is_object());
        assert_eq!(files(dir.path()), [".a.json.lock", "a.json"]);
    };
    let mut n = 0;
    let mut next = || {
        n += 1;
        json!({"n": n})
    };
    for _ in 0..10 {
        drop_at_every_await(|| file.save(next()), async |_| whole().await).await;
        drop_at_every_await(|| file.merge(next()), async |_| whole().await).await;
        drop_at_every_await(|| file.load_or_default::<serde_json::Value>(), async |_| whole().await).await;
        drop_at_every_await(
            || file.try_update(|_: &mut serde_json::Value| Ok::<_, ()>(())),
            async |_| whole().await,
        )
        .await;
        drop_at_every_await(
            || file.update_or_default(|_: &mut serde_json::Value| ()),
            async |_| whole().await,
        )
        .await;
        drop_at_every_await(|| file.merge_or_default(next()), async |_| whole().await).await;
        #[cfg(feature = "patch")]
        {
            let n = next();
            let add = json!([{"op": "add", "path": "/patched", "value": n}]);
            let patch: json_patch::Patch = serde_json::from_value(add).unwrap();
            drop_at_every_await(|| file.patch(patch.clone()), async |_| whole().await).await;
        }
        drop_at_every_await(|| file.load_versioned::<serde_json::Value>(), async |_| whole().await).await;
        let (_, version) = file.load_versioned::<serde_json::Value>().await.unwrap();
        drop_at_every_await(|| file.save_if(version, next()), async |_| whole().await).await;
        drop_at_every_await(|| Store::<serde_json::Value>::open(file.clone()), async |_| whole().await).await;
        drop_at_every_await(
            || Store::<serde_json::Value>::open_or_default(file.clone()),
            async |_| whole().await,
        )
        .await;
    }
    assert!(file.save_if(Version::ABSENT, 1).await.is_err());
}

#[tokio::test]
async fn what_is_dropped_elsewhere_is_not_dropped_here() {
    use async_jsonfs::DropElsewhere;
    use std::thread::{ThreadId, current};

    struct Tells(tokio::sync::mpsc::UnboundedSender<ThreadId>);
    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.send(current().id());
        }
    }
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    drop(DropElsewhere::new(Tells(sender.clone())));
    assert_ne!(receiver.recv().await.unwrap(), current().id());
    drop(DropElsewhere::new(Tells(sender.clone())).into_inner());
    assert_eq!(receiver.recv().await.unwrap(), current().id());
    // Without a runtime there is no elsewhere.
    let there = std::thread::spawn(move || {
        drop(DropElsewhere::new(Tells(sender)));
        current().id()
    });
    assert_eq!(there.join().unwrap(), receiver.recv().await.unwrap());
}

#[tokio::test]
async fn unchanged_is_said() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    assert_eq!(save(&path, 1).await.unwrap(), Saved::Written);
    assert_eq!(save(&path, 1).await.unwrap(), Saved::Unchanged);
}
