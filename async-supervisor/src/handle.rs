use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::Run;
use crate::event::Hub;
use crate::poll;
use crate::state::{Core, Key, Phase, Stage, State, Verb};
use crate::watchdog::Watchdog;
use crate::worker::{bury, shielded};
use crate::{
    Cause, Child, ChildSnapshot, ChildState, CommandError, Event, EventKind, Events, Exit, Report, Snapshot,
    Stalls, StartError, Strategy, SupervisorState, TaskFailure,
};

/// What the supervisor's loop is told.
pub(crate) enum Message {
    Exit {
        key: Key,
        epoch: u64,
        exit: Exit,
        text: Option<Arc<str>>,
    },
    Ready {
        key: Key,
        epoch: u64,
    },
    /// There is news of the health in the run.
    Health(Arc<Run>),
    /// A supervisor below is over, but for what it has leaked.
    Leaking {
        key: Key,
        epoch: u64,
        exit: Exit,
    },
    Add {
        child: Child,
        reply: Reply,
    },
    Command {
        verb: Verb,
        name: Arc<str>,
        reply: Reply,
    },
    Stop,
    /// The time of the stop above is nearly over.
    Hurry,
    Force,
    /// What went wrong in the stop of a supervisor below.
    Below(Below),
}

#[derive(Default)]
pub(crate) struct Below {
    pub(crate) aborted: Vec<Arc<str>>,
    pub(crate) failed: Vec<(Arc<str>, Exit)>,
}

pub(crate) type Reply = oneshot::Sender<Result<(), CommandError>>;

/// How far a supervisor has come.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// All children of the first start were up.
    pub(crate) up: bool,
    pub(crate) over: Option<Arc<Report>>,
}

/// Where a supervisor stands in its tree.
pub(crate) struct Place {
    pub(crate) above: Option<Arc<Shared>>,
    pub(crate) stop: CancellationToken,
    pub(crate) hub: Arc<Hub>,
    pub(crate) watchdog: Option<Arc<Watchdog>>,
}

/// What the loop, the handles and the contexts share.
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    /// The names from the root on.
    pub(crate) path: Arc<str>,
    pub(crate) strategy: Strategy,
    /// Held for a few lines at a time; no code of a user's runs under it.
    core: Mutex<Core>,
    messages: mpsc::UnboundedSender<Message>,
    above: Weak<Shared>,
    pub(crate) stop: CancellationToken,
    pub(crate) progress: watch::Sender<Progress>,
    nested: Mutex<HashMap<Key, Handle>>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) watchdog: Option<Arc<Watchdog>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(
        name: Arc<str>,
        strategy: Strategy,
        core: Core,
        place: Place,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Message>) {
        let (messages, inbox) = mpsc::unbounded_channel();
        let path = match &place.above {
            Some(above) => format!("{}/{name}", above.path).into(),
            None => Arc::clone(&name),
        };
        let shared = Self {
            name,
            path,
            strategy,
            core: Mutex::new(core),
            messages,
            above: place.above.as_ref().map_or_else(Weak::new, Arc::downgrade),
            stop: place.stop,
            progress: watch::Sender::new(Progress::default()),
            nested: Mutex::default(),
            hub: place.hub,
            watchdog: place.watchdog,
        };
        (Arc::new(shared), inbox)
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        // Each step of the core leaves it whole, or panics for good.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn nested(&self) -> MutexGuard<'_, HashMap<Key, Handle>> {
        self.nested.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Aborts what is below a child, if that is a supervisor.
    pub(crate) fn force_below(&self, key: Key) -> bool {
        let nested = self.nested();
        let below = if nested.is_empty() { None } else { nested.get(&key) };
        below.inspect(|handle| handle.force_stop()).is_some()
    }

    /// Asks all that is below a child to end, if that is a supervisor.
    pub(crate) fn hurry_below(&self, key: Key) {
        if let Some(handle) = self.nested().get(&key) {
            handle.shared.send(Message::Hurry);
        }
    }

    /// Lets go of a child that is a supervisor.
    pub(crate) fn forget(&self, key: Key) {
        let mut nested = self.nested();
        let gone = if nested.is_empty() { None } else { nested.remove(&key) };
        drop(nested);
        drop(gone);
    }

    /// Who would not stop and is still there, here and below.
    pub(crate) fn leaked(&self) -> Vec<Arc<str>> {
        let stuck = self.core().leaked();
        let mut leaked = Vec::new();
        for (key, name) in stuck {
            let below = self.nested().get(&key).cloned();
            let below = below.map_or_else(Vec::new, |below| below.shared.leaked());
            leaked.extend(below.iter().map(|child| Arc::from(format!("{name}/{child}"))));
            if below.is_empty() {
                leaked.push(name);
            }
        }
        leaked
    }

    /// Tells the parent, if there is one, what went wrong in the stop.
    pub(crate) fn tell_above(&self, report: &Report) {
        let Some(above) = self.above.upgrade() else { return };
        let named = |child: &Arc<str>| Arc::from(format!("{}/{child}", self.name));
        above.send_now(Message::Below(Below {
            aborted: report.aborted.iter().map(named).collect(),
            failed: report.failed.iter().map(|(child, exit)| (named(child), exit.clone())).collect(),
        }));
    }

    /// A tracked task of a child failed.
    pub(crate) fn task_failed(&self, run: &Run, text: Arc<str>, failure: TaskFailure) {
        let TaskFailure { task, exit } = failure;
        let name = format!("{}/{task}", run.name).into();
        self.core().task_failed(run.key, run.epoch, text, name, exit.clone());
        let child = Arc::clone(&run.name);
        let kind = EventKind::TaskFailed { child, task, exit };
        self.hub.emit(Event { supervisor: Arc::clone(&self.path), kind });
    }

    pub(crate) fn is_root(&self) -> bool {
        self.above.strong_count() == 0
    }

    /// Tells those that wait for the start.
    pub(crate) fn is_up(&self) {
        shielded(|| self.progress.send_modify(|progress| progress.up = true));
    }

    /// Tells those that wait for the end.
    pub(crate) fn is_over(&self, report: &Arc<Report>) {
        shielded(|| self.progress.send_modify(|progress| progress.over = Some(Arc::clone(report))));
    }

    /// After the end of the supervisor there is nobody to tell.
    pub(crate) fn send_now(&self, message: Message) {
        bury(self.messages.send(message));
    }

    /// As [`send_now`](Self::send_now), and it is heard even if the worker that is being polled in this thread blocks it from now on.
    pub(crate) fn send(&self, message: Message) {
        self.send_now(message);
        poll::let_go();
    }
}

