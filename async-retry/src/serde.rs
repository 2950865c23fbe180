//! Policies as configuration. What is written comes in as plain text first, so that every error names the field and the value.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use ::serde::de::Error as _;
use ::serde::ser::Error as _;
use ::serde::{Deserialize, Deserializer, Serialize, Serializer};
use async_policy::ConfigError;
use async_policy::written::Text;

use crate::backoff::{Curve, DEFAULT_BASE, Shape};
use crate::budget::Kind;
use crate::{AWS_CAPACITY, AWS_COST, AWS_TIMEOUT_COST, Backoff, Budget, Jitter, Retry};

/// The fields of a policy as they are written: each may be missing, and no other is known.
macro_rules! fields {
    ($name:ident as $called:literal, $expecting:literal; $($field:ident $(or $alias:literal)?: $type:ty),+) => {
        #[derive(Default, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default, rename = $called, expecting = $expecting)]
        struct $name {
            $(
                #[serde(skip_serializing_if = "Option::is_none" $(, alias = $alias)?)]
                $field: Option<$type>,
            )+
        }
    };
}

mod hedge;

type Field = Option<Text>;

fn text(value: impl fmt::Display) -> Field {
    Some(Text::new(value))
}

fn duration(field: &'static str, text: &Field) -> Result<Option<Duration>, ConfigError> {
    text.as_ref().map(|text| text.duration(field)).transpose()
}

fn parsed<T: FromStr>(
    field: &'static str,
    text: &Field,
    expected: &'static str,
) -> Result<Option<T>, ConfigError> {
    text.as_ref().map(|text| text.parse(field, expected)).transpose()
}

fn required<T>(field: &'static str, value: Option<T>, expected: &'static str) -> Result<T, ConfigError> {
    value.ok_or_else(|| ConfigError::new(field, "missing", expected))
}

/// A field that the chosen kind does not have.
fn unused(field: &'static str, text: &Field, expected: &'static str) -> Result<(), ConfigError> {
    text.as_ref().map_or(Ok(()), |text| Err(ConfigError::new(field, text.as_str(), expected)))
}

fields! {
    RawBackoff as "Backoff", "the fields of a backoff, such as {\"kind\": \"constant\"}";
    kind: Text, base or "delay": Text, step: Text, factor: Text, cap: Text, jitter: Text
}

const JITTERS: [(&str, Jitter); 4] = [
    ("none", Jitter::None),
    ("full", Jitter::Full),
    ("equal", Jitter::Equal),
    ("decorrelated", Jitter::Decorrelated),
];

impl RawBackoff {
    fn build(&self) -> Result<Backoff, ConfigError> {
        let kind = self.kind.as_ref().map_or("exponential", Text::as_str);
        let base = duration("backoff.base", &self.base)?.unwrap_or(DEFAULT_BASE);
        let step = duration("backoff.step", &self.step)?;
        let factor = parsed("backoff.factor", &self.factor, "a finite number of at least 1")?;
        if kind != "linear" {
            unused("backoff.step", &self.step, "only with kind \"linear\"")?;
        }
        if kind != "exponential" {
            unused("backoff.factor", &self.factor, "only with kind \"exponential\"")?;
        }
        let mut backoff = match kind {
            "none" => {
                unused("backoff.base", &self.base, "only with a delay")?;
                Backoff::none()
            }
            "constant" => Backoff::constant(base),
            "linear" => {
                Backoff::linear(base, required("backoff.step", step, "a duration such as \"250ms\"")?)
            }
            "exponential" => match factor {
                Some(factor) => Backoff::exponential(base).with_factor(factor),
                None => Backoff::exponential(base),
            },
            "fibonacci" => Backoff::fibonacci(base),
            "decorrelated" => Backoff::decorrelated(base),
            _ => {
                let expected = "none, constant, linear, exponential, fibonacci or decorrelated";
                return Err(ConfigError::new("backoff.kind", kind, expected));
            }
        };
        if let Some(cap) = duration("backoff.cap", &self.cap)? {
            backoff = backoff.with_cap(cap);
        }
        if let Some(name) = self.jitter.as_ref().map(Text::as_str) {
            let jitter = JITTERS.iter().find(|(known, _)| *known == name);
            let expected = "none, full, equal or decorrelated";
            let (_, jitter) = jitter.ok_or_else(|| ConfigError::new("backoff.jitter", name, expected))?;
            backoff = backoff.with_jitter(*jitter);
        }
        backoff.check()?;
        Ok(backoff)
    }

