use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The name of an instance, cheap to clone and one word wide: errors travel through every layer of a stack, and their
/// size is paid on the success path too.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Arc<Box<str>>);

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self(Arc::new(name.into()))
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Self(Arc::new(name.into()))
    }
}

impl From<Arc<str>> for Name {
    fn from(name: Arc<str>) -> Self {
        Self::from(&*name)
    }
}

impl std::ops::Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// Which kind of policy spoke.
// One word wide, because it is also what tells a refusal from the other ends of a call: written as a byte and copied as part of
// a word, it would stall each copy of a result on its way out of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u64)]
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
    /// A file that one writer at a time may change.
    File,
    /// A policy from outside the family; the name of the instance says which.
    Custom,
}

impl PolicyKind {
    /// As one word, for metrics and logs: `circuit_breaker`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CircuitBreaker => "circuit_breaker",
            Self::ConcurrencyLimit => "concurrency_limit",
            Self::RateLimit => "rate_limit",
            Self::Retry => "retry",
            Self::Hedge => "hedge",
            Self::Timeout => "timeout",
            Self::Batch => "batch",
            Self::File => "file",
            Self::Custom => "custom",
        }
    }
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
            Self::File => "file",
            Self::Custom => "policy",
        })
    }
}

/// Why an operation was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The circuit is open.
    CircuitOpen,
    /// The circuit was opened by hand, until it is closed by hand.
    ForcedOpen,
    /// The circuit is half-open and all its probes are taken.
    ProbesTaken,
    /// The circuit has recovered and lets only a share of the calls through for now.
    RampingUp,
    /// The limit has no room now, and waiting was not asked for.
    LimitReached,
    /// The queue in front of the limit is full.
    QueueFull,
    /// So many keys are in use that there is no room for another.
    TooManyKeys,
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
    /// A rule of a policy from outside the family.
    Custom,
}

impl Reason {
    const ALL: [Self; 13] = [
        Self::CircuitOpen,
        Self::ForcedOpen,
        Self::ProbesTaken,
        Self::RampingUp,
        Self::LimitReached,
        Self::QueueFull,
        Self::TooManyKeys,
        Self::WaitTooLong,
        Self::DeadlineTooClose,
        Self::ExceedsCapacity,
        Self::BudgetSpent,
        Self::ShutDown,
        Self::Custom,
    ];

    /// As one word, for metrics and logs: `circuit_open`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CircuitOpen => "circuit_open",
            Self::ForcedOpen => "forced_open",
            Self::ProbesTaken => "probes_taken",
            Self::RampingUp => "ramping_up",
            Self::LimitReached => "limit_reached",
            Self::QueueFull => "queue_full",
            Self::TooManyKeys => "too_many_keys",
            Self::WaitTooLong => "wait_too_long",
            Self::DeadlineTooClose => "deadline_too_close",
            Self::ExceedsCapacity => "exceeds_capacity",
            Self::BudgetSpent => "budget_spent",
            Self::ShutDown => "shut_down",
            Self::Custom => "custom",
        }
    }

    /// Whether the same call may be let in later, though nobody can say when: a retry may then wait its own backoff.
    #[must_use]
    pub const fn may_pass(self) -> bool {
        match self {
            Self::CircuitOpen
            | Self::ProbesTaken
            | Self::RampingUp
            | Self::LimitReached
            | Self::QueueFull
            | Self::TooManyKeys
            | Self::WaitTooLong
            | Self::Custom => true,
            Self::ForcedOpen
            | Self::DeadlineTooClose
            | Self::ExceedsCapacity
            | Self::BudgetSpent
            | Self::ShutDown => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CircuitOpen => "circuit open",
            Self::ForcedOpen => "circuit opened by hand",
            Self::ProbesTaken => "half-open and all probes taken",
            Self::RampingUp => "ramping up after a recovery",
            Self::LimitReached => "limit reached",
            Self::QueueFull => "queue full",
            Self::TooManyKeys => "too many keys in use",
            Self::WaitTooLong => "wait longer than allowed",
            Self::DeadlineTooClose => "wait would outlast the deadline",
            Self::ExceedsCapacity => "more than the limit can ever grant",
            Self::BudgetSpent => "budget spent",
            Self::ShutDown => "shut down",
            Self::Custom => "by a rule of its own",
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
    name: Option<Name>,
    why: Why,
    policy: PolicyKind,
}

/// A reason and a wait in one word: the place of the reason in [`Reason::ALL`], and above it the wait in nanoseconds. The
/// longest wait (2.2 years) stands for all above it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Why(u64);

impl Why {
    const REASON_BITS: u32 = 8;
    const NO_WAIT: u64 = u64::MAX >> Self::REASON_BITS;

    const fn new(reason: Reason, wait: Option<Duration>) -> Self {
        let wait = match wait {
            None => Self::NO_WAIT,
            Some(wait) if wait.as_nanos() < Self::NO_WAIT as u128 => wait.as_nanos() as u64,
            Some(_) => Self::NO_WAIT - 1,
        };
        Self(wait << Self::REASON_BITS | reason as u64)
    }

    const fn reason(self) -> Reason {
        Reason::ALL[(self.0 & 0xff) as usize]
    }

    const fn wait(self) -> Option<Duration> {
        match self.0 >> Self::REASON_BITS {
            Self::NO_WAIT => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }
}

impl fmt::Debug for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, retry after {:?}", self.reason(), self.wait())
    }
}

impl Rejection {
    /// A refusal by an unnamed policy that does not know when to come back.
    #[must_use]
    pub const fn new(policy: PolicyKind, reason: Reason) -> Self {
        Self { name: None, why: Why::new(reason, None), policy }
    }

    /// Adds the name of the instance that refused.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds how long to wait before another try can succeed.
    #[must_use]
    pub const fn with_retry_after(mut self, wait: Duration) -> Self {
        self.why = Why::new(self.why.reason(), Some(wait));
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
        self.why.reason()
    }

    /// How long to wait before another try can succeed, counted from the refusal; `None` where that is not known.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.why.wait()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.policy)?;
        if let Some(name) = &self.name {
            write!(f, " `{name}`")?;
        }
        write!(f, " refused: {}", self.reason())?;
        match self.retry_after() {
            Some(wait) => {
                // Nobody reads nanoseconds; rounded up, so that who obeys does not come too early.
                let millis = wait.as_nanos().div_ceil(1_000_000);
                let shown = u64::try_from(millis).map_or(wait, Duration::from_millis);
                write!(f, " (retry after {shown:?})")
            }
            None => Ok(()),
        }
    }
}

impl std::error::Error for Rejection {}

/// A time-out: the operation was started, got no answer in time and was dropped. It **may have run**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimedOut {
    name: Option<Name>,
    /// In nanoseconds: half the size of a `Duration`. The longest one (584 years) stands for all above it.
    limit: u64,
}

impl TimedOut {
    /// A time-out after `limit`.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        let nanos = limit.as_nanos();
        Self { name: None, limit: if nanos < u64::MAX as u128 { nanos as u64 } else { u64::MAX } }
    }

    /// Adds the name of the instance that gave up.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How long the operation was given.
    #[must_use]
    pub const fn limit(&self) -> Duration {
        Duration::from_nanos(self.limit)
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
        write!(f, "expired: no answer within {:?}", self.limit())
    }
}

impl std::error::Error for TimedOut {}
