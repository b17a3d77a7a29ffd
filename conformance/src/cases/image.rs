//! Where the bubbles' image comes from: a developer's tars, a registry by digest; and what is said where it can't be had.
//! Images are those of `make images-local`, for this machine's architecture.

use anyhow::{Context as _, Result, ensure};

use super::{Context, SIZE};
use crate::cluster::{self, CHECKOUT, Cluster, DEPLOYED, Script, home, tarball};
use crate::testbed::Testbed;

/// The image, as make has built it.
const BUILT: &str = "/hpk/bin/images/hpk-bubble.tar";

/// The file that the bubble on a host of the job that said `log` was started from.
fn started_from(testbed: &Testbed, host: &str, log: &str) -> Result<String> {
    let start = format!("hpk: {host}: ");
    let says = |line: &str| Some(line.strip_prefix(&start)?.strip_suffix(" runs")?.to_owned());
    let bubble = log.lines().find_map(says);
    let bubble = bubble.with_context(|| format!("no bubble runs on {host}:\n{log}"))?;
    let list = testbed
        .on("hpc", host, "apptainer --quiet instance list --json")
        .success()?;
    let list: serde_json::Value = serde_json::from_str(&list).context("Apptainer's list")?;
    let instances = list["instances"].as_array().cloned().unwrap_or_default();
    let found = instances
        .iter()
        .find(|instance| instance["instance"] == bubble)
        .and_then(|instance| instance["img"].as_str());
    Ok(found
        .with_context(|| format!("no {bubble} on {host}: {instances:?}"))?
        .to_owned())
}

fn store_has(testbed: &Testbed, image: &str) -> Result<bool> {
    let seen = testbed
        .on("hpc", "login", format!("test -f {image}"))
        .output()?;
    Ok(seen.status == 0)
}

/// An image in docker's form, older than what is copied there later, newer than the SIF beside the programs; and a SIF
/// that is older still.
fn older_tar(testbed: &Testbed) -> Result<()> {
    let script = format!(
        "set -eu; mkdir -p ~/.hpk/images; cd ~/.hpk/images; rm -f hpk-bubble.sif *.tar; \
         work=$(mktemp -d); trap 'rm -rf $work' EXIT; \
         skopeo copy -q oci-archive:{BUILT} oci:$work/layout:x; \
         umoci config --image $work/layout:x --config.label case=older; \
         skopeo copy -q oci:$work/layout:x docker-archive:older.tar:quay.io/me/hpk-bubble:older; \
         echo no image >hpk-bubble.sif; touch -d '2 hours ago' hpk-bubble.sif"
    );
    home(testbed, &script).map(drop)
}

pub fn of_a_developers_tars_the_newest_is_the_image_and_what_older_ones_left_goes(
    context: &mut Context,
) -> Result<()> {
    let testbed = &context.testbed;
    let mut running = Vec::new();
    let seen = newest_wins(testbed, &mut running);
    for cluster in &running {
        cluster.end()?;
    }
    home(testbed, "rm -f ~/.hpk/images/*.tar ~/.hpk/images/*.sif")?;
    seen
}

fn newest_wins(testbed: &Testbed, running: &mut Vec<Cluster>) -> Result<()> {
    let options = format!("{SIZE} --export=ALL,HPK_DEV=1 --nodelist=");
    let start = |running: &mut Vec<Cluster>, host: &str, tar: &str| -> Result<(Cluster, String)> {
        let cluster = Cluster::start(testbed, 1, &format!("{options}{host}"))?;
        running.push(cluster.clone());
        let log = cluster::log(testbed, "hpc", &cluster.job)?;
        let image = started_from(testbed, host, &log)?;
        ensure!(
            log.contains(&format!("/home/hpc/.hpk/images/{tar} (HPK_DEV=1)")),
            "the job did not start from {tar}:\n{log}"
        );
        ensure!(
            image.starts_with("/home/hpc/.hpk/store/sha256-"),
            "{host}'s bubble runs from {image}"
        );
        Ok((cluster, image))
    };
    older_tar(testbed)?;
    let (first, older) = start(running, "node1", "older.tar")?;
    let sif = "/home/hpc/.hpk/images/hpk-bubble.sif";
    ensure!(!store_has(testbed, sif)?, "the older SIF is still there");

    home(testbed, &format!("cp {BUILT} ~/.hpk/images/"))?;
    let (_, newer) = start(running, "node2", "hpk-bubble.tar")?;
    ensure!(older != newer, "both tars gave {newer}");
    ensure!(
        store_has(testbed, &older)?,
        "the image of a running cluster was removed"
    );
    first
        .kubectl("run hello --image=busybox:1.37 --restart=Never -- echo hello")
        .success()?;
    first.wait(
        "default",
        "--for=jsonpath='{.status.phase}'=Succeeded pod/hello",
        60,
    )?;
    first.end()?;
    running.remove(0);

    let (_, again) = start(running, "node1", "hpk-bubble.tar")?;
    ensure!(again == newer, "{again} instead of {newer}");
    ensure!(
        !store_has(testbed, &older)?,
        "the older tar's image is still in the store"
    );
    Ok(())
}

