//! What is wrong with one change, or one type, is told to its own caller and to no other.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::mpsc;

use async_jsonfs::{Error, ErrorKind, JsonFile, Outcome, Store, Symlinks, load};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::task::JoinHandle;

type Map = BTreeMap<String, u64>;

/// Has a commit wait in a closure, so that what comes meanwhile is the next one.
async fn hold<T>(store: &Store<T>) -> mpsc::Sender<()>
where
    T: Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let (began, has_begun) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let store = store.clone();
    tokio::spawn(async move {
        let change = move |_: &mut T| {
            began.send(()).unwrap();
            let _ = wait.recv();
        };
        store.update(change).await
    });
    tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
    go
}

fn spawn<T, R>(
    store: &Store<T>,
    change: impl FnOnce(&mut T) -> R + Send + 'static,
) -> JoinHandle<Result<R, Error>>
where
    T: Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    R: Send + 'static,
{
    let store = store.clone();
    tokio::spawn(async move { store.update(change).await })
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct Items(Vec<Item>);

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Item {
    Ratio(f64),
    Text(String),
}

impl Serialize for Items {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        for item in &self.0 {
            match item {
                Item::Text(text) if text == "error" => return Err(serde::ser::Error::custom("not this")),
                Item::Text(text) if text == "panic" => panic!("nor this"),
                _ => {}
            }
        }
        serializer.collect_seq(self.0.iter().map(|item| match item {
            Item::Ratio(ratio) => serde_json::json!(ratio),
            Item::Text(text) => serde_json::json!(text),
        }))
    }
}

#[tokio::test]
async fn a_change_that_cannot_be_written_fails_alone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.json");
    let store = Store::<Items>::open_or_default(JsonFile::new(&path).with_max_bytes(500)).await.unwrap();
    let go = hold(&store).await;
    let text = |text: &str| Item::Text(text.to_owned());
    let items = [
        text("one"),
        text("error"),
        text("two"),
        text("panic"),
        text(&"x".repeat(1000)),
        Item::Ratio(f64::NAN),
        text("three"),
    ];
    let callers: Vec<_> =
        items.into_iter().map(|item| spawn(&store, move |items| items.0.push(item))).collect();
    tokio::task::yield_now().await;
    let flush = {
        let store = store.clone();
        tokio::spawn(async move { store.flush().await })
    };
    tokio::task::yield_now().await;
    go.send(()).unwrap();
    let mut told = Vec::new();
    for caller in callers {
        told.push(caller.await.unwrap().map_err(|error| {
            assert_eq!(error.outcome(), Outcome::NotWritten);
            error.to_string().rsplit_once("s.json: ").unwrap().1.to_owned()
        }));
    }
    flush.await.unwrap().unwrap();
    assert!(told[0].is_ok() && told[2].is_ok() && told[6].is_ok(), "{told:?}");
    let errors: Vec<_> = told.into_iter().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 4);
    assert!(errors[0].contains("not this") && errors[1].contains("panicked"), "{errors:?}");
    assert!(errors[2].contains("500 are allowed") && errors[3].contains("cannot stand"), "{errors:?}");
    assert_eq!(store.snapshot().0, [text("one"), text("two"), text("three")]);
    assert_eq!(load::<Items>(&path).await.unwrap(), *store.snapshot());
}

#[tokio::test]
async fn in_a_large_state_what_is_too_large_fails_alone_and_what_reads_otherwise_fails_all() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.json");
    let store = Store::<Items>::open_or_default(JsonFile::new(&path).with_max_bytes(100_000)).await.unwrap();
    let text = |length: usize| Item::Text("x".repeat(length));
    let first = text(70_000);
    store.update(move |items| items.0.push(first)).await.unwrap();
    let commit = async |items: Vec<Item>| {
        let go = hold(&store).await;
        let callers: Vec<_> =
            items.into_iter().map(|item| spawn(&store, move |items| items.0.push(item))).collect();
        tokio::task::yield_now().await;
        go.send(()).unwrap();
        let mut told = Vec::new();
        for caller in callers {
            told.push(caller.await.unwrap().is_ok());
        }
        told
    };
    assert_eq!(commit(vec![text(1), text(50_000), text(2)]).await, [true, false, true]);
    assert_eq!(commit(vec![text(3), Item::Ratio(f64::NAN)]).await, [false, false]);
    assert_eq!(commit(vec![Item::Ratio(f64::NAN)]).await, [false]);
    assert_eq!(commit(vec![text(4)]).await, [true]);
    assert_eq!(store.snapshot().0, [text(70_000), text(1), text(2), text(4)]);
    assert_eq!(load::<Items>(&path).await.unwrap(), *store.snapshot());
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "a drop that panics");
    }
}

