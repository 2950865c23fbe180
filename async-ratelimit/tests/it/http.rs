use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;

use async_policy::{Timeout, TimeoutLayer};
use async_ratelimit::http::{
    AnswerLayer, HttpRateLimitLayer, KeyExtractor, answer, by_header, by_path, by_peer, rate_limit_fields,
};
use async_ratelimit::{
    ConcurrencyLimit, ConcurrencyLimitLayer, Failure, KeyedRateLimit, Quota, RateLimit, RateLimitLayer,
    TimedOut,
};
use http::header::{HeaderName, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use tokio::time::{advance, sleep};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use crate::ms;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

async fn hello(_: Request<String>) -> Result<Response<String>, Infallible> {
    Ok(Response::new("hello".into()))
}

async fn ask<S>(service: &S, request: Request<String>) -> Response<String>
where
    S: Service<Request<String>, Response = Response<String>, Error = Infallible> + Clone,
{
    let Ok(answer) = service.clone().oneshot(request).await;
    answer
}

fn with_key(key: &str) -> Request<String> {
    Request::builder().header(API_KEY, key).body(String::new()).unwrap()
}

fn field<'r>(response: &'r Response<String>, name: &str) -> Option<&'r str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

fn limited<X: KeyExtractor>(
    quota: Quota,
    extractor: X,
) -> impl Service<
    Request<String>,
    Response = Response<String>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<String>, Infallible>>,
> + Clone {
    let limit = KeyedRateLimit::builder(quota).with_name("api \"v1\"").build().unwrap();
    ServiceBuilder::new().layer(HttpRateLimitLayer::new(limit, extractor)).service(service_fn(hello))
}

