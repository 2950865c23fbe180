/// The last N outcomes, one bit each.
#[derive(Clone, Debug)]
pub(crate) struct CountWindow {
    failed: Box<[u64]>,
    size: u32,
    next: u32,
    calls: u32,
    failures: u32,
}

impl CountWindow {
    pub(crate) fn new(size: u32) -> Self {
        Self { failed: vec![0; size.div_ceil(64) as usize].into(), size, next: 0, calls: 0, failures: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.failed.fill(0);
        (self.next, self.calls, self.failures) = (0, 0, 0);
    }

    pub(crate) fn record(&mut self, failed: bool) {
        let (word, bit) = ((self.next / 64) as usize, 1_u64 << (self.next % 64));
        if self.calls == self.size {
            self.failures -= u32::from(self.failed[word] & bit != 0);
        } else {
            self.calls += 1;
        }
        if failed {
            self.failed[word] |= bit;
            self.failures += 1;
        } else {
            self.failed[word] &= !bit;
        }
        self.next = if self.next + 1 == self.size { 0 } else { self.next + 1 };
    }

    pub(crate) const fn calls(&self) -> u32 {
        self.calls
    }

    pub(crate) const fn failures(&self) -> u32 {
        self.failures
    }

    /// Full of successes: one more changes nothing.
    pub(crate) const fn is_spotless(&self) -> bool {
        self.failures == 0 && self.calls == self.size
    }
}
