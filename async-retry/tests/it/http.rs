use std::sync::Mutex;
use std::time::Duration;

use async_retry::http::ByStatus;
use async_retry::{Backoff, Failure, Retry, RetryLayer};
use http::Response;
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

/// What the server says in turn: a status, and the `Retry-After` with it. What the call ends with, after how long.
async fn served(answers: &[(u16, &str)]) -> (Result<u16, Failure<()>>, Duration) {
    let answers = Mutex::new(answers.iter());
    let started = Instant::now();
    let retry = Retry::new(Backoff::constant(Duration::from_millis(100))).unwrap();
    let service = RetryLayer::new(retry).with_classifier(ByStatus).layer(service_fn(|()| {
        let Some((status, after)) = answers.lock().unwrap().next() else {
            return std::future::ready(Err(Failure::Operation(())));
        };
        let response = Response::builder().status(*status);
        let response = if after.is_empty() { response } else { response.header("retry-after", *after) };
        std::future::ready(Ok(response.body(()).unwrap()))
    }));
    let result = service.oneshot(()).await;
    (result.map(|response| response.status().as_u16()), started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_layer_reads_statuses_and_waits_as_long_as_the_server_says() {
    let secs = Duration::from_secs;
    let tenth = Duration::from_millis(100);
    assert_eq!(served(&[(429, "3"), (200, "")]).await, (Ok(200), secs(3)));
    assert_eq!(served(&[(503, "99999"), (200, "")]).await, (Ok(200), secs(20)), "the cap");
    assert_eq!(served(&[(429, "Sun, 06 Nov 1994 08:49:37 GMT"), (200, "")]).await, (Ok(200), secs(0)));
    assert_eq!(served(&[(503, "soon"), (503, ""), (200, "")]).await, (Ok(200), tenth * 2));
    assert_eq!(served(&[(500, ""), (500, ""), (502, "")]).await, (Ok(502), tenth * 2), "the last answer");
    assert_eq!(served(&[(404, ""), (200, "")]).await, (Ok(404), secs(0)));
    // An error has no status: it is what it says itself.
    assert_eq!(served(&[]).await, (Err(Failure::Operation(())), tenth * 2));
    assert_eq!(served(&[(500, "")]).await.0, Err(Failure::Operation(())));
}
