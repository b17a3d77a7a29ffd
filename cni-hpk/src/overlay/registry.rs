//! etcd: publishes our record under a lease and follows the others'.
//!
//! A session ends with the first thing that goes wrong; the next begins after
//! a pause, with a new lease and a whole new list. Between sessions the peers
//! stay as they were.

use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, EventType, GetOptions, Identity, PutOptions, TlsOptions,
    WatchOptions,
};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::config::Etcd;
use super::error::{Error, chain};
use super::peer::{Own, Peers};

/// How long our record outlives us, seconds. Long enough for etcd to come
/// back after a fault: peers drop us when it ends. etcd itself prolongs the
/// leases when it starts.
const LEASE: i64 = 120;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const REQUEST: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Publishes and follows for ever.
pub async fn run(etcd: &Etcd, own: &Own, peers: watch::Sender<Peers>) -> Infallible {
    let mut pause = PAUSE;
    loop {
        let mut listed = false;
        if let Err(error) = session(etcd, own, &peers, &mut listed).await {
            // Said once, not at each try.
            match pause == PAUSE {
                true => warn!(error = chain(&error), "lost etcd, trying again"),
                false => debug!(error = chain(&error), "etcd is still away"),
            }
        }
        pause = match listed {
            true => PAUSE,
            false => (pause * 2).min(LONGEST_PAUSE),
        };
        tokio::time::sleep(pause).await;
    }
}

async fn session(
    etcd: &Etcd,
    own: &Own,
    peers: &watch::Sender<Peers>,
    listed: &mut bool,
) -> Result<(), Error> {
    let mut client = connect(etcd).await?;
    let lease = within("grant a lease", client.lease_grant(LEASE, None)).await?;
    let key = own.key(&etcd.prefix);
    let value = serde_json::to_vec(&own.record).unwrap_or_default();
    let options = PutOptions::new().with_lease(lease.id());
    within("publish our record", client.put(key, value, Some(options))).await?;

    let options = GetOptions::new().with_prefix();
    let list = client.get(etcd.prefix.as_str(), Some(options));
    let list = within("list the peers", list).await?;
    let mut table = Peers::default();
    for entry in list.kvs() {
        update(etcd, own, &mut table, entry.key(), Some(entry.value()));
    }
    let revision = list.header().map_or(0, |header| header.revision());
    info!(peers = table.len(), "published and listed");
    *listed = true;
    // Sent even when nothing changed: the first list is news by itself.
    peers.send_replace(table.clone());

    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(revision + 1);
    let watch = client.watch(etcd.prefix.as_str(), Some(options));
    let mut events = within("watch the peers", watch).await?;
    let alive = client.lease_keep_alive(lease.id());
    let (mut keeper, mut answers) = within("keep the lease", alive).await?;
    let mut tick = tokio::time::interval(KEEP_ALIVE);
    loop {
        tokio::select! {
            message = events.message() => {
                let message = message.map_err(failed("watch the peers"))?;
                let message = message.filter(|message| !message.canceled());
                for event in message.ok_or(Error::EtcdWatch)?.events() {
                    if let Some(entry) = event.kv() {
                        let value = (event.event_type() == EventType::Put).then(|| entry.value());
                        update(etcd, own, &mut table, entry.key(), value);
                    }
                }
                peers.send_if_modified(|now| {
                    let changed = *now != table;
                    now.clone_from(&table);
                    changed
                });
            }
            _ = tick.tick() => {
                within("keep the lease", keeper.keep_alive()).await?;
                let answer = within("keep the lease", answers.message()).await?;
                if answer.is_none_or(|answer| answer.ttl() <= 0) {
                    return Err(Error::EtcdLease);
                }
            }
        }
    }
}

/// Takes one record in, or out. A record that can't be one is logged and
/// leaves the subnet without a peer.
fn update(etcd: &Etcd, own: &Own, table: &mut Peers, key: &[u8], value: Option<&[u8]>) {
    let key = String::from_utf8_lossy(key);
    if let Ok(subnet) = own.read_key(&etcd.prefix, &key) {
        table.remove(&subnet);
    }
    let Some(value) = value else {
        return;
    };
    match own.read(&etcd.prefix, &key, value) {
        Ok(Some((subnet, record))) => {
            table.insert(subnet, record);
        }
        Ok(None) => {}
        Err(problem) => warn!(%key, problem, "a peer's record is not valid"),
    }
}

async fn connect(etcd: &Etcd) -> Result<Client, Error> {
    // Read anew each time: certificates may have been renewed.
    let mut options = ConnectOptions::new()
        .with_connect_timeout(REQUEST)
        .with_keep_alive(Duration::from_secs(10), REQUEST)
        .with_keep_alive_while_idle(true);
    if let Some(path) = &etcd.ca_cert {
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(path)?));
        if let (Some(cert), Some(key)) = (&etcd.cert, &etcd.key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        options = options.with_tls(tls);
    }
    within("connect", Client::connect(&etcd.endpoints, Some(options))).await
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Credentials {
        path: path.to_owned(),
        source,
    })
}

async fn within<T>(
    operation: &'static str,
    request: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(result) => result.map_err(failed(operation)),
        Err(_) => Err(Error::EtcdTimeout(operation)),
    }
}

fn failed(operation: &'static str) -> impl FnOnce(etcd_client::Error) -> Error {
    move |source| Error::Etcd {
        operation,
        source: Box::new(source),
    }
}
