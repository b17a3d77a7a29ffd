//! A Slurm job that is a Kubernetes cluster, and kubectl on it from host `login`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::bench::on_host::Times;
use crate::testbed::{Exec, Testbed};
use crate::wait;

/// How long a cluster may take to be ready, in seconds.
const READY: u64 = 120;
/// How long the end of a job may take until nothing of it is left, in seconds.
pub const GONE: u64 = 30;

/// A submitted job.
#[derive(Debug, Clone)]
pub struct Cluster {
    testbed: Testbed,
    user: &'static str,
    pub job: String,
    pub nodes: usize,
    /// From sbatch to the job's "Ready" line, in seconds.
    pub ready_after: f64,
}

/// Seconds that all of some pods may take.
const PODS: u64 = 300;

/// Pods that do nothing, bound to a node: no scheduler takes part.
#[derive(Debug, Clone, Copy)]
pub struct PodsOf<'a> {
    pub namespace: &'a str,
    pub node: &'a str,
    pub count: usize,
}

/// The job script, and the folder that it is submitted in.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    pub folder: &'static str,
    pub file: &'static str,
}

/// The one of the checkout.
pub const CHECKOUT: Script = Script {
    folder: "~",
    file: "/hpk/slurm/hpk.slurm",
};

/// What `make dist` and `make develop` make, where a user has it.
pub const DEPLOYED: Script = Script {
    folder: "~/hpk",
    file: "hpk.slurm",
};

/// The tarball that `make dist` makes of this version, as a host's shell finds it; `form` is "" or "-airgapped".
pub fn tarball(form: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("/hpk/dist/hpk-{version}-linux-*64{form}.tar.gz")
}

/// Runs a script as the user, where that logs in.
pub fn home(testbed: &Testbed, script: &str) -> Result<String> {
    testbed.on("hpc", "login", script).limit(240).success()
}

/// Submits the job script as `user`; `options` go to sbatch.
fn submit(testbed: &Testbed, user: &str, script: Script, options: &str) -> Result<String> {
    let Script { folder, file } = script;
    let job = testbed
        .on(
            user,
            "login",
            format!("cd {folder} && sbatch --parsable --output=$HOME/hpk-%j.log {options} {file}"),
        )
        .success()?;
    Ok(job.trim().to_owned())
}

/// What the job wrote so far.
pub fn log(testbed: &Testbed, user: &str, job: &str) -> Result<String> {
    testbed
        .on(
            user,
            "login",
            format!("cat ~/hpk-{job}.log 2>/dev/null || true"),
        )
        .success()
}

/// Slurm's state of the job, as squeue words it; empty when Slurm has forgotten it.
pub fn state(testbed: &Testbed, job: &str) -> Result<String> {
    let state = testbed
        .on(
            "hpc",
            "login",
            format!("squeue -h -j {job} -t all -o %T 2>/dev/null || true"),
        )
        .success()?;
    Ok(state.trim().to_owned())
}

/// Waits until Slurm has the job off the hosts.
pub fn await_end(testbed: &Testbed, job: &str) -> Result<()> {
    let limit = Duration::from_secs(2 * GONE);
    wait::until(&format!("job {job} to end"), limit, || {
        let state = state(testbed, job)?;
        let runs = matches!(
            state.as_str(),
            "PENDING" | "CONFIGURING" | "RUNNING" | "COMPLETING"
        );
        Ok(if runs { Err(state) } else { Ok(()) })
    })
}

/// sbatch's option for a job in the cgroup that the testbed gives to hpc; None on a machine without
/// cgroup v1.
pub fn in_cgroup(testbed: &Testbed) -> Result<Option<&'static str>> {
    let given = testbed
        .on("root", "node1", "test -d /sys/fs/cgroup/memory/hpc")
        .output()?;
    Ok((given.status == 0).then_some("--export=ALL,HPK_CGROUP=hpc"))
}

