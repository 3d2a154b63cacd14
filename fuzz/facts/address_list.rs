//! `allowed_ips` is read or refused, and an IPv4 address is the same in IPv6. The input is two
//! addresses, 4 and 16 bytes, and the text of the list.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use keystile::{
    record::{AllowList, network::Network},
    store::allow_list,
};
use serde_json::Value;

/// Fails if a fact does not hold for this input.
pub fn check(input: &[u8]) {
    let Some((v4, rest)) = input.split_first_chunk::<4>() else { return };
    let Some((v6, text)) = rest.split_first_chunk::<16>() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let list: AllowList<Network> = allow_list(Some(text));

    let is_open = match serde_json::from_str(text) {
        Ok(Value::Null) => true,
        Ok(Value::Array(entries)) => entries.is_empty(),
        _ => false,
    };
    assert_eq!(list == AllowList::Any, is_open, "only null and [] restrict nothing");

    let allows = |address: IpAddr| list.allows(|network| network.contains(address));
    let v4 = Ipv4Addr::from(*v4);
    assert_eq!(allows(v4.into()), allows(v4.to_ipv6_mapped().into()), "{v4}");
    allows(Ipv6Addr::from(*v6).into());
    list.entries().iter().for_each(is_one_network);
}

fn is_one_network(network: &Network) {
    let shown = network.to_string();
    assert_eq!(shown.parse(), Ok(*network), "a network is read as it is shown");
    let (address, bits) = shown.split_once('/').expect("shown with its length");
    let address: IpAddr = address.parse().expect("an address");
    let bits: u32 = bits.parse().expect("a length");
    // IPv4 addresses are in no network of IPv6 addresses, however they are written.
    let is_mapped = address.to_canonical() != address;
    assert_eq!(network.contains(address), !is_mapped, "{shown}");
    for other in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), flip_last_bit(address)] {
        assert_eq!(network.contains(other), agrees(address, bits, other), "{other} in {shown}");
    }
}

/// The slow, obvious way.
fn agrees(network: IpAddr, bits: u32, address: IpAddr) -> bool {
    match (network, address.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (network.to_bits() ^ address.to_bits()).leading_zeros() >= bits
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            (network.to_bits() ^ address.to_bits()).leading_zeros() >= bits
        }
        _ => false,
    }
}

fn flip_last_bit(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() ^ 1).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() ^ 1).into(),
    }
}
