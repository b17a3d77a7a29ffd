//! Asks the API server, and remembers its answers for a while: tokens 2 minutes, leave 5 minutes,
//! refusals 30 seconds (the stock kubelet's times).

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};

use super::attributes;
use super::identity::Identity;

const TOKEN_TTL: Duration = Duration::from_secs(120);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const REFUSED_TTL: Duration = Duration::from_secs(30);
/// How long the API server may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Answers remembered of each kind.
const MAX_ANSWERS: usize = 1024;

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub enum Denial {
    /// 401
    #[error("Unauthorized")]
    Unknown,
    /// 403
    #[error(
        "Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)={subresources:?})"
    )]
    Forbidden {
        user: String,
        verb: &'static str,
        subresources: &'static [&'static str],
    },
    /// 500
    #[error("can't ask the API server who may do what: {0}")]
    Api(Box<kube::Error>),
    /// 500
    #[error("the API server does not say who may do what")]
    TimedOut,
}

/// Checks callers.
pub struct Reviewer {
    client: kube::Client,
    node: String,
    tokens: Answers<String, Option<Identity>>,
    leaves: Answers<(Identity, &'static str, &'static str), bool>,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Tokens stay out of logs.
        f.debug_struct("Reviewer").finish_non_exhaustive()
    }
}

impl Reviewer {
    pub fn new(client: kube::Client, node: String) -> Self {
        Self {
            client,
            node,
            tokens: Answers::default(),
            leaves: Answers::default(),
        }
    }

    /// Whose token it is.
    pub async fn authenticate(&self, token: &str) -> Result<Identity, Denial> {
        let token = token.to_owned();
        if let Some(known) = self.tokens.get(&token) {
            return known.ok_or(Denial::Unknown);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.clone(),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let api = Api::all(self.client.clone());
        let review: TokenReview = asked(api.create(&PostParams::default(), &review)).await?;
        let status = review.status.unwrap_or_default();
        let identity = status
            .user
            .filter(|_| status.authenticated == Some(true))
            .map(|user| Identity {
                user: user.username.unwrap_or_default(),
                uid: user.uid,
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            });
        self.tokens.put(token, identity.clone(), TOKEN_TTL);
        identity.ok_or(Denial::Unknown)
    }

    /// May they do this here?
    pub async fn authorize(
        &self,
        identity: &Identity,
        method: &hyper::Method,
        path: &str,
    ) -> Result<(), Denial> {
        let verb = attributes::verb(method);
        let subresources = attributes::subresources(path);
        for subresource in subresources {
            if self.may(identity, verb, subresource).await? {
                return Ok(());
            }
        }
        Err(Denial::Forbidden {
            user: identity.user.clone(),
            verb,
            subresources,
        })
    }

    async fn may(
        &self,
        identity: &Identity,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, Denial> {
        let key = (identity.clone(), verb, subresource);
        if let Some(known) = self.leaves.get(&key) {
            return Ok(known);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(identity.user.clone()),
                uid: identity.uid.clone(),
                groups: Some(identity.groups.clone()),
                extra: (!identity.extra.is_empty()).then(|| identity.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api = Api::all(self.client.clone());
        let review: SubjectAccessReview =
            asked(api.create(&PostParams::default(), &review)).await?;
        let allowed = review.status.is_some_and(|status| status.allowed);
        let ttl = if allowed { ALLOWED_TTL } else { REFUSED_TTL };
        self.leaves.put(key, allowed, ttl);
        Ok(allowed)
    }
}

async fn asked<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Denial> {
    match tokio::time::timeout(LIMIT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Denial::Api(Box::new(error))),
        Err(_) => Err(Denial::TimedOut),
    }
}

/// Answers that hold for a while.
struct Answers<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Answers<K, V> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Eq + Hash, V: Clone> Answers<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, until) = answers.get(key)?;
        (*until > Instant::now()).then(|| value.clone())
    }

    fn put(&self, key: K, value: V, ttl: Duration) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, (_, until)| *until > now);
        }
        if answers.len() >= MAX_ANSWERS {
            // Somebody is guessing: forgetting only costs asking again.
            answers.clear();
        }
        answers.insert(key, (value, now + ttl));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_hold_for_their_time_and_are_bounded() {
        let answers = Answers::default();
        answers.put(1, "yes", Duration::from_secs(60));
        answers.put(2, "no", Duration::ZERO);
        assert_eq!(answers.get(&1), Some("yes"));
        assert_eq!(answers.get(&2), None);
        for key in 0..3 * MAX_ANSWERS {
            answers.put(key, "x", Duration::from_secs(60));
            let many = answers
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .len();
            assert!(many <= MAX_ANSWERS);
        }
    }
}
