use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::engine::Engine;
use crate::order::Order;
use crate::{Gather, Outcomes, Settled, Source, Work};

/// A gather over its items: await it for the [`Outcomes`].
#[must_use = "futures do nothing unless polled"]
pub struct Run<S, W>
where
    S: Source,
    W: Work<S::Item>,
{
    state: State<S, W>,
}

enum State<S, W>
where
    S: Source,
    W: Work<S::Item>,
{
    Planned(Option<(Gather, S, W)>),
    Running(Box<Running<S, W>>),
}

struct Running<S, W>
where
    S: Source,
    W: Work<S::Item>,
{
    engine: Engine<S, W>,
    order: Order<Settled<W::Value, W::Error>>,
    outcomes: Outcomes<W::Value, W::Error>,
}

// Nothing in it is pinned: each item has a box of its own.
impl<S, W> Unpin for Run<S, W>
where
    S: Source,
    W: Work<S::Item>,
{
}

impl<S, W> Run<S, W>
where
    S: Source,
    W: Work<S::Item>,
{
    pub(crate) const fn new(gather: Gather, source: S, work: W) -> Self {
        Self { state: State::Planned(Some((gather, source, work))) }
    }
}

impl<S, W> Future for Run<S, W>
where
    S: Source,
    W: Work<S::Item>,
{
    type Output = Outcomes<W::Value, W::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let State::Planned(plan) = &mut this.state {
            let (gather, source, work) = plan.take().expect("polled after it was ready");
            let engine = gather.engine(source, work);
            let outcomes = Outcomes::with_capacity(engine.size_hint().0);
            this.state = State::Running(Box::new(Running { engine, order: Order::new(), outcomes }));
        }
        let State::Running(running) = &mut this.state else { unreachable!("planned runs begin above") };
        let Running { engine, order, outcomes } = &mut **running;
        ready!(engine.drive(cx, &mut |settled| {
            order.push(settled.index, settled, |_, settled| outcomes.push(settled));
            true
        }));
        outcomes.stop(engine.core().stopped());
        let outcomes = std::mem::replace(outcomes, Outcomes::with_capacity(0));
        this.state = State::Planned(None);
        Poll::Ready(outcomes)
    }
}

impl<S, W> fmt::Debug for Run<S, W>
where
    S: Source,
    W: Work<S::Item>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").finish_non_exhaustive()
    }
}
