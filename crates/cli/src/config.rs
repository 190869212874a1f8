//! `--config FILE`: the flags of `neap serve` from a TOML file.
//!
//! A key is a flag's name, with `-` or `_`, and its value what would follow the flag; so every flag is a key, and is
//! checked in the same place. What the command line says goes first.

use std::ffi::OsString;
use std::path::Path;

use clap::{ArgAction, Command};
use toml::{Table, Value};

use crate::failure::Failure;

/// The command whose flags a file may hold.
const COMMAND: &str = "serve";
const FLAG: &str = "config";

/// The arguments with those of the file put in, if they name one.
pub fn expand(args: Vec<OsString>, program: &Command) -> Result<Vec<OsString>, Failure> {
    let Some(at) = args.iter().position(|arg| arg == COMMAND) else {
        return Ok(args);
    };
    let Some(path) = path_in(&args[at + 1..]) else {
        return Ok(args);
    };
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new(format!("--config {}: {why}", Path::new(&path).display()))
    };
    let text = std::fs::read_to_string(&path).map_err(|why| failed(&why))?;
    let table: Table = text.parse().map_err(|why| failed(&why))?;
    let command = program
        .find_subcommand(COMMAND)
        .ok_or_else(|| failed(&"the program has no such command"))?;
    let given = &args[at + 1..];
    let from_file = flags(&table, command, given).map_err(|why| failed(&why))?;
    let mut all = args[..=at].to_vec();
    all.extend(from_file);
    all.extend_from_slice(given);
    Ok(all)
}

fn path_in(args: &[OsString]) -> Option<OsString> {
    let long = format!("--{FLAG}");
    for (index, arg) in args.iter().enumerate() {
        if *arg == *long {
            return args.get(index + 1).cloned();
        }
        if let Some(path) = arg
            .to_str()
            .and_then(|a| a.strip_prefix(&format!("{long}=")))
        {
            return Some(path.into());
        }
    }
    None
}

/// A table as flags, without those that `given` has already.
fn flags(table: &Table, command: &Command, given: &[OsString]) -> Result<Vec<OsString>, String> {
    let mut out = Vec::new();
    for (key, value) in table {
        let name = key.replace('_', "-");
        let arg = command
            .get_arguments()
            .find(|arg| arg.get_long() == Some(&*name))
            .filter(|_| !matches!(&*name, FLAG | "help" | "version"))
            .ok_or_else(|| format!("there is no flag for the key `{key}`"))?;
        let is_list = matches!(arg.get_action(), ArgAction::Append);
        if !is_list && is_given(&name, arg.get_short(), given) {
            continue;
        }
        let values = match value {
            Value::Array(values) if is_list => values.iter().collect(),
            value => vec![value],
        };
        for value in values {
            let text = match value {
                Value::Boolean(false) if is_switch(arg) => continue,
                Value::Boolean(true) if is_switch(arg) => None,
                Value::String(text) => Some(text.clone()),
                Value::Integer(number) => Some(number.to_string()),
                Value::Float(number) => Some(number.to_string()),
                Value::Boolean(on) => Some(on.to_string()),
                Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
                    return Err(format!(
                        "the key `{key}` must be a text, a number, or true or false"
                    ));
                }
            };
            out.push(match text {
                None => format!("--{name}").into(),
                Some(text) => format!("--{name}={text}").into(),
            });
        }
    }
    Ok(out)
}

fn is_switch(arg: &clap::Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse)
}

fn is_given(name: &str, short: Option<char>, given: &[OsString]) -> bool {
    let long = format!("--{name}");
    let with_value = format!("{long}=");
    given.iter().filter_map(|arg| arg.to_str()).any(|arg| {
        let is_short = short.is_some_and(|s| {
            arg.strip_prefix('-')
                .is_some_and(|rest| rest.starts_with(s))
        });
        arg == long || arg.starts_with(&with_value) || is_short
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    use crate::args::{Cli, Command as Chosen};

    fn parse(file: &str, args: &[&str]) -> Result<crate::args::ServeArgs, String> {
        let folder = std::env::temp_dir().join(format!("neap-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let name = format!("{}.toml", file.len() * 1000 + args.len());
        let path = folder.join(name);
        std::fs::write(&path, file).unwrap();
        let mut all: Vec<OsString> = vec![
            "neap".into(),
            "serve".into(),
            "--config".into(),
            path.into(),
        ];
        all.extend(args.iter().map(OsString::from));
        let all = expand(all, &Cli::command()).map_err(|why| format!("{why:?}"))?;
        let cli = Cli::try_parse_from(all).map_err(|why| why.to_string())?;
        let Chosen::Serve(serve) = cli.command else {
            panic!("another command");
        };
        Ok(serve)
    }

    #[test]
    fn a_file_holds_flags_and_the_command_line_goes_first() {
        let file = "port = 9000\nhost = \"::1\"\nmemory = \"2GiB\"\nmax_queue = 7\napi-key = [\"a\", \"b\"]\n";
        let serve = parse(file, &["-p", "9001", "--api-key", "c"]).unwrap();
        assert_eq!((serve.port, serve.host.as_str()), (9001, "::1"));
        assert_eq!((serve.model.memory, serve.max_queue), (Some(2 << 30), 7));
        assert_eq!(serve.api_key, ["a", "b", "c"]);
    }

    #[test]
    fn what_is_no_flag_is_refused_by_name() {
        for (file, said) in [
            ("prot = 9", "`prot`"),
            ("port = [1]", "`port`"),
            ("port = \"x\"", "--port"),
            ("config = \"x\"", "`config`"),
            ("port", "expected"),
        ] {
            let why = parse(file, &[]).unwrap_err();
            assert!(why.contains(said), "{file}: {why}");
        }
    }
}
