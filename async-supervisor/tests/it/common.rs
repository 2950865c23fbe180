use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use async_supervisor::{
    Backoff, Child, Context, EventKind, Events, Intensity, Running, Shutdown, Supervisor,
};
use tokio::sync::broadcast;

/// What the workers of a test did, in order, and the means to make them do it.
#[derive(Clone)]
pub(crate) struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    orders: broadcast::Sender<(String, Order)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    End,
    Fail,
    Panic,
    Ready,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self { lines: Arc::default(), orders: broadcast::Sender::new(1024) }
    }

    pub(crate) fn line(&self, line: impl Into<String>) {
        self.lines.lock().unwrap().push(line.into());
    }

    /// What has been written since the last time, joined by spaces.
    pub(crate) fn take(&self) -> String {
        std::mem::take(&mut *self.lines.lock().unwrap()).join(" ")
    }

    pub(crate) async fn tell(&self, name: &str, order: Order) {
        let _ = self.orders.send((name.to_owned(), order));
        settle().await;
    }

    /// A worker that writes `+name` when it starts and `-name` when it is asked to stop, takes `cleanup` for that, and
    /// ends as it is told. Restarted without delay.
    pub(crate) fn child_with(&self, name: &str, cleanup: Duration) -> Child {
        let log = self.clone();
        Child::new(name, move |ctx: Context| {
            let log = log.clone();
            async move {
                let mut orders = log.orders.subscribe();
                log.line(format!("+{}", ctx.name()));
                loop {
                    tokio::select! {
                        () = ctx.cancelled() => {
                            log.line(format!("-{}", ctx.name()));
                            tokio::time::sleep(cleanup).await;
                            return Ok(());
                        }
                        order = orders.recv() => match order {
                            Ok((name, order)) if name == ctx.name() => match order {
                                Order::End => return Ok(()),
                                Order::Fail => return Err(std::io::Error::other("told to fail")),
                                // Without the panic hook, which would write a trace each time.
                                Order::Panic => std::panic::resume_unwind(Box::new("told to panic")),
                                Order::Ready => ctx.ready(),
                            },
                            _ => {}
                        }
                    }
                }
            }
        })
        .with_backoff(Backoff::none())
    }

    pub(crate) fn child(&self, name: &str) -> Child {
        self.child_with(name, Duration::ZERO)
    }
}

/// Lets all that is ready run, without time passing.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

pub(crate) fn tolerant(supervisor: Supervisor) -> Supervisor {
    supervisor.with_intensity(Intensity::unlimited())
}

pub(crate) async fn up(supervisor: Supervisor) -> Running {
    let running = supervisor.start().await.unwrap();
    settle().await;
    running
}

pub(crate) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A worker that waits until it is told to stop.
pub(crate) fn idle(name: &str) -> Child {
    Child::new(name, async |ctx: Context| ctx.cancelled().await)
}

/// A worker that is ready after a second.
pub(crate) fn slow(name: &str) -> Child {
    Child::new(name, async |ctx: Context| {
        tokio::time::sleep(secs(1)).await;
        ctx.ready();
        ctx.cancelled().await;
    })
    .with_readiness(secs(5))
}

pub(crate) fn error(text: &'static str) -> std::io::Error {
    std::io::Error::other(text)
}

/// The delays before a child's restarts, until the tree is over.
pub(crate) fn delays(mut events: Events, child: &'static str) -> Arc<Mutex<Vec<Duration>>> {
    let delays = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&delays);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let EventKind::Restarting { child: fallen, delay } = event.kind
                && &*fallen == child
            {
                noted.lock().unwrap().push(delay);
            }
        }
    });
    delays
}

/// Waits for an event of this name about this child.
pub(crate) async fn seen(events: &mut Events, name: &str, child: &str) {
    loop {
        let kind = events.recv().await.unwrap().kind;
        if kind.name() == name && kind.child().is_some_and(|about| &**about == child) {
            return;
        }
    }
}

/// Panics when it is dropped, unless in a panic.
#[derive(Debug)]
pub(crate) struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Without the panic hook, which would write a trace each time.
            std::panic::resume_unwind(Box::new("in drop"));
        }
    }
}

/// Threads wait at it until it is opened or dropped.
pub(crate) struct Gate(Arc<Bar>);

#[derive(Default)]
pub(crate) struct Bar {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn bar(&self) -> Arc<Bar> {
        Arc::clone(&self.0)
    }

    pub(crate) fn open(&self) {
        *self.0.open.lock().unwrap() = true;
        self.0.opened.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

impl Bar {
    fn is_open(&self) -> bool {
        *self.open.lock().unwrap()
    }

    /// Blocks the thread.
    pub(crate) fn wait(&self) {
        drop(self.opened.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
    }
}

/// Who runs; panics when somebody runs twice at once.
#[derive(Clone, Default)]
pub(crate) struct Roll(Arc<Mutex<HashMap<String, usize>>>);

/// Somebody who runs, until it is dropped.
pub(crate) struct Present(Roll, String);

impl Roll {
    pub(crate) fn enter(&self, name: &str) -> Present {
        let mut roll = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = roll.entry(name.to_owned()).or_default();
        *here += 1;
        assert_eq!(*here, 1, "`{name}` runs twice at once");
        Present(self.clone(), name.to_owned())
    }

    /// How many run. A panic of [`enter`](Self::enter) is heard here at the latest.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().expect("nobody ran twice at once").values().sum()
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut roll = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *roll.get_mut(&self.1).unwrap() -= 1;
    }
}

/// A worker on a thread of its own that is deaf to its token and ends when the gate is opened. Started after that, it obeys.
pub(crate) fn deaf(name: &str, gate: &Gate, roll: &Roll) -> Child {
    let (bar, roll, path) = (gate.bar(), roll.clone(), name.to_owned());
    Child::blocking(name, move |ctx: Context| {
        let _present = roll.enter(&path);
        ctx.ready();
        if bar.is_open() {
            tokio::runtime::Handle::current().block_on(ctx.cancelled());
        } else {
            bar.wait();
        }
    })
    .with_readiness(secs(3600))
    .with_shutdown(Shutdown::Timeout(ms(1)))
}
