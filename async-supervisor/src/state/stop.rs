//! How children are stopped, one and all.

use super::{
    Action, Arc, Cause, CommandError, Core, Deferred, End, Exit, Instant, Key, Note, Phase, Shutdown, Stage,
    State, Why,
};
use crate::MeltDown;

/// What is left at a forced stop has no longer than this to end.
const LAST_CALL: std::time::Duration = std::time::Duration::from_secs(1);

impl Core {
    /// Stops all children in reverse order, then ends.
    pub(crate) fn stop(&mut self, now: Instant) {
        self.begin_down(now, Cause::Stopped);
        self.advance(now);
    }

    /// Asks all that is left to end, at once: the time for the order is over.
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.begin_down(now, Cause::Stopped);
        self.hurries = None;
        if self.is_stopping() && !self.forced {
            self.ask_all(now);
            self.advance(now);
        }
    }

    /// As at the end of a budget: asks all that is left to end, and aborts what is still there a grace later.
    pub(crate) fn force(&mut self, now: Instant) {
        self.hurry(now);
        if self.is_stopping() && !self.forced {
            let ends = now.checked_add(self.config.abort_grace.min(LAST_CALL));
            self.budget_ends = [self.budget_ends, ends].into_iter().flatten().min();
        }
    }

    /// Aborts all that is still there, at once.
    pub(crate) fn abort_all(&mut self, now: Instant) {
        self.begin_down(now, Cause::Stopped);
        if !self.is_stopping() || self.forced {
            return;
        }
        self.forced = true;
        (self.budget_ends, self.hurries) = (None, None);
        self.current = None;
        for key in self.ask_all(now) {
            self.abort(now, key);
        }
        self.advance(now);
    }

    /// Asks all that is left, in reverse order; tells who that is.
    fn ask_all(&mut self, now: Instant) -> Vec<Key> {
        self.stops.clear();
        let left = self.children.iter().filter(|(_, c)| c.state.is_alive() && !c.state.is_stuck());
        let mut left: Vec<_> = left.map(|(key, _)| key).collect();
        left.reverse();
        for key in &left {
            self.begin_stop(now, *key, Why::Sequence);
            if self.children.get(*key).is_some_and(|child| child.rules.supervisor) {
                self.actions.push(Action::Hurry { key: *key });
            }
        }
        left
    }

    /// The runtime is gone, and with it all that ran on it.
    pub(crate) fn lose(&mut self) {
        self.phase = Phase::Stopped;
        for child in self.children.values_mut() {
            child.state = State::Stopped;
            child.due = None;
        }
    }

    /// Aborts a child that has been asked to end, if that has not been done.
    pub(super) fn abort(&mut self, now: Instant, key: Key) {
        let (grace, down) = (self.config.abort_grace, self.is_stopping());
        let Some(child) = self.children.get_mut(key) else { return };
        let State::Stopping { why, stage: Stage::Asked } = child.state else { return };
        child.state = State::Stopping { why, stage: Stage::Aborted };
        let due = child.grace(grace).and_then(|grace| now.checked_add(grace));
        if down {
            self.aborted.push(Arc::clone(&child.name));
        }
        self.set_due(key, due);
        self.note(key, Note::Aborted);
        self.actions.push(Action::Abort { key });
    }

    /// Asks the child to end, or aborts it, as its shutdown says. One that is being stopped already gets `why` only.
    pub(super) fn begin_stop(&mut self, now: Instant, key: Key, why: Why) {
        let grace = self.config.abort_grace;
        let Some(child) = self.children.get_mut(key) else { return };
        if let State::Stopping { why: before, .. } = &mut child.state {
            // What it was told by name holds.
            if !(why == Why::Sequence && matches!(before, Why::Keep | Why::Remove)) {
                *before = why;
            }
            return;
        }
        if !child.state.is_alive() {
            return;
        }
        child.leave_running(now);
        let (stage, within) = match child.rules.shutdown {
            Shutdown::Abort => (Stage::Aborted, child.grace(grace)),
            Shutdown::Timeout(limit) => (Stage::Asked, Some(limit)),
            Shutdown::Wait => (Stage::Asked, None),
        };
        child.state = State::Stopping { why, stage };
        self.set_due(key, within.and_then(|within| now.checked_add(within)));
        self.actions.push(Action::Cancel { key });
        if stage == Stage::Aborted {
            self.actions.push(Action::Abort { key });
        }
    }

    /// A child that was told to stop has ended.
    pub(super) fn stopped(&mut self, now: Instant, key: Key, why: Why, end: End) {
        let end = if why == Why::Over { end } else { End::Abnormal };
        if self.is_down() {
            return self.settle(key, State::Stopped, now);
        }
        match why {
            Why::Sequence => self.settle(key, State::Waiting, now),
            Why::Keep => {
                self.settle(key, State::Stopped, now);
                self.answer(key, Ok(()));
            }
            Why::Remove => {
                self.answer(key, Ok(()));
                self.forget(key);
            }
            // By name, a temporary one too.
            Why::Restart => {
                if let Some(child) = self.children.get_mut(key) {
                    child.state = State::Waiting;
                }
                self.starts.push_back(key);
            }
            Why::NotReady => self.failed_start(now, key),
            Why::Unhealthy | Why::Over if self.is_busy() => {
                let epoch = self.children.get(key).map_or(0, |child| child.epoch);
                if let Some(child) = self.children.get_mut(key) {
                    child.state = State::Exited(end);
                }
                self.deferred.push_back(Deferred::Exit { key, epoch });
            }
            Why::Unhealthy | Why::Over => self.fell(now, key, end),
        }
    }

    /// A child would not end even when aborted.
    pub(super) fn is_stuck(&mut self, now: Instant, key: Key, why: Why) {
        let down = self.is_down();
        let Some(child) = self.children.get_mut(key) else { return };
        match why {
            _ if down => {}
            // It must not run twice: who is started together with it waits for it.
            Why::Sequence => return self.answer_blocked(),
            Why::NotReady if self.phase == Phase::Starting => {
                child.last_error = child.rules.readiness.map(Exit::NotReady).as_ref().and_then(Exit::text);
                return self.start_failed(now, key);
            }
            _ => {
                let name = Arc::clone(&child.name);
                self.answer(key, Err(CommandError::WouldNotStop(name)));
            }
        }
        self.current = self.current.filter(|current| *current != key);
    }

    /// A first start has failed, and with it the supervisor.
    pub(super) fn start_failed(&mut self, now: Instant, key: Key) {
        let Some(child) = self.children.get(key) else { return };
        let (supervisor, child, error) =
            (Arc::clone(&self.config.name), Arc::clone(&child.name), child.last_error.clone());
        self.begin_down(now, Cause::MeltedDown(MeltDown::Start { supervisor, child, error }));
    }

    /// The first cause holds.
    pub(super) fn begin_down(&mut self, now: Instant, cause: Cause) {
        if self.is_down() {
            return;
        }
        self.phase = Phase::Stopping;
        self.cause = Some(cause);
        self.down_since = Some(now);
        self.actions.push(Action::Stopping);
        if let Some(budget) = self.config.stop_budget {
            self.budget_ends = now.checked_add(budget);
            self.hurries = now.checked_add(budget - self.config.abort_grace.min(budget / 2));
        }
        self.group = None;
        self.starts.clear();
        self.stops.clear();
        // One that is being stopped already stays the one that is waited for.
        let stopping = |child: &super::Child| {
            matches!(child.state, State::Stopping { stage: Stage::Asked | Stage::Aborted, .. })
        };
        self.current = self.current.filter(|key| self.children.get(*key).is_some_and(stopping));
        let alive = self.children.iter().filter(|(_, c)| c.state.is_alive() && !c.state.is_stuck());
        self.stops.extend(alive.map(|(key, _)| key));
        let mut asked = Vec::new();
        for child in self.children.values_mut() {
            asked.extend(child.command.take());
            if !child.state.is_alive() {
                child.state = State::Stopped;
                child.due = None;
            }
        }
        for deferred in std::mem::take(&mut self.deferred) {
            if let Deferred::Command { id, .. } = deferred {
                asked.push(id);
            }
        }
        for id in asked {
            self.reply(id, Err(CommandError::ShutDown));
        }
    }

    pub(super) fn go_down(&mut self, now: Instant) {
        while let Some(key) = self.stops.pop() {
            let Some(child) = self.children.get(key) else { continue };
            if !child.state.is_alive() || child.state.is_stuck() {
                continue;
            }
            self.begin_stop(now, key, Why::Sequence);
            if !self.is_pool() && !self.forced {
                self.current = Some(key);
                return;
            }
        }
        if self.is_stopping() && self.alive == self.stuck {
            self.phase = Phase::Stopped;
            (self.budget_ends, self.hurries) = (None, None);
            self.actions.push(Action::Ended);
        }
    }
}
