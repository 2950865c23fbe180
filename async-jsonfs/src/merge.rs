//! Changes to a document that leave everything else in it, byte by byte, as it was.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::document::{Layout, Member, Object, lay_out, object, root, skip_space};

/// Carries a change over into a document: `before` and `after` are what a program has read from `raw` and made of it.
///
/// What is the same before and after stays as it is in `raw`: keys that the program does not know, the order of
/// keys, how numbers are written, white space. Objects are compared key by key; everything else, arrays too, is replaced
/// whole. `None` if nothing changes.
pub(crate) fn three_way(raw: &[u8], before: &[u8], after: &[u8]) -> Option<Vec<u8>> {
    let mut edits = Edits::new(raw);
    edits.three_way(&root(raw), (before, root(before)), (after, root(after)), &edits.layout.clone());
    edits.apply()
}

/// Merges a patch into a document (RFC 7396). `None` if nothing changes.
pub(crate) fn merge_patch(raw: &[u8], patch: &[u8]) -> Option<Vec<u8>> {
    let mut edits = Edits::new(raw);
    edits.merge(&root(raw), patch, &root(patch), &edits.layout.clone());
    edits.apply()
}

struct Edits<'a> {
    raw: &'a [u8],
    list: Vec<(Range<usize>, Vec<u8>)>,
    layout: Layout,
}

type Part<'a> = (&'a [u8], Range<usize>);

/// What is to happen to the members of one object.
#[derive(Default)]
struct Changes {
    removed: BTreeSet<usize>,
    /// Quoted key and value.
    added: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<'a> Edits<'a> {
    fn new(raw: &'a [u8]) -> Self {
        Self { raw, list: Vec::new(), layout: layout_of(raw) }
    }

    fn apply(mut self) -> Option<Vec<u8>> {
        if self.list.is_empty() {
            return None;
        }
        self.list.sort_by_key(|(range, _)| range.start);
        let mut out =
            Vec::with_capacity(self.raw.len() + self.list.iter().map(|(_, new)| new.len()).sum::<usize>());
        let mut at = 0;
        for (range, new) in self.list {
            out.extend(&self.raw[at..range.start]);
            out.extend(new);
            at = range.end;
        }
        out.extend(&self.raw[at..]);
        Some(out)
    }

    fn three_way(&mut self, range: &Range<usize>, before: Part<'_>, after: Part<'_>, layout: &Layout) {
        let (old, new) = (&before.0[before.1.clone()], &after.0[after.1.clone()]);
        if old == new {
            return;
        }
        let (Some(here), Some(then), Some(now)) =
            (object(self.raw, range), object(before.0, &before.1), object(after.0, &after.1))
        else {
            return self.replace(range, new, layout);
        };
        let mut changes = Changes::default();
        for (index, member) in now.members.iter().enumerate() {
            if now.get(&member.key).is_some_and(|last| last.start != member.start) {
                // Printed twice (a flattened map can do that): the last counts.
                continue;
            }
            let value = &after.0[member.value.clone()];
            let was = at_or_by_key(&then, index, &member.key);
            if was.is_some_and(|was| &before.0[was.value.clone()] == value) {
                continue;
            }
            match (here.get(&member.key), was) {
                (Some(there), Some(was)) => {
                    let inner = inner_layout(self.raw, range, &here, layout);
                    let (was, is) = ((before.0, was.value.clone()), (after.0, member.value.clone()));
                    self.three_way(&there.value, was, is, &inner);
                }
                (Some(there), None) => {
                    let inner = inner_layout(self.raw, range, &here, layout);
                    self.replace(&there.value, value, &inner);
                }
                (None, _) => changes.added.push((quoted(after.0, member).to_vec(), value.to_vec())),
            }
        }
        for (index, member) in then.members.iter().enumerate() {
            if at_or_by_key(&now, index, &member.key).is_none() {
                changes.remove(&here, &member.key);
            }
        }
        self.change(range, &here, &changes, layout);
    }

    fn merge(&mut self, range: &Range<usize>, patch: &[u8], part: &Range<usize>, layout: &Layout) {
        let Some(changed) = object(patch, part) else {
            return self.replace(range, &patch[part.clone()], layout);
        };
        let Some(here) = object(self.raw, range) else {
            return self.replace(range, &without_nulls(patch, part), layout);
        };
        let mut changes = Changes::default();
        for member in &changed.members {
            if changed.get(&member.key).is_some_and(|last| last.start != member.start) {
                continue;
            }
            let value = &patch[member.value.clone()];
            if value == b"null" {
                changes.remove(&here, &member.key);
            } else if let Some(there) = here.get(&member.key) {
                let inner = inner_layout(self.raw, range, &here, layout);
                self.merge(&there.value, patch, &member.value, &inner);
            } else {
                changes.added.push((quoted(patch, member).to_vec(), without_nulls(patch, &member.value)));
            }
        }
        self.change(range, &here, &changes, layout);
    }

    /// Puts another value in the place of one, laid out as the old one was.
    fn replace(&mut self, range: &Range<usize>, new: &[u8], layout: &Layout) {
        let old = &self.raw[range.clone()];
        let one_line = matches!(old.first(), Some(b'{' | b'[')) && old.len() > 2 && !old.contains(&b'\n');
        let line = if one_line { None } else { layout.line.clone() };
        let mut out = Vec::new();
        lay_out(new, &Layout { line, ..layout.clone() }, &mut out);
        if out != old {
            self.list.push((range.clone(), out));
        }
    }

    /// Removes and adds members, with the commas and the white space that go with them.
    fn change(&mut self, range: &Range<usize>, here: &Object<'_>, changes: &Changes, layout: &Layout) {
        let Changes { removed, added } = changes;
        if removed.is_empty() && added.is_empty() {
            return;
        }
        let inner = inner_layout(self.raw, range, here, layout);
        let last_kept = (0..here.members.len()).rev().find(|index| !removed.contains(index));
        for &index in removed {
            if last_kept.is_some_and(|last| index < last) {
                self.list.push((here.members[index].start..here.members[index + 1].start, Vec::new()));
            }
        }
        let mut new = Vec::new();
        for (nth, (key, value)) in added.iter().enumerate() {
            if nth > 0 || last_kept.is_some() {
                new.push(b',');
            }
            match &inner.line {
                Some(line) => new.extend(line.bytes()),
                None if nth > 0 || last_kept.is_some() => new.extend(inner.gap.bytes()),
                None => {}
            }
            new.extend(key);
            new.push(b':');
            new.extend(inner.gap.bytes());
            lay_out(value, &inner, &mut new);
        }
        let place = match (last_kept, here.members.last()) {
            (Some(kept), Some(last)) => here.members[kept].value.end..last.value.end,
            _ => {
                // Nothing that was there stays, the white space neither.
                if let (Some(line), false) = (&layout.line, added.is_empty()) {
                    new.extend(line.bytes());
                }
                range.start + 1..here.close
            }
        };
        if !(place.is_empty() && new.is_empty()) {
            self.list.push((place, new));
        }
    }
}

impl Changes {
    fn remove(&mut self, here: &Object<'_>, key: &str) {
        self.removed.extend(here.places(key));
    }
}

/// Two prints of one type mostly have their members in the same order.
fn at_or_by_key<'o>(object: &'o Object<'_>, index: usize, key: &str) -> Option<&'o Member<'o>> {
    object.members.get(index).filter(|member| member.key == key).or_else(|| object.get(key))
}

