//! Storms: everything at once, at random. Nobody runs twice at once, every command is answered, and after a stop nothing is left.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

use async_supervisor::{
    Backoff, Child, Context, Handle, Health, Intensity, Restart, Shutdown, Strategy, Supervisor,
};
use tokio::task::{JoinSet, unconstrained};
use tokio::time::{advance, sleep, timeout};

use crate::common::{Log, Order, Roll, error, ms, secs, tolerant, up};

const STRATEGIES: [Strategy; 4] =
    [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne, Strategy::Pool];

/// The same numbers in each run: SplitMix64.
#[derive(Clone)]
struct Dice(Arc<AtomicU64>);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(Arc::new(AtomicU64::new(seed)))
    }

    fn below(&self, n: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A worker whose runs are all different: ready late or never, failing, panicking, deaf, talkative, or well.
fn wild(name: &str, dice: &Dice, roll: &Roll) -> Child {
    let (dice, roll, path) = (dice.clone(), roll.clone(), name.to_owned());
    let (kind, pause) = (dice.below(30), ms(dice.below(30)));
    let child = Child::new(name, move |ctx: Context| {
        let (dice, present) = (dice.clone(), roll.enter(&path));
        async move {
            let _present = present;
            sleep(ms(dice.below(40))).await;
            if dice.below(10) > 0 {
                ctx.ready();
            }
            match dice.below(8) {
                0 => return Err(error("storm")),
                1 => return Ok(()),
                2 => std::panic::resume_unwind(Box::new("storm")),
                3 => std::future::pending().await,
                4 => {
                    ctx.cancelled().await;
                    sleep(ms(dice.below(60))).await;
                    return Err(error("storm"));
                }
                _ => {}
            }
            while ctx.token().run_until_cancelled(sleep(ms(15))).await.is_some() {
                ctx.heartbeat();
                ctx.report_health(Health::Degraded("storm".into()));
            }
            Ok(())
        }
    });
    let child = match kind % 3 {
        0 => child.with_restart(Restart::Permanent),
        1 => child.with_restart(Restart::Transient),
        _ => child.with_restart(Restart::Temporary),
    };
    let child = child.with_shutdown(Shutdown::Timeout(ms(30))).with_backoff(Backoff::constant(pause));
    let child = if kind % 2 == 0 { child.with_readiness(ms(25)) } else { child };
    if kind % 5 == 0 { child.with_heartbeat(ms(40)) } else { child }
}

#[tokio::test(start_paused = true)]
async fn of_commands_exits_and_time() {
    for round in 0..200 {
        let (dice, roll) = (Dice::new(round), Roll::default());
        let strategy = STRATEGIES[round as usize % 4];
        let intensity = if round % 3 == 0 { Intensity::new(5, ms(100)) } else { Intensity::unlimited() };
        let name = |n: u64| format!("c{n}");
        let below = Supervisor::one_for_one()
            .with_name(name(6))
            .with_intensity(Intensity::new(2, secs(1)))
            .with_children((0..2).map(|n| wild(&format!("below{n}"), &dice, &roll)));
        let s = Supervisor::new(strategy)
            .with_intensity(intensity)
            .with_children((0..4).map(|n| wild(&name(n), &dice, &roll)))
            .with_child(below.into_child())
            .spawn()
            .unwrap();
        let mut commands = JoinSet::new();
        for _ in 0..dice.below(30) {
            sleep(ms(dice.below(25))).await;
            let (handle, verb, name) = (s.handle(), dice.below(6), name(dice.below(7)));
            let (child, gives_up) = (wild(&name, &dice, &roll), dice.below(3) == 0);
            commands.spawn(async move {
                let command = async {
                    match verb {
                        0 => handle.add(child).await,
                        1 => handle.stop_child(&name).await,
                        2 => handle.start_child(&name).await,
                        3 => handle.restart_child(&name).await,
                        4 => handle.delete_child(&name).await,
                        _ => handle.remove_child(&name).await,
                    }
                };
                let within = if gives_up { ms(3) } else { secs(3600) };
                assert!(timeout(within, command).await.is_ok() || gives_up, "never answered");
            });
            let _ = s.snapshot().to_string();
        }
        match dice.below(4) {
            0 => drop(tokio::join!(s.stop(), s.stop())),
            1 => {
                s.force_stop();
                drop(s.wait().await);
            }
            2 => {
                let handle = s.handle();
                drop(s);
                drop(handle.wait().await);
            }
            _ => drop(s.stop().await),
        }
        while let Some(answered) = commands.join_next().await {
            answered.unwrap();
        }
        sleep(ms(1)).await;
        assert_eq!(roll.len(), 0, "round {round}");
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0, "round {round}");
    }
}

