use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::state::Next;
use crate::{AttemptOutcome, StopReason};

/// What becomes of the results a call does not end with.
pub(crate) trait Record<T, E> {
    /// Whether successes need to be recorded too.
    const ALL: bool;

    /// What the caller gets.
    type Output;

    /// The call ends.
    fn finish(record: Option<Self>, result: Result<T, E>) -> Self::Output
    where
        Self: Sized;

    /// An attempt starts.
    fn start(&mut self) {}

    /// An attempt ended.
    fn end(&mut self, _outcome: AttemptOutcome, _next: &Next) {}

    /// There is no further attempt.
    fn stop(&mut self, _reason: StopReason) {}

    /// The call goes on, or ends with another result.
    fn keep(&mut self, result: Result<T, E>, outcome: AttemptOutcome);

    /// The call ends without success: with its last result, unless an earlier one is worth more.
    fn choose(&mut self, result: Result<T, E>, outcome: AttemptOutcome) -> Result<T, E>;
}

/// Keeps the result the call would end with.
#[derive(Debug)]
pub(crate) struct Best<T, E>(Option<(Result<T, E>, u8)>);

impl<T, E> Default for Best<T, E> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T, E> Record<T, E> for Best<T, E> {
    const ALL: bool = false;
    type Output = Result<T, E>;

    #[inline]
    fn finish(_: Option<Self>, result: Result<T, E>) -> Result<T, E> {
        result
    }

    fn keep(&mut self, result: Result<T, E>, outcome: AttemptOutcome) {
        let rank = outcome.rank();
        if self.0.as_ref().is_none_or(|(_, kept)| *kept <= rank) {
            self.0 = Some((result, rank));
        }
    }

    fn choose(&mut self, result: Result<T, E>, outcome: AttemptOutcome) -> Result<T, E> {
        match self.0.take() {
            Some((kept, rank)) if rank > outcome.rank() => kept,
            _ => result,
        }
    }
}

/// One attempt of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptReport<T, E> {
    started: Duration,
    took: Duration,
    outcome: AttemptOutcome,
    delay: Option<Duration>,
    result: Option<Result<T, E>>,
}

impl<T, E> AttemptReport<T, E> {
    /// When it was started, counted from the start of the call.
    #[must_use]
    pub const fn started(&self) -> Duration {
        self.started
    }

    /// How long it took.
    #[must_use]
    pub const fn took(&self) -> Duration {
        self.took
    }

    /// How it ended.
    #[must_use]
    pub const fn outcome(&self) -> AttemptOutcome {
        self.outcome
    }

    /// The delay that was slept after it; `None` where no attempt followed.
    #[must_use]
    pub const fn delay(&self) -> Option<Duration> {
        self.delay
    }

    /// What it yielded; `None` for the one whose result the call ended with.
    #[must_use]
    pub const fn result(&self) -> Option<&Result<T, E>> {
        self.result.as_ref()
    }
}

/// What happened in one call: see [`Retry::call_with_report`](crate::Retry::call_with_report).
///
/// It keeps the result of every attempt: as many as the limits of the retry allow. `println!("{report}")` shows what happened when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report<T, E> {
    attempts: Vec<AttemptReport<T, E>>,
    stopped: Option<StopReason>,
}

impl<T, E> Report<T, E> {
    /// The attempts, in order; also those that an inner policy [`Refused`](AttemptOutcome::Refused): they did not start the operation, but
    /// count as [attempts](crate::Retry::with_max_attempts).
    #[must_use]
    pub fn attempts(&self) -> &[AttemptReport<T, E>] {
        &self.attempts
    }

    /// The attempts, by value: with every result but the one the call ended with.
    #[must_use]
    pub fn into_attempts(self) -> Vec<AttemptReport<T, E>> {
        self.attempts
    }

    /// Why there was no further attempt; `None` after a success.
    #[must_use]
    pub const fn stopped(&self) -> Option<StopReason> {
        self.stopped
    }

    /// From the start of the call to the end of its last attempt.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.attempts.last().map_or(Duration::ZERO, |last| last.started + last.took)
    }
}

/// To look at: a line for each attempt, and one for the end. The results themselves are not in it.
///
/// ```text
/// attempt 1: at 0ns, transient after 10ms, then a delay of 100ms
/// attempt 2: at 110ms, timed_out after 2s
/// stopped: deadline
/// ```
impl<T, E> fmt::Display for Report<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, attempt) in (1..).zip(&self.attempts) {
            let AttemptReport { started, took, outcome, delay, .. } = attempt;
            write!(f, "attempt {n}: at {started:?}, {outcome} after {took:?}")?;
            match delay {
                Some(delay) => writeln!(f, ", then a delay of {delay:?}")?,
                None => writeln!(f)?,
            }
        }
        match self.stopped {
            Some(reason) => write!(f, "stopped: {reason}"),
            None => f.write_str("succeeded"),
        }
    }
}

/// What a call ended with, and what happened in it.
pub type Reported<T, E> = (Result<T, E>, Report<T, E>);

/// Keeps everything.
pub(crate) struct Reporter<T, E> {
    began: Instant,
    started: Instant,
    report: Report<T, E>,
}

impl<T, E> Default for Reporter<T, E> {
    fn default() -> Self {
        let now = Instant::now();
        Self { began: now, started: now, report: Report { attempts: Vec::new(), stopped: None } }
    }
}

impl<T, E> Record<T, E> for Reporter<T, E> {
    const ALL: bool = true;
    type Output = Reported<T, E>;

    fn finish(record: Option<Self>, result: Result<T, E>) -> Self::Output {
        (result, record.unwrap_or_default().report)
    }

    fn start(&mut self) {
        self.started = Instant::now();
    }

    fn end(&mut self, outcome: AttemptOutcome, next: &Next) {
        self.report.attempts.push(AttemptReport {
            started: self.started - self.began,
            took: self.started.elapsed(),
            outcome,
            delay: if let Next::After(delay) = next { Some(*delay) } else { None },
            result: None,
        });
        self.report.stopped = if let Next::Stop(reason) = next { Some(*reason) } else { None };
    }

    fn stop(&mut self, reason: StopReason) {
        self.report.stopped = Some(reason);
    }

    fn keep(&mut self, result: Result<T, E>, _: AttemptOutcome) {
        if let Some(last) = self.report.attempts.last_mut() {
            last.result = Some(result);
        }
    }

    fn choose(&mut self, result: Result<T, E>, outcome: AttemptOutcome) -> Result<T, E> {
        let attempts = &mut self.report.attempts;
        // The last of those worth most; of equals the one that is later.
        let best = attempts
            .iter_mut()
            .filter(|attempt| attempt.result.is_some() && attempt.outcome.rank() > outcome.rank())
            .max_by_key(|attempt| attempt.outcome.rank());
        match best.and_then(|attempt| attempt.result.take()) {
            Some(kept) => {
                self.keep(result, outcome);
                kept
            }
            None => result,
        }
    }
}
