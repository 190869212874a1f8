//! A store in a bucket of S3, or of what speaks as it does.
//!
//! Requests are signed in their query (presigned URLs of Signature Version 4), which every such store takes. Redirects
//! are not followed and nothing is tried twice: a call that fails costs a recomputation.

use std::path::{Path, PathBuf};
use std::time::Duration;

use neap_memory::remote::{RemoteError, RemoteStore};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use ureq::http::Response;
use ureq::{Agent, Body};
use url::Url;

use crate::failure::Failure;

/// Time to reach the store.
const CONNECT: Duration = Duration::from_secs(3);
/// Time for one object, from connecting to its last byte.
const CALL: Duration = Duration::from_secs(15);
/// How long a signature holds: clocks may differ.
const SIGNED_FOR: Duration = Duration::from_secs(300);
/// Of what a store says when it refuses.
const MOST_SAID_BYTES: u64 = 4096;

/// See the [module's description](self).
pub struct S3 {
    agent: Agent,
    bucket: Bucket,
    credentials: Option<Credentials>,
    /// Before every object's name: empty, or ends in `/`.
    prefix: String,
    name: String,
}

/// What a URL asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    bucket: String,
    prefix: String,
    endpoint: Option<String>,
    region: String,
    is_virtual_host: bool,
    profile: String,
    is_anonymous: bool,
}

impl Asked {
    fn parse(url: &str) -> Result<Self, String> {
        let parsed = Url::parse(url).map_err(|why| why.to_string())?;
        let bucket = parsed.host_str().filter(|host| !host.is_empty());
        let bucket = bucket.ok_or("name the bucket: s3://BUCKET/PREFIX")?;
        let prefix = parsed.path().trim_matches('/');
        let mut asked = Self {
            bucket: bucket.to_owned(),
            prefix: match prefix {
                "" => String::new(),
                prefix => format!("{prefix}/"),
            },
            endpoint: None,
            region: "us-east-1".into(),
            is_virtual_host: false,
            profile: "default".into(),
            is_anonymous: false,
        };
        for (name, value) in parsed.query_pairs() {
            let value = value.into_owned();
            match (&*name, &*value) {
                ("endpoint", _) => asked.endpoint = Some(value),
                ("region", _) => asked.region = value,
                ("profile", _) => asked.profile = value,
                ("style", "path") => asked.is_virtual_host = false,
                ("style", "host") => asked.is_virtual_host = true,
                ("anonymous", "true") => asked.is_anonymous = true,
                _ => {
                    return Err(format!(
                        "{name}={value} is not known: use endpoint=URL, region=NAME, style=path or host, \
                         profile=NAME, anonymous=true"
                    ));
                }
            }
        }
        Ok(asked)
    }

    fn endpoint(&self) -> Result<Url, String> {
        let amazons = || format!("https://s3.{}.amazonaws.com", self.region);
        let endpoint = self.endpoint.clone().unwrap_or_else(amazons);
        let url = Url::parse(&endpoint).map_err(|why| format!("endpoint {endpoint}: {why}"))?;
        if url.scheme() == "https" && !cfg!(feature = "tls") {
            return Err(format!(
                "{endpoint} needs TLS, which this neap was built without: build it with \
                 `cargo install --path crates/cli --features tls`, or give endpoint=http://…"
            ));
        }
        Ok(url)
    }
}

impl S3 {
    /// The bucket that `url` names. Nothing is asked of it yet. Keys are read from `credentials`, or from where Amazon's
    /// tools keep them.
    pub fn open(url: &str, credentials: Option<&Path>) -> Result<Self, Failure> {
        let failed = |why: String| Failure::new(format!("--remote {url}: {why}"));
        let asked = Asked::parse(url).map_err(failed)?;
        let endpoint = asked.endpoint().map_err(failed)?;
        let keys = match asked.is_anonymous {
            true => None,
            false => Some(read_credentials(credentials, &asked.profile).map_err(failed)?),
        };
        let style = match asked.is_virtual_host {
            true => UrlStyle::VirtualHost,
            false => UrlStyle::Path,
        };
        let name = format!("s3://{}/{} at {endpoint}", asked.bucket, asked.prefix);
        let bucket = Bucket::new(endpoint, style, asked.bucket, asked.region)
            .map_err(|why| failed(why.to_string()))?;
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(CALL))
            .http_status_as_error(false)
            .max_redirects(0)
            // The environment's proxies are not asked: flags are the only configuration.
            .proxy(None);
        Ok(Self {
            agent: config.build().into(),
            bucket,
            credentials: keys,
            prefix: asked.prefix,
            name,
        })
    }

    /// What is wrong, if the store can't be used as it is: it may come to life later.
    pub fn probe(&self) -> Option<RemoteError> {
        self.has("v1/probe").err()
    }

    fn object(&self, object: &str) -> String {
        format!("{}{object}", self.prefix)
    }
}

