//! The container's OCI runtime spec. Pure: all that is looked up comes in.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use hpk_images::container_defaults::{
    CAPABILITIES, MASKED_PATHS, READONLY_PATHS, kernel_mounts, mount,
};
use hpk_images::process_defaults::ProcessDefaults;
use hpk_images::user::User;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxResources, Mount, MountBuilder, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    UserBuilder,
};

/// The shim's annotation for a container that may be root where its user isn't mapped.
const SQUASH: &str = "io.hpk.squash-ids";

/// The shim's annotation for a GPU's driver and devices: `nv`, `rocm` or both with a comma between.
const GPU: &str = "io.hpk.gpu";

/// Our own annotation: the variables of the process that neither image nor caller has set, with commas between.
const FILLED_IN: &str = "io.hpk.hpktainer.filled-in";

/// A folder or file of the bubble in the container: `-v`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// In the bubble; absolute, but as it is given.
    pub source: PathBuf,
    /// In the container; absolute.
    pub target: PathBuf,
    /// Not to be written.
    pub read_only: bool,
}

impl std::str::FromStr for Volume {
    type Err = String;

    /// Takes `SOURCE:TARGET[:OPTION,…]`, as Docker does. A source may be relative (`.`, `./x`, `../x`); a bare word would be a
    /// volume's name, and there are none. Of the options, `z` and `Z` (labels of SELinux) say nothing here.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match parts[..] {
            [source, target] => (source, target, "rw"),
            [source, target, options] => (source, target, options),
            _ => return Err("expected SOURCE:TARGET[:ro]".to_owned()),
        };
        let mut read_only = false;
        for option in options.split(',') {
            match option {
                "ro" => read_only = true,
                "rw" | "z" | "Z" => {}
                other => return Err(format!("{other:?} is none of ro, rw, z, Z")),
            }
        }
        let is_path =
            source.starts_with('/') || matches!(source.split('/').next(), Some("." | ".."));
        if !is_path {
            return Err(format!(
                "{source:?} is no path: there are no named volumes; a folder here is ./{source}"
            ));
        }
        if !target.starts_with('/') {
            return Err(format!(
                "{target:?}: the path in the container must begin with /"
            ));
        }
        Ok(Self {
            source: source.into(),
            target: target.into(),
            read_only,
        })
    }
}

/// What a process of the container runs with.
#[derive(Debug)]
pub struct Run<'a> {
    /// Image and command line merged.
    pub defaults: &'a ProcessDefaults,
    /// Resolved in the image.
    pub user: &'a User,
    /// On a terminal.
    pub terminal: bool,
    /// Capabilities there are to give: the bits of CapBnd.
    pub bounding: u64,
}

/// The process alone, as an exec needs it.
pub fn process(run: &Run<'_>) -> anyhow::Result<Process> {
    let mut env = run.defaults.env.clone();
    fill_in(&mut env, &run.user.home, run.terminal);
    let given: HashSet<Capability> = CAPABILITIES
        .into_iter()
        .filter(|(number, _)| run.bounding & (1 << number) != 0)
        .map(|(_, capability)| capability)
        .collect();
    let root = run.user.uid == 0;
    let effective = if root { given.clone() } else { HashSet::new() };
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(given)
        .effective(effective.clone())
        .permitted(effective)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()?;
    let user = UserBuilder::default()
        .uid(run.user.uid)
        .gid(run.user.gid)
        .additional_gids(run.user.additional_gids.clone())
        .build()?;
    ProcessBuilder::default()
        .terminal(run.terminal)
        .user(user)
        .args(run.defaults.args.clone())
        .env(env)
        .cwd(run.defaults.cwd.clone())
        .capabilities(capabilities)
        .no_new_privileges(false)
        .build()
        .context("building the process")
}

/// Adds what every process has, unless it is set; gives the names of what was added.
pub fn fill_in(env: &mut Vec<String>, home: &str, terminal: bool) -> Vec<&'static str> {
    let mut wanted = vec![("HOME", home)];
    if terminal {
        wanted.push(("TERM", "xterm"));
    }
    wanted.retain(|(name, _)| value(env, name).is_none());
    env.extend(wanted.iter().map(|(name, value)| format!("{name}={value}")));
    wanted.into_iter().map(|(name, _)| name).collect()
}

