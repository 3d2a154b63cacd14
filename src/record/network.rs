//! Entries of `allowed_ips`: an address, or a network in CIDR notation.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv4Net};

/// One network. An IPv4 address that is written as IPv6 (`::ffff:192.0.2.1`, RFC 4291, section 2.5.5.2) counts as the
/// IPv4 address, both in the network and in the address of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

/// The text is neither an address nor a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is neither an IP address nor a network such as 10.0.0.0/8")]
pub struct NotANetwork;

impl Network {
    /// Whether the address is in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let single = |address: IpAddr| IpNet::from(address.to_canonical());
        let address = text.parse().map(single);
        let network = address.or_else(|_| text.parse().map(canonical));
        network.map(Self).map_err(|_| NotANetwork)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Converts a network of IPv4 addresses that is written as IPv6 to the IPv4 network.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let v4 = v6.network().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    v4.and_then(|(address, bits)| Ipv4Net::new(address, bits).ok()).map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn matches(network: &str, address: &str) -> bool {
        network.parse::<Network>().expect("a network").contains(address.parse().expect("an address"))
    }

    #[test]
    fn addresses_and_networks_of_both_families() {
        for (network, address, inside) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.1.2.3/8", "10.255.0.1", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "203.0.113.9", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("::ffff:192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("::ffff:10.0.0.0/104", "10.9.9.9", true),
            ("::ffff:10.0.0.0/104", "11.0.0.0", false),
        ] {
            assert_eq!(matches(network, address), inside, "{address} in {network}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "10.0.0",
            "10.0.0.0/33",
            "010.0.0.1",
            " 10.0.0.1",
            "fe80::1%eth0",
            "::/129",
            "10.0.0.0/",
            "any",
        ] {
            assert_eq!(text.parse::<Network>(), Err(NotANetwork), "{text:?}");
        }
    }

    /// The slow, obvious algorithm: compare bit by bit.
    fn reference(network: IpAddr, bits: u8, address: IpAddr) -> bool {
        let bits_of = |address: IpAddr| -> Vec<bool> {
            let octets = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1)).collect()
        };
        let (network, address) = (bits_of(network), bits_of(address));
        network.len() == address.len() && network[..bits.into()] == address[..bits.into()]
    }

    proptest! {
        #[test]
        fn v4_agrees_with_the_reference(network: u32, bits in 0u8..=32, other: u32, near: bool) {
            let other = if near { network ^ (other >> bits.min(31)) } else { other };
            let (network, other) = (IpAddr::V4(Ipv4Addr::from(network)), IpAddr::V4(Ipv4Addr::from(other)));
            let expected = reference(network, bits, other);
            prop_assert_eq!(matches(&format!("{network}/{bits}"), &other.to_string()), expected);
            // The same, written as IPv6.
            let mapped = |address: IpAddr| format!("::ffff:{address}");
            prop_assert_eq!(matches(&format!("{}/{}", mapped(network), 96 + bits), &mapped(other)), expected);
        }

        #[test]
        fn v6_agrees_with_the_reference(network: u128, bits in 0u8..=128, other: u128, near: bool) {
            let other = if near { network ^ (other >> bits.min(127)) } else { other };
            let (network, other) = (IpAddr::V6(Ipv6Addr::from(network)), IpAddr::V6(Ipv6Addr::from(other)));
            prop_assume!(network.to_canonical() == network && other.to_canonical() == other);
            let expected = reference(network, bits, other);
            prop_assert_eq!(matches(&format!("{network}/{bits}"), &other.to_string()), expected);
        }

        #[test]
        fn any_text_is_a_network_or_refused(text in any::<String>()) {
            let _ = text.parse::<Network>();
        }
    }
}
