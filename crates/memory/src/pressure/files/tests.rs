use super::*;

/// A directory of files that is removed when dropped.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let root = std::env::temp_dir().join(format!("neap-files-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(&root).unwrap();
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self(root)
    }

    fn read(&self) -> Snapshot {
        SystemFiles::below(&self.0).read()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const MEMINFO: (&str, &str) = (
    "proc/meminfo",
    "MemTotal:       24684084 kB\nMemFree: 1 kB\nMemAvailable:   22577468 kB\n",
);

#[test]
fn version_2_with_limits_at_two_levels() {
    let tree = Tree::new(
        "v2",
        &[
            MEMINFO,
            ("proc/self/cgroup", "0::/pod/neap\n"),
            (
                "proc/self/mountinfo",
                "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
            ),
            ("sys/fs/cgroup/pod/memory.current", "3000000000\n"),
            ("sys/fs/cgroup/pod/memory.max", "4000000000\n"),
            ("sys/fs/cgroup/pod/memory.high", "max\n"),
            ("sys/fs/cgroup/pod/neap/memory.current", "1000000000\n"),
            ("sys/fs/cgroup/pod/neap/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/neap/memory.high", "3500000000\n"),
            (
                "sys/fs/cgroup/pod/neap/memory.stat",
                "anon 5\nactive_file 300\ninactive_file 200\nfile_dirty 50\nfile_writeback 10\n",
            ),
            (
                "sys/fs/cgroup/pod/neap/memory.events",
                "low 0\nhigh 7\nmax 2\noom 1\noom_kill 1\n",
            ),
            (
                "sys/fs/cgroup/pod/neap/memory.pressure",
                "some avg10=12.50 avg60=1.00 avg300=0.10 total=999\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=77\n",
            ),
        ],
    );
    let snapshot = tree.read();
    assert_eq!(snapshot.total, Some(24_684_084 * 1024));
    assert_eq!(snapshot.cgroups.len(), 2);
    let inner = &snapshot.cgroups[0];
    assert_eq!(
        (inner.max, inner.high, inner.reclaimable_file),
        (None, Some(3_500_000_000), 440)
    );
    assert_eq!(
        (inner.high_events, inner.max_events, inner.oom_kills),
        (7, 2, 1)
    );
    assert_eq!(snapshot.cgroups[1].limit(), Some(4_000_000_000));
    assert_eq!(snapshot.effective_total(), Some(3_500_000_000));
    assert_eq!(snapshot.capacity(0).unwrap().0, 1_000_000_000);
    let psi = snapshot.psi.unwrap();
    assert_eq!((psi.some_avg10, psi.full_total_us), (12.5, 77));
}

#[test]
fn version_1_beside_an_empty_version_2() {
    let tree = Tree::new(
        "v1",
        &[
            MEMINFO,
            (
                "proc/self/cgroup",
                "9:name=systemd:/\n4:memory:/job/a\n0::/\n",
            ),
            (
                "proc/self/mountinfo",
                "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            ),
            ("sys/fs/cgroup/unified/cgroup.procs", ""),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "10\n"),
            (
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/job/a/memory.usage_in_bytes", "5000\n"),
            ("sys/fs/cgroup/memory/job/a/memory.limit_in_bytes", "9000\n"),
            ("sys/fs/cgroup/memory/job/a/memory.failcnt", "3\n"),
            (
                "sys/fs/cgroup/memory/job/a/memory.stat",
                "total_active_file 100\ntotal_inactive_file 900\ntotal_dirty 1\n",
            ),
            (
                "proc/pressure/memory",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=4\n",
            ),
        ],
    );
    let snapshot = tree.read();
    assert_eq!(snapshot.cgroups[0].limit(), Some(9000));
    assert_eq!(snapshot.cgroups[0].held(), 5000 - 999);
    assert_eq!(snapshot.cgroups[0].max_events, 3);
    assert_eq!(snapshot.cgroups[1].limit(), None);
    assert_eq!(snapshot.psi.unwrap().some_total_us, 4);
}

#[test]
fn a_container_that_sees_its_own_part_only() {
    let tree = Tree::new(
        "bind",
        &[
            ("proc/self/cgroup", "0::/docker/abc\n"),
            (
                "proc/self/mountinfo",
                "1 2 0:3 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
            ),
            ("sys/fs/cgroup/memory.current", "1\n"),
            ("sys/fs/cgroup/memory.max", "1000\n"),
        ],
    );
    assert_eq!(tree.read().cgroups[0].limit(), Some(1000));
}

#[test]
fn every_file_may_be_missing() {
    let tree = Tree::new("none", &[]);
    assert_eq!(tree.read(), Snapshot::default());
    let tree = Tree::new(
        "some",
        &[
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "5\n"),
        ],
    );
    assert_eq!(tree.read(), Snapshot::default());
}

#[test]
fn nonsense_is_not_believed() {
    let tree = Tree::new(
        "odd",
        &[
            (
                "proc/meminfo",
                "MemTotal: 99999999999999999999 kB\nMemAvailable: x kB\n",
            ),
            ("proc/self/cgroup", "garbage\n0::/../../etc\n:::\n"),
            ("proc/pressure/memory", "some avg10=inf total=1\n"),
            ("sys/fs/cgroup/memory.current", "-1\n"),
        ],
    );
    assert_eq!(tree.read(), Snapshot::default());
}
