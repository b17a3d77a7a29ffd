//! The batch host's part: prepare the cluster, start a bubble on each host by srun, finish.
//!
//! Guarantees: the last line says why the job ended. srun's tasks end in order when this
//! process says so, or when it is gone: their standard input is a pipe from here. (A signal
//! through srun would reach every process of the step at once.)

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::allocation::{Grant, Job, variables};
use crate::cluster::{Cluster, Folder, Node};
use crate::kubeconfig::{self, Access};
use crate::pki::{self, Controller, NodeNames};
use crate::ports::{self, Held};
use crate::settings::{self, Network};
use crate::{doctor, own_path, sweep};

/// How long cleaning the hosts may take.
const CLEAN: Duration = Duration::from_secs(15);

/// Everything, from a batch script.
pub async fn launch() -> Result<ExitCode> {
    let job = Job::current(&variables())?;
    let home = settings::hpk_home()?;
    let folder = Folder::of(&home, &job.id);
    println!("{}", granted(&job, now()));
    doctor::require_essentials()?;
    if let Err(error) = sweep::sweep_home(&home) {
        eprintln!("hpk: what earlier jobs left: {error:#}");
    }
    let held = ports::hold()?;
    let cluster = prepare(&job.id, &job.nodes, &held, (job.began, job.ends))?;
    held.serve(&job.id)?;

    let status = run_step(&job, &cluster).await;
    if matches!(status, Ok(Ended::Itself(_))) {
        clean_hosts(&job).await;
    }
    // Each part of the end is tried whatever the others do.
    let ends = [
        kubeconfig::unregister(&home, &job.id),
        folder.remove_secrets(),
    ];
    for error in ends.into_iter().filter_map(Result::err) {
        eprintln!("hpk: {error:#}");
    }
    let ended = status?;
    let logs = folder.path().join("logs");
    println!("hpk: the logs are in {}", logs.display());
    match (folder.cause(), ended) {
        (Some(cause), _) => {
            println!("hpk: {cause}");
            Ok(ExitCode::FAILURE)
        }
        (None, Ended::Asked(why)) => {
            println!("hpk: ended: {why}");
            Ok(ExitCode::SUCCESS)
        }
        (None, Ended::Itself(text)) => {
            println!("hpk: a host's part was killed or lost; srun ended with {text}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// `hpk-bubble prepare ID`: the files alone, for this host's Slurm job or for this host alone.
pub fn prepare_only(id: &str) -> Result<ExitCode> {
    let nodes = match Job::current(&variables()) {
        Ok(job) => job.nodes,
        Err(_) => vec![
            nix::unistd::gethostname()
                .context("asking for this host's name")?
                .to_string_lossy()
                .into_owned(),
        ],
    };
    let cluster = prepare(id, &nodes, &ports::hold()?, (None, None))?;
    println!("{}", cluster.api_url());
    Ok(ExitCode::SUCCESS)
}

/// Why the step ended.
#[derive(Debug)]
enum Ended {
    Asked(&'static str),
    Itself(String),
}

async fn run_step(job: &Job, cluster: &Cluster) -> Result<Ended> {
    let arguments = srun_arguments(job.nodes.len(), variables().get("SLURM_CPUS_PER_TASK"));
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let mut srun = tokio::process::Command::new("srun")
        .args(arguments)
        .arg(own_path()?)
        .args([cluster.id.as_str(), "auto"])
        .stdin(Stdio::piped())
        .spawn()
        .context("running srun")?;
    let stdin = srun.stdin.take();
    let why = tokio::select! {
        status = srun.wait() => {
            let status = status.context("awaiting srun")?;
            return Ok(Ended::Itself(status.to_string()));
        }
        _ = terminate.recv() => match job.ends {
            Some(ends) if ends - now() < 90 => "the job's time is nearly over",
            _ => "the job was cancelled (SIGTERM)",
        },
        _ = interrupt.recv() => "interrupted (SIGINT)",
    };
    println!("hpk: ending: {why}");
    drop(stdin);
    srun.wait().await.context("awaiting srun")?;
    Ok(Ended::Asked(why))
}

/// A host's part that was killed can't have removed its folder.
async fn clean_hosts(job: &Job) {
    let clean = async {
        let own = own_path()?;
        tokio::process::Command::new("srun")
            .args(srun_arguments(job.nodes.len(), None))
            .arg("--overlap")
            .arg(own)
            .args([job.id.as_str(), "clean"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await
            .context("running srun")
    };
    match tokio::time::timeout(CLEAN, clean).await {
        Ok(Ok(status)) if status.success() => {}
        Ok(Ok(status)) => eprintln!("hpk: cleaning the hosts: srun ended with {status}"),
        Ok(Err(error)) => eprintln!("hpk: cleaning the hosts: {error:#}"),
        Err(_) => eprintln!(
            "hpk: cleaning the hosts took more than {} s",
            CLEAN.as_secs()
        ),
    }
}

fn srun_arguments(nodes: usize, cpus_per_task: Option<&String>) -> Vec<String> {
    let mut arguments = vec![
        format!("--nodes={nodes}"),
        format!("--ntasks={nodes}"),
        "--ntasks-per-node=1".into(),
        "--kill-on-bad-exit=1".into(),
        "--job-name=hpk-bubble".into(),
        "--mpi=none".into(),
    ];
    // srun no longer takes this over from sbatch by itself.
    if let Some(cpus) = cpus_per_task {
        arguments.push(format!("--cpus-per-task={cpus}"));
    }
    arguments
}

/// Decides and writes all that the hosts need, and the user's kubeconfig.
fn prepare(
    id: &str,
    hosts: &[String],
    held: &Held,
    (began, ends): (Option<i64>, Option<i64>),
) -> Result<Cluster> {
    let network = Network::from_env()?;
    check_routes(&network)?;
    let nodes = Cluster::plan(id, hosts, network.clone())?;
    let controller_address = own_address(hosts.get(1).map(String::as_str))?;
    let cluster = Cluster {
        id: id.to_owned(),
        controller_address,
        ports: held.ports,
        network,
        vni: random_vni()?,
        nodes,
        began,
        ends,
    };
    let pems = pki::issue(id, &certificates(&cluster)?)?;
    let home = settings::hpk_home()?;
    crate::files::make_private_dir(&home)?;
    let folder = Folder::of(&home, id);
    folder.write(&cluster, &pems)?;
    kubeconfig::register(
        &home,
        id,
        &Access {
            server: cluster.api_url(),
            authority: folder.pem("ca.crt")?,
            certificate: folder.pem("admin.crt")?,
            key: folder.pem("admin.key")?,
        },
    )?;
    Ok(cluster)
}

fn certificates(cluster: &Cluster) -> Result<Vec<pki::Wanted>> {
    let controller = cluster.controller()?;
    let nodes: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node: &Node| NodeNames {
            name: node.name.clone(),
            node_ip: IpAddr::V4(node.ip()),
        })
        .collect();
    let names = vec![
        controller.name.clone(),
        cluster.controller_address.to_string(),
        controller.ip().to_string(),
    ];
    Ok(pki::plan_certificates(
        &Controller {
            names,
            domain: cluster.network.domain.clone(),
            kubernetes_ip: IpAddr::V4(cluster.network.kubernetes()),
        },
        &nodes,
    ))
}

/// 24 bits from the kernel, never 0.
fn random_vni() -> Result<u32> {
    use std::io::Read as _;
    let mut bytes = [0; 4];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes[..3]))
        .context("reading /dev/urandom")?;
    Ok(u32::from_le_bytes(bytes).max(1))
}

/// The pods' and Services' networks must not be ones that the host reaches by a route of its own.
fn check_routes(network: &Network) -> Result<()> {
    let table = crate::files::read(std::path::Path::new("/proc/net/route"))?;
    for route in crate::host::routes::parse(&table) {
        for (variable, net) in [
            ("HPK_POD_CIDR", network.pods),
            ("HPK_SERVICE_CIDR", network.services),
        ] {
            if route.prefix_len() > 0 && (route.contains(&net) || net.contains(&route)) {
                bail!(
                    "{net} overlaps this host's route to {route}: choose another network in {variable}"
                );
            }
        }
    }
    Ok(())
}

/// This host's address as `peer` sees it, or, without a peer, as the default route has it.
/// HPK_HOST_IP overrides it.
pub fn own_address(peer: Option<&str>) -> Result<Ipv4Addr> {
    if let Ok(text) = std::env::var("HPK_HOST_IP") {
        return text
            .parse()
            .with_context(|| format!("HPK_HOST_IP={text} is no IPv4 address"));
    }
    let target = match peer {
        Some(name) => resolve(name)?,
        None => Ipv4Addr::new(192, 0, 2, 1), // never asked: connect() only looks at the routes
    };
    let look = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((target, 9))?;
        Ok(socket.local_addr()?.ip())
    };
    match (look(), peer) {
        (Ok(IpAddr::V4(address)), _) if !address.is_unspecified() => Ok(address),
        // No default route: a host alone is reached by its own name.
        (_, None) => {
            let name = nix::unistd::gethostname().context("asking for this host's name")?;
            resolve(&name.to_string_lossy())
        }
        (Ok(address), Some(name)) => {
            bail!("the way to {name} begins at {address}, no IPv4 address")
        }
        (Err(error), Some(name)) => bail!("no route to {name} ({target}): {error}"),
    }
}

/// By getent, which asks whatever the site's hosts ask; a static program can't.
fn resolve(name: &str) -> Result<Ipv4Addr> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let output = Command::new("getent")
        .args(["ahostsv4", name])
        .output()
        .context("running getent")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("host {name} has no IPv4 address that getent knows"))
}

pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// The first line: what Slurm granted.
fn granted(job: &Job, now: i64) -> String {
    let Grant { cpus, .. } = job.grant;
    let memory = match job.grant.memory_mib {
        Some(mib) => format!("{:.1} GiB of memory", mib as f64 / 1024.0),
        None => "the machine's memory".into(),
    };
    let hosts = job.nodes.len();
    format!(
        "hpk: job {} has {hosts} host{} ({}), on each {cpus} CPU{} and {memory}, {}",
        job.id,
        if hosts == 1 { "" } else { "s" },
        job.nodes.join(" "),
        if cpus == 1 { "" } else { "s" },
        time_left(job.ends, now),
    )
}

/// "for 59 min, until 2026-11-21 12:55 UTC".
pub fn time_left(ends: Option<i64>, now: i64) -> String {
    let Some(ends) = ends else {
        return "without a time limit that Slurm names".into();
    };
    let left = Duration::from_secs(u64::try_from(ends - now).unwrap_or(0)).as_secs();
    let length = match left {
        0..120 => format!("{left} s"),
        120..7200 => format!("{} min", left / 60),
        _ => format!("{:.1} h", left as f64 / 3600.0),
    };
    format!("for {length}, until {}", utc(ends))
}

/// Seconds since 1970 as "2026-11-21 12:55 UTC".
pub fn utc(seconds: i64) -> String {
    match time::OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(at) => format!("{} {:02}:{:02} UTC", at.date(), at.hour(), at.minute()),
        Err(_) => format!("{seconds} s after 1970"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_cpus_memory_and_time() {
        let job = Job {
            id: "7".into(),
            nodes: vec!["a".into(), "b".into()],
            grant: Grant {
                cpus: 2,
                memory_mib: Some(3072),
            },
            began: Some(0),
            ends: Some(1_795_265_700),
        };
        assert_eq!(
            granted(&job, 1_795_265_700 - 3600),
            "hpk: job 7 has 2 hosts (a b), on each 2 CPUs and 3.0 GiB of memory, \
             for 60 min, until 2026-11-21 12:55 UTC"
        );
    }

    #[test]
    fn srun_is_told_the_cpus_since_it_does_not_take_them_over() {
        let arguments = srun_arguments(3, Some(&"2".to_owned()));
        assert!(arguments.contains(&"--cpus-per-task=2".to_owned()));
        assert!(arguments.contains(&"--ntasks=3".to_owned()));
        assert_eq!(srun_arguments(1, None).len(), arguments.len() - 1);
    }

    #[test]
    fn the_overlays_identifier_fits_in_24_bits() {
        let vni = random_vni().unwrap();
        assert!(vni > 0 && vni < 1 << 24);
    }
}
