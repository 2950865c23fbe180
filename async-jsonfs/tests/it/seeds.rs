//! The seeds of the fuzz targets, and each of them cut off at every byte.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

#[path = "../../fuzz/checks.rs"]
mod checks;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

#[tokio::test]
async fn load() {
    let dir = TempDir::new().unwrap();
    for seed in seeds("load") {
        for end in 0..=seed.len() {
            checks::check_load(dir.path(), &seed[..end]).await;
        }
    }
}

#[tokio::test]
async fn merge() {
    let dir = TempDir::new().unwrap();
    for seed in seeds("merge") {
        checks::check_merge(dir.path(), &seed).await;
        let divided = seed.iter().position(|&byte| byte == 0).unwrap();
        for end in 0..divided {
            checks::check_merge(dir.path(), &[&seed[..end], &seed[divided..]].concat()).await;
        }
    }
}
