//! The lanes of `.ci/run`, started from Cargo.

use std::process::Command;

/// Runs `.ci/run`, the one place that says what must pass.
pub fn run() -> Result<String, String> {
    let script = crate::tree::root().join(".ci/run");
    let status = Command::new("bash")
        .arg(&script)
        .status()
        .map_err(|error| format!("{}: {error}", script.display()))?;
    if status.success() {
        Ok("ci: all lanes passed".to_owned())
    } else {
        Err(format!("ci: {status}"))
    }
}