/// On several threads and the real clock, where ends, restarts and commands really race. No time is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_commands_and_exits_on_several_threads() {
    for (round, strategy) in (0..8).zip(STRATEGIES.into_iter().cycle()) {
        let (dice, roll) = (Dice::new(round), Roll::default());
        let name = |n: u64| format!("c{n}");
        let hasty = |name: &str| {
            let (dice, roll, path) = (dice.clone(), roll.clone(), name.to_owned());
            let child = Child::new(name, move |ctx: Context| {
                let (dice, present) = (dice.clone(), roll.enter(&path));
                async move {
                    let _present = present;
                    for _ in 0..dice.below(20) {
                        tokio::task::yield_now().await;
                    }
                    match dice.below(3) {
                        0 => Err(error("storm")),
                        1 => std::panic::resume_unwind(Box::new("storm")),
                        _ => {
                            ctx.cancelled().await;
                            Ok(())
                        }
                    }
                }
            });
            child.with_backoff(Backoff::none())
        };
        let s = Supervisor::new(strategy)
            .with_intensity(Intensity::unlimited())
            .with_children((0..4).map(|n| hasty(&name(n))))
            .spawn()
            .unwrap();
        let mut callers = JoinSet::new();
        for _ in 0..4 {
            let (handle, dice) = (s.handle(), dice.clone());
            let spare: Vec<_> = (0..6).map(|n| hasty(&name(n))).collect();
            callers.spawn(async move {
                for _ in 0..150 {
                    let nth = dice.below(6) as usize;
                    let (child, name) = (spare[nth].clone(), spare[nth].name());
                    let _ = match dice.below(6) {
                        0 => handle.add(child).await,
                        1 => handle.stop_child(name).await,
                        2 => handle.start_child(name).await,
                        3 => handle.restart_child(name).await,
                        4 => handle.delete_child(name).await,
                        _ => handle.remove_child(name).await,
                    };
                }
            });
        }
        while let Some(done) = callers.join_next().await {
            done.unwrap();
        }
        let report = s.stop().await;
        assert!(report.leaked.is_empty() && report.aborted.is_empty(), "{report}");
        assert_eq!(roll.len(), 0, "{strategy}");
    }
}

type Asked = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Asks again in the moment in which it is answered, so that the supervisor's inbox is never empty.
struct Insists {
    handle: Handle,
    asked: Mutex<Option<Asked>>,
    times: AtomicU64,
}

impl Insists {
    fn ask(self: &Arc<Self>) {
        if self.times.fetch_add(1, Relaxed) >= 100_000 {
            return;
        }
        let handle = self.handle.clone();
        let mut asked: Asked =
            Box::pin(unconstrained(async move { drop(handle.stop_child("nobody").await) }));
        let waker = Waker::from(Arc::clone(self));
        assert!(asked.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
        let answered = self.asked.lock().unwrap().replace(asked);
        drop(answered);
    }
}

impl Wake for Insists {
    fn wake(self: Arc<Self>) {
        self.ask();
    }
}

#[tokio::test(start_paused = true)]
async fn however_much_there_is_to_hear_what_is_due_is_done_in_time() {
    let log = Log::new();
    let child = log.child("a").with_backoff(Backoff::constant(secs(1)));
    let s = up(tolerant(Supervisor::one_for_one()).with_child(child)).await;
    log.tell("a", Order::Fail).await;
    let insists = Arc::new(Insists { handle: s.handle(), asked: Mutex::default(), times: AtomicU64::new(0) });
    insists.ask();
    advance(secs(2)).await;
    let attempts = || s.snapshot().child("a").unwrap().attempts;
    while attempts() < 2 {
        tokio::task::yield_now().await;
    }
    assert!(insists.times.load(Relaxed) < 100_000, "only when there was nothing more to hear");
}
