use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// How many of the latest latencies count.
const WINDOW: usize = 512;
/// After how many latencies the threshold is computed anew; before the first time there is none.
const EVERY: usize = 32;

/// A percentile over the latest latencies. Recording is three atomic operations; every 32nd also sorts out the threshold.
pub(crate) struct Latencies {
    percentile: f64,
    initial: Duration,
    nanos: Box<[AtomicU64]>,
    recorded: AtomicUsize,
    threshold: AtomicU64,
}

impl Latencies {
    pub(crate) fn new(percentile: f64, initial: Duration) -> Self {
        Self {
            percentile,
            initial,
            nanos: (0..WINDOW).map(|_| AtomicU64::new(0)).collect(),
            recorded: AtomicUsize::new(0),
            threshold: AtomicU64::new(nanos(initial)),
        }
    }

    #[cfg(feature = "serde")]
    pub(crate) const fn percentile(&self) -> f64 {
        self.percentile
    }

    #[cfg(feature = "serde")]
    pub(crate) const fn initial(&self) -> Duration {
        self.initial
    }

    pub(crate) fn threshold(&self) -> Duration {
        Duration::from_nanos(self.threshold.load(Relaxed))
    }

    pub(crate) fn record(&self, latency: Duration) {
        let n = self.recorded.fetch_add(1, Relaxed);
        self.nanos[n % WINDOW].store(nanos(latency), Relaxed);
        if (n + 1).is_multiple_of(EVERY) {
            let mut sample = [0; WINDOW];
            let sample = &mut sample[..WINDOW.min(n + 1)];
            for (copy, nanos) in sample.iter_mut().zip(&self.nanos) {
                *copy = nanos.load(Relaxed);
            }
            // Nearest rank.
            let rank = (self.percentile * sample.len() as f64).ceil() as usize;
            let (_, value, _) = sample.select_nth_unstable(rank.clamp(1, sample.len()) - 1);
            self.threshold.store(*value, Relaxed);
        }
    }
}

impl fmt::Debug for Latencies {
    /// Without the latencies one by one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latencies")
            .field("percentile", &self.percentile)
            .field("initial", &self.initial)
            .field("recorded", &self.recorded.load(Relaxed))
            .field("threshold", &self.threshold())
            .finish_non_exhaustive()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_a_line_and_not_the_window() {
        let debug = format!("{:?}", Latencies::new(0.95, Duration::from_millis(7)));
        assert_eq!(debug, "Latencies { percentile: 0.95, initial: 7ms, recorded: 0, threshold: 7ms, .. }");
    }

    #[test]
    fn the_percentile_follows_the_latest() {
        let ms = Duration::from_millis;
        let latencies = Latencies::new(0.95, ms(7));
        for latency in 1..=31 {
            latencies.record(ms(latency));
        }
        assert_eq!(latencies.threshold(), ms(7), "not enough of them yet");
        latencies.record(ms(32));
        assert_eq!(latencies.threshold(), ms(31), "rank 31 of 32");
        for latency in 0..512 {
            latencies.record(ms(1000 + latency % 100));
        }
        assert_eq!(latencies.threshold(), ms(1094));
        // A window of slow answers is forgotten.
        for _ in 0..512 {
            latencies.record(ms(3));
        }
        assert_eq!(latencies.threshold(), ms(3));
    }
}
