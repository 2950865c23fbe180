use std::future::Future;

use async_policy::{Guard, Operation, Outcome, Policy, PolicyError, Start, Verdict};

use crate::CircuitBreaker;
use crate::permit::{Guarded, Judge, Ticket};

impl Policy for CircuitBreaker {
    fn execute<Op>(&self, op: Op) -> impl Future<Output = Result<Op::Value, Op::Error>> + Send
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        Guarded::new(Start::new(op), self, ByOperation)
    }
}

impl Guard for CircuitBreaker {
    fn run<T, E>(
        &self,
        operation: impl Future<Output = Result<T, E>> + Send,
    ) -> impl Future<Output = Result<T, E>> + Send
    where
        T: Send,
        E: PolicyError,
    {
        Guarded::new(operation, self, ByItself)
    }
}

impl CircuitBreaker {
    /// Runs an operation that has been let in.
    pub(crate) fn execute_admitted<'b, Op>(
        &'b self,
        op: Op,
        ticket: Ticket<&'b Self>,
    ) -> impl Future<Output = Result<Op::Value, Op::Error>> + Send
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        Guarded::admitted(Start::new(op), ticket, ByOperation)
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
