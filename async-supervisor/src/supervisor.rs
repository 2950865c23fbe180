use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::error::check_name;
use crate::runner::{Guard, Runner};
use crate::shared::{Nest, Shared};
use crate::state::{Config, Core};
use crate::watchdog::Watchdog;
use crate::worker::{Launch, spawn};
use crate::{
    AutoShutdown, Child, ConfigError, Context, Handle, Intensity, Running, Shutdown, StartError, Strategy,
};

/// A supervisor's specification: its children in order, and what to do when they fall.
///
/// It can be started any number of times, and can itself be a child of another.
///
/// It does one thing at a time: while one child gets [ready](Child::with_readiness), or takes its [time to stop](Shutdown), no other is started
/// or restarted, and commands wait. A stop of all and questions are served meanwhile. Only the children of a [pool](Self::pool) do not wait for
/// each other.
///
/// # Default
///
/// | | |
/// |---|---|
/// | [`name`](Self::with_name) | `supervisor` |
/// | [`intensity`](Self::with_intensity) | 1 restart within 5 s, as in OTP |
/// | [`auto_shutdown`](Self::with_auto_shutdown) | never |
/// | [`stop_budget`](Self::with_stop_budget) | none: each child has its own time |
/// | [`abort_grace`](Self::with_abort_grace) | 100 ms |
/// | [`max_children`](Self::with_max_children) | no limit |
/// | [`watchdog`](Self::with_watchdog) | none |
#[must_use = "a supervisor does nothing until it is started"]
#[derive(Clone, Debug)]
pub struct Supervisor {
    config: Config,
    watchdog: Option<Duration>,
    children: Vec<Child>,
}

impl Supervisor {
    const ABORT_GRACE: Duration = Duration::from_millis(100);

    /// A supervisor with this strategy.
    pub fn new(strategy: Strategy) -> Self {
        let config = Config {
            name: "supervisor".into(),
            strategy,
            intensity: Intensity::default(),
            auto_shutdown: AutoShutdown::Never,
            stop_budget: None,
            abort_grace: Self::ABORT_GRACE,
            max_children: None,
            seed: None,
        };
        Self { config, watchdog: None, children: Vec::new() }
    }

    /// A child that falls is restarted alone.
    pub fn one_for_one() -> Self {
        Self::new(Strategy::OneForOne)
    }

    /// When a child falls, all are stopped and started again.
    pub fn one_for_all() -> Self {
        Self::new(Strategy::OneForAll)
    }

    /// When a child falls, it and those started after it are stopped and started again.
    pub fn rest_for_one() -> Self {
        Self::new(Strategy::RestForOne)
    }

    /// Children without an order: each is restarted alone, and all are stopped at once.
    ///
    /// They share one [`Intensity`], and with the default one two falls within 5 s among thousands end the whole pool: set one that fits
    /// their number, or [`Intensity::unlimited`] where the backoff of each is enough. Temporary children are not restarted and never count.
    pub fn pool() -> Self {
        Self::new(Strategy::Pool)
    }

    /// Names it, for reports and snapshots. As a child's name it must not be empty, nor have a `/` or control characters.
    pub fn with_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Adds a child at the end of the order.
    pub fn with_child(mut self, child: Child) -> Self {
        self.children.push(child);
        self
    }

    /// Adds children at the end of the order.
    pub fn with_children(mut self, children: impl IntoIterator<Item = Child>) -> Self {
        self.children.extend(children);
        self
    }

    /// How many restarts within how long are borne.
    pub fn with_intensity(mut self, intensity: Intensity) -> Self {
        self.config.intensity = intensity;
        self
    }

    /// Whether the end of significant children stops it.
    pub fn with_auto_shutdown(mut self, auto_shutdown: AutoShutdown) -> Self {
        self.config.auto_shutdown = auto_shutdown;
        self
    }

    /// How long a stop may take in all. Then whatever is left is aborted, all at once, the last first.
    ///
    /// So that nobody is aborted unasked, all that is left is asked to end, out of turn, the [abort grace](Self::with_abort_grace) before
    /// that (half of a budget that is shorter than twice the grace).
    ///
    /// Zero, which might be meant as "at once" or as "no budget", is refused when the supervisor is started. What has nothing to clean up is
    /// stopped at once by [`Shutdown::Abort`].
    pub fn with_stop_budget(mut self, budget: Duration) -> Self {
        self.config.stop_budget = Some(budget);
        self
    }

    /// How long an aborted child may take to end before it is reported as one that would not stop. A child that is a supervisor has
    /// its own.
    ///
    /// An abort takes effect when the runtime comes to it. Zero would blame every child for that, and is refused when the supervisor is
    /// started.
    pub fn with_abort_grace(mut self, grace: Duration) -> Self {
        self.config.abort_grace = grace;
        self
    }

    /// How many children it may have, those in the specification and those added later together.
    pub fn with_max_children(mut self, most: usize) -> Self {
        self.config.max_children = Some(most);
        self
    }

