//! The frame in which the family and its peers do the same work.
//!
//! Rounds are interleaved (A B C A B C …) in one process, so that a machine whose speed drifts treats all alike; what is
//! quoted is the median, over rounds, of the ratio to the peer. Allocations are counted on the measuring thread, in a round of
//! their own.
//!
//! ```no_run
//! use benches::{Table, block_on};
//! let mut table = Table::new("retry");
//! table
//!     .row("success")
//!     .ours("async-retry", |n| block_on(async { for _ in 0..n { /* n calls */ } }))
//!     .peer("backon", |n| block_on(async { for _ in 0..n { /* the same n calls */ } }))
//!     .run();
//! table.finish();
//! ```
//!
//! `BENCH_ROUNDS` sets the number of rounds (21), `BENCH_ROUND_MS` how long one candidate takes in a round (20 ms), and
//! `BENCH_ROWS` which rows run (those whose name contains it).

use std::cell::RefCell;
use std::future::Future;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table as Grid, presets::UTF8_FULL_CONDENSED};

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    static EXTRA: RefCell<Vec<(&'static str, f64)>> = const { RefCell::new(Vec::new()) };
}

/// Runs a future on this thread's own current-thread runtime.
pub fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Runs `work(n)` on `threads` threads at once, and ends when all have.
pub fn on_threads(threads: usize, n: u64, work: impl Fn(u64) + Sync) {
    let barrier = std::sync::Barrier::new(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                barrier.wait();
                work(n);
            });
        }
    });
}

/// Reports a figure of the candidate's own (inversions, wake-ups, megabytes …) next to its times; the last round's
/// is shown.
pub fn note(name: &'static str, value: f64) {
    EXTRA.with_borrow_mut(|extra| {
        extra.retain(|(known, _)| *known != name);
        extra.push((name, value));
    });
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    Peer,
    Bare,
}

struct Candidate<'a> {
    name: &'static str,
    kind: Kind,
    work: Box<dyn FnMut(u64) + 'a>,
    iterations: u64,
    nanos: Vec<f64>,
    cpu: Vec<f64>,
    allocations: f64,
    extra: Vec<(&'static str, f64)>,
}

/// One table of results, in which each row is one kind of work.
#[derive(Debug)]
pub struct Table {
    bench: &'static str,
    grid: Grid,
    ratios: Vec<String>,
    rounds: usize,
    round: Duration,
    filter: Option<String>,
}

impl Table {
    /// A table for the bench `bench`.
    #[must_use]
    pub fn new(bench: &'static str) -> Self {
        let number =
            |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
        let mut grid = Grid::new();
        grid.load_style(UTF8_FULL_CONDENSED).set_header([
            "row",
            "candidate",
            "ns/op",
            "min",
            "max",
            "cpu ns/op",
            "allocs/op",
            "ours/this",
            "notes",
        ]);
        for column in 2..8 {
            if let Some(column) = grid.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self {
            bench,
            grid,
            ratios: Vec::new(),
            rounds: number("BENCH_ROUNDS", 21),
            round: Duration::from_millis(number("BENCH_ROUND_MS", 20) as u64),
            filter: std::env::var("BENCH_ROWS").ok(),
        }
    }

    /// Begins a row.
    pub fn row<'t, 'a>(&'t mut self, name: &'static str) -> Row<'t, 'a> {
        Row { table: self, name, fixed: None, rounds: None, candidates: Vec::new() }
    }

    /// Prints the table, and then one `RATIO` line for each row.
    pub fn finish(self) {
        println!("{}", self.grid);
        for ratio in self.ratios {
            println!("{ratio}");
        }
    }
}

/// One kind of work, and those who do it.
#[must_use = "a row does nothing until it is run"]
pub struct Row<'t, 'a> {
    table: &'t mut Table,
    name: &'static str,
    fixed: Option<u64>,
    rounds: Option<usize>,
    candidates: Vec<Candidate<'a>>,
}

impl std::fmt::Debug for Row<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Row").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<'a> Row<'_, 'a> {
    /// The work is always done this many times a round (one big job: its number of items).
    pub const fn fixed(mut self, iterations: u64) -> Self {
        self.fixed = Some(iterations);
        self
    }

    /// This row takes this many rounds (long jobs take fewer).
    pub const fn rounds(mut self, rounds: usize) -> Self {
        self.rounds = Some(rounds);
        self
    }

