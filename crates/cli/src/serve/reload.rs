//! The command line and its file, read again while the server runs.

use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};

use clap::{CommandFactory, Parser};
use neap_memory::{Budget, Fingerprint};
use neap_model::decoder::CpuDecoder;
use neap_server::{Change, Configuration, Load};

use super::below::Below;
use super::{Checked, live, load};
use crate::adapters::NamedAdapter;
use crate::args::{Cli, Command, ModelArgs, ServeArgs};
use crate::config;
use crate::failure::Failure;
use crate::loading;

/// Where a server's settings come from.
pub struct CommandLine {
    words: Vec<OsString>,
    /// With what the process began: what needs a restart is as here.
    started: ServeArgs,
    state: Mutex<State>,
    budget: Budget,
    below: Arc<Below>,
}

/// Settings, and what stands in the files that they name.
#[derive(Clone)]
struct Settings {
    args: ServeArgs,
    api_keys: Vec<String>,
    fingerprint: Fingerprint,
}

struct State {
    in_force: Settings,
    read: Option<Settings>,
}

impl CommandLine {
    /// Those of this process, which began with `args` and a model of this fingerprint.
    pub fn new(
        args: &ServeArgs,
        fingerprint: Fingerprint,
        (budget, below): (Budget, Arc<Below>),
    ) -> Self {
        let in_force = Settings {
            args: args.clone(),
            // They were read a moment ago.
            api_keys: super::api_keys(args).unwrap_or_default(),
            fingerprint,
        };
        Self {
            words: std::env::args_os().collect(),
            started: args.clone(),
            state: Mutex::new(State {
                in_force,
                read: None,
            }),
            budget,
            below,
        }
    }

    fn parse(&self) -> Result<ServeArgs, Failure> {
        let words = config::expand(self.words.clone(), &Cli::command())?;
        match Cli::try_parse_from(words)?.command {
            Command::Serve(args) => Ok(args),
            _ => Err(Failure::new("the command line is not that of neap serve")),
        }
    }

    fn compare(&self) -> Result<Change<CpuDecoder>, Failure> {
        let mut args = self.parse()?;
        let needs_restart = differing(&fixed(&self.started), &fixed(&args));
        let live = live(&args)?;
        let checked = Checked::open(&args, self.limit_bytes(&args))?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let old = &state.in_force;
        let new_limit =
            (args.model.memory != old.args.model.memory).then(|| loading::limit_bytes(&args.model));
        let is_other_file = checked.fingerprint != old.fingerprint;
        let mut changed = differing(&changeable(&old.args), &changeable(&args));
        // What stands in the files that flags name.
        if live.api_keys != old.api_keys {
            changed.push("api-key".to_owned());
        }
        if is_other_file {
            changed.push("model".to_owned());
        }
        changed.sort();
        changed.dedup();
        let is_other = is_other_file || running(&old.args) != running(&args);
        keep_fixed(&mut args, &self.started);
        let read = Settings {
            args: args.clone(),
            api_keys: live.api_keys.clone(),
            fingerprint: checked.fingerprint,
        };
        state.read = Some(read);
        let (budget, below) = (self.budget.clone(), Arc::clone(&self.below));
        let load: Load<CpuDecoder> =
            Box::new(move || load(&args, checked, &budget, &below).map_err(Failure::into_message));
        Ok(Change {
            live,
            budget_bytes: new_limit,
            model: is_other.then_some(load),
            changed,
            needs_restart,
        })
    }

    /// The budget that the model would have.
    fn limit_bytes(&self, args: &ServeArgs) -> u64 {
        args.model.memory.unwrap_or_else(|| self.budget.limit())
    }
}

impl Configuration<CpuDecoder> for CommandLine {
    fn read(&self) -> Result<Change<CpuDecoder>, String> {
        self.compare().map_err(Failure::into_message)
    }

    fn keep(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = state.read.take() {
            state.in_force = read;
        }
    }
}

/// Flags by name, in a form that can be compared.
type Named = Vec<(&'static str, String)>;

fn differing(old: &Named, new: &Named) -> Vec<String> {
    let pairs = old.iter().zip(new);
    pairs
        .filter(|((_, old), (_, new))| old != new)
        .map(|((name, _), _)| (*name).to_owned())
        .collect()
}

fn shown(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}")
}

