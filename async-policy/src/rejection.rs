use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Which kind of policy spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PolicyKind {
    /// A circuit breaker.
    CircuitBreaker,
    /// A limit on operations in flight (semaphore, bulkhead).
    ConcurrencyLimit,
    /// A limit on operations per time.
    RateLimit,
    /// A retry or its budget.
    Retry,
    /// A hedge or its budget.
    Hedge,
    /// A time-out or an overall deadline.
    Timeout,
    /// A batch or a batcher.
    Batch,
    /// A policy from outside the family.
    Other(&'static str),
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CircuitBreaker => "circuit breaker",
            Self::ConcurrencyLimit => "concurrency limit",
            Self::RateLimit => "rate limit",
            Self::Retry => "retry",
            Self::Hedge => "hedge",
            Self::Timeout => "timeout",
            Self::Batch => "batch",
            Self::Other(kind) => kind,
        })
    }
}

/// Why an operation was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The circuit is open.
    CircuitOpen,
    /// The circuit is half-open and all its probes are taken.
    ProbesTaken,
    /// The limit has no room now, and waiting was not asked for.
    LimitReached,
    /// The queue in front of the limit is full.
    QueueFull,
    /// The wait would be longer than the policy allows.
    WaitTooLong,
    /// The wait would end after the deadline that flows in from outside.
    DeadlineTooClose,
    /// More was asked for at once than the limit can ever grant.
    ExceedsCapacity,
    /// The budget for extra attempts is spent.
    BudgetSpent,
    /// The policy has been shut down.
    ShutDown,
    /// A reason from outside the family.
    Other(&'static str),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CircuitOpen => "circuit open",
            Self::ProbesTaken => "half-open and all probes taken",
            Self::LimitReached => "limit reached",
            Self::QueueFull => "queue full",
            Self::WaitTooLong => "wait longer than allowed",
            Self::DeadlineTooClose => "wait would outlast the deadline",
            Self::ExceedsCapacity => "more than the limit can ever grant",
            Self::BudgetSpent => "budget spent",
            Self::ShutDown => "shut down",
            Self::Other(reason) => reason,
        })
    }
}

/// A refusal: the operation was **not started**.
///
/// It says which policy refused (kind, and the name of the instance where it has one), why, and where it is known
/// how long to wait before another try can succeed.
///
/// ```
/// use async_policy::{PolicyKind, Reason, Rejection};
/// use std::time::Duration;
///
/// let rejection = Rejection::new(PolicyKind::CircuitBreaker, Reason::CircuitOpen)
///     .with_name("quotes")
///     .with_retry_after(Duration::from_millis(3200));
/// assert_eq!(rejection.to_string(), "circuit breaker `quotes` refused: circuit open (retry after 3.2s)");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    name: Option<Arc<str>>,
    retry_after: Option<Duration>,
    policy: PolicyKind,
    reason: Reason,
}

impl Rejection {
    /// A refusal by an unnamed policy that does not know when to come back.
    #[must_use]
    pub const fn new(policy: PolicyKind, reason: Reason) -> Self {
        Self { name: None, retry_after: None, policy, reason }
    }

    /// Adds the name of the instance that refused.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds how long to wait before another try can succeed.
    #[must_use]
    pub const fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The kind of policy that refused.
    #[must_use]
    pub const fn policy(&self) -> PolicyKind {
        self.policy
    }

    /// The name of the instance that refused, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Why it refused.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// How long to wait before another try can succeed, counted from the refusal; `None` where that is not known.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.policy)?;
        if let Some(name) = &self.name {
            write!(f, " `{name}`")?;
        }
        write!(f, " refused: {}", self.reason)?;
        match self.retry_after {
            Some(wait) => write!(f, " (retry after {wait:?})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Rejection {}

/// A time-out: the operation was started, got no answer in time and was dropped. It **may have run**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimedOut {
    name: Option<Arc<str>>,
    limit: Duration,
}

impl TimedOut {
    /// A time-out after `limit`.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self { name: None, limit }
    }

    /// Adds the name of the instance that gave up.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How long the operation was given.
    #[must_use]
    pub const fn limit(&self) -> Duration {
        self.limit
    }

    /// The name of the instance that gave up, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timeout ")?;
        if let Some(name) = &self.name {
            write!(f, "`{name}` ")?;
        }
        write!(f, "expired: no answer within {:?}", self.limit)
    }
}

impl std::error::Error for TimedOut {}
