use std::io::Write;
use std::sync::{Arc, Mutex};

use async_ratelimit::{ConcurrencyLimit, KeyedRateLimit, Quota, RateLimit};

use crate::{ms, settle};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .without_time()
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn lines(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap().lines().map(|line| line.trim().to_owned()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_waits_and_changes_are_told_and_the_healthy_path_is_silent() {
    let log = Log::default();
    let _guard = log.start();
    let limit = ConcurrencyLimit::builder(1).with_name("db").with_queue(1, None).build().unwrap();
    let held = limit.acquire().await.unwrap();
    assert_eq!(log.lines(), [""; 0]);
    limit.try_acquire().unwrap_err();
    let (permit, ()) = tokio::join!(limit.acquire(), async {
        tokio::time::sleep(ms(5)).await;
        drop(held);
    });
    drop(permit);
    limit.set_limit(2).unwrap();
    assert_eq!(
        log.lines(),
        [
            "DEBUG async_ratelimit: refused policy=\"concurrency_limit\" name=\"db\" reason=\"limit_reached\" retry_after=None",
            "TRACE async_ratelimit: let in after a wait policy=\"concurrency_limit\" name=\"db\" wait=5ms",
            "INFO async_ratelimit: limit changed policy=\"concurrency_limit\" name=\"db\" from=1 to=2",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_waiting_callers_cannot_reach_is_warned_of() {
    let log = Log::default();
    let _guard = log.start();
    let fine = Quota::per_second(50_000).with_burst(1);
    // Nobody waits without a queue.
    RateLimit::builder(fine).build().unwrap();
    RateLimit::builder(fine.with_burst(50)).with_queue(10, None).build().unwrap();
    RateLimit::builder(Quota::per_second(100).with_burst(1)).with_queue(10, None).build().unwrap();
    assert_eq!(log.lines(), [""; 0]);
    for lossy in [Quota::per_second(500).with_burst(1), Quota::per_second(1_050).with_burst(1)] {
        RateLimit::builder(lossy).with_queue(10, None).build().unwrap();
        assert_eq!(log.lines().len(), 1);
    }
    let limit = RateLimit::builder(fine).with_queue(10, None).build().unwrap();
    let [line] = log.lines().try_into().unwrap();
    assert!(line.starts_with("WARN async_ratelimit: callers who wait cannot reach the rate"), "{line}");
    assert!(line.ends_with("rate=50000.0 reached=1000.0"), "{line}");
    limit.set_quota(fine.with_burst(50)).unwrap();
    settle().await;
    let [line] = log.lines().try_into().unwrap();
    assert!(line.starts_with("INFO async_ratelimit: quota changed policy=\"rate_limit\" from="), "{line}");
    // A change is a build, and so is a limit for each key.
    limit.set_quota(fine).unwrap();
    let [_, line] = log.lines().try_into().unwrap();
    assert!(line.starts_with("WARN"), "{line}");
    KeyedRateLimit::<u8>::builder(fine).build().unwrap();
    assert_eq!(log.lines(), [""; 0]);
    KeyedRateLimit::<u8>::builder(fine).with_queue(1, None).with_name("api").build().unwrap();
    let [line] = log.lines().try_into().unwrap();
    assert!(line.contains("name=\"api\"") && line.ends_with("rate=50000.0 reached=1000.0"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_costs_no_permit() {
    struct Boom;
    impl Write for Boom {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            assert!(!String::from_utf8_lossy(bytes).contains("let in"), "boom");
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let limit = ConcurrencyLimit::builder(1).with_queue(1, None).build().unwrap();
    let held = limit.try_acquire_owned().unwrap();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(|| Boom).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    tracing::callsite::rebuild_interest_cache();
    let waiter = tokio::spawn({
        let limit = limit.clone();
        async move { limit.acquire_owned().await.map(drop) }
    });
    settle().await;
    drop(held);
    assert!(waiter.await.unwrap_err().is_panic());
    assert_eq!(limit.in_flight(), 0);
}
