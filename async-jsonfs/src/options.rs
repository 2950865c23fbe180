use std::num::NonZeroUsize;

/// What a successful write promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// The new content survives a crash of the machine: the file is synced before it takes the old one's place, and its
    /// directory after.
    #[default]
    Durable,
    /// The new content is what every reader sees from now on. A crash of the process leaves the old or the new; a crash of
    /// the *machine* may lose the change, and on some file systems leave an empty file.
    Visible,
}

/// What a write does with a path that is a symbolic link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Symlinks {
    /// Replaces the file it points to; the link stays.
    #[default]
    Follow,
    /// Replaces the link itself by a file. Reads follow it.
    Replace,
    /// Refuses, reads too.
    Refuse,
}

/// What a write does with a file that is marked read-only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReadOnly {
    /// Refuses.
    #[default]
    Refuse,
    /// Replaces it by a file that is read-only again.
    Replace,
}

/// How JSON is laid out when a whole document is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// Two spaces of indentation and a newline at the end.
    #[default]
    Pretty,
    /// No white space, no newline.
    Compact,
}

/// What is done about an object that has one key twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DuplicateKeys {
    /// What the type does: a derived struct refuses, a map keeps the last.
    #[default]
    ByType,
    /// Refuses, wherever in the file it is.
    Refuse,
}

/// Everything that a call needs to know, copied into its job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) durability: Durability,
    pub(crate) symlinks: Symlinks,
    pub(crate) read_only: ReadOnly,
    pub(crate) format: Format,
    pub(crate) max_bytes: u64,
    pub(crate) max_depth: Option<NonZeroUsize>,
    pub(crate) max_entries: Option<NonZeroUsize>,
    pub(crate) duplicate_keys: DuplicateKeys,
    pub(crate) create_parents: bool,
    pub(crate) mode: Option<u32>,
    pub(crate) processes: bool,
    pub(crate) rewrite: bool,
}

/// Files beyond this are refused unless a higher limit was set: 256 MiB.
pub const DEFAULT_MAX_BYTES: u64 = 256 << 20;

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            symlinks: Symlinks::default(),
            read_only: ReadOnly::default(),
            format: Format::default(),
            max_bytes: DEFAULT_MAX_BYTES,
            max_depth: None,
            max_entries: None,
            duplicate_keys: DuplicateKeys::default(),
            create_parents: false,
            mode: None,
            processes: true,
            rewrite: false,
        }
    }
}
