//! Sequences: what is stopped and started, in which order.

use super::{
    Action, Answer, Arc, AutoShutdown, Core, Deferred, End, Ending, Group, Instant, Key, Note, Phase,
    Restart, Shutdown, Stage, State, Strategy, Why,
};

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
                self.phase = Phase::Up;
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
            Deferred::Command { id, verb, name } => self.carry_out(now, id, verb, &name),
            Deferred::Add { id, name, rules } => self.add_now(now, id, name, rules),
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
        self.answer(key, Answer::Done);
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
        child.since = now;
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
                self.answer(key, Answer::Done);
            }
            Why::Remove => {
                self.answer(key, Answer::Done);
                self.forget(key);
            }
            Why::Restart => {
                self.settle(key, State::Waiting, now);
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

    /// Keeps an ended child in the books, unless it is temporary.
    pub(super) fn settle(&mut self, key: Key, state: State, now: Instant) {
        let Some(child) = self.children.get_mut(key) else { return };
        if child.rules.restart == Restart::Temporary && !(state == State::Waiting && child.command.is_some())
        {
            self.answer(key, Answer::Done);
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

    /// A child has ended before it was ready.
    pub(super) fn ended_early(&mut self, now: Instant, key: Key, end: End) {
        let restart = self.children.get(key).map(|child| child.rules.restart);
        if end == End::Normal && restart != Some(Restart::Permanent) {
            self.answer(key, Answer::Done);
            self.fell(now, key, end);
        } else {
            self.failed_start(now, key);
        }
    }

    fn failed_start(&mut self, now: Instant, key: Key) {
        let Some(child) = self.children.get_mut(key) else { return };
        let name = Arc::clone(&child.name);
        let error = child.last_error.clone();
        if self.phase == Phase::Starting {
            child.state = State::Stopped;
            self.begin_down(now, Ending::StartFailed(name));
        } else if let Some(id) = child.command.take() {
            // Who asked for the start is told, and decides.
            let fresh = child.attempts == 1;
            child.state = State::Stopped;
            self.actions.push(Action::Answer { id, answer: Answer::StartFailed(error) });
            if fresh || child.rules.restart == Restart::Temporary {
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
        let restarts = match child.rules.restart {
            Restart::Permanent => true,
            Restart::Transient => end == End::Abnormal,
            Restart::Temporary => false,
        };
        if !restarts {
            let name = Arc::clone(&child.name);
            self.settle(key, State::Stopped, now);
            if significant {
                self.significant_ended(now, name);
            }
            return;
        }
        if let Err(restarts) = self.window.count(now) {
            let child = Arc::clone(&child.name);
            self.settle(key, State::Stopped, now);
            return self.begin_down(now, Ending::MeltedDown { child, restarts });
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
        let mut gone = Vec::new();
        let mut waiting = Vec::new();
        for (key, child) in self.children.iter().filter(|(_, child)| child.order >= first) {
            match child.state {
                state if state.is_alive() => self.stops.push(key),
                State::Exited(_) | State::Stopped if child.rules.restart == Restart::Temporary => {
                    gone.push(key);
                }
                State::Exited(_) | State::Stopped => waiting.push(key),
                _ => {}
            }
        }
        for key in gone {
            self.forget(key);
        }
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
            self.begin_down(now, Ending::AutoShutdown(name));
        }
    }

    /// The first cause holds.
    pub(super) fn begin_down(&mut self, now: Instant, ending: Ending) {
        if matches!(self.phase, Phase::Down | Phase::Ended) {
            return;
        }
        self.phase = Phase::Down;
        self.cause = Some(ending);
        self.down_since = Some(now);
        self.actions.push(Action::Stopping);
        self.budget_ends = self.config.stop_budget.and_then(|budget| now.checked_add(budget));
        self.group = None;
        self.starts.clear();
        self.stops.clear();
        // One that is being stopped already stays the one that is waited for.
        let stopping = |child: &super::Child| {
            matches!(child.state, State::Stopping { stage: Stage::Asked | Stage::Aborted, .. })
        };
        self.current = self.current.filter(|key| self.children.get(*key).is_some_and(stopping));
        let mut resting = Vec::new();
        let mut commands = Vec::new();
        for (key, child) in self.children.iter() {
            if child.command.is_some() {
                commands.push(key);
            }
            if child.state.is_stuck() {
                continue;
            }
            if child.state.is_alive() {
                self.stops.push(key);
            } else {
                resting.push(key);
            }
        }
        for key in resting {
            if let Some(child) = self.children.get_mut(key) {
                child.state = State::Stopped;
                child.due = None;
            }
        }
        for key in commands {
            self.answer(key, Answer::ShutDown);
        }
        for deferred in std::mem::take(&mut self.deferred) {
            if let Deferred::Command { id, .. } | Deferred::Add { id, .. } = deferred {
                self.actions.push(Action::Answer { id, answer: Answer::ShutDown });
            }
        }
    }

    fn go_down(&mut self, now: Instant) {
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
        if self.phase == Phase::Down && self.alive == self.stuck {
            self.phase = Phase::Ended;
            self.budget_ends = None;
            self.actions.push(Action::Ended);
        }
    }

    /// A child would not end even when aborted.
    pub(super) fn is_stuck(&mut self, now: Instant, key: Key, why: Why) {
        if self.is_down() {
            self.current = self.current.filter(|current| *current != key);
            return;
        }
        match why {
            // It must not run twice: who is started together with it waits for it.
            Why::Sequence => self.answer_blocked(),
            Why::NotReady if self.phase == Phase::Starting => {
                if let Some(name) = self.children.get(key).map(|child| Arc::clone(&child.name)) {
                    self.begin_down(now, Ending::StartFailed(name));
                }
            }
            Why::NotReady | Why::Unhealthy | Why::Over | Why::Keep | Why::Remove | Why::Restart => {
                self.answer(key, Answer::WouldNotStop);
                self.current = self.current.filter(|current| *current != key);
            }
        }
    }
}
