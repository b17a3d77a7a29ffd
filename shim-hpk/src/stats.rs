//! A container's figures in containerd's form: of cgroup v1 or v2, as its cgroup is. What no cgroup
//! counts is made up for from /proc, in v2's form.

use std::{collections::HashMap, path::Path};

use containerd_shim::protos::{
    cgroups::metrics as v1,
    cgroups_v2::metrics as v2,
    protobuf::{self, Message, well_known_types::any::Any},
};

use hpk_cgroup::{Cgroup, Version};

use crate::procfs;

/// What a limit that isn't set reads as.
const NO_LIMIT: u64 = u64::MAX;

/// The figures of `cgroup`, with the processes `pids` for what it doesn't count.
pub fn metrics(cgroup: &Cgroup, pids: &[i32]) -> protobuf::Result<Any> {
    let counts_all = ["memory", "pids"].iter().all(|c| cgroup.of(c).is_some());
    match cgroup.version() {
        Some(Version::V1) if counts_all && cgroup.of("cpuacct").is_some() => {
            encode("io.containerd.cgroups.v1.Metrics", &of_v1(cgroup))
        }
        _ => {
            let metrics = with_procfs(of_v2(cgroup), pids);
            encode("io.containerd.cgroups.v2.Metrics", &metrics)
        }
    }
}

fn encode(name: &str, metrics: &impl Message) -> protobuf::Result<Any> {
    Ok(Any {
        type_url: name.to_owned(),
        value: metrics.write_to_bytes()?,
        ..Default::default()
    })
}

/// Reads files of one directory; what isn't there counts nothing, as in containerd.
struct Files<'a>(Option<&'a Path>);

impl Files<'_> {
    fn text(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.0?.join(file)).ok()
    }

    fn number(&self, file: &str) -> u64 {
        self.text(file).map_or(0, |text| number(&text))
    }

    fn table(&self, file: &str) -> HashMap<String, u64> {
        table(&self.text(file).unwrap_or_default())
    }
}

fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => NO_LIMIT,
        text => text.parse().unwrap_or(0),
    }
}

