//! What runs without coming into the store, such as a SIF: whether the policy lets it in.

use super::Store;
use super::error::Error;

impl Store {
    /// Judges `name` by its transport and scopes, the most particular first, as in
    /// [`policy`](crate::policy).
    pub async fn admit(
        &self,
        name: &str,
        transport: &str,
        scopes: Vec<String>,
    ) -> Result<(), Error> {
        let policy = self.policy().await?;
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