/// Submits a job that must not start; its last line.
fn refused(testbed: &Testbed, script: Script, options: &str) -> Result<String> {
    let Script { folder, file } = script;
    let submit = format!(
        "cd {folder} && sbatch --parsable --output=$HOME/hpk-%j.log {SIZE} --nodes=1 {options} {file}"
    );
    let job = home(testbed, &submit)?;
    cluster::await_end(testbed, job.trim())?;
    let log = cluster::log(testbed, "hpc", job.trim())?;
    Ok(log.lines().last().unwrap_or_default().to_owned())
}

fn says(last: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(
            last.contains(word),
            "{word:?} is not in the job's last line: {last}"
        );
    }
    Ok(())
}

pub fn an_image_that_cannot_be_had_is_named_with_what_to_do(context: &mut Context) -> Result<()> {
    let testbed = &context.testbed;
    home(
        testbed,
        &format!(
            "cd && rm -rf hpk && tar -xzf {} --exclude=hpk-bubble.sif",
            tarball("")
        ),
    )?;
    let seen = (|| {
        let nowhere = refused(testbed, DEPLOYED, "")?;
        says(
            &nowhere,
            &[
                "HPK_IMAGE is not set",
                "/home/hpc/hpk/bin/hpk-bubble.sif",
                "/home/hpc/.hpk/images/hpk-bubble.sif",
                "HPK_DEV=1",
                "/home/hpc/hpk/bin/hpk-bubble.ref",
                "make dist",
            ],
        )?;
        let absent = refused(testbed, CHECKOUT, "--export=ALL,HPK_IMAGE=/no/such.sif")?;
        says(&absent, &["HPK_IMAGE=/no/such.sif does not exist"])?;
        let doctor = testbed
            .on("hpc", "node1", "~/hpk/bin/hpk-bubble doctor")
            .output()?;
        says(
            &doctor.stdout.replace('\n', " "),
            &["MISSING  bubble image"],
        )?;
        ensure!(
            doctor.status == 1,
            "the doctor ended with {}",
            doctor.status
        );
        Ok(())
    })();
    home(testbed, "rm -rf ~/hpk")?;
    seen
}

/// What a release pins is in the testbed's registry, where an ordinary user has put it. In place of an image there is the
/// empty file of the tarball of `make dist-online`.
pub fn a_release_without_an_image_fetches_the_one_it_pins_once(
    context: &mut Context,
) -> Result<()> {
    let testbed = &context.testbed;
    home(
        testbed,
        &format!(
            "cd && rm -rf hpk && tar -xzf {} --exclude=hpk-bubble.sif && \
             : >hpk/bin/hpk-bubble.sif && /hpk/scripts/pin registry.hpk.test:5000/site >hpk/bin/hpk-bubble.ref && \
             skopeo copy -q --all --preserve-digests oci-archive:{BUILT} docker://registry.hpk.test:5000/site/hpk-bubble:case",
            tarball("")
        ),
    )?;
    let seen = pinned(testbed);
    home(testbed, "rm -rf ~/hpk ~/.hpk/policy.json")?;
    seen
}

fn pinned(testbed: &Testbed) -> Result<()> {
    const STORED: &str = "ls ~/.hpk/store/*.sqfs 2>/dev/null | wc -l";
    // Whatever earlier cases have left of it: what is in the store has been judged.
    home(testbed, "/hpk/bin/hpktainer images prune")?;
    let reference = home(testbed, "cat ~/hpk/bin/hpk-bubble.ref")?;
    let reference = reference.trim();

    let wrong = format!(
        "registry.hpk.test:5000/site/hpk-bubble@sha256:{}",
        "0".repeat(64)
    );
    let options = format!("--export=ALL,HPK_IMAGE=docker://{wrong}");
    let last = refused(testbed, CHECKOUT, &options)?;
    says(&last, &[&wrong, "hpk-bubble.sif"])?;
    let policy = r#"{"default": [{"type": "reject"}]}"#;
    testbed
        .on("hpc", "login", "cat >~/.hpk/policy.json")
        .input(policy)
        .success()?;
    let last = refused(testbed, DEPLOYED, "");
    home(testbed, "rm ~/.hpk/policy.json")?;
    says(&last?, &[reference, "policy.json rejects it"])?;

    let before = home(testbed, STORED)?;
    let two = Cluster::start_from(testbed, DEPLOYED, 2, SIZE)?;
    let log = cluster::log(testbed, "hpc", &two.job)?;
    let images = (|| {
        Ok::<_, anyhow::Error>((
            started_from(testbed, "node1", &log)?,
            started_from(testbed, "node2", &log)?,
        ))
    })();
    two.end()?;
    let after = home(testbed, STORED)?;
    let (one, other) = images?;
    ensure!(
        one == other && one.starts_with("/home/hpc/.hpk/store/sha256-"),
        "the bubbles run from {one} and {other}"
    );
    says(
        &log.replace('\n', " "),
        &[reference, "fetched 100 %", "packed 100 %", "stored, "],
    )?;
    ensure!(
        log.matches("hpk: fetching").count() == 1,
        "it was not fetched once:\n{log}"
    );
    ensure!(
        before != after,
        "the store had {before} and has {after} images"
    );

    // With the registry gone it is still there.
    testbed.cut("registry")?;
    let again = Cluster::start_from(testbed, DEPLOYED, 1, SIZE);
    testbed.heal("registry")?;
    let again = again?;
    let log = cluster::log(testbed, "hpc", &again.job)?;
    again.end()?;
    ensure!(
        log.contains("it is in the image store already") && !log.contains("fetching"),
        "the second job said:\n{log}"
    );
    Ok(())
}
