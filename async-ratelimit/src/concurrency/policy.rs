use std::future::Future;

use async_policy::{Guard, Operation, Policy, PolicyError};

use super::ConcurrencyLimit;

impl Policy for ConcurrencyLimit {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        let _permit = self.acquire().await.map_err(Op::Error::from_rejection)?;
        op.start().await
    }
}

impl Guard for ConcurrencyLimit {
    async fn run<T, E>(&self, operation: impl Future<Output = Result<T, E>> + Send) -> Result<T, E>
    where
        T: Send,
        E: PolicyError,
    {
        // Declared before the operation's own slot, so that the operation is gone when the permit comes back.
        let _permit = self.acquire().await.map_err(E::from_rejection)?;
        operation.await
    }
}
