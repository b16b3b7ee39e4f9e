//! Standard output, and a file that is rotated by size: one line a record, whole lines alone.
//!
//! Both block, so a thread of the runtime's blocking pool does it: a pipe that nobody reads stops its own sink and nothing
//! else. After a fault a line is begun afresh, never glued to a torn one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::target::{Delivery, Fault, Outgoing, Taken, Target};

/// Lines that go out together.
#[derive(Debug, Clone, Default)]
struct Batch {
    /// All lines, one after the other, each with its line break.
    bytes: Vec<u8>,
    /// Where each line ends in `bytes`.
    ends: Vec<usize>,
}

/// What became of a batch.
#[derive(Debug)]
struct Appended {
    /// Lines that are out whole.
    lines: usize,
    /// Whether a part of the next line is out too.
    torn: bool,
    /// Why it ended early.
    fault: Option<io::Error>,
}

/// Takes lines, and blocks.
trait Lines: Send + 'static {
    /// Writes the batch, from its first line on, until it is out or something goes wrong.
    fn append(&mut self, batch: &Batch) -> Appended;
}

/// A target that writes lines somewhere.
pub(super) struct LineTarget {
    /// `None` while a thread has it.
    out: Option<Box<dyn Lines>>,
}

impl LineTarget {
    /// Standard output.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn stdout() -> io::Result<Self> {
        // Past the buffer and the lock that `std::io::stdout` would add.
        let out = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self { out: Some(Box::new(Stream { out: File::from(out), torn: false })) })
    }

    /// A file, opened readable by its owner alone, and rotated before it would grow past `max_bytes`.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn file(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        let mut file = Rotated { path: path.to_owned(), max_bytes, max_files, open: None };
        file.ready(0)?;
        Ok(Self { out: Some(Box::new(file)) })
    }
}

impl Target for LineTarget {
    fn deliver<'a>(&'a mut self, batch: &'a [Outgoing]) -> Delivery<'a> {
        Box::pin(async move {
            let mut lines = Batch::default();
            for record in batch {
                lines.bytes.extend_from_slice(&record.encoded);
                lines.bytes.push(b'\n');
                lines.ends.push(lines.bytes.len());
            }
            let Some(mut out) = self.out.take() else {
                return Err(Fault::new("the last write has not come back yet"));
            };
            let done = tokio::task::spawn_blocking(move || {
                let appended = out.append(&lines);
                (out, appended)
            });
            let (out, appended) = done.await.map_err(|_| Fault::new("the writing thread ended"))?;
            self.out = Some(out);
            match appended.fault {
                None => Ok(Taken::all()),
                Some(fault) => Err(Fault { taken: appended.lines, ..Fault::new(&fault.to_string()) }),
            }
        })
    }

    /// A thread that writes can't be called off: it is waited for, however long that takes.
    fn patient(&self) -> bool {
        true
    }
}

/// A pipe or a terminal.
struct Stream {
    out: File,
    torn: bool,
}

impl Lines for Stream {
    fn append(&mut self, batch: &Batch) -> Appended {
        if self.torn
            && let (_, Some(fault)) = write_all(&mut self.out, b"\n")
        {
            return Appended { lines: 0, torn: false, fault: Some(fault) };
        }
        let (written, fault) = write_all(&mut self.out, &batch.bytes);
        let appended = appended(batch, written, fault);
        self.torn = appended.torn;
        appended
    }
}

/// A file, and its predecessors `path.1`, `path.2`, ..
struct Rotated {
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

impl Lines for Rotated {
    fn append(&mut self, batch: &Batch) -> Appended {
        let mut done = 0;
        let mut start = 0;
        while let Some(&first_end) = batch.ends.get(done) {
            let room = match self.ready(first_end - start) {
                Ok(room) => room,
                Err(fault) => return Appended { lines: done, torn: false, fault: Some(fault) },
            };
            let ends = batch.ends.get(done..).unwrap_or_default();
            let fitting = ends.iter().take_while(|end| (**end - start) as u64 <= room).count().max(1);
            let end = ends.get(fitting - 1).copied().unwrap_or(first_end);
            let piece = batch.bytes.get(start..end).unwrap_or_default();
            let Some(open) = &mut self.open else { break };
            let (written, fault) = write_all(&mut open.file, piece);
            if fault.is_some() {
                self.open = None;
                return appended(batch, start + written, fault);
            }
            // What counts as delivered is on the disk. A pipe or a device can't be asked.
            if let Err(fault) = open.file.sync_data()
                && open.regular
            {
                self.open = None;
                return Appended { lines: done, torn: false, fault: Some(fault) };
            }
            done += fitting;
            start = end;
        }
        Appended { lines: done, torn: false, fault: None }
    }
}

impl Rotated {
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

fn appended(batch: &Batch, written: usize, fault: Option<io::Error>) -> Appended {
    let lines = batch.ends.iter().take_while(|end| **end <= written).count();
    let whole = lines.checked_sub(1).and_then(|last| batch.ends.get(last)).copied().unwrap_or(0);
    Appended { lines, torn: written > whole, fault }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;

    fn outgoing(text: &str) -> Outgoing {
        Outgoing { encoded: text.as_bytes().to_vec(), ..Outgoing::default() }
    }

    async fn put(target: &mut LineTarget, texts: &[&str]) -> Result<Taken, Fault> {
        let batch: Vec<Outgoing> = texts.iter().map(|text| outgoing(text)).collect();
        target.deliver(&batch).await
    }

    #[tokio::test]
    async fn a_file_is_rotated_one_byte_past_its_limit_and_the_oldest_goes() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("audit.jsonl");
        // Room for two lines exactly, and one byte less.
        for (max_bytes, fits, why) in [(8, 2, "two fit"), (7, 1, "the second is one byte too long")] {
            let mut target = LineTarget::file(&path, max_bytes, 2).unwrap();
            for _ in 0..4 * fits {
                put(&mut target, &["abc"]).await.unwrap();
            }
            for name in ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"] {
                let text = fs::read_to_string(folder.path().join(name)).unwrap();
                assert_eq!(text.lines().count(), fits, "{why}: {name}");
            }
            assert!(!folder.path().join("audit.jsonl.3").exists(), "{why}: two older files are kept");
            for name in ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"] {
                fs::remove_file(folder.path().join(name)).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_was_renamed_or_removed_is_opened_anew_and_a_torn_line_is_closed() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("audit.jsonl");
        fs::write(&path, "{\"half\":").unwrap();
        let mut target = LineTarget::file(&path, 1 << 20, 1).unwrap();
        put(&mut target, &["one", "two"]).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"half\":\none\ntwo\n");
        fs::rename(&path, folder.path().join("taken-away")).unwrap();
        put(&mut target, &["three"]).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_file(&path).unwrap();
        put(&mut target, &["four"]).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "four\n");
    }

    #[tokio::test]
    async fn a_full_disk_is_told_with_what_was_taken() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut target = LineTarget::file(&path, 1 << 20, 1).unwrap();
        let fault = put(&mut target, &["one"]).await.unwrap_err();
        assert_eq!(fault.taken, 0);
        fs::remove_file(&path).unwrap();
        put(&mut target, &["one"]).await.unwrap();
        assert!(LineTarget::file(&folder.path().join("none/audit.jsonl"), 1, 1).is_err());
    }
}
