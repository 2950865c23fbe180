//! What goes in comes out, whatever it is and however it is laid out.

use std::collections::BTreeMap;
use std::fs;

use async_jsonfs::{Durability, Format, JsonFile, Store};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Typed {
    name: String,
    count: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    more: BTreeMap<String, Vec<i32>>,
}

fn typed() -> impl Strategy<Value = Typed> {
    let more = prop::collection::btree_map(any::<String>(), prop::collection::vec(any::<i32>(), 0..3), 0..3);
    (any::<String>(), any::<Option<u64>>(), more).prop_map(|(name, count, more)| Typed { name, count, more })
}

fn format() -> impl Strategy<Value = Format> {
    prop_oneof![Just(Format::Pretty), Just(Format::Compact)]
}

fn run<F: Future>(test: impl FnOnce(JsonFile) -> F) -> F::Output {
    let dir = TempDir::new().unwrap();
    let file = JsonFile::new(dir.path().join("a.json")).with_durability(Durability::Visible);
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test(file))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn saved_and_loaded(value in value(), format in format()) {
        let back = run(async |file| {
            let file = file.with_format(format);
            file.save(value.clone()).await.unwrap();
            file.load::<Value>().await.unwrap()
        });
        prop_assert_eq!(back, value);
    }

    /// Beside members that the type does not know, and in another layout than ours.
    #[test]
    fn updated_and_loaded(first in typed(), then in typed(), unknown in value(), formats in (format(), format())) {
        let (back, document) = run(async |file| {
            let mut document = serde_json::to_value(&first).unwrap();
            document.as_object_mut().unwrap().insert("unknown".to_owned(), unknown.clone());
            file.clone().with_format(formats.0).save(document).await.unwrap();
            let (file, then) = (file.with_format(formats.1), then.clone());
            file.update(move |value: &mut Typed| *value = then).await.unwrap();
            (file.load::<Typed>().await.unwrap(), file.load::<Value>().await.unwrap())
        });
        prop_assert_eq!(back, then);
        prop_assert_eq!(&document["unknown"], &unknown);
    }

    #[test]
    fn a_store_and_its_file_are_one(states in prop::collection::vec(typed(), 1..6), format in format()) {
        run(async |file| {
            let file = file.with_format(format);
            file.save(states[0].clone()).await.unwrap();
            let store = Store::<Typed>::open(file.clone()).await.unwrap();
            for state in states {
                let next = state.clone();
                store.update(move |now| *now = next).await.unwrap();
                assert_eq!(*store.snapshot(), state);
                assert_eq!(serde_json::from_slice::<Typed>(&fs::read(file.path()).unwrap()).unwrap(), state);
            }
        });
    }
}
