//! The networks in which the failures of an address are counted.

use std::net::IpAddr;

use ipnet::IpNet;

/// The networks that contain one address, the narrowest first: /32 and /24 in IPv4; /64, /48 and /32 in IPv6. Empty if
/// Envoy vouches for no address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Networks([Option<IpNet>; 3]);

/// Prefix lengths in IPv4: one host; the smallest network that the Internet routes.
const V4: [u8; 2] = [32, 24];
/// In IPv6: one host, which may use any address of its /64; one site; one provider.
const V6: [u8; 3] = [64, 48, 32];

impl Networks {
    /// The networks that contain `address`. An IPv4-mapped IPv6 address counts as the IPv4 address.
    pub(super) fn around(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let lengths: &[u8] = if address.is_ipv4() { &V4 } else { &V6 };
        let network = |length| IpNet::new(address, length).ok().map(|network| network.trunc());
        let mut networks = [None; 3];
        for (network_at, length) in networks.iter_mut().zip(lengths) {
            *network_at = network(*length);
        }
        Self(networks)
    }

    /// Each network with its width: 0 for the narrowest.
    pub(super) fn by_width(&self) -> impl Iterator<Item = (usize, IpNet)> {
        self.0.iter().enumerate().filter_map(|(width, network)| Some((width, (*network)?)))
    }

    /// One host.
    pub(super) fn narrow(&self) -> Option<IpNet> {
        self.0[0]
    }

    /// One site. Sites are served in rotation.
    pub(super) fn site(&self) -> Option<IpNet> {
        self.0[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_in_networks_of_each_width() {
        for (address, expected) in [
            ("203.0.113.9", vec!["203.0.113.9/32", "203.0.113.0/24"]),
            ("::ffff:203.0.113.9", vec!["203.0.113.9/32", "203.0.113.0/24"]),
            ("2001:db8:1:2:3:4:5:6", vec!["2001:db8:1:2::/64", "2001:db8:1::/48", "2001:db8::/32"]),
        ] {
            let networks = Networks::around(address.parse().expect("an address"));
            let texts: Vec<_> = networks.by_width().map(|(_, network)| network.to_string()).collect();
            assert_eq!(texts, expected);
        }
    }
}
