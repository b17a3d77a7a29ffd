//! From `linux.resources` to what is written into which file of a cgroup (OCI runtime spec,
//! config-linux.md; runc for the v1 forms of v2 values and back).

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources,
    LinuxThrottleDevice,
};

use super::{Error, Version};

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The spec's name for it, for errors.
    pub field: String,
    /// Whose hierarchy (v1) or what must be enabled (v2).
    pub controller: &'static str,
    pub file: String,
    pub value: String,
}

/// Device nodes that every container may use and make, as in runc: rules of the v1 devices controller.
const ALWAYS_ALLOWED: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

struct Plan {
    version: Version,
    writes: Vec<Write>,
}

/// What `resources` come to, in the order of writing.
///
/// # Errors
/// [`Error::Invalid`] with the field's name for a value that no cgroup could take.
pub fn plan(version: Version, resources: &LinuxResources) -> Result<Vec<Write>, Error> {
    let mut plan = Plan {
        version,
        writes: Vec::new(),
    };
    if let Some(memory) = resources.memory() {
        plan.memory(memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        plan.cpu(cpu)?;
    }
    if let Some(pids) = resources.pids() {
        let value = match pids.limit() {
            ..=0 => "max".to_owned(),
            n => n.to_string(),
        };
        plan.both("pids.limit", "pids", "pids.max", value);
    }
    if let Some(io) = resources.block_io() {
        plan.block_io(io);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = limit.page_size();
        file_name("hugepageLimits", size)?;
        let (v1, v2) = (
            format!("hugetlb.{size}.limit_in_bytes"),
            format!("hugetlb.{size}.max"),
        );
        plan.either(
            "hugepageLimits",
            "hugetlb",
            (&v1, limit.limit().to_string()),
            (&v2, limit.limit().to_string()),
        );
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id() {
            plan.v1("network.classID", "net_cls", "net_cls.classid", class);
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            plan.v1(
                "network.priorities",
                "net_prio",
                "net_prio.ifpriomap",
                value,
            );
        }
    }
    for rule in resources.devices().iter().flatten() {
        plan.device(rule);
    }
    if version == Version::V1 && resources.devices().as_ref().is_some_and(|d| !d.is_empty()) {
        for rule in ALWAYS_ALLOWED {
            plan.v1("devices", "devices", "devices.allow", rule);
        }
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        plan.unified(file, value)?;
    }
    Ok(plan.writes)
}

/// MAX_SHARES of the kernel's scheduler.
const MOST_SHARES: u64 = 262_144;

/// A name from the spec that becomes a file's.
fn file_name(field: &str, name: &str) -> Result<(), Error> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(Error::Invalid {
            field: format!("linux.resources.{field}"),
            why: format!("{name:?} names no file of a cgroup"),
        });
    }
    Ok(())
}

impl Plan {
    fn push(&mut self, field: &str, controller: &'static str, file: &str, value: impl ToString) {
        self.writes.push(Write {
            field: format!("linux.resources.{field}"),
            controller,
            file: file.to_owned(),
            value: value.to_string(),
        });
    }

    fn v1(&mut self, field: &str, controller: &'static str, file: &str, value: impl ToString) {
        if self.version == Version::V1 {
            self.push(field, controller, file, value);
        }
    }

    fn both(&mut self, field: &str, controller: &'static str, file: &str, value: String) {
        self.push(field, controller, file, value);
    }

