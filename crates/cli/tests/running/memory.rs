//! `neap memory` against a running server.

use crate::server::{Server, neap, text};

#[test]
fn the_budget_is_shown_and_changed_while_the_server_runs() {
    let server = Server::start(&["--memory", "256MiB", "--admin-key", "secret"]);
    let to = ["--url", server.url.as_str(), "--admin-key", "secret"];
    let run = |args: &[&str]| neap(&[&["memory"], args, &to[..]].concat());
    let limit = |json: &[u8]| {
        let memory: serde_json::Value = serde_json::from_slice(json).expect("JSON");
        memory["budget"]["limit_bytes"].as_u64()
    };

    let shown = run(&["show"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let table = text(&shown.stdout);
    for part in [
        "neap-tiny at http://",
        "of 256.0 MiB charged",
        "weights",
        "prefix cache",
    ] {
        assert!(table.contains(part), "{part} in {table}");
    }

    let set = run(&["set", "96MiB"]);
    assert!(set.status.success(), "{}", text(&set.stderr));
    assert!(text(&set.stdout).contains("the budget is 96.0 MiB"));
    assert_eq!(limit(&run(&["show", "--json"]).stdout), Some(96 << 20));
    assert_eq!(
        limit(&run(&["set", "128MiB", "--json"]).stdout),
        Some(128 << 20)
    );

    // Less than the weights take is refused with the figure, and changes nothing.
    let refused = run(&["set", "1MiB"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("must be at least"),
        "{}",
        text(&refused.stderr)
    );
    assert_eq!(limit(&run(&["show", "--json"]).stdout), Some(128 << 20));

    let without = neap(&["memory", "show", "--url", &server.url]);
    assert_eq!(without.status.code(), Some(1));
    assert!(
        text(&without.stderr).contains("--admin-key"),
        "{}",
        text(&without.stderr)
    );
}

#[test]
fn where_no_server_is_the_message_says_what_to_do() {
    // Port 9 is discard's: nobody serves HTTP there.
    let nobody = neap(&["memory", "show", "--url", "127.0.0.1:9"]);
    assert_eq!(nobody.status.code(), Some(1));
    let message = text(&nobody.stderr);
    assert!(
        message.contains("no server answers at http://127.0.0.1:9"),
        "{message}"
    );
    assert!(
        message.contains("neap serve") && message.contains("--url"),
        "{message}"
    );
    let tls = neap(&["memory", "set", "1GiB", "--url", "https://example.invalid"]);
    assert!(
        text(&tls.stderr).contains("ssh -L"),
        "{}",
        text(&tls.stderr)
    );
}
