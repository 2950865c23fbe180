use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_policy::{Failure, Lift, Operation, Policy, PolicyError, Verdict};
use pin_project_lite::pin_project;
use tokio::task::coop::consume_budget;

use crate::call::{Call, Resumed, Starts, Timed, judge, verdict_of};
use crate::report::{Best, Record, Reporter};
use crate::retry::{Past, Pause};
use crate::state::Progress;
use crate::{AttemptOutcome, Reported, Retry};

impl Policy for Retry {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        if !self.is_plain() {
            return Call::<_, _, Best<_, _>>::new(self, Starts(op)).await;
        }
        // What an immediate success needs, and no more: the rest is made when there is a delay, or something to weigh.
        let mut early = Early { attempts: 0, record: Best::default() };
        let past = loop {
            let (verdict, result) = match judge(op.start().await, |answer| op.classify(answer)) {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            match self.settle_early(&mut early, verdict, result) {
                Settled::End(result) => return result,
                Settled::AtOnce => {}
                Settled::Later(past) => break past,
            }
        };
        Call::<_, _, Best<_, _>>::resumed(self, Starts(op), past).await
    }
}

/// The attempts that failed and were followed by another at once.
struct Early<T, E> {
    attempts: u32,
    record: Best<T, E>,
}

enum Settled<T, E> {
    End(Result<T, E>),
    AtOnce,
    Later(Resumed<Best<T, E>>),
}

impl Retry {
    #[inline(never)]
    fn settle_early<T, E: PolicyError>(
        &self,
        early: &mut Early<T, E>,
        verdict: Option<Verdict>,
        result: Result<T, E>,
    ) -> Settled<T, E> {
        if verdict == Some(Verdict::Transient) && self.goes_on_at_once(early.attempts) {
            early.attempts += 1;
            early.record.keep(result, AttemptOutcome::Transient);
            return Settled::AtOnce;
        }
        let mut past = Past::early(early.attempts, std::mem::take(&mut early.record));
        match self.settle(&mut past, true, verdict, result) {
            ControlFlow::Break(result) => Settled::End(result),
            ControlFlow::Continue(pause) => Settled::Later((Box::new(past), pause)),
        }
    }
}

pin_project! {
    /// An attempt. Should it panic, its token is spent.
    struct Guarded<'p, F> {
        #[pin]
        attempt: F,
        progress: &'p mut Progress,
    }
}

impl<F: Future> Future for Guarded<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.progress.guard(|| this.attempt.poll(cx))
    }
}

// A macro, because one function over both kinds of closures would lose `Send` inside `tokio::spawn`.
macro_rules! run_mut {
    ($retry:ident, $attempt:expr, $classify:expr) => {{
        let mut past = Past::<Best<_, _>> { began: $retry.begin(), ..Past::default() };
        loop {
            let progress = &mut past.progress;
            // Started in its first poll: a panic of the closure itself is one of the attempt.
            let attempt = async { $attempt.await };
            let result = match $retry.attempt_timeout() {
                None => Guarded { attempt, progress }.await.map_err(Failure::Operation),
                Some(limit) => match (Guarded { attempt: Timed::new(attempt, limit), progress }).await {
                    Ok(result) => result.map_err(Failure::Operation),
                    Err(limit) => Err(Failure::TimedOut($retry.timed_out(limit))),
                },
            };
            let verdict = past.progress.guard(|| verdict_of(&result, $classify));
            match $retry.settle(&mut past, true, verdict, result) {
                ControlFlow::Break(result) => return result,
                ControlFlow::Continue(Pause::None) => {}
                ControlFlow::Continue(Pause::Yield) => consume_budget().await,
                ControlFlow::Continue(Pause::Sleep(delay)) => tokio::time::sleep(delay).await,
            }
        }
    }};
}

impl Retry {
    /// [`call`](Policy::call), and what happened in it: every attempt's start, outcome, own result and delay, and why there was no
    /// further one.
    ///
    /// A call that is dropped takes its report with it: also where a [`Timeout`](async_policy::Timeout) round it fires. With a
    /// [time-out per attempt](Self::with_attempt_timeout) the call ends by itself when the [deadline](async_policy::Deadline) passes:
    /// `deadline.scope(retry.call_with_report(op))` is back in time, with the report. Without one an attempt in flight is not cut, and only a
    /// [listener](Self::with_listener) has seen what came before.
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
    ) -> impl Future<Output = Reported<Op::Value, Failure<Op::Error>>> + Send {
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
    ) -> impl Future<Output = Reported<Op::Value, Op::Error>> + Send
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        Call::<_, _, Reporter<_, _>>::new(self, Starts(op))
    }

    /// [`call`](Policy::call) for a closure with state of its own (`FnMut`), whose futures need not be `Send`. It cannot go through
    /// other policies, which may start an operation twice at once.
    ///
    /// An error is transient, `Ok` a success; [`call_mut_with`](Self::call_mut_with) says otherwise. Where the futures borrow the state,
    /// take [`call_lending`](Self::call_lending).
    ///
    /// ```
    /// use async_retry::{Backoff, Retry};
    ///
    /// # async fn ask(server: &str) -> Result<String, &'static str> { if server == "b" { Ok("hello".into()) } else { Err("down") } }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let retry = Retry::new(Backoff::none()).unwrap();
    /// let mut servers = ["a", "b", "c"].into_iter().cycle();
    /// let answer = retry.call_mut(|| ask(servers.next().unwrap())).await;
    /// assert_eq!(answer.unwrap(), "hello");
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
    pub async fn call_mut<F, Fut, T, E>(&self, mut op: F) -> Result<T, Failure<E>>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: Send,
    {
        run_mut!(self, op(), |_| None)
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
    pub async fn call_mut_with<F, Fut, T, E>(
        &self,
        mut op: F,
        mut classify: impl FnMut(Result<&T, &E>) -> Verdict,
    ) -> Result<T, Failure<E>>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: Send,
    {
        run_mut!(self, op(), |answer| match answer {
            Ok(value) => Some(classify(Ok(value))),
            Err(error) => error.operation().map(|error| classify(Err(error))),
        })
    }

    /// [`call_mut`](Self::call_mut) for an async closure whose futures borrow its state.
    ///
    /// (Inside `tokio::spawn` the compiler of today cannot see that such a future is `Send` where the closure borrows something.)
    ///
    /// ```
    /// use async_retry::{Backoff, Retry};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let retry = Retry::new(Backoff::none()).unwrap();
    /// let mut log = Vec::new();
    /// let answer = retry
    ///     .call_lending(async || {
    ///         log.push("trying");
    ///         if log.len() < 3 { Err("down") } else { Ok(log.len()) }
    ///     })
    ///     .await;
    /// assert_eq!(answer, Ok(3));
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Policy::call`].
    ///
    /// # Cancel safety
    ///
    /// As [`call_mut`](Self::call_mut).
    pub async fn call_lending<T, E: Send>(
        &self,
        mut op: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, Failure<E>> {
        run_mut!(self, op(), |_| None)
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
