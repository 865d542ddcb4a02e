//! The certificate: one of our own for the addresses of this machine, kept from run to run, or one that was given.
//!
//! A phone reaches the page by a LAN address, and WebGPU, OPFS and the wake lock want a secure context there. A
//! certificate that is kept has to be accepted on each phone once.

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};
use time::{Duration, OffsetDateTime};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

/// iOS takes no certificate that lives longer than 825 days.
const LIFETIME: Duration = Duration::days(800);

/// One that ends sooner than this is made anew.
const REST: Duration = Duration::days(14);

/// Where a certificate chain and its key are, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// What is wrong with a certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{}: {error}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is no PEM file of the kind.
    #[error("{}: {error}", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        error: rustls::pki_types::pem::Error,
    },
    /// The certificate could not be made.
    #[error("the certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
    /// Certificate and key do not fit each other, or are of a kind that rustls does not take.
    #[error("the certificate in {} cannot be used: {error}", .path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        error: rustls::Error,
    },
}

impl Identity {
    /// The certificate in `dir`, made anew if it is not there, is about to end, or lacks one of `names` (host names
    /// and IP addresses). Names that it had are kept: a laptop that comes back to a network is known there.
    ///
    /// # Errors
    /// [`TlsError::File`] if `dir` cannot be written.
    pub fn load_or_make(dir: &Path, names: &[String], now: OffsetDateTime) -> Result<Self, TlsError> {
        let identity = Self { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        let note = fs::read_to_string(&identity.cert).ok().and_then(|pem| Note::read(&pem));
        let mut wanted: BTreeSet<String> = names.iter().cloned().collect();
        if let Some(note) = note {
            if wanted.is_subset(&note.names) && note.ends > now + REST && identity.key.is_file() {
                return Ok(identity);
            }
            wanted.extend(note.names);
        }
        identity.make(&Note { ends: now + LIFETIME, names: wanted }, now)?;
        Ok(identity)
    }

    fn make(&self, note: &Note, now: OffsetDateTime) -> Result<(), TlsError> {
        let mut params = CertificateParams::new(note.names.iter().cloned().collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, "Baton on this network");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // A phone's clock may be behind.
        params.not_before = now - Duration::days(1);
        params.not_after = note.ends;
        let key = KeyPair::generate()?;
        let cert = params.self_signed(&key)?;
        write(&self.key, &key.serialize_pem(), 0o600)?;
        write(&self.cert, &format!("{}{}", note.write(), cert.pem()), 0o644)
    }

    /// Reads both files for the server.
    pub(crate) fn load(&self) -> Result<TlsAcceptor, TlsError> {
        let pem = |path: &Path| {
            let path = path.to_owned();
            move |error| TlsError::Pem { path, error }
        };
        let chain = CertificateDer::pem_file_iter(&self.cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(pem(&self.cert))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(pem(&self.key))?;
        let unusable = |error| TlsError::Unusable { path: self.cert.clone(), error };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        // WebSockets over HTTP/2 (RFC 8441) are another code path, and this server has one.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config).into())
    }
}

/// What the text before the PEM block says, so that no X.509 parser is needed to know what is in it.
#[derive(Debug, PartialEq, Eq)]
struct Note {
    ends: OffsetDateTime,
    names: BTreeSet<String>,
}

impl Note {
    fn write(&self) -> String {
        let names: Vec<_> = self.names.iter().map(String::as_str).collect();
        format!("made by baton; ends {}; for {}\n", self.ends.unix_timestamp(), names.join(" "))
    }

    fn read(pem: &str) -> Option<Self> {
        let (ends, names) = pem.lines().next()?.strip_prefix("made by baton; ends ")?.split_once("; for ")?;
        let ends = OffsetDateTime::from_unix_timestamp(ends.parse().ok()?).ok()?;
        Some(Self { ends, names: names.split(' ').map(str::to_owned).collect() })
    }
}

/// Writes a file that nobody ever sees half of, nor with wider permissions than `mode`.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let temporary = path.with_extension("new");
    let attempt = || {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        options.open(&temporary)?.write_all(text.as_bytes())?;
        fs::rename(&temporary, path)
    };
    attempt().map_err(|error| TlsError::File { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap()
    }

    #[test]
    fn a_certificate_is_kept_until_it_ends_or_lacks_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join(".baton");
        let cert = |names: &[String], now| {
            let identity = Identity::load_or_make(&dir, names, now).unwrap();
            identity.load().unwrap();
            fs::read_to_string(identity.cert).unwrap()
        };
        let home = names(&["192.168.1.5", "localhost"]);
        let first = cert(&home, now());
        assert_eq!(cert(&home, now() + Duration::days(700)), first);
        let abroad = cert(&names(&["10.0.0.9"]), now());
        assert_ne!(abroad, first);
        assert_eq!(cert(&home, now()), abroad, "the names of before are kept");
        assert_ne!(cert(&home, now() + Duration::days(790)), abroad);
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_reads_the_key() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_make(dir.path(), &names(&["localhost"]), now()).unwrap();
        assert_eq!(fs::metadata(identity.key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_no_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_make(dir.path(), &names(&["localhost"]), now()).unwrap();
        fs::write(&identity.cert, "hello").unwrap();
        let error = identity.load().err().unwrap().to_string();
        assert!(error.contains("cert.pem"), "{error}");
    }
}
