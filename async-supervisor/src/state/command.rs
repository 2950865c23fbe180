//! Commands by name, and their answers.

use super::{Action, Arc, Core, Deferred, Instant, Key, Rules, State, Why};

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
    /// A group waits for this one, which would not stop.
    Blocked(Arc<str>),
    StartFailed(Option<Arc<str>>),
    ShutDown,
}

impl Core {
    /// Why a command cannot get its turn, if the sequence waits for a child that would not stop.
    fn blocked(&self, name: Option<&str>) -> Option<Answer> {
        let current = self.children.get(self.current?).filter(|child| child.state.is_stuck())?;
        let itself = name == Some(&*current.name);
        Some(if itself { Answer::WouldNotStop } else { Answer::Blocked(Arc::clone(&current.name)) })
    }

    /// Answers the commands that wait for their turn, where a child that would not stop is in their way.
    pub(super) fn answer_blocked(&mut self) {
        for deferred in std::mem::take(&mut self.deferred) {
            let (id, answer) = match &deferred {
                Deferred::Command { id, name, .. } => (*id, self.blocked(Some(name))),
                Deferred::Add { id, .. } => (*id, self.blocked(None)),
                Deferred::Exit { .. } => (CommandId(0), None),
            };
            match answer {
                Some(answer) => self.actions.push(Action::Answer { id, answer }),
                None => self.deferred.push_back(deferred),
            }
        }
    }

    pub(super) fn answer(&mut self, key: Key, answer: Answer) {
        if let Some(id) = self.children.get_mut(key).and_then(|child| child.command.take()) {
            self.actions.push(Action::Answer { id, answer });
        }
    }

    /// Adds a child and starts it, both in its turn: [`Action::Adopt`] says when the books have it.
    pub(crate) fn add(&mut self, now: Instant, id: CommandId, name: Arc<str>, rules: Arc<Rules>) {
        if self.is_down() {
            self.actions.push(Action::Answer { id, answer: Answer::ShutDown });
        } else if let Some(answer) = self.blocked(None) {
            self.actions.push(Action::Answer { id, answer });
        } else if self.is_busy() {
            self.deferred.push_back(Deferred::Add { id, name, rules });
        } else {
            self.add_now(now, id, name, rules);
        }
        self.advance(now);
    }

    pub(super) fn add_now(&mut self, now: Instant, id: CommandId, name: Arc<str>, rules: Arc<Rules>) {
        let full = self.config.max_children.is_some_and(|most| self.children.len() >= most);
        let added = if full && self.children.find(&name).is_none() {
            Err(Answer::Full)
        } else {
            self.children.push(name, rules, now).ok_or(Answer::Exists)
        };
        let key = match added {
            Ok(key) => key,
            Err(answer) => return self.actions.push(Action::Answer { id, answer }),
        };
        if let Some(child) = self.children.get_mut(key) {
            child.command = Some(id);
        }
        self.actions.push(Action::Adopt { key, id });
        // Where the end of the order waits for a delay, so does the newcomer.
        if self.group.is_none() {
            self.starts.push_back(key);
        }
    }

    /// Carries out a command in its turn; it is answered when it is done.
    pub(crate) fn command(&mut self, now: Instant, id: CommandId, verb: Verb, name: Arc<str>) {
        if self.is_down() {
            self.actions.push(Action::Answer { id, answer: Answer::ShutDown });
        } else if let Some(answer) = self.blocked(Some(&name)) {
            self.actions.push(Action::Answer { id, answer });
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
