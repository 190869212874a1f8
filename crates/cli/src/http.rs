//! As much of HTTP/1.1 as this program's clients need: one request on a connection, the answer line by line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Bytes of a line, or of a head, at most.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// A server, as `http://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    authority: String,
    address: String,
    path: String,
    key: Option<String>,
    timeout: Duration,
}

impl Target {
    /// Reads a URL; a `/v1` at its end is left out, since every path begins with it anyway.
    pub fn parse(url: &str, key: Option<String>, timeout: Duration) -> Result<Self, String> {
        let rest = url.strip_prefix("http://").ok_or_else(|| {
            format!(
                "{url:?} is no http:// address; TLS is not spoken: go without it or through a proxy"
            )
        })?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.is_empty() {
            return Err(format!("{url:?} names no host"));
        }
        if key
            .as_ref()
            .is_some_and(|key| key.chars().any(char::is_control))
        {
            return Err("the key must not hold control characters".to_owned());
        }
        let path = path.trim_end_matches('/');
        let path = path
            .strip_suffix("v1")
            .unwrap_or(path)
            .trim_end_matches('/');
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(Self {
            authority: authority.to_owned(),
            address: match has_port {
                true => authority.to_owned(),
                false => format!("{authority}:80"),
            },
            path: match path {
                "" => String::new(),
                path => format!("/{path}"),
            },
            key,
            timeout,
        })
    }

    /// A connection on which nothing has been said.
    pub fn connect(&self) -> io::Result<TcpStream> {
        let mut addresses = self.address.to_socket_addrs()?;
        let address = addresses
            .next()
            .ok_or_else(|| io::Error::other(format!("{} has no address", self.address)))?;
        let stream = TcpStream::connect_timeout(&address, self.timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(stream)
    }

    /// The same server, which may take so long for each step.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// Sends a request; the answer's head has come when this returns.
    pub fn send(&self, method: &str, path: &str, body: Option<&str>) -> io::Result<Answer> {
        let body = body.unwrap_or_default();
        let header = ("Content-Type", "application/json");
        self.send_from(
            method,
            path,
            &[header],
            (body.as_bytes(), body.len() as u64),
        )
    }

    /// Sends a request whose body is read from somewhere and has so many bytes.
    pub fn send_from(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        (body, body_bytes): (impl Read, u64),
    ) -> io::Result<Answer> {
        let mut stream = self.connect()?;
        let mut head = format!(
            "{method} {}{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAccept: */*\r\n",
            self.path, self.authority
        );
        if let Some(key) = &self.key {
            head.push_str(&format!("Authorization: Bearer {key}\r\n"));
        }
        for (name, value) in headers {
            if value.chars().any(char::is_control) {
                return Err(io::Error::other(format!(
                    "{name} must not hold control characters"
                )));
            }
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {body_bytes}\r\n\r\n"));
        let sent = stream
            .write_all(head.as_bytes())
            .and_then(|()| io::copy(&mut body.take(body_bytes), &mut stream));
        if sent.is_err() {
            // Nobody shall wait for the rest.
            let _ = stream.shutdown(Shutdown::Write);
        }
        let answer = Answer::begin(BufReader::new(Box::new(stream)));
        match (sent, answer) {
            // A server may refuse before it has read all, and close: then its answer says why.
            (Ok(_), answer) | (Err(_), answer @ Ok(_)) => answer,
            (Err(why), Err(_)) => Err(why),
        }
    }

    /// The whole answer to a request, whatever its status.
    pub fn whole(&self, method: &str, path: &str, body: Option<&str>) -> io::Result<(u16, String)> {
        let mut answer = self.send(method, path, body)?;
        let status = answer.status;
        Ok((status, answer.rest()?))
    }
}

enum Body {
    /// Bytes of the present chunk that are left.
    Chunked(u64),
    Sized(u64),
    ToEnd,
}

/// An answer that is being read.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    reader: BufReader<Box<dyn Read>>,
    body: Body,
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP/1.1: {what}"))
}

impl Answer {
    fn begin(mut reader: BufReader<Box<dyn Read>>) -> io::Result<Self> {
        let first = line(&mut reader)?.ok_or_else(|| malformed("no answer"))?;
        let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.ok_or_else(|| malformed("no status"))?;
        let mut body = Body::ToEnd;
        loop {
            let header = line(&mut reader)?.ok_or_else(|| malformed("the head is cut off"))?;
            if header.is_empty() {
                break;
            }
            let Some((name, value)) = header.split_once(':') else {
                continue;
            };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                let bytes = value.parse().map_err(|_| malformed("Content-Length"))?;
                body = Body::Sized(bytes);
            } else if name.eq_ignore_ascii_case("transfer-encoding")
                && value.eq_ignore_ascii_case("chunked")
            {
                body = Body::Chunked(0);
            }
        }
        Ok(Self {
            status,
            reader,
            body,
        })
    }