/// Lines `name value`.
fn table(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// Sets fields from a table's entries of the same names.
macro_rules! fill {
    ($target:expr, $table:expr, $($field:ident $(= $name:literal)?),* $(,)?) => {
        $( $target.$field = fill!(@get $table, $field $(, $name)?); )*
    };
    (@get $table:expr, $field:ident) => { fill!(@get $table, $field, stringify!($field)) };
    (@get $table:expr, $field:ident, $name:expr) => { $table.get($name).copied().unwrap_or(0) };
}

fn of_v1(cgroup: &Cgroup) -> v1::Metrics {
    let mut metrics = v1::Metrics::default();
    let pids = Files(cgroup.of("pids"));
    let count = metrics.pids.mut_or_insert_default();
    count.current = pids.number("pids.current");
    count.limit = Some(pids.number("pids.max"))
        .filter(|&n| n != NO_LIMIT)
        .unwrap_or(0);

    let accounts = Files(cgroup.of("cpuacct"));
    let cpu = metrics.cpu.mut_or_insert_default();
    let usage = cpu.usage.mut_or_insert_default();
    usage.total = accounts.number("cpuacct.usage");
    usage.user = accounts.number("cpuacct.usage_user");
    usage.kernel = accounts.number("cpuacct.usage_sys");
    usage.per_cpu = accounts
        .text("cpuacct.usage_percpu")
        .unwrap_or_default()
        .split_ascii_whitespace()
        .map(number)
        .collect();
    let times = Files(cgroup.of("cpu")).table("cpu.stat");
    let throttling = cpu.throttling.mut_or_insert_default();
    fill!(
        throttling,
        times,
        periods = "nr_periods",
        throttled_periods = "nr_throttled",
        throttled_time = "throttled_time"
    );

    let files = Files(cgroup.of("memory"));
    let table = files.table("memory.stat");
    let memory = metrics.memory.mut_or_insert_default();
    fill!(
        memory,
        table,
        cache,
        rss,
        rss_huge,
        mapped_file,
        dirty,
        writeback,
        pg_pg_in = "pgpgin",
        pg_pg_out = "pgpgout",
        pg_fault = "pgfault",
        pg_maj_fault = "pgmajfault",
        inactive_anon,
        active_anon,
        inactive_file,
        active_file,
        unevictable,
        hierarchical_memory_limit,
        hierarchical_swap_limit = "hierarchical_memsw_limit",
        total_cache,
        total_rss,
        total_rss_huge,
        total_mapped_file,
        total_dirty,
        total_writeback,
        total_pg_pg_in = "total_pgpgin",
        total_pg_pg_out = "total_pgpgout",
        total_pg_fault = "total_pgfault",
        total_pg_maj_fault = "total_pgmajfault",
        total_inactive_anon,
        total_active_anon,
        total_inactive_file,
        total_active_file,
        total_unevictable
    );
    for (name, entry) in [
        ("memory", memory.usage.mut_or_insert_default()),
        ("memory.memsw", memory.swap.mut_or_insert_default()),
        ("memory.kmem", memory.kernel.mut_or_insert_default()),
        ("memory.kmem.tcp", memory.kernel_tcp.mut_or_insert_default()),
    ] {
        entry.usage = files.number(&format!("{name}.usage_in_bytes"));
        entry.limit = files.number(&format!("{name}.limit_in_bytes"));
        entry.max = files.number(&format!("{name}.max_usage_in_bytes"));
        entry.failcnt = files.number(&format!("{name}.failcnt"));
    }
    let control = files.table("memory.oom_control");
    let oom = metrics.memory_oom_control.mut_or_insert_default();
    fill!(oom, control, oom_kill_disable, under_oom, oom_kill);

    let block = Files(cgroup.of("blkio"));
    let blkio = metrics.blkio.mut_or_insert_default();
    let entries = |file: &str| block_entries(&block.text(file).unwrap_or_default());
    blkio.io_service_bytes_recursive = entries("blkio.throttle.io_service_bytes_recursive");
    blkio.io_serviced_recursive = entries("blkio.throttle.io_serviced_recursive");
    metrics
}

/// Lines `8:0 Read 4096`.
fn block_entries(text: &str) -> Vec<v1::BlkIOEntry> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (major, minor) = fields.next()?.split_once(':')?;
            Some(v1::BlkIOEntry {
                op: fields.next()?.to_owned(),
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                value: fields.next()?.parse().ok()?,
                ..Default::default()
            })
        })
        .collect()
}

fn of_v2(cgroup: &Cgroup) -> v2::Metrics {
    let mut metrics = v2::Metrics::default();
    if cgroup.version() != Some(Version::V2) {
        return metrics;
    }
    let files = Files(cgroup.of("cgroup"));
    if files.text("pids.current").is_some() {
        let pids = metrics.pids.mut_or_insert_default();
        pids.current = files.number("pids.current");
        pids.limit = files.number("pids.max");
    }
    // Every cgroup has cpu.stat; with the controller it tells of throttling too.
    let times = files.table("cpu.stat");
    if !times.is_empty() {
        let cpu = metrics.cpu.mut_or_insert_default();
        fill!(
            cpu,
            times,
            usage_usec,
            user_usec,
            system_usec,
            nr_periods,
            nr_throttled,
            throttled_usec
        );
    }
    if files.text("memory.current").is_some() {
        let table = files.table("memory.stat");
        let memory = metrics.memory.mut_or_insert_default();
        fill!(
            memory,
            table,
            anon,
            file,
            kernel_stack,
            slab,
            sock,
            shmem,
            file_mapped,
            file_dirty,
            file_writeback,
            anon_thp,
            inactive_anon,
            active_anon,
            inactive_file,
            active_file,
            unevictable,
            slab_reclaimable,
            slab_unreclaimable,
            pgfault,
            pgmajfault,
            workingset_refault,
            workingset_activate,
            workingset_nodereclaim,
            pgrefill,
            pgscan,
            pgsteal,
            pgactivate,
            pgdeactivate,
            pglazyfree,
            pglazyfreed,
            thp_fault_alloc,
            thp_collapse_alloc
        );
        memory.usage = files.number("memory.current");
        memory.usage_limit = files.number("memory.max");
        memory.swap_usage = files.number("memory.swap.current");
        memory.swap_limit = files.number("memory.swap.max");
        let counts = files.table("memory.events");
        let events = metrics.memory_events.mut_or_insert_default();
        fill!(events, counts, low, high, max, oom, oom_kill);
    }
    let io = files.text("io.stat").unwrap_or_default();
    metrics.io.mut_or_insert_default().usage = io.lines().filter_map(io_entry).collect();
    metrics
}

