//! `fetch_all` as a user runs it: a real process, killed for real.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Cargo builds the examples of a package before it runs its tests, next to them.
fn program() -> PathBuf {
    let mut path = std::env::current_exe().expect("this test is a program");
    path.pop();
    path.pop();
    path.push("examples");
    path.push(format!("fetch_all{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is missing: cargo build -p examples --examples", path.display());
    path
}

fn fetch_all(out: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg("--out").arg(out).args(args).stdin(Stdio::null());
    command
}

fn run(out: &Path, args: &[&str]) -> Output {
    fetch_all(out, args).output().expect("it starts")
}

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    match serde_json::from_str(&text) {
        Ok(Value::Array(values)) => values,
        Ok(mut value) => value["done"].take().as_array().cloned().expect("a checkpoint holds what is done"),
        Err(error) => panic!("{} is broken: {error}\n{text}", path.display()),
    }
}

fn names(values: &[Value]) -> BTreeSet<String> {
    values.iter().map(|value| value["name"].as_str().expect("a name").to_owned()).collect()
}

/// Results and errors together are the list: every name once.
fn assert_complete(out: &Path) -> (usize, usize) {
    let (results, errors) = (read(&out.join("results.json")), read(&out.join("errors.json")));
    let (good, bad) = (names(&results), names(&errors));
    assert_eq!((good.len(), bad.len()), (results.len(), errors.len()), "a name stands twice");
    assert_eq!(good.intersection(&bad).count(), 0);
    assert_eq!(good.len() + bad.len(), 300);
    (good.len(), bad.len())
}

#[test]
fn every_policy_is_seen_to_act_and_every_quote_that_could_be_had_is() {
    let out = TempDir::new().unwrap();
    let ended = run(out.path(), &["--rate", "60", "--seed", "11"]);
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{said}\n{}", String::from_utf8_lossy(&ended.stderr));
    let (_, errors) = assert_complete(out.path());
    // One symbol of each of the four exchanges is no longer listed.
    assert_eq!(errors, 4, "{}", std::fs::read_to_string(out.path().join("errors.json")).unwrap());
    assert!(!out.path().join("checkpoint.json").exists(), "a complete run leaves no checkpoint");

    let column = |title: &str| -> u64 {
        let rows: Vec<Vec<&str>> = said
            .lines()
            .filter(|line| line.contains('┆'))
            .map(|line| line.split(['│', '┆']).map(str::trim).collect())
            .collect();
        let place = rows[0]
            .iter()
            .position(|cell| *cell == title)
            .unwrap_or_else(|| panic!("no {title:?} in\n{said}"));
        rows[1..].iter().map(|row| row[place].parse::<u64>().expect("a number")).sum()
    };
    for title in ["requests", "successes", "retries", "time-outs", "refused: breaker", "refused: rate"] {
        assert!(column(title) > 0, "no {title} in\n{said}");
    }
    assert_eq!(column("successes"), 296);
    assert_eq!(column("requests"), 300 + column("retries"));
}

#[test]
fn killed_at_random_moments_it_loses_nothing_and_breaks_nothing() {
    const KILLS: usize = 20;
    let out = TempDir::new().unwrap();
    let args = ["--rate", "40", "--checkpoint", "0.1", "--deadline", "120"];
    let checkpoint = out.path().join("checkpoint.json");
    let mut random = fastrand::Rng::with_seed(3);
    let mut kept = BTreeSet::new();
    for kill in 0..KILLS {
        let mut child = fetch_all(out.path(), &args).stdout(Stdio::null()).spawn().expect("it starts");
        // The moment is the point here: anywhere in starting, fetching and saving.
        let moment = Duration::from_millis(random.u64(1..600));
        assert!(wait_for(&mut child, moment).is_none(), "it ended before it was killed");
        child.kill().unwrap();
        child.wait().unwrap();
        if checkpoint.exists() {
            let now = names(&read(&checkpoint));
            assert!(now.is_superset(&kept), "kill {kill} lost {:?}", kept.difference(&now));
            kept = now;
        }
    }
    assert!(kept.len() > 10, "only {} were ever checkpointed", kept.len());
    let ended = run(out.path(), &["--rate", "200", "--deadline", "120"]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(said.contains(&format!("resuming: {} of 300", kept.len())), "{said}");
    assert_eq!(assert_complete(out.path()).1, 4);
    let left: Vec<_> = std::fs::read_dir(out.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".tmp"))
        .collect();
    assert_eq!(left, [""; 0], "leftovers of killed writers");
}

/// The exit of the child, if it comes within `limit`.
fn wait_for(child: &mut std::process::Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let exited = async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(limit, exited).await.ok()
    })
}

#[test]
fn an_interrupt_drains_and_saves_and_the_next_run_goes_on() {
    let out = TempDir::new().unwrap();
    let args = ["--rate", "60", "--checkpoint", "0.1"];
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut child = fetch_all(out.path(), &args).stdout(Stdio::null()).spawn().expect("it starts");
        assert!(wait_for(&mut child, Duration::from_millis(1500)).is_none());
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = wait_for(&mut child, Duration::from_secs(30)).expect("it drains and ends");
        assert_eq!(status.code(), Some(code));
        let (good, _) = assert_complete(out.path());
        assert_eq!(read(&out.path().join("checkpoint.json")).len(), good);
        assert!(good > 0);
    }
    assert!(run(out.path(), &["--rate", "200"]).status.success());
    assert_eq!(assert_complete(out.path()).1, 4);
}

#[test]
fn bad_input_is_one_clear_message_and_nothing_half_written() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let missing = dir.path().join("missing.json").to_str().unwrap().to_owned();
    let malformed =
        file("malformed.json", "[\n  {\"name\": \"a\", \"url\": \"http://a\"},\n  {\"name\": 7}\n]");
    let cut = file("cut.json", "[{\"name\": \"a\"");
    let bad_url = file("bad.json", r#"[{"name": "a", "url": "not a url"}]"#);
    let scheme = file("ftp.json", r#"[{"name": "a", "url": "ftp://a/b"}]"#);
    let twice = file("twice.json", r#"[{"name": "a", "url": "http://a"}, {"name": "a", "url": "http://b"}]"#);
    let table: [(&[&str], &[&str]); 9] = [
        (&["--urls", &missing], &["missing.json", "No such file"]),
        (&["--urls", &malformed], &["malformed.json:3:12", "expected a string"]),
        (&["--urls", &cut], &["cut.json:1:", "EOF"]),
        (&["--urls", &bad_url], &["bad.json", "bad URL \"not a url\""]),
        (&["--urls", &scheme], &["ftp.json", "must be http or https"]),
        (&["--urls", &twice], &["twice.json", "same name \"a\""]),
        (&["--rate", "0"], &["--rate", "0"]),
        (&["--deadline=-1"], &["--deadline", "not a time above zero"]),
        (&["--concurrency", "many"], &["--concurrency", "many"]),
    ];
    for (args, expected) in table {
        let out = dir.path().join("out");
        let ended = run(&out, args);
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success(), "{args:?}");
        for part in expected {
            assert!(said.contains(part), "{args:?}: no {part:?} in {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
        assert!(!out.exists(), "{args:?} wrote something");
    }

    // A folder that cannot be made, because a file is in its way.
    let out = dir.path().join("bad.json").join("out");
    let ended = run(&out, &[]);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success());
    assert!(said.contains("bad.json") && said.contains("Not a directory"), "{said}");
}
