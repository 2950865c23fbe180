//! Commands by name, and their answers.

use super::{Action, Arc, Core, Deferred, Instant, Key, Phase, Rules, State, Why};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CommandId(pub(crate) usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Stops the child and keeps it in the books (OTP's `terminate_child`).
    Stop,
    /// Starts a stopped child (OTP's `restart_child`).
    Start,
    /// Forgets a stopped child (OTP's `delete_child`).
    Delete,
    /// Stops the child if it runs, and starts it again.
    Restart,
    /// Stops the child if it runs, and forgets it.
    Remove,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Exists,
    Full,
    NotFound,
    Running,
    Restarting,
    Stopping,
    WouldNotStop,
    StartFailed(Option<Arc<str>>),
    ShutDown,
}

impl Core {
    pub(super) fn answer(&mut self, key: Key, answer: Answer) {
        if let Some(id) = self.children.get_mut(key).and_then(|child| child.command.take()) {
            self.actions.push(Action::Answer { id, answer });
        }
    }

    /// Adds a child and starts it in its turn. The books have it from now on, or the refusal is final.
    pub(crate) fn add(
        &mut self,
        now: Instant,
        id: CommandId,
        name: Arc<str>,
        rules: Arc<Rules>,
    ) -> Result<Key, Answer> {
        if matches!(self.phase, Phase::Down | Phase::Ended) {
            return Err(Answer::ShutDown);
        }
        if self.children.find(&name).is_some() {
            return Err(Answer::Exists);
        }
        if self.config.max_children.is_some_and(|most| self.children.len() >= most) {
            return Err(Answer::Full);
        }
        let Some(key) = self.children.push(name, rules, now) else { return Err(Answer::Exists) };
        if self.is_busy() {
            self.deferred.push_back(Deferred::Add { id, key });
        } else {
            self.start_added(now, id, key);
        }
        self.advance(now);
        Ok(key)
    }

    pub(super) fn start_added(&mut self, now: Instant, id: CommandId, key: Key) {
        let Some(child) = self.children.get_mut(key) else {
            self.actions.push(Action::Answer { id, answer: Answer::NotFound });
            return;
        };
        if child.state != State::Waiting || child.attempts > 0 {
            // A sequence came by meanwhile and took it along.
            self.actions.push(Action::Answer { id, answer: Answer::Done });
            return;
        }
        child.command = Some(id);
        child.since = now;
        // Where the end of the order waits for a delay, so does the newcomer.
        if self.group.is_none() {
            self.starts.push_back(key);
        }
    }

    /// Carries out a command in its turn; it is answered when it is done.
    pub(crate) fn command(&mut self, now: Instant, id: CommandId, verb: Verb, name: Arc<str>) {
        if matches!(self.phase, Phase::Down | Phase::Ended) {
            self.actions.push(Action::Answer { id, answer: Answer::ShutDown });
        } else if self.is_busy() {
            self.deferred.push_back(Deferred::Command { id, verb, name });
        } else {
            self.carry_out(now, id, verb, &name);
        }
        self.advance(now);
    }

    pub(super) fn carry_out(&mut self, now: Instant, id: CommandId, verb: Verb, name: &str) {
        let answer = match self.children.find(name) {
            None => Some(Answer::NotFound),
            Some(key) => self.order(now, id, verb, key),
        };
        if let Some(answer) = answer {
            self.actions.push(Action::Answer { id, answer });
        }
    }

    /// Answers at once, or says nothing and answers when the child is where it should be.
    fn order(&mut self, now: Instant, id: CommandId, verb: Verb, key: Key) -> Option<Answer> {
        let pool = self.is_pool();
        let child = self.children.get_mut(key)?;
        let why = match verb {
            Verb::Stop => Why::Keep,
            Verb::Remove => Why::Remove,
            Verb::Restart | Verb::Start | Verb::Delete => Why::Restart,
        };
        match (verb, child.state) {
            (Verb::Start | Verb::Delete, state) if state.is_alive() => Some(Answer::Running),
            (Verb::Start | Verb::Delete, State::Waiting | State::Restarting) => Some(Answer::Restarting),
            (_, State::Stopping { .. }) if child.command.is_some() => Some(Answer::Stopping),
            (_, state) if state.is_alive() => {
                let before = child.command.replace(id);
                if let Some(before) = before {
                    self.actions.push(Action::Answer { id: before, answer: Answer::Stopping });
                }
                let stuck = state.is_stuck();
                self.begin_stop(now, key, why);
                if stuck {
                    self.answer(key, Answer::WouldNotStop);
                } else if !pool {
                    self.current = Some(key);
                }
                None
            }
            (Verb::Stop, _) => {
                self.answer(key, Answer::Stopping);
                self.settle(key, State::Stopped, now);
                Some(Answer::Done)
            }
            (Verb::Remove | Verb::Delete, _) => {
                self.answer(key, Answer::Stopping);
                self.forget(key);
                Some(Answer::Done)
            }
            (Verb::Start | Verb::Restart, _) => {
                child.due = None;
                child.state = State::Waiting;
                if let Some(before) = child.command.replace(id) {
                    self.actions.push(Action::Answer { id: before, answer: Answer::Stopping });
                }
                match &mut self.group {
                    // It goes with its group, which goes now.
                    Some(group) if child.order >= group.first => group.due = now,
                    _ => self.starts.push_back(key),
                }
                None
            }
        }
    }
}
