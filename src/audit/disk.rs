//! The few things that a spool asks of a disk, so that a test can have one that fails.
//!
//! Names are those of files in the spool's folder, or of a folder in it and a file: `quarantine/segment-..`. Knows files;
//! nothing of records.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// What is in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Neither a folder, nor a link, nor anything else that nobody should read as a file.
    pub(crate) is_file: bool,
}

/// A folder on a disk.
pub(crate) trait Disk: Send {
    /// What is in a folder of it, or with `""` in the folder itself, in no order.
    fn list(&mut self, folder: &str) -> io::Result<Vec<Found>>;
    /// Reads a file from its start.
    fn read(&mut self, name: &str) -> io::Result<Box<dyn Read + '_>>;
    /// Makes a new file and opens it for appending.
    fn create(&mut self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for appending; makes it when it is missing.
    fn append(&mut self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Cuts a file to so many bytes, and makes the disk keep that.
    fn truncate(&mut self, name: &str, bytes: u64) -> io::Result<()>;
    /// Renames a file, over another if need be.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; one that is not there is no error.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Makes the disk keep which files there are.
    fn sync_folder(&mut self) -> io::Result<()>;
}

/// A file that is open for appending.
pub(crate) trait DiskFile: Send {
    /// Writes some of it; says how much.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Whether its name still leads to it: nobody removed or moved it.
    fn is_there(&self) -> bool;
    /// Makes the disk keep what was written. After an error nobody knows what it kept, and asking again proves nothing:
    /// the kernel may have dropped the pages and forgotten the error.
    fn sync(&mut self) -> io::Result<()>;
}

/// Writes all of it.
pub(crate) fn write_all(file: &mut dyn DiskFile, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(some) => bytes = bytes.get(some..).unwrap_or_default(),
            Err(fault) if fault.kind() == ErrorKind::Interrupted => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(())
}

/// Folders in a spool's folder.
const FOLDERS: [&str; 3] = ["quarantine", "cursors", "dead-letter"];
const LOCK: &str = "lock";

/// Why a folder can't be had.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process has it.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// The system's words.
    #[error("{path}: {source}")]
    Io {
        /// The folder, or a file in it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The real one. Its folder is locked for as long as this is there.
#[derive(Debug)]
pub(crate) struct RealDisk {
    folder: PathBuf,
    _lock: File,
}

impl RealDisk {
    /// Makes the folder if it is missing, and takes its lock.
    ///
    /// # Errors
    /// [`FolderError`]
    pub(crate) fn open(folder: &Path) -> Result<Self, FolderError> {
        let told = |path: &Path| {
            let path = path.to_owned();
            move |source| FolderError::Io { path, source }
        };
        let made = |path: &Path| match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(fault) if fault.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other.map_err(told(path)),
        };
        made(folder)?;
        let path = folder.join(LOCK);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = options.map_err(told(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FolderError::InUse(folder.to_owned())),
            Err(TryLockError::Error(source)) => return Err(FolderError::Io { path, source }),
        }
        for name in FOLDERS {
            made(&folder.join(name))?;
        }
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Disk for RealDisk {
    fn list(&mut self, folder: &str) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path(folder))? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // It went while we looked.
                Err(gone) if gone.kind() == ErrorKind::NotFound => continue,
                Err(fault) => return Err(fault),
            };
            if let Some(name) = entry.file_name().to_str() {
                found.push(Found { name: name.to_owned(), bytes: metadata.len(), is_file: metadata.is_file() });
            }
        }
        Ok(found)
    }

    fn read(&mut self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(File::open(self.path(name))?))
    }

    fn create(&mut self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        RealFile::open(OpenOptions::new().append(true).create_new(true), self.path(name))
    }

    fn append(&mut self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        RealFile::open(OpenOptions::new().append(true).create(true), self.path(name))
    }

    fn truncate(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        file.set_len(bytes)?;
        file.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(fault) if fault.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        // The folders in it too: what is moved to quarantine must not be lost on the way.
        for name in FOLDERS {
            File::open(self.path(name))?.sync_all()?;
        }
        File::open(&self.folder)?.sync_all()
    }
}

