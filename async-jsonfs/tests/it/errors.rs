use std::collections::BTreeMap;
use std::fs;

use async_jsonfs::{ErrorKind, JsonFile, Outcome, load, save};
use serde::Deserialize;
use tempfile::TempDir;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(rename = "servers")]
    _servers: Vec<Server>,
}

#[derive(Debug, Deserialize)]
struct Server {
    #[serde(rename = "port")]
    _port: u16,
}

async fn message(content: &[u8]) -> String {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.json");
    fs::write(&path, content).unwrap();
    let error = load::<Config>(&path).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert_eq!(fs::read(&path).unwrap(), content);
    error.to_string().replace(&*dir.path().to_string_lossy(), "")
}

#[tokio::test(start_paused = true)]
async fn they_name_file_line_column_pointer_what_was_expected_and_the_snippet() {
    let cases: [(&[u8], &str); 14] = [
        (
            b"{\n  \"servers\": [\n    {\"port\": 80},\n    {\"port\": \"81\"}\n  ]\n}",
            "/c.json:4:17: /servers/1/port: invalid type: string \"81\", expected u16, near {\"port\": \"81\"}",
        ),
        (b"{\"servers\": [{}]}", "/c.json:1:15: /servers/0: missing field `port`, near {\"servers\": [{}]}"),
        (
            b"{\"servers\": [{\"port\": 65536}]}",
            "/c.json:1:27: /servers/0/port: invalid value: integer `65536`, expected u16, near {\"servers\": [{\"port\": 65536}]}",
        ),
        (
            b"{\"servers\": [], \"sever\": 1}",
            "/c.json:1:23: /sever: unknown field `sever`, expected `servers`, near {\"servers\": [], \"sever\": 1}",
        ),
        (b"{\"servers\": [,]}", "/c.json:1:14: /servers/0: expected value, near {\"servers\": [,]}"),
        (
            b"{\"servers\": [{\"port\": 80}",
            "/c.json:1:26: /servers/0: EOF while parsing a list, near {\"servers\": [{\"port\": 80}",
        ),
        (b"{\"servers\": []} x", "/c.json:1:17: trailing characters, near {\"servers\": []} x"),
        (b"", "/c.json:1:1: the file is empty, expected a JSON value"),
        (b" \n\n", "/c.json:3:1: the file is empty, expected a JSON value"),
        (b"[]", "/c.json:1:2: invalid length 0, expected struct Config with 1 element, near []"),
        ("{\"é\": 1}".as_bytes(), "/c.json:1:4: /é: unknown field `é`, expected `servers`, near {\"é\": 1}"),
        (b"\xFF\xFE{\0}\0", "/c.json: is UTF-16 (little endian); JSON files are UTF-8"),
        (
            b"{\"servers\": [\"\xE9\"]}",
            "/c.json: is not UTF-8 (Latin-1 or another 8-bit encoding, perhaps); JSON files are UTF-8",
        ),
        (
            b"\0\0\0\0\0\0",
            "/c.json: is zero bytes (as a crash leaves of a file that was not synced); JSON files are UTF-8",
        ),
    ];
    for (content, expected) in cases {
        assert_eq!(message(content).await, expected, "{}", String::from_utf8_lossy(content));
    }
}

#[tokio::test(start_paused = true)]
async fn a_byte_order_mark_is_accepted_and_counted() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.json");
    fs::write(&path, b"\xEF\xBB\xBF7").unwrap();
    assert_eq!(load::<u8>(&path).await.unwrap(), 7);
    fs::write(&path, b"\xEF\xBB\xBF\"7\"").unwrap();
    let error = load::<u8>(&path).await.unwrap_err();
    let location = error.location().unwrap();
    assert_eq!((location.line, location.column, location.offset), (1, 3, 5));
}

#[tokio::test(start_paused = true)]
async fn pointers_are_escaped_and_long_lines_cut() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.json");
    let noise = "x".repeat(1000);
    fs::write(&path, format!("{{\"{noise}\": 1, \"a/b~c\\u0064\": true, \"{noise}2\": 1}}")).unwrap();
    let error = load::<BTreeMap<String, u8>>(&path).await.unwrap_err();
    let location = error.location().unwrap();
    assert_eq!(location.pointer, "/a~1b~0cd");
    assert!(location.snippet.chars().count() <= 60);
    assert!(location.snippet.contains("true"), "{}", location.snippet);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_one_line_whatever_is_in_the_file_and_its_name() {
    let dir = TempDir::new().unwrap();
    let odd = |c: char| c.is_control() || ('\u{2028}'..='\u{202E}').contains(&c);
    let contents = [
        r#"{"x\nERROR forged line": "no"}"#,
        r#"{"x\u001b[31m\u202e\r": {"a": true}}"#,
        "{\"a\": \x1b[31mred}",
        "{\"a\u{2028}b\": \"\u{202e}\" 5}",
        r#"{"\u0085\u2029": tru}"#,
    ];
    for (name, content) in
        ["a.json", "a\nb\x1b\u{202e}.json"].into_iter().flat_map(|n| contents.map(|c| (n, c)))
    {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let error = load::<BTreeMap<String, u8>>(&path).await.unwrap_err();
        assert!(!error.to_string().contains(odd), "{content:?}: {error:?}");
    }
    fs::write(dir.path().join("b.json"), contents[0]).unwrap();
    let error = load::<BTreeMap<String, u8>>(dir.path().join("b.json")).await.unwrap_err();
    assert!(error.to_string().contains(r"/x\nERROR forged line: "), "{error}");
    // The pointer itself can be used.
    assert_eq!(error.location().unwrap().pointer, "/x\nERROR forged line");
}

