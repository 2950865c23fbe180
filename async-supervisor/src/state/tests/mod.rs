//! The core without a runtime: a world in which workers do what the test says.

mod chaos;
mod model;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::{Just, prop_oneof};
use proptest::strategy::Strategy;
use tokio::time::Instant;

use super::{Action, Answer, CommandId, Config, Core, End, Key, Phase, Stage, State, Verb};
use crate::spec::{AutoShutdown, Restart, Rules, Strategy as Kind};
use crate::{Backoff, Cause, CommandError, Intensity, Shutdown};

/// Carries out what the core says, and checks what must hold whatever happens.
struct World {
    core: Core,
    now: Instant,
    started: Instant,
    names: HashMap<Key, String>,
    alive: BTreeMap<Key, u64>,
    cancelled: BTreeMap<Key, u64>,
    aborted: BTreeMap<Key, u64>,
    trace: Vec<String>,
    asked: usize,
    added: HashMap<usize, String>,
    open: Vec<usize>,
    answers: HashMap<usize, Answer>,
    ended: bool,
    /// Whether a worker that is told to stop does so at once.
    obedient: bool,
}

fn config(strategy: Kind) -> Config {
    Config {
        name: "root".into(),
        strategy,
        intensity: Intensity::unlimited(),
        auto_shutdown: AutoShutdown::Never,
        stop_budget: None,
        abort_grace: Duration::from_millis(100),
        max_children: None,
        seed: Some(7),
    }
}

fn rules(restart: Restart) -> Rules {
    Rules { restart, backoff: Backoff::none(), ..Rules::default() }
}

impl World {
    fn new(config: Config, children: Vec<(String, Rules)>) -> Self {
        Self::with_workers(config, children, true)
    }

    fn with_workers(config: Config, children: Vec<(String, Rules)>, obedient: bool) -> Self {
        let now = Instant::now();
        let mut world = Self {
            core: Core::new(config, children.len(), 0),
            now,
            started: now,
            names: HashMap::new(),
            alive: BTreeMap::new(),
            cancelled: BTreeMap::new(),
            aborted: BTreeMap::new(),
            trace: Vec::new(),
            asked: 0,
            added: HashMap::new(),
            open: Vec::new(),
            answers: HashMap::new(),
            ended: false,
            obedient,
        };
        for (name, rules) in children {
            let key = world.core.prepare(now, name.as_str().into(), Arc::new(rules));
            world.names.insert(key, name);
        }
        world.core.start(now);
        world.act();
        world
    }

    fn act(&mut self) {
        while !self.core.actions.is_empty() {
            for action in std::mem::take(&mut self.core.actions) {
                assert!(!self.ended, "{action:?} after the end");
                match action {
                    Action::Start { key, epoch, .. } => {
                        let before = self.alive.insert(key, epoch);
                        assert_eq!(before, None, "`{}` runs twice at once", self.names[&key]);
                        self.trace.push(format!("+{}", self.names[&key]));
                    }
                    Action::Cancel { key } => {
                        let epoch = self.alive[&key];
                        self.cancelled.insert(key, epoch);
                        self.trace.push(format!("-{}", self.names[&key]));
                        if self.obedient {
                            self.exit(key, End::Normal);
                        }
                    }
                    Action::Abort { key } => {
                        let epoch = self.alive[&key];
                        self.aborted.insert(key, epoch);
                    }
                    Action::Forget { key } => {
                        assert!(!self.alive.contains_key(&key), "a forgotten child is not alive");
                        self.names.remove(&key);
                    }
                    Action::Adopt { key, id } => {
                        self.names.insert(key, self.added[&id.0].clone());
                    }
                    Action::Answer { id, answer } => {
                        let at = self.open.iter().position(|open| *open == id.0);
                        self.open.remove(at.expect("answered once"));
                        self.answers.insert(id.0, answer);
                    }
                    Action::Ended => self.ended = true,
                    Action::Listen { key, epoch } => {
                        let since = self.started;
                        self.core.beat(self.now, key, epoch, since);
                    }
                    Action::Begin { id } => assert!(self.open.contains(&id.0), "before its answer"),
                    Action::Up
                    | Action::Stopping
                    | Action::Note { .. }
                    | Action::Blame { .. }
                    | Action::Hurry { .. } => {}
                }
            }
            self.check();
        }
        self.check();
    }