impl Cluster {
    /// Submits a job of `nodes` nodes and waits until it says that it is ready.
    pub fn start(testbed: &Testbed, nodes: usize, options: &str) -> Result<Self> {
        Self::start_from(testbed, CHECKOUT, nodes, options)
    }

    /// The same with another job script.
    pub fn start_from(
        testbed: &Testbed,
        script: Script,
        nodes: usize,
        options: &str,
    ) -> Result<Self> {
        Self::start_of(testbed, "hpc", script, nodes, options)
    }

    /// The same as another user than hpc.
    pub fn start_as(
        testbed: &Testbed,
        user: &'static str,
        nodes: usize,
        options: &str,
    ) -> Result<Self> {
        Self::start_of(testbed, user, CHECKOUT, nodes, options)
    }

    fn start_of(
        testbed: &Testbed,
        user: &'static str,
        script: Script,
        nodes: usize,
        options: &str,
    ) -> Result<Self> {
        let start = Instant::now();
        let options = format!("--nodes={nodes} {options}");
        let job = submit(testbed, user, script, &options)?;
        let ready = wait::until(
            &format!("job {job} to be ready"),
            Duration::from_secs(READY),
            || {
                let log = log(testbed, user, &job)?;
                if log.contains("Ready in ") {
                    return Ok(Ok(()));
                }
                let state = state(testbed, &job)?;
                if !matches!(state.as_str(), "PENDING" | "CONFIGURING" | "RUNNING") {
                    bail!("job {job} is {state:?} instead of ready; it said:\n{log}");
                }
                Ok(Err(log))
            },
        );
        let cluster = Self {
            testbed: testbed.clone(),
            user,
            job,
            nodes,
            ready_after: start.elapsed().as_secs_f64(),
        };
        if let Err(error) = ready {
            cluster.cancel()?;
            return Err(error);
        }
        Ok(cluster)
    }

    /// The newest job of hpc that runs, for tools that measure a cluster already there.
    pub fn running(testbed: &Testbed) -> Result<Self> {
        let job = testbed
            .on(
                "hpc",
                "login",
                "squeue -h -u hpc -n hpk -t R -o %i | sort -n | tail -n 1",
            )
            .success()?;
        let job = job.trim().to_owned();
        if job.is_empty() {
            bail!("user hpc has no running job named hpk: submit slurm/hpk.slurm first");
        }
        Ok(Self {
            testbed: testbed.clone(),
            user: "hpc",
            job,
            nodes: 0,
            ready_after: 0.0,
        })
    }

    /// The cluster's node-local folder on `host`, as the start wrote it down (docs/files.md).
    pub fn local_folder(&self, host: &'static str) -> Result<String> {
        let record = format!("cat ~/.hpk/clusters/{}/local/{host}", self.job);
        Ok(self
            .testbed
            .on(self.user, host, record)
            .success()?
            .trim()
            .to_owned())
    }

    pub fn cancel(&self) -> Result<()> {
        self.testbed
            .on(self.user, "login", format!("scancel {}", self.job))
            .success()
            .map(drop)
    }

    /// Cancels the job and waits until Slurm has it off the hosts.
    pub fn end(&self) -> Result<()> {
        self.cancel()?;
        await_end(&self.testbed, &self.job)
    }

