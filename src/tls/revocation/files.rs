//! Revocation lists on disk: files and folders of them, within a limit of bytes, in PEM or DER.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;

use super::list::RevocationList;
use crate::tls::server::TlsError;
use crate::tls::server::error::read_failed;

/// Lists, and files, that are looked at.
const MAX_LISTS: usize = 1024;
const ENDINGS: [&str; 3] = ["pem", "crl", "der"];

/// Where the lists are.
#[derive(Debug, Clone)]
pub(in crate::tls) struct ListFiles {
    /// Files, and folders of files.
    pub(in crate::tls) paths: Vec<PathBuf>,
    /// Of all of them together.
    pub(in crate::tls) limit: usize,
}

/// What the files hold, not looked into yet.
pub(in crate::tls) struct ListTexts(Vec<(Arc<PathBuf>, Vec<u8>)>);

/// Whether a file of this name in a folder of lists is one.
pub(in crate::tls) fn is_list(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let ending = path.extension().and_then(|ending| ending.to_str());
    !hidden && ending.is_some_and(|ending| ENDINGS.contains(&ending))
}

impl ListFiles {
    /// # Errors
    /// Which file can't be read, which folder is empty, or that there is too much of it.
    pub(in crate::tls) fn read(&self) -> Result<ListTexts, TlsError> {
        let too_much = || TlsError::RevocationListsTooLarge { limit: self.limit };
        let (mut texts, mut left) = (Vec::new(), self.limit);
        for path in &self.paths {
            for file in self.files_of(path)? {
                let text = read_bounded(&file, left)?.ok_or_else(too_much)?;
                left = left.saturating_sub(text.len());
                if texts.len() == MAX_LISTS {
                    return Err(too_much());
                }
                texts.push((Arc::new(file), text));
            }
        }
        Ok(ListTexts(texts))
    }

    fn files_of(&self, path: &Path) -> Result<Vec<PathBuf>, TlsError> {
        if !std::fs::metadata(path).map_err(|source| read_failed(path, source))?.is_dir() {
            return Ok(vec![path.to_owned()]);
        }
        let listed: std::io::Result<Vec<_>> =
            std::fs::read_dir(path).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
        let mut files = listed.map_err(|source| read_failed(path, source))?;
        files.retain(|file| is_list(file));
        files.sort();
        // An empty folder is more likely a mount that failed than a wish to revoke nothing.
        if files.is_empty() { Err(TlsError::NoRevocationList { path: path.to_owned() }) } else { Ok(files) }
    }
}

/// Nothing when it is longer than `most`.
fn read_bounded(path: &Path, most: usize) -> Result<Option<Vec<u8>>, TlsError> {
    use std::io::Read as _;
    let most = u64::try_from(most).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(most.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|source| read_failed(path, source))?;
    Ok(u64::try_from(bytes.len()).is_ok_and(|length| length <= most).then_some(bytes))
}

impl ListTexts {
    /// Each part is framed by its length, so that no two sets look alike.
    pub(in crate::tls) fn content(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (_, text) in &self.0 {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text);
        }
        hasher.finalize()
    }

    /// # Errors
    /// Which file holds no list, or one that can't be used.
    pub(in crate::tls) fn lists(&self) -> Result<Vec<RevocationList>, TlsError> {
        let mut lists = Vec::new();
        for (file, text) in &self.0 {
            let unusable = |why| TlsError::RevocationList { path: file.to_path_buf(), why };
            for der in ders(text).ok_or_else(|| unusable(webpki::Error::BadDer))? {
                if lists.len() == MAX_LISTS {
                    return Err(unusable(webpki::Error::BadDer));
                }
                lists.push(RevocationList::read(&der, file).map_err(unusable)?);
            }
        }
        Ok(lists)
    }
}

/// The lists of a file: every `X509 CRL` of a PEM text, or the whole as DER. Nothing when it is neither.
fn ders(text: &[u8]) -> Option<Vec<CertificateRevocationListDer<'_>>> {
    // DER of a list begins with a SEQUENCE, which no PEM text does.
    if text.first() == Some(&0x30) {
        return Some(vec![CertificateRevocationListDer::from(text)]);
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>().ok()?;
    (!lists.is_empty()).then_some(lists)
}
