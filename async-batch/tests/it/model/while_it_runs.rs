//! Stops and limits from outside, at any moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_batch::{Gather, Limit, Stop};
use proptest::prelude::*;
use tokio::time::sleep;

use super::{Alive, Script, collect, is_own, paused, play, quiet, scripts, some};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

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
