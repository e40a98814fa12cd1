//! Origins of web pages that may use the API: CORS, and a check of requests that change something.
//!
//! Browsers let any page send a `POST` with a plain body to any address, and only withhold the answer. So a request
//! that changes something is checked by what the browser reports about the page. Other programs send neither header
//! and pass.

use std::net::Ipv4Addr;

use axum::{
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
            ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
        },
        uri::Authority,
    },
};

/// Relation of the page's site to the service's (Fetch Metadata). Pages cannot set it. Browsers send it only to
/// addresses that no other machine can take over: https, and their own machine.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Headers that pages may send.
const SENT: &str =
    "authorization,content-type,idempotency-key,x-request-id,traceparent,last-event-id";

/// Headers that pages may read.
const READ: &str = "link,location,retry-after,www-authenticate,idempotency-replayed,ratelimit,\
                    ratelimit-policy,x-request-id";

/// Seconds for which a browser remembers the answer to a preflight.
const MAX_AGE: &str = "3600";

/// Origins of other sites' pages that may use the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedOrigins(Listed);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Listed {
    All,
    /// These, in the form that browsers send.
    Some(Vec<HeaderValue>),
}

impl Default for Listed {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

impl AllowedOrigins {
    /// Reads a list of origins such as `https://shop.example`; a single `*` stands for all.
    ///
    /// # Errors
    /// An entry is not an origin; the text names it and describes the form.
    pub fn parse(list: &[String]) -> Result<Self, String> {
        if list == ["*"] {
            return Ok(Self(Listed::All));
        }
        let origins: Result<_, _> = list.iter().map(|origin| canonical(origin)).collect();
        Ok(Self(Listed::Some(origins?)))
    }

    /// Returns true if a request that changes something may come from its page: from none, from one of the service's
    /// own, or from one of an allowed origin.
    ///
    /// # Arguments
    /// `open`: true if callers need no token.
    pub(crate) fn admit(&self, headers: &HeaderMap, open: bool) -> bool {
        let mut origins = headers.get_all(ORIGIN).iter();
        let origin = match (origins.next(), origins.next()) {
            (origin, None) => origin,
            // No browser sends two.
            (_, Some(_)) => return false,
        };
        if origin.is_some_and(|origin| self.lists(origin)) {
            return true;
        }
        let mut sites = headers.get_all(SEC_FETCH_SITE).iter().peekable();
        if sites.peek().is_some() {
            // `none`: the user's own action, such as typing an address.
            return sites.all(|site| site == "same-origin" || site == "none");
        }
        let Some(origin) = origin else { return true };
        let host = headers.get(HOST);
        let (Ok(origin), Some(Ok(host))) = (origin.to_str(), host.map(HeaderValue::to_str)) else {
            return false;
        };
        // A page can make its own name resolve to this machine (DNS rebinding) and so be of the same origin. A token
        // prevents that; an open service trusts no name.
        is_of_host(origin, host) && (!open || cannot_be_rebound(host))
    }

    fn lists(&self, origin: &HeaderValue) -> bool {
        match &self.0 {
            Listed::All => true,
            Listed::Some(origins) => origins.contains(origin),
        }
    }
}

/// CORS: what the service tells browsers about pages of other sites.
///
/// No layer of its own, which would cost every request more allocations, and would have to be outside the other layers
/// for their refusals but inside them for preflights.
#[derive(Debug)]
pub(crate) struct Cors {
    /// Origins of pages that may use the API.
    pub origins: AllowedOrigins,
    /// The methods of all routes.
    methods: HeaderValue,
}

impl Cors {
    /// # Arguments
    /// `methods`: the methods of all routes.
    pub fn new(origins: AllowedOrigins, methods: &[Method]) -> Self {
        let methods: Vec<_> = methods.iter().map(Method::as_str).collect();
        Self {
            origins,
            // Names of methods are always a valid value.
            methods: HeaderValue::try_from(methods.join(","))
                .unwrap_or_else(|_| HeaderValue::from_static("*")),
        }
    }

    /// Returns true if this request asks for a browser whether a page may send another one.
    pub fn is_preflight(&self, request: &Request) -> bool {
        request.method() == Method::OPTIONS
            && self.origins != AllowedOrigins::default()
            && request.headers().contains_key(ORIGIN)
            && request
                .headers()
                .contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// Headers of the answer to this request, whatever it is; empty if no origins are allowed.
    pub fn headers(&self, request: &Request) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let allowed = match &self.origins.0 {
            Listed::All => Some(HeaderValue::from_static("*")),
            Listed::Some(origins) if origins.is_empty() => return headers,
            Listed::Some(origins) => {
                // A cache must not give one origin's answer to another.
                headers.insert(VARY, HeaderValue::from_static("origin"));
                let origin = request.headers().get(ORIGIN);
                origin.filter(|origin| origins.contains(origin)).cloned()
            }
        };
        let Some(origin) = allowed else {
            return headers;
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.is_preflight(request) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(SENT));
            headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        } else {
            headers.insert(
                ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static(READ),
            );
        }
        headers
    }
}

