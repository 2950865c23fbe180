use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use async_jsonfs::{
    Durability, ErrorKind, Format, JsonFile, ReadOnly, Saved, Symlinks, UpdateError, load, save, update,
};
use tempfile::TempDir;

type Map = BTreeMap<String, u64>;

fn map(pairs: &[(&str, u64)]) -> Map {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value)).collect()
}

/// The names in the directory but for lock files.
fn names(dir: &TempDir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    names.sort();
    names
}

#[tokio::test(start_paused = true)]
async fn what_is_saved_is_loaded_and_updated() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    assert_eq!(save(&path, map(&[("a", 1)])).await.unwrap(), Saved::Written);
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\n  \"a\": 1\n}\n");
    let got = update(&path, |m: &mut Map| m.insert("b".to_owned(), 2)).await.unwrap();
    assert_eq!(got, None);
    assert_eq!(load::<Map>(&path).await.unwrap(), map(&[("a", 1), ("b", 2)]));
    assert_eq!(names(&dir), ["a.json"]);
}

#[tokio::test(start_paused = true)]
async fn equal_bytes_are_not_written() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    for durability in [Durability::Durable, Durability::Visible] {
        let file = JsonFile::new(&path).with_durability(durability).with_format(Format::Compact);
        file.save(map(&[("a", 1)])).await.unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        assert_eq!(file.save(map(&[("a", 1)])).await.unwrap(), Saved::Unchanged);
        file.update(|_: &mut Map| ()).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert_eq!(file.save(map(&[("a", 2)])).await.unwrap(), Saved::Written);
        assert_ne!(fs::metadata(&path).unwrap().ino(), inode);
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_says_no_or_panics_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let file = JsonFile::new(&path);
    file.save(map(&[("a", 1)])).await.unwrap();
    let no = file.try_update(|m: &mut Map| {
        m.clear();
        Err::<(), _>("no")
    });
    assert!(matches!(no.await, Err(UpdateError::Closure("no"))));
    let panicking = file.clone();
    let task = tokio::spawn(async move { panicking.update(|_: &mut Map| panic!("boom")).await });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(file.load::<Map>().await.unwrap(), map(&[("a", 1)]));
    file.update(|m: &mut Map| m.insert("b".to_owned(), 2)).await.unwrap();
    assert_eq!(names(&dir), ["a.json"]);
}

#[tokio::test]
async fn calls_of_one_process_lose_nothing_whatever_the_path() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    symlink(&path, dir.path().join("link.json")).unwrap();
    save(&path, map(&[("a", 0)])).await.unwrap();
    let tasks: Vec<_> = (0..60)
        .map(|n| {
            let path = dir.path().join(if n % 2 == 0 { "a.json" } else { "link.json" });
            tokio::spawn(async move { update(path, |m: &mut Map| *m.get_mut("a").unwrap() += 1).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(load::<Map>(&path).await.unwrap(), map(&[("a", 60)]));
}

#[tokio::test]
async fn calls_on_one_path_are_served_in_the_order_they_were_made() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    save(&path, Vec::<u32>::new()).await.unwrap();
    let calls = (0..50).map(|n| {
        let path = path.clone();
        async move { update(path, move |v: &mut Vec<u32>| v.push(n)).await.unwrap() }
    });
    // The order of a join is that of its first polls.
    let mut calls: Vec<_> = calls.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        calls.retain_mut(|call| call.as_mut().poll(cx).is_pending());
        if calls.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert_eq!(load::<Vec<u32>>(&path).await.unwrap(), (0..50).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn mode_and_owner_stay() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, "{}").unwrap();
    for mode in [0o600, 0o640, 0o664] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        // Only root may give files away.
        let before = fs::metadata(&path).unwrap();
        let given = std::os::unix::fs::chown(&path, Some(1234), Some(4321)).is_ok();
        save(&path, map(&[("mode", u64::from(mode))])).await.unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(after.mode() & 0o7777, mode);
        let expected = if given { (1234, 4321) } else { (before.uid(), before.gid()) };
        assert_eq!((after.uid(), after.gid()), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_file_has_the_mode_asked_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    JsonFile::new(&path).with_mode(0o666).save(1).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o666);
    JsonFile::new(&path).with_mode(0o600).save(2).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o666, "it keeps the one it has");
}

#[tokio::test(start_paused = true)]
async fn a_read_only_file_is_refused_unless_asked_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, "1").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let error = save(&path, 2).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ReadOnly), "{error}");
    assert!(matches!(update(&path, |_: &mut u8| ()).await.unwrap_err().kind(), ErrorKind::ReadOnly));
    assert_eq!(fs::read_to_string(&path).unwrap(), "1");
    JsonFile::new(&path).with_read_only(ReadOnly::Replace).save(2).await.unwrap();
    assert_eq!(load::<u8>(&path).await.unwrap(), 2);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o444);
}

