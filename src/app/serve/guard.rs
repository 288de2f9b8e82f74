//! Who may ask: hosts, origins and the key.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::App;
use super::fault::Fault;

/// What requests are held against.
pub struct Guard {
    /// Asked for everywhere but at the page's own files and `/health`.
    pub key: Option<String>,
    /// Names that this server is called by, besides loopback and addresses.
    pub hosts: Vec<String>,
    /// Who says for whom it asks.
    pub proxies: Vec<IpAddr>,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Everything the page needs is the server's own.
const POLICY: &str = "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; \
frame-ancestors 'none'; form-action 'none'";

impl Guard {
    /// A page of another site that has its name point here, must not reach what is here (DNS rebinding): the name that a
    /// browser was told is one that this server knows, or no name.
    fn knows(&self, authority: &str) -> bool {
        bare(authority).parse::<IpAddr>().is_ok() || self.names(authority)
    }

    /// Whether it is a name of this server, wherever it listens.
    fn names(&self, authority: &str) -> bool {
        let host = bare(authority);
        host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            || host.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    }

    /// Who asks: the connection's other end, or whom a proxy names that is trusted to.
    fn peer(&self, peer: Peer, headers: &HeaderMap) -> Peer {
        if !self.proxies.contains(&peer.0) {
            return peer;
        }
        let named = headers.get_all("x-forwarded-for").iter().next_back();
        let last =
            named.and_then(|list| list.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
        last.map_or(peer, Peer)
    }

    fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Fault> {
        let path = uri.path();
        let text =
            |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
        // Whoever stands in front may have read another one.
        if headers.get_all(header::HOST).iter().count() > 1 {
            return Err(Fault::new(StatusCode::BAD_REQUEST, "expected one Host"));
        }
        let host = text(header::HOST).unwrap_or_default();
        if !self.knows(host) || uri.authority().is_some_and(|named| named != host) {
            let told = "this server does not know the name that it was called by: name it with --allowed-host";
            return Err(Fault::new(StatusCode::MISDIRECTED_REQUEST, told));
        }
        if let Some(origin) = text(header::ORIGIN) {
            let from = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            // An address is anybody's, but for the one that this request was sent to.
            if !from.is_some_and(|from| from == host || self.names(from)) {
                return Err(Fault::new(StatusCode::FORBIDDEN, "pages of other sites may not ask"));
            }
        }
        let open = path == "/" || path.starts_with("/assets/") || path.starts_with("/health/");
        let Some(key) = &self.key else { return Ok(()) };
        let given = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        // How long it takes must not tell how much of it is right.
        if open || given.is_some_and(|given| bool::from(given.as_bytes().ct_eq(key.as_bytes()))) {
            return Ok(());
        }
        let told = "this server asks for its key: Authorization: Bearer KEY";
        Err(Fault::new(StatusCode::UNAUTHORIZED, told))
    }
}

/// A host without its port and brackets.
fn bare(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        // The port, unless that is a part of an address.
        Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) => host,
        _ => authority,
    };
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Checks a request, counts and logs it, and puts its number and the page's limits on the reply.
pub async fn watch(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let clock = Instant::now();
    let id = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok());
    let plain = |id: &&str| {
        (1..=64).contains(&id.len()) && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let id = id.filter(plain).map_or_else(|| format!("{:016x}", super::random()), str::to_owned);
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "other".to_owned());
    let method = request.method().clone();
    let mut response = match app.guard.check(request.uri(), request.headers()) {
        Ok(()) => {
            if let Some(&peer) = request.extensions().get::<Peer>() {
                let peer = app.guard.peer(peer, request.headers());
                request.extensions_mut().insert(peer);
            }
            next.run(request).await
        }
        Err(fault) => fault.into_response(),
    };
    let (status, seconds) = (response.status(), clock.elapsed().as_secs_f64());
    app.metrics.replied(format!("{method} {route}"), status.as_u16(), seconds);
    let ms = (seconds * 1e3 * 10.0).round() / 10.0;
    tracing::info!(request = id, %method, route, status = status.as_u16(), ms, "replied");
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: Option<&str>, path: &str, headers: &[(HeaderName, &str)]) -> Option<u16> {
        let guard = Guard {
            key: key.map(str::to_owned),
            hosts: vec!["nadir.example".into()],
            proxies: Vec::new(),
        };
        let headers = headers.iter().map(|(k, v)| (k.clone(), HeaderValue::from_str(v).unwrap()));
        guard
            .check(&path.parse().unwrap(), &headers.collect())
            .err()
            .map(|fault| fault.status.as_u16())
    }

    #[test]
    fn only_names_that_are_known() {
        for host in ["localhost", "localhost:80", "127.0.0.1:1", "[::1]:80", "NADIR.example:8"] {
            assert_eq!(check(None, "/", &[(header::HOST, host)]), None, "{host}");
        }
        for host in ["evil.example", "nadir.example.evil", "localhost.evil:80", ""] {
            assert_eq!(check(None, "/", &[(header::HOST, host)]), Some(421), "{host}");
        }
        assert_eq!(check(None, "/", &[]), Some(421));
        let twice = [(header::HOST, "localhost"), (header::HOST, "evil.example")];
        assert_eq!(check(None, "/", &twice), Some(400));
        let named = |uri| check(None, uri, &[(header::HOST, "localhost:80")]);
        assert_eq!(named("http://localhost:80/"), None);
        assert_eq!(named("http://evil.example/"), Some(421));
    }

    #[test]
    fn only_a_proxy_that_is_trusted_speaks_for_others() {
        let [proxy, other]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let guard = Guard { key: None, hosts: Vec::new(), proxies: vec![proxy] };
        let mut headers = HeaderMap::new();
        assert_eq!(guard.peer(Peer(proxy), &headers).0, proxy);
        // What clients claim themselves comes first.
        headers.insert("x-forwarded-for", HeaderValue::from_static("1.1.1.1, 9.9.9.9"));
        assert_eq!(guard.peer(Peer(proxy), &headers).0.to_string(), "9.9.9.9");
        assert_eq!(guard.peer(Peer(other), &headers).0, other);
        headers.insert("x-forwarded-for", HeaderValue::from_static("rubbish"));
        assert_eq!(guard.peer(Peer(proxy), &headers).0, proxy);
    }

    #[test]
    fn pages_of_other_sites_are_turned_away() {
        let from = |origin| {
            check(None, "/api/jobs", &[(header::HOST, "localhost"), (header::ORIGIN, origin)])
        };
        assert_eq!(from("http://localhost:8080"), None);
        assert_eq!(from("https://nadir.example"), None);
        let others =
            ["https://evil.example", "null", "file://localhost", "http://", "http://203.0.113.7"];
        for origin in others {
            assert_eq!(from(origin), Some(403), "{origin}");
        }
        let addressed =
            |origin| check(None, "/", &[(header::HOST, "10.0.0.1:80"), (header::ORIGIN, origin)]);
        assert_eq!(addressed("http://10.0.0.1:80"), None);
        assert_eq!(addressed("http://10.0.0.2:80"), Some(403));
    }

    #[test]
    fn the_key_is_asked_for_where_there_is_something_to_guard() {
        let with = |path, value: Option<&str>| {
            let mut headers = vec![(header::HOST, "localhost")];
            headers.extend(value.map(|value| (header::AUTHORIZATION, value)));
            check(Some("secret"), path, &headers)
        };
        for open in ["/", "/assets/index.js", "/health/ready"] {
            assert_eq!(with(open, None), None, "{open}");
        }
        for wrong in
            [None, Some("Bearer secre"), Some("Bearer secrets"), Some("secret"), Some("Bearer ")]
        {
            assert_eq!(with("/api/jobs", wrong), Some(401), "{wrong:?}");
            assert_eq!(with("/metrics", wrong), Some(401), "{wrong:?}");
        }
        assert_eq!(with("/api/jobs", Some("Bearer secret")), None);
    }
}
