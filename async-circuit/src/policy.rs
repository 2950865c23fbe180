use std::future::Future;

use async_policy::{Guard, Operation, Outcome, Policy, PolicyError, Start, Verdict};

use crate::CircuitBreaker;
use crate::permit::{Admitted, Judge, Ticket};

impl Policy for CircuitBreaker {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        let (stamp, started) = self.admit().map_err(Op::Error::from_rejection)?;
        self.execute_admitted(op, Ticket::new(self, stamp, started)).await
    }
}

impl Guard for CircuitBreaker {
    async fn run<T, E>(&self, operation: impl Future<Output = Result<T, E>> + Send) -> Result<T, E>
    where
        T: Send,
        E: PolicyError,
    {
        let (stamp, started) = self.admit().map_err(E::from_rejection)?;
        Admitted::new(operation, Ticket::new(self, stamp, started), ByItself).await
    }
}

impl CircuitBreaker {
    pub(crate) fn execute_admitted<'b, Op>(
        &'b self,
        op: Op,
        ticket: Ticket<&'b Self>,
    ) -> impl Future<Output = Result<Op::Value, Op::Error>> + Send
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        Admitted::new(Start::new(op), ticket, ByOperation)
    }
}

/// The operation knows what its outcomes mean.
struct ByOperation;

impl<Op: Operation> Judge<Start<Op>, Result<Op::Value, Op::Error>> for ByOperation
where
    Op::Error: PolicyError,
{
    fn judge(&self, run: &Start<Op>, outcome: &Result<Op::Value, Op::Error>) -> Verdict {
        run.operation().outcome(outcome).verdict()
    }
}

/// The outcome says itself what it means.
struct ByItself;

impl<F, T, E: PolicyError> Judge<F, Result<T, E>> for ByItself {
    fn judge(&self, _: &F, outcome: &Result<T, E>) -> Verdict {
        Outcome::of(outcome, |_| None).verdict()
    }
}
