//! Private keys are wiped once the signing key is made of them. What ring holds of the signing key is not wiped.

use rustls::{
    Error, InconsistentKeys,
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

/// A chain and its key, as [`CertifiedKey::from_der`] makes them, which does not wipe the key.
///
/// # Errors
/// When the key cannot be used, or belongs to another certificate.
pub(super) fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, Error> {
    let key = Zeroizing::new(key);
    let certified = CertifiedKey::new(chain, any_supported_type(&key)?);
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(error) => Err(error),
    }
}
