//! Each part alone, as its documentation shows it.

use anyhow::{Result, ensure};

use super::Context;
use super::documents::example;
use crate::testbed::Output;

/// Runs an example of docs/parts.md as it stands, and gives what it printed.
fn run_example(context: &Context, name: &str, limit: u64) -> Result<String> {
    let script = example("docs/parts.md", name)?;
    context
        .testbed
        .on("root", "node1", format!("set -eux; cd /hpk\n{script}"))
        .limit(limit)
        .success()
}

pub fn the_cnitool_example_of_the_docs_works(context: &mut Context) -> Result<()> {
    let output = run_example(context, "cnitool", 60)?;
    ensure!(
        output.contains("\"ips\""),
        "cnitool add printed no result: {output}"
    );
    Ok(())
}

pub fn the_ctr_example_of_the_docs_works(context: &mut Context) -> Result<()> {
    let output = run_example(context, "ctr", 180)?;
    ensure!(
        output.contains("hello from apptainer"),
        "ctr printed {output:?}"
    );
    Ok(())
}

/// A table of promises of the shim's, with the image given as an archive.
fn shim_script(script: &str, settings: &str) -> String {
    format!(
        "set -e; work=$(mktemp -d); trap 'rm -r \"$work\"' EXIT; \
         image=docker.io/library/busybox:latest; \
         skopeo copy -q docker://docker.io/library/busybox:1.37 docker-archive:$work/image.tar:$image; \
         PATH=/hpk/bin:$PATH IMAGE=$image IMAGE_TAR=$work/image.tar {settings} bash /hpk/shim-hpk/tests/{script}"
    )
}

pub fn the_shim_keeps_its_promises_under_containerd(context: &mut Context) -> Result<()> {
    let output = context
        .testbed
        .on("root", "node2", shim_script("ctr.sh", ""))
        .limit(300)
        .output()?;
    all_are_ok(&output)
}

/// On a machine whose controllers are on v1, v2's own tree has its freezer and counts time; runc runs nothing on it.
pub fn the_shim_pauses_on_a_tree_of_cgroup_v2_alone(context: &mut Context) -> Result<()> {
    let script = shim_script(
        "ctr.sh",
        "ONLY='pause|each once|killed shim|nothing is left' ADDRESS=$work/containerd.sock",
    );
    let output = context
        .testbed
        .on(
            "root",
            "node3",
            format!(
                "unshare --mount bash -c 'umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec bash' <<'V2'\n{script}\nV2"
            ),
        )
        .limit(120)
        .output()?;
    all_are_ok(&output)
}

/// The driver is made up: there is no GPU here.
pub fn the_shim_gives_containers_the_driver_of_their_gpus(context: &mut Context) -> Result<()> {
    let output = context
        .testbed
        .on("root", "node3", shim_script("gpu.sh", ""))
        .limit(120)
        .output()?;
    all_are_ok(&output)
}

pub fn the_shim_under_a_containerd_of_a_user_without_subuids_has_root_alone(
    context: &mut Context,
) -> Result<()> {
    let output = context
        .testbed
        .on("nosub", "node3", shim_script("single.sh", ""))
        .limit(120)
        .output()?;
    all_are_ok(&output)
}

pub fn the_shim_refuses_hostile_specs_and_leaves_nothing(context: &mut Context) -> Result<()> {
    let output = context
        .testbed
        .on(
            "root",
            "node2",
            "PATH=/hpk/bin:$PATH bash /hpk/shim-hpk/tests/hostile.sh",
        )
        .limit(300)
        .output()?;
    all_are_ok(&output)
}

/// They are no case on containerd-shim-runc-v2, on which pod.sh runs them too: it copies stdout and stderr
/// apart, and their order, which one of them looks at, is kept most of the time only.
pub fn the_shim_runs_pods_as_the_kubelet_drives_it(context: &mut Context) -> Result<()> {
    let script = "bash /hpk/shim-hpk/tests/pod.sh /hpk/bin/containerd-shim-hpk-v2";
    let output = context
        .testbed
        .on("root", "node3", script)
        .limit(300)
        .output()?;
    ensure!(
        output.status == 0 && output.stdout.contains("test result: ok. "),
        "exit {}:\n{}{}",
        output.status,
        output.stdout,
        output.stderr
    );
    Ok(())
}

/// A table whose every line must begin with `ok`.
fn all_are_ok(output: &Output) -> Result<()> {
    let failed: Vec<_> = output
        .stdout
        .lines()
        .filter(|line| !line.starts_with("ok "))
        .collect();
    ensure!(
        output.status == 0 && output.stdout.contains("ok 1 "),
        "exit {}: {failed:?} {}",
        output.status,
        output.stderr
    );
    Ok(())
}

/// The swap test: the kubelet that bubbles run, as root, with containerd's runc shim and the reference plugin.
pub fn the_same_kubelet_runs_pods_on_runc_and_the_bridge_plugin(
    context: &mut Context,
) -> Result<()> {
    let output = context
        .testbed
        .on(
            "root",
            "node3",
            "set -e; work=$(mktemp -d); trap 'rm -r \"$work\"' EXIT; \
             skopeo copy -q docker://docker.io/library/busybox:1.37 oci:$work/busybox; \
             TEST_IMAGES=$work bash /hpk/kubelet/tests/swap.sh test",
        )
        .limit(150)
        .output()?;
    let checks = output.stdout.lines();
    let passed = checks.filter(|line| line.starts_with("Passed ")).count();
    ensure!(
        output.status == 0 && passed >= 8,
        "exit {}, {passed} checks passed:\n{}{}",
        output.status,
        output.stdout,
        output.stderr
    );
    Ok(())
}

