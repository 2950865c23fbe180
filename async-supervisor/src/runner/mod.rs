mod act;

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::context::Run;
use crate::event::{Event, EventKind};
use crate::shared::{Below, Halt, Message, Reply, Shared};
use crate::state::{Action, CommandId, End, Key, Verb};
use crate::watchdog::Leash;
use crate::worker::{bury, shielded};
use crate::{AutoShutdown, Child, Context, Exit, Report};

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
        run.shared.send_now(Message::Exit { key: run.key, epoch: run.epoch, exit });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.ended(Exit::Aborted);
    }
}

/// A child's specification, and its current run.
struct Unit {
    child: Child,
    run: Option<(Arc<Run>, Option<AbortHandle>)>,
    /// How its last run failed, if it did and is significant.
    failed: Option<Box<Exit>>,
}

/// A command that has not been answered, and the child that came with it.
struct Asked {
    reply: Reply,
    child: Option<Child>,
}

/// The loop of one supervisor: the only one that moves its core.
pub(crate) struct Runner {
    shared: Arc<Shared>,
    inbox: UnboundedReceiver<Message>,
    /// What it is for the supervisor above; `None` at the root.
    above: Option<Context>,
    auto_shutdown: AutoShutdown,
    units: Vec<Option<Unit>>,
    /// Who waits for the answer to a command, and the child it is about. A place is used again after the answer.
    replies: Vec<Option<Asked>>,
    free: Vec<CommandId>,
    actions: Vec<Action>,
    below: Below,
    /// How significant children failed that have ended for good.
    blamed: Vec<(Arc<str>, Exit)>,
    ended: bool,
    _leash: Option<Leash>,
}

const BATCH: usize = 256;

/// Where significant children come and go for ever, not all their failures are kept.
const BLAMED: usize = 1024;

