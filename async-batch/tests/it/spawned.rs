//! Gathers inside a spawned task, which must be `Send`: with borrowed inputs, results that borrow, and closures.

use async_batch::{Gather, first_success};
use async_policy::Timeout;
use tokio::task::yield_now;

#[tokio::test]
async fn a_gather_of_references_goes_into_a_spawned_task() {
    let task = tokio::spawn(async move {
        let words = vec![String::from("a"), String::from("bc")];
        let suffix = String::from("!");
        let gather = Gather::up_to::<4>();
        let lengths = gather.run(&words, |word| async move { Ok::<_, String>(word.len()) }).await;
        let said = gather
            .run(words.iter().map(String::as_str), |word| {
                let suffix = &suffix;
                async move {
                    yield_now().await;
                    if word.is_empty() { Err(word) } else { Ok(format!("{word}{suffix}")) }
                }
            })
            .detailed()
            .await;
        assert_eq!(said.detail(1).unwrap().input, "bc");
        let mut seen = Vec::new();
        let taken =
            gather.run(&words, |word| async move { Ok::<_, ()>(word.as_str()) }).for_each(|settled| {
                seen.extend(settled.result);
                yield_now()
            });
        taken.await;
        let mut ordered = gather.run(&words, |word| async move { Ok::<_, ()>(word.as_str()) }).ordered(2);
        assert_eq!(ordered.next().await.unwrap().result, Ok("a"));
        (lengths.into_values(), said.into_values(), seen.len())
    });
    assert_eq!(task.await.unwrap(), (vec![1, 2], vec!["a!".into(), "bc!".into()], 2));
}

#[tokio::test]
async fn spawned_items_whose_error_is_a_literal_go_into_a_spawned_task() {
    let item = |n: u32| async move { if n == 2 { Err("two") } else { Ok(n) } };
    let task = tokio::spawn(async move {
        let failed = Gather::up_to::<4>().spawn(0..10, item).await.summary().failed;
        let raced = first_success(["a", "b"].map(|w| async move { if w == "a" { Err(w) } else { Ok(w) } }));
        (failed, raced.await.ok())
    });
    assert_eq!(task.await.unwrap(), (1, Some((1, "b"))));
}

#[tokio::test]
async fn a_gather_of_references_under_a_policy_goes_into_a_spawned_task() {
    let task = tokio::spawn(async move {
        let words = vec![String::from("a"), String::from("bc")];
        let gather = Gather::up_to::<4>().with_policy(Timeout::from_millis(5000));
        let item = |word: &'static str| async move { if word == "a" { Err(word) } else { Ok(word) } };
        let literals =
            gather.run(["a", "b"], |word| async move { if word == "a" { Err(word) } else { Ok(word) } });
        assert_eq!(literals.await.values(), ["b"]);
        assert_eq!(gather.spawn(["a", "b"], item).await.values(), ["b"]);
        gather.run(&words, |word| async move { Ok::<_, String>(word.len()) }).await.into_values()
    });
    assert_eq!(task.await.unwrap(), [1, 2]);
}

#[tokio::test]
async fn a_consumer_with_state_holds_it_behind_a_mutex() {
    let task = tokio::spawn(async move {
        let file = tokio::sync::Mutex::new(String::new());
        let run = Gather::up_to::<1>().run(0..3, async |n| Ok::<_, ()>(n));
        run.for_each(async |settled| {
            let mut file = file.lock().await;
            yield_now().await;
            file.push_str(&settled.index.to_string());
        })
        .await;
        file.into_inner()
    });
    assert_eq!(task.await.unwrap(), "012");
}
