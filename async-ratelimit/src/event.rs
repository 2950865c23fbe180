use std::time::Duration;

use async_policy::{Name, PolicyKind, Rejection};
use tokio::time::Instant;

use crate::Quota;

/// What a limit did. What is let in at once is not an event: the healthy path has nothing to tell.
#[derive(Debug)]
#[cfg_attr(not(all(feature = "tracing", feature = "metrics")), allow(dead_code))]
pub(crate) enum Event<'a> {
    /// It refused.
    Rejected(&'a Rejection),
    /// It let in somebody who had waited so long.
    Waited(Duration),
    /// How many may be in flight was changed.
    LimitChanged { from: u32, to: u32 },
    /// The quota was changed.
    QuotaChanged { from: Quota, to: Quota },
    /// A quota with a queue cannot reach its rate: its burst is smaller than what comes back between two ticks of a timer.
    QuotaTooFine(Quota),
}

/// When a wait began, if anybody wants to know: to read the clock costs as much as to take the permit.
pub(crate) fn stopwatch() -> Option<Instant> {
    cfg!(any(feature = "tracing", feature = "metrics")).then(Instant::now)
}

/// The one place where events leave the crate. Called without any lock.
pub(crate) fn emit(policy: PolicyKind, name: Option<&Name>, event: &Event<'_>) {
    #[cfg(feature = "tracing")]
    trace(policy, name, event);
    #[cfg(feature = "metrics")]
    measure(policy, name, event);
    let _ = (policy, name, event);
}

#[cfg(feature = "tracing")]
const TARGET: &str = "async_ratelimit";

#[cfg(feature = "tracing")]
fn trace(policy: PolicyKind, name: Option<&Name>, event: &Event<'_>) {
    let (policy, name) = (policy.as_str(), name.map(|name| &**name));
    match event {
        Event::Rejected(rejection) => {
            let (reason, retry_after) = (rejection.reason().as_str(), rejection.retry_after());
            tracing::debug!(target: TARGET, policy, name, reason, ?retry_after, "refused");
        }
        Event::Waited(wait) => tracing::trace!(target: TARGET, policy, name, ?wait, "let in after a wait"),
        Event::LimitChanged { from, to } => {
            tracing::info!(target: TARGET, policy, name, from, to, "limit changed");
        }
        Event::QuotaChanged { from, to } => {
            tracing::info!(target: TARGET, policy, name, ?from, ?to, "quota changed");
        }
        Event::QuotaTooFine(quota) => {
            let (rate, reached) = (quota.rate(), quota.waiting_rate());
            tracing::warn!(target: TARGET, policy, name, ?quota, rate, reached, "callers who wait cannot reach the rate: raise the burst");
        }
    }
}

#[cfg(feature = "metrics")]
fn measure(policy: PolicyKind, name: Option<&Name>, event: &Event<'_>) {
    let policy = match policy {
        PolicyKind::RateLimit => "rate",
        _ => "concurrency",
    };
    let name = || name.map_or_else(String::new, |name| name.to_string());
    match event {
        Event::Rejected(rejection) => {
            let reason = rejection.reason().as_str();
            metrics::counter!("async_ratelimit_refused_total", "limit" => policy, "name" => name(), "reason" => reason)
                .increment(1);
        }
        Event::Waited(wait) => {
            metrics::histogram!("async_ratelimit_wait_seconds", "limit" => policy, "name" => name())
                .record(*wait);
        }
        Event::LimitChanged { to, .. } => {
            metrics::gauge!("async_ratelimit_limit", "limit" => policy, "name" => name()).set(*to);
        }
        Event::QuotaChanged { to, .. } => {
            metrics::gauge!("async_ratelimit_limit", "limit" => policy, "name" => name()).set(to.rate());
        }
        Event::QuotaTooFine(_) => {}
    }
}
