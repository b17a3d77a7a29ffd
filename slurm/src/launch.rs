//! The batch host's part: prepare the cluster, start a bubble on each host by srun, finish.
//!
//! Guarantees: the last line says why the job ended. srun's tasks end in order when this
//! process says so, or when it is gone: their standard input is a pipe from here. (A signal
//! through srun would reach every process of the step at once.)

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::allocation::{Job, slurm_cluster, variables};
use crate::clock::now;
use crate::cluster::{Cluster, Folder, Node};
use crate::kubeconfig::{self, Access};
use crate::pki::{self, Controller, NodeNames};
use crate::ports::{self, Handover, Ports};
use crate::settings::{self, Network};
use crate::stop::Stop;
use crate::{address, attempts, doctor, files, image, own_path, routes, sweep};

/// How long cleaning the hosts may take.
const CLEAN: Duration = Duration::from_secs(15);

/// Everything, from a batch script.
pub async fn launch() -> Result<ExitCode> {
    let job = Job::current(&variables())?;
    let home = settings::hpk_home()?;
    let folder = Folder::of(&home, &job.id);
    println!("{}", job.describe(now()));
    doctor::require_essentials()?;
    if let Err(error) = sweep::sweep_home(&home) {
        eprintln!("hpk: what earlier jobs left: {error:#}");
    }
    let mut stop = Stop::catch()?;
    let image = tokio::select! {
        image = find_and_fetch(&home, &job.id) => image?,
        why = stop.asked(&job) => {
            println!("hpk: ended: {why}, before the bubble's image was there");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let held = ports::hold()?;
    let handover = Handover::open(&job.id, &settings::local_parent())?;
    let wanted = Wanted {
        began: job.began,
        ends: job.ends,
        handover: Some(handover.folder().to_owned()),
        ..Wanted::on(&job.id, &job.nodes, held.ports()?, &image.path)
    };
    let cluster = prepare(wanted)?;
    let giving = tokio::spawn(async {
        if let Err(error) = handover.give(held).await {
            eprintln!("hpk: {error:#}");
        }
    });

    let status = run_step(&job, &cluster, &mut stop).await;
    // A controller that never came leaves it waiting, and its folder there.
    giving.abort();
    let _ = giving.await;
    if matches!(status, Ok(Ended::Itself(_))) {
        clean_hosts(&job).await;
    }
    let ends = [
        kubeconfig::unregister(&home, &job.id),
        folder.remove_secrets(),
        image.end().await,
    ];
    if let Err(error) = attempts::all(ends) {
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
pub async fn prepare_only(id: &str) -> Result<ExitCode> {
    let variables = variables();
    let job = match variables.contains_key("SLURM_JOB_ID") {
        true => Some(Job::current(&variables)?),
        false => None,
    };
    let nodes = match &job {
        Some(job) => job.nodes.clone(),
        None => vec![
            nix::unistd::gethostname()
                .context("asking for this host's name")?
                .to_string_lossy()
                .into_owned(),
        ],
    };
    let image = find_and_fetch(&settings::hpk_home()?, id).await?;
    let cluster = prepare(Wanted {
        ends: job.and_then(|job| job.ends),
        ..Wanted::on(id, &nodes, ports::hold()?.ports()?, &image.path)
    })?;
    println!("{}", cluster.api_url());
    Ok(ExitCode::SUCCESS)
}

async fn find_and_fetch(home: &Path, id: &str) -> Result<image::Ready> {
    let found = image::Places::from_env(&own_path()?, home).find().await?;
    image::fetch(found, home, id).await
}

/// Why the step ended.
#[derive(Debug)]
enum Ended {
    Asked(&'static str),
    Itself(String),
}

async fn run_step(job: &Job, cluster: &Cluster, stop: &mut Stop) -> Result<Ended> {
    let arguments = srun_arguments(job.nodes.len(), variables().get("SLURM_CPUS_PER_TASK"));
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
        why = stop.asked(job) => why,
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
        // By `sbatch --export=…` srun would leave out HOME and PATH, too.
        "--export=ALL".into(),
        "--mpi=none".into(),
    ];
    // srun no longer takes this over from sbatch by itself.
    if let Some(cpus) = cpus_per_task {
        arguments.push(format!("--cpus-per-task={cpus}"));
    }
    arguments
}

/// What a cluster is prepared from.
struct Wanted<'a> {
    id: &'a str,
    hosts: &'a [String],
    ports: Ports,
    image: &'a Path,
    handover: Option<PathBuf>,
    /// Seconds since 1970.
    began: Option<i64>,
    ends: Option<i64>,
}

impl<'a> Wanted<'a> {
    /// A cluster without a time limit, whose ports nobody holds.
    fn on(id: &'a str, hosts: &'a [String], ports: Ports, image: &'a Path) -> Self {
        Self {
            id,
            hosts,
            ports,
            image,
            handover: None,
            began: None,
            ends: None,
        }
    }
}

/// Decides and writes all that the hosts need, and the user's kubeconfig.
fn prepare(wanted: Wanted<'_>) -> Result<Cluster> {
    let network = Network::from_env()?;
    routes::check(&network, &hpk_uplink::routes::of_this_host()?)?;
    let id = wanted.id;
    let cluster = Cluster {
        id: id.to_owned(),
        slurm: slurm_cluster(&variables()),
        controller_address: address::own_address(wanted.hosts.get(1).map(String::as_str))?,
        ports: wanted.ports,
        handover: wanted.handover,
        image: wanted.image.to_owned(),
        nodes: Cluster::plan_nodes(id, wanted.hosts, &network)?,
        network,
        vni: random_vni()?,
        began: wanted.began,
        ends: wanted.ends,
    };
    let pems = pki::issue(id, &certificates(&cluster)?, pki::last_day(cluster.ends))?;
    let home = settings::hpk_home()?;
    files::make_private_dir(&home)?;
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
    let [low, middle, high] = files::random()?;
    Ok(u32::from_le_bytes([low, middle, high, 0]).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

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
