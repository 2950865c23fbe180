use std::fs;
use std::num::NonZeroUsize;

use async_jsonfs::{DuplicateKeys, ErrorKind, JsonFile, Version};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tempfile::TempDir;

fn file(content: &str) -> (TempDir, JsonFile) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, content).unwrap();
    (dir, JsonFile::new(path))
}

const fn n(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

/// Loading, updating and merging agree, and nothing is touched.
async fn refused(content: &str, with: impl Fn(JsonFile) -> JsonFile) -> Option<String> {
    let (_dir, file) = file(content);
    let file = with(file);
    let loaded = file.load::<Value>().await.err();
    let merged = file.merge(json!({"new": 1})).await.err();
    assert_eq!(loaded.is_some(), merged.is_some());
    if loaded.is_some() {
        assert_eq!(fs::read_to_string(file.path()).unwrap(), content);
    }
    loaded.map(|error| error.to_string().rsplit_once("a.json:").unwrap().1.to_owned())
}

#[tokio::test(start_paused = true)]
async fn depth() {
    let with = |file: JsonFile| file.with_max_depth(n(2));
    assert_eq!(refused("[[], {\"a\": 1}]", with).await, None);
    let expected = "1:7: /1/a: nested deeper than 2 levels, near [{\"a\": [1]}]"
        .replace("/1/a", "/0/a")
        .replace("1:7", "1:8");
    assert_eq!(refused("[{\"a\": [1]}]", with).await.unwrap(), expected);
    assert_eq!(refused("[\"[[[[\", \"\\\"[[[\"]", with).await, None);
}

#[tokio::test(start_paused = true)]
async fn depth_without_a_limit_of_ours() {
    let (_dir, file) = file(&format!("{}{}", "[".repeat(127), "]".repeat(127)));
    file.load::<Value>().await.unwrap();
    for depth in [128, 1_000_000] {
        fs::write(file.path(), "[".repeat(depth) + &"]".repeat(depth)).unwrap();
        let error = file.load::<Value>().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TooDeep(_)), "{error}");
        assert!(error.to_string().contains(": nested deeper than 127 levels, near "), "{error}");
        // Skipped, not parsed: no depth is too much, and no stack is used.
        file.load::<IgnoredAny>().await.unwrap();
        file.merge(json!({"a": 1})).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn entries() {
    let with = |file: JsonFile| file.with_max_entries(n(4));
    assert_eq!(refused("[1, {\"a\": 2, \"b\": []}]", with).await, None);
    let got = refused("[1, {\"a\": 2, \"b\": [null]}]", with).await.unwrap();
    assert_eq!(got, "1:20: /1/b/0: more than 4 entries, near [1, {\"a\": 2, \"b\": [null]}]");
}

#[tokio::test(start_paused = true)]
async fn duplicate_keys() {
    let with = |file: JsonFile| file.with_duplicate_keys(DuplicateKeys::Refuse);
    assert_eq!(refused("{\"a\": {\"a\": 1}, \"b\": [{\"a\": 1}, {\"a\": 1}]}", with).await, None);
    assert_eq!(refused("{\"a\": \"b\", \"b\": \"a\"}", with).await, None);
    let got = refused("[{\"a\": 1, \"\\u0061\": 2}]", with).await.unwrap();
    assert_eq!(got, "1:11: /0/a: the key `a` is there twice, near [{\"a\": 1, \"\\u0061\": 2}]");
    assert_eq!(refused("{\"a\": 1, \"a\": 2}", |file| file).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_change_goes_in_only_if_nobody_was_faster() {
    let (dir, file) = file("1");
    let (one, version) = file.load_versioned::<u8>().await.unwrap();
    let next = file.save_if(version, one + 1).await.unwrap();
    let late = file.save_if(version, 9).await.unwrap_err();
    assert!(matches!(late.kind(), ErrorKind::Conflict), "{late}");
    file.save_if(next, 3).await.unwrap();
    assert_eq!(file.load::<u8>().await.unwrap(), 3);
    assert!(matches!(file.save_if(Version::ABSENT, 4).await.unwrap_err().kind(), ErrorKind::Conflict));
    fs::remove_file(file.path()).unwrap();
    assert!(matches!(file.save_if(next, 4).await.unwrap_err().kind(), ErrorKind::Conflict));
    file.save_if(Version::ABSENT, 5).await.unwrap();
    assert_eq!(file.load::<u8>().await.unwrap(), 5);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the file and its lock");
}

#[tokio::test]
async fn compare_and_swap_counts_right() {
    let (_dir, file) = file("0");
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let file = file.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    loop {
                        let (count, version) = file.load_versioned::<u32>().await.unwrap();
                        tokio::task::yield_now().await;
                        match file.save_if(version, count + 1).await {
                            Err(error) if matches!(error.kind(), ErrorKind::Conflict) => {}
                            saved => {
                                saved.unwrap();
                                break;
                            }
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(file.load::<u32>().await.unwrap(), 80);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_deeper_than_it_can_be_read() {
    let (_dir, file) = file("{}");
    let nested = |depth: usize| (1..depth).fold(json!([]), |inner, _| json!([inner]));
    file.save(nested(127)).await.unwrap();
    file.load::<Value>().await.unwrap();
    let (_, version) = file.load_versioned::<Value>().await.unwrap();
    for error in [
        file.save(nested(128)).await.unwrap_err(),
        file.save_if(version, nested(200)).await.unwrap_err(),
        file.merge(json!({"a": nested(127)})).await.unwrap_err(),
    ] {
        assert!(matches!(error.kind(), ErrorKind::TooDeep(_)), "{error}");
    }
    file.load::<Value>().await.unwrap();
    file.merge(json!({"a": nested(126)})).await.unwrap();
    file.load::<Value>().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_does_not_lead_beyond_the_limits() {
    let (_dir, file) = file("{\"a\":1}");
    let file = file.with_max_entries(n(2)).with_max_bytes(40);
    let error = file.merge(json!({"b": 1, "c": 2})).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooManyEntries(_)), "{error}");
    let error = file.merge(json!({"b": "x".repeat(40)})).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }), "{error}");
    fs::remove_file(file.path()).unwrap();
    let error = file.save_if(Version::ABSENT, "x".repeat(100)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }), "{error}");
    assert!(!file.path().exists());
}
