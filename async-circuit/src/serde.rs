//! A breaker as configuration. What is written comes in as plain text first, so that every error names the field and the value.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use ::serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use ::serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use ::serde::ser::Error as _;
use ::serde::{Deserialize, Deserializer, Serialize, Serializer};
use async_policy::written::Text;
use async_policy::{ConfigError, Name};

use crate::trip::{Bad, RATE, Rule, Window};
use crate::{
    CircuitBreakerBuilder, DEFAULT_FAILURE_RATE, DEFAULT_OPEN_FOR, OpenTime, Recovery, Trip, TripRules,
};

/// A plain value, fields, or a list of fields.
#[derive(Serialize)]
#[serde(untagged)]
enum Written<T> {
    Value(Text),
    Fields(T),
    List(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // (Derived, it would forget what is wrong with the fields.)
        struct Any<T>(PhantomData<T>);

        macro_rules! values {
            ($($visit:ident: $type:ty),+) => {
                $(fn $visit<E>(self, value: $type) -> Result<Self::Value, E> {
                    Ok(Written::Value(Text::new(value)))
                })+
            };
        }

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Any<T> {
            type Value = Written<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value, fields, or a list of fields")
            }

            values!(visit_str: &str, visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64);

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Written<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Written::Fields)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Written<T>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Written::List)
            }
        }

        deserializer.deserialize_any(Any(PhantomData))
    }
}

type Field = Option<Text>;

fn text(value: impl fmt::Display) -> Field {
    Some(Text::new(value))
}

fn duration_text(duration: Duration) -> Field {
    Some(Text::of(duration))
}

fn duration(field: &'static str, text: &Field) -> Result<Option<Duration>, ConfigError> {
    text.as_ref().map(|text| text.duration(field)).transpose()
}

fn parsed<T: FromStr>(field: &'static str, text: &Field, expected: &str) -> Result<Option<T>, ConfigError> {
    text.as_ref().map(|text| text.parse(field, expected)).transpose()
}

fn count(field: &'static str, text: &Field) -> Result<Option<NonZeroU32>, ConfigError> {
    parsed(field, text, "a whole number above zero, below 2^32")
}

/// A field that does not go with the others.
fn unused(field: &'static str, text: &Field, expected: &str) -> Result<(), ConfigError> {
    text.as_ref().map_or(Ok(()), |text| Err(ConfigError::new(field, text.as_str(), expected)))
}

