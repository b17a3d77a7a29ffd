//! Reading from the API server what pods refer to: ConfigMaps, Secrets, tokens, claims and what they
//! are bound to.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount,
};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error("can't read {kind} {name}")]
    Read {
        kind: &'static str,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("failed to fetch token for service account {namespace}/{name}")]
    Token {
        namespace: String,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the API server's answer holds no token for service account {0}")]
    EmptyToken(String),
}

/// pod uid, audience, expiration.
type TokenKey = (String, Option<String>, i64);

#[derive(Debug, Clone)]
struct CachedToken {
    value: String,
    /// When a new one is asked for: at 80 % of the life, or after a day (as the stock kubelet).
    renew_at: Timestamp,
}

/// Reads with the node's credentials. Tokens are kept until 80 % of their life is over.
pub struct Reader {
    client: Client,
    tokens: Mutex<HashMap<TokenKey, CachedToken>>,
}

impl Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

impl Reader {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            tokens: Mutex::default(),
        }
    }

    /// None if it doesn't exist.
    pub async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ConfigMap>, Error> {
        self.read("configmap", namespace, name).await
    }

    /// None if it doesn't exist.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
        self.read("secret", namespace, name).await
    }

    /// None if it doesn't exist.
    pub async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, Error> {
        let kind = "persistentvolumeclaim";
        self.read(kind, namespace, name).await
    }

    /// None if it doesn't exist.
    pub async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, Error> {
        let kind = "persistentvolume";
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        read(&api, kind, name, name).await
    }

    /// None if it doesn't exist.
    pub async fn runtime_class(&self, name: &str) -> Result<Option<RuntimeClass>, Error> {
        let api: Api<RuntimeClass> = Api::all(self.client.clone());
        read(&api, "runtimeclass", name, name).await
    }

    async fn read<K>(
        &self,
        kind: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<K>, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        read(&api, kind, &format!("{namespace}/{name}"), name).await
    }

    /// A token of the pod's service account, bound to the pod.
    pub async fn token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        expiration_seconds: i64,
    ) -> Result<String, Error> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key: TokenKey = (uid.clone(), audience.map(str::to_owned), expiration_seconds);
        if let Some(token) = self.cached(&key) {
            return Ok(token);
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let account = spec
            .and_then(|spec| spec.service_account_name.as_deref())
            .unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audience.map(|a| vec![a.to_owned()]).unwrap_or_default()),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: Some(uid),
                }),
                expiration_seconds: Some(expiration_seconds),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let post = PostParams::default();
        let answer = caught_up(&[403, 404], || {
            api.create_token_request(account, &post, &request)
        })
        .await
        .map_err(|source| Error::Token {
            namespace: namespace.to_owned(),
            name: account.to_owned(),
            source: Box::new(source),
        })?;
        let empty = || Error::EmptyToken(format!("{namespace}/{account}"));
        let status = answer.status.ok_or_else(empty)?;
        let value = status.token.filter(|t| !t.is_empty()).ok_or_else(empty)?;
        let expires = status.expiration_timestamp.ok_or_else(empty)?;
        let now = Timestamp::now();
        let life = expires.0.as_second() - now.as_second();
        let renew_in = (life * 4 / 5).clamp(0, 24 * 3600);
        let renew_at = Timestamp::from_second(now.as_second() + renew_in).unwrap_or(now);
        let token = CachedToken {
            value: value.clone(),
            renew_at,
        };
        if let Ok(mut tokens) = self.tokens.lock() {
            tokens.insert(key, token);
        }
        Ok(value)
    }

    /// Forgets a pod that is gone.
    pub fn forget(&self, uid: &str) {
        if let Ok(mut tokens) = self.tokens.lock() {
            tokens.retain(|(of, _, _), _| of != uid);
        }
    }

    fn cached(&self, key: &TokenKey) -> Option<String> {
        let tokens = self.tokens.lock().ok()?;
        let token = tokens.get(key)?;
        (token.renew_at > Timestamp::now()).then(|| token.value.clone())
    }
}

/// `full`: the name for messages.
async fn read<K>(
    api: &Api<K>,
    kind: &'static str,
    full: &str,
    name: &str,
) -> Result<Option<K>, Error>
where
    K: Clone + Debug + DeserializeOwned,
{
    caught_up(&[403], || api.get_opt(name))
        .await
        .map_err(|source| Error::Read {
            kind,
            name: full.to_owned(),
            source: Box::new(source),
        })
}

/// The Node authorizer and the admission NodeRestriction learn of pods by watches of their own, a moment after us: what they
/// refuse with one of `codes` (the latter with 404, of tokens) is asked again, up to 0.6 s.
async fn caught_up<T, F, Fut>(codes: &[u16], call: F) -> Result<T, kube::Error>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, kube::Error>>,
{
    let mut wait = Duration::from_millis(20);
    loop {
        match call().await {
            Err(kube::Error::Api(status))
                if codes.contains(&status.code) && wait <= Duration::from_millis(320) =>
            {
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            other => return other,
        }
    }
}
