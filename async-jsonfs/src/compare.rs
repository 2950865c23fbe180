//! Whether a change that was carried over into a document is there when the document is read again.

use std::ops::Range;

use crate::document::{array, object, root};

/// A value: a text and its place in it.
type Part<'a> = (&'a [u8], Range<usize>);

/// How far two readings of one number may be apart: serde_json reads fractions to within a unit in the last place, and the last place
/// of an `f32` is here.
const ROUNDING: f64 = 1e-6;

/// Whether what is printed `again`, after it was read back, is `after` wherever that differs from `before`. (What did not
/// change may read otherwise each time: a default that is the time of day.)
pub(crate) fn is_carried(before: &[u8], after: &[u8], again: &[u8]) -> bool {
    after == again || carried((before, root(before)), (after, root(after)), (again, root(again)))
}

fn text<'a>(part: &Part<'a>) -> &'a [u8] {
    &part.0[part.1.clone()]
}

fn carried(before: Part<'_>, after: Part<'_>, again: Part<'_>) -> bool {
    if text(&before) == text(&after) {
        return true;
    }
    let (Some(then), Some(now), Some(back)) =
        (object(before.0, &before.1), object(after.0, &after.1), object(again.0, &again.1))
    else {
        return same(&after, &again);
    };
    let known = |key: &str| now.get(key).is_some();
    back.members.iter().all(|member| known(&member.key))
        && now.members.iter().all(|member| {
            let Some(last) = now.get(&member.key) else { return false };
            let Some(found) = back.get(&member.key) else { return false };
            let (is, found) = ((after.0, last.value.clone()), (again.0, found.value.clone()));
            match then.get(&member.key) {
                Some(was) => carried((before.0, was.value.clone()), is, found),
                None => same(&is, &found),
            }
        })
}

/// Whether two texts stand for one value. The order of members does not count, nor that of elements where they are otherwise the
/// same: a set prints in any order.
fn same(a: &Part<'_>, b: &Part<'_>) -> bool {
    if text(a) == text(b) {
        return true;
    }
    if let (Some(left), Some(right)) = (object(a.0, &a.1), object(b.0, &b.1)) {
        return right.members.iter().all(|member| left.get(&member.key).is_some())
            && left.members.iter().all(|member| {
                let (one, other) = (left.get(&member.key), right.get(&member.key));
                one.zip(other)
                    .is_some_and(|(one, other)| same(&(a.0, one.value.clone()), &(b.0, other.value.clone())))
            });
    }
    if let (Some(left), Some(right)) = (array(a.0, &a.1), array(b.0, &b.1)) {
        let equal =
            |(one, other): (&Range<usize>, &Range<usize>)| same(&(a.0, one.clone()), &(b.0, other.clone()));
        return left.len() == right.len()
            && (left.iter().zip(&right).all(equal) || canonical(a) == canonical(b));
    }
    match (number(text(a)), number(text(b))) {
        (Some(a), Some(b)) => (a - b).abs() <= ROUNDING * a.abs(),
        _ => false,
    }
}

/// A number that may have been rounded: one with a fraction or an exponent.
fn number(text: &[u8]) -> Option<f64> {
    text.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E')).then_some(())?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The value with everything in it in one order, whatever that is.
fn canonical(part: &Part<'_>) -> Vec<u8> {
    let sorted = |mut parts: Vec<Vec<u8>>| {
        parts.sort_unstable();
        parts.join(&b',')
    };
    if let Some(object) = object(part.0, &part.1) {
        let member = |member: &crate::document::Member<'_>| {
            [member.key.as_bytes(), b":", &canonical(&(part.0, member.value.clone()))].concat()
        };
        return [b"{", &*sorted(object.members.iter().map(member).collect()), b"}"].concat();
    }
    match array(part.0, &part.1) {
        Some(elements) => {
            let elements = elements.into_iter().map(|element| canonical(&(part.0, element))).collect();
            [b"[", &*sorted(elements), b"]"].concat()
        }
        None => text(part).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::is_carried;

    #[test]
    fn what_has_changed_must_be_there_and_nothing_that_was_not() {
        let cases = [
            (r#"{"a":1}"#, r#"{"a":2}"#, r#"{ "a": 2 }"#, true),
            (r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":1}"#, false),
            // Gone, new, and another variant.
            (r#"{"a":1}"#, r"{}", r#"{"a":1}"#, false),
            (r"{}", r#"{"a":1}"#, r"{}", false),
            (r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":2,"b":1}"#, false),
            // What did not change may read as it likes.
            (r#"{"now":1,"a":1}"#, r#"{"now":1,"a":2}"#, r#"{"now":7,"a":2}"#, true),
            (r#"{"s":{"now":1},"a":1}"#, r#"{"s":{"now":1},"a":2}"#, r#"{"s":{},"a":2}"#, true),
            // Sets and maps in any order, fractions rounded.
            ("[1]", r#"["a",{"b":1,"c":2}]"#, r#"[{"c":2,"b":1},"a"]"#, true),
            ("[1]", "[1,2]", "[2,2]", false),
            ("0", "0.30000000000000004", "0.3", true),
            ("0", "0.30000000000000004", "0.31", false),
            ("0", "10000001", "10000002", false),
            // Printed twice, the last counts.
            (r#"{"a":1}"#, r#"{"a":2,"a":3}"#, r#"{"a":3}"#, true),
        ];
        for (before, after, again, carried) in cases {
            let is = is_carried(before.as_bytes(), after.as_bytes(), again.as_bytes());
            assert_eq!(is, carried, "{before}, {after}, {again}");
        }
    }
}
