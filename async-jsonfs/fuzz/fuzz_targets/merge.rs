#![no_main]

use std::sync::LazyLock;

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

static RUNTIME: LazyLock<(tokio::runtime::Runtime, tempfile::TempDir)> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    // In memory, where there is such a place.
    let dir = tempfile::TempDir::new_in("/dev/shm").or_else(|_| tempfile::TempDir::new()).expect("a directory");
    (runtime, dir)
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (runtime, dir) = &*RUNTIME;
    runtime.block_on(checks::check_merge(dir.path(), bytes));
});
