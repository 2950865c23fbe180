use std::time::Duration;

use async_batch::{Gather, Progress};
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn it_can_be_looked_at_from_outside_while_the_gather_runs() {
    let progress = Progress::new();
    assert_eq!((progress.snapshot().total, progress.snapshot().eta()), (None, None));
    let gather = Gather::up_to::<10>().with_progress(&progress);
    let run = gather.run(0..100, async |n| {
        sleep(Duration::from_millis(100)).await;
        if n % 10 == 0 { Err(()) } else { Ok(()) }
    });
    let look = async {
        sleep(Duration::from_millis(450)).await;
        progress.snapshot()
    };
    let (_, half_way) = tokio::join!(run, look);
    assert_eq!(half_way.total, Some(100));
    assert_eq!((half_way.done, half_way.failed, half_way.in_flight), (40, 4, 10));
    assert!((half_way.rate() - 40.0 / 0.45).abs() < 1.0, "{}", half_way.rate());
    assert_eq!(half_way.eta().unwrap().as_millis(), 675);

    sleep(Duration::from_secs(60)).await;
    let end = progress.snapshot();
    assert_eq!((end.done, end.succeeded, end.failed, end.in_flight), (100, 90, 10, 0));
    assert_eq!(end.eta(), Some(Duration::ZERO));
    assert!(end.elapsed < Duration::from_secs(2), "the clock stops with the gather");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_gather_leaves_nothing_in_flight() {
    let progress = Progress::new();
    let gather = Gather::up_to::<10>().with_progress(&progress);
    let run = gather.run(0.., async |n| {
        sleep(Duration::from_millis(n * 10)).await;
        Ok::<_, ()>(())
    });
    assert!(tokio::time::timeout(Duration::from_millis(45), run).await.is_err());
    let end = progress.snapshot();
    assert_eq!((end.total, end.done, end.in_flight, end.cancelled), (None, 5, 0, 10));
}

#[cfg(feature = "indicatif")]
#[tokio::test(start_paused = true)]
async fn a_bar_follows_the_items() {
    let bar = async_batch::indicatif::ProgressBar::hidden();
    let progress = Progress::drawn_on(bar.clone());
    let gather = Gather::up_to::<10>().with_progress(&progress);
    let run = gather.run(0..100, async |n| {
        sleep(Duration::from_millis(100)).await;
        if n % 10 == 0 { Err(()) } else { Ok(()) }
    });
    let look = async {
        sleep(Duration::from_millis(450)).await;
        (bar.position(), bar.length(), bar.message(), bar.is_finished())
    };
    let (_, half_way) = tokio::join!(run, look);
    assert_eq!(half_way, (40, Some(100), String::from("4 failed"), false));
    assert!(bar.is_finished());
}

#[cfg(feature = "indicatif")]
#[tokio::test(start_paused = true)]
async fn a_bar_is_finished_only_at_a_natural_end() {
    use async_batch::indicatif::{ProgressBar, ProgressFinish};

    let item = async |n: u64| {
        sleep(Duration::from_millis(10)).await;
        if n == 9 { Err("down") } else { Ok(n) }
    };
    for (fail_fast, limit, shown) in [(true, 1000, 10), (false, 55, 20), (false, 1000, 100)] {
        let bar = ProgressBar::hidden().with_finish(ProgressFinish::AndLeave);
        let mut gather = Gather::up_to::<4>().with_progress(&Progress::drawn_on(bar.clone()));
        if fail_fast {
            gather = gather.fail_fast();
        }
        let _ = tokio::time::timeout(Duration::from_millis(limit), gather.run(0..100, item)).await;
        assert!(bar.is_finished());
        assert_eq!((bar.position(), bar.length()), (shown, Some(100)), "it stays where it stands");
    }
}

#[cfg(feature = "serde")]
#[tokio::test(start_paused = true)]
async fn what_is_shown_can_be_serialized() {
    let progress = Progress::new();
    let run = Gather::up_to::<10>().with_progress(&progress).run(0..3, async |n| Ok::<u32, ()>(n));
    let summary = run.for_each(async |_| {}).await;
    let text = serde_json::to_string(&(progress.snapshot(), summary)).unwrap();
    assert!(text.contains(r#""total":3,"done":3"#) && text.contains(r#""stopped":null"#), "{text}");
    assert!(text.contains(r#""elapsed":"0s""#), "{text}");
}
