use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// Which content a file had, for [`JsonFile::save_if`](crate::JsonFile::save_if): equal bytes are one version.
///
/// It holds the length and a keyed 64-bit hash (SipHash) of the bytes, and means nothing outside of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(Option<(usize, u64)>);

// A key of our own, so that nobody can prepare two files with one hash.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl Version {
    /// No file at all.
    pub const ABSENT: Self = Self(None);

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Some((bytes.len(), KEY.hash_one(bytes))))
    }
}
