//! How the breaker tells the world: one place, after every lock has been released.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::CircuitBreaker;
use crate::event::{Cause, Event, Transition};
use crate::snapshot::State;
use crate::state::Turn;

/// Lets the next transition be told again, should telling one unwind.
struct Telling<'b>(&'b CircuitBreaker);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.0.lock().telling = false;
    }
}

/// Runs what others wrote. While this thread unwinds, from a panic of the operation, say, a panic of theirs stays here: a second
/// one would end the process.
fn contained(theirs: impl FnOnce()) {
    if std::thread::panicking() {
        drop(catch_unwind(AssertUnwindSafe(theirs)));
    } else {
        theirs();
    }
}

impl CircuitBreaker {
    /// Tells all transitions that wait, in order. One caller at a time does it; those who come meanwhile leave theirs to
    /// it.
    #[cold]
    pub(super) fn tell_turns(&self) {
        let telling = Telling(self);
        loop {
            let turn = {
                let mut circuit = self.lock();
                let Some(turn) = circuit.next_turn() else {
                    circuit.telling = false;
                    break;
                };
                turn
            };
            contained(|| self.tell(turn));
        }
        std::mem::forget(telling);
    }

    fn tell(&self, mut turn: Turn) {
        if let (State::Open, Some(_), Some(choose)) =
            (turn.to, turn.open_for, self.shared.config.open_for.choose())
            && !matches!(turn.cause, Cause::Restored | Cause::Manual)
        {
            let time = choose(&self.snapshot());
            turn.open_for = Some(time);
            let mut circuit = self.lock();
            circuit.set_open_for(&turn, time);
            self.publish(&circuit);
        }
        let Turn { epoch, from, to, cause, at, open_for } = turn;
        let transition = Transition { epoch, from, to, cause, at: self.shared.hot.origin + at, open_for };
        self.shared.subscribers.send(transition);
        self.emit(|| Event::Transitioned(transition));
    }

    /// The one place where events leave the breaker.
    pub(crate) fn emit(&self, event: impl FnOnce() -> Event) {
        let listener = self.shared.config.listener.as_ref();
        if listener.is_none() && !cfg!(any(feature = "tracing", feature = "metrics")) {
            return;
        }
        let event = event();
        contained(|| {
            #[cfg(feature = "tracing")]
            trace(self.name(), &event);
            #[cfg(feature = "metrics")]
            measure(self.name(), &event);
            if let Some(listener) = listener {
                (listener.0)(self, &event);
            }
        });
    }
}

#[cfg(feature = "tracing")]
const TARGET: &str = "async_circuit";

#[cfg(feature = "tracing")]
fn trace(name: Option<&str>, event: &Event) {
    match event {
        Event::Transitioned(Transition { to: State::Open, cause, open_for, .. }) => {
            tracing::warn!(target: TARGET, name, cause = cause.as_str(), ?open_for, "circuit opened");
        }
        Event::Transitioned(Transition { from, to, cause, .. }) => {
            tracing::info!(
                target: TARGET,
                name,
                from = from.as_str(),
                cause = cause.as_str(),
                "circuit {}",
                to.as_str()
            );
        }
        Event::Rejected(rejection) => {
            let (reason, retry_after) = (rejection.reason().as_str(), rejection.retry_after());
            tracing::debug!(target: TARGET, name, reason, ?retry_after, "call refused");
        }
        Event::WouldReject(rejection) => {
            let (reason, retry_after) = (rejection.reason().as_str(), rejection.retry_after());
            tracing::debug!(target: TARGET, name, reason, ?retry_after, "call would have been refused");
        }
        Event::NotHeld => {
            tracing::warn!(target: TARGET, name, "no room to hold another circuit");
        }
        Event::Ended { ending, slow } => {
            tracing::debug!(target: TARGET, name, ending = ending.as_str(), slow, "call did not end well");
        }
    }
}

/// `async_circuit_state` is 0 while closed, 1 half-open, 2 open.
#[cfg(feature = "metrics")]
fn measure(name: Option<&str>, event: &Event) {
    let name = name.unwrap_or_default().to_owned();
    match event {
        Event::Transitioned(Transition { to, cause, .. }) => {
            let state = match to {
                State::Closed => 0.0,
                State::HalfOpen => 1.0,
                State::Open => 2.0,
            };
            metrics::gauge!("async_circuit_state", "name" => name.clone()).set(state);
            metrics::counter!(
                "async_circuit_transitions_total",
                "name" => name, "to" => to.as_str(), "cause" => cause.as_str()
            )
            .increment(1);
        }
        Event::Rejected(rejection) => {
            let reason = rejection.reason().as_str();
            metrics::counter!("async_circuit_refused_total", "name" => name, "reason" => reason).increment(1);
        }
        Event::WouldReject(rejection) => {
            let reason = rejection.reason().as_str();
            metrics::counter!("async_circuit_would_refuse_total", "name" => name, "reason" => reason)
                .increment(1);
        }
        Event::NotHeld => {
            metrics::counter!("async_circuit_not_held_total", "name" => name).increment(1);
        }
        Event::Ended { ending, slow } => {
            let slow = if *slow { "true" } else { "false" };
            metrics::counter!(
                "async_circuit_bad_calls_total",
                "name" => name, "ending" => ending.as_str(), "slow" => slow
            )
            .increment(1);
        }
    }
}
