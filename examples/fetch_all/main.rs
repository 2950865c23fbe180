//! Fetches a list of named URLs through one composed stack of policies, and survives being killed.
//!
//! ```text
//! cargo run --release --example fetch_all                       # against an embedded server with seeded faults
//! cargo run --release --example fetch_all -- --urls list.json   # a list of your own: [{"name": "…", "url": "…"}, …]
//! ```

mod exchange;
mod fetch;
mod input;
mod report;
mod run;
mod view;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_jsonfs::{JsonFile, save};
use async_supervisor::{AutoShutdown, Cause, Child, Restart, Shutdown, Signal, Supervisor};
use clap::Parser;

use crate::exchange::Exchange;
use crate::fetch::Fetcher;
use crate::input::Input;
use crate::report::say;
use crate::run::Run;

/// Fetch a list of named URLs; write results.json and errors.json.
#[derive(Debug, Parser)]
#[command(name = "fetch_all", version)]
struct Args {
    /// A JSON list of {"name": …, "url": …}; without it, 300 quotes of an embedded server with seeded faults
    #[arg(long, value_name = "FILE")]
    urls: Option<PathBuf>,
    /// The folder for results.json, errors.json and the checkpoint of an unfinished run
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Requests per second, over all hosts
    #[arg(long, default_value = "60", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Requests on the wire at once, over all hosts
    #[arg(long, default_value = "16", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// For the whole run, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "45", value_parser = seconds)]
    deadline: Duration,
    /// For the faults of the embedded server, and its quotes
    #[arg(long, default_value = "7")]
    seed: u64,
    /// Time between checkpoints, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds, hide = true)]
    checkpoint: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("not a time above zero, or too long".to_owned()),
    }
}

type Boxed = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    match fetch_all(Args::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fetch_all: {}", report::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn fetch_all(args: Args) -> Result<ExitCode, Boxed> {
    let (inputs, exchange) = match &args.urls {
        Some(file) => (input::load(file).await?, None),
        None => {
            let exchange = Exchange::start(args.seed).await?;
            say(format_args!(
                "no --urls: {} quotes of an embedded server on {}",
                exchange.inputs().len(),
                exchange.address()
            ));
            (exchange.inputs(), Some(exchange))
        }
    };
    let list = input::fingerprint(&inputs, args.urls.is_none().then_some(args.seed));
    let out = |name: &str| JsonFile::new(args.out.join(name)).with_create_parents();
    let checkpoint = out("checkpoint.json");
    let run = Arc::new(Run::resume(list, inputs, &checkpoint).await?);
    if run.done() > 0 {
        say(format_args!("resuming: {} of {} were fetched before", run.done(), run.total()));
    }

    let fetcher = Arc::new(Fetcher::new(&args, exchange.as_ref(), &run)?);
    let second = Duration::from_secs(1);
    // Started in this order and stopped in reverse: no more fetches, then the view, then the last checkpoint.
    let supervisor = Supervisor::one_for_one()
        .with_name("fetch_all")
        .with_auto_shutdown(AutoShutdown::AnySignificant)
        .with_child(run::checkpointer(&run, checkpoint.clone(), args.checkpoint))
        .with_child(view::status(&run, &fetcher, second))
        .with_child({
            let (run, fetcher) = (Arc::clone(&run), Arc::clone(&fetcher));
            Child::new("fetch", move |ctx| fetch::all(Arc::clone(&run), Arc::clone(&fetcher), ctx))
                .with_restart(Restart::Transient)
                .with_shutdown(Shutdown::Timeout(fetch::DRAIN + second))
                .with_significant()
        })
        .start()
        .await?;
    let ended = supervisor.run_until_signal().await?;

    let (results, errors) = run.outcome();
    let counts = (results.len(), errors.len());
    out("results.json").save(results).await?;
    save(args.out.join("errors.json"), errors).await?;
    say(report::table(&fetcher.hosts()));
    say(format_args!(
        "{} results and {} errors of {} in {}; they took {:.1} s",
        counts.0,
        counts.1,
        run.total(),
        args.out.display(),
        run.elapsed().as_secs_f64()
    ));
    match ended.cause {
        Cause::AutoShutdown { .. } => {
            run.forget(&checkpoint).await?;
            if !ended.is_clean() {
                eprintln!("fetch_all: {ended}");
            }
            Ok(ended.exit_code())
        }
        Cause::Stopped => {
            say("interrupted; run it again to fetch the rest");
            Ok(ended.signal().map_or(ExitCode::FAILURE, Signal::exit_code))
        }
        _ => Err(ended.to_string().into()),
    }
}

/// One URL to fetch, by its place in the list.
type Item = (usize, Input);
