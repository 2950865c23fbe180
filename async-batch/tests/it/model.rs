//! Every mode against a model that runs the items one after the other.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_batch::{Gather, ItemError, Limit, Progress, Settled, Stop, Stopped};
use proptest::prelude::*;
use tokio::task::yield_now;
use tokio::time::sleep;

/// What an item does.
#[derive(Clone, Copy, Debug)]
struct Script {
    yields: u8,
    millis: u8,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Ok,
    Err,
    Panic,
}

type Answer = Result<usize, ItemError<usize>>;

fn scripts() -> impl Strategy<Value = Vec<Script>> {
    let end = prop_oneof![6 => Just(End::Ok), 2 => Just(End::Err), 1 => Just(End::Panic)];
    let script = (0..3_u8, prop_oneof![2 => Just(0), 1 => 0..20_u8], end);
    prop::collection::vec(script.prop_map(|(yields, millis, end)| Script { yields, millis, end }), 0..40)
}

/// Counts the items that live.
struct Alive(Arc<[AtomicUsize; 2]>);

impl Alive {
    fn new(counts: &Arc<[AtomicUsize; 2]>) -> Self {
        let now = counts[0].fetch_add(1, SeqCst) + 1;
        counts[1].fetch_max(now, SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0[0].fetch_sub(1, SeqCst);
    }
}

async fn play(index: usize, script: Script, alive: Alive) -> Result<usize, usize> {
    for _ in 0..script.yields {
        yield_now().await;
    }
    if script.millis > 0 {
        sleep(Duration::from_millis(script.millis.into())).await;
    }
    drop(alive);
    match script.end {
        End::Ok => Ok(index),
        End::Err => Err(index),
        End::Panic => panic!("item {index}"),
    }
}

/// What the model has for an item that was not stopped.
fn is_own(index: usize, script: Script, answer: &Answer) -> bool {
    match (script.end, answer) {
        (End::Ok, Ok(value)) => *value == index,
        (End::Err, Err(ItemError::Operation(value))) => *value == index,
        (End::Panic, Err(ItemError::Panicked(panicked))) => panicked.message() == format!("item {index}"),
        _ => false,
    }
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    Settle,
    After(usize),
    Above(f64, usize),
}

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
    let place = prop_oneof![Just(Place::Run), Just(Place::Spawn)];
    let taken = prop_oneof![
        Just(Taken::Await),
        Just(Taken::Stream),
        (0..5_usize).prop_map(Taken::Ordered),
        Just(Taken::ForEach)
    ];
    (scripts(), 1..8_usize, rule, place, taken, prop::option::of(1..6_usize)).prop_map(
        |(scripts, limit, rule, place, taken, chunks)| Case { scripts, limit, rule, place, taken, chunks },
    )
}