    /// `kubectl ARGUMENTS` on this cluster's context.
    pub fn kubectl(&self, arguments: &str) -> Exec<'_> {
        self.testbed
            .on(self.user, "login", self.kubectl_line(arguments))
    }

    /// kubectl as a user calls it: whatever context `~/.hpk/kubeconfig` has as current.
    pub fn kubectl_of_the_user(&self, arguments: &str) -> Exec<'_> {
        self.testbed.on(
            self.user,
            "login",
            format!("KUBECONFIG=~/.hpk/kubeconfig kubectl {arguments}"),
        )
    }

    /// The same as a shell command line.
    pub fn kubectl_line(&self, arguments: &str) -> String {
        format!(
            "KUBECONFIG=~/.hpk/kubeconfig kubectl --context=hpk-{} {arguments}",
            self.job
        )
    }

    pub fn json(&self, arguments: &str) -> Result<Value> {
        let text = self.kubectl(&format!("{arguments} -o json")).success()?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {arguments} gave no JSON"))
    }

    pub fn apply(&self, namespace: &str, manifest: &str) -> Result<()> {
        self.kubectl(&format!("-n {namespace} apply -f -"))
            .input(manifest)
            .success()
            .map(drop)
    }

    /// A namespace for one case, its service account there, so that pods are admitted.
    pub fn namespace(&self, name: &str) -> Result<String> {
        self.kubectl(&format!("create namespace {name}"))
            .success()?;
        wait::until(
            &format!("the service account of {name}"),
            Duration::from_secs(20),
            || {
                let output = self
                    .kubectl(&format!("-n {name} get serviceaccount default"))
                    .output()?;
                Ok(if output.status == 0 {
                    Ok(())
                } else {
                    Err(output.stderr)
                })
            },
        )?;
        Ok(name.to_owned())
    }

    /// Lets the namespace go without waiting for its pods to end.
    pub fn remove_namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&format!(
            "delete namespace {name} --wait=false --ignore-not-found"
        ))
        .success()
        .map(drop)
    }

    /// `kubectl wait` with the pods' states in its error.
    pub fn wait(&self, namespace: &str, what: &str, seconds: u64) -> Result<()> {
        let output = self
            .kubectl(&format!("-n {namespace} wait --timeout={seconds}s {what}"))
            .limit(seconds + 10)
            .output()?;
        if output.status == 0 {
            return Ok(());
        }
        let seen = self
            .kubectl(&format!(
                "-n {namespace} get pods,events -o wide --sort-by=.metadata.creationTimestamp | tail -n 30"
            ))
            .output()?;
        bail!(
            "waiting for {what}: {}{}\n{}",
            output.stdout,
            output.stderr,
            seen.stdout
        )
    }

    /// Waits until all pods of a Deployment or DaemonSet are those of its newest template, and ready.
    pub fn roll_out(&self, namespace: &str, what: &str, seconds: u64) -> Result<()> {
        self.kubectl(&format!(
            "-n {namespace} rollout status {what} --timeout={seconds}s"
        ))
        .limit(seconds + 10)
        .success()
        .map(drop)
    }

    /// Runs a program in a pod's container and gives its output.
    pub fn exec(&self, namespace: &str, pod: &str, command: &str) -> Exec<'_> {
        self.kubectl(&format!("-n {namespace} exec {pod} -- {command}"))
    }

    /// Starts the pods at once, and returns when all are running.
    pub fn start_pods(&self, pods: &PodsOf) -> Result<Times> {
        self.pods("start", pods)
    }

    /// Deletes them, and returns when the API server has none left.
    pub fn remove_pods(&self, pods: &PodsOf) -> Result<Times> {
        self.pods("remove", pods)
    }

    /// On `login`, so that no way there is timed with them.
    fn pods(&self, action: &str, pods: &PodsOf) -> Result<Times> {
        let PodsOf {
            namespace,
            node,
            count,
        } = pods;
        let script = format!(
            "/hpk/bin/hpk-conformance on-host pods {action} --kubeconfig ~/.hpk/kubeconfig \\
             --context hpk-{} --namespace {namespace} --node {node} --count {count} --limit {PODS} \\
             --image docker.io/library/busybox:1.37",
            self.job
        );
        let exec = self.testbed.on("hpc", "login", script).limit(PODS + 10);
        let text = exec.success()?;
        serde_json::from_str(&text).with_context(|| format!("the host said {text:?}"))
    }

    /// A single value by JSONPath.
    pub fn value(&self, namespace: &str, object: &str, path: &str) -> Result<String> {
        self.kubectl(&format!("-n {namespace} get {object} -o jsonpath='{path}'"))
            .success()
    }
}
