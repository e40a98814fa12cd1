//! Address of the client: the peer's, or the one in `X-Forwarded-For` behind trusted proxies.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName};
use ipnet::{IpNet, Ipv4Net};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Networks of the proxies whose `X-Forwarded-For` is trusted.
///
/// ```
/// use axum::http::{HeaderMap, HeaderValue};
/// use honcho_service::http::TrustedProxies;
///
/// let proxies = TrustedProxies::parse("10.0.0.0/8").expect("a network");
/// let mut headers = HeaderMap::new();
/// headers.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.1, 198.51.100.7"));
///
/// // The last address that is not a proxy's. The client may have written the first one itself.
/// let client = proxies.client([10, 0, 0, 1].into(), &headers);
/// assert_eq!(client.to_string(), "198.51.100.7");
/// // A peer that is not a proxy is the client.
/// let client = proxies.client([203, 0, 113, 9].into(), &headers);
/// assert_eq!(client.to_string(), "203.0.113.9");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Reads addresses and networks, separated by commas.
    ///
    /// # Errors
    /// An entry is malformed; the text describes the allowed form.
    pub fn parse(list: &str) -> Result<Self, &'static str> {
        list.split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(|entry| {
                network(entry)
                    .ok_or("must be addresses and networks such as 10.0.0.0/8, separated by commas")
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Address of the client. Every proxy appends the address of its peer, so the last address that is not a trusted
    /// proxy's is the client's. The client itself may have written those before it.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trusts(client) {
            return client;
        }
        let forwarded = headers
            .get_all(X_FORWARDED_FOR)
            .iter()
            .rev()
            .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            // An empty element of a list counts for nothing (RFC 9110).
            .filter(|entry| !entry.is_empty());
        for entry in forwarded {
            let Some(address) = address(entry) else {
                break;
            };
            client = address;
            if !self.trusts(client) {
                break;
            }
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// A network, or an address as a network of its own. IPv4 that is mapped to IPv6 is IPv4, as in the addresses that it is
/// compared with; so none is mapped that goes beyond IPv4.
fn network(entry: &str) -> Option<IpNet> {
    let network = entry.parse::<IpNet>();
    let network = network.or_else(|_| entry.parse::<IpAddr>().map(IpNet::from));
    match network.ok()? {
        IpNet::V6(network) if let Some(address) = network.addr().to_ipv4_mapped() => {
            let length = network.prefix_len().checked_sub(96)?;
            Ipv4Net::new(address, length).ok().map(IpNet::V4)
        }
        network => Some(network),
    }
}

/// An address, which some proxies write with a port.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let entry = str::from_utf8(entry).ok()?;
    let address = entry
        .parse::<IpAddr>()
        .or_else(|_| entry.parse::<SocketAddr>().map(|socket| socket.ip()));
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        for (proxies, peer, told, expected) in [
            ("", "192.0.2.1", vec!["198.51.100.7"], "192.0.2.1"),
            ("10.0.0.0/8", "192.0.2.1", vec!["198.51.100.7"], "192.0.2.1"),
            (
                "10.0.0.0/8",
                "10.1.2.3",
                vec!["198.51.100.7"],
                "198.51.100.7",
            ),
            ("10.0.0.0/8", "10.1.2.3", vec![], "10.1.2.3"),
            // What the client itself has sent stands first.
            (
                "10.0.0.0/8",
                "10.1.2.3",
                vec!["203.0.113.9, 198.51.100.7"],
                "198.51.100.7",
            ),
            (
                "10.0.0.0/8",
                "10.1.2.3",
                vec!["203.0.113.9", "198.51.100.7, 10.9.9.9"],
                "198.51.100.7",
            ),
            (
                "10.0.0.0/8",
                "10.1.2.3",
                vec!["nonsense, 10.9.9.9"],
                "10.9.9.9",
            ),
            (
                "10.0.0.0/8, 2001:db8::1",
                "2001:db8::1",
                vec!["[2001:db8::5]:443"],
                "2001:db8::5",
            ),
            (
                "127.0.0.1",
                "::ffff:127.0.0.1",
                vec!["::ffff:198.51.100.7"],
                "198.51.100.7",
            ),
            (
                "::ffff:127.0.0.1",
                "127.0.0.1",
                vec!["198.51.100.7"],
                "198.51.100.7",
            ),
            (
                "::ffff:10.0.0.0/104",
                "10.1.2.3",
                vec!["198.51.100.7, 10.9.9.9"],
                "198.51.100.7",
            ),
            ("::ffff:10.0.0.0/104", "11.1.2.3", vec![], "11.1.2.3"),
            // What the client has written is not read, whatever it is.
            (
                "10.0.0.0/8",
                "10.1.2.3",
                vec!["\u{ff}, 198.51.100.7"],
                "198.51.100.7",
            ),
            (
                "10.0.0.0/8",
                "10.1.2.3",
                vec!["\u{ff}", "198.51.100.7"],
                "198.51.100.7",
            ),
            (
                "10.0.0.0/8",
                "10.1.2.3",
                vec!["198.51.100.7, \u{ff}, 10.9.9.9"],
                "10.9.9.9",
            ),
            (
                "10.0.0.0/8",
                "10.1.2.3",
                vec!["198.51.100.7, ,\t, 10.9.9.9,", "", " "],
                "198.51.100.7",
            ),
        ] {
            let mut headers = HeaderMap::new();
            for value in &told {
                // Latin-1, so that a character can stand for a byte that is no UTF-8.
                let bytes: Vec<u8> = value.chars().map(|it| it as u8).collect();
                headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(&bytes).unwrap());
            }
            let proxies = TrustedProxies::parse(proxies).unwrap();
            let client = proxies.client(peer.parse().unwrap(), &headers);
            assert_eq!(
                client,
                expected.parse::<IpAddr>().unwrap(),
                "{peer} {told:?}"
            );
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        // The caller names the setting and its value.
        for list in [
            "10.0.0.0/33",
            "10.0.0",
            "10.0.0.1,proxy.local",
            "all",
            "::ffff:10.0.0.0/8",
        ] {
            assert!(TrustedProxies::parse(list).is_err(), "{list}");
        }
    }
}
