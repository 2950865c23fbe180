use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::draw::Bar;

/// A live view of a gather, to look at from anywhere while it runs.
///
/// An item that ends with an `Ok` has succeeded, whatever a [classifier](crate::PolicyGather::classify_with) says of it.
///
/// Clones share the counts. It costs the gather one atomic addition when an item starts and one when it ends. Given to
/// several gathers, it shows them together.
///
/// ```
/// use async_batch::{Gather, Progress};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let progress = Progress::new();
/// let _ = Gather::up_to::<8>().with_progress(&progress).run(0..300, async |n| Ok::<u32, ()>(n)).await;
/// let now = progress.snapshot();
/// assert_eq!((now.done, now.failed, now.in_flight, now.total), (300, 0, 0, Some(300)));
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Progress {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    started: AtomicUsize,
    succeeded: AtomicUsize,
    failed: AtomicUsize,
    /// Dropped with the gather, or cancelled by it.
    abandoned: AtomicUsize,
    span: Mutex<Span>,
    bar: Bar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    /// Items announced by gathers that know how many they have.
    total: usize,
    /// Gathers that do not know.
    unknown: usize,
    running: usize,
    /// One was dropped, or stopped before its input ended.
    cut_short: bool,
    began: Option<Instant>,
    ended: Option<Instant>,
}

/// What a [`Progress`] shows at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// How many items there are in all, those included that a stopped gather no longer starts; `None` where the input does
    /// not tell beforehand.
    pub total: Option<usize>,
    /// Items that ended by themselves, well or not.
    pub done: usize,
    /// Those of them that succeeded.
    pub succeeded: usize,
    /// Those of them that failed.
    pub failed: usize,
    /// Items under way.
    pub in_flight: usize,
    /// Items that were under way when their gather stopped or was dropped.
    pub cancelled: usize,
    /// From the first gather's start until now, or until the last one's end. It stands still in a pause between two.
    #[cfg_attr(feature = "serde", serde(with = "humantime_serde"))]
    pub elapsed: Duration,
}

impl Snapshot {
    /// Items done per second on average so far; zero before any time has passed.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.done as f64 / seconds } else { 0.0 }
    }

    /// How long the rest takes if it goes on like this; `None` where the total or the rate is not known yet.
    #[must_use]
    pub fn eta(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.done + self.cancelled);
        if left == 0 {
            return Some(Duration::ZERO);
        }
        Duration::try_from_secs_f64(left as f64 / self.rate()).ok()
    }
}

impl Progress {
    /// One that shows nothing yet: give it to [`Gather::with_progress`](crate::Gather::with_progress).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A new one, drawn on `bar` too: its length and position follow the items, its message says how many failed. The bar
    /// draws itself at its own rate, whatever the items'.
    ///
    /// When the last gather has ended, the bar is finished as its [`with_finish`](indicatif::ProgressBar::with_finish)
    /// says. If one of them stopped before its input ended, or was dropped, the bar is
    /// [abandoned](indicatif::ProgressBar::abandon) instead: it stays where it stands, and says so.
    ///
    /// The bar is one of indicatif 0.18, which is there as [`async_batch::indicatif`](crate::indicatif).
    ///
    /// ```
    /// use async_batch::indicatif::ProgressBar;
    /// use async_batch::{Gather, Progress};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let progress = Progress::drawn_on(ProgressBar::no_length());
    /// let _ = Gather::up_to::<8>().with_progress(&progress).run(0..300, async |n| Ok::<u32, ()>(n)).await;
    /// # }
    /// ```
    #[cfg(feature = "indicatif")]
    #[must_use]
    pub fn drawn_on(bar: indicatif::ProgressBar) -> Self {
        Self { counts: Arc::new(Counts { bar: Bar::new(bar), ..Counts::default() }) }
    }

    /// What it shows now. The counts are read one after the other, not all at one instant: `in_flight` may include
    /// an item that has just ended.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let span = *self.counts.span.lock().unwrap_or_else(PoisonError::into_inner);
        // Ends before starts: each end seen has its start seen too.
        let succeeded = self.counts.succeeded.load(Ordering::Acquire);
        let failed = self.counts.failed.load(Ordering::Acquire);
        let cancelled = self.counts.abandoned.load(Ordering::Acquire);
        let started = self.counts.started.load(Ordering::Relaxed);
        let done = succeeded + failed;
        let until = if span.running > 0 { Some(Instant::now()) } else { span.ended };
        Snapshot {
            total: (span.unknown == 0 && span.began.is_some()).then_some(span.total),
            done,
            succeeded,
            failed,
            in_flight: started - done - cancelled,
            cancelled,
            elapsed: until.zip(span.began).map_or(Duration::ZERO, |(until, began)| until - began),
        }
    }

    /// A gather begins; it says how many items it has, if it knows.
    pub(crate) fn begin(&self, items: (usize, Option<usize>)) -> Reporter {
        let now = Instant::now();
        let mut span = self.counts.span.lock().unwrap_or_else(PoisonError::into_inner);
        match items {
            (least, Some(most)) if least == most => span.total = span.total.saturating_add(most),
            _ => span.unknown += 1,
        }
        span.running += 1;
        span.began.get_or_insert(now);
        let total = (span.unknown == 0).then_some(span.total);
        drop(span);
        self.counts.bar.begin(total);
        Reporter { counts: Arc::clone(&self.counts), in_flight: 0, natural_end: false }
    }
}

/// The gather's side: what is still under way when it is dropped counts as cancelled.
#[derive(Debug)]
pub(crate) struct Reporter {
    counts: Arc<Counts>,
    in_flight: usize,
    natural_end: bool,
}

impl Reporter {
    /// Every item of the input has ended.
    pub(crate) fn finish(mut self) {
        self.natural_end = true;
    }

    pub(crate) fn started(&mut self) {
        self.in_flight += 1;
        self.counts.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn ended(&mut self, ok: bool) {
        self.in_flight -= 1;
        let count = if ok { &self.counts.succeeded } else { &self.counts.failed };
        // Release: who sees the end sees the start.
        let before = count.fetch_add(1, Ordering::Release);
        self.counts.bar.ended((!ok).then_some(before + 1));
    }

    pub(crate) fn cancelled(&mut self) {
        self.in_flight -= 1;
        self.counts.abandoned.fetch_add(1, Ordering::Release);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.counts.abandoned.fetch_add(self.in_flight, Ordering::Release);
        let now = Instant::now();
        let mut span = self.counts.span.lock().unwrap_or_else(PoisonError::into_inner);
        span.running -= 1;
        span.ended = Some(now);
        span.cut_short |= !self.natural_end;
        let (last, natural) = (span.running == 0, !span.cut_short);
        drop(span);
        if last {
            self.counts.bar.finish(natural);
        }
    }
}
