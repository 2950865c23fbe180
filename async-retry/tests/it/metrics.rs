use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_retry::{After, Backoff, Budget, Hedge, Policy, Retry};
use metrics::{
    Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

type Values = Arc<Mutex<BTreeMap<String, f64>>>;

/// Adds up what it is told, by name and labels.
#[derive(Default)]
struct Sum(Values);

struct Cell(Values, String);

impl Cell {
    fn add(&self, value: f64) {
        *self.0.lock().unwrap().entry(self.1.clone()).or_default() += value;
    }
}

impl CounterFn for Cell {
    fn increment(&self, value: u64) {
        self.add(value as f64);
    }

    fn absolute(&self, _: u64) {}
}

impl HistogramFn for Cell {
    fn record(&self, value: f64) {
        self.add(value);
    }
}

impl Sum {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Cell(Arc::clone(&self.0), format!("{} {}", key.name(), labels.join(" "))))
    }
}

impl Recorder for Sum {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.cell(key))
    }
}

#[test]
fn attempts_delays_and_give_ups_are_counted() {
    let recorder = Sum::default();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let retry =
                Retry::new(Backoff::constant(Duration::from_millis(500))).unwrap().with_name("quotes");
            assert!(retry.call(async || Err::<(), _>(())).await.is_err());
            assert!(retry.call(async || Ok::<_, ()>(())).await.is_ok());
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
        });
    });
    let values = recorder.0.lock().unwrap();
    let expected = [
        ("async_retry_aborted_total name=news", 1.0),
        ("async_retry_attempts_total name=news outcome=success", 2.0),
        ("async_retry_attempts_total name=quotes outcome=success", 1.0),
        ("async_retry_attempts_total name=quotes outcome=transient", 3.0),
        ("async_retry_delay_seconds name=quotes", 1.0),
        ("async_retry_give_ups_total name=quotes reason=attempts", 1.0),
        ("async_retry_hedges_total name=news", 1.0),
        ("async_retry_hedges_withheld_total name=news", 1.0),
    ];
    let values: Vec<_> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(values, expected);
}
