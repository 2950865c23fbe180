use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use async_policy::{ByRef, Deadline, Failure, Lift, Name, Operation, Policy, PolicyError, TimedOut, Verdict};
use tokio::task::coop::consume_budget;

use crate::report::{Best, Record, Reporter};
use crate::retry::{Past, Pause};
use crate::{Report, Retry};

async fn wait(pause: Pause) {
    match pause {
        Pause::None => {}
        Pause::Yield => consume_budget().await,
        Pause::Sleep(delay) => tokio::time::sleep(delay).await,
    }
}

async fn run<Op, R>(retry: &Retry, op: Op, past: &mut Option<Past<R>>) -> Result<Op::Value, Op::Error>
where
    Op: Operation,
    Op::Error: PolicyError,
    R: Record<Op::Value, Op::Error> + Default,
{
    let began = retry.begin();
    loop {
        if let Some(past) = past.as_mut().filter(|_| R::ALL) {
            past.record.start();
        }
        let result = match retry.attempt_timeout() {
            None => op.start().await,
            Some(timeout) => timeout.execute(ByRef(&op)).await,
        };
        match retry.settle(&began, past, true, |answer| op.classify(answer), result) {
            ControlFlow::Break(result) => return result,
            ControlFlow::Continue(pause) => wait(pause).await,
        }
    }
}

impl Policy for Retry {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        run(self, op, &mut None::<Past<Best<_, _>>>).await
    }
}

impl Retry {
    /// [`call`](Policy::call), and what happened in it: every attempt's start, outcome, own result and delay, and why there was no
    /// further one.
    ///
    /// ```
    /// use async_retry::{Backoff, Retry, StopReason};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let retry = Retry::new(Backoff::constant(Duration::from_millis(50))).unwrap();
    /// let (result, report) = retry.call_with_report(async || Err::<(), _>("down")).await;
    /// assert!(result.is_err());
    /// assert_eq!(report.stopped(), Some(StopReason::Attempts));
    /// let started: Vec<_> = report.attempts().iter().map(|attempt| attempt.started().as_millis()).collect();
    /// assert_eq!(started, [0, 50, 100]);
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Policy::call`].
    ///
    /// # Cancel safety
    ///
    /// As [`Policy::execute`].
    pub fn call_with_report<Op: Operation>(
        &self,
        op: Op,
    ) -> impl Future<Output = (Result<Op::Value, Failure<Op::Error>>, Report<Op::Value, Failure<Op::Error>>)> + Send
    {
        self.execute_with_report(Lift(op))
    }

    /// [`execute`](Policy::execute), and what happened in it: see [`call_with_report`](Self::call_with_report).
    ///
    /// # Errors
    ///
    /// As [`Policy::execute`].
    ///
    /// # Cancel safety
    ///
    /// As [`Policy::execute`].
    pub fn execute_with_report<Op>(
        &self,
        op: Op,
    ) -> impl Future<Output = (Result<Op::Value, Op::Error>, Report<Op::Value, Op::Error>)> + Send
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        async move {
            let mut past = Some(Past::<Reporter<_, _>>::default());
            let result = run(self, op, &mut past).await;
            (result, past.unwrap_or_default().record.finish())
        }
    }

    /// [`call`](Policy::call) for a closure with state of its own (`FnMut`), whose futures may borrow from it and need not be
    /// `Send`. It cannot go through other policies, which may start an operation twice at once.
    ///
    /// An error is transient, `Ok` a success; [`call_mut_with`](Self::call_mut_with) says otherwise.
    ///
    /// ```
    /// use async_retry::{Backoff, Retry};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let retry = Retry::new(Backoff::none()).unwrap();
    /// let mut servers = ["a", "b", "c"].into_iter().cycle();
    /// let answer = retry
    ///     .call_mut(async || match servers.next() {
    ///         Some("b") => Ok("hello from b"),
    ///         _ => Err("down"),
    ///     })
    ///     .await;
    /// assert_eq!(answer.unwrap(), "hello from b");
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Policy::call`].
    ///
    /// # Cancel safety
    ///
    /// As [`Policy::execute`]. What the closure did to its state stays done.
    pub async fn call_mut<T, E: Send>(&self, op: impl AsyncFnMut() -> Result<T, E>) -> Result<T, Failure<E>> {
        self.run_mut(op, |_| None).await
    }

    /// [`call_mut`](Self::call_mut) with what an answer means: errors and `Ok` values alike.
    ///
    /// # Errors
    ///
    /// As [`Policy::call`].
    ///
    /// # Cancel safety
    ///
    /// As [`call_mut`](Self::call_mut).
    pub async fn call_mut_with<T, E: Send>(
        &self,
        op: impl AsyncFnMut() -> Result<T, E>,
        mut classify: impl FnMut(Result<&T, &E>) -> Verdict,
    ) -> Result<T, Failure<E>> {
        self.run_mut(op, |answer| match answer {
            Ok(value) => Some(classify(Ok(value))),
            Err(error) => error.operation().map(|error| classify(Err(error))),
        })
        .await
    }

    async fn run_mut<T, E: Send>(
        &self,
        mut op: impl AsyncFnMut() -> Result<T, E>,
        mut classify: impl FnMut(Result<&T, &Failure<E>>) -> Option<Verdict>,
    ) -> Result<T, Failure<E>> {
        let began = self.begin();
        let mut past = None::<Past<Best<_, _>>>;
        loop {
            let result = match self.attempt_timeout() {
                None => op().await.map_err(Failure::Operation),
                Some(timeout) => within(timeout.limit(), self.name(), op()).await,
            };
            match self.settle(&began, &mut past, true, &mut classify, result) {
                ControlFlow::Break(result) => return result,
                ControlFlow::Continue(pause) => wait(pause).await,
            }
        }
    }
}

/// The kernel's time-out for a future that need not be `Send`.
async fn within<T, E>(
    limit: Duration,
    name: Option<&Name>,
    attempt: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure<E>> {
    let Some(deadline) = Deadline::after(limit) else { return attempt.await.map_err(Failure::Operation) };
    match tokio::time::timeout_at(deadline.instant(), deadline.scope(attempt)).await {
        Ok(result) => result.map_err(Failure::Operation),
        Err(_) => {
            let timed_out = TimedOut::new(limit);
            Err(Failure::TimedOut(match name {
                Some(name) => timed_out.with_name(name.clone()),
                None => timed_out,
            }))
        }
    }
}

/// `.retry(policy)` on closures.
pub trait RetryExt: Operation + Sized {
    /// Runs this operation under a policy: a [`Retry`], a reference to one, or any other policy or tuple of them.
    ///
    /// ```
    /// use async_retry::{Backoff, Retry, RetryExt};
    ///
    /// # async fn fetch() -> Result<u32, std::io::Error> { Ok(7) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let policy = Retry::default();
    /// assert_eq!(fetch.retry(&policy).await.unwrap(), 7);
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Policy::call`].
    ///
    /// # Cancel safety
    ///
    /// As [`Policy::execute`].
    fn retry<P: Policy>(
        self,
        policy: P,
    ) -> impl Future<Output = Result<Self::Value, Failure<Self::Error>>> + Send {
        async move { policy.call(self).await }
    }
}

impl<Op: Operation> RetryExt for Op {}
