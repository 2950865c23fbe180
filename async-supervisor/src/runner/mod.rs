mod act;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::context::Run;
use crate::event::{Event, EventKind};
use crate::handle::{Below, Message, Reply, Shared};
use crate::state::{Action, CommandId, End, Key, Phase};
use crate::watchdog::Leash;
use crate::worker::{Launch, bury, shielded};
use crate::{Child, Exit, Report};

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
        shielded(|| run.token.cancel());
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
    significant: bool,
    run: Option<(Arc<Run>, Option<AbortHandle>)>,
    /// How its last run failed, if it did and is significant.
    failed: Option<Box<Exit>>,
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
    /// How significant children failed that have ended for good.
    blamed: Vec<(Arc<str>, Exit)>,
    ended: bool,
}

const BATCH: usize = 256;

/// Where significant children come and go for ever, not all their failures are kept.
const BLAMED: usize = 1024;

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
            blamed: Vec::new(),
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
            significant: child.rules.significant,
            name: child.name,
            launch: child.launch,
            run: None,
            failed: None,
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
        // Nobody stops the root by its token.
        let mut heard = shared.is_root();
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
        self.shared.is_over(&report);
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
                if let Some(unit) = self.unit(key).filter(|unit| unit.significant) {
                    let failed = if exit.is_normal() { None } else { Some(Box::new(exit.clone())) };
                    bury(std::mem::replace(&mut unit.failed, failed));
                }
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
            Message::Hurry => self.shared.core().hurry(now),
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
                    shielded(|| drop(reply.send(Err(error.into()))));
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
}

impl Drop for Runner {
    fn drop(&mut self) {
        for unit in self.units.drain(..).flatten() {
            if let Some((run, abort)) = &unit.run {
                shielded(|| run.token.cancel());
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
            self.shared.core().lose();
            let lost = Arc::new(self.shared.lost());
            self.shared.is_over(&lost);
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
