use std::convert::Infallible;
use std::fmt::{self, Write as _};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_policy::{PolicyError, Reason, Rejection, TimedOut, Verdict};

use crate::job;

/// How far a change got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The file holds what it held before.
    NotWritten,
    /// The file holds the new content, and whether that survives a power cut is not known.
    Visible,
    /// The file holds the new content, and the disk has confirmed it.
    Durable,
    /// A time-out gave up on the call while it ran: any of the others.
    Unknown,
}

/// Where in a file something is wrong, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Location {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// Bytes from the beginning of the file.
    pub offset: usize,
    /// JSON pointer (RFC 6901) to the innermost value concerned; empty for the whole document. Of one longer than 400 bytes the
    /// beginning and the end, with `…` in between; so is the message.
    pub pointer: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// The offending piece of the line, at most some 60 characters.
    pub snippet: String,
}

/// What went wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The system refused: what was being done, and its answer.
    Io {
        /// What was being done, such as "open" or "sync the temporary file".
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The path does not name a regular file: what it names.
    NotAFile(&'static str),
    /// The path is a symbolic link, and those are refused here.
    Symlink,
    /// The file is marked read-only (no write permission for anybody, or not for this process).
    ReadOnly,
    /// Not JSON, and where it stops being JSON.
    Syntax(Location),
    /// JSON, and not of the type asked for (or a number that no type holds, as 1e999).
    Mismatch(Location),
    /// Nested deeper than the limit, and where.
    TooDeep(Location),
    /// More members and elements than the limit, and where the first too many is.
    TooManyEntries(Location),
    /// A key that its object has already, where those are refused.
    DuplicateKey(Location),
    /// A text encoding other than UTF-8, by name.
    Encoding(&'static str),
    /// More bytes than the limit.
    TooLarge {
        /// The limit in bytes.
        limit: u64,
        /// The size found, in bytes.
        found: u64,
    },
    /// The file is not the version it was expected to be: somebody else has changed it.
    Conflict,
    /// The value to write cannot be put into JSON: NaN and the infinities, a map whose keys are not strings.
    Serialize(String),
    /// Code of the type's own (to read, write or drop it) panicked, inside of a [`Store`](crate::Store).
    Panicked,
    /// The change cannot stand beside what else the file holds: read back, it would be something else, or not of the type any more.
    /// Why.
    Unmergeable(String),
    /// The patch (RFC 6902) does not fit the file: which operation, and why.
    Patch(String),
    /// A policy or a lock refused: nothing was started.
    Rejected(Rejection),
    /// A time-out gave up: it may have run.
    TimedOut(TimedOut),
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    kind: ErrorKind,
    outcome: Outcome,
}

/// Why a call failed, on which file, and how far its change got.
///
/// It displays as one line, whatever is in keys and paths (control characters, line separators and changes of the writing direction
/// are escaped): `config.json:3:11: /port: invalid type: string "80", expected u16, near "port": "80"`.
/// Clones share what they hold.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

impl Error {
    pub(crate) fn new(path: &Path, fault: Fault) -> Self {
        Self(Arc::new(Inner { path: path.to_owned(), kind: fault.kind, outcome: fault.outcome }))
    }

    /// The file, as it was named by the caller; empty where a policy outside spoke.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// How far the change got: [`Outcome::NotWritten`], or [`Outcome::Visible`] where the new content is in place and
    /// making it durable failed. [`Outcome::Unknown`] where a time-out, or the end of a runtime, came in between.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.0.outcome
    }

    /// Where in the file it is, for what is wrong inside it.
    #[must_use]
    pub fn location(&self) -> Option<&Location> {
        match self.kind() {
            ErrorKind::Syntax(location)
            | ErrorKind::Mismatch(location)
            | ErrorKind::TooDeep(location)
            | ErrorKind::TooManyEntries(location)
            | ErrorKind::DuplicateKey(location) => Some(location),
            _ => None,
        }
    }

    /// The system's answer, where there was one.
    #[must_use]
    pub fn io_error(&self) -> Option<&io::Error> {
        if let ErrorKind::Io { source, .. } = self.kind() { Some(source) } else { None }
    }

    /// Whether the file does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { path, kind, outcome } = &*self.0;
        f.debug_struct("Error").field("path", path).field("kind", kind).field("outcome", outcome).finish()
    }
}