/// The fields of something as they are written: each may be missing, and no other is known.
macro_rules! fields {
    ($name:ident as $called:literal, $expecting:literal; $($field:ident: $type:ty),+) => {
        #[derive(Default, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default, rename = $called, expecting = $expecting)]
        struct $name {
            $(#[serde(skip_serializing_if = "Option::is_none")] $field: Option<$type>,)+
        }
    };
}

fields! {
    RawRule as "Trip", "the fields of a rule, such as {\"failure_rate\": 0.5}";
    consecutive_failures: Text, failure_rate: Text, slow_rate: Text, slower_than: Text, of_last: Text, within: Text,
    min_calls: Text
}

impl RawRule {
    fn build(&self) -> Result<TripRules, ConfigError> {
        let mut trip = match (&self.consecutive_failures, &self.failure_rate, &self.slow_rate) {
            (Some(_), None, None) => {
                for (field, text) in [
                    ("trip.slower_than", &self.slower_than),
                    ("trip.of_last", &self.of_last),
                    ("trip.within", &self.within),
                    ("trip.min_calls", &self.min_calls),
                ] {
                    unused(field, text, "only with a rate")?;
                }
                let failures = count("trip.consecutive_failures", &self.consecutive_failures)?;
                return Ok(failures.map(Trip::consecutive_failures).unwrap_or_default());
            }
            (None, Some(rate), None) => {
                unused("trip.slower_than", &self.slower_than, "only with slow_rate")?;
                Trip::failure_rate(rate.parse("trip.failure_rate", RATE)?)
            }
            (None, None, Some(rate)) => {
                let slower_than = duration("trip.slower_than", &self.slower_than)?;
                let slower_than = slower_than.ok_or_else(|| {
                    ConfigError::new("trip.slower_than", "missing", "a duration such as \"250ms\"")
                })?;
                Trip::slow_rate(rate.parse("trip.slow_rate", RATE)?, slower_than)
            }
            (failures, failure_rate, slow_rate) => {
                let count = [failures, failure_rate, slow_rate].into_iter().flatten().count();
                let expected = "one: consecutive_failures, failure_rate or slow_rate";
                return Err(ConfigError::new(
                    "trip",
                    format_args!("a rule with {count} thresholds"),
                    expected,
                ));
            }
        };
        if let Some(calls) = count("trip.of_last", &self.of_last)? {
            unused("trip.within", &self.within, "only without of_last")?;
            trip = trip.of_last(calls);
        }
        if let Some(time) = duration("trip.within", &self.within)? {
            trip = trip.within(time);
        }
        if let Some(calls) = count("trip.min_calls", &self.min_calls)? {
            trip = trip.with_min_calls(calls);
        }
        Ok(trip.into())
    }

    fn of(rule: &Rule) -> Self {
        let trip = match rule {
            Rule::InARow(failures) => {
                return Self { consecutive_failures: text(failures), ..Self::default() };
            }
            Rule::Rate(trip) => trip,
        };
        let mut raw = Self { min_calls: text(trip.min_calls), ..Self::default() };
        match trip.bad {
            Bad::Failed => raw.failure_rate = text(trip.rate),
            Bad::SlowerThan(time) => {
                raw.slow_rate = text(trip.rate);
                raw.slower_than = duration_text(time);
            }
        }
        match trip.window {
            Window::OfLast(calls) => raw.of_last = text(calls),
            Window::Within(time) => raw.within = duration_text(time),
        }
        raw
    }
}

fn rules(raw: Written<RawRule>) -> Result<TripRules, ConfigError> {
    let expected = "a rule such as {\"failure_rate\": 0.5}, or a list of them";
    match raw {
        Written::Value(text) => Err(ConfigError::new("trip", text.as_str(), expected)),
        Written::Fields(rule) => rule.build(),
        Written::List(rules) => {
            let mut rules = rules.iter().map(RawRule::build);
            let first = rules.next().ok_or_else(|| ConfigError::new("trip", "[]", expected))?;
            rules.try_fold(first?, |rules, rule| Ok(rules.or(rule?)))
        }
    }
}

fields! {
    RawOpenTime as "OpenTime", "the fields of an open time, such as {\"base\": \"5s\", \"cap\": \"120s\"}";
    base: Text, factor: Text, cap: Text, jitter: Text
}

impl RawOpenTime {
    fn build(&self) -> Result<OpenTime, ConfigError> {
        let base = duration("open_for.base", &self.base)?.unwrap_or(DEFAULT_OPEN_FOR);
        let mut time = if let Some(cap) = duration("open_for.cap", &self.cap)? {
            OpenTime::growing(base, cap)
        } else {
            unused("open_for.factor", &self.factor, "only with a cap")?;
            OpenTime::fixed(base)
        };
        if let Some(factor) = parsed("open_for.factor", &self.factor, "1 or more, and finite")? {
            time = time.with_factor(factor);
        }
        if let Some(jitter) = parsed("open_for.jitter", &self.jitter, "from 0 to 1")? {
            time = time.with_jitter(jitter);
        }
        Ok(time)
    }
}

fn open_time(raw: Written<RawOpenTime>) -> Result<OpenTime, ConfigError> {
    match raw {
        Written::Value(time) => time.duration("open_for").map(OpenTime::fixed),
        Written::Fields(fields) => fields.build(),
        Written::List(_) => Err(ConfigError::new("open_for", "a list", "a duration or the fields of one")),
    }
}

fn open_time_of(time: &OpenTime) -> Result<Written<RawOpenTime>, &'static str> {
    if time.choose().is_some() {
        return Err("an open time of your own cannot be written down");
    }
    let grows = time.cap > time.base;
    if !grows && time.jitter == 0.0 {
        return Ok(Written::Value(Text::of(time.base)));
    }
    Ok(Written::Fields(RawOpenTime {
        base: duration_text(time.base),
        factor: grows.then(|| Text::new(time.factor)),
        cap: grows.then(|| Text::of(time.cap)),
        jitter: text(time.jitter),
    }))
}

fields! {
    RawRecovery as "Recovery", "the fields of a recovery, such as {\"failure_rate\": 0.5}";
    failure_rate: Text
}

const IN_A_ROW: &str = "in_a_row";

