//! The same random scenarios under OTP's own supervisor and under ours: order, answers and states agree.
//!
//! Left out is where we differ on purpose (a transient supervisor that melts down is restarted) and what OTP does not have.

use std::fmt::Write;
use std::process::Command;

use async_supervisor::{
    ChildSnapshot, ChildState, CommandError, Handle, Restart, Snapshot, Strategy, SupervisorState,
};
use proptest::prelude::prop;
use proptest::strategy::{Strategy as _, ValueTree};
use proptest::test_runner::TestRunner;

use crate::common::{Log, Order, settle};
use crate::model::{Shape, Step, Tree, Verb, command, names, node, shape, step, supervisor};

/// Only what OTP does as we do.
fn as_in_otp(shape: Shape) -> Shape {
    match shape {
        Shape::Sub(restart, strategy, limit, below) => {
            let restart = if restart == Restart::Transient { Restart::Permanent } else { restart };
            let strategy = if strategy == Strategy::Pool { Strategy::OneForOne } else { strategy };
            Shape::Sub(restart, strategy, limit, below.into_iter().map(as_in_otp).collect())
        }
        leaf @ Shape::Leaf(_) => leaf,
    }
}

fn restart(restart: Restart) -> &'static str {
    match restart {
        Restart::Permanent => "permanent",
        Restart::Transient => "transient",
        Restart::Temporary => "temporary",
    }
}

/// A tree as an Erlang term.
fn term(tree: &Tree) -> String {
    let nodes: Vec<_> = tree
        .spec
        .iter()
        .map(|node| match &node.below {
            None => format!("{{leaf,\"{}\",{}}}", node.name, restart(node.restart)),
            Some(below) => {
                let below = term(below);
                format!("{{sub,\"{}\",{},{}", node.name, restart(node.restart), &below[1..])
            }
        })
        .collect();
    format!("{{{},{},[{}]}}", tree.strategy, tree.limit, nodes.join(","))
}

fn states(snapshot: &Snapshot) -> String {
    let of = |child: &ChildSnapshot| match (&child.supervisor, child.state) {
        (Some(below), ChildState::Running) => format!("{}:up({})", child.name, states(below)),
        (None, ChildState::Running) => format!("{}:up", child.name),
        _ => format!("{}:down", child.name),
    };
    snapshot.children.iter().map(of).collect::<Vec<_>>().join(" ")
}

/// The supervisor at the end of the path, if all on the way are up.
fn find(root: Handle, path: &[String]) -> Option<Handle> {
    path.iter().try_fold(root, |at, name| {
        let up = at.snapshot().child(name)?.state == ChildState::Running;
        at.supervisor(name).filter(|_| up)
    })
}

struct Scenario {
    tree: Tree,
    steps: Vec<Deed>,
}

enum Deed {
    Exit(String, Order),
    Command(Verb, Vec<String>, String),
}

impl Scenario {
    fn new(shape: Shape, steps: Vec<Step>) -> Self {
        let tree = node(&as_in_otp(shape), "r".into()).below.unwrap();
        let mut all = Vec::new();
        names(&tree, &[], &mut all);
        let leaves: Vec<_> = all.iter().filter(|(.., leaf)| *leaf).collect();
        let deed = |step| match step {
            Step::Exit(nth, order) => Some(Deed::Exit(leaves[nth % leaves.len()].1.clone(), order)),
            Step::Command(Verb::Restart | Verb::Remove, _) => None,
            Step::Command(verb, nth) => {
                let (path, name, _) = &all[nth % all.len()];
                Some(Deed::Command(verb, path.clone(), name.clone()))
            }
        };
        let steps = steps.into_iter().filter_map(deed).collect();
        Self { tree, steps }
    }

    fn term(&self) -> String {
        let step = |deed: &Deed| match deed {
            Deed::Exit(name, Order::End) => format!("{{exit,\"{name}\",'end'}}"),
            Deed::Exit(name, _) => format!("{{exit,\"{name}\",fail}}"),
            Deed::Command(verb, path, name) => {
                let verb = match verb {
                    Verb::Stop => "terminate_child",
                    Verb::Start => "restart_child",
                    _ => "delete_child",
                };
                format!("{{{verb},{path:?},\"{name}\"}}")
            }
        };
        let steps: Vec<_> = self.steps.iter().map(step).collect();
        format!("{{{},[{}]}}.\n", term(&self.tree), steps.join(","))
    }

    /// What OTP's part prints.
    async fn run(&self) -> String {
        let (log, mut out) = (Log::new(), String::new());
        let s = supervisor(&self.tree, "r", &log).start().await.unwrap();
        settle().await;
        writeln!(out, "{} | up | {}", log.take(), states(&s.snapshot())).unwrap();
        for deed in &self.steps {
            let answer = match deed {
                Deed::Exit(name, order) => {
                    log.tell(name, *order).await;
                    "ok"
                }
                Deed::Command(verb, path, name) => match find(s.handle(), path) {
                    None => "down",
                    Some(handle) => match command(&handle, *verb, name).await {
                        Ok(()) => "ok",
                        Err(CommandError::NotFound(_)) => "not_found",
                        Err(CommandError::Running(_)) => "running",
                        Err(other) => panic!("{other}"),
                    },
                },
            };
            settle().await;
            if s.snapshot().state == SupervisorState::Stopped {
                writeln!(out, "{} | melted down", log.take()).unwrap();
                return out;
            }
            writeln!(out, "{} | {answer} | {}", log.take(), states(&s.snapshot())).unwrap();
        }
        assert!(s.stop().await.is_clean());
        writeln!(out, "{} | stopped", log.take()).unwrap();
        out
    }
}

#[test]
fn otp_does_the_same() {
    if Command::new("erlc").arg("-help").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "Erlang is not installed");
        eprintln!("SKIPPED: Erlang is not installed");
        return;
    }
    let mut random = TestRunner::deterministic();
    let strategy = (shape(), prop::collection::vec(step(), 0..25));
    let scenarios: Vec<_> = (0..150)
        .map(|_| {
            let (shape, steps) = strategy.new_tree(&mut random).unwrap().current();
            Scenario::new(shape, steps)
        })
        .collect();
    let folder = std::env::temp_dir().join(format!("otp-itself-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let terms: String = scenarios.iter().map(Scenario::term).collect();
    std::fs::write(folder.join("scenarios"), terms).unwrap();
    std::fs::write(folder.join("otp_itself.erl"), include_str!("otp_itself.erl")).unwrap();
    let compiled = Command::new("erlc").arg("otp_itself.erl").current_dir(&folder).status().unwrap();
    assert!(compiled.success());
    let run = ["+S", "1", "-noshell", "-eval", "otp_itself:main(\"scenarios\")."];
    let theirs = Command::new("erl").args(run).current_dir(&folder).output().unwrap();
    assert!(theirs.status.success(), "{}", String::from_utf8_lossy(&theirs.stdout));
    let theirs = String::from_utf8(theirs.stdout).unwrap();
    let mut rest = theirs.as_str();
    for scenario in &scenarios {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let ours = runtime.block_on(scenario.run());
        let (theirs, next) = rest.split_at(ours.len().min(rest.len()));
        assert_eq!(ours, theirs, "{}", scenario.term());
        rest = next;
    }
    assert_eq!(rest, "");
    std::fs::remove_dir_all(folder).unwrap();
}