#[tokio::test(start_paused = true)]
async fn symlinks_are_followed_replaced_or_refused() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let (link, file) = (dir.path().join("link"), dir.path().join("sub/file"));
    symlink("hop", &link).unwrap();
    symlink("sub/file", dir.path().join("hop")).unwrap();
    // It need not point to anything yet.
    save(&link, 1).await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "1\n");
    let refuse = JsonFile::new(&link).with_symlinks(Symlinks::Refuse);
    assert!(matches!(refuse.save(2).await.unwrap_err().kind(), ErrorKind::Symlink));
    assert!(matches!(refuse.load::<u8>().await.unwrap_err().kind(), ErrorKind::Symlink));
    JsonFile::new(&link).with_symlinks(Symlinks::Replace).save(3).await.unwrap();
    assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!((load::<u8>(&link).await.unwrap(), load::<u8>(&file).await.unwrap()), (3, 1));
    // An update reads what the link it replaces leads to.
    fs::remove_file(&link).unwrap();
    symlink("hop", &link).unwrap();
    JsonFile::new(&link).with_symlinks(Symlinks::Replace).update(|n: &mut u8| *n += 5).await.unwrap();
    assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!((load::<u8>(&link).await.unwrap(), load::<u8>(&file).await.unwrap()), (6, 1));
    symlink("round", dir.path().join("round")).unwrap();
    let error = save(dir.path().join("round"), 1).await.unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn missing_directories_are_made_if_asked_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a/b/c.json");
    let error = save(&path, 1).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    JsonFile::new(&path).with_create_parents().save(1).await.unwrap();
    assert_eq!(load::<u8>(&path).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn names_of_255_bytes_work_and_longer_ones_are_refused() {
    let dir = TempDir::new().unwrap();
    for name in ["n".repeat(255), "é".repeat(127), "n".repeat(220), "n".repeat(240)] {
        let path = dir.path().join(&name);
        save(&path, 1).await.unwrap();
        update(&path, |n: &mut u8| *n += 1).await.unwrap();
        assert_eq!(load::<u8>(&path).await.unwrap(), 2);
    }
    let error = save(dir.path().join("n".repeat(256)), 1).await.unwrap_err();
    assert!(error.io_error().is_some(), "{error}");
    assert_eq!(names(&dir).len(), 4);
}

#[tokio::test]
async fn a_call_that_is_not_polled_again_holds_nobody_up() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let mut left = Box::pin(save(&path, 1));
    let waker = std::task::Waker::noop();
    let _ = left.as_mut().poll(&mut std::task::Context::from_waker(waker));
    save(&path, 2).await.unwrap();
    assert_eq!(load::<u8>(&path).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_not_there_is_made_of_the_default_if_asked_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    assert!(update(&path, |_: &mut Map| ()).await.unwrap_err().is_not_found());
    for n in 1..=3 {
        let got = async_jsonfs::update_or_default(&path, |m: &mut Map| {
            let count = m.entry("n".to_owned()).or_default();
            *count += 1;
            *count
        });
        assert_eq!(got.await.unwrap(), n);
    }
    fs::write(&path, "[]").unwrap();
    assert!(async_jsonfs::update_or_default(&path, |_: &mut Map| ()).await.is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "[]");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_leaves_no_lock_file_that_was_not_there() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let left = || fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    update(&path, |_: &mut Map| ()).await.unwrap_err();
    async_jsonfs::merge(&path, 1).await.unwrap_err();
    save(&path, std::collections::HashMap::from([(vec![1], 1)])).await.unwrap_err();
    assert!(left().is_empty(), "{:?}", left());
    fs::write(&path, "{").unwrap();
    update(&path, |_: &mut Map| ()).await.unwrap_err();
    assert_eq!(left(), ["a.json"]);
    fs::write(&path, "{}").unwrap();
    let panics = update(path.clone(), |_: &mut Map| panic!("boom"));
    assert!(tokio::spawn(panics).await.unwrap_err().is_panic());
    assert_eq!(left(), ["a.json"]);
    save(&path, 1).await.unwrap();
    update(&path, |_: &mut Map| ()).await.unwrap_err();
    assert_eq!(left().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn compare_and_swap_of_a_link_that_is_to_be_replaced() {
    let dir = TempDir::new().unwrap();
    let (path, link) = (dir.path().join("a.json"), dir.path().join("link"));
    symlink(&path, &link).unwrap();
    let file = JsonFile::new(&link).with_symlinks(Symlinks::Replace);
    // It leads nowhere yet.
    let version = file.save_if(async_jsonfs::Version::ABSENT, 1).await.unwrap();
    assert!(!fs::symlink_metadata(&link).unwrap().is_symlink() && !path.exists());
    file.save_if(version, 2).await.unwrap();
    fs::remove_file(&link).unwrap();
    fs::write(&path, "7").unwrap();
    symlink(&path, &link).unwrap();
    let (seven, version) = file.load_versioned::<u8>().await.unwrap();
    file.save_if(version, seven + 1).await.unwrap();
    assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!((load::<u8>(&link).await.unwrap(), load::<u8>(&path).await.unwrap()), (8, 7));
}

#[tokio::test(start_paused = true)]
async fn an_update_error_is_an_error_and_says_what_it_holds() {
    async fn withdraw(path: &std::path::Path) -> Result<u64, Box<dyn std::error::Error>> {
        let take = |m: &mut Map| m.remove("a").ok_or(std::fmt::Error);
        Ok(JsonFile::new(path).try_update(take).await?)
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    assert!(withdraw(&path).await.unwrap_err().to_string().contains("No such file"));
    save(&path, map(&[("a", 1)])).await.unwrap();
    assert_eq!(withdraw(&path).await.unwrap(), 1);
    assert_eq!(withdraw(&path).await.unwrap_err().to_string(), std::fmt::Error.to_string());
}
