use std::fmt;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;

use crate::shared::Halt;
use crate::{Report, Running};

/// A signal that ends a program in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// `SIGINT`, or Ctrl-C where there are no signals.
    Interrupt,
    /// `SIGTERM`.
    Terminate,
}

impl Signal {
    /// Its name: `SIGINT`, `SIGTERM`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// With what a program ends by convention that a signal has ended, as a shell tells it: 128 and the signal's number, so 130 for `SIGINT`
    /// and 143 for `SIGTERM`. [`Report::signal`] has an example.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::Interrupt => 130.into(),
            Self::Terminate => 143.into(),
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Signal {
    /// As its name.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn recv(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn recv(&mut self) -> Signal {
        match tokio::signal::ctrl_c().await {
            Ok(()) => Signal::Interrupt,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Signals that come closer together than this are one.
const SAME: Duration = Duration::from_millis(500);

impl Running {
    /// Runs until SIGINT or SIGTERM (elsewhere: Ctrl-C) and then stops all children in order, or until the supervisor ends by
    /// itself. A second signal [forces](crate::Handle::force_stop) the stop: all that is left is asked to end at once, and aborted a moment later. One
    /// within 500 ms of the first is the same, since some (`timeout`, a terminal, a service manager) signal the process and its group.
    ///
    /// Until it is polled, signals do what they did before: end the process. To stop in order during a long start-up too,
    /// [`spawn`](crate::Supervisor::spawn) the supervisor rather than [`start`](crate::Supervisor::start) it.
    ///
    /// ```no_run
    /// use async_supervisor::{Child, Context, Supervisor};
    ///
    /// #[tokio::main]
    /// async fn main() -> Result<std::process::ExitCode, Box<dyn std::error::Error>> {
    ///     let supervisor = Supervisor::one_for_one()
    ///         .with_child(Child::new("worker", async |ctx: Context| ctx.cancelled().await))
    ///         .start()
    ///         .await?;
    ///     let report = supervisor.run_until_signal().await?;
    ///     println!("{report}");
    ///     Ok(report.exit_code())
    /// }
    /// ```
    ///
    /// [`Report::signal`] says which it was, if it was one.
    ///
    /// # Errors
    ///
    /// When the process cannot listen to signals. The supervisor is stopped then, too.
    ///
    /// # Cancel safety
    ///
    /// Dropping it asks the supervisor to stop, as dropping [`Running`] does.
    pub async fn run_until_signal(self) -> io::Result<Report> {
        let mut signals = match Signals::new() {
            Ok(signals) => signals,
            Err(error) => {
                let _ = self.stop().await;
                return Err(error);
            }
        };
        tokio::select! {
            biased;
            report = self.wait() => return Ok(report),
            signal = signals.recv() => self.shared().signalled(signal, Halt::Stop),
        }
        let first = Instant::now();
        let second = loop {
            let signal = tokio::select! {
                biased;
                report = self.wait() => return Ok(report),
                signal = signals.recv() => signal,
            };
            if first.elapsed() >= SAME {
                break signal;
            }
        };
        self.shared().signalled(second, Halt::Force);
        Ok(self.wait().await)
    }
}
