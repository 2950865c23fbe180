use std::num::NonZeroU32;
use std::time::Duration;

use async_policy::ConfigError;

/// How many of the last calls a rate is measured over unless configured.
pub const DEFAULT_WINDOW: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// How many calls a rate needs before it can open the circuit, unless configured.
pub const DEFAULT_MIN_CALLS: NonZeroU32 = NonZeroU32::new(20).unwrap();
/// The failure rate at which the circuit opens unless configured.
pub const DEFAULT_FAILURE_RATE: f64 = 0.5;

/// The longest window over a number of calls (2 MiB of bits).
const MAX_WINDOW: u32 = 1 << 24;
/// The shortest window over time.
const MIN_WITHIN: Duration = Duration::from_millis(1);

/// A rate at which the circuit opens: of failures or of slow calls, over the last calls or the last while.
///
/// A rate is looked at when a call of the kind it counts is recorded: a failure may open the circuit at its failure rate and
/// a slow call at its slow rate; **a success in time never opens it**, not even the one that makes up the minimum of
/// calls.
///
/// ```
/// use async_circuit::Trip;
/// use std::num::NonZeroU32;
/// use std::time::Duration;
///
/// let half_fail = Trip::failure_rate(0.5).within(Duration::from_secs(10));
/// let most_are_slow = Trip::slow_rate(0.8, Duration::from_secs(2)).of_last(NonZeroU32::new(50).unwrap());
/// let trip = half_fail.or(most_are_slow).or(Trip::consecutive_failures(NonZeroU32::new(10).unwrap()));
/// ```
#[must_use = "a rule does nothing until given to a builder"]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trip {
    pub(crate) bad: Bad,
    pub(crate) rate: f64,
    pub(crate) window: Window,
    pub(crate) min_calls: NonZeroU32,
}

/// Which calls a rate counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bad {
    Failed,
    SlowerThan(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Window {
    OfLast(NonZeroU32),
    Within(Duration),
}

impl Default for Trip {
    fn default() -> Self {
        Self::failure_rate(DEFAULT_FAILURE_RATE)
    }
}

impl Trip {
    /// At `rate` failures per call (above 0, at most 1) or more.
    ///
    /// # Default
    ///
    /// Over exactly the last 100 calls, once there were 20.
    pub const fn failure_rate(rate: f64) -> Self {
        Self { bad: Bad::Failed, rate, window: Window::OfLast(DEFAULT_WINDOW), min_calls: DEFAULT_MIN_CALLS }
    }

    /// At `rate` slow calls per call (above 0, at most 1) or more; slow is what takes longer than `slower_than`, from being let
    /// in to its outcome, whether that is a success or a failure. (The only kind of rule for which each call reads the
    /// clock twice.)
    ///
    /// # Default
    ///
    /// Over exactly the last 100 calls, once there were 20.
    pub const fn slow_rate(rate: f64, slower_than: Duration) -> Self {
        let bad = Bad::SlowerThan(slower_than);
        Self { bad, rate, window: Window::OfLast(DEFAULT_WINDOW), min_calls: DEFAULT_MIN_CALLS }
    }

    /// At `failures` failures in a row. Ignored and aborted calls do not end the row.
    pub fn consecutive_failures(failures: NonZeroU32) -> TripRules {
        TripRules { rules: vec![Rule::InARow(failures)] }
    }

    /// The rate is measured over exactly the last `calls` (at most 2^24), one bit each; and, once a call went badly, 128 bytes
    /// for each processor (32 at most).
    pub const fn of_last(mut self, calls: NonZeroU32) -> Self {
        self.window = Window::OfLast(calls);
        self
    }

    /// The rate is measured over the last `time` (at least 1 ms), in 16 buckets: a call leaves the window when it is
    /// between 15/16 and all of `time` old. It takes 128 bytes, and as many again for each processor (32 at most), however
    /// many calls there are; and reads the clock for each.
    pub const fn within(mut self, time: Duration) -> Self {
        self.window = Window::Within(time);
        self
    }

    /// Fewer calls than this in the window do not open the circuit. More than the window can hold means a full window.
    pub const fn with_min_calls(mut self, calls: NonZeroU32) -> Self {
        self.min_calls = calls;
        self
    }

    /// The circuit opens when this rule says so or the other.
    pub fn or(self, other: impl Into<TripRules>) -> TripRules {
        TripRules::from(self).or(other)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if !is_rate(self.rate) {
            let field = match self.bad {
                Bad::Failed => "trip.failure_rate",
                Bad::SlowerThan(_) => "trip.slow_rate",
            };
            return Err(ConfigError::new(field, self.rate, RATE));
        }
        match self.window {
            Window::OfLast(calls) if calls.get() > MAX_WINDOW => {
                return Err(ConfigError::new("trip.of_last", calls, format_args!("at most {MAX_WINDOW}")));
            }
            Window::Within(time) if time < MIN_WITHIN => {
                return Err(ConfigError::new("trip.within", format_args!("{time:?}"), "at least 1ms"));
            }
            _ => {}
        }
        match self.bad {
            Bad::SlowerThan(Duration::ZERO) => {
                Err(ConfigError::new("trip.slower_than", "0s", "longer than zero"))
            }
            _ => Ok(()),
        }
    }
}

pub(crate) const RATE: &str = "above 0 and at most 1";

pub(crate) fn is_rate(rate: f64) -> bool {
    rate > 0.0 && rate <= 1.0
}

/// One or more rules: the circuit opens when any of them says so.
#[must_use = "rules do nothing until given to a builder"]
#[derive(Clone, Debug, PartialEq)]
pub struct TripRules {
    pub(crate) rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    InARow(NonZeroU32),
    Rate(Trip),
}

impl Default for TripRules {
    fn default() -> Self {
        Trip::default().into()
    }
}

impl From<Trip> for TripRules {
    fn from(trip: Trip) -> Self {
        Self { rules: vec![Rule::Rate(trip)] }
    }
}

impl TripRules {
    /// The circuit opens when one of these rules says so or the other.
    pub fn or(mut self, other: impl Into<Self>) -> Self {
        self.rules.extend(other.into().rules);
        self
    }

    /// What makes a call slow: the least that any rule calls so.
    pub(crate) fn slower_than(&self) -> Option<Duration> {
        let slow = |rule: &Rule| match rule {
            Rule::Rate(Trip { bad: Bad::SlowerThan(time), .. }) => Some(*time),
            _ => None,
        };
        self.rules.iter().filter_map(slow).min()
    }

    /// The longest window over a number of calls.
    pub(crate) fn longest_count(&self) -> Option<u32> {
        let calls = |rule: &Rule| match rule {
            Rule::Rate(Trip { window: Window::OfLast(calls), .. }) => Some(calls.get()),
            _ => None,
        };
        self.rules.iter().filter_map(calls).max()
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.rules.iter().try_for_each(|rule| match rule {
            Rule::InARow(_) => Ok(()),
            Rule::Rate(trip) => trip.check(),
        })
    }
}
