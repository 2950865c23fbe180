//! What the `tracing` and `metrics` features emit: one place.
//!
//! However a caller spells it, the path that is told is absolute, and the file's where that is reached by a link.

use std::path::Path;

use crate::error::Fault;
#[cfg(any(feature = "tracing", feature = "metrics"))]
use crate::{error::Outcome, panics::contained};

#[derive(Debug)]
#[cfg_attr(not(any(feature = "tracing", feature = "metrics")), allow(dead_code))]
pub(crate) enum Event<'a> {
    /// The file was replaced.
    Written { bytes: usize, durable: bool },
    /// It was not, or it is not known to be durable.
    Failed(&'a Fault),
    /// A change waits for another process.
    Waiting,
    /// A store's commit is over: how many changes there were in it.
    Committed { changes: usize },
}

/// It runs in the job that has the file. A panic of a subscriber or a recorder stays here.
pub(crate) fn tell(path: &Path, event: &Event<'_>) {
    #[cfg(feature = "tracing")]
    contained(|| trace(path, event));
    #[cfg(feature = "metrics")]
    contained(|| measure(event));
    let _ = (path, event);
}

#[cfg(feature = "tracing")]
const TARGET: &str = "async_jsonfs";

#[cfg(feature = "tracing")]
fn trace(path: &Path, event: &Event<'_>) {
    let path = tracing::field::display(path.display());
    match event {
        Event::Written { bytes, durable } => {
            tracing::debug!(target: TARGET, path, bytes, durable, "file replaced");
        }
        Event::Failed(Fault { kind, outcome: Outcome::Visible }) => {
            tracing::warn!(target: TARGET, path, cause = ?kind, "file replaced, perhaps not durably");
        }
        Event::Failed(Fault { kind, .. }) => {
            tracing::warn!(target: TARGET, path, cause = ?kind, "file not replaced");
        }
        Event::Waiting => {
            tracing::debug!(target: TARGET, path, "waiting for another process");
        }
        Event::Committed { changes } => {
            tracing::debug!(target: TARGET, path, changes, "commit over");
        }
    }
}

#[cfg(feature = "metrics")]
fn measure(event: &Event<'_>) {
    let wrote = |outcome: &'static str| {
        metrics::counter!("async_jsonfs_writes_total", "outcome" => outcome).increment(1);
    };
    match event {
        Event::Written { bytes, durable } => {
            wrote(if *durable { "durable" } else { "visible" });
            metrics::counter!("async_jsonfs_written_bytes_total").increment(*bytes as u64);
        }
        Event::Failed(Fault { outcome: Outcome::Visible, .. }) => wrote("durability_unknown"),
        Event::Failed(_) => wrote("failed"),
        Event::Waiting => metrics::counter!("async_jsonfs_lock_waits_total").increment(1),
        Event::Committed { changes } => {
            metrics::histogram!("async_jsonfs_commit_changes").record(*changes as f64);
        }
    }
}
