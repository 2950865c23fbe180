use proptest::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{merge_patch, three_way};

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        // Few and awkward, so that they meet.
        "[ab\"\\\\{},:\n é]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[abc\"/]{1,2}", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// RFC 7396, section 2, word for word.
fn merge_model(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut target = if let Value::Object(target) = target { target } else { Map::new() };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            let was = target.remove(key).unwrap_or(Value::Null);
            target.insert(key.clone(), merge_model(was, value));
        }
    }
    Value::Object(target)
}

fn three_way_model(raw: &Value, before: &Value, after: &Value) -> Value {
    if before == after {
        return raw.clone();
    }
    let (Value::Object(raw), Value::Object(before), Value::Object(after)) = (raw, before, after) else {
        return after.clone();
    };
    let mut result = raw.clone();
    for (key, now) in after {
        match (raw.get(key), before.get(key)) {
            (_, Some(was)) if was == now => {}
            (Some(raw), Some(was)) => drop(result.insert(key.clone(), three_way_model(raw, was, now))),
            _ => drop(result.insert(key.clone(), now.clone())),
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        result.remove(key);
    }
    Value::Object(result)
}

/// One document in several hands.
fn printed(value: &Value, style: u8) -> String {
    match style % 4 {
        0 => value.to_string(),
        1 => serde_json::to_string_pretty(value).unwrap(),
        2 => {
            let mut out = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).unwrap();
            String::from_utf8(out).unwrap().replace('\n', "\r\n")
        }
        _ => format!(" {}\n", serde_json::to_string_pretty(value).unwrap().replace('\n', "  ")),
    }
}

fn read(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(text)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_merge_is_that_of_the_rfc(target in value(), patch in value(), style in 0_u8..4) {
        let text = printed(&target, style);
        let merged = merge_patch(text.as_bytes(), patch.to_string().as_bytes());
        let got = merged.as_deref().map_or_else(|| target.clone(), read);
        prop_assert_eq!(got, merge_model(target, &patch));
    }

    #[test]
    fn a_three_way_merge_is_that_of_the_model(
        raw in value(), before in value(), after in value(), style in 0_u8..4,
    ) {
        let text = printed(&raw, style);
        let merged = three_way(text.as_bytes(), before.to_string().as_bytes(), after.to_string().as_bytes());
        let got = merged.as_deref().map_or_else(|| raw.clone(), read);
        prop_assert_eq!(got, three_way_model(&raw, &before, &after));
    }

    #[test]
    fn carried_over_to_the_same_document_it_is_the_new_one(raw in value(), after in value(), style in 0_u8..4) {
        let text = printed(&raw, style);
        let merged = three_way(text.as_bytes(), raw.to_string().as_bytes(), after.to_string().as_bytes());
        let got = merged.as_deref().map_or_else(|| raw.clone(), read);
        prop_assert_eq!(got, after);
    }

    #[test]
    fn text_that_is_not_json_does_no_harm(raw in "[\\[\\]{}\",:a1\\\\ \n]{0,24}", patch in value()) {
        let _ = merge_patch(raw.as_bytes(), patch.to_string().as_bytes());
        let _ = three_way(raw.as_bytes(), b"{\"a\":1}", patch.to_string().as_bytes());
    }
}

#[test]
fn text_that_ends_within_a_key_or_after_it_does_no_harm() {
    for raw in ["{\"a", "{\"a\"", "{\"a\":", "{\"a\\", "{\"a\":1,\"a"] {
        for patch in ["{\"a\":2}", "{\"a\":{\"b\":2}}", "{\"a\":null}", "[]"] {
            let _ = merge_patch(raw.as_bytes(), patch.as_bytes());
            let _ = three_way(raw.as_bytes(), b"{\"a\":1}", patch.as_bytes());
        }
    }
}