/// A line `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn io_entry(line: &str) -> Option<v2::IOEntry> {
    let (device, rest) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let table = table(&rest.replace(' ', "\n").replace('=', " "));
    let mut entry = v2::IOEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..Default::default()
    };
    fill!(entry, table, rbytes, wbytes, rios, wios);
    Some(entry)
}

fn with_procfs(mut metrics: v2::Metrics, pids: &[i32]) -> v2::Metrics {
    if metrics.cpu.is_some() && metrics.memory.is_some() && metrics.pids.is_some() {
        return metrics;
    }
    let usage = procfs::usage(pids);
    if metrics.cpu.is_none() {
        let cpu = metrics.cpu.mut_or_insert_default();
        cpu.usage_usec = usage.cpu.as_micros() as u64;
        cpu.user_usec = usage.user.as_micros() as u64;
        cpu.system_usec = usage.cpu.saturating_sub(usage.user).as_micros() as u64;
    }
    if metrics.memory.is_none() {
        metrics.memory.mut_or_insert_default().usage = usage.resident_bytes;
    }
    if metrics.pids.is_none() {
        // The v2 controller counts tasks.
        metrics.pids.mut_or_insert_default().current = usage.threads;
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_cgroup_the_figures_are_those_of_proc() {
        let any = metrics(&Cgroup::default(), &[std::process::id() as i32]).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert!(metrics.memory.usage > 0 && metrics.pids.current > 0);
    }

    #[test]
    fn a_line_of_io_stat_is_understood() {
        let entry = io_entry("259:3 rbytes=4096 wbytes=8 rios=1 wios=2 dbytes=0 dios=0").unwrap();
        assert_eq!((entry.major, entry.minor), (259, 3));
        assert_eq!((entry.rbytes, entry.wios), (4096, 2));
    }

    #[test]
    fn a_line_of_blkio_is_understood_and_its_total_is_none() {
        let entries = block_entries("8:0 Read 4096\n8:0 Write 1\nTotal 4097\n");
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].op.as_str(), entries[0].value), ("Read", 4096));
    }

    #[test]
    fn no_limit_reads_as_the_largest_number() {
        assert_eq!(number("max\n"), u64::MAX);
        assert_eq!(number("4096\n"), 4096);
    }

    #[test]
    fn figures_are_read_from_v2_files() {
        let mount = tempfile::tempdir().unwrap();
        let leaf = mount.path().join("c1");
        std::fs::create_dir(&leaf).unwrap();
        for (name, text) in [
            ("cgroup.procs", ""),
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "1\n"),
            ("memory.swap.max", "2\n"),
            ("memory.stat", "anon 100\nfile 200\ninactive_file 50\n"),
            ("memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\n"),
            ("pids.current", "6\n"),
            ("pids.max", "7\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n"),
        ] {
            std::fs::write(leaf.join(name), text).unwrap();
        }
        let hierarchy = hpk_cgroup::Hierarchy {
            version: Version::V2,
            controllers: ["cpu", "memory", "pids", "io"].map(str::to_owned).to_vec(),
            mount: mount.path().to_owned(),
            own: "own".into(),
        };
        let request = hpk_cgroup::Request {
            path: "c1".into(),
            ..Default::default()
        };
        let (cgroup, _) = Cgroup::make(&[hierarchy], &request).unwrap();
        let any = metrics(&cgroup, &[]).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let all = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((all.cpu.usage_usec, all.cpu.throttled_usec), (30, 1));
        assert_eq!((all.memory.usage, all.memory.usage_limit), (4096, u64::MAX));
        assert_eq!((all.memory.swap_usage, all.memory.swap_limit), (1, 2));
        assert_eq!((all.memory.anon, all.memory.inactive_file), (100, 50));
        assert_eq!((all.memory_events.oom, all.memory_events.oom_kill), (4, 5));
        assert_eq!((all.pids.current, all.pids.limit), (6, 7));
        assert_eq!(all.io.usage[0].wios, 4);
    }
}
