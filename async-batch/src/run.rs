use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::mem;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use crate::detail::{Detailed, Keep, Plain};
use crate::engine::{Engine, Sink};
use crate::gather::Plan;
use crate::order::Order;
use crate::source::Source;
use crate::{Outcomes, Settled, Stopped, Work};

/// A gather over its items. Await it for all [`Outcomes`] in input order, or take them one by one.
///
/// | | order | memory | items while the consumer is busy |
/// |---|---|---|---|
/// | `.await` | input | all results | – |
/// | [`for_each`](Self::for_each) | as they complete | O(limit) | go on |
/// | [`stream`](Self::stream) | as they complete | O(limit) | of `run`: **stand still**; of `spawn`, `spawn_blocking`: go on |
/// | [`ordered`](Self::ordered) | input | O(limit + ahead) | the same |
///
/// A stream of items in the caller's task drives them only while it is polled. An item may then run into a time-out
/// because its consumer is slow, and an item and a consumer that take the same semaphore can wait for each other for
/// ever: the item has its turn and is not polled, the consumer waits behind it. `for_each` and the spawned modes are
/// immune.
#[must_use = "futures do nothing unless polled"]
pub struct Run<S, W, T, E, K: Keep> {
    engine: Engine<S, W, K>,
    order: Order<Settled<T, E, K::Detail>>,
    outcomes: Option<Outcomes<T, E, K::Detail>>,
}

// Nothing in these is pinned: each item has a box of its own.
impl<S, W, T, E, K: Keep> Unpin for Run<S, W, T, E, K> {}
impl<S, W, T, E, K: Keep> Unpin for Completed<S, W, T, E, K> {}
impl<S, W, T, E, K: Keep> Unpin for Ordered<S, W, T, E, K> {}

impl<S, W, T, E> Run<S, W, T, E, Plain<S::Item>>
where
    S: Source,
    W: Work<S::Item, Value = T, Error = E>,
{
    pub(crate) fn new(plan: Plan, source: S, work: W) -> Self {
        Self { engine: Engine::new(plan, source, work), order: Order::new(), outcomes: None }
    }

    /// Keeps a [`Detail`](crate::Detail) of each item: its input, how often it was started and how long it took. It costs
    /// each item a clone of its input and two looks at the clock.
    ///
    /// ```
    /// use async_batch::Gather;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let outcomes = Gather::up_to::<8>().run(["a", "b"], async |_| Err::<(), _>("down")).detailed().await;
    /// for (_, result, detail) in &outcomes {
    ///     println!("{}: {result:?} after {:?}", detail.input, detail.elapsed);
    /// }
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// When the gather has begun, that is, was polled: its results so far would be lost.
    #[track_caller]
    pub fn detailed(self) -> Run<S, W, T, E, Detailed<S::Item>>
    where
        S::Item: Clone,
    {
        Run { engine: self.engine.keeping(), order: Order::new(), outcomes: None }
    }
}

