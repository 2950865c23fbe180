//! What the `tracing` and `metrics` features emit.

use std::time::Duration;

use tokio::time::advance;

use crate::breaker::quick;

#[cfg(feature = "metrics")]
mod numbers {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::sync::{Arc, Mutex};

    use async_circuit::Mode;
    use metrics::{
        Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit, with_local_recorder,
    };

    use super::*;

    #[derive(Default)]
    struct Numbers(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

    impl Numbers {
        fn number(&self, key: &Key) -> Arc<AtomicU64> {
            let labels: Vec<_> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let name = format!("{} {}", key.name(), labels.join(" "));
            Arc::clone(self.0.lock().unwrap().entry(name).or_default())
        }

        fn get(&self, name: &str) -> u64 {
            self.0.lock().unwrap()[name].load(SeqCst)
        }
    }

    impl Recorder for Numbers {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.number(key))
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.number(key))
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn counts_add_up_and_the_gauge_goes_back_to_zero() {
        let numbers = Numbers::default();
        let breaker = quick();
        let state = || f64::from_bits(numbers.get("async_circuit_state name=quotes"));
        with_local_recorder(&numbers, || {
            breaker.try_acquire().unwrap().failure();
            drop(breaker.try_acquire().unwrap());
            breaker.try_acquire().unwrap().failure();
            breaker.try_acquire().unwrap_err();
            breaker.set_mode(Mode::ObserveOnly);
            breaker.try_acquire().unwrap().success();
            breaker.set_mode(Mode::Automatic);
        });
        assert_eq!(state(), 2.0);
        advance(Duration::from_secs(1)).await;
        with_local_recorder(&numbers, || {
            let probe = breaker.try_acquire().unwrap();
            assert_eq!(state(), 1.0);
            probe.success();
        });
        assert_eq!(state(), 0.0);
        for (name, count) in [
            ("async_circuit_bad_calls_total name=quotes ending=failure slow=false", 2),
            ("async_circuit_bad_calls_total name=quotes ending=aborted slow=false", 1),
            ("async_circuit_refused_total name=quotes reason=circuit_open", 1),
            ("async_circuit_would_refuse_total name=quotes reason=circuit_open", 1),
            ("async_circuit_transitions_total name=quotes to=open cause=failure_rate", 1),
            ("async_circuit_transitions_total name=quotes to=closed cause=probes_succeeded", 1),
        ] {
            assert_eq!(numbers.get(name), count, "{name}");
        }
    }
}

#[cfg(feature = "tracing")]
#[tokio::test(start_paused = true)]
async fn transitions_are_told_at_warn_and_info_and_calls_at_debug() {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer({
            let lines = lines.clone();
            move || lines.clone()
        })
        .finish();
    let _default = tracing::subscriber::set_default(subscriber);
    // Twice: other tests, which nobody listens to, may be just passing a place for the first time and then have it remembered as
    // silent. By the second time all places are known.
    for _ in 0..2 {
        tracing::callsite::rebuild_interest_cache();
        lines.0.lock().unwrap().clear();
        let breaker = quick();
        breaker.try_acquire().unwrap().failure();
        drop(breaker.try_acquire().unwrap());
        breaker.try_acquire().unwrap().failure();
        breaker.try_acquire().unwrap_err();
        advance(Duration::from_secs(1)).await;
        breaker.try_acquire().unwrap().success();
    }
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let told: Vec<_> = text.lines().filter_map(|line| line.split_once(" async_circuit")).collect();
    let levels: Vec<_> = told.iter().map(|(level, _)| level.trim()).collect();
    // A failure, an aborted call, the opening, its failure, a refusal, half-open, closed.
    assert_eq!(levels, ["DEBUG", "DEBUG", "WARN", "DEBUG", "DEBUG", "INFO", "INFO"], "{text}");
    for line in [
        "circuit opened name=\"quotes\" cause=\"failure_rate\" open_for=Some(1s)",
        "call refused name=\"quotes\" reason=\"circuit_open\" retry_after=Some(1s)",
    ] {
        assert!(text.contains(line), "{text}");
    }
}
