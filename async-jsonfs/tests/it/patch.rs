use std::fs;

use async_jsonfs::{Error, ErrorKind, patch};
use serde_json::{Value, json};
use tempfile::TempDir;

#[tokio::test(start_paused = true)]
async fn rfc_6902_appendix_a() {
    // (document, patch, result); no result: refused, and the file untouched.
    let cases = [
        (
            json!({"foo":"bar"}),
            json!([{"op":"add","path":"/baz","value":"qux"}]),
            Some(json!({"baz":"qux","foo":"bar"})),
        ),
        (
            json!({"foo":["bar","baz"]}),
            json!([{"op":"add","path":"/foo/1","value":"qux"}]),
            Some(json!({"foo":["bar","qux","baz"]})),
        ),
        (
            json!({"baz":"qux","foo":"bar"}),
            json!([{"op":"remove","path":"/baz"}]),
            Some(json!({"foo":"bar"})),
        ),
        (
            json!({"foo":["bar","qux","baz"]}),
            json!([{"op":"remove","path":"/foo/1"}]),
            Some(json!({"foo":["bar","baz"]})),
        ),
        (
            json!({"baz":"qux","foo":"bar"}),
            json!([{"op":"replace","path":"/baz","value":"boo"}]),
            Some(json!({"baz":"boo","foo":"bar"})),
        ),
        (
            json!({"foo":{"bar":"baz","waldo":"fred"},"qux":{"corge":"grault"}}),
            json!([{"op":"move","from":"/foo/waldo","path":"/qux/thud"}]),
            Some(json!({"foo":{"bar":"baz"},"qux":{"corge":"grault","thud":"fred"}})),
        ),
        (
            json!({"foo":["all","grass","cows","eat"]}),
            json!([{"op":"move","from":"/foo/1","path":"/foo/3"}]),
            Some(json!({"foo":["all","cows","eat","grass"]})),
        ),
        (
            json!({"baz":"qux","foo":["a",2,"c"]}),
            json!([{"op":"test","path":"/baz","value":"qux"},{"op":"test","path":"/foo/1","value":2}]),
            Some(json!({"baz":"qux","foo":["a",2,"c"]})),
        ),
        (json!({"baz":"qux"}), json!([{"op":"test","path":"/baz","value":"bar"}]), None),
        (
            json!({"foo":"bar"}),
            json!([{"op":"add","path":"/child","value":{"grandchild":{}}}]),
            Some(json!({"foo":"bar","child":{"grandchild":{}}})),
        ),
        (json!({"foo":"bar"}), json!([{"op":"add","path":"/baz/bat","value":"qux"}]), None),
        (
            json!({"/":9,"~1":10}),
            json!([{"op":"test","path":"/~01","value":10}]),
            Some(json!({"/":9,"~1":10})),
        ),
        (json!({"/":9,"~1":10}), json!([{"op":"test","path":"/~01","value":"10"}]), None),
        (
            json!({"foo":["bar"]}),
            json!([{"op":"add","path":"/foo/-","value":["abc","def"]}]),
            Some(json!({"foo":["bar",["abc","def"]]})),
        ),
        // All or nothing.
        (json!({"a":1}), json!([{"op":"replace","path":"/a","value":2},{"op":"remove","path":"/b"}]), None),
    ];
    for (document, operations, expected) in cases {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, document.to_string()).unwrap();
        let done = patch(&path, serde_json::from_value(operations.clone()).unwrap()).await;
        let now: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        match expected {
            Some(expected) => {
                done.unwrap();
                assert_eq!(now, expected, "{document} + {operations}");
            }
            None => {
                assert!(matches!(done.unwrap_err().kind(), ErrorKind::Patch(_)));
                assert_eq!(now, document);
            }
        }
    }
    // Outside of what changes, text stays text.
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, "{\"n\": 1.0e0, \"m\": 12345678901234567890123, \"a\": 1}").unwrap();
    let operations = json!([{"op": "replace", "path": "/a", "value": 2}]);
    patch(&path, serde_json::from_value(operations).unwrap()).await.unwrap();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "{\"n\": 1.0e0, \"m\": 12345678901234567890123, \"a\": 2}"
    );
}

async fn patched(content: &str, operations: Value) -> Result<String, Error> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, content).unwrap();
    let done = patch(&path, serde_json::from_value(operations).unwrap()).await;
    let now = fs::read_to_string(&path).unwrap();
    if done.is_err() {
        assert_eq!(now, content);
    }
    done.map(|_| now)
}

#[tokio::test(start_paused = true)]
async fn numbers_keep_their_text_where_they_are_moved_or_stand_beside() {
    const BIG: &str = "123456789012345678901234567890";
    let cases = [
        (
            format!("{{\"a\": {BIG}}}"),
            json!([{"op": "move", "from": "/a", "path": "/b"}]),
            format!("{{\"b\": {BIG}}}"),
        ),
        (
            format!("{{\"l\": [{BIG}, 1, -0, 1.50]}}"),
            json!([{"op": "replace", "path": "/l/1", "value": 2}]),
            format!("{{\"l\": [{BIG}, 2, -0, 1.50]}}"),
        ),
        (
            format!("{{\"a\": {{\"n\": [1e400, \"1.50\", {BIG}]}}}}"),
            json!([{"op": "copy", "from": "/a/n", "path": "/c"}]),
            format!("{{\"a\": {{\"n\": [1e400, \"1.50\", {BIG}]}}, \"c\": [1e400, \"1.50\", {BIG}]}}"),
        ),
        (
            "{\"a\": 1e400, \"b\": 1}".to_owned(),
            json!([{"op": "replace", "path": "/b", "value": 2.50}]),
            "{\"a\": 1e400, \"b\": 2.5}".to_owned(),
        ),
    ];
    for (content, operations, expected) in cases {
        assert_eq!(patched(&content, operations).await.unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_test_compares_numbers_by_what_they_stand_for() {
    let content = "{\"a\": [1.50, 2e1, 9007199254740993, 7, 1e400]}";
    let test = |n: usize, value: Value| json!([{"op": "test", "path": format!("/a/{n}"), "value": value}]);
    for (n, value) in
        [(0, json!(1.5)), (1, json!(20)), (2, json!(9_007_199_254_740_993_u64)), (3, json!(7.0))]
    {
        patched(content, test(n, value)).await.unwrap();
    }
    for (n, value) in [
        (0, json!("1.50")),
        (0, json!(1.6)),
        (2, json!(9_007_199_254_740_992_u64)),
        (4, json!(1e300)),
        (5, json!(1)),
    ] {
        let error = patched(content, test(n, value)).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Patch(_)), "{error}");
    }
    let whole = json!([{"op": "test", "path": "", "value": {"a": [{"b": 1.5}, "x"]}}]);
    patched("{\"a\": [{\"b\": 1.50}, \"x\"]}", whole).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_said_of_the_operation_or_of_the_file() {
    let two = json!([{"op": "add", "path": "/a", "value": 1}, {"op": "remove", "path": "/b"}]);
    let error = patched("{}", two).await.unwrap_err().to_string();
    assert!(error.contains("operation 1") && error.contains("/b"), "{error}");
    let add = || json!([{"op": "add", "path": "/a", "value": 1}]);
    let error = patched("{\"n\": 1.50, x}", add()).await.unwrap_err();
    assert_eq!(error.location().unwrap().column, 13, "{error}");
    let error = patched(r#"{"n": 1.50, "s": "\ud800"}"#, add()).await.unwrap_err();
    assert_eq!(error.location().unwrap().pointer, "/s", "{error}");
}
