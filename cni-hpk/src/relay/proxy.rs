//! The plugin, run by the resident daemon for a caller outside the bubble: the
//! address, the record and the bridge's end are the bubble's own plugin's work.

use std::path::{Path, PathBuf};

use hpk_cni_types::{ErrorObject, NetworkList};
use serde_json::{Value, json};

use super::config::ServeConfig;
use super::error::Error;
use super::wire::{Answer, Attachment, PluginCommand, PluginRequest};
use crate::plugin::{self, delegate};

const PLUGIN: &str = "cni-hpk";
/// Stands for the pod's network namespace.
const POD: &str = "/proc/self/ns/net";

/// Runs the plugin as asked.
pub fn run(config: &ServeConfig, request: &PluginRequest) -> Result<Answer, Error> {
    let conf = conf_for(&network_conf(&config.conf_dir)?, request);
    let network = conf["name"].as_str().unwrap_or_default().to_owned();
    let answer = exec(config, request, &conf)?;
    Ok(match answer {
        Ok(None) => Answer::Done,
        Ok(Some(result)) => Answer::Added {
            attachment: Attachment {
                network,
                container_id: request.container_id.clone(),
                ifname: request.ifname.clone(),
            },
            result,
        },
        Err(object) => Answer::Failed(object),
    })
}

/// DEL of an attachment whose caller is gone.
pub fn release(config: &ServeConfig, attachment: &Attachment, caller: &str) -> Result<(), Error> {
    let request = PluginRequest {
        command: PluginCommand::Del,
        cni_version: "1.1.0".to_owned(),
        caller: caller.to_owned(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        prev_result: None,
        valid: Vec::new(),
    };
    match run(config, &request)? {
        Answer::Failed(object) => Err(Error::Refused(object)),
        _ => Ok(()),
    }
}

/// The bubble's network: what the first conflist with our plugin says of it.
fn network_conf(folder: &Path) -> Result<Value, Error> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File {
            operation: "read",
            path,
            source,
        }
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail(folder))? {
        let path = entry.map_err(fail(folder))?.path();
        if path.extension().is_some_and(|kind| kind == "conflist") {
            files.push(path);
        }
    }
    files.sort();
    for path in files {
        let text = std::fs::read(&path).map_err(fail(&path))?;
        let list = NetworkList::parse(&text)
            .map_err(|error| Error::from(plugin::error::Error::from(error)))?;
        let ours = |plugin: &&serde_json::Map<String, Value>| {
            plugin.get("type").and_then(Value::as_str) == Some(PLUGIN)
        };
        if let Some(plugin) = list.plugins.iter().find(ours) {
            let mut conf = Value::Object(plugin.clone());
            conf["name"] = list.name.into();
            return Ok(conf);
        }
    }
    Err(Error::NoNetwork(folder.to_owned()))
}

/// The network's conf for this run: the pod's side is the caller's.
fn conf_for(network: &Value, request: &PluginRequest) -> Value {
    let mut conf = network.clone();
    conf["cniVersion"] = request.cni_version.clone().into();
    conf["datapath"] = "tap".into();
    conf["podSideOf"] = request.caller.clone().into();
    if let Some(previous) = &request.prev_result {
        conf["prevResult"] = previous.clone();
        // What is in the pod is where this run is told that the pod is.
        let interfaces = conf["prevResult"]["interfaces"].as_array_mut();
        for interface in interfaces.into_iter().flatten() {
            if interface["sandbox"].is_string() {
                interface["sandbox"] = POD.into();
            }
        }
    }
    if request.command == PluginCommand::Gc {
        conf["cni.dev/valid-attachments"] = json!(request.valid);
    }
    conf
}

/// One run by the exec protocol.
fn exec(
    config: &ServeConfig,
    request: &PluginRequest,
    conf: &Value,
) -> Result<Result<Option<Value>, ErrorObject>, Error> {
    let folders = &config.cni_path;
    let path = std::env::join_paths(folders).map_err(|error| Error::Run {
        program: PLUGIN.into(),
        source: std::io::Error::other(error),
    })?;
    let environment = vec![
        ("CNI_CONTAINERID", request.container_id.as_str().into()),
        ("CNI_IFNAME", request.ifname.as_str().into()),
        // The protocol wants one; the pod's is not to be seen from here, and that it is ours
        // is to bother nobody.
        ("CNI_NETNS", POD.into()),
        ("CNI_NETNS_OVERRIDE", "TRUE".into()),
        ("CNI_PATH", path),
        ("CNI_ARGS", "".into()),
    ];
    match delegate::run_with(PLUGIN, folders, request.command.into(), conf, environment) {
        Ok(answer) => Ok(Ok(answer)),
        Err(plugin::error::Error::Delegate { source, .. }) => Ok(Err(source)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bubbles_conf_is_kept_but_for_whose_the_pods_side_is() {
        let network = json!({
            "name": "hpk", "type": "cni-hpk", "subnet": "10.1.0.0/24", "datapath": "veth",
        });
        let request = PluginRequest {
            command: PluginCommand::Gc,
            cni_version: "1.1.0".to_owned(),
            caller: "host".to_owned(),
            container_id: String::new(),
            ifname: String::new(),
            prev_result: None,
            valid: Vec::new(),
        };
        let conf = conf_for(&network, &request);
        assert_eq!(
            conf,
            json!({
                "name": "hpk", "type": "cni-hpk", "subnet": "10.1.0.0/24", "datapath": "tap",
                "cniVersion": "1.1.0", "podSideOf": "host", "cni.dev/valid-attachments": [],
            })
        );
    }
}
