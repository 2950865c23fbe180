//! What a person reads at the end.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use crate::fetch::Host;

/// A line for whoever still reads; the files are written all the same.
pub(crate) fn say(line: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// An error with all its causes, each said once.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        next = source.source();
    }
    text
}

/// Per host: how much was asked, what came of it, who refused, how long it took.
pub(crate) fn table(hosts: &[&Host]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "host",
        "requests",
        "successes",
        "retries",
        "time-outs",
        "refused: breaker",
        "refused: rate",
        "refused: limit",
        "p50",
        "p99",
    ]);
    let count = |counter: &AtomicU64| counter.load(Relaxed).to_string();
    let time = |share, host: &Host| {
        host.percentile(share).map_or("–".to_owned(), |time| format!("{:.1} ms", time.as_secs_f64() * 1e3))
    };
    for host in hosts {
        table.add_row([
            host.name.clone(),
            count(&host.requests),
            count(&host.successes),
            count(&host.retries),
            count(&host.timeouts),
            count(&host.refused_by_breaker),
            count(&host.refused_by_rate),
            count(&host.refused_by_limit),
            time(0.5, host),
            time(0.99, host),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
