//! Many children: start, stop, restarts, memory: `cargo bench -p benches --no-default-features --features supervisor --bench supervisor`.
//!
//! 100,000 children (`BENCH_CHILDREN`) that wait for their token, and as many restarts of 100 children that fail at once,
//! in interleaved rounds (`BENCH_ROUNDS`, 7). The phases are timed apart, so this bench keeps its own clock. Memory is
//! measured in a process of its own for each candidate. A bare `JoinSet`, which supervises nothing, is the yardstick.
//! OTP takes part when `erl` is installed.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_supervisor::{Backoff, Child, Context, Intensity, Supervisor};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use task_supervisor::{CancellationToken, SupervisedTask, SupervisorBuilder, TaskResult};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

/// How many children fail again and again in the restart row.
const FAILING: usize = 100;

/// Counts those that have started.
#[derive(Clone)]
struct Started {
    count: Arc<AtomicUsize>,
    target: usize,
    done: Arc<Notify>,
}

impl Started {
    fn new(target: usize) -> Self {
        Self { count: Arc::default(), target, done: Arc::default() }
    }

    /// One more; whether there are more to come.
    fn one(&self) -> bool {
        let count = self.count.fetch_add(1, Relaxed) + 1;
        if count == self.target {
            self.done.notify_one();
        }
        count < self.target
    }
}

/// Per child or restart.
type Phases = Vec<(&'static str, Duration)>;

async fn ours(n: usize, supervisor: Supervisor) -> Phases {
    let started = Started::new(n);
    let begin = Instant::now();
    let children = (0..n).map(|i| {
        let started = started.clone();
        Child::new(format!("w{i}"), move |ctx: Context| {
            let started = started.clone();
            async move {
                started.one();
                ctx.cancelled().await;
            }
        })
    });
    let running = supervisor.with_children(children).spawn().unwrap();
    started.done.notified().await;
    let start = begin.elapsed();
    resident();
    let begin = Instant::now();
    assert!(running.stop().await.is_clean());
    vec![("start", start), ("stop", begin.elapsed())]
}

async fn ours_added(n: usize) -> Phases {
    let started = Started::new(n);
    let running = Supervisor::pool().spawn().unwrap();
    let begin = Instant::now();
    for i in 0..n {
        let started = started.clone();
        let child = Child::new(format!("w{i}"), move |ctx: Context| {
            let started = started.clone();
            async move {
                started.one();
                ctx.cancelled().await;
            }
        });
        running.add(child).await.unwrap();
    }
    started.done.notified().await;
    let add = begin.elapsed();
    resident();
    assert!(running.stop().await.is_clean());
    vec![("add one by one", add)]
}

async fn ours_restarts(n: usize) -> Phases {
    let started = Started::new(FAILING + n);
    let children = (0..FAILING).map(|i| {
        let started = started.clone();
        let child = Child::new(format!("w{i}"), move |ctx: Context| {
            let started = started.clone();
            async move {
                if started.one() {
                    return Err("failed");
                }
                ctx.cancelled().await;
                Ok(())
            }
        });
        child.with_backoff(Backoff::none())
    });
    let intensity = Intensity::new(u32::MAX, Duration::from_secs(1));
    let begin = Instant::now();
    let running = Supervisor::pool().with_intensity(intensity).with_children(children).spawn().unwrap();
    started.done.notified().await;
    let took = begin.elapsed();
    let _ = running.stop().await;
    vec![("restart", took)]
}

#[derive(Clone)]
struct Waits(Started);

impl SupervisedTask for Waits {
    async fn run(self, cancel: CancellationToken) -> TaskResult {
        self.0.one();
        cancel.cancelled().await;
        Ok(())
    }
}

async fn task_supervisor(n: usize) -> Phases {
    let started = Started::new(n);
    let begin = Instant::now();
    let mut builder = SupervisorBuilder::new();
    for i in 0..n {
        builder = builder.with_task(&format!("w{i}"), Waits(started.clone()));
    }
    let handle = builder.spawn();
    started.done.notified().await;
    let start = begin.elapsed();
    resident();
    let begin = Instant::now();
    handle.shutdown().await.unwrap();
    vec![("start", start), ("stop", begin.elapsed())]
}

async fn task_supervisor_added(n: usize) -> Phases {
    let started = Started::new(n);
    let handle = SupervisorBuilder::new().spawn();
    let begin = Instant::now();
    for i in 0..n {
        handle.add_task(&format!("w{i}"), Waits(started.clone())).await.unwrap();
    }
    started.done.notified().await;
    let add = begin.elapsed();
    resident();
    handle.shutdown().await.unwrap();
    vec![("add one by one", add)]
}

#[derive(Clone)]
struct Fails(Started);

impl SupervisedTask for Fails {
    async fn run(self, cancel: CancellationToken) -> TaskResult {
        if self.0.one() {
            return Err("failed".into());
        }
        cancel.cancelled().await;
        Ok(())
    }
}

async fn task_supervisor_restarts(n: usize) -> Phases {
    let started = Started::new(FAILING + n);
    let mut builder =
        SupervisorBuilder::new().with_unlimited_restarts().with_base_restart_delay(Duration::ZERO);
    for i in 0..FAILING {
        builder = builder.with_task(&format!("w{i}"), Fails(started.clone()));
    }
    let begin = Instant::now();
    let handle = builder.spawn();
    started.done.notified().await;
    let took = begin.elapsed();
    handle.shutdown().await.unwrap();
    vec![("restart", took)]
}

struct Worker;

impl Actor for Worker {
    type Msg = ();
    type State = ();
    type Arguments = (Started, Arc<AtomicBool>);

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        (started, fails): Self::Arguments,
    ) -> Result<(), ActorProcessingErr> {
        if started.one() && fails.load(Relaxed) {
            myself.cast(())?;
        }
        Ok(())
    }

    async fn handle(&self, _: ActorRef<()>, (): (), (): &mut ()) -> Result<(), ActorProcessingErr> {
        Err("failed".into())
    }
}

