//! The live state: a progress bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use async_circuit::State;
use async_supervisor::{Child, Context};
use indicatif::{ProgressBar, ProgressStyle};

use crate::fetch::Fetcher;
use crate::run::Run;

fn line(run: &Run, fetcher: &Fetcher) -> String {
    let retries: u64 = fetcher.hosts().iter().map(|host| host.retries.load(Relaxed)).sum();
    let breakers: Vec<String> = fetcher
        .hosts()
        .iter()
        .filter_map(|host| match host.breaker.state() {
            State::Closed => None,
            state => Some(format!("{} {state}", host.name)),
        })
        .collect();
    let breakers = if breakers.is_empty() { "all closed".to_owned() } else { breakers.join(", ") };
    let stopping = if run.is_stopping() { "stopping, once more to abort: " } else { "" };
    format!(
        "{stopping}{} on the wire, {} failed, {retries} retried, {:.0}/s; breakers: {breakers}",
        fetcher.on_the_wire(),
        run.failed(),
        run.progress.snapshot().rate(),
    )
}

/// The worker that shows it.
pub(crate) fn status(run: &Arc<Run>, fetcher: &Arc<Fetcher>, every: Duration) -> Child {
    let (run, fetcher) = (Arc::clone(run), Arc::clone(fetcher));
    Child::new("status", move |ctx: Context| {
        let (run, fetcher) = (Arc::clone(&run), Arc::clone(&fetcher));
        async move {
            let terminal = std::io::stderr().is_terminal();
            let bar = if terminal { ProgressBar::new(run.total() as u64) } else { ProgressBar::hidden() };
            if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} [{bar:32}] {pos}/{len} {msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            let every = if terminal { every / 10 } else { every };
            let mut ticks = tokio::time::interval(every);
            while ctx.token().run_until_cancelled(ticks.tick()).await.is_some() {
                let line = line(&run, &fetcher);
                if terminal {
                    bar.set_position((run.done() + run.failed()) as u64);
                    bar.set_message(line);
                } else {
                    eprintln!(
                        "{:6.1} s: {} of {}, {line}",
                        run.elapsed().as_secs_f64(),
                        run.done(),
                        run.total()
                    );
                }
            }
            bar.finish_and_clear();
        }
    })
}
