//! The revocation file: one entry a line, appended by us, by other replicas and by operators, watched by all of them.
//!
//! File and list are joined both ways: whatever a line says is taken, and whatever is in force and not in the file is
//! written there. So a file that was emptied, cut short or put in another's place un-revokes nothing: it is filled
//! again. A line that is no entry is told of, counted and left where it is; the others are taken.
//!
//! Writers hold an advisory lock on `<file>.lock` (the file itself is replaced when it is compacted), and an entry
//! counts as written once it is on the disk. Readers need no lock: they take whole lines alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Touch;
use super::entry::{Flaw, LINE_BYTES, Revocation};
use super::list::{Revocations, is_over};

mod progress;
mod watch;

use progress::{MARK_BYTES, Progress, Seen};

/// How long the lock is waited for. Whoever holds it writes a few lines.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// The file may be so much longer than its entries can make it: lines that others made superfluous.
const SLACK_LINES: u64 = 10_000;
/// Why the file could not be read or written. Names the file and the mend.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system's own.
    #[error("the revocation file `{}` can't be {what}: check that it and its folder may be read and written", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// `read`, `written`..
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody holds the lock and does not let go.
    #[error("the revocation file's lock `{}` is held by another process: find out which, and end it", .path.display())]
    Locked {
        /// Which file.
        path: PathBuf,
    },
    /// It has more lines than `limits.revocations` entries can need.
    #[error("the revocation file `{}` is larger than {limit} bytes: take out what is none of ours, or raise `limits.revocations`", .path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// An entry can't be written as JSON.
    #[error("a revocation can't be written down")]
    Unwritable(#[source] serde_json::Error),
}

/// The file, joined with the list.
#[derive(Debug)]
pub struct RevocationFile {
    path: PathBuf,
    list: Arc<Revocations>,
    touch: Touch,
    read: Mutex<Progress>,
}

impl RevocationFile {
    /// Opens the file, or makes it, drops the lines that are over, and takes what it says. Blocks on the file system.
    ///
    /// # Errors
    /// When it can't be read and written: a file that nothing can be added to is none.
    pub fn open(path: &Path, list: &Arc<Revocations>) -> Result<Arc<Self>, FileError> {
        let touch = Touch::new(Arc::clone(list.clock()));
        let file = Self { path: path.to_owned(), list: Arc::clone(list), touch, read: Mutex::default() };
        file.compact()?;
        file.touch.reached();
        Ok(Arc::new(file))
    }

