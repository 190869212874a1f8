//! Reads `/proc` and the cgroup tree of this process, under a root that tests may replace.
//!
//! Both cgroup versions are read, and mixtures of them. A limit may sit at any level above the process,
//! so every level up to the mount is read. Sources: kernel documentation `cgroup-v2.rst`,
//! `cgroup-v1/memory.rst`, `accounting/psi.rst`, `filesystems/proc.rst`.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{CgroupLevel, Psi, Snapshot, system};

#[cfg(test)]
mod tests;

/// No file read here is longer; more is cut off.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// Deeper cgroup trees are cut off.
const MAX_LEVELS: usize = 64;
/// cgroup v1 says "no limit" by the largest page-aligned `i64`; anything near it is none.
const V1_UNLIMITED: u64 = 1 << 62;

/// Where to read.
#[derive(Clone, Debug)]
pub struct SystemFiles {
    root: PathBuf,
    is_real: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A directory of the memory controller, and the mount it lies in.
struct Place {
    version: Version,
    mount: PathBuf,
    leaf: PathBuf,
}

impl SystemFiles {
    /// The files of this machine.
    #[must_use]
    pub fn real() -> Self {
        Self {
            root: PathBuf::from("/"),
            is_real: true,
        }
    }

    /// The same files below `root`, as a test lays them out.
    #[must_use]
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            is_real: false,
        }
    }

    /// Reads everything that is there.
    #[must_use]
    pub fn read(&self) -> Snapshot {
        let places = self.places();
        let mut snapshot = Snapshot::default();
        if let Some(meminfo) = self.text("proc/meminfo") {
            snapshot.total = kib_field(&meminfo, "MemTotal:");
            snapshot.available = kib_field(&meminfo, "MemAvailable:");
        } else if self.is_real {
            (snapshot.total, snapshot.available) = system::total_and_available();
        }
        for place in &places {
            snapshot.cgroups.extend(read_levels(place));
        }
        snapshot.psi = self
            .pressure_path(&places)
            .and_then(|path| parse_psi(&read(&path)?));
        snapshot
    }

    /// The `memory.pressure` file that tells of this process: of its cgroup, else of the system.
    #[must_use]
    pub fn pressure_file(&self) -> Option<PathBuf> {
        self.pressure_path(&self.places())
    }

    fn pressure_path(&self, places: &[Place]) -> Option<PathBuf> {
        places
            .iter()
            .filter(|place| place.version == Version::V2)
            .map(|place| place.leaf.join("memory.pressure"))
            .chain([self.root.join("proc/pressure/memory")])
            .find(|path| read(path).is_some())
    }

    fn text(&self, path: &str) -> Option<String> {
        read(&self.root.join(path))
    }

    fn places(&self) -> Vec<Place> {
        let Some(memberships) = self.text("proc/self/cgroup") else {
            return Vec::new();
        };
        let mounts = self.text("proc/self/mountinfo").unwrap_or_default();
        memberships
            .lines()
            .filter_map(|line| self.place(line, &mounts))
            .collect()
    }

    /// The place that a line `id:controllers:path` of `/proc/self/cgroup` names, if it is about memory.
    fn place(&self, line: &str, mounts: &str) -> Option<Place> {
        let mut fields = line.splitn(3, ':');
        let (_id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let version = match controllers {
            "" => Version::V2,
            list if list.split(',').any(|c| c == "memory") => Version::V1,
            _ => return None,
        };
        let (mount, mount_root) = find_mount(mounts, version).unwrap_or_else(|| {
            let usual = match version {
                Version::V1 => "/sys/fs/cgroup/memory",
                Version::V2 => "/sys/fs/cgroup",
            };
            (usual.to_owned(), "/".to_owned())
        });
        let mount = self.root.join(mount.trim_start_matches('/'));
        // Inside a container the mount may show a part of the tree only, and the path be told from the
        // host's root: what is above the mount's own root is out of sight.
        let inside = path
            .strip_prefix(mount_root.trim_end_matches('/'))
            .unwrap_or(path);
        let inside = Path::new(inside.trim_start_matches('/'));
        let plain = inside
            .components()
            .all(|c| matches!(c, std::path::Component::Normal(_)));
        let leaf = mount.join(inside);
        let leaf = if plain && leaf.is_dir() {
            leaf
        } else {
            mount.clone()
        };
        mount.is_dir().then_some(Place {
            version,
            mount,
            leaf,
        })
    }
}

