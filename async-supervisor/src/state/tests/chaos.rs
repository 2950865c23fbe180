//! What holds whatever workers, callers and time do.

use std::time::Duration;

use proptest::prelude::*;

use super::{World, config, kind, restart, rules, verb};
use crate::spec::{AutoShutdown, Restart, Rules};
use crate::state::{Config, End, State, Verb};
use crate::{Backoff, Intensity, Shutdown};

#[derive(Clone, Debug)]
enum Chaos {
    Exit(usize, bool),
    /// Whoever has been told to stop does.
    Obey(usize, bool),
    Ready(usize),
    /// The word of a run that is over.
    Stale(usize),
    Command(Verb, usize),
    Add(usize, Restart),
    Pass(u64),
    Stop,
    Hurry,
    Force,
    Abort,
}

fn chaos() -> impl Strategy<Value = Chaos> {
    prop_oneof![
        4 => (0..8_usize, any::<bool>()).prop_map(|(child, failed)| Chaos::Exit(child, failed)),
        6 => (0..8_usize, any::<bool>()).prop_map(|(child, failed)| Chaos::Obey(child, failed)),
        4 => (0..8_usize).prop_map(Chaos::Ready),
        1 => (0..8_usize).prop_map(Chaos::Stale),
        4 => (verb(), 0..8_usize).prop_map(|(verb, child)| Chaos::Command(verb, child)),
        2 => (0..8_usize, restart()).prop_map(|(child, restart)| Chaos::Add(child, restart)),
        4 => (0..3000_u64).prop_map(Chaos::Pass),
        1 => Just(Chaos::Stop),
        1 => Just(Chaos::Hurry),
        1 => Just(Chaos::Force),
        1 => Just(Chaos::Abort),
    ]
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let shutdown = prop_oneof![
        Just(Shutdown::Abort),
        Just(Shutdown::Wait),
        (0..2000_u64).prop_map(|ms| Shutdown::Timeout(Duration::from_millis(ms)))
    ];
    let backoff = prop_oneof![Just(Backoff::none()), Just(Backoff::default())];
    let limit = || prop::option::of((1..2000_u64).prop_map(Duration::from_millis));
    (restart(), shutdown, backoff, any::<bool>(), limit(), limit()).prop_map(
        |(restart, shutdown, backoff, significant, readiness, heartbeat)| Rules {
            restart,
            shutdown,
            backoff,
            significant: significant && restart != Restart::Permanent,
            readiness,
            heartbeat,
            supervisor: false,
            mute: false,
            every: None,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Whatever workers, callers and time do: the books are right, no child runs twice at once, every command is answered
    /// once, and a stop comes to its end.
    #[test]
    fn holds_in_chaos(
        kind in kind(),
        children in prop::collection::vec(any_rules(), 0..6),
        added in any_rules(),
        intensity in prop_oneof![Just(Intensity::unlimited()), Just(Intensity::new(3, Duration::from_secs(5)))],
        auto in prop_oneof![
            Just(AutoShutdown::Never), Just(AutoShutdown::AnySignificant), Just(AutoShutdown::AllSignificant)
        ],
        budget in prop::option::of((0..3000_u64).prop_map(Duration::from_millis)),
        steps in prop::collection::vec(chaos(), 0..80),
    ) {
        let name = |index: usize| format!("c{index}");
        let specs = children.into_iter().enumerate().map(|(i, rules)| (name(i), rules)).collect();
        let config = Config { intensity, auto_shutdown: auto, stop_budget: budget, ..config(kind) };
        let mut world = World::with_workers(config, specs, false);
        for step in steps {
            if world.ended {
                break;
            }
            match step {
                Chaos::Exit(child, failed) => {
                    if let Some(key) = world.key(&name(child)) {
                        world.exit(key, if failed { End::Abnormal } else { End::Normal });
                    }
                }
                Chaos::Obey(nth, failed) => {
                    if let Some(key) = world.cancelled.keys().nth(nth).copied() {
                        world.exit(key, if failed { End::Abnormal } else { End::Normal });
                    }
                }
                Chaos::Ready(child) => {
                    if let Some((key, epoch)) = world.key(&name(child)).and_then(|key| Some((key, *world.alive.get(&key)?))) {
                        world.core.ready(world.now, key, epoch);
                        world.act();
                    }
                }
                Chaos::Stale(child) => {
                    if let Some(key) = world.key(&name(child)) {
                        let epoch = world.core.children.get(key).unwrap().epoch;
                        if epoch > 0 && world.alive.get(&key) != Some(&(epoch - 1)) {
                            world.core.exited(world.now, key, epoch - 1, End::Abnormal, None);
                            world.core.ready(world.now, key, epoch - 1);
                            world.act();
                        }
                    }
                }
                Chaos::Command(verb, child) => {
                    world.command(verb, &name(child));
                }
                Chaos::Add(child, restart) => {
                    world.add(&name(child), Rules { restart, significant: false, ..added.clone() });
                }
                Chaos::Pass(ms) => world.pass(Duration::from_millis(ms)),
                Chaos::Stop => {
                    world.core.stop(world.now);
                    world.act();
                }
                Chaos::Hurry => {
                    world.core.hurry(world.now);
                    world.act();
                }
                Chaos::Force => {
                    world.core.force(world.now);
                    world.act();
                }
                Chaos::Abort => {
                    world.core.abort_all(world.now);
                    world.act();
                }
            }
        }
        // Those that wait for ever do not, once a stop is forced.
        if !world.ended {
            world.core.stop(world.now);
            world.act();
            world.pass(Duration::from_secs(1));
            world.core.force(world.now);
            world.act();
            world.pass(Duration::from_secs(1));
        }
        prop_assert!(world.ended, "{:?}", world.core);
        prop_assert_eq!(world.open.len(), 0);
        prop_assert_eq!(world.core.leaked().len(), world.alive.len());
        prop_assert_eq!(world.core.next_due(), None);
    }

    /// With obedient workers all comes to rest by itself: nothing is left half-done once time has passed.
    #[test]
    fn comes_to_rest(
        kind in kind(),
        children in prop::collection::vec((restart(), any::<bool>()), 1..6),
        exits in prop::collection::vec((0..6_usize, any::<bool>(), 0..500_u64), 0..20),
    ) {
        let name = |index: usize| format!("c{index}");
        let specs = children.iter().enumerate().map(|(i, (restart, slow))| {
            let backoff = if *slow { Backoff::default() } else { Backoff::none() };
            (name(i), Rules { backoff, ..rules(*restart) })
        });
        let mut world = World::new(config(kind), specs.collect());
        for (child, failed, ms) in exits {
            if let Some(key) = world.key(&name(child)) {
                world.exit(key, if failed { End::Abnormal } else { End::Normal });
            }
            world.pass(Duration::from_millis(ms));
        }
        world.pass(Duration::from_secs(120));
        prop_assert_eq!(world.core.next_due(), None);
        prop_assert!(!world.core.is_busy());
        for (_, child) in world.core.children.iter() {
            prop_assert!(matches!(child.state, State::Running | State::Stopped), "{:?}", child);
        }
    }
}
