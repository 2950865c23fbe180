//! The one place where events become logs and metrics.

use crate::Event;

/// Logs the event and counts it, as the features say.
#[cfg_attr(not(any(feature = "tracing", feature = "metrics")), allow(unused_variables))]
pub(crate) fn record(event: &Event) {
    #[cfg(feature = "tracing")]
    trace(event);
    #[cfg(feature = "metrics")]
    count(event);
}

#[cfg(feature = "tracing")]
pub(crate) const TARGET: &str = "async_supervisor";

#[cfg(feature = "tracing")]
fn trace(event: &Event) {
    use crate::EventKind;
    use crate::snapshot::whole;
    let supervisor = &*event.supervisor;
    let child = event.kind.child().map(|child| &**child);
    match &event.kind {
        EventKind::Exited { exit, .. } if exit.is_normal() => {
            tracing::info!(target: TARGET, supervisor, child, "completed");
        }
        EventKind::Exited { exit, .. } => tracing::warn!(target: TARGET, supervisor, child, %exit, "exited"),
        EventKind::Restarting { delay, .. } => {
            tracing::info!(target: TARGET, supervisor, child, delay = ?whole(*delay), "restarting");
        }
        EventKind::Started { attempt, .. } => {
            tracing::debug!(target: TARGET, supervisor, child, attempt, "started");
        }
        EventKind::HealthChanged { health, .. } => {
            tracing::info!(target: TARGET, supervisor, child, ?health, "health_changed");
        }
        EventKind::Aborted { .. } | EventKind::Stuck { .. } => {
            tracing::warn!(target: TARGET, supervisor, child, "{}", event.kind.name());
        }
        EventKind::TaskFailed { task, exit, .. } => {
            tracing::warn!(target: TARGET, supervisor, child, task = &**task, %exit, "task_failed");
        }
        EventKind::Stalled(stall) => tracing::warn!(target: TARGET, supervisor, child, %stall, "stalled"),
        EventKind::Up => tracing::info!(target: TARGET, supervisor, "started"),
        EventKind::Signal(signal) => tracing::info!(target: TARGET, supervisor, %signal, "signal received"),
        EventKind::Stopping => tracing::info!(target: TARGET, supervisor, "stopping"),
        EventKind::Ended { report } if !report.is_clean() => {
            tracing::error!(target: TARGET, supervisor, %report, "stopped");
        }
        EventKind::Ended { report } => tracing::info!(target: TARGET, supervisor, %report, "stopped"),
        _ => tracing::debug!(target: TARGET, supervisor, child, "{}", event.kind.name()),
    }
}

#[cfg(feature = "metrics")]
fn count(event: &Event) {
    use crate::EventKind;
    let mut labels = vec![metrics::Label::new("name", event.supervisor.to_string())];
    let name = match &event.kind {
        EventKind::Started { .. } => "async_supervisor_starts_total",
        EventKind::Exited { exit, .. } => {
            labels.push(metrics::Label::from_static_parts("exit", exit.as_str()));
            "async_supervisor_exits_total"
        }
        EventKind::Restarting { .. } => "async_supervisor_restarts_total",
        EventKind::TaskFailed { .. } => "async_supervisor_task_failures_total",
        EventKind::Stuck { .. } => "async_supervisor_stuck_total",
        EventKind::Stalled(_) => "async_supervisor_stalls_total",
        _ => return,
    };
    metrics::counter!(name, labels).increment(1);
}
