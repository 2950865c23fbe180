//! What follows when a run ends, and when that was not asked for.

use super::{
    Action, Arc, AutoShutdown, Cause, CommandError, Core, Deferred, End, Exit, Group, Instant, Key, Note,
    Phase, Restart, Shutdown, Stage, State, Strategy, Why,
};
use crate::{Intensity, MeltDown};

impl Core {
    /// A run has ended. `error` is how its failure reads. Answers with what it counts as, if that is not how it ended.
    pub(crate) fn exited(
        &mut self,
        now: Instant,
        key: Key,
        epoch: u64,
        end: End,
        error: Option<Arc<str>>,
    ) -> Option<Exit> {
        let child = self.children.get_mut(key).filter(|c| c.epoch == epoch && c.state.is_alive())?;
        child.leave_running(now);
        let was = std::mem::replace(&mut child.state, State::Exited(end));
        child.due = None;
        child.since = now;
        let overdue = match was {
            State::Stopping { why: Why::NotReady, .. } => child.rules.readiness.map(Exit::NotReady),
            State::Stopping { why: Why::Unhealthy, .. } => child.rules.heartbeat.map(Exit::MissedHeartbeat),
            _ => None,
        };
        if let Some(error) = overdue.as_ref().and_then(Exit::text).or(error) {
            child.last_error = Some(error);
        }
        child.health = None;
        self.alive -= 1;
        self.stuck -= usize::from(was.is_stuck());
        if matches!(was, State::Starting | State::Stopping { why: Why::NotReady, .. }) {
            self.first_start_over();
        }
        if self.current == Some(key) {
            self.current = None;
        }
        match was {
            State::Stopping { why, .. } => self.stopped(now, key, why, end),
            _ if self.is_down() => self.settle(key, State::Stopped, now),
            State::Starting => self.ended_early(now, key, end),
            _ if self.is_busy() => self.deferred.push_back(Deferred::Exit { key, epoch }),
            _ => self.fell(now, key, end),
        }
        self.advance(now);
        overdue
    }

    /// A child has ended before it was ready.
    pub(super) fn ended_early(&mut self, now: Instant, key: Key, end: End) {
        let restart = self.children.get(key).map(|child| child.rules.restart);
        if end == End::Normal && restart != Some(Restart::Permanent) {
            self.answer(key, Ok(()));
            self.fell(now, key, end);
        } else {
            if end == End::Normal
                && let Some(child) = self.children.get_mut(key)
            {
                child.last_error = Some(Arc::from("it ended before it was ready"));
            }
            self.failed_start(now, key);
        }
    }

    pub(super) fn failed_start(&mut self, now: Instant, key: Key) {
        let Some(child) = self.children.get_mut(key) else { return };
        if self.phase == Phase::Starting {
            child.state = State::Stopped;
            self.start_failed(now, key);
        } else if let Some(id) = child.command.take() {
            // Who asked for the start is told, and decides.
            child.state = State::Stopped;
            let (name, error) = (Arc::clone(&child.name), child.last_error.clone());
            let fresh = child.attempts == 1 || child.rules.restart == Restart::Temporary;
            self.reply(id, Err(CommandError::StartFailed { name, error }));
            if fresh {
                self.forget(key);
            }
        } else {
            self.fell(now, key, End::Abnormal);
        }
    }

    /// A child has ended by itself: decides what follows.
    pub(super) fn fell(&mut self, now: Instant, key: Key, end: End) {
        let Some(child) = self.children.get_mut(key) else { return };
        let (order, significant) = (child.order, child.rules.significant);
        if !child.is_restarted_after(end) {
            let name = Arc::clone(&child.name);
            if significant {
                self.actions.push(Action::Blame { key });
            }
            self.settle(key, State::Stopped, now);
            if significant {
                self.significant_ended(now, name);
            }
            return;
        }
        if let Err(restarts) = self.window.count(now) {
            let (supervisor, child, error) =
                (Arc::clone(&self.config.name), Arc::clone(&child.name), child.last_error.clone());
            self.settle(key, State::Stopped, now);
            let Intensity { limit, period } = self.config.intensity;
            let limit = limit.unwrap_or(u32::MAX);
            let down = MeltDown::Intensity { supervisor, child, restarts, limit, period, error };
            return self.begin_down(now, Cause::MeltedDown(down));
        }
        let random = self.random();
        let Some(child) = self.children.get_mut(key) else { return };
        let delay = child.rules.backoff.delay(child.failures, random);
        child.failures = child.failures.saturating_add(1);
        child.restarts += 1;
        child.state = State::Restarting;
        child.since = now;
        self.note(key, Note::Restarting { delay });
        // A delay beyond the clock's end never ends.
        let due = if delay.is_zero() { Some(now) } else { now.checked_add(delay) };
        match self.config.strategy {
            Strategy::OneForOne | Strategy::Pool if delay.is_zero() => self.starts.push_back(key),
            Strategy::OneForOne | Strategy::Pool => self.set_due(key, due),
            Strategy::OneForAll => self.fell_together(now, 0, due),
            Strategy::RestForOne => self.fell_together(now, order, due),
        }
    }

