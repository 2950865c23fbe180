//! RFC 6902, by the json-patch crate, on a document whose numbers keep their text.
//!
//! A `Value` would round them. So those that it might print otherwise go through as strings, marked by a text that is in no file.

use json_patch::{Patch, PatchErrorKind, PatchOperation};
use serde::de::IgnoredAny;
use serde_json::{Number, Value};

use crate::carry::with_bom_of;
use crate::error::{ErrorKind, Fault};
use crate::limits;
use crate::locate::{cut, string_end};
use crate::merge::three_way;
use crate::options::{Format, Options};
use crate::parse::{parse, print, without_bom};

/// The file's content with the patch applied.
pub(crate) fn patch(raw: &[u8], patch: &Patch, options: &Options) -> Result<Vec<u8>, Fault> {
    parse::<IgnoredAny>(raw, options)?;
    let mark = format!("number-{:032x}:", fastrand::u128(..));
    let text = without_bom(raw);
    let mut value: Value = match serde_json::from_slice(&lifted(text, &mark)) {
        Ok(value) => value,
        // Said of the file, not of what we have made of it: deeper than a `Value` goes, half a surrogate pair.
        Err(error) => match parse::<Value>(raw, options) {
            Ok(value) => value,
            Err(fault) if matches!(fault.kind, ErrorKind::Mismatch(_)) => {
                return Err(ErrorKind::Patch(error.to_string()).into());
            }
            Err(fault) => return Err(fault),
        },
    };
    let before = lowered(&print(&value, Format::Compact)?, &mark);
    for (n, operation) in patch.iter().enumerate() {
        apply(&mut value, operation, &mark)
            .map_err(|why| ErrorKind::Patch(cut(format!("operation {n}, {operation}: {why}"))))?;
    }
    let after = lowered(&print(&value, Format::Compact)?, &mark);
    let bytes = three_way(text, &before, &after).map_or_else(|| raw.to_vec(), |text| with_bom_of(raw, text));
    limits::no_deeper(&bytes, raw)?;
    Ok(bytes)
}

fn apply(value: &mut Value, operation: &PatchOperation, mark: &str) -> Result<(), PatchErrorKind> {
    if let PatchOperation::Test(test) = operation {
        let found = test.path.resolve(value).map_err(|_| PatchErrorKind::InvalidPointer)?;
        return if equal(found, &test.value, mark) { Ok(()) } else { Err(PatchErrorKind::TestFailed) };
    }
    json_patch::patch(value, std::slice::from_ref(operation)).map_err(|error| error.kind)
}

/// Equal in the sense of RFC 6902, section 4.6: numbers by what they stand for.
fn equal(found: &Value, wanted: &Value, mark: &str) -> bool {
    match (found, wanted) {
        (Value::String(text), Value::Number(wanted)) => text
            .strip_prefix(mark)
            .and_then(|text| serde_json::from_str(text).ok())
            .is_some_and(|found| equal_numbers(&found, wanted)),
        (Value::Number(found), Value::Number(wanted)) => equal_numbers(found, wanted),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| equal(a, b, mark))
        }
        (Value::Object(found), Value::Object(wanted)) => {
            found.len() == wanted.len()
                && found.iter().all(|(key, a)| wanted.get(key).is_some_and(|b| equal(a, b, mark)))
        }
        _ => found == wanted,
    }
}

fn equal_numbers(a: &Number, b: &Number) -> bool {
    a == b || ((a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64())
}

/// As many digits as any integer type of a `Value` holds.
const PLAIN_DIGITS: usize = 15;

fn lifted(text: &[u8], mark: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let mut end = at + 1;
        match byte {
            b'"' => {
                end = string_end(text, at);
                out.extend(&text[at..end]);
            }
            b'-' | b'0'..=b'9' => {
                let of_number = |b: &&u8| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                end = at + text[at..].iter().take_while(of_number).count();
                let number = &text[at..end];
                let digits = number.strip_prefix(b"-").unwrap_or(number);
                let plain = digits.len() <= PLAIN_DIGITS && digits.iter().all(u8::is_ascii_digit);
                if plain && number != b"-0" {
                    out.extend(number);
                } else {
                    out.push(b'"');
                    out.extend(mark.bytes());
                    out.extend(number);
                    out.push(b'"');
                }
            }
            _ => out.push(byte),
        }
        at = end;
    }
    out
}

fn lowered(text: &[u8], mark: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let end = if byte == b'"' { string_end(text, at) } else { at + 1 };
        let token = &text[at..end];
        let marked = token.strip_prefix(b"\"").and_then(|token| token.strip_prefix(mark.as_bytes()));
        match marked.and_then(|token| token.strip_suffix(b"\"")) {
            Some(number) => out.extend(number),
            None => out.extend(token),
        }
        at = end;
    }
    out
}
