//! `inspect`.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::Place;
use super::list::ready;
use super::records::{Found, Records, state};
use crate::pod::record::PodRecord;

/// A JSON list with an object for each, in crictl's form as far as it goes.
pub async fn tell(place: &Place, wanted: &[String]) -> Result<()> {
    let records = Records::read(&place.run_dir)?;
    let mut all = Vec::new();
    for wanted in wanted {
        match &records.pods(wanted)[..] {
            [pod] => all.push(of_pod(pod)),
            [] => {
                let found = records.container(wanted)?;
                all.push(of_container(&found, found.pid().await?));
            }
            several => {
                let name = |pod: &&PodRecord| format!("{}/{}", pod.namespace, pod.name);
                let names: Vec<String> = several.iter().map(name).collect();
                bail!("{wanted:?} is more than one pod: {}", names.join(", "));
            }
        }
    }
    println!("{}", serde_json::to_string_pretty(&all)?);
    Ok(())
}

fn of_pod(pod: &PodRecord) -> Value {
    let sandbox = pod.sandbox.as_ref();
    let (ip, more) = match sandbox.map(|sandbox| &sandbox.ips[..]) {
        Some([first, rest @ ..]) => (Some(first), rest),
        _ => (None, &[][..]),
    };
    json!({
        "status": {
            "id": sandbox.map(|sandbox| &sandbox.id),
            "metadata": {
                "name": pod.name,
                "namespace": pod.namespace,
                "uid": pod.uid,
                "attempt": pod.sandbox_attempt.saturating_sub(1),
            },
            "state": ready(pod),
            "createdAt": pod.start_time.to_string(),
            "network": { "ip": ip, "additionalIps": more },
        },
        "containers": pod.containers.keys().collect::<Vec<_>>(),
        "info": {
            "phase": format!("{:?}", pod.state),
            "verdict": pod.verdict,
            "pid": sandbox.map(|sandbox| sandbox.pid),
            "netns": sandbox.and_then(|sandbox| sandbox.netns.as_ref()),
            "shim": sandbox.and_then(|sandbox| sandbox.address.as_ref()),
            "bundle": sandbox.map(|sandbox| &sandbox.bundle),
        },
    })
}

fn of_container(found: &Found, pid: Option<u32>) -> Value {
    let Found { pod, name, run } = found;
    let sandbox = pod.sandbox.as_ref();
    let exit = run.exit.as_ref();
    json!({
        "status": {
            "id": run.id,
            "metadata": { "name": name, "attempt": run.attempt },
            "state": state(run),
            "startedAt": run.started_at.map(|at| at.to_string()),
            "finishedAt": exit.map(|exit| exit.at.to_string()),
            "exitCode": exit.map(|exit| exit.code),
            "reason": exit.map(|exit| &exit.reason),
            "message": exit.map(|exit| &exit.message),
            "image": { "image": run.image },
            "imageRef": run.image_id,
            "logPath": run.log,
            "resources": run.resources,
        },
        "info": {
            "pid": pid,
            "bundle": run.bundle,
            "sandboxID": sandbox.map(|sandbox| &sandbox.id),
            "pod": {
                "name": pod.name,
                "namespace": pod.namespace,
                "uid": pod.uid,
                "ips": sandbox.map(|sandbox| &sandbox.ips),
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::records::tests::pod;
    use crate::pod::record::Instance;

    #[test]
    fn a_container_is_told_as_crictl_tells_it() {
        let mut found = Found {
            pod: pod("default", "web", &[]),
            name: "app".to_owned(),
            run: Instance::for_tests("c1", None),
        };
        let told = of_container(&found, Some(7));
        assert_eq!(told["status"]["state"], "Running");
        assert_eq!(told["info"]["pid"], 7);
        assert_eq!(told["info"]["sandboxID"], "s");
        assert!(told["status"]["exitCode"].is_null());
        found.run = Instance::for_tests("c1", Some(3));
        let told = of_container(&found, None);
        assert_eq!(told["status"]["state"], "Exited");
        assert_eq!(told["status"]["exitCode"], 3);
    }

    #[test]
    fn a_pod_is_told_with_its_address() {
        let told = of_pod(&pod("default", "web", &["app"]));
        assert_eq!(told["status"]["network"]["ip"], "10.244.0.5");
        assert_eq!(told["status"]["state"], "Ready");
        assert_eq!(told["containers"][0], "app");
    }
}