    /// Takes what the file says and touches nothing: for whoever looks before the start. One that is not there yet says
    /// nothing.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn examine(path: &Path, list: &Arc<Revocations>) -> Result<(), FileError> {
        let touch = Touch::new(Arc::clone(list.clock()));
        Self { path: path.to_owned(), list: Arc::clone(list), touch, read: Mutex::default() }.look()
    }

    /// Puts `one` into the file: when this returns it is on the disk. Blocks on the file system.
    ///
    /// # Errors
    /// [`FileError`]; then the file says what it said before, or holds half a line that counts for nothing.
    pub fn append(&self, one: &Revocation) -> Result<(), FileError> {
        self.write(std::slice::from_ref(one))
    }

    /// Takes what is new in the file, and writes what is in force and not in it. Blocks on the file system.
    ///
    /// # Errors
    /// [`FileError`]; the list stays as it is.
    pub fn join(&self) -> Result<(), FileError> {
        self.look()?;
        let missing = self.list.beyond(&self.read.lock().said);
        if missing.is_empty() {
            return Ok(());
        }
        self.write(&missing)
    }

    /// How long the file has been out of reach.
    #[must_use]
    pub fn staleness(&self) -> Duration {
        self.touch.staleness()
    }

    /// Takes what is new in the file.
    fn look(&self) -> Result<(), FileError> {
        let mut read = self.read.lock();
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Whoever took it away revoked nothing and un-revokes nothing: it is written again.
                *read = Progress::default();
                return Ok(());
            }
            Err(error) => return Err(self.io("opened")(error)),
        };
        let seen = Seen::of(&file.metadata().map_err(self.io("read"))?);
        if read.seen == Some(seen) && read.unfinished.is_none() {
            return Ok(());
        }
        if seen.length > self.limit() {
            return Err(FileError::TooLarge { path: self.path.clone(), limit: self.limit() });
        }
        if !self.goes_on(&read, &mut file, seen).map_err(self.io("read"))? {
            let told = std::mem::take(&mut read.told);
            *read = Progress { told, ..Progress::default() };
        }
        file.seek(SeekFrom::Start(read.offset)).map_err(self.io("read"))?;
        let mut bytes = Vec::new();
        file.take(self.limit()).read_to_end(&mut bytes).map_err(self.io("read"))?;
        self.take_lines(&mut read, &bytes);
        read.seen = Some(seen);
        Ok(())
    }

    /// Appends what the file does not say, in one stroke, and sees it onto the disk.
    fn write(&self, entries: &[Revocation]) -> Result<(), FileError> {
        let _lock = self.lock()?;
        // What others wrote in the meantime need not be written again.
        self.look()?;
        let mut read = self.read.lock();
        let mut text = String::new();
        for one in entries.iter().filter(|one| !read.said.covers(one)) {
            text.push_str(&one.line().map_err(FileError::Unwritable)?);
            text.push('\n');
        }
        if text.is_empty() {
            return Ok(());
        }
        let open = || {
            let file = self.options().append(true).open(&self.path).map_err(self.io("opened"))?;
            let length = file.metadata().map_err(self.io("read"))?.len();
            Ok((file, length))
        };
        let too_large =
            |length: u64| length.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX)) > self.limit();
        let (mut file, mut length) = open()?;
        if too_large(length) {
            // Most of a file that has grown for days is over.
            drop(read);
            self.drop_what_is_over()?;
            read = self.read.lock();
            (file, length) = open()?;
        }
        if too_large(length) {
            return Err(FileError::TooLarge { path: self.path.clone(), limit: self.limit() });
        }
        if ends_inside_a_line(&mut file, length).map_err(self.io("read"))? {
            // Whoever began it is gone, for we hold the lock. It becomes a line of its own.
            text.insert(0, '\n');
        }
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
        // A new file is there for good only once its folder says so.
        let written = written.and_then(|()| if length == 0 { sync_folder(&self.path) } else { Ok(()) });
        if let Err(error) = written {
            // Nothing half done: what got there must not take effect later, here or elsewhere.
            if let Err(error) = file.set_len(length).and_then(|()| file.sync_data()) {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "half a line may be left in the revocation file"
                );
            }
            return Err(self.io("written")(error));
        }
        for one in entries {
            read.said.join(one);
        }
        if read.end == length {
            // Nobody wrote between our look and our lines, so they need not be read.
            if let Some(half) = read.unfinished.take() {
                let line = read.lines + 1;
                self.tell(&mut read, &[(line, &half, Flaw::Torn)]);
            }
            read.lines += u64::try_from(text.matches('\n').count()).unwrap_or(0);
            let marked = text.len().saturating_sub(MARK_BYTES);
            read.mark = text.as_bytes().get(marked..).unwrap_or_default().to_vec();
            read.offset = length + u64::try_from(text.len()).unwrap_or(0);
            read.end = read.offset;
            read.seen = Some(Seen::of(&file.metadata().map_err(self.io("read"))?));
        }
        Ok(())
    }

    /// Takes what the file says and drops what is over.
    fn compact(&self) -> Result<(), FileError> {
        let _lock = self.lock()?;
        drop(self.options().append(true).open(&self.path).map_err(self.io("opened"))?);
        self.look()?;
        self.drop_what_is_over()
    }

    /// Writes the file anew without what is over. Lines that are no entries stay: somebody meant something by them, and is
    /// told of them at every start until they are mended. To be called with the lock held.
    fn drop_what_is_over(&self) -> Result<(), FileError> {
        let now = self.list.now();
        let mut old = File::open(&self.path).map_err(self.io("opened"))?;
        let mut text = Vec::new();
        old.read_to_end(&mut text).map_err(self.io("read"))?;
        let over = |line: &[u8]| Revocation::read(line, now).is_ok_and(|one| is_over(one.until, now));
        let lines = || text.split_inclusive(|byte| *byte == b'\n');
        let bare = |line: &[u8]| line.strip_suffix(b"\n").unwrap_or(line).to_vec();
        if !lines().any(|line| over(&bare(line))) {
            return Ok(());
        }
        let kept: Vec<u8> = lines().filter(|line| !over(&bare(line))).flatten().copied().collect();
        let aside = beside(&self.path, ".new");
        let mode = fs::metadata(&self.path).map_err(self.io("read"))?.mode();
        let replaced = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&aside);
        replaced
            .and_then(|mut file| {
                file.write_all(&kept).and_then(|()| file.sync_all())?;
                fs::rename(&aside, &self.path)?;
                // Somebody may have appended by hand, without the lock, while we wrote.
                let mut late = Vec::new();
                if old.read_to_end(&mut late)? > 0 {
                    let mut file = self.options().append(true).open(&self.path)?;
                    file.write_all(&late).and_then(|()| file.sync_data())?;
                }
                Ok(())
            })
            .and_then(|()| sync_folder(&self.path))
            .map_err(self.io("compacted"))?;
        let mut read = self.read.lock();
        let told = std::mem::take(&mut read.told);
        *read = Progress { told, ..Progress::default() };
        drop(read);
        self.look()
    }

    fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).create(true).mode(0o640);
        options
    }

    /// Held until dropped.
    fn lock(&self) -> Result<File, FileError> {
        let path = beside(&self.path, ".lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(&path);
        let lock = lock.map_err(|source| FileError::Io { path: path.clone(), what: "locked", source })?;
        let begun = self.list.clock().monotonic();
        let mut tries = 0;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(source)) => return Err(FileError::Io { path, what: "locked", source }),
            }
            tries += 1;
            let waited = self.list.clock().monotonic().saturating_sub(begun).max(LOCK_RETRY * tries);
            if waited >= LOCK_WITHIN {
                return Err(FileError::Locked { path });
            }
            std::thread::sleep(LOCK_RETRY);
        }
    }

    fn limit(&self) -> u64 {
        let entries = u64::try_from(self.list.limit()).unwrap_or(u64::MAX).saturating_add(SLACK_LINES);
        entries.saturating_mul(u64::try_from(LINE_BYTES).unwrap_or(u64::MAX))
    }

    fn io(&self, what: &'static str) -> impl Fn(io::Error) -> FileError + '_ {
        move |source| FileError::Io { path: self.path.clone(), what, source }
    }
}

fn ends_inside_a_line(file: &mut File, length: u64) -> io::Result<bool> {
    if length == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(length - 1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
