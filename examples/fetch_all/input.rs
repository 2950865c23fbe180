//! The list of URLs.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::Boxed;

/// One line of the list.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) url: HttpUrl,
}

/// A URL that was checked when it was read.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct HttpUrl(pub(crate) Url);

impl TryFrom<String> for HttpUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let url = Url::parse(&text).map_err(|error| format!("bad URL {text:?}: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("bad URL {text:?}: the scheme must be http or https"));
        }
        Ok(Self(url))
    }
}

impl From<HttpUrl> for String {
    fn from(url: HttpUrl) -> Self {
        url.0.into()
    }
}

impl Input {
    /// Host and port: what a breaker is for.
    pub(crate) fn host(&self) -> String {
        let url = &self.url.0;
        let host = url.host_str().unwrap_or_default();
        url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

/// Reads the list. Names are what a result is known by, so each may stand there once.
pub(crate) async fn load(file: &Path) -> Result<Vec<Input>, Boxed> {
    let inputs: Vec<Input> = async_jsonfs::load(file).await?;
    let mut seen = HashMap::new();
    for (index, input) in inputs.iter().enumerate() {
        if let Some(first) = seen.insert(&input.name, index) {
            let name = &input.name;
            return Err(format!(
                "{}: entries {first} and {index} have the same name {name:?}",
                file.display()
            )
            .into());
        }
    }
    Ok(inputs)
}

/// Tells whether a checkpoint belongs to this list. The embedded server has another port each time, so there it is the
/// names and the seed.
pub(crate) fn fingerprint(inputs: &[Input], seed: Option<u64>) -> String {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    for input in inputs {
        input.name.hash(&mut hasher);
        if seed.is_none() {
            input.url.0.as_str().hash(&mut hasher);
        }
    }
    format!("{} urls, {:016x}", inputs.len(), hasher.finish())
}
