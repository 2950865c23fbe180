use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_supervisor::{Backoff, Child, Context, Intensity, Running, Supervisor};
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
                                Order::Panic => panic!("told to panic"),
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
