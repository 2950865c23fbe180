use std::fmt;

/// A configuration that makes no sense: which field, which value, and what it should have been.
///
/// ```
/// use async_policy::ConfigError;
///
/// let error = ConfigError::new("backoff.cap", "50ms", "at least the base, 100ms");
/// assert_eq!(error.to_string(), "invalid `backoff.cap`: 50ms; expected at least the base, 100ms");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    field: &'static str,
    value: String,
    expected: String,
}

impl ConfigError {
    /// `field` has `value`, which is not what was `expected`.
    #[must_use]
    pub fn new(field: &'static str, value: impl fmt::Display, expected: impl fmt::Display) -> Self {
        Self { field, value: value.to_string(), expected: expected.to_string() }
    }

    /// The field, as a path from the value that was built: `backoff.cap`.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        self.field
    }

    /// The value it had.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// What it should have been.
    #[must_use]
    pub fn expected(&self) -> &str {
        &self.expected
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid `{}`: {}; expected {}", self.field, self.value, self.expected)
    }
}

impl std::error::Error for ConfigError {}