#[tokio::test(start_paused = true)]
async fn each_client_gets_its_quota_then_429_with_retry_after_and_the_fields() {
    let service = limited(Quota::per_minute(30).with_burst(2), by_header(API_KEY));
    let first = ask(&service, with_key("alice")).await;
    assert_eq!((first.status(), first.body().as_str()), (StatusCode::OK, "hello"));
    assert_eq!(field(&first, "ratelimit-policy"), Some("\"api v1\";q=30;w=60"));
    assert_eq!(field(&first, "ratelimit"), Some("\"api v1\";r=1;t=2"));
    assert_eq!(field(&first, "retry-after"), None);
    let second = ask(&service, with_key("alice")).await;
    assert_eq!(field(&second, "ratelimit"), Some("\"api v1\";r=0;t=4"));

    advance(ms(500)).await;
    let refused = ask(&service, with_key("alice")).await;
    assert_eq!((refused.status(), refused.body().as_str()), (StatusCode::TOO_MANY_REQUESTS, ""));
    assert_eq!(field(&refused, "ratelimit"), Some("\"api v1\";r=0;t=4"));
    // 1.5 s, rounded up.
    assert_eq!(field(&refused, "retry-after"), Some("2"));
    assert_eq!(ask(&service, with_key("bob")).await.status(), StatusCode::OK);
    // Who obeys is let in.
    advance(Duration::from_secs(2)).await;
    assert_eq!(ask(&service, with_key("alice")).await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_below_a_second_is_one_never_zero() {
    let service = limited(Quota::per_second(1000).with_burst(1), by_header(API_KEY));
    ask(&service, with_key("alice")).await;
    let refused = ask(&service, with_key("alice")).await;
    assert_eq!(refused.headers()[RETRY_AFTER], "1");
}

#[tokio::test(start_paused = true)]
async fn clients_are_told_apart_by_network_path_and_both() {
    let quota = Quota::per_minute(1);
    let from = |address: &str, path: &str| {
        let peer = SocketAddr::new(address.parse::<IpAddr>().unwrap(), 1234);
        Request::builder().uri(path).extension(peer).body(String::new()).unwrap()
    };
    let by_ip = by_peer(|peer: &SocketAddr| peer.ip());

    let service = limited(quota, by_ip.clone());
    assert_eq!(ask(&service, from("192.0.2.1", "/")).await.status(), 200);
    assert_eq!(ask(&service, from("::ffff:192.0.2.1", "/other")).await.status(), 429);
    assert_eq!(ask(&service, from("192.0.2.2", "/")).await.status(), 200);
    assert_eq!(ask(&service, from("2001:db8::1", "/")).await.status(), 200);
    assert_eq!(ask(&service, from("2001:db8::2", "/")).await.status(), 429);
    // Who cannot be told shares one limit.
    assert_eq!(ask(&service, with_key("x")).await.status(), 200);
    assert_eq!(ask(&service, with_key("y")).await.status(), 429);

    let service = limited(quota, (by_ip, by_path()));
    assert_eq!(ask(&service, from("192.0.2.1", "/a?x=1")).await.status(), 200);
    assert_eq!(ask(&service, from("192.0.2.1", "/a?x=2")).await.status(), 429);
    assert_eq!(ask(&service, from("192.0.2.1", "/b")).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_key_of_a_megabyte_is_a_key_like_any_other() {
    let service = limited(Quota::per_minute(1), by_header(API_KEY));
    let mut long = "k".repeat(1 << 20);
    assert_eq!(ask(&service, with_key(&long)).await.status(), 200);
    assert_eq!(ask(&service, with_key(&long)).await.status(), 429);
    long.push('k');
    assert_eq!(ask(&service, with_key(&long)).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_answers_503_a_timeout_504_and_a_rate_limit_429() {
    let bulkhead = ConcurrencyLimit::builder(1).build().unwrap();
    let rate = RateLimit::builder(Quota::per_minute(30).with_burst(2)).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(AnswerLayer::new())
        .layer(RateLimitLayer::new(rate))
        .layer(ConcurrencyLimitLayer::new(bulkhead.clone()))
        .layer(TimeoutLayer::new(Timeout::from_millis(100)))
        .map_err(Failure::Operation)
        .service(service_fn(async |request: Request<String>| {
            sleep(ms(50 * request.uri().path().len() as u64)).await;
            hello(request).await
        }));
    let held = bulkhead.try_acquire().unwrap();
    let full = ask(&service, with_key("x")).await;
    assert_eq!((full.status(), field(&full, "retry-after")), (StatusCode::SERVICE_UNAVAILABLE, None));
    drop(held);
    let slow = Request::builder().uri("/slow").body(String::new()).unwrap();
    let slow = ask(&service, slow).await;
    assert_eq!((slow.status(), field(&slow, "retry-after")), (StatusCode::GATEWAY_TIMEOUT, None));
    let refused = ask(&service, with_key("x")).await;
    assert_eq!(
        (refused.status(), field(&refused, "retry-after")),
        (StatusCode::TOO_MANY_REQUESTS, Some("2"))
    );
    advance(Duration::from_secs(2)).await;
    assert_eq!(ask(&service, with_key("x")).await.status(), StatusCode::OK);
    assert_eq!(bulkhead.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_429_leaves_nothing_reserved_behind_it() {
    let per_client = KeyedRateLimit::builder(Quota::per_hour(1)).build().unwrap();
    let bulkhead = ConcurrencyLimit::builder(1).build().unwrap();
    let mut service = ServiceBuilder::new()
        .layer(HttpRateLimitLayer::new(per_client, by_header(API_KEY)))
        .layer(AnswerLayer::new())
        .layer(ConcurrencyLimitLayer::new(bulkhead.clone()))
        .map_err(Failure::Operation)
        .service(service_fn(hello));
    let request = || Request::new(String::new());
    assert_eq!(service.ready().await.unwrap().call(request()).await.unwrap().status(), 200);
    assert_eq!(service.ready().await.unwrap().call(request()).await.unwrap().status(), 429);
    assert_eq!(bulkhead.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_know_when_to_come_again_says_what_is_configured() {
    let bulkhead = ConcurrencyLimit::builder(1).build().unwrap();
    let rate = RateLimit::builder(Quota::per_minute(1)).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(AnswerLayer::new().with_retry_after(ms(2_500)))
        .layer(ConcurrencyLimitLayer::new(bulkhead.clone()))
        .layer(RateLimitLayer::new(rate))
        .map_err(Failure::Operation)
        .service(service_fn(hello));
    let held = bulkhead.try_acquire().unwrap();
    let full = ask(&service, with_key("x")).await;
    assert_eq!((full.status(), field(&full, "retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("3")));
    drop(held);
    assert_eq!(ask(&service, with_key("x")).await.status(), StatusCode::OK);
    let early = ask(&service, with_key("x")).await;
    assert_eq!((early.status(), field(&early, "retry-after")), (StatusCode::TOO_MANY_REQUESTS, Some("60")));
}

#[tokio::test(start_paused = true)]
async fn what_a_field_cannot_carry_is_left_out_of_the_name() {
    let quota = Quota::per_hour(1).with_burst(1);
    let limit = KeyedRateLimit::builder(quota).with_name("na\"m\\e\n\u{e9}").build().unwrap();
    let service = ServiceBuilder::new()
        .layer(HttpRateLimitLayer::new(limit, by_header(API_KEY)))
        .service(service_fn(hello));
    let answer = ask(&service, with_key("x")).await;
    assert_eq!(field(&answer, "ratelimit-policy"), Some("\"name\";q=1;w=3600"));
}

#[tokio::test(start_paused = true)]
async fn what_can_never_be_granted_is_not_asked_to_come_again() {
    let bulkhead = ConcurrencyLimit::builder(1).build().unwrap();
    let too_heavy = bulkhead.try_acquire_many(2).unwrap_err();
    let service = ServiceBuilder::new().layer(AnswerLayer::new().with_retry_after(ms(2_500))).service(
        service_fn(async |_: Request<String>| {
            Err::<Response<String>, Failure<Infallible>>(Failure::Rejected(too_heavy.clone()))
        }),
    );
    let answer = ask(&service, with_key("x")).await;
    assert_eq!((answer.status(), field(&answer, "retry-after")), (StatusCode::SERVICE_UNAVAILABLE, None));
}

/// Refuses while somebody has the permit, from `poll_ready`, as foreign services do.
#[derive(Clone)]
struct Strict(ConcurrencyLimit);

impl Service<Request<String>> for Strict {
    type Response = Response<String>;
    type Error = Failure<Infallible>;
    type Future = std::future::Ready<Result<Response<String>, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(self.0.try_acquire().map(drop).map_err(Failure::Rejected))
    }

    fn call(&mut self, _: Request<String>) -> Self::Future {
        std::future::ready(Ok(Response::default()))
    }
}

#[tokio::test(start_paused = true)]
async fn what_readiness_was_refused_with_holds_until_it_is_asked_for_again() {
    let limit = ConcurrencyLimit::builder(1).build().unwrap();
    let mut service = ServiceBuilder::new().layer(AnswerLayer::new()).service(Strict(limit.clone()));
    let held = limit.try_acquire().unwrap();
    assert_eq!(service.ready().await.unwrap().call(with_key("x")).await.unwrap().status(), 503);
    service.ready().await.unwrap();
    drop(held);
    assert_eq!(service.ready().await.unwrap().call(with_key("x")).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_calls_policies_itself_gives_the_answers_of_the_layer() {
    type Error = Failure<&'static str>;
    let bulkhead = ConcurrencyLimit::builder(1).build().unwrap();
    let rate = RateLimit::builder(Quota::per_minute(30).with_burst(1)).with_name("api").build().unwrap();
    rate.try_acquire().unwrap();
    let _held = bulkhead.try_acquire().unwrap();
    let errors = [
        (Error::from(rate.try_acquire().unwrap_err()), 429, Some("2")),
        (Error::from(bulkhead.try_acquire().unwrap_err()), 503, None),
        (Error::TimedOut(TimedOut::new(ms(100))), 504, None),
    ];
    for (error, status, retry_after) in errors {
        let by_hand = answer::<String>(&error).unwrap();
        assert_eq!((by_hand.status().as_u16(), field(&by_hand, "retry-after")), (status, retry_after));
        let service = ServiceBuilder::new()
            .layer(AnswerLayer::new())
            .service(service_fn(async |_: Request<String>| Err::<Response<String>, _>(error.clone())));
        let by_layer = service.oneshot(with_key("x")).await.unwrap();
        assert_eq!((by_layer.status(), by_layer.headers()), (by_hand.status(), by_hand.headers()));
    }
    assert!(answer::<String>(&Error::Operation("no such symbol")).is_none());
    // A refusal in a box is found.
    let boxed: Box<dyn std::error::Error + Send + Sync> = rate.try_acquire().unwrap_err().into();
    let mut by_hand = answer::<String>(&boxed).unwrap();
    assert_eq!(by_hand.status(), StatusCode::TOO_MANY_REQUESTS);
    rate_limit_fields(by_hand.headers_mut(), rate.name(), &rate.snapshot());
    assert_eq!(field(&by_hand, "ratelimit"), Some("\"api\";r=0;t=2"));
}
