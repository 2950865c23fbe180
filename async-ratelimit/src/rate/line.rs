use std::task::Waker;
use std::time::Duration;

use async_policy::Reason;

use super::engine::Cells;
use crate::fifo::{Fifo, Key};
use crate::queue::Queue;

/// The queue in front of a rate limit. Only the front takes cells, in its own poll; so nothing has ever to be given back, and
/// cells are granted in the order of the queue. Each waiter sleeps until its own estimated turn.
///
/// 1. A waiter that finds its turn come but is not the front stops sleeping; who leaves the front wakes it.
/// 2. Who leaves the front also wakes the next if that one sleeps longer than it has to, because somebody before it gave up.
/// 3. A front that is too early, because cells were taken late, sleeps again.
/// 4. Where several cells come back per tick, only the front has a timer: it finds all the cells of the tick, and each who takes
///    one wakes the next. Timers of their own would wake most of them too early or out of order.
///
/// So a waiter is woken once where timers are exact, and once more for each of the first three that happens to it; in the
/// fourth case once, and one more time per tick.
#[derive(Debug)]
pub(crate) struct Line {
    queue: Fifo<Waiter>,
    /// What all in the queue wait for.
    cells: u64,
}

#[derive(Debug)]
struct Waiter {
    n: u32,
    turn: u64,
    /// It does not sleep: who is before it has to wake it.
    parked: bool,
    waker: Option<Waker>,
}

/// How an attempt to join ends.
#[derive(Debug)]
pub(crate) enum Joined {
    Taken,
    /// It has a place, and is to look again then; or, parked, to be woken by who is before it.
    Waits(Key, Option<u64>),
}

/// Why there is no cell, and when to come again where that helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) retry_after: Option<Duration>,
}

/// A refusal of `n` cells with `ahead` spoken for.
pub(crate) fn refuse(reason: Reason, n: u32, ahead: u64, cells: &Cells) -> Refusal {
    if n > cells.most() {
        return Refusal { reason: Reason::ExceedsCapacity, retry_after: None };
    }
    // Never zero: that would say "now", which it was not.
    let wait = (cells.turn(ahead, n) - cells.now).max(1);
    Refusal { reason, retry_after: Some(Duration::from_nanos(wait)) }
}

/// How a waiter stands after a poll.
#[derive(Debug)]
pub(crate) enum Turn {
    /// It has its cells and has left.
    Taken(Left),
    /// It is to look again then; or, parked, to be woken by who is before it.
    Waits(Option<u64>),
    /// To be asked again, with a spare waker: cloning one is the caller's code, and not for under the lock.
    WakerNeeded,
    /// The burst was lowered below what it asked for; it has left.
    TooMany(Left),
}

/// What is left to do for who has left, once the lock is free: wakers are the caller's code.
#[derive(Debug)]
pub(crate) struct Left {
    /// The next, who has to be told.
    pub(crate) next: Option<Waker>,
    /// Its own waker, to be dropped.
    pub(crate) _spent: Option<Waker>,
}

