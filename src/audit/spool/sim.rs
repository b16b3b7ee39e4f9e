//! A disk in memory that fails as disks do, from a seed: the same seed, the same failures.
//!
//! What was synced survives a power cut; of the rest any beginning may, cut anywhere; so may any of the files that were
//! made, renamed or removed without a sync of the folder. A sync that fails drops what it should have kept, and the next
//! one on that file says that all is well: so do kernels.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::audit::disk::{Disk, DiskFile, Found};

/// How often what goes wrong, in thousandths; and how much room there is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) short_writes: u32,
    pub(crate) write_errors: u32,
    pub(crate) sync_errors: u32,
    pub(crate) create_errors: u32,
    pub(crate) rename_errors: u32,
    pub(crate) remove_errors: u32,
    pub(crate) folder_errors: u32,
    /// Bytes that fit; `None`: any number.
    pub(crate) room: Option<u64>,
    pub(crate) read_only: bool,
}

#[derive(Debug, Clone, Default)]
struct Content {
    kept: Vec<u8>,
    now: Vec<u8>,
    /// Where a failed sync left a hole that no later one fills.
    dropped: Option<(usize, usize)>,
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<u64, Content>,
    kept_names: BTreeMap<String, u64>,
    names: BTreeMap<String, u64>,
    next_file: u64,
    random: u64,
    faults: Faults,
    /// Syncs of files.
    syncs: u64,
    /// Faults that happened, by name.
    pub(crate) happened: BTreeMap<&'static str, u64>,
}

/// Cheap to clone; every clone is the same disk.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk(Arc<Mutex<Inner>>, Gate);

/// While it is closed, a sync hangs.
type Gate = Arc<(Mutex<bool>, Condvar)>;

impl SimDisk {
    pub(crate) fn new(seed: u64) -> Self {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self(Arc::new(Mutex::new(Inner { random, ..Inner::default() })), Gate::default())
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    pub(crate) fn set(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }

    /// From now on every sync hangs; or, none does.
    pub(crate) fn hang(&self, hangs: bool) {
        *self.1.0.lock() = hangs;
        self.1.1.notify_all();
    }

    pub(crate) fn draw(&self, below: u64) -> u64 {
        self.0.lock().draw(below)
    }

    pub(crate) fn happened(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().happened.clone()
    }

    pub(crate) fn bytes_of(&self, name: &str) -> Option<Vec<u8>> {
        let inner = self.0.lock();
        inner.names.get(name).and_then(|id| inner.files.get(id)).map(|content| content.now.clone())
    }

    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut inner = self.0.lock();
        let id = inner.fresh(name);
        inner.files.insert(id, Content { kept: bytes.clone(), now: bytes, dropped: None });
        inner.kept_names.insert(name.to_owned(), id);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// The machine goes down and comes up again.
    pub(crate) fn power_cut(&self) {
        let mut inner = self.0.lock();
        *inner.happened.entry("power cuts").or_default() += 1;
        let all: std::collections::BTreeSet<String> =
            inner.names.keys().chain(inner.kept_names.keys()).cloned().collect();
        let mut names = BTreeMap::new();
        for name in all {
            let (now, kept) = (inner.names.get(&name).copied(), inner.kept_names.get(&name).copied());
            let found = if now == kept || inner.draw(2) == 0 { kept } else { now };
            if let Some(id) = found {
                names.insert(name, id);
            }
        }
        inner.names = names.clone();
        inner.kept_names = names;
        let ids: Vec<u64> = inner.files.keys().copied().collect();
        for id in ids {
            let (same, length) = {
                let content = &inner.files[&id];
                (content.kept == content.now, content.now.len())
            };
            if same {
                continue;
            }
            let start = inner.files[&id].kept.len().min(length);
            let survives = start + inner.draw((length - start) as u64 + 1) as usize;
            let junk = inner.draw(4) == 0;
            let content = inner.files.get_mut(&id).unwrap();
            // A file that was cut to less than was kept may come back whole.
            if length >= content.kept.len() {
                let mut after = content.now[..survives].to_vec();
                if let Some((from, to)) = content.dropped {
                    let to = to.min(after.len());
                    after[from.min(to)..to].fill(0);
                }
                if junk && survives > start {
                    let last = after.len() - 1;
                    after[last] ^= 0x55;
                }
                // What was kept is kept.
                after[..start].copy_from_slice(&content.kept[..start]);
                content.now = after;
            } else {
                content.now = content.kept.clone();
            }
            content.kept = content.now.clone();
            content.dropped = None;
        }
    }
}

impl Inner {
    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below.max(1)
    }

