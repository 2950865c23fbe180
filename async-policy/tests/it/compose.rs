use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;

use async_policy::{
    Failure, Guard, Operation, Outcome, Policy, PolicyError, PolicyKind, Reason, Rejection, Start, Verdict,
};

/// Writes down what it sees, and runs the operation `runs` times.
#[derive(Debug)]
struct Spy {
    name: &'static str,
    runs: usize,
    refuse: bool,
    log: Arc<Mutex<Vec<String>>>,
}

impl Policy for Spy {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        if self.refuse {
            let rejection = Rejection::new(PolicyKind::Custom, Reason::Custom);
            return Err(Op::Error::from_rejection(rejection.with_name(self.name)));
        }
        let mut runs = 0;
        loop {
            runs += 1;
            let result = op.start().await;
            let seen = match op.outcome(&result) {
                Outcome::Answered(verdict) => format!("{} {verdict:?}", self.name),
                Outcome::Refused(rejection) => {
                    format!("{} refused by {}", self.name, rejection.name().unwrap())
                }
                Outcome::TimedOut(_) => format!("{} timed out", self.name),
            };
            self.log.lock().unwrap().push(seen);
            if runs == self.runs {
                return result;
            }
        }
    }
}

impl Guard for Spy {
    async fn run<T, E>(&self, operation: impl Future<Output = Result<T, E>> + Send) -> Result<T, E>
    where
        T: Send,
        E: PolicyError,
    {
        self.log.lock().unwrap().push(self.name.to_owned());
        operation.await
    }
}

struct Setup {
    log: Arc<Mutex<Vec<String>>>,
}

impl Setup {
    fn new() -> Self {
        Self { log: Arc::default() }
    }

    fn spy(&self, name: &'static str) -> Spy {
        Spy { name, runs: 1, refuse: false, log: Arc::clone(&self.log) }
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

#[tokio::test]
async fn outermost_first_and_a_repeat_repeats_all_inside() {
    let setup = Setup::new();
    let twice = Spy { runs: 2, ..setup.spy("twice") };
    let stack = (setup.spy("outer"), &twice, Arc::new(setup.spy("inner")));
    stack.call(async || Ok::<_, ()>(())).await.unwrap();
    let expected = ["inner Success", "twice Success", "inner Success", "twice Success", "outer Success"];
    assert_eq!(setup.taken(), expected);
}

#[tokio::test]
async fn every_layer_reads_the_verdict_that_travels_with_the_operation() {
    let setup = Setup::new();
    let stack = ((setup.spy("a"), setup.spy("b")), Some(setup.spy("c")), None::<Spy>, (setup.spy("d"),));
    let op = (async || Ok::<_, ()>(503)).classify_with(|outcome| match outcome {
        Ok(503) => Verdict::Transient,
        _ => Verdict::Success,
    });
    stack.call(op).await.unwrap();
    assert_eq!(setup.taken(), ["d Transient", "c Transient", "b Transient", "a Transient"]);

    let op = (async || Err::<(), _>("bad input")).classify_with(|outcome| match outcome {
        Err(&"bad input") => Verdict::Permanent,
        _ => Verdict::Success,
    });
    assert_eq!(stack.call(op).await, Err(Failure::Operation("bad input")));
    assert_eq!(setup.taken(), ["d Permanent", "c Permanent", "b Permanent", "a Permanent"]);
}

#[tokio::test]
async fn a_refusal_is_seen_outside_as_a_refusal_and_the_operation_does_not_start() {
    let setup = Setup::new();
    let stack = (setup.spy("outer"), Spy { refuse: true, ..setup.spy("gate") }, setup.spy("inner"));
    let op = (async || -> Result<(), ()> { unreachable!() }).classify_with(|_| Verdict::Permanent);
    let failure = stack.call(op).await.unwrap_err();
    assert_eq!(failure.rejection().unwrap().name(), Some("gate"));
    assert_eq!(setup.taken(), ["outer refused by gate"]);
}

#[tokio::test]
async fn guards_compose_in_the_same_order() {
    let setup = Setup::new();
    let stack = (setup.spy("a"), (setup.spy("b"), &setup.spy("c")), None::<Spy>, Arc::new(setup.spy("d")));
    let moved = String::from("body");
    let sent = stack.run(async move { Ok::<_, Failure<()>>(moved) }).await;
    assert_eq!(sent.unwrap(), "body");
    assert_eq!(setup.taken(), ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn eight_is_the_widest_tuple() {
    let setup = Setup::new();
    let s = |name| setup.spy(name);
    let stack = (s("1"), s("2"), s("3"), s("4"), s("5"), s("6"), s("7"), s("8"));
    stack.call(async || Ok::<_, ()>(())).await.unwrap();
    assert_eq!(setup.taken().len(), 8);
}

#[tokio::test]
async fn a_start_starts_in_its_first_poll_and_keeps_the_operation() {
    let started = std::sync::atomic::AtomicU32::new(0);
    let operation = || {
        started.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async {
            tokio::task::yield_now().await;
            Ok::<_, Failure<()>>(7)
        }
    };
    let mut start = std::pin::pin!(Start::new(operation));
    assert_eq!(started.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(start.as_mut().await, Ok(7));
    assert_eq!(started.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(start.operation().start().await, Ok(7));
}
