//! Turns the position of an error into line, column, pointer and snippet. Runs only once something is wrong.

use crate::error::Location;

/// How long a pointer or a message may be, in bytes, before it is cut.
const LONGEST: usize = 400;

/// A text of the file's or the type's making, of bounded length: its beginning and its end.
pub(crate) fn cut(text: String) -> String {
    if text.len() <= LONGEST {
        return text;
    }
    let half = LONGEST / 2;
    let from = (0..=half).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let to = (text.len() - half..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    format!("{}…{}", &text[..from], &text[to..])
}

/// Half of what a snippet shows at most, in characters.
const AROUND: usize = 30;

/// The byte that a line and a byte column of serde_json's (both from 1) stand for.
pub(crate) fn offset_of(text: &[u8], line: usize, column: usize) -> usize {
    let mut start = 0;
    for _ in 1..line {
        match text[start..].iter().position(|&b| b == b'\n') {
            Some(at) => start += at + 1,
            None => break,
        }
    }
    (start + column.saturating_sub(1)).min(text.len())
}

/// Describes the byte at `offset`. `skipped` bytes (a byte order mark) stand before `text` in the file.
pub(crate) fn location(text: &[u8], offset: usize, skipped: usize, message: String) -> Location {
    let offset = offset.min(text.len());
    let start = text[..offset].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let end = text[offset..].iter().position(|&b| b == b'\n').map_or(text.len(), |at| offset + at);
    let before = String::from_utf8_lossy(&text[start..offset]);
    let column = before.chars().count() + 1;
    let after = String::from_utf8_lossy(&text[offset..end]);
    let left = before.trim_start();
    let left = &left[left.char_indices().rev().nth(AROUND - 1).map_or(0, |(at, _)| at)..];
    let right = after.char_indices().nth(AROUND).map_or(&*after, |(at, _)| &after[..at]).trim_end();
    Location {
        line: text[..offset].iter().filter(|&&b| b == b'\n').count() + 1,
        column,
        offset: offset + skipped,
        pointer: cut(pointer(text, offset)),
        message: cut(message),
        snippet: format!("{left}{right}").replace(|c: char| c.is_control(), " "),
    }
}

enum Frame {
    Array(usize),
    Object { key: Option<(usize, usize)>, value: bool },
}

/// The JSON pointer to the innermost value that `offset` is in, as far as the text before it is JSON.
pub(crate) fn pointer(text: &[u8], offset: usize) -> String {
    let mut stack = Vec::new();
    let mut at = 0;
    while at < text.len() && at <= offset {
        match text[at] {
            b'"' => {
                let end = string_end(text, at);
                if let Some(Frame::Object { key, value: false }) = stack.last_mut() {
                    *key = Some((at, end));
                }
                at = end;
                continue;
            }
            b'{' if at < offset => stack.push(Frame::Object { key: None, value: false }),
            b'[' if at < offset => stack.push(Frame::Array(0)),
            b'}' | b']' => {
                // The closing bracket belongs to the container, not to its last member.
                stack.pop();
            }
            b':' => {
                if let Some(Frame::Object { value, .. }) = stack.last_mut() {
                    *value = true;
                }
            }
            b',' if at < offset => match stack.last_mut() {
                Some(Frame::Array(index)) => *index += 1,
                Some(Frame::Object { key, value }) => (*key, *value) = (None, false),
                None => {}
            },
            _ => {}
        }
        at += 1;
    }
    let mut pointer = String::new();
    for frame in stack {
        match frame {
            Frame::Array(index) => pointer.push_str(&format!("/{index}")),
            Frame::Object { key: Some((from, to)), .. } => {
                // Half of a surrogate pair is shown as it is spelled.
                let key = serde_json::from_slice(&text[from..to]).unwrap_or_else(|_| {
                    String::from_utf8_lossy(&text[from..to]).trim_matches('"').to_owned()
                });
                pointer.push('/');
                pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
            }
            Frame::Object { key: None, .. } => {}
        }
    }
    pointer
}

/// One past the closing quote of the string that opens at `at`.
pub(crate) fn string_end(text: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < text.len() {
        match text[end] {
            b'\\' => end += 2,
            b'"' => return end + 1,
            _ => end += 1,
        }
    }
    text.len()
}

/// The encoding that these first bytes speak of, if it is one that JSON files must not have.
pub(crate) fn foreign_encoding(text: &[u8]) -> Option<&'static str> {
    Some(match text {
        [0, 0, 0, 0, ..] => "zero bytes (as a crash leaves of a file that was not synced)",
        [0xFF, 0xFE, 0, 0, ..] | [_, 0, 0, 0, ..] => "UTF-32 (little endian)",
        [0, 0, 0xFE, 0xFF, ..] | [0, 0, 0, _, ..] => "UTF-32 (big endian)",
        [0xFF, 0xFE, ..] | [_, 0, ..] => "UTF-16 (little endian)",
        [0xFE, 0xFF, ..] | [0, _, ..] => "UTF-16 (big endian)",
        [0x1F, 0x8B, ..] => "gzip-compressed",
        [0x28, 0xB5, 0x2F, 0xFD, ..] => "zstd-compressed",
        _ if std::str::from_utf8(text).is_err() => "not UTF-8 (Latin-1 or another 8-bit encoding, perhaps)",
        _ => return None,
    })
}