struct RealFile {
    file: File,
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
    /// Bytes of it; how many of them a sync has confirmed; and how many were said not to be needed in memory any more.
    length: u64,
    synced: u64,
    let_go: u64,
}

/// What was written last stays in memory: readers are about there. The rest is let go in pieces.
const KEPT: u64 = 8 << 20;
const LET_GO: u64 = 1 << 20;

impl RealFile {
    fn open(options: &mut OpenOptions, path: PathBuf) -> io::Result<Box<dyn DiskFile>> {
        let file = options.mode(0o600).open(&path)?;
        let metadata = file.metadata()?;
        let id = (metadata.dev(), metadata.ino());
        Ok(Box::new(Self { file, path, id, length: metadata.len(), synced: 0, let_go: 0 }))
    }

    /// Lets the system have the memory back that holds what the disk has, but for the last `kept` bytes. A trail is written
    /// without end and seldom read again: left alone it fills all memory that there is, and each page that the system finds for it
    /// anew, or has to take from somebody, costs several times what copying the record into it does. What no sync has confirmed
    /// stays: of that the system's copy may be the only one.
    fn let_go(&mut self, kept: u64) {
        let until = self.synced.saturating_sub(kept);
        let Some(bytes) = until.checked_sub(self.let_go).and_then(std::num::NonZeroU64::new) else { return };
        if bytes.get() >= LET_GO {
            // It is advice: a system that does not take it keeps the pages.
            let _ = rustix::fs::fadvise(&self.file, self.let_go, Some(bytes), rustix::fs::Advice::DontNeed);
            self.let_go = until;
        }
    }
}

impl Drop for RealFile {
    fn drop(&mut self) {
        self.let_go(0);
    }
}

/// Written at once at most: a piece that is no longer in the processor's own cache takes the kernel twice as long to copy.
const PIECE: usize = 256 << 10;

impl DiskFile for RealFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes.get(..PIECE).unwrap_or(bytes))?;
        self.length = self.length.saturating_add(written as u64);
        Ok(written)
    }

    fn is_there(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.id)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.synced = self.length;
        self.let_go(KEPT);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::io::{ReadWriteFlags, preadv2};
    use tempfile::TempDir;

    use super::*;

    /// A file system that is memory and nothing else. Source: statfs(2).
    const TMPFS_MAGIC: i64 = 0x0102_1994;

    /// How many bytes of it are in memory. To look does not change it: a read would, as the system reads ahead. `None` where nobody
    /// can tell.
    fn held(path: &Path) -> Option<u64> {
        if rustix::fs::statfs(path).ok()?.f_type == TMPFS_MAGIC {
            return None;
        }
        let looked =
            Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(path).output().ok()?;
        String::from_utf8(looked.stdout).ok()?.trim().parse().ok()
    }

    /// A trail that is written all day must not fill the memory of the machine, or of its container.
    #[test]
    fn what_the_disk_has_stays_in_memory_near_the_end_alone() {
        let folder = TempDir::new().unwrap();
        let mut disk = RealDisk::open(&folder.path().join("spool")).unwrap();
        let mut file = disk.create("segment").unwrap();
        let path = folder.path().join("spool/segment");
        let mebibyte = vec![b'x'; 1 << 20];
        let mut written = 0;
        for _ in 0..24 {
            write_all(file.as_mut(), &mebibyte).unwrap();
            file.sync().unwrap();
            written += mebibyte.len() as u64;
        }
        let Some(kept) = held(&path) else {
            return println!("nothing here tells what is in memory, or all of it is");
        };
        assert!((KEPT..=KEPT + LET_GO).contains(&kept), "{kept} of {written} bytes: what readers are at, and no more");
        // Of what is there a read without the disk changes nothing.
        let reading = File::open(&path).unwrap();
        for at in (written - KEPT..written).step_by(1 << 20) {
            let read = preadv2(&reading, &mut [io::IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT);
            assert_eq!(read, Ok(1), "at {at} of {written}: it is the end that is there");
        }
        drop(file);
        assert_eq!(held(&path), Some(0), "a closed segment is for the disk alone");
        assert_eq!(fs::read(&path).unwrap().len() as u64, written, "which has all of it");
    }
}
