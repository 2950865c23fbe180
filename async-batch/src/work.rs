use std::future::Future;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use async_policy::{Classify, Deadline, Operation, Policy, Verdict};
use pin_project_lite::pin_project;
use tokio::task::{JoinError, JoinHandle};

use crate::detail::Attempts;
use crate::slot::Slot;
use crate::{ItemError, Panicked};

/// Where the items of a gather run: [`InTask`], [`Spawned`], [`Blocking`], each also under a policy.
pub trait Work<I> {
    /// What an item yields.
    type Value;
    /// What an item fails with.
    type Error;
    #[doc(hidden)]
    type Item: Item<Output = Result<Self::Value, ItemError<Self::Error>>>;
    #[doc(hidden)]
    type Make: Make<I, Item = Self::Item>;

    #[doc(hidden)]
    fn parts(&mut self) -> (&mut Self::Make, &mut Vec<Slot<Self::Item>>);
}

/// How an item becomes something under way.
#[doc(hidden)]
pub trait Make<I> {
    type Value;
    type Error;
    type Item: Item<Output = Result<Self::Value, ItemError<Self::Error>>>;
    /// Whether an item may be started more than once.
    const REPLAYS: bool;

    fn start(&mut self, input: I, attempts: &Attempts) -> Self::Item;
}

/// What makes the items, and the places for those under way.
///
/// The type of the items is a parameter, no projection: the compiler cannot see through one whose inputs have lifetimes
/// where it asks whether a task is `Send`.
#[doc(hidden)]
#[derive(Debug)]
pub struct Lane<M, F> {
    make: M,
    slots: Vec<Slot<F>>,
}

impl<M, F> Lane<M, F> {
    pub(crate) const fn new(make: M) -> Self {
        Self { make, slots: Vec::new() }
    }
}

impl<I, M: Make<I>> Work<I> for Lane<M, M::Item> {
    type Value = M::Value;
    type Error = M::Error;
    type Item = M::Item;
    type Make = M;

    #[inline(always)]
    fn parts(&mut self) -> (&mut M, &mut Vec<Slot<M::Item>>) {
        (&mut self.make, &mut self.slots)
    }
}

/// Runs each item in the caller's task: see [`Gather::run`](crate::Gather::run).
pub type InTask<F, Fut, E> = Lane<Turns<F>, Here<Own<Fut, E>>>;

/// Runs each item in a task of its own: see [`Gather::spawn`](crate::Gather::spawn).
pub type Spawned<F, T, E> = Lane<Tasks<F>, There<T, E>>;

/// Runs each item on a blocking thread: see [`Gather::spawn_blocking`](crate::Gather::spawn_blocking).
pub type Blocking<F, T, E> = Lane<Threads<F>, There<T, E>>;

/// One item under way.
#[doc(hidden)]
pub trait Item: Future {
    /// Asks it to stop. `false`: dropping it is enough; `true`: it runs elsewhere, and is to be polled to its end.
    fn stop(self: Pin<&mut Self>) -> bool;
}

/// In the caller's task.
#[doc(hidden)]
#[derive(Debug)]
pub struct Turns<F>(pub(crate) F);

impl<I, F, Fut, T, E> Make<I> for Turns<F>
where
    F: FnMut(I) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    type Value = T;
    type Error = E;
    type Item = Here<Own<Fut, E>>;
    const REPLAYS: bool = false;

    #[inline]
    fn start(&mut self, input: I, _: &Attempts) -> Self::Item {
        Here { future: Own::new((self.0)(input)) }
    }
}

/// In a task each.
#[doc(hidden)]
#[derive(Debug)]
pub struct Tasks<F>(pub(crate) F);

impl<I, F, Fut, T, E> Make<I> for Tasks<F>
where
    F: FnMut(I) -> Fut,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    type Value = T;
    type Error = E;
    type Item = There<T, E>;
    const REPLAYS: bool = false;

    fn start(&mut self, input: I, _: &Attempts) -> Self::Item {
        There::spawn(Own::new((self.0)(input)))
    }
}

/// On a blocking thread each.
#[doc(hidden)]
#[derive(Debug)]
pub struct Threads<F>(pub(crate) Arc<F>);

impl<I, F, T, E> Make<I> for Threads<F>
where
    I: Send + 'static,
    F: Fn(I) -> Result<T, E> + Send + Sync + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    type Value = T;
    type Error = E;
    type Item = There<T, E>;
    const REPLAYS: bool = false;

    fn start(&mut self, input: I, _: &Attempts) -> Self::Item {
        let f = Arc::clone(&self.0);
        There::spawn_blocking(move || f(input))
    }
}

/// Makes items with a closure that counts its attempts.
pub(crate) struct Replayed<F>(pub(crate) F);

impl<I, F, Fut, T, E> Make<I> for Replayed<F>
where
    F: FnMut(I, Attempts) -> Fut,
    Fut: Item<Output = Result<T, ItemError<E>>>,
{
    type Value = T;
    type Error = E;
    type Item = Fut;
    const REPLAYS: bool = true;

    fn start(&mut self, input: I, attempts: &Attempts) -> Fut {
        (self.0)(input, attempts.clone())
    }
}

