use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::shared::{Halt, Message, Nest, Reply, Shared};
use crate::state::Verb;
use crate::{Cause, Child, CommandError, Events, Report, Snapshot, Stalls, StartError};

/// A handle to a running supervisor, to ask and command it. Cheap to clone; it does not keep the supervisor running.
///
/// Questions are answered at once, whatever the supervisor is doing. Commands are carried out one after the other,
/// after the sequence of starts or stops that is going on; where the restart of a group waits for a child that would not stop, they are
/// refused ([`CommandError::Blocked`], and [`CommandError::WouldNotStop`] for that child). Up to 1,024 wait in their queue, those among them
/// whose callers have gone; the next wait for a place in it, in order.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(crate) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The supervisor's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The whole tree from here on, as it is now. Never waits.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let nested = self.shared.nested().clone();
        let mut below = Vec::new();
        let mut snapshot = self.shared.core().snapshot(Instant::now(), |index, key| {
            below.extend(nested.get(&key).and_then(Nest::supervisor).map(|handle| (index, handle)));
        });
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
        self.shared.nested().get(&key).and_then(Nest::supervisor).cloned()
    }

    async fn tell(&self, message: impl FnOnce(Reply) -> Message) -> Result<(), CommandError> {
        let places = &self.shared.places;
        // Where there is room, it is in the queue at once, however much of its time the task has spent.
        let place = match Arc::clone(places).try_acquire_owned() {
            Ok(place) => place,
            // Boxed, so that the others need no room for it.
            Err(_) => {
                Box::pin(Arc::clone(places).acquire_owned()).await.map_err(|_| CommandError::ShutDown)?
            }
        };
        let (answer, answered) = oneshot::channel();
        self.shared.send(message(Reply { answer, place: Some(place) }));
        answered.await.unwrap_or(Err(CommandError::ShutDown))
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
    /// Dropped before its first poll, nothing happens; later, the child is added all the same, unless the queue is full and it still waits for
    /// a place. If its start then fails, that is seen in the [events](Self::events) only ([`Exited`](crate::EventKind::Exited),
    /// [`Removed`](crate::EventKind::Removed)).
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
    /// As [`add`](Self::add): once it is in the queue, the command is carried out.
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
    /// restarted now. As with [`stop_child`](Self::stop_child) and [`add`](Self::add), its siblings' restarts wait meanwhile.
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
        self.shared.halt(Halt::Stop);
    }

    /// Asks all children that are still there to end, out of turn, and a moment later aborts those that have not, the last first: after the
    /// [abort grace](crate::Supervisor::with_abort_grace), or a second if that is shorter. Does not wait.
    pub fn force_stop(&self) {
        self.shared.halt(Halt::Force);
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
        report.map_or_else(|| Report::lost(&self.shared.name), |report| Report::clone(&report))
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