/// Starts its children, and each again that fails.
struct Parent;

impl Actor for Parent {
    type Msg = ();
    type State = (Started, Arc<AtomicBool>);
    type Arguments = (usize, Started, Arc<AtomicBool>);

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        (n, started, fails): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        for _ in 0..n {
            let arguments = (started.clone(), Arc::clone(&fails));
            Actor::spawn_linked(None, Worker, arguments, myself.get_cell()).await?;
        }
        Ok((started, fails))
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<()>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(..) = event {
            Actor::spawn_linked(None, Worker, state.clone(), myself.get_cell()).await?;
        }
        Ok(())
    }
}

async fn ractor(n: usize) -> Phases {
    let started = Started::new(n);
    let begin = Instant::now();
    let (parent, ended) = Actor::spawn(None, Parent, (n, started.clone(), Arc::default())).await.unwrap();
    started.done.notified().await;
    let start = begin.elapsed();
    resident();
    let begin = Instant::now();
    parent.stop_children_and_wait(None, None).await;
    parent.stop(None);
    ended.await.unwrap();
    vec![("start", start), ("stop", begin.elapsed())]
}

async fn ractor_restarts(n: usize) -> Phases {
    let started = Started::new(FAILING + n);
    let fails = Arc::new(AtomicBool::new(true));
    let begin = Instant::now();
    let (parent, ended) = Actor::spawn(None, Parent, (FAILING, started.clone(), fails)).await.unwrap();
    started.done.notified().await;
    let took = begin.elapsed();
    parent.stop_children_and_wait(None, None).await;
    parent.stop(None);
    ended.await.unwrap();
    vec![("restart", took)]
}

async fn join_set(n: usize) -> Phases {
    let started = Started::new(n);
    let token = tokio_token();
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..n {
        let (started, token) = (started.clone(), token.clone());
        tasks.spawn(async move {
            started.one();
            token.cancelled().await;
        });
    }
    started.done.notified().await;
    let start = begin.elapsed();
    resident();
    let begin = Instant::now();
    token.cancel();
    while tasks.join_next().await.is_some() {}
    vec![("start", start), ("stop", begin.elapsed())]
}

/// The token that task-supervisor re-exports is tokio-util's.
fn tokio_token() -> CancellationToken {
    CancellationToken::new()
}

async fn join_set_restarts(n: usize) -> Phases {
    let started = Started::new(FAILING + n);
    let mut tasks = JoinSet::new();
    let task = |started: Started| async move { started.one() };
    let begin = Instant::now();
    for _ in 0..FAILING {
        tasks.spawn(task(started.clone()));
    }
    while let Some(Ok(true)) = tasks.join_next().await {
        tasks.spawn(task(started.clone()));
    }
    vec![("restart", begin.elapsed())]
}

