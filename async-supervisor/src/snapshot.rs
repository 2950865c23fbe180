use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Strategy;

/// What a child is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ChildState {
    /// Its turn to be started has not come.
    Waiting,
    /// Started, and not yet ready.
    Starting,
    /// Up.
    Running,
    /// It fell, and waits for its restart: for its delay, or for its turn where another child is being started or stopped.
    Restarting,
    /// It has been told to end.
    Stopping,
    /// It has been aborted and has not ended: it blocks its thread.
    Stuck,
    /// It has ended, and is not restarted by itself.
    Stopped,
}

impl fmt::Display for ChildState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Stuck => "stuck",
            Self::Stopped => "stopped",
        })
    }
}

/// What a supervisor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum SupervisorState {
    /// Its children are being started for the first time.
    Starting,
    /// Up.
    Running,
    /// Its children are being stopped.
    Stopping,
    /// Over.
    Stopped,
}

impl fmt::Display for SupervisorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        })
    }
}

/// A supervisor and its children at one moment, in the order of starts.
///
/// `Display` draws the tree:
///
/// ```text
/// root (one_for_one) running
/// ├─ checkpoint  running     12s
/// └─ feed        restarting  in 1.5s  3 restarts  connection refused
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Snapshot {
    /// The supervisor's name.
    pub name: Arc<str>,
    /// Whom a fall restarts.
    pub strategy: Strategy,
    /// What it is doing.
    pub state: SupervisorState,
    /// Its children.
    pub children: Vec<ChildSnapshot>,
}

/// A child at one moment. As data, durations are text with units: `"1m 15s"`.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ChildSnapshot {
    /// Its name.
    pub name: Arc<str>,
    /// What it is doing.
    pub state: ChildState,
    /// How often it has been started.
    pub attempts: u64,
    /// How often it has been restarted after a fall of its own.
    pub restarts: u64,
    /// How long it has been up.
    #[cfg_attr(feature = "serde", serde(default, with = "humantime_serde"))]
    pub uptime: Option<Duration>,
    /// In how long it is restarted; `None` also while it waits for its turn.
    #[cfg_attr(feature = "serde", serde(default, with = "humantime_serde"))]
    pub next_restart: Option<Duration>,
    /// How it last failed.
    pub last_error: Option<Arc<str>>,
    /// Why it works less well than it should, as it says itself.
    pub degraded: Option<Arc<str>>,
    /// What is below it, if it is a supervisor.
    pub supervisor: Option<Snapshot>,
}

impl Snapshot {
    /// The child of this name, if it is there.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&ChildSnapshot> {
        self.children.iter().find(|child| &*child.name == name)
    }

    fn draw(&self, f: &mut fmt::Formatter<'_>, indent: &str) -> fmt::Result {
        let width = self.children.iter().map(|child| child.name.chars().count()).max().unwrap_or(0);
        for (index, child) in self.children.iter().enumerate() {
            let last = index + 1 == self.children.len();
            let branch = if last { "└─" } else { "├─" };
            let mut rest = String::new();
            child.draw_rest(&mut rest)?;
            write!(f, "\n{indent}{branch} {:width$}  ", child.name)?;
            match rest.as_str() {
                "" => write!(f, "{}", child.state)?,
                rest => write!(f, "{:10}{rest}", child.state)?,
            }
            if let Some(below) = &child.supervisor {
                below.draw(f, &format!("{indent}{}  ", if last { ' ' } else { '│' }))?;
            }
        }
        Ok(())
    }
}

impl ChildSnapshot {
    fn draw_rest(&self, f: &mut impl fmt::Write) -> fmt::Result {
        if let Some(uptime) = self.uptime {
            write!(f, "  {}", Rough(uptime))?;
        }
        if let Some(wait) = self.next_restart {
            write!(f, "  in {}", Rough(wait))?;
        }
        match self.restarts {
            0 => {}
            1 => f.write_str("  1 restart")?,
            n => write!(f, "  {n} restarts")?,
        }
        if let Some(why) = &self.degraded {
            write!(f, "  degraded: {why}")?;
        }
        if let Some(error) = &self.last_error {
            write!(f, "  {error}")?;
        }
        match &self.supervisor {
            Some(below) => write!(f, "  ({})", below.strategy),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) {}", self.name, self.strategy, self.state)?;
        self.draw(f, "")
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneForOne => "one_for_one",
            Self::OneForAll => "one_for_all",
            Self::RestForOne => "rest_for_one",
            Self::Pool => "pool",
        })
    }
}

/// A duration for people: no finer than a millisecond, unless it is shorter.
pub(crate) fn whole(duration: Duration) -> Duration {
    match u64::try_from(duration.as_millis()) {
        Ok(0) | Err(_) => duration,
        Ok(ms) => Duration::from_millis(ms),
    }
}

/// A duration for people: two units at most.
struct Rough(Duration);

impl fmt::Display for Rough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.as_secs();
        match s {
            0..10 => write!(f, "{}.{}s", s, self.0.subsec_millis() / 100),
            10..60 => write!(f, "{s}s"),
            60..3600 => write!(f, "{}m{:02}s", s / 60, s % 60),
            3600..86400 => write!(f, "{}h{:02}m", s / 3600, s % 3600 / 60),
            _ => write!(f, "{}d{:02}h", s / 86400, s % 86400 / 3600),
        }
    }
}