impl<S, W, T, E, K> Run<S, W, T, E, K>
where
    S: Source,
    W: Work<S::Item, Value = T, Error = E>,
    K: Keep<Item = S::Item>,
{
    /// The items as they complete, as a stream. Once a gather has stopped, the items it cancelled come too, and then
    /// the end.
    ///
    /// # Cancel safety
    ///
    /// Waiting for the next one can be dropped and nothing is lost. Dropping the stream ends the items as dropping the
    /// call does.
    ///
    /// # Panics
    ///
    /// When the gather has begun, that is, was polled: its results so far would be lost.
    #[track_caller]
    pub fn stream(self) -> Completed<S, W, T, E, K> {
        Completed { engine: self.engine.not_begun(), hands_out: PhantomData }
    }

    /// The items in input order, as a stream.
    ///
    /// Behind a slow item others go on: up to `ahead` more than the limit may have started, and the results of those
    /// that have ended are held.
    ///
    /// # Cancel safety
    ///
    /// As [`stream`](Self::stream).
    ///
    /// # Panics
    ///
    /// As [`stream`](Self::stream).
    #[track_caller]
    pub fn ordered(self, ahead: usize) -> Ordered<S, W, T, E, K> {
        Ordered {
            engine: self.engine.not_begun(),
            order: self.order,
            ready: VecDeque::new(),
            ahead,
            taken: 0,
        }
    }

    /// Hands each item that ends to `consumer`, one after the other, as they complete, and meanwhile goes on with those
    /// under way. An item holds its place until the consumer has taken its result, so no more than the limit wait for it.
    ///
    /// A [deadline](crate::Gather::with_deadline) ends the items, not the consumer: that is still handed what has ended by
    /// then, at its own pace, and the deadline is not in force inside it. Put a time-out into a consumer that may hang.
    ///
    /// A consumer with state of its own that it keeps across an await (a file, a connection) holds it behind
    /// `tokio::sync::Mutex`, which nobody else wants then:
    ///
    /// ```
    /// use async_batch::Gather;
    ///
    /// # struct File(Vec<u8>);
    /// # impl File { async fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> { self.0.extend(bytes); Ok(()) } }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// # let file = File(Vec::new());
    /// let file = tokio::sync::Mutex::new(file); // a tokio::fs::File, say
    /// let run = Gather::up_to::<8>().run(0..100, async |n| Ok::<_, std::io::Error>(n));
    /// run.for_each(async |settled| {
    ///     let line = format!("{}\n", settled.index);
    ///     file.lock().await.write_all(line.as_bytes()).await.expect("the disk has room");
    /// })
    /// .await;
    /// # assert_eq!(file.into_inner().0.len(), 290);
    /// # }
    /// ```
    ///
    /// (An `AsyncFnMut` would take it without one, but a call with such a parameter is not `Send` as far as the compiler can
    /// tell, so that it could not be awaited in a spawned task.)
    ///
    /// # Cancel safety
    ///
    /// Dropping the call drops the consumer's future and ends the items as dropping the gather does; results that the
    /// consumer has not been given are lost.
    ///
    /// ```
    /// use async_batch::Gather;
    ///
    /// # async fn store(n: u32) {}
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let summary = Gather::up_to::<8>()
    ///     .run(0..100, async |n| Ok::<_, std::io::Error>(n))
    ///     .for_each(async |settled| match settled.result {
    ///         Ok(value) => store(value).await,
    ///         Err(error) => eprintln!("#{}: {error}", settled.index),
    ///     })
    ///     .await;
    /// assert_eq!(summary.succeeded, 100);
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// As [`stream`](Self::stream).
    pub async fn for_each<F, Fut>(self, mut consumer: F) -> Summary
    where
        F: FnMut(Settled<T, E, K::Detail>) -> Fut,
        Fut: Future<Output = ()>,
    {
        let mut engine = self.engine.not_begun();
        let mut waiting = VecDeque::new();
        let mut taken = 0;
        let mut busy = pin!(None::<Fut>);
        poll_fn(|cx| {
            loop {
                if let Some(consuming) = busy.as_mut().as_pin_mut()
                    && consuming.poll(cx).is_ready()
                {
                    busy.set(None);
                    taken += 1;
                }
                engine.ahead = taken;
                let driven = engine.drive(cx, &mut |settled| {
                    waiting.push_back(settled);
                    true
                });
                if busy.is_some() {
                    return Poll::Pending;
                }
                match waiting.pop_front() {
                    Some(settled) => busy.set(Some(consumer(settled))),
                    None => return driven.map(drop),
                }
            }
        })
        .await;
        Summary::of(&engine)
    }
}

impl<S, W, T, E, K> Future for Run<S, W, T, E, K>
where
    S: Source,
    W: Work<S::Item, Value = T, Error = E>,
    K: Keep<Item = S::Item>,
{
    type Output = Outcomes<T, E, K::Detail>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { engine, order, outcomes } = self.get_mut();
        let outcomes = outcomes.get_or_insert_with(|| Outcomes::with_capacity(engine.size_hint().0));
        ready!(engine.drive(cx, &mut Collect { order, outcomes: &mut *outcomes }));
        outcomes.stop(engine.core().stopped());
        Poll::Ready(mem::replace(outcomes, Outcomes::with_capacity(0)))
    }
}

/// Collects items in input order.
struct Collect<'r, T, E, D> {
    order: &'r mut Order<Settled<T, E, D>>,
    outcomes: &'r mut Outcomes<T, E, D>,
}

