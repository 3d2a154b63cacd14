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
    chain: Chain,
    connection: Arc<Connection>,
    /// When the first certificate of the chain expires that has not expired yet.
    verify_at: Option<OffsetDateTime>,
    /// Number of verifications until it is cut, once it is closing.
    cut_in: Option<u32>,
}

/// Number of verifications after which a closing connection is cut: two seconds.
const GRACE: u32 = 2;

/// The certificates of a client, its own first.
type Chain = Arc<[CertificateDer<'static>]>;

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
            let chain: Chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
            let verify_at = next_expiry(&chain, None);
            open.peers.insert(id, Peer { chain, connection, verify_at, cut_in: None });
        }
        PeerSlot { id, names: names.unwrap_or_default(), peers: self.clone() }
    }

    /// Closes the connections whose certificate is no longer valid: first so that calls in progress can end, and two
    /// calls later at once. Unless the files have changed, only those are verified of which something has expired.
    /// Takes as long as so many verifications.
    pub(super) fn verify(&self, material: &Material, has_changed: bool, now: OffsetDateTime) {
        let due = self.due(has_changed || material.is_past_update(now), now);
        // An Envoy has many connections with one certificate. The lock is not held: handshakes need it.
        let mut verified = HashMap::new();
        for (id, chain) in due {
            let verdict =
                verified.entry(Arc::clone(&chain)).or_insert_with(|| material.verify(&chain, now)).clone();
            if let Err(error) = verdict {
                info!(%error, "a client's certificate is no longer valid; its connection ends");
                self.close(id);
            }
        }
    }

    /// The connections to verify. Cuts those that had their time to end.
    fn due(&self, all: bool, now: OffsetDateTime) -> Vec<(u64, Chain)> {
        let mut due = Vec::new();
        for (id, peer) in &mut self.0.lock().peers {
            if let Some(left) = &mut peer.cut_in {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    peer.connection.cut();
                }
            } else if all || peer.verify_at.is_some_and(|at| at <= now) {
                peer.verify_at = next_expiry(&peer.chain, Some(now));
                due.push((*id, Arc::clone(&peer.chain)));
            }
        }
        due
    }

    fn close(&self, id: u64) {
        if let Some(peer) = self.0.lock().peers.get_mut(&id) {
            peer.cut_in = Some(GRACE);
            peer.connection.close();
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
