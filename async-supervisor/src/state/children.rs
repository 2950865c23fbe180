use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{CommandId, End, Stage, State};
use crate::spec::{Restart, Rules};
use crate::{ChildSnapshot, ChildState};

/// Where a child is kept. Reused after the child is forgotten; a run is told apart by its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) u32);

const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) name: Arc<str>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) state: State,
    /// Which run of the whole supervisor this is; never used twice.
    pub(crate) epoch: u64,
    /// Its place in the order of starts.
    pub(crate) order: u64,
    /// Since when it is in this state.
    pub(crate) since: Instant,
    /// When its state ends by time, if it does.
    pub(crate) due: Option<Instant>,
    /// How often it has been started, and how often of these by itself after a fall.
    pub(crate) attempts: u64,
    pub(crate) restarts: u64,
    /// Failures in a row, for the backoff.
    pub(crate) failures: u32,
    /// How its last failure read.
    pub(crate) last_error: Option<Arc<str>>,
    /// Why it works less well than it should, as it says itself.
    pub(crate) health: Option<Arc<str>>,
    /// The command that is answered when it gets where it is going.
    pub(crate) command: Option<CommandId>,
    prev: u32,
    next: u32,
}

impl Child {
    /// How long it may take to end once it is aborted. A supervisor gives what is below it a time of its own, and says itself when that
    /// was not enough.
    pub(crate) fn grace(&self, grace: Duration) -> Option<Duration> {
        if self.rules.supervisor { None } else { Some(grace) }
    }

    /// Whether a run that ended so by itself is followed by another.
    pub(crate) fn is_restarted_after(&self, end: End) -> bool {
        match self.rules.restart {
            Restart::Permanent => true,
            Restart::Transient => end == End::Abnormal,
            Restart::Temporary => false,
        }
    }

    /// It is up no longer: if it was for long enough, its earlier failures are forgotten.
    pub(crate) fn leave_running(&mut self, now: Instant) {
        if self.state == State::Running
            && self.rules.backoff.is_reset_by(now.saturating_duration_since(self.since))
        {
            self.failures = 0;
        }
    }

    /// As it is now. A group that is down together is started at `group`.
    pub(crate) fn snapshot(&self, now: Instant, group: Option<Instant>) -> ChildSnapshot {
        let left = |at: Instant| at.saturating_duration_since(now);
        let (mut uptime, mut next_restart) = (None, None);
        let state = match self.state {
            State::Waiting => {
                next_restart = group.map(left);
                ChildState::Waiting
            }
            State::Starting => ChildState::Starting,
            State::Running => {
                uptime = Some(now.saturating_duration_since(self.since));
                ChildState::Running
            }
            State::Restarting => {
                next_restart = Some(self.due.or(group).map_or(Duration::ZERO, left));
                ChildState::Restarting
            }
            State::Stopping { stage: Stage::Stuck, .. } => ChildState::Stuck,
            State::Stopping { .. } => ChildState::Stopping,
            State::Exited(end) if self.is_restarted_after(end) => ChildState::Restarting,
            State::Exited(_) | State::Stopped => ChildState::Stopped,
        };
        ChildSnapshot {
            name: Arc::clone(&self.name),
            state,
            attempts: self.attempts,
            restarts: self.restarts,
            uptime,
            next_restart,
            last_error: self.last_error.clone(),
            degraded: self.health.clone(),
            supervisor: None,
        }
    }
}

/// The children by key, by name and in their order; each step is O(1).
#[derive(Debug)]
pub(crate) struct Children {
    slots: Vec<Option<Child>>,
    free: Vec<u32>,
    names: HashMap<Arc<str>, Key>,
    head: u32,
    tail: u32,
    orders: u64,
}

impl Children {
    pub(crate) fn with_capacity(children: usize) -> Self {
        let (slots, names) = (Vec::with_capacity(children), HashMap::with_capacity(children));
        Self { slots, free: Vec::new(), names, head: NONE, tail: NONE, orders: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    pub(crate) fn find(&self, name: &str) -> Option<Key> {
        self.names.get(name).copied()
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Child> {
        self.slots.get(key.0 as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Child> {
        self.slots.get_mut(key.0 as usize)?.as_mut()
    }

    /// In no order.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Child> {
        self.slots.iter_mut().flatten()
    }

    /// Appends a child that is not yet started; `None` if the name is taken.
    pub(crate) fn push(&mut self, name: Arc<str>, rules: Arc<Rules>, now: Instant) -> Option<Key> {
        let Entry::Vacant(free) = self.names.entry(Arc::clone(&name)) else { return None };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 children")
        });
        let key = *free.insert(Key(index));
        self.orders += 1;
        self.slots[index as usize] = Some(Child {
            name,
            rules,
            state: State::Waiting,
            epoch: 0,
            order: self.orders,
            since: now,
            due: None,
            attempts: 0,
            restarts: 0,
            failures: 0,
            last_error: None,
            health: None,
            command: None,
            prev: self.tail,
            next: NONE,
        });
        match self.tail {
            NONE => self.head = index,
            tail => self.link(tail).next = index,
        }
        self.tail = index;
        Some(key)
    }

    fn link(&mut self, index: u32) -> &mut Child {
        self.slots[index as usize].as_mut().expect("linked children are there")
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Child> {
        let child = self.slots.get_mut(key.0 as usize)?.take()?;
        match child.prev {
            NONE => self.head = child.next,
            prev => self.link(prev).next = child.next,
        }
        match child.next {
            NONE => self.tail = child.prev,
            next => self.link(next).prev = child.prev,
        }
        self.names.remove(&child.name);
        self.free.push(key.0);
        Some(child)
    }

    /// In the order of starts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &Child)> {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let key = Key(at);
            let child = self.get(key)?;
            at = child.next;
            Some((key, child))
        })
    }
}
