use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::spec::Wrong;
use crate::worker::IntoExit;
use crate::{Context, Exit};

/// What becomes of the ticks that a run of a periodic worker has outlasted. The names and meanings are those of tokio's
/// `MissedTickBehavior`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissedTicks {
    /// They are left out: the next run is at the next multiple of the period.
    #[default]
    Skip,
    /// They are made up for, one run right after the other.
    Burst,
    /// The next run is a full period after the end of this one.
    Delay,
}

/// How often a [periodic](crate::Child::periodic) worker runs.
///
/// # Default
///
/// The first run at once, no jitter, [`MissedTicks::Skip`].
///
/// ```
/// use async_supervisor::{Child, Context, Every, MissedTicks};
/// use std::time::Duration;
///
/// let every = Every::new(Duration::from_secs(60)).with_jitter(0.1).with_missed_ticks(MissedTicks::Delay);
/// let child = Child::periodic("cleanup", every, async |_: Context| println!("swept"));
/// # assert_eq!(child.name(), "cleanup");
/// ```
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Every {
    pub(crate) period: Duration,
    pub(crate) jitter: f64,
    missed: MissedTicks,
    wait_first: bool,
}

impl Every {
    /// A run each `period`. Zero is refused when the supervisor is started.
    pub const fn new(period: Duration) -> Self {
        Self { period, jitter: 0.0, missed: MissedTicks::Skip, wait_first: false }
    }

    /// Each run comes later by up to this fraction of the period, at random; the ticks themselves stay where they are. Outside
    /// 0 to 1 it is refused when the supervisor is started.
    pub const fn with_jitter(mut self, fraction: f64) -> Self {
        self.jitter = fraction;
        self
    }

    /// What becomes of missed ticks.
    pub const fn with_missed_ticks(mut self, missed: MissedTicks) -> Self {
        self.missed = missed;
        self
    }

    /// The first run is one period after the start.
    pub const fn wait_first(mut self) -> Self {
        self.wait_first = true;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Wrong> {
        if self.period.is_zero() {
            Err(("every.period", "0ns".into(), "longer than zero"))
        } else if !(0.0..=1.0).contains(&self.jitter) {
            Err(("every.jitter", self.jitter.to_string(), "a fraction from 0 to 1"))
        } else {
            Ok(())
        }
    }

    /// How far apart two runs may be: the period and all of the jitter.
    pub(crate) fn longest(&self) -> Duration {
        let jitter = Duration::try_from_secs_f64(self.period.as_secs_f64() * self.jitter);
        self.period.saturating_add(jitter.unwrap_or(Duration::MAX))
    }

    /// The tick after the one at `tick`, whose run ended at `now`; `None` beyond the clock's end.
    fn next(&self, tick: Instant, now: Instant) -> Option<Instant> {
        match self.missed {
            MissedTicks::Burst => tick.checked_add(self.period),
            MissedTicks::Delay => now.checked_add(self.period),
            MissedTicks::Skip => {
                let into = now.saturating_duration_since(tick).as_nanos() % self.period.as_nanos();
                // Less than the period, which is a duration.
                let into = Duration::new((into / 1_000_000_000) as u64, (into % 1_000_000_000) as u32);
                now.max(tick).checked_add(self.period - into)
            }
        }
    }

    /// Runs `work` at each tick until it fails or is told to stop. A tick is a heartbeat.
    pub(crate) async fn run<F, Fut>(self, ctx: Context, work: F) -> Exit
    where
        F: Fn(Context) -> Fut,
        Fut: Future<Output: IntoExit>,
    {
        let mut tick = Some(Instant::now());
        if self.wait_first {
            tick = tick.and_then(|now| now.checked_add(self.period));
        }
        loop {
            let wait = async {
                match tick
                    .and_then(|tick| tick.checked_add(self.period.mul_f64(self.jitter * fastrand::f64())))
                {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = ctx.cancelled() => return Exit::Completed,
                () = wait => {}
            }
            ctx.heartbeat();
            let exit = work(ctx.clone()).await.into_exit();
            if !exit.is_normal() {
                return exit;
            }
            ctx.heartbeat();
            // Work that is always ready must not keep its thread while it makes up for missed ticks.
            tokio::task::coop::consume_budget().await;
            tick = tick.and_then(|tick| self.next(tick, Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_tick_by_policy() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let every = Every::new(Duration::from_millis(100));
        // Tick at 200, the run ended at: the next tick skipping, bursting, delaying.
        for (end, skip, burst, delay) in
            [(200, 300, 300, 300), (250, 300, 300, 350), (300, 400, 300, 400), (555, 600, 300, 655)]
        {
            for (missed, next) in
                [(MissedTicks::Skip, skip), (MissedTicks::Burst, burst), (MissedTicks::Delay, delay)]
            {
                assert_eq!(
                    every.with_missed_ticks(missed).next(at(200), at(end)),
                    Some(at(next)),
                    "{missed:?} {end}"
                );
            }
        }
        assert_eq!(Every::new(Duration::MAX).next(start, start), None);
    }
}