pin_project! {
    /// An item in the caller's task: dropped, it has stopped.
    #[derive(Debug)]
    pub struct Here<Fut> {
        #[pin]
        pub(crate) future: Fut,
    }
}

impl<Fut: Future> Future for Here<Fut> {
    type Output = Fut::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Fut::Output> {
        self.project().future.poll(cx)
    }
}

impl<Fut: Future> Item for Here<Fut> {
    fn stop(self: Pin<&mut Self>) -> bool {
        false
    }
}

pin_project! {
    /// Makes the error of an item's own an [`ItemError`].
    #[derive(Debug)]
    pub struct Own<Fut, E> {
        #[pin]
        future: Fut,
        error: PhantomData<fn() -> E>,
    }
}

impl<Fut, E> Own<Fut, E> {
    pub(crate) const fn new(future: Fut) -> Self {
        Self { future, error: PhantomData }
    }
}

impl<Fut, T, E> Future for Own<Fut, E>
where
    Fut: Future<Output = Result<T, E>>,
{
    type Output = Result<T, ItemError<E>>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx).map_err(ItemError::Operation)
    }
}

/// An item in a task or on a thread of its own. Dropped, it is asked to stop.
#[derive(Debug)]
pub struct There<T, E> {
    task: JoinHandle<Result<T, ItemError<E>>>,
}

impl<T, E> There<T, E>
where
    T: Send + 'static,
    E: Send + 'static,
{
    /// On the runtime, under the deadline in force here.
    pub(crate) fn spawn<Fut>(future: Fut) -> Self
    where
        Fut: Future<Output = Result<T, ItemError<E>>> + Send + 'static,
    {
        let task = match Deadline::current() {
            Some(deadline) => tokio::spawn(deadline.scope(future)),
            None => tokio::spawn(future),
        };
        Self { task }
    }

    /// On a blocking thread, under the deadline in force here.
    pub(crate) fn spawn_blocking(run: impl FnOnce() -> Result<T, E> + Send + 'static) -> Self {
        let deadline = Deadline::current();
        let task = tokio::task::spawn_blocking(move || {
            let run = async { run().map_err(ItemError::Operation) };
            let mut cx = Context::from_waker(Waker::noop());
            let polled = match deadline {
                Some(deadline) => pin!(deadline.scope(run)).poll(&mut cx),
                None => pin!(run).poll(&mut cx),
            };
            match polled {
                Poll::Ready(result) => result,
                Poll::Pending => unreachable!("it awaits nothing"),
            }
        });
        Self { task }
    }
}

impl<T, E> Future for There<T, E> {
    type Output = Result<T, ItemError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match ready!(Pin::new(&mut self.task).poll(cx)) {
            Ok(result) => result,
            Err(error) => Err(ended(error)),
        })
    }
}

/// A task that has no result has panicked, or was aborted: by us, or by a runtime that shuts down.
fn ended<E>(error: JoinError) -> ItemError<E> {
    match error.try_into_panic() {
        Ok(payload) => ItemError::Panicked(Panicked::from_payload(payload)),
        Err(_) => ItemError::Cancelled,
    }
}

impl<T, E> Item for There<T, E> {
    fn stop(self: Pin<&mut Self>) -> bool {
        self.task.abort();
        true
    }
}

impl<T, E> Drop for There<T, E> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What runs each item under a policy.
pub(crate) struct UnderPolicy<P, C, F> {
    pub(crate) policy: Arc<P>,
    pub(crate) classify: Arc<C>,
    pub(crate) f: F,
}

impl<P, C, F> UnderPolicy<P, C, F> {
    /// Runs one item, from its start to the last word of the policy.
    pub(crate) async fn run<I, Fut, T, E>(
        self: Arc<Self>,
        input: I,
        attempts: Attempts,
    ) -> Result<T, ItemError<E>>
    where
        P: Policy,
        C: Classify<T, E> + Send + Sync,
        F: Fn(I) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
        I: Clone + Send + Sync,
        T: Send,
        E: Send,
    {
        let operation =
            Replay { under: &*self, input, attempts, outcome: PhantomData::<fn() -> Result<T, E>> };
        self.policy.execute(operation).await
    }
}

/// One item, as often as a policy starts it.
struct Replay<'p, P, C, F, I, T, E> {
    under: &'p UnderPolicy<P, C, F>,
    input: I,
    attempts: Attempts,
    outcome: PhantomData<fn() -> Result<T, E>>,
}

impl<P, C, F, I, Fut, T, E> Operation for Replay<'_, P, C, F, I, T, E>
where
    P: Send + Sync,
    C: Classify<T, E> + Send + Sync,
    F: Fn(I) -> Fut + Send + Sync,
    Fut: Future<Output = Result<T, E>> + Send,
    I: Clone + Send + Sync,
    T: Send,
    E: Send,
{
    type Value = T;
    type Error = ItemError<E>;
    type Future = Own<Fut, E>;

    fn start(&self) -> Self::Future {
        self.attempts.add();
        Own::new((self.under.f)(self.input.clone()))
    }

    fn classify(&self, outcome: Result<&T, &ItemError<E>>) -> Option<Verdict> {
        match outcome {
            Ok(value) => self.under.classify.classify(Ok(value)),
            Err(ItemError::Operation(error)) => self.under.classify.classify(Err(error)),
            Err(_) => None,
        }
    }
}
