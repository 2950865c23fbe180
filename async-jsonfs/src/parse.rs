//! Bytes into values. The success path parses plainly; where something is wrong is worked out only after an error.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::error::{ErrorKind, Fault};
use crate::finite;
use crate::limits::{self, READABLE};
use crate::locate;
use crate::options::{Format, Options};

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// The text without its byte order mark.
pub(crate) fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BOM).unwrap_or(bytes)
}

pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], options: &Options) -> Result<T, Fault> {
    // Checked at once it is cheaper than string by string, and what `T` skips is checked too.
    let Ok(text) = std::str::from_utf8(without_bom(bytes)) else {
        return Err(ErrorKind::Encoding(locate::foreign_encoding(bytes).unwrap_or("not UTF-8")).into());
    };
    limits::check(text, bytes.len() - text.len(), options)?;
    // Where sonic-rs says no, serde_json has the last word, and the words.
    #[cfg(feature = "sonic")]
    if sonic::can_take(text)
        && let Ok(value) = sonic_rs::from_str(text)
    {
        return Ok(value);
    }
    serde_json::from_str(text).map_err(|error| explain(bytes, &error))
}

#[cfg(feature = "sonic")]
mod sonic;

#[cold]
fn explain(bytes: &[u8], error: &serde_json::Error) -> Fault {
    if let Some(name) = locate::foreign_encoding(bytes) {
        return ErrorKind::Encoding(name).into();
    }
    let text = without_bom(bytes);
    if text.trim_ascii().is_empty() {
        let message = "the file is empty, expected a JSON value".to_owned();
        return ErrorKind::Syntax(locate::location(text, text.len(), bytes.len() - text.len(), message))
            .into();
    }
    let mut message = error.to_string();
    // The position is told apart.
    if let Some(at) = message.rfind(" at line ") {
        message.truncate(at);
    }
    let mut offset = locate::offset_of(text, error.line(), error.column());
    if error.is_eof() {
        offset = text.len();
    }
    let too_deep = message == "recursion limit exceeded";
    if too_deep {
        message = format!("nested deeper than {READABLE} levels");
    }
    let location = locate::location(text, offset, bytes.len() - text.len(), message);
    if too_deep {
        return ErrorKind::TooDeep(location).into();
    }
    match error.classify() {
        // JSON it is, and no type of Rust's can hold it.
        _ if location.message == "number out of range" => ErrorKind::Mismatch(location).into(),
        Category::Data => ErrorKind::Mismatch(location).into(),
        _ => ErrorKind::Syntax(location).into(),
    }
}

/// The value as JSON: what every writer writes. NaN and the infinities are refused: serde_json has `null` for them, which would
/// read back as `None`, or not at all.
pub(crate) fn print<T: Serialize + ?Sized>(value: &T, format: Format) -> Result<Vec<u8>, Fault> {
    let printed = match format {
        Format::Compact => serde_json::to_vec(value),
        Format::Pretty => serde_json::to_vec_pretty(value).map(|mut bytes| {
            bytes.push(b'\n');
            bytes
        }),
    };
    // The second look only where there is a `null`.
    let checked = printed.and_then(|bytes| {
        if bytes.windows(4).any(|text| text == b"null") {
            finite::check(value)?;
        }
        Ok(bytes)
    });
    checked.map_err(|error| ErrorKind::Serialize(locate::cut(error.to_string())).into())
}
