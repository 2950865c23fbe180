use std::future::Future;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use async_policy::{Failure, Lift, Name, Operation, PolicyError, PolicyKind, Rejection};
use tokio::time::Instant;

use crate::CircuitBreakerBuilder;
use crate::config::Config;
use crate::event::{Ending, Event};
use crate::permit::{OwnedPermit, Permit, Ticket};
use crate::snapshot::{Mode, Saved, Snapshot, State};
use crate::state::{Admission, Circuit, Refusal, Stamp};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use crate::transitions::{Subscribers, Transitions};
use crate::window::{Aside, Buckets, Tally};

mod tell;

/// Refuses calls to a backend that keeps failing, until a few probes show that it is well again.
///
/// What counts is the [verdict](async_policy::Verdict): `Transient` and `Throttled` outcomes, time-outs and panics are failures;
/// `Success` and `Permanent` are successes; `Ignored` outcomes, refusals by inner policies and dropped calls do not
/// count.
///
/// Cheap to clone; clones share one state. While the circuit is closed, calls that end well and in time take no lock and write
/// nothing that threads share: N successes over the last N calls stay as they are when another comes; over a time, and
/// over the last calls once some went badly, each thread counts its own, and a call that goes badly takes in
/// what all have counted. Only a rule over a time and a slow-call rule read the clock.
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
#[derive(Clone)]
pub struct CircuitBreaker {
    shared: Arc<Shared>,
}

struct Shared {
    hot: Hot,
    name: Option<Name>,
    config: Arc<Config>,
    circuit: Mutex<Circuit>,
    subscribers: Subscribers,
}

/// What calls read without the lock. It has its cache lines to itself, so that a healthy circuit keeps them in every
/// processor's cache.
#[repr(align(128))]
struct Hot {
    /// The epoch and flags, written under the lock only.
    word: AtomicU64,
    /// Until when every call is refused, in nanoseconds since `origin`; zero while some are let in. Written under the lock
    /// only.
    until: AtomicU64,
    origin: Instant,
    /// What counts good calls outside the lock: one for each rule over a time. Most breakers have one at most, which is
    /// then at hand.
    tally: Option<(Buckets, Tally)>,
    more_tallies: Box<[(Buckets, Tally)]>,
    slower_than: Option<Duration>,
    /// Where good calls are laid aside while the circuit is not spotless, once there was a bad one.
    aside: OnceLock<Aside>,
}

/// Calls are let in without the lock.
const DOOR: u64 = 1;
/// A good call changes nothing but tallies.
const SPOTLESS: u64 = 2;
/// Nothing is counted.
const UNCOUNTED: u64 = 4;
const FLAG_BITS: u32 = 3;

/// In `until`: for ever.
const FOREVER: u64 = u64::MAX;

fn word(circuit: &Circuit) -> u64 {
    circuit.epoch() << FLAG_BITS
        | if circuit.lets_all_in() { DOOR } else { 0 }
        | if circuit.is_spotless() { SPOTLESS } else { 0 }
        | if circuit.counts() { 0 } else { UNCOUNTED }
}

fn until(circuit: &Circuit) -> u64 {
    match circuit.refuses_until() {
        None => 0,
        Some(Duration::MAX) => FOREVER,
        Some(until) => u64::try_from(until.as_nanos()).unwrap_or(FOREVER).min(FOREVER - 1),
    }
}

impl CircuitBreaker {
    /// A breaker with the [defaults](CircuitBreakerBuilder).
    #[must_use]
    pub fn new() -> Self {
        Self::from_parts(None, Arc::new(Config::default()), 0)
    }

    /// Configures a breaker.
    pub fn builder() -> CircuitBreakerBuilder {
        CircuitBreakerBuilder::default()
    }

    /// The `nth` of those that share a configuration.
    pub(crate) fn from_parts(name: Option<Name>, config: Arc<Config>, nth: u64) -> Self {
        let circuit = Circuit::new(Arc::clone(&config), nth);
        let mut tallies = circuit.tallies();
        let hot = Hot {
            word: AtomicU64::new(word(&circuit)),
            until: AtomicU64::new(until(&circuit)),
            origin: Instant::now(),
            tally: tallies.next(),
            more_tallies: tallies.collect(),
            slower_than: config.trip.slower_than(),
            aside: OnceLock::new(),
        };
        Self {
            shared: Arc::new(Shared {
                hot,
                name,
                config,
                circuit: Mutex::new(circuit),
                subscribers: Subscribers::default(),
            }),
        }
    }

    /// The name of this breaker.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }

    /// Where the circuit stands. What time alone brings about shows when a call comes: an open circuit whose time is over
    /// is open until then, a half-open one half-open.
    #[must_use]
    pub fn state(&self) -> State {
        self.lock().state()
    }

    /// The state with its numbers, all of one moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let now = self.now();
        self.lock().snapshot(now)
    }

    /// Sets who decides about the circuit: the rules, or nobody but you.
    ///
    /// From [`Automatic`](Mode::Automatic) to [`ObserveOnly`](Mode::ObserveOnly) and back the circuit goes on where it stands; otherwise it
    /// starts afresh as the new mode has it, closed with empty windows or forced open. Calls in flight then belong to an
    /// earlier epoch.
    pub fn set_mode(&self, mode: Mode) {
        self.change(|circuit, now| circuit.set_mode(mode, now));
    }

    /// Opens the circuit for `time`, whatever its configuration says: for a planned outage, or because the backend itself said when
    /// to come back. Probes decide afterwards, and a breaker that was forced or disabled follows the rules again. With a
    /// `time` of zero the next call is a probe.
    pub fn open_for(&self, time: Duration) {
        self.change(|circuit, now| circuit.open_for(time, now));
    }

    /// Back to how it was built: its mode, closed, nothing counted, and the open time at its base. The totals stay.
    pub fn reset(&self) {
        self.change(Circuit::reset);
    }

    /// What should outlive the process, so that a restart does not forget a dead backend. (With the `serde` feature it can be
    /// written down.)
    #[must_use]
    pub fn save(&self) -> Saved {
        let now = self.now();
        self.lock().save(now, SystemTime::now())
    }

    /// Takes up a saved state. The time since it was saved is taken off the open time, by the system's clock; if that went
    /// backwards, nothing is. More than the configured cap it does not stay open. A mode that was set by hand is set again; if
    /// none was, that of the configuration holds. Closed to closed is no transition.
    ///
    /// In a test: tokio's paused clock does not move the system's, so a saved state does not age by `advance`. Set its
    /// [`saved_at`](Saved::saved_at) back.
    ///
    /// ```
    /// use async_circuit::{CircuitBreaker, State};
    /// use std::time::Duration;
    ///
    /// let before = CircuitBreaker::new();
    /// before.open_for(Duration::from_secs(20));
    /// let saved = before.save(); // into a file, with the `serde` feature
    /// let after_restart = CircuitBreaker::new();
    /// after_restart.restore(&saved);
    /// assert_eq!(after_restart.state(), State::Open);
    /// ```
    pub fn restore(&self, saved: &Saved) {
        let elapsed = SystemTime::now().duration_since(saved.saved_at).unwrap_or(Duration::ZERO);
        self.change(|circuit, now| circuit.restore(saved, elapsed, now));
    }

    /// A stream of the transitions from now on.
    pub fn transitions(&self) -> Transitions {
        self.shared.subscribers.subscribe()
    }

    /// Whether forgetting it forgets nothing that matters now: nobody else holds it, its circuit is closed or long given up, and
    /// nobody changed its mode.
    pub(crate) fn is_evictable(&self) -> bool {
        Arc::strong_count(&self.shared) == 1 && self.lock().is_evictable(self.now())
    }

    /// Lets one call in and hands out a permit for it, to be given back with the call's outcome.
    ///
    /// # Errors
    ///
    /// A [`Rejection`] while the circuit is open, with the time until probes are let through; while it is half-open
    /// and all probes are taken; or on the ramp after a recovery, if this call is not among those let through.
    pub fn try_acquire(&self) -> Result<Permit<'_>, Rejection> {
        self.admit().map(|(stamp, started)| Permit::new(Ticket::new(self, stamp, started)))
    }

    /// As [`try_acquire`](Self::try_acquire), with a permit that can go to another task: it holds a clone of the breaker.
    ///
    /// # Errors
    ///
    /// As `try_acquire`.
    pub fn try_acquire_owned(&self) -> Result<OwnedPermit, Rejection> {
        let (stamp, started) = self.admit()?;
        Ok(OwnedPermit::new(Ticket::new(self.clone(), stamp, started)))
    }

    /// Runs `op`, or yields `value` if this breaker refuses it: [`call_or_else`](Self::call_or_else) with a value at hand.
    ///
    /// # Errors
    ///
    /// As [`Policy::call`](crate::Policy::call).
    ///
    /// # Cancel safety
    ///
    /// As [`Policy::execute`](crate::Policy::execute).
    pub async fn call_or<Op: Operation>(
        &self,
        op: Op,
        value: Op::Value,
    ) -> Result<Op::Value, Failure<Op::Error>> {
        self.call_or_else(op, async |_| Ok(value)).await
    }

    /// Runs `op`, or `fallback` if this breaker refuses it.
    ///
    /// As with `call`, any error of `op` is the backend's. Where `op` itself goes through a policy, take
    /// [`execute_or_else`](Self::execute_or_else), which tells its refusals from failures; round a whole stack, match the refusal:
    ///
    /// ```
    /// use async_circuit::{CircuitBreaker, Failure, Policy, PolicyKind, Timeout};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let stack = (CircuitBreaker::new(), Timeout::new(Duration::from_secs(1)));
    /// let quote = match stack.call(async || Err::<u32, _>("down")).await {
    ///     Err(Failure::Rejected(refusal)) if refusal.policy() == PolicyKind::CircuitBreaker => Ok(0), // the last known
    ///     answer => answer,
    /// };
    /// # assert!(quote.is_err());
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Policy::call`](crate::Policy::call). What `fallback` fails with.
    ///
    /// # Cancel safety
    ///
    /// As [`Policy::execute`](crate::Policy::execute); and dropping it drops the fallback.
    pub async fn call_or_else<Op, F, Fut>(&self, op: Op, fallback: F) -> Result<Op::Value, Failure<Op::Error>>
    where
        Op: Operation,
        F: FnOnce(Rejection) -> Fut,
        Fut: Future<Output = Result<Op::Value, Failure<Op::Error>>>,
    {
        self.execute_or_else(Lift(op), fallback).await
    }

    /// Runs `op`, whose error says itself what it means, or `fallback` if this breaker refuses it. A refusal by a policy inside
    /// `op` is neither counted nor replaced.
    ///
    /// # Errors
    ///
    /// As [`Policy::execute`](crate::Policy::execute). What `fallback` fails with.
    ///
    /// # Cancel safety
    ///
    /// As [`Policy::execute`](crate::Policy::execute); and dropping it drops the fallback.
    pub async fn execute_or_else<Op, F, Fut>(&self, op: Op, fallback: F) -> Result<Op::Value, Op::Error>
    where
        Op: Operation<Error: PolicyError>,
        F: FnOnce(Rejection) -> Fut,
        Fut: Future<Output = Result<Op::Value, Op::Error>>,
    {
        match self.admit() {
            Ok((stamp, started)) => self.execute_admitted(op, Ticket::new(self, stamp, started)).await,
            Err(rejection) => fallback(rejection).await,
        }
    }

    /// Lets a call in: its stamp, and when it started, where anyone asks.
    #[inline]
    pub(crate) fn admit(&self) -> Result<(Stamp, Duration), Rejection> {
        let hot = &self.shared.hot;
        let word = hot.word.load(Ordering::Acquire);
        if word & DOOR != 0 {
            let started = if hot.slower_than.is_some() { self.now() } else { Duration::ZERO };
            return Ok((Stamp { epoch: word >> FLAG_BITS, state: State::Closed }, started));
        }
        self.admit_slowly()
    }

    fn admit_slowly(&self) -> Result<(Stamp, Duration), Rejection> {
        let now = self.now();
        if let Some(refusal) = self.shut(now) {
            return Err(self.reject(refusal));
        }
        let (admission, tell) = self.change_untold(now, Circuit::admit);
        if tell {
            // Should a listener panic, the place just taken is given back.
            let place = match admission {
                Admission::Admitted(stamp) => Some(Ticket::new(self, stamp, now)),
                _ => None,
            };
            self.tell_turns();
            std::mem::forget(place);
        }
        match admission {
            Admission::Admitted(stamp) => Ok((stamp, now)),
            Admission::Refused(refusal) => Err(self.reject(refusal)),
            Admission::Observed(stamp, refusal) => {
                self.emit(|| Event::WouldReject(self.rejection(refusal)));
                Ok((stamp, now))
            }
        }
    }

    /// What an open circuit says, found without the lock.
    fn shut(&self, now: Duration) -> Option<Refusal> {
        match self.shared.hot.until.load(Ordering::Acquire) {
            0 => None,
            FOREVER => Some(Refusal::open(Duration::MAX)),
            until => {
                Duration::from_nanos(until).checked_sub(now).filter(|left| !left.is_zero()).map(Refusal::open)
            }
        }
    }

    /// Whether a call would be refused now, without taking a probe's place.
    #[cfg(feature = "tower")]
    pub(crate) fn peek(&self) -> Option<Rejection> {
        if self.shared.hot.word.load(Ordering::Acquire) & DOOR != 0 {
            return None;
        }
        let now = self.now();
        let refusal = self.shut(now).or_else(|| self.lock().peek(now));
        refusal.map(|refusal| self.rejection(refusal))
    }

    fn reject(&self, refusal: Refusal) -> Rejection {
        self.rejected(self.rejection(refusal))
    }

    /// Tells a refusal. (A count of them would be a third of what a refusal costs beside the clock: the listener counts, if
    /// there is one.)
    pub(crate) fn rejected(&self, rejection: Rejection) -> Rejection {
        self.emit(|| Event::Rejected(rejection.clone()));
        rejection
    }

    fn rejection(&self, refusal: Refusal) -> Rejection {
        let rejection = Rejection::new(PolicyKind::CircuitBreaker, refusal.reason);
        let rejection = match refusal.retry_after {
            Some(wait) => rejection.with_retry_after(wait),
            None => rejection,
        };
        match &self.shared.name {
            Some(name) => rejection.with_name(name.clone()),
            None => rejection,
        }
    }

    #[inline]
    pub(crate) fn record(&self, stamp: Stamp, started: Duration, ending: Ending) {
        let hot = &self.shared.hot;
        let mut now = None;
        // (A probe has a place to give back, however late.)
        if ending == Ending::Success && stamp.state == State::Closed {
            let word = hot.word.load(Ordering::Acquire);
            let late = word >> FLAG_BITS != stamp.epoch;
            if late && hot.slower_than.is_none() {
                return;
            }
            let aside = if word & SPOTLESS == 0 { hot.aside.get() } else { None };
            if !late && (word & SPOTLESS != 0 || aside.is_some()) {
                let timed = hot.tally.is_some() || hot.slower_than.is_some();
                let read = if timed { self.now() } else { Duration::ZERO };
                if hot.slower_than.is_none_or(|time| read.saturating_sub(started) <= time) {
                    if word & UNCOUNTED == 0 {
                        self.count_good(stamp, read, aside);
                    }
                    return;
                }
                now = Some(read);
            }
        }
        self.record_slowly(stamp, started, ending, now);
    }

    /// Counts a good call of the closed circuit without the lock.
    #[inline]
    fn count_good(&self, stamp: Stamp, now: Duration, aside: Option<&Aside>) {
        let hot = &self.shared.hot;
        for (buckets, tally) in hot.tally.iter().chain(&hot.more_tallies) {
            tally.add(buckets.number(now, stamp.epoch));
        }
        if aside.is_some_and(|aside| aside.add(stamp.epoch)) {
            self.change_at(Duration::ZERO, |circuit, _| circuit.take_in());
        }
    }

    fn record_slowly(&self, stamp: Stamp, started: Duration, ending: Ending, now: Option<Duration>) {
        let hot = &self.shared.hot;
        // A success of the closed circuit is counted without a look at the clock, unless a rule looks at it.
        let timeless = ending == Ending::Success
            && stamp.state == State::Closed
            && hot.tally.is_none()
            && hot.slower_than.is_none();
        let now = now.unwrap_or_else(|| if timeless { Duration::ZERO } else { self.now() });
        let took = match hot.slower_than {
            Some(_) => now.saturating_sub(started),
            None => Duration::ZERO,
        };
        let slow = self.change_at(now, |circuit, now| circuit.record(stamp, ending, took, now));
        if slow || ending != Ending::Success {
            self.emit(|| Event::Ended { ending, slow });
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Circuit, Duration) -> T) -> T {
        self.change_at(self.now(), change)
    }

    fn change_at<T>(&self, now: Duration, change: impl FnOnce(&mut Circuit, Duration) -> T) -> T {
        let (result, tell) = self.change_untold(now, change);
        if tell {
            self.tell_turns();
        }
        result
    }

    /// Changes the circuit and says whether the caller now has to tell its turns.
    fn change_untold<T>(&self, now: Duration, change: impl FnOnce(&mut Circuit, Duration) -> T) -> (T, bool) {
        let mut circuit = self.lock();
        let result = change(&mut circuit, now);
        self.publish(&circuit);
        let tell = circuit.has_turns() && !circuit.telling;
        circuit.telling |= tell;
        (result, tell)
    }

    fn publish(&self, circuit: &Circuit) {
        let hot = &self.shared.hot;
        if let Some(aside) = circuit.aside() {
            hot.aside.get_or_init(|| aside.clone());
        }
        hot.until.store(until(circuit), Ordering::Release);
        hot.word.store(word(circuit), Ordering::Release);
    }

    pub(crate) fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.shared.hot.origin)
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

impl std::fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("name", &self.shared.name)
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}