    /// How the family does it: `work(n)` does it n times.
    pub fn ours(self, name: &'static str, work: impl FnMut(u64) + 'a) -> Self {
        self.candidate(name, Kind::Ours, work)
    }

    /// How a peer does it.
    pub fn peer(self, name: &'static str, work: impl FnMut(u64) + 'a) -> Self {
        self.candidate(name, Kind::Peer, work)
    }

    /// The same work without any pattern: a yardstick, not a rival.
    pub fn bare(self, work: impl FnMut(u64) + 'a) -> Self {
        self.candidate("bare", Kind::Bare, work)
    }

    fn candidate(mut self, name: &'static str, kind: Kind, work: impl FnMut(u64) + 'a) -> Self {
        self.candidates.push(Candidate {
            name,
            kind,
            work: Box::new(work),
            iterations: 1,
            nanos: Vec::new(),
            cpu: Vec::new(),
            allocations: 0.0,
            extra: Vec::new(),
        });
        self
    }

    /// Runs all candidates of the row in interleaved rounds.
    ///
    /// # Panics
    ///
    /// When the row has no candidate of the family's own.
    pub fn run(mut self) {
        if self.table.filter.as_ref().is_some_and(|filter| !self.name.contains(filter.as_str())) {
            return;
        }
        eprintln!("{}/{} …", self.table.bench, self.name);
        let rounds = self.rounds.unwrap_or(self.table.rounds).max(1);
        for candidate in &mut self.candidates {
            candidate.iterations =
                self.fixed.unwrap_or_else(|| calibrate(&mut candidate.work, self.table.round));
            let iterations = candidate.iterations;
            let counted = allocation_counter::measure(|| (candidate.work)(iterations));
            candidate.allocations = counted.count_total as f64 / iterations as f64;
        }
        for _ in 0..rounds {
            for candidate in &mut self.candidates {
                EXTRA.with_borrow_mut(Vec::clear);
                let cpu = cpu_time();
                let started = Instant::now();
                (candidate.work)(candidate.iterations);
                let took = started.elapsed();
                let n = candidate.iterations as f64;
                candidate.nanos.push(took.as_nanos() as f64 / n);
                candidate.cpu.push((cpu_time() - cpu) / n);
                candidate.extra = EXTRA.with_borrow(Clone::clone);
            }
        }
        self.report();
    }

    fn report(self) {
        let ours = self.candidates.iter().find(|candidate| candidate.kind == Kind::Ours);
        let ours = ours.expect("a row has a candidate of ours");
        let ratio = |peer: &Candidate<'_>| {
            median(ours.nanos.iter().zip(&peer.nanos).map(|(ours, peer)| ours / peer).collect())
        };
        for candidate in &self.candidates {
            let least = candidate.nanos.iter().copied().fold(f64::INFINITY, f64::min);
            let most = candidate.nanos.iter().copied().fold(0.0, f64::max);
            let notes: Vec<String> =
                candidate.extra.iter().map(|(name, value)| format!("{name} {}", figure(*value))).collect();
            self.table.grid.add_row([
                self.name.to_owned(),
                candidate.name.to_owned(),
                figure(median(candidate.nanos.clone())),
                figure(least),
                figure(most),
                figure(median(candidate.cpu.clone())),
                figure(candidate.allocations),
                if candidate.kind == Kind::Ours { String::new() } else { format!("{:.3}", ratio(candidate)) },
                notes.join(", "),
            ]);
        }
        let peers = self.candidates.iter().filter(|candidate| candidate.kind == Kind::Peer);
        let best = peers.min_by(|a, b| median(a.nanos.clone()).total_cmp(&median(b.nanos.clone())));
        if let Some(best) = best {
            let line =
                format!("RATIO {}/{} {:.3} vs {}", self.table.bench, self.name, ratio(best), best.name);
            self.table.ratios.push(line);
        }
    }
}

/// How often the work fits into a round.
fn calibrate(work: &mut dyn FnMut(u64), round: Duration) -> u64 {
    let mut iterations = 1_u64;
    loop {
        let started = Instant::now();
        work(iterations);
        let took = started.elapsed();
        if took >= round / 4 {
            let scaled = iterations as f64 * round.as_secs_f64() / took.as_secs_f64();
            return (scaled as u64).max(1);
        }
        iterations *= 2;
    }
}

/// Nanoseconds of processor time of this process, on all its threads.
fn cpu_time() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn figure(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        v if v < 0.01 => format!("{v:.1e}"),
        v if v < 100.0 => format!("{v:.2}"),
        v => format!("{v:.0}"),
    }
}
