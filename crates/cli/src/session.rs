//! `neap session`: the conversations that are kept, of a running server or in a folder.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use neap_memory::Budget;
use neap_memory::session::{Session, SessionFile};
use serde::{Deserialize, Serialize};

use crate::args::{
    SessionCommand, SessionDeleteArgs, SessionExportArgs, SessionImportArgs, SessionListArgs,
    SessionPinArgs, SessionPlace,
};
use crate::bytes::show as size;
use crate::failure::Failure;
use crate::generate::clock_ms;
use folder::Kept;
use running::Running;

mod folder;
mod running;

/// Digits of an ID that are shown, and the fewest that name one.
const ID_DIGITS: usize = 12;
const LEAST_ID_DIGITS: usize = 4;

/// What is told of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    id: String,
    name: String,
    tokens: usize,
    #[serde(default)]
    priority: u8,
    #[serde(default)]
    quality: String,
    /// Only in RAM where false.
    is_kept: bool,
    #[serde(default)]
    saved_ms: Option<u64>,
    #[serde(default)]
    expires_ms: Option<u64>,
    /// Of its blocks on disk, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stored_bytes: Option<u64>,
}

/// How a session is to be kept.
struct Pin {
    priority: u8,
    ttl_s: Option<u64>,
}

/// Where sessions are.
trait Place {
    fn list(&mut self) -> Result<Vec<Told>, Failure>;
    /// Writes the session to a new file.
    fn export(&mut self, session: &Told, file: File) -> Result<(), Failure>;
    /// Gives the name that it has.
    fn import(&mut self, args: &SessionImportArgs) -> Result<String, Failure>;
    fn delete(&mut self, session: &Told) -> Result<(), Failure>;
    fn pin(&mut self, session: &Told, pin: &Pin) -> Result<(), Failure>;
}

fn open(place: &SessionPlace) -> Result<Box<dyn Place>, Failure> {
    let folder = match (&place.disk, place.chats) {
        (Some(folder), _) => folder.clone(),
        (None, true) => chats_folder()?,
        (None, false) => return Ok(Box::new(Running::new(&place.server)?)),
    };
    Ok(Box::new(Kept::open(&folder)?))
}

fn chats_folder() -> Result<PathBuf, Failure> {
    let state = crate::chat::state_folder()
        .ok_or_else(|| Failure::new("there is no home directory: give --disk"))?;
    Ok(state.join("store"))
}

pub fn run(command: &SessionCommand) -> Result<(), Failure> {
    match command {
        SessionCommand::List(args) => list(args),
        SessionCommand::Export(args) => export(args),
        SessionCommand::Import(args) => import(args),
        SessionCommand::Delete(args) => delete(args),
        SessionCommand::Pin(args) => pin(args),
    }
}

fn list(args: &SessionListArgs) -> Result<(), Failure> {
    let mut sessions = open(&args.place)?.list()?;
    sessions.sort_by_key(|s| std::cmp::Reverse(s.saved_ms));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&sessions)?);
        return Ok(());
    }
    if sessions.is_empty() {
        eprintln!("neap: no session is kept there");
        return Ok(());
    }
    println!(
        "{:ID_DIGITS$}  {:>8}  {:>10}  {:>8}  {:8}  {:>8}  NAME",
        "ID", "TOKENS", "ON DISK", "PRIORITY", "QUALITY", "EXPIRES"
    );
    for session in &sessions {
        println!("{}", line(session, clock_ms()));
    }
    Ok(())
}

fn line(session: &Told, now_ms: u64) -> String {
    let on_disk = match (session.is_kept, session.stored_bytes) {
        (true, Some(bytes)) => size(bytes),
        (true, None) => "yes".into(),
        (false, _) => "no".into(),
    };
    let expires = session.expires_ms.map_or_else(
        || "never".into(),
        |ms| in_words(ms.saturating_sub(now_ms) / 1000),
    );
    format!(
        "{:ID_DIGITS$}  {:>8}  {on_disk:>10}  {:>8}  {:8}  {:>8}  {}",
        short(&session.id),
        session.tokens,
        session.priority,
        session.quality,
        if session.is_kept { &expires } else { "-" },
        // A name may hold anything: nothing that moves the cursor.
        session.name.escape_debug(),
    )
}

