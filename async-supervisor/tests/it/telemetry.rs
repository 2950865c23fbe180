//! What the features `tracing` and `metrics` make of the events.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_supervisor::{Backoff, Supervisor};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tracing_subscriber::fmt::MakeWriter;

use crate::common::{Log, Order, tolerant, up};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Lines {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

#[derive(Default)]
struct Counts(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Counter::from_arc(Arc::clone(self.0.lock().unwrap().entry(name).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn falls_and_restarts_are_logged_and_counted() {
    let (lines, counts) = (Lines::default(), Counts::default());
    let subscriber = tracing_subscriber::fmt()
        .with_writer(lines.clone())
        .with_ansi(false)
        .without_time()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    tracing::callsite::rebuild_interest_cache();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&counts, || {
        runtime.block_on(async {
            let log = Log::new();
            let child = log.child("a").with_backoff(Backoff::constant(Duration::from_secs(1)));
            let s = up(tolerant(Supervisor::one_for_one()).with_name("root").with_child(child)).await;
            log.tell("a", Order::Fail).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let _ = s.stop().await;
        });
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let telling: Vec<_> =
        text.lines().map(|line| line.trim_start().replace("async_supervisor: ", "")).collect();
    for line in [
        r#"DEBUG started supervisor="root" child="a" attempt=1"#,
        r#"INFO started supervisor="root""#,
        r#"WARN exited supervisor="root" child="a" exit=failed: told to fail"#,
        r#"INFO restarting supervisor="root" child="a" delay=1s"#,
        r#"DEBUG started supervisor="root" child="a" attempt=2"#,
        r#"INFO stopping supervisor="root""#,
        r#"INFO completed supervisor="root" child="a""#,
    ] {
        assert!(telling.iter().any(|told| told == line), "{line}\n{text}");
    }
    let last = r#"INFO stopped supervisor="root" report=supervisor `root` stopped (in "#;
    assert!(telling.last().unwrap().starts_with(last), "{text}");
    let counts: Vec<_> = counts
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|(name, count)| format!("{name} {}", count.load(Relaxed)))
        .collect();
    assert_eq!(
        counts,
        [
            "async_supervisor_exits_total{name=root,exit=completed} 1",
            "async_supervisor_exits_total{name=root,exit=failed} 1",
            "async_supervisor_restarts_total{name=root} 1",
            "async_supervisor_starts_total{name=root} 2",
        ]
    );
}

struct PanickySubscriber;

impl Write for PanickySubscriber {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        std::panic::resume_unwind(Box::new("in the log"))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_log_that_panics_harms_no_supervisor() {
    let subscriber = tracing_subscriber::fmt().with_writer(|| PanickySubscriber).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    tracing::callsite::rebuild_interest_cache();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let log = Log::new();
        let s = up(tolerant(Supervisor::one_for_one()).with_child(log.child("a"))).await;
        log.tell("a", Order::Fail).await;
        assert_eq!(log.take(), "+a +a");
        assert!(s.stop().await.is_clean());
    });
}
