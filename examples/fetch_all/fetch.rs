//! The stack: overall deadline, retry, a breaker per host, rate and concurrency limit, a time-out per attempt.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_batch::Gather;
use async_circuit::{CircuitBreaker, Trip};
use async_policy::{Failure, Operation, Outcome, Policy, PolicyError, PolicyKind, Timeout, Verdict};
use async_ratelimit::{ConcurrencyLimit, Quota, RateLimit};
use async_retry::{Backoff, Retry};
use async_supervisor::Context;
use reqwest::{Client, StatusCode};
use serde_json::Value;

use crate::exchange::Exchange;
use crate::input::{HttpUrl, Input};
use crate::run::{Answer, Problem, Run};
use crate::{Args, Boxed, Item, report};

/// What is under way when the run is interrupted has this long to end.
pub(crate) const DRAIN: Duration = Duration::from_secs(3);
const ATTEMPT: Duration = Duration::from_millis(500);

/// What happened to one host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) breaker: CircuitBreaker,
    pub(crate) requests: AtomicU64,
    pub(crate) successes: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) refused_by_breaker: AtomicU64,
    pub(crate) refused_by_rate: AtomicU64,
    pub(crate) refused_by_limit: AtomicU64,
    latencies: Mutex<Vec<Duration>>,
}

impl Host {
    fn new(name: &str) -> Result<Self, Boxed> {
        let n = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let breaker = CircuitBreaker::builder()
            .with_name(name)
            .with_trip(Trip::failure_rate(0.5).of_last(n(20)).with_min_calls(n(8)))
            .with_open_for(Duration::from_secs(1))
            .with_probes(n(5))
            .build()?;
        Ok(Self {
            name: name.to_owned(),
            breaker,
            requests: AtomicU64::new(0),
            successes: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            refused_by_breaker: AtomicU64::new(0),
            refused_by_rate: AtomicU64::new(0),
            refused_by_limit: AtomicU64::new(0),
            latencies: Mutex::default(),
        })
    }

    fn answered_in(&self, latency: Duration) {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(latency);
    }

    /// The latency that this share of the answers kept below; time-outs have none.
    pub(crate) fn percentile(&self, share: f64) -> Option<Duration> {
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        latencies.sort_unstable();
        let place = (share * latencies.len() as f64).ceil() as usize;
        latencies.get(place.saturating_sub(1)).copied()
    }
}

/// A policy of our own: it lets everything through, and counts what the policies inside it say.
struct Tally<'h>(&'h Host);

impl Policy for Tally<'_> {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        let result = op.start().await;
        let counter = match op.outcome(&result) {
            Outcome::Answered(Verdict::Success) => &self.0.successes,
            Outcome::Answered(_) => return result,
            Outcome::TimedOut(_) => &self.0.timeouts,
            Outcome::Refused(rejection) => match rejection.policy() {
                PolicyKind::CircuitBreaker => &self.0.refused_by_breaker,
                PolicyKind::RateLimit => &self.0.refused_by_rate,
                _ => &self.0.refused_by_limit,
            },
        };
        counter.fetch_add(1, Relaxed);
        result
    }
}

/// Why one request failed.
#[derive(Debug)]
enum FetchError {
    Status { status: StatusCode, verdict: Verdict },
    Http(reqwest::Error),
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { status, .. } => write!(f, "the server answered {status}"),
            Self::Http(error) => f.write_str(&report::chain(error)),
        }
    }
}

impl std::error::Error for FetchError {}

fn verdict<T>(answer: Result<&T, &FetchError>) -> Verdict {
    match answer {
        Ok(_) => Verdict::Success,
        Err(FetchError::Status { verdict, .. }) => *verdict,
        Err(FetchError::Http(_)) => Verdict::Transient,
    }
}

/// Everything that fetches share.
#[derive(Debug)]
pub(crate) struct Fetcher {
    client: Client,
    deadline: Instant,
    retry: Retry,
    rate: RateLimit,
    limit: ConcurrencyLimit,
    attempt: Timeout,
    gather: Gather,
    hosts: BTreeMap<String, Host>,
}

