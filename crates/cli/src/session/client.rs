//! A client for a running server's sessions: JSON, and files of any length both ways.

use std::fs::File;
use std::time::Duration;

use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, RequestBuilder};

use crate::failure::Failure;

/// Longest answer that is read.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
/// Time for one question, from connecting to the last byte of the answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A server by its address, and the key to say with every question.
pub struct Client {
    agent: Agent,
    url: String,
    admin_key: Option<String>,
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
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            // The environment's proxies are not asked: flags are the only configuration.
            .proxy(None)
            .build();
        Ok(Self {
            agent: config.into(),
            url: url.trim_end_matches('/').to_owned(),
            admin_key: admin_key.map(str::to_owned),
        })
    }

    /// The server's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        self.answer(self.signed(self.agent.get(self.at(path))).call())
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.signed(self.agent.post(self.at(path)));
        let request = request.header("content-type", "application/json");
        self.answer(request.send(body.to_string()))
    }

    pub fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.answer(self.signed(self.agent.delete(self.at(path))).call())
    }

    /// Writes what is answered to `out`, however long that takes.
    pub fn download(&self, path: &str, out: &mut File) -> Result<(), Failure> {
        let request = self.signed(self.agent.get(self.at(path)));
        let request = request.config().timeout_global(None).build();
        let mut response = request.call().map_err(|why| self.unreachable(&why))?;
        if response.status().as_u16() != 200 {
            return self.answer(Ok(response)).map(|_| ());
        }
        let mut body = response.body_mut().as_reader();
        std::io::copy(&mut body, out)
            .map_err(|why| Failure::new(format!("{}: the answer was cut off: {why}", self.url)))?;
        Ok(())
    }

    /// Sends a file, however long that takes.
    pub fn upload(
        &self,
        path: &str,
        header: Option<(&str, &str)>,
        file: File,
    ) -> Result<Value, Failure> {
        let mut request = self.signed(self.agent.post(self.at(path)));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.header("content-type", "application/octet-stream");
        let request = request.config().timeout_global(None).build();
        self.answer(request.send(file))
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn signed<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.admin_key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn answer(&self, got: Result<Response<ureq::Body>, ureq::Error>) -> Result<Value, Failure> {
        let mut response = got.map_err(|why| self.unreachable(&why))?;
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER_BYTES)
            .read_to_vec()
            .map_err(|why| self.unreachable(&why))?;
        let value: Result<Value, _> = serde_json::from_slice(&body);
        match (status, value) {
            (200, Ok(value)) => Ok(value),
            (200, Err(_)) => Err(Failure::new(format!(
                "what answers at {} is no neap server: its answer is not JSON",
                self.url
            ))),
            (_, value) => Err(self.refused(status, &value.unwrap_or_default())),
        }
    }

    fn unreachable(&self, why: &ureq::Error) -> Failure {
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