pub fn hpktainer_runs_an_image_on_the_pod_network(context: &mut Context) -> Result<()> {
    context.cluster()?;
    let run = |arguments: &str| {
        context
            .testbed
            .on(
                "hpc",
                "node1",
                format!("apptainer exec instance://bubble1 hpktainer run {arguments}"),
            )
            .limit(90)
    };
    let address = run("docker://busybox:1.37 ip -4 -o addr show tap0").success()?;
    ensure!(
        address.contains("10.244."),
        "tap0 has no address of the pod network: {address:?}"
    );
    let page = run("docker://busybox:1.37 wget -qO- http://outside.hpk.test/").success()?;
    ensure!(!page.is_empty(), "outside.hpk.test gave nothing");
    let output = run("docker://busybox:1.37 sh -c 'exit 23'").output()?;
    ensure!(
        output.status == 23,
        "exit {} instead of 23: {}",
        output.status,
        output.stderr
    );
    let left = context
        .testbed
        .on("hpc", "node1", "apptainer exec instance://bubble1 sh -c 'hpktainer ps -q; ls /run/netns | grep -c hpktainer || true'")
        .success()?;
    ensure!(left.trim() == "0", "left behind: {left:?}");
    Ok(())
}

/// Each form of an image, made by the program that it is the form of, says who made it. On a bare host, without a network
/// of its own; `oras` is what Apptainer itself pushes and pulls.
const FORMS: &str = r#"
set -eu
work=$(mktemp -d "$HOME/forms.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
export PATH=/hpk/bin:$PATH APPTAINER_CACHEDIR=$work/cache
image=docker.io/library/busybox:1.37
{
    skopeo copy -q "docker://$image" "docker-archive:a.tar:$image"
    skopeo copy -q "docker://$image" oci-archive:b.tar
    skopeo copy -q "docker://$image" oci:layout
    for tag in old new; do skopeo copy -q "docker://$image" "oci:several:$tag"; done
    mkdir root && printf 'FROM docker-archive:a.tar
ENV FROM_IMAGE=yes
' >/dev/null
    printf 'Bootstrap: docker-archive
From: a.tar
%%environment
    export WHO=sif
%%runscript
    echo "runscript $WHO $*"
' >def
    apptainer build c.sif def
    apptainer build --sandbox folder c.sif
    apptainer push c.sif oras://registry.hpk.test:5000/test/forms:1
} >log 2>&1 || { cat log; exit 1; }
run() { hpktainer run --quiet --rm --net none "$@"; }
for form in docker-archive:a.tar oci-archive:b.tar oci:layout; do
    echo "$form: $(run "$form" echo hello)"
done
for form in docker-archive:a.tar:busybox:1.37 docker-archive:a.tar:1.37 oci:several:new oci:several:@0; do
    echo "$form: $(run "$form" echo hello)"
done
run oci:several true 2>&1 || echo "several: $?"
run oci:several:nosuch true 2>&1 || echo "no such tag: $?"
echo "sif: $(run ./c.sif a b)"
echo "command: $(run --entrypoint /bin/echo c.sif direct)"
echo "folder: $(run ./folder)"
run --entrypoint /bin/touch ./folder /mark && [ ! -e folder/mark ] && echo "folder: unwritten"
echo "oras: $(run oras://registry.hpk.test:5000/test/forms:1 c)"
run ./log 2>&1 || echo "refused: $?"
echo '{"default": [{"type": "insecureAcceptAnything"}], "transports": {"sif": {"": [{"type": "reject"}]}}}' >policy.json
HPK_POLICY=$work/policy.json run ./c.sif 2>&1 || echo "by policy: $?"
ls "${TMPDIR:-/tmp}"/hpktainer-*/containers 2>/dev/null | grep -v '^turn$' || true
"#;

pub fn hpktainer_takes_images_in_every_form(context: &mut Context) -> Result<()> {
    let said = context
        .testbed
        .on("hpc", "node2", FORMS)
        .limit(180)
        .success()?;
    for line in [
        "docker-archive:a.tar: hello",
        "oci-archive:b.tar: hello",
        "oci:layout: hello",
        "docker-archive:a.tar:busybox:1.37: hello",
        "docker-archive:a.tar:1.37: hello",
        "oci:several:new: hello",
        "oci:several:@0: hello",
        "several: 125",
        "no such tag: 125",
        "sif: runscript sif a b",
        "command: direct",
        "folder: runscript sif ",
        "folder: unwritten",
        "oras: runscript sif c",
        "refused: 125",
        "by policy: 125",
    ] {
        ensure!(
            said.lines().any(|one| one.trim_end() == line.trim_end()),
            "no line {line:?} in:\n{said}"
        );
    }
    ensure!(
        said.contains("behind it, after a colon: old, new")
            && said.contains("no image \"nosuch\"; it has: old, new"),
        "the tags that there are aren't told:\n{said}"
    );
    ensure!(
        said.contains("is no SIF image") && said.contains("policy.json rejects it"),
        "not refused in words:\n{said}"
    );
    Ok(())
}

pub fn the_doctor_finds_nothing_essential_missing(context: &mut Context) -> Result<()> {
    let table = context
        .testbed
        .on("hpc", "node1", "/hpk/bin/hpk-bubble doctor")
        .success()?;
    for word in [
        "user namespaces",
        "subuid",
        "apptainer",
        "/dev/fuse",
        "/dev/net/tun",
        "nftables           takes",
    ] {
        ensure!(
            table.contains(word),
            "the doctor says nothing of {word}:\n{table}"
        );
    }
    let without = context
        .testbed
        .on("nosub", "node1", "/hpk/bin/hpk-bubble doctor")
        .output()?;
    ensure!(
        without.status == 0 && without.stdout.contains("single-id mode"),
        "for a user without subuids the doctor says: {without:?}"
    );
    Ok(())
}
