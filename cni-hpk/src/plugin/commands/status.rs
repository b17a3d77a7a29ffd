//! STATUS.

use hpk_cni_types::Command;

use super::Run;
use crate::netlink::Netlink;
use crate::plugin::delegate;
use crate::plugin::error::Error;
use crate::subnet::OverlayState;

impl Run<'_> {
    /// Whether an ADD could be taken now.
    pub(super) fn status(&self) -> Result<(), Error> {
        let ready = self.ready();
        ready.map_err(|error| Error::Environment(error.into_status_object()))
    }

    fn ready(&self) -> Result<(), Error> {
        let config = match self.parsed.resolve() {
            // Ranges will come with the attachments, and nobody says which.
            Err(Error::NotReady(_)) if self.parsed.awaits_ranges() => return Ok(()),
            other => other?,
        };
        if let Some(block) = &self.parsed.conf.plugin.delegate {
            let conf = self.parsed.delegate_conf(block, &config)?;
            let plugin = delegate::plugin_of(&conf);
            return delegate::run_if_known(plugin, self.folders(), Command::Status, &conf);
        }
        let conf = self.parsed.ipam_conf(&config);
        self.ipam(&conf).status(&config.ranges)?;
        let overlay = match &self.parsed.conf.plugin.overlay_file {
            Some(path) => OverlayState::load(path).map_err(Error::Subnet)?,
            None => None,
        };
        if let Some(state) = overlay {
            let link = Netlink::open()?.link(&state.device)?;
            if !link.is_some_and(|link| link.up) {
                return Err(Error::OverlayDown(state.device));
            }
        }
        Ok(())
    }
}
