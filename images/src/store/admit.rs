//! What runs without coming into the store, such as a SIF: whether the policy lets it in.

use super::error::Error;
use super::{Store, blocking};
use crate::policy::Policy;

impl Store {
    /// Judges `name` by its transport and scopes, the most particular first, as in
    /// [`policy`](crate::policy).
    pub async fn admit(
        &self,
        name: &str,
        transport: &str,
        scopes: Vec<String>,
    ) -> Result<(), Error> {
        let Some(path) = self.config.policy.clone() else {
            return Ok(());
        };
        let policy = blocking(move || Ok(Policy::load(&path)?)).await?;
        let refused = |refusal| Error::Refused {
            reference: name.to_owned(),
            refusal,
        };
        match policy.judge_scopes(transport, scopes).map_err(refused)? {
            None => Ok(()),
            Some(wanted) => Err(refused(wanted.unmet())),
        }
    }
}