/// Mount point and mounted root of the cgroup file system, from `/proc/self/mountinfo`.
fn find_mount(mounts: &str, version: Version) -> Option<(String, String)> {
    mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let mut tail = tail.split(' ');
        let (kind, _source, options) = (tail.next()?, tail.next()?, tail.next().unwrap_or(""));
        let fits = match version {
            Version::V1 => kind == "cgroup" && options.split(',').any(|o| o == "memory"),
            Version::V2 => kind == "cgroup2",
        };
        let mut head = head.split(' ').skip(3);
        let (root, point) = (head.next()?, head.next()?);
        fits.then(|| (point.to_owned(), root.to_owned()))
    })
}

/// Every level from the leaf up to the mount that tells its usage.
fn read_levels(place: &Place) -> Vec<CgroupLevel> {
    place
        .leaf
        .ancestors()
        .take_while(|dir| dir.starts_with(&place.mount))
        .take(MAX_LEVELS)
        .filter_map(|dir| match place.version {
            Version::V2 => read_v2(dir),
            Version::V1 => read_v1(dir),
        })
        .collect()
}

fn read_v2(dir: &Path) -> Option<CgroupLevel> {
    let stat = read(&dir.join("memory.stat")).unwrap_or_default();
    let events = read(&dir.join("memory.events")).unwrap_or_default();
    let file = |name| field(&stat, name).unwrap_or(0);
    Some(CgroupLevel {
        path: dir.display().to_string(),
        max: number(&dir.join("memory.max")),
        high: number(&dir.join("memory.high")),
        current: number(&dir.join("memory.current"))?,
        reclaimable_file: (file("active_file").saturating_add(file("inactive_file")))
            .saturating_sub(file("file_dirty"))
            .saturating_sub(file("file_writeback")),
        high_events: field(&events, "high").unwrap_or(0),
        max_events: field(&events, "max").unwrap_or(0),
        oom_kills: field(&events, "oom_kill").unwrap_or(0),
    })
}

fn read_v1(dir: &Path) -> Option<CgroupLevel> {
    let stat = read(&dir.join("memory.stat")).unwrap_or_default();
    let oom = read(&dir.join("memory.oom_control")).unwrap_or_default();
    let file = |name| field(&stat, name).unwrap_or(0);
    Some(CgroupLevel {
        path: dir.display().to_string(),
        max: number(&dir.join("memory.limit_in_bytes")).filter(|&max| max < V1_UNLIMITED),
        high: None,
        current: number(&dir.join("memory.usage_in_bytes"))?,
        reclaimable_file: (file("total_active_file").saturating_add(file("total_inactive_file")))
            .saturating_sub(file("total_dirty"))
            .saturating_sub(file("total_writeback")),
        high_events: 0,
        max_events: number(&dir.join("memory.failcnt")).unwrap_or(0),
        oom_kills: field(&oom, "oom_kill").unwrap_or(0),
    })
}

fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)
        .ok()?;
    String::from_utf8(bytes).ok()
}

/// The number a file holds; `None` for `max` and for anything else that is none.
fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// The number after `name` on a line of its own.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

fn kib_field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

fn parse_psi(text: &str) -> Option<Psi> {
    let mut psi = Psi::default();
    for line in text.lines() {
        let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key));
        let avg10 = value("avg10=")
            .and_then(|v| v.parse().ok())
            .filter(|v: &f32| v.is_finite());
        let total = value("total=").and_then(|v| v.parse().ok());
        match line.split(' ').next() {
            Some("some") => (psi.some_avg10, psi.some_total_us) = (avg10?, total?),
            Some("full") => (psi.full_avg10, psi.full_total_us) = (avg10?, total?),
            _ => {}
        }
    }
    (!text.is_empty()).then_some(psi)
}
