//! In a program of its own: a callsite that another thread meets for the first time while nobody listens stays silent.
#![cfg(feature = "tracing")]

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_retry::{Backoff, Policy, Retry};
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_delays_and_the_reason_it_gave_up_are_told() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .without_time()
        .with_ansi(false)
        .finish();
    let retry = Retry::new(Backoff::constant(Duration::from_millis(50))).unwrap().with_name("quotes");
    let guard = tracing::subscriber::set_default(subscriber);
    assert!(retry.call(async || Err::<(), _>(())).await.is_err());
    drop(guard);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let ours: Vec<_> =
        log.lines().filter(|line| line.contains("async_retry")).map(|line| line.trim_start()).collect();
    assert_eq!(
        ours,
        [
            "TRACE async_retry::event: attempt ended name=\"quotes\" attempt=1 outcome=\"transient\"",
            "DEBUG async_retry::event: retrying name=\"quotes\" attempt=2 delay=50ms",
            "TRACE async_retry::event: attempt ended name=\"quotes\" attempt=2 outcome=\"transient\"",
            "DEBUG async_retry::event: retrying name=\"quotes\" attempt=3 delay=50ms",
            "TRACE async_retry::event: attempt ended name=\"quotes\" attempt=3 outcome=\"transient\"",
            "WARN async_retry::event: gave up name=\"quotes\" attempts=3 reason=\"attempts\"",
        ]
    );
}