    fn either(
        &mut self,
        field: &str,
        controller: &'static str,
        v1: (&str, String),
        v2: (&str, String),
    ) {
        let (file, value) = match self.version {
            Version::V1 => v1,
            Version::V2 => v2,
        };
        self.push(field, controller, file, value);
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), Error> {
        if let Some(limit) = memory.limit() {
            let v2 = unlimited_as_max(limit);
            self.either(
                "memory.limit",
                "memory",
                ("memory.limit_in_bytes", limit.to_string()),
                ("memory.max", v2),
            );
        }
        if let Some(swap) = memory.swap() {
            // In the spec and in v1 with memory, in v2 without.
            let v2 = match (swap, memory.limit()) {
                (0.., Some(limit)) if limit > 0 => {
                    let only = swap.checked_sub(limit).filter(|n| *n >= 0);
                    only.map(|n| n.to_string()).ok_or_else(|| Error::Invalid {
                        field: "linux.resources.memory.swap".into(),
                        why: format!("{swap} is less than memory.limit {limit}, which it includes"),
                    })?
                }
                (n, _) => unlimited_as_max(n),
            };
            self.either(
                "memory.swap",
                "memory",
                ("memory.memsw.limit_in_bytes", swap.to_string()),
                ("memory.swap.max", v2),
            );
        }
        if let Some(reservation) = memory.reservation() {
            let v2 = unlimited_as_max(reservation);
            self.either(
                "memory.reservation",
                "memory",
                ("memory.soft_limit_in_bytes", reservation.to_string()),
                ("memory.low", v2),
            );
        }
        if let Some(swappiness) = memory.swappiness() {
            if swappiness > 100 {
                return Err(Error::Invalid {
                    field: "linux.resources.memory.swappiness".into(),
                    why: format!("{swappiness} is above 100"),
                });
            }
            self.v1(
                "memory.swappiness",
                "memory",
                "memory.swappiness",
                swappiness,
            );
        }
        if memory.disable_oom_killer() == Some(true) {
            self.v1("memory.disableOOMKiller", "memory", "memory.oom_control", 1);
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<(), Error> {
        if let Some(shares) = cpu.shares().filter(|&s| s > 0) {
            // The kernel would take it for that.
            if shares > MOST_SHARES {
                return Err(Error::Invalid {
                    field: "linux.resources.cpu.shares".into(),
                    why: format!("{shares} is above {MOST_SHARES}"),
                });
            }
            self.either(
                "cpu.shares",
                "cpu",
                ("cpu.shares", shares.to_string()),
                ("cpu.weight", weight_of_shares(shares).to_string()),
            );
        }
        let period = cpu.period().filter(|&p| p > 0);
        if self.version == Version::V1 {
            // The period first: a quota is judged against it.
            if let Some(period) = period {
                self.v1("cpu.period", "cpu", "cpu.cfs_period_us", period);
            }
            if let Some(quota) = cpu.quota().filter(|&q| q != 0) {
                self.v1("cpu.quota", "cpu", "cpu.cfs_quota_us", quota);
            }
        } else if period.is_some() || cpu.quota().is_some_and(|q| q != 0) {
            let quota = match cpu.quota() {
                Some(n @ 1..) => n.to_string(),
                _ => "max".to_owned(),
            };
            let value = format!("{quota} {}", period.unwrap_or(100_000));
            self.push("cpu.quota", "cpu", "cpu.max", value);
        }
        if let Some(burst) = cpu.burst() {
            self.either(
                "cpu.burst",
                "cpu",
                ("cpu.cfs_burst_us", burst.to_string()),
                ("cpu.max.burst", burst.to_string()),
            );
        }
        if let Some(idle) = cpu.idle() {
            self.both("cpu.idle", "cpu", "cpu.idle", idle.to_string());
        }
        if let Some(period) = cpu.realtime_period().filter(|&p| p > 0) {
            self.v1("cpu.realtimePeriod", "cpu", "cpu.rt_period_us", period);
        }
        if let Some(runtime) = cpu.realtime_runtime().filter(|&r| r != 0) {
            self.v1("cpu.realtimeRuntime", "cpu", "cpu.rt_runtime_us", runtime);
        }
        for (field, file, list) in [
            ("cpu.cpus", "cpuset.cpus", cpu.cpus()),
            ("cpu.mems", "cpuset.mems", cpu.mems()),
        ] {
            let Some(list) = list.as_ref().filter(|l| !l.is_empty()) else {
                continue;
            };
            if !list
                .bytes()
                .all(|b| b.is_ascii_digit() || b == b',' || b == b'-')
            {
                return Err(Error::Invalid {
                    field: format!("linux.resources.{field}"),
                    why: format!("{list:?} is no list of numbers and ranges"),
                });
            }
            self.both(field, "cpuset", file, list.clone());
        }
        Ok(())
    }

    fn block_io(&mut self, io: &LinuxBlockIo) {
        if let Some(weight) = io.weight().filter(|&w| w > 0) {
            // v1's 10..1000 onto v2's 1..10000, as in runc.
            let v2 = 1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990;
            self.either(
                "blockIO.weight",
                if self.version == Version::V1 {
                    "blkio"
                } else {
                    "io"
                },
                ("blkio.weight", weight.to_string()),
                ("io.weight", v2.to_string()),
            );
        }
        let throttles: [(_, _, _, &Option<Vec<LinuxThrottleDevice>>); 4] = [
            (
                "throttleReadBpsDevice",
                "blkio.throttle.read_bps_device",
                "rbps",
                io.throttle_read_bps_device(),
            ),
            (
                "throttleWriteBpsDevice",
                "blkio.throttle.write_bps_device",
                "wbps",
                io.throttle_write_bps_device(),
            ),
            (
                "throttleReadIOPSDevice",
                "blkio.throttle.read_iops_device",
                "riops",
                io.throttle_read_iops_device(),
            ),
            (
                "throttleWriteIOPSDevice",
                "blkio.throttle.write_iops_device",
                "wiops",
                io.throttle_write_iops_device(),
            ),
        ];
        for (field, file, key, list) in throttles {
            for device in list.iter().flatten() {
                let (major, minor, rate) = (device.major(), device.minor(), device.rate());
                self.either(
                    &format!("blockIO.{field}"),
                    if self.version == Version::V1 {
                        "blkio"
                    } else {
                        "io"
                    },
                    (file, format!("{major}:{minor} {rate}")),
                    ("io.max", format!("{major}:{minor} {key}={rate}")),
                );
            }
        }
    }

    fn device(&mut self, rule: &LinuxDeviceCgroup) {
        let kind = match rule.typ() {
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => "c",
            Some(LinuxDeviceType::B) => "b",
            _ => "a",
        };
        let number = |n: Option<i64>| match n {
            Some(n @ 0..) => n.to_string(),
            _ => "*".to_owned(),
        };
        let access = rule.access().as_deref().unwrap_or("rwm");
        let value = match kind {
            // The kernel takes this one alone for a clean start.
            "a" => "a".to_owned(),
            _ => format!(
                "{kind} {}:{} {access}",
                number(rule.major()),
                number(rule.minor())
            ),
        };
        let file = if rule.allow() {
            "devices.allow"
        } else {
            "devices.deny"
        };
        self.v1("devices", "devices", file, value);
    }

    fn unified(&mut self, file: &str, value: &str) -> Result<(), Error> {
        file_name("unified", file)?;
        let controller = match file.split('.').next() {
            Some("memory") => "memory",
            Some("cpu") => "cpu",
            Some("cpuset") => "cpuset",
            Some("io") => "io",
            Some("pids") => "pids",
            Some("hugetlb") => "hugetlb",
            Some("rdma") => "rdma",
            Some("misc") => "misc",
            _ => "cgroup",
        };
        if self.version == Version::V1 {
            return Err(Error::Invalid {
                field: format!("linux.resources.unified {file}"),
                why: "this machine's controllers are on cgroup v1".into(),
            });
        }
        self.push(&format!("unified {file}"), controller, file, value);
        Ok(())
    }
}

fn unlimited_as_max(value: i64) -> String {
    match value {
        ..0 => "max".to_owned(),
        n => n.to_string(),
    }
}

/// 2..262144 onto 1..10000, as in the kernel's documentation and runc.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, MOST_SHARES) - 2) * 9999 / (MOST_SHARES - 2)
}

#[cfg(test)]
mod tests;
