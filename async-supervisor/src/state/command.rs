//! Commands by name, and their answers.

use super::{Action, Arc, CommandError, Core, Deferred, Instant, Key, Rules, State, Why};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CommandId(pub(crate) usize);

pub(crate) type Answer = Result<(), CommandError>;

#[derive(Clone, Debug)]
pub(crate) enum Verb {
    /// Puts a child into the books ([`Action::Adopt`] says when) and starts it.
    Add(Arc<Rules>),
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

impl Core {
    /// Why a command cannot get its turn, if the sequence waits for a child that would not stop: by the name it is about.
    fn blocked(&self) -> Option<impl Fn(&str) -> CommandError + use<>> {
        let current = self.children.get(self.current?).filter(|child| child.state.is_stuck())?;
        let current = Arc::clone(&current.name);
        Some(move |name: &str| {
            let wrong = if *name == *current { CommandError::WouldNotStop } else { CommandError::Blocked };
            wrong(Arc::clone(&current))
        })
    }

    /// Answers the commands that wait for their turn, if a child that would not stop is in their way.
    pub(super) fn answer_blocked(&mut self) {
        let Some(why) = self.blocked() else { return };
        for deferred in std::mem::take(&mut self.deferred) {
            match deferred {
                Deferred::Command { id, name, .. } => self.reply(id, Err(why(&name))),
                exit @ Deferred::Exit { .. } => self.deferred.push_back(exit),
            }
        }
    }

    pub(super) fn reply(&mut self, id: CommandId, answer: Answer) {
        self.actions.push(Action::Answer { id, answer });
    }

    /// Answers the command that is about this child, if one is.
    pub(super) fn answer(&mut self, key: Key, answer: Answer) {
        if let Some(id) = self.children.get_mut(key).and_then(|child| child.command.take()) {
            self.reply(id, answer);
        }
    }

    /// Carries out a command in its turn; it is answered when it is done. Says whether it is queued, until [`Action::Begin`].
    pub(crate) fn command(&mut self, now: Instant, id: CommandId, verb: Verb, name: Arc<str>) -> bool {
        let mut queued = false;
        if self.is_down() {
            self.reply(id, Err(CommandError::ShutDown));
        } else if let Some(why) = self.blocked() {
            self.reply(id, Err(why(&name)));
        } else if self.is_busy() {
            self.deferred.push_back(Deferred::Command { id, verb, name });
            queued = true;
        } else {
            self.carry_out(now, id, verb, name);
        }
        self.advance(now);
        queued
    }

    pub(super) fn carry_out(&mut self, now: Instant, id: CommandId, verb: Verb, name: Arc<str>) {
        let answer = match verb {
            Verb::Add(rules) => self.add(now, id, &name, rules),
            verb => match self.children.find(&name) {
                None => Some(Err(CommandError::NotFound(name))),
                Some(key) => self.order(now, id, &verb, key),
            },
        };
        if let Some(answer) = answer {
            self.reply(id, answer);
        }
    }

    /// Answers at once, or says nothing and answers when the child is up.
    fn add(&mut self, now: Instant, id: CommandId, name: &Arc<str>, rules: Arc<Rules>) -> Option<Answer> {
        if let Some(most) = self.config.max_children.filter(|most| self.children.len() >= *most)
            && self.children.find(name).is_none()
        {
            return Some(Err(CommandError::LimitReached(most)));
        }
        let Some(key) = self.children.push(Arc::clone(name), rules, now) else {
            return Some(Err(CommandError::AlreadyExists(Arc::clone(name))));
        };
        self.children.get_mut(key)?.command = Some(id);
        self.actions.push(Action::Adopt { key, id });
        // Where the end of the order waits for a delay, so does the newcomer.
        if self.group.is_none() {
            self.starts.push_back(key);
        }
        None
    }

    /// Answers at once, or says nothing and answers when the child is where it should be.
    fn order(&mut self, now: Instant, id: CommandId, verb: &Verb, key: Key) -> Option<Answer> {
        let pool = self.is_pool();
        let child = self.children.get_mut(key)?;
        let (state, name) = (child.state, Arc::clone(&child.name));
        let why = match verb {
            Verb::Stop => Why::Keep,
            Verb::Remove => Why::Remove,
            _ => Why::Restart,
        };
        match (verb, state) {
            (Verb::Start | Verb::Delete, _) if state.is_alive() => {
                return Some(Err(CommandError::Running(name)));
            }
            (Verb::Start | Verb::Delete, State::Waiting | State::Restarting) => {
                return Some(Err(CommandError::Restarting(name)));
            }
            (_, State::Stopping { .. }) if child.command.is_some() => {
                return Some(Err(CommandError::Stopping(name)));
            }
            _ => {}
        }
        // Whoever asked for its start before hears that it has been overtaken.
        self.answer(key, Err(CommandError::Stopping(Arc::clone(&name))));
        match verb {
            _ if state.is_alive() => {
                self.children.get_mut(key)?.command = Some(id);
                self.begin_stop(now, key, why);
                if state.is_stuck() {
                    self.answer(key, Err(CommandError::WouldNotStop(name)));
                } else if !pool {
                    self.current = Some(key);
                }
                return None;
            }
            Verb::Stop => self.settle(key, State::Stopped, now),
            Verb::Remove | Verb::Delete => self.forget(key),
            _ => {
                let child = self.children.get_mut(key)?;
                child.due = None;
                child.state = State::Waiting;
                child.command = Some(id);
                match &mut self.group {
                    // It goes with its group, which goes now.
                    Some(group) if child.order >= group.first => group.due = now,
                    _ => self.starts.push_back(key),
                }
                return None;
            }
        }
        Some(Ok(()))
    }
}
