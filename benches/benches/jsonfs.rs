//! JSON files: loading, saving and updating by `async-jsonfs`, and the same by hand with its peers.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_jsonfs::{DropElsewhere, Format, JsonFile, Store};
use atomic_write_file::AtomicWriteFile;
use benches::{Table, block_on, note};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use tokio::sync::Mutex;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::task::spawn_blocking;

/// About 1 KB.
#[derive(Clone, Serialize, Deserialize)]
struct Record {
    count: u64,
    text: String,
}

fn record() -> Record {
    Record { count: 0, text: "x".repeat(1000) }
}

/// A durable save by hand, as peers do it: one blocking job.
fn with_atomic_write_file(path: &Path, record: &Record) {
    let mut file = AtomicWriteFile::open(path).expect("open");
    file.write_all(&serde_json::to_vec(record).expect("json")).expect("write");
    file.commit().expect("commit");
}

fn with_tempfile(path: &Path, record: &Record) {
    let dir = path.parent().expect("a directory");
    let mut file = NamedTempFile::new_in(dir).expect("create");
    file.write_all(&serde_json::to_vec(record).expect("json")).expect("write");
    file.as_file().sync_all().expect("sync");
    file.persist(path).expect("rename");
    File::open(dir).expect("open the directory").sync_all().expect("sync the directory");
}

type Save = fn(&Path, &Record);

