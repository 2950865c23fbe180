use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_policy::{Deadline, Name, PolicyKind, Reason, Rejection};
use pin_project_lite::pin_project;
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, Sleep};

use super::engine::Cells;
use super::line::{Joined, Left, Line, Refusal, Turn, refuse};
use super::quota::TICK;
use super::rejection;
use crate::event::{Event, emit, stopwatch};
use crate::fifo::Key;
use crate::queue::Queue;
use crate::wake::wake_all;

/// Where one can wait for cells: a limit, or one key of a keyed limit.
pub(crate) trait Desk {
    /// Takes `n` cells if they are there and nobody waits.
    fn take_now(&self, n: u32) -> bool;
    /// The same, or says why not.
    fn try_now(&self, n: u32) -> Result<(), Rejection>;
    /// Works at the queue. Without user code: it is done under a lock.
    fn at_line<R>(&self, work: impl FnOnce(&mut Line, &mut Cells) -> R) -> R;
    /// Whether no further line is possible.
    fn is_crowded(&self) -> bool {
        false
    }
    /// Who may wait.
    fn queue(&self) -> Queue;
    fn name(&self) -> Option<&Name>;
}

/// Takes `n` cells, waiting for them where the queue allows.
#[inline]
pub(crate) async fn acquire(desk: impl Desk, n: u32) -> Result<(), Rejection> {
    // A loop whose waits are never waits must still let others on its thread have their turn.
    poll_fn(poll_proceed).await.made_progress();
    if desk.take_now(n) { Ok(()) } else { Wait::new(desk, n).await }
}

pin_project! {
    /// A wait for cells: its place in the queue and its own timer, which is set for its turn or for the end of its patience.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub(crate) struct Wait<D: Desk> {
        ticket: Ticket<D>,
        // What the timer is set for.
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
    place: Option<Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    key: Key,
    since: Option<Instant>,
    /// When it has waited long enough, and what to call it then. Its turn is earlier, unless those before it dawdle.
    patience: Option<Patience>,
}

/// The end of a wait by the engine's clock and by tokio's, of which the earlier counts. They differ only where a test has paused tokio's and
/// the engine does not read it: a wait would then never be too long by the engine's.
#[derive(Clone, Copy, Debug)]
struct Patience {
    end: u64,
    at: Instant,
    reason: Reason,
}

/// What a ticket has come to.
enum Step {
    Done(Result<(), Rejection>),
    /// To look again so much later, at that instant; or to be woken by somebody else.
    Waits(Option<(u64, Duration)>),
}

impl<D: Desk> Wait<D> {
    #[cold]
    pub(crate) const fn new(desk: D, n: u32) -> Self {
        Self { ticket: Ticket { desk, n, place: None }, armed: None, timer: None }
    }
}

/// When a waiter who has come `now`, on the engine's clock, has waited long enough.
fn patience(queue: Queue, now: u64) -> Option<Patience> {
    let (at, reason) = queue.patience()?;
    // Who is to wait exactly as long as it may is woken at the next tick.
    let slack = if reason == Reason::WaitTooLong { TICK } else { Duration::ZERO };
    let wait = at.saturating_duration_since(Instant::now()).saturating_add(slack);
    let end = now.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
    Some(Patience { end, at: at.checked_add(slack).unwrap_or(at), reason })
}

impl<D: Desk> Ticket<D> {
    fn step(&mut self, waker: &Waker) -> Step {
        let (place, until, now) = match self.place {
            Some(place) => {
                let (turn, now) = self.look(place.key, waker);
                match turn {
                    Turn::Taken(left) => return Step::Done(self.taken(left, place.since)),
                    Turn::TooMany(left) => return Step::Done(Err(self.too_many(left))),
                    Turn::Waits(until) => (place, until, now),
                    Turn::WakerNeeded => unreachable!("asked again until it has one"),
                }
            }
            // Nobody may: then there is no need for the queue's lock.
            None if self.desk.queue().max_len == 0 => return Step::Done(self.desk.try_now(self.n)),
            None => match self.join(waker.clone()) {
                Ok((Joined::Taken, _)) => return Step::Done(Ok(())),
                Ok((Joined::Waits(key, until), now)) => {
                    let patience = patience(self.desk.queue(), now);
                    let place = Place { key, since: stopwatch(), patience };
                    self.place = Some(place);
                    (place, until, now)
                }
                Err(refusal) => return Step::Done(Err(rejection(refusal, self.desk.name()))),
            },
        };
        let until = match (place.patience, until) {
            (Some(patience), _) if patience.end <= now || patience.at <= Instant::now() => {
                return Step::Done(Err(self.give_up(place.key, patience.reason)));
            }
            (Some(Patience { end, .. }), until) => Some(until.map_or(end, |until| until.min(end))),
            (None, until) => until,
        };
        Step::Waits(until.map(|until| (until, Duration::from_nanos(until.saturating_sub(now)))))
    }

