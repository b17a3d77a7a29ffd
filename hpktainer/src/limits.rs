//! `--memory` and `--cpus`: what a container may use, where this process may make cgroups.

use std::path::PathBuf;

use anyhow::Context as _;
use hpk_cgroup::{delegated, hierarchies};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder,
};

/// Microseconds over which processor time is counted; the kernel's own choice, and Docker's.
const PERIOD: u64 = 100_000;
/// Less is refused, as by Docker: no program starts in it.
const LEAST_MEMORY: i64 = 6 << 20;
/// Of a processor; the kernel takes no quota below a millisecond.
const LEAST_CPUS: f64 = 0.01;

/// What was asked for.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Limits {
    /// Most memory: bytes, or with a suffix b, k, m, g, t (powers of 1024)
    #[arg(short, long, value_parser = parse_memory, value_name = "BYTES[b|k|m|g]")]
    memory: Option<i64>,
    /// Most processors, e.g. 1.5
    #[arg(long, value_parser = parse_cpus, value_name = "NUMBER")]
    cpus: Option<f64>,
}

fn parse_memory(text: &str) -> Result<i64, String> {
    let expected = || format!("expected a number with b, k, m or g, at least {LEAST_MEMORY}b");
    let lower = text.to_ascii_lowercase();
    // Docker takes 64m, 64mb and 64mib for the same.
    let unit = lower.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(expected()),
    };
    let digits = &lower[..lower.len() - unit.len()];
    let bytes = match digits.parse::<i64>() {
        Ok(number) => number.checked_mul(1 << shift).ok_or_else(expected)?,
        // In range: checked below.
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
        Err(_) => match digits.parse::<f64>().map_err(|_| expected())? * (1_i64 << shift) as f64 {
            bytes if bytes < 2_f64.powi(62) => bytes as i64,
            _ => return Err(expected()),
        },
    };
    match bytes >= LEAST_MEMORY {
        true => Ok(bytes),
        false => Err(expected()),
    }
}

fn parse_cpus(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(cpus) if (LEAST_CPUS..=65_536.0).contains(&cpus) => Ok(cpus),
        _ => Err(format!(
            "expected a number of processors, at least {LEAST_CPUS}"
        )),
    }
}

/// HPK_CGROUP, the cgroup that the site gave.
fn given() -> Option<PathBuf> {
    let name = std::env::var_os("HPK_CGROUP").filter(|name| !name.is_empty());
    name.map(PathBuf::from)
}

impl Limits {
    /// In the runtime spec's form; none where nothing was asked for.
    pub fn resources(&self) -> Result<Option<LinuxResources>, OciSpecError> {
        if self.memory.is_none() && self.cpus.is_none() {
            return Ok(None);
        }
        let mut resources = LinuxResourcesBuilder::default();
        if let Some(limit) = self.memory {
            resources = resources.memory(LinuxMemoryBuilder::default().limit(limit).build()?);
        }
        if let Some(cpus) = self.cpus {
            // In range: both were checked.
            #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
            let quota = (cpus * PERIOD as f64).round() as i64;
            let cpu = LinuxCpuBuilder::default().period(PERIOD).quota(quota);
            resources = resources.cpu(cpu.build()?);
        }
        resources.build().map(Some)
    }

    /// The cgroup to be made; none for one below this process's own.
    pub fn cgroup(&self, id: &str) -> Option<PathBuf> {
        let given = given()?;
        let absolute = PathBuf::from("/").join(given);
        Some(absolute.join(format!("hpktainer-{id}")))
    }

    /// Says which limits can't be kept, as Docker does; the container runs without them.
    pub fn warn(&self) -> anyhow::Result<()> {
        let wanted = [
            ("--memory", "memory", self.memory.is_some()),
            ("--cpus", "cpu", self.cpus.is_some()),
        ];
        if !wanted.iter().any(|(_, _, asked)| *asked) {
            return Ok(());
        }
        let hierarchies = hierarchies::probe().context("looking for cgroups")?;
        let usable = delegated::usable(&hierarchies, given().as_deref());
        for (option, controller, asked) in wanted {
            if asked && !usable.iter().any(|one| one == controller) {
                eprintln!(
                    "hpktainer: {option} can't be kept and is left out: there is no cgroup with the controller \
                     {controller} that you may write (one that the site gave is named in HPK_CGROUP)"
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_written_as_for_docker() {
        let parsed = |text: &str| parse_memory(text).ok();
        assert_eq!(parsed("512m"), Some(512 << 20));
        assert_eq!(parsed("2G"), Some(2 << 30));
        assert_eq!(parsed("8388608"), Some(8 << 20));
        assert_eq!(parsed("8388608b"), Some(8 << 20));
        assert_eq!(parsed("1.5g"), Some(3 << 29));
        assert_eq!(parsed("64MiB"), parsed("64mb"));
        for bad in [
            "",
            "m",
            "-1g",
            "5m",
            "1.2.3g",
            ".g",
            "9999999999999g",
            "1e9",
            "1mbb",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn processors_are_parts_of_a_period() {
        let limits = |cpus: &str| Limits {
            memory: None,
            cpus: Some(parse_cpus(cpus).unwrap()),
        };
        let resources = limits("1.5").resources().unwrap().unwrap();
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(150_000), Some(PERIOD)));
        for bad in ["0", "-1", "nan", "inf", "x", ""] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
        assert!(Limits::default().resources().unwrap().is_none());
    }
}
