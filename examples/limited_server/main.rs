//! An axum server behind limits per client and a bulkhead, and real HTTP clients that obey what it says.
//!
//! ```text
//! cargo run --release --example limited_server
//! ```

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_policy::{Failure, Operation, Policy, Verdict};
use async_ratelimit::http::{AnswerLayer, HttpRateLimitLayer, by_header};
use async_ratelimit::{ConcurrencyLimit, ConcurrencyLimitLayer, KeyedRateLimit, Quota};
use async_retry::{Backoff, Retry};
use axum::Router;
use axum::http::{HeaderName, StatusCode};
use axum::routing::get;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use reqwest::{Client, Response};
use tower::ServiceBuilder;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const CLIENT: HeaderName = HeaderName::from_static("x-client");
const CLIENTS: u32 = 4;
const REQUESTS: u32 = 12;
const STRANGERS: u32 = 40;

/// Each client: 5 requests per second, 3 at once. All together: 8 at a time.
async fn serve() -> Result<SocketAddr> {
    let per_client =
        KeyedRateLimit::builder(Quota::per_second(5).with_burst(3)).with_name("client").build()?;
    let bulkhead = ConcurrencyLimit::builder(8).with_name("quotes").build()?;
    let limits = ServiceBuilder::new()
        .layer(HttpRateLimitLayer::new(per_client, by_header(CLIENT)))
        .layer(AnswerLayer::new())
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

/// What the server's answer means: 429 asks for less, as does a 503 that says for how long.
fn verdict(answer: std::result::Result<&Response, &reqwest::Error>) -> Verdict {
    answer.map_or(Verdict::Transient, |response| {
        async_retry::http::verdict(response.status(), response.headers())
    })
}

/// What became of somebody's requests.
#[derive(Debug, Default)]
struct Tally {
    requests: u32,
    answers: u32,
    told_to_wait: u32,
    /// Refused again after it had waited as long as it was told.
    told_again: u32,
    full: u32,
    other: u32,
    /// The shortest and the longest `Retry-After`.
    waits: Option<(Duration, Duration)>,
    refused_last: bool,
}

impl Tally {
    fn note(&mut self, response: &Response) {
        self.requests += 1;
        let refused = response.status() == StatusCode::TOO_MANY_REQUESTS;
        match response.status() {
            StatusCode::OK => self.answers += 1,
            StatusCode::TOO_MANY_REQUESTS => {
                self.told_to_wait += 1;
                self.told_again += u32::from(self.refused_last);
                let wait = async_retry::http::retry_after(response.headers()).unwrap_or_default();
                let (shortest, longest) = self.waits.unwrap_or((wait, wait));
                self.waits = Some((shortest.min(wait), longest.max(wait)));
            }
            StatusCode::SERVICE_UNAVAILABLE => self.full += 1,
            _ => self.other += 1,
        }
        self.refused_last = refused;
    }

    fn row(&self, who: &str, took: Duration) -> [String; 9] {
        let waits = match self.waits {
            None => "-".to_owned(),
            Some((shortest, longest)) if shortest == longest => format!("{} s", longest.as_secs()),
            Some((shortest, longest)) => format!("{} to {} s", shortest.as_secs(), longest.as_secs()),
        };
        let counts = [self.requests, self.answers, self.told_to_wait, self.told_again, self.full, self.other];
        let [requests, answers, told, again, full, other] = counts.map(|n| n.to_string());
        [
            who.to_owned(),
            requests,
            answers,
            told,
            waits,
            again,
            full,
            other,
            format!("{:.1} s", took.as_secs_f64()),
        ]
    }
}

const COLUMNS: [&str; 9] =
    ["who", "requests", "answers", "429", "Retry-After", "429 again", "503", "other", "took"];

/// Asks until it is answered, waiting as long as the server says.
async fn polite_client(url: String, name: String) -> Result<[String; 9]> {
    let http = Client::new();
    let tally = Mutex::new(Tally::default());
    let retry =
        Retry::new(Backoff::exponential(Duration::from_millis(100)).with_cap(Duration::from_secs(5)))?;
    let started = Instant::now();
    for _ in 0..REQUESTS {
        let ask = || async {
            let response = http.get(&url).header(CLIENT, &name).send().await?;
            tally.lock().expect("nobody panics").note(&response);
            Ok::<_, reqwest::Error>(response)
        };
        retry.call(ask.classify_with(verdict)).await?;
    }
    let row = tally.lock().expect("nobody panics").row(&name, started.elapsed());
    Ok(row)
}

/// Strangers who all come at once: each within its own limit, but too many for the bulkhead.
async fn strangers(url: &str) -> Result<[String; 9]> {
    let http = Client::new();
    let started = Instant::now();
    let crowd: Vec<_> = (0..STRANGERS)
        .map(|n| tokio::spawn(http.get(url).header(CLIENT, format!("stranger-{n}")).send()))
        .collect();
    let mut tally = Tally::default();
    for stranger in crowd {
        tally.note(&stranger.await??);
    }
    Ok(tally.row("strangers", started.elapsed()))
}

#[tokio::main]
async fn main() -> Result<()> {
    // The HTTP client wants a TLS library, even if it is not used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = format!("http://{}/quote", serve().await?);
    println!(
        "{CLIENTS} clients who obey Retry-After, then {STRANGERS} strangers all at once; each client may"
    );
    println!("ask 5 times per second, 3 at once, and the server works at 8 requests at a time.");

    let clients: Vec<_> =
        (1..=CLIENTS).map(|n| tokio::spawn(polite_client(url.clone(), format!("client-{n}")))).collect();
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(COLUMNS);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for client in clients {
        table.add_row(client.await??);
    }
    table.add_row(strangers(&url).await?);
    println!("{table}");
    Ok(())
}
