//! Ctrl-C: the first asks the running generation to stop, a second one ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

static PRESSED: AtomicBool = AtomicBool::new(false);

/// Exit code of a process ended by Ctrl-C, by convention.
pub const EXIT_CODE: u8 = 130;

/// Catches Ctrl-C from now on.
pub fn install() {
    let handler = || {
        if PRESSED.swap(true, Ordering::Relaxed) {
            std::process::exit(EXIT_CODE.into());
        }
    };
    if let Err(why) = ctrlc::set_handler(handler) {
        eprintln!("neap: Ctrl-C will end the program at once: {why}");
    }
}

/// Whether Ctrl-C was pressed since the last [`clear`].
pub fn pressed() -> bool {
    PRESSED.load(Ordering::Relaxed)
}

/// Forgets it.
pub fn clear() {
    PRESSED.store(false, Ordering::Relaxed);
}

/// The same as if Ctrl-C had been pressed once.
pub fn press() {
    PRESSED.store(true, Ordering::Relaxed);
}