/// A handle to a running supervisor, to ask and command it. Cheap to clone; it does not keep the supervisor running.
///
/// Questions are answered at once, whatever the supervisor is doing. Commands are carried out one after the other,
/// after the sequence of starts or stops that is going on; where the restart of a group waits for a child that would not stop, they are
/// refused ([`CommandError::Blocked`], and [`CommandError::WouldNotStop`] for that child).
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The supervisor's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The whole tree from here on, as it is now. Never waits.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (mut snapshot, below) = self.shared.snapshot(Instant::now());
        // One supervisor after the other, each under its own lock only.
        for (index, handle) in below {
            snapshot.children[index].supervisor = Some(handle.snapshot());
        }
        snapshot
    }

    /// The events of the whole tree this supervisor is in, from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared.hub.subscribe()
    }

    /// What the [watchdog](crate::Supervisor::with_watchdog) has seen; `None` without one. It answers from any thread, also
    /// while the runtime is blocked.
    #[must_use]
    pub fn stalls(&self) -> Option<Stalls> {
        self.shared.watchdog.as_ref().map(|dog| dog.stalls())
    }

    /// The handle of a child that is a supervisor; `None` if there is no such child, or it has not been started yet.
    ///
    /// It leads to this run of it: after a restart it answers [`ShutDown`](CommandError::ShutDown), and children that had been added are
    /// gone. Ask for it each time, and let the children that must survive be in the specification.
    #[must_use]
    pub fn supervisor(&self, name: &str) -> Option<Handle> {
        let key = self.shared.core().children.find(name)?;
        self.shared.nested().get(&key).cloned()
    }

    async fn tell(&self, message: impl FnOnce(Reply) -> Message) -> Result<(), CommandError> {
        let (reply, answer) = oneshot::channel();
        self.shared.send(message(reply));
        answer.await.unwrap_or(Err(CommandError::ShutDown))
    }

    async fn command(&self, verb: Verb, name: &str) -> Result<(), CommandError> {
        self.tell(|reply| Message::Command { verb, name: name.into(), reply }).await
    }

    /// Adds a child at the end of the order, starts it in its turn, and waits until it is up.
    ///
    /// Starts are sequential: until a newcomer with [readiness](Child::with_readiness) is up, no sibling that falls is restarted, unless the
    /// supervisor is a [pool](crate::Supervisor::pool).
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](CommandError::AlreadyExists), [`LimitReached`](CommandError::LimitReached),
    /// [`Config`](CommandError::Config), [`ShutDown`](CommandError::ShutDown): it was not started.
    /// [`StartFailed`](CommandError::StartFailed): it ended before it was ready, and is forgotten again.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its first poll, nothing happens; later, the child is added all the same. If its start then fails, that is seen in the
    /// [events](Self::events) only ([`Exited`](EventKind::Exited), [`Removed`](EventKind::Removed)).
    pub async fn add(&self, child: Child) -> Result<(), CommandError> {
        self.tell(|reply| Message::Add { child, reply }).await
    }

    /// Stops a child and keeps it in the books, where [`start_child`](Self::start_child) finds it (OTP's `terminate_child`). A
    /// temporary child is forgotten. A child that is stopped already stays so.
    ///
    /// Not a fall: nothing is counted or restarted. But the restart of a group starts a stopped child of the group too, as in OTP. Until it
    /// has ended, no sibling that falls is restarted, unless the supervisor is a [pool](crate::Supervisor::pool).
    ///
    /// # Errors
    ///
    /// [`NotFound`](CommandError::NotFound), [`Stopping`](CommandError::Stopping) if another command is stopping it,
    /// [`WouldNotStop`](CommandError::WouldNotStop), [`ShutDown`](CommandError::ShutDown).
    ///
    /// # Cancel safety
    ///
    /// As [`add`](Self::add): once polled, the command is carried out.
    pub async fn stop_child(&self, name: &str) -> Result<(), CommandError> {
        self.command(Verb::Stop, name).await
    }

    /// Starts a stopped child (OTP's `restart_child`), and waits until it is up.
    ///
    /// # Errors
    ///
    /// [`NotFound`](CommandError::NotFound), [`Running`](CommandError::Running), [`Restarting`](CommandError::Restarting),
    /// [`StartFailed`](CommandError::StartFailed) (it stays stopped, a permanent one too), [`ShutDown`](CommandError::ShutDown).
    ///
    /// # Cancel safety
    ///
    /// As [`add`](Self::add).
    pub async fn start_child(&self, name: &str) -> Result<(), CommandError> {
        self.command(Verb::Start, name).await
    }

    /// Stops a child if it runs and starts it again, without a delay, and waits until it is up. One that waits for its restart is
    /// restarted now.
    ///
    /// # Errors
    ///
    /// As [`stop_child`](Self::stop_child) and [`StartFailed`](CommandError::StartFailed): the child stays stopped then, a permanent one
    /// too, since whoever asked for the start knows that it failed; [`start_child`](Self::start_child) tries again. A failure
    /// after it was ready (without [readiness](Child::with_readiness): any) is a fall like all others, and restarted.
    ///
    /// # Cancel safety
    ///
    /// As [`add`](Self::add).
    pub async fn restart_child(&self, name: &str) -> Result<(), CommandError> {
        self.command(Verb::Restart, name).await
    }

    /// Forgets a stopped child (OTP's `delete_child`).
    ///
    /// # Errors
    ///
    /// [`NotFound`](CommandError::NotFound), [`Running`](CommandError::Running), [`Restarting`](CommandError::Restarting),
    /// [`ShutDown`](CommandError::ShutDown).
    ///
    /// # Cancel safety
    ///
    /// As [`add`](Self::add).
    pub async fn delete_child(&self, name: &str) -> Result<(), CommandError> {
        self.command(Verb::Delete, name).await
    }

    /// Stops a child if it runs, and forgets it.
    ///
    /// # Errors
    ///
    /// As [`stop_child`](Self::stop_child).
    ///
    /// # Cancel safety
    ///
    /// As [`add`](Self::add).
    pub async fn remove_child(&self, name: &str) -> Result<(), CommandError> {
        self.command(Verb::Remove, name).await
    }

    /// Asks the supervisor to stop: all children, in reverse order. Does not wait.
    pub fn request_stop(&self) {
        self.shared.send(Message::Stop);
    }

    /// Aborts all children that are still there, at once. Does not wait.
    pub fn force_stop(&self) {
        self.shared.send(Message::Force);
    }

    /// Stops the supervisor and waits until it is over; a second call waits for the same end. A worker of this supervisor should
    /// rather [request](Self::request_stop) it, since it is itself waited for.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the stop goes on.
    pub async fn stop(&self) -> Report {
        self.request_stop();
        self.wait().await
    }

    /// Waits until the supervisor is over.
    ///
    /// # Cancel safety
    ///
    /// Dropping it has no effect.
    pub async fn wait(&self) -> Report {
        let mut progress = self.shared.progress.subscribe();
        let over = progress.wait_for(|progress| progress.over.is_some()).await;
        let report = over.ok().and_then(|progress| progress.over.clone());
        report.map_or_else(|| self.shared.lost(), |report| Report::clone(&report))
    }

    /// Waits until all children of the first start are up, or have been: also where the supervisor is over by now, because its work was
    /// done, say.
    ///
    /// # Errors
    ///
    /// [`StartError::Child`] if one of them did not start, [`StartError::Stopped`] if the supervisor was stopped before.
    ///
    /// # Cancel safety
    ///
    /// Dropping it has no effect.
    pub async fn ready(&self) -> Result<(), StartError> {
        let mut progress = self.shared.progress.subscribe();
        let on = progress.wait_for(|progress| progress.up || progress.over.is_some()).await;
        let Ok(on) = on else { return Err(StartError::Stopped) };
        match on.over.as_deref().map(|report| &report.cause) {
            _ if on.up => Ok(()),
            Some(Cause::MeltedDown(down)) => Err(StartError::Child(down.clone())),
            _ => Err(StartError::Stopped),
        }
    }
}

