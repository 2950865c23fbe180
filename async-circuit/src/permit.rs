use std::borrow::Borrow;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_policy::{PolicyError, Verdict};
use pin_project_lite::pin_project;

use crate::CircuitBreaker;
use crate::event::Ending;
use crate::snapshot::State;
use crate::state::Stamp;

/// The right to make one call, taken under one epoch of the circuit: given back late, it changes nothing.
///
/// Dropped, the call counts as aborted: neither success nor failure, and a probe's place is free again. (Also if a panic drops it:
/// a permit cannot tell whose panic it is. `call` and `run` can, and count it as a failure.) What a slow-call rule
/// measures is the time from taking it to giving it back.
#[must_use = "dropping a permit at once counts the call as aborted"]
#[derive(Debug)]
pub struct Permit<'b>(Ticket<&'b CircuitBreaker>);

/// A [`Permit`] that holds its breaker: [`try_acquire_owned`](CircuitBreaker::try_acquire_owned).
#[must_use = "dropping a permit at once counts the call as aborted"]
#[derive(Debug)]
pub struct OwnedPermit(Ticket<CircuitBreaker>);

macro_rules! permit {
    ([$($b:lifetime)?] $Permit:ty, $Breaker:ty) => {
        impl$(<$b>)? $Permit {
            pub(crate) const fn new(ticket: Ticket<$Breaker>) -> Self {
                Self(ticket)
            }

            /// Whether this call is a probe, on which the half-open circuit will decide.
            #[must_use]
            pub fn is_probe(&self) -> bool {
                self.0.stamp.is_some_and(Stamp::is_probe)
            }

            /// The call succeeded.
            pub fn success(mut self) {
                self.0.settle(Ending::Success);
            }

            /// The call failed.
            pub fn failure(mut self) {
                self.0.settle(Ending::Failure);
            }

            /// The call says nothing about the backend.
            pub fn ignore(mut self) {
                self.0.settle(Ending::Ignored);
            }
        }
    };
}

permit!(['b] Permit<'b>, &'b CircuitBreaker);
permit!([] OwnedPermit, CircuitBreaker);

impl Stamp {
    fn is_probe(self) -> bool {
        self.state == State::HalfOpen && self.counts()
    }
}

#[derive(Debug)]
pub(crate) struct Ticket<B: Borrow<CircuitBreaker>> {
    breaker: B,
    stamp: Option<Stamp>,
    started: Duration,
}

impl<B: Borrow<CircuitBreaker>> Ticket<B> {
    pub(crate) const fn new(breaker: B, stamp: Stamp, started: Duration) -> Self {
        Self { breaker, stamp: Some(stamp), started }
    }

    #[inline]
    pub(crate) fn settle(&mut self, ending: Ending) {
        if let Some(stamp) = self.stamp.take() {
            self.breaker.borrow().record(stamp, self.started, ending);
        }
    }

    /// Runs a part of the call; a panic in it is the call's.
    #[cfg(feature = "tower")]
    pub(crate) fn guard<T>(&mut self, part: impl FnOnce() -> T) -> T {
        let on_unwind = OnUnwind(self);
        let result = part();
        std::mem::forget(on_unwind);
        result
    }
}

impl<B: Borrow<CircuitBreaker>> Drop for Ticket<B> {
    #[inline]
    fn drop(&mut self) {
        self.settle(Ending::Aborted);
    }
}

/// Tells what an outcome means; a trait, so that a tower layer's classifier has a name.
pub(crate) trait Judge<F, T> {
    fn judge(&self, operation: &F, outcome: &T) -> Verdict;
}

pin_project! {
    /// An operation under a breaker: asks to be let in when first polled, if it is not in yet, and reports how it ended, by
    /// answer, panic or drop. (Written out by hand, because the operation and its result then stay where they are.)
    #[derive(Debug)]
    pub(crate) struct Guarded<F, B: Borrow<CircuitBreaker>, J> {
        #[pin]
        operation: F,
        ticket: Ticket<B>,
        asks: bool,
        judge: J,
    }
}

impl<F, B: Borrow<CircuitBreaker>, J> Guarded<F, B, J> {
    /// Will ask `breaker`.
    pub(crate) const fn new(operation: F, breaker: B, judge: J) -> Self {
        let ticket = Ticket { breaker, stamp: None, started: Duration::ZERO };
        Self { operation, ticket, asks: true, judge }
    }

    /// Has been let in.
    pub(crate) const fn admitted(operation: F, ticket: Ticket<B>, judge: J) -> Self {
        Self { operation, ticket, asks: false, judge }
    }
}

/// Reports a panic if a poll unwinds. (`thread::panicking` would also count healthy siblings of a panic.)
struct OnUnwind<'t, B: Borrow<CircuitBreaker>>(&'t mut Ticket<B>);

impl<B: Borrow<CircuitBreaker>> Drop for OnUnwind<'_, B> {
    fn drop(&mut self) {
        self.0.settle(Ending::Panicked);
    }
}

impl<F, B, J, T, E> Future for Guarded<F, B, J>
where
    F: Future<Output = Result<T, E>>,
    E: PolicyError,
    B: Borrow<CircuitBreaker>,
    J: Judge<F, Result<T, E>>,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, E>> {
        let mut this = self.project();
        if *this.asks {
            match this.ticket.breaker.borrow().admit() {
                Ok((stamp, started)) => (this.ticket.stamp, this.ticket.started) = (Some(stamp), started),
                Err(rejection) => return Poll::Ready(Err(E::from_rejection(rejection))),
            }
            *this.asks = false;
        }
        let on_unwind = OnUnwind(this.ticket);
        let Poll::Ready(output) = this.operation.as_mut().poll(cx) else {
            std::mem::forget(on_unwind);
            return Poll::Pending;
        };
        let ending = Ending::of(this.judge.judge(&this.operation, &output));
        on_unwind.0.settle(ending);
        std::mem::forget(on_unwind);
        Poll::Ready(output)
    }
}
