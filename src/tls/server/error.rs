//! Why an identity can't be served with: each names the file or the socket, and the mend.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::clock::timestamp;

/// Why a set of files can't be served with. Names the file and the mend, never its content.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It can't be opened or read.
    #[error("`{}` can't be read: check that it exists and that this user may read it", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Larger than a PEM file of this kind could be.
    #[error("`{}` is larger than 1 MiB: it should hold PEM and nothing else", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// No certificate, or something that is not one.
    #[error("`{}` does not hold certificates: it should be PEM with `BEGIN CERTIFICATE`, the server's own first", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
    },
    /// No private key, or one of a kind that can't be used.
    #[error(
        "`{}` does not hold a usable private key: it should be PEM with one unencrypted PKCS#8, SEC1 or PKCS#1 key (ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more)",
        .path.display()
    )]
    PrivateKey {
        /// The file.
        path: PathBuf,
    },
    /// The private key is behind a passphrase.
    #[error(
        "the private key in `{}` is encrypted, and nobody is there to type its passphrase: decrypt it with `openssl pkey -in {} -out decrypted.key`, keep that for this user alone (`chmod 600`), and name it instead",
        .path.display(),
        .path.display()
    )]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// The key belongs to another certificate.
    #[error("the key in `{}` does not belong to the first certificate in `{}`: replace both together", .private_key.display(), .certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
    },
    /// Our own certificate is past its end.
    #[error(
        "the certificate in `{}` has expired: it was good until {}, and here it is {}; put a renewed one there, and its key, or mend this machine's clock if that is what is wrong",
        .path.display(),
        timestamp(*.until),
        timestamp(*.now)
    )]
    Expired {
        /// The file.
        path: PathBuf,
        /// Its end.
        until: SystemTime,
        /// What time it is here.
        now: SystemTime,
    },
    /// Our own certificate is of the future.
    #[error(
        "the certificate in `{}` is not valid yet: it is good from {}, and here it is {}; mend this machine's clock (NTP) if that is what is wrong, or put a certificate there that is in force",
        .path.display(),
        timestamp(*.from),
        timestamp(*.now)
    )]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Its beginning.
        from: SystemTime,
        /// What time it is here.
        now: SystemTime,
    },
    /// Our own certificate is for somebody else.
    #[error(
        "the certificate in `{}` is not for `{name}`, which `server.names` demands: it is for {found}; get one for that name, or correct `server.names`",
        .path.display()
    )]
    Names {
        /// The file.
        path: PathBuf,
        /// The first name that it lacks.
        name: String,
        /// The names that it has.
        found: String,
    },
    /// No authority, or a certificate that is none.
    #[error(
        "`{}` does not hold authorities: it should be PEM with at least one certificate, each with `CA:TRUE` and, where it names uses, `keyCertSign`",
        .path.display()
    )]
    ClientAuthorities {
        /// The file.
        path: PathBuf,
    },
    /// The TLS library refuses for a reason that is none of the above.
    #[error("TLS can't be set up with `{}`", .path.display())]
    Setup {
        /// The certificate's file.
        path: PathBuf,
        /// What the library says; it knows no key material.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A revocation list that can't be used, or no list at all.
    #[error(
        "`{}` does not hold a revocation list that can be used ({why}): it should be PEM with `BEGIN X509 CRL`, or DER, of whole lists (no delta, not indirect) with `nextUpdate`, and is named in `client_crls`",
        .path.display()
    )]
    RevocationList {
        /// The file.
        path: PathBuf,
        /// What the library says.
        why: webpki::Error,
    },
    /// A folder of revocation lists without one.
    #[error("`{}` holds no revocation list: put one there that ends in `.pem`, `.crl` or `.der`, or take the folder out of `client_crls`", .path.display())]
    NoRevocationList {
        /// The folder.
        path: PathBuf,
    },
    /// Too many or too long, those that stay in force included.
    #[error(
        "the revocation lists are larger than {limit} bytes together, or more than 1024: take out those that are not needed, or raise `limits.crl_bytes`"
    )]
    RevocationListsTooLarge {
        /// `limits.crl_bytes`.
        limit: usize,
    },
    /// The Workload API gave nothing in time.
    #[error("the Workload API at `{socket}` gave no identity within {} s ({why}): check that the agent runs, and that this workload is registered with it", .waited.as_secs())]
    Agent {
        /// The socket, as it was configured.
        socket: String,
        /// What happened last, without any content.
        why: String,
        /// For how long it was tried.
        waited: Duration,
    },
    /// The Workload API gave something that can't be served with.
    #[error("what the Workload API at `{socket}` gave can't be used: {why}")]
    AgentIdentity {
        /// The socket, as it was configured.
        socket: String,
        /// What is wrong with it, without any of it.
        why: String,
    },
}

/// The system would not let it be read.
pub(in crate::tls) fn read_failed(path: &Path, source: std::io::Error) -> TlsError {
    TlsError::Read { path: path.to_owned(), source }
}
