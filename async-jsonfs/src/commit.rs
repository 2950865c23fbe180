//! One group commit, in a blocking job, with the file held exclusively.

use std::fs::File;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::carry;
use crate::change::Change;
use crate::error::{Error, Fault, Outcome, Step};
use crate::held::Held;
use crate::limits;
use crate::ops::Meta;
use crate::options::{Durability, Format, Options, Symlinks};
use crate::panics::{caught, let_go};
use crate::parse::{parse, print};
use crate::replace::current;
use crate::target;

/// What the store knows of the file, so that it need not parse it before each commit.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    seen: Option<Seen>,
    /// The state as it prints.
    printed: Vec<u8>,
    /// The file's content, where that is something else.
    raw: Option<Vec<u8>>,
    /// Whether this content is known to be durable.
    durable: bool,
    /// Whether a sync has failed: what the kernel holds cannot be trusted, the content has to be written anew.
    suspect: bool,
}

/// The file that was read or written last. Held open, its inode cannot be given to another file: if the name still leads to it
/// and it has not changed, nobody else has written.
#[derive(Debug)]
struct Seen {
    file: File,
    meta: Meta,
    /// Its time of change was the present, for a clock that ticks: a later change may bear the same time, so that only its
    /// content can tell. (Git calls such an entry racy.)
    young: bool,
}

/// Longer than any kernel's clock takes from one tick to the next.
const TICK: Duration = Duration::from_millis(20);

/// `since`: a moment before its content was looked at.
fn is_young(meta: &Meta, since: SystemTime) -> bool {
    let (seconds, nanos) = meta.changed;
    let changed = Duration::new(seconds.try_into().unwrap_or(0), nanos.try_into().unwrap_or(0));
    UNIX_EPOCH.checked_add(changed + TICK).is_none_or(|old| old > since)
}

impl Seen {
    fn new(file: File, meta: Meta, since: SystemTime) -> Self {
        Self { file, meta, young: is_young(&meta, since) }
    }
}

/// What is to be written for a state.
struct Prepared {
    printed: Vec<u8>,
    /// The file's content, where that is something else.
    bytes: Option<Vec<u8>>,
    /// Whether it has been seen to be what it is meant to be; otherwise it is only printed.
    read_back: bool,
}

/// Up to this length of the file each change of a commit is read back by itself. Where that takes longer, they are all at once.
const READ_BACK_EACH: usize = 64 << 10;

/// The outcome of a commit: the state that the file holds now, if that is another, and what went wrong.
pub(crate) struct Committed<T> {
    pub(crate) state: Option<Arc<T>>,
    pub(crate) failed: Option<Fault>,
}

