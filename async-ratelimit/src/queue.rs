use std::time::Duration;

/// Who may wait, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queue {
    /// Zero: nobody may.
    pub(crate) max_len: usize,
    pub(crate) max_wait: Option<Duration>,
}

impl Queue {
    /// Who finds no room is refused.
    pub(crate) const NONE: Self = Self { max_len: 0, max_wait: None };
}
