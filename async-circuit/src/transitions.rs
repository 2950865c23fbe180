use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

use crate::Transition;

/// How many transitions wait for a reader who does not read.
const CAPACITY: usize = 64;

/// The transitions of one breaker since this stream was made, in order: see
/// [`CircuitBreaker::transitions`](crate::CircuitBreaker::transitions).
///
/// Ends when the last clone of the breaker is gone. Up to 64 wait to be read; later ones are dropped, and a gap between the
/// epochs shows it. It is a `futures_core::Stream` too.
#[must_use = "a stream does nothing until read"]
#[derive(Debug)]
pub struct Transitions(Receiver<Transition>);

impl Transitions {
    /// The next transition; `None` once the breaker is gone.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is ready, it has taken nothing.
    pub async fn next(&mut self) -> Option<Transition> {
        self.0.recv().await
    }

    /// The next transition, if there is one already.
    pub fn try_next(&mut self) -> Option<Transition> {
        self.0.try_recv().ok()
    }
}

impl Stream for Transitions {
    type Item = Transition;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Transition>> {
        self.0.poll_recv(cx)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Subscribers(Mutex<Vec<Sender<Transition>>>);

impl Subscribers {
    pub(crate) fn subscribe(&self) -> Transitions {
        let (sender, receiver) = channel(CAPACITY);
        // Those whose stream is gone go here and not with the next transition, which may never come; dropped after the lock.
        let _gone = {
            let mut senders = self.lock();
            let gone = take_closed(&mut senders);
            senders.push(sender);
            gone
        };
        Transitions(receiver)
    }

    /// Called by one caller at a time, outside the circuit's lock; wakers run outside this one too.
    pub(crate) fn send(&self, transition: Transition) {
        let senders = self.lock().clone();
        let mut any_closed = false;
        for sender in senders {
            any_closed |= matches!(sender.try_send(transition), Err(TrySendError::Closed(_)));
        }
        if any_closed {
            let gone = take_closed(&mut self.lock());
            drop(gone);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Sender<Transition>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_closed(senders: &mut Vec<Sender<Transition>>) -> Vec<Sender<Transition>> {
    senders.extract_if(.., |sender| sender.is_closed()).collect()
}

#[cfg(all(test, not(family_loom)))]
mod tests {
    use super::*;

    #[test]
    fn streams_that_are_gone_are_forgotten_without_a_transition() {
        let subscribers = Subscribers::default();
        let kept = subscribers.subscribe();
        for _ in 0..5000 {
            drop(subscribers.subscribe());
        }
        assert!(subscribers.lock().len() <= 2);
        drop(kept);
    }
}
