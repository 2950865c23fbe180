//! What sonic-rs does not check, or checks otherwise than serde_json.

/// serde_json refuses from 128 on; sonic-rs goes on to 254, and where it only skips, until the stack overflows. In a debug build each
/// level it skips takes some 17 KB of stack, so 128 of them overflow that of a thread.
const TOO_DEEP: usize = 32;

/// Whether sonic-rs can be trusted with this text: it is not too deep, and its escapes are well-formed (sonic-rs skips what
/// a type ignores without a look at them). Of text that is not JSON it may say either.
pub(super) fn can_take(text: &str) -> bool {
    let text = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => loop {
                let Some(rest) = text.get(at..) else { return false };
                let Some(plain) = rest.iter().position(|&b| b == b'"' || b == b'\\') else { return false };
                at += plain + 1;
                if text[at - 1] == b'"' {
                    break;
                }
                at += match &text[at..] {
                    [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 1,
                    [b'u', hex @ ..] if hex.len() >= 4 && hex[..4].iter().all(u8::is_ascii_hexdigit) => 5,
                    _ => return false,
                };
            },
            b'[' | b'{' => {
                depth += 1;
                if depth >= TOO_DEEP {
                    return false;
                }
            }
            // To sonic-rs that is 0, to serde_json -0.0.
            b'-' if text.get(at) == Some(&b'0') && !matches!(text.get(at + 1), Some(b'.' | b'e' | b'E')) => {
                return false;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;
    use serde::de::{DeserializeOwned, IgnoredAny};
    use serde_json::Value;

    use crate::options::Options;
    use crate::parse::parse;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Typed {
        a: Option<i64>,
        b: Option<String>,
        c: Option<Vec<u8>>,
        d: BTreeMap<String, IgnoredAny>,
    }

    /// The same verdict, and the same value where it has no fractions: serde_json rounds those less exactly.
    fn same<T: DeserializeOwned + std::fmt::Debug>(text: &str) {
        let ours = parse::<T>(text.as_bytes(), &Options::default());
        match (serde_json::from_str::<T>(text), ours) {
            (Ok(theirs), Ok(ours)) if !text.contains(['.', 'e', 'E']) && text.len() < 400 => {
                assert_eq!(format!("{theirs:?}"), format!("{ours:?}"), "{text}");
            }
            (theirs, ours) => assert_eq!(theirs.is_ok(), ours.is_ok(), "{text}: {theirs:?}, {ours:?}"),
        }
    }

    const SEEDS: [&str; 4] = [
        r#"{"a": -12, "b": "x\u00e9\ud83d\ude00\n", "c": [1, 255], "d": {"k": "\\\"", "l": [null, {}]}}"#,
        r#"{"a": null, "z": {"q": ["\"", -0, 18446744073709551616, true]}, "b": null, "d": {}}"#,
        r#"[1, [2, ["\\", false]], {}, "\t", 0.5e-3]"#,
        r#"{"d": {"a": {"a": "\/\b\f"}}, "c": []}"#,
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn it_says_what_serde_json_says(
            seed in 0..SEEDS.len(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), "[{}\\[\\]\",:\\\\ueE0-9.+trfalsn \n\u{1}\u{e9}]?", 0_usize..4), 0..5),
        ) {
            let mut text: Vec<char> = SEEDS[seed].chars().collect();
            for (at, with, without) in edits {
                let at = at.index(text.len() + 1);
                let end = (at + without).min(text.len());
                text.splice(at..end, with.chars());
            }
            let text: String = text.into_iter().collect();
            same::<Value>(&text);
            same::<Typed>(&text);
            same::<BTreeMap<String, IgnoredAny>>(&text);
        }
    }
}
