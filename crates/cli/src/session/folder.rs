//! The sessions in a folder that no other neap uses now.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use neap_memory::session::{KeepOptions, Session, SessionError, SessionFile, Sessions};
use neap_memory::{Budget, Fingerprint, Namespace};
use neap_model::decoder::BLOCK_TOKENS;

use super::{Pin, Place, Told};
use crate::args::{SessionImportArgs, parse_session};
use crate::blocks::BlockFolder;
use crate::failure::Failure;
use crate::generate::clock_ms;
use crate::keep::write_whole;
use crate::remote::secret;

/// More than any folder has: nothing is evicted by looking.
const LIMIT_BYTES: u64 = u64::MAX / 2;
/// The name of the file with a server's secret.
const SECRET: &str = "secret";

pub struct Kept {
    path: PathBuf,
    blocks: BlockFolder,
    /// One for each model.
    of_models: Vec<Sessions>,
}

impl Kept {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        if !path.join("blocks").is_dir() {
            return Err(Failure::new(format!(
                "{} holds no sessions: give the folder of `neap serve --disk` or `neap chat --store`",
                path.display()
            )));
        }
        let blocks = BlockFolder::open(path, LIMIT_BYTES)?;
        blocks.store.charge_to(&Budget::new(u64::MAX / 2));
        let models = Sessions::fingerprints(&blocks.store).into_iter();
        let of_models = models
            .map(|model| Sessions::open(&blocks.store, model, BLOCK_TOKENS))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            blocks,
            of_models,
        })
    }

    /// The sessions of a model, and which of them it is.
    fn find(&mut self, told: &Told) -> Result<(&mut Sessions, Namespace), Failure> {
        let now_ms = clock_ms();
        let found = self.of_models.iter_mut().find_map(|sessions| {
            let session = sessions.iter(now_ms).find(|s| id(s) == told.id);
            let namespace = session.map(|s| s.namespace)?;
            Some((sessions, namespace))
        });
        found.ok_or_else(|| Failure::new(format!("there is no session {:?}", told.name)))
    }

    /// The file with what was said, if the session is one of `neap chat`.
    fn words(&self, name: &str) -> Option<PathBuf> {
        parse_session(name).ok()?;
        let is_servers = self.path.join(SECRET).exists();
        (!is_servers).then(|| self.path.join(format!("{name}.json")))
    }

    /// Whose a session becomes.
    fn namespace(
        &self,
        args: &SessionImportArgs,
        model: &Fingerprint,
        session: &Session,
    ) -> Result<Namespace, Failure> {
        let has_secret = self.path.join(SECRET).exists();
        let secret = match &args.remote_secret_file {
            Some(path) => secret(path)?,
            None if has_secret => secret(&self.path.join(SECRET))?,
            // That of `neap chat`.
            None => [0; 32],
        };
        let tenant = args.session_key.as_deref().map(neap_server::tenant_of_key);
        let tenant = tenant.unwrap_or_default();
        let namespace = Namespace::new(&secret, &tenant, model);
        Ok(namespace.with_quality(session.namespace.quality()))
    }
}

fn id(session: &Session) -> String {
    let key = session.key();
    key.as_bytes().iter().map(|b| format!("{b:02x}")).collect()
}

impl Place for Kept {
    fn list(&mut self) -> Result<Vec<Told>, Failure> {
        let now_ms = clock_ms();
        let of_models = self.of_models.iter();
        let all = of_models.flat_map(|sessions| {
            sessions.iter(now_ms).map(|session| Told {
                id: id(session),
                name: session.name.clone(),
                tokens: session.tokens.len(),
                priority: session.priority,
                quality: session.namespace.quality().to_string(),
                is_kept: true,
                saved_ms: Some(session.saved_ms),
                expires_ms: session.expires_ms,
                stored_bytes: Some(sessions.stored_bytes(session)),
            })
        });
        Ok(all.collect())
    }

    fn export(&mut self, told: &Told, file: File) -> Result<(), Failure> {
        let words = self
            .words(&told.name)
            .and_then(|path| std::fs::read(path).ok());
        let (sessions, namespace) = self.find(told)?;
        let export = sessions.exporter(&namespace, &told.name, clock_ms())?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        export.write(words.as_deref(), &mut out)?;
        out.flush()?;
        Ok(out.get_ref().sync_all()?)
    }

    fn import(&mut self, args: &SessionImportArgs) -> Result<String, Failure> {
        let failed =
            |why: &dyn std::fmt::Display| Failure::new(format!("{}: {why}", args.file.display()));
        let file = File::open(&args.file).map_err(|why| failed(&why))?;
        let file = SessionFile::open(BufReader::with_capacity(1 << 20, file))
            .map_err(|why| failed(&why))?;
        if file.block_tokens != BLOCK_TOKENS {
            return Err(failed(&"made with blocks of another number of tokens"));
        }
        let model = file.fingerprint;
        let mut refused = None;
        let place = |session: &Session| {
            self.namespace(args, &model, session).map_err(|why| {
                refused = Some(why);
                SessionError::Unknown(session.name.clone())
            })
        };
        let imported = file.read(&self.blocks.store, place, clock_ms());
        let imported = match (imported, refused) {
            (_, Some(why)) => return Err(why),
            (imported, None) => imported.map_err(|why| failed(&why))?,
        };
        let name = imported.session.name.clone();
        if let (Some(words), Some(path)) = (&imported.words, self.words(&name)) {
            // The words last: without them a chat would begin anew over the session.
            write_whole(&path, words)?;
        }
        Ok(name)
    }

    fn delete(&mut self, told: &Told) -> Result<(), Failure> {
        let words = self.words(&told.name);
        let (sessions, namespace) = self.find(told)?;
        sessions.delete(&namespace, &told.name)?;
        match words.map(std::fs::remove_file) {
            Some(Err(why)) if why.kind() != std::io::ErrorKind::NotFound => Err(why.into()),
            _ => Ok(()),
        }
    }

    fn pin(&mut self, told: &Told, pin: &Pin) -> Result<(), Failure> {
        let (sessions, namespace) = self.find(told)?;
        let options = KeepOptions {
            priority: pin.priority,
            ttl_ms: pin.ttl_s.map(|s| s.saturating_mul(1000)),
        };
        Ok(sessions.set_keep(&namespace, &told.name, options, clock_ms())?)
    }
}
