use std::time::Duration;

use crate::{Backoff, Every};

/// Which children a fall restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Strategy {
    /// The one that fell.
    OneForOne,
    /// All: the others are stopped in reverse order, then all are started in order.
    OneForAll,
    /// The one that fell and those started after it: they are stopped in reverse order, then all of these are started in order.
    RestForOne,
    /// The one that fell, in a pool without an order: its children start side by side and are stopped all at once
    /// (OTP's `simple_one_for_one`).
    Pool,
}

/// When a child is restarted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Restart {
    /// Always, even when it ended well.
    #[default]
    Permanent,
    /// When it failed. One that ended well stays known, as stopped.
    Transient,
    /// Never. It is forgotten when it ends, however it ends.
    Temporary,
}

/// How a child is stopped.
///
/// While it takes its time, because it is stopped or restarted by name or with its group, no sibling is restarted, unless they are in a
/// [pool](Strategy::Pool).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// It is asked, through its token, and aborted if it has not ended after so long.
    Timeout(Duration),
    /// It is asked, and waited for as long as it takes (up to the supervisor's own
    /// [stop budget](crate::Supervisor::with_stop_budget)).
    Wait,
    /// It is aborted at once, at its next await point.
    Abort,
}

impl Default for Shutdown {
    /// Five seconds, as in OTP.
    fn default() -> Self {
        Self::Timeout(Duration::from_secs(5))
    }
}

/// When the end of [significant](crate::Child::with_significant) children stops the supervisor.
///
/// A temporary child may end by a failure: the supervisor stops all the same, and its [report](crate::Report::failed) has the failure and
/// is not clean. For a parent, a supervisor that stopped itself like this has ended normally, as in OTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoShutdown {
    /// Never.
    #[default]
    Never,
    /// When one of them has ended by itself for good.
    AnySignificant,
    /// When the last of them has ended by itself for good.
    AllSignificant,
}

/// What the supervisor has to know of a child to decide about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    pub(crate) restart: Restart,
    pub(crate) shutdown: Shutdown,
    pub(crate) backoff: Backoff,
    pub(crate) significant: bool,
    /// How long it may take to say that it is ready, if it says so.
    pub(crate) readiness: Option<Duration>,
    /// How far apart its heartbeats may be, if it has one.
    pub(crate) heartbeat: Option<Duration>,
    /// Whether it is a supervisor: it aborts what is below it in its own time.
    pub(crate) supervisor: bool,
    /// Whether it never beats its heart: it does no work of its own.
    pub(crate) mute: bool,
    /// How often it runs, if it is periodic.
    pub(crate) every: Option<Every>,
}

/// The field that makes no sense, its value, and what is expected.
pub(crate) type Wrong = (&'static str, String, &'static str);

impl Rules {
    pub(crate) fn check(&self, auto_shutdown: AutoShutdown) -> Result<(), Wrong> {
        let zero = Some(Duration::ZERO);
        let said = |limit: Option<Duration>| format!("{:?}", limit.unwrap_or_default());
        let heartbeat = |expected| Err(("child.heartbeat", said(self.heartbeat), expected));
        let significant = |expected| Err(("child.significant", "true".to_owned(), expected));
        if self.significant && self.restart == Restart::Permanent {
            significant("a restart other than permanent, which never ends for good")
        } else if self.significant && auto_shutdown == AutoShutdown::Never {
            significant("an auto_shutdown of the supervisor")
        } else if self.heartbeat == zero {
            heartbeat("longer than zero")
        } else if self.heartbeat.is_some() && self.mute {
            heartbeat("none, since supervisors and tracked tasks never beat")
        } else if self.heartbeat.zip(self.every).is_some_and(|(within, every)| within <= every.longest()) {
            heartbeat("longer than its period and jitter, since its ticks are its heartbeats")
        } else if self.readiness == zero {
            Err(("child.readiness", said(zero), "longer than zero"))
        } else {
            self.backoff.check().and(self.every.map_or(Ok(()), |every| every.check()))
        }
    }
}
