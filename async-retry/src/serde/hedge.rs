use std::num::NonZeroU32;

use ::serde::de::Error as _;
use ::serde::{Deserialize, Deserializer, Serialize, Serializer};
use async_policy::ConfigError;
use async_policy::written::Text;

use super::{RawBudget, duration, parsed, required, text, unused};
use crate::Hedge;
use crate::hedge::Delay;

fields! {
    RawHedge as "Hedge", "the fields of a hedge, such as {\"delay\": \"50ms\"}";
    name: String, delay or "after": Text, percentile: Text, initial: Text, max_extra: Text, budget: RawBudget
}

impl RawHedge {
    fn build(&self) -> Result<Hedge, ConfigError> {
        const PERIOD: &str = "a duration such as \"250ms\"";
        let delay = duration("hedge.delay", &self.delay)?;
        let initial = duration("hedge.initial", &self.initial)?;
        let mut hedge = match parsed("hedge.percentile", &self.percentile, "a number above 0 and below 1")? {
            None => {
                unused("hedge.initial", &self.initial, "only with a percentile")?;
                Hedge::after(required("hedge.delay", delay, PERIOD)?)
            }
            Some(percentile) => {
                unused("hedge.delay", &self.delay, "only without a percentile")?;
                Hedge::at_percentile(percentile, required("hedge.initial", initial, PERIOD)?)?
            }
        };
        let expected = "a whole number of at least 1";
        if let Some(extra) = parsed::<NonZeroU32>("hedge.max_extra", &self.max_extra, expected)? {
            hedge = hedge.with_max_extra(extra);
        }
        if let Some(budget) = &self.budget {
            hedge = hedge.with_budget(budget.build()?);
        }
        if let Some(name) = &self.name {
            hedge = hedge.with_name(&**name);
        }
        Ok(hedge)
    }

    fn of(hedge: &Hedge) -> Self {
        let raw = Self {
            name: hedge.config.watch.name.as_ref().map(ToString::to_string),
            max_extra: text(hedge.max_extra()),
            budget: hedge.budget().map(RawBudget::of),
            ..Self::default()
        };
        match &hedge.config.delay {
            Delay::Fixed(delay) => Self { delay: Some(Text::of(*delay)), ..raw },
            Delay::Tracked(latencies) => Self {
                percentile: text(latencies.percentile()),
                initial: Some(Text::of(latencies.initial())),
                ..raw
            },
        }
    }
}

/// `{"delay": "50ms", "max_extra": 1, "budget": {…}, "name": "quotes"}`, or `{"percentile": 0.95, "initial": "50ms", …}`; what is missing is
/// the default.
impl<'de> Deserialize<'de> for Hedge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RawHedge::deserialize(deserializer)?.build().map_err(D::Error::custom)
    }
}

/// The configuration, without the listener and without the latencies it has seen.
impl Serialize for Hedge {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawHedge::of(self).serialize(serializer)
    }
}
