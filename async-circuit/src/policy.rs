use std::future::Future;

use async_policy::{Guard, Operation, Outcome, Policy, PolicyError};

use crate::CircuitBreaker;
use crate::breaker::{Admitted, Ticket};

impl Policy for CircuitBreaker {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        let epoch = self.admit().map_err(Op::Error::from_rejection)?;
        // Started inside, so that a panic of `start` is the operation's too.
        let operation = async { op.start().await };
        Admitted::new(operation, Ticket::new(self, epoch), |result: &_| op.outcome(result).verdict()).await
    }
}

impl Guard for CircuitBreaker {
    async fn run<T, E>(&self, operation: impl Future<Output = Result<T, E>> + Send) -> Result<T, E>
    where
        T: Send,
        E: PolicyError,
    {
        let epoch = self.admit().map_err(E::from_rejection)?;
        let judge = |result: &Result<T, E>| Outcome::of(result, |_| None).verdict();
        Admitted::new(operation, Ticket::new(self, epoch), judge).await
    }
}