/// What needs a restart.
fn fixed(args: &ServeArgs) -> Named {
    vec![
        ("host", shown(&args.host)),
        ("port", shown(&args.port)),
        ("embedding-model", shown(&args.embedding_model)),
        ("classifier-model", shown(&args.classifier_model)),
        ("disk", shown(&args.disk)),
        ("disk-limit", shown(&args.disk_limit)),
        ("remote", shown(&args.remote)),
        ("otlp", shown(&args.otlp)),
    ]
}

/// Puts what needs a restart back.
fn keep_fixed(args: &mut ServeArgs, started: &ServeArgs) {
    args.host.clone_from(&started.host);
    args.port = started.port;
    args.embedding_model.clone_from(&started.embedding_model);
    args.classifier_model.clone_from(&started.classifier_model);
    args.disk.clone_from(&started.disk);
    args.disk_limit = started.disk_limit;
    args.remote = started.remote.clone();
    args.otlp.clone_from(&started.otlp);
}

/// What a loaded model depends on.
fn running(args: &ServeArgs) -> (ModelArgs, u32, Option<String>, Vec<NamedAdapter>) {
    let model = ModelArgs {
        memory: None,
        ..args.model.clone()
    };
    let adapters = args.lora.clone();
    (model, args.parallel, args.model_name.clone(), adapters)
}

/// What can change while the process runs. Every flag is here or in [`fixed`]: one that is added does not compile
/// until it is.
fn changeable(args: &ServeArgs) -> Named {
    let ServeArgs {
        host: _,
        port: _,
        embedding_model: _,
        classifier_model: _,
        disk: _,
        disk_limit: _,
        remote: _,
        otlp: _,
        parallel,
        max_queue,
        api_key,
        api_key_file,
        admin_key,
        model_name,
        lora,
        max_body,
        slow_client,
        step_ms,
        idle_sink,
        grace,
        config: _,
        model,
    } = args;
    let ModelArgs {
        model: path,
        memory,
        threads,
        context,
        chunk,
        kv_quality,
        kv_level,
        repack,
        quantize,
        isa,
    } = model;
    vec![
        ("parallel", shown(parallel)),
        ("max-queue", shown(max_queue)),
        ("api-key", shown(api_key)),
        ("api-key-file", shown(api_key_file)),
        ("admin-key", shown(admin_key)),
        ("model-name", shown(model_name)),
        ("lora", shown(lora)),
        ("max-body", shown(max_body)),
        ("slow-client", shown(slow_client)),
        ("step-ms", shown(step_ms)),
        ("idle-sink", shown(idle_sink)),
        ("grace", shown(grace)),
        ("model", shown(path)),
        ("memory", shown(memory)),
        ("threads", shown(threads)),
        ("context", shown(context)),
        ("chunk", shown(chunk)),
        ("kv-quality", shown(kv_quality)),
        ("kv-level", shown(kv_level)),
        ("repack", shown(repack)),
        ("quantize", shown(quantize)),
        ("isa", shown(isa)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(words: &[&str]) -> ServeArgs {
        let words = ["neap", "serve"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Serve(args) => args,
            _ => unreachable!("it says serve"),
        }
    }

    #[test]
    fn every_flag_is_told_apart() {
        let old = serve(&[]);
        let new = serve(&[
            "--port",
            "9",
            "--disk",
            "x",
            "--max-queue",
            "3",
            "--chunk",
            "64",
            "--memory",
            "1GiB",
        ]);
        assert_eq!(differing(&fixed(&old), &fixed(&new)), ["port", "disk"]);
        let changed = differing(&changeable(&old), &changeable(&new));
        assert_eq!(changed, ["max-queue", "memory", "chunk"]);
        assert_ne!(running(&old), running(&new));
        let mut kept = new.clone();
        keep_fixed(&mut kept, &old);
        assert_eq!(differing(&fixed(&old), &fixed(&kept)), [""; 0]);
        assert_eq!(running(&kept), running(&new));
    }

    #[test]
    fn keys_and_budgets_are_no_other_model() {
        let old = serve(&[]);
        let new = serve(&["--api-key", "a", "--memory", "1GiB", "--step-ms", "7"]);
        assert_eq!(running(&old), running(&new));
    }
}
