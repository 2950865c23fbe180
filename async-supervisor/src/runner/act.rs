//! What the core has decided, done.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Asked, BLAMED, Guard, Runner};
use crate::context::{Beat, Run};
use crate::event::EventKind;
use crate::shared::{Below, Halt, Reply};
use crate::state::{Action, Answer, Key, Note};
use crate::worker::{bury, shielded};
use crate::{Cause, Child, Context, Report};

impl Runner {
    /// Does what the core has decided, outside its lock. Says when the core wants to be asked again.
    pub(super) fn act(&mut self) -> Option<Instant> {
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
                self.carry_out(action);
            }
            if !again {
                break due;
            }
        };
        self.actions = actions;
        due
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Start { key, epoch, attempt } => self.launch(key, epoch, attempt),
            Action::Cancel { key } => {
                if let Some((run, _)) = self.run_of(key) {
                    shielded(|| run.token.cancel());
                }
            }
            Action::Hurry { key } => {
                self.shared.halt_below(key, Halt::Hurry);
            }
            Action::Blame { key } => {
                if let Some(Some(unit)) = self.units.get_mut(key.0 as usize)
                    && self.blamed.len() < BLAMED
                    && let Some(exit) = unit.failed.take()
                {
                    self.blamed.push((Arc::clone(&unit.child.name), *exit));
                }
            }
            // Supervisors and tracked tasks are not aborted: they are told to abort what is below them.
            Action::Abort { key } => {
                if !self.shared.halt_below(key, Halt::Abort) {
                    self.abort(key);
                }
            }
            Action::Note { key, note: Note::Stuck } => {
                // What is leaked below would be forgotten with it.
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
            Action::Begin { id } => {
                let asked = self.replies.get_mut(id.0).and_then(Option::as_mut);
                bury(asked.and_then(|asked| asked.reply.place.take()));
            }
            Action::Answer { id, answer } => {
                if let Some(asked) = self.replies.get_mut(id.0).and_then(Option::take) {
                    self.free.push(id);
                    Self::reply(asked, answer);
                }
            }
            Action::Adopt { key, id } => {
                let asked = self.replies.get_mut(id.0).and_then(Option::as_mut);
                if let Some(child) = asked.and_then(|asked| asked.child.take()) {
                    self.adopt(key, child);
                }
            }
            Action::Up => {
                self.shared.is_up();
                self.emit(|| EventKind::Up);
                if let Some(ctx) = &self.above {
                    ctx.ready();
                }
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

    pub(super) fn reply(asked: Asked, answer: Answer) {
        let Reply { answer: asks, place } = asked.reply;
        bury(place);
        // Who no longer waits for the answer does not want it.
        shielded(|| drop(asks.send(answer)));
        bury(asked.child);
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
        let Child { name, rules, launch } = &unit.child;
        let beat = rules.heartbeat.map(|within| Box::new(Beat::new(within)));
        let (name, token) = (Arc::clone(name), CancellationToken::new());
        let told = AtomicBool::new(rules.readiness.is_none());
        let health = Mutex::default();
        let run = Arc::new(Run { shared, name, token, key, epoch, attempt, beat, told, health });
        let (ctx, guard) = (Context { run: Arc::clone(&run) }, Guard { run: Some(Arc::clone(&run)) });
        let abort = Arc::clone(launch).launch(ctx, guard);
        unit.run = Some((run, abort));
    }

    pub(super) fn report(&mut self) -> Report {
        let Below { mut aborted, mut failed } = std::mem::take(&mut self.below);
        let leaked = self.shared.leaked();
        let core = self.shared.core();
        aborted.extend(core.aborted.iter().cloned());
        failed.extend(core.failed.iter().cloned());
        let cause = core.cause.clone().unwrap_or(Cause::Stopped);
        if let Cause::AutoShutdown { .. } = cause {
            failed.splice(0..0, self.blamed.drain(..));
        }
        let took = core.down_since.map_or(Duration::ZERO, |since| since.elapsed());
        let signal = self.shared.signal.get().copied().filter(|_| matches!(cause, Cause::Stopped));
        Report { supervisor: Arc::clone(&self.shared.name), cause, signal, aborted, leaked, failed, took }
    }
}