    /// All from `first` on go down, in reverse order; when `due` they are started, in order.
    fn fell_together(&mut self, now: Instant, first: u64, due: Option<Instant>) {
        self.starts.clear();
        let mut waiting = Vec::new();
        for (key, child) in self.children.iter().filter(|(_, child)| child.order >= first) {
            match child.state {
                state if state.is_alive() => self.stops.push(key),
                State::Exited(_) | State::Stopped => waiting.push(key),
                _ => {}
            }
        }
        // Temporary ones are forgotten.
        for key in waiting {
            self.settle(key, State::Waiting, now);
        }
        let due = due.unwrap_or_else(|| now + std::time::Duration::from_secs(86_400 * 365 * 30));
        let (first, due) = match self.group {
            Some(group) => (first.min(group.first), due.max(group.due)),
            None => (first, due),
        };
        self.group = Some(Group { first, due });
    }

    fn significant_ended(&mut self, now: Instant, name: Arc<str>) {
        let over = match self.config.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::AnySignificant => true,
            AutoShutdown::AllSignificant => !self
                .children
                .iter()
                .any(|(_, child)| child.rules.significant && child.state != State::Stopped),
        };
        if over {
            self.begin_down(now, Cause::AutoShutdown { child: name });
        }
    }

    /// A child that is a supervisor is over but for what would not stop below it: it is stuck until that is gone, so that nothing runs
    /// twice.
    pub(crate) fn leaking(&mut self, now: Instant, key: Key, epoch: u64, end: End, error: Option<Arc<str>>) {
        let Some(child) = self.children.get_mut(key).filter(|c| c.epoch == epoch && c.state.is_alive())
        else {
            return;
        };
        let was = child.state;
        if was.is_stuck() {
            return;
        }
        child.leave_running(now);
        if error.is_some() {
            child.last_error = error;
        }
        let fresh = child.attempts == 1 || child.rules.restart == Restart::Temporary;
        let why = match was {
            State::Stopping { why, .. } => why,
            // Who asked for the start is told below, and decides.
            State::Starting if child.command.is_some() && end == End::Abnormal => {
                if fresh {
                    Why::Remove
                } else {
                    Why::Keep
                }
            }
            _ => Why::Over,
        };
        child.state = State::Stopping { why, stage: Stage::Stuck };
        child.since = now;
        child.due = None;
        let (name, error) = (Arc::clone(&child.name), child.last_error.clone());
        self.stuck += 1;
        self.note(key, Note::Stuck);
        if was == State::Starting {
            self.first_start_over();
            let failed = CommandError::StartFailed { name, error };
            self.answer(key, if end == End::Normal { Ok(()) } else { Err(failed) });
            if self.phase == Phase::Starting {
                self.start_failed(now, key);
            }
        }
        self.is_stuck(now, key, why);
        self.advance(now);
    }

    /// What a child looks after has failed: it is the child's last error, and part of the stop if that has begun.
    pub(crate) fn task_failed(&mut self, key: Key, epoch: u64, error: Arc<str>, name: Arc<str>, exit: Exit) {
        let down = self.is_stopping();
        let Some(child) = self.children.get_mut(key).filter(|child| child.epoch == epoch) else { return };
        child.last_error = Some(error);
        match exit {
            _ if !down => {}
            // As asked for.
            Exit::Aborted if child.rules.shutdown == Shutdown::Abort => {}
            Exit::Aborted => self.aborted.push(name),
            exit => self.failed.push((name, exit)),
        }
    }
}
