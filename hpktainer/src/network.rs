//! The container's network: a pinned namespace, attached by CNI as `tap0`, and its files in /etc.

use std::fs::{self, File};
use std::path::Path;

use anyhow::Context as _;
use hpk_cni_client::{Attachment, Client, NetworkList, netns};
use nix::sched::{CloneFlags, setns};

use crate::config::Config;
use crate::container::{Places, Record, write_file};

/// Name of the interface, whatever the datapath.
pub const IFNAME: &str = "tap0";

/// Makes the namespace and attaches it; notes network and address in the record.
pub async fn attach(config: &Config, places: &Places, record: &mut Record) -> anyhow::Result<()> {
    let list = NetworkList::load_default(&config.cni_conf_dir).with_context(|| {
        format!(
            "no pod network in {}; is this a bubble?",
            config.cni_conf_dir.display()
        )
    })?;
    record.network = Some(config.cni_conf_dir.clone());
    record.cni_cache = Some(config.cni_cache_dir.clone());
    record.save(config)?;
    let path = places.netns.clone();
    tokio::task::spawn_blocking(move || netns::create(&path)).await??;
    let (client, attachment) = (
        client(config, &config.cni_cache_dir),
        attachment(places, record),
    );
    let added = in_network(config, async move || client.add(&list, &attachment).await);
    let result = added.await?.context("attaching to the pod network")?;
    record.ip = result.ips.first().map(|ip| ip.address.addr().to_string());
    record.save(config)
}

/// A namespace with nothing but a loopback.
pub async fn isolate(places: &Places) -> anyhow::Result<()> {
    let path = places.netns.clone();
    Ok(tokio::task::spawn_blocking(move || netns::create(&path)).await??)
}

/// Undoes [`attach`], as far as it got; what isn't there is fine.
pub async fn detach(config: &Config, places: &Places, record: &Record) -> anyhow::Result<()> {
    // A local bubble's goes with the bubble, and then nothing of it is left to detach from.
    if let Some(dir) = record.network.as_ref().filter(|dir| dir.exists()) {
        let cache = record.cni_cache.as_ref().unwrap_or(&config.cni_cache_dir);
        let list = NetworkList::load_default(dir).context("reading the pod network's conf")?;
        let (client, attachment) = (client(config, cache), attachment(places, record));
        let done = in_network(config, async move || client.del(&list, &attachment).await);
        done.await?.context("detaching from the pod network")?;
    }
    let path = places.netns.clone();
    tokio::task::spawn_blocking(move || netns::remove(&path)).await??;
    Ok(())
}

/// Does what starts CNI's plugins in the network that they work on: on a thread that enters it, and whose children are
/// in it, too.
async fn in_network<T: Send + 'static>(
    config: &Config,
    work: impl AsyncFnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let Some(path) = config.network.clone() else {
        return Ok(work().await);
    };
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("cni".to_owned())
        .spawn(move || {
            let done = runtime_in(&path).map(|runtime| runtime.block_on(work()));
            // Whoever waits for it may have been ended.
            let _ = tell.send(done);
        })
        .context("starting the thread of CNI's plugins")?;
    told.await
        .context("waiting for the thread of CNI's plugins")?
}

/// A runtime of this thread alone, which enters the network namespace at `path` for good.
pub fn runtime_in(path: &Path) -> anyhow::Result<tokio::runtime::Runtime> {
    let network = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    setns(network, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("entering the network of {}", path.display()))?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().context("starting a runtime")
}

fn client(config: &Config, cache: &Path) -> Client {
    Client::new(vec![config.cni_bin_dir.clone()], cache.to_owned())
}

fn attachment(places: &Places, record: &Record) -> Attachment {
    Attachment {
        container_id: format!("hpktainer-{}", record.id),
        netns: places.netns.clone(),
        ifname: IFNAME.to_owned(),
        args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
        capability_args: serde_json::Map::new(),
    }
}

/// Writes hostname, hosts and resolv.conf (the bubble's) into `etc`.
pub fn write_files(
    config: &Config,
    etc: &Path,
    hostname: &str,
    ip: Option<&str>,
) -> anyhow::Result<()> {
    let source = &config.resolv_conf;
    let resolv = match fs::read(source) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.with_context(|| format!("reading {}", source.display()))?,
    };
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    if let Some(ip) = ip {
        hosts.push_str(&format!("{ip}\t{hostname}\n"));
    }
    // The container's users read them.
    write_file(&etc.join("hosts"), 0o644, hosts.as_bytes())?;
    write_file(
        &etc.join("hostname"),
        0o644,
        format!("{hostname}\n").as_bytes(),
    )?;
    write_file(&etc.join("resolv.conf"), 0o644, &resolv)
}