impl Shared {
    pub(crate) fn lost(&self) -> Report {
        Report {
            supervisor: Arc::clone(&self.name),
            cause: Cause::Lost,
            aborted: Vec::new(),
            leaked: Vec::new(),
            failed: Vec::new(),
            took: Duration::ZERO,
        }
    }

    /// This supervisor alone, and which of its children are supervisors.
    fn snapshot(&self, now: Instant) -> (Snapshot, Vec<(usize, Handle)>) {
        let nested = self.nested().clone();
        let mut below = Vec::new();
        let core = self.core();
        let group = core.group_due();
        let children = core.children.iter().enumerate().map(|(index, (key, child))| {
            below.extend(nested.get(&key).map(|handle| (index, handle.clone())));
            let since = now.saturating_duration_since(child.since);
            let left = |at: Instant| at.saturating_duration_since(now);
            let (state, uptime, next_restart) = match child.state {
                State::Waiting => (ChildState::Waiting, None, group.map(left)),
                State::Starting => (ChildState::Starting, None, None),
                State::Running => (ChildState::Running, Some(since), None),
                State::Restarting => {
                    (ChildState::Restarting, None, Some(child.due.or(group).map_or(Duration::ZERO, left)))
                }
                State::Stopping { stage: Stage::Stuck, .. } => (ChildState::Stuck, None, None),
                State::Stopping { .. } => (ChildState::Stopping, None, None),
                State::Exited(end) if child.is_restarted_after(end) => (ChildState::Restarting, None, None),
                State::Exited(_) | State::Stopped => (ChildState::Stopped, None, None),
            };
            ChildSnapshot {
                name: Arc::clone(&child.name),
                state,
                attempts: child.attempts,
                restarts: child.restarts,
                uptime,
                next_restart,
                last_error: child.last_error.clone(),
                degraded: child.health.clone(),
                supervisor: None,
            }
        });
        let snapshot = Snapshot {
            name: Arc::clone(&self.name),
            strategy: self.strategy,
            children: children.collect(),
            state: match core.phase {
                Phase::Starting => SupervisorState::Starting,
                Phase::Up => SupervisorState::Running,
                Phase::Down => SupervisorState::Stopping,
                Phase::Ended => SupervisorState::Stopped,
            },
        };
        (snapshot, below)
    }
}

/// A running supervisor, and the one that keeps it running: when this is dropped, it is asked to stop.
///
/// It has all that a [`Handle`] has.
#[must_use = "dropping it stops the supervisor"]
#[derive(Debug)]
pub struct Running {
    handle: Handle,
}

impl Running {
    pub(crate) const fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// A handle that can be cloned and does not keep the supervisor running.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Deref for Running {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.request_stop();
    }
}
