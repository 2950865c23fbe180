use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_policy::{Reason, Rejection};
use pin_project_lite::pin_project;
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, Sleep};

use super::line::{Joined, Left, Turn};
use crate::event::stopwatch;
use crate::fifo::Key;

/// Where one can wait for cells: a limit, or one key of a keyed limit.
pub(crate) trait Desk {
    /// Takes `n` cells if they are there and nobody waits.
    fn take_now(&self, n: u32) -> bool;
    /// Takes `n` cells or a place in the queue.
    fn join(&self, n: u32, waker: Waker) -> Result<Joined, Rejection>;
    /// How it stands with `key`, and now.
    fn poll(&self, key: Key, waker: &Waker) -> (Turn, u64);
    /// Gives up the place.
    fn leave(&self, key: Key);
    fn reject(&self, reason: Reason) -> Rejection;
    /// Somebody got cells after a wait.
    fn waited(&self, wait: Duration);
}

pin_project! {
    /// A wait for cells: its place in the queue and its own timer.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub(crate) struct Wait<D: Desk> {
        ticket: Ticket<D>,
        // The turn that the timer is set for.
        armed: Option<u64>,
        #[pin]
        timer: Option<Sleep>,
    }
}

/// A place in the queue, once polled; dropped, it is given up.
#[derive(Debug)]
struct Ticket<D: Desk> {
    desk: D,
    n: u32,
    /// Its place, and since when.
    place: Option<(Key, Option<Instant>)>,
}

impl<D: Desk> Wait<D> {
    pub(crate) const fn new(desk: D, n: u32) -> Self {
        Self { ticket: Ticket { desk, n, place: None }, armed: None, timer: None }
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

impl<D: Desk> Ticket<D> {
    fn step(&mut self, cx: &mut Context<'_>) -> Step {
        let Some((key, since)) = self.place else {
            // A loop whose waits are never waits must still let others on its thread have their turn.
            match poll_proceed(cx) {
                Poll::Ready(coop) => coop.made_progress(),
                Poll::Pending => return Step::Parked,
            }
            if self.desk.take_now(self.n) {
                return Step::Done(Ok(()));
            }
            return match self.desk.join(self.n, cx.waker().clone()) {
                Ok(Joined::Taken) => Step::Done(Ok(())),
                Ok(Joined::Parks(key)) => {
                    self.place = Some((key, stopwatch()));
                    Step::Parked
                }
                Ok(Joined::Sleeps(key, turn, wait)) => {
                    self.place = Some((key, stopwatch()));
                    Step::Sleep { turn, wait }
                }
                Err(rejection) => Step::Done(Err(rejection)),
            };
        };
        let (turn, now) = self.desk.poll(key, cx.waker());
        match turn {
            Turn::Taken(left) => {
                self.left(left);
                if let Some(since) = since {
                    self.desk.waited(since.elapsed());
                }
                Step::Done(Ok(()))
            }
            Turn::TooMany(left) => {
                self.left(left);
                Step::Done(Err(self.desk.reject(Reason::ExceedsCapacity)))
            }
            Turn::Sleep(turn) => Step::Sleep { turn, wait: Duration::from_nanos(turn.saturating_sub(now)) },
            Turn::Parked => Step::Parked,
            Turn::WakerNeeded => unreachable!("asked again until it has one"),
        }
    }

    fn left(&mut self, left: Left) {
        self.place = None;
        if let Some(next) = left.next {
            next.wake();
        }
    }
}

impl<D: Desk> Drop for Ticket<D> {
    fn drop(&mut self) {
        if let Some((key, _)) = self.place {
            self.desk.leave(key);
        }
    }
}

impl<D: Desk> Future for Wait<D> {
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
