//! How limits plug into composition: what they hold is given back once the operation is gone.

use std::future::Future;

use async_policy::{Guard, Operation, Policy, PolicyError};

use crate::{ConcurrencyLimit, ConcurrencyLimitKey, RateLimit, RateLimitKey};

macro_rules! guards {
    ($($limit:ty),*) => {$(
        impl Policy for $limit {
            async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
            where
                Op: Operation,
                Op::Error: PolicyError,
            {
                let _held = self.acquire().await.map_err(Op::Error::from_rejection)?;
                op.start().await
            }
        }

        impl Guard for $limit {
            async fn run<T, E>(&self, operation: impl Future<Output = Result<T, E>> + Send) -> Result<T, E>
            where
                T: Send,
                E: PolicyError,
            {
                let _held = self.acquire().await.map_err(E::from_rejection)?;
                operation.await
            }
        }
    )*};
}

guards!(ConcurrencyLimit, RateLimit, ConcurrencyLimitKey<'_>, RateLimitKey<'_>);
