//! The common case: a path and the defaults.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::file::{JsonFile, Saved};

/// Reads a JSON file: [`JsonFile::load`] with the defaults.
///
/// # Errors
///
/// As [`JsonFile::load`].
///
/// # Cancel safety
///
/// As [`JsonFile::load`].
pub async fn load<T: DeserializeOwned + Send + 'static>(path: impl AsRef<Path>) -> Result<T, Error> {
    JsonFile::new(path.as_ref()).load().await
}

/// Replaces a JSON file atomically and durably: [`JsonFile::save`] with the defaults.
///
/// # Errors
///
/// As [`JsonFile::save`].
///
/// # Cancel safety
///
/// As [`JsonFile::save`].
pub async fn save<T: Serialize + Send + 'static>(path: impl AsRef<Path>, value: T) -> Result<Saved, Error> {
    JsonFile::new(path.as_ref()).save(value).await
}

/// Changes a JSON file, with no other writer in between: [`JsonFile::update`] with the defaults.
///
/// # Errors
///
/// As [`JsonFile::update`].
///
/// # Cancel safety
///
/// As [`JsonFile::update`].
///
/// # Panics
///
/// As [`JsonFile::update`].
pub async fn update<T, R>(
    path: impl AsRef<Path>,
    change: impl FnOnce(&mut T) -> R + Send + 'static,
) -> Result<R, Error>
where
    T: DeserializeOwned + Serialize + 'static,
    R: Send + 'static,
{
    JsonFile::new(path.as_ref()).update(change).await
}

/// [`update`]; of a file that is not there, from the default: [`JsonFile::update_or_default`] with the defaults.
///
/// # Errors
///
/// As [`JsonFile::update_or_default`].
///
/// # Cancel safety
///
/// As [`JsonFile::update_or_default`].
///
/// # Panics
///
/// As [`JsonFile::update_or_default`].
pub async fn update_or_default<T, R>(
    path: impl AsRef<Path>,
    change: impl FnOnce(&mut T) -> R + Send + 'static,
) -> Result<R, Error>
where
    T: DeserializeOwned + Serialize + Default + 'static,
    R: Send + 'static,
{
    JsonFile::new(path.as_ref()).update_or_default(change).await
}

/// Merges a patch (RFC 7396) into a JSON file: [`JsonFile::merge`] with the defaults.
///
/// # Errors
///
/// As [`JsonFile::merge`].
///
/// # Cancel safety
///
/// As [`JsonFile::merge`].
pub async fn merge<P: Serialize + Send + 'static>(path: impl AsRef<Path>, patch: P) -> Result<Saved, Error> {
    JsonFile::new(path.as_ref()).merge(patch).await
}

/// Applies a patch (RFC 6902) to a JSON file: [`JsonFile::patch`] with the defaults.
///
/// # Errors
///
/// As [`JsonFile::patch`].
///
/// # Cancel safety
///
/// As [`JsonFile::patch`].
#[cfg(feature = "patch")]
#[cfg_attr(docsrs, doc(cfg(feature = "patch")))]
pub async fn patch(path: impl AsRef<Path>, patch: json_patch::Patch) -> Result<Saved, Error> {
    JsonFile::new(path.as_ref()).patch(patch).await
}