    fn of(backoff: &Shape) -> Result<Self, &'static str> {
        let (kind, step, factor) = match &backoff.curve {
            Curve::Constant => ("constant", None, None),
            Curve::Linear { step } => ("linear", Some(Text::of(step.get())), None),
            Curve::Exponential { factor } => ("exponential", None, text(factor)),
            Curve::Fibonacci => ("fibonacci", None, None),
            Curve::Custom => return Err("delays of your own cannot be written down"),
        };
        let jitter = JITTERS.iter().find(|(_, jitter)| *jitter == backoff.jitter);
        Ok(Self {
            kind: text(kind),
            base: Some(Text::of(backoff.base.get())),
            step,
            factor,
            cap: Some(Text::of(backoff.cap.get())),
            jitter: jitter.and_then(|(name, _)| text(name)),
        })
    }
}

fields! {
    RawBudget as "Budget", "the fields of a budget, such as {\"kind\": \"aws_standard\"}";
    kind: Text, capacity: Text, cost: Text, timeout_cost: Text, max_tokens: Text, token_ratio: Text,
    ratio: Text, floor: Text
}

impl RawBudget {
    fn build(&self) -> Result<Budget, ConfigError> {
        let kind = self.kind.as_ref().map_or("token_bucket", Text::as_str);
        let own: &[&str] = match kind {
            "aws_standard" => &[],
            "token_bucket" => &["budget.capacity", "budget.cost", "budget.timeout_cost"],
            "grpc_throttle" => &["budget.max_tokens", "budget.token_ratio"],
            "in_flight" => &["budget.ratio", "budget.floor"],
            _ => {
                let expected = "aws_standard, token_bucket, grpc_throttle or in_flight";
                return Err(ConfigError::new("budget.kind", kind, expected));
            }
        };
        for (field, text) in [
            ("budget.capacity", &self.capacity),
            ("budget.cost", &self.cost),
            ("budget.timeout_cost", &self.timeout_cost),
            ("budget.max_tokens", &self.max_tokens),
            ("budget.token_ratio", &self.token_ratio),
            ("budget.ratio", &self.ratio),
            ("budget.floor", &self.floor),
        ] {
            if !own.contains(&field) {
                unused(field, text, "only with another kind of budget")?;
            }
        }
        const WHOLE: &str = "a whole number";
        const POSITIVE: &str = "a whole number of at least 1";
        match kind {
            "aws_standard" | "token_bucket" => Ok(Budget::token_bucket(
                parsed("budget.capacity", &self.capacity, WHOLE)?.unwrap_or(AWS_CAPACITY),
                parsed("budget.cost", &self.cost, POSITIVE)?.unwrap_or(AWS_COST),
                parsed("budget.timeout_cost", &self.timeout_cost, POSITIVE)?.unwrap_or(AWS_TIMEOUT_COST),
            )),
            "grpc_throttle" => {
                let max_tokens = parsed("budget.max_tokens", &self.max_tokens, "1 to 1000")?;
                let token_ratio = parsed("budget.token_ratio", &self.token_ratio, "a number")?;
                Budget::grpc_throttle(
                    required("budget.max_tokens", max_tokens, "1 to 1000")?,
                    required("budget.token_ratio", token_ratio, "a number")?,
                )
            }
            _ => {
                let ratio = parsed("budget.ratio", &self.ratio, "0 to 1")?;
                let floor = parsed("budget.floor", &self.floor, WHOLE)?;
                Budget::in_flight(
                    required("budget.ratio", ratio, "0 to 1")?,
                    required("budget.floor", floor, WHOLE)?,
                )
            }
        }
    }

    fn of(budget: &Budget) -> Self {
        match budget.kind() {
            Kind::TokenBucket { capacity, cost, timeout_cost } => Self {
                kind: text("token_bucket"),
                capacity: text(capacity),
                cost: text(cost),
                timeout_cost: text(timeout_cost),
                ..Self::default()
            },
            Kind::Throttle { max, earn } => Self {
                kind: text("grpc_throttle"),
                max_tokens: text(max / 1000),
                token_ratio: text(f64::from(earn) / 1000.0),
                ..Self::default()
            },
            Kind::InFlight { ratio, floor } => {
                Self { kind: text("in_flight"), ratio: text(ratio), floor: text(floor), ..Self::default() }
            }
        }
    }
}

