//! The documentation's commands, run as they stand, but for what a person would see or know: each case names what stands
//! in place of that.

use anyhow::{Context as _, Result, ensure};

use super::{Context, in_namespace};
use crate::cluster::{self, Cluster};
use crate::testbed::Testbed;

/// The shell block after the line `<!-- tested: NAME -->` of a page.
pub fn example(file: &str, name: &str) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
    let marker = format!("<!-- tested: {name} -->");
    let after = text
        .split_once(&marker)
        .with_context(|| format!("{file} has no line {marker}"))?
        .1;
    let block = after
        .split_once("```sh\n")
        .and_then(|(_, rest)| rest.split_once("\n```"))
        .with_context(|| format!("{file}: no shell block after {marker}"))?;
    Ok(block.0.to_owned())
}

/// The block with other words in some places, each of which must be there.
fn example_with(file: &str, name: &str, places: &[(&str, &str)]) -> Result<String> {
    let mut block = example(file, name)?;
    for (stands, runs) in places {
        ensure!(block.contains(stands), "{name} of {file} has no {stands:?}");
        block = block.replace(stands, runs);
    }
    Ok(block)
}

/// A person looks until the cluster is ready, and then goes on.
const READY: &str = "until grep -qs 'Ready in' $log; do sleep 0.2; done";
/// A person at a terminal, who ends the shell there at once.
const TYPED: &str = "typed() { script -qec \"$*\" /dev/null <<<exit; }";

/// Three nodes that are ready, of which kubectl told in the end.
fn has_three_nodes(said: &str) -> Result<()> {
    let ready = said
        .lines()
        .filter(|line| line.starts_with("node") && line.split_whitespace().nth(1) == Some("Ready"));
    ensure!(ready.count() == 3, "not three nodes are ready:\n{said}");
    Ok(())
}

pub fn the_docs_commands_for_a_cluster_work_as_they_stand(context: &mut Context) -> Result<()> {
    let testbed = &context.testbed;
    let kubectl = example("docs/users.md", "kubectl")?;
    let users = example_with(
        "docs/users.md",
        "cluster",
        &[
            ("tail -f slurm-*.out", &format!("{READY}; tail $log")),
            ("scancel", &format!("{kubectl}\nscancel")),
            ("JOBID", "$(ls slurm-*.out | tr -dc 0-9)"),
        ],
    )?;
    let unpack = format!(
        "cd && rm -rf hpk && tar -xzf {} && log=slurm-*.out",
        cluster::tarball("")
    );
    has_three_nodes(&run_job(testbed, &unpack, &users, "rm -rf ~/hpk")?)?;

    // A checkout that can be written to would have the job's output.
    let readme = example_with(
        "README.md",
        "checkout",
        &[("export KUBECONFIG", &format!("{READY}\nexport KUBECONFIG"))],
    )?;
    let enter = "cd /hpk; log=~/docs.out; rm -f $log; export SBATCH_OUTPUT=$log";
    let said = run_job(testbed, enter, &readme, "rm -f ~/docs.out")?;
    let job = said
        .lines()
        .find_map(|line| line.strip_prefix("Submitted batch job "));
    Cluster::running(testbed)?.cancel()?;
    ensure!(job.is_some(), "sbatch told of no job:\n{said}");
    has_three_nodes(&said)
}

/// Runs a block that submits a job, and what ends it, whether or not the block has done its work.
fn run_job(testbed: &Testbed, before: &str, block: &str, after: &str) -> Result<String> {
    let script = format!("set -e\n{before}\n{block}");
    let said = testbed.on("hpc", "login", script).limit(240).success();
    let ended = said.as_ref().ok().and_then(|said| {
        let job = said
            .lines()
            .find_map(|line| line.strip_prefix("Submitted batch job "))?;
        block.contains("scancel").then_some(job)
    });
    if let Some(job) = ended {
        cluster::await_end(testbed, job)?;
    }
    testbed.on("hpc", "login", after).success()?;
    said
}

pub fn the_docs_commands_for_single_containers_work_as_they_stand(
    context: &mut Context,
) -> Result<()> {
    let alone = example_with(
        "docs/parts.md",
        "without a bubble",
        &[("bin/hpktainer exec -it", "typed bin/hpktainer exec -it")],
    )?;
    let docker = example_with(
        "docs/hpktainer.md",
        "hpktainer",
        &[
            ("hpktainer run --rm -it", "typed hpktainer run --rm -it"),
            // Until the person has seen enough.
            ("hpktainer logs -f", "follow hpktainer logs -f"),
        ],
    )?;
    let said = context
        .testbed
        .on(
            "hpc",
            "node2",
            format!(
                "set -ex -o pipefail; cd /hpk; {TYPED}
                 follow() {{ timeout 2 \"$@\" || [ $? = 124 ]; }}
                 {alone}
                 PATH=/hpk/bin:$PATH; cd $(mktemp -d); mkdir pages
                 {docker}
                 hpktainer ps -aq"
            ),
        )
        .limit(120)
        .success()?;
    let address = said.lines().any(|line| line.starts_with("10."));
    ensure!(address, "inspect told no address:\n{said}");
    let last = said.lines().last().unwrap_or_default();
    ensure!(last.trim() == "web", "a container is left:\n{said}");
    Ok(())
}

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
  - {name: app, image: "busybox:1.37", command: [sh, -c, "echo begun; exec sleep 3600"]}
"#;

pub fn the_docs_commands_in_a_bubble_work_as_they_stand(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    in_namespace(context, "documents", |cluster, namespace| {
        let on = |script: String| testbed.on("hpc", "node1", script).limit(90);
        for name in ["in a bubble", "beside a bubble"] {
            let block = example("docs/parts.md", name)?;
            let said = on(format!("set -e; cd /hpk; {block}")).success()?;
            ensure!(said.contains("10.244."), "{name}: no address in {said:?}");
        }
        cluster.apply(namespace, POD)?;
        cluster.wait(namespace, "--for=condition=Ready pod/web", 60)?;
        let counters = example("docs/network.md", "counters")?;
        let inspection = example_with(
            "docs/users.md",
            "inspection",
            &[
                ("hpk-kubelet logs -f", "follow hpk-kubelet logs -f"),
                // There is no terminal; what sh reads ends with what is typed here.
                ("hpk-kubelet exec -it", "hpk-kubelet exec -i"),
            ],
        )?;
        let said = on("exec apptainer --quiet shell instance://bubble1".to_owned())
            .input(format!(
                "set -e; follow() {{ timeout 2 \"$@\" || [ $? = 124 ]; }}\n{counters}\n{inspection}\n"
            ))
            .success()?;
        for part in [
            "hpk_overlay_",
            "NAMESPACE",
            "Running",
            "\"exitCode\"",
            "begun",
        ] {
            ensure!(said.contains(part), "no {part:?} in:\n{said}");
        }
        Ok(())
    })
}
