//! In a program of its own: a callsite that another thread meets for the first time while nobody listens stays silent.
#![cfg(feature = "tracing")]

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_retry::{After, Backoff, Budget, Hedge, Operation, Policy, Retry, Verdict};
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
async fn attempts_delays_hedges_and_the_reason_it_gave_up_are_told_under_the_crates_name() {
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
    let wrong = (async || Err::<(), _>(())).classify_with(|_| Verdict::Permanent);
    assert!(retry.call(wrong).await.is_err());
    // The first one wins over the second; then the budget is spent.
    let budget = Budget::in_flight(0.0, 1).unwrap();
    let hedge = Hedge::after(Duration::from_millis(50)).with_budget(budget.clone()).with_name("news");
    let slow = async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok::<_, ()>(())
    };
    assert!(hedge.call(slow).await.is_ok());
    let _token = budget.try_acquire(After::Failed).unwrap();
    assert!(hedge.call(slow).await.is_ok());
    drop(guard);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let ours: Vec<_> =
        log.lines().filter(|line| line.contains("async_retry")).map(|line| line.trim_start()).collect();
    assert_eq!(
        ours,
        [
            "TRACE async_retry: attempt ended name=\"quotes\" attempt=1 outcome=\"transient\"",
            "DEBUG async_retry: retrying name=\"quotes\" attempt=2 delay=50ms",
            "TRACE async_retry: attempt ended name=\"quotes\" attempt=2 outcome=\"transient\"",
            "DEBUG async_retry: retrying name=\"quotes\" attempt=3 delay=50ms",
            "TRACE async_retry: attempt ended name=\"quotes\" attempt=3 outcome=\"transient\"",
            "WARN async_retry: gave up name=\"quotes\" attempts=3 reason=\"attempts\"",
            "TRACE async_retry: attempt ended name=\"quotes\" attempt=1 outcome=\"permanent\"",
            "DEBUG async_retry: gave up name=\"quotes\" attempts=1 reason=\"permanent\"",
            "DEBUG async_retry: hedging name=\"news\" attempt=2",
            "TRACE async_retry: attempt ended name=\"news\" attempt=1 outcome=\"success\"",
            "TRACE async_retry: attempt aborted name=\"news\" attempt=2",
            "DEBUG async_retry: hedge withheld: budget spent name=\"news\" attempt=2",
            "TRACE async_retry: attempt ended name=\"news\" attempt=1 outcome=\"success\"",
        ]
    );
}