fields! {
    RawRetry as "Retry", "the fields of a retry, such as {\"max_attempts\": 5}";
    name: String, max_attempts: Text, max_elapsed: Text, attempt_timeout: Text, wait_for_refusals: Text,
    backoff: RawBackoff, budget: RawBudget
}

impl RawRetry {
    fn build(&self) -> Result<Retry, ConfigError> {
        let backoff = self.backoff.as_ref().map_or_else(|| Ok(Backoff::default()), RawBackoff::build)?;
        let mut retry = Retry::new(backoff)?;
        if self.max_attempts.as_ref().is_some_and(|text| text.as_str() == "unlimited") {
            retry = retry.with_unlimited_attempts();
        } else {
            let expected = "a whole number of at least 1, or \"unlimited\"";
            if let Some(max) = parsed::<NonZeroU32>("max_attempts", &self.max_attempts, expected)? {
                retry = retry.with_max_attempts(max);
            }
        }
        if let Some(limit) = duration("max_elapsed", &self.max_elapsed)? {
            retry = retry.with_max_elapsed(limit);
        }
        if let Some(limit) = duration("attempt_timeout", &self.attempt_timeout)? {
            if limit.is_zero() {
                return Err(ConfigError::new("attempt_timeout", format!("{limit:?}"), "longer than zero"));
            }
            retry = retry.with_attempt_timeout(limit);
        }
        if let Some(wait) = parsed("wait_for_refusals", &self.wait_for_refusals, "true or false")? {
            retry = retry.with_wait_for_refusals(wait);
        }
        if let Some(budget) = &self.budget {
            retry = retry.with_budget(budget.build()?);
        }
        if let Some(name) = &self.name {
            retry = retry.with_name(&**name);
        }
        Ok(retry)
    }

    fn of(retry: &Retry) -> Result<Self, &'static str> {
        Ok(Self {
            name: retry.name().map(ToString::to_string),
            max_attempts: match retry.limits.max_attempts {
                Some(max) => text(max),
                None => text("unlimited"),
            },
            max_elapsed: retry.more().max_elapsed.map(Text::of),
            attempt_timeout: retry.attempt_timeout().map(Text::of),
            wait_for_refusals: text(retry.limits.wait_for_refusals),
            backoff: Some(RawBackoff::of(&retry.limits.backoff)?),
            budget: retry.more().budget.as_ref().map(RawBudget::of),
        })
    }
}

/// `{"kind": "exponential", "base": "100ms", "factor": 2, "cap": "20s", "jitter": "full"}`; what is missing is the default. Kinds: none,
/// constant, linear (with a `step`), exponential, fibonacci, decorrelated.
impl<'de> Deserialize<'de> for Backoff {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RawBackoff::deserialize(deserializer)?.build().map_err(D::Error::custom)
    }
}

/// Fails for delays of your own.
impl Serialize for Backoff {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawBackoff::of(&self.shape).map_err(S::Error::custom)?.serialize(serializer)
    }
}

/// `{"kind": "aws_standard"}`, `{"kind": "token_bucket", "capacity": 500, "cost": 5, "timeout_cost": 10}`, `{"kind": "grpc_throttle", "max_tokens": 10, "token_ratio":
/// 0.1}` or `{"kind": "in_flight", "ratio": 0.2, "floor": 3}`. Each one that is read is a budget of its own: clone it to share it.
impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RawBudget::deserialize(deserializer)?.build().map_err(D::Error::custom)
    }
}

/// The configuration, not what is left.
impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawBudget::of(self).serialize(serializer)
    }
}

/// `{"max_attempts": 5, "max_elapsed": "45s", "attempt_timeout": "2s", "backoff": {…}, "budget": {…}, "name": "quotes"}`; what is missing is
/// the default. `"max_attempts": "unlimited"` is possible.
impl<'de> Deserialize<'de> for Retry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RawRetry::deserialize(deserializer)?.build().map_err(D::Error::custom)
    }
}

/// Without listener and seed. Fails for delays of your own.
impl Serialize for Retry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawRetry::of(self).map_err(S::Error::custom)?.serialize(serializer)
    }
}
