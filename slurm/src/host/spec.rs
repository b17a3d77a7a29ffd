//! What the host's part tells the bubble, from the cluster, the allocation and the environment.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use hpk_images::limits;

use super::{Bubble, overlay, stage};
use crate::address;
use crate::allocation::{Grant, variables};
use crate::bubble::spec::{BubbleSpec, OverlayMode};
use crate::cluster::Cluster;
use crate::gpus::{self, Device};
use crate::settings::{self, ETCD_PORT};

impl Bubble<'_> {
    /// What the bubble is told.
    pub fn spec(&self) -> Result<BubbleSpec> {
        let home = settings::hpk_home()?;
        let controller_name = &self.cluster.controller()?.name;
        let (host_ip, etcd) = if self.controller {
            (
                self.cluster.controller_address,
                format!("https://127.0.0.1:{ETCD_PORT}"),
            )
        } else {
            let towards = self.cluster.controller_address.to_string();
            (
                address::own_address(Some(&towards))?,
                self.cluster.etcd_url(),
            )
        };
        Ok(BubbleSpec {
            cluster: self.cluster.id.clone(),
            node: self.node.name.clone(),
            controller: self.controller,
            nodes: self
                .cluster
                .nodes
                .iter()
                .map(|node| node.name.clone())
                .collect(),
            host_ip,
            subnet: self.node.subnet,
            network: self.cluster.network.clone(),
            etcd,
            vni: self.cluster.vni,
            overlay: self.overlay_mode()?,
            link_mtu: stage::link_mtu(host_ip),
            grant: Grant::here(&variables())?,
            devices: self.devices()?,
            labels: labels(self.controller, &self.cluster.id, controller_name),
            store: std::env::var_os("HPK_STORE").map_or_else(|| home.join("store"), PathBuf::from),
            volumes: home.join("volumes").join(&self.cluster.id),
            registries: home.join("registries.yaml"),
            policy: home.join("policy.json"),
            logins: hpk_images::logins::files(),
            logs: self.folder.logs(&self.node.name),
            proxies: proxies(self.cluster),
            image_max_gib: gib(limits::SETTING)?,
            store_max_gib: gib(limits::STORE_SETTING)?,
            step_seconds: settings::step_limit()?.as_secs(),
            squash_ids: squash_ids()?,
            kubelet_options: kubelet_options(&std::env::var(KUBELET_OPTIONS).unwrap_or_default())?,
        })
    }

    /// The GPUs for pods.
    fn devices(&self) -> Result<Vec<Device>> {
        let node = &self.node.name;
        let offer = gpus::offer(&variables()).with_context(|| node.clone())?;
        if let Some(why) = offer.withheld {
            println!("hpk: {node}: no GPUs for pods: {why} (docs/administrators.md)");
        }
        if !offer.devices.is_empty() {
            let all: Vec<String> = offer.devices.iter().map(Device::argument).collect();
            println!("hpk: {node}: GPUs for pods: {}", all.join(" "));
        }
        Ok(offer.devices)
    }

    fn overlay_mode(&self) -> Result<OverlayMode> {
        let (mode, reason) = overlay::mode()?;
        if let Some(reason) = reason {
            println!(
                "hpk: {}: the overlay runs in mode kernel, which is slower: {reason}",
                self.node.name
            );
        }
        Ok(mode)
    }
}

fn labels(controller: bool, id: &str, controller_name: &str) -> Vec<(String, String)> {
    let mut labels = vec![
        ("hpk.io/cluster".to_owned(), id.to_owned()),
        (
            "hpk.io/controller-host".to_owned(),
            controller_name.to_owned(),
        ),
    ];
    if controller {
        labels.push(("hpk.io/controller".to_owned(), "true".to_owned()));
    }
    labels
}

/// Options for each kubelet, separated by spaces.
const KUBELET_OPTIONS: &str = "HPK_KUBELET_OPTIONS";

/// Only their form can be checked here; the kubelet names what it doesn't know.
fn kubelet_options(text: &str) -> Result<Vec<String>> {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    match words
        .iter()
        .find(|word| !word.starts_with("--") || !word.contains('='))
    {
        Some(word) => bail!("{KUBELET_OPTIONS}: {word} is not --OPTION=VALUE"),
        None => Ok(words),
    }
}

/// A setting in GiB. Checked here: the kubelet would end for a wrong one again and again.
fn gib(setting: &'static str) -> Result<Option<u64>> {
    match std::env::var(setting) {
        Ok(text) if !text.is_empty() => Ok(Some(limits::gib(setting, &text)? >> 30)),
        _ => Ok(None),
    }
}

/// HPK_SQUASH_IDS.
fn squash_ids() -> Result<bool> {
    match std::env::var("HPK_SQUASH_IDS").as_deref() {
        Err(_) | Ok("" | "0") => Ok(false),
        Ok("1") => Ok(true),
        Ok(other) => bail!("HPK_SQUASH_IDS={other} is neither 1 nor 0"),
    }
}

/// The host's proxy settings; the cluster's own addresses never go through a proxy.
fn proxies(cluster: &Cluster) -> Vec<(String, String)> {
    let mut list = Vec::new();
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        if let Ok(value) = std::env::var(name) {
            list.push((name.to_owned(), value));
        }
    }
    let own = std::env::var("no_proxy").or_else(|_| std::env::var("NO_PROXY"));
    let network = &cluster.network;
    let mut direct = format!(
        "localhost,127.0.0.1,{},{},{},.{}",
        cluster.controller_address, network.pods, network.services, network.domain
    );
    if let Ok(own) = own {
        direct = format!("{own},{direct}");
    }
    if !list.is_empty() {
        list.push(("no_proxy".into(), direct.clone()));
        list.push(("NO_PROXY".into(), direct));
    }
    list
}