    fn check(&self) {
        let alive: Vec<_> = self
            .core
            .children
            .iter()
            .filter(|(_, child)| child.state.is_alive())
            .map(|(key, _)| key)
            .collect();
        let mut known: Vec<_> = self.alive.keys().copied().collect();
        let mut books = alive;
        known.sort();
        books.sort();
        assert_eq!(books, known, "the books say who is alive");
        assert_eq!(self.core.alive, known.len());
        let stuck = self.core.children.iter().filter(|(_, child)| child.state.is_stuck()).count();
        assert_eq!(self.core.stuck, stuck);
    }

    fn exit(&mut self, key: Key, end: End) {
        let Some(epoch) = self.alive.remove(&key) else { return };
        self.cancelled.remove(&key);
        self.aborted.remove(&key);
        let error = (end == End::Abnormal).then(|| Arc::from("failed"));
        self.core.exited(self.now, key, epoch, end, error);
        self.act();
    }

    fn key(&self, name: &str) -> Option<Key> {
        self.core.children.find(name)
    }

    fn command(&mut self, verb: Verb, name: &str) -> usize {
        self.asked += 1;
        self.open.push(self.asked);
        self.core.command(self.now, CommandId(self.asked), verb, name.into());
        self.act();
        self.asked
    }

    fn add(&mut self, name: &str, rules: Rules) -> usize {
        self.asked += 1;
        self.open.push(self.asked);
        self.added.insert(self.asked, name.to_owned());
        self.core.command(self.now, CommandId(self.asked), Verb::Add(Arc::new(rules)), name.into());
        self.act();
        self.asked
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.core.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.core.tick(self.now);
            self.act();
        }
        self.now = end;
    }

    fn states(&self) -> Vec<(String, bool, u64)> {
        let of =
            |child: &super::Child| (child.name.to_string(), child.state == State::Running, child.restarts);
        self.core.children.iter().map(|(_, child)| of(child)).collect()
    }
}

fn restart() -> impl Strategy<Value = Restart> {
    prop_oneof![Just(Restart::Permanent), Just(Restart::Transient), Just(Restart::Temporary)]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::OneForOne), Just(Kind::OneForAll), Just(Kind::RestForOne), Just(Kind::Pool)]
}

fn verb() -> impl Strategy<Value = Verb> {
    prop_oneof![
        Just(Verb::Stop),
        Just(Verb::Start),
        Just(Verb::Delete),
        Just(Verb::Restart),
        Just(Verb::Remove)
    ]
}

fn ordered(kind: Kind, names: &[&str]) -> World {
    World::new(
        config(kind),
        names.iter().map(|name| ((*name).to_owned(), rules(Restart::Permanent))).collect(),
    )
}

#[test]
fn a_delay_holds_the_whole_group_back_and_a_second_fall_widens_it() {
    let slow = Rules { backoff: Backoff::constant(Duration::from_secs(1)), ..rules(Restart::Permanent) };
    let children = ["a", "b", "c", "d"].map(|name| (name.to_owned(), slow.clone()));
    let mut world = World::new(config(Kind::RestForOne), children.to_vec());
    world.trace.clear();
    world.exit(world.key("c").unwrap(), End::Abnormal);
    world.pass(Duration::from_millis(600));
    world.exit(world.key("b").unwrap(), End::Abnormal);
    assert_eq!(world.trace.join(" "), "-d");
    world.pass(Duration::from_millis(999));
    assert_eq!(world.trace.join(" "), "-d");
    world.pass(Duration::from_millis(1));
    assert_eq!(world.trace.join(" "), "-d +b +c +d");
}

#[test]
fn a_failed_start_in_a_group_counts_and_takes_the_others_down_again() {
    let mut children = vec![];
    for name in ["a", "b", "c"] {
        let readiness = (name == "b").then_some(Duration::from_secs(1));
        children.push((name.to_owned(), Rules { readiness, ..rules(Restart::Permanent) }));
    }
    let mut world = World::new(config(Kind::OneForAll), children);
    let ready = |world: &mut World| {
        let key = world.key("b").unwrap();
        world.core.ready(world.now, key, world.alive[&key]);
        world.act();
    };
    ready(&mut world);
    world.trace.clear();
    world.exit(world.key("a").unwrap(), End::Abnormal);
    assert_eq!(world.trace.join(" "), "-c -b +a +b");
    world.exit(world.key("b").unwrap(), End::Abnormal);
    assert_eq!(world.trace.join(" "), "-c -b +a +b -a +a +b");
    ready(&mut world);
    assert_eq!(world.trace.join(" "), "-c -b +a +b -a +a +b +c");
    let restarts: Vec<_> = world.states().into_iter().map(|(_, _, restarts)| restarts).collect();
    assert_eq!(restarts, [1, 1, 0]);
}

