//! What a file will hold after a change, with what the change is not about kept.

use serde::de::{DeserializeOwned, IgnoredAny};

use crate::error::{ErrorKind, Fault};
use crate::merge::{merge_patch, three_way};
use crate::options::Options;
use crate::parse::{parse, without_bom};

/// The file's content with the change from `before` to `after` (a `T` printed) carried over.
pub(crate) fn carry_over<T: DeserializeOwned>(
    raw: &[u8],
    before: &[u8],
    after: Vec<u8>,
    options: &Options,
) -> Result<Vec<u8>, Fault> {
    if before == after {
        return Ok(raw.to_vec());
    }
    // The file is `T` and nothing else, laid out as we do: the common case.
    let bytes = if options.rewrite || raw == before {
        after
    } else {
        match three_way(without_bom(raw), before, &after) {
            Some(text) => with_bom_of(raw, text),
            // A map that prints in another order has not changed.
            None if sorted(before) == sorted(&after) => return Ok(raw.to_vec()),
            None => {
                let why = "it is about a key that the file spells otherwise or does not have".to_owned();
                return Err(ErrorKind::Unmergeable(why).into());
            }
        }
    };
    // A number that is none (NaN prints as null), a key under an alias, an unknown key that no variant takes: better said than
    // written.
    match parse::<T>(&bytes, options) {
        Ok(_) => Ok(bytes),
        Err(fault) => Err(ErrorKind::Unmergeable(match fault.kind {
            ErrorKind::Syntax(location) | ErrorKind::Mismatch(location) => {
                format!("{}: {}", location.pointer, location.message)
            }
            kind => return Err(kind.into()),
        })
        .into()),
    }
}

fn sorted(text: &[u8]) -> Vec<u8> {
    let mut bytes = text.to_vec();
    bytes.sort_unstable();
    bytes
}

/// The file's content with a patch of RFC 7396 merged in.
pub(crate) fn merge(raw: &[u8], patch: &[u8], options: &Options) -> Result<Vec<u8>, Fault> {
    parse::<IgnoredAny>(raw, options)?;
    Ok(match merge_patch(without_bom(raw), patch) {
        None => raw.to_vec(),
        Some(text) => with_bom_of(raw, text),
    })
}

/// The file's content with a patch of RFC 6902 applied.
#[cfg(feature = "patch")]
pub(crate) fn patch(raw: &[u8], patch: &json_patch::Patch, options: &Options) -> Result<Vec<u8>, Fault> {
    use crate::options::Format;
    use crate::parse::print;

    let mut value: serde_json::Value = parse(raw, options)?;
    let before = print(&value, Format::Compact)?;
    json_patch::patch(&mut value, patch).map_err(|error| Fault::from(ErrorKind::Patch(error.to_string())))?;
    let after = print(&value, Format::Compact)?;
    Ok(match three_way(without_bom(raw), &before, &after) {
        None => raw.to_vec(),
        Some(text) => with_bom_of(raw, text),
    })
}

fn with_bom_of(raw: &[u8], text: Vec<u8>) -> Vec<u8> {
    let mark = &raw[..raw.len() - without_bom(raw).len()];
    if mark.is_empty() { text } else { [mark, &text].concat() }
}
