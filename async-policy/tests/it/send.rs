//! Stacks must be `Send` inside `tokio::spawn`, with borrowed captures, without a boxed future. That this module
//! compiles is most of the test.

use std::sync::Arc;

use async_policy::{Failure, Guard, Operation, Policy, Timeout, Verdict};

#[derive(Debug)]
struct Client;

impl Client {
    async fn get(&self, url: &str) -> Result<String, std::io::Error> {
        tokio::task::yield_now().await;
        Ok(url.to_owned())
    }

    async fn send(&self, body: Vec<u8>) -> Result<usize, std::io::Error> {
        tokio::task::yield_now().await;
        Ok(body.len())
    }
}

fn assert_send<T: Send>(value: T) -> T {
    value
}

#[tokio::test]
async fn five_deep_with_borrowed_captures_inside_spawn() {
    let task = tokio::spawn(async {
        let client = Client;
        let url = String::from("http://quotes");
        let one = Timeout::from_millis(100);
        let stack = (&one, Arc::new(one.clone()), Some(one.clone()), one.clone(), (one.clone(),));
        stack.call(|| client.get(&url)).await.unwrap()
    });
    assert_eq!(task.await.unwrap(), "http://quotes");
}

#[tokio::test]
async fn nested_tuples_with_a_classifier_inside_spawn() {
    let client = Arc::new(Client);
    let task = tokio::spawn(async move {
        let url = String::from("http://quotes");
        let stack = (Timeout::from_millis(100), (Timeout::from_millis(90), Timeout::from_millis(80)));
        let op = (|| client.get(&url)).classify_with(|outcome| match outcome {
            Ok(_) => Verdict::Success,
            Err(_) => Verdict::Permanent,
        });
        stack.call(op).await.unwrap()
    });
    assert_eq!(task.await.unwrap(), "http://quotes");
}

#[tokio::test]
async fn a_one_shot_operation_moves_its_body() {
    let task = tokio::spawn(async {
        let client = Client;
        let stack =
            (Timeout::from_millis(100), Some(Timeout::from_millis(90)), Arc::new(Timeout::from_millis(80)));
        let body = vec![0_u8; 7];
        stack.run(async move { client.send(body).await.map_err(Failure::Operation) }).await.unwrap()
    });
    assert_eq!(task.await.unwrap(), 7);
}

async fn generic_helper<P: Policy>(policy: &P, client: &Client, urls: &[String]) -> usize {
    let mut done = 0;
    for url in urls {
        done += usize::from(policy.call(|| client.get(url)).await.is_ok());
    }
    done
}

#[tokio::test]
async fn a_generic_policy_behind_a_reference_inside_spawn() {
    let task = tokio::spawn(async {
        let urls = vec![String::from("a"), String::from("b")];
        let policy = Arc::new((Timeout::from_millis(100), Timeout::from_millis(90)));
        assert_send(generic_helper(&policy, &Client, &urls)).await
    });
    assert_eq!(task.await.unwrap(), 2);
}

#[tokio::test]
async fn a_boxed_error_goes_through_unchanged() {
    let task = tokio::spawn(async {
        let reason = String::from("down");
        let stack = (Timeout::from_millis(100), Timeout::from_millis(90));
        stack.execute(|| fail_for(&reason)).await
    });
    assert_eq!(task.await.unwrap().unwrap_err().to_string(), "down");
}

async fn fail_for(reason: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    Err(reason.into())
}
