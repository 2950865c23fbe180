//! Random trees, exits and commands against a model of a few lines. Where every worker stops at once and restarts take no time,
//! the order of starts and stops, the counts, the states and the answers agree.

use async_supervisor::{
    Backoff, Cause, ChildState, CommandError, Handle, Intensity, Restart, Snapshot, Strategy, Supervisor,
};
use proptest::prelude::{Just, ProptestConfig, any, prop, prop_oneof, proptest};
use proptest::strategy::Strategy as _;

use crate::common::{Log, Order, secs, settle};

/// A specification, and what has become of it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) restart: Restart,
    pub(crate) below: Option<Tree>,
    up: bool,
    restarts: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) strategy: Strategy,
    pub(crate) limit: u32,
    pub(crate) spec: Vec<Node>,
    children: Vec<Node>,
    counted: u32,
}

/// Too many restarts.
struct MeltedDown;

impl Node {
    fn start(&mut self, trace: &mut Vec<String>) {
        self.up = true;
        match &mut self.below {
            Some(tree) => tree.start(trace),
            None => trace.push(format!("+{}", self.name)),
        }
    }

    fn stop(&mut self, trace: &mut Vec<String>) {
        if std::mem::take(&mut self.up) {
            match &mut self.below {
                Some(tree) => tree.stop(trace),
                None => trace.push(format!("-{}", self.name)),
            }
        }
    }
}

impl Tree {
    fn start(&mut self, trace: &mut Vec<String>) {
        self.counted = 0;
        self.children.clone_from(&self.spec);
        self.children.iter_mut().for_each(|child| child.start(trace));
    }

    fn stop(&mut self, trace: &mut Vec<String>) {
        self.children.iter_mut().rev().for_each(|child| child.stop(trace));
    }

    /// A worker ends by itself, wherever it is.
    fn exit(&mut self, name: &str, failed: bool, trace: &mut Vec<String>) -> Result<(), MeltedDown> {
        for at in 0..self.children.len() {
            let child = &mut self.children[at];
            let ended = match &mut child.below {
                _ if !child.up => None,
                None => (child.name == name).then_some(failed),
                // One that melts down has failed.
                Some(tree) => tree.exit(name, failed, trace).is_err().then_some(true),
            };
            if let Some(failed) = ended {
                return self.fell(at, failed, trace);
            }
        }
        Ok(())
    }

    fn fell(&mut self, at: usize, failed: bool, trace: &mut Vec<String>) -> Result<(), MeltedDown> {
        self.children[at].up = false;
        match self.children[at].restart {
            Restart::Temporary => {
                self.children.remove(at);
                return Ok(());
            }
            Restart::Transient if !failed => return Ok(()),
            Restart::Permanent | Restart::Transient => self.counted += 1,
        }
        if self.counted > self.limit {
            self.stop(trace);
            return Err(MeltedDown);
        }
        self.children[at].restarts += 1;
        let first = match self.strategy {
            Strategy::OneForAll => 0,
            Strategy::RestForOne => at,
            Strategy::OneForOne | Strategy::Pool => {
                self.children[at].start(trace);
                return Ok(());
            }
        };
        let mut rest = self.children.split_off(first);
        rest.iter_mut().rev().for_each(|child| child.stop(trace));
        rest.retain(|child| child.restart != Restart::Temporary);
        rest.iter_mut().for_each(|child| child.start(trace));
        self.children.append(&mut rest);
        Ok(())
    }

    fn command(&mut self, verb: Verb, name: &str, trace: &mut Vec<String>) -> Result<(), CommandError> {
        let at = self.children.iter().position(|child| child.name == name);
        let Some(at) = at else { return Err(CommandError::NotFound(name.into())) };
        let child = &mut self.children[at];
        match verb {
            Verb::Start | Verb::Delete if child.up => return Err(CommandError::Running(name.into())),
            Verb::Start => child.start(trace),
            Verb::Restart => {
                child.stop(trace);
                child.start(trace);
            }
            Verb::Stop | Verb::Remove | Verb::Delete => {
                child.stop(trace);
                if !matches!((verb, child.restart), (Verb::Stop, Restart::Permanent | Restart::Transient)) {
                    self.children.remove(at);
                }
            }
        }
        Ok(())
    }

    /// The supervisor at the end of the path, if all on the way are up.
    fn find(&mut self, path: &[String]) -> Option<&mut Self> {
        let Some((name, rest)) = path.split_first() else { return Some(self) };
        let child = self.children.iter_mut().find(|child| child.name == *name && child.up)?;
        child.below.as_mut()?.find(rest)
    }

    /// Name, up, restarts and what is below, of all that is up.
    fn states(&self) -> String {
        let of = |child: &Node| {
            let below = child.below.as_ref().filter(|_| child.up).map(Self::states).unwrap_or_default();
            format!("{}:{}:{}({below})", child.name, child.up, child.restarts)
        };
        self.children.iter().map(of).collect::<Vec<_>>().join(" ")
    }
}

fn states(snapshot: &Snapshot) -> String {
    let of = |child: &async_supervisor::ChildSnapshot| {
        let up = child.state == ChildState::Running;
        let below = child.supervisor.as_ref().filter(|_| up).map(states).unwrap_or_default();
        format!("{}:{up}:{}({below})", child.name, child.restarts)
    };
    snapshot.children.iter().map(of).collect::<Vec<_>>().join(" ")
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Verb {
    Stop,
    Start,
    Restart,
    Delete,
    Remove,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Exit(usize, Order),
    Command(Verb, usize),
}

/// The shape of a tree: restart kinds at the leaves.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Leaf(Restart),
    Sub(Restart, Strategy, u32, Vec<Shape>),
}

