use std::future::Future;

use async_policy::{Guard, Operation, Policy, PolicyError};

use super::RateLimit;

impl Policy for RateLimit {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        self.acquire().await.map_err(Op::Error::from_rejection)?;
        op.start().await
    }
}

impl Guard for RateLimit {
    async fn run<T, E>(&self, operation: impl Future<Output = Result<T, E>> + Send) -> Result<T, E>
    where
        T: Send,
        E: PolicyError,
    {
        self.acquire().await.map_err(E::from_rejection)?;
        operation.await
    }
}