fn quoted<'t>(text: &'t [u8], member: &Member<'_>) -> &'t [u8] {
    let end = crate::locate::string_end(text, member.start);
    &text[member.start..end]
}

/// A patch as a value of its own: without the members that are null, however deep in objects.
pub(crate) fn without_nulls(patch: &[u8], part: &Range<usize>) -> Vec<u8> {
    let Some(whole) = object(patch, part) else { return patch[part.clone()].to_vec() };
    let mut out = vec![b'{'];
    for member in whole.members.iter().filter(|member| &patch[member.value.clone()] != b"null") {
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend(quoted(patch, member));
        out.push(b':');
        out.extend(without_nulls(patch, &member.value));
    }
    out.push(b'}');
    out
}

/// The layout of a whole document, from its first two lines.
fn layout_of(raw: &[u8]) -> Layout {
    let root = root(raw);
    let gap = match object(raw, &root).as_ref().and_then(|here| here.members.first()) {
        Some(first) if raw.get(first.value.start.wrapping_sub(1)) == Some(&b':') => "",
        _ => " ",
    };
    let body = &raw[root];
    // Nothing in it: as a new file would be.
    let Some(at) = body.iter().position(|&b| b == b'\n') else {
        let line = (body.len() <= 2).then(|| "\n".to_owned());
        return Layout { line, unit: "  ".to_owned(), gap };
    };
    let end = if at > 0 && body[at - 1] == b'\r' { "\r\n" } else { "\n" };
    let unit: String =
        body[at + 1..].iter().take_while(|b| matches!(b, b' ' | b'\t')).map(|&b| char::from(b)).collect();
    Layout { line: Some(end.to_owned()), unit: if unit.is_empty() { "  ".to_owned() } else { unit }, gap }
}

/// The layout of an object's members: as its first member has it, or one step in where it has none.
fn inner_layout(raw: &[u8], range: &Range<usize>, here: &Object<'_>, layout: &Layout) -> Layout {
    let Some(first) = here.members.first() else { return layout.inner() };
    let from = range.start + 1;
    debug_assert_eq!(skip_space(raw, from), first.start);
    let lead = &raw[from..first.start];
    let line = lead.contains(&b'\n').then(|| {
        let start = lead.iter().rposition(|&b| b == b'\n').unwrap_or(0);
        let start = if start > 0 && lead[start - 1] == b'\r' { start - 1 } else { start };
        String::from_utf8_lossy(&lead[start..]).into_owned()
    });
    Layout { line, ..layout.clone() }
}

#[cfg(test)]
mod tests;