    fn fails(&mut self, what: &'static str, thousandths: u32) -> bool {
        let fails = thousandths > 0 && self.draw(1000) < u64::from(thousandths);
        if fails {
            *self.happened.entry(what).or_default() += 1;
        }
        fails
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(|id| self.files.get(id)).map(|content| content.now.len() as u64).sum()
    }

    fn fresh(&mut self, name: &str) -> u64 {
        self.next_file += 1;
        self.names.insert(name.to_owned(), self.next_file);
        self.files.insert(self.next_file, Content::default());
        self.next_file
    }

    fn writable(&mut self) -> io::Result<()> {
        if self.faults.read_only {
            *self.happened.entry("read only").or_default() += 1;
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(())
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl Disk for SimDisk {
    fn list(&mut self, folder: &str) -> io::Result<Vec<Found>> {
        let inner = self.0.lock();
        let start = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let files = inner.names.iter().filter_map(|(name, id)| Some((name.strip_prefix(&start)?, id)));
        let files = files.filter(|(name, _)| !name.contains('/'));
        let found = files.map(|(name, id)| {
            let bytes = inner.files[id].now.len() as u64;
            Found { name: name.to_owned(), bytes, is_file: true }
        });
        Ok(found.collect())
    }

    fn read(&mut self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        let bytes = self.bytes_of(name).ok_or_else(|| io::Error::from(ErrorKind::NotFound))?;
        Ok(Box::new(io::Cursor::new(bytes)))
    }

    fn create(&mut self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.0.lock();
        inner.writable()?;
        if inner.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let thousandths = inner.faults.create_errors;
        if inner.fails("create errors", thousandths) {
            return Err(eio());
        }
        let id = inner.fresh(name);
        Ok(Box::new(SimFile { disk: Arc::clone(&self.0), gate: Arc::clone(&self.1), id }))
    }

    fn append(&mut self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let id = self.0.lock().names.get(name).copied();
        match id {
            Some(id) => Ok(Box::new(SimFile { disk: Arc::clone(&self.0), gate: Arc::clone(&self.1), id })),
            None => self.create(name),
        }
    }

    fn truncate(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.writable()?;
        let id = *inner.names.get(name).ok_or_else(|| io::Error::from(ErrorKind::NotFound))?;
        let content = inner.files.get_mut(&id).unwrap();
        content.now.truncate(bytes as usize);
        content.kept = content.now.clone();
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.writable()?;
        let thousandths = inner.faults.rename_errors;
        if inner.fails("rename errors", thousandths) {
            return Err(eio());
        }
        let id = inner.names.remove(from).ok_or_else(|| io::Error::from(ErrorKind::NotFound))?;
        inner.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.writable()?;
        let thousandths = inner.faults.remove_errors;
        if inner.names.contains_key(name) && inner.fails("remove errors", thousandths) {
            return Err(eio());
        }
        inner.names.remove(name);
        Ok(())
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        let mut inner = self.0.lock();
        let thousandths = inner.faults.folder_errors;
        if inner.fails("folder sync errors", thousandths) {
            return Err(eio());
        }
        inner.kept_names = inner.names.clone();
        Ok(())
    }
}

struct SimFile {
    disk: Arc<Mutex<Inner>>,
    gate: Gate,
    id: u64,
}

impl DiskFile for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.disk.lock();
        inner.writable()?;
        let faults = inner.faults;
        if inner.fails("write errors", faults.write_errors) {
            return Err(eio());
        }
        let mut take = bytes.len();
        if take > 1 && inner.fails("short writes", faults.short_writes) {
            take = 1 + inner.draw(take as u64 - 1) as usize;
        }
        if let Some(room) = faults.room {
            let left = room.saturating_sub(inner.used());
            if left == 0 {
                *inner.happened.entry("disk full").or_default() += 1;
                return Err(ErrorKind::StorageFull.into());
            }
            take = take.min(left as usize);
        }
        inner.files.get_mut(&self.id).unwrap().now.extend_from_slice(&bytes[..take]);
        Ok(take)
    }

    fn is_there(&self) -> bool {
        self.disk.lock().names.values().any(|id| *id == self.id)
    }

    fn sync(&mut self) -> io::Result<()> {
        {
            let mut hangs = self.gate.0.lock();
            while *hangs {
                self.gate.1.wait(&mut hangs);
            }
        }
        let mut inner = self.disk.lock();
        inner.syncs += 1;
        let faults = inner.faults;
        let fails = inner.fails("sync errors", faults.sync_errors);
        let content = inner.files.get_mut(&self.id).unwrap();
        if fails {
            let from = content.dropped.map_or(content.kept.len(), |(from, _)| from);
            content.dropped = Some((from, content.now.len()));
            return Err(eio());
        }
        content.kept = content.now.clone();
        if let Some((from, to)) = content.dropped {
            content.kept[from..to].fill(0);
        }
        Ok(())
    }
}
