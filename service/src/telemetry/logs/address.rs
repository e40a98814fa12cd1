//! Addresses as text.

use std::{io::Write, net::IpAddr};

/// The longest address, in bytes.
const LONGEST: usize = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".len();

/// Text of an address, without an allocation: every request's line has one, and `fmt` takes a tenth of its time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddressText {
    bytes: [u8; LONGEST],
    length: usize,
}

impl AddressText {
    /// The text.
    pub fn as_str(&self) -> &str {
        self.bytes
            .get(..self.length)
            .and_then(|text| str::from_utf8(text).ok())
            .unwrap_or_default()
    }

    fn put(&mut self, text: &str) {
        let rest = self.bytes.get_mut(self.length..);
        if let Some(place) = rest.and_then(|rest| rest.get_mut(..text.len())) {
            place.copy_from_slice(text.as_bytes());
            self.length += text.len();
        }
    }
}

impl From<IpAddr> for AddressText {
    fn from(address: IpAddr) -> Self {
        let mut text = Self {
            bytes: [0; LONGEST],
            length: 0,
        };
        match address {
            IpAddr::V4(address) => {
                for (place, octet) in address.octets().into_iter().enumerate() {
                    if place > 0 {
                        text.put(".");
                    }
                    text.put(itoa::Buffer::new().format(octet));
                }
            }
            IpAddr::V6(address) => {
                let mut rest = &mut text.bytes[..];
                // It has room for every address.
                let _ = write!(rest, "{address}");
                let unused = rest.len();
                text.length = LONGEST - unused;
            }
        }
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_they_are_displayed() {
        for address in [
            "0.0.0.0",
            "127.0.0.1",
            "9.10.99.100",
            "255.255.255.255",
            "::",
            "::1",
            "2001:db8::ff00:42:8329",
            "::ffff:255.255.255.255",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ] {
            let parsed: IpAddr = address.parse().unwrap();
            assert_eq!(AddressText::from(parsed).as_str(), parsed.to_string());
        }
    }
}
