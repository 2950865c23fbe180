use std::fmt;
use std::num::NonZeroU32;

use async_policy::ConfigError;

#[cfg(family_loom)]
use loom::sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed};
#[cfg(not(family_loom))]
use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed};

/// What a bucket of [`Budget::aws_standard`] holds.
pub const AWS_CAPACITY: u32 = 500;
/// What a retry costs in [`Budget::aws_standard`].
pub const AWS_COST: NonZeroU32 = NonZeroU32::new(5).unwrap();
/// What a retry after a time-out costs in [`Budget::aws_standard`].
pub const AWS_TIMEOUT_COST: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// Throttle tokens count in thousandths: gRFC A6 has three decimals.
const MILLI: u32 = 1000;

/// The arithmetic: pure transitions of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// The number is the tokens.
    TokenBucket { capacity: u32, cost: NonZeroU32, timeout_cost: NonZeroU32 },
    /// The number is the tokens, in thousandths.
    Throttle { max: u32, earn: u32 },
    /// The number is the calls in flight (high half) and the extra attempts among them (low half).
    InFlight { ratio: f64, floor: u32 },
}

const CALL: u64 = 1 << 32;

const fn halves(state: u64) -> (u32, u32) {
    ((state >> 32) as u32, state as u32)
}

impl Kind {
    fn initial(self) -> u64 {
        match self {
            Self::TokenBucket { capacity, .. } => u64::from(capacity),
            Self::Throttle { max, .. } => u64::from(max),
            Self::InFlight { .. } => 0,
        }
    }

    fn cost(self, after: After) -> u32 {
        match (self, after) {
            (Self::TokenBucket { timeout_cost, .. }, After::TimedOut) => timeout_cost.get(),
            (Self::TokenBucket { cost, .. }, _) => cost.get(),
            (Self::Throttle { .. }, _) => 0,
            (Self::InFlight { .. }, _) => 1,
        }
    }

    /// One more extra attempt; `None` where the budget does not allow it.
    fn acquire(self, state: u64, cost: u32) -> Option<u64> {
        match self {
            Self::TokenBucket { .. } => state.checked_sub(u64::from(cost)),
            Self::Throttle { max, .. } => (state * 2 > u64::from(max)).then_some(state),
            Self::InFlight { ratio, floor } => {
                let (calls, extra) = halves(state);
                let allowed = ((f64::from(calls) * ratio) as u32).max(floor);
                (extra < allowed).then_some(state + u64::from(cost))
            }
        }
    }

    /// The token of an extra attempt comes back.
    fn give_back(self, state: u64, cost: u32) -> u64 {
        match self {
            Self::TokenBucket { capacity, .. } => (state + u64::from(cost)).min(u64::from(capacity)),
            Self::Throttle { .. } => state,
            Self::InFlight { .. } => state - u64::from(cost),
        }
    }

    /// The extra attempt was made, and did not bring the answer.
    fn spend(self, state: u64, cost: u32) -> u64 {
        if let Self::InFlight { .. } = self { state - u64::from(cost) } else { state }
    }

    fn succeed(self, state: u64) -> u64 {
        match self {
            Self::TokenBucket { capacity, .. } => (state + 1).min(u64::from(capacity)),
            Self::Throttle { max, earn } => (state + u64::from(earn)).min(u64::from(max)),
            Self::InFlight { .. } => state,
        }
    }

    fn fail(self, state: u64) -> u64 {
        if let Self::Throttle { .. } = self { state.saturating_sub(u64::from(MILLI)) } else { state }
    }
}

/// What an extra attempt follows: a time-out may cost more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum After {
    /// An answer that failed, or none yet (a hedge).
    Failed,
    /// A time-out.
    TimedOut,
}

struct Shared {
    kind: Kind,
    state: AtomicU64,
}