/// Each of `tasks` changes its own file `n / tasks` times.
async fn own_files(dir: &Path, tasks: u64, n: u64, save: Save) {
    let tasks: Vec<_> = (0..tasks)
        .map(|task| {
            let path = Arc::new(dir.join(format!("{task}.json")));
            tokio::spawn(async move {
                let mut record = record();
                for _ in 0..n / tasks {
                    record.count += 1;
                    let (path, copy) = (Arc::clone(&path), record.clone());
                    spawn_blocking(move || save(&path, &copy)).await.expect("saved");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("done");
    }
}

/// All of them change one file, one after another: what a program does that has no group commit.
async fn one_by_one(dir: &Path, tasks: u64, n: u64, save: Save) {
    let path: PathBuf = dir.join("one.json");
    let shared = Arc::new(Mutex::new(record()));
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let (path, shared) = (path.clone(), Arc::clone(&shared));
            tokio::spawn(async move {
                for _ in 0..n / tasks {
                    let mut record = shared.lock().await;
                    record.count += 1;
                    let (path, copy) = (path.clone(), record.clone());
                    spawn_blocking(move || save(&path, &copy)).await.expect("saved");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("done");
    }
}

async fn grouped(store: &Store<Record>, tasks: u64, n: u64) {
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..n / tasks {
                    store.update(|record| record.count += 1).await.expect("committed");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("done");
    }
}

/// Runs `work` beside a ticker of 1 ms, and notes its worst delay: the median over the rounds so far, as other programs stall it too.
fn beside_a_ticker(stalls: &mut Vec<f64>, work: impl Future<Output = ()>) {
    block_on(async {
        let (stop, mut stopped) = oneshot::channel::<()>();
        let ticker = tokio::spawn(async move {
            let mut worst = Duration::ZERO;
            let mut last = Instant::now();
            while stopped.try_recv() == Err(TryRecvError::Empty) {
                tokio::time::sleep(Duration::from_millis(1)).await;
                worst = worst.max(last.elapsed());
                last = Instant::now();
            }
            worst
        });
        tokio::task::yield_now().await;
        work.await;
        // What is dropped elsewhere may still be at it.
        tokio::time::sleep(Duration::from_millis(30)).await;
        drop(stop);
        stalls.push(ticker.await.expect("ticked").as_secs_f64() * 1e3);
    });
    stalls.sort_by(f64::total_cmp);
    note("stall ms", stalls[stalls.len() / 2]);
}

async fn load_ours(path: &Path) {
    let value = DropElsewhere::new(async_jsonfs::load::<Value>(path).await.expect("loaded"));
    black_box(&*value);
}

async fn load_on_the_runtime(path: &Path) {
    let bytes = tokio::fs::read(path).await.expect("read");
    let value: Value = serde_json::from_slice(&bytes).expect("json");
    black_box(&value);
}

async fn load_in_a_job(path: &Path) {
    let path = path.to_owned();
    let job = spawn_blocking(move || {
        serde_json::from_slice::<Value>(&fs::read(path).expect("read")).expect("json")
    });
    black_box(&job.await.expect("done"));
}

const PEAK_OF: &str = "BENCH_JSONFS_PEAK_OF";

/// The peak of the resident set of one load, over what it was before: in a process of its own, since an allocator keeps what it has.
fn note_peak(candidate: &str, path: &Path) {
    let program = std::env::current_exe().expect("this program");
    let run = Command::new(program).env(PEAK_OF, candidate).arg(path).output().expect("run");
    let peak = String::from_utf8_lossy(&run.stdout).trim().parse().expect("a number");
    note("peak MB", peak);
}

/// The other side of [`note_peak`].
fn measure_peak(candidate: &str) {
    let kilobytes = |field: &str| -> Option<f64> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find(|line| line.starts_with(field))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let path = PathBuf::from(std::env::args().nth(1).expect("a path"));
    let before = kilobytes("VmRSS").unwrap_or(0.0);
    match candidate {
        "ours" => block_on(load_ours(&path)),
        "on the runtime" => block_on(load_on_the_runtime(&path)),
        _ => block_on(load_in_a_job(&path)),
    }
    println!("{}", (kilobytes("VmHWM").unwrap_or(0.0) - before) / 1024.0);
}

fn main() {
    if let Ok(candidate) = std::env::var(PEAK_OF) {
        return measure_peak(&candidate);
    }
    let dir = TempDir::new_in(std::env::var_os("BENCH_DIR").unwrap_or_else(|| std::env::temp_dir().into()))
        .expect("dir");
    let mut table = Table::new("jsonfs");

    // 50 MB.
    let large = dir.path().join("large.json");
    let item = |n: u64| json!({"id": n, "name": format!("item {n}"), "tags": ["a", "b"], "score": n as f64 / 7.0, "text": "x".repeat(100)});
    let array: Vec<Value> = (0..270_000).map(item).collect();
    fs::write(&large, serde_json::to_vec(&array).expect("json")).expect("written");
    drop(array);
    table
        .row("load 50 MB")
        .fixed(1)
        .rounds(11)
        .ours("async-jsonfs", |_| block_on(load_ours(&large)))
        .peer("tokio::fs, then serde_json", |_| block_on(load_on_the_runtime(&large)))
        .peer("serde_json in spawn_blocking", |_| block_on(load_in_a_job(&large)))
        .run();
    // The same once more for the notes; the times have the ticker's end in them, and the process that is asked for its memory.
    let mut stalls = [const { Vec::new() }; 4];
    let [ours, on_the_runtime, in_a_job, nothing] = &mut stalls;
    table
        .row("stall and memory of it")
        .fixed(1)
        .rounds(7)
        .ours("async-jsonfs", |_| {
            beside_a_ticker(ours, load_ours(&large));
            note_peak("ours", &large);
        })
        .peer("tokio::fs, then serde_json", |_| {
            beside_a_ticker(on_the_runtime, load_on_the_runtime(&large));
            note_peak("on the runtime", &large);
        })
        .peer("serde_json in spawn_blocking", |_| {
            beside_a_ticker(in_a_job, load_in_a_job(&large));
            note_peak("in a job", &large);
        })
        .peer("nothing but the ticker", |_| {
            beside_a_ticker(nothing, async { tokio::time::sleep(Duration::from_millis(250)).await });
        })
        .run();

    let small = dir.path().join("small.json");
    let items: Vec<Value> = (0..22).map(item).collect();
    fs::write(&small, serde_json::to_vec(&items).expect("json")).expect("written");
    table
        .row("load 4 KB")
        .ours("async-jsonfs", |n| {
            block_on(async {
                for _ in 0..n {
                    black_box(async_jsonfs::load::<Value>(&small).await.expect("loaded"));
                }
            });
        })
        .peer("tokio::fs, then serde_json", |n| {
            block_on(async {
                for _ in 0..n {
                    let bytes = tokio::fs::read(&small).await.expect("read");
                    black_box(serde_json::from_slice::<Value>(&bytes).expect("json"));
                }
            });
        })
        .run();

    let file = JsonFile::new(dir.path().join("save.json")).with_format(Format::Compact);
    table
        .row("save 1 KB")
        .ours("async-jsonfs", |n| {
            block_on(async {
                let mut record = record();
                for _ in 0..n {
                    record.count += 1;
                    file.save(record.clone()).await.expect("saved");
                }
            });
        })
        .peer("atomic-write-file", |n| block_on(own_files(dir.path(), 1, n, with_atomic_write_file)))
        .peer("tempfile", |n| block_on(own_files(dir.path(), 1, n, with_tempfile)))
        .run();

    let path = dir.path().join("store.json");
    fs::write(&path, serde_json::to_vec(&record()).expect("json")).expect("written");
    let file = JsonFile::new(&path).with_format(Format::Compact);
    let store = block_on(Store::<Record>::open(file)).expect("opened");
    for (name, tasks) in [("update, 1 task", 1), ("update, 16 tasks", 16), ("update, 64 tasks", 64)] {
        table
            .row(name)
            .fixed(tasks * 20)
            .ours("async-jsonfs", |n| block_on(grouped(&store, tasks, n)))
            .peer("atomic-write-file, own files", |n| {
                block_on(own_files(dir.path(), tasks, n, with_atomic_write_file));
            })
            .peer("tempfile, own files", |n| block_on(own_files(dir.path(), tasks, n, with_tempfile)))
            .peer("atomic-write-file, one by one", |n| {
                block_on(one_by_one(dir.path(), tasks, n, with_atomic_write_file));
            })
            .run();
    }
    table.finish();
}