#[tokio::test]
async fn a_value_that_panics_when_it_is_dropped_harms_no_other() {
    let dir = TempDir::new().unwrap();
    let store = Store::<Map>::open_or_default(dir.path().join("s.json")).await.unwrap();
    let go = hold(&store).await;
    let (ran, has_run) = mpsc::channel();
    let (on, wait) = mpsc::channel::<()>();
    let bomb = {
        let store = store.clone();
        tokio::spawn(async move {
            let change = move |_: &mut Map| {
                ran.send(()).unwrap();
                let _ = wait.recv();
                Bomb
            };
            std::mem::forget(store.update(change).await);
        })
    };
    tokio::task::yield_now().await;
    let good = spawn(&store, |map| map.insert("good".to_owned(), 1));
    tokio::task::yield_now().await;
    go.send(()).unwrap();
    tokio::task::spawn_blocking(move || has_run.recv().unwrap()).await.unwrap();
    // It is committed, and its value has nobody to go to.
    bomb.abort();
    assert!(bomb.await.unwrap_err().is_cancelled());
    on.send(()).unwrap();
    good.await.unwrap().unwrap();
    assert_eq!(store.snapshot()["good"], 1);
}

/// Each of its copies panics when it is dropped, from 13 on.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Grim(u64);

impl Drop for Grim {
    fn drop(&mut self) {
        assert!(self.0 < 13 || std::thread::panicking(), "a drop that panics");
    }
}

#[tokio::test]
async fn a_state_that_panics_when_it_is_dropped_is_committed_all_the_same() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.json");
    let store = Store::<Grim>::open_or_default(&path).await.unwrap();
    for n in [12, 13, 14, 15] {
        store.update(move |grim| grim.0 = n).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{n}\n"));
    }
    let no = store.try_update(|_| Err::<(), _>("no")).await;
    assert!(matches!(no, Err(async_jsonfs::UpdateError::Closure("no"))));
    store.update(|grim| grim.0 = 1).await.unwrap();
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Fussy(u64);

impl<'de> Deserialize<'de> for Fussy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let n = u64::deserialize(deserializer)?;
        assert_ne!(n, 13, "a deserializer that panics");
        Ok(Self(n))
    }
}

#[tokio::test]
async fn a_deserializer_that_panics_is_told_as_what_it_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.json");
    let store = Store::<Fussy>::open_or_default(&path).await.unwrap();
    store.update(|fussy| fussy.0 = 1).await.unwrap();
    let error = store.update(|fussy| fussy.0 = 13).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Panicked), "{error}");
    fs::write(&path, "13").unwrap();
    for _ in 0..2 {
        let error = store.update(|fussy| fussy.0 = 2).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Panicked), "{error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
    }
    fs::write(&path, "5").unwrap();
    store.update(|fussy| fussy.0 += 1).await.unwrap();
    assert_eq!(store.snapshot().0, 6);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_what_refuses() {
    let dir = TempDir::new().unwrap();
    let store = Store::<Map>::open_or_default(dir.path().join("s.json")).await.unwrap();
    store.close().await.unwrap();
    for error in [store.update(|_| ()).await.unwrap_err(), store.flush().await.unwrap_err()] {
        assert!(error.to_string().ends_with("not started: the store is closed"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_change_makes_a_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.json");
    let store = Store::<Map>::open_or_default(&path).await.unwrap();
    store.flush().await.unwrap();
    assert_eq!(
        fs::read_dir(&dir).unwrap().filter(|e| e.as_ref().unwrap().file_name() == "s.json").count(),
        0
    );
    store.update(|map| map.insert("a".to_owned(), 1)).await.unwrap();
    // Whoever removes it has the last word, until there is another change.
    fs::remove_file(&path).unwrap();
    store.flush().await.unwrap();
    assert!(!path.exists());
    store.update(|map| map.insert("b".to_owned(), 2)).await.unwrap();
    assert_eq!(load::<Map>(&path).await.unwrap().len(), 2);
    fs::remove_file(&path).unwrap();
    store.close().await.unwrap();
    assert!(!path.exists());
}

#[tokio::test(start_paused = true)]
async fn a_missing_directory_is_a_missing_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("sub/s.json");
    assert!(Store::<Map>::open(&path).await.unwrap_err().is_not_found());
    let store = Store::<Map>::open_or_default(&path).await.unwrap();
    assert!(store.update(|map| map.insert("a".to_owned(), 1)).await.unwrap_err().is_not_found());
    fs::create_dir(dir.path().join("sub")).unwrap();
    store.update(|map| map.insert("a".to_owned(), 1)).await.unwrap();
    let deep = JsonFile::new(dir.path().join("more/s.json")).with_create_parents();
    let store = Store::<Map>::open_or_default(deep.clone()).await.unwrap();
    assert!(!dir.path().join("more").exists(), "to open is to read");
    store.update(|map| map.insert("a".to_owned(), 1)).await.unwrap();
    assert_eq!(deep.load::<Map>().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_link_is_replaced_with_the_first_commit_and_read_until_then() {
    let dir = TempDir::new().unwrap();
    let (path, link) = (dir.path().join("s.json"), dir.path().join("link"));
    fs::write(&path, "{\"a\": 1}").unwrap();
    symlink(&path, &link).unwrap();
    let store = Store::<Map>::open(JsonFile::new(&link).with_symlinks(Symlinks::Replace)).await.unwrap();
    fs::write(&path, "{\"a\": 2}").unwrap();
    store.update(|map| map.insert("b".to_owned(), map["a"])).await.unwrap();
    assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&link).unwrap(), "{\"a\": 2, \"b\": 2}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\": 2}");
}
