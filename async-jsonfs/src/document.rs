//! JSON text as text: where the members of an object are, and how a value looks at another indentation. Everything here
//! is given valid JSON (a parser has seen it before), and on anything else is wrong but does not panic.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::ops::Range;

use crate::locate::string_end;

/// One `"key": value` of an object, as positions in the text.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    pub(crate) key: Cow<'a, str>,
    /// Where the key's opening quote is.
    pub(crate) start: usize,
    pub(crate) value: Range<usize>,
}

/// An object's members and the place of its closing brace.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    pub(crate) members: Vec<Member<'a>>,
    pub(crate) close: usize,
    /// The members' places, sorted by key and place; made at the first search.
    sorted: OnceCell<Vec<usize>>,
}

impl Object<'_> {
    /// The places of the members with this key, in order.
    pub(crate) fn places(&self, key: &str) -> &[usize] {
        let sorted = self.sorted.get_or_init(|| {
            let mut sorted: Vec<usize> = (0..self.members.len()).collect();
            sorted.sort_by(|&a, &b| self.members[a].key.cmp(&self.members[b].key).then(a.cmp(&b)));
            sorted
        });
        let from = sorted.partition_point(|&place| *self.members[place].key < *key);
        let to = from + sorted[from..].iter().take_while(|&&place| self.members[place].key == key).count();
        &sorted[from..to]
    }

    /// The member that counts: of several with one key, the last, as serde's maps have it.
    pub(crate) fn get(&self, key: &str) -> Option<&Member<'_>> {
        self.places(key).last().map(|&place| &self.members[place])
    }
}

pub(crate) fn skip_space(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// One past the end of the value that begins at `at`. Without recursion: how deep it goes does not matter.
pub(crate) fn value_end(text: &[u8], at: usize) -> usize {
    let mut depth = 0_usize;
    let mut next = at;
    while let Some(&byte) = text.get(next) {
        next = match byte {
            b'"' => string_end(text, next),
            b'{' | b'[' => {
                depth += 1;
                next + 1
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                next + 1
            }
            b',' | b':' => next + 1,
            byte if byte.is_ascii_whitespace() => next + 1,
            _ => {
                let literal = |b: &u8| !matches!(b, b',' | b':' | b'}' | b']') && !b.is_ascii_whitespace();
                next + text[next..].iter().take_while(|b| literal(b)).count()
            }
        };
        if depth == 0 {
            return next;
        }
    }
    text.len()
}

/// The value in `text`, without the white space round it.
pub(crate) fn root(text: &[u8]) -> Range<usize> {
    let start = skip_space(text, 0);
    start..value_end(text, start)
}

/// The members of the object in this range; `None` if it is something else.
pub(crate) fn object<'a>(text: &'a [u8], range: &Range<usize>) -> Option<Object<'a>> {
    if text.get(range.start) != Some(&b'{') {
        return None;
    }
    let mut members = Vec::new();
    let mut at = skip_space(text, range.start + 1);
    while text.get(at) == Some(&b'"') {
        let end = string_end(text, at);
        let start = skip_space(text, skip_space(text, end) + 1).min(text.len());
        let value = start..value_end(text, start);
        let next = skip_space(text, value.end);
        members.push(Member { key: key(&text[at..end]), start: at, value });
        if text.get(next) != Some(&b',') {
            at = next;
            break;
        }
        at = skip_space(text, next + 1);
    }
    Some(Object { members, close: at.min(text.len()), sorted: OnceCell::new() })
}

/// The elements of the array in this range; `None` if it is something else.
pub(crate) fn array(text: &[u8], range: &Range<usize>) -> Option<Vec<Range<usize>>> {
    if text.get(range.start) != Some(&b'[') {
        return None;
    }
    let mut elements = Vec::new();
    let mut at = skip_space(text, range.start + 1);
    while text.get(at).is_some_and(|&byte| byte != b']') {
        let element = at..value_end(text, at);
        let next = skip_space(text, element.end);
        elements.push(element);
        if text.get(next) != Some(&b',') {
            break;
        }
        at = skip_space(text, next + 1);
    }
    Some(elements)
}

/// The key that a quoted string stands for, for comparison: no two that differ are the same here.
pub(crate) fn key(quoted: &[u8]) -> Cow<'_, str> {
    let plain = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    if plain.contains(&b'\\') {
        return Cow::Owned(match serde_json::from_slice::<String>(quoted) {
            // Half of a surrogate pair is no text: such a key is as it is spelled, behind a zero that no other has alone.
            Err(_) => format!("\0{}", String::from_utf8_lossy(plain)),
            Ok(key) if key.starts_with('\0') => format!("\0{key}"),
            Ok(key) => key,
        });
    }
    String::from_utf8_lossy(plain)
}

/// How the text round a place is laid out.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// What begins a line inside of it: a line break and this place's indentation; `None` if all is on one line.
    pub(crate) line: Option<String>,
    /// One step of indentation.
    pub(crate) unit: String,
    /// After a colon (and, on one line, after a comma).
    pub(crate) gap: &'static str,
}

impl Layout {
    /// One step further in.
    pub(crate) fn inner(&self) -> Self {
        let line = self.line.as_ref().map(|line| format!("{line}{}", self.unit));
        Self { line, ..self.clone() }
    }
}

/// Writes a value (however it was laid out) in this layout.
pub(crate) fn lay_out(value: &[u8], layout: &Layout, out: &mut Vec<u8>) {
    let mut line = layout.line.clone();
    let unit = &layout.unit;
    let mut at = 0;
    while let Some(&byte) = value.get(at) {
        match byte {
            b'"' => {
                let end = string_end(value, at);
                out.extend(&value[at..end]);
                at = end;
                continue;
            }
            b'{' | b'[' => {
                out.push(byte);
                let next = skip_space(value, at + 1);
                if matches!(value.get(next), Some(b'}' | b']')) {
                    out.push(value[next]);
                    at = next + 1;
                    continue;
                }
                if let Some(line) = &mut line {
                    line.push_str(unit);
                    out.extend(line.bytes());
                }
            }
            b'}' | b']' => {
                if let Some(line) = &mut line {
                    line.truncate(line.len().saturating_sub(unit.len()));
                    out.extend(line.bytes());
                }
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                out.extend(line.as_deref().unwrap_or(layout.gap).bytes());
            }
            b':' => {
                out.push(byte);
                out.extend(layout.gap.bytes());
            }
            byte if byte.is_ascii_whitespace() => {}
            _ => out.push(byte),
        }
        at += 1;
    }
}