#[tokio::test(start_paused = true)]
async fn a_missing_directory_is_named_and_what_makes_it() {
    let dir = TempDir::new().unwrap();
    let error = save(dir.path().join("no/such/a.json"), 1).await.unwrap_err();
    assert!(error.is_not_found());
    let expected = "/no does not exist (see `JsonFile::with_create_parents`)";
    assert!(error.to_string().ends_with(expected), "{error}");
    let error = save("", 1).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot use the path: it is empty");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_file_is_named() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert!(load::<u8>(at("none")).await.unwrap_err().is_not_found());
    fs::create_dir(at("sub")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), 0o600.into()).unwrap();
    for (path, what) in [(at("sub"), "a directory"), (at("pipe"), "a pipe")] {
        for error in [load::<u8>(&path).await.unwrap_err(), save(&path, 1).await.unwrap_err()] {
            assert!(matches!(error.kind(), ErrorKind::NotAFile(is) if *is == what), "{error}");
            assert_eq!(error.outcome(), Outcome::NotWritten);
        }
    }
    for path in ["", "..", "/", "sub/"] {
        assert!(matches!(
            save(path, 1).await.unwrap_err().kind(),
            ErrorKind::NotAFile(_) | ErrorKind::Io { .. }
        ));
    }
    let under_a_file = at("pipe").join("x");
    assert!(save(&under_a_file, 1).await.unwrap_err().io_error().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_refused_before_it_is_read() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.json");
    fs::write(&path, "1234567").unwrap();
    let file = JsonFile::new(&path).with_max_bytes(6);
    let error = file.load::<u64>().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { limit: 6, found: 7 }));
    let file = file.with_max_bytes(7);
    file.load::<u64>().await.unwrap();
    // Nor is it written.
    let error = file.save("12345").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { limit: 7, found: 8 }));
    assert_eq!(file.load::<u64>().await.unwrap(), 1_234_567);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_no_json_touches_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.json");
    let error = save(&path, BTreeMap::from([(vec![1], 1)])).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Serialize(_)), "{error}");
    assert!(!path.exists());
}

#[tokio::test(start_paused = true)]
async fn they_are_not_as_long_as_the_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.json");
    let long = "é".repeat(1 << 19);
    let cases = [
        format!("{{\"{long}\": x}}"),
        format!("\"{long}\""),
        format!("{{\"{long}\": 1, \"{long}\": 2}}"),
        "[".repeat(1 << 20),
    ];
    for content in cases {
        fs::write(&path, content).unwrap();
        let file = JsonFile::new(&path).with_duplicate_keys(async_jsonfs::DuplicateKeys::Refuse);
        for error in [
            file.load::<u64>().await.unwrap_err(),
            file.merge(long.clone()).await.err().unwrap_or(file.load::<u64>().await.unwrap_err()),
        ] {
            assert!(error.to_string().len() < 1500, "{} bytes", error.to_string().len());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_no_type_can_hold_is_a_mismatch_and_half_a_character_is_shown_as_spelled() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.json");
    fs::write(&path, "1e999").unwrap();
    assert!(matches!(load::<f64>(&path).await.unwrap_err().kind(), ErrorKind::Mismatch(_)));
    fs::write(&path, r#"{"\ud800": 1}"#).unwrap();
    let error = load::<serde_json::Value>(&path).await.unwrap_err();
    assert_eq!(error.location().unwrap().pointer, r"/\ud800", "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_path_that_cannot_be_is_said_to_be() {
    let error = save("/tmp/a\0b", 1).await.unwrap_err();
    assert!(error.to_string().ends_with("is a path with a zero byte, not a regular file"), "{error}");
    let dir = TempDir::new().unwrap();
    let round = dir.path().join("round");
    std::os::unix::fs::symlink(&round, &round).unwrap();
    let error = load::<u8>(&round).await.unwrap_err();
    assert!(error.io_error().is_some(), "links are followed: {error}");
}
