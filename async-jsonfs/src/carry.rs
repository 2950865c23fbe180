//! What a file will hold after a change, with what the change is not about kept.

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::compare::is_carried;
use crate::document::root;
use crate::error::{ErrorKind, Fault, Location};
use crate::limits;
use crate::merge::{merge_patch, three_way, without_nulls};
use crate::options::{Format, Options};
use crate::panics::let_go;
use crate::parse::{parse, print, without_bom};

/// The file's content with the change from `before` to `after` (a `T` printed) carried over; `None`: it is `after`.
///
/// What comes out is read back, so that nothing is told done that is not in the file: a key under an
/// alias, a field that is written and not read, an unknown key that makes another variant match.
pub(crate) fn carry_over<T: Serialize + DeserializeOwned>(
    raw: &[u8],
    before: &[u8],
    after: &[u8],
    options: &Options,
) -> Result<Option<Vec<u8>>, Fault> {
    if before == after {
        return Ok(Some(raw.to_vec()));
    }
    // The file is `T` and nothing else, laid out as we do: the common case.
    if options.rewrite || raw == before {
        let_go(read_back::<T>(after, options, "")?);
        return Ok(None);
    }
    let bytes = three_way(without_bom(raw), before, after)
        .map_or_else(|| raw.to_vec(), |text| with_bom_of(raw, text));
    let back = read_back::<T>(&bytes, options, INSTEAD)?;
    let again = print(&back, options.format);
    let_go(back);
    if !is_carried(before, after, &again?) {
        let why = format!("read back, it would be something else{INSTEAD}");
        return Err(ErrorKind::Unmergeable(why).into());
    }
    Ok(Some(bytes))
}

/// What can be done about it where the rest of the file is in the way.
const INSTEAD: &str = " (`JsonFile::with_rewrite` writes the value and nothing else)";

fn read_back<T: DeserializeOwned>(bytes: &[u8], options: &Options, hint: &str) -> Result<T, Fault> {
    parse(bytes, options).map_err(|fault| match fault.kind {
        ErrorKind::Syntax(location) | ErrorKind::Mismatch(location) => {
            let Location { pointer, message, .. } = location;
            let place = if pointer.is_empty() { "at the top level" } else { &pointer };
            ErrorKind::Unmergeable(format!("{place}: {message}{hint}")).into()
        }
        kind => kind.into(),
    })
}

/// What a file will be that is not there, with a patch of RFC 7396.
pub(crate) fn merge_alone(patch: &[u8], options: &Options) -> Result<Vec<u8>, Fault> {
    match options.format {
        Format::Pretty => merge(b"{}\n", patch, options),
        Format::Compact => Ok(without_nulls(patch, &root(patch))),
    }
}

/// The file's content with a patch of RFC 7396 merged in.
pub(crate) fn merge(raw: &[u8], patch: &[u8], options: &Options) -> Result<Vec<u8>, Fault> {
    parse::<IgnoredAny>(raw, options)?;
    let bytes =
        merge_patch(without_bom(raw), patch).map_or_else(|| raw.to_vec(), |text| with_bom_of(raw, text));
    limits::no_deeper(&bytes, raw)?;
    Ok(bytes)
}

pub(crate) fn with_bom_of(raw: &[u8], text: Vec<u8>) -> Vec<u8> {
    let mark = &raw[..raw.len() - without_bom(raw).len()];
    if mark.is_empty() { text } else { [mark, &text].concat() }
}
