use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::context::{Beat, Run};
use crate::event::{Event, EventKind};
use crate::handle::{Below, Message, Progress, Reply, Shared};
use crate::state::{Action, Answer, CommandId, End, Ending, Key, Note, Phase};
use crate::watchdog::Leash;
use crate::worker::{Launch, bury};
use crate::{Cause, Child, CommandError, Context, Exit, MeltDown, Report};

/// Reports the end of a run to the supervisor, exactly once, however it ends.
pub(crate) struct Guard {
    run: Option<Arc<Run>>,
}

impl Guard {
    pub(crate) const fn run(&self) -> Option<&Arc<Run>> {
        self.run.as_ref()
    }

    pub(crate) fn ended(&mut self, exit: Exit) {
        let Some(run) = self.run.take() else { return };
        run.token.cancel();
        let text = exit.text();
        run.shared.send_now(Message::Exit { key: run.key, epoch: run.epoch, exit, text });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.ended(Exit::Aborted);
    }
}

/// A child's specification, and its current run.
struct Unit {
    name: Arc<str>,
    launch: Arc<dyn Launch>,
    heartbeat: Option<Duration>,
    readiness: bool,
    run: Option<(Arc<Run>, Option<AbortHandle>)>,
}

/// A command that has not been answered, and the child that came with it.
struct Asked {
    reply: Reply,
    name: Arc<str>,
    child: Option<Child>,
}

/// The loop of one supervisor: the only one that moves its core.
pub(crate) struct Runner {
    shared: Arc<Shared>,
    inbox: UnboundedReceiver<Message>,
    units: Vec<Option<Unit>>,
    /// Who waits for the answer to a command, and the child it is about. A place is used again after the answer.
    replies: Vec<Option<Asked>>,
    free: Vec<CommandId>,
    actions: Vec<Action>,
    check: crate::AutoShutdown,
    most: usize,
    below: Below,
    ended: bool,
}

const BATCH: usize = 256;

impl Runner {
    pub(crate) fn new(
        shared: Arc<Shared>,
        inbox: UnboundedReceiver<Message>,
        children: usize,
        check: crate::AutoShutdown,
        most: usize,
    ) -> Self {
        Self {
            shared,
            inbox,
            units: Vec::with_capacity(children),
            replies: Vec::new(),
            free: Vec::new(),
            actions: Vec::new(),
            check,
            most,
            below: Below::default(),
            ended: false,
        }
    }

    pub(crate) fn adopt(&mut self, key: Key, child: Child) {
        let index = key.0 as usize;
        if index >= self.units.len() {
            self.units.resize_with(index + 1, || None);
        }
        self.units[index] = Some(Unit {
            heartbeat: child.rules.heartbeat,
            readiness: child.rules.readiness.is_some(),
            name: child.name,
            launch: child.launch,
            run: None,
        });
    }

    fn unit(&mut self, key: Key) -> Option<&mut Unit> {
        self.units.get_mut(key.0 as usize)?.as_mut()
    }

