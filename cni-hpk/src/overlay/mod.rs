//! The overlay between bubbles: VXLAN on the wire, built from what each
//! bubble publishes of itself in etcd.
//!
//! Expected flow: Flannel's lease is waited for; the device made and given the
//! node's address; the state file written; the own record published under a
//! lease; and from then on the device follows the others' records.
//!
//! Guarantees: what the kernel has been told outlives this process and etcd's
//! absence. A restart finds what there is and changes only what differs.
//!
//! Assumptions: one overlay of a name per network namespace; every bubble's
//! Flannel lease is its own.
//!
//! Layout:
//! - [`config`]: the command line
//! - [`peer`]: a bubble's record
//! - [`plan`]: what device, neighbours and routes are missing or too many
//! - [`device`]: observes and applies
//! - [`host`]: mode `host`, frames moved by this program
//! - [`metrics`]: counters for Prometheus
//! - [`registry`]: publishing and following in etcd
//! - [`error`]

pub mod config;
pub mod device;
pub mod error;
pub mod host;
pub mod metrics;
pub mod peer;
pub mod plan;
pub mod registry;

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::netlink::Netlink;
use crate::subnet::{OverlayState, SubnetEnv};
use config::{Config, Mode};
use error::Error;
use host::{Forwarding, Prepared};
use peer::{Leases, Own, Peers};
use plan::Wanted;

/// How often Flannel's lease is looked for at the start.
const LEASE_POLL: Duration = Duration::from_millis(100);
/// How often the kernel's state is compared without anybody asking.
const RECONCILE: Duration = Duration::from_secs(30);
/// The least an IPv4 host must take, bytes (RFC 791).
const LEAST_MTU: u32 = 576;
/// After a failed change.
const RETRY: Duration = Duration::from_secs(2);

/// What has to be done while the process has one thread.
pub fn prepare(config: &Config) -> Result<Option<Prepared>, Error> {
    match config.mode {
        Mode::Host => Prepared::new(config).map(Some),
        Mode::Kernel => Ok(None),
    }
}

/// Runs the overlay; returns only with an error that a restart may mend.
pub async fn run(config: Config, prepared: Option<Prepared>) -> Result<(), Error> {
    if config.mtu < LEAST_MTU + peer::OVERHEAD {
        return Err(Error::Mtu(config.mtu));
    }
    let leases = wait_for_leases(&config.subnet_file).await?;
    let own = Own::new(&config, &leases);
    let netlink = Netlink::open()?;
    let (sender, mut peers) = watch::channel(Peers::default());

    let mut forwarding = match prepared {
        Some(prepared) => Some(prepared.start(&netlink, &own, &config.state_file)?),
        None => None,
    };
    // The device needs nobody: pods of this bubble can start without etcd.
    device::ensure(&netlink, &own.wanted_device())?;
    let state = OverlayState {
        mode: config.mode.as_str().to_owned(),
        mtu: own.record.mtu,
        node_ip: own.record.node_ip,
        device: config.device.clone(),
    };
    state
        .store(&config.state_file)
        .map_err(|source| Error::StateFile {
            path: config.state_file.clone(),
            source,
        })?;
    info!(
        device = config.device,
        node_ip = %state.node_ip,
        mtu = state.mtu,
        vni = config.vni,
        "overlay is up"
    );

    let metrics = forwarding.as_ref().map(|forwarding| {
        let file = config.state_file.with_extension("sock");
        metrics::Endpoint::open(file, forwarding.statistics())
    });
    let metrics = metrics.transpose()?;

    let publish = registry::run(&config.etcd, &own, sender);
    tokio::pin!(publish);
    let (mut known, mut news) = (false, false);
    loop {
        if let Some(forwarding) = forwarding.as_ref().filter(|_| news) {
            news = false;
            forwarding.set_peers(&own, &peers.borrow());
        }
        let delay = match reconcile(&netlink, &own, &peers.borrow(), known) {
            Ok(()) => RECONCILE,
            Err(error) => {
                warn!(error = error::chain(&error), "could not set up the overlay");
                RETRY
            }
        };
        tokio::select! {
            never = &mut publish => match never {},
            error = ended(&mut forwarding) => return Err(error),
            never = serve(&metrics) => match never {},
            changed = peers.changed() => {
                // The sender lives as long as `publish`.
                news = changed.is_ok();
                known |= news;
            }
            () = tokio::time::sleep(delay) => {
                same_leases(&config.subnet_file, &leases)?;
            }
        }
    }
}

async fn serve(metrics: &Option<metrics::Endpoint>) -> Infallible {
    match metrics {
        Some(metrics) => metrics.serve().await,
        None => std::future::pending().await,
    }
}

async fn ended(forwarding: &mut Option<Forwarding>) -> Error {
    match forwarding {
        Some(forwarding) => forwarding.ended().await,
        None => std::future::pending().await,
    }
}

/// Before the first list of peers has come, those the kernel knows from
/// before a restart stay.
fn reconcile(netlink: &Netlink, own: &Own, peers: &Peers, known: bool) -> Result<(), Error> {
    let wanted = match known {
        true => own.wanted(peers),
        false => own.wanted_device(),
    };
    let steps = device::ensure(netlink, &wanted)?;
    if steps > 0 {
        debug!(steps, peers = peers.len(), "overlay changed");
    }
    Ok(())
}

impl Own {
    /// The device alone; peers left as they are.
    fn wanted_device(&self) -> Wanted {
        Wanted {
            device: self.device.clone(),
            peers: None,
        }
    }

    fn wanted(&self, peers: &Peers) -> Wanted {
        Wanted {
            device: self.device.clone(),
            peers: Some(peers.clone()),
        }
    }
}

async fn wait_for_leases(path: &Path) -> Result<Leases, Error> {
    let mut waited = false;
    loop {
        match SubnetEnv::load(path) {
            Ok(env) => return leases(env).ok_or(Error::NoIpv4Lease),
            Err(error) if error.is_not_yet() => {
                if !waited {
                    info!(path = %path.display(), "waiting for Flannel's lease");
                    waited = true;
                }
            }
            Err(error) => return Err(Error::Lease(error)),
        }
        tokio::time::sleep(LEASE_POLL).await;
    }
}

/// A bubble that has got another lease needs another device address, and
/// pods of the former are lost anyway: start afresh.
fn same_leases(path: &Path, before: &Leases) -> Result<(), Error> {
    match SubnetEnv::load(path).map(leases) {
        Ok(Some(now)) if now != *before => Err(Error::LeaseChanged {
            before: before.to_string(),
            now: now.to_string(),
        }),
        // Being rewritten, or gone for a moment: flanneld's business.
        _ => Ok(()),
    }
}

fn leases(env: SubnetEnv) -> Option<Leases> {
    Some(Leases {
        ipv4: env.ipv4?,
        ipv6: env.ipv6,
    })
}