    /// Takes a place in the queue, or cells, and says when that was.
    fn join(&self, waker: Waker) -> Result<(Joined, u64), Refusal> {
        // Dropped after the lock is free: wakers are the caller's code.
        let mut waker = Some(waker);
        let queue = self.desk.queue();
        let crowded = queue.max_len > 0 && self.desk.is_crowded();
        self.desk.at_line(|line, cells| {
            if crowded && line.is_empty() {
                return Err(refuse(Reason::TooManyKeys, self.n, 0, cells));
            }
            line.join(self.n, queue, Deadline::fits, &mut waker, cells).map(|joined| (joined, cells.now))
        })
    }

    fn look(&self, key: Key, waker: &Waker) -> (Turn, u64) {
        let mut spare = None;
        loop {
            let looked =
                self.desk.at_line(|line, cells| (line.poll(key, waker, &mut spare, cells), cells.now));
            if !matches!(looked.0, Turn::WakerNeeded) {
                return looked;
            }
            spare = Some(waker.clone());
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "how a wait ends")]
    fn taken(&mut self, left: Left, since: Option<Instant>) -> Result<(), Rejection> {
        self.place = None;
        wake_all(left.next.into_iter());
        if let Some(since) = since {
            emit(PolicyKind::RateLimit, self.desk.name(), &Event::Waited(since.elapsed()));
        }
        Ok(())
    }

    fn too_many(&mut self, left: Left) -> Rejection {
        self.place = None;
        wake_all(left.next.into_iter());
        let refusal = Refusal { reason: Reason::ExceedsCapacity, retry_after: None };
        rejection(refusal, self.desk.name())
    }

    fn give_up(&mut self, key: Key, reason: Reason) -> Rejection {
        self.place = None;
        let (left, refusal) = self.desk.at_line(|line, cells| {
            let left = line.leave(key, cells);
            (left, refuse(reason, self.n, line.cells(), cells))
        });
        wake_all(left.next.into_iter());
        rejection(refusal, self.desk.name())
    }
}

impl<D: Desk> Drop for Ticket<D> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let left = self.desk.at_line(|line, cells| line.leave(place.key, cells));
            wake_all(left.next.into_iter());
        }
    }
}

impl<D: Desk> Future for Wait<D> {
    type Output = Result<(), Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let (until, wait) = match this.ticket.step(cx.waker()) {
                Step::Done(answer) => return Poll::Ready(answer),
                Step::Waits(None) => return Poll::Pending,
                Step::Waits(Some(later)) => later,
            };
            if *this.armed != Some(until) {
                *this.armed = Some(until);
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

#[cfg(all(test, not(family_loom)))]
mod tests {
    use std::cell::RefCell;

    use super::super::engine::Engine;
    use super::*;
    use crate::Quota;

    /// A limit of one cell, which is taken, whose own clock stands still.
    struct Still {
        all: RefCell<(Line, Cells)>,
        queue: Queue,
    }

    impl Still {
        fn new(max_wait: Option<Duration>) -> Self {
            let engine = Engine::new(Quota::per_second(10).with_burst(1)).unwrap();
            let mut cells = Cells { engine, arrival: 0, now: 0 };
            assert!(cells.take(1));
            Self { all: RefCell::new((Line::new(), cells)), queue: Queue { max_len: 10, max_wait } }
        }
    }

    impl Desk for &Still {
        fn take_now(&self, _: u32) -> bool {
            false
        }

        fn try_now(&self, _: u32) -> Result<(), Rejection> {
            unreachable!("there is a queue")
        }

        fn at_line<R>(&self, work: impl FnOnce(&mut Line, &mut Cells) -> R) -> R {
            let (line, cells) = &mut *self.all.borrow_mut();
            work(line, cells)
        }

        fn queue(&self) -> Queue {
            self.queue
        }

        fn name(&self) -> Option<&Name> {
            None
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_by_tokios_clock_where_the_engines_does_not_move() {
        let (limit, start) = (Still::new(Some(Duration::from_secs(1))), Instant::now());
        let refused = acquire(&limit, 1).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::WaitTooLong);
        assert!(start.elapsed() < Duration::from_millis(1_200));
        assert!(limit.all.borrow().0.is_empty());
    }
    #[tokio::test(start_paused = true)]
    async fn a_deadline_holds_by_tokios_clock_where_the_engines_does_not_move() {
        let (limit, start) = (Still::new(None), Instant::now());
        let deadline = Deadline::after(Duration::from_millis(500)).unwrap();
        let refused = deadline.scope(acquire(&limit, 1)).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::DeadlineTooClose);
        assert!(start.elapsed() < Duration::from_millis(700));
        assert!(limit.all.borrow().0.is_empty());
    }
}
