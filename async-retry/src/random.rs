use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where the jitter comes from: the thread's generator, or a seeded one that all clones share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Random(Option<Arc<AtomicU64>>);

/// The step and the mix of SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Random {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(Some(Arc::new(AtomicU64::new(seed))))
    }

    /// Uniform in `0.0..1.0`.
    pub(crate) fn unit(&self) -> f64 {
        let Some(state) = &self.0 else { return fastrand::f64() };
        let bits = mix(state.fetch_add(STEP, Relaxed).wrapping_add(STEP)) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_one_sequence_and_clones_go_on_with_it() {
        let (a, b) = (Random::seeded(7), Random::seeded(7));
        let clone = a.clone();
        let drawn: Vec<f64> = (0..100).map(|n| if n % 2 == 0 { a.unit() } else { clone.unit() }).collect();
        assert_eq!(drawn, (0..100).map(|_| b.unit()).collect::<Vec<_>>());
        assert!(drawn.iter().all(|unit| (0.0..1.0).contains(unit)));
        let mean = drawn.iter().sum::<f64>() / 100.0;
        assert!((0.4..0.6).contains(&mean), "{mean}");
    }
}
