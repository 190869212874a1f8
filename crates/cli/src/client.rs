//! A client for the paths of a running server that speak JSON.

use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::Response;

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
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(key) = &self.admin_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        self.answer(request.call())
    }

    pub fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let mut request = self.agent.put(format!("{}{path}", self.url));
        if let Some(key) = &self.admin_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.header("content-type", "application/json");
        self.answer(request.send(body.to_string()))
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
