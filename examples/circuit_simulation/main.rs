//! A backend dies for a minute and recovers: what a circuit breaker makes of it, by each kind of trip rule. In virtual time.
//!
//! ```text
//! cargo run --release --example circuit_simulation     # a table, and a plot in target/simulation/circuit.svg
//! ```
//!
//! Requests come at random, 50 a second. The backend answers within 20 ms; while it is dead it fails after a second. The breaker is
//! the real one, under tokio's paused clock: three minutes take a moment.

mod plot;
mod simulation;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use async_circuit::State;
use clap::Parser;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};

use crate::simulation::{DIES, RECOVERS, Run};

/// Simulate circuit breakers in virtual time.
#[derive(Debug, Parser)]
#[command(name = "circuit_simulation", version)]
struct Args {
    /// The same seed, the same numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The folder for the plot
    #[arg(long, value_name = "DIR", default_value = "target/simulation")]
    out: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.out)?;
    let started = Instant::now();
    let runs = simulation::all(args.seed)?;
    println!("A backend that is dead for a minute, simulated in {:.1?}", started.elapsed());
    println!("{}", table(&runs));
    let path = args.out.join("circuit.svg");
    plot::draw(&path, &runs)?;
    println!("drawn in {}", path.display());
    Ok(())
}

fn table(runs: &[Run]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "rule",
        "calls to the dead backend",
        "refused",
        "refused after its recovery",
        "opened after",
        "closed after",
        "times opened",
    ]);
    for run in runs {
        let dead = DIES as usize..RECOVERS as usize;
        let sum = |seconds: &[u32]| seconds.iter().sum::<u32>().to_string();
        let first_open = run.changes.iter().find(|change| change.to == State::Open);
        let closed = run.changes.iter().rev().find(|change| change.to == State::Closed);
        let after =
            |since: f64, at: Option<f64>| at.map_or("-".to_owned(), |at| format!("{:.1} s", at - since));
        let opened = run.changes.iter().filter(|change| change.to == State::Open).count();
        table.add_row([
            run.name.to_owned(),
            sum(&run.reached[dead]),
            sum(&run.refused),
            sum(&run.refused[RECOVERS as usize..]),
            after(DIES, first_open.map(|change| change.at)),
            after(RECOVERS, closed.map(|change| change.at)),
            opened.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_spares_the_dead_backend_and_comes_back_soon() {
        let runs = simulation::all(7).unwrap();
        let dead = DIES as usize..RECOVERS as usize;
        let calls = |run: &Run| run.reached[dead.clone()].iter().sum::<u32>();
        for run in &runs[1..] {
            assert!(calls(run) * 4 < calls(&runs[0]), "{}: {}", run.name, calls(run));
            let closed = run.changes.last().unwrap();
            assert_eq!(closed.to, State::Closed, "{}", run.name);
            assert!((RECOVERS..RECOVERS + 25.0).contains(&closed.at), "{}: {}", run.name, closed.at);
        }
    }
}