impl Line {
    pub(crate) const fn new() -> Self {
        Self { queue: Fifo::new(), cells: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What all in the queue wait for.
    pub(crate) const fn cells(&self) -> u64 {
        self.cells
    }

    /// Takes `n` cells if nobody waits and they are there; else a place at the back, if `queue` and the deadline allow the wait. `waker`
    /// is left only with a place.
    pub(crate) fn join(
        &mut self,
        n: u32,
        queue: Queue,
        fits: impl FnOnce(Duration) -> bool,
        waker: &mut Option<Waker>,
        cells: &mut Cells,
    ) -> Result<Joined, Refusal> {
        let ahead = self.cells;
        if n <= cells.most() && self.is_empty() && cells.take(n) {
            return Ok(Joined::Taken);
        }
        let turn = cells.turn(ahead, n);
        let wait = Duration::from_nanos(turn - cells.now);
        let reason = if self.len() >= queue.max_len {
            if queue.max_len == 0 { Reason::LimitReached } else { Reason::QueueFull }
        } else if n > cells.most() {
            Reason::ExceedsCapacity
        } else if queue.max_wait.is_some_and(|longest| wait > longest) {
            Reason::WaitTooLong
        } else if !fits(wait) {
            Reason::DeadlineTooClose
        } else {
            self.cells += u64::from(n);
            let parked = cells.are_dense() && !self.is_empty();
            let key = self.queue.push_back(Waiter { n, turn, parked, waker: waker.take() });
            return Ok(Joined::Waits(key, (!parked).then_some(turn)));
        };
        Err(refuse(reason, n, ahead, cells))
    }

    /// Looks whether its turn has come. Who has to go on waiting leaves `waker` if it has not done so before: from `spare`, and
    /// gets back there the one it left.
    pub(crate) fn poll(
        &mut self,
        key: Key,
        waker: &Waker,
        spare: &mut Option<Waker>,
        cells: &mut Cells,
    ) -> Turn {
        let front = self.queue.front() == Some(key);
        let waiter = self.queue.get_mut(key);
        let n = waiter.n;
        if n > cells.most() {
            return Turn::TooMany(self.leave(key, cells));
        }
        if front && cells.take(n) {
            return Turn::Taken(self.leave(key, cells));
        }
        if !waiter.waker.as_ref().is_some_and(|left| left.will_wake(waker)) {
            if spare.is_none() {
                return Turn::WakerNeeded;
            }
            std::mem::swap(&mut waiter.waker, spare);
        }
        if front {
            waiter.turn = cells.turn(0, n);
        }
        waiter.parked = !front && (cells.are_dense() || cells.now >= waiter.turn);
        Turn::Waits((!waiter.parked).then_some(waiter.turn))
    }

    /// Leaves the queue, with cells or without.
    pub(crate) fn leave(&mut self, key: Key, cells: &Cells) -> Left {
        let front = self.queue.front() == Some(key);
        let gone = self.queue.remove(key);
        self.cells -= u64::from(gone.n);
        let next = self.queue.front().filter(|_| front).and_then(|next| {
            let next = self.queue.get_mut(next);
            let wake = next.parked || next.turn > cells.turn(0, next.n);
            if wake { next.waker.take() } else { None }
        });
        Left { next, _spent: gone.waker }
    }

    /// Estimates every turn anew, after the quota changed, and collects the wakers.
    pub(crate) fn reckon(&mut self, cells: &Cells, wakers: &mut Vec<Waker>) {
        let mut ahead = 0;
        self.queue.for_each(|waiter| {
            waiter.turn = cells.turn(ahead, waiter.n);
            ahead += u64::from(waiter.n);
            wakers.extend(waiter.waker.take());
        });
    }
}

#[cfg(all(test, not(family_loom)))]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::rate::Quota;
    use crate::rate::engine::Engine;

    #[derive(Default)]
    struct Flag(AtomicUsize);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Ticket {
        id: usize,
        n: u32,
        key: Key,
        flag: Arc<Flag>,
        /// The wake-ups it has answered with a poll.
        answered: usize,
        /// When its timer fires.
        timer: Option<u64>,
        polls: usize,
    }

    /// The shell by hand: a clock that is moved, timers that are looked at.
    struct World {
        cells: Cells,
        line: Line,
        tickets: VecDeque<Ticket>,
        next: usize,
        granted: Vec<(u64, usize, u32)>,
        polls: Vec<usize>,
    }

    impl World {
        fn new(quota: Quota) -> Self {
            Self {
                cells: Cells { engine: Engine::new(quota).unwrap(), arrival: 0, now: 0 },
                line: Line::new(),
                tickets: VecDeque::new(),
                next: 0,
                granted: Vec::new(),
                polls: Vec::new(),
            }
        }

        fn arrive(&mut self, n: u32) {
            let id = self.next;
            self.next += 1;
            let flag = Arc::new(Flag::default());
            let mut waker = Some(Waker::from(flag.clone()));
            let queue = Queue { max_len: usize::MAX, max_wait: None };
            match self.line.join(n, queue, |_| true, &mut waker, &mut self.cells).unwrap() {
                Joined::Taken => self.granted.push((self.cells.now, id, n)),
                Joined::Waits(key, timer) => {
                    self.tickets.push_back(Ticket { id, n, key, flag, answered: 0, timer, polls: 0 });
                }
            }
        }

        fn pass(&mut self, nanos: u64) {
            self.cells.now += nanos;
        }

        fn poll(&mut self, at: usize) {
            let ticket = &mut self.tickets[at];
            ticket.polls += 1;
            ticket.answered = ticket.flag.0.load(Ordering::Relaxed);
            let waker = Waker::from(ticket.flag.clone());
            let mut spare = Some(waker.clone());
            match self.line.poll(ticket.key, &waker, &mut spare, &mut self.cells) {
                Turn::Taken(left) => {
                    self.granted.push((self.cells.now, ticket.id, ticket.n));
                    self.polls.push(ticket.polls);
                    self.tickets.remove(at);
                    left.next.into_iter().for_each(Waker::wake);
                }
                Turn::Waits(timer) => {
                    assert!(timer.is_none_or(|timer| timer > self.cells.now), "it would spin");
                    ticket.timer = timer;
                }
                turn => panic!("{turn:?}"),
            }
        }

        fn leave(&mut self, at: usize) {
            let ticket = self.tickets.remove(at).unwrap();
            let left = self.line.leave(ticket.key, &self.cells);
            left.next.into_iter().for_each(Waker::wake);
        }

        /// Polls whoever has been woken or whose timer has fired, those first that `order` points at.
        fn run(&mut self, order: usize) {
            loop {
                let now = self.cells.now;
                let ready: Vec<usize> = (0..self.tickets.len())
                    .filter(|at| {
                        let ticket = &self.tickets[*at];
                        ticket.flag.0.load(Ordering::Relaxed) > ticket.answered
                            || ticket.timer.is_some_and(|timer| timer <= now)
                    })
                    .collect();
                let Some(at) = ready.get(order.checked_rem(ready.len()).unwrap_or(0)) else { return };
                self.poll(*at);
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrive(u32),
        Leave(usize),
        Pass(u64),
        Run(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1..=4_u32).prop_map(Step::Arrive),
            1 => (0..32_usize).prop_map(Step::Leave),
            3 => (0..3_000_000_u64).prop_map(Step::Pass),
            4 => (0..32_usize).prop_map(Step::Run),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn under_every_interleaving_the_quota_and_the_order_hold_and_nobody_is_forgotten(
            steps in steps(),
            burst in 4..8_u32,
            interval in 1..1_500_000_u64,
        ) {
            let mut world = World::new(Quota::new(1, Duration::from_nanos(interval)).with_burst(burst));
            for step in steps {
                match step {
                    Step::Arrive(n) => world.arrive(n),
                    Step::Leave(at) if !world.tickets.is_empty() => world.leave(at % world.tickets.len()),
                    Step::Pass(nanos) => world.pass(nanos),
                    Step::Run(order) => world.run(order),
                    Step::Leave(_) => {}
                }
                let front = world.line.queue.front().is_some();
                prop_assert_eq!(front, !world.tickets.is_empty());
                prop_assert_eq!(world.line.cells(), world.tickets.iter().map(|t| u64::from(t.n)).sum::<u64>());
            }
            // Time goes on until nobody waits; each is granted as soon as it can be.
            for _ in 0..world.tickets.len() * 3 + 3 {
                world.run(0);
                let now = world.cells.now;
                let Some(next) = world.tickets.iter().filter_map(|ticket| ticket.timer).min() else { break };
                world.pass(next.saturating_sub(now));
            }
            prop_assert!(world.tickets.is_empty(), "forgotten");
            let ids: Vec<_> = world.granted.iter().map(|(_, id, _)| *id).collect();
            prop_assert!(ids.is_sorted(), "out of order: {:?}", ids);
            // In any window of length T at most burst + T / interval.
            for (i, (from, ..)) in world.granted.iter().enumerate() {
                let mut cells = 0;
                for (to, _, n) in &world.granted[i..] {
                    cells += u64::from(*n);
                    prop_assert!(cells <= u64::from(burst) + (to - from) / interval);
                }
            }
        }

        #[test]
        fn where_timers_are_exact_a_waiter_is_woken_once(
            weights in prop::collection::vec(1..=4_u32, 1..100),
            burst in 4..8_u32,
            interval in 1_000_000..1_500_000_u64,
        ) {
            let mut world = World::new(Quota::new(1, Duration::from_nanos(interval)).with_burst(burst));
            let started = world.cells.now;
            let cells: u64 = weights.iter().map(|n| u64::from(*n)).sum();
            weights.into_iter().for_each(|n| world.arrive(n));
            while let Some(next) = world.tickets.iter().filter_map(|ticket| ticket.timer).min() {
                world.pass(next - world.cells.now);
                world.run(0);
            }
            prop_assert!(world.polls.iter().all(|polls| *polls == 1), "{:?}", world.polls);
            let took = world.granted.last().unwrap().0 - started;
            prop_assert_eq!(took, cells.saturating_sub(u64::from(burst)) * interval);
        }
    }

    #[test]
    fn a_crowd_is_woken_once_each_and_one_of_them_once_more_per_tick() {
        let mut world = World::new(Quota::per_second(50_000).with_burst(100));
        (0..10_000).for_each(|_| world.arrive(1));
        let mut ticks = 0;
        while !world.tickets.is_empty() {
            // Timers fire at whole milliseconds.
            let now = world.cells.now;
            world.pass(1_000_000 - now % 1_000_000);
            world.run(0);
            ticks += 1;
        }
        assert_eq!(ticks, 198);
        let polls: usize = world.polls.iter().sum();
        assert!(polls <= 9_900 + ticks, "{polls}");
    }

    #[test]
    fn each_who_gives_up_costs_each_successor_at_most_one_wake_up() {
        let mut world = World::new(Quota::new(1, Duration::from_millis(1)).with_burst(1));
        (0..100).for_each(|_| world.arrive(1));
        // One in the middle, and the front.
        world.leave(50);
        world.leave(0);
        while !world.tickets.is_empty() {
            world.run(0);
            let Some(next) = world.tickets.iter().filter_map(|ticket| ticket.timer).min() else { break };
            world.pass(next - world.cells.now);
        }
        assert_eq!(world.granted.len(), 98);
        assert!(world.polls.iter().all(|polls| *polls <= 2), "{:?}", world.polls);
        // No cell is lost over it: 97 came after the first, one per millisecond.
        assert_eq!(world.granted.last().unwrap().0, 97_000_000);
    }
}
