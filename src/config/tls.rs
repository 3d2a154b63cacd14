//! TLS of the listeners: files, and the names of clients.

use std::{fmt, path::PathBuf, str::FromStr};

/// A file that a flag names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// The flag, for errors.
    pub flag: &'static str,
    /// The file.
    pub path: PathBuf,
}

/// TLS of one listener.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate chain (PEM).
    pub certificate: NamedFile,
    /// The private key of the certificate (PEM).
    pub key: NamedFile,
    /// Whose certificates clients must present. `None`: clients need no certificate.
    pub clients: Option<ClientFiles>,
}

/// Mutual TLS of one listener.
#[derive(Debug, Clone)]
pub struct ClientFiles {
    /// The CAs of the clients' certificates (PEM).
    pub authorities: NamedFile,
    /// The clients that may connect. Empty: each client with a certificate of these CAs.
    pub names: Vec<ClientName>,
    /// The flag of `names`, for errors.
    pub names_flag: &'static str,
    /// Lists of revoked certificates (PEM).
    pub revoked: Option<NamedFile>,
}

/// A name in a client's certificate (subject alternative name).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClientName {
    /// A DNS name, in lower case.
    Dns(String),
    /// A URI, such as a SPIFFE id.
    Uri(String),
}

impl fmt::Display for NamedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.flag, self.path.display())
    }
}

impl ClientName {
    /// A DNS name of a certificate. Upper and lower case are the same.
    pub fn dns(name: &str) -> Self {
        Self::Dns(name.to_ascii_lowercase())
    }
}

impl FromStr for ClientName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('*') {
            return Err("has a wildcard; names of clients are compared whole".into());
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
            if scheme.is_empty() || rest.is_empty() || !is_plain {
                return Err("is no URI such as spiffe://cluster.local/ns/gateways/sa/envoy".into());
            }
            return Ok(Self::Uri(text.to_owned()));
        }
        let of_a_label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let is_label = |label: &str| !label.is_empty() && label.bytes().all(of_a_label);
        if !text.split('.').all(is_label) {
            return Err(
                "is neither a DNS name such as envoy.internal nor a URI such as spiffe://cluster.local/ns/gateways/sa/envoy"
                    .into(),
            );
        }
        Ok(Self::dns(text))
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) | Self::Uri(name) => f.write_str(name),
        }
    }
}

/// Declares the TLS settings of one listener: the type, the beginning of its flags and of its variables, the heading,
/// and how its client names are written.
macro_rules! tls_options {
    ($(#[$about:meta])* $name:ident, $flag:literal, $variable:literal, $heading:literal, $client:ty, $client_help:literal) => {
        $(#[$about])*
        #[derive(Debug, Clone, Default, clap::Args)]
        #[command(next_help_heading = $heading)]
        #[group(id = concat!($flag, "-options"))]
        pub struct $name {
            /// Certificate chain (PEM). Read again when it changes. Default: no TLS.
            #[arg(
                id = concat!($flag, "-cert-file"),
                long = concat!($flag, "-cert-file"),
                env = concat!($variable, "_CERT_FILE"),
                requires = concat!($flag, "-key-file"),
                value_name = "FILE"
            )]
            pub cert_file: Option<std::path::PathBuf>,

            /// Private key of the certificate (PEM). Read again when it changes.
            #[arg(
                id = concat!($flag, "-key-file"),
                long = concat!($flag, "-key-file"),
                env = concat!($variable, "_KEY_FILE"),
                requires = concat!($flag, "-cert-file"),
                value_name = "FILE"
            )]
            pub key_file: Option<std::path::PathBuf>,

            /// CAs of clients (PEM). Each client must then present a certificate of one of them (mutual TLS). Read again when it changes; connections whose certificate is no longer valid end.
            #[arg(
                id = concat!($flag, "-client-ca-file"),
                long = concat!($flag, "-client-ca-file"),
                env = concat!($variable, "_CLIENT_CA_FILE"),
                requires = concat!($flag, "-cert-file"),
                value_name = "FILE"
            )]
            pub client_ca_file: Option<std::path::PathBuf>,

            #[doc = $client_help]
            #[arg(
                id = concat!($flag, "-client-names"),
                long = concat!($flag, "-client-names"),
                env = concat!($variable, "_CLIENT_NAMES"),
                requires = concat!($flag, "-client-ca-file"),
                value_delimiter = ',',
                value_name = "NAMES"
            )]
            pub client_names: Vec<$client>,

            /// Revocation lists (CRL, PEM) of all CAs of the clients. Read again when it changes; connections with a revoked certificate end. When a list is past its next update, clients of its CA are refused.
            #[arg(
                id = concat!($flag, "-client-crl-file"),
                long = concat!($flag, "-client-crl-file"),
                env = concat!($variable, "_CLIENT_CRL_FILE"),
                requires = concat!($flag, "-client-ca-file"),
                value_name = "FILE"
            )]
            pub client_crl_file: Option<std::path::PathBuf>,
        }

        impl $name {
            /// The files with their flags; `None` without TLS. The command line has checked that each has those that it needs.
            pub fn files(&self, name: impl Fn(&$client) -> ClientName) -> Option<TlsFiles> {
                let file = |flag, path: &Option<std::path::PathBuf>| Some(NamedFile { flag, path: path.clone()? });
                let authorities = file(concat!("--", $flag, "-client-ca-file"), &self.client_ca_file);
                Some(TlsFiles {
                    certificate: file(concat!("--", $flag, "-cert-file"), &self.cert_file)?,
                    key: file(concat!("--", $flag, "-key-file"), &self.key_file)?,
                    clients: authorities.map(|authorities| ClientFiles {
                        authorities,
                        names: self.client_names.iter().map(name).collect(),
                        names_flag: concat!("--", $flag, "-client-names"),
                        revoked: file(concat!("--", $flag, "-client-crl-file"), &self.client_crl_file),
                    }),
                })
            }
        }
    };
}

pub(super) use tls_options;

tls_options!(
    /// TLS of the gRPC listeners on TCP.
    TlsOptions,
    "tls",
    "KEYSTILE_TLS",
    "TLS of the gRPC listeners (TCP)",
    ClientName,
    "Clients that may connect, separated by comma: DNS names or URIs (SPIFFE ids) in their certificates, compared whole. Default: each client with a certificate of these CAs."
);

tls_options!(
    /// TLS of the admin listener.
    AdminTlsOptions,
    "admin-tls",
    "KEYSTILE_ADMIN_TLS",
    "TLS of the admin listener",
    ClientName,
    "Clients that may connect, separated by comma: DNS names or URIs (SPIFFE ids) in their certificates, compared whole. Default: each client with a certificate of these CAs."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_names_are_dns_names_or_uris() {
        assert_eq!("Envoy.Internal".parse(), Ok(ClientName::Dns("envoy.internal".into())));
        let spiffe = "spiffe://cluster.local/ns/gateways/sa/envoy";
        assert_eq!(spiffe.parse(), Ok(ClientName::Uri(spiffe.into())));
        for bad in
            ["", "*", "*.internal", "a b", "a..b", "a.", "://x", "spiffe://", "spiffe://a b", "CN=envoy"]
        {
            assert!(bad.parse::<ClientName>().is_err(), "{bad}");
        }
    }
}
