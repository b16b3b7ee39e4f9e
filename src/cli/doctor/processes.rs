//! Who has a port or a lock, as far as the kernel tells us: `/proc`. Where it does not, nobody is named.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A process of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) id: u32,
    pub(super) name: String,
}

impl Process {
    fn of(id: u32) -> Self {
        let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        Self { id, name: name.trim().to_owned() }
    }

    /// Whether it is one of us.
    pub(super) fn is_gatepost(&self) -> bool {
        self.name == "gatepost"
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} (`{}`)", self.id, self.name)
    }
}

/// Who holds a lock on the file, as `flock(2)` gives it. Looks only, so that nobody who wants it now is kept from it.
pub(super) fn holding(lock: &Path) -> Option<Process> {
    let facts = fs::metadata(lock).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let id = locks.lines().find_map(|line| holder(line, &facts))?;
    Some(Process::of(id))
}

/// `1: FLOCK  ADVISORY  WRITE 4711 fd:01:131 0 EOF`
fn holder(line: &str, facts: &fs::Metadata) -> Option<u32> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let ["FLOCK", _, "WRITE", id, file, ..] = fields.get(1..)? else { return None };
    let mut parts = file.split(':');
    let mut hex = || u32::from_str_radix(parts.next()?, 16).ok();
    let device = (hex()?, hex()?);
    let inode: u64 = parts.next()?.parse().ok()?;
    let (major, minor) = (rustix::fs::major(facts.dev()), rustix::fs::minor(facts.dev()));
    let id = id.parse().ok()?;
    // Layered file systems tell one device here and another there.
    let same = inode == facts.ino() && (device == (major, minor) || Process::of(id).is_gatepost());
    same.then_some(id)
}

/// Who listens on `port` over TCP, whatever the address.
pub(super) fn listening(port: u16) -> Option<Process> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let sockets: Vec<String> =
        tables.iter().flat_map(|table| table.lines()).filter_map(|line| socket(line, port)).collect();
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.into_iter().find(|id| has_one_of(*id, &sockets)).map(Process::of)
}

/// `0: 0100007F:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 31337 ..`
fn socket(line: &str, port: u16) -> Option<String> {
    const LISTENS: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let here = fields.get(1)?.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok())?;
    let inode = fields.get(9)?;
    (here == port && fields.get(3) == Some(&LISTENS)).then(|| format!("socket:[{inode}]"))
}

fn has_one_of(id: u32, sockets: &[String]) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{id}/fd")) else { return false };
    let links = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.into_iter().any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_a_port_or_a_lock_is_named() {
        let here = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listening(here.local_addr().unwrap().port()).unwrap();
        assert_eq!(found.id, std::process::id());
        assert!(!found.name.is_empty() && !found.is_gatepost());

        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(holding(file.path()), None, "nobody has locked it");
        file.as_file().lock().unwrap();
        assert_eq!(holding(file.path()).map(|holder| holder.id), Some(std::process::id()));
    }
}
