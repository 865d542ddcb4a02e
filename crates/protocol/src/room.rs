//! The secret of a room, what the server may know of it, and envelopes that the server can neither read nor forge.
//!
//! The secret travels in the link's fragment (`/#/join/<secret>`), which a browser never sends. The server sees
//! SHA-256 of it under a label of its own; SDP is sealed with XChaCha20-Poly1305 under a key derived by HKDF
//! (RFC 5869). A peer that can open an envelope therefore knows the secret, and since the envelope carries the DTLS
//! fingerprints, the connections built from it belong to members of the room.

use crate::ids::PeerId;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, KeyInit, Payload},
};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

const SECRET_LEN: usize = 16;
const NONCE_LEN: usize = 24;

/// An envelope longer than this (in base64 characters) is refused unread; an SDP with its candidates is 2 to 6 KB.
pub const MAX_SEALED_LEN: usize = 64 * 1024;

/// What went wrong with a room's secret or an envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoomError {
    /// The text after `#/join/` is not a secret.
    #[error(
        "this is not a Baton join link: its code should have 22 letters, digits, '-' or '_', and has {found}"
    )]
    BadSecret {
        /// How many characters the code has.
        found: usize,
    },
    /// The envelope is longer than any that this protocol makes.
    #[error("an envelope of {len} characters was refused (at most {MAX_SEALED_LEN} are allowed)")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// The envelope was not sealed with this room's secret, or not for this pair of peers.
    #[error("an envelope from peer {from} does not open with this room's secret")]
    Forged {
        /// Who the server says it is from.
        from: PeerId,
    },
}

/// 128 random bits that make a room.
#[derive(Clone, PartialEq, Eq)]
pub struct RoomSecret([u8; SECRET_LEN]);

impl fmt::Debug for RoomSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RoomSecret(…)")
    }
}

impl RoomSecret {
    /// A secret from 16 bytes of the platform's random generator.
    pub fn from_bytes(bytes: [u8; SECRET_LEN]) -> Self {
        Self(bytes)
    }

    /// The secret as it stands in a link: 22 characters of URL-safe base64.
    pub fn to_code(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads what [`to_code`](Self::to_code) wrote.
    pub fn from_code(code: &str) -> Result<Self, RoomError> {
        let bad = || RoomError::BadSecret { found: code.chars().count() };
        if code.len() > 64 {
            return Err(bad());
        }
        let bytes = URL_SAFE_NO_PAD.decode(code).map_err(|_| bad())?;
        Ok(Self(bytes.try_into().map_err(|_| bad())?))
    }

    /// The identifier under which the server knows the room.
    pub fn room_id(&self) -> RoomId {
        let digest = Sha256::new().chain_update(b"baton room id v1").chain_update(self.0).finalize();
        RoomId(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The key to the room's envelopes.
    pub fn sealer(&self) -> Sealer {
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(Some(b"baton"), &self.0)
            .expand(b"envelope v1", &mut key)
            .expect("32 bytes is a valid length for HKDF-SHA256");
        Sealer(XChaCha20Poly1305::new(&key.into()))
    }
}

/// SHA-256 of the secret under a label, as 64 hexadecimal digits: all that the server learns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RoomId(String);

impl RoomId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for RoomId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text))
        } else {
            Err(serde::de::Error::custom("a room is named by 64 hexadecimal digits"))
        }
    }
}

/// Seals and opens the envelopes that the server relays.
pub struct Sealer(XChaCha20Poly1305);

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(…)")
    }
}

/// Binds an envelope to its sender and receiver, so that the server cannot redirect it.
fn associated_data(from: PeerId, to: PeerId) -> [u8; 8] {
    let mut data = [0; 8];
    data[..4].copy_from_slice(&from.0.to_be_bytes());
    data[4..].copy_from_slice(&to.0.to_be_bytes());
    data
}

impl Sealer {
    /// Seals `plain` for `to`; `nonce` is 24 bytes of the platform's random generator.
    pub fn seal(&self, from: PeerId, to: PeerId, nonce: [u8; NONCE_LEN], plain: &[u8]) -> String {
        let payload = Payload { msg: plain, aad: &associated_data(from, to) };
        let sealed = self
            .0
            .encrypt(XNonce::from_slice(&nonce), payload)
            .expect("XChaCha20-Poly1305 only fails beyond 256 GB");
        let mut bytes = nonce.to_vec();
        bytes.extend(sealed);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Opens what `from` sealed for `to`.
    pub fn open(&self, from: PeerId, to: PeerId, sealed: &str) -> Result<Vec<u8>, RoomError> {
        if sealed.len() > MAX_SEALED_LEN {
            return Err(RoomError::TooLong { len: sealed.len() });
        }
        let forged = || RoomError::Forged { from };
        let bytes = URL_SAFE_NO_PAD.decode(sealed).map_err(|_| forged())?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN).ok_or_else(forged)?;
        let payload = Payload { msg: sealed, aad: &associated_data(from, to) };
        self.0.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| forged())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> RoomSecret {
        RoomSecret::from_bytes(*b"sixteen bytes ok")
    }

    #[test]
    fn a_code_reads_back() {
        let code = secret().to_code();
        assert_eq!(code.len(), 22);
        assert_eq!(RoomSecret::from_code(&code), Ok(secret()));
        for bad in ["", "short", &"A".repeat(23), &"A".repeat(1000), "äöüäöüäöüäöüäöüäöüäöüä"]
        {
            assert!(matches!(RoomSecret::from_code(bad), Err(RoomError::BadSecret { .. })), "{bad}");
        }
    }

    #[test]
    fn an_envelope_opens_for_its_receiver_only() {
        let (a, b, c) = (PeerId(1), PeerId(2), PeerId(3));
        let sealer = secret().sealer();
        let sealed = sealer.seal(a, b, [7; 24], b"v=0");
        assert_eq!(sealer.open(a, b, &sealed).as_deref(), Ok(&b"v=0"[..]));
        assert_eq!(sealer.open(a, c, &sealed), Err(RoomError::Forged { from: a }));
        assert_eq!(sealer.open(b, a, &sealed), Err(RoomError::Forged { from: b }));
        let other = RoomSecret::from_bytes([0; 16]).sealer();
        assert!(other.open(a, b, &sealed).is_err());
        let mut tampered = sealed.into_bytes();
        tampered[40] ^= 1;
        assert!(sealer.open(a, b, &String::from_utf8(tampered).unwrap()).is_err());
        assert!(sealer.open(a, b, "AAAA").is_err());
    }

    #[test]
    fn the_room_id_is_a_digest_and_only_a_digest_parses() {
        let id = secret().room_id();
        let json = format!("\"{}\"", id.as_str());
        assert_eq!(serde_json::from_str::<RoomId>(&json).unwrap(), id);
        assert!(!id.as_str().contains(&secret().to_code()));
        assert!(serde_json::from_str::<RoomId>("\"../../etc\"").is_err());
    }
}
