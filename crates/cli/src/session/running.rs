//! The sessions of a running server.

use std::fs::File;

use serde_json::json;

use super::{Pin, Place, Told};
use crate::args::{ServerArgs, SessionImportArgs};
use crate::client::Client;
use crate::failure::Failure;

pub struct Running {
    client: Client,
}

impl Running {
    pub fn new(server: &ServerArgs) -> Result<Self, Failure> {
        let client = Client::new(&server.url, server.admin_key.as_deref())?;
        Ok(Self { client })
    }
}

fn path(session: &Told, what: &str) -> String {
    format!("/memory/sessions/{}{what}", session.id)
}

impl Place for Running {
    fn list(&mut self) -> Result<Vec<Told>, Failure> {
        let mut answer = self.client.get("/memory/sessions")?;
        let told = serde_json::from_value(answer["sessions"].take());
        let mut told: Vec<Told> = told.map_err(|why| {
            Failure::new(format!(
                "{}: sessions of another form: {why}",
                self.client.url()
            ))
        })?;
        // It becomes part of a path.
        told.retain(|s| s.id.bytes().all(|b| b.is_ascii_hexdigit()));
        Ok(told)
    }

    fn export(&mut self, session: &Told, mut file: File) -> Result<(), Failure> {
        self.client.download(&path(session, "/export"), &mut file)?;
        Ok(file.sync_all()?)
    }

    fn import(&mut self, args: &SessionImportArgs) -> Result<String, Failure> {
        let failed = |why| Failure::new(format!("{} can't be read: {why}", args.file.display()));
        let file = File::open(&args.file).map_err(failed)?;
        let whose = args
            .session_key
            .as_deref()
            .map(|key| ("x-session-key", key));
        let answer = self.client.upload("/memory/sessions/import", whose, file)?;
        Ok(answer["name"].as_str().unwrap_or_default().to_owned())
    }

    fn delete(&mut self, session: &Told) -> Result<(), Failure> {
        self.client.delete(&path(session, "")).map(|_| ())
    }

    fn pin(&mut self, session: &Told, pin: &Pin) -> Result<(), Failure> {
        let body = json!({"priority": pin.priority, "ttl_seconds": pin.ttl_s});
        self.client.post(&path(session, "/pin"), &body).map(|_| ())
    }
}
