//! CHECK: what ADD would do again must be nothing.

use std::path::Path;

use hpk_cni_types::{AddResult, Command};
use ipnet::IpNet;

use super::Run;
use super::add::interface;
use crate::netlink::{Netlink, Route};
use crate::plugin::attachments::Record;
use crate::plugin::error::Error;
use crate::plugin::pod;
use crate::plugin::{delegate, node};

impl Run<'_> {
    pub(super) fn check(&self) -> Result<(), Error> {
        let conf = &self.parsed.conf;
        let config = self.config()?;
        let netns = self.netns()?;
        let previous = conf
            .prev_result()?
            .ok_or_else(|| Error::Invalid("CHECK wants prevResult".to_owned()))?;
        let _lock = self.lock()?;
        let record = self
            .recorded()?
            .ok_or_else(|| Error::Check("it is not on record".to_owned()))?;
        let mut given = record.conf.clone();
        given["prevResult"] = conf.prev_result.clone().unwrap_or_default();
        if record.delegated {
            let plugin = delegate::plugin_of(&record.conf);
            return delegate::run(plugin, self.folders(), Command::Check, &given).map(drop);
        }
        let ipam = self.ipam(&record.conf);
        let own = AddResult {
            routes: ipam.routes()?,
            ..own_part(&previous, &record, netns)
        };
        let addresses: Vec<IpNet> = own.ips.iter().map(|ip| ip.address).collect();
        if addresses.is_empty() {
            return Err(Error::Check("prevResult has no address of ours".to_owned()));
        }
        ipam.check(&record.owner(), &addresses, &given)?;
        let mut wanted = interface(&config, &record, &own, None)?;
        // A later plugin may have taken some away, and says so.
        let told = |route: &Route| {
            route.destination.prefix_len() == 0
                || own.routes.iter().any(|it| it.dst == route.destination)
        };
        let left = |route: &Route| previous.routes.iter().any(|it| it.dst == route.destination);
        wanted.routes.retain(|route| !told(route) || left(route));
        let own_interface = own.interfaces.iter().find(|it| it.name == record.ifname);
        let pod = self.pod()?;
        let netlink = Netlink::open()?;
        let mut lacks: Vec<String> = Vec::new();
        for step in node::missing(&netlink, &config)? {
            lacks.push(format!("the bubble's side lacks {step:?}"));
        }
        for step in pod::missing(&netlink, pod.as_ref(), &wanted)? {
            lacks.push(step.to_string());
        }
        if !lacks.is_empty() {
            return Err(Error::Check(lacks.join(", ")));
        }
        let Some(pod) = pod else {
            return Ok(());
        };
        let mac = pod.link(&record.ifname)?.map(|link| link.mac.to_string());
        match own_interface.filter(|it| !it.mac.is_empty()) {
            Some(it) if mac.as_deref() != Some(it.mac.to_lowercase().as_str()) => Err(
                Error::Check(format!("its hardware address is not {}", it.mac)),
            ),
            _ => Ok(()),
        }
    }
}

/// Of a chain's result, what our ADD put in.
fn own_part(previous: &AddResult, record: &Record, netns: &Path) -> AddResult {
    let is_own = |index: usize| {
        previous.interfaces.get(index).is_some_and(|interface| {
            interface.name == record.ifname && Path::new(&interface.sandbox) == netns
        })
    };
    let mut own = previous.clone();
    own.ips.retain(|ip| ip.interface.is_some_and(is_own));
    let indices = 0..previous.interfaces.len();
    own.interfaces = indices
        .filter(|index| is_own(*index))
        .map(|index| previous.interfaces[index].clone())
        .collect();
    own
}
