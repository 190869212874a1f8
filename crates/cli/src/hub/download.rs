//! One file of the hub into the cache: resumed where it was cut off, and checked before it has its name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::Value;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::Agent;
use ureq::http::{HeaderMap, Response};

use super::listing::Listed;
use super::{ModelName, is_plain_path};
use crate::failure::Failure;

/// Longest list of files that is read.
const MAX_LIST_BYTES: u64 = 16 << 20;
/// Attempts in a row that may bring nothing.
const ATTEMPTS: u32 = 4;
/// Before the next attempt; twice as long each time.
const PAUSE: Duration = Duration::from_millis(500);
/// A body that takes longer is cut off and gone on with.
const BODY_TIMEOUT: Duration = Duration::from_secs(900);

/// A hub by its address.
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    follows: Agent,
    /// What redirects to contents says itself what they are.
    stays: Agent,
}

/// A model at one commit.
pub struct Commit {
    pub id: String,
    pub files: Vec<Listed>,
}

/// What the hub says of a file.
struct Head {
    /// The SHA-256 of large files; of small ones git's own hash.
    etag: String,
    bytes: u64,
}

/// Why an attempt ended.
enum Broken {
    /// Another may go on from here.
    Off(String),
    Refused(Failure),
}

impl Hub {
    pub fn new(endpoint: &str, token: Option<String>) -> Result<Self, Failure> {
        let tls = cfg!(feature = "tls");
        if endpoint.starts_with("https:") && !tls {
            return Err(Failure::new(format!(
                "this neap was built without TLS and can't reach {endpoint}: build it with `--features tls`"
            )));
        }
        let agent = |redirects: u32| -> Agent {
            Agent::config_builder()
                .timeout_connect(Some(Duration::from_secs(20)))
                .timeout_recv_response(Some(Duration::from_secs(60)))
                .timeout_recv_body(Some(BODY_TIMEOUT))
                .http_status_as_error(false)
                .max_redirects(redirects)
                .user_agent(concat!("neap/", env!("CARGO_PKG_VERSION")))
                // The environment's proxies are not asked: flags are the only configuration.
                .proxy(None)
                .build()
                .into()
        };
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            follows: agent(5),
            stays: agent(0),
        })
    }

    /// The commit that `revision` is at, and its files.
    pub fn commit(&self, model: &ModelName, revision: &str) -> Result<Commit, Failure> {
        let path = format!(
            "api/models/{}/revision/{revision}?blobs=true",
            model.repository()
        );
        let url = format!("{}/{path}", self.endpoint);
        let answer = self.get(&self.follows, &url, None);
        let mut answer = answer.map_err(|why| self.unreachable(&why))?;
        self.check(answer.status().as_u16(), &format!("{model} at {revision}"))?;
        let body = answer.body_mut().with_config().limit(MAX_LIST_BYTES);
        let body = body.read_to_vec().map_err(|why| self.unreachable(&why))?;
        let wrong = |what: &str| Failure::new(format!("{url}: what answers is no hub: {what}"));
        let listed: Value = serde_json::from_slice(&body).map_err(|_| wrong("it is not JSON"))?;
        let id = listed["sha"].as_str().filter(|id| is_hash(id, &[40]));
        let id = id.ok_or_else(|| wrong("it names no commit"))?;
        let files = listed["siblings"].as_array();
        let files = files.ok_or_else(|| wrong("it lists no files"))?.iter();
        let files = files.filter_map(|file| {
            Some(Listed {
                name: file["rfilename"]
                    .as_str()
                    .filter(|n| is_plain_path(n))?
                    .to_owned(),
                bytes: file["size"].as_u64(),
            })
        });
        Ok(Commit {
            id: id.to_owned(),
            files: files.collect(),
        })
    }

    /// Brings a file of a commit into `folder`, a model's in the cache, unless it is there. Returns its path.
    pub fn fetch(
        &self,
        (model, commit): (&ModelName, &str),
        file: &str,
        folder: &Path,
        bar: &ProgressBar,
    ) -> Result<PathBuf, Failure> {
        let link = folder.join("snapshots").join(commit).join(file);
        if link.is_file() {
            return Ok(link);
        }
        let encoded: Vec<String> = file.split('/').map(percent).collect();
        let encoded = encoded.join("/");
        let url = format!(
            "{}/{}/resolve/{commit}/{encoded}",
            self.endpoint,
            model.repository()
        );
        let head = self.head(&url, file)?;
        let blob = folder.join("blobs").join(&head.etag);
        if !blob.is_file() {
            fs::create_dir_all(folder.join("blobs"))?;
            bar.set_length(head.bytes);
            self.download(&url, file, (&head, &blob), bar)?;
        }
        place(&blob, &link, file)?;
        Ok(link)
    }

    fn head(&self, url: &str, file: &str) -> Result<Head, Failure> {
        let mut request = self.stays.head(url).header("accept-encoding", "identity");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = request.call().map_err(|why| self.unreachable(&why))?;
        let status = answer.status().as_u16();
        if !(300..400).contains(&status) {
            self.check(status, file)?;
        }
        let headers = answer.headers();
        let text = |names: [&str; 2]| names.into_iter().find_map(|name| header(headers, name));
        let etag = text(["x-linked-etag", "etag"]);
        let etag = etag.map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
        let etag = etag.filter(|tag| is_hash(tag, &[40, 64]));
        let bytes = text(["x-linked-size", "content-length"]);
        let bytes = bytes.and_then(|bytes| bytes.parse().ok());
        match etag.zip(bytes) {
            Some((etag, bytes)) => Ok(Head {
                etag: etag.to_owned(),
                bytes,
            }),
            None => Err(Failure::new(format!(
                "{url}: the hub gives no checksum or no length for {file}"
            ))),
        }
    }

    /// Writes to a file beside the blob, and gives it the blob's name when its checksum is right.
    fn download(
        &self,
        url: &str,
        file: &str,
        (head, blob): (&Head, &Path),
        bar: &ProgressBar,
    ) -> Result<(), Failure> {
        let part = blob.with_extension("incomplete");
        let mut out = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(&part)?;
        match out.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::new(format!(
                    "another program gets {file} just now"
                )));
            }
            Err(TryLockError::Error(why)) => return Err(why.into()),
        }
        let mut failures = 0;
        loop {
            let before = out.metadata()?.len();
            if before > head.bytes {
                out.set_len(0)?;
                continue;
            }
            bar.set_position(before);
            if before == head.bytes {
                break;
            }
            let why = match self.attempt(url, (&mut out, before), head, bar) {
                Ok(()) => continue,
                Err(Broken::Refused(why)) => return Err(why),
                Err(Broken::Off(why)) => why,
            };
            failures = if out.metadata()?.len() > before {
                0
            } else {
                failures + 1
            };
            if failures >= ATTEMPTS {
                return Err(Failure::new(format!(
                    "{file}: {why}; what came is kept, and the same command goes on from there"
                )));
            }
            pause(failures);
        }
        out.sync_all()?;
        if checksum(&part, head)? != head.etag {
            fs::remove_file(&part)?;
            return Err(Failure::new(format!(
                "{file}: its checksum is not the one that the hub gives, {}: what came was thrown away; try again",
                head.etag
            )));
        }
        fs::rename(&part, blob)?;
        Ok(())
    }

    /// Reads on from `from`.
    fn attempt(
        &self,
        url: &str,
        (out, from): (&mut File, u64),
        head: &Head,
        bar: &ProgressBar,
    ) -> Result<(), Broken> {
        let off = |why: String| Broken::Off(why);
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let answer = self.get(&self.follows, url, range.as_deref());
        let mut answer = answer.map_err(|why| off(why.to_string()))?;
        let status = answer.status().as_u16();
        if matches!(status, 408 | 429 | 500..=599) {
            return Err(off(format!("the hub answers with status {status}")));
        }
        self.check(status, url).map_err(Broken::Refused)?;
        let starts_at = match status {
            206 => from,
            // The whole file, whatever was asked for.
            _ => 0,
        };
        let given = header(answer.headers(), "content-range");
        if status == 206 && !given.is_some_and(|g| g.starts_with(&format!("bytes {from}-"))) {
            return Err(off(
                "the hub gives another part than was asked for".to_owned()
            ));
        }
        let refused = |why: io::Error| Broken::Refused(why.into());
        if starts_at < from {
            out.set_len(0).map_err(refused)?;
        }
        let mut at = starts_at;
        // No more than was announced, whatever comes.
        let mut body = answer.body_mut().as_reader().take(head.bytes - starts_at);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = body.read(&mut buffer).map_err(|why| off(why.to_string()))?;
            if n == 0 {
                break;
            }
            out.write_all(&buffer[..n]).map_err(refused)?;
            at += n as u64;
            bar.set_position(at);
        }
        match at == head.bytes {
            true => Ok(()),
            false => Err(off(format!(
                "the connection ended after {at} of {} bytes",
                head.bytes
            ))),
        }
    }

    fn get(
        &self,
        agent: &Agent,
        url: &str,
        range: Option<&str>,
    ) -> Result<Response<ureq::Body>, ureq::Error> {
        let mut request = agent.get(url).header("accept-encoding", "identity");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        request.call()
    }

    fn check(&self, status: u16, what: &str) -> Result<(), Failure> {
        let advice = match status {
            200..=299 => return Ok(()),
            401 | 403 => "it may need a key: give --token-file, and accept its licence on the hub",
            404 => "there is no such model or file; names are as on the hub",
            429 => "it asks for patience: try again later",
            _ => "try again later",
        };
        Err(Failure::new(format!(
            "{}: status {status} for {what}: {advice}",
            self.endpoint
        )))
    }

    fn unreachable(&self, why: &ureq::Error) -> Failure {
        Failure::new(format!(
            "{} can't be reached: {why}; --offline takes what is in the cache",
            self.endpoint
        ))
    }
}