impl Shared {
    /// One atomic step; writes only what changes, so that a full bucket stays shared in all caches.
    fn update(&self, step: impl Fn(u64) -> Option<u64>) -> bool {
        let mut state = self.state.load(Relaxed);
        loop {
            match step(state) {
                None => return false,
                Some(next) if next == state => return true,
                Some(next) => match self.state.compare_exchange_weak(state, next, Relaxed, Relaxed) {
                    Ok(_) => return true,
                    Err(now) => state = now,
                },
            }
        }
    }
}

/// How many extra attempts (retries, hedges) all callers together may make: a failing backend then gets a little more load, not
/// a multiple of it.
///
/// One value, cloned into any number of [`Retry`](crate::Retry)s and [`Hedge`](crate::Hedge)s. What an extra attempt needs is
/// taken in one atomic step before its backoff, and held through backoff and attempt by a [`BudgetToken`]: dropped, it is given
/// back.
///
/// | | an extra attempt needs | it fails | the call succeeds | dropped (aborted) |
/// |---|---|---|---|---|
/// | [`aws_standard`](Self::aws_standard), [`token_bucket`](Self::token_bucket) | its cost in tokens | spent | its cost back, or 1 token if there was no extra attempt | its cost back |
/// | [`grpc_throttle`](Self::grpc_throttle) | more than half of the tokens | 1 token less, first attempts too, where another try may help | `ratio` tokens more | – |
/// | [`in_flight`](Self::in_flight) | a free place among those in flight | place free | place free | place free |
///
/// An attempt that an inner policy refused was not made: it keeps its token for the next one. One that panics has failed: its token is
/// spent. A bucket smaller than the cost of a retry allows none.
///
/// Each policy counts what it sees. Where two in one stack share a budget (a hedge inside a retry), a call through both is two calls in flight, and
/// its success and its failures count in both: give an [`in_flight`](Self::in_flight) budget half the ratio there.
///
/// As configuration (feature `serde`): the fields are in [the table](crate#configuration).
///
/// ```
/// use async_retry::{After, Budget};
///
/// let budget = Budget::aws_standard();
/// let token = budget.try_acquire(After::Failed).expect("a full bucket");
/// assert_eq!(budget.available(), 495.0);
/// drop(token); // the call was aborted
/// assert_eq!(budget.available(), 500.0);
/// ```
///
/// # Invariants
///
/// 1. Never below zero and never above its capacity.
/// 2. Every token is given back or spent exactly once.
#[derive(Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

impl Budget {
    fn new(kind: Kind) -> Self {
        Self { shared: Arc::new(Shared { kind, state: AtomicU64::new(kind.initial()) }) }
    }

    /// The bucket of the AWS SDKs' standard mode: 500 tokens, a retry costs 5, after a time-out 10.
    #[must_use]
    pub fn aws_standard() -> Self {
        Self::token_bucket(AWS_CAPACITY, AWS_COST, AWS_TIMEOUT_COST)
    }

    /// A bucket of `capacity` tokens, full at first. One smaller than `cost` allows no extra attempt at all, and one smaller than
    /// `timeout_cost` none after a time-out.
    #[must_use]
    pub fn token_bucket(capacity: u32, cost: NonZeroU32, timeout_cost: NonZeroU32) -> Self {
        Self::new(Kind::TokenBucket { capacity, cost, timeout_cost })
    }

    /// The throttle of gRPC ([gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md)): `max_tokens` at first,
    /// every failed attempt takes 1, every success gives `token_ratio`, and at or below half there are no extra attempts. What the
    /// ratio has after its third decimal is dropped.
    ///
    /// # Errors
    ///
    /// `max_tokens` outside 1 to 1000, or a ratio that is not a number of at least 0.001 and at most `max_tokens`.
    pub fn grpc_throttle(max_tokens: u32, token_ratio: f64) -> Result<Self, ConfigError> {
        if !(1..=1000).contains(&max_tokens) {
            return Err(ConfigError::new("budget.max_tokens", max_tokens, "1 to 1000"));
        }
        if !(0.001..=f64::from(max_tokens)).contains(&token_ratio) {
            let expected = format!("0.001 to {max_tokens}, the tokens in all");
            return Err(ConfigError::new("budget.token_ratio", token_ratio, expected));
        }
        // One part in a million: 0.029 * 1000 is 28.999…
        let earn = (token_ratio * f64::from(MILLI) * 1.000_001) as u32;
        Ok(Self::new(Kind::Throttle { max: max_tokens * MILLI, earn }))
    }

