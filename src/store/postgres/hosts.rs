//! The servers that a Postgres URL names: the lists `host`, `hostaddr` and `port`, paired as libpq pairs them.

use std::{net::IpAddr, path::PathBuf};

use crate::config::PostgresUrl;

/// One entry of the list of hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) address: HostAddress,
    pub(super) port: u16,
    /// The name in the certificate.
    pub(super) name: String,
}

/// Where a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostAddress {
    /// Looked up for each connection.
    Name(String),
    Address(IpAddr),
    /// The folder of a Unix socket.
    Socket(PathBuf),
}

/// The lists `host`, `hostaddr` and `port`, entry by entry.
pub(super) fn read(url: &PostgresUrl) -> Result<Vec<Host>, String> {
    let list = |name| url.get(name).map(|list| list.split(',').collect::<Vec<_>>());
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port").unwrap_or(vec![""]));
    let count = match (&names, &addresses) {
        (Some(names), Some(addresses)) if names.len() != addresses.len() => {
            let (hosts, addresses) = (names.len(), addresses.len());
            return Err(format!(
                "number of entries: {hosts} in host, {addresses} in hostaddr; each needs its own"
            ));
        }
        (Some(list), _) | (None, Some(list)) => list.len(),
        (None, None) => {
            return Err(
                "names no host; for a socket add the folder that it is in: host=/var/run/postgresql".into()
            );
        }
    };
    if ports.len() != 1 && ports.len() != count {
        return Err(format!(
            "number of hosts: {count}, of ports: {}; write one port, or one for each",
            ports.len()
        ));
    }
    (0..count)
        .map(|n| {
            let name = names.as_ref().map_or("", |names| names[n]);
            let address = addresses.as_ref().map_or("", |addresses| addresses[n]);
            let port = if ports.len() == 1 { ports[0] } else { ports[n] };
            let host_address = match (name, address) {
                (_, address) if !address.is_empty() => HostAddress::Address(
                    address.parse().map_err(|_| "hostaddr has an entry that is no IP address")?,
                ),
                ("", _) => return Err("has an empty entry in its list of hosts".to_owned()),
                (socket, _) if socket.starts_with('/') => HostAddress::Socket(socket.into()),
                (socket, _) if socket.starts_with('@') => {
                    return Err("host names an abstract Unix socket, which is not supported".into());
                }
                (name, _) => {
                    name.parse().map_or_else(|_| HostAddress::Name(name.to_owned()), HostAddress::Address)
                }
            };
            let port = if port.is_empty() {
                5432
            } else {
                port.trim().parse().map_err(|_| "port is no number, or out of range")?
            };
            let name = if name.is_empty() { address } else { name };
            Ok(Host { address: host_address, port, name: name.to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(url: &str) -> Vec<(HostAddress, u16, String)> {
        let hosts = read(&url.parse().expect("a URL")).unwrap_or_else(|error| panic!("{url}: {error}"));
        hosts.into_iter().map(|host| (host.address, host.port, host.name)).collect()
    }

    #[test]
    fn hosts_are_paired_as_libpq_pairs_them() {
        let name = |name: &str, port| (HostAddress::Name(name.into()), port, name.to_owned());
        let address = |address: &str, port, name: &str| {
            (HostAddress::Address(address.parse().expect("an address")), port, name.to_owned())
        };
        let socket = |folder: &str, port| (HostAddress::Socket(folder.into()), port, folder.to_owned());
        for (url, expected) in [
            ("postgres://h1,h2/db", vec![name("h1", 5432), name("h2", 5432)]),
            ("postgres://h1:1,h2/db", vec![name("h1", 1), name("h2", 5432)]),
            ("postgres:///db?host=h1,h2&port=7", vec![name("h1", 7), name("h2", 7)]),
            ("postgres:///db?host=h1,h2&port=7,8", vec![name("h1", 7), name("h2", 8)]),
            ("postgres:///db?host=/run/pg,h2&port=7", vec![socket("/run/pg", 7), name("h2", 7)]),
            ("postgres://[::1]:7/db", vec![address("::1", 7, "::1")]),
            ("postgres://h?hostaddr=10.0.0.1", vec![address("10.0.0.1", 5432, "h")]),
            ("postgres://h,g?hostaddr=10.0.0.1,", vec![address("10.0.0.1", 5432, "h"), name("g", 5432)]),
            ("postgres:///db?hostaddr=10.0.0.1", vec![address("10.0.0.1", 5432, "10.0.0.1")]),
        ] {
            assert_eq!(hosts(url), expected, "{url}");
        }
    }
}