impl Disk {
    /// Reads the file: the state to begin with.
    pub(crate) fn open<T>(held: &Held<'_>) -> Result<(Self, T), Fault>
    where
        T: Serialize + DeserializeOwned,
    {
        let mut disk = Self::default();
        let state = disk.read(held)?;
        Ok((disk, state))
    }

    /// There is no file yet, and this is what it would be.
    pub(crate) fn absent<T: Serialize>(state: &T, format: Format) -> Result<Self, Fault> {
        let printed = caught(|| print(state, format))?;
        Ok(Self { printed, raw: Some(Vec::new()), ..Self::default() })
    }

    /// The content that the file is known to have.
    fn known(&self) -> &[u8] {
        self.raw.as_deref().unwrap_or(&self.printed)
    }

    fn read<T: Serialize + DeserializeOwned>(&mut self, held: &Held<'_>) -> Result<T, Fault> {
        let since = SystemTime::now();
        let file = held.open()?;
        let (raw, meta) = target::read(held.ops, &file, held.options)?;
        let state: T = caught(|| parse(&raw, held.options))?;
        self.printed = match caught(|| print(&state, held.options.format)) {
            Ok(printed) => printed,
            Err(fault) => {
                let_go(state);
                return Err(fault);
            }
        };
        self.raw = (raw != self.printed).then_some(raw);
        self.seen = Some(Seen::new(file, meta, since));
        self.durable = false;
        Ok(state)
    }

    /// Applies the changes in order, and writes once. A change after which the state could not be written is refused by itself:
    /// closures run once, so what comes after it must not build on it.
    pub(crate) fn commit<T>(
        &mut self,
        held: &Held<'_>,
        state: &Arc<T>,
        batch: &mut [Box<dyn Change<T>>],
        error: impl Fn(Fault) -> Error,
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
        let mut options = *held.options;
        let flush = batch.iter().any(|change| change.durable());
        if flush {
            options.durability = Durability::Durable;
        }
        let held = Held { options: &options, ..*held };
        let each = batch.len() == 1 || self.known().len() <= READ_BACK_EACH;
        let mut now = Arc::clone(&base);
        let mut next = None;
        for change in batch {
            let Some(changed) = change.apply(&now) else { continue };
            let printed = caught(|| print(&changed, options.format));
            match printed.and_then(|printed| self.prepare::<T>(&held, printed, each)) {
                Ok(prepared) => {
                    next = Some(prepared);
                    let_go(mem::replace(&mut now, Arc::new(changed)));
                }
                Err(fault) => {
                    let_go(changed);
                    change.refuse(error(fault));
                }
            }
        }
        if next.is_none() && flush && self.seen.is_some() {
            next = Some(Prepared { printed: self.printed.clone(), bytes: self.raw.clone(), read_back: true });
        }
        let next = match next {
            Some(next) if !next.read_back => self.prepare::<T>(&held, next.printed, true).map(Some),
            next => Ok(next),
        };
        let failed = next.and_then(|next| next.map_or(Ok(()), |next| self.write(&held, next))).err();
        if failed.as_ref().is_some_and(|fault| fault.outcome == Outcome::NotWritten) {
            let_go(now);
            Committed { state: reloaded.then_some(base), failed }
        } else {
            let_go(base);
            Committed { state: Some(now), failed }
        }
    }

    /// The state in the file, if somebody else has written it.
    fn reload<T: Serialize + DeserializeOwned>(&mut self, held: &Held<'_>) -> Result<Option<T>, Fault> {
        let there = current(held.ops, held.target, held.options)?;
        if there.is_none() {
            if held.options.symlinks == Symlinks::Replace {
                match self.read(held) {
                    Err(fault) if fault.is_not_found() => {}
                    read => return read.map(Some),
                }
            }
            // Removed, or not there yet: what the store holds is what there is.
            self.seen = None;
            self.raw = Some(Vec::new());
            return Ok(None);
        }
        // The mode and the owner too: within one tick of the clock their change leaves no other trace.
        let young = self.seen.as_ref().filter(|seen| Some(seen.meta) == there).map(|seen| seen.young);
        if young == Some(false) || young == Some(true) && self.is_as_known(held)? {
            return Ok(None);
        }
        self.read(held).map(Some)
    }

    /// Whether the file, of the same length and time, has the content that it had.
    fn is_as_known(&mut self, held: &Held<'_>) -> Result<bool, Fault> {
        let Some(seen) = &self.seen else { return Ok(false) };
        let since = SystemTime::now();
        let mut content = vec![0; self.known().len()];
        let read = held.ops.read_again(&seen.file, &mut content).step("read the file")?;
        let same = read && content == self.known();
        if let Some(seen) = &mut self.seen {
            seen.young = is_young(&seen.meta, since);
        }
        Ok(same)
    }

    /// What the file would be with a state that prints like this, if it can be: in the limits, and read back.
    fn prepare<T: Serialize + DeserializeOwned>(
        &self,
        held: &Held<'_>,
        printed: Vec<u8>,
        read_back: bool,
    ) -> Result<Prepared, Fault> {
        let options = held.options;
        let bytes = match &self.seen {
            _ if !read_back => None,
            None => {
                let whole = Options { rewrite: true, ..*options };
                caught(|| carry::carry_over::<T>(b"", b"", &printed, &whole))?
            }
            Some(_) if printed == self.printed => self.raw.clone(),
            Some(_) => caught(|| carry::carry_over::<T>(self.known(), &self.printed, &printed, options))?,
        };
        limits::check_written(bytes.as_deref().unwrap_or(&printed), options)?;
        Ok(Prepared { printed, bytes, read_back })
    }

    fn write(&mut self, held: &Held<'_>, next: Prepared) -> Result<(), Fault> {
        let bytes = next.bytes.as_deref().unwrap_or(&next.printed);
        let durability = held.options.durability;
        let unchanged = self.seen.is_some() && !self.suspect && bytes == self.known();
        if unchanged && (self.durable || durability == Durability::Visible) {
            self.printed = next.printed;
            self.raw = next.bytes;
            return Ok(());
        }
        let old = self.seen.as_ref().map(|seen| seen.meta);
        let written = if self.suspect || self.seen.is_none() {
            held.replace(bytes, old.as_ref())
        } else {
            held.put(bytes, old, Some(self.known())).map(|(_, file)| file)
        };
        match written {
            Ok(file) => {
                let since = SystemTime::now();
                let meta = held.ops.stat(&file).step("look at the file");
                let seen = meta.ok().map(|meta| Seen::new(file, meta, since));
                if let Some(seen) = mem::replace(&mut self.seen, seen) {
                    held.close_later(seen.file, &seen.meta);
                }
                self.printed = next.printed;
                self.raw = next.bytes;
                self.durable = durability == Durability::Durable;
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