/// Turns an origin into the form that browsers send: in lower case, and with the port only if it is not the default.
fn canonical(origin: &str) -> Result<HeaderValue, String> {
    let parts = || {
        let (scheme, authority) = origin.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let default = default_port(&scheme)?;
        let authority: Authority = authority.parse().ok()?;
        let (host, port) = (authority.host().to_ascii_lowercase(), authority.port_u16());
        // What is left out of this is a user's name, a wildcard, or a port that is no number.
        let spelt = match authority.port() {
            Some(port) => format!("{}:{}", authority.host(), port.as_str()),
            None => authority.host().to_owned(),
        };
        if spelt != authority.as_str() || authority.port().is_some() != port.is_some() {
            return None;
        }
        if host.is_empty() || host.contains('*') {
            return None;
        }
        let origin = match port.filter(|port| *port != default) {
            Some(port) => format!("{scheme}://{host}:{port}"),
            None => format!("{scheme}://{host}"),
        };
        HeaderValue::try_from(origin).ok()
    };
    parts().ok_or_else(|| {
        format!(
            "{origin:?} is no origin: it must be like https://shop.example or http://localhost:3000"
        )
    })
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// Returns true if pages of `origin` come from `host`, the value of a `Host` header.
fn is_of_host(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    // Proxies may add the scheme's own port.
    let host = match scheme {
        "http" => host.strip_suffix(":80").unwrap_or(host),
        "https" => host.strip_suffix(":443").unwrap_or(host),
        _ => return false,
    };
    authority.eq_ignore_ascii_case(host)
}

/// Returns true if `host`, the value of a `Host` header, is an address, or a name that always means this machine.
fn cannot_be_rebound(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let host = authority.host().to_ascii_lowercase();
    host.starts_with('[')
        || host.parse::<Ipv4Addr>().is_ok()
        || host == "localhost"
        || host.ends_with(".localhost")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_spelt_as_browsers_spell_them() {
        for (given, spelt) in [
            ("https://a.example", "https://a.example"),
            ("https://a.example:443", "https://a.example"),
            ("http://a.example:80", "http://a.example"),
            ("http://a.example:443", "http://a.example:443"),
            ("https://a.example:80", "https://a.example:80"),
            ("HTTPS://Shop.Example:8443", "https://shop.example:8443"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("http://[::1]:80", "http://[::1]"),
        ] {
            assert_eq!(canonical(given).unwrap(), spelt, "{given}");
        }
        for wrong in [
            "",
            "*",
            "null",
            "shop.example",
            "ftp://shop.example",
            "https://",
            "https://shop.example/",
            "https://shop.example?x",
            "https://user@shop.example",
            "https://*.shop.example",
            "https://shop.example:",
            "https://shop.example:port",
            "https://shop.example:99999",
            "https://shop example",
            "https://shöp.example",
        ] {
            assert!(canonical(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn what_a_browser_says_of_a_page_decides() {
        let listed = AllowedOrigins::parse(&["https://shop.example:443".to_owned()]).unwrap();
        let all = AllowedOrigins::parse(&["*".to_owned()]).unwrap();
        // Origin, Sec-Fetch-Site, Host; with tokens, without, with all origins listed
        for (origin, site, host, closed, open) in [
            // No browser.
            ("", "", "anything", true, true),
            // This page: by the browser's word, or by its host.
            (
                "http://localhost:8080",
                "same-origin",
                "localhost:8080",
                true,
                true,
            ),
            ("http://localhost:8080", "", "localhost:8080", true, true),
            ("http://127.0.0.1:8080", "", "127.0.0.1:8080", true, true),
            ("http://[::1]:8080", "", "[::1]:8080", true, true),
            ("http://localhost", "", "localhost:80", true, true),
            ("http://192.0.2.7", "", "192.0.2.7", true, true),
            ("null", "same-origin", "localhost:8080", true, true),
            ("", "none", "localhost:8080", true, true),
            // The same behind a proxy that passes the name on, or does not.
            (
                "https://docs.example",
                "same-origin",
                "docs.example",
                true,
                true,
            ),
            (
                "https://docs.example",
                "same-origin",
                "127.0.0.1:8080",
                true,
                true,
            ),
            ("https://docs.example", "", "docs.example:443", true, false),
            // A name may have been made to lead here.
            (
                "http://evil.example:8080",
                "",
                "evil.example:8080",
                true,
                false,
            ),
            (
                "http://localhost.evil.example",
                "",
                "localhost.evil.example",
                true,
                false,
            ),
            // Listed.
            (
                "https://shop.example",
                "cross-site",
                "localhost:8080",
                true,
                true,
            ),
            ("https://shop.example", "", "localhost:8080", true, true),
            // Others.
            ("https://evil.example", "", "localhost:8080", false, false),
            (
                "https://evil.example",
                "cross-site",
                "localhost:8080",
                false,
                false,
            ),
            (
                "https://shop.example.evil.example",
                "",
                "localhost:8080",
                false,
                false,
            ),
            ("http://shop.example", "", "localhost:8080", false, false),
            (
                "http://localhost:3000",
                "same-site",
                "localhost:8080",
                false,
                false,
            ),
            ("http://localhost:3000", "", "localhost:8080", false, false),
            ("null", "", "localhost:8080", false, false),
            ("null", "cross-site", "null", false, false),
            ("", "cross-site", "localhost:8080", false, false),
            ("http://localhost:8080", "", "", false, false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(ORIGIN, origin), (SEC_FETCH_SITE, site), (HOST, host)] {
                if !value.is_empty() {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            assert_eq!(listed.admit(&headers, false), closed, "{headers:?}");
            assert_eq!(listed.admit(&headers, true), open, "{headers:?} open");
            let is_page = !origin.is_empty() || site.is_empty();
            assert_eq!(
                all.admit(&headers, true),
                is_page || open,
                "{headers:?} all"
            );
            headers.append(ORIGIN, "https://evil.example".parse().unwrap());
            headers.append(ORIGIN, "http://localhost:8080".parse().unwrap());
            assert!(!listed.admit(&headers, false), "{headers:?}");
        }
    }
}