/// A variable's value.
pub fn value<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    let mut pairs = env.iter().filter_map(|entry| entry.split_once('='));
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}

/// The environment that image and caller gave the container, without what was filled in for its user.
pub fn given_env(spec: &Spec) -> Vec<String> {
    let annotations = spec.annotations().as_ref();
    let names = annotations.and_then(|all| all.get(FILLED_IN));
    let is_filled_in = |entry: &String| {
        let name = entry.split('=').next();
        names.is_some_and(|names| names.split(',').any(|filled| Some(filled) == name))
    };
    let env = spec.process().as_ref().and_then(|it| it.env().clone());
    let mut env = env.unwrap_or_default();
    env.retain(|entry| !is_filled_in(entry));
    env
}

/// What is around the processes of a container.
#[derive(Debug)]
pub struct Around<'a> {
    /// Its own.
    pub hostname: &'a str,
    /// The network namespace, which CNI has filled; none for the caller's.
    pub netns: Option<&'a Path>,
    /// Folder with its `hosts`, `hostname` and `resolv.conf`.
    pub etc: &'a Path,
    /// `-v` and `--bind`.
    pub volumes: &'a [Volume],
    /// Limits.
    pub resources: Option<LinuxResources>,
    /// Where they are kept; none for below the caller's cgroup.
    pub cgroup: Option<PathBuf>,
    /// Whether a user that isn't mapped may be root instead.
    pub squash: bool,
    /// Whose GPUs' driver and devices it gets, in the shim's words.
    pub gpu: Option<&'a str>,
}

/// The whole spec: own namespaces but the network's.
pub fn container(run: &Run<'_>, around: Around<'_>) -> anyhow::Result<Spec> {
    let Around {
        hostname, netns, ..
    } = around;
    let mut namespaces = Vec::new();
    for kind in [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
    ] {
        namespaces.push(LinuxNamespaceBuilder::default().typ(kind).build()?);
    }
    if let Some(netns) = netns {
        let network = LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::Network)
            .path(netns);
        namespaces.push(network.build()?);
    }
    let texts = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .masked_paths(texts(&MASKED_PATHS))
        .readonly_paths(texts(&READONLY_PATHS));
    if let Some(resources) = around.resources {
        linux = linux.resources(resources);
        if let Some(cgroup) = around.cgroup {
            linux = linux.cgroups_path(cgroup);
        }
    }
    let filled_in = fill_in(&mut run.defaults.env.clone(), &run.user.home, run.terminal);
    let mut annotations = HashMap::from([
        (SQUASH.to_owned(), around.squash.to_string()),
        (FILLED_IN.to_owned(), filled_in.join(",")),
    ]);
    annotations.extend(around.gpu.map(|gpu| (GPU.to_owned(), gpu.to_owned())));
    SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(false)
                .build()?,
        )
        .process(process(run)?)
        .hostname(hostname)
        .mounts(mounts(netns.is_some(), around.etc, around.volumes)?)
        .linux(linux.build()?)
        .annotations(annotations)
        .build()
        .context("building the runtime spec")
}

