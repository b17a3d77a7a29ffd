//! The bubble's own use of etcd: flannel's network, written once, and awaited by the nodes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use super::daemons::pki;
use super::spec::BubbleSpec;
use crate::settings::FLANNEL_PREFIX;

fn key() -> String {
    format!("{FLANNEL_PREFIX}/config")
}

/// Flannel's network configuration: leases only, the overlay is ours.
fn flannel_config(spec: &BubbleSpec) -> String {
    serde_json::json!({
        "Network": spec.network.pods.to_string(),
        "SubnetLen": 24,
        "Backend": {"Type": "alloc"},
    })
    .to_string()
}

async fn connect(spec: &BubbleSpec) -> Result<Client> {
    let read = |name: &str| crate::files::read(pki(name).as_ref());
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read("etcd-ca.crt")?))
        .identity(Identity::from_pem(
            read("etcd-client.crt")?,
            read("etcd-client.key")?,
        ));
    let options = ConnectOptions::new()
        .with_tls(tls)
        .with_connect_timeout(Duration::from_secs(2))
        .with_timeout(Duration::from_secs(3));
    Client::connect([spec.etcd.as_str()], Some(options))
        .await
        .with_context(|| format!("connecting to etcd at {}", spec.etcd))
}

/// On the controller: one try to write the network.
pub async fn put_network(spec: &BubbleSpec) -> Result<()> {
    let mut client = connect(spec).await?;
    client
        .put(key(), flannel_config(spec), None)
        .await
        .context("writing flannel's network into etcd")?;
    Ok(())
}

/// On a node: one try to see the network.
pub async fn see_network(spec: &BubbleSpec) -> Result<()> {
    let mut client = connect(spec).await?;
    let answer = client
        .get(key(), None)
        .await
        .context("reading flannel's network from etcd")?;
    anyhow::ensure!(
        !answer.kvs().is_empty(),
        "etcd does not have flannel's network yet"
    );
    Ok(())
}
