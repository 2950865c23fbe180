use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_circuit::{
    CircuitBreaker, CircuitBreakerBuilder, CircuitBreakers, Event, Mode, Policy, State, Trip,
};
use tokio::time::advance;

fn builder() -> CircuitBreakerBuilder {
    CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(NonZeroU32::MIN))
        .with_open_for(Duration::from_secs(1))
}

fn keyed(max: usize) -> CircuitBreakers<String> {
    builder()
        .build_keyed(NonZeroUsize::new(max).unwrap())
        .unwrap()
        .with_names(|key: &String| key.as_str().into())
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_state_and_name() {
    let hosts = keyed(100);
    hosts.get("dead").call(async || Err::<(), _>(())).await.unwrap_err();
    assert_eq!(hosts.get("dead").state(), State::Open);
    assert_eq!(hosts.get("dead").name(), Some("dead"));
    assert_eq!(hosts.get("well").call(async || Ok::<_, ()>(7)).await, Ok(7));
    assert_eq!(hosts.len(), 2);
    assert!(hosts.find("other").is_none());
    assert_eq!(hosts.remove("dead").unwrap().state(), State::Open);
    assert_eq!((hosts.get("dead").state(), hosts.remove("none").is_none()), (State::Closed, true));
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_set_number_is_held() {
    for max in [1, 3, 64, 1000] {
        let hosts = keyed(max);
        for i in 0..max * 5 {
            hosts.get(&i.to_string()).try_acquire().unwrap().success();
            assert!(hosts.len() <= max);
        }
        assert!(hosts.len() > max / 2, "{} of {max}", hosts.len());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_used_stays_and_what_is_idle_goes() {
    let hosts = keyed(10);
    for i in 0..1000 {
        hosts.get("busy").try_acquire().unwrap().ignore();
        hosts.get(&i.to_string()).try_acquire().unwrap().success();
    }
    assert_eq!(hosts.find("busy").unwrap().snapshot().totals.ignored, 1000);
}

#[tokio::test(start_paused = true)]
async fn none_is_evicted_while_it_refuses_is_held_or_is_set_by_hand() {
    let hosts = keyed(4);
    hosts.get("dead").try_acquire().unwrap().failure();
    let held = hosts.get("held");
    hosts.get("forced").set_mode(Mode::ForcedClosed);
    for i in 0..1000 {
        hosts.get(&i.to_string()).try_acquire().unwrap().success();
    }
    assert!(hosts.get("dead").try_acquire().is_err());
    held.try_acquire().unwrap().failure();
    assert_eq!(hosts.get("held").state(), State::Open);
    assert_eq!(hosts.get("forced").snapshot().mode, Mode::ForcedClosed);
    assert!(hosts.len() <= 4);
}

#[tokio::test(start_paused = true)]
async fn with_no_room_a_call_goes_through_unheld_and_room_comes_when_dead_keys_are_long_given_up() {
    let hosts = keyed(2);
    hosts.get("a").try_acquire().unwrap().failure();
    hosts.get("b").try_acquire().unwrap().failure();
    for wait in [0, 4999] {
        advance(Duration::from_millis(wait)).await;
        hosts.get("c").try_acquire().unwrap().failure();
        assert_eq!((hosts.len(), hosts.get("c").state()), (2, State::Closed));
    }
    advance(Duration::from_millis(1)).await;
    hosts.get("c").try_acquire().unwrap().failure();
    assert_eq!((hosts.len(), hosts.get("c").state()), (2, State::Open));
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_is_not_evicted_when_its_time_is_over() {
    let hosts = keyed(1);
    hosts.get("dead").try_acquire().unwrap().failure();
    let others_come = || {
        hosts.get("other").try_acquire().unwrap().success();
        assert_eq!((hosts.evict_idle(), hosts.evict_idle()), (0, 0));
    };
    advance(Duration::from_secs(1)).await;
    others_come();
    let dead = hosts.get("dead");
    let permits: Vec<_> = (0..100).filter_map(|_| dead.try_acquire().ok()).collect();
    assert_eq!((permits.len(), permits[0].is_probe()), (1, true));
    // The probe hangs: it has a minute.
    permits.into_iter().for_each(std::mem::forget);
    drop(dead);
    advance(Duration::from_secs(60)).await;
    others_come();
    assert!(hosts.get("dead").try_acquire().is_err());
    assert_eq!(hosts.get("dead").snapshot().reopenings, 1);
}

/// Opens the circuit of each of these keys, and finds it open.
fn fill<S: BuildHasher>(hosts: &CircuitBreakers<u32, S>, keys: Range<u32>) {
    for key in keys {
        hosts.get(&key).try_acquire().unwrap().failure();
        assert_eq!(hosts.find(&key).map(|breaker| breaker.state()), Some(State::Open), "{key} is not held");
    }
}

#[tokio::test(start_paused = true)]
async fn the_room_is_that_of_all_shards_together() {
    for _ in 0..20 {
        for max in [1, 63, 64, 100, 6000] {
            let hosts = builder().build_keyed(NonZeroUsize::new(max as usize).unwrap()).unwrap();
            fill(&hosts, 0..max);
            hosts.get(&max).try_acquire().unwrap().failure();
            assert_eq!((hosts.len(), hosts.find(&max).is_none()), (max as usize, true));
            hosts.remove(&0).unwrap();
            fill(&hosts, max..max + 1);
        }
    }
}

/// Sixty dead keys and four others: one of those has to go, in whichever shard it is.
#[tokio::test(start_paused = true)]
async fn a_breaker_of_another_shard_makes_room() {
    for _ in 0..50 {
        let hosts = builder().build_keyed(NonZeroUsize::new(64).unwrap()).unwrap();
        fill(&hosts, 0..60);
        for key in 100..104 {
            hosts.get(&key).try_acquire().unwrap().success();
        }
        fill(&hosts, 60..64);
        assert_eq!(hosts.len(), 64);
    }
}

/// An id hashes to itself.
#[derive(Default)]
struct Itself(u64);

impl Hasher for Itself {
    fn write(&mut self, _: &[u8]) {
        unreachable!("an id is a number")
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = id.into();
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[tokio::test(start_paused = true)]
async fn a_poor_hasher_takes_no_room_away() {
    let hosts = builder().build_keyed(NonZeroUsize::new(10_000).unwrap()).unwrap();
    let hosts = hosts.with_hasher(BuildHasherDefault::<Itself>::default());
    fill(&hosts, 0..10_000);
    assert_eq!(hosts.len(), 10_000);
}

#[tokio::test(start_paused = true)]
async fn idle_ones_are_evicted_on_request() {
    let hosts = keyed(100);
    hosts.get("dead").try_acquire().unwrap().failure();
    for i in 0..50 {
        hosts.get(&i.to_string());
    }
    assert_eq!(hosts.evict_idle(), 0, "all were used since");
    hosts.get("7");
    assert_eq!((hosts.evict_idle(), hosts.len()), (49, 2));
    let mut keys: Vec<_> = hosts.to_vec().into_iter().map(|(key, _)| key).collect();
    keys.sort();
    assert_eq!(keys, ["7", "dead"]);
}

#[tokio::test(start_paused = true)]
async fn keys_may_be_anything_and_hashed_by_anyone() {
    let ids = builder().build_keyed::<u64>(NonZeroUsize::MIN).unwrap();
    let ids = ids.with_hasher(std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default());
    ids.get(&7).try_acquire().unwrap().failure();
    assert_eq!(ids.find(&7).unwrap().state(), State::Open);
    let tenants = builder().build_keyed::<std::sync::Arc<str>>(NonZeroUsize::MIN).unwrap();
    tenants.get("acme").try_acquire().unwrap().success();
    assert!(!tenants.is_empty());
}

/// Random uses against the promises: the same key is the same breaker while it refuses or is held; never more than `max`.
#[tokio::test(start_paused = true)]
async fn many_threads_make_one_breaker_for_a_key() {
    let hosts = builder().build_keyed::<u64>(NonZeroUsize::new(64).unwrap()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for i in 0..2000_u64 {
                    drop(hosts.get(&0).try_acquire().unwrap());
                    drop(hosts.get(&(i % 50)).try_acquire().unwrap());
                }
            });
        }
    });
    // Key 0 was used 2,000 times by itself and 40 times among the others, by each thread.
    assert_eq!(hosts.get(&0).snapshot().totals.aborted, 4 * 2040);
    assert_eq!(hosts.len(), 50);
}

/// Both find none and make one; the second to come back takes what the first has made.
#[test]
fn two_who_make_the_same_key_at_the_same_moment_share_one() {
    for max in [1, 64] {
        let both = std::sync::Barrier::new(2);
        let hosts = builder().build_keyed::<u64>(NonZeroUsize::new(max).unwrap()).unwrap();
        let hosts = hosts.with_names(move |key| {
            if *key == 7 {
                both.wait();
            }
            "host".into()
        });
        hosts.get(&1);
        let breakers = std::thread::scope(|scope| {
            [scope.spawn(|| hosts.get(&7)), scope.spawn(|| hosts.get(&7))].map(|made| made.join().unwrap())
        });
        breakers[0].try_acquire().unwrap().failure();
        assert!(breakers[1].try_acquire().is_err());
        assert_eq!(hosts.len(), max.min(2));
    }
}

/// Random uses, against a plain map of what must not be forgotten.
#[tokio::test(start_paused = true)]
async fn whatever_happens_no_refusing_breaker_is_forgotten_and_no_more_than_allowed_are_held() {
    use std::collections::HashMap;
    use tokio::time::Instant;
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let max = random.usize(1..200);
        let hosts = builder().build_keyed::<u16>(NonZeroUsize::new(max).unwrap()).unwrap();
        let mut open_until: HashMap<u16, Instant> = HashMap::new();
        for step in 0..2000 {
            let key = random.u16(0..300);
            match random.u32(0..20) {
                0..12 => match hosts.get(&key).try_acquire() {
                    Ok(permit) => permit.success(),
                    Err(_) => assert!(open_until[&key] > Instant::now(), "refused after its time"),
                },
                12..16 => {
                    if let Ok(permit) = hosts.get(&key).try_acquire() {
                        permit.failure();
                        if hosts.find(&key).is_some_and(|breaker| breaker.state() == State::Open) {
                            open_until.insert(key, Instant::now() + Duration::from_secs(1));
                        }
                    }
                }
                16 => {
                    let removed = hosts.remove(&key).is_some();
                    assert!(removed || open_until.get(&key).is_none_or(|until| *until <= Instant::now()));
                    open_until.remove(&key);
                }
                17 => drop(hosts.evict_idle()),
                _ => advance(Duration::from_millis(random.u64(0..100))).await,
            }
            open_until.retain(|_, until| *until > Instant::now());
            assert!(hosts.len() <= max);
            // Seldom: looking is a use too.
            for key in open_until.keys().filter(|_| step % 40 == 0) {
                assert!(hosts.find(key).unwrap().try_acquire().is_err(), "{key} of {max} was forgotten");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_set_on_a_held_breaker_is_not_forgotten_and_who_finds_no_room_is_told() {
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    let hosts: CircuitBreakers<String> = builder()
        .with_listener(move |_, event| {
            if *event == Event::NotHeld {
                count.fetch_add(1, Ordering::Relaxed);
            }
        })
        .build_keyed(NonZeroUsize::MIN)
        .unwrap();
    let held = hosts.get("a");
    assert!(hosts.hold("b").is_none());
    assert_eq!(told.load(Ordering::Relaxed), 0, "it was the answer");
    hosts.get("b").set_mode(Mode::ForcedOpen);
    assert_eq!((hosts.get("b").state(), told.load(Ordering::Relaxed)), (State::Closed, 2));
    drop(held);
    hosts.hold("b").unwrap().set_mode(Mode::ForcedOpen);
    hosts.get("c");
    assert_eq!(hosts.get("b").state(), State::Open);
}
