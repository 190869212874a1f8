//! `neap pull`: a model of the hub into the cache.

use std::fs;

use crate::args::PullArgs;
use crate::bytes::show;
use crate::failure::Failure;
use crate::hub::download::Hub;
use crate::hub::{self, Cache, listing};
use crate::loading;

pub fn run(args: &PullArgs) -> Result<(), Failure> {
    let cache = Cache::new(args.cache.as_deref())?;
    let (model, revision) = (&args.model, args.revision.as_str());
    if !hub::is_plain_path(revision) {
        return Err(Failure::new(format!(
            "--revision {revision:?} is no branch, tag or commit"
        )));
    }
    if args.offline {
        let snapshot = cache.snapshot(model, revision).ok_or_else(|| {
            Failure::new(format!(
                "{model} at {revision} is not in the cache: run this without --offline"
            ))
        })?;
        println!("{}", hub::in_snapshot(model, &snapshot)?.display());
        return Ok(());
    }
    let token = match &args.token_file {
        None => None,
        Some(path) => {
            let token = fs::read_to_string(path)
                .map_err(|why| Failure::new(format!("--token-file {}: {why}", path.display())))?;
            Some(token.trim().to_owned())
        }
    };
    let hub = Hub::new(&args.endpoint, token)?;
    let commit = hub.commit(model, revision)?;
    let files = listing::choose(&commit.files, model.file.as_deref())
        .map_err(|why| Failure::new(format!("{}: {why}", model.repository())))?;
    let folder = cache.folder(model);
    for file in &files {
        let bar = loading::progress_bar(&file.name);
        let path = hub.fetch((model, &commit.id), &file.name, &folder, &bar)?;
        bar.finish_and_clear();
        eprintln!("neap: {}, {}", file.name, show(fs::metadata(path)?.len()));
    }
    // Only now: a revision that is known has its files.
    let reference = folder.join("refs").join(revision);
    if let Some(parent) = reference.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(reference, &commit.id)?;
    let snapshot = folder.join("snapshots").join(&commit.id);
    match hub::in_snapshot(model, &snapshot) {
        Ok(path) => println!("{}", path.display()),
        // Another file than a model, such as an adapter.
        Err(_) => println!("{}", snapshot.display()),
    }
    Ok(())
}
