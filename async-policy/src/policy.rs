use std::future::Future;
use std::sync::Arc;

use crate::operation::{ByRef, Layered, Lift};
use crate::{Failure, Operation, PolicyError};

/// Something that decides whether, when and how often an operation runs.
///
/// Policies compose as tuples, outermost first: `(timeout, (retry, breaker))` or, the same, `(timeout, retry, breaker)`
/// up to eight. `&P`, `Arc<P>` and `Option<P>` are policies too; `None` lets everything through.
///
/// ```
/// use async_policy::{Failure, Policy, Timeout};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let stack = (Timeout::from_millis(1000).with_name("in all"), Timeout::from_millis(250));
/// let failure = stack.call(std::future::pending::<Result<(), std::io::Error>>).await.unwrap_err();
/// assert!(matches!(failure, Failure::TimedOut(_)));
/// # }
/// ```
pub trait Policy: Send + Sync {
    /// Runs `op` under this policy. The caller's error type goes through every layer unchanged.
    ///
    /// (Where the error is a `Box<dyn Error + Send + Sync>` and the call is inside `tokio::spawn`, write `|| async { … }`:
    /// for `async || { … }` the compiler of today loses the box's lifetime.)
    ///
    /// # Errors
    ///
    /// The operation's own error, or a refusal or time-out put into that type.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the operation and gives back whatever the policy holds for it; the operation counts
    /// as aborted, neither success nor failure.
    fn execute<Op>(&self, op: Op) -> impl Future<Output = Result<Op::Value, Op::Error>> + Send
    where
        Op: Operation,
        Op::Error: PolicyError;

    /// Runs `op` under this policy and lifts its error, whatever it is, into [`Failure`].
    ///
    /// Once per stack: where the operation is itself a call through policies, its error already is a [`Failure`] (or another
    /// [`PolicyError`]) and [`execute`](Self::execute) is the one to use. `call` would lift it a second time, and a refusal
    /// from inside would look like the operation's own error.
    ///
    /// # Errors
    ///
    /// [`Failure::Operation`] with the operation's own error, [`Failure::Rejected`] when a policy refused to start it,
    /// [`Failure::TimedOut`] when a time-out gave up on it.
    ///
    /// # Cancel safety
    ///
    /// As [`execute`](Self::execute).
    fn call<Op>(&self, op: Op) -> impl Future<Output = Result<Op::Value, Failure<Op::Error>>> + Send
    where
        Op: Operation,
    {
        self.execute(Lift(op))
    }
}

/// A policy that runs an operation at most once, and therefore also takes a plain future: a request body can be moved
/// into it. Breakers, limits, time-outs and tuples of them are guards; a retry is not.
///
/// ```
/// use async_policy::{Failure, Guard, Timeout};
/// # async fn send(body: Vec<u8>) -> Result<usize, std::io::Error> { Ok(body.len()) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let body = vec![0; 1024];
/// let sent = Timeout::from_millis(250).run(async { send(body).await.map_err(Failure::Operation) }).await;
/// assert_eq!(sent.unwrap(), 1024);
/// # }
/// ```
pub trait Guard: Policy {
    /// Runs the future under this policy, or drops it unpolled and refuses.
    ///
    /// `Ok` is a success and an error what its [`PolicyError::verdict`] says.
    ///
    /// # Errors
    ///
    /// The operation's own error, or a refusal or time-out put into that type.
    ///
    /// # Cancel safety
    ///
    /// As [`Policy::execute`].
    fn run<T, E>(
        &self,
        operation: impl Future<Output = Result<T, E>> + Send,
    ) -> impl Future<Output = Result<T, E>> + Send
    where
        T: Send,
        E: PolicyError;
}

macro_rules! by_deref {
    ($($ty:ty),*) => {$(
        impl<P: Policy + ?Sized> Policy for $ty {
            fn execute<Op>(&self, op: Op) -> impl Future<Output = Result<Op::Value, Op::Error>> + Send
            where
                Op: Operation,
                Op::Error: PolicyError,
            {
                (**self).execute(op)
            }
        }

        impl<P: Guard + ?Sized> Guard for $ty {
            fn run<T, E>(
                &self,
                operation: impl Future<Output = Result<T, E>> + Send,
            ) -> impl Future<Output = Result<T, E>> + Send
            where
                T: Send,
                E: PolicyError,
            {
                (**self).run(operation)
            }
        }
    )*};
}

by_deref!(&P, Arc<P>);

impl<P: Policy> Policy for Option<P> {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        match self {
            Some(policy) => policy.execute(op).await,
            None => op.start().await,
        }
    }
}

impl<P: Guard> Guard for Option<P> {
    async fn run<T, E>(&self, operation: impl Future<Output = Result<T, E>> + Send) -> Result<T, E>
    where
        T: Send,
        E: PolicyError,
    {
        match self {
            Some(policy) => policy.run(operation).await,
            None => operation.await,
        }
    }
}

impl<A: Policy> Policy for (A,) {
    fn execute<Op>(&self, op: Op) -> impl Future<Output = Result<Op::Value, Op::Error>> + Send
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        self.0.execute(op)
    }
}

impl<A: Guard> Guard for (A,) {
    fn run<T, E>(
        &self,
        operation: impl Future<Output = Result<T, E>> + Send,
    ) -> impl Future<Output = Result<T, E>> + Send
    where
        T: Send,
        E: PolicyError,
    {
        self.0.run(operation)
    }
}

// One tuple is its head round the rest, so that each arity is the pair of the one before it.
macro_rules! nested {
    ($self:ident, $op:ident, $last:tt) => {
        $self.$last.execute(ByRef($op))
    };
    ($self:ident, $op:ident, $head:tt $($rest:tt)+) => {
        $self.$head.execute(Layered::new($op, move || nested!($self, $op, $($rest)+)))
    };
}

macro_rules! nested_run {
    ($self:ident, $operation:ident, $last:tt) => {
        $self.$last.run($operation)
    };
    ($self:ident, $operation:ident, $head:tt $($rest:tt)+) => {
        $self.$head.run(nested_run!($self, $operation, $($rest)+))
    };
}

macro_rules! tuple {
    ($($P:ident $i:tt),+) => {
        impl<$($P: Policy),+> Policy for ($($P,)+) {
            async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
            where
                Op: Operation,
                Op::Error: PolicyError,
            {
                let op = &op;
                nested!(self, op, $($i)+).await
            }
        }

        impl<$($P: Guard),+> Guard for ($($P,)+) {
            fn run<T, Er>(
                &self,
                operation: impl Future<Output = Result<T, Er>> + Send,
            ) -> impl Future<Output = Result<T, Er>> + Send
            where
                T: Send,
                Er: PolicyError,
            {
                nested_run!(self, operation, $($i)+)
            }
        }
    };
}

tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
tuple!(A 0, B 1, C 2, D 3, E 4);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
