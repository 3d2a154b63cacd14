//! The open connections of clients with certificates. They end once the certificate is no longer valid.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tracing::info;

use super::{certificate::CertificateFacts, material::Material};
use crate::{bounds::Connection, config::ClientName};

/// The open connections. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Peers(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    next: u64,
    peers: HashMap<u64, Peer>,
}

struct Peer {
    chain: Vec<CertificateDer<'static>>,
    connection: Arc<Connection>,
    /// When the first certificate of the chain expires that has not expired yet.
    verify_at: Option<OffsetDateTime>,
    is_closing: bool,
}

/// The place of a connection, until it ends.
pub(super) struct PeerSlot {
    id: u64,
    names: Vec<ClientName>,
    peers: Peers,
}

impl Peers {
    /// Adds a connection. Without a certificate, there is nothing to verify later.
    pub(super) fn open(&self, chain: &[CertificateDer<'_>], connection: Arc<Connection>) -> PeerSlot {
        let names = chain.first().and_then(CertificateFacts::read).map(|facts| facts.names);
        let mut open = self.0.lock();
        let id = open.next;
        open.next += 1;
        if !chain.is_empty() {
            let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
            let verify_at = next_expiry(&chain, None);
            open.peers.insert(id, Peer { chain, connection, verify_at, is_closing: false });
        }
        PeerSlot { id, names: names.unwrap_or_default(), peers: self.clone() }
    }

    /// Closes the connections whose certificate is no longer valid: first so that calls in progress can end, and at the
    /// next call at once. Unless the files have changed, only those are verified of which something has expired.
    pub(super) fn verify(&self, material: &Material, has_changed: bool, now: OffsetDateTime) {
        let must_verify = has_changed || material.is_past_update(now);
        for peer in self.0.lock().peers.values_mut() {
            if peer.is_closing {
                peer.connection.cut();
                continue;
            }
            let has_expired = peer.verify_at.is_some_and(|at| at <= now);
            if !must_verify && !has_expired {
                continue;
            }
            peer.verify_at = next_expiry(&peer.chain, Some(now));
            if let Err(error) = material.verify(&peer.chain, now) {
                info!(%error, "a client's certificate is no longer valid; its connection ends");
                peer.is_closing = true;
                peer.connection.close();
            }
        }
    }
}

impl PeerSlot {
    pub(super) fn names(&self) -> &[ClientName] {
        &self.names
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        self.peers.0.lock().peers.remove(&self.id);
    }
}

/// When the first certificate of a chain has expired, after this time. A certificate is valid to the end of its last
/// second.
fn next_expiry(chain: &[CertificateDer<'_>], after: Option<OffsetDateTime>) -> Option<OffsetDateTime> {
    let expiries = chain.iter().filter_map(|certificate| {
        Some(CertificateFacts::read(certificate)?.not_after + time::Duration::seconds(1))
    });
    expiries.filter(|expiry| after.is_none_or(|after| *expiry > after)).min()
}