/// `[PROFILE]`, `aws_access_key_id = …`, `aws_secret_access_key = …`, and `aws_session_token = …` if there is one.
fn parse_credentials(text: &str, profile: &str) -> Option<Credentials> {
    let mut is_ours = false;
    let (mut key, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            is_ours = name.trim() == profile;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| is_ours) {
            let value = Some(value.trim().to_owned());
            match name.trim() {
                "aws_access_key_id" => key = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(match token {
        Some(token) => Credentials::new_with_token(key?, secret?, token),
        None => Credentials::new(key?, secret?),
    })
}

fn read_credentials(path: Option<&Path>, profile: &str) -> Result<Credentials, String> {
    let usual = || std::env::home_dir().map(|home| home.join(".aws").join("credentials"));
    let path = path.map(PathBuf::from).or_else(usual);
    let path = path.ok_or("there is no home directory: give --remote-credentials")?;
    let shown = path.display();
    let text = std::fs::read_to_string(&path)
        .map_err(|why| format!("{shown}: {why}; give --remote-credentials, or anonymous=true"))?;
    parse_credentials(&text, profile).ok_or_else(|| {
        format!("{shown} has no aws_access_key_id and aws_secret_access_key under [{profile}]")
    })
}

fn failed(why: &ureq::Error) -> RemoteError {
    match why {
        ureq::Error::Timeout(_) => RemoteError::TimedOut,
        ureq::Error::Io(why) if why.kind() == std::io::ErrorKind::TimedOut => RemoteError::TimedOut,
        why => RemoteError::Failed(why.to_string()),
    }
}

/// A status that is neither success nor "not there".
fn refused(mut response: Response<Body>) -> RemoteError {
    let status = response.status();
    let body = response.body_mut().with_config().limit(MOST_SAID_BYTES);
    let said = body.read_to_string().unwrap_or_default();
    // The one word of the XML that says what is wrong.
    let code = said
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"));
    RemoteError::Failed(match code {
        Some((code, _)) => format!("{status}, {}", code.escape_debug()),
        None => status.to_string(),
    })
}

impl RemoteStore for S3 {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn get(&self, object: &str, out: &mut [u8]) -> Result<Option<usize>, RemoteError> {
        let object = self.object(object);
        let url = self.bucket.get_object(self.credentials.as_ref(), &object);
        let url = url.sign(SIGNED_FOR);
        let mut response = self
            .agent
            .get(url.as_str())
            .call()
            .map_err(|w| failed(&w))?;
        match response.status().as_u16() {
            200 => {}
            404 => return Ok(None),
            _ => return Err(refused(response)),
        }
        let mut body = response.body_mut().as_reader();
        let mut len = 0;
        let limit_bytes = out.len();
        loop {
            // One byte more tells whether that was all.
            let mut more = [0];
            let room = match len < limit_bytes {
                true => &mut out[len..],
                false => &mut more[..],
            };
            match std::io::Read::read(&mut body, room)? {
                0 => return Ok(Some(len)),
                _ if len == limit_bytes => return Err(RemoteError::TooLarge { limit_bytes }),
                read => len += read,
            }
        }
    }

    fn has(&self, object: &str) -> Result<bool, RemoteError> {
        let object = self.object(object);
        let url = self.bucket.head_object(self.credentials.as_ref(), &object);
        let url = url.sign(SIGNED_FOR);
        let response = self
            .agent
            .head(url.as_str())
            .call()
            .map_err(|w| failed(&w))?;
        match response.status().as_u16() {
            200 => Ok(true),
            404 => Ok(false),
            _ => Err(refused(response)),
        }
    }

    fn put(&self, object: &str, bytes: &[u8]) -> Result<(), RemoteError> {
        let object = self.object(object);
        let url = self.bucket.put_object(self.credentials.as_ref(), &object);
        let url = url.sign(SIGNED_FOR);
        let response = self
            .agent
            .put(url.as_str())
            .send(bytes)
            .map_err(|w| failed(&w))?;
        match response.status().as_u16() {
            200 | 201 | 204 => Ok(()),
            _ => Err(refused(response)),
        }
    }
}

#[cfg(test)]
#[path = "../../tests/running/s3_server.rs"]
mod s3_server;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use super::s3_server::{Fault, S3Server};
    use super::*;

    fn credentials(secret: &str) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("neap-s3-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let text = format!(
            "# none\n[other]\naws_access_key_id = X\n\n[default]\naws_access_key_id={}\n\
             aws_secret_access_key = {secret}\n",
            s3_server::KEY
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn open(server: &S3Server, secret: &str) -> S3 {
        let path = credentials(secret);
        let url = format!("s3://bucket/some/prefix?endpoint={}", server.url());
        let store = S3::open(&url, Some(&path)).unwrap_or_else(|_| panic!("{url}"));
        std::fs::remove_file(path).unwrap();
        store
    }

    #[test]
    fn urls_name_bucket_prefix_and_endpoint() {
        let asked =
            Asked::parse("s3://models/a/b/?endpoint=http://10.0.0.1:9000&region=eu-1&style=host");
        let asked = asked.unwrap();
        assert_eq!((&*asked.bucket, &*asked.prefix), ("models", "a/b/"));
        assert_eq!(asked.endpoint().unwrap().as_str(), "http://10.0.0.1:9000/");
        assert!(asked.region == "eu-1" && asked.is_virtual_host && asked.profile == "default");
        assert_eq!(Asked::parse("s3://models").unwrap().prefix, "");
        for bad in ["s3:///x", "s3://", "s3://b?endpont=x", "s3://b?style=x"] {
            assert!(Asked::parse(bad).is_err(), "{bad}");
        }
        let amazon = Asked::parse("s3://b?region=eu-west-3").unwrap().endpoint();
        match cfg!(feature = "tls") {
            true => assert_eq!(
                amazon.unwrap().as_str(),
                "https://s3.eu-west-3.amazonaws.com/"
            ),
            false => assert!(amazon.unwrap_err().contains("--features tls")),
        }
    }

    #[test]
    fn profiles_are_apart() {
        let text = "[a]\naws_access_key_id = 1\n[b]\naws_access_key_id=2\naws_secret_access_key= s=s \naws_session_token=t";
        assert!(parse_credentials(text, "a").is_none(), "no secret");
        let b = parse_credentials(text, "b").unwrap();
        assert_eq!((b.key(), b.secret(), b.token()), ("2", "s=s", Some("t")));
        assert!(parse_credentials(text, "c").is_none());
    }

    #[test]
    fn objects_come_back_as_they_were_written_and_requests_are_signed() {
        let server = S3Server::start();
        let store = open(&server, s3_server::SECRET);
        let mut out = [0; 10];
        assert!(store.probe().is_none());
        assert!(!store.has("v1/ab/cd").unwrap());
        assert_eq!(store.get("v1/ab/cd", &mut out).unwrap(), None);
        store.put("v1/ab/cd", b"0123456789").unwrap();
        assert_eq!(server.objects(), ["/bucket/some/prefix/v1/ab/cd"]);
        assert!(store.has("v1/ab/cd").unwrap());
        assert_eq!(store.get("v1/ab/cd", &mut out).unwrap(), Some(10));
        assert_eq!(&out, b"0123456789");
        let short = store.get("v1/ab/cd", &mut out[..9]);
        assert!(
            matches!(short, Err(RemoteError::TooLarge { limit_bytes: 9 })),
            "{short:?}"
        );
        store.put("v1/ab/cd", b"").unwrap();
        assert_eq!(store.get("v1/ab/cd", &mut out).unwrap(), Some(0));

        let stranger = open(&server, "wrong");
        let why = stranger.get("v1/ab/cd", &mut out).unwrap_err().to_string();
        assert!(
            why.contains("403") && why.contains("SignatureDoesNotMatch"),
            "{why}"
        );
        assert!(stranger.put("v1/x", b"x").is_err() && stranger.has("v1/x").is_err());
    }

    #[test]
    fn what_a_bad_store_does_is_an_error_in_time() {
        let server = S3Server::start();
        let store = open(&server, s3_server::SECRET);
        store.put("v1/ab", &[7; 5000]).unwrap();
        let mut out = vec![0; 6000];
        for fault in [
            Fault::Status(500),
            Fault::Status(301),
            Fault::Hangup,
            Fault::CutBody,
            Fault::Nonsense,
        ] {
            server.inject(fault);
            let start = Instant::now();
            let got = store.get("v1/ab", &mut out);
            assert!(got.is_err(), "{fault:?}: {got:?}");
            assert!(start.elapsed() < CALL, "{fault:?}");
            assert_eq!(
                store.get("v1/ab", &mut out).unwrap(),
                Some(5000),
                "after {fault:?}"
            );
        }
        drop(server);
        assert!(store.get("v1/ab", &mut out).is_err());
        assert!(store.probe().is_some());
    }
}
