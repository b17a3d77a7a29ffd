//! The bubble's own use of etcd: who may do what in it, and flannel's network, both written once,
//! the latter awaited by the nodes.

mod access;

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
        // With iptables flanneld refuses to start where br_netfilter is not loaded, which no user can do and
        // HPK does without.
        "EnableNFTables": true,
    })
    .to_string()
}

/// With the certificate of that name.
async fn connect(spec: &BubbleSpec, certificate: &str) -> Result<Client> {
    let read = |name: &str| crate::files::read(pki(name).as_ref());
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read("etcd-ca.crt")?))
        .identity(Identity::from_pem(
            read(&format!("{certificate}.crt"))?,
            read(&format!("{certificate}.key"))?,
        ));
    let options = ConnectOptions::new()
        .with_tls(tls)
        .with_connect_timeout(Duration::from_secs(2))
        .with_timeout(Duration::from_secs(3));
    Client::connect([spec.etcd.as_str()], Some(options))
        .await
        .with_context(|| format!("connecting to etcd at {}", spec.etcd))
}

/// On the controller: one try to close etcd to all but its users, and to write the network.
pub async fn set_up(spec: &BubbleSpec) -> Result<()> {
    let mut client = connect(spec, "apiserver-etcd-client").await?;
    access::set_up(&mut client).await?;
    client
        .put(key(), flannel_config(spec), None)
        .await
        .context("writing flannel's network into etcd")?;
    Ok(())
}

/// On a node: one try to see the network.
pub async fn see_network(spec: &BubbleSpec) -> Result<()> {
    let mut client = connect(spec, "etcd-client").await?;
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