fn recovery(raw: &Written<RawRecovery>) -> Result<Recovery, ConfigError> {
    const EXPECTED: &str = "\"in_a_row\" or a rate such as {\"failure_rate\": 0.5}";
    match raw {
        Written::Value(text) if text.as_str() == IN_A_ROW => Ok(Recovery::InARow),
        Written::Value(text) => Err(ConfigError::new("recovery", text.as_str(), EXPECTED)),
        Written::Fields(RawRecovery { failure_rate }) => {
            let rate = parsed("recovery.failure_rate", failure_rate, RATE)?;
            Ok(Recovery::FailureRate(rate.unwrap_or(DEFAULT_FAILURE_RATE)))
        }
        Written::List(_) => Err(ConfigError::new("recovery", "a list", EXPECTED)),
    }
}

fields! {
    RawBreaker as "CircuitBreaker", "the fields of a circuit breaker, such as {\"open_for\": \"5s\"}";
    name: String, trip: Written<RawRule>, open_for: Written<RawOpenTime>, probes: Text,
    recovery: Written<RawRecovery>, half_open_limit: Text, ramp: Text, mode: Text
}

impl RawBreaker {
    fn build(self) -> Result<CircuitBreakerBuilder, ConfigError> {
        let mut builder = CircuitBreakerBuilder { name: self.name.map(Name::from), ..Default::default() };
        let config = &mut builder.config;
        if let Some(trip) = self.trip {
            config.trip = rules(trip)?;
        }
        if let Some(time) = self.open_for {
            config.open_for = open_time(time)?;
        }
        if let Some(probes) = count("probes", &self.probes)? {
            config.probes = probes;
        }
        if let Some(raw) = &self.recovery {
            config.recovery = recovery(raw)?;
        }
        if let Some(limit) = duration("half_open_limit", &self.half_open_limit)? {
            config.half_open_limit = limit;
        }
        config.ramp = duration("ramp", &self.ramp)?;
        if let Some(mode) = &self.mode {
            config.mode = mode.as_str().parse()?;
        }
        config.check()?;
        Ok(builder)
    }

    fn of(builder: &CircuitBreakerBuilder) -> Result<Self, &'static str> {
        let config = &builder.config;
        Ok(Self {
            name: builder.name.as_ref().map(ToString::to_string),
            trip: Some(Written::List(config.trip.rules.iter().map(RawRule::of).collect())),
            open_for: Some(open_time_of(&config.open_for)?),
            probes: text(config.probes),
            recovery: Some(match config.recovery {
                Recovery::InARow => Written::Value(Text::new(IN_A_ROW)),
                Recovery::FailureRate(rate) => Written::Fields(RawRecovery { failure_rate: text(rate) }),
            }),
            half_open_limit: duration_text(config.half_open_limit),
            ramp: config.ramp.and_then(duration_text),
            mode: text(config.mode),
        })
    }
}

/// `{"name": "quotes", "trip": [{"failure_rate": 0.5, "within": "10s"}, {"consecutive_failures": 10}], "open_for": "5s", "probes": 3}`; what
/// is missing is the default. All that [`build`](Self::build) refuses is refused here.
impl<'de> Deserialize<'de> for CircuitBreakerBuilder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RawBreaker::deserialize(deserializer)?.build().map_err(D::Error::custom)
    }
}

/// Without listener and seed. Fails for an open time of your own, and for what [`build`](Self::build) refuses.
impl Serialize for CircuitBreakerBuilder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.config.check().map_err(S::Error::custom)?;
        RawBreaker::of(self).map_err(S::Error::custom)?.serialize(serializer)
    }
}

/// A point in time as text: `2026-11-21T09:30:00Z`.
pub(crate) mod rfc3339 {
    use std::fmt::Write;
    use std::time::SystemTime;

    use ::serde::Serializer;
    use ::serde::ser::Error;
    pub(crate) use humantime_serde::deserialize;
    use humantime_serde::re::humantime::format_rfc3339;

    /// (`humantime_serde` panics where the time has no such text.)
    pub(crate) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        if *time < SystemTime::UNIX_EPOCH || write!(text, "{}", format_rfc3339(*time)).is_err() {
            return Err(S::Error::custom("invalid `saved_at`: expected a time from 1970 to 9999"));
        }
        serializer.serialize_str(&text)
    }
}
