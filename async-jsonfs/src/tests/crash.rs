//! A crash of the machine after each operation, with every order in which a file system may bring to disk what was not synced:
//! the method of "All File Systems Are Not Created Equal" (OSDI 2014), on a model as weak as POSIX allows.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::sync::Arc;

use tempfile::TempDir;

use super::hooked::{Event, Fault, Hooked};
use crate::{Durability, JsonFile, Saved, Store};

const OLD: &str = "{ \"old\": 1 }";

type Map = BTreeMap<String, u64>;

/// What may have become of a write that was not synced.
#[derive(Clone, Copy, Debug)]
enum Landed {
    Not,
    Half,
    /// The length is there, the bytes are not (delayed allocation).
    Zeros,
    All,
}

const LANDED: [Landed; 4] = [Landed::Not, Landed::Half, Landed::Zeros, Landed::All];

/// Everything that may be in the file `name` after a crash at the end of `log`; `None`: no such file.
fn after_crash(log: &[Event], name: &OsStr) -> BTreeSet<Option<Vec<u8>>> {
    // Per event: how many ways it may have gone.
    let synced_later = |at: usize, is: &dyn Fn(&Event) -> bool| log[at..].iter().any(is);
    let ways: Vec<usize> = log
        .iter()
        .enumerate()
        .map(|(at, event)| match event {
            Event::Write { inode, .. }
                if !synced_later(at, &|e| matches!(e, Event::Sync { inode: i } if i == inode)) =>
            {
                4
            }
            Event::Create { .. } | Event::Rename { .. } | Event::Remove { .. }
                if !synced_later(at, &|e| *e == Event::SyncDir) =>
            {
                2
            }
            _ => 1,
        })
        .collect();
    let mut results = BTreeSet::new();
    let total: usize = ways.iter().product();
    assert!(total < 1 << 20, "{total} states");
    for mut way in 0..total {
        let mut names: BTreeMap<OsString, u64> = BTreeMap::from([(name.to_owned(), 0)]);
        let mut files: BTreeMap<u64, Vec<u8>> = BTreeMap::from([(0, OLD.as_bytes().to_vec())]);
        let mut created: BTreeMap<OsString, u64> = BTreeMap::new();
        for (event, ways) in log.iter().zip(&ways) {
            let choice = way % ways;
            way /= ways;
            // With one way only, it is on disk.
            let landed = *ways == 1 || choice == 1;
            match event {
                Event::Create { name, inode } => {
                    files.insert(*inode, Vec::new());
                    created.insert(name.clone(), *inode);
                    if landed {
                        names.insert(name.clone(), *inode);
                    }
                }
                Event::Write { inode, bytes } => {
                    let content = files.get_mut(inode).unwrap();
                    match if *ways == 1 { Landed::All } else { LANDED[choice] } {
                        Landed::Not => {}
                        Landed::Half => content.extend(&bytes[..bytes.len() / 2]),
                        Landed::Zeros => content.extend(bytes.iter().map(|_| 0)),
                        Landed::All => content.extend(bytes),
                    }
                }
                // Whether or not the creation has landed, what is renamed is that file.
                Event::Rename { from, to } if landed => {
                    names.remove(from);
                    names.insert(to.clone(), created[from]);
                }
                Event::Remove { name } if landed => drop(names.remove(name)),
                _ => {}
            }
        }
        results.insert(names.get(name).map(|inode| files[inode].clone()));
    }
    results
}

/// Whether after every crash the file reads as one of the contents from the last that was told on.
fn check(log: &[Event], contents: &[Vec<u8>]) -> Result<usize, String> {
    let mut states = 0;
    for end in 0..=log.len() {
        let told = log[..end].iter().rev().find_map(|event| match event {
            Event::Told { content } => contents.iter().rposition(|known| known == content),
            _ => None,
        });
        for found in after_crash(&log[..end], OsStr::new("a.json")) {
            states += 1;
            let version = found.as_ref().and_then(|found| contents.iter().position(|known| known == found));
            if version.is_none_or(|version| version < told.unwrap_or(0)) {
                let found = found.map(|found| String::from_utf8_lossy(&found).into_owned());
                return Err(format!("{found:?} after {:?}", &log[..end]));
            }
        }
    }
    Ok(states)
}