    /// Runs until all is over. Dropped before, it aborts all children.
    ///
    /// With `leaking`, what would not stop is waited for after the report: it is called first.
    pub(crate) async fn run(
        mut self,
        up: impl Fn() + Send,
        leaking: Option<impl FnOnce(&Report) + Send>,
    ) -> Arc<Report> {
        let shared = Arc::clone(&self.shared);
        let mut told = pin!(shared.stop.cancelled());
        let mut timer = pin!(sleep_until(Instant::now()));
        let mut armed = None;
        let mut heard = false;
        let mut batch = Vec::new();
        self.shared.core().start(Instant::now());
        let mut due = self.act(&up);
        while !self.ended {
            if due != armed {
                armed = due;
                if let Some(at) = due {
                    timer.as_mut().reset(at);
                }
            }
            tokio::select! {
                biased;
                () = &mut told, if !heard => {
                    heard = true;
                    self.shared.core().stop(Instant::now());
                }
                _ = self.inbox.recv_many(&mut batch, BATCH) => {
                    let now = Instant::now();
                    for message in batch.drain(..) {
                        self.take(now, message);
                        due = self.act(&up);
                    }
                    // However much there is to hear, what is due by time is done.
                    if due.is_none_or(|due| due > now) {
                        continue;
                    }
                    self.shared.core().tick(now);
                }
                () = &mut timer, if armed.is_some() => {
                    armed = None;
                    self.shared.core().tick(Instant::now());
                }
            }
            due = self.act(&up);
        }
        let report = Arc::new(self.report());
        self.emit(|| EventKind::Ended { report: Arc::clone(&report) });
        if !report.is_clean() {
            self.shared.tell_above(&report);
        }
        self.shared.progress.send_replace(Progress::Over(Arc::clone(&report)));
        if let Some(leaking) = leaking
            && self.shared.core().is_alive()
        {
            leaking(&report);
            while self.shared.core().is_alive()
                && let Some(message) = self.inbox.recv().await
            {
                self.take(Instant::now(), message);
                self.act(&up);
            }
        }
        report
    }

    /// Makes and sends an event, if somebody listens.
    fn emit(&self, kind: impl FnOnce() -> EventKind) {
        if self.shared.hub.is_observed() {
            self.shared.hub.emit(Event { supervisor: Arc::clone(&self.shared.path), kind: kind() });
        }
    }

    fn emit_of(&self, key: Key, kind: impl FnOnce(Arc<str>) -> EventKind) {
        if let Some(Some(unit)) = self.units.get(key.0 as usize) {
            self.emit(|| kind(Arc::clone(&unit.name)));
        }
    }

    fn take(&mut self, now: Instant, message: Message) {
        match message {
            Message::Exit { key, epoch, exit, text } => {
                let end = if exit.is_normal() { End::Normal } else { End::Abnormal };
                let (down, overdue) = {
                    let mut core = self.shared.core();
                    let down = core.phase == Phase::Down;
                    (down, core.exited(now, key, epoch, end, text))
                };
                let exit = overdue.unwrap_or(exit);
                self.emit_of(key, |child| EventKind::Exited { child, exit: exit.clone() });
                if down && !matches!(exit, Exit::Completed | Exit::Aborted) {
                    let name = self.unit(key).map(|unit| Arc::clone(&unit.name));
                    self.below.failed.extend(name.map(|name| (name, exit)));
                } else {
                    bury(exit);
                }
            }
            Message::Leaking { key, epoch, exit } => {
                let end = if exit.is_normal() { End::Normal } else { End::Abnormal };
                self.shared.core().leaking(now, key, epoch, end, exit.text());
                bury(exit);
            }
            Message::Health(run) => {
                let (key, epoch) = (run.key, run.epoch);
                let Some(health) = run.hear() else { return };
                if self.shared.core().health(key, epoch, health.clone()) {
                    self.emit_of(key, |child| EventKind::HealthChanged { child, health });
                }
            }
            Message::Ready { key, epoch } => self.shared.core().ready(now, key, epoch),
            Message::Stop => self.shared.core().stop(now),
            Message::Force => self.shared.core().force(now),
            Message::Below(below) => {
                // Otherwise it is no part of a stop of this one.
                if self.shared.core().phase == Phase::Down {
                    self.below.aborted.extend(below.aborted);
                    self.below.failed.extend(below.failed);
                }
            }
            Message::Command { verb, name, reply } => {
                let id = self.expect(reply, &name, None);
                self.shared.core().command(now, id, verb, name);
            }
            Message::Add { child, reply } => {
                if let Err(error) = child.check(self.check) {
                    let _ = reply.send(Err(error.into()));
                    bury(child);
                    return;
                }
                let (name, rules) = (Arc::clone(&child.name), Arc::clone(&child.rules));
                let id = self.expect(reply, &name, Some(child));
                self.shared.core().add(now, id, name, rules);
            }
        }
    }

