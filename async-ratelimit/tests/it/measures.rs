use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_ratelimit::{ConcurrencyLimit, Quota, RateLimit};
use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};

use crate::ms;

/// Everything recorded, by name and labels.
#[derive(Default)]
struct Records(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

struct Last(Arc<AtomicU64>);

impl HistogramFn for Last {
    fn record(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

impl Records {
    fn cell(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{} {}", key.name(), labels.join(" "));
        Arc::clone(self.0.lock().unwrap().entry(name).or_default())
    }

    fn read(&self) -> Vec<(String, u64)> {
        let records = self.0.lock().unwrap();
        records.iter().map(|(name, value)| (name.clone(), value.load(Ordering::Relaxed))).collect()
    }
}

impl Recorder for Records {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Last(self.cell(key))))
    }
}

#[test]
fn refusals_waits_and_changes_are_measured() {
    let records = Records::default();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    with_local_recorder(&records, || {
        runtime.block_on(async {
            let limit = ConcurrencyLimit::builder(1).with_name("db").with_queue(1, ms(50)).build().unwrap();
            let held = limit.acquire().await.unwrap();
            assert!(records.read().is_empty());
            limit.try_acquire().unwrap_err();
            limit.acquire().await.unwrap_err();
            drop(held);
            limit.set_limit(3).unwrap();
            let rate =
                RateLimit::builder(Quota::per_second(4).with_burst(1)).with_queue(1, None).build().unwrap();
            rate.acquire().await.unwrap();
            rate.acquire().await.unwrap();
            rate.try_acquire().unwrap_err();
            rate.set_quota(Quota::per_minute(30)).unwrap();
        });
    });
    let one = |name: &str| (name.to_owned(), 1);
    assert_eq!(
        records.read(),
        [
            ("async_ratelimit_limit limit=concurrency name=db".to_owned(), 3_f64.to_bits()),
            ("async_ratelimit_limit limit=rate name=".to_owned(), 0.5_f64.to_bits()),
            one("async_ratelimit_refused_total limit=concurrency name=db reason=limit_reached"),
            one("async_ratelimit_refused_total limit=concurrency name=db reason=wait_too_long"),
            one("async_ratelimit_refused_total limit=rate name= reason=limit_reached"),
            ("async_ratelimit_wait_seconds limit=rate name=".to_owned(), 0.25_f64.to_bits()),
        ]
    );
}
