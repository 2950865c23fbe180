//! The core without a runtime: a world in which workers do what the test says, against a model of a few lines.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::{Action, Answer, CommandId, Config, Core, End, Ending, Key, Phase, Stage, State, Verb};
use crate::spec::{AutoShutdown, Restart, Rules, Strategy as Kind};
use crate::{Backoff, Intensity, Shutdown};

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
        strategy,
        intensity: Intensity::unlimited(),
        auto_shutdown: AutoShutdown::Never,
        stop_budget: None,
        abort_grace: Duration::from_millis(100),
        max_children: None,
        seed: 7,
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
            core: Core::new(config, children.len()),
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
            let key = world.core.prepare(now, name.as_str().into(), Arc::new(rules)).unwrap();
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
                    Action::Up | Action::Stopping | Action::Note { .. } => {}
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

    fn add(&mut self, name: &str, rules: Rules) -> Result<usize, Answer> {
        self.asked += 1;
        self.open.push(self.asked);
        self.added.insert(self.asked, name.to_owned());
        self.core.add(self.now, CommandId(self.asked), name.into(), Arc::new(rules));
        self.act();
        match self.answers.get(&self.asked) {
            Some(answer @ (Answer::Exists | Answer::Full | Answer::ShutDown)) => Err(answer.clone()),
            _ => Ok(self.asked),
        }
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

/// What OTP does, where every worker stops at once: a list, and no time.
struct Model {
    kind: Kind,
    /// Name, restart, running, restarts.
    children: Vec<(String, Restart, bool, u64)>,
    trace: Vec<String>,
    down: bool,
}

impl Model {
    fn new(kind: Kind, children: &[(String, Restart)]) -> Self {
        let trace = children.iter().map(|(name, _)| format!("+{name}")).collect();
        let children = children.iter().map(|(name, restart)| (name.clone(), *restart, true, 0)).collect();
        Self { kind, children, trace, down: false }
    }

    fn at(&self, name: &str) -> Option<usize> {
        self.children.iter().position(|child| child.0 == name)
    }

    fn exit(&mut self, name: &str, end: End) {
        let Some(at) = self.at(name).filter(|at| self.children[*at].2) else { return };
        self.children[at].2 = false;
        match (self.children[at].1, end) {
            (Restart::Temporary, _) => {
                self.children.remove(at);
                return;
            }
            (Restart::Transient, End::Normal) => return,
            _ => {}
        }
        self.children[at].3 += 1;
        let first = match self.kind {
            Kind::OneForOne | Kind::Pool => {
                self.children[at].2 = true;
                self.trace.push(format!("+{name}"));
                return;
            }
            Kind::OneForAll => 0,
            Kind::RestForOne => at,
        };
        for child in self.children[first..].iter_mut().rev().filter(|child| child.2) {
            child.2 = false;
            self.trace.push(format!("-{}", child.0));
        }
        let mut index = 0;
        self.children.retain(|child| {
            index += 1;
            index <= first || child.1 != Restart::Temporary
        });
        for child in &mut self.children[first..] {
            child.2 = true;
            self.trace.push(format!("+{}", child.0));
        }
    }

    fn halt(&mut self, at: usize) {
        if std::mem::take(&mut self.children[at].2) {
            self.trace.push(format!("-{}", self.children[at].0));
        }
    }

    fn run(&mut self, at: usize) {
        self.children[at].2 = true;
        self.trace.push(format!("+{}", self.children[at].0));
    }

    fn command(&mut self, verb: Verb, name: &str) -> Answer {
        let Some(at) = self.at(name) else { return Answer::NotFound };
        let running = self.children[at].2;
        match verb {
            Verb::Start | Verb::Delete if running => return Answer::Running,
            Verb::Start => self.run(at),
            Verb::Delete => drop(self.children.remove(at)),
            Verb::Stop => {
                self.halt(at);
                if self.children[at].1 == Restart::Temporary {
                    self.children.remove(at);
                }
            }
            Verb::Remove => {
                self.halt(at);
                self.children.remove(at);
            }
            Verb::Restart => {
                self.halt(at);
                self.run(at);
            }
        }
        Answer::Done
    }

    fn stop(&mut self) {
        self.down = true;
        for at in (0..self.children.len()).rev() {
            self.halt(at);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Exit(usize, bool),
    Command(Verb, usize),
    Add(usize, Restart),
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

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..8_usize, any::<bool>()).prop_map(|(child, failed)| Step::Exit(child, failed)),
        (verb(), 0..8_usize).prop_map(|(verb, child)| Step::Command(verb, child)),
        (0..8_usize, restart()).prop_map(|(child, restart)| Step::Add(child, restart)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Where every worker stops at once, order, counts, states and answers are those of the model.
    #[test]
    fn agrees_with_the_model(
        kind in kind(),
        first in prop::collection::vec(restart(), 0..6),
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let name = |index: usize| format!("c{index}");
        let children: Vec<_> = first.iter().enumerate().map(|(i, restart)| (name(i), *restart)).collect();
        let specs = children.iter().map(|(name, restart)| (name.clone(), rules(*restart))).collect();
        let mut world = World::new(config(kind), specs);
        let mut model = Model::new(kind, &children);
        for step in steps {
            match step {
                Step::Exit(child, failed) => {
                    let end = if failed { End::Abnormal } else { End::Normal };
                    if let Some(key) = world.key(&name(child)) {
                        world.exit(key, end);
                    }
                    model.exit(&name(child), end);
                }
                Step::Command(verb, child) => {
                    let id = world.command(verb, &name(child));
                    let answer = model.command(verb, &name(child));
                    prop_assert_eq!(world.answers.get(&id), Some(&answer));
                }
                Step::Add(child, restart) => {
                    let added = world.add(&name(child), rules(restart));
                    if model.at(&name(child)).is_some() {
                        prop_assert_eq!(added, Err(Answer::Exists));
                    } else {
                        prop_assert_eq!(world.answers.get(&added.unwrap()), Some(&Answer::Done));
                        model.children.push((name(child), restart, false, 0));
                        model.run(model.children.len() - 1);
                    }
                }
            }
            let states: Vec<_> = model.children.iter().map(|(n, _, up, restarts)| (n.clone(), *up, *restarts)).collect();
            prop_assert_eq!(world.states(), states);
            prop_assert_eq!(&world.trace, &model.trace);
        }
        world.core.stop(world.now);
        world.act();
        model.stop();
        prop_assert!(world.ended && world.open.is_empty() && world.alive.is_empty());
        prop_assert_eq!(&world.trace, &model.trace);
    }
}

#[derive(Clone, Debug)]
enum Chaos {
    Exit(usize, bool),
    /// Whoever has been told to stop does.
    Obey(usize, bool),
    Ready(usize),
    /// The word of a run that is over.
    Stale(usize),
    Command(Verb, usize),
    Add(usize, Restart),
    Pass(u64),
    Stop,
    Force,
}

fn chaos() -> impl Strategy<Value = Chaos> {
    prop_oneof![
        4 => (0..8_usize, any::<bool>()).prop_map(|(child, failed)| Chaos::Exit(child, failed)),
        6 => (0..8_usize, any::<bool>()).prop_map(|(child, failed)| Chaos::Obey(child, failed)),
        4 => (0..8_usize).prop_map(Chaos::Ready),
        1 => (0..8_usize).prop_map(Chaos::Stale),
        4 => (verb(), 0..8_usize).prop_map(|(verb, child)| Chaos::Command(verb, child)),
        2 => (0..8_usize, restart()).prop_map(|(child, restart)| Chaos::Add(child, restart)),
        4 => (0..3000_u64).prop_map(Chaos::Pass),
        1 => Just(Chaos::Stop),
        1 => Just(Chaos::Force),
    ]
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let shutdown = prop_oneof![
        Just(Shutdown::Abort),
        Just(Shutdown::Wait),
        (0..2000_u64).prop_map(|ms| Shutdown::Timeout(Duration::from_millis(ms)))
    ];
    let backoff = prop_oneof![Just(Backoff::none()), Just(Backoff::default())];
    let limit = || prop::option::of((1..2000_u64).prop_map(Duration::from_millis));
    (restart(), shutdown, backoff, any::<bool>(), limit(), limit()).prop_map(
        |(restart, shutdown, backoff, significant, readiness, heartbeat)| Rules {
            restart,
            shutdown,
            backoff,
            significant: significant && restart != Restart::Permanent,
            readiness,
            heartbeat,
            supervisor: false,
            mute: false,
            every: None,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Whatever workers, callers and time do: the books are right, no child runs twice at once, every command is answered
    /// once, and a stop comes to its end.
    #[test]
    fn holds_in_chaos(
        kind in kind(),
        children in prop::collection::vec(any_rules(), 0..6),
        added in any_rules(),
        intensity in prop_oneof![Just(Intensity::unlimited()), Just(Intensity::new(3, Duration::from_secs(5)))],
        auto in prop_oneof![
            Just(AutoShutdown::Never), Just(AutoShutdown::AnySignificant), Just(AutoShutdown::AllSignificant)
        ],
        budget in prop::option::of((0..3000_u64).prop_map(Duration::from_millis)),
        steps in prop::collection::vec(chaos(), 0..80),
    ) {
        let name = |index: usize| format!("c{index}");
        let specs = children.into_iter().enumerate().map(|(i, rules)| (name(i), rules)).collect();
        let config = Config { intensity, auto_shutdown: auto, stop_budget: budget, ..config(kind) };
        let mut world = World::with_workers(config, specs, false);
        for step in steps {
            if world.ended {
                break;
            }
            match step {
                Chaos::Exit(child, failed) => {
                    if let Some(key) = world.key(&name(child)) {
                        world.exit(key, if failed { End::Abnormal } else { End::Normal });
                    }
                }
                Chaos::Obey(nth, failed) => {
                    if let Some(key) = world.cancelled.keys().nth(nth).copied() {
                        world.exit(key, if failed { End::Abnormal } else { End::Normal });
                    }
                }
                Chaos::Ready(child) => {
                    if let Some((key, epoch)) = world.key(&name(child)).and_then(|key| Some((key, *world.alive.get(&key)?))) {
                        world.core.ready(world.now, key, epoch);
                        world.act();
                    }
                }
                Chaos::Stale(child) => {
                    if let Some(key) = world.key(&name(child)) {
                        let epoch = world.core.children.get(key).unwrap().epoch;
                        if epoch > 0 && world.alive.get(&key) != Some(&(epoch - 1)) {
                            world.core.exited(world.now, key, epoch - 1, End::Abnormal, None);
                            world.core.ready(world.now, key, epoch - 1);
                            world.act();
                        }
                    }
                }
                Chaos::Command(verb, child) => {
                    world.command(verb, &name(child));
                }
                Chaos::Add(child, restart) => {
                    let _ = world.add(&name(child), Rules { restart, significant: false, ..added.clone() });
                }
                Chaos::Pass(ms) => world.pass(Duration::from_millis(ms)),
                Chaos::Stop => {
                    world.core.stop(world.now);
                    world.act();
                }
                Chaos::Force => {
                    world.core.force(world.now);
                    world.act();
                }
            }
        }
        // Those that wait for ever do not, once a stop is forced.
        if !world.ended {
            world.core.stop(world.now);
            world.act();
            world.pass(Duration::from_secs(1));
            world.core.force(world.now);
            world.act();
            world.pass(Duration::from_secs(1));
        }
        prop_assert!(world.ended, "{:?}", world.core);
        prop_assert_eq!(world.open.len(), 0);
        prop_assert_eq!(world.core.leaked().len(), world.alive.len());
        prop_assert_eq!(world.core.next_due(), None);
    }

    /// With obedient workers all comes to rest by itself: nothing is left half-done once time has passed.
    #[test]
    fn comes_to_rest(
        kind in kind(),
        children in prop::collection::vec((restart(), any::<bool>()), 1..6),
        exits in prop::collection::vec((0..6_usize, any::<bool>(), 0..500_u64), 0..20),
    ) {
        let name = |index: usize| format!("c{index}");
        let specs = children.iter().enumerate().map(|(i, (restart, slow))| {
            let backoff = if *slow { Backoff::default() } else { Backoff::none() };
            (name(i), Rules { backoff, ..rules(*restart) })
        });
        let mut world = World::new(config(kind), specs.collect());
        for (child, failed, ms) in exits {
            if let Some(key) = world.key(&name(child)) {
                world.exit(key, if failed { End::Abnormal } else { End::Normal });
            }
            world.pass(Duration::from_millis(ms));
        }
        world.pass(Duration::from_secs(120));
        prop_assert_eq!(world.core.next_due(), None);
        prop_assert!(!world.core.is_busy());
        for (_, child) in world.core.children.iter() {
            prop_assert!(matches!(child.state, State::Running | State::Stopped), "{:?}", child);
        }
    }
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
fn the_budget_ends_a_stop() {
    let wait = Rules { shutdown: Shutdown::Wait, ..rules(Restart::Permanent) };
    let children = ["a", "b", "c"].map(|name| (name.to_owned(), wait.clone()));
    let config = Config { stop_budget: Some(Duration::from_secs(1)), ..config(Kind::OneForOne) };
    let mut world = World::new(config, children.to_vec());
    world.obedient = false;
    world.core.stop(world.now);
    world.act();
    world.pass(Duration::from_millis(999));
    assert_eq!((world.cancelled.len(), world.aborted.len()), (1, 0));
    world.pass(Duration::from_millis(1));
    assert_eq!(world.aborted.len(), 3);
    assert_eq!(world.core.aborted.len(), 3);
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
    assert_eq!(world.core.cause, Some(Ending::Told));
    assert_eq!(world.core.phase, Phase::Ended);
}