    /// At any moment the extra attempts in flight (those in their backoff included) are at most `ratio` of the calls in flight, or
    /// `floor` where that is more. A call is in flight from its first poll until it ends.
    ///
    /// # Errors
    ///
    /// A ratio that is not a number from 0 to 1.
    pub fn in_flight(ratio: f64, floor: u32) -> Result<Self, ConfigError> {
        if !(0.0..=1.0).contains(&ratio) {
            return Err(ConfigError::new("budget.ratio", ratio, "0 to 1"));
        }
        Ok(Self::new(Kind::InFlight { ratio, floor }))
    }

    /// What is left: the tokens, or how many more extra attempts may be in flight just now.
    #[must_use]
    pub fn available(&self) -> f64 {
        let state = self.shared.state.load(Relaxed);
        match self.shared.kind {
            Kind::TokenBucket { .. } => state as f64,
            Kind::Throttle { .. } => state as f64 / f64::from(MILLI),
            Kind::InFlight { ratio, floor } => {
                let (calls, extra) = halves(state);
                let allowed = ((f64::from(calls) * ratio) as u32).max(floor);
                f64::from(allowed.saturating_sub(extra))
            }
        }
    }

    /// Takes what one more attempt needs, or nothing. For policies of your own: [`Retry`](crate::Retry) and
    /// [`Hedge`](crate::Hedge) do it themselves.
    #[must_use = "dropped, the token is given back"]
    pub fn try_acquire(&self, after: After) -> Option<BudgetToken> {
        let cost = self.shared.kind.cost(after);
        self.shared
            .update(|state| self.shared.kind.acquire(state, cost))
            .then(|| BudgetToken { budget: self.clone(), cost })
    }

    /// Counts a call as in flight until the guard is dropped. `None` for a budget that does not count them.
    #[must_use = "dropped, the call is over"]
    pub fn enter(&self) -> Option<BudgetCall> {
        let Kind::InFlight { .. } = self.shared.kind else { return None };
        self.shared.state.fetch_add(CALL, Relaxed);
        Some(BudgetCall { budget: self.clone() })
    }

    /// A call succeeded without an extra attempt of its own.
    pub fn record_success(&self) {
        self.shared.update(|state| Some(self.shared.kind.succeed(state)));
    }

    /// An attempt failed in a way that another try may help.
    pub fn record_failure(&self) {
        self.shared.update(|state| Some(self.shared.kind.fail(state)));
    }

    /// Whether every success counts, not only those without an extra attempt.
    pub(crate) fn earns_always(&self) -> bool {
        matches!(self.shared.kind, Kind::Throttle { .. })
    }

    #[cfg(feature = "serde")]
    pub(crate) fn kind(&self) -> Kind {
        self.shared.kind
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("kind", &self.shared.kind)
            .field("available", &self.available())
            .finish()
    }
}

/// What one extra attempt took from its [`Budget`]. Dropped, it is given back.
#[must_use = "dropped, the token is given back"]
pub struct BudgetToken {
    budget: Budget,
    cost: u32,
}

impl BudgetToken {
    /// The extra attempt was made and did not bring the answer: the token is gone, as far as the budget has it so.
    pub fn spend(mut self) {
        let cost = std::mem::take(&mut self.cost);
        let shared = &self.budget.shared;
        shared.update(|state| Some(shared.kind.spend(state, cost)));
    }

