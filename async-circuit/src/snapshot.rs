use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use async_policy::ConfigError;

/// Where the circuit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum State {
    /// Calls go through and are counted.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls go through and decide.
    HalfOpen,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl State {
    /// The state as a word: `half_open`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Who decides about the circuit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Mode {
    /// The rules.
    #[default]
    Automatic,
    /// The rules, but nothing is refused: a call that would have been goes through uncounted, and is told as
    /// [`Event::WouldReject`](crate::Event::WouldReject). For trying rules out.
    ObserveOnly,
    /// Open until the mode is changed.
    ForcedOpen,
    /// Closed until the mode is changed; calls are counted.
    ForcedClosed,
    /// Closed until the mode is changed; calls are not counted.
    Disabled,
}

impl Mode {
    const ALL: [Self; 5] =
        [Self::Automatic, Self::ObserveOnly, Self::ForcedOpen, Self::ForcedClosed, Self::Disabled];

    pub(crate) const fn follows_rules(self) -> bool {
        matches!(self, Self::Automatic | Self::ObserveOnly)
    }

    /// The mode as a word: `forced_open`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Automatic => "automatic",
            Self::ObserveOnly => "observe_only",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
            Self::Disabled => "disabled",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word back: for an operator's command.
impl FromStr for Mode {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        let known = Self::ALL.into_iter().find(|mode| mode.as_str() == word);
        known.ok_or_else(|| {
            let words = Self::ALL.map(Self::as_str).join(", ");
            ConfigError::new("mode", format_args!("{word:?}"), format_args!("one of {words}"))
        })
    }
}

/// How many calls ended how since the breaker was made, whatever the mode. Calls that ended well and in time, and calls refused, are
/// not counted here: neither writes anything that threads share. (Refusals are [events](crate::Event::Rejected).)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Totals {
    /// Failures, panics not among them.
    pub failures: u64,
    /// Panics.
    pub panics: u64,
    /// Calls slower than a slow-call rule allows, however they ended.
    pub slow: u64,
    /// Calls that said nothing about the backend.
    pub ignored: u64,
    /// Calls dropped before they had an outcome.
    pub aborted: u64,
    /// Calls that would have been refused, and were only observed.
    pub would_refuse: u64,
}

/// What a breaker knows about its circuit at one moment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// Where the circuit stands.
    pub state: State,
    /// Who decides about it.
    pub mode: Mode,
    /// How many transitions there were.
    pub epoch: u64,
    /// How many calls the window of the first failure rate holds. It stands still while the circuit is not closed, except that calls
    /// still leave a window over time.
    pub calls: u64,
    /// How many of them failed.
    pub failures: u64,
    /// How many calls the window of the first slow-call rate holds are slow.
    pub slow_calls: u64,
    /// Failures in a row, where a rule counts them.
    pub consecutive_failures: u64,
    /// While open: how long until probes are let through. `None` if forced open.
    #[cfg_attr(feature = "serde", serde(serialize_with = "humantime_serde::option::serialize"))]
    pub retry_after: Option<Duration>,
    /// While half-open: probes that have no outcome yet.
    pub probes_in_flight: u32,
    /// How often the circuit has opened again since it last opened after a recovery.
    pub reopenings: u32,
    /// The share of calls let through: 1 while closed, less on the ramp after a recovery, 0 otherwise.
    pub admitted: f64,
    /// All calls that did not simply end well.
    pub totals: Totals,
}

/// What of a breaker's state outlives the process: [`CircuitBreaker::save`](crate::CircuitBreaker::save).
///
/// With the `serde` feature it is written as text:
/// `{"mode": null, "open_for": "13s 700ms", "reopenings": 2, "saved_at": "2026-11-21T09:30:00.250000000Z"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Saved {
    /// Who decided about the circuit, if that was set by hand.
    pub mode: Option<Mode>,
    /// How long it still had to stay open; zero if probes were deciding or traffic was on the ramp (it will be probed
    /// again), or if it was forced open; `None` if it was closed.
    #[cfg_attr(feature = "serde", serde(default, with = "humantime_serde::option"))]
    pub open_for: Option<Duration>,
    /// How often it had opened again without a recovery.
    pub reopenings: u32,
    /// When this was saved, by the system's clock: the time until it is restored is taken off the open time.
    #[cfg_attr(feature = "serde", serde(with = "crate::serde::rfc3339"))]
    pub saved_at: SystemTime,
}