fn in_words(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn short(id: &str) -> &str {
    id.get(..ID_DIGITS).unwrap_or(id)
}

/// The one session of this name, or whose ID begins so.
fn find(place: &mut dyn Place, wanted: &str) -> Result<Told, Failure> {
    let all = place.list()?;
    let mut found: Vec<&Told> = all.iter().filter(|s| s.name == wanted).collect();
    if found.is_empty() && wanted.len() >= LEAST_ID_DIGITS {
        found = all.iter().filter(|s| s.id.starts_with(wanted)).collect();
    }
    match found[..] {
        [one] => Ok(one.clone()),
        [] => Err(Failure::new(format!(
            "there is no session {wanted:?}: `neap session list` shows them"
        ))),
        _ => {
            let ids: Vec<&str> = found.iter().map(|s| short(&s.id)).collect();
            Err(Failure::new(format!(
                "there are several sessions {wanted:?}: give an ID, one of {}",
                ids.join(", ")
            )))
        }
    }
}

fn export(args: &SessionExportArgs) -> Result<(), Failure> {
    let mut place = open(&args.place)?;
    let session = find(&mut *place, &args.session)?;
    let output = match &args.output {
        Some(path) => path.clone(),
        None => PathBuf::from(format!("{}.session", file_stem(&session))),
    };
    let failed = |path: &Path, why: &dyn std::fmt::Display| {
        Failure::new(format!("{} can't be written: {why}", path.display()))
    };
    if output.exists() && !args.force {
        return Err(failed(&output, &"it is there already; give --force"));
    }
    // Whole or not at all.
    let mut part = output.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let file = File::create(&part).map_err(|why| failed(&part, &why))?;
    let written = place
        .export(&session, file)
        .and_then(|()| check(&part))
        .and_then(|_| std::fs::rename(&part, &output).map_err(|why| failed(&output, &why)));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written?;
    let bytes = std::fs::metadata(&output).map_or(0, |m| m.len());
    eprintln!(
        "neap: {} tokens of {:?} are in {} ({})",
        session.tokens,
        session.name,
        output.display(),
        size(bytes)
    );
    Ok(())
}

/// A name that is a file name on every system.
fn file_stem(session: &Told) -> &str {
    match crate::args::parse_session(&session.name) {
        Ok(_) => &session.name,
        Err(_) => short(&session.id),
    }
}

/// Reads a file to its end; every checksum must match.
fn check(path: &Path) -> Result<Session, Failure> {
    let file = File::open(path)?;
    let file = SessionFile::open(BufReader::with_capacity(1 << 20, file))?;
    Ok(file.check(&Budget::new(u64::MAX))?)
}

fn import(args: &SessionImportArgs) -> Result<(), Failure> {
    let name = open(&args.place)?.import(args)?;
    eprintln!("neap: {name:?} is kept");
    Ok(())
}

fn delete(args: &SessionDeleteArgs) -> Result<(), Failure> {
    let mut place = open(&args.place)?;
    let session = find(&mut *place, &args.session)?;
    place.delete(&session)?;
    eprintln!("neap: {:?} is forgotten", session.name);
    Ok(())
}

fn pin(args: &SessionPinArgs) -> Result<(), Failure> {
    let mut place = open(&args.place)?;
    let session = find(&mut *place, &args.session)?;
    let pin = Pin {
        priority: args.priority,
        ttl_s: args.ttl,
    };
    place.pin(&session, &pin)?;
    let end = args
        .ttl
        .map_or_else(|| "without end".into(), |s| format!("for {}", in_words(s)));
    eprintln!(
        "neap: {:?} is kept {end}, with priority {}",
        session.name, args.priority
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Listed(Vec<Told>);

    impl Place for Listed {
        fn list(&mut self) -> Result<Vec<Told>, Failure> {
            Ok(self.0.clone())
        }
        fn export(&mut self, _: &Told, _: File) -> Result<(), Failure> {
            Ok(())
        }
        fn import(&mut self, _: &SessionImportArgs) -> Result<String, Failure> {
            Ok(String::new())
        }
        fn delete(&mut self, _: &Told) -> Result<(), Failure> {
            Ok(())
        }
        fn pin(&mut self, _: &Told, _: &Pin) -> Result<(), Failure> {
            Ok(())
        }
    }

    fn told(id: &str, name: &str) -> Told {
        Told {
            id: id.into(),
            name: name.into(),
            tokens: 7,
            priority: 0,
            quality: "exact".into(),
            is_kept: true,
            saved_ms: Some(1),
            expires_ms: Some(7_200_000),
            stored_bytes: Some(3 << 20),
        }
    }

    #[test]
    fn a_session_is_named_by_its_name_or_the_beginning_of_its_id() {
        let all = [
            ("abcd1", "one"),
            ("abcd2", "two"),
            ("abce3", "two"),
            ("ffff4", "abcd1"),
        ];
        let mut place = Listed(all.iter().map(|(id, name)| told(id, name)).collect());
        let mut found = |wanted: &str| find(&mut place, wanted).ok().map(|s| s.id);
        assert_eq!(found("one").as_deref(), Some("abcd1"));
        assert_eq!(found("abce").as_deref(), Some("abce3"));
        assert_eq!(found("abcd1").as_deref(), Some("ffff4"), "names go first");
        for nothing in ["two", "abcd", "abc", "none"] {
            assert_eq!(found(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_line_holds_nothing_that_moves_the_cursor() {
        let line = line(&told("0123456789abcdef", "a\x1b[2J\nb"), 0);
        assert!(
            line.starts_with("0123456789ab  ") && line.contains("2 h"),
            "{line}"
        );
        assert!(!line.contains(['\x1b', '\n']), "{line}");
    }
}