impl<T, E, D> Sink<Settled<T, E, D>> for Collect<'_, T, E, D> {
    #[inline(always)]
    fn take(&mut self, settled: Settled<T, E, D>) -> bool {
        self.order.push(settled.index, settled, |settled| self.outcomes.push(settled));
        true
    }
}

/// How many items a gather started, and how they ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Summary {
    /// Items that started so far.
    pub started: usize,
    /// Items that succeeded.
    pub succeeded: usize,
    /// Items that failed.
    pub failed: usize,
    /// Items that were under way when the gather stopped.
    pub cancelled: usize,
    /// Why the gather ended before its input did; `None` if it came to its end, or has not ended.
    pub stopped: Option<Stopped>,
}

impl Summary {
    fn of<S: Source, W: Work<S::Item>, K: Keep<Item = S::Item>>(engine: &Engine<S, W, K>) -> Self {
        let [started, succeeded, failed, cancelled] = engine.core().counts();
        Self { started, succeeded, failed, cancelled, stopped: engine.core().stopped() }
    }
}

/// The items of a gather as they complete: see [`Run::stream`].
#[must_use = "streams do nothing unless polled"]
pub struct Completed<S, W, T, E, K: Keep> {
    engine: Engine<S, W, K>,
    hands_out: PhantomData<fn() -> Result<T, E>>,
}

impl<S, W, T, E, K> Stream for Completed<S, W, T, E, K>
where
    S: Source,
    W: Work<S::Item, Value = T, Error = E>,
    K: Keep<Item = S::Item>,
{
    type Item = Settled<T, E, K::Detail>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut next = None;
        let driven = self.get_mut().engine.drive(cx, &mut |settled| {
            next = Some(settled);
            false
        });
        driven.map(|_| next)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // It may stop before it has started them all.
        (0, self.engine.size_hint().1)
    }
}

/// The items of a gather in input order: see [`Run::ordered`].
#[must_use = "streams do nothing unless polled"]
pub struct Ordered<S, W, T, E, K: Keep> {
    engine: Engine<S, W, K>,
    order: Order<Settled<T, E, K::Detail>>,
    ready: VecDeque<Settled<T, E, K::Detail>>,
    ahead: usize,
    taken: usize,
}

impl<S, W, T, E, K> Stream for Ordered<S, W, T, E, K>
where
    S: Source,
    W: Work<S::Item, Value = T, Error = E>,
    K: Keep<Item = S::Item>,
{
    type Item = Settled<T, E, K::Detail>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { engine, order, ready, ahead, taken } = self.get_mut();
        loop {
            if let Some(next) = ready.pop_front() {
                *taken += 1;
                return Poll::Ready(Some(next));
            }
            engine.ahead = taken.saturating_add(*ahead);
            let done = ready!(engine.drive(cx, &mut |settled: Settled<T, E, K::Detail>| {
                order.push(settled.index, settled, |settled| ready.push_back(settled));
                ready.is_empty()
            }));
            if done {
                return Poll::Ready(None);
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (_, most) = self.engine.size_hint();
        let [_, succeeded, failed, cancelled] = self.engine.core().counts();
        (
            self.ready.len(),
            most.and_then(|most| most.checked_add(succeeded + failed + cancelled - self.taken)),
        )
    }
}

macro_rules! streams {
    ($($Stream:ident),*) => {$(
        impl<S, W, T, E, K> $Stream<S, W, T, E, K>
        where
            S: Source,
            W: Work<S::Item, Value = T, Error = E>,
            K: Keep<Item = S::Item>,
        {
            /// The next item, or `None` at the end.
            ///
            /// # Cancel safety
            ///
            /// Dropping it loses nothing.
            pub async fn next(&mut self) -> Option<Settled<T, E, K::Detail>> {
                poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
            }

            /// What the items came to so far.
            #[must_use]
            pub fn summary(&self) -> Summary {
                Summary::of(&self.engine)
            }
        }
    )*};
}

streams!(Completed, Ordered);

macro_rules! opaque {
    ($($Name:ident),*) => {$(
        impl<S, W, T, E, K: Keep> fmt::Debug for $Name<S, W, T, E, K> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($Name)).field("engine", &self.engine).finish_non_exhaustive()
            }
        }
    )*};
}

opaque!(Run, Completed, Ordered);
