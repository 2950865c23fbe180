use std::fs;

use async_jsonfs::{ErrorKind, JsonFile, Saved, merge, update};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

async fn merged(target: &str, patch: Value) -> String {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, target).unwrap();
    merge(&path, patch).await.unwrap();
    fs::read_to_string(&path).unwrap()
}

#[tokio::test(start_paused = true)]
async fn rfc_7396_appendix_a() {
    let cases = [
        (r#"{"a":"b"}"#, json!({"a":"c"}), r#"{"a":"c"}"#),
        (r#"{"a":"b"}"#, json!({"b":"c"}), r#"{"a":"b","b":"c"}"#),
        (r#"{"a":"b"}"#, json!({"a":null}), r"{}"),
        (r#"{"a":"b","b":"c"}"#, json!({"a":null}), r#"{"b":"c"}"#),
        (r#"{"a":["b"]}"#, json!({"a":"c"}), r#"{"a":"c"}"#),
        (r#"{"a":"c"}"#, json!({"a":["b"]}), r#"{"a":["b"]}"#),
        (r#"{"a":{"b":"c"}}"#, json!({"a":{"b":"d","c":null}}), r#"{"a":{"b":"d"}}"#),
        (r#"{"a":[{"b":"c"}]}"#, json!({"a":[1]}), r#"{"a":[1]}"#),
        (r#"["a","b"]"#, json!(["c", "d"]), r#"["c","d"]"#),
        (r#"{"a":"b"}"#, json!(["c"]), r#"["c"]"#),
        (r#"{"a":"foo"}"#, json!(null), r"null"),
        (r#"{"a":"foo"}"#, json!("bar"), r#""bar""#),
        (r#"{"e":null}"#, json!({"a":1}), r#"{"e":null,"a":1}"#),
        (r"[1,2]", json!({"a":"b","c":null}), r#"{"a":"b"}"#),
        (r"{}", json!({"a":{"bb":{"ccc":null}}}), r#"{"a":{"bb":{}}}"#),
    ];
    for (target, patch, result) in cases {
        let got: Value = serde_json::from_str(&merged(target, patch.clone()).await).unwrap();
        assert_eq!(got, serde_json::from_str::<Value>(result).unwrap(), "{target} + {patch}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_patch_does_not_name_stays_byte_by_byte() {
    let target = "{\r\n\t\"z\" : 1.500e+00,\r\n\t\"big\": 123456789012345678901234567890,\r\n\t\"sub\": { \"x\":[1 ,2], \"y\": 1 },\r\n\t\"gone\": 1,\r\n\t\"a\": \"\\u0041\"\r\n}\r\n\r\n";
    let got =
        merged(target, json!({"sub": {"y": 2, "n": {"k": [1]}}, "gone": null, "new": {"k": [1, {}]}})).await;
    let expected = "{\r\n\t\"z\" : 1.500e+00,\r\n\t\"big\": 123456789012345678901234567890,\r\n\t\"sub\": { \"x\":[1 ,2], \"y\": 2, \"n\": {\"k\": [1]} },\r\n\t\"a\": \"\\u0041\",\r\n\t\"new\": {\r\n\t\t\"k\": [\r\n\t\t\t1,\r\n\t\t\t{}\r\n\t\t]\r\n\t}\r\n}\r\n\r\n";
    assert_eq!(got, expected);
}

#[tokio::test(start_paused = true)]
async fn members_go_and_come_with_their_commas() {
    let cases = [
        ("{\"a\": 1, \"b\": 2, \"c\": 3}", json!({"a": null, "b": null}), "{\"c\": 3}"),
        ("{\"a\": 1, \"b\": 2, \"c\": 3}", json!({"b": null, "c": null}), "{\"a\": 1}"),
        ("{\"a\": 1, \"b\": 2, \"c\": 3}", json!({"b": null, "c": null, "d": 4}), "{\"a\": 1, \"d\": 4}"),
        ("{ \"a\": 1 }", json!({"a": null}), "{}"),
        ("{\n  \"a\": 1\n}", json!({"a": null, "b": 2}), "{\n  \"b\": 2\n}"),
        ("{\n  \"a\": {}\n}", json!({"a": {"b": 2}}), "{\n  \"a\": {\n    \"b\": 2\n  }\n}"),
        ("{}\n", json!({"a": [], "b": {"c": 1}}), "{\n  \"a\": [],\n  \"b\": {\n    \"c\": 1\n  }\n}\n"),
        ("{\"a\":1}", json!({"b": {"c": [1, 2]}}), "{\"a\":1,\"b\":{\"c\":[1,2]}}"),
        ("{\"a\": 1, \"a\": 2, \"b\": 3}", json!({"a": null}), "{\"b\": 3}"),
        ("{\"a\": 1, \"\\u0061\": 2}", json!({"a": 3}), "{\"a\": 1, \"\\u0061\": 3}"),
        ("{\"a\": \"}]{[,:\\\"\", \"b\": 2}", json!({"b": null}), "{\"a\": \"}]{[,:\\\"\"}"),
    ];
    for (target, patch, expected) in cases {
        assert_eq!(merged(target, patch.clone()).await, expected, "{target} + {patch}");
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Config {
    name: String,
    #[serde(alias = "colour", default, skip_serializing_if = "Option::is_none")]
    color: Option<String>,
    #[serde(default)]
    limit: u64,
    server: Server,
    tags: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Server {
    port: u16,
}

const CONFIG: &str = "\u{feff}{\n    \"tags\": [\"a\"],\n    \"server\": {\n        \"tls\": 1.0,\n        \"port\": 80\n    },\n    \"unknown\": {\"kept\": 1e2},\n    \"name\": \"n\"\n}";

async fn updated(
    content: &str,
    change: impl FnOnce(&mut Config) + Send + 'static,
) -> Result<String, async_jsonfs::Error> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, content).unwrap();
    let done = update(&path, change).await;
    let now = fs::read_to_string(&path).unwrap();
    if done.is_err() {
        assert_eq!(now, content);
    }
    done.map(|()| now)
}

#[tokio::test(start_paused = true)]
async fn an_update_keeps_what_the_type_does_not_know() {
    assert_eq!(updated(CONFIG, |_| ()).await.unwrap(), CONFIG);
    let got = updated(CONFIG, |config| {
        config.server.port = 81;
        config.tags.push("b".to_owned());
        config.color = Some("red".to_owned());
    });
    let expected = CONFIG
        .replace("\"port\": 80", "\"port\": 81")
        .replace("[\"a\"]", "[\"a\", \"b\"]")
        .replace("\"name\": \"n\"", "\"name\": \"n\",\n    \"color\": \"red\"");
    assert_eq!(got.await.unwrap(), expected);
    // A default that was not written is not written now either, until it changes.
    let got = updated(CONFIG, |config| config.limit = 9).await.unwrap();
    assert_eq!(got, CONFIG.replace("\"name\": \"n\"", "\"name\": \"n\",\n    \"limit\": 9"));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_could_not_be_read_back_is_refused() {
    let aliased = CONFIG.replace("\"unknown\"", "\"colour\": \"red\", \"unknown\"");
    let error = updated(&aliased, |config| config.color = Some("blue".to_owned())).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unmergeable(_)), "{error}");
    assert!(error.to_string().contains("duplicate field `color`"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_rewrite_keeps_nothing_else() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, CONFIG).unwrap();
    JsonFile::new(&path).with_rewrite().update(|config: &mut Config| config.limit = 9).await.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("unknown") && text.starts_with("{\n  \"name\""), "{text}");
}

#[tokio::test(start_paused = true)]
async fn merging_what_is_there_already_writes_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, "{\"a\" :1}").unwrap();
    assert_eq!(merge(&path, json!({"a": 1, "b": null})).await.unwrap(), Saved::Unchanged);
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\" :1}");
    fs::write(&path, "{\"a\" :1").unwrap();
    assert!(matches!(merge(&path, json!({"a": 2})).await.unwrap_err().kind(), ErrorKind::Syntax(_)));
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_read_back_is_not_written() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    async_jsonfs::save(&path, [1.5]).await.unwrap();
    let error = update(&path, |ratios: &mut [f64; 1]| ratios[0] = f64::NAN).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Serialize(_)), "{error}");
    assert_eq!(async_jsonfs::load::<[f64; 1]>(&path).await.unwrap(), [1.5]);
    let store = async_jsonfs::Store::<f64>::open_or_default(dir.path().join("new.json")).await.unwrap();
    assert!(store.update(|ratio| *ratio = f64::NAN).await.is_err());
    store.update(|ratio| *ratio = 2.5).await.unwrap();
    let two = std::num::NonZeroUsize::new(2).unwrap();
    let file = JsonFile::new(&path).with_max_entries(two);
    assert!(matches!(file.save([1, 2, 3]).await.unwrap_err().kind(), ErrorKind::TooManyEntries(_)));
    file.save([1, 2]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_writer_refuses_a_number_that_is_none_also_where_null_would_be_read() {
    #[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
    struct Gauge {
        value: Option<f64>,
        n: u8,
    }
    fn refused<T: std::fmt::Debug>(told: Result<T, async_jsonfs::Error>) {
        let error = told.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Serialize(_)), "{error}");
        assert!(error.to_string().ends_with("is no number in JSON"), "{error}");
    }
    let dir = TempDir::new().unwrap();
    let file = JsonFile::new(dir.path().join("a.json"));
    let store = async_jsonfs::Store::<Gauge>::open_or_default(file.clone()).await.unwrap();
    for none in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let gauge = || Gauge { value: Some(none), n: 1 };
        let set = move |gauge: &mut Gauge| gauge.value = Some(none);
        refused(file.save(gauge()).await);
        refused(file.save(vec![none as f32]).await);
        refused(file.save_if(async_jsonfs::Version::ABSENT, gauge()).await);
        refused(file.update_or_default(set).await);
        refused(file.merge_or_default(gauge()).await);
        refused(store.update(set).await);
        assert_eq!(store.snapshot().value, None);
        assert!(!file.path().exists());
    }
    store.update(|gauge| gauge.value = Some(1.5)).await.unwrap();
    refused(file.clone().with_rewrite().update(|gauge: &mut Gauge| gauge.value = Some(f64::NAN)).await);
    assert_eq!(file.load::<Gauge>().await.unwrap(), *store.snapshot());
    // What is meant to be nothing may be `null`.
    store.update(|gauge| gauge.value = None).await.unwrap();
    assert_eq!(file.load::<Gauge>().await.unwrap(), Gauge::default());
}

#[tokio::test(start_paused = true)]
async fn what_stands_in_the_way_is_told_with_its_place_and_what_to_do() {
    #[derive(Debug, Deserialize, Serialize)]
    #[serde(tag = "kind")]
    enum Kind {
        A {
            #[serde(alias = "old")]
            x: u8,
        },
        B {
            y: u8,
        },
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, r#"{"kind": "B", "y": 1, "old": 2}"#).unwrap();
    let to_a = |kind: &mut Kind| *kind = Kind::A { x: 1 };
    let error = update(&path, to_a).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unmergeable(_)), "{error}");
    let expected =
        "at the top level: duplicate field `x` (`JsonFile::with_rewrite` writes the value and nothing else)";
    assert!(error.to_string().ends_with(expected), "{error}");
    JsonFile::new(&path).with_rewrite().update(to_a).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_changed_array_is_replaced_whole() {
    #[derive(Deserialize, Serialize)]
    struct Server {
        port: u16,
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, r#"{"servers": [{"port": 1, "tls": true}], "idle": [{"port": 2, "tls": true}]}"#)
        .unwrap();
    let change = |lists: &mut std::collections::BTreeMap<String, Vec<Server>>| {
        lists.get_mut("servers").unwrap()[0].port = 9;
    };
    update(&path, change).await.unwrap();
    let expected = r#"{"servers": [{"port": 9}], "idle": [{"port": 2, "tls": true}]}"#;
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_removal_under_an_alias_is_refused_and_not_forgotten() {
    let aliased = CONFIG.replace("\"unknown\"", "\"colour\": \"red\", \"unknown\"");
    let error = updated(&aliased, |config| config.color = None).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unmergeable(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_prints_twice_counts_once() {
    #[derive(Serialize, Deserialize)]
    struct Flat {
        a: u8,
        #[serde(flatten)]
        rest: std::collections::BTreeMap<String, Value>,
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, "{\"a\": 1}").unwrap();
    let twice = Flat { a: 2, rest: [("a".to_owned(), json!(3))].into() };
    merge(&path, twice).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\": 3}");
    let change = |flat: &mut Flat| drop(flat.rest.insert("a".to_owned(), json!(4)));
    update(&path, change).await.unwrap();
    async_jsonfs::load::<Flat>(&path).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_kept_must_not_make_it_another_variant() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Limit {
        Burst { rate: u8, burst: u8 },
        Plain { rate: u16 },
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, r#"{"rate": 1000, "burst": 2}"#).unwrap();
    let error = update(&path, |limit: &mut Limit| *limit = Limit::Plain { rate: 5 }).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unmergeable(_)), "{error}");
    assert_eq!(async_jsonfs::load::<Limit>(&path).await.unwrap(), Limit::Plain { rate: 1000 });
    // Nothing is kept beside it.
    JsonFile::new(&path)
        .with_rewrite()
        .update(|limit: &mut Limit| *limit = Limit::Plain { rate: 5 })
        .await
        .unwrap();
    assert_eq!(async_jsonfs::load::<Limit>(&path).await.unwrap(), Limit::Plain { rate: 5 });
}

#[tokio::test(start_paused = true)]
async fn sets_fractions_and_defaults_that_differ_each_time_are_no_obstacle() {
    use std::collections::{HashMap, HashSet};
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    fn next() -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        NEXT.fetch_add(1, Relaxed)
    }
    #[derive(Serialize, Deserialize)]
    struct Odd {
        #[serde(default = "next")]
        id: u32,
        ratio: f64,
        small: f32,
        set: HashSet<String>,
        map: HashMap<String, u32>,
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, r#"{ "ratio": 0.1, "small": 0.1, "set": ["a"], "map": {"b": 1}, "unknown": 1 }"#)
        .unwrap();
    for n in 0..50_u32 {
        update(&path, move |odd: &mut Odd| {
            odd.ratio += 0.2 / f64::from(n + 1);
            odd.small *= 1.1;
            odd.set.insert(n.to_string());
            odd.map.insert(n.to_string(), n);
        })
        .await
        .unwrap();
    }
    let odd: Odd = async_jsonfs::load(&path).await.unwrap();
    assert_eq!((odd.set.len(), odd.map.len()), (51, 51));
}

#[tokio::test(start_paused = true)]
async fn a_patch_with_a_number_that_is_none_is_refused_and_removes_nothing() {
    #[derive(Serialize)]
    struct Patch {
        gone: Option<u8>,
        deep: Vec<Option<(f32, &'static str)>>,
        ratio: f64,
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, r#"{"gone": 1, "ratio": 1.5}"#).unwrap();
    for (deep, ratio) in [(1.0, f64::NAN), (f32::INFINITY, 1.0)] {
        let patch = Patch { gone: None, deep: vec![None, Some((deep, "a"))], ratio };
        let error = merge(&path, patch).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Serialize(_)), "{error}");
        assert!(error.to_string().ends_with("is no number in JSON"), "{error}");
    }
    merge(&path, Patch { gone: None, deep: vec![None], ratio: 2.5 }).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), r#"{"ratio": 2.5, "deep": [null]}"#);
}

#[tokio::test(start_paused = true)]
async fn a_merge_makes_the_file_if_asked_to() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    let patch = || json!({"a": {"b": null, "c": [1, null]}, "d": null});
    assert!(merge(&path, patch()).await.unwrap_err().is_not_found());
    JsonFile::new(&path).with_format(async_jsonfs::Format::Compact).merge_or_default([1, 2]).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "[1,2]");
    fs::remove_file(&path).unwrap();
    for (file, expected) in [
        (JsonFile::new(&path), "{\n  \"a\": {\n    \"c\": [\n      1,\n      null\n    ]\n  }\n}\n"),
        (JsonFile::new(&path).with_format(async_jsonfs::Format::Compact), r#"{"a":{"c":[1,null]}}"#),
    ] {
        assert_eq!(file.merge_or_default(patch()).await.unwrap(), Saved::Written);
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(file.merge_or_default(json!({"a": {"x": null}})).await.unwrap(), Saved::Unchanged);
        fs::remove_file(&path).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_with_half_a_surrogate_pair_is_no_other_key_and_stays() {
    #[derive(Deserialize, Serialize)]
    struct Known {
        n: u64,
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    // Each differs from each, however it is spelled: no text, text that looks like it, and text with a zero before that.
    let odd =
        r#""\ud800": 1, "\ud801": 2, "\udc00": 3, "\\ud800": 4, "\u0000\\ud800": 5, "\u0000": 6, "": 7"#;
    let file = |n: u64| format!(r#"{{"n": {n}, "odd": {{{odd}}}}}"#);
    fs::write(&path, file(1)).unwrap();
    update(&path, |known: &mut Known| known.n += 1).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), file(2));
    merge(&path, json!({"n": 3})).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), file(3));
    // The others are removed and changed beside them.
    merge(&path, json!({"odd": {"\\ud800": null}})).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), file(3).replace(r#" "\\ud800": 4,"#, ""));
    merge(&path, json!({"odd": {"\0\\ud800": null, "\0": 8, "": null}})).await.unwrap();
    let rest = r#"{"n": 3, "odd": {"\ud800": 1, "\ud801": 2, "\udc00": 3, "\u0000": 8}}"#;
    assert_eq!(fs::read_to_string(&path).unwrap(), rest);
    // Nor are they taken for duplicates.
    fs::write(&path, format!("{{{odd}}}")).unwrap();
    let strict = JsonFile::new(&path).with_duplicate_keys(async_jsonfs::DuplicateKeys::Refuse);
    strict.merge(json!({"": 9})).await.unwrap();
    fs::write(&path, r#"{"\ud800": 1, "\ud800": 2}"#).unwrap();
    let error = strict.merge(json!({"": 9})).await.unwrap_err();
    assert!(error.to_string().contains(r"the key `\ud800` is there twice"), "{error}");
}