async fn save(durability: Durability) -> (Vec<Event>, Vec<Vec<u8>>) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, OLD).unwrap();
    // In several writes, to be torn between.
    let ops = Hooked::with(Fault::None, true);
    let file = JsonFile::new(&path).with_durability(durability).with_ops(Arc::clone(&ops) as _);
    file.save("new").await.unwrap();
    let new = fs::read(&path).unwrap();
    ops.told(new.clone());
    (ops.log(), vec![OLD.into(), new])
}

#[tokio::test(start_paused = true)]
async fn during_a_save_the_file_is_the_old_or_the_new() {
    let (log, contents) = save(Durability::Durable).await;
    let states = check(&log, &contents).unwrap();
    assert!(states > log.len(), "{states}");
}

/// The test of the test: what is not synced is seen to be lost.
#[tokio::test(start_paused = true)]
async fn the_model_finds_what_is_missing() {
    let (log, contents) = save(Durability::Visible).await;
    check(&log, &contents).unwrap_err();
    let (log, contents) = save(Durability::Durable).await;
    for missing in
        [Event::SyncDir, log.iter().find(|event| matches!(event, Event::Sync { .. })).unwrap().clone()]
    {
        let log: Vec<_> = log.iter().filter(|event| **event != missing).cloned().collect();
        check(&log, &contents).unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_visible_only_becomes_durable_with_equal_bytes_or_a_flush() {
    for flush in [false, true] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, OLD).unwrap();
        let ops = Hooked::new(Fault::None);
        let file = JsonFile::new(&path).with_ops(Arc::clone(&ops) as _);
        let visible = file.clone().with_durability(Durability::Visible);
        if flush {
            let store = Store::<Map>::open(visible).await.unwrap();
            store.update(|map| map.insert("new".to_owned(), 2)).await.unwrap();
            store.flush().await.unwrap();
        } else {
            visible.save("new").await.unwrap();
            assert_eq!(file.save("new").await.unwrap(), Saved::Unchanged);
        }
        let new = fs::read(&path).unwrap();
        let log = ops.log();
        let is_durable = |log: &[Event]| {
            after_crash(log, OsStr::new("a.json")).iter().all(|found| found.as_ref() == Some(&new))
        };
        assert!(is_durable(&log), "{log:?}");
        let unsynced: Vec<_> =
            log.into_iter().filter(|event| !matches!(event, Event::Sync { .. } | Event::SyncDir)).collect();
        assert!(!is_durable(&unsynced));
    }
}

#[tokio::test(start_paused = true)]
async fn during_group_commits_no_told_change_is_lost() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, OLD).unwrap();
    let ops = Hooked::new(Fault::None);
    let store = Store::<Map>::open(JsonFile::new(&path).with_ops(Arc::clone(&ops) as _)).await.unwrap();
    let mut contents = vec![OLD.as_bytes().to_vec()];
    for n in 0..6 {
        let one = store.update(move |map| map.insert(n.to_string(), n));
        let two = store.update(move |map| map.insert("n".to_owned(), n));
        let (one, two) = tokio::join!(one, two);
        assert!(one.is_ok() && two.is_ok());
        contents.push(fs::read(&path).unwrap());
        ops.told(contents.last().unwrap().clone());
    }
    // Between two of them there may have been a commit with one of the two.
    for event in ops.log() {
        if let Event::Write { bytes, .. } = event
            && !contents.contains(&bytes)
        {
            let at = contents.iter().position(|known| known.len() > bytes.len()).unwrap_or(contents.len());
            contents.insert(at, bytes);
        }
    }
    check(&ops.log(), &contents).unwrap();
}
