//! The core against a model of a few lines.

use proptest::prelude::*;

use super::{World, config, kind, restart, rules, verb};
use crate::CommandError;
use crate::spec::{Restart, Strategy as Kind};
use crate::state::{Answer, End, Verb};

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

    fn command(&mut self, verb: &Verb, name: &str) -> Answer {
        let Some(at) = self.at(name) else { return Err(CommandError::NotFound(name.into())) };
        let running = self.children[at].2;
        match verb {
            Verb::Add(_) => unreachable!(),
            Verb::Start | Verb::Delete if running => return Err(CommandError::Running(name.into())),
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
        Ok(())
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
                    let answer = model.command(&verb, &name(child));
                    let id = world.command(verb, &name(child));
                    prop_assert_eq!(world.answers.get(&id), Some(&answer));
                }
                Step::Add(child, restart) => {
                    let id = world.add(&name(child), rules(restart));
                    if model.at(&name(child)).is_some() {
                        let exists = CommandError::AlreadyExists(name(child).into());
                        prop_assert_eq!(world.answers.get(&id), Some(&Err(exists)));
                    } else {
                        prop_assert_eq!(world.answers.get(&id), Some(&Ok(())));
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