#[test]
fn a_stuck_child_holds_its_group_but_not_a_stop() {
    let mut world = ordered(Kind::OneForAll, &["a", "b"]);
    world.obedient = false;
    world.trace.clear();
    world.exit(world.key("a").unwrap(), End::Abnormal);
    world.pass(Duration::from_secs(60));
    let b = world.key("b").unwrap();
    let stuck = world.core.children.get(b).unwrap().state;
    assert!(matches!(stuck, State::Stopping { stage: Stage::Stuck, .. }), "{stuck:?}");
    assert_eq!(world.trace.join(" "), "-b");
    // It ends at last: the group goes on.
    world.exit(b, End::Normal);
    assert_eq!(world.trace.join(" "), "-b +a +b");
    world.exit(world.key("a").unwrap(), End::Abnormal);
    world.pass(Duration::from_secs(60));
    world.core.stop(world.now);
    world.act();
    assert!(world.ended);
    let leaked: Vec<_> = world.core.leaked().into_iter().map(|(_, name)| name).collect();
    assert_eq!(leaked, [Arc::from("b")]);
}

#[test]
fn a_temporary_child_that_would_not_stop_is_restarted_when_it_ends() {
    let mut world = World::with_workers(
        config(Kind::OneForOne),
        vec![("a".to_owned(), rules(Restart::Temporary))],
        false,
    );
    let id = world.command(Verb::Restart, "a");
    world.pass(Duration::from_secs(60));
    assert_eq!(world.answers[&id], Err(CommandError::WouldNotStop("a".into())));
    world.exit(world.key("a").unwrap(), End::Normal);
    assert_eq!(world.trace.join(" "), "+a -a +a");
}

#[test]
fn a_first_start_that_would_not_stop_says_why_it_failed() {
    let limit = Duration::from_secs(1);
    let slow = Rules { readiness: Some(limit), ..rules(Restart::Permanent) };
    let mut world = World::with_workers(config(Kind::OneForOne), vec![("a".to_owned(), slow)], false);
    world.pass(Duration::from_secs(60));
    assert!(world.ended);
    let Some(Cause::MeltedDown(down)) = &world.core.cause else { panic!() };
    assert_eq!(down.to_string(), "supervisor `root` did not start: `a`: not ready within 1s");
}

#[test]
fn the_budget_ends_a_stop() {
    let wait = Rules { shutdown: Shutdown::Wait, ..rules(Restart::Permanent) };
    let children = ["a", "b", "c"].map(|name| (name.to_owned(), wait.clone()));
    let config = Config { stop_budget: Some(Duration::from_secs(1)), ..config(Kind::OneForOne) };
    let mut world = World::new(config, children.to_vec());
    world.obedient = false;
    world.core.stop(world.now);
    world.act();
    world.pass(Duration::from_millis(899));
    assert_eq!((world.cancelled.len(), world.aborted.len()), (1, 0));
    world.pass(Duration::from_millis(1));
    assert_eq!((world.cancelled.len(), world.aborted.len()), (3, 0));
    world.pass(Duration::from_millis(100));
    assert_eq!(world.aborted.len(), 3);
    assert_eq!(world.core.aborted, ["c".into(), "b".into(), "a".into()]);
    for name in ["a", "b", "c"] {
        world.exit(world.key(name).unwrap(), End::Abnormal);
    }
    assert!(world.ended && world.core.leaked().is_empty());
}

#[test]
fn the_first_cause_of_a_stop_holds() {
    let mut world = ordered(Kind::OneForOne, &["a"]);
    world.obedient = false;
    world.core.stop(world.now);
    world.core.force(world.now);
    world.act();
    world.exit(world.key("a").unwrap(), End::Normal);
    assert!(matches!(world.core.cause, Some(Cause::Stopped)));
    assert_eq!(world.core.phase, Phase::Stopped);
}
