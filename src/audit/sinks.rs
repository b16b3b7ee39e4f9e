//! Where lines go: standard output, or a file that is rotated by size.
//!
//! A sink writes whole lines and says how many got out. It knows nothing of records. It blocks, so only the writer's
//! own thread may hold one. After a fault it starts afresh on the next call, and never glues a line to a torn one.
//!
//! A durable spool is one more [`AuditSinkLike`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Lines that go out together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch<'a> {
    /// All lines, one after the other, each with its line break.
    pub(super) bytes: &'a [u8],
    /// Where each line ends in `bytes`.
    pub(super) ends: &'a [usize],
}

/// What became of a batch.
#[derive(Debug)]
pub(super) struct Appended {
    /// Lines that are out whole.
    pub(super) lines: usize,
    /// Whether a part of the next line is out too.
    pub(super) torn: bool,
    /// Why it ended early.
    pub(super) fault: Option<ErrorKind>,
}

/// Takes lines. `lines` out means `write(2)` has returned for them.
pub(super) trait AuditSinkLike: Send {
    /// Writes the batch, from its first line on, until it is out or something goes wrong.
    fn append(&mut self, batch: Batch<'_>) -> Appended;
    /// Asks the system to make what was written last.
    fn sync(&mut self);
}

/// Opens the sink that the configuration names.
///
/// # Errors
/// What the system says.
pub(super) fn file(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Box<dyn AuditSinkLike>> {
    let mut file = FileSink { path: path.to_owned(), max_bytes, max_files, open: None };
    file.ready(0)?;
    Ok(Box::new(file))
}

/// A pipe or a terminal.
pub(super) struct StreamSink {
    out: File,
    torn: bool,
}

impl StreamSink {
    pub(super) fn over(out: File) -> Self {
        Self { out, torn: false }
    }
}

impl AuditSinkLike for StreamSink {
    fn append(&mut self, batch: Batch<'_>) -> Appended {
        if self.torn
            && let (_, Some(fault)) = write_all(&mut self.out, b"\n")
        {
            return Appended { lines: 0, torn: false, fault: Some(fault.kind()) };
        }
        self.torn = false;
        let (written, fault) = write_all(&mut self.out, batch.bytes);
        let appended = appended(batch, written, fault);
        self.torn = appended.torn;
        appended
    }

    fn sync(&mut self) {}
}

/// A file, and its predecessors `path.1`, `path.2`, ..
struct FileSink {
    path: PathBuf,
    max_bytes: u64,
    max_files: u32,
    open: Option<OpenFile>,
}

struct OpenFile {
    file: File,
    device: u64,
    inode: u64,
    /// Only a regular file has a size worth limiting.
    regular: bool,
}

impl AuditSinkLike for FileSink {
    fn append(&mut self, batch: Batch<'_>) -> Appended {
        let mut done = 0;
        let mut start = 0;
        while let Some(&first_end) = batch.ends.get(done) {
            let room = match self.ready(first_end - start) {
                Ok(room) => room,
                Err(fault) => return Appended { lines: done, torn: false, fault: Some(fault.kind()) },
            };
            let ends = batch.ends.get(done..).unwrap_or_default();
            let fitting = ends.iter().take_while(|end| (**end - start) as u64 <= room).count().max(1);
            let end = ends.get(fitting - 1).copied().unwrap_or(first_end);
            let piece = batch.bytes.get(start..end).unwrap_or_default();
            let Some(open) = &mut self.open else { break };
            let (written, fault) = write_all(&mut open.file, piece);
            if fault.is_some() {
                self.open = None;
                let out = appended(batch, start + written, fault);
                return out;
            }
            done += fitting;
            start = end;
        }
        Appended { lines: done, torn: false, fault: None }
    }

    fn sync(&mut self) {
        if let Some(open) = &self.open {
            // A pipe or a device can't, and `written` is all we promise.
            let _ = open.file.sync_data();
        }
    }
}

impl FileSink {
    /// Makes sure a file is open that has room for a line of `line` bytes, and says how much room it has.
    ///
    /// Somebody may have renamed or removed the file (logrotate does); a new one is opened then. A single line longer
    /// than `max_bytes` gets a file to itself.
    fn ready(&mut self, line: usize) -> io::Result<u64> {
        for _ in 0..2 {
            let found = match fs::metadata(&self.path) {
                Ok(found) => Some(found),
                Err(missing) if missing.kind() == ErrorKind::NotFound => None,
                Err(fault) => return Err(fault),
            };
            let same = |open: &OpenFile| {
                found.as_ref().is_some_and(|found| (found.dev(), found.ino()) == (open.device, open.inode))
            };
            let size = match &self.open {
                Some(open) if same(open) => {
                    if !open.regular {
                        return Ok(u64::MAX);
                    }
                    found.map_or(0, |found| found.len())
                }
                Some(_) | None => {
                    self.open = None;
                    let (open, size) = open_file(&self.path)?;
                    let regular = open.regular;
                    self.open = Some(open);
                    if !regular {
                        return Ok(u64::MAX);
                    }
                    size
                }
            };
            if size == 0 || size.saturating_add(line as u64) <= self.max_bytes {
                return Ok(self.max_bytes.saturating_sub(size));
            }
            self.open = None;
            self.rotate()?;
        }
        Err(io::Error::other("the file fills up faster than it can be rotated"))
    }

    /// `path.1` becomes `path.2` and so on; the oldest goes.
    fn rotate(&self) -> io::Result<()> {
        if self.max_files == 0 {
            return fs::remove_file(&self.path);
        }
        for number in (1..self.max_files).rev() {
            match fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1)) {
                Err(fault) if fault.kind() != ErrorKind::NotFound => return Err(fault),
                Ok(()) | Err(_) => {}
            }
        }
        fs::rename(&self.path, numbered(&self.path, 1))
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Opens `path` for appending, readable by the owner alone, and closes a torn last line.
fn open_file(path: &Path) -> io::Result<(OpenFile, u64)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let found = file.metadata()?;
    let mut size = found.len();
    if found.is_file() && size > 0 {
        let mut last = [0_u8];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
        }
    }
    Ok((OpenFile { file, device: found.dev(), inode: found.ino(), regular: found.is_file() }, size))
}

/// Writes until all is out or something goes wrong; says how much is out.
fn write_all(out: &mut File, bytes: &[u8]) -> (usize, Option<io::Error>) {
    /// A pipe that somebody made non-blocking is waited for this often, 2 ms each.
    const PATIENCE: u32 = 500;
    let (mut written, mut waited) = (0, 0);
    while let Some(rest) = bytes.get(written..)
        && !rest.is_empty()
    {
        match out.write(rest) {
            Ok(0) => return (written, Some(ErrorKind::WriteZero.into())),
            Ok(some) => written += some,
            Err(fault) if fault.kind() == ErrorKind::Interrupted => {}
            Err(fault) if fault.kind() == ErrorKind::WouldBlock && waited < PATIENCE => {
                waited += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(fault) => return (written, Some(fault)),
        }
    }
    (written, None)
}

fn appended(batch: Batch<'_>, written: usize, fault: Option<io::Error>) -> Appended {
    let lines = batch.ends.iter().take_while(|end| **end <= written).count();
    let whole = lines.checked_sub(1).and_then(|last| batch.ends.get(last)).copied().unwrap_or(0);
    Appended { lines, torn: written > whole, fault: fault.map(|fault| fault.kind()) }
}
