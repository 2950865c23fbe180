//! Configuration as it is written in a file (`serde` feature): what the crates of the family read theirs with.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use humantime_serde::re::humantime::{format_duration, parse_duration};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{ConfigError, Timeout};

/// A number, a truth value or a text, as it is written. It is understood where its field is known, so that an error can name the
/// field and the value.
///
/// ```
/// use async_policy::written::Text;
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let written: Vec<Text> = serde_json::from_str(r#"["250ms", 3, "soon"]"#)?;
/// assert_eq!(written[0].duration("backoff.base")?, Duration::from_millis(250));
/// assert_eq!(written[1].parse::<u32>("max_attempts", "a whole number")?, 3);
/// let error = written[2].duration("backoff.cap").unwrap_err();
/// assert_eq!(error.to_string(), "invalid `backoff.cap`: soon; expected a duration such as \"250ms\"");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// A value as it is written.
    #[must_use]
    pub fn new(value: impl fmt::Display) -> Self {
        Self(value.to_string())
    }

    /// A duration as it is written: `1m 30s`.
    #[must_use]
    pub fn of(duration: Duration) -> Self {
        Self::new(format_duration(duration))
    }

    /// What is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A duration with its units: `250ms`, `1m 30s`.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn duration(&self, field: &'static str) -> Result<Duration, ConfigError> {
        sum(&self.0).ok_or_else(|| ConfigError::new(field, &self.0, "a duration such as \"250ms\""))
    }

    /// Anything that can be parsed.
    ///
    /// # Errors
    ///
    /// It is not what was `expected`.
    pub fn parse<T: FromStr>(&self, field: &'static str, expected: &str) -> Result<T, ConfigError> {
        self.0.parse().map_err(|_| ConfigError::new(field, &self.0, expected))
    }
}

/// The parts of a duration one by one: the parser panics where their sum comes to just more than fits.
fn sum(text: &str) -> Option<Duration> {
    let (mut sum, mut rest) = (Duration::ZERO, text);
    loop {
        let unit = rest.find(|c: char| c.is_alphabetic()).unwrap_or(rest.len());
        let end = rest[unit..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |next| unit + next);
        let (part, more) = rest.split_at(end);
        sum = sum.checked_add(parse_duration(part).ok()?)?;
        if more.is_empty() {
            return Some(sum);
        }
        rest = more;
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl de::Visitor<'_> for Any {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, a truth value or a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text::new(text))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Text, E> {
                Ok(Text::new(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Text, E> {
                Ok(Text::new(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Text, E> {
                Ok(Text::new(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Text, E> {
                Ok(Text::new(value))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

impl Serialize for Text {
    /// What reads as a number or a truth value is written as one.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(value) = self.0.parse::<u64>() {
            serializer.serialize_u64(value)
        } else if let Ok(value) = self.0.parse::<i64>() {
            serializer.serialize_i64(value)
        } else if let Ok(value) = self.0.parse::<f64>() {
            serializer.serialize_f64(value)
        } else if let Ok(value) = self.0.parse::<bool>() {
            serializer.serialize_bool(value)
        } else {
            serializer.serialize_str(&self.0)
        }
    }
}

/// Written as its limit, a duration with its unit: `"250ms"`. Its name is the program's to give.
impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Text::deserialize(deserializer)?.duration("timeout").map(Self::new).map_err(de::Error::custom)
    }
}

/// Written as its limit.
impl Serialize for Timeout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Text::of(self.limit()).serialize(serializer)
    }
}
