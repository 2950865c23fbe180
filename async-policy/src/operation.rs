use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::{Failure, Outcome, PolicyError, Verdict};

/// A replayable operation: retry and hedge may start it again. Its verdict travels with it, so that every policy of
/// a stack reads the same one.
///
/// Every `Fn() -> impl Future<Output = Result<T, E>>` is one. What an outcome means is said with
/// [`classify_with`](Self::classify_with):
///
/// ```
/// use async_policy::{Operation, Policy, Timeout, Verdict};
/// # struct Response { status: u16 }
/// # async fn get() -> Result<Response, std::io::Error> { Ok(Response { status: 503 }) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let op = (|| get()).classify_with(|outcome| match outcome {
///     Ok(response) if response.status >= 500 => Verdict::Transient,
///     Ok(_) => Verdict::Success,
///     Err(_) => Verdict::Transient,
/// });
/// let response = Timeout::from_millis(250).call(op).await.unwrap();
/// # assert_eq!(response.status, 503);
/// # }
/// ```
pub trait Operation: Send + Sync {
    /// What it yields.
    type Value: Send;
    /// What it fails with.
    type Error: Send;
    /// One run of it.
    type Future: Future<Output = Result<Self::Value, Self::Error>> + Send;

    /// Starts one run.
    fn start(&self) -> Self::Future;

    /// What an answer of the operation's own means; `None` leaves it to the error
    /// ([`PolicyError::verdict`]), and `Ok` to success. Not asked for refusals and time-outs of inner policies.
    fn classify(&self, outcome: Result<&Self::Value, &Self::Error>) -> Option<Verdict> {
        let _ = outcome;
        None
    }

    /// Attaches what an answer means: errors and `Ok` values alike.
    fn classify_with<C>(self, classify: C) -> ClassifyWith<Self, C>
    where
        Self: Sized,
        C: Fn(Result<&Self::Value, &Self::Error>) -> Verdict + Send + Sync,
    {
        ClassifyWith { operation: self, classify }
    }

    /// What policies see of a result of this operation.
    fn outcome<'r>(&self, result: &'r Result<Self::Value, Self::Error>) -> Outcome<'r>
    where
        Self::Error: PolicyError,
    {
        Outcome::of(result, |answer| self.classify(answer))
    }
}

impl<F, Fut, T, E> Operation for F
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = Result<T, E>> + Send,
    T: Send,
    E: Send,
{
    type Value = T;
    type Error = E;
    type Future = Fut;

    fn start(&self) -> Fut {
        self()
    }
}

/// An operation with a classifier: see [`Operation::classify_with`].
#[must_use = "an operation does nothing until a policy starts it"]
#[derive(Clone)]
pub struct ClassifyWith<Op, C> {
    operation: Op,
    classify: C,
}

impl<Op, C> Operation for ClassifyWith<Op, C>
where
    Op: Operation,
    C: Fn(Result<&Op::Value, &Op::Error>) -> Verdict + Send + Sync,
{
    type Value = Op::Value;
    type Error = Op::Error;
    type Future = Op::Future;

    fn start(&self) -> Op::Future {
        self.operation.start()
    }

    fn classify(&self, outcome: Result<&Op::Value, &Op::Error>) -> Option<Verdict> {
        Some((self.classify)(outcome))
    }
}

impl<Op, C> fmt::Debug for ClassifyWith<Op, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClassifyWith").finish_non_exhaustive()
    }
}

/// An operation that runs `start` but keeps the verdict of `op`: how a policy hands an operation to the policy
/// inside it. (A bare closure would lose the verdict.)
pub struct Layered<'op, Op, F> {
    op: &'op Op,
    start: F,
}

impl<'op, Op, F> Layered<'op, Op, F> {
    /// `start` in place of `op`, under the verdict of `op`.
    pub const fn new(op: &'op Op, start: F) -> Self {
        Self { op, start }
    }
}

impl<Op, F, Fut> Operation for Layered<'_, Op, F>
where
    Op: Operation,
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = Result<Op::Value, Op::Error>> + Send,
{
    type Value = Op::Value;
    type Error = Op::Error;
    type Future = Fut;

    fn start(&self) -> Fut {
        (self.start)()
    }

    fn classify(&self, outcome: Result<&Op::Value, &Op::Error>) -> Option<Verdict> {
        self.op.classify(outcome)
    }
}

impl<Op, F> fmt::Debug for Layered<'_, Op, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layered").finish_non_exhaustive()
    }
}

/// A borrowed operation. (`&Op` itself cannot be one: a reference to a closure already is.)
#[derive(Debug)]
pub struct ByRef<'op, Op>(pub &'op Op);

impl<Op: Operation> Operation for ByRef<'_, Op> {
    type Value = Op::Value;
    type Error = Op::Error;
    type Future = Op::Future;

    fn start(&self) -> Op::Future {
        self.0.start()
    }

    fn classify(&self, outcome: Result<&Op::Value, &Op::Error>) -> Option<Verdict> {
        self.0.classify(outcome)
    }
}

/// An operation whose error is lifted into [`Failure`]: what [`Policy::call`](crate::Policy::call) hands inward.
#[derive(Debug)]
pub struct Lift<Op>(pub Op);

impl<Op: Operation> Operation for Lift<Op> {
    type Value = Op::Value;
    type Error = Failure<Op::Error>;
    type Future = LiftFuture<Op::Future, Op::Error>;

    fn start(&self) -> Self::Future {
        LiftFuture { future: self.0.start(), error: PhantomData }
    }

    fn classify(&self, outcome: Result<&Op::Value, &Failure<Op::Error>>) -> Option<Verdict> {
        match outcome {
            Ok(value) => self.0.classify(Ok(value)),
            Err(Failure::Operation(error)) => self.0.classify(Err(error)),
            Err(_) => None,
        }
    }
}

pin_project! {
    /// One run of a lifted operation: see [`Lift`].
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct LiftFuture<Fut, E> {
        #[pin]
        future: Fut,
        error: PhantomData<fn() -> E>,
    }
}

impl<Fut, T, E> Future for LiftFuture<Fut, E>
where
    Fut: Future<Output = Result<T, E>>,
{
    type Output = Result<T, Failure<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(self.project().future.poll(cx)).map_err(Failure::Operation))
    }
}

pin_project! {
    /// One run of an operation that is started in the first poll: under the deadline, and inside whatever counts
    /// a panic of [`start`](Operation::start) as the operation's. Keeps the operation, to ask it for its verdict.
    #[must_use = "futures do nothing unless polled"]
    pub struct Start<Op: Operation> {
        op: Op,
        #[pin]
        run: Option<Op::Future>,
    }
}

impl<Op: Operation> Start<Op> {
    /// One run of `op`, not started yet.
    pub const fn new(op: Op) -> Self {
        Self { op, run: None }
    }

    /// The operation.
    pub const fn operation(&self) -> &Op {
        &self.op
    }
}

impl<Op: Operation> Future for Start<Op> {
    type Output = Result<Op::Value, Op::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            if let Some(run) = this.run.as_mut().as_pin_mut() {
                return run.poll(cx);
            }
            let run = this.op.start();
            this.run.set(Some(run));
        }
    }
}

impl<Op: Operation> fmt::Debug for Start<Op> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start").field("started", &self.run.is_some()).finish_non_exhaustive()
    }
}
