// What must hold for any bytes: shared by the fuzz targets and the test that runs their seeds.

use std::path::Path;

use async_jsonfs::{Durability, ErrorKind, JsonFile};
use serde_json::Value;

fn file(dir: &Path, bytes: &[u8]) -> JsonFile {
    let path = dir.join("a.json");
    std::fs::write(&path, bytes).expect("written");
    JsonFile::new(path).with_durability(Durability::Visible)
}

/// Loading agrees with serde_json, and an error lies inside of the file.
pub(super) async fn check_load(dir: &Path, bytes: &[u8]) {
    let file = file(dir, bytes);
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    match (file.load::<Value>().await, serde_json::from_slice::<Value>(text)) {
        (Ok(ours), Ok(theirs)) => assert!(same(&ours, &theirs), "{ours} is not {theirs}"),
        (Err(ours), theirs) => {
            assert!(theirs.is_err(), "{ours}");
            assert!(!ours.to_string().is_empty());
            if let Some(location) = ours.location() {
                assert!(
                    location.offset <= bytes.len() && location.line > 0 && location.column > 0,
                    "{location:?}"
                );
                assert!(location.snippet.chars().count() <= 60, "{location:?}");
            }
        }
        (ours, theirs) => panic!("{ours:?}, {theirs:?}"),
    }
    assert_eq!(std::fs::read(file.path()).expect("read"), bytes);
}

/// A merge is that of RFC 7396; what is refused is left alone. The input is a document and a patch, divided by a zero byte.
pub(super) async fn check_merge(dir: &Path, bytes: &[u8]) {
    let Some(at) = bytes.iter().position(|&byte| byte == 0) else { return };
    let (document, patch) = (&bytes[..at], &bytes[at + 1..]);
    let Ok(patch) = serde_json::from_slice::<Value>(patch) else { return };
    let file = file(dir, document);
    let before = file.load::<Value>().await;
    let merged = file.merge(patch.clone()).await;
    match (before, merged) {
        (Ok(mut expected), Ok(_)) => {
            json_merge(&mut expected, &patch);
            let now = file.load::<Value>().await.expect("JSON, as before");
            assert!(same(&now, &expected), "{now} is not {expected}");
        }
        // What a `Value` cannot hold (1e999, very deep nesting) can be merged into all the same.
        (Err(error), Ok(_)) => assert!(!matches!(error.kind(), ErrorKind::Encoding(_)), "{error}"),
        (_, Err(_)) => assert_eq!(std::fs::read(file.path()).expect("read"), document),
    }
}

/// Equal, but for how serde_json rounds fractions: a little differently at each reading.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(x), Some(y)) => a == b || (x - y).abs() <= 1e-12 * x.abs(),
            _ => a == b,
        },
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// RFC 7396, section 2.
fn json_merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Default::default());
    }
    let target = target.as_object_mut().expect("made one");
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            json_merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
