//! What was fetched so far, and its checkpoint.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_batch::Progress;
use async_jsonfs::JsonFile;
use async_supervisor::{Child, Context};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::input::Input;
use crate::{Boxed, Item};

/// A URL that was fetched.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Answer {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) status: u16,
    pub(crate) attempts: u32,
    pub(crate) millis: u64,
    pub(crate) body: Value,
}

/// A URL that could not be fetched, and why.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Problem {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) attempts: u32,
    pub(crate) kind: &'static str,
    pub(crate) error: String,
}

#[derive(Debug, Deserialize, Serialize)]
struct Checkpoint {
    list: String,
    done: Vec<Answer>,
}

#[derive(Debug, Default)]
struct Ends {
    answers: HashMap<usize, Answer>,
    problems: HashMap<usize, Problem>,
}

/// One run over a list, which may begin where an earlier one was killed.
#[derive(Debug)]
pub(crate) struct Run {
    list: String,
    inputs: Vec<Input>,
    ends: Mutex<Ends>,
    started: Instant,
    pub(crate) progress: Progress,
    stopping: AtomicBool,
}

impl Run {
    /// Takes up the checkpoint of an earlier run over the same list; one over another list is left behind. Writing it at once
    /// shows whether the folder can be written before anything is fetched.
    pub(crate) async fn resume(
        list: String,
        inputs: Vec<Input>,
        checkpoint: &JsonFile,
    ) -> Result<Self, Boxed> {
        let earlier: Option<Checkpoint> = match checkpoint.load().await {
            Ok(earlier) => Some(earlier),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        };
        let places: HashMap<&str, usize> =
            inputs.iter().enumerate().map(|(index, input)| (input.name.as_str(), index)).collect();
        let done =
            earlier.filter(|earlier| earlier.list == list).map(|earlier| earlier.done).unwrap_or_default();
        let answers = done
            .into_iter()
            .filter_map(|answer| Some((*places.get(answer.name.as_str())?, answer)))
            .collect();
        let ends = Mutex::new(Ends { answers, problems: HashMap::new() });
        let run = Self {
            list,
            inputs,
            ends,
            started: Instant::now(),
            progress: Progress::new(),
            stopping: AtomicBool::new(false),
        };
        run.save(checkpoint).await?;
        Ok(run)
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    pub(crate) fn total(&self) -> usize {
        self.inputs.len()
    }

    pub(crate) fn done(&self) -> usize {
        self.ends().answers.len()
    }

    pub(crate) fn failed(&self) -> usize {
        self.ends().problems.len()
    }

    /// Nothing more is started.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Relaxed);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What is still to be fetched.
    pub(crate) fn rest(&self) -> Vec<Item> {
        let ends = self.ends();
        let open = |index: &usize| !ends.answers.contains_key(index) && !ends.problems.contains_key(index);
        (0..self.inputs.len()).filter(open).map(|index| (index, self.inputs[index].clone())).collect()
    }

    pub(crate) fn answered(&self, index: usize, answer: Answer) {
        self.ends().answers.insert(index, answer);
    }

    pub(crate) fn gave_up(&self, index: usize, problem: Problem) {
        self.ends().problems.insert(index, problem);
    }

    /// Results and errors in the order of the list: together they are the whole list.
    pub(crate) fn outcome(&self) -> (Vec<Answer>, Vec<Problem>) {
        let mut ends = self.ends();
        let (mut answers, mut problems) = (Vec::new(), Vec::new());
        for (index, input) in self.inputs.iter().enumerate() {
            if let Some(answer) = ends.answers.get(&index) {
                answers.push(answer.clone());
                continue;
            }
            problems.push(ends.problems.remove(&index).unwrap_or_else(|| Problem {
                name: input.name.clone(),
                url: input.url.0.to_string(),
                attempts: 0,
                kind: "interrupted",
                error: "the run was stopped before it was fetched".to_owned(),
            }));
        }
        (answers, problems)
    }

    async fn save(&self, checkpoint: &JsonFile) -> Result<(), Boxed> {
        let done = self.ends().answers.values().cloned().collect();
        checkpoint.save(Checkpoint { list: self.list.clone(), done }).await?;
        Ok(())
    }

    /// Removes the checkpoint of a run that is complete.
    pub(crate) async fn forget(&self, checkpoint: &JsonFile) -> Result<(), Boxed> {
        tokio::fs::remove_file(checkpoint.path()).await?;
        Ok(())
    }
}

/// The worker that saves progress, and once more when it is stopped.
pub(crate) fn checkpointer(run: &Arc<Run>, checkpoint: JsonFile, every: Duration) -> Child {
    let run = Arc::clone(run);
    Child::new("checkpoint", move |ctx: Context| {
        let (run, checkpoint) = (Arc::clone(&run), checkpoint.clone());
        async move {
            while ctx.token().run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
                run.save(&checkpoint).await?;
            }
            run.save(&checkpoint).await
        }
    })
}
