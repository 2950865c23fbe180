//! What the loop, the handles and the contexts of a supervisor share.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::context::Run;
use crate::event::Hub;
use crate::poll;
use crate::state::{Core, Key, Verb};
use crate::tasks::Owner;
use crate::watchdog::Watchdog;
use crate::worker::{bury, shielded};
use crate::{
    Child, CommandError, Context, Event, EventKind, Exit, Handle, Report, Signal, TaskFailure, Tasks,
};

/// What the supervisor's loop is told.
///
/// However much is said, few of these wait to be heard: of each run its end, its readiness and its last word on its health, each halt once,
/// and [`COMMANDS`].
pub(crate) enum Message {
    Exit {
        key: Key,
        epoch: u64,
        exit: Exit,
    },
    Ready {
        key: Key,
        epoch: u64,
    },
    /// There is news of the health in the run.
    Health(Arc<Run>),
    /// A supervisor below is over, but for what it has leaked.
    Leaking {
        key: Key,
        epoch: u64,
        exit: Exit,
    },
    Add {
        child: Child,
        reply: Reply,
    },
    Command {
        verb: Verb,
        name: Arc<str>,
        reply: Reply,
    },
    Halt(Halt),
    /// What went wrong in the stop of a supervisor below.
    Below(Below),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Halt {
    Stop,
    /// The time of the stop above is nearly over.
    Hurry,
    Force,
    /// The time of the stop above is over.
    Abort,
}

#[derive(Default)]
pub(crate) struct Below {
    pub(crate) aborted: Vec<Arc<str>>,
    pub(crate) failed: Vec<(Arc<str>, Exit)>,
}

/// What is below a child that is more than one run.
#[derive(Clone)]
pub(crate) enum Nest {
    Supervisor(Handle),
    Tasks(Weak<Owner>),
}

impl Nest {
    pub(crate) const fn supervisor(&self) -> Option<&Handle> {
        match self {
            Self::Supervisor(handle) => Some(handle),
            Self::Tasks(_) => None,
        }
    }
}

/// Where the answer to a command goes, and its place in the queue until it is carried out.
pub(crate) struct Reply {
    pub(crate) answer: oneshot::Sender<Result<(), CommandError>>,
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

/// How many commands may wait for their turn.
const COMMANDS: usize = 1024;

/// How far a supervisor has come.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// All children of the first start were up.
    pub(crate) up: bool,
    pub(crate) over: Option<Arc<Report>>,
}

pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    /// The names from the root on.
    pub(crate) path: Arc<str>,
    /// Held for a few lines at a time; no code of a user's runs under it.
    core: Mutex<Core>,
    messages: mpsc::UnboundedSender<Message>,
    /// The places in the queue of commands.
    pub(crate) places: Arc<Semaphore>,
    /// Which halts have been told.
    halts: AtomicU8,
    /// What asked for the stop, if that was a signal.
    pub(crate) signal: OnceLock<Signal>,
    pub(crate) progress: watch::Sender<Progress>,
    nested: Mutex<HashMap<Key, Nest>>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) watchdog: Option<Arc<Watchdog>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Shared {
    /// Below `above`, or at the root of a tree with this watchdog.
    pub(crate) fn new(
        name: Arc<str>,
        core: Core,
        above: Option<&Context>,
        watchdog: Option<Arc<Watchdog>>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Message>) {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (path, hub, watchdog) = match above.map(|ctx| &ctx.run.shared) {
            Some(above) => {
                (format!("{}/{name}", above.path).into(), Arc::clone(&above.hub), above.watchdog.clone())
            }
            None => (Arc::clone(&name), Arc::new(Hub::new()), watchdog),
        };
        let shared = Self {
            name,
            path,
            core: Mutex::new(core),
            messages,
            places: Arc::new(Semaphore::new(COMMANDS)),
            halts: AtomicU8::new(0),
            signal: OnceLock::new(),
            progress: watch::Sender::new(Progress::default()),
            nested: Mutex::default(),
            hub,
            watchdog,
        };
        (Arc::new(shared), inbox)
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        // Each step of the core leaves it whole, or panics for good.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn nested(&self) -> MutexGuard<'_, HashMap<Key, Nest>> {
        self.nested.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is below a child from now on.
    pub(crate) fn nest(&self, key: Key, nest: Nest) {
        // Dropped after the lock.
        let _before = self.nested().insert(key, nest);
    }

    fn below(&self, key: Key) -> Option<Nest> {
        self.nested().get(&key).cloned()
    }

    /// Tells what is below this child, if something is.
    pub(crate) fn halt_below(&self, key: Key, how: Halt) -> bool {
        match self.below(key) {
            None => return false,
            Some(Nest::Supervisor(handle)) => handle.shared().halt(how),
            Some(Nest::Tasks(tasks)) => {
                if let (Halt::Abort, Some(tasks)) = (how, Tasks::upgrade(&tasks)) {
                    tasks.close();
                    tasks.abort_all();
                }
            }
        }
        true
    }

    /// Lets go of what is below a child.
    pub(crate) fn forget(&self, key: Key) {
        // Dropped after the lock.
        let _gone = self.nested().remove(&key);
    }

    /// Who would not stop and is still there, here and below.
    pub(crate) fn leaked(&self) -> Vec<Arc<str>> {
        let stuck = self.core().leaked();
        let mut leaked = Vec::new();
        for (key, name) in stuck {
            let below = match self.below(key) {
                None => Vec::new(),
                Some(Nest::Supervisor(handle)) => handle.shared().leaked(),
                Some(Nest::Tasks(tasks)) => {
                    Tasks::upgrade(&tasks).map_or_else(Vec::new, |tasks| tasks.names())
                }
            };
            leaked.extend(below.iter().map(|child| Arc::from(format!("{name}/{child}"))));
            if below.is_empty() {
                leaked.push(name);
            }
        }
        leaked
    }

    /// A tracked task of a child failed.
    pub(crate) fn task_failed(&self, run: &Run, text: Arc<str>, failure: TaskFailure) {
        let TaskFailure { task, exit } = failure;
        let name = format!("{}/{task}", run.name).into();
        self.core().task_failed(run.key, run.epoch, text, name, exit.clone());
        let child = Arc::clone(&run.name);
        let kind = EventKind::TaskFailed { child, task, exit };
        self.hub.emit(Event { supervisor: Arc::clone(&self.path), kind });
    }

    /// Tells those that wait for the start.
    pub(crate) fn is_up(&self) {
        shielded(|| self.progress.send_modify(|progress| progress.up = true));
    }

    /// Tells those that wait for the end.
    pub(crate) fn is_over(&self, report: &Arc<Report>) {
        shielded(|| self.progress.send_modify(|progress| progress.over = Some(Arc::clone(report))));
    }

    /// After the end of the supervisor there is nobody to tell.
    pub(crate) fn send_now(&self, message: Message) {
        bury(self.messages.send(message));
    }

    /// As [`send_now`](Self::send_now), and it is heard even if the worker that is being polled in this thread blocks it from now on.
    pub(crate) fn send(&self, message: Message) {
        self.send_now(message);
        poll::let_go();
    }

    /// The program has got a signal, and does what it asks for.
    pub(crate) fn signalled(&self, signal: Signal, how: Halt) {
        self.hub.emit(Event { supervisor: Arc::clone(&self.path), kind: EventKind::Signal(signal) });
        // What is being stopped already is not stopped by it.
        if self.halts.load(Ordering::Relaxed) == 0 {
            let _ = self.signal.set(signal);
        }
        self.halt(how);
    }

    /// However often it is asked for, it is told once.
    pub(crate) fn halt(&self, how: Halt) {
        let bit = 1 << how as u8;
        if self.halts.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            self.send(Message::Halt(how));
        }
    }
}