/// Escapes what would break the line, or show it as something else: keys, paths and types' messages are of others' making.
struct OneLine<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let breaks = |c: char| {
            let separator_or_direction = matches!(
                c,
                '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
            );
            c.is_control() || separator_or_direction
        };
        let mut rest = text;
        while let Some(at) = rest.find(breaks) {
            let (plain, odd) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut chars = odd.chars();
            if let Some(odd) = chars.next() {
                write!(self.0, "{}", odd.escape_default())?;
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = OneLine(f);
        let f = &mut line;
        if !self.path().as_os_str().is_empty() {
            write!(f, "{}:", self.path().display())?;
            if let Some(Location { line, column, pointer, .. }) = self.location() {
                write!(f, "{line}:{column}:")?;
                if !pointer.is_empty() {
                    write!(f, " {pointer}:")?;
                }
            }
            f.write_str(" ")?;
        }
        match self.kind() {
            ErrorKind::Io { step, source } => write!(f, "cannot {step}: {source}")?,
            ErrorKind::NotAFile(what) => write!(f, "is {what}, not a regular file")?,
            ErrorKind::Symlink => f.write_str("is a symbolic link, and those are refused here")?,
            ErrorKind::ReadOnly => f.write_str("is read-only")?,
            ErrorKind::Syntax(at)
            | ErrorKind::Mismatch(at)
            | ErrorKind::TooDeep(at)
            | ErrorKind::TooManyEntries(at)
            | ErrorKind::DuplicateKey(at) => {
                f.write_str(&at.message)?;
                if !at.snippet.is_empty() {
                    write!(f, ", near {}", at.snippet)?;
                }
            }
            ErrorKind::Encoding(name) => write!(f, "is {name}; JSON files are UTF-8")?,
            ErrorKind::TooLarge { limit, found } => write!(f, "has {found} bytes, and {limit} are allowed")?,
            ErrorKind::Conflict => f.write_str("has been changed by somebody else")?,
            ErrorKind::Serialize(message) => write!(f, "the value cannot be written as JSON: {message}")?,
            ErrorKind::Panicked => f.write_str("the type's own code for JSON panicked")?,
            ErrorKind::Unmergeable(why) => {
                write!(f, "the change cannot stand beside what else the file holds: {why}")?;
            }
            ErrorKind::Patch(why) => write!(f, "the patch does not fit: {why}")?,
            ErrorKind::Rejected(rejection) => f.write_str(match (rejection.reason(), rejection.name()) {
                (Reason::ShutDown, Some(job::STORE)) => "not started: the store is closed",
                (Reason::ShutDown, _) => "not started: the runtime is shutting down",
                (Reason::DeadlineTooClose, _) => "not started: its turn did not come before the deadline",
                _ => "not started",
            })?,
            ErrorKind::TimedOut(_) => f.write_str("timed out")?,
        }
        match self.outcome() {
            Outcome::Visible => {
                f.write_str("; the new content is in place, whether it is durable is unknown")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.kind() {
            ErrorKind::Rejected(rejection) => Some(rejection),
            ErrorKind::TimedOut(timed_out) => Some(timed_out),
            _ => None,
        }
    }
}

/// A full disk, a conflict and the like may pass; what is wrong with the file or the value will not.
impl PolicyError for Error {
    fn from_rejection(rejection: Rejection) -> Self {
        Self::new(Path::new(""), ErrorKind::Rejected(rejection).into())
    }

    fn from_timed_out(timed_out: TimedOut) -> Self {
        let fault = Fault { kind: ErrorKind::TimedOut(timed_out), outcome: Outcome::Unknown };
        Self::new(Path::new(""), fault)
    }

    fn rejection(&self) -> Option<&Rejection> {
        if let ErrorKind::Rejected(rejection) = self.kind() { Some(rejection) } else { None }
    }

    fn timed_out(&self) -> Option<&TimedOut> {
        if let ErrorKind::TimedOut(timed_out) = self.kind() { Some(timed_out) } else { None }
    }

    fn verdict(&self) -> Verdict {
        if let ErrorKind::Conflict = self.kind() {
            return Verdict::Transient;
        }
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
        match self.io_error().map(io::Error::kind) {
            None | Some(NotFound | PermissionDenied | ReadOnlyFilesystem | IsADirectory | NotADirectory) => {
                Verdict::Permanent
            }
            Some(_) => Verdict::Transient,
        }
    }
}

/// What [`JsonFile::try_update`](crate::JsonFile::try_update) and [`Store::try_update`](crate::Store::try_update) fail with.
#[derive(Clone, Debug)]
pub enum UpdateError<E> {
    /// The closure said no: nothing was changed.
    Closure(E),
    /// Reading or writing failed.
    File(Error),
}

impl UpdateError<Infallible> {
    pub(crate) fn of_the_file(self) -> Error {
        match self {
            Self::Closure(never) => match never {},
            Self::File(error) => error,
        }
    }
}

impl<E: fmt::Display> fmt::Display for UpdateError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closure(error) => error.fmt(f),
            Self::File(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error> std::error::Error for UpdateError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Closure(error) => error.source(),
            Self::File(error) => error.source(),
        }
    }
}

/// An error before it is known which file it is about.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: ErrorKind,
    pub(crate) outcome: Outcome,
}

impl From<ErrorKind> for Fault {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, outcome: Outcome::NotWritten }
    }
}

impl Fault {
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(&self.kind, ErrorKind::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Names the step that failed.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Fault>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: &'static str) -> Result<T, Fault> {
        self.map_err(|source| ErrorKind::Io { step, source }.into())
    }
}