fn restart() -> impl proptest::strategy::Strategy<Value = Restart> {
    prop_oneof![2 => Just(Restart::Permanent), 1 => Just(Restart::Transient), 1 => Just(Restart::Temporary)]
}

fn ordered() -> impl proptest::strategy::Strategy<Value = Strategy> {
    prop_oneof![Just(Strategy::OneForOne), Just(Strategy::OneForAll), Just(Strategy::RestForOne)]
}

pub(crate) fn shape() -> impl proptest::strategy::Strategy<Value = Shape> {
    let leaf = || restart().prop_map(Shape::Leaf);
    // The trees in a pool would stop side by side, which has no order to compare.
    let pool = (restart(), 0..4_u32, prop::collection::vec(leaf(), 1..4))
        .prop_map(|(restart, limit, shapes)| Shape::Sub(restart, Strategy::Pool, limit, shapes));
    let below = prop_oneof![4 => leaf(), 1 => pool].prop_recursive(2, 12, 4, |inner| {
        (restart(), ordered(), 0..4_u32, prop::collection::vec(inner, 1..4))
            .prop_map(|(restart, strategy, limit, shapes)| Shape::Sub(restart, strategy, limit, shapes))
    });
    (ordered(), 0..6_u32, prop::collection::vec(below, 1..5))
        .prop_map(|(strategy, limit, shapes)| Shape::Sub(Restart::Permanent, strategy, limit, shapes))
}

pub(crate) fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    let order = prop_oneof![Just(Order::Fail), Just(Order::Panic), Just(Order::End)];
    let verb = prop_oneof![
        Just(Verb::Stop),
        Just(Verb::Start),
        Just(Verb::Restart),
        Just(Verb::Delete),
        Just(Verb::Remove)
    ];
    prop_oneof![
        (any::<usize>(), order).prop_map(|(leaf, order)| Step::Exit(leaf, order)),
        (verb, any::<usize>()).prop_map(|(verb, node)| Step::Command(verb, node)),
    ]
}

pub(crate) fn node(shape: &Shape, name: String) -> Node {
    let (restart, below) = match shape {
        Shape::Leaf(restart) => (*restart, None),
        Shape::Sub(restart, strategy, limit, shapes) => {
            let spec: Vec<_> =
                shapes.iter().enumerate().map(|(i, shape)| node(shape, format!("{name}.{i}"))).collect();
            let tree = Tree { strategy: *strategy, limit: *limit, children: Vec::new(), spec, counted: 0 };
            (*restart, Some(tree))
        }
    };
    Node { name, restart, below, up: false, restarts: 0 }
}

pub(crate) fn supervisor(tree: &Tree, name: &str, log: &Log) -> Supervisor {
    let children = tree.spec.iter().map(|node| match &node.below {
        None => log.child(&node.name).with_restart(node.restart),
        Some(below) => {
            let below = supervisor(below, &node.name, log).into_child();
            below.with_restart(node.restart).with_backoff(Backoff::none())
        }
    });
    Supervisor::new(tree.strategy)
        .with_name(name)
        .with_intensity(Intensity::new(tree.limit, secs(3600)))
        .with_children(children)
}

/// All names of a tree, each with the path of its supervisor.
pub(crate) fn names(tree: &Tree, path: &[String], all: &mut Vec<(Vec<String>, String, bool)>) {
    for node in &tree.spec {
        all.push((path.to_vec(), node.name.clone(), node.below.is_none()));
        if let Some(below) = &node.below {
            names(below, &[path, std::slice::from_ref(&node.name)].concat(), all);
        }
    }
}

pub(crate) async fn command(handle: &Handle, verb: Verb, name: &str) -> Result<(), CommandError> {
    match verb {
        Verb::Stop => handle.stop_child(name).await,
        Verb::Start => handle.start_child(name).await,
        Verb::Restart => handle.restart_child(name).await,
        Verb::Delete => handle.delete_child(name).await,
        Verb::Remove => handle.remove_child(name).await,
    }
}

async fn run(shape: Shape, steps: Vec<Step>) {
    let log = Log::new();
    let mut root = node(&shape, "r".into());
    let model = root.below.as_mut().unwrap();
    let running = supervisor(model, "r", &log).start().await.unwrap();
    settle().await;
    let (mut trace, mut all) = (Vec::new(), Vec::new());
    names(model, &[], &mut all);
    model.start(&mut trace);
    assert_eq!(log.take(), trace.join(" "));
    for step in steps {
        trace.clear();
        match step {
            Step::Exit(nth, order) => {
                let leaves: Vec<_> = all.iter().filter(|(.., leaf)| *leaf).collect();
                let (_, name, _) = leaves[nth % leaves.len()];
                log.tell(name, order).await;
                let melted = model.exit(name, order != Order::End, &mut trace).is_err();
                assert_eq!(log.take(), trace.join(" "), "{step:?}");
                if melted {
                    assert!(matches!(running.wait().await.cause, Cause::MeltedDown(_)));
                    return;
                }
            }
            Step::Command(verb, nth) => {
                let (path, name, _) = &all[nth % all.len()];
                let Some(supervisor) = model.find(path) else { continue };
                let handle = path.iter().fold(running.handle(), |at, name| at.supervisor(name).unwrap());
                let answer = command(&handle, verb, name).await;
                settle().await;
                assert_eq!(answer, supervisor.command(verb, name, &mut trace), "{step:?} {name}");
                assert_eq!(log.take(), trace.join(" "), "{step:?} {name}");
            }
        }
        assert_eq!(states(&running.snapshot()), model.states());
    }
    trace.clear();
    model.stop(&mut trace);
    let report = running.stop().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(log.take(), trace.join(" "));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn random_trees_do_what_the_model_does(shape in shape(), steps in prop::collection::vec(step(), 0..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(shape, steps));
    }
}