impl Fetcher {
    pub(crate) fn new(args: &Args, exchange: Option<&Exchange>, run: &Run) -> Result<Self, Boxed> {
        // Without a provider of its own, the TLS library asks the process for one; a second call finds it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder().no_proxy().user_agent("fetch_all");
        if let Some(exchange) = exchange {
            for host in exchange.hosts() {
                client = client.resolve(&host, exchange.address());
            }
        }
        let backoff = Backoff::exponential(Duration::from_millis(100)).with_cap(Duration::from_secs(2));
        let burst = args.rate.div_ceil(10);
        let mut hosts = BTreeMap::new();
        for input in run.inputs() {
            let name = input.host();
            if !hosts.contains_key(&name) {
                hosts.insert(name.clone(), Host::new(&name)?);
            }
        }
        Ok(Self {
            client: client.build()?,
            deadline: Instant::now() + args.deadline,
            // Refusals count as attempts too; what ends a hopeless call is the deadline.
            retry: Retry::new(backoff)?.with_max_attempts(NonZeroU32::new(100).unwrap_or(NonZeroU32::MIN)),
            rate: RateLimit::builder(Quota::per_second(args.rate).with_burst(burst))
                .with_queue(usize::MAX, Duration::from_millis(750))
                .with_name("requests per second")
                .build()?,
            limit: ConcurrencyLimit::builder(args.concurrency)
                .with_queue(usize::MAX, Duration::from_millis(750))
                .with_name("requests on the wire")
                .build()?,
            attempt: Timeout::new(ATTEMPT).with_name("attempt"),
            // More items than requests: an item that waits for its backoff does not keep the others from the wire.
            gather: Gather::new(NonZeroUsize::try_from(4 * args.concurrency as usize)?)
                .with_progress(&run.progress),
            hosts,
        })
    }

    pub(crate) fn hosts(&self) -> Vec<&Host> {
        self.hosts.values().collect()
    }

    pub(crate) fn on_the_wire(&self) -> u32 {
        self.limit.in_flight()
    }

    async fn get(&self, url: &HttpUrl) -> Result<(StatusCode, Value), FetchError> {
        let response = self.client.get(url.0.clone()).send().await.map_err(FetchError::Http)?;
        let status = response.status();
        if !status.is_success() {
            let verdict = async_retry::http::verdict(status, response.headers());
            return Err(FetchError::Status { status, verdict });
        }
        let text = response.text().await.map_err(FetchError::Http)?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    async fn fetch(&self, input: &Input) -> Result<Answer, Problem> {
        let host = &self.hosts[&input.host()];
        let started = Instant::now();
        let attempts = AtomicU32::new(0);
        let deadline = Timeout::new(self.deadline.saturating_duration_since(started)).with_name("deadline");
        let stack =
            (deadline, &self.retry, Tally(host), &host.breaker, &self.rate, &self.limit, &self.attempt);
        let attempt = async || {
            host.requests.fetch_add(1, Relaxed);
            if attempts.fetch_add(1, Relaxed) > 0 {
                host.retries.fetch_add(1, Relaxed);
            }
            let sent = Instant::now();
            let answer = self.get(&input.url).await;
            host.answered_in(sent.elapsed());
            answer
        };
        let fetched = stack.call(attempt.classify_with(verdict)).await;
        let (name, url, attempts) = (input.name.clone(), input.url.0.to_string(), attempts.into_inner());
        match fetched {
            Ok((status, body)) => {
                let millis = started.elapsed().as_millis() as u64;
                Ok(Answer { name, url, status: status.as_u16(), attempts, millis, body })
            }
            Err(failure) => {
                let kind = match &failure {
                    Failure::Operation(_) => "failed",
                    Failure::Rejected(_) => "refused",
                    Failure::TimedOut(_) => "timed out",
                };
                Err(Problem { name, url, attempts, kind, error: report::chain(&failure) })
            }
        }
    }
}

/// Fetches what is still to be fetched. When it is asked to stop, it starts nothing more, and what is under way has a
/// little time to end.
pub(crate) async fn all(run: Arc<Run>, fetcher: Arc<Fetcher>, ctx: Context) {
    let stop = ctx.token();
    let items = run.rest().into_iter().take_while(|_| !stop.is_cancelled());
    let drained = async || {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    let fetch_one = |(index, input): Item| {
        let (run, fetcher, drained) = (&run, &fetcher, &drained);
        async move {
            tokio::select! {
                biased;
                end = fetcher.fetch(&input) => match end {
                    Ok(answer) => run.answered(index, answer),
                    Err(problem) => run.gave_up(index, problem),
                },
                () = drained() => {}
            }
            Ok::<_, std::convert::Infallible>(())
        }
    };
    let mut fetched = pin!(fetcher.gather.run(items, fetch_one));
    tokio::select! {
        _ = &mut fetched => return,
        () = stop.cancelled() => run.stop(),
    }
    let _ = fetched.await;
}
