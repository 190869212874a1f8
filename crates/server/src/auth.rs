//! Who may do what: API keys, the admin's key, and whom a connection comes from.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use tokio::sync::Notify;

use crate::error::ApiError;

/// The other end of a connection.
#[derive(Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Ends the connection at once.
    pub abort: Arc<Notify>,
}

/// The keys that are known, as hashes: comparing two hashes takes the same time wherever they differ.
pub struct Keys {
    api: Vec<blake3::Hash>,
    admin: Option<blake3::Hash>,
}

fn hash(key: &str) -> blake3::Hash {
    blake3::Hash::from(blake3::derive_key("neap 2026-11 api key", key.as_bytes()))
}

/// The tenant that an API key stands for.
#[must_use]
pub fn tenant_of_key(key: &str) -> String {
    hash(key).to_hex().to_string()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

impl Keys {
    /// Without API keys everybody may generate; without an admin key, only this machine may administer.
    pub fn new(api: &[String], admin: Option<&str>) -> Self {
        Self {
            api: api.iter().map(|k| hash(k)).collect(),
            admin: admin.map(hash),
        }
    }

    /// The tenant that a request belongs to: its cached prefixes are apart from all others'.
    ///
    /// # Errors
    /// 401 without a known key, where keys are needed.
    pub fn tenant(&self, headers: &HeaderMap) -> Result<String, ApiError> {
        if self.api.is_empty() {
            return Ok(String::new());
        }
        let given = hash(bearer(headers).ok_or_else(ApiError::unauthorized)?);
        // Every key is compared, so that the time does not tell which one it was.
        let known = self
            .api
            .iter()
            .fold(false, |found, k| found | (*k == given));
        if known {
            Ok(given.to_hex().to_string())
        } else {
            Err(ApiError::unauthorized())
        }
    }

    /// The tenant whose a session that the admin imports becomes: that of the key in `X-Session-Key`.
    ///
    /// # Errors
    /// 400 where there are keys and none, or another one, is given.
    pub fn tenant_of_session(&self, headers: &HeaderMap) -> Result<String, ApiError> {
        if self.api.is_empty() {
            return Ok(String::new());
        }
        let key = headers.get("x-session-key").and_then(|v| v.to_str().ok());
        let given = key.map(hash).filter(|given| self.api.contains(given));
        given.map(|given| given.to_hex().to_string()).ok_or_else(|| {
            ApiError::invalid(
                "say whose the session will be: send one of the server's API keys as `X-Session-Key: KEY`",
            )
        })
    }

    /// Whether a request may see and change the server's memory.
    ///
    /// # Errors
    /// 401 with a wrong key, 403 from elsewhere where no key is set.
    pub fn admin(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<(), ApiError> {
        match &self.admin {
            Some(admin) => match bearer(headers).map(hash) {
                Some(given) if given == *admin => Ok(()),
                _ => Err(ApiError::unauthorized()),
            },
            None if is_local(headers, peer) => Ok(()),
            None => Err(ApiError::forbidden(
                "without --admin-key this is for the server's own machine only",
            )),
        }
    }
}

/// A direct connection from this machine, to it by its own name: neither a proxy in between, nor a web page whose
/// domain was made to point here.
fn is_local(headers: &HeaderMap, peer: Option<&Peer>) -> bool {
    let from_here = peer.is_some_and(|p| p.address.ip().to_canonical().is_loopback());
    let forwarded = ["forwarded", "x-forwarded-for", "x-real-ip"];
    if !from_here || forwarded.iter().any(|name| headers.contains_key(*name)) {
        return false;
    }
    let Some(host) = headers.get(header::HOST).and_then(|h| h.to_str().ok()) else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    matches!(name, "localhost" | "[::1]")
        || name
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|&(n, v)| {
                let name = header::HeaderName::from_static(n);
                (name, HeaderValue::from_static(v))
            })
            .collect()
    }

    fn peer(address: &str) -> Peer {
        Peer {
            address: address.parse().unwrap(),
            abort: Arc::default(),
        }
    }

    #[test]
    fn keys_are_tenants() {
        let keys = Keys::new(&["one".into(), "two".into()], None);
        let one = keys.tenant(&headers(&[("authorization", "Bearer one")]));
        let two = keys.tenant(&headers(&[("authorization", "bearer two")]));
        assert_ne!(one.unwrap(), two.unwrap());
        for bad in [
            &[][..],
            &[("authorization", "Bearer onE")],
            &[("authorization", "one")],
        ] {
            assert_eq!(keys.tenant(&headers(bad)), Err(ApiError::unauthorized()));
        }
    }

    #[test]
    fn administration_is_local_or_by_key() {
        let open = Keys::new(&[], None);
        let here = peer("127.0.0.1:9");
        let local = headers(&[("host", "127.0.0.1:8080")]);
        assert!(open.admin(&local, Some(&here)).is_ok());
        assert!(
            open.admin(&headers(&[("host", "localhost")]), Some(&here))
                .is_ok()
        );
        assert!(
            open.admin(&headers(&[("host", "[::1]:8080")]), Some(&peer("[::1]:9")))
                .is_ok()
        );
        let elsewhere = peer("10.0.0.1:9");
        assert!(open.admin(&local, Some(&elsewhere)).is_err());
        assert!(open.admin(&local, None).is_err());
        // A page elsewhere whose name points here, and a proxy on this machine.
        assert!(
            open.admin(&headers(&[("host", "evil.example:8080")]), Some(&here))
                .is_err()
        );
        let proxied = headers(&[("host", "localhost"), ("x-forwarded-for", "10.0.0.1")]);
        assert!(open.admin(&proxied, Some(&here)).is_err());

        let keyed = Keys::new(&[], Some("secret"));
        assert!(keyed.admin(&local, Some(&here)).is_err());
        let with_key = headers(&[("authorization", "Bearer secret")]);
        assert!(keyed.admin(&with_key, Some(&elsewhere)).is_ok());
    }
}
