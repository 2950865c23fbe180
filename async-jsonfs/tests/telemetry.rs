//! What the `tracing` and `metrics` features emit. In a program of its own: it listens to the whole process, since writes happen in
//! jobs.
#![cfg(all(feature = "tracing", feature = "metrics"))]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_jsonfs::{Durability, JsonFile, Store, save};
use async_policy::{Guard, Timeout};
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tempfile::TempDir;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Numbers(Arc<Mutex<BTreeMap<String, Arc<Number>>>>);

#[derive(Debug, Default)]
struct Number(AtomicU64);

impl metrics::CounterFn for Number {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, SeqCst);
    }

    fn absolute(&self, value: u64) {
        self.0.store(value, SeqCst);
    }
}

impl HistogramFn for Number {
    fn record(&self, value: f64) {
        self.0.fetch_add(value as u64, SeqCst);
    }
}

impl Numbers {
    fn number(&self, key: &Key) -> Arc<Number> {
        let labels: String =
            key.labels().map(|label| format!(" {}={}", label.key(), label.value())).collect();
        Arc::clone(self.0.lock().unwrap().entry(format!("{}{labels}", key.name())).or_default())
    }

    fn get(&self, name: &str) -> u64 {
        self.0.lock().unwrap().get(name).map_or(0, |number| number.0.load(SeqCst))
    }
}

impl Recorder for Numbers {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.number(key))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.number(key))
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn writes_waits_and_commits_are_told() {
    let (numbers, lines) = (Numbers::default(), Lines::default());
    metrics::set_global_recorder(numbers.clone()).unwrap();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_ansi(false)
        .with_writer(lines.clone())
        .init();

    // However a caller spells it, a file has one path.
    let dir = TempDir::new().unwrap();
    std::env::set_current_dir(&dir).unwrap();
    let shown = std::env::current_dir().unwrap().join("a.json");
    std::os::unix::fs::symlink("a.json", "link.json").unwrap();
    let path = "./link.json";
    save(path, 12).await.unwrap();
    save("a.json", 12).await.unwrap();
    JsonFile::new(path).with_durability(Durability::Visible).save(3).await.unwrap();
    let store = Store::<u32>::open(path).await.unwrap();
    store.update(|n| *n += 1).await.unwrap();
    // Another process is on it.
    let lock = fs::File::open(dir.path().join(".a.json.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    while numbers.get("async_jsonfs_lock_waits_total") == 0 {
        let _ = Timeout::new(Duration::from_millis(20)).run(save(path, 5)).await;
    }
    drop(lock);

    assert_eq!(numbers.get("async_jsonfs_writes_total outcome=durable"), 2);
    assert_eq!(numbers.get("async_jsonfs_writes_total outcome=visible"), 1);
    assert_eq!(numbers.get("async_jsonfs_written_bytes_total"), 3 + 2 + 2);
    assert_eq!(numbers.get("async_jsonfs_commit_changes"), 1);
    let lines = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for (text, times) in [
        ("file replaced path=", 3),
        ("bytes=3 durable=true", 1),
        ("bytes=2 durable=false", 1),
        ("commit over path=", 1),
    ] {
        assert_eq!(lines.matches(text).count(), times, "{text}: {lines}");
    }
    assert!(lines.contains("waiting for another process"), "{lines}");
    for line in lines.lines() {
        assert!(line.contains(" async_jsonfs: "), "{line}");
        assert!(line.contains(&format!(" path={}", shown.display())), "{line}");
    }
}
