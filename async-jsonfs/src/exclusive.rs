//! How a change runs: its turn, the lock, then all of it in one blocking job.

use std::cell::Cell;
use std::fs::File;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_policy::{Deadline, Reason};
use tokio::time::timeout_at;

use crate::error::{ErrorKind, Fault, Outcome};
use crate::held::Held;
use crate::job;
use crate::lock::{self, Entry, Locked, REAL, SPELLED, Turn};
use crate::ops::Ops;
use crate::options::Options;
use crate::target::{Target, absolute};
use crate::tell::{Event, tell};

/// How far a call has got on its way to the file.
enum Stage {
    Fresh(PathBuf),
    MyTurn {
        target: Target,
        entry: Arc<Entry>,
        turn: Turn,
        /// After a wait.
        locked: Option<Locked>,
    },
}

enum Progress<W, R> {
    Done(Result<R, Fault>),
    /// Another call of this process is on the file under another name.
    Queue {
        target: Target,
        entry: Arc<Entry>,
        work: W,
    },
    /// Another process is on it.
    Wait {
        target: Target,
        entry: Arc<Entry>,
        turn: Turn,
        lock: File,
        work: W,
    },
}

/// Runs `work` when it is this call's turn, with the file to itself. Normally that is one blocking job and no wait.
pub(crate) async fn run<R: Send + 'static>(
    ops: Arc<dyn Ops>,
    path: &Path,
    options: Options,
    work: impl FnOnce(&Held<'_>) -> Result<R, Fault> + Send + 'static,
) -> Result<R, Fault> {
    let path = absolute(path)?;
    // Held to the end: in the job, so that it lasts as long as the job does.
    let spelled = within(SPELLED.entry(path.clone()).turn()).await?;
    let mut keep = Some(spelled);
    let mut stage = Stage::Fresh(path);
    let mut work = work;
    loop {
        let ops = Arc::clone(&ops);
        let spelled = keep.take();
        let step = move || {
            let replaced = Cell::new(None);
            let progress = advance(&*ops, stage, &options, &replaced, work);
            // What is done ends its turn here, whether or not its caller is ever polled again.
            let keep = if matches!(progress, Ok(Progress::Queue { .. } | Progress::Wait { .. })) {
                spelled
            } else {
                None
            };
            ((progress, keep), replaced)
        };
        let (progress, spelled) = job::run(step).await?;
        keep = spelled;
        match progress? {
            Progress::Done(done) => return done,
            Progress::Queue { target, entry, work: back } => {
                let turn = within(Arc::clone(&entry).turn()).await?;
                stage = Stage::MyTurn { target, entry, turn, locked: None };
                work = back;
            }
            Progress::Wait { target, entry, turn, lock, work: back } => {
                let locked = within(entry.wait(lock)?).await?.map_err(|_| lock::lost())?;
                stage = Stage::MyTurn { target, entry, turn, locked: Some(locked) };
                work = back;
            }
        }
    }
}

/// [`run`] without a wait, in a thread that must not be kept waiting: `None` if somebody else is on the file.
pub(crate) fn try_run<R>(
    ops: &dyn Ops,
    path: &Path,
    options: &Options,
    replaced: &Cell<Option<File>>,
    work: impl FnOnce(&Held<'_>) -> Result<R, Fault>,
) -> Result<Option<R>, Fault> {
    let path = absolute(path)?;
    let Some(_spelled) = SPELLED.entry(path.clone()).try_turn() else { return Ok(None) };
    match advance(ops, Stage::Fresh(path), options, replaced, work)? {
        Progress::Done(done) => done.map(Some),
        Progress::Queue { .. } | Progress::Wait { .. } => Ok(None),
    }
}

/// [`run`] in a thread that nobody waits for: it blocks.
pub(crate) fn run_blocking<R>(
    ops: &dyn Ops,
    path: &Path,
    options: &Options,
    replaced: &Cell<Option<File>>,
    work: impl FnOnce(&Held<'_>) -> Result<R, Fault>,
) -> Result<R, Fault> {
    let path = absolute(path)?;
    let _spelled = SPELLED.entry(path.clone()).blocking_turn();
    let (mut stage, mut work) = (Stage::Fresh(path), work);
    loop {
        match advance(ops, stage, options, replaced, work)? {
            Progress::Done(done) => return done,
            Progress::Queue { target, entry, work: back } => {
                let turn = Arc::clone(&entry).blocking_turn();
                stage = Stage::MyTurn { target, entry, turn, locked: None };
                work = back;
            }
            Progress::Wait { target, entry, turn, lock, work: back } => {
                let locked = entry.wait(lock)?.blocking_recv().map_err(|_| lock::lost())?;
                stage = Stage::MyTurn { target, entry, turn, locked: Some(locked) };
                work = back;
            }
        }
    }
}

/// Goes as far as it can without waiting.
fn advance<R, W: FnOnce(&Held<'_>) -> Result<R, Fault>>(
    ops: &dyn Ops,
    stage: Stage,
    options: &Options,
    replaced: &Cell<Option<File>>,
    work: W,
) -> Result<Progress<W, R>, Fault> {
    let (target, entry, turn, locked) = match stage {
        Stage::Fresh(path) => {
            let target = Target::resolve(ops, &path, options)?;
            let entry = REAL.entry(target.key());
            match entry.try_turn() {
                Some(turn) => (target, entry, turn, None),
                None => return Ok(Progress::Queue { target, entry, work }),
            }
        }
        Stage::MyTurn { target, entry, turn, locked } => (target, entry, turn, locked),
    };
    let locked = match locked {
        _ if !options.processes => None,
        Some(locked) if locked.counts(ops, &target)? => Some(locked),
        _ => match lock::try_lock(ops, &target, options)? {
            Ok(locked) => Some(locked),
            Err(lock) => {
                tell(&target.path, &Event::Waiting);
                return Ok(Progress::Wait { target, entry, turn, lock, work });
            }
        },
    };
    let held = Held { ops, target: &target, options, replaced };
    let done = catch_unwind(AssertUnwindSafe(|| work(&held)));
    let failed = match &done {
        Ok(done) => done.as_ref().is_err_and(|fault| fault.outcome == Outcome::NotWritten),
        Err(_) => true,
    };
    // The other processes first: the next call of this one may then try the lock.
    match locked {
        Some(locked) if failed => locked.forget(ops, &target),
        locked => drop(locked),
    }
    drop(turn);
    Ok(Progress::Done(done.unwrap_or_else(|panic| resume_unwind(panic))))
}

/// Waits at most until the deadline in force, and not at all if that has passed.
pub(crate) async fn within<F: Future>(wait: F) -> Result<F::Output, Fault> {
    let refused = || Fault::from(ErrorKind::Rejected(job::refusal(Reason::DeadlineTooClose)));
    match Deadline::current() {
        None => Ok(wait.await),
        Some(deadline) => timeout_at(deadline.instant(), wait).await.map_err(|_| refused()),
    }
}
