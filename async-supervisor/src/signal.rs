use std::io;
use std::time::Duration;

use tokio::time::Instant;

use crate::{Report, Running};

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

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
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

    async fn recv(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
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
            () = signals.recv() => self.request_stop(),
        }
        let first = Instant::now();
        loop {
            tokio::select! {
                biased;
                report = self.wait() => return Ok(report),
                () = signals.recv() => {}
            }
            if first.elapsed() >= SAME {
                break;
            }
        }
        self.force_stop();
        Ok(self.wait().await)
    }
}