fn mounts(own_network: bool, etc: &Path, volumes: &[Volume]) -> anyhow::Result<Vec<Mount>> {
    const SHM: &[&str] = &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
    let mut all = kernel_mounts(false)?;
    if !own_network {
        // A sysfs shows a network namespace, and only who owns that may mount one.
        all.retain(|mount| !mount.destination().starts_with("/sys"));
        all.push(mount("bind", "/sys", "/sys", &["rbind", "rprivate", "ro"])?);
    }
    all.push(mount("tmpfs", "shm", "/dev/shm", SHM)?);
    let mut bind = |source: &Path, target: &Path, read_only: bool| -> anyhow::Result<()> {
        let mode = if read_only { "ro" } else { "rw" };
        let options = vec!["rbind".to_owned(), "rprivate".to_owned(), mode.to_owned()];
        let mount = MountBuilder::default()
            .typ("bind")
            .source(source)
            .destination(target);
        all.push(mount.options(options).build()?);
        Ok(())
    };
    for file in ["hosts", "hostname", "resolv.conf"] {
        bind(&etc.join(file), &Path::new("/etc").join(file), false)?;
    }
    for volume in volumes {
        bind(&volume.source, &volume.target, volume.read_only)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> ProcessDefaults {
        ProcessDefaults {
            args: vec!["sh".into()],
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            user: String::new(),
            stop_signal: None,
            volumes: Vec::new(),
        }
    }

    fn user(uid: u32) -> User {
        User {
            uid,
            gid: uid,
            additional_gids: vec![],
            name: None,
            home: "/home/x".into(),
        }
    }

    #[test]
    fn only_root_starts_with_capabilities_and_only_with_those_there_are() {
        let defaults = defaults();
        let of = |uid, bounding| {
            let user = user(uid);
            let run = Run {
                defaults: &defaults,
                user: &user,
                terminal: false,
                bounding,
            };
            process(&run).unwrap().capabilities().clone().unwrap()
        };
        assert_eq!(
            of(0, 1 << 5).effective().clone().unwrap(),
            HashSet::from([Capability::Kill])
        );
        assert_eq!(of(0, u64::MAX).effective().clone().unwrap().len(), 14);
        assert_eq!(of(7, u64::MAX).effective().clone().unwrap().len(), 0);
        assert_eq!(of(7, u64::MAX).bounding().clone().unwrap().len(), 14);
    }

    #[test]
    fn home_and_term_are_filled_in() {
        let (defaults, user) = (defaults(), user(0));
        let run = Run {
            defaults: &defaults,
            user: &user,
            terminal: true,
            bounding: 0,
        };
        let env = process(&run).unwrap().env().clone().unwrap();
        assert_eq!(env, ["PATH=/bin", "HOME=/home/x", "TERM=xterm"]);
    }

    #[test]
    fn network_volumes_and_the_opt_in_are_those_given() {
        let (defaults, user) = (defaults(), user(0));
        let run = Run {
            defaults: &defaults,
            user: &user,
            terminal: false,
            bounding: 0,
        };
        let volumes = ["/a:/b:ro".parse().unwrap()];
        let around = Around {
            hostname: "box",
            netns: Some("/run/netns/x".as_ref()),
            etc: "/e".as_ref(),
            volumes: &volumes,
            resources: None,
            cgroup: None,
            squash: true,
            gpu: Some("nv"),
        };
        let spec = container(&run, around).unwrap();
        let json = serde_json::to_value(&spec).unwrap();
        let namespaces = json["linux"]["namespaces"].as_array().unwrap();
        let network: Vec<_> = namespaces
            .iter()
            .filter(|n| n["type"] == "network")
            .collect();
        assert_eq!(
            (network.len(), &network[0]["path"]),
            (1, &"/run/netns/x".into())
        );
        assert_eq!(
            json["annotations"],
            serde_json::json!({SQUASH: "true", GPU: "nv", FILLED_IN: "HOME"})
        );
        assert_eq!(given_env(&spec), ["PATH=/bin"]);
        let last = json["mounts"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(
            (&last["destination"], &last["options"][2]),
            (&"/b".into(), &"ro".into())
        );
    }

    #[test]
    fn volumes_are_checked() {
        for bad in [
            "a:/b",
            ".a:/b",
            "/a",
            "/a:b",
            "/a:/b:x",
            "/a:/b:ro:z",
            ":/b",
        ] {
            assert!(bad.parse::<Volume>().is_err(), "{bad}");
        }
        let fault = "data:/b".parse::<Volume>().unwrap_err();
        assert!(fault.contains("./data"), "{fault}");
        assert!("/a:/b:ro,z".parse::<Volume>().unwrap().read_only);
        for here in [".:/b", "./a:/b", "../a:/b"] {
            assert!(!here.parse::<Volume>().unwrap().read_only, "{here}");
        }
    }
}
