//! A reader that goes away early, such as `head`, ends a command quietly.

/// As shells count a program that SIGPIPE ended. Rust's runtime ignores the signal, so that servers outlive their
/// clients; printing then fails, and `println!` panics.
const EXIT_CODE: i32 = 128 + 13;

/// Ends the process where printing fails because nobody reads; all other panics stay as they are.
pub fn end_quietly() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>();
        if message.is_some_and(|m| m.starts_with("failed printing to stdout: Broken pipe")) {
            std::process::exit(EXIT_CODE);
        }
        report(panic);
    }));
}
