//! The pure core: no async, no clock, no tasks. Commands, exits and instants go in; [`Action`]s come out.
//!
//! # States of a child
//!
//! | from | on | to |
//! |---|---|---|
//! | `Waiting` | its turn | `Starting`, or `Running` if it does not report readiness |
//! | `Starting` | ready | `Running` |
//! | `Starting`, `Running` | told to stop, readiness or heartbeat overdue | `Stopping` |
//! | `Starting`, `Running` | exit during a sequence | `Exited`, judged when the sequence ends |
//! | `Starting`, `Running` | exit | `Restarting`, `Stopped`, or forgotten |
//! | `Restarting` | delay over | as `Waiting` |
//! | `Stopping` | exit | `Waiting` (it is started again), `Restarting`, `Stopped`, or forgotten |
//!
//! # Invariants
//!
//! 1. A child is started only when it is not alive: no child runs twice at once.
//! 2. Outside a pool at most one child is being started or stopped by a sequence at any time (`current`), until the
//!    budget of a stop is nearly over or it is forced.
//! 3. Each command is answered exactly once.
//! 4. The word of a run that is over (another epoch) changes nothing.

mod action;
mod children;
mod command;
mod fall;
mod sequence;
mod stop;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use action::{Action, Note};
pub(crate) use children::{Child, Children, Key};
pub(crate) use command::{Answer, CommandId, Verb};
use timers::Timers;

use crate::intensity::Window;
use crate::spec::{AutoShutdown, Restart, Rules, Strategy};
use crate::{Cause, CommandError, Exit, Health, Intensity, Shutdown, Snapshot, SupervisorState as Phase};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its turn to be started has not come.
    Waiting,
    Starting,
    Running,
    /// It fell, and waits for its delay to pass or for its turn.
    Restarting,
    Stopping {
        why: Why,
        stage: Stage,
    },
    /// It has ended during a sequence that is still going on.
    Exited(End),
    Stopped,
}

impl State {
    pub(crate) const fn is_alive(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Stopping { .. })
    }

    const fn is_stuck(self) -> bool {
        matches!(self, Self::Stopping { stage: Stage::Stuck, .. })
    }
}

/// What happens to a child after it has been stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// It is stopped with others, and started again with them unless all is stopped.
    Sequence,
    /// Told by name: it stays stopped.
    Keep,
    /// Told by name: it is forgotten.
    Remove,
    /// Told by name: it is started again.
    Restart,
    /// It was not ready in time.
    NotReady,
    /// It missed a heartbeat.
    Unhealthy,
    /// It is a supervisor that has ended by itself, but for what it has leaked.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Asked,
    Aborted,
    /// Aborted, and still there: it blocks its thread.
    Stuck,
}

/// How a run ended, as far as the decision goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Normal,
    Abnormal,
}

impl End {
    pub(crate) const fn of(exit: &Exit) -> Self {
        if exit.is_normal() { Self::Normal } else { Self::Abnormal }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) name: Arc<str>,
    pub(crate) strategy: Strategy,
    pub(crate) intensity: Intensity,
    pub(crate) auto_shutdown: AutoShutdown,
    pub(crate) stop_budget: Option<Duration>,
    pub(crate) abort_grace: Duration,
    pub(crate) max_children: Option<usize>,
    pub(crate) seed: Option<u64>,
}

/// Children that are down and will be started together.
#[derive(Clone, Copy, Debug)]
struct Group {
    /// From this place in the order on.
    first: u64,
    due: Instant,
}

#[derive(Debug)]
enum Deferred {
    Exit { key: Key, epoch: u64 },
    Command { id: CommandId, verb: Verb, name: Arc<str> },
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) children: Children,
    phase: Phase,
    pub(crate) cause: Option<Cause>,
    /// Since when all is being stopped.
    pub(crate) down_since: Option<Instant>,
    /// Those that had to be aborted while all was being stopped.
    pub(crate) aborted: Vec<Arc<str>>,
    /// What failed below a child meanwhile.
    pub(crate) failed: Vec<(Arc<str>, Exit)>,
    pub(crate) actions: Vec<Action>,
    /// The sequence: first these are stopped from the end on, then those are started from the front on; `current` is
    /// being waited for.
    stops: Vec<Key>,
    starts: VecDeque<Key>,
    current: Option<Key>,
    group: Option<Group>,
    deferred: VecDeque<Deferred>,
    timers: Timers,
    window: Window,
    alive: usize,
    stuck: usize,
    /// Children of a pool whose first start is not through.
    unready: usize,
    budget_ends: Option<Instant>,
    /// When all that is left is asked to end, so that nobody is aborted unasked.
    hurries: Option<Instant>,
    forced: bool,
    epochs: u64,
    random: u64,
}

impl Core {
    /// With room for `children`; `random` is what its jitter comes from, unless there is a seed.
    pub(crate) fn new(config: Config, children: usize, random: u64) -> Self {
        Self {
            window: Window::new(config.intensity),
            random: config.seed.unwrap_or(random),
            config,
            children: Children::with_capacity(children),
            phase: Phase::Starting,
            cause: None,
            down_since: None,
            aborted: Vec::new(),
            failed: Vec::new(),
            actions: Vec::new(),
            stops: Vec::new(),
            starts: VecDeque::new(),
            current: None,
            group: None,
            deferred: VecDeque::new(),
            timers: Timers::default(),
            alive: 0,
            stuck: 0,
            unready: 0,
            budget_ends: None,
            hurries: None,
            forced: false,
            epochs: 0,
        }
    }

