//! Real processes: this test program, started again to play a part.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use async_jsonfs::{JsonFile, Store, load, save, update};
use tempfile::TempDir;

const PART: &str = "JSONFS_TEST_PART";
const FILE: &str = "JSONFS_TEST_FILE";

/// Starts this program to run only the part below.
fn child(part: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::a_part_in_another_process", "--nocapture", "--ignored"])
        .env(PART, part)
        .env(FILE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "started by the other tests, in processes of its own"]
fn a_part_in_another_process() {
    let (Ok(part), Ok(path)) = (std::env::var(PART), std::env::var(FILE)) else { return };
    let path = PathBuf::from(path);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match &*part {
        "count" => runtime.block_on(async {
            for _ in 0..COUNTS {
                update(&path, |n: &mut u64| *n += 1).await.unwrap();
            }
        }),
        "count by store" => runtime.block_on(async {
            let store = Store::<u64>::open(&path).await.unwrap();
            for _ in 0..COUNTS {
                store.update(|n| *n += 1).await.unwrap();
            }
        }),
        "update" => runtime.block_on(async {
            loop {
                acknowledge(update(&path, push).await.unwrap());
            }
        }),
        "update by store" => runtime.block_on(async {
            let store = Store::<Vec<u64>>::open(&path).await.unwrap();
            let writer = async || loop {
                acknowledge(store.update(push).await.unwrap());
            };
            tokio::join!(writer(), writer(), writer(), writer());
        }),
        "limited" => runtime.block_on(async {
            let before = fs::read(&path).unwrap();
            let store = Store::<String>::open(&path).await.unwrap();
            let too_much = || "x".repeat(100_000);
            let errors = [
                save(&path, too_much()).await.unwrap_err(),
                update(&path, move |text: &mut String| *text = too_much()).await.unwrap_err(),
                store.update(move |text| *text = too_much()).await.unwrap_err(),
            ];
            for error in errors {
                let answer = error.io_error().unwrap().raw_os_error();
                assert_eq!(answer, Some(rustix::io::Errno::FBIG.raw_os_error()), "{error}");
                assert_eq!(error.outcome(), async_jsonfs::Outcome::NotWritten);
                assert_eq!(fs::read(&path).unwrap(), before);
            }
            store.update(|text| text.push('!')).await.unwrap();
        }),
        other => panic!("{other}"),
    }
}

const COUNTS: u64 = 100;

fn push(list: &mut Vec<u64>) -> u64 {
    list.push(list.len() as u64);
    list.len() as u64
}

fn acknowledge(n: u64) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ack {n}").unwrap();
    out.flush().unwrap();
}

async fn count_in(parts: &[&str]) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("n.json");
    save(&path, 0_u64).await.unwrap();
    let children: Vec<_> = parts.iter().map(|part| child(part, &path)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(load::<u64>(&path).await.unwrap(), COUNTS * parts.len() as u64);
}

#[tokio::test]
async fn two_processes_count_right() {
    count_in(&["count"; 2]).await;
}

#[tokio::test]
async fn four_processes_count_right() {
    count_in(&["count"; 4]).await;
}

#[tokio::test]
async fn stores_and_updates_of_several_processes_count_right() {
    count_in(&["count", "count by store", "count", "count by store"]).await;
}

/// Kills a process that changes the file without pause, again and again, each time a little later into its work.
async fn kill(part: &str, times: usize) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("n.json");
    save(&path, vec![0_u64]).await.unwrap();
    for round in 0..times {
        let mut child = child(part, &path);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut last = 0;
        for _ in 0..=round % 7 {
            last = last.max(acknowledged(lines.by_ref().find(|line| line.starts_with("ack ")).unwrap()));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it has said in the meantime counts, all but a line cut short.
        last = lines.filter(|line| line.starts_with("ack ")).map(acknowledged).fold(last, u64::max);
        let list: Vec<u64> = load(&path).await.unwrap();
        assert!(list.iter().enumerate().all(|(at, &n)| at as u64 == n), "{list:?}");
        assert!(list.len() as u64 >= last, "round {round}: {} < {last}", list.len());
        // Bounded, for the next rounds.
        JsonFile::new(&path).save(vec![0_u64]).await.unwrap();
    }
    // Whatever they left is swept by the next process's first write.
    let mut last = child("update", &path);
    let mut lines = BufReader::new(last.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.find(|line| line.starts_with("ack ")).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&last), rustix::process::Signal::STOP)
        .unwrap();
    let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    last.kill().unwrap();
    last.wait().unwrap();
    // The file, the lock, and at most the one that the stopped process is writing.
    assert!(names.len() <= 3, "{names:?}");
}

fn acknowledged(line: String) -> u64 {
    line["ack ".len()..].parse().unwrap()
}

#[tokio::test]
async fn killed_200_times_no_acknowledged_update_is_lost() {
    kill("update", 200).await;
}

#[tokio::test]
async fn killed_200_times_no_acknowledged_group_commit_is_lost() {
    kill("update by store", 200).await;
}

#[tokio::test]
async fn a_file_size_limit_leaves_the_old_content_and_nothing_beside_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.json");
    save(&path, "small").await.unwrap();
    // With the signal ignored, the system answers with an error.
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "processes::a_part_in_another_process", "--ignored"])
        .env(PART, "limited")
        .env(FILE, &path)
        .output()
        .unwrap();
    assert!(limited.status.success(), "{}", String::from_utf8_lossy(&limited.stdout));
    assert_eq!(load::<String>(&path).await.unwrap(), "small!");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "the file and its lock");
}

#[tokio::test(start_paused = true)]
async fn leftovers_are_swept_and_those_of_a_live_writer_are_not() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (dead, live) = (".a.json.0123456789abcdef.jsonfs-tmp", ".b.json.fedcba9876543210.jsonfs-tmp");
    let foreign = [
        ".a.json.tmp",
        "a.json.0123456789abcdef.jsonfs-tmp",
        ".0123456789abcdef.jsonfs-tmp",
        ".a.xyz.jsonfs-tmp",
    ];
    for name in foreign.iter().chain([&dead, &live]) {
        fs::write(at(name), "half").unwrap();
    }
    let writer = fs::File::open(at(live)).unwrap();
    rustix::fs::flock(&writer, rustix::fs::FlockOperation::LockExclusive).unwrap();
    save(at("c.json"), 1).await.unwrap();
    assert!(!at(dead).exists());
    assert!(foreign.iter().chain([&live]).all(|name| at(name).exists()));
}
