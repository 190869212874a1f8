//! A client for the paths of a running server that speak JSON, or take and give files.

use std::fs::File;
use std::io;
use std::time::Duration;

use serde_json::Value;

use crate::failure::Failure;
use crate::http::Target;

/// Time for each step of a question: connecting, sending, and each piece of the answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The same where a file goes or comes: as good as none.
const FILE_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// A server by its address, and the key to say with every question.
pub struct Client {
    target: Target,
    url: String,
}

impl Client {
    /// Connects to nothing yet.
    pub fn new(url: &str, admin_key: Option<&str>) -> Result<Self, Failure> {
        if url.starts_with("https:") {
            return Err(Failure::new(format!(
                "{url}: this command does not speak https; go to another machine by \
                 `ssh -L 8080:localhost:8080 HOST` and give --url http://localhost:8080"
            )));
        }
        let url = if url.contains("://") {
            url.to_owned()
        } else {
            format!("http://{url}")
        };
        let url = url.trim_end_matches('/').to_owned();
        let key = admin_key.map(str::to_owned);
        Ok(Self {
            target: Target::parse(&url, key, TIMEOUT).map_err(Failure::new)?,
            url,
        })
    }

    /// The server's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        self.answer(self.target.whole("GET", path, None))
    }

    pub fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.answer(self.target.whole("PUT", path, Some(&body.to_string())))
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.answer(self.target.whole("POST", path, Some(&body.to_string())))
    }

    pub fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.answer(self.target.whole("DELETE", path, None))
    }

    /// Writes what is answered to `out`, however long that takes.
    pub fn download(&self, path: &str, out: &mut File) -> Result<(), Failure> {
        let target = self.target.with_timeout(FILE_TIMEOUT);
        let sent = target.send("GET", path, None);
        let mut answer = sent.map_err(|why| self.unreachable(&why))?;
        if answer.status != 200 {
            let whole = answer.rest().map(|text| (answer.status, text));
            return self.answer(whole).map(|_| ());
        }
        let cut_off =
            |why: String| Failure::new(format!("{}: the answer was cut off: {why}", self.url));
        io::copy(&mut answer, out).map_err(|why| cut_off(why.to_string()))?;
        match answer.is_whole() {
            true => Ok(()),
            false => Err(cut_off("it ended early".to_owned())),
        }
    }

    /// Sends a file, however long that takes.
    pub fn upload(
        &self,
        path: &str,
        header: Option<(&str, &str)>,
        file: File,
    ) -> Result<Value, Failure> {
        let bytes = file.metadata()?.len();
        let mut headers = vec![("Content-Type", "application/octet-stream")];
        headers.extend(header);
        let target = self.target.with_timeout(FILE_TIMEOUT);
        let sent = target.send_from("POST", path, &headers, (file, bytes));
        let whole = sent.and_then(|mut answer| Ok((answer.status, answer.rest()?)));
        self.answer(whole)
    }

    fn answer(&self, got: io::Result<(u16, String)>) -> Result<Value, Failure> {
        let (status, body) = got.map_err(|why| self.unreachable(&why))?;
        let value: Result<Value, _> = serde_json::from_str(&body);
        match (status, value) {
            (200, Ok(value)) => Ok(value),
            (200, Err(_)) => Err(Failure::new(format!(
                "what answers at {} is no neap server: its answer is not JSON",
                self.url
            ))),
            (_, value) => Err(self.refused(status, &value.unwrap_or_default())),
        }
    }

    fn unreachable(&self, why: &io::Error) -> Failure {
        let url = &self.url;
        Failure::new(format!(
            "no server answers at {url}: {why}; start one with `neap serve`, or give its address by --url"
        ))
    }

    fn refused(&self, status: u16, answer: &Value) -> Failure {
        let url = &self.url;
        let said = answer["error"]["message"].as_str();
        let said = said.map_or_else(|| format!("status {status}"), str::to_owned);
        let advice = match status {
            401 | 403 => {
                "; give the key that the server was started with by --admin-key, or run this on its machine"
            }
            404 | 405 => "; is that a neap server of this version?",
            _ => "",
        };
        Failure::new(format!("{url}: {said}{advice}"))
    }
}