    /// Adds a child before the start.
    pub(crate) fn prepare(&mut self, now: Instant, name: Arc<str>, rules: Arc<Rules>) -> Key {
        let key = self.children.push(name, rules, now).expect("each name is there once");
        self.starts.push_back(key);
        key
    }

    /// Starts the children there are.
    pub(crate) fn start(&mut self, now: Instant) {
        self.advance(now);
    }

    /// A child says that it is ready.
    pub(crate) fn ready(&mut self, now: Instant, key: Key, epoch: u64) {
        let Some(child) = self.children.get_mut(key) else { return };
        if child.epoch == epoch && child.state == State::Starting {
            self.up(now, key);
            self.first_start_over();
            if self.current == Some(key) {
                self.current = None;
            }
            self.advance(now);
        }
    }

    /// Whether a run is still going on.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive > 0
    }

    /// All is being stopped, and that is not over.
    pub(crate) fn is_stopping(&self) -> bool {
        self.phase == Phase::Stopping
    }

    fn is_down(&self) -> bool {
        matches!(self.phase, Phase::Stopping | Phase::Stopped)
    }

    /// What a child says of its health; whether that is new.
    pub(crate) fn health(&mut self, key: Key, epoch: u64, health: Health) -> bool {
        let child = self.children.get_mut(key).filter(|c| c.epoch == epoch && c.state.is_alive());
        let Some(child) = child else { return false };
        let health = match health {
            Health::Healthy => None,
            Health::Degraded(why) => Some(why),
        };
        let new = child.health != health;
        child.health = health;
        new
    }

    /// When a child last beat its heart: what a [`Action::Listen`] asks for.
    pub(crate) fn beat(&mut self, now: Instant, key: Key, epoch: u64, last: Instant) {
        let Some(child) = self.children.get_mut(key) else { return };
        let Some(within) =
            child.rules.heartbeat.filter(|_| child.epoch == epoch && child.state == State::Running)
        else {
            return;
        };
        match last.max(child.since).checked_add(within) {
            Some(due) if due <= now => {
                self.begin_stop(now, key, Why::Unhealthy);
                self.advance(now);
            }
            due => self.set_due(key, due),
        }
    }

    /// The next instant at which [`tick`](Self::tick) has something to do.
    pub(crate) fn next_due(&mut self) -> Option<Instant> {
        let group = if self.current.is_none() { self.group.map(|group| group.due) } else { None };
        let timers = match self.phase {
            Phase::Stopped => None,
            // The time-outs of all children die one by one: to clear them out one by one would cost more than the stop.
            Phase::Stopping => self.timers.peek(),
            Phase::Starting | Phase::Running => self.timers.next(&self.children),
        };
        [timers, group, self.hurries, self.budget_ends].into_iter().flatten().min()
    }

    /// Those that did not end even when aborted.
    pub(crate) fn leaked(&self) -> Vec<(Key, Arc<str>)> {
        let stuck = self.children.iter().filter(|(_, child)| child.state.is_stuck());
        stuck.map(|(key, child)| (key, Arc::clone(&child.name))).collect()
    }

    /// The supervisor and its children as they are. `each` is told who they are; what is below them is for the caller to add.
    pub(crate) fn snapshot(&self, now: Instant, mut each: impl FnMut(usize, Key)) -> Snapshot {
        let group = self.group.map(|group| group.due);
        let children = self.children.iter().enumerate().map(|(index, (key, child))| {
            each(index, key);
            child.snapshot(now, group)
        });
        let children = children.collect();
        let Config { name, strategy, .. } = &self.config;
        Snapshot { name: Arc::clone(name), strategy: *strategy, state: self.phase, children }
    }

    /// Does what is due by `now`.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.hurries.is_some_and(|at| at <= now) {
            self.hurry(now);
        }
        if self.budget_ends.is_some_and(|at| at <= now) {
            self.abort_all(now);
        }
        while let Some(key) = self.timers.pop(&self.children, now) {
            self.due(now, key);
        }
        self.advance(now);
    }

    fn due(&mut self, now: Instant, key: Key) {
        let Some(child) = self.children.get_mut(key) else { return };
        child.due = None;
        match child.state {
            State::Restarting => self.starts.push_back(key),
            State::Starting => self.begin_stop(now, key, Why::NotReady),
            State::Running => {
                let epoch = child.epoch;
                self.actions.push(Action::Listen { key, epoch });
            }
            State::Stopping { stage: Stage::Asked, .. } => self.abort(now, key),
            State::Stopping { why, stage: Stage::Aborted } => {
                child.state = State::Stopping { why, stage: Stage::Stuck };
                self.stuck += 1;
                self.note(key, Note::Stuck);
                self.is_stuck(now, key, why);
            }
            _ => {}
        }
    }

    fn first_start_over(&mut self) {
        if self.is_pool() && self.phase == Phase::Starting {
            self.unready -= 1;
        }
    }

    /// Whether exits and commands wait for the end of a sequence.
    fn is_busy(&self) -> bool {
        self.phase == Phase::Starting
            || self.current.is_some()
            || !self.stops.is_empty()
            || !self.starts.is_empty()
    }

    fn is_pool(&self) -> bool {
        self.config.strategy == Strategy::Pool
    }

    fn set_due(&mut self, key: Key, at: Option<Instant>) {
        let Some(child) = self.children.get_mut(key) else { return };
        child.due = at;
        let epoch = child.epoch;
        if let Some(at) = at {
            self.timers.push(&self.children, at, key, epoch);
        }
    }

    fn note(&mut self, key: Key, note: Note) {
        self.actions.push(Action::Note { key, note });
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014), as a fraction.
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
