use std::borrow::Borrow;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_policy::{PolicyKind, Rejection, Verdict};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::CircuitBreakerBuilder;
use crate::config::Config;
use crate::state::{Circuit, Record, Refusal, State};

/// Refuses calls to a backend that keeps failing, until a few probes show that it is well again.
///
/// What counts is the [verdict](Verdict): `Transient` and `Throttled` outcomes, time-outs and panics are failures;
/// `Success` and `Permanent` are successes; `Ignored` outcomes, refusals by inner policies and dropped calls do not
/// count.
///
/// Cheap to clone; clones share one state. While the circuit is closed and its window holds only successes, a success costs two
/// atomic reads.
///
/// ```
/// use async_circuit::{CircuitBreaker, Policy, Trip};
/// use std::num::NonZeroU32;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let trip = Trip::failure_rate(0.5).with_min_calls(NonZeroU32::new(2).unwrap());
/// let breaker = CircuitBreaker::builder().with_name("quotes").with_trip(trip).build().unwrap();
/// for _ in 0..2 {
///     breaker.call(async || Err::<(), _>("down")).await.unwrap_err();
/// }
/// let refused = breaker.call(async || Ok::<_, &str>("not started")).await.unwrap_err();
/// assert_eq!(refused.to_string(), "operation not started");
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CircuitBreaker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: Option<Arc<str>>,
    origin: Instant,
    /// What callers may decide without the lock; written only under it.
    word: AtomicU64,
    circuit: Mutex<Circuit>,
}

/// The epoch, and whether the circuit is closed and spotless.
const fn word(circuit: &Circuit) -> u64 {
    circuit.epoch() << 1 | circuit.is_spotless() as u64
}

const fn is_spotless(word: u64) -> bool {
    word & 1 == 1
}

/// What a breaker knows about its circuit at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Where the circuit stands.
    pub state: State,
    /// How many calls the window holds.
    pub calls: u32,
    /// How many of them failed.
    pub failures: u32,
    /// While open: how long until probes are let through.
    pub retry_after: Option<Duration>,
}

impl CircuitBreaker {
    /// A breaker with the [defaults](CircuitBreakerBuilder).
    #[must_use]
    pub fn new() -> Self {
        Self::from_parts(None, Config::default())
    }

    /// Configures a breaker.
    pub fn builder() -> CircuitBreakerBuilder {
        CircuitBreakerBuilder::default()
    }

    pub(crate) fn from_parts(name: Option<Arc<str>>, config: Config) -> Self {
        let circuit = Circuit::new(config);
        let word = AtomicU64::new(word(&circuit));
        Self { shared: Arc::new(Shared { name, origin: Instant::now(), word, circuit: Mutex::new(circuit) }) }
    }

    /// The name of this breaker.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }

    /// Where the circuit stands. An open circuit whose time is over stays open until a call comes.
    #[must_use]
    pub fn state(&self) -> State {
        self.lock().state()
    }

    /// The state with its numbers, all of one moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let now = self.now();
        let circuit = self.lock();
        let (calls, failures) = circuit.counts();
        Snapshot { state: circuit.state(), calls, failures, retry_after: circuit.open_for(now) }
    }

    /// Lets one call in and hands out a permit for it, to be given back with the call's outcome.
    ///
    /// # Errors
    ///
    /// A [`Rejection`] while the circuit is open, with the time until probes are let through; or while it is half-open
    /// and all probes are taken.
    pub fn try_acquire(&self) -> Result<Permit<'_>, Rejection> {
        self.admit().map(|epoch| Permit(Ticket { breaker: self, epoch: Some(epoch) }))
    }

    pub(crate) fn admit(&self) -> Result<u64, Rejection> {
        let word = self.shared.word.load(Ordering::Acquire);
        if is_spotless(word) {
            return Ok(word >> 1);
        }
        self.change(|circuit, now| circuit.admit(now)).map_err(|refusal| self.rejection(refusal))
    }

    /// Whether a call would be refused now, without taking a probe's place.
    #[cfg(feature = "tower")]
    pub(crate) fn peek(&self) -> Option<Rejection> {
        if is_spotless(self.shared.word.load(Ordering::Acquire)) {
            return None;
        }
        let now = self.now();
        let refusal = self.lock().refusal(now);
        refusal.map(|refusal| self.rejection(refusal))
    }

    #[cold]
    fn rejection(&self, refusal: Refusal) -> Rejection {
        let mut rejection = Rejection::new(PolicyKind::CircuitBreaker, refusal.reason);
        if let Some(name) = &self.shared.name {
            rejection = rejection.with_name(Arc::clone(name));
        }
        match refusal.retry_after {
            Some(wait) => rejection.with_retry_after(wait),
            None => rejection,
        }
    }

    fn record(&self, epoch: u64, record: Record) {
        let spotless = epoch << 1 | 1;
        if record != Record::Failure && self.shared.word.load(Ordering::Acquire) == spotless {
            return;
        }
        self.change(|circuit, now| circuit.record(epoch, record, now));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Circuit, Duration) -> T) -> T {
        let now = self.now();
        let mut circuit = self.lock();
        let result = change(&mut circuit, now);
        self.shared.word.store(word(&circuit), Ordering::Release);
        result
    }

    fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.shared.origin)
    }

    // No user code runs under the lock, so a poisoned one still holds a whole circuit.
    fn lock(&self) -> MutexGuard<'_, Circuit> {
        self.shared.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self::new()
    }
}

