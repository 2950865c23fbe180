//! An axum server behind limits per client and a bulkhead, and real HTTP clients that obey what it says.
//!
//! ```text
//! cargo run --release --example limited_server
//! ```

use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_policy::{Failure, Operation, Policy, Verdict};
use async_ratelimit::http::{AnswerLayer, HttpRateLimitLayer, by_header};
use async_ratelimit::{ConcurrencyLimit, ConcurrencyLimitLayer, KeyedRateLimit, Quota};
use async_retry::{Backoff, Retry};
use axum::Router;
use axum::http::{HeaderName, StatusCode};
use axum::routing::get;
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Response};
use tower::ServiceBuilder;

const CLIENT: HeaderName = HeaderName::from_static("x-client");
const CLIENTS: u32 = 4;
const REQUESTS: u32 = 12;

/// Each client: 5 requests per second, 3 at once. All together: 8 at a time.
async fn serve() -> Result<SocketAddr, Box<dyn Error + Send + Sync>> {
    let per_client =
        KeyedRateLimit::builder(Quota::per_second(5).with_burst(3)).with_name("client").build()?;
    let bulkhead = ConcurrencyLimit::builder(8).with_name("quotes").build()?;
    let limits = ServiceBuilder::new()
        .layer(HttpRateLimitLayer::new(per_client, by_header(CLIENT)))
        .layer(AnswerLayer)
        .layer(ConcurrencyLimitLayer::new(bulkhead))
        .map_err(Failure::Operation);
    let quote = async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        "100.25"
    };
    let app = Router::new().route("/quote", get(quote)).layer(limits);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

/// What the server's answer means: 429 and 503 ask for less, and may say for how long.
fn verdict(answer: Result<&Response, &reqwest::Error>) -> Verdict {
    match answer {
        Ok(response) => match response.status() {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let seconds =
                    response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                Verdict::Throttled { retry_after: seconds.map(Duration::from_secs) }
            }
            status if status.is_server_error() => Verdict::Transient,
            status if status.is_client_error() => Verdict::Permanent,
            _ => Verdict::Success,
        },
        Err(_) => Verdict::Transient,
    }
}

/// Asks until it is answered, waiting as long as the server says.
async fn polite_client(
    url: String,
    name: String,
) -> Result<(String, u32, Duration), Box<dyn Error + Send + Sync>> {
    let http = Client::new();
    let refusals = std::sync::atomic::AtomicU32::new(0);
    let retry =
        Retry::new(Backoff::exponential(Duration::from_millis(100)).with_cap(Duration::from_secs(5)))?;
    let started = Instant::now();
    for n in 1..=REQUESTS {
        let ask = || async {
            let response = http.get(&url).header(CLIENT, &name).send().await?;
            let fields = |field: &str| {
                response.headers().get(field).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned()
            };
            let (status, left, wait) =
                (response.status().as_u16(), fields("ratelimit"), fields("retry-after"));
            println!("{name} {n:2}: {status}  ratelimit {left:24} retry-after {wait}");
            refusals.fetch_add(u32::from(status == 429), std::sync::atomic::Ordering::Relaxed);
            Ok::<_, reqwest::Error>(response)
        };
        let response = retry.call(ask.classify_with(verdict)).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("{name} gave up with {}", response.status()).into());
        }
    }
    Ok((name, refusals.into_inner(), started.elapsed()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // The HTTP client wants a TLS library, even if it is not used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = format!("http://{}/quote", serve().await?);

    let clients: Vec<_> =
        (1..=CLIENTS).map(|n| tokio::spawn(polite_client(url.clone(), format!("client-{n}")))).collect();
    let mut told = Vec::new();
    for client in clients {
        told.push(client.await??);
    }
    println!();
    for (name, refusals, took) in told {
        println!("{name}: {REQUESTS} answers, {refusals} times told to wait, {:.1} s", took.as_secs_f64());
    }

    // A crowd of strangers: each within its own limit, but too many at once for the bulkhead.
    let http = Client::new();
    let crowd: Vec<_> = (0..40)
        .map(|n| tokio::spawn(http.get(&url).header(CLIENT, format!("stranger-{n}")).send()))
        .collect();
    let (mut served, mut full) = (0, 0);
    for stranger in crowd {
        match stranger.await??.status() {
            StatusCode::OK => served += 1,
            StatusCode::SERVICE_UNAVAILABLE => full += 1,
            status => return Err(format!("a stranger got {status}").into()),
        }
    }
    println!("40 strangers at once: {served} answers, {full} times 503");
    Ok(())
}
