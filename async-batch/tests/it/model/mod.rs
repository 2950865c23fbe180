//! Every mode against a model that runs the items one after the other.

mod every_mode;
mod on_blocking_threads;
mod while_it_runs;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_batch::{ItemError, Outcomes, Settled, Stopped};
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

fn collect(outcomes: Outcomes<usize, usize>) -> (BTreeMap<usize, Answer>, Option<Stopped>) {
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