    /// Makes the jitter of the backoff the same in each run.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.config.seed = Some(seed);
        self
    }

    /// Watches, from a thread of its own, for polls that block a thread of the runtime for longer than `limit`: see
    /// [`Handle::stalls`] and [`EventKind::Stalled`](crate::EventKind::Stalled). For the supervisor at the root; below, it has no effect.
    ///
    /// It wakes the runtime a few times per `limit` for a sign of life, and costs each poll of a worker about 50 ns. Zero is refused when
    /// the supervisor is started. A worker inside `tokio::task::block_in_place` counts as well: its thread is no longer the runtime's, which
    /// cannot be seen from outside. Where the system gives no thread for it, nothing is watched. Long work of that sort is better done by a [blocking](Child::blocking) child, which is not watched.
    pub fn with_watchdog(mut self, limit: Duration) -> Self {
        self.watchdog = Some(limit);
        self
    }

    /// Whether it can be made like this, with these children and all that is below them.
    fn check(&self, children: &[Child]) -> Result<(), ConfigError> {
        check_name("supervisor.name", &self.config.name)?;
        self.config.intensity.check()?;
        if self.watchdog.is_some_and(|limit| limit.is_zero()) {
            return Err(ConfigError::new("watchdog", "0ns", "longer than zero"));
        }
        if self.config.stop_budget.is_some_and(|budget| budget.is_zero()) {
            return Err(ConfigError::new("stop_budget", "0ns", "longer than zero"));
        }
        if self.config.abort_grace.is_zero() {
            return Err(ConfigError::new("abort_grace", "0ns", "longer than zero"));
        }
        let there = children.len();
        if let Some(limit) = self.config.max_children.filter(|most| there > *most) {
            return Err(ConfigError::new(
                "max_children",
                limit,
                format_args!("at least the {there} there are"),
            ));
        }
        let mut names = HashSet::with_capacity(there);
        for child in children {
            child.check(self.config.auto_shutdown)?;
            if !names.insert(&child.name) {
                let expected = format_args!("a name of its own; it is there twice in `{}`", self.config.name);
                return Err(ConfigError::new("child.name", &child.name, expected));
            }
        }
        Ok(())
    }

    /// Makes it, from a specification that has been checked.
    pub(crate) fn prepare(&self, children: Vec<Child>, above: Option<Context>) -> (Handle, Runner) {
        let there = children.len();
        let (mut core, now) = (Core::new(self.config.clone(), there, fastrand::u64(..)), Instant::now());
        let prepare = |child: &Child| core.prepare(now, Arc::clone(&child.name), Arc::clone(&child.rules));
        let keys: Vec<_> = children.iter().map(prepare).collect();
        let watchdog = self.watchdog.map(Watchdog::new);
        let (shared, inbox) = Shared::new(Arc::clone(&self.config.name), core, above.as_ref(), watchdog);
        let mut runner = Runner::new(Arc::clone(&shared), inbox, above, there);
        for (key, child) in keys.into_iter().zip(children) {
            runner.adopt(key, child);
        }
        (Handle::new(shared), runner)
    }

    /// Starts it and returns at once, while its children are being started one after the other.
    ///
    /// # Errors
    ///
    /// When it cannot be made like this; nothing is started then.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub fn spawn(mut self) -> Result<Running, ConfigError> {
        let children = std::mem::take(&mut self.children);
        self.check(&children)?;
        let (handle, runner) = self.prepare(children, None);
        tokio::spawn(runner.run());
        Ok(Running::new(handle))
    }

    /// Starts it and waits until all its children are up.
    ///
    /// # Errors
    ///
    /// When it cannot be made like this, or a child did not start. Nothing of it runs any more then, but for what would not stop: where that
    /// matters, [`spawn`](Self::spawn), [`ready`](Handle::ready) and [`wait`](Handle::wait) give the report.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    ///
    /// # Cancel safety
    ///
    /// Dropped, what has been started is stopped again.
    pub async fn start(self) -> Result<Running, StartError> {
        let running = self.spawn()?;
        running.ready().await?;
        Ok(running)
    }

    /// Makes a child of it, named as it is. The child is up when all *its* children are.
    ///
    /// Each start makes it anew from this specification: what was added to it at run time is gone after a restart, and so is what earlier
    /// handles lead to (see [`Handle::supervisor`]). It reads its own intensity, watches its own children, and shares the root's events and
    /// watchdog.
    ///
    /// It is [waited for](Shutdown::Wait) when it is stopped. With a time-out instead, what is left below is aborted then, asked or not: a
    /// shorter [stop budget](Self::with_stop_budget) of its own asks first. When it gives up, it has failed
    /// ([`Exit::MeltedDown`](crate::Exit::MeltedDown)), and its own parent restarts it as its restart says; unlike in OTP, that holds for
    /// transient ones too.
    pub fn into_child(self) -> Child {
        let name = Arc::clone(&self.config.name);
        let mut child = Child::launching(name, Arc::new(Nested(self)));
        let rules = child.rules();
        rules.supervisor = true;
        rules.mute = true;
        rules.shutdown = Shutdown::Wait;
        rules.readiness = Some(Duration::MAX);
        child
    }
}

/// Runs a supervisor as a child.
struct Nested(Supervisor);

impl Launch for Nested {
    fn check(&self) -> Result<(), ConfigError> {
        self.0.check(&self.0.children)
    }

    fn launch(self: Arc<Self>, ctx: Context, guard: Guard) -> Option<AbortHandle> {
        let (handle, runner) = self.0.prepare(self.0.children.clone(), Some(ctx.clone()));
        ctx.run.shared.nest(ctx.run.key, Nest::Supervisor(handle));
        Some(spawn(async move { runner.run().await.exit() }, guard))
    }
}
