use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::whole;
use crate::{Exit, MeltDown, Signal};

/// Why a supervisor ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Cause {
    /// It was told to: by `stop`, by a signal, by its parent, or because the handle was dropped.
    Stopped,
    /// A significant child ended for good. If it failed, that is in [`Report::failed`].
    AutoShutdown {
        /// The child that was the last to end.
        child: Arc<str>,
    },
    /// It gave up: too many restarts, or a first start that failed.
    MeltedDown(MeltDown),
    /// Its runtime was shut down under it: nobody was asked to stop in order, and what blocks a thread may still run.
    Lost,
}

/// How a supervisor ended: why, and what did not end as it should.
#[must_use = "a report says what would not stop"]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The supervisor's name.
    pub supervisor: Arc<str>,
    /// Why.
    pub cause: Cause,
    pub(crate) signal: Option<Signal>,
    /// Children that did not end in time, and were aborted, in the order in which that was done; those below by their path (`feeds/acme`),
    /// and of [tracked tasks](crate::Tasks::child) each that was aborted too (`mails/invoice`).
    pub aborted: Vec<Arc<str>>,
    /// Children that did not end even then, because they block their thread: they may still run.
    pub leaked: Vec<Arc<str>>,
    /// Children that ended with a failure while they were being stopped; and before these, if the cause is an
    /// [automatic shutdown](Cause::AutoShutdown), the significant children that had failed for good (the first 1,024 of them).
    pub failed: Vec<(Arc<str>, Exit)>,
    /// How long the stop took.
    pub took: Duration,
}

impl Report {
    pub(crate) fn lost(supervisor: &Arc<str>) -> Self {
        Self {
            supervisor: Arc::clone(supervisor),
            cause: Cause::Lost,
            signal: None,
            aborted: Vec::new(),
            leaked: Vec::new(),
            failed: Vec::new(),
            took: Duration::ZERO,
        }
    }

    /// What it is for a parent.
    pub(crate) fn exit(&self) -> Exit {
        match &self.cause {
            Cause::MeltedDown(down) => Exit::MeltedDown(down.clone()),
            Cause::Stopped | Cause::AutoShutdown { .. } | Cause::Lost => Exit::Completed,
        }
    }

    /// Whether it ended on purpose and each child ended in time and without a failure, those included by whose end it was stopped.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        matches!(self.cause, Cause::Stopped | Cause::AutoShutdown { .. })
            && self.aborted.is_empty()
            && self.leaked.is_empty()
            && self.failed.is_empty()
    }

    /// The signal that stopped it, where that was one: in [`run_until_signal`](crate::Running::run_until_signal), if it had not been told to stop
    /// otherwise before.
    ///
    /// A program that a service manager or an orchestrator stops has done its work, so the [exit code](Self::exit_code) does not tell. One that
    /// is run from a shell or by a script may want to:
    ///
    /// ```no_run
    /// use async_supervisor::{Child, Context, Supervisor};
    /// use std::process::ExitCode;
    ///
    /// #[tokio::main]
    /// async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    ///     let worker = Child::new("worker", async |ctx: Context| ctx.cancelled().await);
    ///     let report = Supervisor::one_for_one().with_child(worker).start().await?.run_until_signal().await?;
    ///     Ok(match report.signal() {
    ///         Some(signal) if report.is_clean() => signal.exit_code(), // 130 or 143
    ///         _ => report.exit_code(),
    ///     })
    /// }
    /// ```
    #[must_use]
    pub const fn signal(&self) -> Option<Signal> {
        self.signal
    }

    /// Success if it [is clean](Self::is_clean), otherwise failure (1). An orderly stop by a signal is a success: [`signal`](Self::signal) shows
    /// how to end with 130 or 143 instead.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        if self.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "supervisor `{}` ", self.supervisor)?;
        match &self.cause {
            Cause::Stopped => match self.signal {
                Some(signal) => write!(f, "stopped by {signal}")?,
                None => f.write_str("stopped")?,
            },
            Cause::AutoShutdown { child } => write!(f, "stopped because `{child}` ended")?,
            Cause::MeltedDown(down) => f.write_str(&down.what())?,
            Cause::Lost => f.write_str("was lost with its runtime")?,
        }
        write!(f, " (in {:?})", whole(self.took))?;
        if !self.aborted.is_empty() {
            write!(f, "; aborted: {}", self.aborted.join(", "))?;
        }
        if !self.leaked.is_empty() {
            write!(f, "; would not stop: {}", self.leaked.join(", "))?;
        }
        for (name, exit) in &self.failed {
            write!(f, "; `{name}` {exit}")?;
        }
        Ok(())
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Report {
    /// As data for logs and dashboards: the cause and how a child ended as one word each, with the details as text.
    ///
    /// ```json
    /// {
    ///     "supervisor": "root", "clean": false, "cause": "stopped", "why": null, "signal": "SIGTERM",
    ///     "aborted": ["mails", "mails/invoice"], "leaked": [],
    ///     "failed": [{ "child": "store", "exit": "failed", "error": "disk full" }],
    ///     "took": "1s 500ms"
    /// }
    /// ```
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Failed<'r> {
            child: &'r str,
            exit: &'static str,
            error: Option<Arc<str>>,
        }

        #[derive(serde::Serialize)]
        struct Data<'r> {
            supervisor: &'r str,
            clean: bool,
            cause: &'static str,
            why: Option<String>,
            signal: Option<Signal>,
            aborted: &'r [Arc<str>],
            leaked: &'r [Arc<str>],
            failed: Vec<Failed<'r>>,
            #[serde(with = "humantime_serde")]
            took: Duration,
        }

        let (cause, why) = match &self.cause {
            Cause::Stopped => ("stopped", None),
            Cause::AutoShutdown { child } => ("auto_shutdown", Some(format!("`{child}` ended"))),
            Cause::MeltedDown(down) => ("melted_down", Some(down.what())),
            Cause::Lost => ("lost", None),
        };
        let failed = self.failed.iter().map(|(child, exit)| match exit {
            Exit::Panicked(said) => Failed { child, exit: exit.as_str(), error: Some(Arc::clone(said)) },
            exit => Failed { child, exit: exit.as_str(), error: exit.text() },
        });
        Data {
            supervisor: &self.supervisor,
            clean: self.is_clean(),
            cause,
            why,
            signal: self.signal,
            aborted: &self.aborted,
            leaked: &self.leaked,
            failed: failed.collect(),
            took: whole(self.took),
        }
        .serialize(serializer)
    }
}
