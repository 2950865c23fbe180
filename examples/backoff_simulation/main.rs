//! Two simulations of retries under load, in virtual time: thousands of clients, no waiting.
//!
//! ```text
//! cargo run --release --example backoff_simulation                  # tables, and two plots in target/simulation
//! cargo run --release --example backoff_simulation -- --trials 10
//! ```
//!
//! 1. Contention ("Exponential Backoff And Jitter", AWS Architecture Blog): N clients each want to make one write under an optimistic
//!    lock; who lost the race backs off and reads again. How long until all have written, and how many writes did it take? A plain
//!    event queue over the delays of `Backoff`; a test runs the same with the real `Retry`.
//! 2. Outage: 1,000 clients call a backend, half of whose answers fail for a minute. How much more load do their retries make,
//!    with no budget and with each kind of budget? The real `Retry` over tokio's paused clock.

mod contention;
mod outage;
mod plot;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};

/// Simulate backoff and budgets in virtual time.
#[derive(Debug, Parser)]
#[command(name = "backoff_simulation", version)]
struct Args {
    /// How often each point of the contention is simulated
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    trials: u32,
    /// The same seed, the same numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The folder for the plots
    #[arg(long, value_name = "DIR", default_value = "target/simulation")]
    out: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.out)?;

    let started = Instant::now();
    let points = contention::sweep(args.trials, args.seed);
    println!("Contention: {} trials of the whole sweep in {:.1?}", args.trials, started.elapsed());
    println!("{}", contention_table(&points));
    let path = args.out.join("contention.svg");
    plot::contention(&path, &points)?;
    println!("drawn in {}\n", path.display());

    let started = Instant::now();
    let runs = outage::all(args.seed);
    println!("Outage: half of all answers fail for a minute, simulated in {:.1?}", started.elapsed());
    println!("{}", outage_table(&runs));
    let path = args.out.join("outage.svg");
    plot::outage(&path, &runs)?;
    println!("drawn in {}", path.display());
    Ok(())
}

fn contention_table(points: &[contention::Point]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let mut header = vec!["clients".to_owned()];
    header.extend(contention::Kind::ALL.map(|kind| format!("{}: ms / writes", kind.name())));
    table.set_header(header);
    for &clients in &[10, 50, 100, 150, 200] {
        let mut row = vec![clients.to_string()];
        row.extend(contention::Kind::ALL.map(|kind| {
            let point = points.iter().find(|point| point.clients == clients && point.kind == kind);
            point.map_or_else(String::new, |p| format!("{:.0} / {:.0}", p.millis, p.writes))
        }));
        table.add_row(row);
    }
    table
}

fn outage_table(runs: &[outage::Run]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "budget",
        "load, first 5 s",
        "load, last 30 s",
        "calls that succeeded",
        "most attempts in a second",
    ]);
    for run in runs {
        let outage = &run.seconds[outage::BEGINS..outage::ENDS];
        let load = |seconds: &[outage::Second]| {
            let calls: u32 = seconds.iter().map(|second| second.calls).sum();
            let attempts: u32 = seconds.iter().map(|second| second.attempts).sum();
            f64::from(attempts) / f64::from(calls.max(1))
        };
        let ended: u32 = outage.iter().map(|second| second.ended).sum();
        let succeeded: u32 = outage.iter().map(|second| second.succeeded).sum();
        table.add_row([
            run.name.to_owned(),
            format!("x {:.2}", load(&outage[..5])),
            format!("x {:.2}", load(&outage[30..])),
            format!("{:.1} %", 100.0 * f64::from(succeeded) / f64::from(ended.max(1))),
            outage.iter().map(|second| second.attempts).max().unwrap_or(0).to_string(),
        ]);
    }
    table
}

/// A runtime of one thread whose clock goes on when everybody waits.
fn virtual_time<T>(run: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), run)
}