    /// The next line of the body, without its end; `None` at the end.
    pub fn next_line(&mut self) -> io::Result<Option<String>> {
        let mut text = Vec::new();
        loop {
            let mut byte = [0];
            if self.read(&mut byte)? == 0 {
                break;
            }
            if byte[0] == b'\n' {
                return Ok(Some(utf8(text)));
            }
            text.push(byte[0]);
            if text.len() as u64 > MAX_LINE_BYTES {
                return Err(malformed("a line is too long"));
            }
        }
        Ok((!text.is_empty()).then(|| utf8(text)))
    }

    /// Whether all of the body was read that the head promised.
    pub fn is_whole(&self) -> bool {
        matches!(self.body, Body::Sized(0) | Body::ToEnd)
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> io::Result<String> {
        let mut text = Vec::new();
        self.take(MAX_LINE_BYTES).read_to_end(&mut text)?;
        Ok(utf8(text))
    }
}

impl Read for Answer {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = match &mut self.body {
            Body::ToEnd => u64::MAX,
            Body::Sized(left) => *left,
            Body::Chunked(left) => {
                if *left == 0 {
                    let mut size = line(&mut self.reader)?.unwrap_or_default();
                    if size.is_empty() {
                        // The end of the chunk before.
                        size = line(&mut self.reader)?.unwrap_or_default();
                    }
                    let digits = size.split(';').next().unwrap_or_default().trim();
                    *left = u64::from_str_radix(digits, 16).map_err(|_| malformed("a chunk"))?;
                    if *left == 0 {
                        self.body = Body::Sized(0);
                        return Ok(0);
                    }
                }
                *left
            }
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        let read = self.reader.read(&mut out[..most])?;
        match &mut self.body {
            Body::ToEnd => {}
            Body::Sized(left) | Body::Chunked(left) => *left -= read as u64,
        }
        Ok(read)
    }
}

fn utf8(mut bytes: Vec<u8>) -> String {
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A line of the head.
fn line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    reader.take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes)?;
    if bytes.pop().is_none() {
        return Ok(None);
    }
    Ok(Some(utf8(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &'static str) -> Answer {
        Answer::begin(BufReader::new(Box::new(text.as_bytes()))).unwrap()
    }

    #[test]
    fn reads_addresses() {
        let target = |url| Target::parse(url, None, Duration::from_secs(1));
        let a = target("http://localhost:8080").unwrap();
        assert_eq!(a, target("http://localhost:8080/v1/").unwrap());
        assert_eq!(
            (a.address.as_str(), a.path.as_str()),
            ("localhost:8080", "")
        );
        let b = target("http://h/api/v1").unwrap();
        assert_eq!((b.address.as_str(), b.path.as_str()), ("h:80", "/api"));
        assert!(target("https://h").is_err() && target("http://").is_err());
        let key = Some("a\r\nX: y".to_owned());
        assert!(Target::parse("http://h", key, Duration::from_secs(1)).is_err());
    }

    #[test]
    fn what_a_server_says_of_half_a_body_is_heard() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            stream.read_to_string(&mut request).unwrap();
            let answer = b"HTTP/1.1 401 No\r\nContent-Length: 3\r\n\r\nwhy";
            stream.write_all(answer).unwrap();
        });
        let target = Target::parse(&url, None, Duration::from_secs(9)).unwrap();
        let body = ((&b"half"[..]).chain(Broken), 64);
        let mut answer = target.send_from("POST", "/", &[], body).unwrap();
        assert_eq!(
            (answer.status, answer.rest().unwrap().as_str()),
            (401, "why")
        );
        server.join().unwrap();
    }

    #[test]
    fn reads_bodies_of_every_kind() {
        let mut chunked = answer(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab\nc\r\n3;x=y\r\nd\ne\r\n0\r\n\r\n",
        );
        let mut lines = Vec::new();
        while let Some(line) = chunked.next_line().unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["ab", "cd", "e"]);
        let mut sized = answer("HTTP/1.1 404 No\r\nContent-Length: 3\r\n\r\nabcdef");
        assert_eq!((sized.status, sized.rest().unwrap().as_str()), (404, "abc"));
        let mut to_end = answer("HTTP/1.1 200 OK\r\n\r\nall");
        assert_eq!(to_end.rest().unwrap(), "all");
    }
}
