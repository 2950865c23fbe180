use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_batch::{Gather, ItemError, Progress, Stopped};
use futures_util::StreamExt as _;
use proptest::prelude::*;
use tokio::task::yield_now;

use super::{
    Alive, Answer, Rule, Script, collect, is_own, once, paused, play, quiet, scripts, sequential_stop, some,
};

#[derive(Clone, Copy, Debug)]
enum Place {
    Run,
    Spawn,
}

#[derive(Clone, Copy, Debug)]
enum Taken {
    Await,
    Stream,
    Ordered(usize),
    ForEach,
}

#[derive(Clone, Debug)]
struct Case {
    scripts: Vec<Script>,
    limit: usize,
    rule: Rule,
    place: Place,
    taken: Taken,
    chunks: Option<usize>,
}

fn cases() -> impl Strategy<Value = Case> {
    let rule = prop_oneof![
        Just(Rule::Settle),
        (1..5_usize).prop_map(Rule::After),
        (0.0..0.9_f64, 1..6_usize).prop_map(|(ratio, of)| Rule::Above(ratio, of))
    ];
    // More than a block of slots too.
    let limits = prop_oneof![4 => 1..8_usize, 1 => Just(40)];
    let place = prop_oneof![Just(Place::Run), Just(Place::Spawn)];
    let taken = prop_oneof![
        Just(Taken::Await),
        Just(Taken::Stream),
        (0..5_usize).prop_map(Taken::Ordered),
        Just(Taken::ForEach)
    ];
    (scripts(), limits, rule, place, taken, prop::option::of(1..6_usize)).prop_map(
        |(scripts, limit, rule, place, taken, chunks)| Case { scripts, limit, rule, place, taken, chunks },
    )
}

/// What a stream hands out, and why it ended; one in input order hands it out in that.
macro_rules! streamed {
    ($taken:expr, $stream:expr) => {{
        let mut stream = $stream;
        let seen: Vec<_> = stream.by_ref().collect().await;
        let in_order = seen.iter().enumerate().all(|(n, settled)| n == settled.index);
        assert!(in_order || matches!($taken, Taken::Stream));
        (once(seen), stream.summary().stopped)
    }};
}

async fn check(case: Case) {
    let Case { scripts, limit, rule, place, taken, chunks } = case;
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let progress = Progress::new();
    let mut gather = Gather::new(some(limit)).with_progress(&progress);
    gather = match rule {
        Rule::Settle => gather,
        Rule::After(failures) => gather.stop_after(some(failures)),
        Rule::Above(ratio, of) => gather.stop_above(ratio, some(of)).unwrap(),
    };
    if let Some(size) = chunks {
        gather = gather.in_chunks(some(size), Duration::from_millis(3));
    }
    let mut inputs = scripts.iter().copied().enumerate();
    let item = |(index, script): (usize, Script)| play(index, script, Alive::new(&counts));

    let (answers, stopped): (BTreeMap<usize, Answer>, _) = match (taken, place) {
        (Taken::Await, Place::Run) => collect(gather.run(&mut inputs, item).await),
        (Taken::Await, Place::Spawn) => collect(gather.spawn(&mut inputs, item).await),
        (Taken::Stream, Place::Run) => streamed!(taken, gather.run(&mut inputs, item).stream()),
        (Taken::Stream, Place::Spawn) => streamed!(taken, gather.spawn(&mut inputs, item).stream()),
        (Taken::Ordered(ahead), Place::Run) => streamed!(taken, gather.run(&mut inputs, item).ordered(ahead)),
        (Taken::Ordered(ahead), Place::Spawn) => {
            streamed!(taken, gather.spawn(&mut inputs, item).ordered(ahead))
        }
        (Taken::ForEach, place) => {
            let seen = RefCell::new(Vec::new());
            let consumer = async |settled| {
                yield_now().await;
                seen.borrow_mut().push(settled);
            };
            let summary = match place {
                Place::Run => gather.run(&mut inputs, item).for_each(consumer).await,
                Place::Spawn => gather.spawn(&mut inputs, item).for_each(consumer).await,
            };
            (once(seen.into_inner()), summary.stopped)
        }
    };

    // Nothing is under way any more, and never were too many.
    assert_eq!(counts[0].load(SeqCst), 0);
    assert!(counts[1].load(SeqCst) <= limit);
    // Each that was started is there once; the others are still in the input.
    let started = answers.len();
    assert!(answers.keys().copied().eq(0..started));
    assert_eq!(inputs.next().map(|(index, _)| index), (started < scripts.len()).then_some(started));
    // Each has its own answer, unless it was cancelled by the stop.
    let mut cancelled = 0;
    for (index, answer) in &answers {
        if matches!(answer, Err(ItemError::Cancelled)) {
            cancelled += 1;
        } else {
            assert!(is_own(*index, scripts[*index], answer), "{index}: {answer:?}");
        }
    }
    if stopped.is_none() {
        assert_eq!((started, cancelled), (scripts.len(), 0));
    }
    if limit == 1 || chunks == Some(1) {
        // One after the other, as in the model.
        let expected = sequential_stop(&scripts, rule);
        assert_eq!(stopped, expected.map(|_| Stopped::Failures));
        assert_eq!((started, cancelled), (expected.unwrap_or(scripts.len()), 0));
    }
    let failed = answers.values().filter(|answer| answer.is_err()).count() - cancelled;
    if let Rule::After(failures) = rule {
        assert_eq!(stopped.is_some(), failed >= failures);
    }
    let shown = progress.snapshot();
    assert_eq!((shown.done, shown.failed, shown.in_flight), (started - cancelled, failed, 0));
    assert_eq!(shown.cancelled, cancelled);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_mode_does_what_one_after_the_other_does(case in cases()) {
        quiet();
        paused(check(case));
    }
}