impl Runner {
    pub(crate) fn new(
        shared: Arc<Shared>,
        inbox: UnboundedReceiver<Message>,
        above: Option<Context>,
        children: usize,
    ) -> Self {
        // One for the whole tree.
        let dog = shared.watchdog.as_ref().filter(|_| above.is_none());
        let auto_shutdown = shared.core().config.auto_shutdown;
        Self {
            _leash: dog.map(|dog| dog.start(&shared)),
            auto_shutdown,
            shared,
            inbox,
            above,
            units: Vec::with_capacity(children),
            replies: Vec::new(),
            free: Vec::new(),
            actions: Vec::new(),
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
        self.units[index] = Some(Unit { child, run: None, failed: None });
    }

    fn unit(&mut self, key: Key) -> Option<&mut Unit> {
        self.units.get_mut(key.0 as usize)?.as_mut()
    }

    /// Runs until all is over. Dropped before, it aborts all children.
    pub(crate) async fn run(mut self) -> Arc<Report> {
        let above = self.above.clone();
        let mut told = pin!(async {
            match &above {
                Some(ctx) => ctx.cancelled().await,
                None => pending().await,
            }
        });
        let mut heard = false;
        let mut timer = pin!(sleep_until(Instant::now()));
        let (mut armed, mut batch) = (None, Vec::new());
        self.shared.core().start(Instant::now());
        let mut due = self.act();
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
                    batch.push(Message::Halt(Halt::Stop));
                }
                _ = self.inbox.recv_many(&mut batch, BATCH) => {}
                () = &mut timer, if armed.is_some() => {}
            }
            let now = Instant::now();
            for message in batch.drain(..) {
                self.take(now, message);
                due = self.act();
            }
            // However much there is to hear, what is due by time is done.
            if due.is_some_and(|due| due <= now) {
                self.shared.core().tick(now);
                due = self.act();
            }
        }
        let report = Arc::new(self.report());
        self.emit(|| EventKind::Ended { report: Arc::clone(&report) });
        if let Some(ctx) = &above {
            self.tell_above(ctx, &report);
        }
        self.shared.is_over(&report);
        // Its parent knows of what would not stop, and waits for that.
        while above.is_some()
            && self.shared.core().is_alive()
            && let Some(message) = self.inbox.recv().await
        {
            self.take(Instant::now(), message);
            self.act();
        }
        report
    }

    /// What went wrong in the stop, and whether there is something left that would not.
    fn tell_above(&self, ctx: &Context, report: &Report) {
        let run = &ctx.run;
        if !report.is_clean() {
            let named = |child: &Arc<str>| Arc::from(format!("{}/{child}", self.shared.name));
            run.shared.send_now(Message::Below(Below {
                aborted: report.aborted.iter().map(named).collect(),
                failed: report.failed.iter().map(|(child, exit)| (named(child), exit.clone())).collect(),
            }));
        }
        if self.shared.core().is_alive() {
            run.shared.send_now(Message::Leaking { key: run.key, epoch: run.epoch, exit: report.exit() });
        }
    }

    /// Makes and sends an event, if somebody listens.
    fn emit(&self, kind: impl FnOnce() -> EventKind) {
        if self.shared.hub.is_observed() {
            self.shared.hub.emit(Event { supervisor: Arc::clone(&self.shared.path), kind: kind() });
        }
    }

    fn emit_of(&self, key: Key, kind: impl FnOnce(Arc<str>) -> EventKind) {
        if let Some(Some(unit)) = self.units.get(key.0 as usize) {
            self.emit(|| kind(Arc::clone(&unit.child.name)));
        }
    }

    fn take(&mut self, now: Instant, message: Message) {
        match message {
            Message::Exit { key, epoch, exit } => {
                let (down, overdue) = {
                    let (end, text) = (End::of(&exit), exit.text());
                    let mut core = self.shared.core();
                    (core.is_stopping(), core.exited(now, key, epoch, end, text))
                };
                let exit = overdue.unwrap_or(exit);
                self.emit_of(key, |child| EventKind::Exited { child, exit: exit.clone() });
                if let Some(unit) = self.unit(key).filter(|unit| unit.child.rules.significant) {
                    let failed = if exit.is_normal() { None } else { Some(Box::new(exit.clone())) };
                    bury(std::mem::replace(&mut unit.failed, failed));
                }
                if down && !matches!(exit, Exit::Completed | Exit::Aborted) {
                    let name = self.unit(key).map(|unit| Arc::clone(&unit.child.name));
                    self.below.failed.extend(name.map(|name| (name, exit)));
                } else {
                    bury(exit);
                }
            }
            Message::Leaking { key, epoch, exit } => {
                self.shared.core().leaking(now, key, epoch, End::of(&exit), exit.text());
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
            Message::Halt(Halt::Stop) => self.shared.core().stop(now),
            Message::Halt(Halt::Hurry) => self.shared.core().hurry(now),
            Message::Halt(Halt::Force) => self.shared.core().force(now),
            Message::Halt(Halt::Abort) => self.shared.core().abort_all(now),
            Message::Below(below) => {
                // Otherwise it is no part of a stop of this one.
                if self.shared.core().is_stopping() {
                    self.below.aborted.extend(below.aborted);
                    self.below.failed.extend(below.failed);
                }
            }
            Message::Command { verb, name, reply } => self.ask(now, verb, name, reply, None),
            Message::Add { child, reply } => match child.check(self.auto_shutdown) {
                Ok(()) => {
                    let (verb, name) = (Verb::Add(Arc::clone(&child.rules)), Arc::clone(&child.name));
                    self.ask(now, verb, name, reply, Some(child));
                }
                Err(error) => Self::reply(Asked { reply, child: Some(child) }, Err(error.into())),
            },
        }
    }

    fn ask(&mut self, now: Instant, verb: Verb, name: Arc<str>, reply: Reply, child: Option<Child>) {
        let id = self.free.pop().unwrap_or_else(|| {
            self.replies.push(None);
            CommandId(self.replies.len() - 1)
        });
        let asked = self.replies[id.0].insert(Asked { reply, child });
        if !self.shared.core().command(now, id, verb, name) {
            bury(asked.reply.place.take());
        }
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
        self.replies.drain(..).for_each(bury);
        self.inbox.close();
        while let Ok(message) = self.inbox.try_recv() {
            bury(message);
        }
        if !self.ended {
            self.shared.core().lose();
            self.shared.is_over(&Arc::new(Report::lost(&self.shared.name)));
        }
        if self.above.is_none() {
            self.shared.hub.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Supervisor;

    #[test]
    fn however_often_a_halt_is_asked_for_it_is_told_once() {
        let (handle, runner) = Supervisor::pool().prepare(Vec::new(), None);
        for _ in 0..1000 {
            handle.request_stop();
            handle.force_stop();
        }
        assert_eq!(runner.inbox.len(), 2);
    }
}