/// The right to make one call, taken under one epoch of the circuit: given back late, it changes nothing.
///
/// Dropped, the call counts as aborted: neither success nor failure, and a probe's place is free again.
#[must_use = "dropping a permit at once counts the call as aborted"]
#[derive(Debug)]
pub struct Permit<'b>(Ticket<&'b CircuitBreaker>);

impl Permit<'_> {
    /// The call succeeded.
    pub fn success(mut self) {
        self.0.settle(Record::Success);
    }

    /// The call failed.
    pub fn failure(mut self) {
        self.0.settle(Record::Failure);
    }

    /// The call says nothing about the backend.
    pub fn ignore(mut self) {
        self.0.settle(Record::Nothing);
    }
}

#[derive(Debug)]
pub(crate) struct Ticket<B: Borrow<CircuitBreaker>> {
    breaker: B,
    epoch: Option<u64>,
}

impl<B: Borrow<CircuitBreaker>> Ticket<B> {
    pub(crate) const fn new(breaker: B, epoch: u64) -> Self {
        Self { breaker, epoch: Some(epoch) }
    }

    fn settle(&mut self, record: Record) {
        if let Some(epoch) = self.epoch.take() {
            self.breaker.borrow().record(epoch, record);
        }
    }
}

impl<B: Borrow<CircuitBreaker>> Drop for Ticket<B> {
    fn drop(&mut self) {
        self.settle(Record::Nothing);
    }
}

/// Tells what an outcome means; a trait, so that a tower layer's classifier has a name.
pub(crate) trait Judge<T> {
    fn judge(&self, outcome: &T) -> Verdict;
}

impl<T, F: Fn(&T) -> Verdict> Judge<T> for F {
    fn judge(&self, outcome: &T) -> Verdict {
        self(outcome)
    }
}

pin_project! {
    /// An operation with its permit: reports how it ended, by answer, panic or drop.
    #[derive(Debug)]
    pub(crate) struct Admitted<F, B: Borrow<CircuitBreaker>, J> {
        #[pin]
        operation: F,
        ticket: Ticket<B>,
        judge: J,
    }
}

impl<F, B: Borrow<CircuitBreaker>, J> Admitted<F, B, J> {
    pub(crate) const fn new(operation: F, ticket: Ticket<B>, judge: J) -> Self {
        Self { operation, ticket, judge }
    }
}

/// Reports a failure if a poll unwinds. (`thread::panicking` would also count healthy siblings of a panic.)
struct OnUnwind<'t, B: Borrow<CircuitBreaker>>(&'t mut Ticket<B>);

impl<B: Borrow<CircuitBreaker>> Drop for OnUnwind<'_, B> {
    fn drop(&mut self) {
        self.0.settle(Record::Failure);
    }
}

impl<F, B, J> Future for Admitted<F, B, J>
where
    F: Future,
    B: Borrow<CircuitBreaker>,
    J: Judge<F::Output>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let on_unwind = OnUnwind(this.ticket);
        let polled = this.operation.poll(cx).map(|output| {
            let record = match this.judge.judge(&output) {
                Verdict::Success | Verdict::Permanent => Record::Success,
                Verdict::Transient | Verdict::Throttled { .. } => Record::Failure,
                Verdict::Ignored => Record::Nothing,
            };
            (output, record)
        });
        let ticket = &mut *on_unwind.0;
        let output = match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready((output, record)) => {
                ticket.settle(record);
                Poll::Ready(output)
            }
        };
        std::mem::forget(on_unwind);
        output
    }
}
