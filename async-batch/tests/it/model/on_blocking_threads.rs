use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use async_batch::{Gather, ItemError};
use proptest::prelude::*;

use super::{Alive, End, Rule, Script, collect, is_own, paused, quiet, scripts, sequential_stop, some};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

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
}
