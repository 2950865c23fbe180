//! What a file may be like beyond being JSON. Nothing is scanned where nothing was asked for.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::document;
use crate::error::{ErrorKind, Fault, Location};
use crate::locate::{self, string_end};
use crate::options::{DuplicateKeys, Options};
use crate::parse::without_bom;

enum Broken {
    Depth(usize),
    Entries(usize),
    Duplicate(String),
}

/// Refuses to write what would then be refused to be read.
pub(crate) fn check_written(bytes: &[u8], options: &Options) -> Result<(), Fault> {
    let (limit, found) = (options.max_bytes, bytes.len() as u64);
    if found > limit {
        return Err(ErrorKind::TooLarge { limit, found }.into());
    }
    match std::str::from_utf8(without_bom(bytes)) {
        Ok(text) => check(text, bytes.len() - text.len(), options),
        Err(_) => Ok(()),
    }
}

/// Refuses text that is beyond the limits. Text that is not JSON may pass: the parser comes next.
pub(crate) fn check(text: &str, skipped: usize, options: &Options) -> Result<(), Fault> {
    if options.max_depth.is_none()
        && options.max_entries.is_none()
        && options.duplicate_keys == DuplicateKeys::ByType
    {
        return Ok(());
    }
    let text = text.as_bytes();
    scan(text, options).map_err(|(offset, broken)| {
        let at = |message| -> Location { locate::location(text, offset, skipped, message) };
        match broken {
            Broken::Depth(limit) => ErrorKind::TooDeep(at(format!("nested deeper than {limit} levels"))),
            Broken::Entries(limit) => ErrorKind::TooManyEntries(at(format!("more than {limit} entries"))),
            Broken::Duplicate(key) => ErrorKind::DuplicateKey(at(format!("the key `{key}` is there twice"))),
        }
        .into()
    })
}

/// What a `Value` or any other type is read to: serde_json's own limit.
pub(crate) const READABLE: usize = 127;

/// Refuses what no type could be read from any more, unless it was as deep `before`.
pub(crate) fn no_deeper(bytes: &[u8], before: &[u8]) -> Result<(), Fault> {
    let Some(offset) = deeper_than(bytes, READABLE) else { return Ok(()) };
    if deeper_than(before, READABLE).is_some() {
        return Ok(());
    }
    let message = format!("nested deeper than {READABLE} levels");
    Err(ErrorKind::TooDeep(locate::location(bytes, offset, 0, message)).into())
}

/// Where the first container is that is in so many others.
fn deeper_than(text: &[u8], limit: usize) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => {
                at = string_end(text, at);
                continue;
            }
            b'[' | b'{' if depth == limit => return Some(at),
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// One open container: the keys seen in an object, and whether the next string is a key.
struct Open<'a> {
    keys: Option<HashSet<Cow<'a, str>>>,
    key_next: bool,
}

fn scan(text: &[u8], options: &Options) -> Result<(), (usize, Broken)> {
    let most_entries = options.max_entries.map_or(usize::MAX, usize::from);
    let deepest = options.max_depth.map_or(usize::MAX, usize::from);
    let mut open: Vec<Open<'_>> = Vec::new();
    let mut entries = 0;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let mut end = at + 1;
        match byte {
            b'}' | b']' => drop(open.pop()),
            b',' => {
                if let Some(Open { keys: Some(_), key_next }) = open.last_mut() {
                    *key_next = true;
                }
            }
            b':' => {}
            byte if byte.is_ascii_whitespace() => {}
            _ => {
                if byte == b'"' {
                    end = string_end(text, at);
                    if let Some(Open { keys: Some(keys), key_next }) = open.last_mut()
                        && std::mem::take(key_next)
                    {
                        let key = document::key(&text[at..end]);
                        if options.duplicate_keys == DuplicateKeys::Refuse && !keys.insert(key.clone()) {
                            return Err((at, Broken::Duplicate(key.trim_start_matches('\0').to_owned())));
                        }
                        at = end;
                        continue;
                    }
                }
                // A value.
                if !open.is_empty() {
                    entries += 1;
                    if entries > most_entries {
                        return Err((at, Broken::Entries(most_entries)));
                    }
                }
                if matches!(byte, b'{' | b'[') {
                    if open.len() >= deepest {
                        return Err((at, Broken::Depth(deepest)));
                    }
                    let keys = (byte == b'{').then(HashSet::new);
                    open.push(Open { key_next: keys.is_some(), keys });
                } else if byte != b'"' {
                    end = document::value_end(text, at).max(end);
                }
            }
        }
        at = end;
    }
    Ok(())
}
