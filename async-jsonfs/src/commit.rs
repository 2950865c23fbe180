//! One group commit, in a blocking job, with the file held exclusively.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::carry;
use crate::change::Change;
use crate::error::{ErrorKind, Fault, Outcome, Step};
use crate::held::Held;
use crate::ops::Meta;
use crate::options::{Durability, Options};
use crate::parse::{parse, print};
use crate::replace::current;
use crate::target;

/// What the store knows of the file, so that it need not read it before each commit.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// The file that was read or written last. Held open, its inode cannot be given to another file: if the name still leads
    /// to it and it has not changed, nobody else has written.
    seen: Option<(File, Meta)>,
    /// The state as it prints.
    printed: Vec<u8>,
    /// The file's content, where that is something else.
    raw: Option<Vec<u8>>,
    /// Whether this content is known to be durable.
    durable: bool,
    /// Whether a sync has failed: what the kernel holds cannot be trusted, the content has to be written anew.
    suspect: bool,
}

/// The outcome of a commit: the state that the file holds now, if that is another, and what went wrong.
pub(crate) struct Committed<T> {
    pub(crate) state: Option<Arc<T>>,
    pub(crate) failed: Option<Fault>,
}

impl Disk {
    /// Reads the file: the state to begin with. No file: `default`, if there is one.
    pub(crate) fn open<T>(held: &Held<'_>, default: Option<fn() -> T>) -> Result<(Self, T), Fault>
    where
        T: Serialize + DeserializeOwned,
    {
        let mut disk = Self::default();
        match (disk.read(held), default) {
            (Err(fault), Some(default)) if is_missing(&fault) => {
                let state = default();
                disk.printed = caught(|| print(&state, held.options.format))?;
                disk.raw = Some(Vec::new());
                Ok((disk, state))
            }
            (read, _) => Ok((disk, read?)),
        }
    }

    fn read<T: Serialize + DeserializeOwned>(&mut self, held: &Held<'_>) -> Result<T, Fault> {
        let file = held.open()?;
        let (raw, meta) = target::read(held.ops, &file, held.options)?;
        let state: T = caught(|| parse(&raw, held.options))?;
        self.printed = caught(|| print(&state, held.options.format))?;
        self.raw = (raw != self.printed).then_some(raw);
        self.seen = Some((file, meta));
        self.durable = false;
        Ok(state)
    }

    /// Applies the changes in order, and writes once.
    pub(crate) fn commit<T>(
        &mut self,
        held: &Held<'_>,
        state: &Arc<T>,
        batch: &mut [Box<dyn Change<T>>],
    ) -> Committed<T>
    where
        T: Clone + Serialize + DeserializeOwned,
    {
        // The file first: if it cannot be read, no closure has run.
        let (base, reloaded) = match self.reload(held) {
            Err(fault) => return Committed { state: None, failed: Some(fault) },
            Ok(None) => (Arc::clone(state), false),
            Ok(Some(reloaded)) => (Arc::new(reloaded), true),
        };
        let mut now = Arc::clone(&base);
        for change in &mut *batch {
            if let Some(changed) = change.apply(&now) {
                now = Arc::new(changed);
            }
        }
        let durable = batch.iter().any(|change| change.durable());
        let before = reloaded.then_some(base);
        match self.write(held, &*now, durable) {
            Ok(()) => Committed { state: Some(now), failed: None },
            Err(fault) if fault.outcome == Outcome::NotWritten => {
                Committed { state: before, failed: Some(fault) }
            }
            Err(fault) => Committed { state: Some(now), failed: Some(fault) },
        }
    }

    /// The state in the file, if somebody else has written it.
    fn reload<T: Serialize + DeserializeOwned>(&mut self, held: &Held<'_>) -> Result<Option<T>, Fault> {
        let there = current(held.ops, held.target, held.options)?;
        let same = |(_, seen): &(File, Meta)| {
            there.is_some_and(|there| {
                (seen.id, seen.len, seen.changed) == (there.id, there.len, there.changed)
            })
        };
        match (&self.seen, there) {
            (Some(seen), _) if same(seen) => Ok(None),
            (_, Some(_)) => self.read(held).map(Some),
            // Removed, or not there yet: what the store holds is what there is.
            (_, None) => {
                self.seen = None;
                self.raw = Some(Vec::new());
                Ok(None)
            }
        }
    }

    fn write<T: Serialize + DeserializeOwned>(
        &mut self,
        held: &Held<'_>,
        state: &T,
        durable: bool,
    ) -> Result<(), Fault> {
        let mut options = *held.options;
        if durable {
            options.durability = Durability::Durable;
        }
        let held = Held { options: &options, ..*held };
        let printed = caught(|| print(state, options.format))?;
        let raw = self.raw.as_deref().unwrap_or(&self.printed);
        let bytes = match &self.seen {
            None => {
                let whole = Options { rewrite: true, ..options };
                caught(|| carry::carry_over::<T>(b"", b"", printed.clone(), &whole))?
            }
            Some(_) => caught(|| carry::carry_over::<T>(raw, &self.printed, printed.clone(), &options))?,
        };
        let unchanged = self.seen.is_some() && !self.suspect && bytes == raw;
        if unchanged && (self.durable || options.durability == Durability::Visible) {
            self.printed = printed;
            return Ok(());
        }
        let old = self.seen.as_ref().map(|&(_, meta)| meta);
        let written = if self.suspect {
            held.replace(&bytes, old.as_ref())
        } else {
            held.put(&bytes, old, Some(raw)).map(|(_, file)| file)
        };
        match written {
            Ok(file) => {
                let meta = held.ops.stat(&file).step("look at the file");
                self.seen = meta.ok().map(|meta| (file, meta));
                self.raw = (bytes != printed).then_some(bytes);
                self.printed = printed;
                self.durable = options.durability == Durability::Durable;
                self.suspect = false;
                Ok(())
            }
            Err(fault) => {
                if fault.outcome != Outcome::NotWritten {
                    // Read again next time, and write it anew.
                    *self = Self { suspect: true, ..Self::default() };
                }
                Err(fault)
            }
        }
    }
}

fn is_missing(fault: &Fault) -> bool {
    matches!(&fault.kind, ErrorKind::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Runs code of the type's own, which may panic.
fn caught<R>(run: impl FnOnce() -> Result<R, Fault>) -> Result<R, Fault> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(ErrorKind::Panicked.into()))
}