fn pause(failures: u32) {
    if failures > 0 {
        std::thread::sleep(PAUSE * 2u32.pow(failures - 1));
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Hexadecimal digits, so many.
fn is_hash(text: &str, lengths: &[usize]) -> bool {
    lengths.contains(&text.len()) && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

/// A part of a path in a URL.
fn percent(part: &str) -> String {
    let mut out = String::new();
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// SHA-256, or git's hash of a blob: SHA-1 over a header and the contents.
fn checksum(path: &Path, head: &Head) -> Result<String, Failure> {
    let mut file = File::open(path)?;
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    Ok(match head.etag.len() {
        64 => {
            let mut hasher = Sha256::new();
            feed(&mut file, |bytes| hasher.update(bytes))?;
            hex(&hasher.finalize())
        }
        _ => {
            let mut hasher = Sha1::new();
            hasher.update(format!("blob {}\0", head.bytes));
            feed(&mut file, |bytes| hasher.update(bytes))?;
            hex(&hasher.finalize())
        }
    })
}

fn feed(file: &mut File, mut update: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => update(&buffer[..n]),
        }
    }
}

/// Makes `link` lead to `blob`, which lies in the same model's folder.
fn place(blob: &Path, link: &Path, file: &str) -> Result<(), Failure> {
    if let Some(folder) = link.parent() {
        fs::create_dir_all(folder)?;
    }
    // One that leads to a blob that is gone.
    if link.symlink_metadata().is_ok() {
        fs::remove_file(link)?;
    }
    let name = blob.file_name().unwrap_or_default();
    let up = "../".repeat(file.split('/').count() + 1);
    let to = Path::new(&up).join("blobs").join(name);
    #[cfg(unix)]
    std::os::unix::fs::symlink(to, link)?;
    #[cfg(not(unix))]
    {
        // Links need a privilege there.
        let _ = to;
        fs::copy(blob, link)?;
    }
    Ok(())
}