    /// The extra attempt brought the answer.
    pub fn succeed(self) {
        if let Kind::Throttle { .. } = self.budget.shared.kind {
            self.budget.record_success();
        }
    }
}

impl Drop for BudgetToken {
    fn drop(&mut self) {
        let shared = &self.budget.shared;
        shared.update(|state| Some(shared.kind.give_back(state, self.cost)));
    }
}

impl fmt::Debug for BudgetToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BudgetToken").field("cost", &self.cost).finish_non_exhaustive()
    }
}

/// A call in flight, as its [`Budget`] counts it. Dropped, it is over.
#[must_use = "dropped, the call is over"]
#[derive(Debug)]
pub struct BudgetCall {
    budget: Budget,
}

impl Drop for BudgetCall {
    fn drop(&mut self) {
        self.budget.shared.state.fetch_sub(CALL, Relaxed);
    }
}

#[cfg(all(test, not(family_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_given_back_or_spent_once() {
        let one = NonZeroU32::MIN;
        let budget = Budget::token_bucket(3, one, one.saturating_add(1));
        let token = budget.try_acquire(After::TimedOut).unwrap();
        assert_eq!(budget.available(), 1.0);
        assert!(budget.try_acquire(After::TimedOut).is_none());
        budget.try_acquire(After::Failed).unwrap().spend();
        assert_eq!(budget.available(), 0.0);
        drop(token);
        assert_eq!(budget.available(), 2.0);
        for _ in 0..9 {
            budget.record_success();
        }
        assert_eq!(budget.available(), 3.0);
    }

    #[test]
    fn the_throttle_of_grpc_stops_at_half_and_counts_thousandths() {
        let budget = Budget::grpc_throttle(4, 0.5).unwrap();
        let allowed = || budget.try_acquire(After::Failed).is_some();
        budget.record_failure();
        assert!(allowed(), "3 of 4");
        budget.record_failure();
        assert!(!allowed(), "2 of 4 is half");
        budget.record_success();
        assert!(allowed(), "2.5 of 4");
        for _ in 0..9 {
            budget.record_failure();
        }
        assert_eq!(budget.available(), 0.0);

        let budget = Budget::grpc_throttle(1, 0.029_9).unwrap();
        budget.record_failure();
        budget.record_success();
        assert_eq!(budget.available(), 0.029);
    }

    #[test]
    fn in_flight_allows_a_share_of_the_calls_and_at_least_the_floor() {
        let budget = Budget::in_flight(0.2, 1).unwrap();
        let first = budget.try_acquire(After::Failed).unwrap();
        assert!(budget.try_acquire(After::Failed).is_none());
        let calls: Vec<_> = (0..10).map(|_| budget.enter().unwrap()).collect();
        let second = budget.try_acquire(After::Failed).unwrap();
        assert!(budget.try_acquire(After::Failed).is_none());
        second.spend();
        assert_eq!(budget.available(), 1.0);
        drop((calls, first));
        assert_eq!(budget.available(), 1.0);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_field_and_the_value() {
        let table = [
            (Budget::grpc_throttle(0, 0.1), "invalid `budget.max_tokens`: 0; expected 1 to 1000"),
            (
                Budget::grpc_throttle(10, f64::NAN),
                "invalid `budget.token_ratio`: NaN; expected 0.001 to 10, the tokens in all",
            ),
            (
                Budget::grpc_throttle(10, -0.1),
                "invalid `budget.token_ratio`: -0.1; expected 0.001 to 10, the tokens in all",
            ),
            (Budget::in_flight(-0.2, 3), "invalid `budget.ratio`: -0.2; expected 0 to 1"),
            (Budget::in_flight(f64::NAN, 3), "invalid `budget.ratio`: NaN; expected 0 to 1"),
        ];
        for (budget, message) in table {
            assert_eq!(budget.unwrap_err().to_string(), message);
        }
    }
}