    fn expect(&mut self, reply: Reply, name: &Arc<str>, child: Option<Child>) -> CommandId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.replies.push(None);
            CommandId(self.replies.len() - 1)
        });
        self.replies[id.0] = Some(Asked { reply, name: Arc::clone(name), child });
        id
    }

    fn answer(&mut self, id: CommandId, answer: Answer) {
        let Some(asked) = self.replies.get_mut(id.0).and_then(Option::take) else { return };
        let Asked { reply, name, child } = asked;
        self.free.push(id);
        // Who no longer waits for the answer does not want it.
        let _ = reply.send(match answer {
            Answer::Done => Ok(()),
            Answer::Exists => Err(CommandError::AlreadyExists(name)),
            Answer::Full => Err(CommandError::LimitReached(self.most)),
            Answer::NotFound => Err(CommandError::NotFound(name)),
            Answer::Running => Err(CommandError::Running(name)),
            Answer::Restarting => Err(CommandError::Restarting(name)),
            Answer::Stopping => Err(CommandError::Stopping(name)),
            Answer::WouldNotStop => Err(CommandError::WouldNotStop(name)),
            Answer::StartFailed(error) => Err(CommandError::StartFailed { name, error }),
            Answer::Blocked(by) => Err(CommandError::Blocked(by)),
            Answer::ShutDown => Err(CommandError::ShutDown),
        });
        bury(child);
    }

    /// Does what the core has decided, outside its lock. Says when the core wants to be asked again.
    fn act(&mut self, up: &impl Fn()) -> Option<Instant> {
        let mut actions = std::mem::take(&mut self.actions);
        let due = loop {
            let due = {
                let mut core = self.shared.core();
                std::mem::swap(&mut core.actions, &mut actions);
                core.next_due()
            };
            // Only what a heartbeat's absence leads to comes from here.
            let again = actions.iter().any(|action| matches!(action, Action::Listen { .. }));
            for action in actions.drain(..) {
                self.carry_out(action, up);
            }
            if !again {
                break due;
            }
        };
        self.actions = actions;
        due
    }

    fn carry_out(&mut self, action: Action, up: &impl Fn()) {
        match action {
            Action::Start { key, epoch, attempt } => self.launch(key, epoch, attempt),
            Action::Cancel { key } => {
                if let Some((run, _)) = self.run_of(key) {
                    run.token.cancel();
                }
            }
            // A supervisor is not aborted: it is told to abort what is below it.
            Action::Abort { key } => {
                if !self.shared.force_below(key) {
                    self.abort(key);
                }
            }
            Action::Note { key, note: Note::Stuck } => {
                // What a supervisor has leaked would be forgotten with it.
                if !self.shared.nested().contains_key(&key) {
                    self.abort(key);
                }
                self.emit_of(key, |child| EventKind::Stuck { child });
            }
            Action::Forget { key } => {
                self.emit_of(key, |child| EventKind::Removed { child });
                self.shared.forget(key);
                bury(self.units.get_mut(key.0 as usize).and_then(Option::take));
            }
            Action::Listen { key, epoch } => {
                if let Some(last) =
                    self.run_of(key).and_then(|(run, _)| run.beat.as_ref()).map(|beat| beat.last())
                {
                    self.shared.core().beat(Instant::now(), key, epoch, last);
                }
            }
            Action::Answer { id, answer } => self.answer(id, answer),
            Action::Adopt { key, id } => {
                let asked = self.replies.get_mut(id.0).and_then(Option::as_mut);
                if let Some(child) = asked.and_then(|asked| asked.child.take()) {
                    self.adopt(key, child);
                }
            }
            Action::Up => {
                self.shared.progress.send_replace(Progress::Up);
                self.emit(|| EventKind::Up);
                up();
            }
            Action::Stopping => self.emit(|| EventKind::Stopping),
            Action::Ended => self.ended = true,
            Action::Note { key, note } => self.emit_of(key, |child| match note {
                Note::Ready => EventKind::Ready { child },
                Note::Restarting { delay } => EventKind::Restarting { child, delay },
                Note::Aborted | Note::Stuck => EventKind::Aborted { child },
            }),
        }
    }

    fn abort(&self, key: Key) {
        if let Some((_, Some(abort))) = self.run_of(key) {
            abort.abort();
        }
    }

    fn run_of(&self, key: Key) -> Option<&(Arc<Run>, Option<AbortHandle>)> {
        self.units.get(key.0 as usize)?.as_ref()?.run.as_ref()
    }

    fn launch(&mut self, key: Key, epoch: u64, attempt: u64) {
        self.emit_of(key, |child| EventKind::Started { child, attempt });
        let shared = Arc::clone(&self.shared);
        let Some(unit) = self.unit(key) else { return };
        let beat = unit.heartbeat.map(|within| Box::new(Beat::new(within)));
        let (name, token) = (Arc::clone(&unit.name), CancellationToken::new());
        let told = AtomicBool::new(!unit.readiness);
        let health = Mutex::default();
        let run = Arc::new(Run { shared, name, token, key, epoch, attempt, beat, told, health });
        let (ctx, guard) = (Context { run: Arc::clone(&run) }, Guard { run: Some(Arc::clone(&run)) });
        let abort = Arc::clone(&unit.launch).launch(ctx, guard);
        unit.run = Some((run, abort));
    }

    fn report(&mut self) -> Report {
        let mut below = std::mem::take(&mut self.below);
        let leaked = self.shared.leaked();
        let core = self.shared.core();
        below.aborted.extend(core.aborted.iter().cloned());
        below.failed.extend(core.failed.iter().cloned());
        let supervisor = Arc::clone(&self.shared.name);
        let error = |child: &Arc<str>| {
            core.children
                .find(child)
                .and_then(|key| core.children.get(key))
                .and_then(|child| child.last_error.clone())
        };
        let cause = match core.cause.clone() {
            None | Some(Ending::Told) => Cause::Stopped,
            Some(Ending::AutoShutdown(child)) => Cause::AutoShutdown { child },
            Some(Ending::MeltedDown { child, restarts }) => {
                let error = error(&child);
                Cause::MeltedDown(MeltDown::Intensity {
                    supervisor: Arc::clone(&supervisor),
                    child,
                    restarts,
                    error,
                })
            }
            Some(Ending::StartFailed(child)) => {
                let error = error(&child);
                Cause::MeltedDown(MeltDown::Start { supervisor: Arc::clone(&supervisor), child, error })
            }
        };
        Report {
            supervisor,
            cause,
            aborted: below.aborted,
            leaked,
            failed: below.failed,
            took: core.down_since.map_or(Duration::ZERO, |since| since.elapsed()),
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        for unit in self.units.drain(..).flatten() {
            if let Some((run, abort)) = &unit.run {
                run.token.cancel();
                if let Some(abort) = abort {
                    abort.abort();
                }
            }
            bury(unit);
        }
        for asked in self.replies.drain(..).flatten() {
            bury(asked.child);
        }
        self.inbox.close();
        while let Ok(message) = self.inbox.try_recv() {
            bury(message);
        }
        if !self.ended {
            let lost = Arc::new(self.shared.lost());
            self.shared.progress.send_replace(Progress::Over(lost));
        }
    }
}

/// The supervisor at the root of a tree: with it, the watchdog and the events end.
pub(crate) struct Root {
    runner: Runner,
    end: RootEnd,
}

struct RootEnd {
    shared: Arc<Shared>,
    _leash: Option<Leash>,
}

impl Drop for RootEnd {
    fn drop(&mut self) {
        self.shared.hub.close();
    }
}

impl Runner {
    pub(crate) fn into_root(self) -> Root {
        let shared = Arc::clone(&self.shared);
        let leash = shared.watchdog.as_ref().map(|dog| dog.start(&shared));
        Root { runner: self, end: RootEnd { shared, _leash: leash } }
    }
}

impl Root {
    pub(crate) async fn run(self) -> Arc<Report> {
        let Self { runner, end } = self;
        let report = runner.run(|| {}, None::<fn(&Report)>).await;
        drop(end);
        report
    }
}
