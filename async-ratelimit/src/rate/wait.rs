use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_policy::{Reason, Rejection};
use pin_project_lite::pin_project;
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, Sleep};

use super::line::{Left, Turn};
use super::{Joined, Shared};
use crate::fifo::Key;

pin_project! {
    /// A wait for cells: its place in the queue and its own timer.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub(super) struct Wait<S: Deref<Target = Shared>> {
        ticket: Ticket<S>,
        // The turn that the timer is set for.
        armed: Option<u64>,
        #[pin]
        timer: Option<Sleep>,
    }
}

/// A place in the queue, once polled; dropped, it is given up.
#[derive(Debug)]
struct Ticket<S: Deref<Target = Shared>> {
    shared: S,
    n: u32,
    key: Option<Key>,
}

impl<S: Deref<Target = Shared>> Wait<S> {
    pub(super) const fn new(shared: S, n: u32) -> Self {
        Self { ticket: Ticket { shared, n, key: None }, armed: None, timer: None }
    }
}

/// What a ticket has come to.
enum Step {
    Done(Result<(), Rejection>),
    Sleep {
        turn: u64,
        wait: Duration,
    },
    /// To be woken by somebody else.
    Parked,
}

impl<S: Deref<Target = Shared>> Ticket<S> {
    fn step(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(key) = self.key else {
            // A loop whose waits are never waits must still let others on its thread have their turn.
            match poll_proceed(cx) {
                Poll::Ready(coop) => coop.made_progress(),
                Poll::Pending => return Step::Parked,
            }
            if self.shared.take_now(self.n) {
                return Step::Done(Ok(()));
            }
            return match self.shared.join(self.n, cx.waker().clone()) {
                Ok(Joined::Taken) => Step::Done(Ok(())),
                Ok(Joined::Waits(key, turn, wait)) => {
                    self.key = Some(key);
                    Step::Sleep { turn, wait }
                }
                Err(rejection) => Step::Done(Err(rejection)),
            };
        };
        let (turn, now) = self.shared.poll(key, cx.waker());
        match turn {
            Turn::Taken(left) => {
                self.left(left);
                Step::Done(Ok(()))
            }
            Turn::TooMany(left) => {
                self.left(left);
                Step::Done(Err(self.shared.reject(Reason::ExceedsCapacity)))
            }
            Turn::Sleep(turn) => Step::Sleep { turn, wait: Duration::from_nanos(turn.saturating_sub(now)) },
            Turn::Parked => Step::Parked,
            Turn::WakerNeeded => unreachable!("asked again until it has one"),
        }
    }

    fn left(&mut self, left: Left) {
        self.key = None;
        if let Some(next) = left.next {
            next.wake();
        }
    }
}

impl<S: Deref<Target = Shared>> Drop for Ticket<S> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.shared.leave(key);
        }
    }
}

impl<S: Deref<Target = Shared>> Future for Wait<S> {
    type Output = Result<(), Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.ticket.step(cx) {
                Step::Done(answer) => return Poll::Ready(answer),
                Step::Parked => return Poll::Pending,
                Step::Sleep { turn, wait } => {
                    if *this.armed != Some(turn) {
                        *this.armed = Some(turn);
                        // Beyond what the clock can tell: nobody waits that long, and a quota change wakes it.
                        let Some(at) = Instant::now().checked_add(wait) else { return Poll::Pending };
                        match this.timer.as_mut().as_pin_mut() {
                            Some(timer) => timer.reset(at),
                            None => this.timer.set(Some(tokio::time::sleep_until(at))),
                        }
                    }
                    match this.timer.as_mut().as_pin_mut().map(|timer| timer.poll(cx)) {
                        // The timer's clock and the engine's need not agree: look, and sleep again if it was too early.
                        Some(Poll::Ready(())) => *this.armed = None,
                        _ => return Poll::Pending,
                    }
                }
            }
        }
    }
}
