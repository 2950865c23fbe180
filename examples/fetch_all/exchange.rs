//! An embedded HTTP server: 300 stock quotes from four exchanges, with seeded faults.
//!
//! What happens to the n-th request for a symbol depends on the seed alone; only the outage of one exchange is a matter of
//! time.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::{IncomingStream, Listener};
use axum::{Json, Router};
use reqwest::Url;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use crate::Boxed;
use crate::input::{HttpUrl, Input};

const EXCHANGES: [&str; 4] = ["north", "east", "south", "west"];
const QUOTES: usize = 300;
/// The exchange that dies for a while.
const MORTAL: &str = "west";
const DIES_AFTER: Duration = Duration::from_millis(1500);
const BACK_AFTER: Duration = Duration::from_millis(6500);

/// The server, as long as this lives.
#[derive(Debug)]
pub(crate) struct Exchange {
    address: SocketAddr,
    inputs: Vec<Input>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Exchange {
    /// Starts it on a free port of the loopback interface.
    pub(crate) async fn start(seed: u64) -> Result<Self, Boxed> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut inputs = Vec::new();
        for n in 0..QUOTES {
            let exchange = EXCHANGES[n % EXCHANGES.len()];
            let letters: String = (0..2).map(|_| random.uppercase()).collect();
            let name = format!("{letters}{n:03}");
            let url = Url::parse(&format!("http://{exchange}.localhost:{}/quotes/{name}", address.port()))?;
            inputs.push(Input { name, url: HttpUrl(url) });
        }
        // One symbol of each exchange is no longer listed: those are the quotes that cannot be had.
        let delisted = (0..EXCHANGES.len())
            .map(|exchange| inputs[exchange + 4 * random.usize(0..QUOTES / 4)].name.clone());
        let market =
            Market { seed, opened: Instant::now(), delisted: delisted.collect(), asked: Mutex::default() };
        let app = Router::new().route("/quotes/{symbol}", get(quote)).with_state(Arc::new(market));
        let app = app.into_make_service_with_connect_info::<Reset>();
        let server = tokio::spawn(async move {
            let _ = axum::serve(Breakable(listener), app).await;
        });
        Ok(Self { address, inputs, server })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn inputs(&self) -> Vec<Input> {
        self.inputs.clone()
    }

    /// The names that stand for this server's address.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = String> {
        EXCHANGES.iter().map(|exchange| format!("{exchange}.localhost"))
    }
}

#[derive(Debug)]
struct Market {
    seed: u64,
    opened: Instant,
    delisted: Vec<String>,
    asked: Mutex<HashMap<String, u64>>,
}

impl Market {
    /// The luck of the next request for a symbol.
    fn luck(&self, symbol: &str) -> fastrand::Rng {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let n = asked.entry(symbol.to_owned()).or_default();
        *n += 1;
        let mut seed = self.seed ^ n.rotate_left(32);
        for byte in symbol.bytes() {
            seed = (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3); // FNV-1a
        }
        fastrand::Rng::with_seed(seed)
    }

    fn is_dead(&self, exchange: &str) -> bool {
        exchange == MORTAL && (DIES_AFTER..BACK_AFTER).contains(&self.opened.elapsed())
    }
}

async fn quote(
    State(market): State<Arc<Market>>,
    ConnectInfo(reset): ConnectInfo<Reset>,
    Path(symbol): Path<String>,
    headers: HeaderMap,
) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let exchange = host.split('.').next().unwrap_or_default();
    if market.is_dead(exchange) {
        return reset.now();
    }
    if market.delisted.contains(&symbol) {
        return (StatusCode::NOT_FOUND, format!("{symbol} is no longer listed")).into_response();
    }
    let mut luck = market.luck(&symbol);
    tokio::time::sleep(Duration::from_millis(luck.u64(5..40))).await;
    match luck.u32(0..100) {
        0..8 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        8..12 => {
            tokio::time::sleep(Duration::from_secs(2)).await;
            StatusCode::OK.into_response()
        }
        12..16 => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")]).into_response(),
        16..20 => reset.now(),
        _ => Json(
            json!({ "symbol": symbol, "exchange": exchange, "price": luck.u32(100..100_000) as f64 / 100.0 }),
        )
        .into_response(),
    }
}

/// Cuts the connection that a request came in on.
#[derive(Clone, Debug, Default)]
struct Reset(Arc<AtomicBool>);

impl Reset {
    fn now(&self) -> Response {
        self.0.store(true, Relaxed);
        // Never sent: the write fails.
        StatusCode::OK.into_response()
    }
}

impl Connected<IncomingStream<'_, Breakable>> for Reset {
    fn connect_info(stream: IncomingStream<'_, Breakable>) -> Self {
        stream.io().reset.clone()
    }
}

#[derive(Debug)]
struct Breakable(TcpListener);

impl Listener for Breakable {
    type Io = BreakableStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BreakableStream, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.0).await;
        // Closing sends a reset instead of a farewell; a connection that is not cut is closed by the client.
        let _ = stream.set_zero_linger();
        (BreakableStream { stream, reset: Reset::default() }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A connection that fails once it is told to.
#[derive(Debug)]
struct BreakableStream {
    stream: TcpStream,
    reset: Reset,
}

impl BreakableStream {
    fn check(&self) -> io::Result<()> {
        if self.reset.0.load(Relaxed) { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl AsyncRead for BreakableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for BreakableStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
