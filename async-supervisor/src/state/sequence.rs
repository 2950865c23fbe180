//! Sequences: what is stopped and started, in which order.

use super::{Action, Core, Deferred, Instant, Key, Note, Phase, Restart, State, Why};

impl Core {
    /// Goes on with the sequence until something has to be waited for.
    pub(super) fn advance(&mut self, now: Instant) {
        while self.current.is_none() {
            if self.is_down() {
                return self.go_down(now);
            }
            if let Some(key) = self.stops.pop() {
                match self.children.get(key).map(|child| child.state) {
                    // It fell by itself before its turn came: that is one fall with the one that began it.
                    Some(State::Exited(_)) => self.settle(key, State::Waiting, now),
                    Some(state) if state.is_alive() => {
                        self.begin_stop(now, key, Why::Sequence);
                        // One that stays stopped when it ends need not be waited for.
                        if !matches!(
                            self.children.get(key).map(|child| child.state),
                            Some(State::Stopping { why: Why::Keep | Why::Remove, .. })
                        ) {
                            self.current = Some(key);
                            self.answer_blocked();
                        }
                    }
                    _ => {}
                }
            } else if let Some(key) = self.starts.pop_front() {
                self.begin_start(now, key);
            } else if self.phase == Phase::Starting {
                if self.unready > 0 {
                    return;
                }
                self.phase = Phase::Running;
                self.actions.push(Action::Up);
            } else if let Some(group) = self.group.take_if(|group| group.due <= now) {
                let members = self.children.iter().filter(|(_, child)| child.order >= group.first);
                self.starts.extend(members.map(|(key, _)| key));
            } else if let Some(deferred) = self.deferred.pop_front() {
                self.resume(now, deferred);
            } else {
                return;
            }
        }
    }

    fn resume(&mut self, now: Instant, deferred: Deferred) {
        match deferred {
            Deferred::Exit { key, epoch } => {
                // The sequence may have started it again meanwhile.
                let child = self.children.get(key).filter(|child| child.epoch == epoch);
                if let Some(State::Exited(end)) = child.map(|child| child.state) {
                    self.fell(now, key, end);
                }
            }
            Deferred::Command { id, verb, name } => {
                self.actions.push(Action::Begin { id });
                self.carry_out(now, id, verb, name);
            }
        }
    }

    fn begin_start(&mut self, now: Instant, key: Key) {
        let pool = self.is_pool();
        let Some(child) = self.children.get_mut(key) else { return };
        if !matches!(child.state, State::Waiting | State::Restarting) {
            return;
        }
        self.epochs += 1;
        self.alive += 1;
        child.epoch = self.epochs;
        child.attempts += 1;
        child.since = now;
        child.state = State::Starting;
        let (epoch, attempt, readiness) = (child.epoch, child.attempts, child.rules.readiness);
        self.actions.push(Action::Start { key, epoch, attempt });
        match readiness {
            None => self.up(now, key),
            Some(limit) => {
                self.set_due(key, now.checked_add(limit));
                if !pool {
                    self.current = Some(key);
                } else if self.phase == Phase::Starting {
                    self.unready += 1;
                }
            }
        }
    }

    /// The child is ready.
    pub(super) fn up(&mut self, now: Instant, key: Key) {
        let Some(child) = self.children.get_mut(key) else { return };
        child.state = State::Running;
        child.since = now;
        let (reported, heartbeat) = (child.rules.readiness.is_some(), child.rules.heartbeat);
        self.set_due(key, heartbeat.and_then(|within| now.checked_add(within)));
        if reported {
            self.note(key, Note::Ready);
        }
        self.answer(key, Ok(()));
    }

    /// Keeps an ended child in the books, unless it is temporary.
    pub(super) fn settle(&mut self, key: Key, state: State, now: Instant) {
        let Some(child) = self.children.get_mut(key) else { return };
        if child.rules.restart == Restart::Temporary {
            self.answer(key, Ok(()));
            self.forget(key);
        } else {
            child.state = state;
            child.since = now;
            child.due = None;
        }
    }

    pub(super) fn forget(&mut self, key: Key) {
        self.children.remove(key);
        self.actions.push(Action::Forget { key });
    }
}