const OTP: &str = r#"
-module(bench).
-behaviour(supervisor).
-export([run/1, init/1, waits/0, fails/1, loop/0]).
init({Kind, Args}) ->
    {ok, {#{strategy => simple_one_for_one, intensity => 1000000000, period => 1},
          [#{id => w, start => {?MODULE, Kind, Args}, restart => permanent}]}}.
waits() -> {ok, spawn_link(?MODULE, loop, [])}.
loop() -> receive stop -> ok end.
fails({Counter, Target, Main}) ->
    {ok, spawn_link(fun() ->
        counters:add(Counter, 1, 1),
        case counters:get(Counter, 1) of
            N when N < Target -> exit(normal);
            _ -> Main ! done, loop()
        end end)}.
run(N) ->
    logger:set_primary_config(level, none),
    process_flag(trap_exit, true),
    {ok, S} = supervisor:start_link(?MODULE, {waits, []}),
    {Start, _} = timer:tc(fun() -> [supervisor:start_child(S, []) || _ <- lists:seq(1, N)] end),
    {Stop, _} = timer:tc(fun() -> exit(S, shutdown), receive {'EXIT', S, _} -> ok end end),
    Counter = counters:new(1, []),
    {ok, R} = supervisor:start_link(?MODULE, {fails, [{Counter, max(1, N div 100) + 100, self()}]}),
    {Restart, _} = timer:tc(fun() ->
        [supervisor:start_child(R, []) || _ <- lists:seq(1, 100)], receive done -> ok end end),
    io:format("~p ~p ~p~n", [Start, Stop, Restart]),
    halt(0).
"#;

/// Compiles OTP's part, where OTP is.
fn otp_ready(folder: &std::path::Path) -> bool {
    std::fs::create_dir_all(folder).is_ok()
        && std::fs::write(folder.join("bench.erl"), OTP).is_ok()
        && Command::new("erlc")
            .arg("bench.erl")
            .current_dir(folder)
            .status()
            .is_ok_and(|status| status.success())
}

fn otp(n: usize, folder: &std::path::Path) -> Option<Phases> {
    let run = format!("bench:run({n}).");
    let output = Command::new("erl")
        .args(["+P", "2000000", "-noshell", "-eval", &run])
        .current_dir(folder)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let micros: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [start, stop, restart] = micros[..] else { return None };
    let phase = |name, micros| (name, Duration::from_micros(micros));
    // It keeps a list of the restarts of the last second and walks it at each: so many at once would show only that.
    Some(vec![phase("start", start), phase("stop", stop), phase("restart", restart * 100)])
}

static REPORT_MEMORY: AtomicBool = AtomicBool::new(false);

/// In a process that measures memory: says how much is resident, and ends.
fn resident() {
    if REPORT_MEMORY.load(Relaxed) {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        println!("{}", pages * 4096);
        std::process::exit(0);
    }
}

fn runtime(threads: usize) -> Runtime {
    match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build().unwrap(),
    }
}

/// Runs it as a task, where the workers of the runtime are.
fn phases(threads: usize, candidate: &str, n: usize) -> Phases {
    let work: std::pin::Pin<Box<dyn Future<Output = Phases> + Send>> = match candidate {
        "async-supervisor (pool)" => Box::pin(async move {
            let mut phases = ours(n, Supervisor::pool()).await;
            phases.extend(ours_added(n).await);
            phases.extend(ours_restarts(n).await);
            phases
        }),
        "async-supervisor (one_for_one)" => Box::pin(ours(n, Supervisor::one_for_one())),
        "task-supervisor" => Box::pin(async move {
            let mut phases = task_supervisor(n).await;
            phases.extend(task_supervisor_added(n).await);
            // A timer tick for each: a hundredth of the restarts is plenty.
            let few = (n / 100).max(1);
            phases.extend(
                task_supervisor_restarts(few).await.into_iter().map(|(name, took)| (name, took * 100)),
            );
            phases
        }),
        "ractor" => Box::pin(async move {
            let mut phases = ractor(n).await;
            phases.extend(ractor_restarts(n).await);
            phases
        }),
        "JoinSet (yardstick)" => Box::pin(async move {
            let mut phases = join_set(n).await;
            phases.extend(join_set_restarts(n).await);
            phases
        }),
        other => panic!("no candidate `{other}`"),
    };
    let runtime = runtime(threads);
    let (tx, rx) = oneshot::channel();
    runtime.spawn(async move { drop(tx.send(work.await)) });
    runtime.block_on(rx).unwrap()
}

const CANDIDATES: [&str; 5] = [
    "async-supervisor (pool)",
    "async-supervisor (one_for_one)",
    "task-supervisor",
    "ractor",
    "JoinSet (yardstick)",
];

fn memory(candidate: &str, n: usize) -> Option<u64> {
    let of = |n: usize| {
        let output = Command::new(std::env::current_exe().ok()?)
            .env("BENCH_MEMORY_OF", candidate)
            .env("BENCH_CHILDREN", n.to_string())
            .output()
            .ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse::<u64>().ok()
    };
    Some(of(n)?.saturating_sub(of(1)?) / n as u64)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let number =
        |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (n, rounds) = (number("BENCH_CHILDREN", 100_000), number("BENCH_ROUNDS", 7));
    if let Ok(candidate) = std::env::var("BENCH_MEMORY_OF") {
        REPORT_MEMORY.store(true, Relaxed);
        phases(1, &candidate, n);
        return;
    }
    let folder = std::env::temp_dir().join(format!("bench-otp-{}", std::process::id()));
    let with_otp = otp_ready(&folder);
    if !with_otp {
        println!("SKIPPED: OTP, since `erl` and `erlc` are not installed or do not work");
    }
    let mut grid = Table::new();
    grid.load_style(UTF8_FULL_CONDENSED);
    grid.set_header([
        "row",
        "threads",
        "candidate",
        "ns/child",
        "ms in all",
        "min ms",
        "max ms",
        "ours/this",
        "bytes/child",
    ]);
    for column in 3..9 {
        if let Some(column) = grid.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let memory: BTreeMap<_, _> =
        CANDIDATES.iter().map(|candidate| (*candidate, memory(candidate, n))).collect();
    let mut ratios = Vec::new();
    for threads in [2, 1] {
        let mut took: BTreeMap<&str, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
        for round in 0..rounds {
            eprintln!("supervisor: {threads} threads, round {round} …");
            let mut measured: Vec<_> =
                CANDIDATES.iter().map(|candidate| (*candidate, phases(threads, candidate, n))).collect();
            if with_otp && threads == 2 {
                measured.extend(otp(n, &folder).map(|phases| ("OTP", phases)));
            }
            for (candidate, phases) in measured {
                for (phase, time) in phases {
                    took.entry(phase).or_default().entry(candidate).or_default().push(time.as_secs_f64());
                }
            }
        }
        for phase in ["start", "stop", "add one by one", "restart"] {
            let Some(times) = took.get(phase) else { continue };
            let ours = &times[CANDIDATES[0]];
            let ratio = |theirs: &Vec<f64>| {
                median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect())
            };
            for (candidate, seconds) in times {
                let ms = |seconds: f64| format!("{:.2}", seconds * 1e3);
                let all = median(seconds.clone());
                grid.add_row([
                    phase.to_owned(),
                    threads.to_string(),
                    (*candidate).to_owned(),
                    format!("{:.0}", all * 1e9 / n as f64),
                    ms(all),
                    ms(seconds.iter().copied().fold(f64::INFINITY, f64::min)),
                    ms(seconds.iter().copied().fold(0.0, f64::max)),
                    if *candidate == CANDIDATES[0] {
                        String::new()
                    } else {
                        format!("{:.3}", ratio(seconds))
                    },
                    match (phase, memory.get(candidate)) {
                        ("start", Some(Some(bytes))) => bytes.to_string(),
                        _ => String::new(),
                    },
                ]);
                if !candidate.starts_with("async-supervisor") {
                    ratios.push(format!(
                        "RATIO supervisor/{phase} ({threads} threads) {:.3} vs {candidate}",
                        ratio(seconds)
                    ));
                }
            }
        }
    }
    let _ = std::fs::remove_dir_all(folder);
    println!("{grid}");
    for ratio in ratios {
        println!("{ratio}");
    }
}