const fn some(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

/// Where the sequential model stops: after so many items, if it does.
fn sequential_stop(scripts: &[Script], rule: Rule) -> Option<usize> {
    let mut failed = 0;
    for (index, script) in scripts.iter().enumerate() {
        failed += usize::from(script.end != End::Ok);
        let ended = index + 1;
        let stops = match rule {
            Rule::Settle => false,
            Rule::After(failures) => failed >= failures,
            Rule::Above(ratio, of) => ended >= of && failed as f64 > ratio * ended as f64,
        };
        if stops {
            return Some(ended);
        }
    }
    None
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
        (Taken::Stream, Place::Run) => {
            let mut stream = gather.run(&mut inputs, item).stream();
            let mut seen = Vec::new();
            while let Some(settled) = stream.next().await {
                seen.push(settled);
            }
            (once(seen), stream.summary().stopped)
        }
        (Taken::Stream, Place::Spawn) => {
            let mut stream = gather.spawn(&mut inputs, item).stream();
            let mut seen = Vec::new();
            while let Some(settled) = stream.next().await {
                seen.push(settled);
            }
            (once(seen), stream.summary().stopped)
        }
        (Taken::Ordered(ahead), place) => {
            let mut seen = Vec::new();
            let stopped = match place {
                Place::Run => {
                    let mut stream = gather.run(&mut inputs, item).ordered(ahead);
                    while let Some(settled) = stream.next().await {
                        seen.push(settled);
                    }
                    stream.summary().stopped
                }
                Place::Spawn => {
                    let mut stream = gather.spawn(&mut inputs, item).ordered(ahead);
                    while let Some(settled) = stream.next().await {
                        seen.push(settled);
                    }
                    stream.summary().stopped
                }
            };
            assert!(seen.iter().enumerate().all(|(n, settled)| n == settled.index), "in input order");
            (once(seen), stopped)
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

fn collect(outcomes: async_batch::Outcomes<usize, usize>) -> (BTreeMap<usize, Answer>, Option<Stopped>) {
    let stopped = outcomes.stopped();
    let listed: Vec<_> = outcomes.iter().map(|(index, result, ())| (index, result.is_ok())).collect();
    let (successes, failures) = outcomes.clone().split();
    let split = successes
        .iter()
        .map(|(index, _)| (*index, true))
        .chain(failures.iter().map(|(index, _)| (*index, false)));
    assert_eq!(split.collect::<BTreeMap<_, _>>(), listed.into_iter().collect());
    (once(outcomes), stopped)
}

fn once(settled: impl IntoIterator<Item = Settled<usize, usize>>) -> BTreeMap<usize, Answer> {
    let mut answers = BTreeMap::new();
    for settled in settled {
        assert!(answers.insert(settled.index, settled.result).is_none(), "{} came twice", settled.index);
    }
    answers
}

pub(crate) fn paused<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(future)
}

/// Panics that are meant are not printed.
fn quiet() {
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let meant = info.payload().downcast_ref::<String>().is_some_and(|text| text.starts_with("item "));
            if !meant {
                hook(info);
            }
        }));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_mode_does_what_one_after_the_other_does(case in cases()) {
        quiet();
        paused(check(case));
    }

    #[test]
    fn on_blocking_threads_too(ends in scripts(), limit in 1..5_usize, failures in prop::option::of(1..5_usize)) {
        quiet();
        let counts: Arc<[AtomicUsize; 2]> = Arc::default();
        let mut gather = Gather::new(some(limit));
        if let Some(failures) = failures {
            gather = gather.stop_after(some(failures));
        }
        let mut inputs = ends.iter().copied().enumerate();
        let shared = Arc::clone(&counts);
        let item = move |(index, script): (usize, Script)| {
            let _alive = Alive::new(&shared);
            match script.end {
                End::Ok => Ok(index),
                End::Err => Err(index),
                End::Panic => panic!("item {index}"),
            }
        };
        let (answers, stopped) = collect(paused(gather.spawn_blocking(&mut inputs, item).into_future()));
        assert_eq!(counts[0].load(SeqCst), 0);
        assert!(counts[1].load(SeqCst) <= limit);
        assert!(answers.keys().copied().eq(0..answers.len()));
        assert_eq!(inputs.len() + answers.len(), ends.len());
        let cancelled = answers.values().filter(|answer| matches!(answer, Err(ItemError::Cancelled))).count();
        let own = answers.iter().filter(|(index, answer)| is_own(**index, ends[**index], answer)).count();
        assert_eq!(own + cancelled, answers.len());
        let failed = answers.values().filter(|answer| answer.is_err()).count() - cancelled;
        assert_eq!(stopped.is_some(), failures.is_some_and(|failures| failed >= failures));
        if stopped.is_none() {
            assert_eq!((answers.len(), cancelled), (ends.len(), 0));
        }
        if limit == 1 {
            let expected = sequential_stop(&ends, failures.map_or(Rule::Settle, Rule::After));
            assert_eq!((answers.len(), cancelled), (expected.unwrap_or(ends.len()), 0));
        }
    }

    #[test]
    fn a_stop_at_any_moment_loses_nothing(
        scripts in scripts(),
        limit in 1..8_usize,
        millis in 0..40_u64,
        spawned in any::<bool>(),
    ) {
        quiet();
        paused(async {
            let stop = Stop::new();
            let counts: Arc<[AtomicUsize; 2]> = Arc::default();
            let gather = Gather::new(some(limit)).with_stop(&stop);
            let mut inputs = scripts.iter().copied().enumerate();
            let item = |(index, script): (usize, Script)| play(index, script, Alive::new(&counts));
            let request = async {
                sleep(Duration::from_millis(millis)).await;
                stop.request();
            };
            let (outcomes, ()) = if spawned {
                tokio::join!(gather.spawn(&mut inputs, item), request)
            } else {
                tokio::join!(gather.run(&mut inputs, item), request)
            };
            let summary = outcomes.summary();
            let (answers, stopped) = collect(outcomes);
            assert_eq!(counts[0].load(SeqCst), 0, "nothing is under way any more");
            assert_eq!(inputs.len() + answers.len(), scripts.len());
            let own = answers.iter().filter(|(index, answer)| is_own(**index, scripts[**index], answer)).count();
            assert_eq!(own, summary.succeeded + summary.failed);
            assert_eq!(own + summary.cancelled, summary.started);
            if stopped.is_none() {
                assert_eq!(own, scripts.len());
            }
        });
    }

    #[test]
    fn a_limit_that_changes_changes_no_outcome(
        scripts in scripts(),
        limits in prop::collection::vec((1..9_usize, 0..10_u64), 0..8),
    ) {
        quiet();
        paused(async {
            let limit = Limit::new(some(3));
            let counts: Arc<[AtomicUsize; 2]> = Arc::default();
            let gather = Gather::up_to::<1>().with_limit(&limit);
            let inputs = scripts.iter().copied().enumerate();
            let run = gather.run(inputs, |(index, script)| play(index, script, Alive::new(&counts)));
            let change = async {
                for (items, millis) in limits {
                    sleep(Duration::from_millis(millis)).await;
                    limit.set(some(items));
                }
            };
            let (outcomes, ()) = tokio::join!(run, change);
            let (answers, stopped) = collect(outcomes);
            assert_eq!((answers.len(), stopped), (scripts.len(), None));
            assert!(answers.iter().all(|(index, answer)| is_own(*index, scripts[*index], answer)));
            assert!(counts[1].load(SeqCst) < 9);
        });
    }
}
